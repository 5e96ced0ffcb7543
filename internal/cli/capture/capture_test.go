package capture

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

// tape is a capture in the making.
type tape struct {
	t       testing.TB
	packets [][]byte
}

var (
	machineMAC = net.HardwareAddr{0x52, 0x54, 0, 0, 0, 7}
	serverMAC  = net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}
	otherMAC   = net.HardwareAddr{0x52, 0x54, 0, 0, 0, 2}
)

const (
	nowhere  = "0.0.0.0"
	everyone = "255.255.255.255"
	machine  = "10.20.0.105"
	ours     = "10.20.0.2"
	theirs   = "10.20.0.3"
)

func ethernet(source net.HardwareAddr, kind uint16, payload []byte) []byte {
	frame := append([]byte{255, 255, 255, 255, 255, 255}, source...)
	return append(binary.BigEndian.AppendUint16(frame, kind), payload...)
}

func ip(protocol byte, from, to string, payload []byte) []byte {
	b := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0}
	binary.BigEndian.PutUint16(b[2:], uint16(20+len(payload)))
	b = append(append(b, netip.MustParseAddr(from).AsSlice()...), netip.MustParseAddr(to).AsSlice()...)
	return append(b, payload...)
}

func (tape *tape) udp(source net.HardwareAddr, from string, fromPort uint16, to string, toPort uint16, payload []byte) {
	b := binary.BigEndian.AppendUint16(nil, fromPort)
	b = binary.BigEndian.AppendUint16(b, toPort)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	tape.packets = append(tape.packets, ethernet(source, etherIPv4, ip(17, from, to, append(append(b, 0, 0), payload...))))
}

func (tape *tape) tcp(source net.HardwareAddr, from string, fromPort uint16, to string, toPort uint16, seq uint32, flags byte, payload string) {
	b := binary.BigEndian.AppendUint16(nil, fromPort)
	b = binary.BigEndian.AppendUint16(b, toPort)
	b = binary.BigEndian.AppendUint32(b, seq)
	b = append(b, 0, 0, 0, 0, 5<<4, flags, 0, 0, 0, 0, 0, 0)
	tape.packets = append(tape.packets, ethernet(source, etherIPv4, ip(6, from, to, append(b, payload...))))
}

// ask is a DHCP message of the machine, answer one of a server.
func (tape *tape) ask(kind dhcpv4.MessageType, options ...dhcpv4.Modifier) {
	tape.askAt(everyone, 67, kind, options...)
}

func (tape *tape) askAt(to string, port uint16, kind dhcpv4.MessageType, options ...dhcpv4.Modifier) {
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithHwAddr(machineMAC), dhcpv4.WithMessageType(kind)}, options...)...)
	if err != nil {
		tape.t.Fatal(err)
	}
	from := nowhere
	if port == 4011 {
		from = machine
	}
	tape.udp(machineMAC, from, 68, to, port, m.ToBytes())
}

func (tape *tape) answer(server string, kind dhcpv4.MessageType, address string, options ...dhcpv4.Modifier) {
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithHwAddr(machineMAC), dhcpv4.WithMessageType(kind), dhcpv4.WithServerIP(net.ParseIP(server)),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.ParseIP(server)))}, options...)...)
	if err != nil {
		tape.t.Fatal(err)
	}
	m.OpCode = dhcpv4.OpcodeBootReply
	if address != "" {
		m.YourIPAddr = net.ParseIP(address)
	}
	tape.udp(serverMAC, server, 67, everyone, 68, m.ToBytes())
}

func class(name string) dhcpv4.Modifier { return dhcpv4.WithOption(dhcpv4.OptClassIdentifier(name)) }

func file(name string) dhcpv4.Modifier {
	return func(m *dhcpv4.DHCPv4) { m.BootFileName = name }
}

func server(address string) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.ParseIP(address)))
}

func wants(address string) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(net.ParseIP(address)))
}

const uefi = "PXEClient:Arch:00007:UNDI:003016"

