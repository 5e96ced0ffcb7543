package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"coldrack.dev/internal/base/termtext"
	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/cli/nodefile"
	"coldrack.dev/internal/contract/dialect"
	"coldrack.dev/internal/contract/nodeconfig"
)

func (a *app) configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Check and convert files that say what a node must have",
		Long: `Check and convert files that say what a node must have: Coldrack's Profiles, Ignition configs (specification 3.0 to 3.5), and the
#cloud-config of CoreOS Container Linux. No server is asked. See docs/machines/config.md.`,
		RunE: group,
	}
	cmd.AddCommand(a.configValidateCommand(), a.configConvertCommand())
	return cmd
}

// readable are the dialects that are read, and writable those that are written.
var (
	readable = []string{string(dialect.Profile), string(dialect.Ignition), string(dialect.CloudConfig)}
	writable = []string{string(dialect.Profile), string(dialect.Ignition), string(dialect.CloudConfig), string(dialect.CloudInit)}
)

func addDialectFlag(cmd *cobra.Command, value *string, name, usage string, allowed []string) {
	cmd.Flags().Var(&choice{value: value, allowed: allowed}, name, usage+": "+strings.Join(allowed, ", "))
	// The only error is a flag that does not exist, and it was defined in the line above.
	_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(allowed, cobra.ShellCompDirectiveNoFileComp))
}

// checkedFile is what `config validate -o json` says of one file.
type checkedFile struct {
	File     string            `json:"file"`
	Dialect  dialect.Dialect   `json:"dialect"`
	Version  string            `json:"version,omitempty"`
	Valid    bool              `json:"valid"`
	Problems []dialect.Finding `json:"problems"`
	Warnings []dialect.Finding `json:"warnings"`
	// Lost is what Coldrack would not carry over.
	Lost []dialect.Finding `json:"lost"`
}

// readConfig reads a file, or standard input for "-". More than a dialect allows is cut off, and refused for its length.
func (a *app) readConfig(name string) (called string, text []byte, err error) {
	called, in := name, a.in
	if name == "-" {
		called = "standard input"
	} else {
		f, err := os.Open(name)
		if err != nil {
			return "", nil, err
		}
		defer f.Close()
		in = f
	}
	text, err = io.ReadAll(io.LimitReader(in, dialect.MaxSize+1))
	return called, text, err
}

func (a *app) configValidateCommand() *cobra.Command {
	var output, from string
	cmd := &cobra.Command{
		Use:   "validate FILE...",
		Short: "Check files, and say what is wrong with line and field",
		Long: `Check Profiles, Ignition configs and #cloud-config files of CoreOS, and say what is wrong with line and field. Unknown keys are wrong, also
where Ignition and CoreOS ignore them. What a file says that Coldrack would not carry over is no fault; convert names it.

Exit codes: 0 all are valid, 1 a file cannot be read, 2 a file is not valid.`,
		Example: `  coldrack config validate worker.yaml old-user-data flatcar.ign
  coldrack config validate -o json - < user-data`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			checked, wrong := []checkedFile{}, false
			for _, name := range args {
				called, text, err := a.readConfig(name)
				if err != nil {
					return err
				}
				d, r := nodefile.Read(called, text, dialect.Dialect(from), nodefile.Options{})
				wrong = wrong || len(r.Problems) > 0
				checked = append(checked, checkedFile{called, d, r.Version, len(r.Problems) == 0, some(r.Problems), some(r.Warnings), some(r.Lost)})
			}
			done, err := a.printStructured(output, checked)
			if !done {
				for _, c := range checked {
					a.printChecked(c)
				}
			}
			if err == nil && wrong {
				return &exit.Silent{Code: exit.Usage}
			}
			return err
		},
	}
	addDialectFlag(cmd, &from, "from", "what the files are, instead of telling it from how they begin", readable)
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

// some is an empty list instead of none, for JSON.
func some(f []dialect.Finding) []dialect.Finding { return append([]dialect.Finding{}, f...) }

func (a *app) printChecked(c checkedFile) {
	for _, p := range c.Problems {
		fmt.Fprintf(a.err, "%s: %s\n", c.File, termtext.Line(p.String(), 500))
	}
	for _, w := range c.Warnings {
		fmt.Fprintf(a.err, "%s: warning: %s\n", c.File, termtext.Line(w.String(), 500))
	}
	if c.Valid {
		fmt.Fprintf(a.out, "%s: valid %s\n", c.File, strings.TrimSpace(string(c.Dialect)+" "+c.Version))
	}
}

// converted is what `config convert -o json` says.
type converted struct {
	From   dialect.Dialect   `json:"from"`
	To     dialect.Dialect   `json:"to"`
	Output string            `json:"output"`
	Lost   []dialect.Finding `json:"lost"`
}

