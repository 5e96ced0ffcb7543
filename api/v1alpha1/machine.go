package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Machine is one server, physical or virtual. It appears by itself when an unknown machine boots from
// the network, or is written beforehand from a rack sheet.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=mc;machine,categories=coldrack
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Step",type=string,JSONPath=`.status.currentStep`
// +kubebuilder:printcolumn:name="Address",type=string,JSONPath=`.status.address`
// +kubebuilder:printcolumn:name="Profile",type=string,JSONPath=`.spec.profile`
// +kubebuilder:printcolumn:name="Power",type=string,JSONPath=`.status.power.state`,priority=1
// +kubebuilder:printcolumn:name="Rack",type=string,JSONPath=`.spec.location.rack`,priority=1
// +kubebuilder:printcolumn:name="Unit",type=integer,JSONPath=`.spec.location.unit`,priority=1
// +kubebuilder:printcolumn:name="Serial",type=string,JSONPath=`.status.inventory.system.serial`,priority=1
// +kubebuilder:printcolumn:name="Model",type=string,JSONPath=`.status.inventory.system.product`,priority=1
// +kubebuilder:printcolumn:name="Reboot",type=string,JSONPath=`.status.rebootState`,priority=1
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Machine struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   MachineSpec   `json:"spec,omitempty"`
	Status MachineStatus `json:"status,omitempty"`
}

// MachineList is a list of Machines.
//
// +kubebuilder:object:root=true
type MachineList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Machine `json:"items"`
}

// MachineSpec is what a person wants of a machine.
type MachineSpec struct {
	// Identifiers by which the machine is recognised before it has ever reported. Any one that matches is
	// enough, as long as none contradicts. What the machine reports later is in status.inventory.
	// +optional
	Identifiers Identifiers `json:"identifiers,omitempty"`

	// Location of the machine in the data centre.
	// +optional
	Location Location `json:"location,omitempty"`

	// Expected is what the rack sheet says of the machine's hardware and cables.
	// +optional
	Expected *Expected `json:"expected,omitempty"`

	// BMC is the machine's management controller.
	// +optional
	BMC *BMC `json:"bmc,omitempty"`

	// Approved lets the machine be installed. Until then it waits in discovery and no disk is touched.
	// +optional
	Approved bool `json:"approved,omitempty"`

	// Hostname of the installed node. Defaults to the Machine's name.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Hostname string `json:"hostname,omitempty"`
	// DHCPOptions are further options that this machine gets by DHCP, if it asks for them. They replace those of its Subnet with the same code.
	// +optional
	// +listType=map
	// +listMapKey=code
	// +kubebuilder:validation:MaxItems=32
	DHCPOptions []DHCPOption `json:"dhcpOptions,omitempty"`

	// Profile names the Profile that says how the machine is installed. Required once approved.
	// +optional
	Profile string `json:"profile,omitempty"`

	// Image overrides the Profile's image.
	// +optional
	Image string `json:"image,omitempty"`

	// Network of the installed node. Without it the node keeps the address its subnet's plan assigns.
	// +optional
	Network *MachineNetwork `json:"network,omitempty"`

	// RootDisk overrides the Profile's disk hints.
	// +optional
	RootDisk *DiskHints `json:"rootDisk,omitempty"`

	// Intent is the one destructive act that is wanted now. Writing an Intent with a new id asks for it;
	// status.intent acknowledges it. An id that was acknowledged is never carried out again.
	// +optional
	Intent *Intent `json:"intent,omitempty"`

	// Rescue has the machine boot the live system from the network, until it is removed: SSH and a shell, and no disk is touched. An Intent
	// waits as long. "coldrack rescue" writes it.
	// +optional
	Rescue *Rescue `json:"rescue,omitempty"`
}

