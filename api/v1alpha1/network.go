package v1alpha1

import (
	"slices"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"coldrack.dev/internal/contract/validate"
)

// NetworkLayout says which network links an installed node has: bonds, VLANs, bridges, further interfaces, routes. A field that names
// a link takes the name of a bond, a VLAN or a bridge of the layout, or an interface by its MAC or by its name in
// status.inventory.nics. Without a layout the node has its address on one interface.
type NetworkLayout struct {
	// Link carries the node's address. Default: where untagged frames of the interface that the machine booted from arrive, so
	// the bond or bridge that this is a member of.
	// +optional
	// +kubebuilder:validation:MaxLength=17
	Link string `json:"link,omitempty"`
	// Interfaces that need an MTU or DHCP of their own. Interfaces that bonds, VLANs, bridges and addresses name need not be here.
	// +optional
	// +listType=map
	// +listMapKey=nic
	// +kubebuilder:validation:MaxItems=32
	Interfaces []NetworkInterface `json:"interfaces,omitempty"`
	// Bonds are several interfaces as one.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=16
	Bonds []NetworkBond `json:"bonds,omitempty"`
	// VLANs are tagged networks (802.1Q) on an interface, a bond or a bridge.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=64
	VLANs []NetworkVLAN `json:"vlans,omitempty"`
	// Bridges are switches in the node.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=32
	Bridges []NetworkBridge `json:"bridges,omitempty"`
	// Routes beside the default route, which is the Subnet's gateway.
	// +optional
	// +listType=map
	// +listMapKey=to
	// +kubebuilder:validation:MaxItems=64
	Routes []NetworkRoute `json:"routes,omitempty"`
}

// LinkDHCP is what a link gets from a DHCP server of the site: an address and, where the node has no gateway of its own, the default
// route. DNS and NTP servers and the host name are never taken. ipv6 is router advertisements and DHCPv6.
// +kubebuilder:validation:Enum=ipv4;ipv6;both
type LinkDHCP string

// NetworkInterface is an interface that needs settings of its own.
type NetworkInterface struct {
	// NIC is its MAC, or its name in status.inventory.nics.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=17
	NIC string `json:"nic"`
	// MTU in bytes. Default: the device's own, 1500. What a device cannot do is cut to what it can.
	// +optional
	// +kubebuilder:validation:Minimum=576
	// +kubebuilder:validation:Maximum=65535
	MTU int32 `json:"mtu,omitempty"`
	// +optional
	DHCP LinkDHCP `json:"dhcp,omitempty"`
}

// BondMode is how a bond uses its members.
// +kubebuilder:validation:Enum="802.3ad";active-backup
type BondMode string

// NetworkBond is several interfaces as one.
type NetworkBond struct {
	// Name of the link on the node, for example bond0.
	// +kubebuilder:validation:Pattern=`^[a-z][a-z0-9._-]{0,14}$`
	Name string `json:"name"`
	// Mode is 802.3ad (LACP, which the switch must speak on these ports) or active-backup (any switches).
	Mode BondMode `json:"mode"`
	// Members are interfaces, each by its MAC or its name in status.inventory.nics.
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=17
	Members []string `json:"members"`
	// MTU in bytes of the bond and its members. Default 1500.
	// +optional
	// +kubebuilder:validation:Minimum=576
	// +kubebuilder:validation:Maximum=65535
	MTU int32 `json:"mtu,omitempty"`
	// +optional
	DHCP LinkDHCP `json:"dhcp,omitempty"`
	// LACPRate is how often the switch is asked to speak: slow (30 s, the default) or fast (1 s). A cable that is dead but has a
	// carrier is noticed after three times that. Only in mode 802.3ad.
	// +optional
	// +kubebuilder:validation:Enum=slow;fast
	LACPRate string `json:"lacpRate,omitempty"`
	// TransmitHashPolicy is what decides which member a packet leaves by. Default layer2+3 (MACs and addresses). Only in mode 802.3ad.
	// +optional
	// +kubebuilder:validation:Enum=layer2;"layer2+3";"layer3+4"
	TransmitHashPolicy string `json:"transmitHashPolicy,omitempty"`
	// MinLinks is how many members must work for the bond to work. Default 1. Only in mode 802.3ad.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=16
	MinLinks int32 `json:"minLinks,omitempty"`
	// Primary is the member that is used whenever it works. Only in mode active-backup.
	// +optional
	// +kubebuilder:validation:MaxLength=17
	Primary string `json:"primary,omitempty"`
}

