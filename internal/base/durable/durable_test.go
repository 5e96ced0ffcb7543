package durable

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"coldrack.dev/test/require"
)

// TestAFullDiskKeepsTheOldFile writes on a file system that has no room left.
func TestAFullDiskKeepsTheOldFile(t *testing.T) {
	require.Need(t, "root")
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	path := filepath.Join(dir, "admin.kubeconfig")
	check(t, WriteFile(path, []byte("good"), 0o600))
	fill(t, filepath.Join(dir, "ballast"))

	writes := map[string]func(string, []byte, fs.FileMode) error{"write": WriteFile, "update": Update}
	for name, write := range writes {
		if err := write(path, []byte(strings.Repeat("x", 8<<10)), 0o600); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%s to a full disk: %v", name, err)
		}
		expect(t, path, "good")
		expectOnly(t, dir, "admin.kubeconfig", "ballast")
	}
	check(t, os.Remove(filepath.Join(dir, "ballast")))
	check(t, WriteFile(path, []byte("new"), 0o600))
	expect(t, path, "new")
}

// fill leaves no free block.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	check(t, err)
	defer f.Close()
	for block := make([]byte, 4<<10); ; {
		if _, err := f.Write(block); errors.Is(err, syscall.ENOSPC) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestAFailedWriteKeepsTheOldFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	check(t, WriteFile(path, []byte("old"), 0o600))
	broken := errors.New("download canceled")
	err := Write(path, 0o600, func(w io.Writer) error {
		_, err := w.Write([]byte("half"))
		return errors.Join(err, broken)
	})
	if !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	expect(t, path, "old")
	expectOnly(t, dir, "file")
}

func TestModeAndOwner(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	check(t, WriteFile(path, []byte("1"), 0o644))
	expectMode(t, path, 0o644)
	check(t, WriteFile(path, []byte("2"), 0o600))
	expectMode(t, path, 0o600)
	check(t, os.Chmod(path, 0o640))
	check(t, Update(path, []byte("3"), 0o600))
	expectMode(t, path, 0o600)
	check(t, Update(filepath.Join(dir, "new"), []byte("4"), 0o600))
	expectMode(t, filepath.Join(dir, "new"), 0o600)
	if os.Geteuid() != 0 {
		return
	}
	check(t, os.Chown(path, 1234, 5678))
	check(t, Update(path, []byte("5"), 0o600))
	expectOwner(t, path, 1234, 5678)
	check(t, WriteFile(path, []byte("6"), 0o600))
	expectOwner(t, path, 0, os.Getegid())
}

func TestLinks(t *testing.T) {
	dir := t.TempDir()
	target, link := filepath.Join(dir, "target"), filepath.Join(dir, "link")
	check(t, os.WriteFile(target, []byte("old"), 0o600))
	check(t, os.Symlink("target", link))
	check(t, Update(link, []byte("through"), 0o600))
	expect(t, target, "through")
	check(t, WriteFile(link, []byte("instead"), 0o600))
	expect(t, target, "through")
	expect(t, link, "instead")
	check(t, Update("/dev/null", []byte("gone"), 0o600))
	if info, err := os.Stat("/dev/null"); err != nil || info.Mode().IsRegular() {
		t.Errorf("/dev/null is %v now (%v)", info.Mode(), err)
	}
}

// TestRemainders shows that a crashed writer's file goes, and that a living writer's stays.
func TestRemainders(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	crashed, other := filepath.Join(dir, ".file.123"+suffix), filepath.Join(dir, ".file2.123"+suffix)
	check(t, errors.Join(os.WriteFile(crashed, nil, 0o600), os.WriteFile(other, nil, 0o600)))
	err := Write(path, 0o600, func(w io.Writer) error {
		if err := WriteFile(path, []byte("faster"), 0o600); err != nil {
			return err
		}
		_, err := w.Write([]byte("slower"))
		return err
	})
	check(t, err)
	expect(t, path, "slower")
	expectOnly(t, dir, ".file2.123"+suffix, "file")
}

func TestManyWritersOfOneFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	var all sync.WaitGroup
	for i := range 8 {
		content := strings.Repeat(string(rune('a'+i)), 10_000)
		all.Go(func() {
			for range 20 {
				if err := WriteFile(path, []byte(content), 0o600); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	b, err := os.ReadFile(path)
	check(t, err)
	if len(b) != 10_000 || strings.Trim(string(b), string(b[:1])) != "" {
		t.Errorf("%d bytes of several writers", len(b))
	}
	expectOnly(t, dir, "file")
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, path, content string) {
	t.Helper()
	if b, err := os.ReadFile(path); err != nil || string(b) != content {
		t.Errorf("%s holds %.40q (%v), want %q", path, b, err, content)
	}
}

func expectMode(t *testing.T, path string, mode fs.FileMode) {
	t.Helper()
	if info, err := os.Stat(path); err != nil || info.Mode() != mode {
		t.Errorf("mode %v (%v), want %v", info.Mode(), err, mode)
	}
}

func expectOwner(t *testing.T, path string, uid, gid int) {
	t.Helper()
	info, err := os.Stat(path)
	check(t, err)
	if s, ok := info.Sys().(*syscall.Stat_t); !ok || int(s.Uid) != uid || int(s.Gid) != gid {
		t.Errorf("owner %d:%d, want %d:%d", s.Uid, s.Gid, uid, gid)
	}
}

func expectOnly(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	check(t, err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(names, " ") {
		t.Errorf("%s holds %q, want %q", dir, got, names)
	}
}