// Rescue says who may log in to the live system.
type Rescue struct {
	// SSHKeys may log in as root, one OpenSSH public key each.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=8192
	SSHKeys []string `json:"sshKeys,omitempty"`
	// Autologin opens a root shell on the console, without a password.
	// +optional
	Autologin bool `json:"autologin,omitempty"`
	// RequestedBy is who asked, for the record.
	// +optional
	RequestedBy string `json:"requestedBy,omitempty"`
	// +optional
	RequestedAt *metav1.Time `json:"requestedAt,omitempty"`
}

// Identifiers are the properties by which one physical machine is told from all others.
type Identifiers struct {
	// MACs of network interfaces, lower case with colons.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:Pattern=`^([0-9a-f]{2}:){5}[0-9a-f]{2}$`
	MACs []string `json:"macs,omitempty"`
	// UUID of the system (SMBIOS type 1), lower case. Known duplicates of vendors are ignored.
	// +optional
	// +kubebuilder:validation:Pattern=`^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$`
	UUID string `json:"uuid,omitempty"`
	// Serial number of the system (SMBIOS type 1).
	// +optional
	Serial string `json:"serial,omitempty"`
	// BMCMAC is the MAC of the management controller.
	// +optional
	// +kubebuilder:validation:Pattern=`^([0-9a-f]{2}:){5}[0-9a-f]{2}$`
	BMCMAC string `json:"bmcMAC,omitempty"`
}

// Location says where a machine stands.
type Location struct {
	// +optional
	Site string `json:"site,omitempty"`
	// +optional
	Room string `json:"room,omitempty"`
	// +optional
	Rack string `json:"rack,omitempty"`
	// Unit is the lowest rack unit that the machine occupies, counted from the bottom.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	Unit int32 `json:"unit,omitempty"`
	// Chassis is the enclosure that the machine is in, where several machines share one.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Chassis string `json:"chassis,omitempty"`
	// Slot is the machine's place in its chassis, counted from 1.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	Slot int32 `json:"slot,omitempty"`
}

// Expected is what a rack sheet says of a machine's hardware and cables. What the machine reports is compared with it. A field that
// is not set is not compared.
type Expected struct {
	// Memory that the machine was bought with. Firmware keeps some of it, so a machine may report a little less.
	// +optional
	Memory *resource.Quantity `json:"memory,omitempty"`
	// Cores of all processors together.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Cores int32 `json:"cores,omitempty"`
	// Disks are those that are built in; removable and read-only ones do not count.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Disks int32 `json:"disks,omitempty"`
	// SwitchPorts are the ports that the machine's cables end at.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	SwitchPorts []SwitchPort `json:"switchPorts,omitempty"`
}

// SwitchPort is where a cable ends, as the switch says by LLDP.
type SwitchPort struct {
	// Switch is its system name, with or without its domain, or its chassis ID.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=255
	Switch string `json:"switch"`
	// Port is its port ID or port description. Empty: any port of the switch.
	// +optional
	// +kubebuilder:validation:MaxLength=255
	Port string `json:"port,omitempty"`
	// MAC of the machine's interface at the other end. Empty: any of its interfaces.
	// +optional
	// +kubebuilder:validation:Pattern=`^([0-9a-f]{2}:){5}[0-9a-f]{2}$`
	MAC string `json:"mac,omitempty"`
}

// BMC is how to reach a management controller.
type BMC struct {
	// Address is a host or host:port.
	Address string `json:"address"`
	// Protocol is redfish or ipmi.
	// +kubebuilder:validation:Enum=redfish;ipmi
	// +kubebuilder:default=redfish
	// +optional
	Protocol string `json:"protocol,omitempty"`
	// CredentialsSecret names a Secret of type bmc-credentials with the keys username, password and addresses, which
	// "coldrack bmc set-password" writes. The password is sent only to addresses that the Secret names.
	// +optional
	CredentialsSecret string `json:"credentialsSecret,omitempty"`
	// System chooses the machine where a Redfish service has several: the last part of its path, such as System.Embedded.1.
	// +optional
	// +kubebuilder:validation:MaxLength=128
	System string `json:"system,omitempty"`
	// Certificate is the only one that a Redfish service is accepted with: sha256: and the hexadecimal digest of its DER
	// bytes. "coldrack bmc trust" records it. Without it and authority, the server's system authorities decide.
	// +optional
	Certificate string `json:"certificate,omitempty"`
	// Authority is the PEM certificate of the authority that signs the certificates of BMCs.
	// +optional
	Authority string `json:"authority,omitempty"`
}

