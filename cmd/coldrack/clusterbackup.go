package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"coldrack.dev/internal/base/durable"
	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/request"
	"coldrack.dev/internal/cluster/etcddata"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

// etcdDataCommand is what the server starts to read snapshots; see package etcddata.
func etcdDataCommand() *cobra.Command {
	return &cobra.Command{
		Use: etcddata.Verb, Hidden: true, Args: cobra.NoArgs,
		Short: "Read a snapshot of etcd for the server",
		RunE:  func(cmd *cobra.Command, _ []string) error { return etcddata.Serve(cmd.InOrStdin(), cmd.OutOrStdout()) },
	}
}

func backupsPath(cluster string, more ...string) []string {
	return append([]string{peoplewire.PathClusters, url.PathEscape(cluster), "backups"}, more...)
}

func (a *app) clusterBackupCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "backup NAME",
		Short: "Back up a cluster's etcd now",
		Long: `Take a snapshot of a cluster's etcd now, restore it on trial, and keep it on the server with the cluster's keys. The server does
so by itself, too: see spec.etcd.backup of the Cluster. Programs and volumes of the cluster are not in it.`,
		Example: `  coldrack cluster backup lab
  coldrack cluster backups lab
  coldrack cluster backup export lab 20261130t214500z -o lab.backup`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeClusters,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.backUp(cmd.Context(), "cluster "+args[0], args[0], output, backupsPath(args[0]))
		},
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	cmd.AddCommand(a.backupExportCommand(), a.backupImportCommand())
	return cmd
}

// backUp takes a backup of what is called so, and tells how far it is. name begins the line about it.
func (a *app) backUp(ctx context.Context, what, name, output string, path []string) error {
	config, err := a.connect()
	if err != nil {
		return err
	}
	stream, err := request.Stream(ctx, config, "back up "+what, struct{}{}, nil, path...)
	if err != nil {
		return err
	}
	defer stream.Close()
	lines := json.NewDecoder(stream)
	for {
		var line peoplewire.BackupLine
		switch err := lines.Decode(&line); {
		case errors.Is(err, io.EOF):
			return fmt.Errorf("back up %s: the server's answer ended before the backup did; it may be restarting", what)
		case err != nil:
			return fmt.Errorf("back up %s: %w", what, err)
		case line.Error != "":
			return errors.New(line.Error)
		case line.Backup != nil:
			if done, err := a.printStructured(output, line.Backup); done {
				return err
			}
			b := line.Backup
			fmt.Fprintf(a.out, "%s: backed up as %s: %d keys at revision %d, %s, from member %s\n", name, b.ID, b.Keys, b.Revision, cli.Bytes(b.Size), b.Member)
			return nil
		case output != "":
		case line.Step == "copy":
			fmt.Fprintf(a.err, "copying: %s of about %s\n", cli.Bytes(line.Done), cli.Bytes(line.Total))
		case line.Step == "try":
			fmt.Fprintln(a.err, "restoring it on trial")
		}
	}
}

func (a *app) clusterBackupsCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "backups NAME",
		Short: "List the backups of a cluster's etcd",
		Long: `List the backups of a cluster's etcd, and where each one is: here, on this server, or as a copy where the server keeps copies
(coldrack serve --backup-copies).`,
		Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeClusters,
		RunE: func(cmd *cobra.Command, args []string) error {
			all, err := a.backupsOf(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if done, err := a.printStructured(output, all); done {
				return err
			}
			if len(all) == 0 {
				fmt.Fprintf(a.err, "cluster %s has no backup\n", args[0])
				return nil
			}
			t := &cli.Table{Header: []string{"ID", "AGE", "SIZE", "KEYS", "REVISION", "ETCD", "KUBERNETES", "WHERE", "REASON"}}
			for _, b := range all {
				t.Add(b.ID, cli.Age(a.now().Sub(b.TakenAt)), cli.Bytes(b.Size), fmt.Sprint(b.Keys), fmt.Sprint(b.Revision), b.Etcd, b.Kubernetes, strings.Join(b.Where, "+"), b.Reason)
			}
			return t.Print(a.out, true)
		},
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

func (a *app) backupsOf(ctx context.Context, cluster string) ([]peoplewire.Backup, error) {
	return a.listBackups(ctx, "backups of cluster "+cluster, backupsPath(cluster))
}

func (a *app) listBackups(ctx context.Context, what string, path []string) (all []peoplewire.Backup, err error) {
	config, err := a.connect()
	if err != nil {
		return nil, err
	}
	problem, err := request.GetNoting(ctx, config, what, &all, peoplewire.HeaderProblem, path...)
	if problem != "" {
		fmt.Fprintf(a.err, "not all backups are known: %s\n", problem)
	}
	return all, err
}

// completeBackups completes a cluster and then one of its backups.
func (a *app) completeBackups(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return a.completeClusters(cmd, args, prefix)
	}
	var ids []string
	if len(args) == 1 {
		all, _ := a.backupsOf(cmd.Context(), args[0])
		for _, b := range all {
			if strings.HasPrefix(b.ID, prefix) {
				ids = append(ids, b.ID)
			}
		}
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) backupExportCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "export NAME ID -o FILE",
		Short: "Write a backup into one file",
		Long: `Write a backup into one file: the snapshot, what it is, and the cluster's keys, sealed with the server's master key. A server with
the same master key (pki/master.key) can import it. Who has both the file and the master key can become anybody in the cluster. This needs role admin.`,
		Args: cobra.ExactArgs(2), ValidArgsFunction: a.completeBackups,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.exportBackup(cmd.Context(), args[1], file, backupsPath(args[0], url.PathEscape(args[1]), "export"))
		},
	}
	a.addConnectionFlag(cmd)
	cmd.Flags().StringVarP(&file, "output", "o", "", "file to write")
	return cmd
}

// exportBackup writes a backup into a file.
func (a *app) exportBackup(ctx context.Context, id, file string, path []string) error {
	if file == "" {
		return exit.Usagef("name the file to write with -o FILE")
	}
	config, err := a.connect()
	if err != nil {
		return err
	}
	stream, err := request.Stream(ctx, config, "export backup "+id, struct{}{}, nil, path...)
	if err != nil {
		return err
	}
	defer stream.Close()
	var n int64
	err = durable.Write(file, 0o600, func(w io.Writer) (err error) {
		n, err = io.Copy(w, stream)
		return err
	})
	if err != nil {
		return fmt.Errorf("export backup %s: %w", id, err)
	}
	fmt.Fprintf(a.out, "%s: %s\n", file, cli.Bytes(n))
	return nil
}

func (a *app) backupImportCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "import NAME FILE",
		Short: "Give the server a backup that was exported",
		Long: `Give the server a backup of cluster NAME that was exported, here or from another server with the same master key. It is restored on
trial first. A backup of another cluster is refused, also of one that had the same name. This needs role admin.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := os.Open(args[1])
			if err != nil {
				return err
			}
			defer f.Close()
			config, err := a.connect()
			if err != nil {
				return err
			}
			var b peoplewire.Backup
			if err := request.Put(cmd.Context(), config, "import "+args[1], f, &b, backupsPath(args[0])...); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "%s: has backup %s: %d keys at revision %d\n", args[0], b.ID, b.Keys, b.Revision)
			return nil
		},
	}
	return a.addConnectionFlag(cmd)
}
