// Package daemon is the composition root of `coldrack serve`: it starts the parts in the order in which
// they need each other, connects the small interfaces that they declare, and stops them in reverse.
package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"coldrack.dev/internal/content/registry"
	"coldrack.dev/internal/contract/validate"
	"coldrack.dev/internal/netboot/gate"
	"coldrack.dev/internal/server/audit"
	"coldrack.dev/internal/server/controlplane"
)

// Config is everything `coldrack serve` can be told. Every field is a flag, an environment variable and
// a key of the config file; the zero value of each is a working default.
type Config struct {
	// DataDir holds all state: etcd, keys, leases, content, audit log.
	DataDir string `json:"dataDir"`

	// APIAddress is where people's API listens, host:port.
	APIAddress string `json:"apiAddress"`
	// APINames are extra DNS names and addresses of the API's certificate.
	APINames []string `json:"apiNames,omitempty"`

	// UI serves the web pages of people's API.
	UI bool `json:"ui"`

	// Interfaces on which machines are answered, and no others: also those that do not exist yet. Empty: DHCP on every interface
	// that has an address in a Subnet, the other services on all.
	Interfaces []string `json:"interfaces,omitempty"`
	// BootAddress is the server's address as machines reach it. Empty: the first address of the first
	// interface.
	BootAddress string `json:"bootAddress,omitempty"`
	// BootPort serves scripts, kernels and images over plain HTTP.
	BootPort int `json:"bootPort"`
	// MachinePort serves the machine API over TLS.
	MachinePort int `json:"machinePort"`
	// TFTPPort serves first stages. Only tests change it.
	TFTPPort int `json:"tftpPort"`
	// BootNetns is the path or name of a network namespace in which the boot sockets and the machine
	// API are opened; people's API stays in the server's own. Used by the lab.
	BootNetns string `json:"bootNetns,omitempty"`
	// EtcdDiscoveryPort serves the members of new etcd clusters, over plain HTTP and gRPC; 0: they are not served.
	EtcdDiscoveryPort int `json:"etcdDiscoveryPort,omitempty"`
	// EtcdDiscoveryOpen lets anybody who reaches that port make tokens.
	EtcdDiscoveryOpen bool `json:"etcdDiscoveryOpen,omitempty"`
	// UpdatePort serves updates to machines with update_engine, over plain HTTP; 0: none.
	UpdatePort int `json:"updatePort,omitempty"`
	// UpdateFolder holds settings and packages of updates. Empty: the folder updates in DataDir.
	UpdateFolder string `json:"updateFolder,omitempty"`
	// NoBoot starts no boot services: only the control plane, controllers and people's API.
	NoBoot bool `json:"noBoot,omitempty"`

	// DNS answers names in Subnets that ask for it (serveDNS). NTP tells the time.
	DNS bool `json:"dns"`
	NTP bool `json:"ntp"`
	// DNSDomain is that of machines in Subnets without one. Empty: they have no names.
	DNSDomain string `json:"dnsDomain,omitempty"`
	// DNSUpstreams are asked for other names by clients in Subnets that name no servers: addresses, with a port or not, or "none".
	// Empty: those of this host's /etc/resolv.conf.
	DNSUpstreams []string `json:"dnsUpstreams,omitempty"`

	// StoreQuotaMiB is the size of the embedded store's file at which it refuses writes.
	StoreQuotaMiB int `json:"storeQuotaMib"`
	// EtcdEndpoints of an existing etcd cluster to use instead of the embedded one.
	EtcdEndpoints []string `json:"etcdEndpoints,omitempty"`
	EtcdCAFile    string   `json:"etcdCAFile,omitempty"`
	EtcdCertFile  string   `json:"etcdCertFile,omitempty"`
	EtcdKeyFile   string   `json:"etcdKeyFile,omitempty"`
	// Kubeconfig of an existing Kubernetes API that holds the kinds instead of the embedded one.
	Kubeconfig string `json:"kubeconfig,omitempty"`

	// Manifests are files or folders applied at every start, with server-side apply: Subnets, Profiles,
	// EnrollmentPolicies that belong to the set-up of this server.
	Manifests []string `json:"manifests,omitempty"`
	// Bundles are bundle archives imported at start when the store does not hold them yet.
	Bundles []string `json:"bundles,omitempty"`
	// TrustedKeys are files with Ed25519 public keys whose signatures on bundles are accepted, beside
	// those in DataDir/trusted-keys.
	TrustedKeys []string `json:"trustedKeys,omitempty"`

	// RegistryUpstreams are registries that container images are fetched from when no bundle has them:
	// host names, http://HOST for plain HTTP. None: nothing is fetched.
	RegistryUpstreams []string `json:"registryUpstreams,omitempty"`
	// RegistryCredentials is a file with their names and passwords, as of docker login or skopeo login; empty: they are asked as anybody.
	RegistryCredentials string `json:"registryCredentials,omitempty"`
	// RegistryCacheGiB bounds what is kept of them.
	RegistryCacheGiB int `json:"registryCacheGib"`
	// RegistryImagesGiB bounds the container images that people load.
	RegistryImagesGiB int `json:"registryImagesGib"`
	// RegistryPush takes images on the machines' port, too, from people with a token of role operator.
	RegistryPush bool `json:"registryPush"`

	// ACME issues certificates of the authority for people and services to machines, on their port.
	ACME bool `json:"acme"`

	// AuditFailure is what becomes of a write whose audit record cannot be kept: AuditRefuse or AuditContinue.
	AuditFailure string `json:"auditFailure"`
	// AuditMaxMib is how large the audit log may become before its oldest files are removed, and AuditMinDays the age that they
	// must have.
	AuditMaxMib  int `json:"auditMaxMib"`
	AuditMinDays int `json:"auditMinDays"`
	// AuditSyslog and AuditWebhook are where each audit record is sent as well; see audit.Export.
	AuditSyslog           string `json:"auditSyslog,omitempty"`
	AuditSyslogCAFile     string `json:"auditSyslogCAFile,omitempty"`
	AuditSyslogCertFile   string `json:"auditSyslogCertFile,omitempty"`
	AuditSyslogKeyFile    string `json:"auditSyslogKeyFile,omitempty"`
	AuditWebhook          string `json:"auditWebhook,omitempty"`
	AuditWebhookCAFile    string `json:"auditWebhookCAFile,omitempty"`
	AuditWebhookTokenFile string `json:"auditWebhookTokenFile,omitempty"`

	// BackupEvery is the time between two backups of the server's own store; 0: none is taken by itself. BackupKeep is how many stay.
	BackupEvery time.Duration `json:"backupEvery"`
	BackupKeep  int           `json:"backupKeep"`
	// BackupCopies is where copies of all backups are kept: the URL of a bucket of an S3-compatible store with a prefix, such as
	// https://s3.example:9000/backups/rack-1, or an absolute folder, such as a mount, that holds a file named .coldrack-backups. Empty: nowhere.
	BackupCopies string `json:"backupCopies,omitempty"`
	// BackupCopiesRegion that requests to S3 are signed for.
	BackupCopiesRegion string `json:"backupCopiesRegion"`
	// BackupCopiesPathStyle names the bucket in the path of requests, as the URL does; false: in their host, as AWS does.
	BackupCopiesPathStyle bool `json:"backupCopiesPathStyle"`
	// BackupCopiesCAFile has the certificates that S3 is trusted by, PEM; empty: those of this host.
	BackupCopiesCAFile string `json:"backupCopiesCAFile,omitempty"`
	// BackupCopiesSecret is the Secret with accessKey and secretKey.
	BackupCopiesSecret string `json:"backupCopiesSecret"`

	// DiscoveryArgs are kernel arguments of the discovery system in addition to its own, for hardware that
	// needs some. Installed machines get theirs from their Profile.
	DiscoveryArgs []string `json:"discoveryArgs,omitempty"`

	// Quirks is a file with the site's own quirks of firmware, as internal/netboot/quirk has them; empty: only those that come with the server.
	Quirks string `json:"quirks"`

	// BootConcurrency is how many machines load what they boot at once. Further ones are asked to come again, but for no
	// longer than their firmware has patience.
	BootConcurrency int `json:"bootConcurrency"`
	// BootPaceMbit bounds what one connection gets over plain HTTP, megabits a second; 0: as fast as it goes. For boot loaders
	// that hang when data come too fast.
	BootPaceMbit int `json:"bootPaceMbit,omitempty"`

	// SwarmFrom is how many machines that fetch the same there must be for them to give it to each other: fewer are served as
	// fast by the server alone. 0: they never do.
	SwarmFrom int `json:"swarmFrom"`

	// HeartbeatInterval that installed nodes are told.
	HeartbeatInterval time.Duration `json:"heartbeatInterval"`
	// LostAfter is how long a node may be silent before it counts as lost; 0: three heartbeats.
	LostAfter time.Duration `json:"lostAfter,omitempty"`
	// LogLevel is debug, info, warn or error; LogFormat text or json.
	LogLevel  string `json:"logLevel"`
	LogFormat string `json:"logFormat"`
}

