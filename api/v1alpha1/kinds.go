package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// DHCPMode says what Coldrack does on a segment.
// +kubebuilder:validation:Enum=server;proxy;off
type DHCPMode string

const (
	// DHCPServer answers with addresses and boot files.
	DHCPServer DHCPMode = "server"
	// DHCPProxy answers machines that boot from the network with what to boot, beside the site's own DHCP server, which gives the
	// addresses.
	DHCPProxy DHCPMode = "proxy"
	// DHCPOff never answers.
	DHCPOff DHCPMode = "off"
)

// Subnet is one layer-2 segment and its IP plan.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=sn,categories=coldrack
// +kubebuilder:printcolumn:name="CIDR",type=string,JSONPath=`.spec.cidr`
// +kubebuilder:printcolumn:name="DHCP",type=string,JSONPath=`.spec.dhcp`
// +kubebuilder:printcolumn:name="Discovery",type=string,JSONPath=`.spec.discovery`
// +kubebuilder:printcolumn:name="Static",type=string,JSONPath=`.spec.static`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Subnet struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   SubnetSpec   `json:"spec"`
	Status SubnetStatus `json:"status,omitempty"`
}

// SubnetList is a list of Subnets.
//
// +kubebuilder:object:root=true
type SubnetList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Subnet `json:"items"`
}

// SubnetSpec is the IP plan of a segment.
//
// +kubebuilder:validation:XValidation:rule="self.dhcp != 'server' || has(self.discovery)",message="a subnet in DHCP mode server needs spec.discovery, the range for machines that are not known yet"
// +kubebuilder:validation:XValidation:rule="isCIDR(self.cidr)",message="spec.cidr must be a network such as 10.20.0.0/24"
// +kubebuilder:validation:XValidation:rule="!isCIDR(self.cidr) || !has(self.gateway) || !isIP(self.gateway) || cidr(self.cidr).containsIP(self.gateway)",message="spec.gateway must lie within spec.cidr"
type SubnetSpec struct {
	// CIDR of the segment, for example 10.20.0.0/24.
	// +kubebuilder:validation:MaxLength=64
	CIDR string `json:"cidr"`
	// Gateway is the default router. Empty: none.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="isIP(self)",message="must be an IP address"
	Gateway string `json:"gateway,omitempty"`
	// DNS servers, in order.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=8
	DNS []string `json:"dns,omitempty"`
	// ServeDNS lets Coldrack answer DNS for clients with an address in this segment: the names of its machines itself, other
	// names by asking the servers in dns. DHCP then names Coldrack's address alone, installed nodes name it before those in dns.
	// +optional
	ServeDNS bool `json:"serveDNS,omitempty"`
	// NTP servers, in order.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=8
	NTP []string `json:"ntp,omitempty"`
	// ServeNTP names Coldrack's address as a time server, before those in ntp, to DHCP clients and to nodes that are installed.
	// +optional
	ServeNTP bool `json:"serveNTP,omitempty"`
	// Domain is the DNS search domain.
	// +optional
	Domain string `json:"domain,omitempty"`
	// DHCP is what Coldrack does on this segment: server gives addresses and boot files; proxy gives boot files only, beside the site's
	// own DHCP server, which gives the addresses; off never answers.
	// +optional
	// +kubebuilder:default=server
	DHCP DHCPMode `json:"dhcp,omitempty"`
	// Discovery is the range that machines which are not known yet boot with, "first-last". With dhcp: proxy there is none, since the
	// site's own server gives those addresses.
	// +optional
	// +kubebuilder:validation:MaxLength=100
	Discovery string `json:"discovery,omitempty"`
	// Static is the range from which installed nodes get their addresses, "first-last". It must not
	// overlap Discovery.
	// +optional
	// +kubebuilder:validation:MaxLength=100
	Static string `json:"static,omitempty"`
	// LeaseTime of discovery leases. Default 1h. Not with dhcp: proxy.
	// +optional
	LeaseTime *metav1.Duration `json:"leaseTime,omitempty"`
	// DHCPOptions are further options that machines get by DHCP, if they ask for them. Not with dhcp: proxy.
	// +optional
	// +listType=map
	// +listMapKey=code
	// +kubebuilder:validation:MaxItems=32
	DHCPOptions []DHCPOption `json:"dhcpOptions,omitempty"`
	// Relays are addresses of DHCP relay agents that serve this segment, where it is not attached directly.
	// +optional
	// +listType=set
	Relays []string `json:"relays,omitempty"`
	// BootMenu is a menu at the console of machines that boot in this segment. It is off by default.
	// +optional
	BootMenu *BootMenu `json:"bootMenu,omitempty"`
}

