package bootprobe

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// network is how files are fetched: by one interface, from one address.
type network struct {
	inside func(func() error) error
	device string
	from   netip.Addr
	own    []netip.Addr // of this host: they are not reached by an interface
	names  []netip.Addr // DNS servers
}

// fetched is a file as far as it was read.
type fetched struct {
	head       []byte // the first headOfFiles bytes at most
	size, read int64  // size -1: not told
	final      string // URL after redirections
}

// trouble is why a file cannot be had.
type trouble struct {
	blame
	error
}

func fail(b blame, format string, args ...any) error { return trouble{b, fmt.Errorf(format, args...)} }

const (
	// mostRead bounds what is read of a file that is read as a whole: the largest boot loaders have a few megabytes.
	mostRead = 64 << 20
	// answerTime is how long an answer, or the next part of one, may take.
	answerTime = 5 * time.Second
)

// control binds a socket to the interface, unless it talks to this host.
func (n network) control(target netip.Addr) func(string, string, syscall.RawConn) error {
	return func(_, _ string, raw syscall.RawConn) error {
		if slices.Contains(n.own, target) {
			return nil
		}
		var option error
		if err := raw.Control(func(fd uintptr) { option = unix.BindToDevice(int(fd), n.device) }); err != nil {
			return err
		}
		return option
	}
}

// udp opens a socket for what goes to a target.
func (n network) udp(ctx context.Context, target netip.Addr) (conn *net.UDPConn, err error) {
	err = n.inside(func() error {
		config := net.ListenConfig{Control: n.control(target)}
		c, err := config.ListenPacket(ctx, "udp4", netip.AddrPortFrom(n.from, 0).String())
		if err == nil {
			conn = c.(*net.UDPConn)
		}
		return err
	})
	return conn, err
}

// resolve gives the address of a URL's host, by the DNS servers that DHCP names.
func (n network) resolve(ctx context.Context, host string) (netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return a.Unmap(), nil
	}
	if len(n.names) == 0 {
		return netip.Addr{}, fail(broken, "%s is a name, and DHCP names no DNS server", host)
	}
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, kind, _ string) (conn net.Conn, err error) {
		server := n.names[0]
		err = n.inside(func() error {
			dialer := net.Dialer{Control: n.control(server), Timeout: answerTime}
			conn, err = dialer.DialContext(ctx, kind, netip.AddrPortFrom(server, 53).String())
			return err
		})
		return conn, err
	}}
	all, err := resolver.LookupNetIP(ctx, "ip4", strings.TrimSuffix(host, ".")+".")
	if err != nil || len(all) == 0 {
		return netip.Addr{}, fail(broken, "the DNS server %s does not resolve %s: %v", n.names[0], host, err)
	}
	return all[0].Unmap(), nil
}

// fetch loads a file, as a whole or only its beginning, as a kind of client would.
func (n network) fetch(ctx context.Context, f Firmware, address string, whole bool) (fetched, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return fetched{size: -1}, fail(broken, "%q is no URL", address)
	}
	switch u.Scheme {
	case "tftp":
		server, err := n.resolve(ctx, u.Hostname())
		if err != nil {
			return fetched{size: -1}, err
		}
		name := strings.TrimPrefix(u.Path, "/")
		port := uint64(69)
		if p := u.Port(); p != "" {
			if port, err = strconv.ParseUint(p, 10, 16); err != nil {
				return fetched{size: -1}, fail(broken, "%q is no port", p)
			}
		}
		return n.tftp(ctx, netip.AddrPortFrom(server, uint16(port)), name, whole)
	case "http":
		return n.http(ctx, f, u, whole)
	}
	return fetched{size: -1}, fail(unread, "%s is not checked", u.Scheme)
}

const (
	tftpRead, tftpData, tftpAck, tftpError, tftpOptions = 1, 3, 4, 5, 6

	tftpBlock = 1468 // what fits into one Ethernet frame; EDK2 asks for it
	tftpTries = 5
)