// Bounds of the store's quota. A start reads the whole file; etcd's authors advise against more than 8 GiB.
const leastStoreQuotaMiB, mostStoreQuotaMiB = 64, 8 << 10

// DefaultConfig returns the configuration that `coldrack serve` runs with when told nothing.
func DefaultConfig() Config {
	return Config{
		DataDir:           "/var/lib/coldrack",
		APIAddress:        "127.0.0.1:7443",
		UI:                true,
		BootPort:          7080,
		MachinePort:       7444,
		TFTPPort:          69,
		DNS:               true,
		NTP:               true,
		StoreQuotaMiB:     controlplane.DefaultStoreQuota >> 20,
		RegistryCacheGiB:  20,
		RegistryImagesGiB: 20,
		AuditFailure:      AuditRefuse,
		AuditMaxMib:       controlplane.AuditMaxMiB,
		AuditMinDays:      controlplane.AuditMinDays,
		BootConcurrency:   gate.Usual().Loading,

		BackupEvery:           6 * time.Hour,
		BackupKeep:            28,
		BackupCopiesRegion:    "us-east-1",
		BackupCopiesPathStyle: true,
		BackupCopiesSecret:    "backup-copies",

		SwarmFrom:         5,
		HeartbeatInterval: 30 * time.Second,
		LogLevel:          "info",
		LogFormat:         "text",
	}
}

