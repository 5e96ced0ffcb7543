package main

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/upload"
	"coldrack.dev/internal/content/bundle"
	"coldrack.dev/internal/content/bundle/build"
	"coldrack.dev/internal/server/audit"
	"coldrack.dev/internal/server/daemon"
)

func (a *app) bundleCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bundle",
		Short: "Build, verify and import bundles",
		Long: `A bundle is one signed archive with everything a site needs: operating-system images, the discovery
system, boot loaders, Kubernetes with its programs and container images, a bill of materials. It is built
where a Debian mirror and Go modules are reachable and imported
where nothing is.`,
		RunE: group,
	}
	cmd.AddCommand(a.bundleBuildCommand(), a.bundleDiskCommand(), a.bundleInspectCommand(), a.bundleVerifyCommand(), a.bundleTrustCommand(),
		a.bundleImportCommand(), a.bundleExportCommand(), a.bundleListCommand(), a.bundleShowCommand(), a.bundleDeleteCommand())
	return cmd
}

func (a *app) bundleBuildCommand() *cobra.Command {
	var options build.Options
	var verbose bool
	cmd := &cobra.Command{
		Use:   "build -f RECIPE_FOLDER... -o FILE",
		Short: "Build a bundle from recipes",
		Long: `Build one bundle from the recipe.yaml of one or more folders, with Debian packages from the mirror
that this machine's apt is configured with, and Go modules from where this machine's Go gets them. Finished
steps are kept in the cache, so that an interrupted build goes on where it was.`,
		Example: `  coldrack bundle build -f recipes/default -f recipes/kubernetes-1.37 --agent bin/coldrack-agent -o default.bundle.tar
  coldrack bundle build -f recipes/kubernetes-1.36 -o kubernetes-1.36.bundle.tar`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(options.RecipeDirs) == 0 || options.Out == "" {
				return exit.Usagef("name the recipe's folder with -f and the archive with -o")
			}
			if options.CacheDir == "" {
				base, err := os.UserCacheDir()
				if err != nil {
					return exit.Usagef("no cache folder is known; name one with --cache: %w", err)
				}
				options.CacheDir = filepath.Join(base, "coldrack", "bundle")
			}
			if options.AgentPath == "" {
				options.AgentPath = agentBesideUs()
			}
			if verbose {
				options.Log = slog.New(slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: slog.LevelDebug}))
			}
			options.Progress = cli.BuildProgress(a.err, a.now)
			result, err := build.Build(cmd.Context(), options)
			if err != nil {
				return err
			}
			fmt.Fprintf(a.out, "%s: bundle %s, %s, built in %s\n  digest     %s\n  signed by  %s (public key: %s)\n",
				result.Path, result.Name, cli.Bytes(result.ArchiveSize), cli.Age(result.Elapsed), result.Digest, result.KeyID, result.PublicKeyPath)
			if result.KeyCreated {
				fmt.Fprintf(a.out, "  the signing key is new; servers trust it after: coldrack bundle trust %s\n", result.PublicKeyPath)
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVarP(&options.RecipeDirs, "recipe", "f", nil, "folder with recipe.yaml; may be repeated for one bundle of several recipes")
	flags.StringVarP(&options.Out, "out", "o", "", "archive to write")
	flags.StringVar(&options.CacheDir, "cache", "", "folder for downloads and finished steps (default: in the user's cache folder)")
	flags.StringVar(&options.KeyPath, "key", "", "signing key, made when there is none (default: bundle.key in the cache)")
	flags.StringVar(&options.AgentPath, "agent", "", "coldrack-agent to put in (default: the one beside this program)")
	flags.StringVar(&options.AgentVersion, "agent-version", "", "version of the agent, instead of what the program says of itself")
	flags.BoolVar(&options.Refresh, "refresh", false, "fetch package lists even if they are young")
	flags.BoolVarP(&verbose, "verbose", "v", false, "show what the tools say")
	return cmd
}

// agentBesideUs is where the agent is when both binaries are installed together. Recipes without a discovery
// system do not need it, so the builder looks whether it is there.
func agentBesideUs() string {
	self, err := os.Executable()
	if err != nil {
		return ""
	}
	return filepath.Join(filepath.Dir(self), "coldrack-agent")
}

