// Package wire holds the types that coldrack-agent and the server exchange: plain JSON over HTTP/2 and
// TLS. It is the contract between the two binaries, so nothing here may import the Kubernetes-style API.
//
// Compatibility: within one major path version (/v1) fields are only added, never renamed or reused; a
// reader ignores what it does not know. The agent of an older bundle must be able to talk to a newer
// server. Sizes are bytes, times RFC 3339 in UTC, digests "sha256:" and 64 hex digits.
package wire

import (
	"fmt"
	"time"

	"coldrack.dev/internal/contract/nodeconfig"
)

// Paths of the machine API. Enroll and Time need no client certificate; the session certificate that
// Enroll issues opens Inventory to Complete; the node certificate opens Heartbeat, Hardware and Renew.
const (
	PathTime       = "/v1/time"       // GET -> Time
	PathEnroll     = "/v1/enroll"     // POST EnrollRequest -> EnrollResponse
	PathInventory  = "/v1/inventory"  // POST Inventory -> Empty
	PathAssignment = "/v1/assignment" // GET ?version=V&wait=SECONDS -> Assignment (long poll)
	PathProgress   = "/v1/progress"   // POST Progress -> ProgressResponse
	PathIdentity   = "/v1/identity"   // POST IdentityRequest -> IdentityResponse
	PathComplete   = "/v1/complete"   // POST Complete -> Empty
	PathHeartbeat  = "/v1/heartbeat"  // POST Heartbeat -> HeartbeatResponse
	PathRenew      = "/v1/renew"      // POST RenewRequest -> IdentityResponse
	PathHardware   = "/v1/hardware"   // POST Hardware -> Empty; of an installed node
	PathLive       = "/v1/live"       // POST LiveRequest -> LiveResponse; for boots of the live system, without a certificate
)

// DHCPClass is what the discovery system calls itself in DHCP (option 60): a server sees by it that a machine has loaded it.
const DHCPClass = "coldrack-agent"

// Kernel command line keys by which the boot script tells the agent where its server is.
const (
	ArgServer = "coldrack.server" // https://HOST:PORT of the machine API
	ArgBoot   = "coldrack.boot"   // http://HOST:PORT of the boot listener (content, time)
	ArgCA     = "coldrack.ca"     // sha256:HEX of the machine CA's SubjectPublicKeyInfo
	ArgNonce  = "coldrack.nonce"  // one-time enrolment nonce of this boot
	ArgMAC    = "coldrack.mac"    // MAC of the interface that booted
	ArgLive   = "coldrack.live"   // "1" is the live system: SSH and a shell in place of enrolment
	ArgDebug  = "coldrack.debug"  // "shell" gives a root shell on the console; never set by default
)

// Empty is an answer without content.
type Empty struct{}

// Error is the body of every answer with a status of 400 or more.
type Error struct {
	// Code is stable and for programs: bad_request, unknown_nonce, identity_exists, forbidden,
	// not_found, conflict, gone, internal.
	Code string `json:"code"`
	// Message is for a person.
	Message string `json:"message"`
}

// Stable error codes.
const (
	CodeBadRequest     = "bad_request"
	CodeUnknownNonce   = "unknown_nonce"
	CodeIdentityExists = "identity_exists"
	CodeForbidden      = "forbidden"
	CodeNotFound       = "not_found"
	CodeConflict       = "conflict"
	CodeInternal       = "internal"
)

// Time is the server's clock.
type Time struct {
	Now time.Time `json:"now"`
}

// Identifiers are the properties by which one machine is told from all others.
type Identifiers struct {
	MACs   []string `json:"macs,omitempty"` // lower case, colons
	UUID   string   `json:"uuid,omitempty"` // lower case, SMBIOS type 1
	Serial string   `json:"serial,omitempty"`
	BMCMAC string   `json:"bmcMAC,omitempty"`
	// USBMACs are those of MACs whose interface is attached by USB: a management controller's, or an adapter.
	USBMACs []string `json:"usbMACs,omitempty"`
}

