package install

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"coldrack.dev/internal/agent/client"
	"coldrack.dev/internal/agent/fat"
	"coldrack.dev/internal/agent/gpt"
	"coldrack.dev/internal/agent/identity"
	"coldrack.dev/internal/agent/probe"
	"coldrack.dev/internal/agent/target"
	"coldrack.dev/internal/base/retry"
	"coldrack.dev/internal/content/diskboot"
	"coldrack.dev/internal/content/diskimage"
	"coldrack.dev/internal/contract/nodeconfig"
	"coldrack.dev/internal/contract/wire"
)

const (
	maxIndex    = 64 << 20
	maxBootFile = 32 << 20
	// leastMemory that must be available: chunks in flight, unpacked and stored, and the page cache.
	leastMemory = 96 << 20
	// mostSkew between this machine's clock and the server's, after the clock was set.
	mostSkew = time.Minute
)

// preflight checks whatever can be checked before the disk is touched, and fetches all but the image.
func (o *operation) preflight(ctx context.Context) (string, error) {
	if err := o.look(ctx); err != nil {
		return "", err
	}
	if err := o.checkMachine(); err != nil {
		return "", err
	}
	if err := o.checkClock(ctx); err != nil {
		return "", err
	}
	if o.wholeDisk() {
		if err := o.fetchPlan(ctx); err != nil {
			return "", err
		}
		return "", o.lookAtImage(ctx)
	}
	var err error
	if o.ops, err = nodeconfig.Direct(o.plan.Config); err != nil {
		return "", err
	}
	if _, err := grubArgs(o.plan.KernelArgs, o.consoles()); err != nil {
		return "", err
	}
	for _, tool := range []string{"e2fsck", "resize2fs", "tune2fs"} {
		if _, err := exec.LookPath(tool); err != nil {
			return "", fmt.Errorf("the discovery system has no %s: its bundle is damaged or was built wrongly: %w", tool, err)
		}
	}
	return "", o.fetchPlan(ctx)
}

func (o *operation) checkMachine() error {
	if err := o.checkFamily(); err != nil {
		return err
	}
	if err := wire.CheckWipe(o.plan.Wipe); err != nil {
		return err
	}
	if have, want := o.inv.MemoryBytes, o.plan.MinMemoryBytes; have < want {
		return fmt.Errorf("out of memory: this machine has %s, the profile asks for %s", probe.Size(have), probe.Size(want))
	}
	if free := memoryAvailable(); free > 0 && free < leastMemory {
		return fmt.Errorf("out of memory: %s are available, an install takes %s", probe.Size(free), probe.Size(leastMemory))
	}
	link := slices.ContainsFunc(o.inv.NICs, func(n wire.NIC) bool { return n.Link })
	if len(o.inv.NICs) > 0 && !link {
		return errors.New("no link: none of this machine's network interfaces has one")
	}
	return nil
}

func (o *operation) checkClock(ctx context.Context) error {
	var skew time.Duration
	err := retry.Do(ctx, o.tellWait("the server's time"), func(ctx context.Context) error {
		before := o.Now()
		t, err := o.Server.Time(ctx)
		skew = before.Sub(t.Now)
		return err
	})
	if err != nil {
		return fmt.Errorf("ask for the server's time: %w", err)
	}
	if skew.Abs() > mostSkew {
		return fmt.Errorf("clock: this machine's is %s off the server's although it was set at boot; certificates would not hold. Check the machine's battery, or boot it again", skew.Round(time.Second))
	}
	return nil
}

// tellWait shows on console and in the log what is waited for.
func (o *operation) tellWait(what string) func(error, time.Duration) {
	return func(err error, wait time.Duration) {
		o.Log.Warn("waiting for the server", "for", what, "err", err, "again", wait.Round(time.Second))
	}
}

func (o *operation) fetchPlan(ctx context.Context) error {
	image := o.plan.Image
	b, err := o.Content.Get(ctx, "the chunk index of image "+image.Name, image.Index, maxIndex)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &o.index); err != nil {
		return fmt.Errorf("the chunk index of image %s cannot be read: %w", image.Name, err)
	}
	if err := o.index.Validate(); err != nil {
		return fmt.Errorf("image %s: %w", image.Name, err)
	}
	if o.index.Digest != image.Digest || o.index.Size != image.Size {
		return fmt.Errorf("image %s: the chunk index is of another image: %s of %d bytes, want %s of %d", image.Name, o.index.Digest, o.index.Size, image.Digest, image.Size)
	}
	for _, f := range []struct {
		what string
		from wire.Content
		to   *[]byte
	}{
		{"GRUB's boot.img", o.plan.Boot.BIOSBoot, &o.files.boot}, {"GRUB's core.img", o.plan.Boot.BIOSCore, &o.files.core},
		{"shim", o.plan.Boot.Shim, &o.files.shim}, {"GRUB for UEFI", o.plan.Boot.GRUB, &o.files.grub},
	} {
		if *f.to, err = o.Content.Get(ctx, f.what, f.from, maxBootFile); err != nil {
			return err
		}
	}
	return nil
}

