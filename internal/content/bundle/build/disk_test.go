package build_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coldrack.dev/internal/content/bundle"
	"coldrack.dev/internal/content/bundle/build"
	"coldrack.dev/internal/content/diskimage"
	"coldrack.dev/test/require"
)

// rawDisk makes a disk with the named partitions and code in its first sector.
func rawDisk(t *testing.T, names ...string) (path string, raw []byte) {
	t.Helper()
	require.Need(t, "sgdisk")
	path = filepath.Join(t.TempDir(), "disk.raw")
	raw = make([]byte, 20<<20)
	copy(raw, bytes.Repeat([]byte{0xEB}, 400))
	copy(raw[9<<20:], bytes.Repeat([]byte("content "), 1000))
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	var args []string
	for i, name := range names {
		args = append(args, fmt.Sprintf("--new=%d:0:+1M", i+1), fmt.Sprintf("--change-name=%d:%s", i+1, name))
	}
	if out, err := exec.Command("sgdisk", append(args, path)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return path, raw
}

func diskOptions(t *testing.T, file string) build.DiskOptions {
	return build.DiskOptions{File: file, Name: "image", Version: "1", Arch: "amd64", Out: filepath.Join(t.TempDir(), "out.tar"),
		KeyPath: filepath.Join(t.TempDir(), "key"), Created: time.Unix(1_700_000_000, 0)}
}

// A bundle of a disk goes through all that verifies and imports bundles, and gives the disk back byte for byte.
func TestABundleOfADisk(t *testing.T) {
	require.Need(t, "gzip")
	path, raw := rawDisk(t, "EFI-SYSTEM", "USR-A", "OEM", "ROOT")
	if out, err := exec.Command("gzip", path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	opt := diskOptions(t, path+".gz")
	var done, total int64
	opt.Progress = func(d, all int64) {
		if d < done {
			t.Errorf("progress went back from %d to %d", done, d)
		}
		done, total = d, all
	}
	r, err := build.Disk(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	if r.Family != build.FamilyFlatcar || r.Format != "gzip" || r.RawSize != int64(len(raw)) || r.Stored > 64<<10 || !r.Disk.BIOS || r.Disk.UEFI || done != total {
		t.Errorf("%+v, progress %d of %d", r, done, total)
	}
	keys, err := bundle.LoadPublicKeys(r.PublicKeyPath)
	if err != nil {
		t.Fatal(err)
	}
	store, err := bundle.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bundle.Import(t.Context(), store, opt.Out, keys, nil); err != nil {
		t.Fatal(err)
	}
	artifact := store.Artifacts()[0]
	var config bundle.ImageConfig
	if err := json.Unmarshal(artifact.Config, &config); err != nil || config.Disk == nil || config.Disk.SectorSize != 512 || strings.Join(config.Disk.Partitions, " ") != "EFI-SYSTEM USR-A OEM ROOT" {
		t.Errorf("%v: %s", err, artifact.Config)
	}
	index, _, err := store.Open(artifact.Files[bundle.FileImageIndex].Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer index.Close()
	var idx diskimage.Index
	if err := json.NewDecoder(index).Decode(&idx); err != nil {
		t.Fatal(err)
	}
	blob, _, err := store.Open(idx.Blob)
	if err != nil {
		t.Fatal(err)
	}
	defer blob.Close()
	back, err := os.Create(filepath.Join(t.TempDir(), "back"))
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	if err := diskimage.Write(t.Context(), idx, diskimage.Blob{ReaderAt: blob}, back, diskimage.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(back.Name()); err != nil || sha256.Sum256(b) != sha256.Sum256(raw) {
		t.Errorf("the disk that comes out is another: %v", err)
	}
	// Zeros have no chunk: the first, the one with content, and the backup table's.
	if len(idx.Chunks) != 3 {
		t.Errorf("%d chunks are stored", len(idx.Chunks))
	}
}

func TestDisksThatAreRefused(t *testing.T) {
	path, raw := rawDisk(t, "EFI-SYSTEM", "boot", "root")
	for name, tt := range map[string]struct {
		change func(opt *build.DiskOptions, raw []byte) []byte
		want   string
	}{
		"a family with other partitions": {func(o *build.DiskOptions, b []byte) []byte { o.Family = build.FamilyFlatcar; return b }, "no partitions OEM, USR-A and ROOT"},
		"a family of no name":            {func(o *build.DiskOptions, b []byte) []byte { o.Family = "beos"; return b }, `family "beos": want`},
		"a disk that was cut short":      {func(_ *build.DiskOptions, b []byte) []byte { return b[:2<<20] }, "cut short?"},
		"half a sector too many":         {func(_ *build.DiskOptions, b []byte) []byte { return append(b, make([]byte, 256)...) }, "no multiple of its sectors"},
		"no way to start":                {func(_ *build.DiskOptions, b []byte) []byte { clear(b[:440]); return b }, "no machine starts from it"},
		"a file system":                  {func(_ *build.DiskOptions, b []byte) []byte { clear(b[:1<<20]); return b }, "no partition table"},
	} {
		if err := os.WriteFile(path, bytes.Clone(raw), 0o600); err != nil {
			t.Fatal(err)
		}
		opt := diskOptions(t, path)
		if err := os.WriteFile(path, tt.change(&opt, bytes.Clone(raw)), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := build.Disk(t.Context(), opt)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
		left, _ := os.ReadDir(filepath.Dir(opt.Out))
		if len(left) > 0 {
			t.Errorf("%s: left %v behind", name, left)
		}
	}
}

// TestMain: with the variable, the test binary is a program that makes a bundle, and stops in the middle.
func TestMain(m *testing.M) {
	file := os.Getenv("COLDRACK_TEST_DISK")
	if file == "" {
		os.Exit(m.Run())
	}
	_, err := build.Disk(context.Background(), build.DiskOptions{File: file, Name: "image", Version: "1", Arch: "amd64",
		Out: filepath.Join(os.Getenv("COLDRACK_TEST_OUT"), "out.tar"), KeyPath: file + ".key",
		Progress: func(done, _ int64) {
			if done > 15<<20 { // chunks are written by then
				fmt.Println("in the middle")
				select {}
			}
		}})
	fmt.Println(err)
	os.Exit(1)
}

func TestADiskWhoseBuilderIsKilled(t *testing.T) {
	path, _ := rawDisk(t, "EFI-SYSTEM", "boot", "root")
	out := t.TempDir()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "COLDRACK_TEST_DISK="+path, "COLDRACK_TEST_OUT="+out)
	said, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(said).ReadString('\n')
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err != nil || line != "in the middle\n" {
		t.Fatalf("%v: %s", err, line)
	}
	if left, err := os.ReadDir(out); err != nil || len(left) > 0 {
		t.Errorf("left %v behind: %v", left, err)
	}
}

// An import that is interrupted leaves nothing, whatever it was doing.
func TestADiskThatIsInterrupted(t *testing.T) {
	path, _ := rawDisk(t, "EFI-SYSTEM", "boot", "root")
	opt := diskOptions(t, path)
	ctx, stop := context.WithCancel(t.Context())
	opt.Progress = func(done, _ int64) {
		if done > 5<<20 {
			stop()
		}
	}
	if _, err := build.Disk(ctx, opt); err == nil {
		t.Fatal("it went through")
	}
	if left, err := os.ReadDir(filepath.Dir(opt.Out)); err != nil || len(left) > 0 {
		t.Errorf("left %v behind: %v", left, err)
	}
}
