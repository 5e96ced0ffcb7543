// Package dhcp is a DHCPv4 server for machines that boot from the network: RFC 2131 and 2132, relay
// agents (RFC 3046, 3527), PXE (RFC 4578), iPXE and UEFI HTTP boot.
//
// It knows nothing of the product. Who has which fixed address and which file a firmware loads is
// asked of a Backend; clients the Backend does not know get an address from a subnet's pool. Leases
// from pools are on disk before they are acknowledged; fixed addresses need no store at all.
//
// DESIGN.md in this folder tells how the parts fit and which freedoms the standard leaves were used.
package dhcp

import (
	"net/netip"
	"time"
)

// Ports of RFC 2131, section 4.1.
const (
	ServerPort = 67
	ClientPort = 68
	// BootPort is where PXE clients that have an address ask what to boot (PXE 2.1, section 2.2.4).
	BootPort = 4011
)

// ArchUnknown is Query.Arch of a client that does not tell its architecture.
const ArchUnknown = 0xffff

// Backend is what the server asks of, and tells to, the product around it. Its methods are called for
// every packet: they must not block, nor call the server back.
type Backend interface {
	// Reservation returns the fixed address of a known client in a subnet. ok is false for clients
	// that have none there.
	Reservation(subnet netip.Prefix, client Query) (reservation Reservation, ok bool)
	// Options are a client's own further options; they replace those of its subnet with the same code.
	Options(client Query) []Option
	// Reserved tells whether an address is some client's fixed one, and so never given to another.
	Reserved(address netip.Addr) bool
	// BootFile returns what a client boots in a subnet. ok is false when nothing fits; it then gets
	// an address only, or in ModeProxy no answer.
	BootFile(subnet netip.Prefix, client Query) (file BootFile, ok bool)
	// Observe takes note of what was seen.
	Observe(Observation)
}

// Reservation is the fixed address of a client.
type Reservation struct {
	Address  netip.Addr
	Hostname string // without the domain; empty: the client is told none
	// Hardware are further hardware addresses of the client, as Query.MAC has them: it may answer at its address by them.
	Hardware []string
}

// BootFile is what a client boots.
type BootFile struct {
	// NextServer is the TFTP server. The zero Addr means the DHCP server itself.
	NextServer netip.Addr
	// File is a name on that server, or an absolute URL.
	File string
}

// Query is what a client tells of itself. Nothing in it is proven.
type Query struct {
	// MAC is the hardware address, lower case with colons.
	MAC string
	// UUID is option 97, the SMBIOS UUID, in its usual form and in lower case. It is empty when the
	// client sent none or a malformed one. Like Linux and iPXE it takes the first three fields as
	// little-endian; firmware older than SMBIOS 2.6 may mean them otherwise.
	UUID string
	// Hostname is option 12.
	Hostname string
	// VendorClass is option 60, such as "PXEClient:Arch:00007:UNDI:003016".
	VendorClass string
	// UserClass is option 77, such as "iPXE".
	UserClass string
	// Arch is the first value of option 93 (RFC 4578, section 2.1), or ArchUnknown.
	Arch uint16
	// PXE, HTTP and IPXE tell what kind of boot loader asks: vendor class PXEClient, vendor class
	// HTTPClient, user class iPXE or iPXE's own option 175. A client may be PXE and IPXE at once.
	PXE, HTTP, IPXE bool
	// Told is what iPXE tells of its features.
	Told IPXE
	// Proxied is true where the site's own DHCP server gives the address: a client that is not answered now goes on without us.
	Proxied bool
	// Interface is the server's interface the packet came in by.
	Interface string
	// Server is the address under which the client reaches the server.
	Server netip.Addr
	// Relay is the relay agent's address, the zero Addr for a client on the interface's own segment.
	Relay netip.Addr
	// CircuitID and RemoteID are option 82's, in hexadecimal: the switch port, if the switch tells.
	CircuitID, RemoteID string
}

// Event says what an Observation is about.
type Event string

const (
	Offered       Event = "offered"        // an address was offered
	Acknowledged  Event = "acknowledged"   // an address was given or prolonged
	Refused       Event = "refused"        // a NAK was sent; Detail tells why
	Declined      Event = "declined"       // the client found the address in use by another
	Released      Event = "released"       // the client gave its address back
	Informed      Event = "informed"       // a client with an address of its own asked for settings
	Conflict      Event = "conflict"       // somebody answers at an address that was not given to him
	ARPProxy      Event = "arp-proxy"      // somebody answers for addresses of others; Detail tells who
	PoolExhausted Event = "pool-exhausted" // no address is left for the client
	NoSubnet      Event = "no-subnet"      // no subnet is configured where the client is
	ForeignServer Event = "foreign-server" // another DHCP server answers on the segment; Address is its
	Directed      Event = "directed"       // in ModeProxy: the client was told what to boot, and no address
	Addressed     Event = "addressed"      // in ModeProxy: the client takes Address, which the site's own server has offered
	BootAsked     Event = "boot-asked"     // a client at Address asked for its boot file on BootPort
	DuplicateMAC  Event = "duplicate-mac"  // two machines with this hardware address boot; Detail tells their UUIDs
	Ignored       Event = "ignored"        // in ModeProxy: a firmware asked again, and does not do as it was told; Detail tells what it did
	Heeded        Event = "heeded"         // in ModeProxy: one of which that was said does so now
)

// Observation is something seen on the wire.
type Observation struct {
	Time    time.Time
	Event   Event
	Client  Query
	Subnet  netip.Prefix // the zero Prefix when none fits
	Address netip.Addr
	Detail  string // for a person
}
