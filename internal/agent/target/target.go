// Package target applies a node's configuration to the mounted root file system of a system that does
// not run. Whatever links an image contains, nothing outside that root can be reached: every access goes
// through an os.Root.
package target

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"strconv"
	"strings"

	"coldrack.dev/internal/contract/nodeconfig"
)

// Target is a mounted root file system.
type Target struct {
	root *os.Root
	log  *slog.Logger
	temp int
}

// Open begins work on the system mounted at dir.
func Open(dir string, log *slog.Logger) (*Target, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open the new system: %w", err)
	}
	return &Target{root: root, log: log}, nil
}

// Close ends it.
func (t *Target) Close() error { return t.root.Close() }

// Apply carries operations out, in order. Doing it again changes nothing.
func (t *Target) Apply(ops []nodeconfig.Op) error {
	for _, op := range ops {
		if err := t.apply(op); err != nil {
			what := op.Path + op.Unit + op.Login.Name
			if errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "escapes") {
				return fmt.Errorf("%s %s: %w", op.Kind, what, err)
			}
			return fmt.Errorf("%s %s: %w (the image has a symbolic link on this path that leads out of it)", op.Kind, what, err)
		}
	}
	return nil
}

func (t *Target) apply(op nodeconfig.Op) error {
	switch op.Kind {
	case nodeconfig.WriteFile:
		return t.WriteFile(op.Path, op.Content, op.Mode, op.Owner)
	case nodeconfig.MakeDir:
		return t.makeDir(op.Path, op.Mode, op.Owner)
	case nodeconfig.MakeLink:
		return t.link(op.Path, op.Target)
	case nodeconfig.Remove:
		return t.root.RemoveAll(rel(op.Path))
	case nodeconfig.MakeUser:
		return t.user(op.Login)
	case nodeconfig.EnableUnit:
		return t.enable(op.Unit, op.Optional, map[string]bool{})
	case nodeconfig.MaskUnit:
		return t.link("/etc/systemd/system/"+op.Unit, "/dev/null")
	}
	return fmt.Errorf("unknown operation %q", op.Kind)
}

// rel is a path within the root.
func rel(p string) string {
	if p = strings.TrimLeft(path.Clean("/"+p), "/"); p == "" {
		return "."
	}
	return p
}

// WriteFile writes a file by way of a new one beside it: a link at its place is replaced, not followed,
// and there is never half a file.
func (t *Target) WriteFile(name string, content []byte, mode uint32, owner string) error {
	return t.replace(name, mode, owner, func(f *os.File) error {
		_, err := f.Write(content)
		return err
	})
}

// CopyFile copies a file of the running system into the new one.
func (t *Target) CopyFile(from, to string, mode uint32) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	return t.replace(to, mode, "root:root", func(f *os.File) error {
		_, err := io.Copy(f, in)
		return err
	})
}

func (t *Target) replace(name string, mode uint32, owner string, write func(*os.File) error) error {
	uid, gid, err := t.owner(owner)
	if err != nil {
		return err
	}
	p := rel(name)
	if err := t.root.MkdirAll(path.Dir(p), 0o755); err != nil {
		return err
	}
	temp := t.beside(p)
	f, err := t.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = write(f)
	// Chown first: it clears the set-user-ID bit that the mode may have.
	err = errors.Join(err, f.Chown(uid, gid), f.Chmod(fileMode(mode)), f.Close())
	if err == nil {
		err = t.root.Rename(temp, p)
	}
	if err != nil {
		_ = t.root.Remove(temp)
	}
	return err
}

// fileMode turns the twelve bits of chmod(2) into Go's.
func fileMode(m uint32) fs.FileMode {
	mode := fs.FileMode(m & 0o777)
	for bit, flag := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if m&bit != 0 {
			mode |= flag
		}
	}
	return mode
}

func (t *Target) beside(p string) string {
	t.temp++
	return path.Join(path.Dir(p), fmt.Sprintf(".coldrack-new-%d", t.temp))
}

func (t *Target) makeDir(name string, mode uint32, owner string) error {
	uid, gid, err := t.owner(owner)
	if err != nil {
		return err
	}
	p := rel(name)
	if err := t.root.MkdirAll(p, 0o755); err != nil {
		return err
	}
	return errors.Join(t.root.Chown(p, uid, gid), t.root.Chmod(p, fileMode(mode)))
}

