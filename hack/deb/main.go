// Command deb makes the Debian packages of Coldrack from its programs, with dpkg-deb and without root. The same commit, Go and
// dpkg give the same bytes.
//
//	deb -programs bin -version v1.2.3 -out build/deb
//
// The packages' time is $SOURCE_DATE_EPOCH. What they hold is listed in coldrack and agent below.
package main

import (
	"bytes"
	"debug/elf"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

func main() {
	var b builder
	var describe, out string
	flag.StringVar(&b.repository, "repository", ".", "folder of the sources")
	flag.StringVar(&b.programs, "programs", "bin", "folder with coldrack and coldrack-agent")
	flag.StringVar(&describe, "version", "", "what `git describe --tags --always --dirty` says, or a release such as v1.2.3")
	flag.StringVar(&out, "out", "build/deb", "folder for the packages")
	flag.Parse()
	debs, err := b.run(describe, os.Getenv("SOURCE_DATE_EPOCH"), out)
	if err != nil {
		fmt.Fprintln(os.Stderr, "deb:", err)
		os.Exit(1)
	}
	for _, deb := range debs {
		fmt.Println(deb)
	}
}

// builder makes the packages of one build.
type builder struct {
	repository string // folder of the sources
	programs   string // folder of the programs
	version    string // of the packages
	arch       string // as Debian calls it
	when       time.Time
	quick      bool // the server's package is not compressed; for tests
}

// run makes both packages in folder out, and returns their paths. epoch is SOURCE_DATE_EPOCH: seconds since 1970.
func (b builder) run(describe, epoch, out string) ([]string, error) {
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("SOURCE_DATE_EPOCH is %q; want the commit's time in seconds since 1970: git log -1 --format=%%ct", epoch)
	}
	b.when = time.Unix(seconds, 0).UTC()
	if b.version, err = debianVersion(describe, b.when); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return nil, err
	}
	var debs []string
	for _, p := range []struct {
		name  string
		files func(tree) error
	}{{"coldrack", b.coldrack}, {"coldrack-agent", b.agent}} {
		program := filepath.Join(b.programs, p.name)
		if b.arch, err = architecture(program); err != nil {
			return nil, err
		}
		files := tree{}
		if err := errors.Join(b.common(files, p.name), p.files(files)); err != nil {
			return nil, fmt.Errorf("package %s: %w", p.name, err)
		}
		control, err := b.control(p.name, files)
		if err != nil {
			return nil, fmt.Errorf("package %s: %w", p.name, err)
		}
		deb, err := pack(p.name, b.version, b.arch, out, files, control, b.when, b.quick && p.name == "coldrack")
		if err != nil {
			return nil, err
		}
		debs = append(debs, deb)
	}
	return debs, nil
}

// source is a file of the repository.
func (b builder) source(name string) string {
	return filepath.Join(b.repository, filepath.FromSlash(name))
}

// common is what both packages hold: the program, and what Debian wants to be said of it.
func (b builder) common(t tree, name string) error {
	changes, err := os.ReadFile(b.source("CHANGELOG.md"))
	if err != nil {
		return err
	}
	maintainer, err := b.maintainer(name)
	if err != nil {
		return err
	}
	licence, err := os.ReadFile(b.source("LICENSE"))
	if err != nil {
		return err
	}
	program := filepath.Join(b.programs, name)
	linked, err := modules(b.repository, program, "./cmd/"+name)
	if err != nil {
		return err
	}
	rights, err := copyright(string(licence), linked)
	if err != nil {
		return err
	}
	doc := "usr/share/doc/" + name + "/"
	t.add(doc+"copyright", 0o644, rights)
	entry := fmt.Sprintf("%s (%s) unstable; urgency=medium\n\n  * Built from Coldrack's sources. What changed is in changelog.gz.\n\n -- %s  %s\n",
		name, b.version, maintainer, b.when.Format(time.RFC1123Z))
	return errors.Join(
		t.addFile("usr/bin/"+name, 0o755, program),
		t.addCompressed(doc+"changelog", changes),
		t.addCompressed(doc+"changelog.Debian", []byte(entry)),
		t.addFile("usr/share/lintian/overrides/"+name, 0o644, b.source("packaging/debian/"+name+"/lintian-overrides")),
	)
}