// EnrollRequest asks for a session certificate for this boot.
type EnrollRequest struct {
	Nonce        string      `json:"nonce"`
	Identifiers  Identifiers `json:"identifiers"`
	BootMAC      string      `json:"bootMAC,omitempty"`
	CSR          string      `json:"csr"` // PEM, PKCS #10; only its public key is used
	AgentVersion string      `json:"agentVersion"`
}

// EnrollResponse carries the session certificate.
type EnrollResponse struct {
	Machine     string    `json:"machine"`
	Certificate string    `json:"certificate"` // PEM, leaf first
	CA          string    `json:"ca"`          // PEM
	ExpiresAt   time.Time `json:"expiresAt"`
}

// LiveRequest asks who may log in to the live system.
type LiveRequest struct {
	Nonce string `json:"nonce"`
}

// LiveResponse says who may log in. There is no secret in it.
type LiveResponse struct {
	Machine string   `json:"machine,omitempty"` // empty where the server does not know it
	SSHKeys []string `json:"sshKeys,omitempty"`
}

// Inventory is what a machine consists of.
type Inventory struct {
	Identifiers Identifiers `json:"identifiers"`
	System      System      `json:"system"`
	CPU         CPU         `json:"cpu"`
	MemoryBytes int64       `json:"memoryBytes"`
	Disks       []Disk      `json:"disks,omitempty"`
	NICs        []NIC       `json:"nics,omitempty"`
	BMC         *BMC        `json:"bmc,omitempty"`
	Firmware    string      `json:"firmware"` // BIOS or UEFI
	SecureBoot  bool        `json:"secureBoot,omitempty"`
	TPM         string      `json:"tpm,omitempty"` // "2.0", "1.2" or empty
	// Address that the machine uses now, without prefix length.
	Address string `json:"address,omitempty"`
	// Hardware is what the machine is built of, beside what stands above. Its Disks are empty here: they are those of the inventory.
	Hardware *Hardware `json:"hardware,omitempty"`
}

// System is the SMBIOS view.
type System struct {
	Vendor        string `json:"vendor,omitempty"`
	Product       string `json:"product,omitempty"`
	Serial        string `json:"serial,omitempty"`
	UUID          string `json:"uuid,omitempty"`
	AssetTag      string `json:"assetTag,omitempty"`
	ChassisSerial string `json:"chassisSerial,omitempty"`
	BIOSVersion   string `json:"biosVersion,omitempty"`
}

// CPU sums up the processors.
type CPU struct {
	Model   string `json:"model,omitempty"`
	Sockets int    `json:"sockets,omitempty"`
	Cores   int    `json:"cores,omitempty"`
	Threads int    `json:"threads,omitempty"`
}

// Disk is one whole block device.
type Disk struct {
	Name       string   `json:"name"`           // kernel name of this boot: "sda"
	ByID       []string `json:"byID,omitempty"` // names below /dev/disk/by-id, most stable first
	Model      string   `json:"model,omitempty"`
	Vendor     string   `json:"vendor,omitempty"`
	Serial     string   `json:"serial,omitempty"`
	WWN        string   `json:"wwn,omitempty"`
	SizeBytes  int64    `json:"sizeBytes"`
	Rotational bool     `json:"rotational,omitempty"`
	Transport  string   `json:"transport,omitempty"` // nvme, sata, sas, virtio, usb, iscsi, mmc
	ReadOnly   bool     `json:"readOnly,omitempty"`
	Removable  bool     `json:"removable,omitempty"`
	Contents   []string `json:"contents,omitempty"` // partitions and file systems; empty: blank
	Marker     string   `json:"marker,omitempty"`   // GUID of the partition table, if an install of ours wrote it
	Firmware   string   `json:"firmware,omitempty"` // its revision, as the disk says it
	State      string   `json:"state,omitempty"`    // of a disk that the kernel does not use as usual: "offline", "dead"
	// Health is what an NVMe disk says of itself; nil for others.
	Health *DiskHealth `json:"health,omitempty"`
}

