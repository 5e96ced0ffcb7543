package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"coldrack.dev/internal/agent/fat"
	"coldrack.dev/internal/agent/gpt"
	"coldrack.dev/internal/agent/identity"
	"coldrack.dev/internal/agent/probe"
	"coldrack.dev/internal/agent/target"
	"coldrack.dev/internal/content/diskboot"
	"coldrack.dev/internal/content/diskimage"
	"coldrack.dev/internal/contract/nodeconfig"
	"coldrack.dev/internal/contract/wire"
)

// A whole-disk image brings its partitions and its boot loader along. It is written with its beginning held back: the first sector and
// the partition table come last, when all else is on the medium, so that no firmware ever starts half an image. Until then the disk has
// an empty partition table with our marker, by which the next boot knows it as ours.
//
// To the image's partitions one is added, at the disk's end: it has the label by which local.efi and local.lkrn find installed disks.

// Families of images.
const (
	familyDebian    = "debian"
	familyCloudInit = "cloud-init"
	familyFlatcar   = "flatcar"
	familyFCOS      = "fcos"
)

// whole is what is known of a whole-disk image before it is written.
type whole struct {
	table *gpt.Table // of the image
	head  []byte     // what is held back
	esp   int        // number of the EFI system partition, 0 for none
}

func (o *operation) wholeDisk() bool { return o.plan.Image.Family != familyDebian }

// addedBytes is the size of the added partition: FAT32 has a least number of clusters, which are sectors at least.
func addedBytes(sector int64) int64 { return 40 << 20 * (sector / 512) }

func (o *operation) checkFamily() error {
	image, first := o.plan.Image, o.plan.FirstBoot
	switch image.Family {
	case familyDebian:
		return nil
	case familyCloudInit:
		if first != nil && first.NoCloud != nil {
			return nil
		}
	case familyFlatcar, familyFCOS:
		if first != nil && first.Ignition != nil {
			return nil
		}
	default:
		return fmt.Errorf("image %s is of family %q, which this agent cannot install; it knows debian, cloud-init, flatcar and fcos", image.Name, image.Family)
	}
	return fmt.Errorf("image %s is of family %s, and the plan does not say what it is to be told at its first boot: the server is of another version than the discovery system", image.Name, image.Family)
}

// lookAtImage reads the image's partition table, before the disk is touched.
func (o *operation) lookAtImage(ctx context.Context) error {
	name := o.plan.Image.Name
	if len(o.index.Chunks) == 0 || o.index.Chunks[0].Offset != 0 {
		return fmt.Errorf("image %s begins with zeros: it is no whole disk", name)
	}
	first := o.index.Chunks[0]
	stored, err := o.Content.Blob("image "+name, o.index.Blob).ReadChunk(ctx, first)
	if err != nil {
		return err
	}
	head, err := first.Unpack(stored)
	if err != nil {
		return fmt.Errorf("image %s: first chunk: %w", name, err)
	}
	w := &whole{}
	for _, sector := range []int64{512, 4096} {
		if w.table, err = gpt.Read(beginning(head), o.index.Size, sector); !errors.Is(err, gpt.ErrNone) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("image %s: %w", name, err)
	}
	w.head = head[:w.table.Reserved()]
	for _, p := range w.table.Partitions {
		if p.Type.String() == gpt.TypeESP && w.esp == 0 {
			w.esp = p.Number
		}
	}
	code := slices.ContainsFunc(w.head[:440], func(b byte) bool { return b != 0 })
	switch {
	case o.inv.Firmware == "UEFI" && w.esp == 0:
		return fmt.Errorf("image %s has no EFI system partition, and this machine starts by UEFI: set its firmware to BIOS, or choose another image", name)
	case o.inv.Firmware == "BIOS" && !code:
		return fmt.Errorf("image %s has no code in its first sector, and this machine starts by BIOS: set its firmware to UEFI, or choose another image", name)
	}
	o.whole = w
	return nil
}

// beginning reads the first bytes of a disk, and nothing behind them.
type beginning []byte

