package capture

import (
	"fmt"
	"slices"
	"strings"
)

// end gives the verdicts.
func (x *explainer) end() Report {
	x.report.Clients = []Client{}
	for _, c := range x.order {
		if c.discovers+c.requests+c.asked4011+len(c.files)+len(c.conns)+len(c.offers) == 0 {
			continue // it answered ARP, or sent what makes no sense
		}
		verdict := c.judge()
		servers := c.addressServers()
		if len(servers) > 1 {
			c.note("%s offered it addresses: %s. They race for every machine", plural(len(servers), "server"), serverNames(servers))
		}
		for _, o := range c.offers {
			if o.large > leastSize && o.times > 1 && c.requests == 0 {
				c.note("the offers of %s have %d bytes; some firmware takes no more than %d", o.server, o.large, leastSize)
			}
		}
		for _, t := range c.files {
			if t.again > 0 && float64(t.again) > 0.02*float64(t.blocks) {
				c.note("%d of %s blocks of %s came again: packets are lost between the server and this machine", t.again, fmt.Sprint(t.blocks), t.file)
			}
		}
		x.report.Clients = append(x.report.Clients, Client{MAC: c.mac, Addresses: c.addresses, State: verdict.state, Verdict: verdict.text, Do: verdict.do, Notes: c.notes})
	}
	return x.report
}

func serverNames(offers []*offer) string {
	var names []string
	for _, o := range offers {
		names = append(names, o.server.String())
	}
	slices.Sort(names)
	return strings.Join(slices.Compact(names), ", ")
}

type verdict struct {
	state    State
	text, do string
}

// judge says what became of the client's boot: the first thing that failed, as its firmware met it, else what it loaded.
func (c *client) judge() verdict {
	for _, step := range []func() (verdict, bool){c.judgeAddress, c.judgeFiles, c.judgeHTTP, c.judgeBootServer, c.judgeBootFile} {
		if v, found := step(); found {
			return v
		}
	}
	return c.loaded()
}

func (c *client) boots() bool { return c.pxe || c.http || c.ipxe }

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// judgeAddress finds what kept it from an address.
func (c *client) judgeAddress() (verdict, bool) {
	asked := fmt.Sprintf("asked %s (%s)", times(c.discovers), c.firmware)
	servers, proxies := c.addressServers(), c.proxies()
	loads := len(c.files) > 0 || len(c.conns) > 0
	switch {
	case c.discovers == 0 || c.acked > 0 || loads:
	case len(c.offers) == 0:
		return verdict{Fail, asked + ", and nobody answered",
			"see whether a DHCP server or a relay reaches this segment, and capture on the server's side, too: the question may not arrive there"}, true
	case len(servers) == 0:
		return verdict{Fail, fmt.Sprintf("%s; only %s answered, which %s no address", asked, serverNames(proxies), gives(len(proxies))),
			"the site's DHCP server must answer this machine as well: see its log, its pool and its list of known machines"}, true
	case c.naked > 0:
		return verdict{Fail, asked + ", and was refused: " + c.nak, "see the log of that DHCP server; where two answer, one refuses what the other has offered"}, true
	case c.requests > 0:
		return verdict{Fail, fmt.Sprintf("%s, asked for the offer of %s, and got no ACK", asked, c.takenServer()),
			"see the log of that DHCP server: it stores a lease before it acknowledges; or the capture ends too early"}, true
	case c.http && !slices.ContainsFunc(c.offers, func(o *offer) bool { return strings.HasPrefix(o.class, "HTTPClient") }):
		return verdict{Fail, fmt.Sprintf("%s, and took none of the offers of %s: none has class HTTPClient (option 60)", asked, serverNames(c.offers)),
			"firmware that boots by HTTP takes no offer without it; set option 60 to HTTPClient and option 67 to a URL for it"}, true
	case c.boots() && !slices.ContainsFunc(c.offers, func(o *offer) bool { return o.file != "" || strings.HasPrefix(o.class, "PXEClient") }):
		return verdict{Fail, fmt.Sprintf("%s, and took none of the offers of %s: none says what to boot", asked, serverNames(c.offers)),
			"set a boot file in that server (coldrack doctor --foreign-dhcp), or let Coldrack answer this segment"}, true
	default:
		return verdict{Fail, fmt.Sprintf("%s, and took none of the offers of %s", asked, serverNames(c.offers)),
			"the offers may come too late or not reach it: capture at the machine's own port; see also the size of the offers"}, true
	}
	return verdict{}, false
}

