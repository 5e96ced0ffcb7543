package build

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"

	"coldrack.dev/internal/content/diskboot"
)

const recipes = "../../../../recipes"

func TestTheRecipesInTheRepositoryAreRight(t *testing.T) {
	entries, err := os.ReadDir(recipes)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if _, err := os.Stat(filepath.Join(recipes, e.Name(), "recipe.yaml")); err != nil {
			continue // HOST-PACKAGES, modules
		}
		r, err := LoadRecipe(filepath.Join(recipes, e.Name()))
		if err != nil {
			t.Error(err)
			continue
		}
		if r.Netboot == nil {
			continue
		}
		for field, patterns := range map[string][]string{"files": r.Netboot.Files, "modules": r.Netboot.Modules, "modulesExclude": r.Netboot.ModulesExclude} {
			if _, err := compileGlobs(patterns); err != nil {
				t.Errorf("%s: netboot.%s: %v", e.Name(), field, err)
			}
		}
	}
}

const goodRecipe = `
name: x
sourceDate: "2025-01-01T00:00:00Z"
apt: {suite: bookworm, components: [main]}
image: {name: debian, label: root, freePercent: 10, packages: [systemd]}
netboot: {name: discovery, kernel: linux-image-amd64, packages: [udev], files: [/bin/udevadm], modules: ["kernel/**"], maxMiB: 100}
bootloaders: {name: amd64, packages: [ipxe]}
`

func TestParseRecipe(t *testing.T) {
	if _, err := ParseRecipe([]byte(goodRecipe)); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ from, to, want string }{
		"not YAML":                              {goodRecipe, "name: [", "is not YAML"},
		"a list":                                {goodRecipe, "- x", "cannot unmarshal array"},
		"an empty file":                         {goodRecipe, "", `name: is "", want letters`},
		"an unknown field":                      {"label: root", "label: root, colour: red", `unknown field "image.colour"`},
		"an unknown field at the top":           {"name: x", "nmae: x", `unknown field "nmae"`},
		"a field twice":                         {"name: x", "name: x\nname: y", "already set"},
		"a number where a list belongs":         {"packages: [udev]", "packages: 7", "cannot unmarshal number into Go struct field"},
		"a package name with a space":           {"packages: [systemd]", `packages: ["systemd; rm -rf /"]`, `image.packages[0]: is "systemd; rm -rf /", want a Debian package name`},
		"a package named like an option":        {"packages: [ipxe]", `packages: ["--force-yes"]`, "bootloaders.packages[0]"},
		"a package twice":                       {"packages: [udev]", "packages: [udev, udev]", `netboot.packages[1]: "udev" is there twice`},
		"no packages":                           {"packages: [systemd]", "packages: []", "image.packages: is empty"},
		"a date that is none":                   {`"2025-01-01T00:00:00Z"`, "yesterday", "parsing time"},
		"no date":                               {`sourceDate: "2025-01-01T00:00:00Z"`, "", "sourceDate: is not set"},
		"a relative file pattern":               {"/bin/udevadm", "bin/udevadm", "netboot.files[0]"},
		"an absolute module pattern":            {`"kernel/**"`, `"/kernel/**"`, "netboot.modules[0]"},
		"an overlay of the machine's own":       {"label: root", "label: root, overlay: /etc", "image.overlay"},
		"a label too long for ext4":             {"label: root", "label: seventeen-letters", "image.label"},
		"a file system without room":            {"freePercent: 10", "freePercent: 0", "image.freePercent: is 0, want 5 to 100"},
		"an initramfs of no size":               {"maxMiB: 100", "maxMiB: 0", "netboot.maxMiB"},
		"a mirror with options hidden in it":    {"components: [main]", `components: [main], mirrors: [{uri: "http://x [trusted=yes]", suite: bookworm}]`, "apt.mirrors[0].uri"},
		"a mirror with a relative keyring":      {"components: [main]", `components: [main], mirrors: [{uri: "http://x", suite: bookworm, keyring: key.gpg}]`, "apt.mirrors[0].keyring"},
		"an exclude pattern that is two words":  {"label: root", `label: root, exclude: ["/a /b"]`, "image.exclude[0]"},
		"a unit that is a command":              {"label: root", `label: root, enable: ["x; reboot"]`, "image.enable[0]"},
		"two mistakes are both named, first":    {"label: root, freePercent: 10", "label: '', freePercent: 1", "image.label"},
		"two mistakes are both named, the last": {"label: root, freePercent: 10", "label: '', freePercent: 1", "image.freePercent"},
	} {
		t.Run(name, func(t *testing.T) {
			raw := strings.Replace(goodRecipe, tt.from, tt.to, 1)
			if raw == goodRecipe {
				t.Fatal("the test changes nothing")
			}
			_, err := ParseRecipe([]byte(raw))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error is %v, want %q in it", err, tt.want)
			}
		})
	}
}