func (b beginning) ReadAt(p []byte, at int64) (int, error) {
	if at < 0 || at >= int64(len(b)) {
		return 0, io.EOF
	}
	n := copy(p, b[at:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// needsWhole is how large a disk must be: both partition tables and the added partition come to the image.
func (o *operation) needsWhole() int64 {
	return o.plan.Image.Size + addedBytes(o.whole.table.SectorSize) + 4<<20
}

func (o *operation) checkSectors() error {
	if have, want := o.disk.sector, o.whole.table.SectorSize; have != want {
		return fmt.Errorf("disk %s has sectors of %d bytes, and image %s is made for sectors of %d: choose another disk, or the image's other variant", describe(o.choice), have, o.plan.Image.Name, want)
	}
	return nil
}

// reserve writes the empty table that marks the disk as ours.
func (o *operation) reserve(context.Context) (string, error) {
	if err := o.table.Write(o.disk); err != nil {
		return "", err
	}
	if err := o.disk.flush(); err != nil {
		return "", fmt.Errorf("flush disk %s: %w", o.disk.name, err)
	}
	if err := o.disk.forgetPartitions(); err != nil {
		return "", err
	}
	return fmt.Sprintf("GPT %s, empty until the image is complete", o.table.DiskGUID), nil
}

func (o *operation) noFilesystem(context.Context) (string, error) { return "part of the image", nil }

// heldBack is a disk whose beginning is not written.
type heldBack struct {
	io.WriterAt
	from int64
}

func (h heldBack) WriteAt(p []byte, at int64) (int, error) {
	skip := min(max(h.from-at, 0), int64(len(p)))
	if skip == int64(len(p)) {
		return len(p), nil
	}
	n, err := h.WriterAt.WriteAt(p[skip:], at+skip)
	return n + int(skip), err
}

// diskImage streams the image onto the disk, verified chunk by chunk and as a whole, without its beginning.
func (o *operation) diskImage(ctx context.Context) (string, error) {
	grown, err := o.whole.table.Grown(gpt.Marker(o.intentID), o.disk.size, gpt.Want{
		Name: gpt.NameDisk, Type: gpt.TypeLinux, GUID: gpt.Derive(o.intentID, "added"), Bytes: addedBytes(o.disk.sector),
	})
	if err != nil {
		return "", fmt.Errorf("image %s on disk %s: %w", o.plan.Image.Name, describe(o.choice), err)
	}
	o.table = grown
	added := grown.Partitions[len(grown.Partitions)-1]
	began := o.Now()
	ahead := 4
	if memoryAvailable() < 512<<20 {
		ahead = 2
	}
	o.bytes(wire.StepImage, 0, o.index.Size)
	err = diskimage.Write(ctx, o.index, o.chunks(ctx, o.disk.File, grown.Start(added)), heldBack{o.disk, int64(len(o.whole.head))}, diskimage.WriteOptions{
		Ahead: ahead,
		Zero: func(offset, n int64) error {
			if offset < int64(len(o.whole.head)) {
				return errors.ErrUnsupported
			}
			return rangeIoctl(o.disk.File, blkZeroOut, offset, n)
		},
		Progress: func(p diskimage.Progress) { o.bytes(wire.StepImage, p.Raw, o.index.Size) },
	})
	if err == nil {
		o.message(wire.StepImage, "flushing to the disk")
		// The image's own backup table is now in the middle of the disk, where nothing may find it.
		tail := o.index.Size - (o.whole.table.Reserved() - o.disk.sector)
		if inUse := slices.ContainsFunc(grown.Partitions, func(p gpt.Partition) bool {
			return grown.Start(p)+grown.Size(p) > tail && grown.Start(p) < o.index.Size
		}); !inUse {
			err = o.disk.zero(tail, o.index.Size-tail)
		}
	}
	if err == nil {
		err = o.disk.flush()
	}
	if err == nil {
		err = o.seal(o.disk.Name())
	}
	if err != nil {
		return "", errors.Join(err, o.leave())
	}
	took := o.Now().Sub(began)
	return fmt.Sprintf("%s in %s, %s; every chunk and the whole verified", probe.Size(o.index.Size), took.Round(100*time.Millisecond), o.fetched()), nil
}

// addedPartition makes the image's partitions known to the kernel, and writes the one that was added.
func (o *operation) addedPartition(ctx context.Context) (string, error) {
	if err := o.disk.tellKernel(o.table); err != nil {
		return "", err
	}
	for _, p := range o.table.Partitions {
		if _, err := o.disk.partition(ctx, p.Number); err != nil {
			return "", err
		}
	}
	files := map[string][]byte{}
	how := "BIOS"
	if o.whole.esp != 0 {
		files = map[string][]byte{diskboot.ShimPath: o.files.shim, diskboot.GRUBPath: o.files.grub, diskboot.ConfigPath: diskboot.ChainConfig(o.whole.esp)}
		how = fmt.Sprintf("UEFI from partition %d", o.whole.esp)
	}
	p := o.table.Partitions[len(o.table.Partitions)-1]
	v := fat.Volume{Size: o.table.Size(p), SectorSize: o.table.SectorSize, Start: o.table.Start(p), ID: o.espID, Label: diskboot.Label, Files: files}
	if err := o.writePartition(ctx, p.Number, func(f *os.File) error { return fat.Format(f, v) }); err != nil {
		return "", fmt.Errorf("write partition %d: %w", p.Number, err)
	}
	return "the image's own; starts by " + how, nil
}

// tell gives the image what it is told at its first boot.
func (o *operation) tell(ctx context.Context) (string, error) {
	settings := o.Settings
	settings.Machine = o.plan.Machine
	agent, err := settings.Encode()
	if err != nil {
		return "", err
	}
	if i := o.plan.FirstBoot.Ignition; i != nil {
		if err := o.mountNamed(ctx, i.Partition); err != nil {
			return "", err
		}
		o.identityAt = i.Agent
		err := o.system.Apply([]nodeconfig.Op{
			{Kind: nodeconfig.MakeDir, Path: i.Agent, Mode: 0o700},
			{Kind: nodeconfig.WriteFile, Path: path.Join(i.Agent, "agent.json"), Content: agent, Mode: 0o644},
			{Kind: nodeconfig.WriteFile, Path: i.Path, Content: i.Config, Mode: 0o600},
		})
		if err == nil {
			err = o.system.CopyFile(o.Agent, path.Join(i.Agent, "coldrack-agent"), 0o755)
		}
		if err != nil {
			return "", fmt.Errorf("write to the partition %s of image %s: %w", i.Partition, o.plan.Image.Name, err)
		}
		return fmt.Sprintf("%s, Ignition config on partition %s", o.plan.Config.Hostname, i.Partition), nil
	}
	if err := o.mountRoot(ctx); err != nil {
		return "", err
	}
	o.identityAt = identity.Dir
	seed := o.plan.FirstBoot.NoCloud
	const folder = "/var/lib/cloud/seed/nocloud"
	file := func(name string, content []byte, mode uint32) nodeconfig.Op {
		return nodeconfig.Op{Kind: nodeconfig.WriteFile, Path: name, Content: content, Mode: mode}
	}
	ops := slices.Concat(nodeconfig.Unused(), []nodeconfig.Op{
		{Kind: nodeconfig.MakeDir, Path: folder, Mode: 0o700},
		file(folder+"/user-data", seed.UserData, 0o600),
		file(folder+"/meta-data", seed.MetaData, 0o600),
		file(folder+"/network-config", seed.NetworkConfig, 0o600),
		// Without it cloud-init asks the network for clouds, which costs minutes where there is none.
		file("/etc/cloud/cloud.cfg.d/95_coldrack.cfg", []byte("# Written by Coldrack when this disk was installed.\ndatasource_list: [NoCloud, None]\n"), 0o644),
		file(identity.SettingsFile, agent, 0o644),
		{Kind: nodeconfig.MakeDir, Path: identity.Dir, Mode: 0o700},
	}, nodeconfig.Agent())
	if err := o.system.CopyFile(o.Agent, "/usr/local/bin/coldrack-agent", 0o755); err != nil {
		return "", fmt.Errorf("copy the agent: %w", err)
	}
	if err := o.system.Apply(ops); err != nil {
		return "", fmt.Errorf("write to the root file system of image %s: %w", o.plan.Image.Name, err)
	}
	return o.plan.Config.Hostname + ", cloud-init's NoCloud on the root file system", nil
}

// fileSystems that images have their files on, and that the discovery system has drivers for.
var fileSystems = []struct{ name, options string }{{"ext4", ""}, {"btrfs", ""}, {"xfs", "nouuid"}}

// mountAt mounts a partition for writing. The error says all that was tried.
func (o *operation) mountAt(ctx context.Context, number int) error {
	device, err := o.disk.partition(ctx, number)
	if err != nil {
		return err
	}
	dir, err := o.mountPoint()
	if err != nil {
		return err
	}
	var tried []error
	for _, f := range fileSystems {
		if err := unix.Mount(device, dir, f.name, unix.MS_NOATIME|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_NOSUID, f.options); err != nil {
			tried = append(tried, fmt.Errorf("%s: %w", f.name, err))
			continue
		}
		o.root = dir
		o.system, err = target.Open(dir, o.Log)
		return err
	}
	return fmt.Errorf("mount partition %d: %w", number, errors.Join(tried...))
}

func (o *operation) mountNamed(ctx context.Context, name string) error {
	for _, p := range o.table.Partitions {
		if p.Name == name {
			if err := o.mountAt(ctx, p.Number); err != nil {
				return fmt.Errorf("partition %s of image %s: %w", name, o.plan.Image.Name, err)
			}
			return nil
		}
	}
	return fmt.Errorf("image %s has no partition of the name %s, which images of family %s have", o.plan.Image.Name, name, o.plan.Image.Family)
}

// mountRoot finds the image's root file system, which is the largest with cloud-init in it.
func (o *operation) mountRoot(ctx context.Context) error {
	parts := slices.Clone(o.table.Partitions[:len(o.table.Partitions)-1])
	slices.SortStableFunc(parts, func(a, b gpt.Partition) int { return int(o.table.Size(b)>>20 - o.table.Size(a)>>20) })
	var why []error
	for _, p := range parts {
		if err := o.mountAt(ctx, p.Number); err != nil {
			why = append(why, err)
			continue
		}
		if o.system.Exists("/etc/cloud/cloud.cfg") && (o.system.Exists("/etc/os-release") || o.system.Exists("/usr/lib/os-release")) {
			return nil
		}
		why = append(why, fmt.Errorf("partition %d has no /etc/cloud/cloud.cfg", p.Number))
		if err := o.unmountSystem(); err != nil {
			return err
		}
	}
	return fmt.Errorf("image %s: no partition is a root file system (ext4, xfs, btrfs) with cloud-init in it: take an image that is made for NoCloud: %w", o.plan.Image.Name, errors.Join(why...))
}

func (o *operation) unmountSystem() error {
	var errs []error
	if o.system != nil {
		errs = append(errs, o.system.Close())
		o.system = nil
	}
	if o.root != "" {
		errs = append(errs, unmount(o.root))
		o.root = ""
	}
	return errors.Join(errs...)
}

// complete writes what was held back. Only now the disk can start.
func (o *operation) complete(ctx context.Context) (string, error) {
	message, err := o.identity(ctx)
	if err != nil {
		return "", err
	}
	if err := o.unmountSystem(); err != nil {
		return "", err
	}
	if err := o.disk.flush(); err != nil {
		return "", fmt.Errorf("flush disk %s: %w", o.disk.name, err)
	}
	if err := ctx.Err(); err != nil {
		return "", context.Cause(ctx)
	}
	if err := o.table.Write(withCode{o.disk, o.whole.head[:o.disk.sector]}); err != nil {
		return "", err
	}
	if err := o.disk.flush(); err != nil {
		return "", fmt.Errorf("flush disk %s: %w", o.disk.name, err)
	}
	return message, nil
}

// withCode is a disk that already has the image's first sector, for gpt to keep its code.
type withCode struct {
	*device
	first []byte
}

func (w withCode) ReadAt(p []byte, at int64) (int, error) {
	if at == 0 && len(p) == len(w.first) {
		return copy(p, w.first), nil
	}
	return w.device.ReadAt(p, at)
}

// nodeFile is where the node's identity goes.
func (o *operation) nodeFile() string {
	if o.identityAt != "" {
		return filepath.Join(o.identityAt, identity.NodeFile)
	}
	return filepath.Join(identity.Dir, identity.NodeFile)
}