func gives(n int) string {
	if n == 1 {
		return "gives"
	}
	return "give"
}

func (c *client) takenServer() string {
	if c.taken == nil {
		return "a server"
	}
	return c.taken.server.String()
}

// judgeFiles finds the last file that TFTP did not bring, unless one came after it.
func (c *client) judgeFiles() (verdict, bool) {
	if len(c.files) == 0 {
		return verdict{}, false
	}
	t := c.files[len(c.files)-1]
	if len(c.conns) > 0 && t.done {
		return verdict{}, false
	}
	for _, later := range c.conns {
		if later.request != "" {
			return verdict{}, false // its boot loader asks by HTTP, whatever TFTP did
		}
	}
	switch {
	case t.done, t.cancelled:
	case t.failed != "":
		return verdict{Fail, fmt.Sprintf("did not get %s by TFTP from %s: %s", t.file, t.server, t.failed),
			"see whether that server has this file; on a server of Coldrack, whether a bundle is imported (coldrack bundle list)"}, true
	case !t.answered:
		return verdict{Fail, fmt.Sprintf("asked %s %s for %s by TFTP, and got no answer", t.server, times(t.asked), t.file),
			"see whether a TFTP server runs there, and whether a firewall lets port 69/udp and the answers, which come from another port, through"}, true
	case t.blocks == 0:
		return verdict{Fail, fmt.Sprintf("asked %s %s for %s by TFTP, was answered, and got no data", t.server, times(t.asked), t.file),
			"the client's acknowledgement may not reach the server: it goes to another port than 69; see the firewall between them"}, true
	default:
		return verdict{Fail, fmt.Sprintf("the transfer of %s by TFTP from %s stops after %s", t.file, t.server, t.amount()),
			"packets are lost, or the capture ends too early; see the link, its MTU, and firewalls between them"}, true
	}
	return verdict{}, false
}

// judgeHTTP finds what the last connection failed at.
func (c *client) judgeHTTP() (verdict, bool) {
	if len(c.conns) == 0 {
		return verdict{}, false
	}
	last := c.conns[len(c.conns)-1]
	from := last.server.String()
	switch {
	case last.refused:
		return verdict{Fail, fmt.Sprintf("%s refuses its connection", from), "see whether the boot server runs there, and on this port (coldrack doctor on it)"}, true
	case !last.accepted:
		return verdict{Fail, fmt.Sprintf("asked %s %s for a connection, and got no answer", from, times(last.syns)), "see routes and firewalls between them"}, true
	case last.failed != "":
		return verdict{Fail, fmt.Sprintf("%s from %s: %s", last.request, from, last.failed), "see the log of that server"}, true
	case last.request == "":
	case last.status == 0:
		return verdict{Fail, fmt.Sprintf("asked %s for %s, and got no answer", from, last.request), "see the log of that server; or the capture ends too early"}, true
	case last.status >= 300 && last.status < 400:
		return verdict{Fail, fmt.Sprintf("asked %s for %s, and was sent elsewhere (%d %s)", from, last.request, last.status, last.location),
			"firmware follows no redirect; serve the file at this address"}, true
	case last.status != 200 && last.status != 206:
		return verdict{Fail, fmt.Sprintf("asked %s for %s, and was answered %d", from, last.request, last.status), "see whether that server has this file, and its log"}, true
	case last.head && last.length < 0:
		return verdict{Fail, fmt.Sprintf("asked %s for %s, and was not told a length", from, last.request), "firmware that boots by HTTP gives up without Content-Length"}, true
	case !last.complete():
		return verdict{Fail, fmt.Sprintf("%s from %s stops after %d of %d bytes", last.request, from, last.got, last.length),
			"the link, or the network card's driver in the boot loader; --boot-pace-mbit helps some; or the capture ends too early"}, true
	}
	return verdict{}, false
}

