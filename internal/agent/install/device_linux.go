package install

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"coldrack.dev/internal/agent/gpt"
)

// From include/uapi/linux/fs.h; x/sys lacks them.
const (
	blkDiscard    = 0x1277 // _IO(0x12, 119)
	blkSecDiscard = 0x127D // _IO(0x12, 125)
	blkZeroOut    = 0x127F // _IO(0x12, 127)
)

// device is a whole disk that this operation has for itself.
//
// udev watches disks: when somebody closes one that was open for writing, it rereads the partition
// table, and the partition nodes vanish for a moment under the installer's feet. It leaves a disk alone
// whose lock is taken (systemd, "Locking Block Device Access"), so the lock is held until the end.
type device struct {
	*os.File
	name   string // "sda"
	size   int64
	sector int64 // logical
	lock   *os.File
}

// openDevice opens and locks a disk. It fails when the disk is mounted, or part of an array or volume.
func openDevice(name string) (*device, error) {
	path := "/dev/" + name
	// O_EXCL without O_CREAT asks whether anybody has claimed the disk or a partition of it.
	claim, err := os.OpenFile(path, os.O_RDONLY|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("%s is in use: mounted, or part of a RAID array or LVM volume", path)
	} else if err != nil {
		return nil, fmt.Errorf("open disk: %w", err)
	}
	_ = claim.Close()
	lock, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open disk: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		// udev may be probing it just now; that takes moments.
		if err := flockWithin(lock, 30*time.Second); err != nil {
			_ = lock.Close()
			return nil, fmt.Errorf("lock disk %s: %w", path, err)
		}
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("open disk for writing: %w", err)
	}
	d := &device{File: f, name: name, lock: lock}
	var size uint64
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&size))); e != 0 {
		return nil, errors.Join(fmt.Errorf("size of disk %s: %w", path, e), d.Close())
	}
	sector, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKSSZGET)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("sector size of disk %s: %w", path, err), d.Close())
	}
	d.size, d.sector = int64(size), int64(sector)
	return d, nil
}

func flockWithin(f *os.File, limit time.Duration) error {
	for end := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil || time.Now().After(end) {
			return err
		}
	}
}

// Close gives the disk back.
func (d *device) Close() error { return errors.Join(d.File.Close(), d.lock.Close()) }

// flush brings what was written to the medium, and forgets what was read: partitions have page caches of
// their own, which do not see what goes through the whole disk's.
func (d *device) flush() error {
	if err := d.Sync(); err != nil {
		return err
	}
	return unix.IoctlSetInt(int(d.Fd()), unix.BLKFLSBUF, 0)
}

// rangeIoctl is BLKDISCARD or BLKZEROOUT.
func rangeIoctl(f *os.File, request uintptr, offset, length int64) error {
	r := [2]uint64{uint64(offset), uint64(length)}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(&r))); e != 0 {
		return e
	}
	return nil
}

// discard tells the disk that its first length bytes are not needed any more. Best effort: many disks cannot, and
// what a discarded range reads as is up to the disk, so nothing relies on it.
func (d *device) discard(ctx context.Context, length int64) (bool, error) {
	const step = 32 << 30
	for off := int64(0); off < length; off += step {
		if err := ctx.Err(); err != nil {
			return false, context.Cause(ctx)
		}
		if err := rangeIoctl(d.File, blkDiscard, off, min(step, length-off)); err != nil {
			return false, nil
		}
	}
	return true, nil
}

// secureDiscard has the disk erase a range and all copies that it keeps of it. unix.EOPNOTSUPP: it cannot.
func (d *device) secureDiscard(ctx context.Context, offset, length int64) error {
	const step = 32 << 30
	for end := offset + length; offset < end && ctx.Err() == nil; offset += step {
		if err := rangeIoctl(d.File, blkSecDiscard, offset, min(step, end-offset)); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// zero writes zeros over a range, cut to the disk.
func (d *device) zero(offset, length int64) error {
	offset = max(offset, 0)
	length = min(length, d.size-offset)
	buf := make([]byte, min(length, 1<<20))
	for end := offset + length; offset < end; {
		n, err := d.WriteAt(buf[:min(int64(len(buf)), end-offset)], offset)
		if err != nil {
			return fmt.Errorf("write zeros to %s at byte %d: %w", d.Name(), offset, err)
		}
		offset += int64(n)
	}
	return nil
}

// partitionNumbers that the kernel has for the disk now.
func (d *device) partitionNumbers() []int {
	files, _ := filepath.Glob("/sys/class/block/" + d.name + "/" + d.name + "*/partition")
	var out []int
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
			out = append(out, n)
		}
	}
	return out
}