func FuzzParseRecipe(f *testing.F) {
	f.Add([]byte(goodRecipe))
	f.Add([]byte("a: &a [*a, *a]"))
	f.Add([]byte(strings.ReplaceAll(goodKubernetes, "DIGEST", strings.Repeat("ab", 32))))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := ParseRecipe(raw)
		if err != nil {
			return
		}
		var packages []string
		if r.Image != nil {
			packages = append(packages, r.Image.Packages...)
		}
		if r.Netboot != nil {
			packages = append(packages, r.Netboot.Packages...)
		}
		if r.Bootloaders != nil {
			packages = append(packages, r.Bootloaders.Packages...)
		}
		for _, l := range r.Layers {
			packages = append(packages, l.Packages...)
		}
		for _, p := range packages {
			if strings.HasPrefix(p, "-") || strings.ContainsAny(p, " ;,'\n") {
				t.Fatalf("accepted package %q, which a command would misread", p)
			}
		}
		for _, g := range r.Go {
			for variable, value := range g.Stamps {
				if strings.ContainsAny(variable+value, " '\"\n") {
					t.Fatalf("accepted stamp %q=%q, which the linker would misread", variable, value)
				}
			}
			for program, pkg := range g.Programs {
				if strings.ContainsAny(program, "/\x00") || strings.HasPrefix(pkg, "-") {
					t.Fatalf("accepted program %q of %q", program, pkg)
				}
			}
		}
		if r.Programs != nil {
			for _, f := range r.Programs.Files {
				if !filepath.IsAbs(f.Path) || filepath.Clean(f.Path) != f.Path {
					t.Fatalf("accepted a program at %q", f.Path)
				}
			}
		}
	})
}

