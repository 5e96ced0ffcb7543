// Package bootprobe acts as the clients of a boot segment: it asks DHCP as each kind of firmware and as iPXE does, loads what it is told to
// load, and says what a machine would experience.
//
// What is asked, what answers mean and the verdicts are pure (firmware.go, offer.go, script.go, format.go, judge.go); run.go is the order of
// the work, fetch.go and place_linux.go touch the network.
package bootprobe

import "net/netip"

// State is how a client of one kind fares.
type State string

const (
	// OK: it boots what a Coldrack server tells it.
	OK State = "ok"
	// Warn: it boots something else, or nothing, and that may be meant.
	Warn State = "warn"
	// Fail: it does not boot as somebody means it to.
	Fail State = "fail"
)

// Report is what a segment does with machines that boot on it.
type Report struct {
	Interface string `json:"interface"`
	// MAC is the hardware address that was asked with.
	MAC string `json:"mac"`
	// Address is the one that files were fetched with; not valid when none could be had.
	Address netip.Addr `json:"address,omitzero"`
	// Leased says that a server leased it for this; it was given back.
	Leased bool `json:"leased"`
	// Servers are all that answered anything, by address.
	Servers []Server `json:"servers"`
	Clients []Client `json:"clients"`
}

// Server is who answered DHCP.
type Server struct {
	Address netip.Addr `json:"address"`
	// Gives are the addresses that it offered; none: it is a proxy, which only says what to boot.
	Gives []netip.Addr `json:"gives,omitempty"`
	// Answers are the kinds of clients that it answered.
	Answers []string `json:"answers"`
	// Boots are those that it named a boot file to.
	Boots []string `json:"boots"`
}

// Client is what a client of one kind would experience.
type Client struct {
	Kind  string `json:"kind"`
	State State  `json:"state"`
	// Verdict is a sentence; Do says how to mend it, empty when nothing needs mending.
	Verdict string   `json:"verdict"`
	Do      string   `json:"do,omitempty"`
	Notes   []string `json:"notes,omitempty"`
	Offers  []Offer  `json:"offers"`
	Stages  []Stage  `json:"stages"`
}

// Stage is something that a client loads, in its order.
type Stage struct {
	// Name is "boot server", "loader", "script", "kernel", "initrd" or "local".
	Name string `json:"name"`
	// URL begins with http://, https:// or tftp://; "" for "boot server".
	URL string `json:"url,omitempty"`
	// As is the kind of client that loads it: the firmware, or the iPXE that it has loaded.
	As string `json:"as"`
	// Size is that of the whole in bytes, -1 when the server did not tell. Read is how many were loaded: of a kernel and an initrd only the
	// first.
	Size int64 `json:"size"`
	Read int64 `json:"read"`
	// Milliseconds until all that was read had come.
	Milliseconds float64 `json:"milliseconds"`
	// Format is what the first bytes are.
	Format Format `json:"format,omitempty"`
	// Says is what a script prints on the console.
	Says []string `json:"says,omitempty"`
	// Error is why it could not be loaded, or used.
	Error string `json:"error,omitempty"`
	// blame is what kind of error it is.
	blame blame
}

// blame is what an error of a stage is due to; it decides the advice.
type blame int

const (
	nothing blame = iota
	silent        // nobody answers
	refused       // no program listens there
	missing       // the server has no such file
	broken        // the answer is none that firmware takes
	wrong         // the file is none for this machine
	unread        // this program cannot load it; a machine may
)