// Validate reports every field that cannot work, with what was found and what would be right.
func (c Config) Validate() error {
	var errs []error
	bad := func(field string, found any, want string) {
		errs = append(errs, fmt.Errorf("%s: %q: %s", field, fmt.Sprint(found), want))
	}
	if c.DataDir == "" {
		bad("dataDir", c.DataDir, "must name a folder")
	} else if info, err := os.Stat(c.DataDir); err == nil && !info.IsDir() {
		bad("dataDir", c.DataDir, "exists and is not a folder")
	}
	if _, _, err := net.SplitHostPort(c.APIAddress); err != nil {
		bad("apiAddress", c.APIAddress, "must be host:port, for example 127.0.0.1:7443")
	}
	if c.BootAddress != "" {
		if _, err := netip.ParseAddr(c.BootAddress); err != nil {
			bad("bootAddress", c.BootAddress, "must be an IP address")
		}
	}
	for field, port := range map[string]int{"bootPort": c.BootPort, "machinePort": c.MachinePort, "tftpPort": c.TFTPPort} {
		if port < 1 || port > 65535 {
			bad(field, port, "must be between 1 and 65535")
		}
	}
	if c.DNSDomain != "" {
		if err := validate.Domain(c.DNSDomain); err != nil {
			bad("dnsDomain", c.DNSDomain, err.Error())
		}
	}
	for _, upstream := range c.DNSUpstreams {
		if _, err := parseUpstream(upstream); err != nil && (upstream != noUpstreams || len(c.DNSUpstreams) > 1) {
			bad("dnsUpstreams", upstream, "must be an address such as 10.0.0.53 or 10.0.0.53:5353, or none alone")
		}
	}
	if c.EtcdDiscoveryPort < 0 || c.EtcdDiscoveryPort > 65535 {
		bad("etcdDiscoveryPort", c.EtcdDiscoveryPort, "must be between 1 and 65535, or 0 for none")
	}
	if c.UpdatePort < 0 || c.UpdatePort > 65535 {
		bad("updatePort", c.UpdatePort, "must be between 1 and 65535, or 0 for none")
	}
	if c.UpdatePort != 0 && c.NoBoot {
		bad("updatePort", c.UpdatePort, "is opened where machines are served, and noBoot serves none")
	}
	if c.EtcdDiscoveryOpen && c.EtcdDiscoveryPort == 0 {
		bad("etcdDiscoveryOpen", c.EtcdDiscoveryOpen, "needs etcdDiscoveryPort, for example 7081")
	}
	if c.EtcdDiscoveryPort != 0 && c.NoBoot {
		bad("etcdDiscoveryPort", c.EtcdDiscoveryPort, "is opened where machines are served, and noBoot serves none")
	}
	if c.Kubeconfig != "" && len(c.EtcdEndpoints) > 0 {
		errs = append(errs, errors.New("kubeconfig and etcdEndpoints exclude each other: the kinds live in one place"))
	}
	if (c.EtcdCertFile == "") != (c.EtcdKeyFile == "") {
		errs = append(errs, errors.New("etcdCertFile and etcdKeyFile go together"))
	}
	for _, upstream := range c.RegistryUpstreams {
		if err := registry.CheckUpstream(upstream); err != nil {
			bad("registryUpstreams", upstream, "must be the host of a registry as in images' names, for example docker.io")
		}
	}
	if c.RegistryCredentials != "" {
		if _, err := registry.ReadCredentials(c.RegistryCredentials); err != nil {
			errs = append(errs, fmt.Errorf("registryCredentials: %w", err))
		}
	}
	if c.StoreQuotaMiB < leastStoreQuotaMiB || c.StoreQuotaMiB > mostStoreQuotaMiB {
		bad("storeQuotaMib", c.StoreQuotaMiB, fmt.Sprintf("must be between %d and %d", leastStoreQuotaMiB, mostStoreQuotaMiB))
	}
	if c.RegistryCacheGiB < 1 {
		bad("registryCacheGib", c.RegistryCacheGiB, "must be at least 1")
	}
	if c.RegistryImagesGiB < 1 {
		bad("registryImagesGib", c.RegistryImagesGiB, "must be at least 1")
	}
	if c.RegistryPush && c.NoBoot {
		bad("registryPush", c.RegistryPush, "is about the machines' port, and noBoot serves none; coldrack image load works without it")
	}
	if c.ACME && c.NoBoot {
		bad("acme", c.ACME, "is about the machines' port, and noBoot serves none")
	}
	if c.AuditFailure != AuditRefuse && c.AuditFailure != AuditContinue {
		bad("auditFailure", c.AuditFailure, "must be refuse, writes without a record are refused, or continue, they go on")
	}
	if c.AuditMaxMib < 1 {
		bad("auditMaxMib", c.AuditMaxMib, "must be at least 1")
	}
	if c.AuditMinDays < 0 {
		bad("auditMinDays", c.AuditMinDays, "must be 0 or more")
	}
	exports := map[string]string{"Syslog": c.AuditSyslog, "SyslogCAFile": c.AuditSyslogCAFile, "SyslogCertFile": c.AuditSyslogCertFile,
		"SyslogKeyFile": c.AuditSyslogKeyFile, "Webhook": c.AuditWebhook, "WebhookCAFile": c.AuditWebhookCAFile, "WebhookTokenFile": c.AuditWebhookTokenFile}
	for field, want := range c.auditExport().Validate() {
		bad("audit"+field, exports[field], want)
	}
	for _, arg := range c.DiscoveryArgs {
		if arg == "" || strings.ContainsAny(arg, " \t\n\"") || strings.HasPrefix(arg, "coldrack.") {
			bad("discoveryArgs", arg, "must be one kernel argument, for example nomodeset, and none of Coldrack's own")
		}
	}
	if c.SwarmFrom < 0 {
		bad("swarmFrom", c.SwarmFrom, "must be 0 or more")
	}
	if c.BackupEvery != 0 && c.BackupEvery < time.Minute {
		bad("backupEvery", c.BackupEvery, "must be at least 1m, or 0 to take none by itself")
	}
	if c.BackupKeep < 1 {
		bad("backupKeep", c.BackupKeep, "must be at least 1")
	}
	if _, err := c.copiesAt(); err != nil {
		found := c.BackupCopies
		if u, err := url.Parse(found); err == nil {
			found = u.Redacted()
		}
		bad("backupCopies", found, err.Error())
	}
	if c.BackupCopies != "" && c.BackupCopiesSecret == "" {
		bad("backupCopiesSecret", c.BackupCopiesSecret, "must name a Secret")
	}
	if c.BootConcurrency < 1 {
		bad("bootConcurrency", c.BootConcurrency, "must be at least 1")
	}
	if c.BootPaceMbit < 0 {
		bad("bootPaceMbit", c.BootPaceMbit, "must be 0, for no bound, or the megabits a second of one connection")
	}
	if c.HeartbeatInterval < time.Second {
		bad("heartbeatInterval", c.HeartbeatInterval, "must be at least 1s")
	}
	if c.LostAfter != 0 && c.LostAfter < 2*c.HeartbeatInterval {
		bad("lostAfter", c.LostAfter, "must be at least two heartbeats, or 0 for three")
	}
	switch c.LogLevel {
	case "debug", "info", "warn", "error":
	default:
		bad("logLevel", c.LogLevel, "must be debug, info, warn or error")
	}
	switch c.LogFormat {
	case "text", "json":
	default:
		bad("logFormat", c.LogFormat, "must be text or json")
	}
	return errors.Join(errs...)
}