// DHCPOption is an option of DHCPv4 (RFC 2132 and later).
type DHCPOption struct {
	// Code of the option, for example 26 for the MTU.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=254
	Code int32 `json:"code"`
	// Value in the form of the option: a number for 26 (MTU), domains for 119 (search list), routes such as
	// "10.0.0.0/8 via 10.20.0.1, 10.9.0.0/16 via 10.20.0.2" for 121, addresses for lists of servers, text otherwise.
	// +optional
	// +kubebuilder:validation:MaxLength=512
	Value string `json:"value,omitempty"`
	// Hex is the value byte by byte, in place of Value, for example "01:04:c0:00:02:01".
	// +optional
	// +kubebuilder:validation:MaxLength=512
	Hex string `json:"hex,omitempty"`
}

// Conditions of a Subnet, beside Ready. They are there once they have been true.
const (
	// ConditionAddressConflict: an address that is reserved for a machine is in use by somebody else.
	ConditionAddressConflict = "AddressConflict"
	// ConditionARPProxy: somebody answers ARP for addresses of others.
	ConditionARPProxy = "ARPProxy"
	// ConditionOtherDHCPServer: with dhcp: server, another DHCP server answers on the segment. It is false an hour after that was last heard.
	ConditionOtherDHCPServer = "OtherDHCPServer"
	// ConditionProxyIgnored: with dhcp: proxy, the firmware of machines asks again and again, and does not do as it is told. A Machine has it,
	// too, only while that is so.
	ConditionProxyIgnored = "ProxyIgnored"
	// ConditionMenuWithoutPIN: the boot menu needs a PIN, and there is none, so installing and the shell are refused at the console.
	ConditionMenuWithoutPIN = "MenuWithoutPIN"
)

// ProxyIgnoredRemedy says what to do about ProxyIgnored.
const ProxyIgnoredRemedy = "Let the site's DHCP server itself say what to boot: coldrack doctor --foreign-dhcp prints the lines for it"

// SubnetStatus says whether the plan is in effect.
type SubnetStatus struct {
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// ImageFamily tells how an image is configured on its first boot.
// +kubebuilder:validation:Enum=debian;flatcar;fcos;cloud-init
type ImageFamily string

// FamilyDebian is a Debian root file system built by the bundle builder; node config is applied directly.
const FamilyDebian ImageFamily = "debian"

// Families of whole-disk images, which bring their partitions and boot loader along.
const (
	// FamilyCloudInit is configured by cloud-init's NoCloud.
	FamilyCloudInit ImageFamily = "cloud-init"
	// FamilyFlatcar is configured by Ignition, on the OEM partition.
	FamilyFlatcar ImageFamily = "flatcar"
	// FamilyFCOS is configured by Ignition, on the boot partition.
	FamilyFCOS ImageFamily = "fcos"
)

// Image is an operating system that machines can run. Importing a bundle creates the Images it contains.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=img,categories=coldrack
// +kubebuilder:printcolumn:name="Family",type=string,JSONPath=`.spec.family`
// +kubebuilder:printcolumn:name="Version",type=string,JSONPath=`.spec.version`
// +kubebuilder:printcolumn:name="Size",type=string,JSONPath=`.spec.size`
// +kubebuilder:printcolumn:name="Kernel",type=string,JSONPath=`.spec.kernelVersion`
// +kubebuilder:printcolumn:name="Available",type=string,JSONPath=`.status.conditions[?(@.type=="Available")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Image struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   ImageSpec   `json:"spec"`
	Status ImageStatus `json:"status,omitempty"`
}

