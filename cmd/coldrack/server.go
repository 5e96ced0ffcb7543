package main

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/server/daemon"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

func (a *app) serverCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "server", Short: "Back up and restore the server's own store", Args: cobra.ArbitraryArgs, RunE: group}
	cmd.AddCommand(a.serverBackupCommand(), a.serverBackupsCommand(), a.serverRestoreCommand(), a.serverRestoredCommand())
	return cmd
}

// serverBackupsPath is the path of the server's own backups.
func serverBackupsPath(more ...string) []string {
	return append([]string{peoplewire.PathServerBackups}, more...)
}

func (a *app) serverBackupCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "backup",
		Short: "Back up the server's own store now",
		Long: `Take a snapshot of the server's own store now, restore it on trial, and keep it with what else is needed to come back: the
authorities (sealed), DHCP leases, tokens (hashes), trusted keys, addresses, settings. The server does so by itself, too (coldrack serve --backup-every),
and copies each one where it keeps copies (--backup-copies). The master key (pki/master.key) is in no backup: keep a copy of it where you keep
passwords; it never changes. Bundles are imported again, and the audit log is not in it.`,
		Example: `  coldrack server backup
  coldrack server backups
  coldrack server backup export 20261130t214500z -o server.backup`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.backUp(cmd.Context(), "the server's own store", "server", output, serverBackupsPath())
		},
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	cmd.AddCommand(a.serverBackupExportCommand(), a.setBackupCredentialsCommand())
	return cmd
}

func (a *app) serverBackupExportCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "export ID -o FILE",
		Short: "Write a backup of the server's own store into one file",
		Long: `Write a backup of the server's own store into one file, which "coldrack server restore --file" reads on any host that has the master key.
This needs role admin.`,
		Args: cobra.ExactArgs(1),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			var ids []string
			if len(args) == 0 {
				all, _ := a.listBackups(cmd.Context(), "backups of the server", serverBackupsPath())
				for _, b := range all {
					if strings.HasPrefix(b.ID, prefix) {
						ids = append(ids, b.ID)
					}
				}
			}
			return ids, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.exportBackup(cmd.Context(), args[0], file, serverBackupsPath(url.PathEscape(args[0]), "export"))
		},
	}
	a.addConnectionFlag(cmd)
	cmd.Flags().StringVarP(&file, "output", "o", "", "file to write")
	return cmd
}

func (a *app) serverBackupsCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "backups",
		Short: "List the backups of the server's own store",
		Long: `List the backups of the server's own store, and where each one is: here, on this server, or as a copy where the server keeps copies. A host without a
running server lists them by "coldrack server restore --list".`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := a.listBackups(cmd.Context(), "backups of the server", serverBackupsPath())
			if err != nil {
				return err
			}
			return a.printServerBackups(output, all)
		},
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

func (a *app) printServerBackups(output string, all []peoplewire.Backup) error {
	if done, err := a.printStructured(output, all); done {
		return err
	}
	if len(all) == 0 {
		fmt.Fprintln(a.err, "there is no backup of the server's own store")
		return nil
	}
	t := &cli.Table{Header: []string{"ID", "AGE", "SIZE", "KEYS", "REVISION", "HOST", "COLDRACK", "WHERE", "REASON"}}
	for _, b := range all {
		t.Add(b.ID, cli.Age(a.now().Sub(b.TakenAt)), cli.Bytes(b.Size), fmt.Sprint(b.Keys), fmt.Sprint(b.Revision), b.Member, b.Coldrack, strings.Join(b.Where, "+"), b.Reason)
	}
	return t.Print(a.out, true)
}

