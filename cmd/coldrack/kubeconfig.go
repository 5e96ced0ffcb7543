package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/clientcmd"

	"coldrack.dev/internal/base/durable"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/settings"
	"coldrack.dev/internal/server/audit"
	"coldrack.dev/internal/server/controlplane"
	"coldrack.dev/internal/server/daemon"
	"coldrack.dev/internal/server/peopleapi/credentials"
)

// roleGroups maps the roles that people speak of to the groups that the API enforces.
func roleGroups(role string) ([]string, error) {
	groups := map[string]string{"viewer": controlplane.GroupViewer, "operator": controlplane.GroupOperator, "admin": controlplane.GroupAdmin}
	if group, ok := groups[role]; ok {
		return []string{group}, nil
	}
	return nil, exit.Usagef("--role %q: must be viewer (look), operator (approve, install, change) or admin (everything)", role)
}

// serverFlags are for verbs that work on the files of a server on this machine.
type serverFlags struct{ config, dataDir string }

func (s *serverFlags) addFlags(cmd *cobra.Command) {
	cmd.PersistentFlags().StringVar(&s.dataDir, "data-dir", "", "data folder of the server [$COLDRACK_DATA_DIR] (default "+daemon.DefaultConfig().DataDir+")")
	cmd.PersistentFlags().StringVar(&s.config, "config", "", "config file of the server [$COLDRACK_CONFIG] (default "+defaultConfigFile+" if it exists)")
}

// load returns the configuration that the server on this machine runs with.
func (s *serverFlags) load(a *app) (daemon.Config, error) {
	cfg := daemon.DefaultConfig()
	set, err := settings.Bind(&cfg, serveOptions())
	if err != nil {
		return cfg, err
	}
	if err := a.loadServeConfig(set, &cfg, s.config); err != nil {
		return cfg, err
	}
	if s.dataDir != "" {
		cfg.DataDir = s.dataDir
	}
	return cfg, nil
}

// existing is load for verbs that make no sense without a server's data.
func (s *serverFlags) existing(a *app) (daemon.Config, error) {
	cfg, err := s.load(a)
	if err != nil {
		return cfg, err
	}
	_, err = os.Stat(cfg.AdminKubeconfig())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return cfg, fmt.Errorf("%s is not the data folder of a server: run this on the server's machine, and name the folder with --data-dir", cfg.DataDir)
	case errors.Is(err, fs.ErrPermission):
		return cfg, fmt.Errorf("the data folder %s may not be read by this user: run this as its owner, for example with sudo", cfg.DataDir)
	}
	return cfg, err
}