// ImageList is a list of Images.
//
// +kubebuilder:object:root=true
type ImageList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Image `json:"items"`
}

// ImageSpec names an image's content by digest.
type ImageSpec struct {
	Family ImageFamily `json:"family"`
	// +kubebuilder:validation:Enum=amd64;arm64
	Arch string `json:"arch"`
	// +optional
	Version string `json:"version,omitempty"`
	// +optional
	KernelVersion string `json:"kernelVersion,omitempty"`
	// Size of the root file system image, or of the whole disk, in bytes, uncompressed.
	Size resource.Quantity `json:"size"`
	// Index is the digest of the image's chunk index.
	// +kubebuilder:validation:Pattern=`^sha256:[0-9a-f]{64}$`
	Index string `json:"index"`
	// Digest of the raw image.
	// +kubebuilder:validation:Pattern=`^sha256:[0-9a-f]{64}$`
	Digest string `json:"digest"`
	// KernelArgs that the image always needs.
	// +optional
	// +listType=atomic
	KernelArgs []string `json:"kernelArgs,omitempty"`
	// Bundle that the image came with.
	// +optional
	Bundle string `json:"bundle,omitempty"`
}

// ImageStatus says whether the content is in the store.
type ImageStatus struct {
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// WipePolicy says what may be overwritten.
// +kubebuilder:validation:Enum=RefuseForeign;Always;Never;IfOurs;Secure
type WipePolicy string

const (
	// WipeRefuseForeign refuses to install over data that Coldrack did not write.
	WipeRefuseForeign WipePolicy = "RefuseForeign"
	// WipeAlways overwrites whatever is on the selected disk.
	WipeAlways WipePolicy = "Always"
	// WipeNever overwrites blank disks only. A release leaves all disks as they are.
	WipeNever WipePolicy = "Never"
	// WipeIfOurs is WipeRefuseForeign by another name.
	WipeIfOurs WipePolicy = "IfOurs"
	// WipeSecure overwrites what WipeIfOurs does, and erases every byte of the disk, also on release.
	WipeSecure WipePolicy = "Secure"
)

// Profile says how machines are installed.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=prof,categories=coldrack
// +kubebuilder:printcolumn:name="Image",type=string,JSONPath=`.spec.image`
// +kubebuilder:printcolumn:name="Wipe",type=string,JSONPath=`.spec.wipe`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Profile struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec ProfileSpec `json:"spec"`
}

// ProfileList is a list of Profiles.
//
// +kubebuilder:object:root=true
type ProfileList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Profile `json:"items"`
}

// ProfileSpec is one way to install a machine.
type ProfileSpec struct {
	// Image names the Image to install.
	// +kubebuilder:validation:MinLength=1
	Image string `json:"image"`
	// RootDisk selects the disk. It must match exactly one disk of the machine.
	// +optional
	RootDisk DiskHints `json:"rootDisk,omitempty"`
	// Wipe says what may be overwritten on the selected disk.
	// +optional
	// +kubebuilder:default=RefuseForeign
	Wipe WipePolicy `json:"wipe,omitempty"`
	// KernelArgs are added to the image's own.
	// +optional
	// +listType=atomic
	KernelArgs []string `json:"kernelArgs,omitempty"`
	// Console is the kernel's console list, for example ["tty0", "ttyS0,115200"]. The last one is primary.
	// +optional
	// +listType=atomic
	Console []string `json:"console,omitempty"`
	// SSHKeys are authorized for root, one OpenSSH public key each.
	// +optional
	// +listType=atomic
	SSHKeys []string `json:"sshKeys,omitempty"`
	// Users to create.
	// +optional
	// +listType=map
	// +listMapKey=name
	Users []User `json:"users,omitempty"`
	// Files to write.
	// +optional
	// +listType=map
	// +listMapKey=path
	Files []File `json:"files,omitempty"`
	// Units are systemd units to write, enable or mask.
	// +optional
	// +listType=map
	// +listMapKey=name
	Units []SystemdUnit `json:"units,omitempty"`
	// Timezone, for example "Europe/Berlin". Default UTC.
	// +optional
	Timezone string `json:"timezone,omitempty"`
	// Network is the layout of the network links of machines that have none of their own. Interfaces are named as in
	// status.inventory.nics of these machines.
	// +optional
	Network *NetworkLayout `json:"network,omitempty"`
}

