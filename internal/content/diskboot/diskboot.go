// Package diskboot makes a disk start from its own contents, on BIOS and on UEFI.
//
// The disk has a GPT with, in this order, a BIOS boot partition (1), an EFI system partition (2) and
// the root file system (3). Both ways end in one configuration file on the EFI system partition:
//
//	BIOS  MBR (boot.img) -> BIOS boot partition (core.img) -> (boot disk,gpt2)/EFI/debian/grub.cfg
//	UEFI  EFI/BOOT/BOOTX64.EFI (shim) -> EFI/BOOT/grubx64.efi -> EFI/debian/grub.cfg, same partition
//
// GRUB's core image is built with the prefix "(,gpt2)/EFI/debian", which it completes with the disk the BIOS
// started it from. So no label or UUID has to be searched for, and the remains of an old
// installation on another disk cannot be picked up by mistake.
//
// There are no module files on the disk: what grub.cfg may use is what core.img and Debian's signed
// GRUB both have built in (see CoreModules).
package diskboot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Numbers and paths of the layout that this package's boot path relies on.
const (
	BIOSPartition = 1
	ESPPartition  = 2
	RootPartition = 3

	// Paths on the EFI system partition.
	ConfigPath = "EFI/debian/grub.cfg"
	ShimPath   = "EFI/BOOT/BOOTX64.EFI"
	GRUBPath   = "EFI/BOOT/grubx64.efi"

	// Prefix is what core.img is made with.
	Prefix = "(,gpt2)/EFI/debian"
)

// CoreModules are built into core.img. Debian's signed GRUB has them too, biosdisk apart.
func CoreModules() []string {
	return []string{
		"biosdisk", "part_gpt", "part_msdos", "fat", "ext2", "normal", "configfile", "linux", "gzio",
		"search", "search_fs_uuid", "search_fs_file", "search_label", "probe",
		"echo", "test", "true", "ls", "cat", "sleep", "loadenv", "regexp", "minicmd",
		"serial", "terminal", "reboot", "halt",
	}
}

// Label of the EFI system partition of a disk that Coldrack installed.
const Label = "COLDRACK"

// LocalConfig is built into local.efi, the GRUB that iPXE chains to when a UEFI machine shall start from its
// own disk. Leaving iPXE does not do it: some firmware then shows its setup screen, other goes on with
// HTTP boot for minutes. The file system is found by its label, so another system's disk is not started by
// mistake; when there is none, control goes back to iPXE.
const LocalConfig = `search --no-floppy --label ` + Label + ` --set=root
if [ -e ($root)/` + ShimPath + ` ]; then
    chainloader ($root)/` + ShimPath + `
    boot
fi
echo "Coldrack: no disk that this firmware shows carries an installed system."
sleep 5
exit
`

// LocalModules are built into local.efi.
func LocalModules() []string {
	return []string{"part_gpt", "fat", "search", "search_label", "chain", "normal", "test", "echo", "sleep", "minicmd", "boot"}
}

// LocalBIOSConfig is built into local.lkrn, the same for BIOS. It starts the disk with the label whichever drive the
// BIOS counts it as: iPXE's sanboot knows only drive numbers, and the first drive may be another disk.
const LocalBIOSConfig = `search --no-floppy --label ` + Label + ` --set=root
regexp --set=1:disk '^(hd[0-9]+)' "$root"
if [ -n "$disk" ]; then
    chainloader (${disk})+1
    boot
fi
echo "Coldrack: no disk that this BIOS shows carries an installed system. Starting over."
sleep 30
reboot
`

// ChainConfig is grub.cfg of the partition that the installer adds to a whole-disk image, so that local.efi finds the disk by Label: it goes
// on to the loader on the image's own EFI system partition, of that number, on the same disk.
func ChainConfig(esp int) []byte {
	return fmt.Appendf(nil, `# Written by Coldrack when this disk was installed.
regexp --set=1:disk '^(hd[0-9]+)' "$root"
chainloader (${disk},gpt%d)/%s
boot
echo "Coldrack: the EFI system partition of this disk's image has no %[2]s."
sleep 30
reboot
`, esp, ShimPath)
}

// LocalBIOSModules are built into local.lkrn.
func LocalBIOSModules() []string {
	return append([]string{"biosdisk", "regexp", "reboot"}, LocalModules()...)
}

// SectorSize is the sector size of disks that a BIOS can start from; the formats below know no other.
const SectorSize = 512

// Places in GRUB's boot.img that its installer fills in.
const (
	mbrBPBStart     = 0x03 // BIOS parameter block, kept from the disk
	mbrBPBEnd       = 0x5a
	mbrKernelSector = 0x5c // 64 bits, little endian: LBA of core.img
	mbrBootDrive    = 0x64 // 0xff: the drive that the BIOS names in DL
	mbrDriveCheck   = 0x66 // two bytes of code that doubt DL
	mbrDiskSig      = 0x1b8
	mbrSignature    = 0x1fe
)

