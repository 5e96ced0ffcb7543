package main

import (
	"bytes"
	"debug/buildinfo"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"coldrack.dev/test/require"
)

const (
	repository = "../.."
	epoch      = "1796121552"
)

// built is the folder of the programs, once a test has asked for them.
var built string

// programs are the real ones, built once as `make deb` does.
var programs = sync.OnceValues(func() (folder string, err error) {
	if built, err = os.MkdirTemp("", "coldrack-programs"); err != nil {
		return "", err
	}
	build := exec.Command("go", "build", "-buildvcs=false", "-ldflags", "-s -w -X coldrack.dev/internal/base/version.Version=v0.1.0", "-o", built+"/", "./cmd/coldrack", "./cmd/coldrack-agent")
	build.Dir = repository
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-trimpath")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return built, nil
})

// first are the packages that the tests look at.
var first = sync.OnceValues(func() ([]string, error) {
	folder, err := programs()
	if err != nil {
		return nil, err
	}
	// The server's package is only packed quickly here: the agent's shows what compression does.
	return builder{repository: repository, programs: folder, quick: true}.run("v0.1.0", epoch, filepath.Join(folder, "debs"))
})

func TestMain(m *testing.M) {
	code := m.Run()
	if built != "" {
		os.RemoveAll(built)
	}
	os.Exit(code)
}

