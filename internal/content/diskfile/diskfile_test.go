package diskfile_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"coldrack.dev/internal/content/diskfile"
	"coldrack.dev/test/require"
)

// disk is a small disk as images have them: a table, some data, and much that is zero.
func disk(t testing.TB) []byte {
	t.Helper()
	require.Need(t, "sgdisk")
	file := filepath.Join(t.TempDir(), "disk.raw")
	raw := make([]byte, 10<<20)
	noise := rand.NewChaCha8([32]byte{1})
	_, _ = noise.Read(raw[3<<20 : 4<<20])
	copy(raw[5<<20:], bytes.Repeat([]byte("text that compresses well "), 40000))
	_, _ = noise.Read(raw[len(raw)-2<<20 : len(raw)-1<<20])
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "sgdisk", "--new=1:2048:+1M", "--typecode=1:ef00", "--change-name=1:EFI-SYSTEM", "--new=6:0:+1M", "--change-name=6:OEM", "--new=9:0:0", "--change-name=9:ROOT", file)
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// sum reads a file to its end.
func sum(path string) (format diskfile.Format, digest string, err error) {
	f, err := diskfile.Open(path)
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err == nil && f.Size >= 0 && n != f.Size {
		err = fmt.Errorf("read %d bytes of a disk of %d", n, f.Size)
	}
	if done, total := f.Progress(); err == nil && (done == 0 || done > total) {
		err = fmt.Errorf("progress ends at %d of %d", done, total)
	}
	return f.Format, fmt.Sprintf("%x", h.Sum(nil)), err
}

