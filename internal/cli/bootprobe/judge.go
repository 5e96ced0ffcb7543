package bootprobe

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// trip is what a client of one kind met.
type trip struct {
	firmware Firmware
	offers   []Offer
	boots    *Offer // the offer that says what it boots; nil: none
	stages   []Stage
	end      ending
	// says is what the last script prints; coldrack is true when a script is a Coldrack server's.
	says     []string
	coldrack bool
	// unreached is why nothing could be loaded from here, although a machine may.
	unreached string
}

// segment is what is known of all clients.
type segment struct {
	// anyone are the offers to a client that does not boot.
	anyone []Offer
	// boots is true when a client of some kind is named a boot file.
	boots bool
	// coldracks are the servers whose boot files lead to a Coldrack server.
	coldracks []netip.Addr
}

type verdict struct {
	state    State
	text, do string
}

const (
	adviseServer  = "see the server's log and `coldrack doctor` on it; see whether a Subnet has this network (coldrack get subnets), and whether a relay forwards to it"
	adviseForeign = "let Coldrack answer this segment, beside that server with spec.dhcp: proxy in its Subnet; or have that server name the boot file (coldrack doctor --foreign-dhcp)"
)

// judge says what a machine would experience, and what to do about it: the first thing that goes wrong, as it meets it.
func judge(t trip, s segment) verdict {
	for _, step := range []func(trip, segment) (verdict, bool){judgeOffers, judgeRace, judgeBootFile, judgeStages} {
		if v, found := step(t, s); found {
			return v
		}
	}
	return judgeEnd(t)
}

// judgeOffers finds what keeps it from an address.
func judgeOffers(t trip, s segment) (verdict, bool) {
	givers, _ := t.firmware.choose(t.offers)
	switch {
	case len(t.offers) == 0 && len(s.anyone) == 0 && !s.boots:
		return verdict{Fail, "nobody answers: it gets no address, and goes on with its boot order after a minute", adviseServer}, true
	case len(t.offers) == 0 && len(s.anyone) > 0:
		return verdict{Fail, fmt.Sprintf("nobody answers it, although %s answers clients that do not boot: it goes on with its boot order after a minute", names(s.anyone, s)),
			"a Coldrack server is silent to firmware while it imports its first bundle, and while it reads its machines (see its log, and coldrack bundle list); another server may leave out this kind of client"}, true
	case len(t.offers) == 0:
		return verdict{Fail, "nobody answers it, although other firmware is answered: it goes on with its boot order after a minute", adviseServer}, true
	case len(givers) == 0:
		return verdict{Fail, fmt.Sprintf("only a proxy answers, %s, which gives no address: it goes on with its boot order", names(t.offers, s)),
			"the site's own DHCP server must answer this segment as well: see its log, its pool, and whether it knows the client"}, true
	}
	return verdict{}, false
}

// judgeRace finds servers that give addresses side by side.
func judgeRace(t trip, s segment) (verdict, bool) {
	givers, _ := t.firmware.choose(t.offers)
	slices.SortStableFunc(givers, func(a, b Offer) int { return a.Server.Compare(b.Server) })
	givers = slices.CompactFunc(givers, func(a, b Offer) bool { return a.Server == b.Server })
	if len(givers) < 2 {
		return verdict{}, false
	}
	var each []string
	same, named := true, false
	others := []string{}
	for _, o := range givers {
		boots := o.url()
		if !t.firmware.takes(o) {
			boots = ""
		}
		each = append(each, fmt.Sprintf("%s (%s)", label(o.Server, s), cmp.Or(boots, "no boot file")))
		same, named = same && boots == givers[0].url(), named || boots != ""
		if !slices.Contains(s.coldracks, o.Server) {
			others = append(others, o.Server.String())
		}
	}
	all := strings.Join(each, ", ")
	if !named {
		return verdict{}, false
	}
	if same {
		return verdict{Warn, fmt.Sprintf("%d servers race to give it an address; all name the same boot file: %s", len(givers), all), "make sure that they do not give out the same addresses"}, true
	}
	do := "switch one of them off on this segment"
	if len(others) > 0 && len(others) < len(givers) {
		do = fmt.Sprintf("switch DHCP of %s off on this segment, or let it give the addresses alone: spec.dhcp: proxy in the Subnet", strings.Join(others, ", "))
	}
	return verdict{Fail, fmt.Sprintf("%d servers race for it: %s. What it boots depends on which one it takes", len(givers), all), do}, true
}

