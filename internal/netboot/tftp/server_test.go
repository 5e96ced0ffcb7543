package tftp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"
)

// content is repeatable noise, so that a block in the wrong place shows.
func content(size int) []byte {
	b := make([]byte, size)
	source := rand.NewChaCha8([32]byte{1})
	source.Read(b)
	return b
}

// files is an FS in memory.
func files(m map[string][]byte) FS {
	mapped := fstest.MapFS{}
	for name, data := range m {
		mapped[name] = &fstest.MapFile{Data: data, Mode: 0o444}
	}
	return fsFunc(func(_ context.Context, name string, _ netip.AddrPort) (File, error) {
		f, err := mapped.Open(name)
		if err != nil {
			return nil, err
		}
		file, ok := f.(File)
		if !ok {
			return nil, fs.ErrNotExist
		}
		return file, nil
	})
}

type fsFunc func(context.Context, string, netip.AddrPort) (File, error)

func (f fsFunc) Open(ctx context.Context, name string, remote netip.AddrPort) (File, error) {
	return f(ctx, name, remote)
}

// serve runs a server on conn until the test ends; what OnTransfer tells arrives in the channel.
func serve(t testing.TB, conn *net.UDPConn, options Options) (*Server, <-chan Transfer) {
	t.Helper()
	reports := make(chan Transfer, 4096)
	options.OnTransfer = func(r Transfer) { reports <- r }
	if options.Drain == 0 {
		options.Drain = time.Millisecond
	}
	server := New(options)
	conn.SetReadDeadline(time.Time{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, conn) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return server, reports
}

func loopback(t testing.TB) *net.UDPConn {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	conn.SetReadDeadline(time.Now().Add(time.Minute)) // a server that fails to answer fails the test
	return conn
}

// client is a small TFTP client that can be told to misbehave.
type client struct {
	conn    *net.UDPConn
	server  *net.UDPAddr // the well-known port
	options []string     // pairs
	// ignore, when set, makes the client not see a block (0 is the OACK); doubleAcks makes it send every ACK twice.
	ignore     func(block uint64) bool
	doubleAcks bool
	packets    int // DATA packets that arrived
	sizeTold   string
}

func newClient(t testing.TB, server net.Addr) *client {
	t.Helper()
	conn := loopback(t)
	t.Cleanup(func() { conn.Close() })
	return &client{conn: conn, server: server.(*net.UDPAddr)}
}

type serverError struct {
	code ErrorCode
	text string
}

func (e serverError) Error() string { return fmt.Sprintf("error %d: %s", e.code, e.text) }

// get reads a file. It acknowledges the last block in order when a window is full, when a block is
// out of order, or when nothing comes for a while.
func (c *client) get(name string) ([]byte, error) {
	var (
		data      []byte
		have      uint64
		peer      *net.UDPAddr
		blockSize = 512
		window    = uint64(1)
		unacked   uint64
		request   = encodeRequest(opRead, append([]string{name, "octet"}, c.options...)...)
		packet    = make([]byte, 70000)
	)
	c.conn.WriteToUDP(request, c.server)
	ack := func() {
		for range map[bool]int{false: 1, true: 2}[c.doubleAcks] {
			b := binary.BigEndian.AppendUint16([]byte{0, opAck}, uint16(have))
			c.conn.WriteToUDP(b, peer)
		}
		unacked = 0
	}
	for silence := 0; silence < 100; {
		c.conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		n, from, err := c.conn.ReadFromUDP(packet)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			silence++
			if peer == nil {
				c.conn.WriteToUDP(request, c.server)
			} else {
				ack()
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		silence = 0
		if peer != nil && from.Port != peer.Port {
			continue // another transfer's
		}
		switch binary.BigEndian.Uint16(packet) {
		case opError:
			return nil, serverError{ErrorCode(binary.BigEndian.Uint16(packet[2:])), strings.TrimRight(string(packet[4:n]), "\x00")}
		case opOack:
			if c.ignore != nil && c.ignore(0) {
				continue
			}
			peer = from
			parts := strings.Split(string(packet[2:n]), "\x00")
			for i := 0; i+1 < len(parts); i += 2 {
				value, _ := strconv.Atoi(parts[i+1])
				switch parts[i] {
				case "blksize":
					blockSize = value
				case "windowsize":
					window = uint64(value)
				case "tsize":
					c.sizeTold = parts[i+1]
				}
			}
			if have == 0 {
				ack()
			}
		case opData:
			c.packets++
			number := binary.BigEndian.Uint16(packet[2:])
			block := have + 1 + uint64(number-uint16(have+1))
			if c.ignore != nil && c.ignore(block) {
				continue
			}
			peer = from
			if number != uint16(have+1) {
				ack()
				continue
			}
			have++
			unacked++
			data = append(data, packet[4:n]...)
			last := n-4 < blockSize
			if last || unacked == window {
				ack()
			}
			if last {
				return data, nil
			}
		}
	}
	return nil, errors.New("the server fell silent")
}

func TestTransfers(t *testing.T) {
	sizes := []int{0, 1, 511, 512, 513, 1024, 100_000}
	settings := map[string][]string{
		"without options":               nil,
		"in blocks of 1468":             {"blksize", "1468"},
		"in windows of 8":               {"windowsize", "8"},
		"in windows and larger blocks":  {"blksize", "1024", "windowsize", "4", "tsize", "0"},
		"in one block larger than many": {"blksize", "65464"},
	}
	all := map[string][]byte{}
	for _, size := range sizes {
		all[fmt.Sprintf("f%d", size)] = content(size)
	}
	conn := loopback(t)
	_, reports := serve(t, conn, Options{FS: files(all)})
	for name, options := range settings {
		for _, size := range sizes {
			t.Run(fmt.Sprintf("%d bytes %s", size, name), func(t *testing.T) {
				c := newClient(t, conn.LocalAddr())
				c.options = options
				got, err := c.get(fmt.Sprintf("f%d", size))
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, all[fmt.Sprintf("f%d", size)]) {
					t.Fatalf("%d bytes differ from the file's %d", len(got), size)
				}
				report := <-reports
				if report.Err != nil || report.Bytes != int64(size) || report.Size != int64(size) || report.Retransmits != 0 {
					t.Errorf("report %+v", report)
				}
				if c.sizeTold != "" && c.sizeTold != strconv.Itoa(size) {
					t.Errorf("tsize %s", c.sizeTold)
				}
			})
		}
	}
}

func TestBlockNumbersWrapAround(t *testing.T) {
	want := content(8*70_000 + 3)
	conn := loopback(t)
	serve(t, conn, Options{FS: files(map[string][]byte{"f": want})})
	for _, options := range [][]string{{"blksize", "8"}, {"blksize", "8", "windowsize", "32"}} {
		c := newClient(t, conn.LocalAddr())
		c.options = options
		got, err := c.get("f")
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%v: %d bytes, err %v", options, len(got), err)
		}
	}
}

