package build

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
)

// netbootMeta is what the base of the discovery system is, kept beside it.
type netbootMeta struct {
	KernelVersion string `json:"kernelVersion"`
	Packages      []pkg  `json:"packages"` // that files were taken from
}

const (
	fileBase = "base.cpio.zst"
	fileMeta = "meta.json"
)

// agentPath is where the agent lies in the discovery system; /init leads to it.
const agentPath = "usr/sbin/coldrack-agent"

// netbootBase makes the kernel and the part of the initramfs that does not depend on the agent.
func (b *builder) netbootBase(ctx context.Context) (string, error) {
	r := *b.recipe.Netboot
	names := slices.Concat([]string{r.Kernel}, r.Packages, r.Firmware)
	pkgs, err := b.apt.resolve(ctx, names)
	if err != nil {
		return "", fmt.Errorf("netboot: %w", err)
	}
	overlay, err := hashTree(b.overlay(r.Overlay))
	if err != nil {
		return "", fmt.Errorf("netboot: %w", err)
	}
	r.MaxMiB = 0 // is checked on the whole
	inputs := []any{r, pkgs, overlay, b.recipe.SourceDate}
	return b.steps.run(ctx, "netboot-base", inputs, func(ctx context.Context, dir string) error {
		if err := b.apt.download(ctx, names, pkgs); err != nil {
			return err
		}
		work, err := os.MkdirTemp(b.workDir(), "netboot-")
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(work) }()
		n := &netbootMaker{builder: b, recipe: r, out: dir, date: b.recipe.SourceDate}
		b.steps.detail("unpack %d packages", len(pkgs))
		if n.tree, err = b.unpackAll(ctx, filepath.Join(work, "tree"), pkgs); err != nil {
			return err
		}
		defer n.tree.close()
		return n.make(ctx, pkgs)
	})
}

type netbootMaker struct {
	*builder
	recipe  NetbootRecipe
	tree    *tree
	out     string
	date    time.Time
	version string // of the kernel
}

func (n *netbootMaker) make(ctx context.Context, pkgs []pkg) error {
	if err := n.tree.copyOverlay(n.overlay(n.recipe.Overlay)); err != nil {
		return err
	}
	if err := n.kernel(); err != nil {
		return err
	}
	files, err := n.tree.files()
	if err != nil {
		return err
	}
	selected, err := n.selectFiles(ctx, files)
	if err != nil {
		return err
	}
	modules, err := n.selectModules(ctx, files)
	if err != nil {
		return err
	}
	n.steps.detail("compress %d files and %d kernel modules", len(selected), len(modules))
	if err := n.write(ctx, append(selected, modules...)); err != nil {
		return err
	}
	meta, err := json.Marshal(netbootMeta{KernelVersion: n.version, Packages: pkgs})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(n.out, fileMeta), meta, 0o644)
}

// wantedForNetboot leaves out early what no recipe could want and is large.
func wantedForNetboot(name string) bool {
	for _, prefix := range []string{"usr/share/doc/", "usr/share/man/", "usr/share/locale/", "usr/share/perl/", "usr/share/info/", "usr/lib/udev/hwdb.d/", "usr/lib/x86_64-linux-gnu/perl"} {
		if strings.HasPrefix(name, prefix) {
			return false
		}
	}
	return true
}

// kernel finds the one kernel that was unpacked and puts it beside the products.
func (n *netbootMaker) kernel() error {
	found, err := n.tree.glob("boot", "vmlinuz-*")
	if err != nil {
		return err
	}
	if len(found) != 1 {
		return &FieldError{"netboot.kernel", fmt.Sprintf("package %s and what it depends on bring %d kernels, want 1", n.recipe.Kernel, len(found))}
	}
	n.version = strings.TrimPrefix(path.Base(found[0]), "vmlinuz-")
	return n.tree.copyOut(found[0], filepath.Join(n.out, "vmlinuz"))
}

// matchFiles applies patterns of the field to files. A pattern that matches nothing is an error, because a
// program would be missing on a machine far away.
func matchFiles(field string, patterns, files []string) ([]string, error) {
	var selected []string
	for i, pattern := range patterns {
		m, err := compileGlobs([]string{merged(pattern)})
		if err != nil {
			return nil, &FieldError{fmt.Sprintf("%s[%d]", field, i), err.Error()}
		}
		before := len(selected)
		for _, f := range files {
			if m.match(f) {
				selected = append(selected, f)
			}
		}
		if len(selected) == before {
			return nil, &FieldError{fmt.Sprintf("%s[%d]", field, i), fmt.Sprintf("%q matches no file of the packages", pattern)}
		}
	}
	return selected, nil
}