// DiskHints select one disk by stable properties. All given hints must hold. Without any hint the
// machine must have exactly one disk that is large enough, not removable and not read-only.
type DiskHints struct {
	// ByID is a pattern for the names below /dev/disk/by-id, without that folder. Patterns are those of spec.match
	// in an EnrollmentPolicy.
	// +optional
	ByID string `json:"byID,omitempty"`
	// Serial must be equal.
	// +optional
	Serial string `json:"serial,omitempty"`
	// WWN must be equal.
	// +optional
	WWN string `json:"wwn,omitempty"`
	// Model is a pattern.
	// +optional
	Model string `json:"model,omitempty"`
	// Transport must be equal: nvme, sata, sas, virtio, usb, mmc.
	// +optional
	Transport string `json:"transport,omitempty"`
	// MinSize and MaxSize of the disk.
	// +optional
	MinSize *resource.Quantity `json:"minSize,omitempty"`
	// +optional
	MaxSize *resource.Quantity `json:"maxSize,omitempty"`
	// Rotational must be equal when given.
	// +optional
	Rotational *bool `json:"rotational,omitempty"`
	// Smallest picks the smallest of several matches; it still refuses when two are equally small.
	// +optional
	Smallest bool `json:"smallest,omitempty"`
}

// User is a login on the installed node.
type User struct {
	// +kubebuilder:validation:Pattern=`^[a-z_][a-z0-9_-]{0,31}$`
	Name string `json:"name"`
	// +optional
	// +listType=atomic
	SSHKeys []string `json:"sshKeys,omitempty"`
	// PasswordHash as crypt(3) writes it. Empty: no password login.
	// +optional
	PasswordHash string `json:"passwordHash,omitempty"`
	// Sudo lets the user become root without a password.
	// +optional
	Sudo bool `json:"sudo,omitempty"`
	// +optional
	// +kubebuilder:default="/bin/bash"
	Shell string `json:"shell,omitempty"`
}

// File is a file on the installed node.
type File struct {
	// +kubebuilder:validation:Pattern=`^/[^\x00]+$`
	Path    string `json:"path"`
	Content string `json:"content"`
	// Mode in octal, for example "0644".
	// +optional
	// +kubebuilder:validation:Pattern=`^0?[0-7]{3,4}$`
	// +kubebuilder:default="0644"
	Mode string `json:"mode,omitempty"`
	// Owner as user:group. Default root:root.
	// +optional
	Owner string `json:"owner,omitempty"`
}

