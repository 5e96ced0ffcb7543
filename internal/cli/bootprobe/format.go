package bootprobe

import (
	"bytes"
	"encoding/binary"
)

// Format is what the first bytes of a file are; "" when that is not known.
type Format string

// Formats.
const (
	Script      Format = "iPXE script"
	EFIx64      Format = "EFI program for x64"
	EFIarm64    Format = "EFI program for arm64"
	EFIother    Format = "EFI program for another architecture"
	Linux       Format = "Linux kernel for x86"
	LinuxEFI    Format = "Linux kernel for x64"
	LinuxARM    Format = "Linux kernel for arm64"
	Gzip        Format = "gzip"
	Zstd        Format = "zstd"
	XZ          Format = "xz"
	CPIO        Format = "cpio"
	ISO         Format = "ISO image"
	HTML        Format = "web page"
	headOfFiles        = 64 << 10 // bytes that are looked at; the volume descriptor of an ISO lies at 32 KiB
)

// formatOf tells what a file is by its first bytes.
func formatOf(head []byte) Format {
	at := func(offset int, magic string) bool {
		return len(head) >= offset+len(magic) && string(head[offset:offset+len(magic)]) == magic
	}
	machine := uint16(0)
	if at(0, "MZ") && len(head) >= 0x40 {
		if pe := int(binary.LittleEndian.Uint32(head[0x3c:])); pe > 0 && at(pe, "PE\x00\x00") && len(head) >= pe+6 {
			machine = binary.LittleEndian.Uint16(head[pe+4:])
		}
	}
	switch {
	case at(0, "#!ipxe"), at(0, "#!gpxe"):
		return Script
	case at(0x202, "HdrS") && machine == 0x8664:
		return LinuxEFI
	case at(0x202, "HdrS"):
		return Linux
	case at(0x38, "ARM\x64"):
		return LinuxARM
	case machine == 0x8664:
		return EFIx64
	case machine == 0xaa64:
		return EFIarm64
	case machine != 0:
		return EFIother
	case at(0, "\x1f\x8b"):
		return Gzip
	case at(0, "\x28\xb5\x2f\xfd"):
		return Zstd
	case at(0, "\xfd7zXZ\x00"):
		return XZ
	case at(0, "07070"):
		return CPIO
	case at(0x8001, "CD001"):
		return ISO
	}
	if start := bytes.ToLower(bytes.TrimSpace(head[:min(len(head), 256)])); bytes.HasPrefix(start, []byte("<!doctype")) || bytes.HasPrefix(start, []byte("<html")) {
		return HTML
	}
	return ""
}

// refuses says why a machine with a firmware cannot start a file, "" when nothing speaks against it.
func (f Firmware) refuses(format Format) string {
	efi := f.platform == "efi"
	switch format {
	case HTML:
		return "it is a web page"
	case EFIx64, EFIarm64, EFIother:
		if !efi {
			return "it is an " + string(format) + ", and this machine has BIOS"
		}
		if format != f.image {
			return "it is an " + string(format)
		}
	case LinuxARM:
		if f.build != "arm64" {
			return "it is a " + string(format)
		}
	case Linux, LinuxEFI:
		if f.build == "arm64" {
			return "it is a " + string(format)
		}
		if efi && !f.ipxe && format == Linux {
			return "it is a kernel without an EFI stub"
		}
	case Script:
		if !f.ipxe {
			return "it is an iPXE script, and this is no iPXE"
		}
	case "":
		if efi && !f.ipxe {
			return "it is no EFI program"
		}
	}
	return ""
}