func (a *app) configConvertCommand() *cobra.Command {
	var output, from, to, name, image string
	var addresses [4]string
	cmd := &cobra.Command{
		Use:   "convert --to DIALECT FILE",
		Short: "Write a file in another dialect, and name what was not carried over",
		Long: `Write a Profile, an Ignition config or a #cloud-config of CoreOS in another of these dialects, or in that of cloud-init, to standard output.
What is not carried over is named on standard error, with the line and field, and what does its work in Coldrack. A file that is not valid is
not converted.

A #cloud-config with $private_ipv4 and the like is one machine's: give the addresses by flags. Without them, the files and units that use
them are not carried over.

Exit codes: 0 all was carried over, 7 some was not, 2 the file is not valid.`,
		Example: `  coldrack config convert --to profile --name worker user-data > worker.yaml
  coldrack config convert --to ignition --private-ipv4 10.7.0.12 user-data > r7u12.ign
  coldrack config convert --to cloud-init -o json worker.yaml | jq .lost`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if to == "" {
				return exit.Usagef("say what to convert to with --to %s", strings.Join(writable, "|"))
			}
			o := nodefile.Options{Name: name, Image: image}
			for i, into := range []*netip.Addr{&o.Variables.PrivateIPv4, &o.Variables.PublicIPv4, &o.Variables.PrivateIPv6, &o.Variables.PublicIPv6} {
				if err := parseAddress(addressFlags[i], addresses[i], into); err != nil {
					return err
				}
			}
			called, text, err := a.readConfig(args[0])
			if err != nil {
				return err
			}
			if o.Name == "" {
				o.Name = profileName(args[0])
			}
			d, r := nodefile.Read(called, text, dialect.Dialect(from), o)
			if len(r.Problems) > 0 {
				a.printChecked(checkedFile{File: called, Problems: r.Problems})
				return &exit.Silent{Code: exit.Usage}
			}
			written, lost, err := nodefile.Write(dialect.Dialect(to), r.Node, o)
			if problems := (nodeconfig.Problems)(nil); errors.As(err, &problems) {
				return exit.Usagef("%s: %w", called, err)
			} else if err != nil {
				return err
			}
			lost = append(some(r.Lost), lost...)
			done, err := a.printStructured(output, converted{d, dialect.Dialect(to), string(written), lost})
			if !done {
				if _, err = a.out.Write(written); err != nil {
					return err
				}
				for _, w := range r.Warnings {
					fmt.Fprintf(a.err, "%s: warning: %s\n", called, termtext.Line(w.String(), 500))
				}
				for _, l := range lost {
					fmt.Fprintf(a.err, "%s: not carried over: %s\n", called, termtext.Line(l.String(), 500))
				}
			}
			if err == nil && len(lost) > 0 {
				return &exit.Silent{Code: exit.Partial}
			}
			return err
		},
	}
	addDialectFlag(cmd, &from, "from", "what the file is, instead of telling it from how it begins", readable)
	addDialectFlag(cmd, &to, "to", "what to write", writable)
	cmd.Flags().StringVar(&name, "name", "", "name of the Profile that is written (default: that of the file)")
	cmd.Flags().StringVar(&image, "image", "debian-13", "image of the Profile that is written")
	for i, flag := range addressFlags {
		cmd.Flags().StringVar(&addresses[i], flag, "", "address of the one machine that the #cloud-config is for")
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.NoFileCompletions)
	}
	_ = cmd.RegisterFlagCompletionFunc("name", cobra.NoFileCompletions)
	_ = cmd.RegisterFlagCompletionFunc("image", cobra.NoFileCompletions)
	addOutputFlag(cmd, &output, "json", "yaml")
	return cmd
}

// addressFlags are the flags for the variables of a #cloud-config.
var addressFlags = [4]string{"private-ipv4", "public-ipv4", "private-ipv6", "public-ipv6"}

func parseAddress(flag, value string, into *netip.Addr) error {
	if value == "" {
		return nil
	}
	address, err := netip.ParseAddr(value)
	if err != nil || address.Is4() != strings.HasSuffix(flag, "4") || address.Zone() != "" {
		return exit.Usagef("--%s: %q is no such address", flag, value)
	}
	*into = address
	return nil
}

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

// profileName makes the name of an object of a file's name.
func profileName(file string) string {
	base := filepath.Base(file)
	name := strings.Trim(notInNames.ReplaceAllString(strings.ToLower(strings.TrimSuffix(base, filepath.Ext(base))), "-"), "-")
	if name == "" {
		return "converted"
	}
	return name[:min(len(name), 63)]
}