// needs is how large a disk must be for the image.
func (o *operation) needs() int64 {
	if o.wholeDisk() {
		return o.needsWhole()
	}
	return biosBytes + espBytes + o.plan.Image.Size + overhead
}

// fittingDisk waits for a while where no disk fits: one may still come.
func (o *operation) fittingDisk(ctx context.Context) (wire.Disk, error) {
	for began, said := o.Now(), false; ; {
		d, err := SelectDisk(o.inv.Disks, o.plan.RootDisk, o.needs(), o.InUse())
		var none *SelectError
		if !errors.As(err, &none) || none.Matches > 0 || o.Now().Sub(began) >= o.DiskPatience {
			return d, err
		}
		if !said {
			o.Log.Info("no disk fits yet; waiting for one", "limit", o.DiskPatience, "why", err)
			o.message(wire.StepSelectDisk, "no disk fits yet; waiting %s for one: %v", o.DiskPatience, err)
			said = true
		}
		select {
		case <-ctx.Done():
			return wire.Disk{}, ctx.Err()
		case <-time.After(time.Second):
		}
		o.inv = o.Inventory()
	}
}

func (o *operation) selectDisk(ctx context.Context) (string, error) {
	d, err := o.fittingDisk(ctx)
	if err != nil {
		return "", err
	}
	o.choice = d
	if o.disk, err = openDevice(d.Name); err != nil {
		return "", err
	}
	if o.disk.size < o.needs() {
		return "", fmt.Errorf("disk %s is too small: it has %s, the image needs %s", describe(d), probe.Size(o.disk.size), probe.Size(o.needs()))
	}
	if o.wholeDisk() {
		if err := o.checkSectors(); err != nil {
			return "", err
		}
	}
	if o.disk.sector != diskboot.SectorSize && o.inv.Firmware != "UEFI" {
		return "", fmt.Errorf("disk %s has sectors of %d bytes, from which a BIOS cannot start: set the machine's firmware to UEFI, or choose another disk", describe(d), o.disk.sector)
	}
	return describe(d), nil
}

// wipe makes the disk blank, if its content may go.
func (o *operation) wipe(ctx context.Context) (string, error) {
	found, err := inspect(ctx, o.disk)
	if err != nil {
		return "", err
	}
	if err := o.allowed(o.plan.Wipe, describe(o.choice), found); err != nil {
		return "", err
	}
	if o.table, err = o.layout(); err != nil {
		return "", err
	}
	var next []probe.Range
	for _, p := range o.table.Partitions {
		next = append(next, probe.Range{Start: o.table.Start(p), Size: o.table.Size(p)})
	}
	how, err := o.erase(ctx, o.disk, found.Report, next, o.plan.Wipe == wire.WipeSecure && !found.blank())
	if err != nil {
		return "", err
	}
	if found.blank() {
		return "was blank; " + how, nil
	}
	return "removed " + strings.Join(found.lines(), "; ") + "; " + how, nil
}

func (o *operation) owns(r probe.Report) bool { return r.Table != nil && o.own[r.Table.DiskGUID] }

// layout of the disk, whose GUID is the intent's marker.
func (o *operation) layout() (*gpt.Table, error) {
	id := o.intentID
	if o.wholeDisk() {
		return gpt.New(gpt.Marker(id), o.disk.size, o.disk.sector, nil)
	}
	return gpt.New(gpt.Marker(id), o.disk.size, o.disk.sector, []gpt.Want{
		{Name: gpt.NameBIOSBoot, Type: gpt.TypeBIOSBoot, GUID: gpt.Derive(id, "bios"), Bytes: biosBytes},
		{Name: gpt.NameESP, Type: gpt.TypeESP, GUID: gpt.Derive(id, "esp"), Bytes: espBytes},
		{Name: gpt.NameRoot, Type: gpt.TypeLinuxRoot, GUID: gpt.Derive(id, "root")},
	})
}

