// Package menu decides what a choice at a machine's console may do, and renders the menu for iPXE. It is pure but for Tries, which counts
// wrong PINs.
//
// A machine says of itself who it is, and anybody on the segment can say the same. So a choice never takes anything away: it gives something
// only to a machine that nobody has decided about, and everything else that it can start touches no disk.
package menu

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"net/netip"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/netboot/boot"
)

// Policy is the boot menu of one Subnet.
type Policy struct {
	Subnet  string
	Network netip.Prefix
	Menu    v1alpha1.BootMenu
	// PIN is what mode PIN asks for. It must not be empty there: NoPIN says why it is.
	PIN string
	// NoPIN is why there is no PIN although the mode needs one, for a person.
	NoPIN string
}

// For returns the menu of the subnet that an address lies in; nil: none.
func For(policies []Policy, client netip.Addr) *Policy {
	for i := range policies {
		if p := &policies[i]; p.on() && p.Network.Contains(client.Unmap()) {
			return p
		}
	}
	return nil
}

func (p *Policy) on() bool {
	return p.Menu.Mode == v1alpha1.BootMenuPIN || p.Menu.Mode == v1alpha1.BootMenuFree
}

// Offered says whether a machine that is told to boot this is shown the menu. One for which somebody has asked an install, a release or a rescue
// is not: it goes on at once, and no key can keep it from that. Nor is one that cannot be served at all.
func Offered(decided boot.Plan) bool {
	return decided.Action == v1alpha1.BootDiscover || decided.Action == v1alpha1.BootLocalDisk
}

// Item is one line of a machine's menu.
type Item struct {
	Name, Title string
	// PIN is true when the PIN is asked for.
	PIN bool
}

// Items are what a machine is offered, in order.
func (p *Policy) Items(s boot.Subject, decided boot.Plan, have boot.Policy) []Item {
	asks := p.Menu.Mode == v1alpha1.BootMenuPIN
	items := []Item{{Name: v1alpha1.MenuContinue, Title: "Go on: " + string(decided.Action)}}
	if decided.Action != v1alpha1.BootDiscover && mayDiscover(s) {
		items = append(items, Item{Name: v1alpha1.MenuDiscover, Title: "Discover this machine (touches no disk)"})
	}
	if s.Machine == nil && len(s.Rivals) == 0 || s.Machine != nil && s.Machine.Undecided() {
		for i := range p.Menu.Entries {
			e := &p.Menu.Entries[i]
			items = append(items, Item{Name: e.Name, Title: "Install: " + e.Shown(), PIN: asks})
		}
	}
	if have.Netboot {
		items = append(items, Item{Name: v1alpha1.MenuLive, Title: "Live system with a root shell (touches no disk)", PIN: asks})
	}
	if decided.Action != v1alpha1.BootLocalDisk {
		items = append(items, Item{Name: v1alpha1.MenuLocal, Title: "Start from the local disk"})
	}
	return items
}

// Default is the entry that is taken when nobody opens the menu.
func (p *Policy) Default(s boot.Subject, decided boot.Plan, have boot.Policy) string {
	for _, item := range p.Items(s, decided, have) {
		if item.Name == p.Menu.Default && !item.PIN {
			return item.Name
		}
	}
	return v1alpha1.MenuContinue
}

func installed(m *v1alpha1.Machine) bool {
	return m.Status.Installed != nil || m.Status.Identity != nil
}

// mayDiscover says whether the machine could enrol: one that is installed, or may be, would be refused.
func mayDiscover(s boot.Subject) bool {
	if s.Machine != nil {
		return !installed(s.Machine)
	}
	for _, rival := range s.Rivals {
		if installed(rival) {
			return false
		}
	}
	return true
}

// Choice is what was chosen at a console.
type Choice struct {
	Entry string
	// By is the name that was typed with the PIN.
	By string
	// From is the address that the choice came from.
	From netip.Addr
	At   time.Time
	// PIN is what became of it.
	PIN PINState
}

// PINState is what is known of a PIN.
type PINState int

const (
	PINNotAsked PINState = iota // none was sent yet
	PINRight
	PINWrong
	PINLocked // too many wrong ones: it was not even looked at
)

// Outcome is what a choice leads to. Exactly one of Plan.Action, AskPIN and Refused is set.
type Outcome struct {
	Plan boot.Plan
	// Claim is to be recorded for the machine before it boots the plan. nil: nothing.
	Claim *v1alpha1.MenuChoice
	// AskPIN: the machine must send the PIN first.
	AskPIN bool
	// Refused is why the choice is not carried out, for the person at the console.
	Refused string
}