func TestLoadRecipeSaysWhatIsMissing(t *testing.T) {
	dir := t.TempDir()
	if _, err := LoadRecipe(dir); err == nil || !strings.Contains(err.Error(), "has no recipe.yaml") {
		t.Errorf("an empty folder: %v", err)
	}
	raw := strings.Replace(goodRecipe, "label: root", "label: root, overlay: files", 1)
	if err := os.WriteFile(filepath.Join(dir, "recipe.yaml"), []byte(raw), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadRecipe(dir); err == nil || !strings.Contains(err.Error(), `image.overlay: "files" is not a folder`) {
		t.Errorf("an overlay that is not there: %v", err)
	}
}

func TestGlobs(t *testing.T) {
	for _, tt := range []struct {
		pattern, name string
		want          bool
	}{
		{"kernel/fs/ext4/**", "kernel/fs/ext4/ext4.ko", true},
		{"kernel/fs/ext4/**", "kernel/fs/ext4.ko", false},
		{"kernel/drivers/net/*.ko", "kernel/drivers/net/veth.ko", true},
		{"kernel/drivers/net/*.ko", "kernel/drivers/net/usb/r8152.ko", false},
		{"kernel/**/*_cs.ko", "kernel/drivers/net/ethernet/8390/pcnet_cs.ko", true},
		{"kernel/**/*_cs.ko", "kernel/a_cs.ko", true},
		{"kernel/crypto/crc*", "kernel/crypto/crc32c_generic.ko", true},
		{"a.b", "axb", false},
		{"md[0-9].ko", "md5.ko", true},
		{"a?c", "a/c", false},
	} {
		m, err := compileGlobs([]string{tt.pattern})
		if err != nil {
			t.Fatal(err)
		}
		if got := m.match(tt.name); got != tt.want {
			t.Errorf("%q matches %q: %v, want %v", tt.pattern, tt.name, got, tt.want)
		}
	}
	if _, err := compileGlobs([]string{"a["}); err == nil {
		t.Error("an open bracket was accepted")
	}
}

func TestSourcesOfTheMachine(t *testing.T) {
	oneLine := `
deb http://mirror.example/debian bookworm main contrib # comment
# deb http://mirror.example/debian sid main
deb [arch=amd64 signed-by=/usr/share/keyrings/k.gpg] http://mirror.example/security bookworm-security main
deb-src http://mirror.example/debian bookworm main
deb http://mirror.example/debian bookworm-backports main
deb http://other.example/linux bookworm stable
deb broken
deb [open http://mirror.example/debian bookworm main
`
	deb822 := `
# comment
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm
 bookworm-updates
Components: main non-free-firmware
Signed-By: /usr/share/keyrings/debian.pgp

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://inline.example/debian
Suites: trixie
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 -----END PGP PUBLIC KEY BLOCK-----
`
	for name, tt := range map[string]struct {
		file, content, suite string
		components           []string
		want                 string
	}{
		"one-line format": {"sources.list", oneLine, "bookworm", []string{"main"},
			"deb [arch=amd64] http://mirror.example/debian bookworm main\n" +
				"deb [arch=amd64 signed-by=/usr/share/keyrings/k.gpg] http://mirror.example/security bookworm-security main\n"},
		"deb822": {"debian.sources", deb822, "bookworm", []string{"main", "non-free-firmware"},
			"deb [arch=amd64 signed-by=/usr/share/keyrings/debian.pgp] http://mirror.example/debian bookworm main non-free-firmware\n" +
				"deb [arch=amd64 signed-by=/usr/share/keyrings/debian.pgp] http://mirror.example/debian bookworm-updates main non-free-firmware\n"},
		"a key within the file is left to apt": {"debian.sources", deb822, "trixie", []string{"main"},
			"deb [arch=amd64] http://inline.example/debian trixie main\n"},
		"a suite that the machine does not have": {"debian.sources", deb822, "sid", []string{"main"}, ""},
		"an empty file":                          {"debian.sources", "", "bookworm", []string{"main"}, ""},
	} {
		got := selectSources(parseSources(tt.file, tt.content), AptRecipe{Suite: tt.suite, Components: tt.components})
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}

func TestSourcesOfAnotherSuite(t *testing.T) {
	have := []source{
		{"http://mirror.example/debian", "bookworm", []string{"main"}, "/usr/share/keyrings/debian-archive-keyring.gpg"},
		{"http://mirror.example/debian", "bookworm-updates", []string{"main"}, ""},
		{"http://mirror.example/security", "bookworm-security", []string{"main"}, "/usr/share/keyrings/debian-archive-keyring.pgp"},
		{"http://mirror.example/debian", "bookworm-backports", []string{"main"}, ""},
		{"http://vendor.example/apt", "bookworm", []string{"main"}, "/etc/apt/keyrings/vendor.gpg"},
		{"http://cloud.example/apt", "sdk-bookworm", []string{"main"}, ""},
	}
	got := selectSources(translate(have, "trixie"), AptRecipe{Suite: "trixie", Components: []string{"main"}})
	want := "deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://mirror.example/debian trixie main\n" +
		"deb [arch=amd64] http://mirror.example/debian trixie-updates main\n" +
		"deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.pgp] http://mirror.example/security trixie-security main\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got := translate(have, "noble"); got != nil {
		t.Errorf("a suite that is not Debian's was found on Debian's mirror: %v", got)
	}
}

func TestStepsAreKeptByTheirInputs(t *testing.T) {
	var events []string
	s := &steps{dir: t.TempDir(), report: func(e Event) { events = append(events, fmt.Sprint(e.Step, " ", e.State)) }}
	made := 0
	run := func(input string, fail error) (string, error) {
		return s.run(context.Background(), "step", input, func(_ context.Context, dir string) error {
			made++
			return errors.Join(fail, os.WriteFile(filepath.Join(dir, "product"), []byte(input), 0o644))
		})
	}
	if _, err := run("a", errors.New("broken")); err == nil || !strings.Contains(err.Error(), "step: broken") {
		t.Fatalf("a failing step: %v", err)
	}
	a, err := run("a", nil)
	if err != nil || made != 2 {
		t.Fatalf("after a failure the step must run again: %d runs, %v", made, err)
	}
	if again, err := run("a", nil); err != nil || again != a || made != 2 {
		t.Fatalf("the same inputs: %d runs, %v", made, err)
	}
	for _, input := range []string{"b", "c", "d", "e"} {
		old := time.Now().Add(-time.Hour)
		_ = os.Chtimes(a, old, old)
		if _, err := run(input, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(a); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the product used longest ago was kept beside four younger ones")
	}
	want := []string{"step started", "step started", "step done", "step cached"}
	for range 4 {
		want = append(want, "step started", "step done")
	}
	if diff := cmp.Diff(want, events); diff != "" {
		t.Error(diff)
	}
}

func TestTheKernelsFormatOfAnInitramfs(t *testing.T) {
	var buf bytes.Buffer
	z, err := newZstd(&buf)
	if err != nil {
		t.Fatal(err)
	}
	date := time.Unix(1735689600, 0)
	c := newCPIO(z, date)
	err = errors.Join(
		c.dir("dev"), c.device("dev/console", 0o600, 5, 1),
		c.file("usr/sbin/agent", 0o755, 5, strings.NewReader("agent")),
		c.symlink("init", "usr/sbin/agent"), c.close(), z.Close())
	if err != nil {
		t.Fatal(err)
	}
	if c.n%4 != 0 {
		t.Errorf("the archive has %d bytes, not a multiple of 4", c.n)
	}
	dec, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	raw, err := dec.DecodeAll(buf.Bytes(), nil)
	if err != nil {
		t.Fatal(err)
	}
	// Another implementation of the format reads it.
	r := cpio.Newc.Reader(bytes.NewReader(raw))
	var got []string
	for {
		rec, err := r.ReadRecord()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content := ""
		if rec.FileSize > 0 {
			b := make([]byte, rec.FileSize)
			if _, err := rec.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			content = string(b)
		}
		got = append(got, fmt.Sprintf("%s %o %d:%d nlink=%d uid=%d time=%d %q", rec.Name, rec.Mode, rec.Rmajor, rec.Rminor, rec.NLink, rec.UID, rec.MTime, content))
	}
	want := []string{
		`dev 40755 0:0 nlink=2 uid=0 time=1735689600 ""`,
		`dev/console 20600 5:1 nlink=1 uid=0 time=1735689600 ""`,
		`usr 40755 0:0 nlink=2 uid=0 time=1735689600 ""`,
		`usr/sbin 40755 0:0 nlink=2 uid=0 time=1735689600 ""`,
		`usr/sbin/agent 100755 0:0 nlink=1 uid=0 time=1735689600 "agent"`,
		`init 120777 0:0 nlink=1 uid=0 time=1735689600 "usr/sbin/agent"`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func testTree(t *testing.T, headers ...tar.Header) (*tree, error) {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, h := range headers {
		if h.Typeflag == tar.TypeReg {
			h.Size = 1
		}
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			_, _ = tw.Write([]byte("x"))
		}
	}
	_ = tw.Close()
	tr, err := newTree(filepath.Join(t.TempDir(), "tree"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tr.close)
	return tr, tr.unpackTar(tar.NewReader(&buf), func(string) bool { return true })
}

func TestPackageFilesStayInsideTheTree(t *testing.T) {
	tr, err := testTree(t,
		tar.Header{Typeflag: tar.TypeDir, Name: "./"},
		tar.Header{Typeflag: tar.TypeReg, Name: "./bin/x", Mode: 0o755},
		tar.Header{Typeflag: tar.TypeReg, Name: "../../climbs", Mode: 0o644},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "./lib/y", Linkname: "/bin/x"},
		tar.Header{Typeflag: tar.TypeLink, Name: "./usr/bin/z", Linkname: "./bin/x"},
	)
	if err != nil {
		t.Fatal(err)
	}
	files, err := tr.files()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"climbs", "usr/bin/x", "usr/bin/z", "usr/lib/y"}, files); diff != "" {
		t.Error(diff)
	}
	if target, links, err := tr.follow("usr/lib/y"); err != nil || target != "usr/bin/x" || !slices.Equal(links, []string{"usr/lib/y"}) {
		t.Errorf("a link with an absolute target leads to %q by %q, %v", target, links, err)
	}
	outside := t.TempDir()
	if _, err := testTree(t,
		tar.Header{Typeflag: tar.TypeSymlink, Name: "etc", Linkname: outside},
		tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644},
	); err == nil {
		t.Error("a file was written through a link out of the tree")
	}
	if left, _ := os.ReadDir(outside); len(left) != 0 {
		t.Error("a file was written outside of the tree")
	}
}

