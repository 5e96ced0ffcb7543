package soak

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"coldrack.dev/internal/agent/client"
	"coldrack.dev/internal/contract/wire"
)

// Addresses of those who are no machines. They are in the subnet, outside of its ranges.
var (
	strangersNet = netip.MustParsePrefix("10.67.0.0/17")
	// forgedNet holds who is named as the sender of what strangers send; nobody is there to refuse an answer.
	forgedNet = netip.MustParsePrefix("10.67.128.0/17")
	// foreign is outside of the subnet; the server has a way to it.
	foreign = netip.MustParseAddr("192.0.2.7")
)

const (
	strangersAddresses = 256
	forgedAddresses    = 128
)

// nth address of a network, from 1 on.
func nth(p netip.Prefix, n int) netip.Addr {
	b := p.Addr().As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(n))
	return netip.AddrFrom4(b)
}

// strangersConfig is the first line that the strangers' process is told.
type strangersConfig struct {
	Server netip.Addr `json:"server"`
	Link   string     `json:"link"`
	Hold   int        `json:"hold"` // silent connections to each of the two TCP ports
	Rate   float64    `json:"rate"` // of everything else; 1 is what runStrangers says
}

// victim is an installed machine, whose name and address strangers want. One a line follows the configuration.
type victim struct {
	Machine     string           `json:"machine"`
	Identifiers wire.Identifiers `json:"identifiers"`
	Address     netip.Addr       `json:"address"`
}

// tally counts what strangers did and what came of it; each name is a field of the line that is printed every second.
type tally struct {
	EnrolmentsForged    atomic.Int64 // that list an installed machine's MACs, UUID and serial
	EnrolmentsAnswered  atomic.Int64 // with a session, of some other machine
	SessionsTaken       atomic.Int64 // in an installed machine's name
	NoncesTaken         atomic.Int64 // likewise
	BootsForged         atomic.Int64 // in an installed machine's name
	StrangersEnrolled   atomic.Int64
	Inventories         atomic.Int64
	InventoriesTaken    atomic.Int64 // answered 2xx
	InventoryBytes      atomic.Int64
	TFTPForged          atomic.Int64
	TFTPForgedBytes     atomic.Int64
	TFTPAnswers         atomic.Int64 // to forged senders
	TFTPAnswerBytes     atomic.Int64
	TFTPSilent          atomic.Int64
	Informs             atomic.Int64
	InformAnswers       atomic.Int64
	InformsForeign      atomic.Int64
	InformForeignAnswer atomic.Int64
	DHCPForged          atomic.Int64 // DECLINE, RELEASE and REQUEST in an installed machine's name
	DHCPMadeUp          atomic.Int64
	Connections         atomic.Int64 // silent ones that were opened
	ConnectionsClosed   atomic.Int64 // of them by the server
	ConnectionsHeld     atomic.Int64 // at the moment
	Junk                atomic.Int64
}

// counts is a tally as it is printed.
type counts map[string]int64

func (t *tally) counts() counts {
	return counts{
		"enrolmentsForged": t.EnrolmentsForged.Load(), "enrolmentsAnswered": t.EnrolmentsAnswered.Load(), "sessionsTaken": t.SessionsTaken.Load(),
		"noncesTaken": t.NoncesTaken.Load(), "bootsForged": t.BootsForged.Load(), "strangersEnrolled": t.StrangersEnrolled.Load(),
		"inventories": t.Inventories.Load(), "inventoriesTaken": t.InventoriesTaken.Load(), "inventoryBytes": t.InventoryBytes.Load(),
		"tftpForged": t.TFTPForged.Load(), "tftpForgedBytes": t.TFTPForgedBytes.Load(), "tftpAnswers": t.TFTPAnswers.Load(), "tftpAnswerBytes": t.TFTPAnswerBytes.Load(),
		"tftpSilent": t.TFTPSilent.Load(), "informs": t.Informs.Load(), "informAnswers": t.InformAnswers.Load(),
		"informsForeign": t.InformsForeign.Load(), "informForeignAnswers": t.InformForeignAnswer.Load(),
		"dhcpForged": t.DHCPForged.Load(), "dhcpMadeUp": t.DHCPMadeUp.Load(),
		"connections": t.Connections.Load(), "connectionsClosed": t.ConnectionsClosed.Load(), "connectionsHeld": t.ConnectionsHeld.Load(), "junk": t.Junk.Load(),
	}
}