func (a *app) bundleInspectCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Show what a bundle claims to contain, without checking it",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			summary, err := bundle.Inspect(args[0])
			if err != nil {
				return err
			}
			return a.printSummary(summary, output)
		},
	}
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

func (a *app) printSummary(summary bundle.Summary, output string) error {
	if done, err := a.printStructured(output, summary); done {
		return err
	}
	return cli.PrintBundle(a.out, summary)
}

func (a *app) bundleVerifyCommand() *cobra.Command {
	var (
		server serverFlags
		trust  []string
		output string
		plan   verifyClusterOptions
	)
	cmd := &cobra.Command{
		Use:   "verify FILE | verify -f CLUSTER_FILE [FILE...]",
		Short: "Check a bundle's signature and content, or that it has everything a cluster needs",
		Long: `Check the signature, every reference and every byte of a bundle. Accepted are the keys named with
--trust; without any, those that the server on this machine trusts.

With -f, check that the bundles have everything that the Clusters of those files need: container images, programs of
nodes, Debian packages in the operating-system images that the groups' Profiles name (in all images, if the Profiles are
not in the files). Without FILE, the bundles are checked that the server on this machine has imported. --manifests adds
your own workloads. Exit code 1 means that something is missing.`,
		Example: `  coldrack bundle verify default.bundle.tar --trust bundle.pub
  coldrack bundle verify -f cluster.yaml --manifests workloads/ default.bundle.tar --trust bundle.pub`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(plan.files) > 0 {
				plan.server, plan.trust, plan.bundles, plan.output = &server, trust, args, output
				return a.verifyPlannedClusters(cmd.Context(), plan)
			}
			if len(plan.manifests) > 0 {
				return exit.Usagef("--manifests goes with the cluster's file, -f")
			}
			if len(args) != 1 {
				return exit.Usagef("name the bundle's file, or a cluster's file with -f")
			}
			keys, err := a.trustedKeys(&server, trust)
			if err != nil {
				return err
			}
			progress, done := a.byteProgress("verifying")
			summary, err := bundle.Verify(cmd.Context(), args[0], keys, progress)
			done()
			if err != nil {
				return bundle.Advise(err, adviseTrustFlag)
			}
			if output == "" {
				fmt.Fprintf(a.out, "%s is whole and signed by %s\n\n", args[0], summary.KeyID)
			}
			return a.printSummary(summary, output)
		},
	}
	server.addFlags(cmd)
	cmd.Flags().StringArrayVar(&trust, "trust", nil, "file with a public key to accept; may be repeated")
	cmd.Flags().StringArrayVarP(&plan.files, "filename", "f", nil, "file or folder with a Cluster and what belongs to it, or - for standard input; may be repeated")
	cmd.Flags().StringArrayVar(&plan.manifests, "manifests", nil, "with -f: file or folder of manifests that the cluster is going to run; may be repeated")
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

// trustedKeys are the named keys, or those of the server on this machine.
func (a *app) trustedKeys(server *serverFlags, named []string) ([]ed25519.PublicKey, error) {
	if len(named) > 0 {
		return bundle.LoadPublicKeys(named...)
	}
	cfg, err := server.load(a)
	if err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(trustFolder(cfg), "*.pub"))
	if err != nil {
		return nil, err
	}
	files = append(files, cfg.TrustedKeys...)
	if len(files) == 0 {
		return nil, fmt.Errorf("no key is trusted: name the builder's public key with --trust FILE, or let this server trust it with \"coldrack bundle trust FILE\"")
	}
	return bundle.LoadPublicKeys(files...)
}

// adviseTrustFlag is how a key is trusted where this program itself checks.
const adviseTrustFlag = "give its public key with --trust"

// trustFolder holds the keys that the server trusts beside those of its configuration.
func trustFolder(cfg daemon.Config) string { return filepath.Join(cfg.DataDir, "trusted-keys") }

// contentFolder is the store of imported bundles.
func contentFolder(cfg daemon.Config) string { return filepath.Join(cfg.DataDir, "content") }