// Debian 12's usr/lib/ipxe/ipxe.efi is an absolute link to boot/ipxe.efi. Where the building machine has files at the
// paths that links of a package lead to, they must not get into a product.
func TestLinksOfAPackageNeverReachTheBuildingMachine(t *testing.T) {
	host := t.TempDir()
	for _, name := range []string{"loader", "notinpackage"} {
		if err := os.WriteFile(filepath.Join(host, name), []byte("of the host"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tr, err := testTree(t,
		tar.Header{Typeflag: tar.TypeReg, Name: "." + host + "/loader", Mode: 0o644}, // contains "x"
		tar.Header{Typeflag: tar.TypeSymlink, Name: "./usr/lib/boot/absolute", Linkname: host + "/loader"},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "./usr/lib/boot/escaping", Linkname: strings.Repeat("../", 20) + host[1:] + "/loader"},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "./usr/lib/boot/folder", Linkname: host},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "./usr/lib/boot/dangling", Linkname: host + "/notinpackage"},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "./usr/share/ca-certificates/mozilla", Linkname: host},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "./etc/mke2fs.conf", Linkname: host + "/notinpackage"},
	)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"usr/lib/boot/absolute", "usr/lib/boot/escaping", "usr/lib/boot/folder/loader"} {
		out := filepath.Join(t.TempDir(), "product")
		if err := tr.copyOut(name, out); err != nil {
			t.Error(err)
			continue
		}
		if got, err := os.ReadFile(out); err != nil || string(got) != "x" {
			t.Errorf("%s: the product is %q, %v; want the package's file", name, got, err)
		}
	}
	err = tr.copyOut("usr/lib/boot/dangling", filepath.Join(t.TempDir(), "product"))
	if err == nil || !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "is a symbolic link to "+host+"/notinpackage") {
		t.Errorf("a link to what only the host has: %v", err)
	}
	if files, err := tr.glob("usr/share/ca-certificates/mozilla", "*"); err != nil || len(files) != 1 {
		t.Errorf("a linked folder lists %q, %v; want the package's only file", files, err)
	}
	// What is made in the tree stays in the tree.
	if err := tr.writeFile("etc/mke2fs.conf", []byte("made")); err == nil {
		t.Error("a file was written through a link out of the tree")
	}
	if got, _ := os.ReadFile(filepath.Join(host, "notinpackage")); string(got) != "of the host" {
		t.Errorf("the host's file is now %q", got)
	}
}

