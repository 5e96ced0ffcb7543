package build

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
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

	"coldrack.dev/internal/base/rootfs"
)

// tree is a folder that package files were unpacked into without running their scripts. Paths in it
// have no leading slash, and the folders that Debian merged lie below usr. Nothing in it is opened through the root of
// the building machine: links lead where they would lead if the tree were the root (package rootfs), and programs of
// the tree run with it as their root.
type tree struct {
	dir  string
	root *os.Root
}

// mergedFolders are those of the root that Debian's merged-/usr made links.
func mergedFolders() []string { return []string{"bin", "lib", "lib32", "lib64", "libx32", "sbin"} }

func newTree(dir string) (*tree, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	t := &tree{dir: dir, root: root}
	for _, folder := range mergedFolders() {
		if err := root.Symlink("usr/"+folder, folder); err != nil {
			t.close()
			return nil, err
		}
	}
	return t, nil
}

func (t *tree) close() { _ = t.root.Close() }

// hostPath is where a file that is made in the tree lies on the building machine. It is for names that no package
// brings: a link at it would be followed on the building machine.
func (t *tree) hostPath(name string) string { return filepath.Join(t.dir, filepath.FromSlash(name)) }

func (t *tree) open(name string) (*os.File, error)    { return rootfs.Open(t.root, name) }
func (t *tree) readFile(name string) ([]byte, error)  { return rootfs.ReadFile(t.root, name) }
func (t *tree) writeFile(name string, b []byte) error { return t.root.WriteFile(name, b, 0o644) }

// lstat describes the file or link at name itself.
func (t *tree) lstat(name string) (fs.FileInfo, error) {
	place, err := rootfs.Place(t.root, name)
	if err != nil {
		return nil, err
	}
	return t.root.Lstat(place)
}

// readlink returns the target of the link at name.
func (t *tree) readlink(name string) (string, error) {
	place, err := rootfs.Place(t.root, name)
	if err != nil {
		return "", err
	}
	return t.root.Readlink(place)
}

// glob lists what matches in a folder of the tree, sorted; a folder that is not there has nothing.
func (t *tree) glob(folder, pattern string) ([]string, error) {
	d, err := t.open(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = d.Close() }()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, name := range names {
		if ok, err := path.Match(pattern, name); err != nil {
			return nil, err
		} else if ok {
			found = append(found, path.Join(folder, name))
		}
	}
	slices.Sort(found)
	return found, nil
}

// copyOut copies a file of the tree to a path of the building machine.
func (t *tree) copyOut(name, to string) error {
	content, err := t.readFile(name)
	if err != nil {
		return err
	}
	return os.WriteFile(to, content, 0o644)
}

// merged maps /lib/x to /usr/lib/x and so on, as Debian's merged-/usr does.
func merged(name string) string {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	first, _, _ := strings.Cut(name, "/")
	if slices.Contains(mergedFolders(), first) {
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
		_, err := rootfs.MkdirAll(t.root, name, 0o755)
		return err
	}
	folder, err := rootfs.MkdirAll(t.root, path.Dir(name), 0o755)
	if err != nil {
		return err
	}
	name = path.Join(folder, path.Base(name))
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
		from, err := rootfs.Place(t.root, merged(h.Linkname))
		if err != nil {
			return err
		}
		return t.root.Link(from, name)
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

// files lists everything but folders and the links of merged-/usr, sorted.
func (t *tree) files() ([]string, error) {
	var names []string
	err := fs.WalkDir(t.root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !slices.Contains(mergedFolders(), name) {
			names = append(names, name)
		}
		return err
	})
	slices.Sort(names)
	return names, err
}

// follow resolves a name inside the tree, through links, to a file or folder; each link on the way is
// returned too, but not those of merged-/usr.
func (t *tree) follow(name string) (target string, links []string, err error) {
	target, links, err = rootfs.Resolve(t.root, name)
	return target, slices.DeleteFunc(links, func(l string) bool { return slices.Contains(mergedFolders(), l) }), err
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
			log.Debug("dangling symbolic link", "name", name)
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
	f, err := t.open(name)
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
		at := t.library(lib)
		if at == "" {
			return nil, fmt.Errorf("needs %s, which no package of the recipe brings", lib)
		}
		found = append(found, at)
	}
	opened, err := openedLibraries(e)
	if err != nil {
		return nil, err
	}
	for _, o := range opened {
		at := ""
		for _, lib := range o.Names {
			if at = t.library(lib); at != "" {
				found = append(found, at)
				break
			}
		}
		if at == "" && o.Priority == "required" {
			return nil, fmt.Errorf("opens %s for %s, which no package of the recipe brings", strings.Join(o.Names, " or "), o.Feature)
		}
	}
	return found, nil
}

// library finds a shared library by its name; "" when there is none.
func (t *tree) library(name string) string {
	for _, dir := range libraryDirs() {
		if _, err := t.lstat(path.Join(dir, name)); err == nil {
			return path.Join(dir, name)
		}
	}
	return ""
}

// openedLibrary is what a program opens while it runs, without being linked to it. Since systemd 257, udev loads kernel
// modules only if it can open libkmod, and kmod reads compressed modules only if it can open liblzma or libzstd; neither
// fails without.
type openedLibrary struct {
	Feature  string   `json:"feature"`
	Priority string   `json:"priority"` // required, recommended or suggested
	Names    []string `json:"soname"`   // the first that is there is taken
}

// openedLibraries reads the notes about them, leaving out what is only suggested (systemd.io/ELF_DLOPEN_METADATA).
func openedLibraries(e *elf.File) ([]openedLibrary, error) {
	section := e.Section(".note.dlopen")
	if section == nil {
		return nil, nil
	}
	raw, err := section.Data()
	if err != nil {
		return nil, err
	}
	return parseOpened(raw, e.ByteOrder)
}

func parseOpened(raw []byte, order binary.ByteOrder) ([]openedLibrary, error) {
	const noteType = 0x407c0c0a
	var found []openedLibrary
	padded := func(n uint32) int { return int(n+3) &^ 3 }
	for len(raw) >= 12 {
		nameSize, size, kind := order.Uint32(raw), order.Uint32(raw[4:]), order.Uint32(raw[8:])
		if nameSize > 1<<20 || size > 1<<20 || 12+padded(nameSize)+int(size) > len(raw) {
			return nil, errors.New("has a .note.dlopen that ends in the middle")
		}
		content := raw[12+padded(nameSize):][:size]
		raw = raw[min(len(raw), 12+padded(nameSize)+padded(size)):]
		if kind != noteType {
			continue
		}
		var opened []openedLibrary
		if err := json.Unmarshal(bytes.TrimRight(content, "\x00"), &opened); err != nil {
			return nil, fmt.Errorf(".note.dlopen: %w", err)
		}
		found = append(found, slices.DeleteFunc(opened, func(o openedLibrary) bool { return o.Priority == "suggested" })...)
	}
	return found, nil
}

// run runs a program of the tree, which sees the tree as its root: names among args are names in the tree. So what a
// product is made with comes from the recipe's suite, and need not be installed on the building machine.
func (t *tree) run(ctx context.Context, c command, program string, args ...string) (string, error) {
	if _, _, err := t.follow(program); err != nil {
		return "", err
	}
	c.root = t.dir
	return c.run(ctx, "/"+program, args...)
}