func (c Config) lostAfter() time.Duration {
	if c.LostAfter == 0 {
		return 3 * c.HeartbeatInterval
	}
	return c.LostAfter
}

// What AuditFailure may be.
const (
	AuditRefuse   = "refuse"
	AuditContinue = "continue"
)

func (c Config) auditExport() audit.Export {
	return audit.Export{Syslog: c.AuditSyslog, SyslogCAFile: c.AuditSyslogCAFile, SyslogCertFile: c.AuditSyslogCertFile, SyslogKeyFile: c.AuditSyslogKeyFile,
		Webhook: c.AuditWebhook, WebhookCAFile: c.AuditWebhookCAFile, WebhookTokenFile: c.AuditWebhookTokenFile}
}

// openAudit returns the audit log of the server; nil where the API that holds the kinds has its own.
func (c Config) openAudit(log *slog.Logger) (*audit.Log, error) {
	if c.Kubeconfig != "" {
		return nil, nil
	}
	options := controlplane.AuditOptions(c.DataDir, log.With("part", "audit"))
	options.MaxBytes, options.Keep = int64(c.AuditMaxMib)<<20, time.Duration(c.AuditMinDays)*24*time.Hour
	options.Export = c.auditExport()
	return audit.Open(options)
}

// RecordIssued keeps the record of a credential that somebody makes from the server's files, or of a key that is made trusted, beside
// the server. It may be handed out, or used, only if there is no error.
func (c Config) RecordIssued(issued audit.Issued, log *slog.Logger) error {
	options := controlplane.AuditOptions(c.DataDir, log)
	options.MaxBytes, options.Export = 0, c.auditExport()
	records, err := audit.Open(options)
	if err != nil {
		return err
	}
	defer records.Close()
	if err := records.Keep(issued.Event(time.Now())); err != nil && c.AuditFailure == AuditRefuse {
		return fmt.Errorf("no record of it can be kept, so that it is not made: %w", err)
	}
	return nil
}

func (c Config) path(elem ...string) string {
	return filepath.Join(append([]string{c.DataDir}, elem...)...)
}

// AdminKubeconfig is where the kubeconfig of the first administrator is written.
func (c Config) AdminKubeconfig() string { return c.path("admin.kubeconfig") }