// strangers are all peers that nobody knows, in one process inside the machines' network namespace.
type strangers struct {
	strangersConfig
	tally tally

	mu      sync.Mutex
	victims []victim
}

// runStrangers attacks until its input ends.
func runStrangers(ctx context.Context, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lines := json.NewDecoder(bufio.NewReader(in))
	s := &strangers{}
	if err := lines.Decode(&s.strangersConfig); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	go func() {
		defer cancel()
		for {
			var v victim
			if lines.Decode(&v) != nil {
				return
			}
			s.mu.Lock()
			s.victims = append(s.victims, v)
			s.mu.Unlock()
		}
	}()
	watched, err := s.watchForged(ctx)
	if err != nil {
		return err
	}
	raw, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return fmt.Errorf("raw socket: %w", err)
	}
	defer unix.Close(raw)

	var running sync.WaitGroup
	// each runs an attack so often a second, by as many workers.
	each := func(perSecond float64, workers int, attack func(ctx context.Context)) {
		limit := rate.NewLimiter(rate.Limit(s.Rate*perSecond), 1+int(s.Rate*perSecond/10))
		for range workers {
			running.Go(func() {
				for limit.Wait(ctx) == nil {
					attack(ctx)
				}
			})
		}
	}
	each(10, 4, s.forgeEnrolment)
	each(10, 4, s.forgeBoot)
	each(25, 8, s.enrolAsNew)
	each(20, 4, s.junk)
	each(200, 2, s.junkDatagrams)
	each(500, 1, func(context.Context) { s.forgeTFTP(raw) })
	each(50, 2, s.silentTFTP)
	each(50, 1, s.inform)
	each(20, 1, s.forgeDHCP)
	each(20, 1, s.makeUpDHCP)
	for range 4 {
		running.Go(func() { s.floodInventories(ctx) })
	}
	for i := range s.Hold {
		running.Go(func() { s.holdConnection(ctx, i, 7080) })
		running.Go(func() { s.holdConnection(ctx, i, 7444) })
	}
	encoder, tick := json.NewEncoder(out), time.NewTicker(time.Second)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
		if err := encoder.Encode(s.tally.counts()); err != nil {
			cancel()
		}
	}
	running.Wait()
	<-watched
	return nil
}

func (s *strangers) victim() (victim, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.victims) == 0 {
		return victim{}, false
	}
	return s.victims[mathrand.IntN(len(s.victims))], true
}

// someAddress is one of those that do something; holdConnection has the others.
func someAddress() netip.Addr {
	return nth(strangersNet, 1+strangersAddresses/2+mathrand.IntN(strangersAddresses/2))
}

func someMAC() string {
	mac := make(net.HardwareAddr, 6)
	_, _ = rand.Read(mac) // never fails
	mac[0] = 0x06
	return mac.String()
}

func dialer(from netip.Addr) *net.Dialer {
	return &net.Dialer{Timeout: 10 * time.Second, LocalAddr: &net.TCPAddr{IP: from.AsSlice()}}
}

// peer is an HTTP client at one address, with a certificate or without.
func peer(from netip.Addr, cert *tls.Certificate) *http.Client {
	config := &tls.Config{InsecureSkipVerify: true}
	if cert != nil {
		config.Certificates = []tls.Certificate{*cert}
	}
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DialContext: dialer(from).DialContext, TLSClientConfig: config, MaxIdleConnsPerHost: 1}}
}