func packages(t *testing.T) (server, agent string) {
	t.Helper()
	require.Need(t, "dpkg-deb")
	debs, err := first()
	if err != nil {
		t.Fatal(err)
	}
	return debs[0], debs[1]
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func unpack(t *testing.T, deb string) string {
	t.Helper()
	root := t.TempDir()
	run(t, "dpkg-deb", "-R", deb, root)
	return root
}

func TestSameBytes(t *testing.T) {
	server, agent := packages(t)
	folder, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	// The same programs elsewhere, with other times and modes, made by somebody else.
	again := t.TempDir()
	for _, name := range []string{"coldrack", "coldrack-agent"} {
		if err := os.Link(filepath.Join(folder, name), filepath.Join(again, name)); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(filepath.Join(again, name), time.Time{}, time.Unix(1e9, 0)); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("TZ", "Asia/Kathmandu")
	t.Setenv("LC_ALL", "C")
	t.Setenv("TMPDIR", again)
	t.Setenv("COLDRACK_DATA_DIR", "/srv/other")
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	debs, err := builder{repository: repository, programs: again, quick: true}.run("v0.1.0", epoch, filepath.Join(again, "debs"))
	if err != nil {
		t.Fatal(err)
	}
	for i, deb := range []string{server, agent} {
		if err := exec.Command("cmp", deb, debs[i]).Run(); err != nil {
			t.Errorf("%s differs when it is made again: %v", filepath.Base(deb), err)
		}
	}
}

func TestPackageHolds(t *testing.T) {
	server, agent := packages(t)
	for _, c := range []struct {
		deb  string
		want []string
	}{
		{server, []string{
			"-rw-r--r-- root/root ./etc/coldrack/config.yaml",
			"-rwxr-xr-x root/root ./usr/bin/coldrack",
			"-rw-r--r-- root/root ./usr/lib/systemd/system/coldrack.service",
			"-rw-r--r-- root/root ./usr/lib/sysusers.d/coldrack.conf",
			"-rw-r--r-- root/root ./usr/lib/tmpfiles.d/coldrack.conf",
			"-rw-r--r-- root/root ./usr/share/bash-completion/completions/coldrack",
			"-rw-r--r-- root/root ./usr/share/fish/vendor_completions.d/coldrack.fish",
			"-rw-r--r-- root/root ./usr/share/zsh/vendor-completions/_coldrack",
			"-rw-r--r-- root/root ./usr/share/doc/coldrack/changelog.Debian.gz",
			"-rw-r--r-- root/root ./usr/share/doc/coldrack/changelog.gz",
			"-rw-r--r-- root/root ./usr/share/doc/coldrack/copyright",
			"-rw-r--r-- root/root ./usr/share/doc/coldrack/docs/install.md",
			"-rw-r--r-- root/root ./usr/share/doc/coldrack/docs/operations.md",
			"-rw-r--r-- root/root ./usr/share/doc/coldrack/examples/lab/lab.yaml",
			"-rw-r--r-- root/root ./usr/share/man/man1/coldrack.1.gz",
			"-rw-r--r-- root/root ./usr/share/man/man1/coldrack-serve.1.gz",
		}},
		{agent, []string{
			"-rwxr-xr-x root/root ./usr/bin/coldrack-agent",
			"-rw-r--r-- root/root ./usr/share/doc/coldrack-agent/copyright",
			"-rw-r--r-- root/root ./usr/share/man/man1/coldrack-agent.1.gz",
		}},
	} {
		listing := run(t, "dpkg-deb", "-c", c.deb)
		var lines []string
		for line := range strings.Lines(listing) {
			f := strings.Fields(line)
			lines = append(lines, f[0]+" "+f[1]+" "+f[5])
			if owned := f[1] == "root/root"; !owned || !slices.Contains([]string{"drwxr-xr-x", "-rwxr-xr-x", "-rw-r--r--"}, f[0]) {
				t.Errorf("%s: owner or mode: %s", filepath.Base(c.deb), line)
			}
		}
		for _, want := range c.want {
			if !slices.Contains(lines, want) {
				t.Errorf("%s lacks %s", filepath.Base(c.deb), want)
			}
		}
		info := run(t, "dpkg-deb", "-I", c.deb)
		for _, want := range []string{" Version: 0.1.0-1\n", " Architecture: " + runtime.GOARCH + "\n", " Section: admin\n"} {
			if !strings.Contains(info, want) {
				t.Errorf("%s: no %q in\n%s", filepath.Base(c.deb), want, info)
			}
		}
		if t.Failed() {
			t.Log(listing)
		}
	}
	if conffiles := run(t, "dpkg-deb", "-I", server, "conffiles"); conffiles != "/etc/coldrack/config.yaml\n" {
		t.Errorf("conffiles: %q", conffiles)
	}
}

// TestFilesAreSound looks at what the package of the server brings, by the programs that will read it.
func TestFilesAreSound(t *testing.T) {
	server, _ := packages(t)
	root := unpack(t, server)
	program := filepath.Join(root, "usr/bin/coldrack")

	t.Run("the unit is the one of the sources", func(t *testing.T) {
		want, err := os.ReadFile(filepath.Join(repository, "packaging/coldrack.service"))
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(root, "usr/lib/systemd/system/coldrack.service"))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("it differs: %v", err)
		}
		for _, url := range regexp.MustCompile(`file://\S+`).FindAll(got, -1) {
			file := strings.TrimPrefix(string(url), "file://")
			if _, err := os.Stat(filepath.Join(root, file)); err != nil {
				t.Errorf("the unit names a document that the package lacks: %v", err)
			}
		}
	})
	t.Run("every setting of the config file is one that the server knows", func(t *testing.T) {
		shipped := filepath.Join(root, "etc/coldrack/config.yaml")
		text, err := os.ReadFile(shipped)
		if err != nil {
			t.Fatal(err)
		}
		want := run(t, program, "serve", "--config", os.DevNull, "--print-config", "-o", "json")
		if got := run(t, program, "serve", "--config", shipped, "--print-config", "-o", "json"); got != want {
			t.Errorf("as it is shipped it changes something:\n%s\nwant:\n%s", got, want)
		}
		setting := regexp.MustCompile(`(?m)^#([a-z][A-Za-z]+: )`)
		if n := len(setting.FindAll(text, -1)); n < 5 {
			t.Fatalf("only %d settings found in\n%s", n, text)
		}
		all := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(all, setting.ReplaceAll(text, []byte("$1")), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := run(t, program, "serve", "--config", all, "--print-config"); !strings.Contains(got, "eno2") {
			t.Errorf("with all of them:\n%s", got)
		}
	})
	t.Run("shells accept the scripts", func(t *testing.T) {
		require.Need(t, "shellcheck")
		run(t, "bash", "-n", filepath.Join(root, "usr/share/bash-completion/completions/coldrack"))
		for _, name := range []string{"postinst", "prerm", "postrm"} {
			run(t, "shellcheck", "-s", "sh", filepath.Join(root, "DEBIAN", name))
		}
	})
}

// TestCopyrightIsComplete has Debian's own library read the files, and compares them with what the linker recorded.
func TestCopyrightIsComplete(t *testing.T) {
	server, agent := packages(t)
	const python = "/usr/bin/python3"
	if out, err := exec.Command(python, "-c", "import debian.copyright").CombinedOutput(); err != nil {
		require.Need(t, "python3-debian")
		t.Fatalf("%v\n%s", err, out)
	}
	const script = `
import sys
from debian import copyright
c = copyright.Copyright(open(sys.argv[1], encoding="utf-8"), strict=True)
texts = {p.license.synopsis: p.license.text for p in c.all_license_paragraphs()}
for p in c.all_files_paragraphs():
    assert p.copyright, p.files
    assert len(texts[p.license.synopsis]) > 50, p.files
    print(p.files[0])
`
	for _, deb := range []string{server, agent} {
		root, name := unpack(t, deb), strings.Split(filepath.Base(deb), "_")[0]
		listed := strings.Fields(run(t, python, "-c", script, filepath.Join(root, "usr/share/doc", name, "copyright")))
		info, err := buildinfo.ReadFile(filepath.Join(root, "usr/bin", name))
		if err != nil {
			t.Fatal(err)
		}
		want := []string{"*", "go@" + strings.TrimPrefix(info.GoVersion, "go") + "/*"}
		for _, dep := range info.Deps {
			if dep.Replace != nil {
				dep = dep.Replace
			}
			want = append(want, dep.Path+"@"+dep.Version+"/*")
		}
		for _, w := range want {
			if !slices.Contains(listed, w) {
				t.Errorf("%s: no paragraph about %s", name, w)
			}
		}
		t.Logf("%s: %d modules, %d paragraphs", name, len(info.Deps), len(listed))
	}
}

func userOf(t *testing.T, root string) (uid uint32) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "etc/passwd"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(regexp.MustCompile(`(?m)^coldrack:x:(\d+):`).FindString(string(text)), "coldrack:x:%d:", &uid); err != nil {
		t.Fatalf("no user coldrack in\n%s", text)
	}
	return uid
}