// PowerState is whether a machine has power, as its BMC says.
// +kubebuilder:validation:Enum=On;Off;PoweringOn;PoweringOff;Unknown
type PowerState string

// PowerStatus is what is known of a machine's power by its BMC.
type PowerStatus struct {
	State PowerState `json:"state"`
	// SeenAt is when the BMC said so. It is written when the state changes, and about every half an hour.
	// +optional
	SeenAt *metav1.Time `json:"seenAt,omitempty"`
	// Problem says why the BMC cannot be asked now, and what to do; State is then the last one known. Reason is the kind of problem.
	// +optional
	Problem string `json:"problem,omitempty"`
	// +optional
	Reason string `json:"reason,omitempty"`
}

// MachineNetwork is the installed node's network. Its layout, where it has one, takes the place of its Profile's as a whole. A change is
// carried out by the next install.
type MachineNetwork struct {
	// Subnet names the Subnet that the addresses belong to.
	// +optional
	Subnet string `json:"subnet,omitempty"`
	// Address of the node, without prefix length; must lie within the Subnet.
	// +optional
	Address string `json:"address,omitempty"`
	// MAC of the interface that carries the address, where link names none. Defaults to the one the machine booted from.
	// +optional
	// +kubebuilder:validation:Pattern=`^([0-9a-f]{2}:){5}[0-9a-f]{2}$`
	MAC string `json:"mac,omitempty"`

	NetworkLayout `json:",inline"`

	// Addresses are further ones, also on links of the Profile's layout. One on the link of the node's address makes the node reachable
	// in both IP families.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=64
	Addresses []NodeAddress `json:"addresses,omitempty"`
}

// IntentAction is what an Intent wants done.
// +kubebuilder:validation:Enum=Install;Reinstall;Release
type IntentAction string

const (
	// ActionInstall installs a machine that Coldrack has not installed before.
	ActionInstall IntentAction = "Install"
	// ActionReinstall installs again, over what Coldrack installed, and gives the machine a new identity.
	ActionReinstall IntentAction = "Reinstall"
	// ActionRelease wipes the machine's disks and forgets its identity.
	ActionRelease IntentAction = "Release"
)

// Intent is one persisted wish for a destructive act.
type Intent struct {
	// ID tells this wish from every earlier one. Any unique text; a UUID by default.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=64
	ID     string       `json:"id"`
	Action IntentAction `json:"action"`
	// RequestedBy is who asked, for the record.
	// +optional
	RequestedBy string `json:"requestedBy,omitempty"`
	// +optional
	RequestedAt *metav1.Time `json:"requestedAt,omitempty"`
}

// IntentState is how far an Intent has come.
// +kubebuilder:validation:Enum=Pending;Running;Succeeded;Failed
type IntentState string

const (
	IntentPending   IntentState = "Pending"
	IntentRunning   IntentState = "Running"
	IntentSucceeded IntentState = "Succeeded"
	IntentFailed    IntentState = "Failed"
)

// IntentStatus acknowledges an Intent.
type IntentStatus struct {
	ID     string       `json:"id"`
	Action IntentAction `json:"action"`
	State  IntentState  `json:"state"`
	// Attempts counts how often a machine began to carry the intent out.
	// +optional
	Attempts int32 `json:"attempts,omitempty"`
	// +optional
	Message string `json:"message,omitempty"`
	// +optional
	StartedAt *metav1.Time `json:"startedAt,omitempty"`
	// +optional
	FinishedAt *metav1.Time `json:"finishedAt,omitempty"`
}

// MachinePhase is where a machine stands on its way from a cold rack to a node.
type MachinePhase string