// The first block of the list in core.img's first sector, which GRUB's loader reads downwards from here.
const (
	coreListEnd     = SectorSize - 12
	coreLoadSegment = 0x820
	coreMaxSectors  = 0xffff
)

// MBR returns the disk's new first sector: boot.img, set to load core.img from the given LBA. What
// belongs to the disk (parameter block, disk signature, protective partition table) is kept from old.
func MBR(old, bootImg []byte, coreLBA uint64) ([]byte, error) {
	if len(old) != SectorSize {
		return nil, fmt.Errorf("boot sector: the disk's first sector has %d bytes, want %d", len(old), SectorSize)
	}
	if err := checkBootImg(bootImg); err != nil {
		return nil, fmt.Errorf("boot sector: %w", err)
	}
	if coreLBA == 0 {
		return nil, errors.New("boot sector: core.img cannot lie at LBA 0, where the boot sector is")
	}
	mbr := bytes.Clone(bootImg)
	copy(mbr[mbrBPBStart:mbrBPBEnd], old[mbrBPBStart:mbrBPBEnd])
	copy(mbr[mbrDiskSig:mbrSignature], old[mbrDiskSig:mbrSignature])
	binary.LittleEndian.PutUint64(mbr[mbrKernelSector:], coreLBA)
	mbr[mbrBootDrive] = 0xff
	// Two NOPs: some firmware passes a wrong drive number, and the code here replaces it with
	// 0x80; that is right for a hard disk, and what GRUB's own installer writes.
	mbr[mbrDriveCheck], mbr[mbrDriveCheck+1] = 0x90, 0x90
	return mbr, nil
}

func checkBootImg(img []byte) error {
	if len(img) != SectorSize || img[mbrSignature] != 0x55 || img[mbrSignature+1] != 0xaa {
		return fmt.Errorf("boot.img has %d bytes and is not a boot sector of %d", len(img), SectorSize)
	}
	if !bytes.Contains(img, []byte("GRUB ")) || img[mbrBootDrive] != 0xff {
		return errors.New("boot.img is not GRUB's for i386-pc")
	}
	return nil
}

// Core returns core.img for a disk where it starts at the given LBA and lies in one piece, padded
// to whole sectors. It must fit into the BIOS boot partition.
func Core(coreImg []byte, lba uint64) ([]byte, error) {
	sectors := (len(coreImg) + SectorSize - 1) / SectorSize
	if sectors < 2 || sectors-1 > coreMaxSectors {
		return nil, fmt.Errorf("core.img has %d bytes, want %d to %d", len(coreImg), SectorSize+1, (coreMaxSectors+1)*SectorSize)
	}
	if lba == 0 {
		return nil, errors.New("core.img cannot lie at LBA 0, where the boot sector is")
	}
	core := make([]byte, sectors*SectorSize)
	copy(core, coreImg)
	if seg := binary.LittleEndian.Uint16(core[coreListEnd+10:]); seg != coreLoadSegment {
		return nil, fmt.Errorf("core.img is not GRUB's for i386-pc: its first block loads to segment %#x, want %#x", seg, coreLoadSegment)
	}
	binary.LittleEndian.PutUint64(core[coreListEnd:], lba+1)
	binary.LittleEndian.PutUint16(core[coreListEnd+8:], uint16(sectors-1))
	return core, nil
}

// Disk is what InstallBIOS needs of a disk, an open block device for example.
type Disk interface {
	io.ReaderAt
	io.WriterAt
}

// InstallBIOS writes boot.img and core.img to a disk whose BIOS boot partition starts at the given
// LBA and has the given number of sectors. The boot sector comes last: until then the disk starts as before.
func InstallBIOS(disk Disk, bootImg, coreImg []byte, lba, sectors uint64) error {
	core, err := Core(coreImg, lba)
	if err != nil {
		return fmt.Errorf("install BIOS boot loader: %w", err)
	}
	if uint64(len(core)) > sectors*SectorSize {
		return fmt.Errorf("install BIOS boot loader: core.img needs %d sectors, the BIOS boot partition has %d", len(core)/SectorSize, sectors)
	}
	old := make([]byte, SectorSize)
	if _, err := disk.ReadAt(old, 0); err != nil {
		return fmt.Errorf("install BIOS boot loader: read the disk's first sector: %w", err)
	}
	mbr, err := MBR(old, bootImg, lba)
	if err != nil {
		return fmt.Errorf("install BIOS boot loader: %w", err)
	}
	if _, err := disk.WriteAt(core, int64(lba)*SectorSize); err != nil {
		return fmt.Errorf("install BIOS boot loader: write core.img at LBA %d: %w", lba, err)
	}
	if _, err := disk.WriteAt(mbr, 0); err != nil {
		return fmt.Errorf("install BIOS boot loader: write the boot sector: %w", err)
	}
	return nil
}