func TestEmptyMachineIDReplacesALink(t *testing.T) {
	host := filepath.Join(t.TempDir(), "machine-id")
	if err := os.WriteFile(host, []byte("of the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	image := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(image, "etc"), 0o755), os.Symlink(host, filepath.Join(image, "etc/machine-id"))); err != nil {
		t.Fatal(err)
	}
	if err := emptyMachineID(image, time.Unix(1735689600, 0)); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(host); err != nil || string(got) != "of the host" {
		t.Errorf("the building machine's file is now %q, %v", got, err)
	}
	if info, err := os.Lstat(filepath.Join(image, "etc/machine-id")); err != nil || !info.Mode().IsRegular() || info.Size() != 0 {
		t.Errorf("the image has %v, %v; want an empty file", info, err)
	}
}

// An OCI layout with a link in it could make us read files of the building machine.
func TestALayoutHasOnlyFiles(t *testing.T) {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	if err := errors.Join(tw.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "index.json", Linkname: "/etc/passwd"}), tw.Close()); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "layout.tar")
	if err := os.WriteFile(archive, buf.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unpackLayout(archive, filepath.Join(t.TempDir(), "layout")); err == nil || !strings.Contains(err.Error(), "index.json: is of type") {
		t.Errorf("a link: %v", err)
	}
}

