package bootprobe

import (
	"fmt"
	"net"
	"slices"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

// Architectures of option 93 (RFC 4578; IANA "Processor Architecture Types").
const (
	archBIOS      = 0
	archUEFI      = 7
	archARM64     = 11
	archUEFIHTTP  = 16
	archARM64HTTP = 19
)

// Firmware is a kind of client.
type Firmware struct {
	Name string
	arch uint16
	http bool // boots by UEFI HTTP
	ipxe bool
	// any is a client that does not boot from the network.
	any bool
	// image is what a loader for it must be; build and platform are what iPXE calls them.
	image           Format
	build, platform string
}

// anyClient shows who gives addresses at all.
var anyClient = Firmware{Name: "any client", any: true}

// Firmwares are the kinds that are asked for, in this order.
func Firmwares() []Firmware {
	bios := Firmware{Name: "BIOS PXE", arch: archBIOS, build: "i386", platform: "pcbios"}
	uefi := Firmware{Name: "UEFI x64 PXE", arch: archUEFI, image: EFIx64, build: "x86_64", platform: "efi"}
	arm := Firmware{Name: "UEFI arm64 PXE", arch: archARM64, image: EFIarm64, build: "arm64", platform: "efi"}
	uefiHTTP, armHTTP := uefi, arm
	uefiHTTP.Name, uefiHTTP.arch, uefiHTTP.http = "UEFI x64 HTTP", archUEFIHTTP, true
	armHTTP.Name, armHTTP.arch, armHTTP.http = "UEFI arm64 HTTP", archARM64HTTP, true
	return []Firmware{bios, uefi, uefiHTTP, arm, armHTTP, bios.loaded(), uefi.loaded()}
}

// loaded is the iPXE that a firmware has loaded.
func (f Firmware) loaded() Firmware {
	f.ipxe, f.http = true, false
	switch f.arch {
	case archBIOS:
		f.Name = "iPXE on BIOS"
	case archUEFI, archUEFIHTTP:
		f.Name, f.arch = "iPXE on UEFI x64", archUEFI
	default:
		f.Name, f.arch = "iPXE on UEFI arm64", archARM64
	}
	return f
}

// Options that the library has no name for.
const (
	optNDI  = dhcpv4.GenericOptionCode(94)
	optUUID = dhcpv4.GenericOptionCode(97)
	optIPXE = dhcpv4.GenericOptionCode(175)
)

// wanted are the options that clients ask for: firmware as EDK2 and Intel's ROMs do, iPXE as it does.
var (
	firmwareWants = []byte{1, 2, 3, 4, 5, 6, 12, 13, 15, 17, 18, 22, 23, 28, 40, 41, 42, 43, 50, 51, 54, 58, 59, 60, 66, 67, 97, 128, 129, 130, 131, 132, 133, 134, 135}
	ipxeWants     = []byte{1, 3, 6, 7, 12, 15, 17, 26, 43, 60, 66, 67, 119, 128, 129, 130, 131, 132, 133, 134, 135, 175, 203}
	ipxeFeatures  = []byte{0x13, 1, 1, 0x12, 1, 1, 0x18, 1, 1, 0x24, 1, 1, 0xeb, 3, 1, 21, 1}
)

// message is a message as a kind of client sends it. seconds are those since it began to ask.
func (f Firmware) message(kind dhcpv4.MessageType, mac net.HardwareAddr, xid dhcpv4.TransactionID, seconds int) *dhcpv4.DHCPv4 {
	m := &dhcpv4.DHCPv4{OpCode: dhcpv4.OpcodeBootRequest, HWType: iana.HWTypeEthernet, ClientHWAddr: mac, TransactionID: xid,
		NumSeconds: uint16(min(seconds, 0xffff)), Options: dhcpv4.Options{}}
	m.SetBroadcast()
	m.UpdateOption(dhcpv4.OptMessageType(kind))
	if kind == dhcpv4.MessageTypeRelease {
		return m
	}
	m.UpdateOption(dhcpv4.OptMaxMessageSize(1472))
	if f.any {
		m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionParameterRequestList, []byte{1, 3, 6, 15, 51, 54}))
		return m
	}
	class := "PXEClient"
	if f.http {
		class = "HTTPClient"
	}
	interfaceVersion := []byte{1, 3, 16} // UNDI
	if f.arch == archBIOS {
		interfaceVersion = []byte{1, 2, 1}
	}
	m.UpdateOption(dhcpv4.OptClassIdentifier(fmt.Sprintf("%s:Arch:%05d:UNDI:%03d%03d", class, f.arch, interfaceVersion[1], interfaceVersion[2])))
	m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionClientSystemArchitectureType, []byte{byte(f.arch >> 8), byte(f.arch)}))
	m.UpdateOption(dhcpv4.OptGeneric(optNDI, interfaceVersion))
	m.UpdateOption(dhcpv4.OptGeneric(optUUID, clientUUID(mac)))
	wants := firmwareWants
	if f.ipxe {
		wants = ipxeWants
		m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionUserClassInformation, []byte("iPXE")))
		m.UpdateOption(dhcpv4.OptGeneric(optIPXE, ipxeFeatures))
	}
	m.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionParameterRequestList, slices.Clone(wants)))
	return m
}

// clientUUID is option 97 for a hardware address: always the same, so that servers see one machine.
func clientUUID(mac net.HardwareAddr) []byte {
	return append([]byte{0, 'c', 'o', 'l', 'd', 'r', 'a', 'c', 'k', 0x40, 0x80}, mac...)
}