// judgeBootFile finds that nobody says what to boot, in a form that it takes.
func judgeBootFile(t trip, s segment) (verdict, bool) {
	if t.boots != nil {
		return verdict{}, false
	}
	who := names(t.offers, s)
	named := slices.IndexFunc(t.offers, func(o Offer) bool { return o.File != "" })
	switch {
	case t.firmware.http && named >= 0:
		o := t.offers[named]
		return verdict{Fail, fmt.Sprintf("takes no offer: that of %s names %s with class %q, and firmware that boots by HTTP wants a URL and class HTTPClient", label(o.Server, s), o.File, o.Class),
			"set option 60 to HTTPClient and option 67 to a URL for such clients (coldrack doctor --foreign-dhcp)"}, true
	case slices.ContainsFunc(t.offers, func(o Offer) bool { return slices.Contains(s.coldracks, o.Server) }):
		return verdict{Warn, fmt.Sprintf("no boot file for this kind of machine from %s: it goes on with its boot order", who),
			"nothing, where there are no such machines; else see the server's log: the bundle has no first stage for them"}, true
	case s.boots:
		return verdict{Warn, fmt.Sprintf("no boot file for this kind of machine from %s, though for others: it goes on with its boot order", who),
			"nothing, where there are no such machines"}, true
	}
	return verdict{Fail, fmt.Sprintf("not Coldrack: %s: it goes on with its boot order", plural(len(t.offers), who+" gives addresses and names no boot file", who+" give addresses and name no boot file")), adviseForeign}, true
}

// judgeStages finds the first stage that fails.
func judgeStages(t trip, _ segment) (verdict, bool) {
	if t.unreached != "" {
		return verdict{Warn, fmt.Sprintf("is told to load %s; nothing could be loaded from here: %s", t.boots.url(), t.unreached),
			"give this interface an address of the network, or ask from another machine on the segment"}, true
	}
	for _, stage := range t.stages {
		if stage.Error == "" {
			continue
		}
		what := stage.Name
		if stage.URL != "" {
			what += " " + stage.URL
		}
		state := Fail
		if stage.blame == unread {
			state = Warn
		}
		return verdict{state, fmt.Sprintf("stops at the %s: %s", what, stage.Error), stage.advice()}, true
	}
	return verdict{}, false
}

func (s Stage) advice() string {
	tftp := strings.HasPrefix(s.URL, "tftp:")
	switch s.blame {
	case silent:
		if tftp {
			return "see whether a TFTP server runs there, and whether a firewall lets port 69/udp and its answers, which come from another port, through"
		}
		if s.URL == "" {
			return "see whether a boot server runs there, and whether a firewall lets port 4011/udp through"
		}
		return "see routes and firewalls on the way; whether this machine reaches that address by this interface"
	case refused:
		return "see whether the server runs there, and on this port (coldrack doctor on it). A server that serves chosen interfaces only does not answer its own host: then ask from another machine"
	case missing:
		return "see whether that server has this file; on a server of Coldrack, whether a bundle is imported (coldrack bundle list)"
	case broken:
		return "see the server's log; firmware takes no redirect, and wants Content-Length"
	case wrong:
		return "let the DHCP server tell kinds of clients apart by option 93 (coldrack doctor --foreign-dhcp)"
	case unread:
		return "nothing that this check knows of: look at a machine's console"
	}
	return "see the server's log"
}