func TestProgramsBringTheirLibraries(t *testing.T) {
	// The test's own machine stands in for packages, as far as it is a Debian on amd64.
	shell, err := filepath.EvalSymlinks("/bin/ls")
	linker := "/lib64/ld-linux-x86-64.so.2"
	if _, statErr := os.Stat(linker); err != nil || statErr != nil {
		t.Skip("no dynamically linked ls for amd64 here")
	}
	tr, err := testTree(t)
	if err != nil {
		t.Fatal(err)
	}
	copyIn := func(from, to string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(tr.hostPath(to)), 0o755), copyFile(from, tr.hostPath(to), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	copyIn(shell, "usr/bin/ls")
	copyIn(linker, "usr/lib64/ld-linux-x86-64.so.2")
	log := slog.New(slog.DiscardHandler)
	if _, err := tr.closure([]string{"usr/bin/ls"}, log); err == nil || !strings.Contains(err.Error(), "which no package of the recipe brings") {
		t.Fatalf("without its libraries: %v", err)
	}
	out, err := exec.Command("ldd", shell).Output()
	if err != nil {
		t.Skip("no ldd here")
	}
	for _, word := range strings.Fields(string(out)) {
		if strings.HasPrefix(word, "/lib/x86_64-linux-gnu/") {
			copyIn(word, merged(word))
		}
	}
	need, err := tr.closure([]string{"usr/bin/ls"}, log)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"usr/bin/ls", "usr/lib64/ld-linux-x86-64.so.2", "usr/lib/x86_64-linux-gnu/libc.so.6"} {
		if !need[want] {
			t.Errorf("%s is missing in %v", want, sortedKeys(need))
		}
	}
	if got, err := tr.run(context.Background(), command{log: log}, "usr/bin/ls", "/usr"); err != nil || strings.Join(strings.Fields(got), " ") != "bin lib lib64" {
		t.Errorf("the program sees %q in the tree's usr, %v", got, err)
	}
}

func TestReadAgent(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ path, want string }{
		"none given":            {"", "no path was given"},
		"a file not there":      {filepath.Join(dir, "gone"), "no such file"},
		"a script":              {text, "is not a program for linux/amd64"},
		"a program with a libc": {"/bin/ls", "is linked dynamically"},
	} {
		if _, err := readAgent(tt.path, ""); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error is %v, want %q in it", name, err, tt.want)
		}
	}
}

