package bootprobe

import (
	"net/netip"
	"strings"
	"testing"
)

func TestVerdicts(t *testing.T) {
	var (
		ours, theirs = netip.MustParseAddr("10.20.0.2"), netip.MustParseAddr("10.20.0.3")
		kinds        = map[string]Firmware{}
		fromOurs     = Offer{Server: ours, Address: netip.MustParseAddr("10.20.0.100"), File: "undionly.kpxe", Next: ours, Class: "PXEClient", Bytes: 400}
		bare         = Offer{Server: theirs, Address: netip.MustParseAddr("10.20.0.200"), Bytes: 330}
		proxy        = Offer{Server: ours, File: "undionly.kpxe", Next: ours, Class: "PXEClient", Bytes: 350}
	)
	for _, f := range Firmwares() {
		kinds[f.Name] = f
	}
	url := func(o Offer, file string) Offer { o.File, o.Next, o.Class = file, netip.Addr{}, "HTTPClient"; return o }
	offers := func(all ...Offer) []Offer { return all }
	stages := func(all ...Stage) []Stage { return all }
	loader := Stage{Name: "loader", URL: "tftp://10.20.0.2/undionly.kpxe", Size: 70_000, Read: 70_000}
	script := Stage{Name: "script", URL: "http://10.20.0.2:7080/boot/ipxe?mac=02-c0-1d-00-00-01", Size: 300, Read: 300, Format: Script}
	kernel := Stage{Name: "kernel", URL: "http://10.20.0.2:7080/content/sha256/ab", Size: 8_000_000, Read: headOfFiles, Format: LinuxEFI}
	broke := func(s Stage, b blame, why string) Stage { s.Error, s.blame = why, b; return s }
	says := []string{"Coldrack: new machine: Discover: the machine is not known yet"}

	for _, test := range []struct {
		name     string
		kind     string
		offers   []Offer
		stages   []Stage
		end      ending
		says     []string
		segment  segment
		want     State
		says1    string // in the verdict
		does     string // in what to do
		coldrack bool
	}{
		{name: "nobody answers anybody", kind: "BIOS PXE", want: Fail, says1: "nobody answers: it gets no address", does: "relay"},
		{name: "only clients that do not boot are answered", kind: "BIOS PXE", segment: segment{anyone: offers(bare)}, want: Fail, says1: "although 10.20.0.3 answers clients", does: "bundle list"},
		{name: "other firmware is answered", kind: "UEFI x64 HTTP", segment: segment{boots: true}, want: Fail, says1: "although other firmware is answered", does: "log"},
		{name: "a proxy alone", kind: "BIOS PXE", offers: offers(proxy), segment: segment{boots: true}, want: Fail, says1: "only a proxy answers, 10.20.0.2", does: "site's own DHCP server"},
		{name: "a server that knows nothing of booting", kind: "BIOS PXE", offers: offers(bare), segment: segment{anyone: offers(bare)}, want: Fail, says1: "not Coldrack: 10.20.0.3 gives addresses and names no boot file", does: "--foreign-dhcp"},
		{name: "no loader for this kind of machine", kind: "UEFI arm64 PXE", offers: offers(Offer{Server: ours, Address: fromOurs.Address}),
			segment: segment{boots: true, coldracks: []netip.Addr{ours}}, want: Warn, says1: "no boot file for this kind of machine from 10.20.0.2, which leads to Coldrack", does: "no such machines"},
		{name: "no loader of another server for this kind", kind: "UEFI arm64 PXE", offers: offers(bare), segment: segment{boots: true}, want: Warn, says1: "though for others", does: "no such machines"},
		{name: "an offer for HTTP without its class", kind: "UEFI x64 HTTP", offers: offers(fromOurs), segment: segment{boots: true}, want: Fail, says1: `names undionly.kpxe with class "PXEClient"`, does: "option 60"},
		{name: "two servers race", kind: "BIOS PXE", offers: offers(fromOurs, bare), stages: stages(loader, script, kernel), end: endKernel, says: says, coldrack: true,
			segment: segment{boots: true, coldracks: []netip.Addr{ours}}, want: Fail, says1: "2 servers race for it: 10.20.0.2, which leads to Coldrack (tftp://10.20.0.2/undionly.kpxe), 10.20.0.3 (no boot file)", does: "switch DHCP of 10.20.0.3 off"},
		{name: "two servers without a boot file", kind: "BIOS PXE", offers: offers(bare, Offer{Server: ours, Address: fromOurs.Address}), want: Fail, says1: "not Coldrack: 10.20.0.2 and 10.20.0.3 give addresses and name", does: "--foreign-dhcp"},
		{name: "two servers that say the same", kind: "BIOS PXE", offers: offers(fromOurs, Offer{Server: theirs, Address: bare.Address, File: "undionly.kpxe", Next: ours}), want: Warn, says1: "all name the same boot file", does: "same addresses"},
		{name: "the site's server and a proxy", kind: "BIOS PXE", offers: offers(bare, proxy), stages: stages(loader, script, kernel), end: endKernel, says: says, coldrack: true,
			segment: segment{boots: true}, want: OK, says1: "10.20.0.2: loads undionly.kpxe (70 kB), ipxe (300 bytes), kernel (8000 kB)"},
		{name: "no TFTP server", kind: "BIOS PXE", offers: offers(fromOurs), stages: stages(broke(loader, silent, "no answer by TFTP, asked 5 times")), want: Fail, says1: "stops at the loader tftp://10.20.0.2/undionly.kpxe: no answer", does: "69/udp"},
		{name: "no file", kind: "BIOS PXE", offers: offers(fromOurs), stages: stages(broke(loader, missing, "the TFTP server refuses")), want: Fail, says1: "refuses", does: "bundle list"},
		{name: "a loader of another architecture", kind: "UEFI x64 PXE", offers: offers(fromOurs), stages: stages(broke(loader, wrong, "this machine cannot start it")), want: Fail, says1: "cannot start it", does: "option 93"},
		{name: "the boot server is down", kind: "iPXE on BIOS", offers: offers(url(fromOurs, "http://10.20.0.2:7080/boot.ipxe")), stages: stages(broke(script, refused, "the connection is refused")), want: Fail, says1: "refused", does: "coldrack doctor on it"},
		{name: "a kernel that does not come", kind: "BIOS PXE", offers: offers(fromOurs), stages: stages(loader, script, broke(kernel, silent, "no answer")), coldrack: true, want: Fail, says1: "stops at the kernel", does: "routes"},
		{name: "https", kind: "iPXE on BIOS", offers: offers(url(fromOurs, "https://10.20.0.2/boot.ipxe")), stages: stages(broke(script, unread, "https is not checked")), want: Warn, says1: "https is not checked", does: "console"},
		{name: "told to wait", kind: "BIOS PXE", offers: offers(fromOurs), stages: stages(loader, script), end: endWaits, says: []string{"Coldrack: new machine: Refuse: no bundle with a discovery image has been imported"}, coldrack: true,
			want: Fail, says1: "no bundle with a discovery image", does: "console"},
		{name: "a boot loader of others", kind: "BIOS PXE", offers: offers(bare, proxy), stages: stages(Stage{Name: "loader", URL: "tftp://10.20.0.3/pxelinux.0", Size: 42_000, Read: 42_000}), end: endLoader, want: Warn, says1: "loads pxelinux.0 (42 kB), which is not Coldrack's", does: "if that is meant"},
		{name: "a script of others", kind: "iPXE on BIOS", offers: offers(fromOurs), stages: stages(script, kernel), end: endKernel, want: Warn, says1: "boots, but nothing of Coldrack", does: "if that is meant"},
		{name: "everything", kind: "BIOS PXE", offers: offers(fromOurs), stages: stages(loader, script, kernel), end: endKernel, says: says, coldrack: true, segment: segment{boots: true, coldracks: []netip.Addr{ours}},
			want: OK, says1: `(its console says "new machine: Discover: the machine is not known yet")`},
	} {
		t.Run(test.name, func(t *testing.T) {
			f, ok := kinds[test.kind]
			if !ok {
				t.Fatalf("no kind %q", test.kind)
			}
			trip := trip{firmware: f, offers: test.offers, stages: test.stages, end: test.end, says: test.says, coldrack: test.coldrack}
			_, trip.boots = f.choose(test.offers)
			got := judge(trip, test.segment)
			if got.state != test.want || !strings.Contains(got.text, test.says1) || !strings.Contains(got.do, test.does) || got.state == Fail && got.do == "" || got.state == OK && got.do != "" {
				t.Errorf("%s: %s\n-> %s\nwant %s with %q, and %q", got.state, got.text, got.do, test.want, test.says1, test.does)
			}
		})
	}
}

func TestNotes(t *testing.T) {
	site, ours := netip.MustParseAddr("10.20.0.3"), netip.MustParseAddr("10.20.0.2")
	large := Offer{Server: site, Address: netip.MustParseAddr("10.20.0.200"), File: "pxelinux.0", Next: site, Bytes: 600, Milliseconds: 1500}
	proxy := Offer{Server: ours, File: "undionly.kpxe", Next: ours, Class: "PXEClient", Bytes: 300}
	f := Firmwares()[0]
	tr := trip{firmware: f, offers: []Offer{proxy, large}}
	_, tr.boots = f.choose(tr.offers)
	bare := Offer{Server: site, Address: large.Address, File: "bootx64.efi", Next: site, Class: "PXEClient"}
	uefi := trip{firmware: Firmwares()[1], offers: []Offer{bare}, boots: &bare}
	notes := strings.Join(append(notesOf(tr), notesOf(uefi)...), "\n")
	for _, want := range []string{"has 600 bytes", "came after 1.5 s", "the proxy 10.20.0.2 names tftp://10.20.0.2/undionly.kpxe, and is not heeded", "no option 43"} {
		if !strings.Contains(notes, want) {
			t.Errorf("no %q in\n%s", want, notes)
		}
	}
}
