package build

import (
	"archive/tar"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// tree is a folder that package files were unpacked into without running their scripts. Paths in it
// have no leading slash, and the folders that Debian merged lie below usr.
type tree struct {
	dir  string
	root *os.Root
}

func newTree(dir string) (*tree, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &tree{dir: dir, root: root}, nil
}

func (t *tree) close() { _ = t.root.Close() }

func (t *tree) path(name string) string { return filepath.Join(t.dir, filepath.FromSlash(name)) }

// merged maps /lib/x to /usr/lib/x and so on, as Debian's merged-/usr does.
func merged(name string) string {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	first, _, _ := strings.Cut(name, "/")
	switch first {
	case "bin", "sbin", "lib", "lib32", "lib64", "libx32":
		return "usr/" + name
	}
	return name
}

// unpack adds the files of a package for which want is true.
func (t *tree) unpack(ctx context.Context, deb string, want func(name string) bool) error {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	var complaint strings.Builder
	cmd.Stderr = &complaint
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("unpack %s: %w", filepath.Base(deb), err)
	}
	readErr := t.unpackTar(tar.NewReader(out), want)
	if readErr == nil {
		_, readErr = io.Copy(io.Discard, out)
	} else {
		_ = cmd.Process.Kill() // it would wait for a reader for ever
	}
	if err := cmd.Wait(); readErr == nil && err != nil {
		readErr = fmt.Errorf("%w: %s", err, strings.TrimSpace(complaint.String()))
	}
	if readErr != nil {
		return fmt.Errorf("unpack %s: %w", filepath.Base(deb), readErr)
	}
	return nil
}

func (t *tree) unpackTar(tr *tar.Reader, want func(string) bool) error {
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := merged(h.Name)
		if name == "" || !want(name) {
			continue
		}
		if err := t.add(name, h, tr); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
}

func (t *tree) add(name string, h *tar.Header, r io.Reader) error {
	mode := fs.FileMode(h.Mode) & fs.ModePerm
	if h.Typeflag == tar.TypeDir {
		return t.root.MkdirAll(name, 0o755)
	}
	if err := t.root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	if err := t.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg:
		f, err := t.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode|0o200)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		return errors.Join(err, f.Chmod(mode), f.Close())
	case tar.TypeSymlink:
		return t.root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		return t.root.Link(merged(h.Linkname), name)
	}
	return fmt.Errorf("is of type %q, which no package file should be", h.Typeflag)
}

// copyOverlay adds the files of a folder of the recipe.
func (t *tree) copyOverlay(overlay string) error {
	if overlay == "" {
		return nil
	}
	return filepath.WalkDir(overlay, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(overlay, file)
		if err != nil || rel == "." {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Mode: int64(info.Mode().Perm())}
		var r io.Reader = strings.NewReader("")
		switch {
		case d.IsDir():
			h.Typeflag = tar.TypeDir
		case info.Mode()&fs.ModeSymlink != 0:
			h.Typeflag = tar.TypeSymlink
			if h.Linkname, err = os.Readlink(file); err != nil {
				return err
			}
		default:
			f, err := os.Open(file)
			if err != nil {
				return err
			}
			defer func() { _ = f.Close() }()
			r = f
		}
		return t.add(merged(filepath.ToSlash(rel)), h, r)
	})
}

// files lists everything but folders, sorted.
func (t *tree) files() ([]string, error) {
	var names []string
	err := filepath.WalkDir(t.dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(t.dir, file)
		names = append(names, filepath.ToSlash(rel))
		return err
	})
	slices.Sort(names)
	return names, err
}

// follow resolves a name inside the tree, through links, to a file or folder; each link on the way is
// returned too.
func (t *tree) follow(name string) (target string, links []string, err error) {
	for range 20 {
		info, err := os.Lstat(t.path(name))
		if err != nil {
			return "", links, err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			return name, links, nil
		}
		links = append(links, name)
		to, err := os.Readlink(t.path(name))
		if err != nil {
			return "", links, err
		}
		if !path.IsAbs(to) {
			to = path.Join(path.Dir(name), to)
		}
		name = merged(to)
	}
	return "", links, fmt.Errorf("%s: too many links", name)
}

// libraryDirs is where the dynamic linker looks without a cache.
func libraryDirs() []string {
	return []string{"usr/lib/x86_64-linux-gnu", "usr/lib64", "usr/lib", "usr/lib/systemd", "usr/lib/x86_64-linux-gnu/systemd"}
}

// closure adds to names what they need: link targets, the dynamic linker and shared libraries.
func (t *tree) closure(names []string, log *slog.Logger) (map[string]bool, error) {
	need := map[string]bool{}
	todo := slices.Clone(names)
	for len(todo) > 0 {
		name := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if need[name] {
			continue
		}
		target, links, err := t.follow(name)
		if errors.Is(err, fs.ErrNotExist) {
			log.Debug("a link leads nowhere", "name", name)
			need[name] = true
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, l := range links {
			need[l] = true
		}
		if need[target] {
			continue
		}
		need[target] = true
		libs, err := t.libraries(target)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", target, err)
		}
		todo = append(todo, libs...)
	}
	return need, nil
}

// libraries are the files that an ELF program or library needs, none for any other file.
func (t *tree) libraries(name string) ([]string, error) {
	f, err := os.Open(t.path(name))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	magic := make([]byte, len(elf.ELFMAG))
	if n, _ := io.ReadFull(f, magic); n < len(magic) || string(magic) != elf.ELFMAG {
		return nil, nil
	}
	e, err := elf.NewFile(f)
	if err != nil {
		return nil, err
	}
	if e.Type == elf.ET_REL { // a kernel module
		return nil, nil
	}
	var found []string
	for _, p := range e.Progs {
		if p.Type == elf.PT_INTERP {
			b, err := io.ReadAll(io.LimitReader(p.Open(), 4096))
			if err != nil {
				return nil, err
			}
			found = append(found, merged(strings.TrimRight(string(b), "\x00")))
		}
	}
	needed, err := e.ImportedLibraries()
	if err != nil {
		return nil, err
	}
	for _, lib := range needed {
		at := slices.IndexFunc(libraryDirs(), func(dir string) bool {
			_, err := os.Lstat(t.path(path.Join(dir, lib)))
			return err == nil
		})
		if at < 0 {
			return nil, fmt.Errorf("needs %s, which no package of the recipe brings", lib)
		}
		found = append(found, path.Join(libraryDirs()[at], lib))
	}
	return found, nil
}

// run runs a program of the tree with the tree's own libraries, so that what a product is made with
// comes from the recipe's suite and need not be installed on the building machine.
func (t *tree) run(ctx context.Context, c command, program string, args ...string) (string, error) {
	target, _, err := t.follow(program)
	if err != nil {
		return "", err
	}
	linker, _, err := t.follow("usr/lib64/ld-linux-x86-64.so.2")
	if err != nil {
		return "", err
	}
	start := []string{"--argv0", path.Base(program), "--library-path", t.path(libraryDirs()[0]), t.path(target)}
	out, err := c.run(ctx, t.path(linker), append(start, args...)...)
	if err != nil {
		return out, fmt.Errorf("%s: %w", path.Base(program), err)
	}
	return out, nil
}