// NetworkVLAN is a tagged network on another link.
type NetworkVLAN struct {
	// Name of the link on the node, for example storage.
	// +kubebuilder:validation:Pattern=`^[a-z][a-z0-9._-]{0,14}$`
	Name string `json:"name"`
	// ID is the tag.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=4094
	ID int32 `json:"id"`
	// Parent is the link whose frames have the tag: an interface, a bond or a bridge.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=17
	Parent string `json:"parent"`
	// MTU in bytes, at most its parent's, which is the default.
	// +optional
	// +kubebuilder:validation:Minimum=576
	// +kubebuilder:validation:Maximum=65535
	MTU int32 `json:"mtu,omitempty"`
	// +optional
	DHCP LinkDHCP `json:"dhcp,omitempty"`
}

// NetworkBridge is a switch in the node.
type NetworkBridge struct {
	// Name of the link on the node, for example br0.
	// +kubebuilder:validation:Pattern=`^[a-z][a-z0-9._-]{0,14}$`
	Name string `json:"name"`
	// Members are interfaces, bonds and VLANs.
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=17
	Members []string `json:"members"`
	// STP has the bridge speak the Spanning Tree Protocol. Default false.
	// +optional
	STP bool `json:"stp,omitempty"`
	// MTU in bytes, at most that of each member. Default: the least of theirs.
	// +optional
	// +kubebuilder:validation:Minimum=576
	// +kubebuilder:validation:Maximum=65535
	MTU int32 `json:"mtu,omitempty"`
	// +optional
	DHCP LinkDHCP `json:"dhcp,omitempty"`
}

// NetworkRoute is a static route.
type NetworkRoute struct {
	// To is a network such as 10.40.0.0/16.
	// +kubebuilder:validation:MaxLength=64
	To string `json:"to"`
	// Via is the address of the router.
	// +kubebuilder:validation:MaxLength=64
	Via string `json:"via"`
	// Link that the router is at. Default: the one with an address in the router's network.
	// +optional
	// +kubebuilder:validation:MaxLength=17
	Link string `json:"link,omitempty"`
}

// NodeAddress is a further address of a node.
type NodeAddress struct {
	// Link that has the address.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=17
	Link string `json:"link"`
	// Address with prefix length, for example 10.30.0.11/24.
	// +kubebuilder:validation:MaxLength=64
	Address string `json:"address"`
}

// Links returns the layout in the form that its rules take.
func (l *NetworkLayout) Links() validate.Links {
	var out validate.Links
	if l == nil {
		return out
	}
	out.Link = l.Link
	for _, n := range l.Interfaces {
		out.Interfaces = append(out.Interfaces, validate.LinkNIC{NIC: n.NIC, MTU: int(n.MTU), DHCP: string(n.DHCP)})
	}
	for _, b := range l.Bonds {
		out.Bonds = append(out.Bonds, validate.LinkBond{Name: b.Name, Mode: string(b.Mode), Members: slices.Clone(b.Members), MTU: int(b.MTU), DHCP: string(b.DHCP),
			LACPRate: b.LACPRate, HashPolicy: b.TransmitHashPolicy, MinLinks: int(b.MinLinks), Primary: b.Primary})
	}
	for _, v := range l.VLANs {
		out.VLANs = append(out.VLANs, validate.LinkVLAN{Name: v.Name, ID: int(v.ID), Parent: v.Parent, MTU: int(v.MTU), DHCP: string(v.DHCP)})
	}
	for _, b := range l.Bridges {
		out.Bridges = append(out.Bridges, validate.LinkBridge{Name: b.Name, Members: slices.Clone(b.Members), STP: b.STP, MTU: int(b.MTU), DHCP: string(b.DHCP)})
	}
	for _, r := range l.Routes {
		out.Routes = append(out.Routes, validate.LinkRoute{To: r.To, Via: r.Via, Link: r.Link})
	}
	return out
}

// Links of a machine with a profile, which may be nil: the machine's own layout where it has one, else the profile's, and the machine's
// addresses.
func (m *Machine) Links(p *Profile) validate.Links {
	var out validate.Links
	n := m.Spec.Network
	switch {
	case n != nil && n.LaysOut():
		out = n.NetworkLayout.Links()
	case p != nil:
		out = p.Spec.Network.Links()
	}
	if n == nil {
		return out
	}
	if n.Link != "" {
		out.Link = n.Link
	}
	for _, a := range n.Addresses {
		out.Addresses = append(out.Addresses, validate.LinkAddress{Link: a.Link, Address: a.Address})
	}
	return out
}

// LaysOut tells whether a machine has a layout of its own, in place of its profile's. A link alone chooses one of the profile's.
func (n *MachineNetwork) LaysOut() bool {
	return len(n.Interfaces)+len(n.Bonds)+len(n.VLANs)+len(n.Bridges)+len(n.Routes) > 0
}

// validateLinks reports the problems of links below at, which a machine without a layout of its own does not have alone.
func validateLinks(at *field.Path, links validate.Links) field.ErrorList {
	var errs field.ErrorList
	for _, p := range links.Problems() {
		errs = append(errs, field.Invalid(at.Child(p.Field), shorten(p.Value), p.Message))
	}
	return errs
}