// ask sends a request and reads the answer; status is 0 when there was none.
func ask(ctx context.Context, c *http.Client, method, url string, body any) (status int, answer []byte) {
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return 0, nil
		}
		content = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, url, content)
	if err != nil {
		return 0, nil
	}
	response, err := c.Do(request)
	if err != nil {
		return 0, nil
	}
	defer response.Body.Close()
	answer, _ = io.ReadAll(io.LimitReader(response.Body, 1<<20))
	return response.StatusCode, answer
}

var nonceArgument = regexp.MustCompile(regexp.QuoteMeta(wire.ArgNonce) + `=(\S+)`)

// boot asks what to boot, as iPXE does, and gives the nonce in the answer, if there is one.
func (s *strangers) boot(ctx context.Context, c *http.Client, macs []string, ids wire.Identifiers) (nonce string) {
	query := url.Values{"arch": {"x86_64"}, "platform": {"efi"}}
	for _, mac := range macs {
		query.Add("mac", strings.ReplaceAll(mac, ":", "-"))
	}
	query.Set("uuid", ids.UUID)
	query.Set("serial", ids.Serial)
	_, script := ask(ctx, c, http.MethodGet, "http://"+netip.AddrPortFrom(s.Server, 7080).String()+"/boot/ipxe?"+query.Encode(), nil)
	if found := nonceArgument.FindSubmatch(script); found != nil {
		return string(found[1])
	}
	return ""
}

func (s *strangers) api(path string) string {
	return "https://" + netip.AddrPortFrom(s.Server, 7444).String() + path
}

// enrol goes from the boot script to a session; machine is empty when there is none.
func (s *strangers) enrol(ctx context.Context, from netip.Addr, boot string, ids wire.Identifiers) (session *http.Client, machine string) {
	c := peer(from, nil)
	defer c.CloseIdleConnections()
	nonce := s.boot(ctx, c, []string{boot}, wire.Identifiers{})
	if nonce == "" {
		return nil, ""
	}
	key, csr, err := client.NewKey("discovery")
	if err != nil {
		return nil, ""
	}
	status, text := ask(ctx, c, http.MethodPost, s.api(wire.PathEnroll), wire.EnrollRequest{Nonce: nonce, Identifiers: ids, BootMAC: boot, CSR: csr, AgentVersion: "stranger"})
	var answer wire.EnrollResponse
	if status != http.StatusOK || json.Unmarshal(text, &answer) != nil {
		return nil, ""
	}
	pair, err := client.KeyPair(answer.Certificate, key)
	if err != nil {
		return nil, ""
	}
	return peer(from, &pair), answer.Machine
}

// forgeEnrolment enrols with a MAC of its own, and says that it has all of an installed machine's, too.
func (s *strangers) forgeEnrolment(ctx context.Context) {
	v, ok := s.victim()
	if !ok {
		return
	}
	ids, boot := v.Identifiers, someMAC()
	ids.MACs = append([]string{boot}, ids.MACs...)
	s.tally.EnrolmentsForged.Add(1)
	session, machine := s.enrol(ctx, someAddress(), boot, ids)
	if session == nil {
		return
	}
	defer session.CloseIdleConnections()
	if machine == v.Machine {
		s.tally.SessionsTaken.Add(1)
	}
	s.tally.EnrolmentsAnswered.Add(1)
	_, _ = ask(ctx, session, http.MethodPost, s.api(wire.PathInventory), inventory(ids, 1<<10))
}

// forgeBoot asks for an installed machine's boot script. What it must not get is a nonce.
func (s *strangers) forgeBoot(ctx context.Context) {
	v, ok := s.victim()
	if !ok {
		return
	}
	c := peer(someAddress(), nil)
	defer c.CloseIdleConnections()
	s.tally.BootsForged.Add(1)
	if s.boot(ctx, c, v.Identifiers.MACs, v.Identifiers) != "" {
		s.tally.NoncesTaken.Add(1)
	}
}