// selectFiles applies the recipe's patterns and adds what the files need.
func (n *netbootMaker) selectFiles(ctx context.Context, files []string) ([]string, error) {
	selected, err := matchFiles("netboot.files", n.recipe.Files, files)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if strings.HasPrefix(f, "usr/lib/firmware/") {
			selected = append(selected, f)
		}
	}
	overlay, err := overlayFiles(n.overlay(n.recipe.Overlay))
	if err != nil {
		return nil, err
	}
	need, err := n.tree.closure(append(selected, overlay...), n.log)
	if err != nil {
		return nil, err
	}
	applets, err := n.applets(ctx, need)
	if err != nil {
		return nil, err
	}
	for _, a := range applets {
		need[a] = true
	}
	return sortedKeys(need), nil
}

const busybox = "usr/bin/busybox"

// applets makes a link for each of busybox's commands that no other package of the recipe provides.
func (n *netbootMaker) applets(ctx context.Context, need map[string]bool) ([]string, error) {
	if !need[busybox] {
		return nil, nil
	}
	list, err := n.tree.run(ctx, command{log: n.log}, busybox, "--list")
	if err != nil {
		return nil, err
	}
	var made []string
	for _, applet := range strings.Fields(list) {
		if need["usr/bin/"+applet] || need["usr/sbin/"+applet] || applet == "busybox" || strings.Contains(applet, "/") {
			continue
		}
		name := "usr/bin/" + applet
		_ = n.tree.root.Remove(name) // the same command of a package that is here for its libraries only
		if err := n.tree.root.Symlink("busybox", name); err != nil {
			return nil, err
		}
		made = append(made, name)
	}
	return made, nil
}

// selectModules keeps the wanted kernel modules and those they depend on, and has depmod write their indexes.
func (n *netbootMaker) selectModules(ctx context.Context, files []string) ([]string, error) {
	want, err := compileGlobs(n.recipe.Modules)
	if err != nil {
		return nil, &FieldError{"netboot.modules", err.Error()}
	}
	exclude, err := compileGlobs(n.recipe.ModulesExclude)
	if err != nil {
		return nil, &FieldError{"netboot.modulesExclude", err.Error()}
	}
	prefix := "usr/lib/modules/" + n.version + "/"
	n.steps.detail("find the dependencies of kernel modules")
	if err := n.depmod(ctx); err != nil {
		return nil, err
	}
	deps, err := n.readModulesDep(prefix + "modules.dep")
	if err != nil {
		return nil, err
	}
	keep := map[string]bool{}
	for module, needs := range deps {
		if name := uncompressed(module); want.match(name) && !exclude.match(name) {
			keep[module] = true
			for _, m := range needs {
				keep[m] = true
			}
		}
	}
	if len(keep) == 0 {
		return nil, &FieldError{"netboot.modules", fmt.Sprintf("match none of the %d modules of kernel %s", len(deps), n.version)}
	}
	for _, f := range files {
		if module, ok := strings.CutPrefix(f, prefix); ok && strings.HasPrefix(module, "kernel/") && !keep[module] {
			if err := n.tree.root.Remove(f); err != nil {
				return nil, err
			}
		}
	}
	if err := n.depmod(ctx); err != nil {
		return nil, err
	}
	var selected []string
	for m := range keep {
		selected = append(selected, prefix+m)
	}
	// The text forms are for people; modprobe and udev read the binary indexes.
	for _, f := range []string{"modules.dep.bin", "modules.alias.bin", "modules.symbols.bin", "modules.builtin.bin", "modules.builtin.alias.bin", "modules.softdep", "modules.devname", "modules.builtin", "modules.order", "modules.dep", "modules.alias"} {
		if _, err := n.tree.lstat(prefix + f); err == nil {
			selected = append(selected, prefix+f)
		}
	}
	slices.Sort(selected)
	return selected, nil
}

// uncompressed is the name of a kernel module without the suffix of its compression, which depends on the suite.
func uncompressed(module string) string {
	for _, suffix := range []string{".xz", ".zst", ".gz"} {
		module = strings.TrimSuffix(module, suffix)
	}
	return module
}

func (n *netbootMaker) depmod(ctx context.Context) error {
	_, err := n.tree.run(ctx, command{log: n.log}, "usr/sbin/depmod", n.version)
	return err
}

