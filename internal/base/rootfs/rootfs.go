// Package rootfs finds files in the root file system of a system that does not run: unpacked packages, an image, a
// mounted disk. Symbolic links lead where they would lead after chroot(2): an absolute link starts at the root of the
// tree, and ".." stays inside it. os.Root alone refuses absolute links, which Debian's packages have.
package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
)

// maxLinks is how many links a path may have before it counts as a loop; Linux has the same limit.
const maxLinks = 40

// DanglingError is a symbolic link of the tree that leads to nothing inside it. It is fs.ErrNotExist.
type DanglingError struct {
	Link   string // path of the link in the tree, without a leading slash
	Target string // as the link has it
	Found  string // path in the tree where the target would be
}

func (e *DanglingError) Error() string {
	return fmt.Sprintf("%s is a symbolic link to %s, and the tree has no %s", e.Link, e.Target, e.Found)
}

func (e *DanglingError) Unwrap() error { return fs.ErrNotExist }

// Resolve returns the path of what name leads to, without links and without a leading slash ("." for the root of the
// tree), and every link on the way there. A name that does not exist is fs.ErrNotExist; where a link is to blame, the
// error is a DanglingError.
func Resolve(root *os.Root, name string) (target string, links []string, err error) {
	var last DanglingError // the link that was followed last
	todo := elements(name)
	for len(todo) > 0 {
		element := todo[0]
		todo = todo[1:]
		if element == ".." {
			target = path.Dir(target)
			if target == "." {
				target = ""
			}
			continue
		}
		at := path.Join(target, element)
		info, err := root.Lstat(at)
		if err != nil {
			return "", links, blame(err, last, path.Join(at, path.Join(todo...)))
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			target = at
			continue
		}
		if len(links) == maxLinks {
			return "", links, fmt.Errorf("%s: too many levels of symbolic links", name)
		}
		to, err := root.Readlink(at)
		if err != nil {
			return "", links, err
		}
		links = append(links, at)
		last = DanglingError{Link: at, Target: to}
		todo = append(elements(to), todo...)
		if path.IsAbs(to) {
			target = ""
		}
	}
	if target == "" {
		target = "."
	}
	return target, links, nil
}

// blame names the link that led to a path that does not exist.
func blame(err error, last DanglingError, found string) error {
	if last.Link == "" || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	last.Found = found
	return &last
}

func elements(name string) []string {
	var all []string
	for e := range strings.SplitSeq(name, "/") {
		if e != "" && e != "." {
			all = append(all, e)
		}
	}
	return all
}

// Open opens a file or folder for reading; links are followed.
func Open(root *os.Root, name string) (*os.File, error) {
	target, _, err := Resolve(root, name)
	if err != nil {
		return nil, err
	}
	return root.Open(target)
}

// ReadFile returns what a file contains; links are followed.
func ReadFile(root *os.Root, name string) ([]byte, error) {
	target, _, err := Resolve(root, name)
	if err != nil {
		return nil, err
	}
	return root.ReadFile(target)
}

// Place returns the path at which name itself lies: links in the folders above it are followed, name is not, and it
// need not exist.
func Place(root *os.Root, name string) (string, error) {
	clean := strings.TrimPrefix(path.Clean("/"+name), "/")
	if clean == "" {
		return ".", nil
	}
	folder, _, err := Resolve(root, path.Dir(clean))
	if err != nil {
		return "", err
	}
	return path.Join(folder, path.Base(clean)), nil
}

// MkdirAll makes a folder and those above it, and returns its path without links. A link to a folder of the tree stays
// a link.
func MkdirAll(root *os.Root, name string, perm fs.FileMode) (string, error) {
	made := "."
	for _, element := range elements(path.Clean("/" + name)) {
		at := path.Join(made, element)
		if err := root.Mkdir(at, perm); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
		target, _, err := Resolve(root, at)
		if err != nil {
			return "", err
		}
		info, err := root.Lstat(target)
		if err != nil {
			return "", err
		}
		if !info.IsDir() {
			return "", fmt.Errorf("%s: is a file, not a folder", at)
		}
		made = target
	}
	return made, nil
}