// NIC is one network interface.
type NIC struct {
	Name      string `json:"name"`
	MAC       string `json:"mac"`
	Driver    string `json:"driver,omitempty"`
	Link      bool   `json:"link,omitempty"`
	SpeedMbps int    `json:"speedMbps,omitempty"`
	Boot      bool   `json:"boot,omitempty"`
	// Bus that the interface is attached by, such as pci, virtio or usb.
	Bus  string `json:"bus,omitempty"`
	LLDP *LLDP  `json:"lldp,omitempty"`
}

// LLDP is the switch port behind a NIC.
type LLDP struct {
	ChassisID  string `json:"chassisID,omitempty"`
	SystemName string `json:"systemName,omitempty"`
	PortID     string `json:"portID,omitempty"`
	PortDesc   string `json:"portDescription,omitempty"`
	VLAN       int    `json:"vlan,omitempty"`
}

// BMC is the management controller as seen from inside.
type BMC struct {
	Address string `json:"address,omitempty"`
	MAC     string `json:"mac,omitempty"`
	// Firmware is its version, "2.14".
	Firmware string `json:"firmware,omitempty"`
}

// Action is what a machine in discovery shall do.
type Action string

const (
	ActionWait    Action = "wait"    // stay in discovery, ask again
	ActionInstall Action = "install" // carry Plan out
	ActionRelease Action = "release" // wipe as Release says
	ActionReboot  Action = "reboot"  // boot again: the server will decide anew
)

// Assignment answers "what shall I do?".
type Assignment struct {
	// Version changes whenever the assignment does; the long poll returns at once when the caller's differs.
	Version string       `json:"version"`
	Action  Action       `json:"action"`
	Message string       `json:"message,omitempty"` // shown on the machine's console
	Plan    *InstallPlan `json:"plan,omitempty"`    // with ActionInstall
	Release *ReleasePlan `json:"release,omitempty"` // with ActionRelease
}

// InstallPlan is everything a machine needs to install itself.
type InstallPlan struct {
	// IntentID of the persisted intent that this plan carries out.
	IntentID string `json:"intentID"`
	Machine  string `json:"machine"`
	// OwnIntentIDs are intents under which Coldrack wrote this machine's disk before, this one included:
	// a disk that carries one of their markers is ours to overwrite.
	OwnIntentIDs []string `json:"ownIntentIDs"`
	// OwnMarkers are markers that are the machine's own, too, by GUID: the intents behind them are not known.
	OwnMarkers []string  `json:"ownMarkers,omitempty"`
	RootDisk   DiskHints `json:"rootDisk"`
	Wipe       string    `json:"wipe"` // a wipe policy
	Image      Image     `json:"image"`
	Boot       BootFiles `json:"boot"`
	KernelArgs []string  `json:"kernelArgs,omitempty"`
	Console    []string  `json:"console,omitempty"` // kernel console list, last one primary
	// MinMemoryBytes below which the install refuses.
	MinMemoryBytes int64             `json:"minMemoryBytes,omitempty"`
	Config         nodeconfig.Config `json:"config"`
	// FirstBoot is set for the image of a whole disk, which makes itself this machine when it first starts. Config then says what
	// FirstBoot was made of.
	FirstBoot *FirstBoot `json:"firstBoot,omitempty"`
}

// FirstBoot is what a whole-disk image is told at its first boot; one of its fields is set.
type FirstBoot struct {
	NoCloud  *NoCloud  `json:"noCloud,omitempty"`
	Ignition *Ignition `json:"ignition,omitempty"`
}

// NoCloud are the files of cloud-init's datasource of this name.
type NoCloud struct {
	UserData      []byte `json:"userData"`
	MetaData      []byte `json:"metaData"`
	NetworkConfig []byte `json:"networkConfig"`
}

// Ignition is a config, and where it goes. Beside it, in the folder Agent, lie the agent (coldrack-agent), its settings (agent.json) and its
// identity (node.pem); the config has what puts them in place.
type Ignition struct {
	Config    []byte `json:"config"`
	Partition string `json:"partition"` // by its name in the partition table
	Path      string `json:"path"`      // of the config's file on it
	Agent     string `json:"agent"`     // path of the folder on it
}

