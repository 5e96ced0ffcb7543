package rehearse

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

func TestSchedules(t *testing.T) {
	for name, tt := range map[string]struct {
		schedule schedule
		asks     int
		total    time.Duration
	}{
		"PXE asks four times within a minute":    {pxeSchedule, 4, 60 * time.Second},
		"iPXE is quicker and gives up sooner":    {ipxeDHCP.discover, 4, 15 * time.Second},
		"the discovery system is patient":        {agentDHCP.discover, 180, 15 * time.Minute},
		"an empty schedule gives up immediately": {nil, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			asks := 0
			for {
				if _, ok := tt.schedule.wait(asks); !ok {
					break
				}
				asks++
			}
			if asks != tt.asks || tt.schedule.total() != tt.total {
				t.Errorf("asks %d times within %s, want %d within %s", asks, tt.schedule.total(), tt.asks, tt.total)
			}
		})
	}
}

var (
	testMAC  = net.HardwareAddr{0x52, 0x54, 0, 1, 2, 3}
	testNow  = time.Date(2026, 3, 1, 8, 0, 0, 0, time.UTC)
	testUUID = "00112233-4455-6677-8899-aabbccddeeff"
)

// answer is what a server says to a message.
func answer(t *testing.T, to *dhcpv4.DHCPv4, kind dhcpv4.MessageType, options ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	t.Helper()
	m, err := dhcpv4.NewReplyFromRequest(to, append([]dhcpv4.Modifier{
		dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(net.IP{10, 0, 0, 9}), dhcpv4.WithServerIP(net.IP{10, 0, 0, 1}),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IP{10, 0, 0, 1})), dhcpv4.WithNetmask(net.CIDRMask(24, 32)),
	}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func bootable(name string) dhcpv4.Modifier { return dhcpv4.WithOption(dhcpv4.OptBootFileName(name)) }

func TestExchange(t *testing.T) {
	const offer, ack, nak = dhcpv4.MessageTypeOffer, dhcpv4.MessageTypeAck, dhcpv4.MessageTypeNak
	begin := func(c dhcpClient) (*exchange, *dhcpv4.DHCPv4) {
		e := &exchange{client: c, mac: testMAC, uuid: testUUID, xid: dhcpv4.TransactionID{1, 2, 3, 4}}
		m, _ := e.start(testNow)
		return e, m
	}
	t.Run("an offer with a boot file is requested and acknowledged", func(t *testing.T) {
		e, discover := begin(uefi.dhcp)
		request, wait, _ := e.receive(answer(t, discover, offer, bootable("snponly.efi")), testNow)
		if request == nil || request.MessageType() != dhcpv4.MessageTypeRequest || wait != 4*time.Second {
			t.Fatalf("says %v, waits %s", request, wait)
		}
		_, _, lease := e.receive(answer(t, request, ack, bootable("snponly.efi")), testNow)
		want := Lease{Address: netip.MustParseAddr("10.0.0.9"), Bits: 24, Server: netip.MustParseAddr("10.0.0.1"),
			Next: netip.MustParseAddr("10.0.0.1"), BootFile: "snponly.efi", Duration: time.Hour}
		if lease == nil || *lease != want {
			t.Errorf("lease is %+v, want %+v", lease, want)
		}
	})
	t.Run("firmware passes over an offer without a boot file and gives up after a minute", func(t *testing.T) {
		e, discover := begin(bios.dhcp)
		if m, _, _ := e.receive(answer(t, discover, offer), testNow); m != nil {
			t.Fatalf("answered %v", m)
		}
		var waited time.Duration
		wait := 4 * time.Second
		var err error
		for err == nil {
			waited += wait
			_, wait, err = e.expire(testNow.Add(waited))
		}
		if !errors.Is(err, errGivenUp) || waited != time.Minute || !strings.Contains(err.Error(), "no boot file") {
			t.Errorf("after %s: %v", waited, err)
		}
	})
	t.Run("the discovery system needs no boot file", func(t *testing.T) {
		e, discover := begin(agentDHCP)
		if m, _, _ := e.receive(answer(t, discover, offer), testNow); m == nil || m.ClassIdentifier() != "coldrack-agent" {
			t.Errorf("says %v", m)
		}
	})
	t.Run("a NAK starts over", func(t *testing.T) {
		e, discover := begin(uefi.dhcp)
		request, _, _ := e.receive(answer(t, discover, offer, bootable("x")), testNow)
		again, wait, lease := e.receive(answer(t, request, nak), testNow)
		if again == nil || again.MessageType() != dhcpv4.MessageTypeDiscover || wait != 8*time.Second || lease != nil {
			t.Errorf("says %v, waits %s", again, wait)
		}
	})
	t.Run("a request that is not answered is repeated, then the search goes on", func(t *testing.T) {
		e, discover := begin(bios.dhcp)
		e.receive(answer(t, discover, offer, bootable("x")), testNow)
		var kinds []string
		for range 5 {
			m, _, err := e.expire(testNow)
			if err != nil {
				kinds = append(kinds, "gave up")
				break
			}
			kinds = append(kinds, m.MessageType().String())
		}
		if got := strings.Join(kinds, " "); got != "REQUEST REQUEST REQUEST DISCOVER gave up" {
			t.Error(got)
		}
	})
	t.Run("somebody else's answer is not ours", func(t *testing.T) {
		e, discover := begin(uefi.dhcp)
		m := answer(t, discover, offer, bootable("x"))
		m.TransactionID[0]++
		if got, _, _ := e.receive(m, testNow); got != nil {
			t.Errorf("says %v", got)
		}
	})
}

func TestClientsSayWhatTheyAre(t *testing.T) {
	for name, tt := range map[string]struct {
		client dhcpClient
		arch   string
		vendor string
		user   string
		uuid   bool
	}{
		"UEFI":             {uefi.dhcp, "\x00\x07", "PXEClient:Arch:00007:UNDI:003016", "", true},
		"BIOS":             {bios.dhcp, "\x00\x00", "PXEClient:Arch:00000:UNDI:002001", "", true},
		"iPXE on BIOS":     {ipxeFor(bios), "\x00\x00", "PXEClient:Arch:00000:UNDI:003010", "iPXE", true},
		"discovery system": {agentDHCP, "", "coldrack-agent", "", false},
	} {
		t.Run(name, func(t *testing.T) {
			e := exchange{client: tt.client, mac: testMAC, uuid: testUUID}
			m, _ := e.start(testNow)
			sent, err := dhcpv4.FromBytes(payloadBack(frame(testMAC, m.ToBytes())))
			if err != nil {
				t.Fatal(err)
			}
			if got := string(sent.Options.Get(dhcpv4.OptionClientSystemArchitectureType)); got != tt.arch {
				t.Errorf("architecture %q", got)
			}
			if got := sent.ClassIdentifier(); got != tt.vendor {
				t.Errorf("vendor class %q", got)
			}
			if got := string(sent.Options.Get(dhcpv4.OptionUserClassInformation)); got != tt.user {
				t.Errorf("user class %q", got)
			}
			id := sent.Options.Get(dhcpv4.GenericOptionCode(97))
			if tt.uuid != (string(id) == "\x00\x33\x22\x11\x00\x55\x44\x77\x66\x88\x99\xaa\xbb\xcc\xdd\xee\xff") {
				t.Errorf("UUID % x", id)
			}
		})
	}
}

// payloadBack reads a client's own frame, whose port is the server's.
func payloadBack(b []byte) []byte {
	c := append([]byte(nil), b...)
	binary.BigEndian.PutUint16(c[14+20+2:], 68)
	return payloadOf(c)
}

func TestFramesHaveARightChecksum(t *testing.T) {
	b := frame(testMAC, make([]byte, 300))
	if sum := onesComplement(b[14:34]); sum != 0 {
		t.Errorf("the header adds up to %04x", ^sum)
	}
}

func data(block int, size int) []byte {
	b := make([]byte, 4+size)
	b[1] = tftpData
	binary.BigEndian.PutUint16(b[2:], uint16(block))
	return b
}

func oack(pairs ...string) []byte {
	return append([]byte{0, tftpOptions}, strings.Join(pairs, "\x00")+"\x00"...)
}

func TestDownload(t *testing.T) {
	window := tftpClient{blockSize: 1000, windowSize: 4, timeout: time.Second, tries: 3}
	lockstep := tftpClient{blockSize: 1000, timeout: time.Second, tries: 3}
	ack := func(n int) string { return string(acknowledge(uint64(n))) }
	for name, tt := range map[string]struct {
		client tftpClient
		says   [][]byte
		want   []string // replies, "" for none
		fails  string
	}{
		"lock-step acknowledges every block":                                        {lockstep, [][]byte{oack("blksize", "1000", "tsize", "1500"), data(1, 1000), data(2, 500)}, []string{ack(0), ack(1), ack(2)}, ""},
		"a server without options sends the first block":                            {lockstep, [][]byte{data(1, 512), data(2, 12)}, []string{ack(1), ack(2)}, ""},
		"a block that comes twice is acknowledged twice: the first ACK may be lost": {lockstep, [][]byte{oack("blksize", "1000"), data(1, 1000), data(1, 1000), data(2, 0)}, []string{ack(0), ack(1), ack(1), ack(2)}, ""},
		"the end of a window that comes twice is acknowledged twice":                {window, [][]byte{oack("blksize", "1000", "windowsize", "2"), data(1, 1000), data(2, 1000), data(1, 1000), data(2, 1000)}, []string{ack(0), "", ack(2), "", ack(2)}, ""},
		"in a window only its last block is acknowledged":                           {window, [][]byte{oack("blksize", "1000", "windowsize", "4"), data(1, 1000), data(2, 1000), data(3, 1000), data(4, 1000), data(5, 1)}, []string{ack(0), "", "", "", ack(4), ack(5)}, ""},
		"a gap is told once":                                           {window, [][]byte{oack("blksize", "1000", "windowsize", "4"), data(1, 1000), data(3, 1000), data(4, 1000), data(2, 1000)}, []string{ack(0), "", ack(1), "", ""}, ""},
		"an ERROR ends it":                                             {lockstep, [][]byte{append([]byte{0, tftpError, 0, 1}, "not here\x00"...)}, nil, "not here (code 1)"},
		"a larger block than asked for is refused":                     {lockstep, [][]byte{oack("blksize", "2000")}, nil, "blksize 2000, asked for 1000"},
		"a transfer that ends too early is noticed":                    {lockstep, [][]byte{oack("blksize", "1000", "tsize", "5000"), data(1, 10)}, []string{ack(0), ""}, "10 bytes instead of 5000"},
		"a packet that is too short to be one is left alone":           {lockstep, [][]byte{{0, 3}, data(1, 5)}, []string{"", ack(1)}, ""},
		"options that come again after the first block do not disturb": {lockstep, [][]byte{oack("blksize", "1000"), data(1, 1000), oack("blksize", "1000"), data(2, 0)}, []string{ack(0), ack(1), "", ack(2)}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			d := download{client: tt.client, name: "f"}
			d.start()
			for i, packet := range tt.says {
				reply, _, err := d.receive(packet)
				if err != nil {
					if tt.fails == "" || !strings.Contains(err.Error(), tt.fails) {
						t.Fatalf("packet %d: %v, want %q", i, err, tt.fails)
					}
					return
				}
				if string(reply) != tt.want[i] {
					t.Fatalf("packet %d: reply % x, want % x", i, reply, tt.want[i])
				}
			}
			if tt.fails != "" {
				t.Errorf("did not fail with %q", tt.fails)
			}
		})
	}
}