// tftp is one packet of TFTP.
func tftp(op uint16, number uint16, rest string) []byte {
	b := binary.BigEndian.AppendUint16(nil, op)
	if op != opRRQ && op != opOAck {
		b = binary.BigEndian.AppendUint16(b, number)
	}
	return append(b, rest...)
}

// leased is an exchange at which nothing fails.
func (tape *tape) leased(boot string) {
	tape.ask(dhcpv4.MessageTypeDiscover, class(uefi))
	tape.answer(ours, dhcpv4.MessageTypeOffer, machine, file(boot), class("PXEClient"))
	tape.ask(dhcpv4.MessageTypeRequest, class(uefi), server(ours), wants(machine))
	tape.answer(ours, dhcpv4.MessageTypeAck, machine, file(boot), class("PXEClient"))
}

// pcap and pcapng write it down.
func (tape *tape) pcap() []byte {
	var b bytes.Buffer
	w := pcapgo.NewWriter(&b)
	if err := w.WriteFileHeader(65536, layers.LinkTypeEthernet); err != nil {
		tape.t.Fatal(err)
	}
	for i, p := range tape.packets {
		if err := w.WritePacket(info(i, p), p); err != nil {
			tape.t.Fatal(err)
		}
	}
	return b.Bytes()
}

func (tape *tape) pcapng() []byte {
	var b bytes.Buffer
	w, err := pcapgo.NewNgWriter(&b, layers.LinkTypeEthernet)
	if err != nil {
		tape.t.Fatal(err)
	}
	for i, p := range tape.packets {
		if err := w.WritePacket(info(i, p), p); err != nil {
			tape.t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		tape.t.Fatal(err)
	}
	return b.Bytes()
}

func info(i int, p []byte) gopacket.CaptureInfo {
	return gopacket.CaptureInfo{Timestamp: time.Unix(1_800_000_000, 0).Add(time.Duration(i) * time.Second), CaptureLength: len(p), Length: len(p)}
}

// explain returns what is told, each line with its protocol, and the report.
func explain(t testing.TB, capture []byte) (string, Report) {
	t.Helper()
	var told strings.Builder
	report, err := Explain(bytes.NewReader(capture), func(e Event) {
		fmt.Fprintf(&told, "%d %.0f %s %s: %s\n", e.Packet, e.Seconds, e.Client, e.Protocol, e.Text)
	})
	if err != nil {
		t.Fatal(err)
	}
	return told.String(), report
}

// Each story is what a customer's capture shows, and the verdict that a person would give.
func TestVerdicts(t *testing.T) {
	for name, story := range map[string]struct {
		play    func(*tape)
		state   State
		verdict string
		do      string // a part of the advice
		note    string // a part of the notes
		told    string // a part of what is told
	}{
		"nobody answers": {
			play: func(tape *tape) {
				for range 4 {
					tape.ask(dhcpv4.MessageTypeDiscover, class(uefi))
				}
			},
			state: Fail, verdict: "asked 4 times (UEFI x64 (7), PXE), and nobody answered", do: "relay",
		},
		"two servers, and the one without a boot file is taken": {
			play: func(tape *tape) {
				for range 4 {
					tape.ask(dhcpv4.MessageTypeDiscover, class(uefi))
					tape.answer(theirs, dhcpv4.MessageTypeOffer, "10.20.0.77")
					tape.answer(ours, dhcpv4.MessageTypeOffer, machine, file("snponly.efi"), class("PXEClient"))
					tape.ask(dhcpv4.MessageTypeRequest, class(uefi), server(theirs), wants("10.20.0.77"))
					tape.answer(theirs, dhcpv4.MessageTypeAck, "10.20.0.77")
				}
			},
			state: Fail, verdict: "asked 4 times, 2 servers offered an address, took the one without a boot file (10.20.0.3); 10.20.0.2 offered snponly.efi",
			do: "stop one of the two", note: "race for every machine", told: "OFFER of 10.20.0.2: the address 10.20.0.105, boot file snponly.efi on 10.20.0.2",
		},
		"a proxy that the firmware ignores": {
			play: func(tape *tape) {
				tape.ask(dhcpv4.MessageTypeDiscover, class(uefi))
				tape.answer(theirs, dhcpv4.MessageTypeOffer, machine)
				tape.answer(ours, dhcpv4.MessageTypeOffer, "", file("snponly.efi"), class("PXEClient"))
				tape.ask(dhcpv4.MessageTypeRequest, class(uefi), server(theirs), wants(machine))
				tape.answer(theirs, dhcpv4.MessageTypeAck, machine)
			},
			state: Fail, verdict: "asked once, took the address of 10.20.0.3, and ignored the proxy 10.20.0.2, which offered snponly.efi", do: "--foreign-dhcp",
		},
		"a proxy alone": {
			play: func(tape *tape) {
				tape.ask(dhcpv4.MessageTypeDiscover, class(uefi))
				tape.answer(ours, dhcpv4.MessageTypeOffer, "", file("snponly.efi"), class("PXEClient"))
			},
			state: Fail, verdict: "asked once (UEFI x64 (7), PXE); only 10.20.0.2 answered, which gives no address", do: "pool",
		},
		"nobody says what to boot": {
			play:  func(tape *tape) { tape.leased("") },
			state: Fail, verdict: "asked once, took 10.20.0.105 of 10.20.0.2, and nobody said what to boot", do: "boot file",
		},
		"port 4011 is silent": {
			play: func(tape *tape) {
				tape.leased("")
				tape.askAt(ours, 4011, dhcpv4.MessageTypeRequest, class(uefi))
				tape.askAt(ours, 4011, dhcpv4.MessageTypeRequest, class(uefi))
			},
			state: Fail, verdict: "asked on port 4011 2 times what to boot, and got no answer", do: "4011/udp",
		},
		"HTTP firmware finds no HTTPClient": {
			play: func(tape *tape) {
				tape.ask(dhcpv4.MessageTypeDiscover, class("HTTPClient:Arch:00016:UNDI:003000"))
				tape.answer(theirs, dhcpv4.MessageTypeOffer, machine, file("snponly.efi"))
			},
			state: Fail, verdict: "asked once (UEFI x64 (16), HTTP boot), and took none of the offers of 10.20.0.3: none has class HTTPClient (option 60)", do: "option 67 to a URL",
		},
		"a refusal": {
			play: func(tape *tape) {
				tape.ask(dhcpv4.MessageTypeDiscover, class(uefi))
				tape.answer(theirs, dhcpv4.MessageTypeOffer, machine)
				tape.ask(dhcpv4.MessageTypeRequest, class(uefi), server(theirs), wants(machine))
				tape.answer(theirs, dhcpv4.MessageTypeNak, "", dhcpv4.WithOption(dhcpv4.OptMessage("pool is\x1b[31m empty")))
			},
			state: Fail, verdict: "asked once (UEFI x64 (7), PXE), and was refused: 10.20.0.3 refused: pool is?[31m empty", do: "log",
		},
		"TFTP has no such file": {
			play: func(tape *tape) {
				tape.leased("snponly.efi")
				tape.udp(machineMAC, machine, 2070, ours, 69, tftp(opRRQ, 0, "snponly.efi\x00octet\x00blksize\x001468\x00"))
				tape.udp(serverMAC, ours, 30000, machine, 2070, tftp(opError, 1, "File not found\x00"))
			},
			state: Fail, verdict: `did not get snponly.efi by TFTP from 10.20.0.2: 10.20.0.2 says "File not found" (code 1)`, do: "bundle", told: "asks 10.20.0.2 for snponly.efi (blksize=1468)",
		},
		"TFTP is silent, asked from a new port each time": {
			play: func(tape *tape) {
				tape.leased("snponly.efi")
				for port := range uint16(3) {
					tape.udp(machineMAC, machine, 2070+port, ours, 69, tftp(opRRQ, 0, "snponly.efi\x00octet\x00"))
				}
			},
			state: Fail, verdict: "asked 10.20.0.2 3 times for snponly.efi by TFTP, and got no answer", do: "69/udp",
		},
		"TFTP stops, after blocks came again": {
			play: func(tape *tape) {
				tape.leased("snponly.efi")
				tape.udp(machineMAC, machine, 2070, ours, 69, tftp(opRRQ, 0, "snponly.efi\x00octet\x00"))
				for _, block := range []uint16{1, 2, 2, 2, 3, 3} {
					tape.udp(serverMAC, ours, 30000, machine, 2070, tftp(opData, block, strings.Repeat("x", 512)))
				}
			},
			state: Fail, verdict: "the transfer of snponly.efi by TFTP from 10.20.0.2 stops after 1536 bytes in 3 blocks, 3 sent again", do: "MTU", note: "3 of 3 blocks", told: "block 2 of snponly.efi comes again",
		},
		"a size that is asked for, and a file whose block numbers wrap around": {
			play: func(tape *tape) {
				tape.leased("snponly.efi")
				tape.udp(machineMAC, machine, 2070, ours, 69, tftp(opRRQ, 0, "snponly.efi\x00octet\x00tsize\x000\x00"))
				tape.udp(serverMAC, ours, 30000, machine, 2070, tftp(opOAck, 0, "tsize\x00524807\x00"))
				tape.udp(machineMAC, machine, 2070, ours, 30000, tftp(opError, 8, "User aborted\x00"))
				tape.udp(machineMAC, machine, 2071, ours, 69, tftp(opRRQ, 0, "snponly.efi\x00octet\x00blksize\x008\x00"))
				tape.udp(serverMAC, ours, 30001, machine, 2071, tftp(opOAck, 0, "blksize\x008\x00"))
				for _, block := range []uint16{1, 30000, 60000, 65535, 0} { // the capture lacks those between
					tape.udp(serverMAC, ours, 30001, machine, 2071, tftp(opData, block, "12345678"))
				}
				tape.udp(serverMAC, ours, 30001, machine, 2071, tftp(opData, 1, "123"))
			},
			state: OK, verdict: "loaded snponly.efi", told: "the last block of snponly.efi: 524291 bytes in 65537 blocks\n",
		},
		"HTTP refuses": {
			play: func(tape *tape) {
				tape.leased("http://10.20.0.2:7080/boot.ipxe")
				tape.tcp(machineMAC, machine, 4000, ours, 7080, 1, 2, "")
				tape.tcp(serverMAC, ours, 7080, machine, 4000, 0, 4|16, "")
			},
			state: Fail, verdict: "10.20.0.2:7080 refuses its connection", do: "boot server",
		},
		"HTTP is silent": {
			play: func(tape *tape) {
				tape.leased("http://10.20.0.2:7080/boot.ipxe")
				for range 3 {
					tape.tcp(machineMAC, machine, 4000, ours, 7080, 1, 2, "")
				}
			},
			state: Fail, verdict: "asked 10.20.0.2:7080 3 times for a connection, and got no answer", do: "firewalls", told: "asks 10.20.0.2:7080 for a connection again",
		},
		"HTTP sends elsewhere": {
			play: func(tape *tape) {
				tape.leased("http://10.20.0.2:7080/boot.ipxe")
				tape.http("GET /boot.ipxe", "302 Found\r\nLocation: https://elsewhere.example/", "")
			},
			state: Fail, verdict: "asked 10.20.0.2:7080 for GET /boot.ipxe, and was sent elsewhere (302 https://elsewhere.example/)", do: "no redirect",
		},
		"HTTP stops in the middle": {
			play: func(tape *tape) {
				tape.leased("http://10.20.0.2:7080/boot.ipxe")
				tape.http("GET /kernel", "200 OK\r\nContent-Length: 1000", "only this")
			},
			state: Fail, verdict: "GET /kernel from 10.20.0.2:7080 stops after 9 of 1000 bytes", do: "--boot-pace-mbit",
		},
		"all the way": {
			play: func(tape *tape) {
				tape.leased("http://10.20.0.2:7080/boot.ipxe")
				tape.http("GET /boot.ipxe", "200 OK\r\nContent-Length: 7", "#!ipxe\n")
			},
			state: OK, verdict: "loaded /boot.ipxe", told: "answers 200 OK, 7 bytes",
		},
		"an address that two machines have": {
			play: func(tape *tape) {
				tape.leased("")
				for _, mac := range []net.HardwareAddr{machineMAC, otherMAC} {
					b := append([]byte{0, 1, 8, 0, 6, 4, 0, 2}, mac...)
					b = append(append(b, netip.MustParseAddr(machine).AsSlice()...), make([]byte, 10)...)
					tape.packets = append(tape.packets, ethernet(mac, etherARP, b))
				}
			},
			state: Fail, verdict: "asked once, took 10.20.0.105 of 10.20.0.2, and nobody said what to boot", note: "two machines have one address", told: "10.20.0.105 is at 52:54:00:00:00:07",
		},
		"an installed system": {
			play: func(tape *tape) {
				tape.ask(dhcpv4.MessageTypeDiscover)
				tape.answer(ours, dhcpv4.MessageTypeOffer, machine)
				tape.ask(dhcpv4.MessageTypeRequest, server(ours), wants(machine))
				tape.answer(ours, dhcpv4.MessageTypeAck, machine)
			},
			state: OK, verdict: "got its address of 10.20.0.2; it does not boot from the network",
		},
	} {
		t.Run(name, func(t *testing.T) {
			tape := &tape{t: t}
			story.play(tape)
			told, report := explain(t, tape.pcap())
			if len(report.Clients) != 1 {
				t.Fatalf("clients: %+v\n%s", report.Clients, told)
			}
			c := report.Clients[0]
			if c.MAC != machineMAC.String() || c.State != story.state || c.Verdict != story.verdict || !strings.Contains(c.Do, story.do) {
				t.Errorf("got %s: %q; do: %q\nwant %s: %q; do: %q\n%s", c.State, c.Verdict, c.Do, story.state, story.verdict, story.do, told)
			}
			if c.State == Fail && c.Do == "" {
				t.Error("a failure without advice")
			}
			if !strings.Contains(strings.Join(c.Notes, "\n"), story.note) || !strings.Contains(told, story.told) {
				t.Errorf("want the note %q and the line %q in:\n%q\n%s", story.note, story.told, c.Notes, told)
			}
			if strings.ContainsRune(told+fmt.Sprint(report), '\x1b') {
				t.Error("a control character of the capture reaches the terminal")
			}
			if again, same := explain(t, tape.pcapng()); again != told || fmt.Sprint(same) != fmt.Sprint(report) {
				t.Errorf("as pcapng it is another story:\n%s", again)
			}
		})
	}
}

// http is a request and its answer, on a connection of their own.
func (tape *tape) http(request, head, body string) {
	tape.tcp(machineMAC, machine, 4000, ours, 7080, 1, 2, "")
	tape.tcp(serverMAC, ours, 7080, machine, 4000, 0xfffffff0, 2|16, "")
	tape.tcp(machineMAC, machine, 4000, ours, 7080, 2, 16, request+" HTTP/1.1\r\nHost: 10.20.0.2\r\n\r\n")
	tape.tcp(serverMAC, ours, 7080, machine, 4000, 0xfffffff1, 16, "HTTP/1.1 "+head+"\r\n\r\n"+body)
}

func TestWhatIsNoCapture(t *testing.T) {
	for name, content := range map[string]string{"empty": "", "text": "Dear support, it does not boot.\n"} {
		_, err := Explain(strings.NewReader(content), func(Event) { t.Error("something is told") })
		if err == nil || !strings.Contains(err.Error(), "pcap") {
			t.Errorf("%s: %v", name, err)
		}
	}
	tape := &tape{t: t}
	tape.leased("snponly.efi")
	whole := tape.pcap()
	told, report := explain(t, whole[:len(whole)-5])
	if !strings.Contains(told, "REQUEST") || !strings.HasPrefix(report.Cut, "after packet 3 the capture cannot be read") {
		t.Errorf("a capture that breaks off: %+v\n%s", report, told)
	}
}

// A flood of invented machines makes the explanation forget, not grow.
func TestTablesAreBounded(t *testing.T) {
	x := newExplainer(func(Event) {})
	for i := range 3 * mostFlows {
		tape := &tape{t: t}
		mac := net.HardwareAddr{2, 0, 0, byte(i >> 16), byte(i >> 8), byte(i)}
		address := fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255)
		tape.udp(mac, address, 2070, ours, 69, tftp(opRRQ, 0, fmt.Sprintf("file-%d\x00octet\x00", i)))
		tape.tcp(mac, address, 4000, ours, 7080, 1, 2, "")
		tape.tcp(machineMAC, machine, uint16(i), ours, 7080, 1, 2, "")
		for _, p := range tape.packets {
			x.packet(p, time.Unix(0, 0), layers.LinkTypeEthernet)
		}
	}
	if len(x.clients) > mostClients || len(x.files) > mostFlows || len(x.conns) > mostFlows || len(x.names) > mostNames || len(x.alike) > mostTexts {
		t.Errorf("clients %d, transfers %d, connections %d, names %d, texts %d", len(x.clients), len(x.files), len(x.conns), len(x.names), len(x.alike))
	}
	for _, c := range x.order {
		if len(c.conns) > mostPerThing || len(c.files) > mostPerThing {
			t.Fatalf("%s has %d connections and %d files", c.mac, len(c.conns), len(c.files))
		}
	}
}

