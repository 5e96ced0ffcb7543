package build

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"coldrack.dev/internal/content/bundle"
	"coldrack.dev/internal/content/diskfile"
	"coldrack.dev/internal/content/diskimage"
)

// MaxDisk bounds the raw size of a whole-disk image in bytes: a small file can unpack to anything.
const MaxDisk = 256 << 30

// Families of whole-disk images, by how they take a machine's configuration at their first boot.
const (
	FamilyCloudInit = "cloud-init"
	FamilyFlatcar   = "flatcar"
	FamilyFCOS      = "fcos"
)

// DiskOptions say which image becomes a bundle.
type DiskOptions struct {
	File string // the image, in a format of package diskfile
	Name string // of the Image, and of the bundle
	// Family is one of the Family constants; empty: told by the names of the partitions, or cloud-init.
	Family  string
	Version string // of the operating system
	Arch    string // "amd64" or "arm64"
	Out     string // the archive to write
	KeyPath string // signing key, made if there is none
	// Created goes into the bundle: of two of a name, the newer counts.
	Created  time.Time
	Progress func(done, total int64) // bytes of File, or of the raw disk of a qcow2
}

// DiskResult says what was made.
type DiskResult struct {
	Result
	Format  diskfile.Format   `json:"format"`
	Family  string            `json:"family"`
	RawSize int64             `json:"rawSize"` // bytes of the disk
	Stored  int64             `json:"stored"`  // bytes of its chunks
	Disk    bundle.DiskConfig `json:"disk"`
}

// Disk makes a bundle of one whole-disk image. It leaves the whole bundle or none, also when it is killed: what it works on has no name.
func Disk(ctx context.Context, opt DiskOptions) (DiskResult, error) {
	begun := time.Now()
	r, err := disk(ctx, opt)
	if err != nil {
		return r, fmt.Errorf("bundle disk image %s: %w", opt.File, err)
	}
	r.Elapsed = time.Since(begun)
	return r, nil
}

func disk(ctx context.Context, opt DiskOptions) (r DiskResult, err error) {
	switch opt.Family {
	case "", FamilyCloudInit, FamilyFlatcar, FamilyFCOS:
	default:
		return r, fmt.Errorf("family %q: want %s, %s or %s", opt.Family, FamilyCloudInit, FamilyFlatcar, FamilyFCOS)
	}
	file, err := diskfile.Open(opt.File)
	if err != nil {
		return r, err
	}
	defer func() { _ = file.Close() }()
	if file.Size > MaxDisk {
		return r, fmt.Errorf("its disk has %d bytes; at most %d are taken", file.Size, int64(MaxDisk))
	}
	r.Format = file.Format
	raw := progressReader{ctx: ctx, file: file, report: opt.Progress}
	head := make([]byte, diskfile.HeadSize)
	n, err := io.ReadFull(raw, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) || n == 0 {
		return r, fmt.Errorf("read its beginning: %w", err)
	}
	// Before hours of work: what is wrong with the table is wrong whatever follows. Where the size is not known, that is checked in the end.
	size := file.Size
	if size < 0 {
		size = MaxDisk
	}
	if _, err := diskfile.ReadTable(head[:n], size); err != nil {
		return r, err
	}
	key, created, err := bundle.LoadOrCreateKey(opt.KeyPath)
	if err != nil {
		return r, err
	}
	folder := filepath.Dir(opt.Out)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return r, fmt.Errorf("make the folder of --out %s: %w", opt.Out, err)
	}
	chunks, err := nameless(folder)
	if err != nil {
		return r, err
	}
	defer func() { _ = chunks.Close() }()
	idx, err := diskimage.EncodeAll(ctx, io.MultiReader(bytes.NewReader(head[:n]), raw), MaxDisk, chunks)
	if err != nil {
		return r, full(err, folder)
	}
	table, err := diskfile.ReadTable(head[:n], idx.Size)
	if err != nil {
		return r, err
	}
	if idx.Size%table.SectorSize != 0 {
		return r, fmt.Errorf("its disk has %d bytes, which is no multiple of its sectors of %d bytes; the file is cut short", idx.Size, table.SectorSize)
	}
	if r.Family, err = family(opt.Family, table); err != nil {
		return r, err
	}
	r.RawSize, r.Stored = idx.Size, idx.BlobSize
	r.Disk = bundle.DiskConfig{SectorSize: table.SectorSize}
	for _, p := range table.Partitions {
		r.Disk.Partitions = append(r.Disk.Partitions, p.Name)
	}
	if r.Disk.BIOS, r.Disk.UEFI = table.Starts(head[:n]); !r.Disk.BIOS && !r.Disk.UEFI {
		return r, errors.New("it has neither code in its first sector nor an EFI system partition, so no machine starts from it")
	}
	index, err := nameless(folder)
	if err != nil {
		return r, err
	}
	defer func() { _ = index.Close() }()
	if err := json.NewEncoder(index).Encode(idx); err != nil {
		return r, full(err, folder)
	}
	spec := bundle.Spec{Name: opt.Name, Created: opt.Created, Artifacts: []bundle.ArtifactSpec{{
		Kind: bundle.KindImage, Name: opt.Name,
		Config: bundle.ImageConfig{
			Name: opt.Name, Family: r.Family, Version: opt.Version, Arch: opt.Arch, Size: idx.Size, KernelArgs: []string{}, Disk: &r.Disk,
		},
		Files: []bundle.FileSpec{{Title: bundle.FileImageIndex, Path: pathOf(index)}, {Title: bundle.FileImageChunks, Path: pathOf(chunks)}},
	}}}
	if r.Summary, err = bundle.Pack(ctx, spec, key, opt.Out, nil); err != nil {
		return r, full(err, folder)
	}
	st, err := os.Stat(opt.Out)
	if err != nil {
		return r, err
	}
	r.Path, r.ArchiveSize, r.PublicKeyPath, r.KeyCreated = opt.Out, st.Size(), bundle.PublicKeyPath(opt.KeyPath), created
	return r, nil
}

// family of an image whose partitions are known. Flatcar and Fedora CoreOS have names of their own; whoever says a family must be right.
func family(said string, table *diskfile.Table) (string, error) {
	flatcar := table.Named("OEM") && table.Named("USR-A") && table.Named("ROOT")
	fcos := table.Named("boot") && table.Named("root") && table.Named("EFI-SYSTEM")
	switch {
	case said == FamilyFlatcar && !flatcar:
		return "", errors.New("family flatcar: it has no partitions OEM, USR-A and ROOT, which Flatcar has")
	case said == FamilyFCOS && !fcos:
		return "", errors.New("family fcos: it has no partitions boot, root and EFI-SYSTEM, which Fedora CoreOS has")
	case said != "":
		return said, nil
	case flatcar:
		return FamilyFlatcar, nil
	case fcos:
		return FamilyFCOS, nil
	}
	return FamilyCloudInit, nil
}

// nameless makes a file in folder that is gone when it is closed, and when this process dies.
func nameless(folder string) (*os.File, error) {
	f, err := os.CreateTemp(folder, ".coldrack-disk-")
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}

// pathOf opens a nameless file once more.
func pathOf(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

func full(err error, folder string) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w (%s needs room for twice what the image has compressed)", err, folder)
	}
	return err
}

// progressReader reads a disk, and can be interrupted.
type progressReader struct {
	ctx    context.Context
	file   *diskfile.File
	report func(done, total int64)
}

func (r progressReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := r.file.Read(p)
	if r.report != nil {
		r.report(r.file.Progress())
	}
	return n, err
}
