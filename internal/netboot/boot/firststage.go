package boot

import "fmt"

// FirstStageRequest is what a DHCP request tells of the firmware that sent it, after the remedies for its quirks.
type FirstStageRequest struct {
	// Arch is option 93 (RFC 4578, section 2.1; IANA "Processor Architecture Types"), or ArchUnknown
	// when the option is absent.
	Arch uint16
	// IPXE is true when the client is iPXE already. It may be the firmware's own, which is often old or was built for little.
	IPXE bool
	// Replace is why an iPXE cannot carry out our script and is given our own instead; empty: it can.
	Replace string
	// Given is true when the client has just been given our own iPXE, so that this one must be it.
	Given bool
	// OwnDrivers is true when iPXE has to drive the network itself on this machine.
	OwnDrivers bool
	// HTTP is true when the client boots by UEFI HTTP (vendor class "HTTPClient").
	HTTP bool
}

// Client architectures of option 93.
const (
	ArchBIOS        = 0
	ArchUEFI32      = 6
	ArchUEFI64      = 7
	ArchUEFI64Old   = 9 // x64 as RFC 4578 had it before its erratum of 2016
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
	switch {
	case !request.IPXE:
		return chooseForFirmware(request)
	case request.Replace == "":
		return FirstStage{File: fileScript, URL: true, Reason: "iPXE asks for its script"}
	case request.Given:
		return FirstStage{File: fileScript, URL: true, Reason: request.Replace + ": and this is the one that this server gave out; build and import a new bundle"}
	}
	stage := chooseForFirmware(FirstStageRequest{Arch: request.Arch, OwnDrivers: request.OwnDrivers})
	stage.Replaces = stage.File != ""
	// It loads by TFTP, which every iPXE can, also where its firmware boots by HTTP.
	stage.URL = false
	stage.Reason = request.Replace + "; " + stage.Reason
	return stage
}

func chooseForFirmware(request FirstStageRequest) FirstStage {
	file, drivers := fileUEFI, ""
	if request.OwnDrivers {
		file, drivers = fileUEFIFull, ", with iPXE's own drivers"
	}
	switch request.Arch {
	case ArchBIOS:
		return FirstStage{File: fileBIOS, Reason: "BIOS"}
	case ArchUEFI64:
		return FirstStage{File: file, URL: request.HTTP, Reason: "UEFI x64" + drivers}
	case ArchHTTPUEFI64, ArchHTTPUEFIBC:
		return FirstStage{File: file, URL: true, Reason: "UEFI x64 by HTTP" + drivers}
	case ArchUEFIARM64, ArchHTTPARM64:
		return FirstStage{Reason: "UEFI arm64: " + contentNotBuilt}
	case ArchUEFI32:
		return FirstStage{Reason: "32-bit UEFI: " + contentNotBuilt}
	case ArchUnknown:
		return FirstStage{Reason: "no client architecture is told: " + contentNotBuilt}
	}
	return FirstStage{Reason: fmt.Sprintf("client architecture %d: %s", request.Arch, contentNotBuilt)}
}

// FirstStageFiles lists every name that ChooseFirstStage and the boot script can hand out, for the test
// that proves each of them to be served.
func FirstStageFiles() []string {
	return []string{fileBIOS, fileUEFI, fileUEFIFull, fileLocal, fileLocalBIOS, fileScript}
}