func TestDownloadAsksForTheSizeOnly(t *testing.T) {
	d := download{client: uefi.tftp, name: "snponly.efi", sizeOnly: true}
	if request := string(d.start()); strings.Contains(request, "windowsize") || !strings.Contains(request, "tsize") {
		t.Errorf("request %q", request)
	}
	reply, done, err := d.receive(oack("tsize", "4711"))
	if err != nil || !done || reply[1] != tftpError || d.size != 4711 {
		t.Errorf("reply % x, done %v, size %d: %v", reply, done, d.size, err)
	}
}

func TestDownloadGivesUp(t *testing.T) {
	d := download{client: bios.tftp, name: "f"}
	first := string(d.start())
	for try := 1; ; try++ {
		again, err := d.expire()
		if err != nil {
			if try != bios.tftp.tries || !errors.Is(err, errGivenUp) {
				t.Errorf("try %d: %v", try, err)
			}
			break
		}
		if string(again) != first {
			t.Errorf("try %d says % x", try, again)
		}
	}
	d = download{client: bios.tftp, name: "f"}
	d.start()
	_, _ = d.expire()
	_, _, _ = d.receive(data(1, 512))
	if again, err := d.expire(); err != nil || string(again) != string(acknowledge(1)) {
		t.Errorf("after progress it says % x: %v", again, err)
	}
}

// FuzzServerAnswers gives everything that reads what a server says something else to read.
func FuzzServerAnswers(f *testing.F) {
	f.Add(frame(testMAC, []byte("hello")))
	f.Add(oack("blksize", "8", "windowsize", "2", "tsize", "9"))
	f.Add(data(1, 8))
	f.Add([]byte("#!ipxe\nkernel --name k http://x/k a=b || goto failed\ninitrd http://x/i\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p := payloadOf(b); len(p) > len(b) {
			t.Errorf("payload of %d bytes in a frame of %d", len(p), len(b))
		}
		_, _ = parseScript(string(b))
		d := download{client: uefi.tftp, name: "f"}
		d.start()
		for _, packet := range [][]byte{b, data(1, 8), b} {
			if _, _, err := d.receive(packet); err != nil {
				return
			}
			if d.blockSize < 1 || d.window < 1 {
				t.Fatalf("block size %d, window %d", d.blockSize, d.window)
			}
		}
	})
}