func (n *netbootMaker) readModulesDep(name string) (map[string][]string, error) {
	raw, err := n.tree.readFile(name)
	if err != nil {
		return nil, err
	}
	deps := map[string][]string{}
	for line := range strings.Lines(string(raw)) {
		module, needs, ok := strings.Cut(line, ":")
		if ok {
			deps[module] = strings.Fields(needs)
		}
	}
	return deps, nil
}

// write makes the compressed cpio.
func (n *netbootMaker) write(ctx context.Context, names []string) error {
	f, err := os.Create(filepath.Join(n.out, fileBase))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	z, err := newZstd(f)
	if err != nil {
		return err
	}
	c := newCPIO(z, n.date)
	for _, d := range []string{"dev", "proc", "sys", "run", "tmp", "root", "mnt", "etc", "var"} {
		if err := c.dir(d); err != nil {
			return err
		}
	}
	for _, l := range []string{"bin", "lib", "lib64", "sbin"} {
		if err := errors.Join(c.dir("usr/"+l), c.symlink(l, "usr/"+l)); err != nil {
			return err
		}
	}
	// The first program's standard streams: the kernel opens the console before devtmpfs is mounted.
	if err := errors.Join(c.device("dev/console", 0o600, 5, 1), c.device("dev/null", 0o666, 1, 3)); err != nil {
		return err
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := n.writeFile(c, name); err != nil {
			return err
		}
	}
	return errors.Join(c.close(), z.Close(), f.Close())
}

func (n *netbootMaker) writeFile(c *cpioWriter, name string) error {
	info, err := n.tree.lstat(name)
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		target, err := n.tree.readlink(name)
		if err != nil {
			return err
		}
		return c.symlink(name, target)
	}
	f, err := n.tree.open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return c.file(name, info.Mode(), info.Size(), f)
}

// initrd joins the base with the agent. The kernel unpacks one archive after the other, each
// compressed by itself, so a new agent does not touch the large part.
func (b *builder) initrd(ctx context.Context, base string, agent artefact) (string, error) {
	inputs := []any{filepath.Base(base), agent.Digest, b.recipe.SourceDate}
	dir, err := b.steps.run(ctx, "netboot-initrd", inputs, func(ctx context.Context, dir string) error {
		out, err := os.Create(filepath.Join(dir, "initrd.img"))
		if err != nil {
			return err
		}
		defer func() { _ = out.Close() }()
		baseSize, err := appendFile(out, filepath.Join(base, fileBase))
		if err != nil {
			return err
		}
		// The kernel finds the next archive at a multiple of 4 bytes.
		if _, err := out.Write(make([]byte, (4-baseSize%4)%4)); err != nil {
			return err
		}
		if err := b.agentCPIO(out, agent); err != nil {
			return err
		}
		return out.Close()
	})
	if err != nil {
		return "", err
	}
	st, err := os.Stat(filepath.Join(dir, "initrd.img"))
	if err != nil {
		return "", err
	}
	if limit := b.recipe.Netboot.MaxMiB << 20; st.Size() > limit {
		return "", &FieldError{"netboot.maxMiB", fmt.Sprintf("the discovery initramfs has %d bytes, more than %d MiB; leave out modules, firmware or files, or raise the limit", st.Size(), b.recipe.Netboot.MaxMiB)}
	}
	return dir, nil
}

func (b *builder) agentCPIO(w io.Writer, agent artefact) error {
	z, err := newZstd(w)
	if err != nil {
		return err
	}
	f, err := os.Open(agent.Path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	c := newCPIO(z, b.recipe.SourceDate)
	return errors.Join(
		c.file(agentPath, 0o755, agent.Size, f),
		c.symlink("init", agentPath),
		c.close(), z.Close())
}

// newZstd compresses for the kernel, which knows windows of up to 128 MiB; 8 MiB need less of a small
// machine's memory and cost little.
func newZstd(w io.Writer) (*zstd.Encoder, error) {
	return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithWindowSize(8<<20), zstd.WithEncoderCRC(true))
}

func overlayFiles(dir string) ([]string, error) {
	if dir == "" {
		return nil, nil
	}
	var names []string
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, file)
		names = append(names, merged(filepath.ToSlash(rel)))
		return err
	})
	return names, err
}

func appendFile(w io.Writer, file string) (int64, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	return io.Copy(w, f)
}

func copyFile(from, to string, perm fs.FileMode) error {
	raw, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, raw, perm)
}

func stringReader(s string) io.Reader { return bytes.NewReader([]byte(s)) }

func sortedKeys(m map[string]bool) []string {
	names := make([]string, 0, len(m))
	for n := range m {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}