func FuzzExplain(f *testing.F) {
	tape := &tape{t: f}
	tape.leased("snponly.efi")
	tape.udp(machineMAC, machine, 2070, ours, 69, tftp(opRRQ, 0, "snponly.efi\x00octet\x00blksize\x001468\x00"))
	tape.udp(serverMAC, ours, 30000, machine, 2070, tftp(opData, 1, "x"))
	tape.http("GET /boot.ipxe", "200 OK\r\nContent-Length: 7", "#!ipxe\n")
	f.Add(tape.pcap())
	f.Add(tape.pcapng())
	f.Add([]byte{0x0a, 0x0d, 0x0d, 0x0a})
	f.Fuzz(func(t *testing.T, capture []byte) {
		report, err := Explain(bytes.NewReader(capture), func(e Event) {
			if strings.ContainsFunc(e.Text, func(r rune) bool { return r < ' ' }) {
				t.Errorf("a control character in %q", e.Text)
			}
		})
		if err == nil && report.Packets < report.Unread {
			t.Errorf("%+v", report)
		}
	})
}

// FuzzPacket leaves the file's format aside, which a fuzzer must hit first.
func FuzzPacket(f *testing.F) {
	tape := &tape{t: f}
	tape.leased("snponly.efi")
	tape.http("GET /boot.ipxe", "200 OK\r\nContent-Length: 7", "#!ipxe\n")
	for _, p := range tape.packets {
		f.Add(p, p)
	}
	f.Fuzz(func(t *testing.T, one, two []byte) {
		x := newExplainer(func(e Event) {
			if strings.ContainsFunc(e.Text, func(r rune) bool { return r < ' ' }) {
				t.Errorf("a control character in %q", e.Text)
			}
		})
		for _, p := range [][]byte{one, two, one} {
			for _, link := range []layers.LinkType{layers.LinkTypeEthernet, layers.LinkTypeLinuxSLL, layers.LinkTypeLinuxSLL2, layers.LinkTypeRaw} {
				x.packet(p, time.Unix(0, 0), link)
			}
		}
		x.end()
	})
}