// enrolAsNew is one more machine that nobody knows, and reports little.
func (s *strangers) enrolAsNew(ctx context.Context) {
	ids := wire.Identifiers{MACs: []string{someMAC()}}
	session, _ := s.enrol(ctx, someAddress(), ids.MACs[0], ids)
	if session == nil {
		return
	}
	defer session.CloseIdleConnections()
	s.tally.StrangersEnrolled.Add(1)
	_, _ = ask(ctx, session, http.MethodPost, s.api(wire.PathInventory), inventory(ids, 4<<10))
}

// inventory is one of about so many bytes, of which no two are the same.
func inventory(ids wire.Identifiers, bytes int) wire.Inventory {
	in := wire.Inventory{Identifiers: ids, Firmware: "UEFI", System: wire.System{Vendor: "Stranger", Product: "Box", UUID: ids.UUID, Serial: ids.Serial}}
	for i, mac := range ids.MACs {
		in.NICs = append(in.NICs, wire.NIC{Name: fmt.Sprintf("eno%d", i), MAC: mac, Link: true})
	}
	for i := 0; i < bytes/600; i++ {
		in.Disks = append(in.Disks, wire.Disk{Name: fmt.Sprintf("sd%d", i), Serial: rand.Text() + rand.Text() + rand.Text(), Model: rand.Text() + rand.Text() + rand.Text(),
			WWN: rand.Text() + rand.Text() + rand.Text(), SizeBytes: 1 << 40, ByID: []string{rand.Text() + rand.Text() + rand.Text() + rand.Text()}})
	}
	return in
}

// floodInventories reports as large an inventory as it may, again and again, each time another.
func (s *strangers) floodInventories(ctx context.Context) {
	limit := rate.NewLimiter(rate.Limit(25*s.Rate), 1)
	var session *http.Client
	ids := wire.Identifiers{MACs: []string{someMAC()}}
	for limit.Wait(ctx) == nil {
		if session == nil {
			if session, _ = s.enrol(ctx, someAddress(), ids.MACs[0], ids); session == nil {
				continue
			}
		}
		in := inventory(ids, 128<<10)
		text, _ := json.Marshal(in)
		status, _ := ask(ctx, session, http.MethodPost, s.api(wire.PathInventory), in)
		s.tally.Inventories.Add(1)
		s.tally.InventoryBytes.Add(int64(len(text)))
		switch {
		case status == http.StatusOK:
			s.tally.InventoriesTaken.Add(1)
		case status == http.StatusForbidden || status == http.StatusUnauthorized || status == http.StatusNotFound:
			session = nil // its record has given way, or the session has ended
		}
	}
}

// datagram sends one from an address of strangers.
func datagram(from netip.AddrPort, to netip.AddrPort, text []byte) error {
	conn, err := net.DialUDP("udp4", net.UDPAddrFromAddrPort(from), net.UDPAddrFromAddrPort(to))
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write(text)
	return err
}

func (s *strangers) junk(ctx context.Context) {
	noise := make([]byte, 64)
	_, _ = rand.Read(noise)
	c := peer(someAddress(), nil)
	defer c.CloseIdleConnections()
	s.tally.Junk.Add(1)
	switch mathrand.IntN(4) {
	case 0:
		_, _ = ask(ctx, c, http.MethodGet, "http://"+netip.AddrPortFrom(s.Server, 7080).String()+"/"+url.PathEscape(string(noise)), nil)
	case 1:
		_, _ = ask(ctx, c, http.MethodGet, "http://"+netip.AddrPortFrom(s.Server, 7080).String()+"/boot/ipxe?mac="+url.QueryEscape(string(noise)), nil)
	case 2:
		_, _ = ask(ctx, c, http.MethodPost, s.api(wire.PathEnroll), map[string]any{"nonce": string(noise), "identifiers": 7})
	case 3:
		_, _ = ask(ctx, c, http.MethodPost, s.api("/v1/"+url.PathEscape(string(noise))), nil)
	}
}

