package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/content/bundle/build"
)

func (a *app) bundleDiskCommand() *cobra.Command {
	var options build.DiskOptions
	var output string
	cmd := &cobra.Command{
		Use:   "disk FILE --name NAME --out BUNDLE",
		Short: "Make a bundle of a whole-disk image",
		Long: `Make a signed bundle of the image of a whole disk, as operating systems are published: raw, compressed (gzip, bzip2, xz,
zstd), or qcow2. The format is told by the content. The disk must have a GUID partition table. Import the bundle, and name the image in a Profile.

The family says how a machine gets its configuration at the first boot: cloud-init (NoCloud), flatcar or fcos (Ignition). Without --family, the names
of the partitions tell Flatcar and Fedora CoreOS; all others count as cloud-init. Nothing is left behind when this is interrupted.`,
		Example: `  coldrack bundle disk debian-13-genericcloud-amd64.qcow2 --name debian-cloud-13 --version 13 --out debian-cloud.bundle.tar
  coldrack bundle disk flatcar_production_image.bin.bz2 --name flatcar-4230 --version 4230.2.1 --out flatcar.bundle.tar`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if options.Name == "" || options.Out == "" {
				return exit.Usagef("give the image's name with --name, and the bundle to write with --out")
			}
			if options.Arch != "amd64" && options.Arch != "arm64" {
				return exit.Usagef("--arch is %q, want amd64 or arm64", options.Arch)
			}
			if err := validImageName(options.Name); err != nil {
				return err
			}
			if options.KeyPath == "" {
				base, err := os.UserCacheDir()
				if err != nil {
					return exit.Usagef("no cache folder is known; name the signing key with --key: %w", err)
				}
				options.KeyPath = filepath.Join(base, "coldrack", "bundle", "bundle.key")
				if err := os.MkdirAll(filepath.Dir(options.KeyPath), 0o755); err != nil {
					return err
				}
			}
			meter := cli.NewMeter(a.err, "reading", a.now)
			options.File, options.Created = args[0], a.now()
			options.Progress = func(done, total int64) { meter.At(done, total, filepath.Base(args[0])) }
			result, err := build.Disk(cmd.Context(), options)
			meter.End()
			if err != nil {
				return err
			}
			if done, err := a.printStructured(output, result); done {
				return err
			}
			fmt.Fprintf(a.out, "%s: image %s of family %s, a disk of %s (%s), %s stored\n  partitions %s\n  digest     %s\n  signed by  %s (public key: %s)\n",
				result.Path, result.Name, result.Family, cli.Bytes(result.RawSize), result.Format, cli.Bytes(result.Stored),
				strings.Join(result.Disk.Partitions, ", "), result.Digest, result.KeyID, result.PublicKeyPath)
			if result.KeyCreated {
				fmt.Fprintf(a.out, "  the signing key is new; servers trust it after: coldrack bundle trust %s\n", result.PublicKeyPath)
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&options.Name, "name", "", "name of the image and of the bundle, lower case")
	flags.StringVar(&options.Out, "out", "", "bundle to write")
	flags.StringVar(&options.Family, "family", "", "cloud-init, flatcar or fcos (default: told by the partitions)")
	flags.StringVar(&options.Version, "version", "unknown", "version of the operating system")
	flags.StringVar(&options.Arch, "arch", "amd64", "amd64 or arm64")
	flags.StringVar(&options.KeyPath, "key", "", "signing key, made when there is none (default: that of bundle build)")
	addOutputFlag(cmd, &output, "json", "yaml")
	fixed := func(flag string, words ...string) {
		// The only error is a flag that does not exist, and it was defined above.
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	}
	fixed("family", build.FamilyCloudInit, build.FamilyFlatcar, build.FamilyFCOS)
	fixed("arch", "amd64", "arm64")
	return cmd
}

// validImageName: the Image is an object of the API.
func validImageName(name string) error {
	if len(name) > 63 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789.-") != "" || strings.Trim(name, ".-") != name {
		return exit.Usagef("--name is %q, want at most 63 lower-case letters, digits, dots and hyphens, a letter or digit first and last", name)
	}
	return nil
}