const (
	// PhaseExpected: written beforehand, has never been seen.
	PhaseExpected MachinePhase = "Expected"
	// PhaseDiscovering: has asked for a boot but not yet reported what it is.
	PhaseDiscovering MachinePhase = "Discovering"
	// PhaseWaiting: has reported and waits for approval.
	PhaseWaiting MachinePhase = "Waiting"
	// PhaseApproved: approved, an install is due but has not begun.
	PhaseApproved MachinePhase = "Approved"
	// PhaseInstalling: an install is running.
	PhaseInstalling MachinePhase = "Installing"
	// PhaseRebooting: installed, not yet heard of from its own disk.
	PhaseRebooting MachinePhase = "Rebooting"
	// PhaseReady: installed, booted from its disk, heartbeats arrive.
	PhaseReady MachinePhase = "Ready"
	// PhaseLost: was Ready or installing, and has not been heard of for too long.
	PhaseLost MachinePhase = "Lost"
	// PhaseFailed: the last act failed; status.message says why and what to do.
	PhaseFailed MachinePhase = "Failed"
	// PhaseReleasing: its disks are being wiped.
	PhaseReleasing MachinePhase = "Releasing"
	// PhaseReleased: wiped; it may be removed or enrolled anew.
	PhaseReleased MachinePhase = "Released"
)