// partition writes the table. Nothing that a partition would show is left at its place since the wipe.
func (o *operation) partition(ctx context.Context) (string, error) {
	t := o.table
	if err := t.Write(o.disk); err != nil {
		return "", err
	}
	if err := o.disk.flush(); err != nil {
		return "", fmt.Errorf("flush disk %s: %w", o.disk.name, err)
	}
	if err := o.disk.tellKernel(t); err != nil {
		return "", err
	}
	for _, p := range t.Partitions {
		if _, err := o.disk.partition(ctx, p.Number); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("GPT %s, root %s", t.DiskGUID, probe.Size(t.Size(t.Partitions[2]))), nil
}

// writePartition opens a partition for writing, and brings what f wrote to the medium.
func (o *operation) writePartition(ctx context.Context, number int, f func(*os.File) error) error {
	path, err := o.disk.partition(ctx, number)
	if err != nil {
		return err
	}
	dev, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = f(dev)
	if err == nil {
		err = dev.Sync()
	}
	return errors.Join(err, dev.Close())
}

func (o *operation) esp(files map[string][]byte) fat.Volume {
	p := o.table.Partitions[diskboot.ESPPartition-1]
	return fat.Volume{Size: o.table.Size(p), SectorSize: o.table.SectorSize, Start: o.table.Start(p), ID: o.espID, Label: diskboot.Label, Files: files}
}

// filesystem makes the ESP. The root file system comes with the image.
func (o *operation) filesystem(ctx context.Context) (string, error) {
	v := o.esp(nil)
	return "ESP " + v.UUID(), o.writePartition(ctx, diskboot.ESPPartition, func(f *os.File) error { return fat.Format(f, v) })
}

// image streams the root file system onto its partition, verified chunk by chunk and as a whole, and
// makes it this node's: as large as its partition, with a UUID of its own.
func (o *operation) image(ctx context.Context) (string, error) {
	name := o.plan.Image.Name
	began := o.Now()
	ahead := 4
	if memoryAvailable() < 512<<20 {
		ahead = 2
	}
	o.bytes(wire.StepImage, 0, o.index.Size)
	err := o.writePartition(ctx, diskboot.RootPartition, func(f *os.File) error {
		err := diskimage.Write(ctx, o.index, o.chunks(ctx, f, o.table.Size(o.table.Partitions[diskboot.RootPartition-1])), f, diskimage.WriteOptions{
			Ahead:    ahead,
			Zero:     func(offset, n int64) error { return rangeIoctl(f, blkZeroOut, offset, n) },
			Progress: func(p diskimage.Progress) { o.bytes(wire.StepImage, p.Raw, o.index.Size) },
		})
		if err == nil {
			o.message(wire.StepImage, "flushing to the disk")
			err = o.seal(f.Name())
		}
		if err != nil {
			err = errors.Join(err, o.leave())
		}
		return err
	})
	if err != nil {
		return "", err
	}
	took := o.Now().Sub(began)
	o.message(wire.StepImage, "checking and growing the file system")
	path, err := o.disk.partition(ctx, diskboot.RootPartition)
	if err != nil {
		return "", err
	}
	// e2fsck's status 1 means that it repaired something. The image's file system must be clean for
	// tune2fs and resize2fs, which refuse one that was not checked since it was last mounted.
	if out, err := run(ctx, "e2fsck", "-f", "-p", path); err != nil && exitCode(err) != 1 {
		return "", fmt.Errorf("the file system of image %s is damaged: e2fsck: %w: %s", name, err, out)
	}
	for _, command := range [][]string{
		{"tune2fs", "-U", o.rootID.String(), path},
		{"resize2fs", path},
	} {
		if out, err := run(ctx, command[0], command[1:]...); err != nil {
			return "", fmt.Errorf("%s: %w: %s", command[0], err, out)
		}
	}
	return fmt.Sprintf("%s in %s, %s; every chunk and the whole verified", probe.Size(o.index.Size), took.Round(100*time.Millisecond), o.fetched()), nil
}

func exitCode(err error) int {
	if e := (*exec.ExitError)(nil); errors.As(err, &e) {
		return e.ExitCode()
	}
	return -1
}

// run executes a tool and returns the last of what it printed.
func run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	b, err := cmd.CombinedOutput()
	out := strings.Join(strings.Fields(string(b)), " ")
	if len(out) > 400 {
		out = "…" + out[len(out)-400:]
	}
	return out, err
}