func (a *app) bundleTrustCommand() *cobra.Command {
	var server serverFlags
	cmd := &cobra.Command{
		Use:   "trust KEY_FILE",
		Short: "Let the server on this machine accept bundles signed with a key",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			keys, err := bundle.LoadPublicKeys(args[0])
			if err != nil {
				return err
			}
			cfg, err := server.load(a)
			if err != nil {
				return err
			}
			if err := os.MkdirAll(trustFolder(cfg), 0o700); err != nil {
				return err
			}
			for _, key := range keys {
				path := filepath.Join(trustFolder(cfg), bundle.KeyID(key)+".pub")
				if err := cfg.RecordIssued(audit.Issued{What: "trustedkeys", Name: bundle.KeyID(key), Verb: "create"}, a.logger(cfg)); err != nil {
					return err
				}
				if err := os.WriteFile(path, bundle.MarshalPublicKey(key), 0o644); err != nil {
					return err
				}
				fmt.Fprintf(a.out, "key %s is trusted (%s)\n", bundle.KeyID(key), path)
			}
			return nil
		},
	}
	server.addFlags(cmd)
	return cmd
}

func (a *app) bundleImportCommand() *cobra.Command {
	var (
		server  serverFlags
		trust   []string
		offline bool
		again   bool
	)
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Import a bundle into the server",
		Long: `Send a bundle to the server, which checks it and makes all of it visible at once. To continue an import
that was interrupted, start it again. A bundle that the server already has is not sent; --again sends it all the same,
to replace what is damaged on the server's disk.

--offline writes into the data folder on this machine instead, whether the server runs or not; a server
that does not run makes the Images known when it starts.`,
		Example: `  coldrack bundle import default.bundle.tar
  coldrack bundle import default.bundle.tar --offline --data-dir /srv/coldrack`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !offline {
				if len(trust) > 0 {
					return exit.Usagef("--trust needs --offline; without it, the server accepts only its own trusted keys (`coldrack bundle trust`)")
				}
				return a.uploadBundle(cmd.Context(), args[0], again)
			}
			cfg, err := server.load(a)
			if err != nil {
				return err
			}
			keys, err := a.trustedKeys(&server, trust)
			if err != nil {
				return err
			}
			store, err := bundle.OpenStore(contentFolder(cfg))
			if err != nil {
				return err
			}
			progress, done := a.byteProgress("importing")
			summary, err := bundle.Import(cmd.Context(), store, args[0], keys, progress)
			done()
			if err != nil {
				return bundle.Advise(err, adviseTrustFlag)
			}
			a.warnBehind(&summary)
			return a.printSummary(summary, "")
		},
	}
	a.addConnectionFlag(cmd)
	server.addFlags(cmd)
	cmd.Flags().BoolVar(&offline, "offline", false, "write into the data folder on this machine")
	cmd.Flags().BoolVar(&again, "again", false, "send the bundle even if the server has it, to repair its copy")
	cmd.Flags().StringArrayVar(&trust, "trust", nil, "with --offline: file with a public key to accept; may be repeated")
	return cmd
}

// uploadBundle sends the archive at path; again says to do so even if the server has it.
func (a *app) uploadBundle(ctx context.Context, path string, again bool) error {
	// A file that is no bundle is refused before gigabytes are sent.
	summary, err := bundle.Inspect(path)
	if err != nil {
		return err
	}
	config, err := a.connect()
	if err != nil {
		return err
	}
	if imported, err := a.alreadyImported(ctx, summary.Digest); err != nil {
		return err
	} else if imported && !again {
		fmt.Fprintf(a.out, "bundle %s (%s) is imported already; --again repairs a damaged copy\n", summary.Name, summary.Digest)
		return nil
	}
	result, err := upload.Send(ctx, config, path, summary.Digest, a.err, a.now)
	if err != nil {
		return fmt.Errorf("import %s: %w", path, err)
	}
	fmt.Fprintf(a.out, "bundle %s (%s) is imported\n", result.Name, result.Digest)
	a.warnBehind(result)
	return nil
}

// warnBehind says that what was imported does not take the place of what there is.
func (a *app) warnBehind(imported *bundle.Summary) {
	for _, newer := range imported.Behind {
		fmt.Fprintf(a.err, "warning: it was built %s, before bundle %s (%s, %s), which is used on for what both have; to go back: coldrack bundle delete %s\n",
			imported.Created.Format(time.RFC3339), newer.Name, newer.Created.Format(time.RFC3339), newer.Digest, newer.Name)
	}
}

