package boot

import "fmt"

// FirstStageRequest is what a DHCP request tells of the firmware that sent it.
type FirstStageRequest struct {
	// Arch is option 93 (RFC 4578, section 2.1; IANA "Processor Architecture Types"), or ArchUnknown
	// when the option is absent.
	Arch uint16
	// IPXE is set when the client is iPXE already.
	IPXE *IPXE
	// HTTP is true when the client boots by UEFI HTTP (vendor class "HTTPClient").
	HTTP bool
}

// IPXE is what an iPXE tells of itself. It may be the firmware's own, which is often old or was built for little.
type IPXE struct {
	// GPXE: it is gPXE, iPXE's forerunner, which does not run iPXE's scripts.
	GPXE bool
	// Features is true when it lists its features; one that lists none is taken to have all.
	Features           bool
	HTTP, BzImage, EFI bool
	// Given is true when the client has just been given our own iPXE, so that this one must be it.
	Given bool
}

// lacks says what keeps an iPXE from carrying out our script on an architecture, empty when nothing does.
func (i IPXE) lacks(arch uint16) string {
	bios := arch == ArchBIOS || arch == ArchUnknown
	switch {
	case i.GPXE:
		return "iPXE's scripts"
	case !i.Features:
		return ""
	case !i.HTTP:
		return "HTTP"
	case bios && !i.BzImage:
		return "Linux kernels (bzImage)"
	case !bios && !i.EFI:
		return "EFI programs"
	}
	return ""
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
	// Replaces is true when File takes the place of an iPXE that cannot do what is needed.
	Replaces bool
	// Reason for a person.
	Reason string
}

// ChooseFirstStage returns the first stage for a firmware. snponly.efi drives the network through the
// firmware's own driver, which is the one that has just worked; undionly.kpxe does the same on BIOS.
//
// An iPXE gets its script. One that could not carry it out gets our own iPXE by TFTP, once: what comes back lacking the same is
// our own, and another turn would not end.
func ChooseFirstStage(request FirstStageRequest) FirstStage {
	ipxe := request.IPXE
	if ipxe == nil {
		return chooseForFirmware(request)
	}
	lacks := ipxe.lacks(request.Arch)
	switch {
	case lacks == "":
		return FirstStage{File: fileScript, URL: true, Reason: "iPXE asks for its script"}
	case ipxe.Given:
		return FirstStage{File: fileScript, URL: true, Reason: fmt.Sprintf("iPXE lacks %s, and it is the one that this server gave out; build and import a new bundle", lacks)}
	}
	stage := chooseForFirmware(FirstStageRequest{Arch: request.Arch})
	stage.Replaces = stage.File != ""
	// It loads by TFTP, which every iPXE can, also where its firmware boots by HTTP.
	stage.URL = false
	stage.Reason = fmt.Sprintf("the firmware's own iPXE lacks %s; %s", lacks, stage.Reason)
	return stage
}

func chooseForFirmware(request FirstStageRequest) FirstStage {
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