func TestSBOM(t *testing.T) {
	agent := artefact{Name: "coldrack-agent", Digest: "sha256:" + strings.Repeat("ab", sha256.Size), Version: "v1", modules: goModules(&buildinfo.BuildInfo{
		GoVersion: "go1.26.0",
		Main:      debug.Module{Path: "example.com/tool", Version: "v3.0.0", Sum: "h1:x="},
		Deps: []*debug.Module{
			{Path: "example.com/b", Version: "v2.0.0"},
			{Path: "example.com/a", Version: "v1.0.0", Replace: &debug.Module{Path: "example.com/fork", Version: "v1.0.1"}},
		},
	})}
	libc := pkg{"libc6", "2.36-9+deb12u1", "amd64"}
	raw, err := sbom("x", time.Unix(1735689600, 0), []part{
		{name: "image/debian", packages: []pkg{libc, {"adduser", "3.134", "all"}}},
		{name: "netboot/discovery", packages: []pkg{libc}, programs: []artefact{agent}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var d spdxDocument
	if err := json.Unmarshal(raw, &d); err != nil {
		t.Fatal(err)
	}
	names, ids := []string{}, map[string]string{}
	for _, p := range d.Packages {
		names = append(names, p.Name+" "+p.Version)
		if ids[p.ID] != "" {
			t.Errorf("%s and %s have the same identifier", ids[p.ID], p.Name)
		}
		ids[p.ID] = p.Name
		if p.Name == "example.com/tool" && p.Source != "go.sum: h1:x=" {
			t.Errorf("%s: its source is %q", p.Name, p.Source)
		}
	}
	want := []string{"image/debian ", "libc6 2.36-9+deb12u1", "adduser 3.134", "netboot/discovery ", "coldrack-agent v1",
		"example.com/b v2.0.0", "example.com/fork v1.0.1", "example.com/tool v3.0.0", "stdlib 1.26.0"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Error(diff)
	}
	contained := 0
	for _, r := range d.Relationships {
		if (ids[r.From] == "" && r.From != spdxRoot) || ids[r.To] == "" {
			t.Errorf("relationship %v names what is not there", r)
		}
		if ids[r.To] == "libc6" {
			contained++
		}
	}
	if contained != 2 {
		t.Errorf("libc6 is contained in %d parts, want 2", contained)
	}
}

func TestMountsBelowTheWorkFolderAreSeen(t *testing.T) {
	info := "25 1 254:0 / / rw - ext4 /dev/vda rw\n36 25 0:5 / /cache/work/root\\040x/dev rw shared:2 - devtmpfs udev rw\n"
	if got := mountBelow(info, "/cache/work"); got != "/cache/work/root x/dev" {
		t.Errorf("found %q", got)
	}
	for _, dir := range []string{"/cache/other", "/cache/wor"} {
		if got := mountBelow(info, dir); got != "" {
			t.Errorf("found %q below %s", got, dir)
		}
	}
}

func TestPatternsForBothSidesOfUsr(t *testing.T) {
	got := bothPaths([]string{"/lib/modules/*/kernel/sound/*", "/usr/lib/udev/hwdb.d/*", "/usr/share/doc/*", "/library/x", "/sbin/y"})
	want := []string{"/lib/modules/*/kernel/sound/*", "/usr/lib/modules/*/kernel/sound/*", "/usr/lib/udev/hwdb.d/*", "/lib/udev/hwdb.d/*",
		"/usr/share/doc/*", "/library/x", "/sbin/y", "/usr/sbin/y"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestKernelModulesAreNamedWithoutTheirCompression(t *testing.T) {
	for name, want := range map[string]string{"kernel/fs/ext4/ext4.ko": "kernel/fs/ext4/ext4.ko", "a.ko.xz": "a.ko", "a.ko.zst": "a.ko", "a.xz.ko": "a.xz.ko"} {
		if got := uncompressed(name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
}

// note is an entry of .note.dlopen.
func note(kind uint32, content string) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 4)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(content)+1))
	b = append(binary.LittleEndian.AppendUint32(b, kind), "FDO\x00"...)
	b = append(append(b, content...), 0)
	return append(b, make([]byte, (4-len(b)%4)%4)...)
}

func TestLibrariesThatAreOpened(t *testing.T) {
	const dlopen = 0x407c0c0a
	kmod := note(dlopen, `[{"feature":"kmod","description":"Support for loading kernel modules","priority":"recommended","soname":["libkmod.so.2"]}]`)
	tpm := note(dlopen, `[{"feature":"tpm","priority":"suggested","soname":["libtss2-esys.so.0"]},{"feature":"x","priority":"required","soname":["libx.so.2","libx.so.1"]}]`)
	got, err := parseOpened(slices.Concat(kmod, note(1, "something else"), tpm), binary.LittleEndian)
	want := []openedLibrary{{"kmod", "recommended", []string{"libkmod.so.2"}}, {"x", "required", []string{"libx.so.2", "libx.so.1"}}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	for name, raw := range map[string][]byte{"cut off": kmod[:40], "not JSON": note(dlopen, "libkmod")} {
		if _, err := parseOpened(raw, binary.LittleEndian); err == nil {
			t.Errorf("%s: was accepted", name)
		}
	}
}

func TestMemAvailable(t *testing.T) {
	if got := memAvailable("MemTotal: 9 kB\nMemAvailable:   2048 kB\n"); got != 2<<20 {
		t.Errorf("got %d bytes", got)
	}
	if got := memAvailable("MemTotal: 9 kB\n"); got != 0 {
		t.Errorf("got %d bytes from a kernel that does not say", got)
	}
}

func TestCommandsSayTheirLastWords(t *testing.T) {
	c := command{log: slog.New(slog.DiscardHandler)}
	if _, err := c.run(context.Background(), "no-such-program-here"); err == nil || !strings.Contains(err.Error(), "recipes/HOST-PACKAGES") {
		t.Errorf("a program that is not installed: %v", err)
	}
	_, err := c.run(context.Background(), "sh", "-c", "echo E: no space left >&2; exit 3")
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "E: no space left") {
		t.Errorf("a program that fails: %v", err)
	}
}

// The boot path is described in three places; they must agree.
func TestTheBootPathAgrees(t *testing.T) {
	if want := fmt.Sprintf("(,gpt%d)/%s", diskboot.ESPPartition, filepath.Dir(diskboot.ConfigPath)); diskboot.Prefix != want {
		t.Errorf("core.img's prefix is %s, want %s", diskboot.Prefix, want)
	}
}