func (t *Target) link(name, to string) error {
	p := rel(name)
	if err := t.root.MkdirAll(path.Dir(p), 0o755); err != nil {
		return err
	}
	temp := t.beside(p)
	if err := t.root.Symlink(to, temp); err != nil {
		return err
	}
	if err := t.root.Rename(temp, p); err != nil {
		_ = t.root.Remove(temp)
		return err
	}
	return nil
}

// Read follows links the way the running system would: an absolute one starts at the new root.
func (t *Target) Read(name string) ([]byte, error) {
	p, err := t.resolve(name)
	if err != nil {
		return nil, err
	}
	return t.root.ReadFile(p)
}

// resolve follows the last element of a path only; os.Root follows the others, and refuses to leave.
func (t *Target) resolve(name string) (string, error) {
	p := rel(name)
	for range 16 {
		to, err := t.root.Readlink(p)
		if err != nil {
			return p, nil // no link; whether it exists is for the caller to find out
		}
		if path.IsAbs(to) {
			p = rel(to)
		} else {
			p = rel(path.Join("/", path.Dir(p), to))
		}
	}
	return "", fmt.Errorf("%s: too many levels of symbolic links", name)
}

// Exists says whether a path is there, links followed.
func (t *Target) Exists(name string) bool {
	p, err := t.resolve(name)
	if err != nil {
		return false
	}
	_, err = t.root.Stat(p)
	return err == nil
}

// Glob lists the names in a folder that match a pattern of path.Match.
func (t *Target) Glob(dir, pattern string) []string {
	var out []string
	entries, err := fs.ReadDir(t.root.FS(), rel(dir))
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if ok, _ := path.Match(pattern, e.Name()); ok {
			out = append(out, e.Name())
		}
	}
	return out
}

// owner resolves "user:group" by the new system's own files.
func (t *Target) owner(s string) (uid, gid int, err error) {
	if s == "" || s == "root:root" {
		return 0, 0, nil
	}
	user, group, _ := strings.Cut(s, ":")
	if uid, err = t.id("/etc/passwd", user); err != nil {
		return 0, 0, fmt.Errorf("owner %q: %w", s, err)
	}
	if gid, err = t.id("/etc/group", group); err != nil {
		return 0, 0, fmt.Errorf("owner %q: %w", s, err)
	}
	return uid, gid, nil
}

func (t *Target) id(file, name string) (int, error) {
	db, err := t.readDB(file)
	if err != nil {
		return 0, err
	}
	i := db.find(name)
	if i < 0 || len(db.lines[i]) < 3 {
		return 0, fmt.Errorf("the new system's %s has no %q", file, name)
	}
	return strconv.Atoi(db.lines[i][2])
}

// errMasked is an error that says that the image masks a unit.
var errMasked = errors.New("masked in the image")

// enable does what systemctl enable would, with the units named by Also=.
func (t *Target) enable(unit string, optional bool, seen map[string]bool) error {
	if seen[unit] {
		return nil
	}
	seen[unit] = true
	file, content, err := t.findUnit(nodeconfig.UnitFile(unit))
	if err != nil {
		if optional && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, errMasked)) {
			t.log.Warn("optional unit is not enabled: the image lacks or masks it", "unit", unit, "err", err)
			return nil
		}
		return err
	}
	links, also := nodeconfig.Enable(unit, file, content)
	if len(links)+len(also) == 0 {
		t.log.Warn("cannot enable a unit: it has no WantedBy or RequiredBy", "unit", unit)
	}
	for _, l := range links {
		if err := t.link(l.Path, l.Target); err != nil {
			return err
		}
	}
	for _, other := range also {
		if err := t.enable(other, true, seen); err != nil {
			return err
		}
	}
	return nil
}

func (t *Target) findUnit(name string) (file string, content []byte, err error) {
	folders := nodeconfig.UnitFolders()
	for _, dir := range folders {
		file := path.Join(dir, name)
		if to, err := t.root.Readlink(rel(file)); err == nil && to == "/dev/null" {
			return "", nil, fmt.Errorf("%s is %w", name, errMasked)
		}
		content, err := t.Read(file)
		if err == nil {
			return file, content, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", nil, err
		}
	}
	return "", nil, fmt.Errorf("the image has no unit %s, in none of %s: %w", name, strings.Join(folders, ", "), fs.ErrNotExist)
}