// What the tools write that people publish images with is read, under a name that says nothing.
func TestFilesOfRealTools(t *testing.T) {
	raw := disk(t)
	want := fmt.Sprintf("%x", sha256.Sum256(raw))
	for name, tt := range map[string]struct {
		format diskfile.Format
		tool   []string // IN and OUT are replaced
	}{
		"raw":                   {diskfile.Raw, []string{"cp", "IN", "OUT"}},
		"gzip":                  {diskfile.Gzip, []string{"sh", "-c", "gzip -c IN > OUT"}},
		"two gzips in a row":    {diskfile.Gzip, []string{"sh", "-c", "(head -c 3000000 IN | gzip -c; tail -c +3000001 IN | gzip -c) > OUT"}},
		"bzip2":                 {diskfile.Bzip2, []string{"sh", "-c", "bzip2 -c IN > OUT"}},
		"xz":                    {diskfile.XZ, []string{"sh", "-c", "xz -0 -c IN > OUT"}},
		"xz by several threads": {diskfile.XZ, []string{"sh", "-c", "xz -0 -T2 --block-size=4MiB -c IN > OUT"}},
		"zstd":                  {diskfile.Zstd, []string{"sh", "-c", "zstd -q -c IN > OUT"}},
		"qcow2":                 {diskfile.QCOW2, []string{"qemu-img", "convert", "-f", "raw", "-O", "qcow2", "IN", "OUT"}},
		"qcow2, compressed":     {diskfile.QCOW2, []string{"qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "IN", "OUT"}},
		"qcow2, zstd":           {diskfile.QCOW2, []string{"qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", "IN", "OUT"}},
		"qcow2 of version 2":    {diskfile.QCOW2, []string{"qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compat=0.10", "IN", "OUT"}},
		"qcow2, small clusters": {diskfile.QCOW2, []string{"qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=512", "IN", "OUT"}},
		"qcow2, large clusters": {diskfile.QCOW2, []string{"qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=2M", "IN", "OUT"}},
		// The cluster keeps its place, with what was written before.
		"qcow2, zeros by a flag":  {diskfile.QCOW2, []string{"sh", "-c", "qemu-img convert -f raw -O qcow2 IN OUT && qemu-io -f qcow2 -c 'write -q -P 171 6656k 64k' -c 'write -q -z 6656k 64k' OUT"}},
		"qcow2, all preallocated": {diskfile.QCOW2, []string{"qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", "preallocation=full", "IN", "OUT"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tt.tool[0] == "sh" {
				require.Need(t, strings.Fields(strings.TrimLeft(tt.tool[2], "("))[0])
			} else {
				require.Need(t, tt.tool[0])
			}
			dir := t.TempDir()
			in, out := filepath.Join(dir, "in"), filepath.Join(dir, "image.txt")
			if err := os.WriteFile(in, raw, 0o600); err != nil {
				t.Fatal(err)
			}
			var args []string
			for _, a := range tt.tool {
				args = append(args, strings.NewReplacer("IN", in, "OUT", out).Replace(a))
			}
			run(t, args[0], args[1:]...)
			format, got, err := sum(out)
			if err != nil || format != tt.format || got != want {
				t.Fatalf("%s, %v; want %s; the same bytes: %v", format, err, tt.format, got == want)
			}
			// One that was cut short while it was copied is never taken for a whole one.
			whole, err := os.ReadFile(out)
			if err != nil || tt.format == diskfile.Raw {
				return
			}
			if err := os.WriteFile(out, whole[:len(whole)*2/3], 0o600); err != nil {
				t.Fatal(err)
			}
			if _, _, err := sum(out); err == nil {
				t.Error("a file that ends too early was read without an error")
			}
		})
	}
}

// A qcow2 that is not the whole disk by itself is refused before anything is read.
func TestQCOW2ThatNeedsMore(t *testing.T) {
	require.Need(t, "qemu-img")
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", at("base"), "8M")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", at("base"), "-F", "qcow2", at("backing"))
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+at("data")+",data_file_raw=on", at("external"), "8M")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=128k", at("extended"), "8M")
	// qemu-img measures the CPU to encrypt, which a busy machine does not allow: QEMU's old encryption, by its number in the header.
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", at("encrypted"), "8M")
	b, err := os.ReadFile(at("encrypted"))
	if err != nil {
		t.Fatal(err)
	}
	b[35] = 1
	if err := os.WriteFile(at("encrypted"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("qemu-img", "info", at("encrypted")).CombinedOutput(); !strings.Contains(string(out), "encrypted: yes") {
		t.Fatalf("%v: %s", err, out)
	}
	for name, want := range map[string]string{
		"backing": "it has a backing file", "external": "its data is in another file", "extended": "extended L2 entries", "encrypted": "it is encrypted",
	} {
		if _, _, err := sum(at(name)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
}

func TestOthersAreRefusedWithAdvice(t *testing.T) {
	dir := t.TempDir()
	tar := make([]byte, 1024)
	copy(tar[257:], "ustar")
	for name, tt := range map[string]struct {
		content []byte
		want    string
	}{
		"nothing":               {nil, "is empty"},
		"a tar archive":         {tar, "is a tar archive: unpack it"},
		"a ZIP archive":         {[]byte("PK\x03\x04aaaa"), "is a ZIP archive"},
		"a VMDK":                {[]byte("KDMV\x01"), "qemu-img convert"},
		"a broken gzip":         {[]byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03garbage"), "gzip"},
		"qcow2 without its end": {[]byte("QFI\xfb\x00\x00\x00\x03"), "cut short"},
	} {
		path := filepath.Join(dir, "file")
		if err := os.WriteFile(path, tt.content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := sum(path); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
	if _, err := diskfile.Open(dir); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Error(err)
	}
}

func TestReadTable(t *testing.T) {
	raw := disk(t)
	table, err := diskfile.ReadTable(raw[:diskfile.HeadSize], int64(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	if table.SectorSize != 512 || len(table.Partitions) != 3 || !table.Named("OEM") || table.Named("USR-A") ||
		table.Partitions[0].Type != diskfile.TypeESP || table.Partitions[1].Number != 6 {
		t.Errorf("%+v", table)
	}
	if bios, uefi := table.Starts(raw); bios || !uefi {
		t.Errorf("starts by BIOS: %v, by UEFI: %v", bios, uefi)
	}
	for name, tt := range map[string]struct {
		change func(head []byte)
		size   int64
		want   string
	}{
		"a header that was changed": {func(h []byte) { h[512+40]++ }, int64(len(raw)), "checksum of the header"},
		"an entry that was changed": {func(h []byte) { h[1024+60]++ }, int64(len(raw)), "checksum of the entries"},
		"a disk that was cut short": {func([]byte) {}, int64(len(raw)) - 3<<20, "cut short?"},
		"an MBR":                    {func(h []byte) { clear(h[512:]) }, int64(len(raw)), "MBR partition table"},
		"no table at all":           {func(h []byte) { clear(h) }, int64(len(raw)), "no partition table"},
	} {
		head := bytes.Clone(raw[:diskfile.HeadSize])
		tt.change(head)
		if _, err := diskfile.ReadTable(head, tt.size); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

// FuzzQCOW2 feeds hostile files: an error or a disk of the size that the header says, in bounded memory.
func FuzzQCOW2(f *testing.F) {
	head := make([]byte, 112)
	copy(head, "QFI\xfb\x00\x00\x00\x03")
	binary.BigEndian.PutUint32(head[20:], 9)
	binary.BigEndian.PutUint64(head[24:], 1<<12)
	binary.BigEndian.PutUint32(head[36:], 1)
	binary.BigEndian.PutUint64(head[40:], 512)
	binary.BigEndian.PutUint32(head[100:], 112)
	file := make([]byte, 2048)
	copy(file, head)
	binary.BigEndian.PutUint64(file[512:], 1024)
	binary.BigEndian.PutUint64(file[1024:], 1536)
	binary.BigEndian.PutUint64(file[1032:], 1<<62|1536)
	f.Add(file)
	f.Add(head)
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, content []byte) {
		file, err := os.CreateTemp(dir, "")
		if err != nil {
			t.Fatal(err)
		}
		defer os.Remove(file.Name())
		if _, err := file.Write(content); err != nil {
			t.Fatal(err)
		}
		if err := file.Close(); err != nil {
			t.Fatal(err)
		}
		d, err := diskfile.Open(file.Name())
		if err != nil || d.Format != diskfile.QCOW2 {
			return
		}
		defer d.Close()
		if n, err := io.Copy(io.Discard, io.LimitReader(d, 1<<20)); err == nil && n != min(d.Size, 1<<20) {
			t.Fatalf("%d bytes of a disk of %d: %v", n, d.Size, errors.New("short"))
		}
	})
}