func TestADoubledAckDoesNotDoubleTheTransfer(t *testing.T) {
	want := content(200 * 512)
	conn := loopback(t)
	_, reports := serve(t, conn, Options{FS: files(map[string][]byte{"f": want})})
	for name, options := range map[string][]string{"lock-step": nil, "windows": {"windowsize", "8"}} {
		t.Run(name, func(t *testing.T) {
			c := newClient(t, conn.LocalAddr())
			c.options, c.doubleAcks = options, true
			got, err := c.get("f")
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%d bytes, err %v", len(got), err)
			}
			// A machine under load may make the server wait in vain now and then; doubling would be 200.
			if report := <-reports; report.Retransmits > 50 {
				t.Errorf("%d blocks sent again", report.Retransmits)
			}
		})
	}
}

func TestLostBlocksAreSentAgain(t *testing.T) {
	want := content(20 * 512)
	tests := map[string]struct {
		options []string
		lose    []uint64
	}{
		"the first block":                {nil, []uint64{1}},
		"the OACK":                       {[]string{"tsize", "0"}, []uint64{0}},
		"a block in the middle, twice":   {nil, []uint64{7, 7}},
		"the last block":                 {nil, []uint64{21}},
		"a window's first block":         {[]string{"windowsize", "4"}, []uint64{5}},
		"a window's middle block":        {[]string{"windowsize", "4"}, []uint64{6}},
		"a window's last block":          {[]string{"windowsize", "4"}, []uint64{8}},
		"a whole window":                 {[]string{"windowsize", "4"}, []uint64{5, 6, 7, 8}},
		"the last block, sent in window": {[]string{"windowsize", "4"}, []uint64{21}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := loopback(t)
			_, reports := serve(t, conn, Options{FS: files(map[string][]byte{"f": want})})
			c := newClient(t, conn.LocalAddr())
			c.options = test.options
			c.ignore = func(block uint64) bool {
				for i, lost := range test.lose {
					if lost == block {
						test.lose = append(test.lose[:i:i], test.lose[i+1:]...)
						return true
					}
				}
				return false
			}
			got, err := c.get("f")
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%d bytes, err %v", len(got), err)
			}
			if report := <-reports; report.Retransmits == 0 || report.Err != nil {
				t.Errorf("report %+v", report)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	conn := loopback(t)
	_, reports := serve(t, conn, Options{FS: fsFunc(func(_ context.Context, name string, _ netip.AddrPort) (File, error) {
		switch name {
		case "secret":
			return nil, &fs.PathError{Op: "open", Path: "/srv/secret", Err: fs.ErrPermission}
		case "broken":
			return nil, errors.New("disk /dev/sdx on fire")
		}
		return nil, fs.ErrNotExist
	})})
	tests := map[string]struct {
		packet []byte
		code   ErrorCode
		text   string
	}{
		"a missing file":           {encodeRequest(opRead, "nothing", "octet"), codeNotFound, "file not found: nothing"},
		"a forbidden file":         {encodeRequest(opRead, "secret", "octet"), codeAccess, "access denied: secret"},
		"the server's own trouble": {encodeRequest(opRead, "broken", "octet"), codeUndefined, "server cannot open broken"},
		"a name that is none":      {encodeRequest(opRead, "/", "octet"), codeNotFound, "this cannot be a file's name"},
		"another mode":             {encodeRequest(opRead, "f", "netascii"), codeIllegal, `transfer mode "netascii" is not supported, only octet (binary)`},
		"a write":                  {encodeRequest(opWrite, "f", "octet"), codeAccess, "this server only reads"},
		"nonsense":                 {[]byte{0, 9, 9, 9}, codeIllegal, "not a TFTP request"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := newClient(t, conn.LocalAddr())
			c.conn.WriteToUDP(test.packet, c.server)
			c.conn.SetReadDeadline(time.Now().Add(2 * time.Minute))
			packet := make([]byte, 600)
			n, err := c.conn.Read(packet)
			if err != nil {
				t.Fatal(err)
			}
			if want := encodeError(test.code, test.text); !bytes.Equal(packet[:n], want) {
				t.Errorf("got %q, want %q", packet[:n], want)
			}
		})
	}
	for range 5 {
		if report := <-reports; report.Err == nil {
			t.Errorf("report %+v", report)
		}
	}
}

// Shim and GRUB look for files that nobody has. They wait for the answer, and nobody needs to hear of it.
// logText is what a server has logged so far.
type logText struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logText) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func TestProbesOfBootLoadersAreNoFailures(t *testing.T) {
	conn := loopback(t)
	var log logText
	server, reports := serve(t, conn, Options{FS: files(nil), Log: slog.New(slog.NewTextHandler(&log, nil))})
	names := []string{"revocations_sku.efi", "/revocations_sbat.efi", "shim_certificate_0.efi", "/bootrevocations_sku.efi", "/grub/x86_64-efi/command.lst", "autoexec.ipxe"}
	for _, name := range names {
		if _, err := newClient(t, conn.LocalAddr()).get(name); err == nil || !strings.HasPrefix(err.Error(), "error 1: ") {
			t.Errorf("%s: %v, want that it is not found", name, err)
		}
		<-reports
	}
	if stats := server.Stats(); stats.Failed != 0 || stats.Absent != uint64(len(names)) || log.String() != "" {
		t.Errorf("%+v, and in the log:\n%s", stats, log.String())
	}
	if _, err := newClient(t, conn.LocalAddr()).get("snponly.efi"); err == nil {
		t.Error("a file that is not there was served")
	}
	<-reports
	if stats := server.Stats(); stats.Failed != 1 || !strings.Contains(log.String(), "snponly.efi") {
		t.Errorf("what is missing is counted and told: %+v\n%s", stats, log.String())
	}
}