// tftp reads a file in lockstep (RFC 1350, RFC 2348, RFC 2349).
func (n network) tftp(ctx context.Context, server netip.AddrPort, name string, whole bool) (got fetched, err error) {
	got.size = -1
	conn, err := n.udp(ctx, server.Addr())
	if err != nil {
		return got, fail(unread, "open a socket: %w", err)
	}
	defer conn.Close()
	send := append(binary.BigEndian.AppendUint16(nil, tftpRead), name+"\x00octet\x00tsize\x000\x00blksize\x00"+strconv.Itoa(tftpBlock)+"\x00"...)
	peer, block, size := server, uint16(0), 512
	packet := make([]byte, 4+tftpBlock)
	for tries := 0; ; {
		if _, err := conn.WriteToUDPAddrPort(send, peer); err != nil {
			return got, fail(silent, "%w", err)
		}
		length, from, err := n.hear(ctx, conn, packet)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			if tries++; tries < tftpTries {
				continue
			}
			if got.read > 0 {
				return got, fail(silent, "the transfer stops after %d bytes", got.read)
			}
			return got, fail(silent, "no answer by TFTP, asked %d times", tries)
		case err != nil:
			return got, fail(silent, "%w", err)
		case from.Addr() != server.Addr() || peer != server && from != peer || length < 4:
			continue
		}
		number := binary.BigEndian.Uint16(packet[2:])
		switch binary.BigEndian.Uint16(packet) {
		case tftpError:
			return got, fail(missing, "the TFTP server refuses: %s (code %d)", text(packet[4:length]), number)
		case tftpOptions:
			if block > 0 {
				continue
			}
			peer, size = from, 512
			fields := strings.Split(string(packet[2:length]), "\x00")
			for i := 0; i+1 < len(fields); i += 2 {
				value, err := strconv.ParseInt(fields[i+1], 10, 64)
				switch strings.ToLower(fields[i]) {
				case "tsize":
					got.size = value
				case "blksize":
					size = int(value)
				default:
					continue
				}
				if err != nil || value < 0 || size < 8 || size > tftpBlock {
					return got, fail(broken, "the TFTP server answers %s=%q", text([]byte(fields[i])), text([]byte(fields[i+1])))
				}
			}
		case tftpData:
			if number != block+1 {
				continue // once more; our answer to it goes out again
			}
			peer, block = from, number
			got.take(packet[4:length])
			if length-4 < size {
				_, _ = conn.WriteToUDPAddrPort(acknowledge(block), peer)
				if got.size >= 0 && got.read != got.size {
					return got, fail(broken, "the transfer ends after %d of %d bytes", got.read, got.size)
				}
				got.size = got.read
				return got, nil
			}
			if got.read > mostRead || !whole && got.read >= headOfFiles {
				_, _ = conn.WriteToUDPAddrPort(append([]byte{0, tftpError, 0, 0}, "enough\x00"...), peer)
				return got, nil
			}
		default:
			continue
		}
		tries = 0
		send = acknowledge(block)
	}
}

func acknowledge(block uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, tftpAck), block)
}

// hear waits a second for a packet.
func (n network) hear(ctx context.Context, conn *net.UDPConn, packet []byte) (int, netip.AddrPort, error) {
	if err := ctx.Err(); err != nil {
		return 0, netip.AddrPort{}, err
	}
	if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		return 0, netip.AddrPort{}, err
	}
	length, from, err := conn.ReadFromUDPAddrPort(packet)
	return length, netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), err
}

// take counts what came, and keeps the beginning.
func (f *fetched) take(b []byte) {
	f.read += int64(len(b))
	if room := headOfFiles - len(f.head); room > 0 {
		f.head = append(f.head, b[:min(room, len(b))]...)
	}
}