// MachineStatus is what is known of a machine.
type MachineStatus struct {
	// +optional
	Phase MachinePhase `json:"phase,omitempty"`
	// PhaseSince is when Phase last changed.
	// +optional
	PhaseSince *metav1.Time `json:"phaseSince,omitempty"`
	// Message for a person: why the machine is in this phase, and what to do if it is stuck.
	// +optional
	Message string `json:"message,omitempty"`
	// CurrentStep is the running step with its progress, for example "image 43%".
	// +optional
	CurrentStep string `json:"currentStep,omitempty"`
	// Address at which the machine was last seen.
	// +optional
	Address string `json:"address,omitempty"`
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// Intent acknowledges spec.intent.
	// +optional
	Intent *IntentStatus `json:"intent,omitempty"`
	// PastIntents are the ids that were acknowledged before the one in Intent, oldest first. None of them
	// is carried out again, and a disk that carries one of their marks is this machine's own.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	PastIntents []string `json:"pastIntents,omitempty"`
	// Steps of the current or last act, in order.
	// +optional
	// +listType=atomic
	Steps []Step `json:"steps,omitempty"`
	// Installed is what the last successful install put on the machine.
	// +optional
	Installed *InstalledStatus `json:"installed,omitempty"`
	// Identity of the installed node. While it is set, nobody can enrol as this machine without an Intent.
	// +optional
	Identity *IdentityStatus `json:"identity,omitempty"`
	// Session is the one that enrolled last; it ends every earlier one, also after the server was restarted.
	// +optional
	Session *SessionStatus `json:"session,omitempty"`
	// KeyRefused is a key that was refused though this server's machine authority signed it for this machine: that of an old
	// disk, or the node's own after a backup was restored that does not know it. "coldrack readmit" makes it the identity.
	// +optional
	KeyRefused *KeyRefusedStatus `json:"keyRefused,omitempty"`
	// Node is what the installed node's agent reports.
	// +optional
	Node *NodeStatus `json:"node,omitempty"`
	// Reboot is the reboot that the annotation coldrack.dev/reboot asks for.
	// +optional
	Reboot *RebootStatus `json:"reboot,omitempty"`
	// RebootState says for what a reboot that is due waits, or that its turn has come.
	// +optional
	RebootState string `json:"rebootState,omitempty"`
	// Rebooted is the last reboot that the machine made with the lock of a RebootGroup; at is when it got the lock.
	// +optional
	Rebooted *NodeReboot `json:"rebooted,omitempty"`
	// Kubernetes is how far the machine is as a node of its cluster.
	// +optional
	Kubernetes *KubernetesStatus `json:"kubernetes,omitempty"`
	// Inventory is what the machine consists of, as discovery reported it.
	// +optional
	Inventory *Inventory `json:"inventory,omitempty"`
	// Hardware is what the machine is built of, as it reported last.
	// +optional
	Hardware *Hardware `json:"hardware,omitempty"`
	// AcceptedHardware is what the machine is meant to be built of; the condition HardwareDrift tells what has become of it. It is there
	// once the machine is approved and has reported.
	// +optional
	AcceptedHardware *AcceptedHardware `json:"acceptedHardware,omitempty"`
	// Boots are the last network boots, newest first, each with the decision and its reason.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=10
	Boots []BootRecord `json:"boots,omitempty"`
	// Power is what the BMC says; it is there while spec.bmc is.
	// +optional
	Power *PowerStatus `json:"power,omitempty"`
	// Lease is the address that DHCP or a plan gave the machine for booting.
	// +optional
	Lease *LeaseStatus `json:"lease,omitempty"`

	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Conditions of a Machine.
const (
	// ConditionReady: the node runs from its disk and reports.
	ConditionReady = "Ready"
	// ConditionDiscovered: the machine has reported its inventory.
	ConditionDiscovered = "Discovered"
	// ConditionApproved: a person or a policy approved the machine.
	ConditionApproved = "Approved"
	// ConditionInstalled: the wanted image is on the machine's disk.
	ConditionInstalled = "Installed"
	// ConditionIdentityConflict: another machine shares identifiers with this one.
	ConditionIdentityConflict = "IdentityConflict"
	// ConditionBlocked: what was asked for cannot begin. It is there only while that is so.
	ConditionBlocked = "Blocked"
	// ConditionHeld: what was asked for begins when the cluster that the machine belongs to has let it go. It is there only
	// while that is so.
	ConditionHeld = "Held"
	// ConditionKeyRefused: a node shows a key for this machine that is not its recorded identity. It is there only while that is so.
	ConditionKeyRefused = "KeyRefused"
	// ConditionUnknownInstallation: a disk of the machine bears an installation by Coldrack that this server does not know. No policy
	// approves the machine. It is there only while that is so.
	ConditionUnknownInstallation = "UnknownInstallation"
	// ConditionBMCReachable: the BMC answers, and accepts the credentials. It is there while spec.bmc is.
	ConditionBMCReachable = "BMCReachable"
	// ConditionAsExpected: the hardware and the cables are as spec.expected says. It is there while something is expected and the
	// machine has reported.
	ConditionAsExpected = "AsExpected"
	// ConditionHardwareDrift: something that the machine had is missing, or a link is slower than it could be. It is there only while
	// that is so, and nobody has accepted it.
	ConditionHardwareDrift = "HardwareDrift"
	// ConditionDiskFailing: a disk says that it fails, or the kernel has given it up. It is there only while that is so.
	ConditionDiskFailing = "DiskFailing"
)

// Reasons of the condition Blocked.
const (
	// ReasonNotApproved: the machine is not approved.
	ReasonNotApproved = "NotApproved"
	// ReasonPlanIncomplete: what the install is made of is missing or contradicts itself.
	ReasonPlanIncomplete = "PlanIncomplete"
	// ReasonImageMismatch: the Profile asks for what the image does not have, or has otherwise.
	ReasonImageMismatch = "ImageMismatch"
	// ReasonStoreRestored: the intent is from a backup that the store was restored from, and may have been carried out since.
	ReasonStoreRestored = "StoreRestored"
	// ReasonBootsFromDisk: the node was told to boot from the network and came back from its own disk.
	ReasonBootsFromDisk = "BootsFromDisk"
)

// StepState is the state of one Step.
// +kubebuilder:validation:Enum=Pending;Running;Succeeded;Failed;Skipped
type StepState string

const (
	StepPending   StepState = "Pending"
	StepRunning   StepState = "Running"
	StepSucceeded StepState = "Succeeded"
	StepFailed    StepState = "Failed"
	StepSkipped   StepState = "Skipped"
)

// Step is one named part of an install or a release.
type Step struct {
	Name  string    `json:"name"`
	State StepState `json:"state"`
	// +optional
	StartedAt *metav1.MicroTime `json:"startedAt,omitempty"`
	// +optional
	FinishedAt *metav1.MicroTime `json:"finishedAt,omitempty"`
	// BytesDone and BytesTotal, where a step moves data.
	// +optional
	BytesDone int64 `json:"bytesDone,omitempty"`
	// +optional
	BytesTotal int64 `json:"bytesTotal,omitempty"`
	// Message says what was done, or why it failed and what to do.
	// +optional
	Message string `json:"message,omitempty"`
}

// InstalledStatus is the record of the last successful install.
type InstalledStatus struct {
	// IntentID of the Intent that the install carried out.
	IntentID string `json:"intentID"`
	Image    string `json:"image"`
	// ImageDigest of the raw image that was written and verified.
	ImageDigest string `json:"imageDigest"`
	// Disk is the stable name of the disk that was written.
	Disk    string      `json:"disk"`
	Profile string      `json:"profile,omitempty"`
	At      metav1.Time `json:"at"`
	// Marker of the disk, where the installation was adopted: the intent that wrote it is then not known.
	// +optional
	Marker string `json:"marker,omitempty"`
}

// IdentityStatus describes the certificate of an installed node.
type IdentityStatus struct {
	// KeyFingerprint is "sha256:" and the hex SHA-256 of the public key (SubjectPublicKeyInfo).
	KeyFingerprint string `json:"keyFingerprint"`
	// NextKeyFingerprint is the key of a renewed certificate that the node has not used yet. With its first
	// use it becomes KeyFingerprint; until then both count, because the answer may have been lost.
	// +optional
	NextKeyFingerprint string      `json:"nextKeyFingerprint,omitempty"`
	IssuedAt           metav1.Time `json:"issuedAt"`
	ExpiresAt          metav1.Time `json:"expiresAt"`
}

// SessionStatus describes the session of a machine that is not installed, or is being installed.
type SessionStatus struct {
	// KeyFingerprint is that of IdentityStatus, for the session's key.
	KeyFingerprint string      `json:"keyFingerprint"`
	IssuedAt       metav1.Time `json:"issuedAt"`
}

// KeyRefusedStatus describes a key that was refused.
type KeyRefusedStatus struct {
	// KeyFingerprint is that of IdentityStatus. "coldrack-agent fingerprint" on the node shows the one that it has.
	KeyFingerprint string `json:"keyFingerprint"`
	// IssuedAt is when its certificate was issued.
	IssuedAt metav1.Time `json:"issuedAt"`
	// From is the address that it came from, and At when it first did.
	From string      `json:"from"`
	At   metav1.Time `json:"at"`
}

// NodeStatus is what an installed node reports of itself.
type NodeStatus struct {
	AgentVersion string `json:"agentVersion,omitempty"`
	OS           string `json:"os,omitempty"`
	Kernel       string `json:"kernel,omitempty"`
	// BootID changes with every boot.
	BootID string `json:"bootID,omitempty"`
	// BootedAt is when the running system was started.
	// +optional
	BootedAt *metav1.Time `json:"bootedAt,omitempty"`
	// ReadyAt is when the node was first heard of after its last boot.
	// +optional
	ReadyAt *metav1.Time `json:"readyAt,omitempty"`
	// Addresses of the node, with prefix length.
	// +optional
	// +listType=atomic
	Addresses []string `json:"addresses,omitempty"`
	// Interface that has the node's address, as the installed system names it.
	// +optional
	Interface string `json:"interface,omitempty"`
	// FailedUnits are systemd units that failed.
	// +optional
	// +listType=atomic
	FailedUnits []string `json:"failedUnits,omitempty"`
	// RebootRequired is what makes the operating system ask for a reboot, such as packages that were updated; empty when it does not.
	// +optional
	RebootRequired string `json:"rebootRequired,omitempty"`
}

// RebootStatus is a reboot that a person asked for. It was carried out when the node reports another boot than this.
type RebootStatus struct {
	// Request is the value of the annotation coldrack.dev/reboot.
	Request string `json:"request"`
	// BootID of the boot that is to end.
	BootID string `json:"bootID"`
}

// KubernetesStatus is what a machine reports of itself as a node of a Kubernetes cluster.
type KubernetesStatus struct {
	Cluster string `json:"cluster"`
	// Node is the name of the Node object.
	// +optional
	Node string `json:"node,omitempty"`
	// +optional
	// +listType=atomic
	Roles []Role `json:"roles,omitempty"`
	// Version of the kubelet that is installed.
	// +optional
	Version string `json:"version,omitempty"`
	// Phases of the node's bring-up, in order.
	// +optional
	// +listType=atomic
	Phases []Step `json:"phases,omitempty"`
	// Done is true when every phase has succeeded for the configuration that Config stands for.
	// +optional
	Done bool `json:"done,omitempty"`
	// Config stands for the configuration that the node carries out, or has carried out.
	// +optional
	Config *ConfigDigests `json:"config,omitempty"`
	// FormerConfig stands for the one before, which the node keeps for a roll-back.
	// +optional
	FormerConfig *ConfigDigests `json:"formerConfig,omitempty"`
	// Drift are files of the configuration that somebody else had changed or removed on the node. It has put them right; they stand
	// here until its next configuration, or until its agent starts anew. While the cluster is paused, they are the files that would be
	// put right if it were resumed.
	// +optional
	// +listType=atomic
	Drift []string `json:"drift,omitempty"`
	// Message says why a machine that belongs to a cluster is not told what to do, why a phase failed, or why the node cannot go back
	// to its former configuration.
	// +optional
	Message string `json:"message,omitempty"`
	// Restore is how far the node is with a restore of the cluster's etcd.
	// +optional
	Restore *NodeRestore `json:"restore,omitempty"`
	// Prefetch is how far the node is with what it fetches for a later version, beside what it runs. It is not there where the node's
	// agent is of a release that does not do that.
	// +optional
	Prefetch *NodePrefetch `json:"prefetch,omitempty"`
	// CertificatesExpireAt is when the first of the node's certificates expires.
	// +optional
	CertificatesExpireAt *metav1.Time `json:"certificatesExpireAt,omitempty"`
	// RenewAt is when certificates are due whose renewal restarts something on the node. They are renewed when it is the node's turn.
	// +optional
	RenewAt *metav1.Time `json:"renewAt,omitempty"`
}

// BootAction is what a booting machine is told to do.
type BootAction string

const (
	BootDiscover  BootAction = "Discover"
	BootInstall   BootAction = "Install"
	BootRelease   BootAction = "Release"
	BootLocalDisk BootAction = "LocalDisk"
	BootRefuse    BootAction = "Refuse"
	BootRescue    BootAction = "Rescue"
)

// BootRecord is one answered network boot.
type BootRecord struct {
	At       metav1.Time `json:"at"`
	Action   BootAction  `json:"action"`
	Reason   string      `json:"reason"`
	MAC      string      `json:"mac,omitempty"`
	Address  string      `json:"address,omitempty"`
	Firmware string      `json:"firmware,omitempty"`
}

// LeaseStatus is the boot-time address of a machine.
type LeaseStatus struct {
	Address string `json:"address"`
	Subnet  string `json:"subnet,omitempty"`
	MAC     string `json:"mac,omitempty"`
}

// Inventory is what a machine consists of.
type Inventory struct {
	ReportedAt metav1.Time       `json:"reportedAt"`
	System     SystemInfo        `json:"system"`
	CPU        CPUInfo           `json:"cpu"`
	Memory     resource.Quantity `json:"memory"`
	// +optional
	// +listType=atomic
	Disks []Disk `json:"disks,omitempty"`
	// +optional
	// +listType=atomic
	NICs []NIC `json:"nics,omitempty"`
	// BMC as the machine itself sees it.
	// +optional
	BMC *BMCInfo `json:"bmc,omitempty"`
	// Firmware is BIOS or UEFI.
	Firmware string `json:"firmware"`
	// SecureBoot is true when the firmware enforces signatures.
	// +optional
	SecureBoot bool `json:"secureBoot,omitempty"`
	// TPM is the version of the TPM, for example "2.0", or empty.
	// +optional
	TPM string `json:"tpm,omitempty"`
}

// SystemInfo is the SMBIOS view of a machine.
type SystemInfo struct {
	Vendor  string `json:"vendor,omitempty"`
	Product string `json:"product,omitempty"`
	Serial  string `json:"serial,omitempty"`
	UUID    string `json:"uuid,omitempty"`
	// AssetTag and chassis serial, where the vendor set them.
	AssetTag      string `json:"assetTag,omitempty"`
	ChassisSerial string `json:"chassisSerial,omitempty"`
	BIOSVersion   string `json:"biosVersion,omitempty"`
}

// CPUInfo sums up the processors.
type CPUInfo struct {
	Model   string `json:"model,omitempty"`
	Sockets int32  `json:"sockets,omitempty"`
	Cores   int32  `json:"cores,omitempty"`
	Threads int32  `json:"threads,omitempty"`
}

// Disk is one whole block device.
type Disk struct {
	// Name is the kernel's name of this boot, for example "sda". Not stable.
	Name string `json:"name"`
	// ByID is the stable name below /dev/disk/by-id, without the folder.
	ByID   string            `json:"byID,omitempty"`
	Model  string            `json:"model,omitempty"`
	Vendor string            `json:"vendor,omitempty"`
	Serial string            `json:"serial,omitempty"`
	WWN    string            `json:"wwn,omitempty"`
	Size   resource.Quantity `json:"size"`
	// Rotational is true for spinning disks.
	Rotational bool `json:"rotational,omitempty"`
	// Transport: nvme, sata, sas, virtio, usb, iscsi, mmc.
	Transport string `json:"transport,omitempty"`
	ReadOnly  bool   `json:"readOnly,omitempty"`
	Removable bool   `json:"removable,omitempty"`
	// Contents says what is on the disk: partitions and file systems, one a line; empty when blank.
	// +optional
	// +listType=atomic
	Contents []string `json:"contents,omitempty"`
	// Marker is the GUID of the partition table, if an install by Coldrack wrote it. Each install has its own.
	// +optional
	Marker string `json:"marker,omitempty"`
}

// NIC is one network interface.
type NIC struct {
	Name   string `json:"name"`
	MAC    string `json:"mac"`
	Driver string `json:"driver,omitempty"`
	// Link is true when a carrier is detected.
	Link bool `json:"link,omitempty"`
	// SpeedMbps is the link speed in Mbit/s, 0 when unknown.
	SpeedMbps int32 `json:"speedMbps,omitempty"`
	// Boot is true for the interface that the machine booted from.
	Boot bool `json:"boot,omitempty"`
	// Bus that the interface is attached by, such as pci or usb; empty when unknown. A machine is not recognised by an interface
	// on usb, unless it booted from it: a management controller's has the same MAC in many servers.
	// +optional
	Bus string `json:"bus,omitempty"`
	// +optional
	LLDP *LLDPNeighbour `json:"lldp,omitempty"`
}

// NICBusUSB is the Bus of a NIC that is attached by USB.
const NICBusUSB = "usb"

// LLDPNeighbour is the switch port that an interface is plugged into.
type LLDPNeighbour struct {
	ChassisID  string `json:"chassisID,omitempty"`
	SystemName string `json:"systemName,omitempty"`
	PortID     string `json:"portID,omitempty"`
	PortDesc   string `json:"portDescription,omitempty"`
	VLAN       int32  `json:"vlan,omitempty"`
}

// BMCInfo is the management controller as seen from inside.
type BMCInfo struct {
	Address string `json:"address,omitempty"`
	MAC     string `json:"mac,omitempty"`
}