func (s *strangers) junkDatagrams(context.Context) {
	noise := make([]byte, 16+mathrand.IntN(600))
	_, _ = rand.Read(noise)
	port := []uint16{67, 69, 123}[mathrand.IntN(3)]
	if port == 69 {
		noise = append([]byte{0, 1}, "no/such/file\x00octet\x00"...)
	}
	s.tally.Junk.Add(1)
	_ = datagram(netip.AddrPortFrom(someAddress(), 0), netip.AddrPortFrom(s.Server, port), noise)
}

// readRequest asks for the first stage with options, which make the answer no larger than the request.
func readRequest(options bool) []byte {
	b := append([]byte{0, 1}, "undionly.kpxe\x00octet\x00"...)
	if options {
		b = append(b, "blksize\x001468\x00tsize\x000\x00windowsize\x0016\x00"...)
	}
	return b
}

// forgeTFTP asks for a file in the name of somebody who will never acknowledge it.
func (s *strangers) forgeTFTP(raw int) {
	from := nth(forgedNet, 1+mathrand.IntN(forgedAddresses)).As4()
	request, to := readRequest(mathrand.IntN(2) == 0), s.Server.As4()
	const ip, udp = 20, 8
	b := make([]byte, ip+udp, ip+udp+len(request))
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_UDP // length and checksum are the kernel's
	copy(b[12:], from[:])
	copy(b[16:], to[:])
	binary.BigEndian.PutUint16(b[ip:], uint16(1024+mathrand.IntN(60000)))
	binary.BigEndian.PutUint16(b[ip+2:], 69)
	binary.BigEndian.PutUint16(b[ip+4:], uint16(udp+len(request)))
	b = append(b, request...)
	if unix.Sendto(raw, b, 0, &unix.SockaddrInet4{Addr: to}) == nil {
		s.tally.TFTPForged.Add(1)
		s.tally.TFTPForgedBytes.Add(int64(len(b)))
	}
}

// silentTFTP asks for a file and lets it lie; the socket stays open, so that no ICMP message tells the server.
func (s *strangers) silentTFTP(ctx context.Context) {
	conn, err := net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(someAddress(), 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(s.Server, 69)))
	if err != nil {
		return
	}
	_, _ = conn.Write(readRequest(true))
	s.tally.TFTPSilent.Add(1)
	time.AfterFunc(15*time.Second, func() { conn.Close() })
}

func (s *strangers) sendDHCP(m *dhcpv4.DHCPv4) error {
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(someAddress(), 0)))
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.WriteToUDPAddrPort(m.ToBytes(), netip.AddrPortFrom(s.Server, 67))
	return err
}

func message(kind dhcpv4.MessageType, mac net.HardwareAddr, address netip.Addr) *dhcpv4.DHCPv4 {
	m, err := dhcpv4.New(dhcpv4.WithMessageType(kind), dhcpv4.WithHwAddr(mac), dhcpv4.WithBroadcast(true))
	if err == nil && address.IsValid() {
		m.ClientIPAddr = address.AsSlice()
	}
	return m
}

// inform asks for settings in the name of an address, within the subnet and outside.
func (s *strangers) inform(context.Context) {
	mac, _ := net.ParseMAC(someMAC())
	address, sent := foreign, &s.tally.InformsForeign
	if mathrand.IntN(2) == 0 {
		address, sent = nth(forgedNet, 1+mathrand.IntN(forgedAddresses)), &s.tally.Informs
	}
	if s.sendDHCP(message(dhcpv4.MessageTypeInform, mac, address)) == nil {
		sent.Add(1)
	}
}