// SystemdUnit is a systemd unit on the installed node.
type SystemdUnit struct {
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9:_.@\\-]+\.[a-z]+$`
	Name string `json:"name"`
	// Content of the unit file. Empty: the unit is part of the image.
	// +optional
	Content string `json:"content,omitempty"`
	// +optional
	Enabled bool `json:"enabled,omitempty"`
	// +optional
	Masked bool `json:"masked,omitempty"`
}

// EnrollmentPolicy approves, names and addresses discovered machines without a person. Of the policies
// whose selector matches, the one with the highest priority wins; ties go to the first name.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=ep,categories=coldrack
// +kubebuilder:printcolumn:name="Priority",type=integer,JSONPath=`.spec.priority`
// +kubebuilder:printcolumn:name="Approve",type=boolean,JSONPath=`.spec.approve`
// +kubebuilder:printcolumn:name="Profile",type=string,JSONPath=`.spec.profile`
// +kubebuilder:printcolumn:name="Subnet",type=string,JSONPath=`.spec.subnet`
// +kubebuilder:printcolumn:name="Matched",type=integer,JSONPath=`.status.matched`
// +kubebuilder:printcolumn:name="Enrolled",type=integer,JSONPath=`.status.enrolled`
// +kubebuilder:printcolumn:name="Missed",type=integer,JSONPath=`.status.missed`
// +kubebuilder:printcolumn:name="Nearest",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="NearMisses")].message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type EnrollmentPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   EnrollmentPolicySpec   `json:"spec"`
	Status EnrollmentPolicyStatus `json:"status,omitempty"`
}

// EnrollmentPolicyList is a list of EnrollmentPolicies.
//
// +kubebuilder:object:root=true
type EnrollmentPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []EnrollmentPolicy `json:"items"`
}

// EnrollmentPolicySpec selects machines and says what becomes of them.
type EnrollmentPolicySpec struct {
	// +optional
	Priority int32 `json:"priority,omitempty"`
	// Match selects machines by what they reported. Empty matches every machine. In a pattern, * is any text, ? any
	// character, [a-f] and [^a-f] one character of a class, and a backslash takes the next character as it is. A
	// pattern describes the whole value, case does not matter, and a slash is a character like others: dell* fits
	// "Dell Inc.", X9SCL* fits X9SCL/X9SCM.
	// +optional
	Match MachineMatch `json:"match,omitempty"`
	// Approve the matching machines.
	// +optional
	Approve bool `json:"approve,omitempty"`
	// Hostname is a pattern for the host name: {serial}, {uuid}, {mac}, {index} and {index:03} are
	// replaced, {index} by the lowest number that is free. Empty: the Machine's name.
	// +optional
	// +kubebuilder:validation:MaxLength=100
	Hostname string `json:"hostname,omitempty"`
	// Profile to install with.
	// +optional
	Profile string `json:"profile,omitempty"`
	// Subnet whose static range gives the node its address.
	// +optional
	Subnet string `json:"subnet,omitempty"`
	// Labels to put on the Machine.
	// +optional
	Labels map[string]string `json:"labels,omitempty"`
	// Limit is the largest number of machines that this policy enrols. 0: no limit.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Limit int32 `json:"limit,omitempty"`
}

// MachineMatch holds for a machine when every given field does.
type MachineMatch struct {
	// Vendor is a pattern.
	// +optional
	Vendor string `json:"vendor,omitempty"`
	// Product is a pattern.
	// +optional
	Product string `json:"product,omitempty"`
	// Serial is a pattern.
	// +optional
	Serial string `json:"serial,omitempty"`
	// MACPrefixes: at least one NIC's MAC starts with one of these.
	// +optional
	// +listType=set
	MACPrefixes []string `json:"macPrefixes,omitempty"`
	// +optional
	MinMemory *resource.Quantity `json:"minMemory,omitempty"`
	// +optional
	MinDisks int32 `json:"minDisks,omitempty"`
	// Subnet that the machine booted in.
	// +optional
	Subnet string `json:"subnet,omitempty"`
	// Selector over the Machine's labels.
	// +optional
	Selector *metav1.LabelSelector `json:"selector,omitempty"`
}

// Conditions of an EnrollmentPolicy.
const (
	// ConditionExhausted: the policy's limit is reached.
	ConditionExhausted = "Exhausted"
	// ConditionNearMisses: machines wait that no policy takes, and this one comes nearest to taking them.
	ConditionNearMisses = "NearMisses"
)

// EnrollmentPolicyStatus says what a policy did.
type EnrollmentPolicyStatus struct {
	// Enrolled is how many machines carry this policy's annotation.
	// +optional
	Enrolled int32 `json:"enrolled,omitempty"`
	// Matched is how many machines the policy's match holds for, whichever policy or person
	// decided about them.
	// +optional
	Matched int32 `json:"matched,omitempty"`
	// Missed is how many machines wait that no policy takes, while this one comes nearest
	// to taking them.
	// +optional
	Missed int32 `json:"missed,omitempty"`
	// NearMisses are the newest of these.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=5
	NearMisses []NearMiss `json:"nearMisses,omitempty"`
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// MaxNearMisses is how many near misses the status of a policy has.
const MaxNearMisses = 5

// NearMiss is a machine that a policy does not take, although no other policy comes
// nearer to it.
type NearMiss struct {
	Machine string `json:"machine"`
	// Why says what of the policy's match does not hold: what was found, and what is
	// asked for.
	Why string `json:"why"`
}

// AnnotationEnrolledBy names the EnrollmentPolicy that approved a Machine.
const AnnotationEnrolledBy = "coldrack.dev/enrolled-by"

// AnnotationGroupProfile on a Machine is the profile that its group gave it. While spec.profile is that one, the machine follows its group.
const AnnotationGroupProfile = "coldrack.dev/group-profile"

// AnnotationReadmit makes a key the identity of a Machine in place of the recorded one: "OLD/NEW", fingerprints of both. It counts
// only while OLD is recorded, so that it does nothing after a later install or renewal. Where none is recorded, OLD is "none:" and the ID of
// the last intent.
const AnnotationReadmit = "coldrack.dev/readmit"

// AnnotationAdopt makes the installation on a Machine's disk its own, though this server has not installed it: the marker of the disk. The
// machine boots from its disk from then on. It does nothing once an installation is recorded, or while an intent is wanted.
const AnnotationAdopt = "coldrack.dev/adopt"

// AnnotationImport is the record of the last import from a rack sheet that wrote a Machine: what it was before, so that
// "coldrack machines import --undo" can take it back.
const AnnotationImport = "coldrack.dev/import"

// AnnotationDiscoveredBy says by what a Machine that nobody wrote was noticed: "boot" or "enrolment".
const AnnotationDiscoveredBy = "coldrack.dev/discovered-by"

// Bundle is what an imported bundle contains.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,categories=coldrack
// +kubebuilder:printcolumn:name="Version",type=string,JSONPath=`.spec.version`
// +kubebuilder:printcolumn:name="Size",type=string,JSONPath=`.spec.size`
// +kubebuilder:printcolumn:name="Signed-By",type=string,JSONPath=`.spec.keyID`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Bundle struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec BundleSpec `json:"spec"`
}

// BundleList is a list of Bundles.
//
// +kubebuilder:object:root=true
type BundleList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Bundle `json:"items"`
}

// BundleSpec describes an imported bundle.
type BundleSpec struct {
	// Digest of the bundle's index.
	// +kubebuilder:validation:Pattern=`^sha256:[0-9a-f]{64}$`
	Digest string `json:"digest"`
	// +optional
	Version string            `json:"version,omitempty"`
	Size    resource.Quantity `json:"size"`
	// KeyID of the key that signed the bundle.
	// +optional
	KeyID string `json:"keyID,omitempty"`
	// Contents of the bundle.
	// +optional
	// +listType=atomic
	Contents []BundleContent `json:"contents,omitempty"`
}

// BundleContent is one artifact of a bundle.
type BundleContent struct {
	// Kind: image, netboot, bootloaders, sbom.
	Kind   string            `json:"kind"`
	Name   string            `json:"name"`
	Digest string            `json:"digest"`
	Size   resource.Quantity `json:"size"`
}

// Secret is material that is encrypted at rest, such as BMC credentials.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster
// +kubebuilder:printcolumn:name="Type",type=string,JSONPath=`.type`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Secret struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Type says what the data is, for example "bmc-credentials".
	// +optional
	Type string `json:"type,omitempty"`
	// Data by key, base64 in JSON.
	// +optional
	Data map[string][]byte `json:"data,omitempty"`
}

// SecretList is a list of Secrets.
//
// +kubebuilder:object:root=true
type SecretList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Secret `json:"items"`
}