// Write implements io.Writer.
func (f *fetched) Write(b []byte) (int, error) {
	f.take(b)
	return len(b), nil
}

// client is an HTTP client with what firmware can do: no proxy, no compression, no connection for two requests.
func (n network) client(f Firmware) *http.Client {
	dial := func(ctx context.Context, _, address string) (conn net.Conn, err error) {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		target, err := n.resolve(ctx, host)
		if err != nil {
			return nil, err
		}
		err = n.inside(func() error {
			dialer := net.Dialer{Control: n.control(target), Timeout: answerTime}
			if n.from.IsValid() && !slices.Contains(n.own, target) {
				dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(n.from, 0))
			}
			conn, err = dialer.DialContext(ctx, "tcp4", net.JoinHostPort(target.String(), port))
			return err
		})
		return conn, err
	}
	redirects := func(_ *http.Request, before []*http.Request) error {
		if !f.ipxe || len(before) > 5 { // iPXE follows, firmware does not
			return http.ErrUseLastResponse
		}
		return nil
	}
	return &http.Client{CheckRedirect: redirects, Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true, DialContext: dial,
		ResponseHeaderTimeout: 2 * answerTime, MaxResponseHeaderBytes: 64 << 10}}
}

func (n network) http(ctx context.Context, f Firmware, u *url.URL, whole bool) (got fetched, err error) {
	got = fetched{size: -1, final: u.String()}
	client := n.client(f)
	do := func(method string) (*http.Response, error) {
		request, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
		if err != nil {
			return nil, fail(broken, "%w", err)
		}
		request.Header.Set("User-Agent", map[bool]string{true: "iPXE/1.21.1", false: "UefiHttpBoot/1.0"}[f.ipxe])
		if !whole && method == http.MethodGet {
			request.Header.Set("Range", fmt.Sprintf("bytes=0-%d", headOfFiles-1))
		}
		response, err := client.Do(request)
		if err != nil {
			return nil, httpTrouble(err)
		}
		if response.StatusCode != http.StatusOK && response.StatusCode != http.StatusPartialContent {
			defer response.Body.Close()
			said, _ := io.ReadAll(io.LimitReader(response.Body, 200))
			kind := missing
			if response.StatusCode >= 300 && response.StatusCode < 400 || response.StatusCode >= 500 {
				kind = broken
			}
			return nil, fail(kind, "%s: %s", response.Status, strings.TrimSpace(text(bytes.TrimSpace(said))))
		}
		return response, nil
	}
	// Firmware asks for the size first; what is not loaded as a whole has it from there, too.
	if f.http && !f.ipxe || !whole {
		response, err := do(http.MethodHead)
		if err != nil {
			return got, err
		}
		response.Body.Close()
		if got.size = response.ContentLength; got.size < 0 {
			return got, fail(broken, "the answer to HEAD has no Content-Length")
		}
	}
	response, err := do(http.MethodGet)
	if err != nil {
		return got, err
	}
	defer response.Body.Close()
	got.final = response.Request.URL.String()
	if whole {
		got.size = response.ContentLength
	}
	limit := int64(mostRead)
	if !whole {
		limit = headOfFiles
	}
	if _, err := io.Copy(&got, io.LimitReader(response.Body, limit)); err != nil {
		return got, fail(silent, "the transfer stops after %d bytes: %w", got.read, err)
	}
	if whole && got.size >= 0 && got.read != min(got.size, limit) {
		return got, fail(broken, "the transfer ends after %d of %d bytes", got.read, got.size)
	}
	return got, nil
}

// httpTrouble says what an error of a connection means.
func httpTrouble(err error) error {
	var known trouble
	if errors.As(err, &known) {
		return known
	}
	var inner *url.Error
	if errors.As(err, &inner) {
		err = inner.Err
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fail(refused, "the connection is refused")
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return fail(silent, "no answer: %v", err)
	}
	return fail(silent, "%v", err)
}