// Content names a blob; it is fetched from the boot listener below /content/ and checked by its digest.
type Content struct {
	Digest string `json:"digest"`
	Size   int64  `json:"size"`
}

// Image is the root file system to write, or the whole disk (FirstBoot).
type Image struct {
	Name   string  `json:"name"`
	Family string  `json:"family"`
	Index  Content `json:"index"` // JSON, diskimage.Index
	// Digest and Size of the raw image.
	Digest string `json:"digest"`
	Size   int64  `json:"size"`
}

// BootFiles are what makes the disk start, by BIOS and by UEFI.
type BootFiles struct {
	BIOSBoot Content `json:"biosBoot"` // GRUB boot.img
	BIOSCore Content `json:"biosCore"` // GRUB core.img
	Shim     Content `json:"shim"`     // EFI/BOOT/BOOTX64.EFI
	GRUB     Content `json:"grub"`     // EFI/BOOT/grubx64.efi
}

// DiskHints select one disk. All given hints must hold, and exactly one disk must match.
type DiskHints struct {
	ByID         string `json:"byID,omitempty"` // pattern
	Serial       string `json:"serial,omitempty"`
	WWN          string `json:"wwn,omitempty"`
	Model        string `json:"model,omitempty"` // pattern
	Transport    string `json:"transport,omitempty"`
	MinSizeBytes int64  `json:"minSizeBytes,omitempty"`
	MaxSizeBytes int64  `json:"maxSizeBytes,omitempty"`
	Rotational   *bool  `json:"rotational,omitempty"`
	Smallest     bool   `json:"smallest,omitempty"`
}

// ReleasePlan wipes a machine.
type ReleasePlan struct {
	IntentID string `json:"intentID"`
	Machine  string `json:"machine"`
	// OwnIntentIDs as in InstallPlan: only disks that carry one of these markers are wiped.
	OwnIntentIDs []string `json:"ownIntentIDs"`
	OwnMarkers   []string `json:"ownMarkers,omitempty"`
	// Wipe is a wipe policy; an older server sends none, which is WipeIfOurs. Foreign disks stay as they are under all policies.
	Wipe string `json:"wipe,omitempty"`
}

// Wipe policies. WipeIfOurs has the name that agents knew before there were others.
const (
	WipeNever  = "Never"         // nothing is overwritten but blank disks
	WipeIfOurs = "RefuseForeign" // what this machine's intents wrote
	WipeAlways = "Always"        // anything
	WipeSecure = "Secure"        // as WipeIfOurs, and every byte of the disk is erased
)

// CheckWipe refuses a policy that this program does not know: a newer server may mean one that forbids more.
func CheckWipe(policy string) error {
	switch policy {
	case WipeNever, WipeIfOurs, WipeAlways, WipeSecure:
		return nil
	}
	return fmt.Errorf("this agent does not know the wipe policy %q: import a bundle with a newer discovery system, or change wipe of the profile", policy)
}

// Names of the steps of an install, in order, and of a release.
const (
	StepPreflight  = "preflight"
	StepSelectDisk = "select-disk"
	StepWipe       = "wipe"
	StepPartition  = "partition"
	StepFilesystem = "filesystem" // ESP and swap space of the layout; the root file system comes with the image
	StepImage      = "image"
	StepBootloader = "bootloader"
	StepNodeConfig = "node-config"
	StepIdentity   = "identity"
	StepReboot     = "reboot"
)

// InstallSteps and ReleaseSteps are the plan of steps, in order.
func InstallSteps() []string {
	return []string{StepPreflight, StepSelectDisk, StepWipe, StepPartition, StepFilesystem, StepImage,
		StepBootloader, StepNodeConfig, StepIdentity, StepReboot}
}

// ReleaseSteps are the steps of a release, in order.
func ReleaseSteps() []string {
	return []string{StepPreflight, StepSelectDisk, StepWipe, StepReboot}
}