func TestAnErrorIsNotAnsweredByAnError(t *testing.T) {
	conn := loopback(t)
	serve(t, conn, Options{FS: files(nil)})
	c := newClient(t, conn.LocalAddr())
	c.conn.WriteToUDP(encodeError(codeUndefined, "go away"), c.server)
	// The answer to a later request proves that the first was passed over in silence.
	_, err := c.get("f")
	if want := (serverError{codeNotFound, "file not found: f"}); err != want {
		t.Errorf("got %v", err)
	}
}

func TestWhoIsTooManyComesAgain(t *testing.T) {
	conn := loopback(t)
	server, _ := serve(t, conn, Options{FS: files(map[string][]byte{"f": content(2000)}), MaxTransfers: 2})
	var first []*client
	var served *net.UDPAddr // the first one's transfer
	for range 2 {
		c := newClient(t, conn.LocalAddr())
		c.conn.WriteToUDP(encodeRequest(opRead, "f", "octet"), c.server)
		_, from, err := c.conn.ReadFromUDP(make([]byte, 600))
		if err != nil {
			t.Fatal(err)
		}
		c.conn.WriteToUDP([]byte{0, opAck, 0, 1}, from)
		c.conn.Read(make([]byte, 600)) // the second block has come: the transfer holds its place
		if first = append(first, c); served == nil {
			served = from
		}
	}
	asks := func(c *client, want bool) {
		t.Helper()
		c.conn.WriteToUDP(encodeRequest(opRead, "f", "octet"), c.server)
		c.conn.SetReadDeadline(time.Now().Add(map[bool]time.Duration{true: 2 * time.Minute, false: 200 * time.Millisecond}[want]))
		if _, err := c.conn.Read(make([]byte, 600)); (err == nil) != want {
			t.Errorf("answered: %v (%v), want %v", err == nil, err, want)
		}
		c.conn.SetReadDeadline(time.Time{})
	}
	late, later := newClient(t, conn.LocalAddr()), newClient(t, conn.LocalAddr())
	asks(late, false)
	asks(later, false)
	// When one who is being served is through, there is one place.
	for block := byte(2); block <= 4; block++ {
		first[0].conn.WriteToUDP([]byte{0, opAck, 0, block}, served)
		if block < 4 {
			first[0].conn.Read(make([]byte, 600))
		}
	}
	for deadline := time.Now().Add(2 * time.Minute); server.Stats().Active > 1 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	asks(later, false) // it is late's
	asks(late, true)
	if stats := server.Stats(); stats.Deferred != 3 || stats.Refused != 0 {
		t.Errorf("stats %+v", stats)
	}
}