// Decide says what a choice leads to. decided is the plan without it.
func (p *Policy) Decide(c Choice, request boot.Request, s boot.Subject, decided boot.Plan, have boot.Policy) Outcome {
	refuse := func(format string, args ...any) Outcome { return Outcome{Refused: fmt.Sprintf(format, args...)} }
	if !Offered(decided) || c.Entry == v1alpha1.MenuContinue {
		return Outcome{Plan: decided}
	}
	by := "chosen at the console"
	if c.By != "" {
		by += " by " + c.By
	}
	entry := p.Menu.Entry(c.Entry)
	if entry == nil && c.Entry != v1alpha1.MenuLive {
		return p.harmless(c.Entry, by, request, s, decided, have)
	}

	if entry != nil {
		if why := undecidedNot(s); why != "" {
			return refuse("%s", why)
		}
	}
	if outcome, ok := p.allowed(c); !ok {
		return outcome
	}
	if entry == nil {
		plan := boot.Plan{Action: v1alpha1.BootRescue, Reason: "the live system was " + by, Shell: true}
		return Outcome{Plan: boot.WithKernel(request, have, plan)}
	}
	plan := decided
	plan.Reason = fmt.Sprintf("%s was %s; the machine is discovered first", entry.Name, by)
	return Outcome{Plan: plan, Claim: &v1alpha1.MenuChoice{
		Subnet: p.Subnet, Entry: entry.Name, PIN: c.PIN == PINRight, By: c.By, From: c.From.String(), At: c.At.UTC().Truncate(time.Second),
	}}
}

// harmless decides on what needs no PIN.
func (p *Policy) harmless(entry, by string, request boot.Request, s boot.Subject, decided boot.Plan, have boot.Policy) Outcome {
	switch entry {
	case v1alpha1.MenuLocal:
		return Outcome{Plan: boot.LocalDisk(request, "the local disk was "+by)}
	case v1alpha1.MenuDiscover:
		if !mayDiscover(s) {
			return Outcome{Refused: "the machine is installed, and is not discovered again; choose the live system, or run: coldrack reinstall"}
		}
		return Outcome{Plan: boot.WithKernel(request, have, boot.Plan{Action: v1alpha1.BootDiscover, Reason: "discovery was " + by})}
	}
	return Outcome{Refused: fmt.Sprintf("the boot menu of Subnet %s has no entry %q any more", p.Subnet, entry)}
}

// undecidedNot says why the machine cannot be given anything at its console; "": it can.
func undecidedNot(s boot.Subject) string {
	m := s.Machine
	switch {
	case m == nil && len(s.Rivals) > 0:
		return fmt.Sprintf("the machine cannot be told from %s; see: coldrack get machines", s.Rivals[0].Name)
	case m == nil || m.Undecided():
		return ""
	case installed(m):
		return fmt.Sprintf("%s is installed, and nothing at the console installs it again; run: coldrack reinstall %s", m.Name, m.Name)
	case m.Spec.Approved:
		return fmt.Sprintf("%s is approved already, and what it becomes is decided; see: coldrack get machine %s", m.Name, m.Name)
	}
	return fmt.Sprintf("somebody has decided about %s before; run: coldrack approve %s", m.Name, m.Name)
}

// allowed says whether the one who chose may install, or have a shell; else what becomes of the choice.
func (p *Policy) allowed(c Choice) (Outcome, bool) {
	switch {
	case p.Menu.Mode == v1alpha1.BootMenuFree:
		return Outcome{}, true
	case p.PIN == "":
		return Outcome{Refused: "this needs the PIN of the boot menu, and there is none: " + p.NoPIN}, false
	case c.PIN == PINRight:
		return Outcome{}, true
	case c.PIN == PINNotAsked:
		return Outcome{AskPIN: true}, false
	case c.PIN == PINLocked:
		return Outcome{Refused: "too many wrong PINs; wait some minutes"}, false
	}
	return Outcome{Refused: "the PIN is wrong"}, false
}

// SamePIN compares in a time that does not depend on what is equal.
func SamePIN(typed, wanted string) bool {
	a, b := sha256.Sum256([]byte(typed)), sha256.Sum256([]byte(wanted))
	return wanted != "" && subtle.ConstantTimeCompare(a[:], b[:]) == 1
}