// forgeDHCP gives an installed machine's address back, or says that somebody else has it.
func (s *strangers) forgeDHCP(context.Context) {
	v, ok := s.victim()
	if !ok {
		return
	}
	mac, err := net.ParseMAC(v.Identifiers.MACs[0])
	if err != nil {
		return
	}
	kinds := []dhcpv4.MessageType{dhcpv4.MessageTypeDecline, dhcpv4.MessageTypeRelease, dhcpv4.MessageTypeRequest}
	m := message(kinds[mathrand.IntN(len(kinds))], mac, v.Address)
	if mathrand.IntN(2) == 0 {
		m.ClientHWAddr, _ = net.ParseMAC(someMAC())
	}
	m.UpdateOption(dhcpv4.OptRequestedIPAddress(v.Address.AsSlice()))
	m.UpdateOption(dhcpv4.OptServerIdentifier(s.Server.AsSlice()))
	if s.sendDHCP(m) == nil {
		s.tally.DHCPForged.Add(1)
	}
}

func (s *strangers) makeUpDHCP(context.Context) {
	mac, _ := net.ParseMAC(someMAC())
	if s.sendDHCP(message(dhcpv4.MessageTypeDiscover, mac, netip.Addr{})) == nil {
		s.tally.DHCPMadeUp.Add(1)
	}
}

// holdConnection opens a connection and says nothing, or the beginning of something, until the server closes it; then once more.
func (s *strangers) holdConnection(ctx context.Context, number, port int) {
	from := nth(strangersNet, 1+number%(strangersAddresses/2))
	for ctx.Err() == nil {
		conn, err := dialer(from).DialContext(ctx, "tcp4", netip.AddrPortFrom(s.Server, uint16(port)).String())
		if err == nil {
			s.tally.Connections.Add(1)
			s.tally.ConnectionsHeld.Add(1)
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			switch number % 4 {
			case 0:
				_, _ = io.WriteString(conn, "GET /boot/ipxe?mac=")
			case 1:
				if port == 7444 {
					conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
					_ = conn.(*tls.Conn).HandshakeContext(ctx)
				}
			}
			_, _ = io.Copy(io.Discard, conn)
			if stop() {
				s.tally.ConnectionsClosed.Add(1)
			}
			conn.Close()
			s.tally.ConnectionsHeld.Add(-1)
		}
		pause(ctx, time.Second+mathrand.N(time.Second))
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// watchForged counts what the server sends to those in whose name strangers asked.
func (s *strangers) watchForged(ctx context.Context) (ended <-chan struct{}, err error) {
	link, err := net.InterfaceByName(s.Link)
	if err != nil {
		return nil, err
	}
	const destination = 14 + 16
	network, mask := forgedNet.Addr().As4(), binary.BigEndian.Uint32(net.CIDRMask(forgedNet.Bits(), 32))
	other := foreign.As4()
	filter, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: destination, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(other[:]), SkipTrue: 2},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: mask},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: binary.BigEndian.Uint32(network[:]), SkipTrue: 1},
		bpf.RetConstant{Val: 65535},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		return nil, err
	}
	conn, err := packet.Listen(link, packet.Raw, unix.ETH_P_IP, &packet.Config{Filter: filter})
	if err != nil {
		return nil, fmt.Errorf("packet socket on %s: %w", s.Link, err)
	}
	done := make(chan struct{})
	context.AfterFunc(ctx, func() { conn.Close() })
	go func() {
		defer close(done)
		frame := make([]byte, 4096)
		for {
			n, _, err := conn.ReadFrom(frame)
			if err != nil {
				return
			}
			s.countForged(frame[:n])
		}
	}()
	return done, nil
}

func (s *strangers) countForged(frame []byte) {
	const ip, udp = 14, 14 + 20
	if len(frame) < udp+8 || frame[ip+9] != unix.IPPROTO_UDP {
		return
	}
	to := netip.AddrFrom4([4]byte(frame[ip+16 : ip+20]))
	switch fromDHCP := binary.BigEndian.Uint16(frame[udp:]) == 67; {
	case fromDHCP && to == foreign:
		s.tally.InformForeignAnswer.Add(1)
	case fromDHCP:
		s.tally.InformAnswers.Add(1)
	default:
		s.tally.TFTPAnswers.Add(1)
		s.tally.TFTPAnswerBytes.Add(int64(len(frame) - ip))
	}
}
