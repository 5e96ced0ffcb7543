package boot

import "fmt"

// FirstStageRequest is what a DHCP request tells of the firmware that sent it.
type FirstStageRequest struct {
	// Arch is option 93 (RFC 4578, section 2.1; IANA "Processor Architecture Types"), or ArchUnknown
	// when the option is absent.
	Arch uint16
	// IPXE is true when the client is iPXE already (user class "iPXE").
	IPXE bool
	// HTTP is true when the client boots by UEFI HTTP (vendor class "HTTPClient").
	HTTP bool
}

// Client architectures of option 93.
const (
	ArchBIOS        = 0
	ArchUEFI32      = 6
	ArchUEFIBC      = 7 // "EFI BC" on paper; x64 firmware sends it
	ArchUEFI64      = 9
	ArchUEFIARM64   = 11
	ArchHTTPUEFI64  = 16
	ArchHTTPUEFIBC  = 15
	ArchHTTPARM64   = 19
	ArchUnknown     = 0xffff
	fileBIOS        = "undionly.kpxe"
	fileUEFI        = "snponly.efi"
	fileScript      = "boot.ipxe"
	fileUEFIFull    = "ipxe.efi"
	fileLocal       = "local.efi"
	fileLocalBIOS   = "local.lkrn"
	contentNotBuilt = "no first stage for it is in the bundle"
)

// FirstStage is the file a firmware loads first.
type FirstStage struct {
	// File is a name below the boot server, served by TFTP and by HTTP alike. Empty: none fits.
	File string
	// URL is true when the client must be given File as an http:// URL.
	URL bool
	// Reason for a person.
	Reason string
}

// ChooseFirstStage returns the first stage for a firmware. snponly.efi drives the network through the
// firmware's own driver, which is the one that has just worked; undionly.kpxe does the same on BIOS.
func ChooseFirstStage(request FirstStageRequest) FirstStage {
	if request.IPXE {
		return FirstStage{File: fileScript, URL: true, Reason: "iPXE asks for its script"}
	}
	switch request.Arch {
	case ArchBIOS, ArchUnknown:
		return FirstStage{File: fileBIOS, Reason: "BIOS"}
	case ArchUEFIBC, ArchUEFI64:
		return FirstStage{File: fileUEFI, URL: request.HTTP, Reason: "UEFI x64"}
	case ArchHTTPUEFI64, ArchHTTPUEFIBC:
		return FirstStage{File: fileUEFI, URL: true, Reason: "UEFI x64 by HTTP"}
	case ArchUEFIARM64, ArchHTTPARM64:
		return FirstStage{Reason: "UEFI arm64: " + contentNotBuilt}
	case ArchUEFI32:
		return FirstStage{Reason: "32-bit UEFI: " + contentNotBuilt}
	}
	return FirstStage{Reason: fmt.Sprintf("client architecture %d: %s", request.Arch, contentNotBuilt)}
}

// FirstStageFiles lists every name that ChooseFirstStage and the boot script can hand out, for the test
// that proves each of them to be served.
func FirstStageFiles() []string {
	return []string{fileBIOS, fileUEFI, fileUEFIFull, fileLocal, fileLocalBIOS, fileScript}
}