func TestNobodyIsDeferredForLongerThanFirmwareWaits(t *testing.T) {
	s := New(Options{MaxTransfers: 1})
	address := func(i int) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(i)) }
	now := time.Now()
	s.active[address(1)] = nil
	for i, after := range []time.Duration{0, 4, 8} {
		if s.admit(address(2), now.Add(after*time.Second)) {
			t.Errorf("question %d is admitted", i)
		}
	}
	if !s.admit(address(2), now.Add(12*time.Second)) {
		t.Error("the fourth question is deferred, too")
	}
	for i := range 4 {
		s.active[address(10+i)] = nil
	}
	s.waiting[address(3)] = wait{now, now.Add(12 * time.Second)}
	if s.admit(address(3), now.Add(13*time.Second)) {
		t.Error("there is no limit to that")
	}
	// Those that have not come again for a while are forgotten.
	if s.admit(address(4), now.Add(time.Minute)); len(s.waiting) != 1 {
		t.Errorf("%v wait", s.waiting)
	}
}

// A request from a forged address costs its victim one packet, and the server a place for seconds.
func TestTheSenderOfARequestMayBeForged(t *testing.T) {
	conn := loopback(t)
	server, reports := serve(t, conn, Options{FS: files(map[string][]byte{"f": content(2000)}), GiveUp: 3 * time.Second / 2, MaxTransfers: 2})
	c := newClient(t, conn.LocalAddr())
	request := encodeRequest(opRead, "f", "octet")
	c.conn.WriteToUDP(request, c.server)
	c.conn.Read(make([]byte, 600))
	if report := <-reports; report.Retransmits != 0 || report.Err == nil {
		t.Errorf("report %+v, want nothing sent again", report)
	}

	// Who lost the answer asks again, and gets it again from the same port.
	c.conn.WriteToUDP(request, c.server)
	_, from, err := c.conn.ReadFromUDP(make([]byte, 600))
	if err != nil {
		t.Fatal(err)
	}
	c.conn.WriteToUDP(request, c.server)
	_, again, err := c.conn.ReadFromUDP(make([]byte, 600))
	if err != nil || again.Port != from.Port {
		t.Errorf("answered from %v, then from %v (%v)", from, again, err)
	}
	<-reports

	// One address has no more than its share.
	client := func(i int) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(i)) }
	server.mu.Lock()
	defer server.mu.Unlock()
	server.perHost[client(9).Addr()] = 64
	if server.admit(client(9), time.Now()) {
		t.Error("one address takes all places")
	}
}

