package main

import (
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"coldrack.dev/internal/base/liblog"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/settings"
	"coldrack.dev/internal/server/daemon"
)

// defaultConfigFile is read when it exists and --config names no other.
const defaultConfigFile = "/etc/coldrack/config.yaml"

// serveOptions describes every field of daemon.Config.
func serveOptions() map[string]settings.Option {
	usage := func(text string) settings.Option { return settings.Option{Usage: text} }
	return map[string]settings.Option{
		"dataDir":       usage("folder that holds all state: store, keys, leases, content, audit log"),
		"apiAddress":    usage("where people's API listens, host:port"),
		"apiNames":      usage("extra DNS names and addresses of the API's certificate"),
		"ui":            usage("serve the web pages on the address of people's API; false: only the API"),
		"interfaces":    usage("the only interfaces on which machines are answered; none: DHCP on every one with an address in a Subnet, the other services on all"),
		"bootAddress":   usage("address of this server as machines reach it; none: the first one of the first interface"),
		"bootPort":      usage("port of scripts, kernels and images over plain HTTP"),
		"machinePort":   usage("port of the machine API over TLS"),
		"tftpPort":      usage("port of first stages over TFTP; only tests change it"),
		"bootNetns":     usage("network namespace in which machines are served; used by the lab"),
		"noBoot":        usage("start no boot services, only the control plane, controllers and people's API"),
		"dns":           usage("answer DNS in Subnets with serveDNS; false: in none"),
		"ntp":           usage("tell machines the time, where no other program of this host does; false: never"),
		"dnsDomain":     usage("domain of machines in Subnets without one; none: they have no names"),
		"dnsUpstreams":  usage("DNS servers for names that are not ours, for clients in Subnets that name none; none given: those of /etc/resolv.conf; \"none\": such names are refused"),
		"storeQuotaMib": usage("MiB of the store's file at which it refuses writes; a larger store takes longer to start"),
		"etcdEndpoints": usage("existing etcd to use instead of the embedded one"),
		"etcdCAFile":    usage("CA certificate of that etcd"),
		"etcdCertFile":  usage("client certificate for that etcd"),
		"etcdKeyFile":   usage("key of the client certificate"),
		// COLDRACK_KUBECONFIG already tells people's verbs where the server is. A server that read it too
		// would take itself for its own store.
		"kubeconfig":            {Usage: "existing Kubernetes API that holds the kinds instead of the embedded one", Env: "COLDRACK_SERVE_KUBECONFIG"},
		"manifests":             usage("files or folders applied at every start"),
		"bundles":               usage("bundle archives imported at start when the store lacks them"),
		"trustedKeys":           usage("files with Ed25519 public keys whose signatures on bundles are accepted"),
		"etcdDiscoveryPort":     usage("port on which members of new etcd clusters find each other (etcd --discovery and --discovery-token), for example 7081; 0: none"),
		"updatePort":            usage("port on which machines with update_engine (Flatcar, CoreOS Container Linux) get their updates, for example 7082; 0: none"),
		"updateFolder":          usage("folder of the settings and packages of updates; none: updates in the data folder"),
		"etcdDiscoveryOpen":     usage("let anybody who reaches that port make tokens (GET /new?size=N), not only people with coldrack discovery new"),
		"discoveryArgs":         usage("kernel arguments of the discovery system, for hardware that needs some, for example nomodeset"),
		"quirks":                usage("file with quirks of firmware that your machines have, beside those that the server knows (docs/booting.md)"),
		"registryUpstreams":     usage("registries that container images are fetched from when no bundle has them, for example docker.io; http://HOST for plain HTTP"),
		"registryCredentials":   usage("file with names and passwords of such registries, as docker login or skopeo login --authfile writes it"),
		"registryCacheGib":      usage("GiB of images from such registries that are kept"),
		"registryImagesGib":     usage("GiB that container images of coldrack image load and of pushes may take"),
		"acme":                  usage("issue certificates to approved machines by ACME on the machines' port, from the authority of coldrack pki"),
		"registryPush":          usage("take pushed container images on the machines' port, from whoever has a token of role operator or admin as password"),
		"auditFailure":          usage("what becomes of a write whose audit record cannot be kept: refuse or continue"),
		"auditMaxMib":           usage("MiB that the audit log may take before its oldest files are removed"),
		"auditMinDays":          usage("days that each record of the audit log is kept at least, whatever its size"),
		"auditSyslog":           usage("syslog receiver that audit records are sent to as well (RFC 5424): tls://HOST:PORT, tcp://HOST:PORT, udp://HOST:PORT or unix:///PATH"),
		"auditSyslogCAFile":     usage("certificates that a syslog receiver with TLS is trusted by; none: those of this host"),
		"auditSyslogCertFile":   usage("certificate by which a syslog receiver with TLS knows this server"),
		"auditSyslogKeyFile":    usage("its key"),
		"auditWebhook":          usage("URL that audit records are sent to as well, as those of Kubernetes (EventList of audit.k8s.io/v1)"),
		"auditWebhookCAFile":    usage("certificates that the webhook is trusted by; none: those of this host"),
		"auditWebhookTokenFile": usage("file with a bearer token for the webhook"),
		"backupEvery":           usage("how often the server's own store is backed up; 0: only on demand"),
		"backupKeep":            usage("how many backups of the server's own store stay"),
		"backupCopies":          usage("where copies of all backups are kept: URL of a bucket that speaks S3, https://HOST:PORT/BUCKET/PREFIX, or a folder; none: nowhere"),
		"backupCopiesRegion":    usage("region that requests to S3 are signed for"),
		"backupCopiesPathStyle": usage("name the bucket in the path of requests to S3; false: in their host"),
		"backupCopiesCAFile":    usage("certificates that S3 is trusted by; none: those of this host"),
		"backupCopiesSecret":    usage("Secret with accessKey and secretKey for S3"),
		"swarmFrom":             usage("from how many machines on that fetch the same they give it to each other; 0: never, the server gives all"),
		"bootConcurrency":       usage("how many machines load what they boot at once; others wait, but no longer than their firmware does"),
		"bootPaceMbit":          usage("megabits a second for one connection of a boot loader, for loaders that hang when data come too fast; 0: no bound"),
		"heartbeatInterval":     usage("how often installed nodes report"),
		"lostAfter":             usage("how long a node may be silent before it counts as lost; 0: three heartbeats"),
		"logLevel":              usage("debug, info, warn or error"),
		"logFormat":             usage("text or json"),
	}
}