// bootloader makes the disk start, by BIOS and by UEFI.
func (o *operation) bootloader(ctx context.Context) (string, error) {
	if err := o.mount(ctx); err != nil {
		return "", err
	}
	kernel, initrd, err := findKernel(o.system)
	if err != nil {
		return "", err
	}
	consoles := o.consoles()
	args, err := grubArgs(o.plan.KernelArgs, consoles)
	if err != nil {
		return "", err
	}
	if err := o.system.WriteFile("/boot/grub/grub.cfg", grubConfig(o.rootID.String(), kernel, initrd, args, consoles), 0o644, ""); err != nil {
		return "", fmt.Errorf("write /boot/grub/grub.cfg: %w", err)
	}
	how := "UEFI"
	if o.disk.sector == diskboot.SectorSize {
		p := o.table.Partitions[diskboot.BIOSPartition-1]
		if err := diskboot.InstallBIOS(o.disk, o.files.boot, o.files.core, p.First, p.Last-p.First+1); err != nil {
			return "", err
		}
		how = "BIOS and UEFI"
	}
	if err := o.disk.Sync(); err != nil {
		return "", err
	}
	v := o.esp(map[string][]byte{
		diskboot.ShimPath: o.files.shim, diskboot.GRUBPath: o.files.grub, diskboot.ConfigPath: espConfig(o.rootID.String()),
	})
	if err := o.writePartition(ctx, diskboot.ESPPartition, func(f *os.File) error { return fat.Format(f, v) }); err != nil {
		return "", fmt.Errorf("write the EFI system partition: %w", err)
	}
	return fmt.Sprintf("starts by %s, kernel %s", how, kernel), nil
}

func (o *operation) consoles() []string {
	if len(o.plan.Console) > 0 {
		return o.plan.Console
	}
	var out []string
	for _, arg := range strings.Fields(o.CommandLine) {
		if c, ok := strings.CutPrefix(arg, "console="); ok {
			out = append(out, c)
		}
	}
	return out
}

func (o *operation) mount(ctx context.Context) error {
	path, err := o.disk.partition(ctx, diskboot.RootPartition)
	if err != nil {
		return err
	}
	dir, err := o.mountPoint()
	if err != nil {
		return err
	}
	if err := unix.Mount(path, dir, "ext4", unix.MS_NOATIME|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("mount the new system (%s): %w", path, err)
	}
	o.root = dir
	o.system, err = target.Open(dir, o.Log)
	return err
}

// nodeConfig makes the image this node.
func (o *operation) nodeConfig(context.Context) (string, error) {
	settings := o.Settings
	settings.Machine = o.plan.Machine
	b, err := settings.Encode()
	if err != nil {
		return "", err
	}
	if err := o.system.CopyFile(o.Agent, "/usr/local/bin/coldrack-agent", 0o755); err != nil {
		return "", fmt.Errorf("copy the agent: %w", err)
	}
	fstab := fmt.Sprintf("UUID=%s / ext4 errors=remount-ro 0 1\nUUID=%s /boot/efi vfat umask=0077,nofail,x-systemd.device-timeout=10 0 2\n", o.rootID, o.esp(nil).UUID())
	own := []nodeconfig.Op{
		{Kind: nodeconfig.WriteFile, Path: "/etc/fstab", Content: []byte(fstab), Mode: 0o644},
		{Kind: nodeconfig.MakeDir, Path: "/boot/efi", Mode: 0o700},
		{Kind: nodeconfig.WriteFile, Path: identity.SettingsFile, Content: b, Mode: 0o644},
	}
	if err := o.system.Apply(append(own, o.ops...)); err != nil {
		return "", err
	}
	if tz := o.plan.Config.Timezone; tz != "" && tz != "UTC" && !o.system.Exists("/usr/share/zoneinfo/"+tz) {
		return "", fmt.Errorf("timezone: image %s does not know %q: correct the profile, or add tzdata to the image", o.plan.Image.Name, tz)
	}
	return fmt.Sprintf("%s, %d settings", o.plan.Config.Hostname, len(o.ops)), nil
}

// identity has the node's key certified. The key is written to the node's own disk and nowhere else.
func (o *operation) identity(ctx context.Context) (string, error) {
	key, csr, err := client.NewKey(o.plan.Machine)
	if err != nil {
		return "", err
	}
	var answer wire.IdentityResponse
	err = retry.Do(ctx, o.tellWait("the node's certificate"), func(ctx context.Context) error {
		var err error
		answer, err = o.Server.Identity(ctx, wire.IdentityRequest{IntentID: o.intentID, CSR: csr})
		return err
	})
	if err != nil {
		return "", err
	}
	b, err := identity.Encode(key, answer.Certificate)
	if err != nil {
		return "", err
	}
	dir := nodeconfig.Op{Kind: nodeconfig.MakeDir, Path: filepath.Dir(o.nodeFile()), Mode: 0o700}
	if err := o.system.Apply([]nodeconfig.Op{dir}); err != nil {
		return "", err
	}
	if err := o.system.WriteFile(o.nodeFile(), b, 0o600, ""); err != nil {
		return "", fmt.Errorf("write the node's identity: %w", err)
	}
	n, err := identity.Decode(b)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(n.Certificate.Leaf.RawSubjectPublicKeyInfo)
	return fmt.Sprintf("key sha256:%x, certificate until %s", sum[:6], n.NotAfter.UTC().Format(time.DateOnly)), nil
}