// However many ask and acknowledge nothing, who does is served at once.
func TestAFloodOfForgedRequestsKeepsNobodyWaiting(t *testing.T) {
	conn := loopback(t)
	want := content(5000)
	server, _ := serve(t, conn, Options{FS: files(map[string][]byte{"f": want}), MaxTransfers: 4, MaxPerAddress: 1 << 16})
	for range 50 {
		silent := newClient(t, conn.LocalAddr())
		silent.conn.WriteToUDP(encodeRequest(opRead, "f", "octet"), silent.server)
		silent.conn.Read(make([]byte, 600))
	}
	if got, err := newClient(t, conn.LocalAddr()).get("f"); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d bytes: %v", len(got), err)
	}
	if stats := server.Stats(); stats.Deferred != 0 || stats.Active > 16 {
		t.Errorf("stats %+v, want nobody deferred and no more than four times as many", stats)
	}
}

func TestARepeatedRequestStartsNoSecondTransfer(t *testing.T) {
	conn := loopback(t)
	server, _ := serve(t, conn, Options{FS: files(map[string][]byte{"f": content(2000)})})
	c := newClient(t, conn.LocalAddr())
	for range 3 {
		c.conn.WriteToUDP(encodeRequest(opRead, "f", "octet"), c.server)
	}
	if _, err := c.get("f"); err != nil { // sends the same request a fourth time
		t.Fatal(err)
	}
	if stats := server.Stats(); stats.Requests != 1 || stats.Repeated != 3 {
		t.Errorf("stats %+v", stats)
	}
}

func TestALateRepetitionDoesNotDisturbTheTransfer(t *testing.T) {
	want := content(100 * 512)
	conn := loopback(t)
	server, _ := serve(t, conn, Options{FS: files(map[string][]byte{"f": want})})
	c := newClient(t, conn.LocalAddr())
	c.ignore = func(block uint64) bool {
		if block == 50 {
			c.conn.WriteToUDP(encodeRequest(opRead, "f", "octet"), c.server)
		}
		return false
	}
	got, err := c.get("f")
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if stats := server.Stats(); stats.Requests != 1 {
		t.Errorf("stats %+v", stats)
	}
}

func TestAClientThatStartsOverFromTheSamePortIsServedAnew(t *testing.T) {
	conn := loopback(t)
	server, reports := serve(t, conn, Options{FS: files(map[string][]byte{"f": content(2000), "g": content(700)})})
	begin := func() *client {
		c := newClient(t, conn.LocalAddr())
		c.conn.WriteToUDP(encodeRequest(opRead, "f", "octet"), c.server)
		_, from, err := c.conn.ReadFromUDP(make([]byte, 600))
		if err != nil {
			t.Fatal(err)
		}
		c.conn.WriteToUDP([]byte{0, opAck, 0, 1}, from)
		c.conn.Read(make([]byte, 600)) // the second block: the server has taken the ACK
		return c
	}
	c := begin()
	if got, err := c.get("g"); err != nil || len(got) != 700 {
		t.Errorf("another file: %d bytes, %v", len(got), err)
	}
	superseded := func() {
		t.Helper()
		a, b := <-reports, <-reports // in either order
		if errors.Is(a.Err, errSuperseded) == errors.Is(b.Err, errSuperseded) || a.Err != nil && b.Err != nil {
			t.Errorf("reports %+v and %+v", a, b)
		}
	}
	superseded()

	c = begin()
	server.mu.Lock()
	for _, running := range server.active {
		running.heard.Store(time.Now().Add(-quiet).UnixNano()) // as if it had been silent
	}
	server.mu.Unlock()
	if got, err := c.get("f"); err != nil || len(got) != 2000 {
		t.Errorf("the same file after a silence: %d bytes, %v", len(got), err)
	}
	superseded()
}

func TestAClientThatOnlyAsksForTheSize(t *testing.T) {
	conn := loopback(t)
	_, reports := serve(t, conn, Options{FS: files(map[string][]byte{"f": content(2000)})})
	c := newClient(t, conn.LocalAddr())
	c.conn.WriteToUDP(encodeRequest(opRead, "f", "octet", "tsize", "0"), c.server)
	packet := make([]byte, 600)
	n, from, err := c.conn.ReadFromUDP(packet)
	if err != nil || !bytes.Equal(packet[:n], encodeOack([]option{{"tsize", "2000"}})) {
		t.Fatalf("%q, %v", packet[:n], err)
	}
	c.conn.WriteToUDP(encodeError(8, "User aborted the transfer"), from)
	if report := <-reports; !errors.Is(report.Err, ErrAborted) || !strings.Contains(report.Err.Error(), "User aborted") {
		t.Errorf("report %+v", report)
	}
}