// judgeBootServer is about firmware that asks port 4011.
func (c *client) judgeBootServer() (verdict, bool) {
	if c.asked4011 == 0 || c.told > 0 || len(c.files) > 0 || len(c.conns) > 0 {
		return verdict{}, false
	}
	return verdict{Fail, fmt.Sprintf("asked on port 4011 %s what to boot, and got no answer", times(c.asked4011)),
		"see whether a boot server runs at the address that it asked, and whether a firewall lets 4011/udp through; option 43 of the offers sends it there"}, true
}

// judgeBootFile is about firmware that has its address, and loads nothing.
func (c *client) judgeBootFile() (verdict, bool) {
	if !c.boots() || c.acked == 0 || c.taken == nil || len(c.files) > 0 || len(c.conns) > 0 {
		return verdict{}, false
	}
	asked := fmt.Sprintf("asked %s", times(c.discovers))
	servers := c.addressServers()
	if len(servers) > 1 {
		asked += fmt.Sprintf(", %d servers offered an address", len(servers))
	}
	file := c.taken.file
	var other *offer
	for _, o := range c.offers {
		if o != c.taken && o.file != "" {
			other = o
		}
	}
	switch {
	case file != "":
		return verdict{Fail, fmt.Sprintf("%s, took %s of %s with the boot file %s, and never asked for it", asked, c.taken.address, c.taken.server, file),
			"see whether its firmware takes that file, and that it reaches the file's server (gateway, next-server); or the capture ends too early"}, true
	case other != nil && other.address.IsValid():
		return verdict{Fail, fmt.Sprintf("%s, took the one without a boot file (%s); %s offered %s", asked, c.taken.server, other.server, other.file),
			"stop one of the two servers for this segment, or give both the same boot file (coldrack doctor --foreign-dhcp)"}, true
	case other != nil:
		return verdict{Fail, fmt.Sprintf("%s, took the address of %s, and ignored the proxy %s, which offered %s", asked, c.taken.server, other.server, other.file),
			"such firmware looks at one offer only: put the boot file into the site's server (coldrack doctor --foreign-dhcp)"}, true
	}
	return verdict{Fail, fmt.Sprintf("%s, took %s of %s, and nobody said what to boot", asked, c.taken.address, c.taken.server),
		"set a boot file in that server (coldrack doctor --foreign-dhcp), or let Coldrack answer this segment"}, true
}

// loaded tells of a client at which nothing failed.
func (c *client) loaded() verdict {
	var what []string
	for _, t := range c.files {
		if t.done {
			what = append(what, t.file)
		}
	}
	for _, h := range c.conns {
		if h.request != "" && h.complete() && !h.head && h.status < 300 {
			path, _, _ := strings.Cut(strings.TrimPrefix(h.request, "GET "), "?")
			what = append(what, path)
		}
	}
	const most = 8
	if more := len(what) - most; more > 0 {
		what = append(what[:most], fmt.Sprintf("%d more", more))
	}
	switch {
	case len(what) > 0:
		return verdict{OK, "loaded " + strings.Join(what, ", "), ""}
	case c.acked > 0:
		return verdict{OK, fmt.Sprintf("got its address of %s; it does not boot from the network", c.takenServer()), ""}
	}
	return verdict{Warn, "seen in part only: the capture begins or ends in the middle", "capture from before it is switched on"}
}
