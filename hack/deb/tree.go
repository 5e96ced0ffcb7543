package main

import (
	"bytes"
	"compress/gzip"
	"crypto/md5"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// entry is one file of a package.
type entry struct {
	mode fs.FileMode // permission bits
	data []byte
}

// tree is what a package holds, by path without a leading slash. Folders follow from the paths; all are root's, mode 0755.
type tree map[string]entry

func (t tree) add(name string, mode fs.FileMode, data []byte) { t[name] = entry{mode, data} }

// addFile adds a file of the repository.
func (t tree) addFile(name string, mode fs.FileMode, from string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	t.add(name, mode, data)
	return nil
}

// addFolder adds all files below a folder of the repository.
func (t tree) addFolder(name, from string) error {
	return filepath.WalkDir(from, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(from, file)
		if err != nil {
			return err
		}
		return t.addFile(path.Join(name, filepath.ToSlash(rel)), 0o644, file)
	})
}

// addCompressed adds a file as Debian wants changelogs and manual pages: at the highest level, without name and time.
func (t tree) addCompressed(name string, data []byte) error {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := w.Write(data); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	t.add(name+".gz", 0o644, b.Bytes())
	return nil
}

// names are the paths in their order.
func (t tree) names() []string { return slices.Sorted(maps.Keys(t)) }

// installedSize is what dpkg and apt are told, in KiB: each file rounded up, and one for each folder (Debian policy 5.6.20).
func (t tree) installedSize() int {
	size := 0
	folders := map[string]bool{}
	for name, e := range t {
		size += (len(e.data) + 1023) / 1024
		for dir := path.Dir(name); !folders[dir]; dir = path.Dir(dir) {
			folders[dir] = true
		}
	}
	return size + len(folders)
}

func (t tree) md5sums() []byte {
	var b bytes.Buffer
	for _, name := range t.names() {
		fmt.Fprintf(&b, "%x  %s\n", md5.Sum(t[name].data), name)
	}
	return b.Bytes()
}

// write makes the files and folders below root, all with one time and with modes that do not depend on the umask.
func (t tree) write(root string, when time.Time) error {
	for _, name := range t.names() {
		file := filepath.Join(root, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, t[name].data, 0o644); err != nil {
			return err
		}
		if err := os.Chmod(file, t[name].mode); err != nil {
			return err
		}
		if err := os.Chtimes(file, when, when); err != nil {
			return err
		}
	}
	var folders []string
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			folders = append(folders, file)
		}
		return err
	})
	for _, folder := range folders {
		err = errors.Join(err, os.Chmod(folder, 0o755), os.Chtimes(folder, when, when))
	}
	return err
}

// pack makes the package of a tree and its control files, and returns its path in folder out. A plain one is not compressed.
func pack(name, version, arch, out string, files, control tree, when time.Time, plain bool) (string, error) {
	stage, err := os.MkdirTemp("", "coldrack-deb")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(stage)
	all := maps.Clone(files)
	for file, e := range control {
		all["DEBIAN/"+file] = e
	}
	all.add("DEBIAN/md5sums", 0o644, files.md5sums())
	if err := all.write(stage, when); err != nil {
		return "", err
	}
	deb := filepath.Join(out, fmt.Sprintf("%s_%s_%s.deb", name, version, arch))
	// One thread: what xz writes depends on how many there are. Level 1 is a third of level 6's time for a tenth more bytes.
	compression := []string{"--threads-max=1", "-Zxz", "-z1"}
	if plain {
		compression = []string{"-Znone"}
	}
	cmd := exec.Command("dpkg-deb", append(compression, "--root-owner-group", "--build", stage, deb)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C.UTF-8", "TZ=UTC", fmt.Sprintf("SOURCE_DATE_EPOCH=%d", when.Unix())}
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("dpkg-deb for %s: %w\n%s", name, err, strings.TrimSpace(string(text)))
	}
	return deb, nil
}
