// Package nodeconfig says what an installed node must have — files, users, units, network — as data, and
// encodes it for an operating system. It is pure: nothing here touches a disk.
//
// A Config is the same for every image family; an encoder turns it into what that family understands.
// Direct turns it into operations on a mounted root file system; package dialect turns those that are not only
// Debian's into Ignition and cloud-config.
package nodeconfig

// Config is what a node must have.
type Config struct {
	Hostname string `json:"hostname"`
	// Domain completes the host name; may be empty.
	Domain     string      `json:"domain,omitempty"`
	Interfaces []Interface `json:"interfaces,omitempty"`
	// Links are the network of a node with more than plain interfaces. Interfaces is then one without addresses, which agents
	// that do not know Links refuse before they touch a disk.
	Links    *Links   `json:"links,omitempty"`
	DNS      []string `json:"dns,omitempty"`
	NTP      []string `json:"ntp,omitempty"`
	Timezone string   `json:"timezone,omitempty"` // default UTC
	SSHKeys  []string `json:"sshKeys,omitempty"`  // for root
	Users    []User   `json:"users,omitempty"`
	Files    []File   `json:"files,omitempty"`
	Units    []Unit   `json:"units,omitempty"`
	// Hosts are extra lines of /etc/hosts: address to names.
	Hosts []Host `json:"hosts,omitempty"`
}

// Interface is one statically configured network interface, found by its MAC.
type Interface struct {
	MAC       string   `json:"mac"`
	Addresses []string `json:"addresses"` // with prefix length
	Gateway   string   `json:"gateway,omitempty"`
	MTU       int      `json:"mtu,omitempty"`
}

// User is a login.
type User struct {
	Name         string   `json:"name"`
	SSHKeys      []string `json:"sshKeys,omitempty"`
	PasswordHash string   `json:"passwordHash,omitempty"`
	Sudo         bool     `json:"sudo,omitempty"`
	Shell        string   `json:"shell,omitempty"`
}

// File is a file with its whole content.
type File struct {
	Path    string `json:"path"`
	Content []byte `json:"content"`
	Mode    uint32 `json:"mode,omitempty"`  // default 0644
	Owner   string `json:"owner,omitempty"` // user:group, default root:root
}

// Unit is a systemd unit.
type Unit struct {
	Name    string `json:"name"`
	Content string `json:"content,omitempty"` // empty: part of the image
	Enabled bool   `json:"enabled,omitempty"`
	Masked  bool   `json:"masked,omitempty"`
}

// Host is one line of /etc/hosts.
type Host struct {
	Address string   `json:"address"`
	Names   []string `json:"names"`
}