func (a *app) serverRestoreCommand() *cobra.Command {
	var (
		server            serverFlags
		o                 daemon.RestoreOptions
		list, fromStdin   bool
		accessKey, output string
	)
	cmd := &cobra.Command{
		Use:   "restore",
		Short: "Bring back the server's own store on this host",
		Long: `Bring back the server's own store, and what belongs to it, into a data folder that has no store: on a new host, or on the old one after etcd/ was
moved away. It takes the newest backup that it finds: in the data folder, and where the config file says that copies are kept (backupCopies). --from names another one,
--file one that was exported. The server must not run. Nothing that is there is replaced: a data folder with a store is refused, and so is one that belongs
to another server.

The master key is in no backup. Name your copy of it with --master-key, unless it is at pki/master.key of the data folder or a systemd credential.

Until a person confirms it, nothing that may destroy a machine's data happens by itself: see "coldrack server restored".

Afterwards: start the server, import bundles again, and see docs/operations.md for nodes whose key was renewed after the backup.`,
		Example: `  coldrack server restore --master-key master.key --access-key coldrack
  coldrack server restore --list --access-key coldrack
  coldrack server restore --file server.backup --master-key master.key --data-dir /srv/coldrack`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := server.load(a)
			if err != nil {
				return err
			}
			o.Tell = func(format string, args ...any) { fmt.Fprintf(a.err, format+"\n", args...) }
			o.Credentials = func() (v1alpha1.BackupCredentials, error) {
				if accessKey == "" {
					return v1alpha1.BackupCredentials{}, exit.Usagef("the keys for %s are in the store that is lost: name the access key with --access-key; the secret key is asked for, or read by --secret-key-stdin", cfg.BackupCopies)
				}
				secretKey, err := a.newPassword(cmd.Context(), "Secret key of "+accessKey+": ", fromStdin)
				return v1alpha1.BackupCredentials{AccessKey: accessKey, SecretKey: secretKey}, err
			}
			if list {
				found, err := daemon.ListRestorable(cmd.Context(), cfg, o)
				if err != nil {
					return err
				}
				return a.printServerBackups(output, wireOf(found))
			}
			done, err := daemon.Restore(cmd.Context(), cfg, o)
			if err != nil {
				return err
			}
			if len(done.Kept) > 0 {
				fmt.Fprintf(a.err, "left as they were in %s: %s\n", cfg.DataDir, strings.Join(done.Kept, ", "))
			}
			fmt.Fprintf(a.out, "%s: restored from backup %s of host %s, taken %s ago. Start the server, and import the bundles again. Until `coldrack server restored --confirm` no machine is installed by itself.\n", cfg.DataDir, done.ID, done.Member, cli.Age(a.now().Sub(done.TakenAt)))
			return nil
		},
	}
	server.addFlags(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	cmd.Flags().Lookup("output").Usage = "format of --list: json, yaml (default: a table)"
	cmd.Flags().StringVar(&o.From, "from", "", "ID of the backup (default: the newest)")
	cmd.Flags().StringVar(&o.File, "file", "", "file that \"coldrack server backup export\" wrote")
	cmd.Flags().StringVar(&o.Server, "server", "", "which server's, where there are backups of several")
	cmd.Flags().StringVar(&o.MasterKeyFile, "master-key", "", "your copy of pki/master.key")
	cmd.Flags().StringVar(&accessKey, "access-key", "", "access key for the copies")
	cmd.Flags().BoolVar(&fromStdin, "secret-key-stdin", false, "read the secret key from standard input, one line")
	cmd.Flags().BoolVar(&list, "list", false, "only list the backups that there are")
	return cmd
}

func wireOf(found []daemon.Restorable) (all []peoplewire.Backup) {
	for _, b := range found {
		one := peoplewire.Backup{ID: b.ID, UID: b.UID, TakenAt: b.TakenAt, Reason: b.Reason, Member: b.Member, Etcd: b.Etcd, Coldrack: b.Coldrack, Keys: b.Keys, Revision: b.Revision, Size: b.Size, Digest: b.Digest}
		if b.Here {
			one.Where = append(one.Where, peoplewire.BackupHere)
		}
		if b.There {
			one.Where = append(one.Where, peoplewire.BackupCopy)
		}
		all = append(all, one)
	}
	return all
}

func (a *app) setBackupCredentialsCommand() *cobra.Command {
	var (
		name, accessKey string
		fromStdin       bool
	)
	cmd := &cobra.Command{
		Use:   "set-credentials --access-key KEY",
		Short: "Give the server the keys of the S3 store that keeps copies of backups",
		Long: `Ask for the secret key of the store that keeps copies of backups (coldrack serve --backup-copies), and keep it with the access
key in a Secret (encrypted at rest). They must permit to list, read, write and delete objects in the bucket. The server uses them at once. Needs role admin.`,
		Example: `  coldrack server backup set-credentials --access-key coldrack
  coldrack server backup set-credentials --access-key coldrack --secret-key-stdin <file`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if accessKey == "" {
				return exit.Usagef("name the access key with --access-key")
			}
			secretKey, err := a.newPassword(cmd.Context(), "Secret key of "+accessKey+", for Secret "+name+": ", fromStdin)
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			secret := &v1alpha1.Secret{}
			err = c.Get(cmd.Context(), client.ObjectKey{Name: name}, secret)
			isNew := apierrors.IsNotFound(err)
			switch {
			case apierrors.IsForbidden(err):
				return exit.Refusedf("Secrets are for administrators: %w", err)
			case err != nil && !isNew:
				return fmt.Errorf("read Secret %s: %w", name, err)
			case !isNew && secret.Type != v1alpha1.SecretTypeBackup:
				return exit.Refusedf("Secret %s holds something else (type %q)", name, secret.Type)
			}
			secret.Type, secret.Data = v1alpha1.SecretTypeBackup, map[string][]byte{v1alpha1.BackupSecretAccessKey: []byte(accessKey), v1alpha1.BackupSecretSecretKey: []byte(secretKey)}
			if isNew {
				secret.Name = name
				err = c.Create(cmd.Context(), secret)
			} else {
				err = c.Update(cmd.Context(), secret)
			}
			if err != nil {
				return fmt.Errorf("write Secret %s: %w", name, err)
			}
			fmt.Fprintf(a.out, "Secret %s: access key %s\n", name, accessKey)
			return nil
		},
	}
	a.addConnectionFlag(cmd)
	cmd.Flags().StringVar(&name, "secret", "backup-copies", "name of the Secret (--backup-copies-secret of the server)")
	cmd.Flags().StringVar(&accessKey, "access-key", "", "access key")
	cmd.Flags().BoolVar(&fromStdin, "secret-key-stdin", false, "read the secret key from standard input, one line")
	return cmd
}