// State of a step.
type State string

const (
	StatePending   State = "Pending"
	StateRunning   State = "Running"
	StateSucceeded State = "Succeeded"
	StateFailed    State = "Failed"
	StateSkipped   State = "Skipped"
)

// Step is one named part of an install or release.
type Step struct {
	Name       string     `json:"name"`
	State      State      `json:"state"`
	StartedAt  *time.Time `json:"startedAt,omitempty"`
	FinishedAt *time.Time `json:"finishedAt,omitempty"`
	BytesDone  int64      `json:"bytesDone,omitempty"`
	BytesTotal int64      `json:"bytesTotal,omitempty"`
	Message    string     `json:"message,omitempty"`
	// Reason is one sentence on what a node's phase is for, and Attempts how often it was begun.
	Reason   string `json:"reason,omitempty"`
	Attempts int    `json:"attempts,omitempty"`
}

// Progress reports all steps of the running act; it replaces what was reported before.
type Progress struct {
	IntentID string `json:"intentID"`
	Steps    []Step `json:"steps"`
	// Log holds new lines of the agent's log since the last report.
	Log []string `json:"log,omitempty"`
}

// ProgressResponse may end the act.
type ProgressResponse struct {
	// Cancel is true when the intent is no longer wanted: stop and ask for the assignment again.
	Cancel bool `json:"cancel,omitempty"`
}

// IdentityRequest asks for the node's certificate. The key was made on the node's disk and stays there.
type IdentityRequest struct {
	IntentID string `json:"intentID"`
	CSR      string `json:"csr"` // PEM, PKCS #10; only its public key is used
}

// RenewRequest asks for a new certificate in place of one that is about to expire.
type RenewRequest struct {
	CSR string `json:"csr"`
}

// IdentityResponse carries the node's certificate.
type IdentityResponse struct {
	Certificate string    `json:"certificate"` // PEM, leaf first
	CA          string    `json:"ca"`          // PEM
	ExpiresAt   time.Time `json:"expiresAt"`
}

// Complete acknowledges an intent: after Succeeded the server never asks for it again.
type Complete struct {
	IntentID string `json:"intentID"`
	State    State  `json:"state"` // Succeeded or Failed
	Message  string `json:"message,omitempty"`
	// Disk and ImageDigest that were written, after a successful install.
	Disk        string `json:"disk,omitempty"`
	ImageDigest string `json:"imageDigest,omitempty"`
	Steps       []Step `json:"steps,omitempty"`
}

// Heartbeat is what an installed node reports of itself.
type Heartbeat struct {
	AgentVersion string    `json:"agentVersion"`
	OS           string    `json:"os"`
	Kernel       string    `json:"kernel"`
	BootID       string    `json:"bootID"`
	BootedAt     time.Time `json:"bootedAt"`
	Addresses    []string  `json:"addresses,omitempty"` // with prefix length
	// Interfaces says by address, without prefix length, which interface has it.
	Interfaces  map[string]string `json:"interfaces,omitempty"`
	FailedUnits []string          `json:"failedUnits,omitempty"`
	// RebootRequired is set while the operating system asks for a reboot.
	RebootRequired *RebootRequired `json:"rebootRequired,omitempty"`
	// Now is the node's clock, from which the server tells a skew.
	Now time.Time `json:"now"`
	// Log holds new lines of the agent's log since the last report.
	Log []string `json:"log,omitempty"`
}

// RebootRequired is what /run/reboot-required says, a file that the scripts of Debian's packages write.
type RebootRequired struct {
	// Packages that were updated; empty when it does not say.
	Packages []string `json:"packages,omitempty"`
}

// HeartbeatResponse tells when to report next.
type HeartbeatResponse struct {
	IntervalSeconds int `json:"intervalSeconds"`
	// Reboot asks the node to boot again: from the network, because an intent waits for it, or because it is its turn in its cluster.
	Reboot bool `json:"reboot,omitempty"`
	// RebootReason is for the node's log and console.
	RebootReason string `json:"rebootReason,omitempty"`
}