func (a *app) kubeconfigCommand() *cobra.Command {
	var (
		server                 serverFlags
		user, role, write, url string
		ttl                    time.Duration
		of                     clusterKubeconfig
	)
	cmd := &cobra.Command{
		Use:   "kubeconfig [CLUSTER]",
		Short: "Create a kubeconfig for a person, for a cluster or for this server",
		Long: `With the name of a cluster, make a kubeconfig of that Kubernetes cluster. The key is made here, the server
signs a certificate for it. What it may do follows from your role on the server: viewers look (group
coldrack:viewer), operators change workloads (coldrack:operator), admins do everything
(kubeadm:cluster-admins), and only admins may ask for other names and groups. --break-glass gives the group
system:masters for at most an hour, to which the cluster's own authorization does not apply; it needs --reason.
Each one is in the server's audit log.

Without a cluster, make a kubeconfig of the Coldrack server itself, signed by the server's authority. That runs on
the server's machine, as the owner of the data folder. A certificate cannot be withdrawn before it ends, so
keep --ttl short; "coldrack token" makes credentials that can be.

A person on another machine needs --server with an address that the API's certificate has (serve
--api-names) and on which it listens (serve --api-address).`,
		Example: `  coldrack kubeconfig lab -w lab.kubeconfig
  coldrack kubeconfig lab --merge -w ~/.kube/config
  coldrack kubeconfig lab --user ci --group ci-deployers --ttl 24h -w ci.kubeconfig
  coldrack kubeconfig lab --break-glass --reason "INC-7: RBAC is broken" -w glass.kubeconfig
  coldrack kubeconfig --user anna --role operator --ttl 8h > anna.kubeconfig`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeClusters,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := kubeconfigFlags(cmd, len(args) == 1); err != nil {
				return err
			}
			if len(args) == 1 {
				of.cluster, of.user, of.server, of.write = args[0], user, url, write
				if cmd.Flags().Changed("ttl") {
					of.ttl = ttl
				}
				return of.issue(cmd.Context(), a)
			}
			if user == "" {
				return exit.Usagef("--user NAME is missing")
			}
			if strings.HasPrefix(user, "system:") {
				return exit.Usagef("--user %q: names that begin with system: are the server's own", user)
			}
			if ttl < time.Minute {
				return exit.Usagef("--ttl %s: must be at least 1m", ttl)
			}
			groups, err := roleGroups(role)
			if err != nil {
				return err
			}
			cfg, err := server.existing(a)
			if err != nil {
				return err
			}
			content, err := credentials.Issue(cfg.DataDir, cfg.APIAddress, user, groups, ttl)
			if err != nil {
				return err
			}
			if content, err = pointTo(content, cfg, url); err != nil {
				return err
			}
			issued := audit.Issued{What: "kubeconfigs", Name: user, Verb: "create", Details: map[string]string{"groups": strings.Join(groups, ","), "ttl": lifetime(ttl)}}
			if err := cfg.RecordIssued(issued, a.logger(cfg)); err != nil {
				return err
			}
			if write == "" {
				_, err = a.out.Write(content)
				return err
			}
			if err := durable.Update(write, content, 0o600); err != nil {
				return err
			}
			fmt.Fprintf(a.err, "wrote %s for %s, role %s, valid for %s\n", write, user, role, ttl)
			return nil
		},
	}
	server.addFlags(cmd)
	a.addConnectionFlag(cmd)
	cmd.Flags().StringVar(&url, "server", "", "URL of the API as that person reaches it (default: the cluster's endpoint, or this server as on this machine)")
	cmd.Flags().StringVar(&user, "user", "", "name of the person, for the audit log (of a cluster: your own by default)")
	cmd.Flags().StringVar(&role, "role", "viewer", "viewer, operator or admin (of this server)")
	cmd.Flags().DurationVar(&ttl, "ttl", 8*time.Hour, "how long the certificate is valid")
	cmd.Flags().StringArrayVar(&of.groups, "group", nil, "group in the cluster; may be repeated")
	cmd.Flags().BoolVar(&of.admin, "admin", false, "be an administrator of the cluster")
	cmd.Flags().BoolVar(&of.breakGlass, "break-glass", false, "bypass the cluster's authorization for at most an hour; needs --reason")
	cmd.Flags().StringVar(&of.reason, "reason", "", "with --break-glass: why, for the audit log")
	cmd.Flags().BoolVar(&of.merge, "merge", false, "with --write: add to the kubeconfig that is there, and make this its current context")
	cmd.Flags().StringVarP(&write, "write", "w", "", "write to this file, readable by its owner only, instead of standard output")
	cmd.Flags().StringVarP(&write, "output", "o", "", "the same as --write")
	return cmd
}

// kubeconfigFlags refuses flags of the other use.
func kubeconfigFlags(cmd *cobra.Command, cluster bool) error {
	wrong, hint := []string{"group", "admin", "break-glass", "reason", "merge", "kubeconfig"}, "needs the name of a cluster"
	if cluster {
		wrong, hint = []string{"role", "data-dir", "config"}, "is for kubeconfigs of this server, without a cluster"
	}
	for _, flag := range wrong {
		if cmd.Flags().Changed(flag) {
			return exit.Usagef("--%s %s", flag, hint)
		}
	}
	return nil
}

// pointTo makes a kubeconfig name the server at url, or where the administrator's kubeconfig says that it
// listens, which need not be what the configuration says now.
func pointTo(content []byte, cfg daemon.Config, url string) ([]byte, error) {
	made, err := clientcmd.Load(content)
	if err != nil {
		return nil, err
	}
	if url == "" {
		admin, err := clientcmd.LoadFromFile(cfg.AdminKubeconfig())
		if err != nil {
			return nil, err
		}
		for _, cluster := range admin.Clusters {
			url = cluster.Server
		}
	}
	for _, cluster := range made.Clusters {
		cluster.Server = url
	}
	return clientcmd.Write(*made)
}
