// Package quirk knows firmware that misbehaves, as data: what it is recognized by, and which of the server's remedies it needs. It is pure. The
// table that comes with the server is quirks.yaml; people add their own by `coldrack serve --quirks`.
package quirk

import (
	_ "embed"
	"slices"
	"strings"
	"sync"

	"coldrack.dev/internal/contract/pattern"
)

// NoArchitecture is Client.Architecture of one that tells none, in option 93 or 60.
const NoArchitecture = 0xffff

// Client is what a machine tells of itself: by DHCP, or as iPXE when it asks for its script.
type Client struct {
	MAC          string // lower case with colons
	VendorClass  string // option 60
	UserClass    string // option 77
	Architecture int    // option 93, or NoArchitecture
	// IPXE is true when it is an iPXE; Features are then those that it lists, nil when it lists none: it is taken to have all.
	IPXE     bool
	Features map[Feature]bool
	// Manufacturer and Product are SMBIOS'; by DHCP nobody tells them.
	Manufacturer, Product string
}

// Feature is something that an iPXE may lack (option 175).
type Feature string

// Features.
const (
	HTTP    Feature = "HTTP"    // downloads by HTTP
	BzImage Feature = "bzImage" // Linux kernels on BIOS
	EFI     Feature = "EFI"     // EFI programs
)

// Remedies are what a client needs. The zero Remedies change nothing.
type Remedies struct {
	// Architecture stands for the one that the client tells, when it is set.
	Architecture *int
	// OwnIPXE: it is given the server's own iPXE by TFTP instead of a script; Because says why.
	OwnIPXE bool
	Because string
	// OwnDrivers: on UEFI it is given an iPXE with drivers of its own (ipxe.efi) instead of one that uses the firmware's (snponly.efi).
	OwnDrivers bool
	// NoBootFile: it gets an address, and nothing to boot.
	NoBootFile bool
	// SmallReply: DHCP answers have at most 576 bytes, whatever it says that it takes.
	SmallReply bool
	// Broadcast: DHCP answers go to everybody, whatever it says that it hears.
	Broadcast bool
	// KernelArgs are added for the discovery system.
	KernelArgs []string
	// Names are those of the quirks that apply.
	Names []string
}

// Quirk is an entry of a table.
type Quirk struct {
	// Name is a word with hyphens; an entry of a later table replaces one of the same name.
	Name string
	// Seen is what the firmware does, Source where that is told.
	Seen, Source string
	Match        Match
	Remedy       Remedy
	// Off: the entry only takes one of the same name away.
	Off bool
}

// Match is what a client is recognized by: all that is given. Texts are patterns as package pattern has them; several of a kind are alternatives.
type Match struct {
	VendorClass, UserClass, MAC, Manufacturer, Product []string
	// Architecture are values of option 93, NoArchitecture among them.
	Architecture []int
	// Lacks are features of which an iPXE lacks one.
	Lacks []Feature
}

// Remedy is what is done about it.
type Remedy struct {
	Architecture                                           *int
	OwnIPXE, OwnDrivers, NoBootFile, SmallReply, Broadcast bool
	KernelArgs                                             []string
}

// Table is a list of quirks. A nil Table is the one that comes with the server.
type Table struct{ quirks []Quirk }

//go:embed quirks.yaml
var builtIn []byte

// BuiltIn is the table that comes with the server.
var BuiltIn = sync.OnceValue(func() *Table {
	t, err := Parse("quirks.yaml", builtIn)
	if err != nil {
		panic(err) // a test parses it
	}
	return t
})

// Quirks lists the entries.
func (t *Table) Quirks() []Quirk {
	if t == nil {
		t = BuiltIn()
	}
	return t.quirks
}

// With is the table with the entries of another one, which replace those of the same name.
func (t *Table) With(more *Table) *Table {
	all := slices.Clone(t.Quirks())
	for _, q := range more.quirks {
		i := slices.IndexFunc(all, func(have Quirk) bool { return have.Name == q.Name })
		switch {
		case i >= 0:
			all[i] = q
		default:
			all = append(all, q)
		}
	}
	return &Table{slices.DeleteFunc(all, func(q Quirk) bool { return q.Off })}
}

// For is what a client needs. Quirks that change its architecture come first: the others see the changed one.
func (t *Table) For(c Client) Remedies {
	var r Remedies
	quirks := t.Quirks()
	for _, q := range quirks {
		if q.Remedy.Architecture != nil && r.Architecture == nil && q.Match.fits(c) {
			r.Architecture = q.Remedy.Architecture
			r.Names = append(r.Names, q.Name)
		}
	}
	if r.Architecture != nil {
		c.Architecture = *r.Architecture
	}
	for _, q := range quirks {
		if q.Remedy.Architecture != nil || !q.Match.fits(c) {
			continue
		}
		if q.Remedy.OwnIPXE && !r.OwnIPXE {
			r.Because = q.Seen
		}
		r.OwnIPXE = r.OwnIPXE || q.Remedy.OwnIPXE
		r.OwnDrivers = r.OwnDrivers || q.Remedy.OwnDrivers
		r.NoBootFile = r.NoBootFile || q.Remedy.NoBootFile
		r.SmallReply = r.SmallReply || q.Remedy.SmallReply
		r.Broadcast = r.Broadcast || q.Remedy.Broadcast
		r.KernelArgs = append(r.KernelArgs, q.Remedy.KernelArgs...)
		r.Names = append(r.Names, q.Name)
	}
	return r
}

// fits says whether a client is one of those that are meant.
func (m Match) fits(c Client) bool {
	for _, text := range []struct {
		patterns []string
		value    string
	}{{m.VendorClass, c.VendorClass}, {m.UserClass, c.UserClass}, {m.MAC, c.MAC}, {m.Manufacturer, c.Manufacturer}, {m.Product, c.Product}} {
		if len(text.patterns) > 0 && !slices.ContainsFunc(text.patterns, func(p string) bool { return pattern.Match(p, strings.TrimSpace(text.value)) }) {
			return false
		}
	}
	if len(m.Architecture) > 0 && !slices.Contains(m.Architecture, c.Architecture) {
		return false
	}
	if len(m.Lacks) == 0 {
		return true
	}
	return c.IPXE && c.Features != nil && slices.ContainsFunc(m.Lacks, func(f Feature) bool { return !c.Features[f] })
}