func (a *app) alreadyImported(ctx context.Context, digest string) (bool, error) {
	c, err := a.client()
	if err != nil {
		return false, err
	}
	var list v1alpha1.BundleList
	if err := c.List(ctx, &list); err != nil {
		return false, fmt.Errorf("list bundles: %w", err)
	}
	return slices.ContainsFunc(list.Items, func(b v1alpha1.Bundle) bool { return b.Spec.Digest == digest }), nil
}

func (a *app) bundleExportCommand() *cobra.Command {
	var server serverFlags
	var out string
	cmd := &cobra.Command{
		Use:   "export NAME|DIGEST -o FILE",
		Short: "Write an imported bundle to an archive, on the server's machine",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if out == "" {
				return exit.Usagef("name the archive to write with -o FILE")
			}
			store, err := a.existingStore(&server)
			if err != nil {
				return err
			}
			progress, done := a.byteProgress("exporting")
			summary, err := bundle.Export(cmd.Context(), store, args[0], out, progress)
			done()
			if errors.Is(err, bundle.ErrNotFound) {
				return exit.NotFoundf("%w", err)
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(a.out, "%s: bundle %s, %s\n", out, summary.Name, cli.Bytes(summary.Size))
			return nil
		},
	}
	server.addFlags(cmd)
	cmd.Flags().StringVarP(&out, "out", "o", "", "archive to write")
	return cmd
}

func (a *app) existingStore(server *serverFlags) (*bundle.Store, error) {
	cfg, err := server.load(a)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(contentFolder(cfg)); errors.Is(err, fs.ErrNotExist) {
		return nil, exit.NotFoundf("%s holds no bundles: run this on the server's machine, and name its folder with --data-dir", cfg.DataDir)
	}
	return bundle.OpenStore(contentFolder(cfg))
}

func (a *app) bundleListCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List imported bundles and what is in them",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			var list v1alpha1.BundleList
			if err := c.List(cmd.Context(), &list); err != nil {
				return fmt.Errorf("list bundles: %w", err)
			}
			if done, err := a.printStructured(output, list); done {
				return err
			}
			if len(list.Items) == 0 {
				fmt.Fprintln(a.err, "no bundle has been imported: coldrack bundle import FILE")
				return nil
			}
			return a.printBundles(list.Items)
		},
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

func (a *app) printBundles(bundles []v1alpha1.Bundle) error {
	table := &cli.Table{Header: []string{"NAME", "SIZE", "SIGNED BY", "AGE", "CONTENTS"}}
	for _, b := range bundles {
		var contents []string
		containers := 0
		for _, c := range b.Spec.Contents {
			if c.Kind == string(bundle.KindContainer) {
				containers++
				continue
			}
			contents = append(contents, c.Kind+" "+c.Name)
		}
		slices.Sort(contents)
		if containers > 0 {
			contents = append(contents, fmt.Sprintf("%d container images", containers))
		}
		table.Add(b.Name, cli.Bytes(b.Spec.Size.Value()), b.Spec.KeyID, cli.Age(a.now().Sub(b.CreationTimestamp.Time)), strings.Join(contents, ", "))
	}
	return table.Print(a.out, true)
}

func (a *app) bundleShowCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "show NAME",
		Short: "Show everything that is in an imported bundle",
		Args:  cobra.ExactArgs(1),

		ValidArgsFunction: a.completeBundles,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			var b v1alpha1.Bundle
			if err := c.Get(cmd.Context(), client.ObjectKey{Name: args[0]}, &b); err != nil {
				return fmt.Errorf("bundle %s: %w", args[0], err)
			}
			if done, err := a.printStructured(output, b); done {
				return err
			}
			table := &cli.Table{Header: []string{"KIND", "NAME", "SIZE", "DIGEST"}}
			for _, content := range b.Spec.Contents {
				table.Add(content.Kind, content.Name, cli.Bytes(content.Size.Value()), content.Digest)
			}
			return table.Print(a.out, true)
		},
	}
	a.addConnectionFlag(cmd)
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

// byteProgress shows how far an operation on a bundle has come. done ends the line that changes.
func (a *app) byteProgress(verb string) (report func(bundle.Progress), done func()) {
	meter := cli.NewMeter(a.err, verb, a.now)
	return func(p bundle.Progress) { meter.At(p.Done, p.Total, p.File) }, meter.End
}