func TestASilentClientIsGivenUp(t *testing.T) {
	conn := loopback(t)
	_, reports := serve(t, conn, Options{FS: files(map[string][]byte{"f": content(2000)}), GiveUp: time.Millisecond})
	c := newClient(t, conn.LocalAddr())
	c.conn.WriteToUDP(encodeRequest(opRead, "f", "octet"), c.server)
	if report := <-reports; report.Err == nil || !strings.Contains(report.Err.Error(), "did not acknowledge block 1") {
		t.Errorf("report %+v", report)
	}
}

func TestAClientThatGoesAwayFreesItsPlaceAtOnce(t *testing.T) {
	conn := loopback(t)
	_, reports := serve(t, conn, Options{FS: files(map[string][]byte{"f": content(2000)}), GiveUp: time.Hour})
	c := newClient(t, conn.LocalAddr())
	c.conn.WriteToUDP(encodeRequest(opRead, "f", "octet"), c.server)
	_, from, err := c.conn.ReadFromUDP(make([]byte, 600))
	if err != nil {
		t.Fatal(err)
	}
	c.conn.WriteToUDP([]byte{0, opAck, 0, 1}, from)
	c.conn.Close()
	if report := <-reports; report.Err == nil || !strings.Contains(report.Err.Error(), "closed its port") {
		t.Errorf("report %+v", report)
	}
}

type shrinking struct{ File }

func (shrinking) ReadAt([]byte, int64) (int, error) { return 0, io.EOF }

func TestAFileThatShrinksFailsTheTransfer(t *testing.T) {
	inner := files(map[string][]byte{"f": content(2000)})
	conn := loopback(t)
	_, reports := serve(t, conn, Options{FS: fsFunc(func(ctx context.Context, name string, remote netip.AddrPort) (File, error) {
		f, err := inner.Open(ctx, name, remote)
		return shrinking{f}, err
	})})
	_, err := newClient(t, conn.LocalAddr()).get("f")
	if want := (serverError{codeUndefined, "server cannot read the file"}); err != want {
		t.Errorf("got %v", err)
	}
	if report := <-reports; !errors.Is(report.Err, io.ErrUnexpectedEOF) {
		t.Errorf("report %+v", report)
	}
}

func TestDirServesOnlyRegularFilesBelowIt(t *testing.T) {
	top := t.TempDir()
	inside := filepath.Join(top, "boot")
	for path, text := range map[string]string{"secret": "no", "boot/f": "yes", "boot/sub/g": "also"} {
		path = filepath.Join(top, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../secret", filepath.Join(inside, "out")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("f", filepath.Join(inside, "in")); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(inside)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	conn := loopback(t)
	serve(t, conn, Options{FS: Dir(root)})
	for name, want := range map[string]string{"/f": "yes", `sub\g`: "also", "in": "yes", "out": "", "../secret": "", "sub": "", "/etc/passwd": ""} {
		got, err := newClient(t, conn.LocalAddr()).get(name)
		if string(got) != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestManyClientsAtOnce(t *testing.T) {
	want := content(50_000)
	conn := loopback(t)
	server, _ := serve(t, conn, Options{FS: files(map[string][]byte{"f": want}), MaxPerAddress: 300})
	var clients sync.WaitGroup
	for range 300 {
		c := newClient(t, conn.LocalAddr())
		c.options = []string{"blksize", "1468"}
		clients.Go(func() {
			if got, err := c.get("f"); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	clients.Wait()
	if stats := server.Stats(); stats.Failed != 0 || stats.Refused != 0 {
		t.Errorf("stats %+v", stats)
	}
}

func TestRunningTransfersMayFinishWhenTheServerStops(t *testing.T) {
	want := content(3 * 512)
	conn := loopback(t)
	conn.SetReadDeadline(time.Time{})
	server := New(Options{FS: files(map[string][]byte{"f": want}), Drain: time.Minute})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, conn) }()
	c := newClient(t, conn.LocalAddr())
	c.ignore = func(uint64) bool { cancel(); return false }
	got, err := c.get("f")
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