func (a *app) serveCommand() *cobra.Command {
	cfg := daemon.DefaultConfig()
	set, bindErr := settings.Bind(&cfg, serveOptions())
	var (
		file        string
		printConfig bool
		output      string
	)
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the server",
		Long: `Run the server: control plane, boot services, machine API, content store and controllers.

Every setting is a flag, an environment variable and a key of the config file (the flag's name in
camel case, for example dataDir). A flag wins over the environment, the environment over the file, the
file over the default. --print-config shows the outcome and where each value came from.

SIGINT and SIGTERM end the server gracefully; a second one ends it at once.`,
		Example: `  coldrack serve
  coldrack serve --data-dir /srv/coldrack --interfaces eno1 --manifests /etc/coldrack/manifests
  COLDRACK_LOG_LEVEL=debug coldrack serve --print-config`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if bindErr != nil {
				return bindErr
			}
			if err := a.loadServeConfig(set, &cfg, file); err != nil {
				return err
			}
			if printConfig {
				if done, err := a.printStructured(output, set.Values()); done {
					return err
				}
				_, err := io.WriteString(a.out, set.YAML())
				return err
			}
			log := slog.New(liblog.Throttle(a.logger(cfg).Handler(), nil))
			daemon.TakeLibraryLogs(log)
			return daemon.Run(cmd.Context(), cfg, log)
		},
	}
	if bindErr == nil {
		set.AddFlags(cmd.Flags())
		_ = cmd.RegisterFlagCompletionFunc("audit-failure", cobra.FixedCompletions([]string{daemon.AuditRefuse, daemon.AuditContinue}, cobra.ShellCompDirectiveNoFileComp))
	}
	cmd.Flags().StringVar(&file, "config", "", "config file [$COLDRACK_CONFIG] (default "+defaultConfigFile+" if it exists)")
	cmd.Flags().BoolVar(&printConfig, "print-config", false, "show the effective configuration and where each value came from, and exit")
	addOutputFlag(cmd, &output, "json", "yaml")
	cmd.Flags().Lookup("output").Usage = "format of --print-config: json, yaml (default: a config file with comments)"
	return cmd
}

// loadServeConfig merges all sources into cfg, which set is bound to, and checks the outcome.
func (a *app) loadServeConfig(set *settings.Set, cfg *daemon.Config, file string) error {
	optional := false
	if file == "" {
		file, _ = a.env("COLDRACK_CONFIG")
	}
	if file == "" {
		file, optional = defaultConfigFile, true
	}
	text, err := os.ReadFile(file)
	if err != nil && !(optional && errors.Is(err, fs.ErrNotExist)) {
		return exit.Usagef("config file: %w", err)
	}
	if err := set.Load(file, text, a.env); err != nil {
		return exit.Usagef("configuration:\n%w", err)
	}
	if err := set.Explain(cfg.Validate()); err != nil {
		return exit.Usagef("configuration:\n%w", err)
	}
	return nil
}

func (a *app) logger(cfg daemon.Config) *slog.Logger {
	var level slog.Level
	// Validate has accepted the level; an unknown one would mean info.
	_ = level.UnmarshalText([]byte(cfg.LogLevel))
	options := &slog.HandlerOptions{Level: level}
	if cfg.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(a.err, options))
	}
	return slog.New(slog.NewTextHandler(a.err, options))
}
