package dhcp

import (
	"fmt"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// IPXE is what an iPXE tells of itself in option 175, its encapsulated options. The zero IPXE is that of a client which tells
// nothing.
type IPXE struct {
	// Features is true when any feature is listed: only then a feature that is not listed is missing.
	Features bool
	// HTTP: downloads by HTTP. BzImage: Linux kernels as on BIOS. EFI: EFI programs, Linux kernels among them.
	HTTP, BzImage, EFI bool
	// Version is such as "1.21.1", empty when it is not told.
	Version string
}

// Tags within option 175. Features have those from 0x10 to 0x7f; their value is a version, above 0 when the feature is there.
const (
	ipxeFirstFeature = 0x10
	ipxeLastFeature  = 0x7f
	ipxeHTTP         = 0x13
	ipxeBzImage      = 0x18
	ipxeEFI          = 0x24
	ipxeVersion      = 0xeb
)

// parseIPXE reads option 175: tags, lengths and values as in DHCP's own options. One that is cut short says nothing.
func parseIPXE(b []byte) IPXE {
	var told IPXE
	for len(b) > 0 {
		tag := b[0]
		switch tag {
		case dhcpv4.OptionPad.Code():
			b = b[1:]
			continue
		case dhcpv4.OptionEnd.Code():
			return told
		}
		if len(b) < 2 || len(b) < 2+int(b[1]) {
			return IPXE{}
		}
		value := b[2 : 2+int(b[1])]
		b = b[2+len(value):]
		switch {
		case tag == ipxeVersion && len(value) == 3:
			told.Version = fmt.Sprintf("%d.%d.%d", value[0], value[1], value[2])
		case tag < ipxeFirstFeature || tag > ipxeLastFeature:
		default:
			told.Features = true
			has := strings.Trim(string(value), "\x00") != ""
			switch tag {
			case ipxeHTTP:
				told.HTTP = has
			case ipxeBzImage:
				told.BzImage = has
			case ipxeEFI:
				told.EFI = has
			}
		}
	}
	return told
}