func owned(t *testing.T, path string) (mode fs.FileMode, uid uint32) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Mode().Perm(), info.Sys().(*syscall.Stat_t).Uid
}

// TestLifeOfThePackage has the real dpkg install, upgrade, remove and purge the package in a root of its own, where no systemd
// runs.
func TestLifeOfThePackage(t *testing.T) {
	require.Need(t, "root", "dpkg", "systemd-sysusers", "systemd-tmpfiles", "deb-systemd-helper")
	server, _ := packages(t)
	root := t.TempDir()
	for _, folder := range []string{"var/lib/dpkg/info", "var/lib/dpkg/updates", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, folder), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	path := func(name string) string { return filepath.Join(root, name) }
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(path(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("var/lib/dpkg/status", "")
	dpkg := func(args ...string) string {
		t.Helper()
		return run(t, "dpkg", append([]string{"--root=" + root, "--force-script-chrootless", "--force-depends", "--force-unsafe-io", "--force-confold"}, args...)...)
	}
	is := func(name string, want bool) {
		t.Helper()
		if _, err := os.Lstat(path(name)); (err == nil) != want {
			t.Errorf("%s is there: %v; want %v", name, err == nil, want)
		}
	}

	said := dpkg("-i", server)
	if !strings.Contains(said, "installed and not started; what to do first: /usr/share/doc/coldrack/docs/install.md") {
		t.Errorf("the installation does not say how to go on:\n%s", said)
	}
	is("usr/share/doc/coldrack/docs/install.md", true)
	is("etc/systemd/system/multi-user.target.wants/coldrack.service", false)
	if mode, uid := owned(t, path("var/lib/coldrack")); mode != 0o700 || uid != userOf(t, root) {
		t.Errorf("the data folder is %d's with mode %v", uid, mode)
	}

	// A release with another config file, after a person has edited this one, and has enabled and started the server.
	const edited, store = "logLevel: debug\n", "var/lib/coldrack/pki"
	write("etc/coldrack/config.yaml", edited)
	write("etc/coldrack/s3-ca.pem", "mine\n")
	if err := os.MkdirAll(path(store), 0o700); err != nil {
		t.Fatal(err)
	}
	write(store+"/master.key", "secret\n")
	if err := os.MkdirAll(path("etc/systemd/system/multi-user.target.wants"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/usr/lib/systemd/system/coldrack.service", path("etc/systemd/system/multi-user.target.wants/coldrack.service")); err != nil {
		t.Fatal(err)
	}
	said = dpkg("-i", newer(t, server))
	if strings.Contains(said, "not started") {
		t.Errorf("an upgrade speaks as a first installation does:\n%s", said)
	}
	if text, err := os.ReadFile(path("etc/coldrack/config.yaml")); err != nil || string(text) != edited {
		t.Errorf("the edited config file: %q, %v", text, err)
	}
	is("etc/coldrack/config.yaml.dpkg-dist", true)
	is(store+"/master.key", true)
	is("etc/systemd/system/multi-user.target.wants/coldrack.service", true)

	dpkg("--remove", "coldrack")
	is("usr/bin/coldrack", false)
	is("etc/coldrack/config.yaml", true)
	is(store+"/master.key", true)

	dpkg("--purge", "coldrack")
	is("etc/coldrack/config.yaml", false)
	is("etc/coldrack/config.yaml.dpkg-dist", false)
	is("etc/coldrack/s3-ca.pem", true)
	is("etc/systemd/system/multi-user.target.wants/coldrack.service", false)
	is(store+"/master.key", true)
	userOf(t, root)

	// Of a server that never ran, nothing is left.
	if err := os.RemoveAll(path(store)); err != nil {
		t.Fatal(err)
	}
	dpkg("-i", server)
	dpkg("--purge", "coldrack")
	is("var/lib/coldrack", false)
}

// newer is the package once more, of the next release, with another config file.
func newer(t *testing.T, deb string) string {
	t.Helper()
	root := unpack(t, deb)
	for file, change := range map[string]func(string) string{
		"DEBIAN/control":           func(s string) string { return strings.Replace(s, "Version: 0.1.0-1", "Version: 0.1.1-1", 1) },
		"etc/coldrack/config.yaml": func(s string) string { return s + "# A new line.\n" },
	} {
		text, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, file), []byte(change(string(text))), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	next := filepath.Join(t.TempDir(), "coldrack_0.1.1-1.deb")
	run(t, "dpkg-deb", "--root-owner-group", "-Znone", "--build", root, next)
	return next
}