// tellKernel replaces the partitions that the kernel knows by those of the table. It says so directly
// instead of asking for the table to be read again: that works whatever tables the kernel understands,
// and is done when it returns.
func (d *device) tellKernel(t *gpt.Table) error {
	if err := d.forgetPartitions(); err != nil {
		return err
	}
	for _, p := range t.Partitions {
		if err := d.blkpg(unix.BLKPG_ADD_PARTITION, unix.BlkpgPartition{Start: t.Start(p), Length: t.Size(p), Pno: int32(p.Number)}); err != nil {
			return fmt.Errorf("make partition %d of %s known to the kernel: %w", p.Number, d.name, err)
		}
	}
	return nil
}

// forgetPartitions removes all partitions of the disk from the kernel.
func (d *device) forgetPartitions() error {
	for _, n := range d.partitionNumbers() {
		if err := d.blkpg(unix.BLKPG_DEL_PARTITION, unix.BlkpgPartition{Pno: int32(n)}); err != nil {
			return fmt.Errorf("remove old partition %d of %s from the kernel: %w", n, d.name, err)
		}
	}
	return nil
}

func (d *device) blkpg(op int32, p unix.BlkpgPartition) error {
	arg := unix.BlkpgIoctlArg{Op: op, Datalen: int32(unsafe.Sizeof(p)), Data: (*byte)(unsafe.Pointer(&p))}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, d.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&arg))); e != 0 {
		return e
	}
	return nil
}

// partition waits for the node of a partition, which the kernel makes on its own time, and returns its path.
func (d *device) partition(ctx context.Context, number int) (string, error) {
	name := d.name + strconv.Itoa(number)
	if last := d.name[len(d.name)-1]; last >= '0' && last <= '9' {
		name = d.name + "p" + strconv.Itoa(number)
	}
	path := "/dev/" + name
	for end := time.Now().Add(15 * time.Second); ; {
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
			return path, nil
		}
		if time.Now().After(end) {
			return "", fmt.Errorf("partition %d of %s did not appear as %s", number, d.name, path)
		}
		select {
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// InUse names the disks that the running system uses, with the reason: whatever is mounted, swapped to,
// or below such a thing. An install never touches these.
func InUse() map[string]string {
	out := map[string]string{}
	note := func(source, reason string) {
		real, err := filepath.EvalSymlinks(source)
		if err != nil || !strings.HasPrefix(real, "/dev/") {
			return
		}
		for _, disk := range below(strings.TrimPrefix(real, "/dev/"), 8) {
			out[disk] = reason
		}
	}
	lines := func(file string) []string {
		b, _ := os.ReadFile(file)
		return strings.Split(string(b), "\n")
	}
	for _, line := range lines("/proc/self/mounts") {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[0], "/dev/") {
			note(f[0], "mounted at "+f[1])
		}
	}
	for _, line := range lines("/proc/swaps") {
		if f := strings.Fields(line); len(f) > 1 && f[1] == "partition" {
			note(f[0], "swap space")
		}
	}
	return out
}

// below follows a block device down to whole disks: from partitions to their disk, from RAID and LVM
// volumes to their members.
func below(name string, depth int) []string {
	if depth == 0 {
		return nil
	}
	dir, err := filepath.EvalSymlinks("/sys/class/block/" + name)
	if err != nil {
		return nil
	}
	if _, err := os.Stat(dir + "/partition"); err == nil {
		return below(filepath.Base(filepath.Dir(dir)), depth-1)
	}
	members, _ := os.ReadDir(dir + "/slaves")
	if len(members) == 0 {
		return []string{name}
	}
	var out []string
	for _, m := range members {
		out = append(out, below(m.Name(), depth-1)...)
	}
	return out
}
