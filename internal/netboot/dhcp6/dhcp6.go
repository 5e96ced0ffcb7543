// Package dhcp6 is a DHCPv6 server for machines that boot from the network: RFC 8415 (stateful and stateless), relay agents
// (RFC 4649, 6221, 6939, 8357), and what to boot (RFC 5970).
//
// It knows nothing of the product. Who has which fixed address and which file a firmware loads is asked of a Backend; clients the
// Backend does not know get an address from a subnet's pool. Leases from pools are on disk before a Reply goes out; fixed
// addresses need no store at all.
//
// DESIGN.md in this folder tells which freedoms the standard leaves were used, and how.
package dhcp6

import (
	"net/netip"
	"time"
)

// Ports of RFC 8415, section 7.2.
const (
	ServerPort = 547
	ClientPort = 546
)

// ArchUnknown is Query.Arch of a client that does not tell its architecture.
const ArchUnknown = 0xffff

// Backend is what the server asks of, and tells to, the product around it. Its methods are called for
// every packet: they must not block, nor call the server back.
type Backend interface {
	// Reservation returns the fixed address of a known client in a subnet. ok is false for clients that have none there.
	Reservation(subnet netip.Prefix, client Query) (address netip.Addr, ok bool)
	// Reserved tells whether an address is some client's fixed one, and so never given to another.
	Reserved(address netip.Addr) bool
	// BootFile returns what a client boots in a subnet. ok is false when nothing fits; it then gets an address only.
	BootFile(subnet netip.Prefix, client Query) (file BootFile, ok bool)
	// Observe takes note of what was seen.
	Observe(Observation)
}

// BootFile is what a client boots.
type BootFile struct {
	// NextServer is the TFTP server. The zero Addr means the DHCP server itself.
	NextServer netip.Addr
	// File is a name on that server, or an absolute URL.
	File string
}

// Origin says where a hardware address was learnt.
type Origin string

const (
	// FromRelay: the relay on the client's segment has seen it in the frame (option 79, RFC 6939).
	FromRelay Origin = "relay"
	// FromAddress: the client's link-local address is made of it (RFC 4291, appendix A).
	FromAddress Origin = "address"
	// FromDUID: it is in the DUID. It may be that of another interface, or of one that the machine once had (RFC 8415, section 11.2).
	FromDUID Origin = "duid"
)

// Query is what a client tells of itself. Nothing in it is proven.
type Query struct {
	// DUID names the client, in hexadecimal.
	DUID string
	// MAC is the best hardware address that could be learnt, lower case with colons, and empty where there is none. MACFrom says where.
	MAC     string
	MACFrom Origin
	// UUIDs are what a DUID of type 4 (RFC 6355) may mean, in lower case: firmware sends the SMBIOS UUID as it lies in the table, where
	// the first three fields are little-endian; iPXE and others send it in the order in which it is written.
	UUIDs []string
	// VendorClass is the first string of option 16, such as "PXEClient:Arch:00007:UNDI:003016".
	VendorClass string
	// UserClass is option 15, such as "iPXE".
	UserClass string
	// Arch is the first value of option 61 (RFC 5970, section 3.3), or ArchUnknown.
	Arch uint16
	// PXE, HTTP and IPXE tell what kind of boot loader asks. A client may be PXE and IPXE at once.
	PXE, HTTP, IPXE bool
	// Interface is the server's interface the packet came in by.
	Interface string
	// Server is the address under which the client reaches the server.
	Server netip.Addr
	// Relay is the address of the relay agent that sent the message on, the zero Addr for a client on the interface's own segment.
	Relay netip.Addr
	// InterfaceID and RemoteID are options 18 and 37 of the relay on the client's segment, in hexadecimal: the switch port, if the switch tells.
	InterfaceID, RemoteID string
}

// Event says what an Observation is about.
type Event string

const (
	Offered       Event = "offered"        // an address was advertised
	Acknowledged  Event = "acknowledged"   // an address was given or prolonged
	Refused       Event = "refused"        // the client may not go on with an address; Detail tells why
	Declined      Event = "declined"       // the client found the address in use by another
	Released      Event = "released"       // the client gave its address back
	Informed      Event = "informed"       // a client with addresses of its own asked for settings
	Conflict      Event = "conflict"       // a fixed address is still leased to somebody else
	PoolExhausted Event = "pool-exhausted" // no address is left for the client
	NoSubnet      Event = "no-subnet"      // no subnet is configured where the client is
	StrangeRelay  Event = "strange-relay"  // a relay asked whose address is in no subnet
	ForeignServer Event = "foreign-server" // a client took another server's advertisement
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