// judgeEnd tells of a client at which nothing failed.
func judgeEnd(t trip) verdict {
	way := path(t.stages)
	said := ""
	if len(t.says) > 0 {
		said = fmt.Sprintf(" (its console says %q)", strings.TrimPrefix(t.says[0], "Coldrack: "))
	}
	from := ""
	if t.boots != nil {
		from = t.boots.Server.String() + ": "
	}
	if !t.coldrack {
		do := "nothing, if that is meant; for Coldrack: " + adviseForeign
		switch t.end {
		case endLoader:
			return verdict{Warn, fmt.Sprintf("%sloads %s, which is not Coldrack's; what it does next cannot be told", from, way), do}
		default:
			return verdict{Warn, fmt.Sprintf("%sboots, but nothing of Coldrack: %s%s", from, way, ends(t.end)), do}
		}
	}
	switch t.end {
	case endKernel, endImage:
		return verdict{OK, fmt.Sprintf("%sloads %s%s", from, way, said), ""}
	case endWaits:
		return verdict{Fail, fmt.Sprintf("%sloads %s, and is told to wait and to ask again%s", from, way, said), "do what its console says"}
	case endLocal, endPerson:
		return verdict{OK, fmt.Sprintf("%sloads %s%s%s", from, way, ends(t.end), said), ""}
	}
	return verdict{Fail, fmt.Sprintf("%sloads %s, and starts nothing%s", from, way, said), "see the server's log, and the script at its URL"}
}

func ends(e ending) string {
	switch e {
	case endLocal:
		return ", and goes on with the boot order of the firmware"
	case endPerson:
		return ", and asks who sits at its console"
	case endWaits:
		return ", and waits"
	case endStop:
		return ", and starts nothing"
	}
	return ""
}

// path is what was loaded, in its order.
func path(stages []Stage) string {
	var all []string
	for _, s := range stages {
		if s.URL == "" {
			continue
		}
		name, _, _ := strings.Cut(s.URL, "?")
		name = name[strings.LastIndexByte(name, '/')+1:]
		if s.Name == "kernel" || s.Name == "initrd" {
			name = s.Name // its name is a digest
		}
		all = append(all, fmt.Sprintf("%s (%s)", name, Size(max(s.Size, s.Read))))
	}
	return strings.Join(all, ", ")
}

// Size is a number of bytes for a person.
func Size(n int64) string {
	switch {
	case n < 0:
		return "size not told"
	case n < 10_000:
		return fmt.Sprintf("%d bytes", n)
	case n < 10_000_000:
		return fmt.Sprintf("%d kB", n/1000)
	}
	return fmt.Sprintf("%d MB", n/1_000_000)
}

func plural(n int, one, several string) string {
	if n == 1 {
		return one
	}
	return several
}

func label(server netip.Addr, s segment) string {
	if slices.Contains(s.coldracks, server) {
		return server.String() + ", which leads to Coldrack"
	}
	return server.String()
}

// names are the servers of offers.
func names(offers []Offer, s segment) string {
	var all []string
	for _, o := range offers {
		add(&all, label(o.Server, s))
	}
	slices.Sort(all)
	return strings.Join(all, " and ")
}

// notesOf tells what some firmware stumbles over.
func notesOf(t trip) []string {
	var notes []string
	for _, o := range t.offers {
		if o.Bytes > leastMessage && !t.firmware.any {
			notes = append(notes, fmt.Sprintf("the offer of %s has %d bytes; some firmware takes no more than %d", o.Server, o.Bytes, leastMessage))
		}
		if o.Milliseconds > lateOffer {
			notes = append(notes, fmt.Sprintf("the offer of %s came after %.1f s; some firmware waits no longer than one second at first", o.Server, o.Milliseconds/1000))
		}
	}
	if o := t.boots; o != nil && o.Address.IsValid() && !o.vendor && strings.HasPrefix(o.Class, "PXEClient") && t.firmware.platform == "efi" && !t.firmware.ipxe {
		// EDK2's UefiPxeBcDxe takes such an offer for one of Microsoft's BINL.
		notes = append(notes, fmt.Sprintf("the offer of %s has class PXEClient and no option 43: much UEFI firmware then asks port 4011 of %s, and stops when nobody answers there", o.Server, o.Server))
	}
	if t.boots != nil && t.boots.Address.IsValid() {
		for _, o := range t.offers {
			if !o.Address.IsValid() && o.url() != t.boots.url() {
				notes = append(notes, fmt.Sprintf("the proxy %s names %s, and is not heeded: the boot file of %s wins", o.Server, o.url(), t.boots.Server))
			}
		}
	}
	return notes
}

const (
	leastMessage = 576  // bytes that every client takes, RFC 2131, section 2
	lateOffer    = 1000 // milliseconds
)