// coldrack is the server, the command line and what a host needs to run them.
func (b builder) coldrack(t tree) error {
	pages, err := os.MkdirTemp("", "coldrack-man")
	if err != nil {
		return err
	}
	defer os.RemoveAll(pages)
	if _, err := b.ask("docs-man", pages); err != nil {
		return err
	}
	written, err := os.ReadDir(pages)
	if err != nil {
		return err
	}
	for _, page := range written {
		text, err := os.ReadFile(filepath.Join(pages, page.Name()))
		if err != nil {
			return err
		}
		if err := t.addCompressed("usr/share/man/man1/"+page.Name(), text); err != nil {
			return err
		}
	}
	for shell, name := range map[string]string{
		"bash": "usr/share/bash-completion/completions/coldrack",
		"zsh":  "usr/share/zsh/vendor-completions/_coldrack",
		"fish": "usr/share/fish/vendor_completions.d/coldrack.fish",
	} {
		script, err := b.ask("completion", shell)
		if err != nil {
			return err
		}
		t.add(name, 0o644, script)
	}
	const doc = "usr/share/doc/coldrack/"
	return errors.Join(
		t.addFile("etc/coldrack/config.yaml", 0o644, b.source("packaging/config.yaml")),
		t.addFile("usr/lib/systemd/system/coldrack.service", 0o644, b.source("packaging/coldrack.service")),
		t.addFile("usr/lib/sysusers.d/coldrack.conf", 0o644, b.source("packaging/coldrack.sysusers")),
		t.addFile("usr/lib/tmpfiles.d/coldrack.conf", 0o644, b.source("packaging/coldrack.tmpfiles")),
		t.addFile(doc+"README.md", 0o644, b.source("README.md")),
		t.addFolder(doc+"docs", b.source("docs")),
		t.addFolder(doc+"examples", b.source("examples")),
	)
}

// agent is the program that bundles put on machines, for those who build bundles or look at a machine by hand. Nodes get it,
// and its unit, from the installer.
func (b builder) agent(t tree) error {
	page, err := os.ReadFile(b.source("packaging/coldrack-agent.1"))
	if err != nil {
		return err
	}
	return t.addCompressed("usr/share/man/man1/coldrack-agent.1", page)
}

// ask runs coldrack, with nothing of the caller's environment that could show in what it says.
func (b builder) ask(args ...string) ([]byte, error) {
	program, err := filepath.Abs(filepath.Join(b.programs, "coldrack"))
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(program, args...)
	cmd.Env = []string{fmt.Sprintf("SOURCE_DATE_EPOCH=%d", b.when.Unix()), "TZ=UTC", "HOME=/nonexistent"}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("coldrack %s (a package is made on a machine that can run it): %w\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return out, nil
}

// control is what dpkg reads: packaging/debian/NAME, with the version, architecture and size filled in.
func (b builder) control(name string, files tree) (tree, error) {
	folder := b.source("packaging/debian/" + name)
	text, err := os.ReadFile(filepath.Join(folder, "control"))
	if err != nil {
		return nil, err
	}
	t := tree{}
	t.add("control", 0o644, []byte(strings.NewReplacer(
		"@VERSION@", b.version, "@ARCH@", b.arch, "@SIZE@", strconv.Itoa(files.installedSize()),
	).Replace(string(text))))
	scripts, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	for _, script := range scripts {
		if slices.Contains([]string{"preinst", "postinst", "prerm", "postrm"}, script.Name()) {
			if err := t.addFile(script.Name(), 0o755, filepath.Join(folder, script.Name())); err != nil {
				return nil, err
			}
		}
	}
	var conffiles strings.Builder
	for _, file := range files.names() {
		if strings.HasPrefix(file, "etc/") {
			conffiles.WriteString("/" + file + "\n")
		}
	}
	if conffiles.Len() > 0 {
		t.add("conffiles", 0o644, []byte(conffiles.String()))
	}
	return t, nil
}

// maintainer stands in the package's control file.
func (b builder) maintainer(name string) (string, error) {
	text, err := os.ReadFile(b.source("packaging/debian/" + name + "/control"))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if who, ok := strings.CutPrefix(line, "Maintainer: "); ok {
			return strings.TrimSpace(who), nil
		}
	}
	return "", fmt.Errorf("packaging/debian/%s/control names no Maintainer", name)
}

// architecture is Debian's name of what a program runs on.
func architecture(program string) (string, error) {
	file, err := elf.Open(program)
	if err != nil {
		return "", fmt.Errorf("%s: %w; build it: make build", program, err)
	}
	defer file.Close()
	switch file.Machine {
	case elf.EM_X86_64:
		return "amd64", nil
	case elf.EM_AARCH64:
		return "arm64", nil
	}
	return "", fmt.Errorf("%s is for %s; packages are made for amd64 and arm64", program, file.Machine)
}
