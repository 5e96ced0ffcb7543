package capture

import (
	"bytes"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// connKey is a TCP connection, seen from its client.
type connKey struct{ client, server netip.AddrPort }

// conn is a TCP connection of a client that boots.
type conn struct {
	client   *client
	server   netip.AddrPort
	syns     int
	accepted bool
	refused  bool // by a reset
	request  string
	status   int
	location string
	length   int64 // of the answer's body; -1: not told
	begin    uint32
	got      int64 // bytes of the answer's body
	head     bool
	ended    bool
	failed   string
	again    int // segments that came again
	next     uint32
}

func (x *explainer) segment(f frame) bool {
	s := f.tcp
	if c := x.conns[connKey{s.from, s.to}]; c != nil {
		x.byClient(c, s)
		return true
	}
	if c := x.conns[connKey{s.to, s.from}]; c != nil {
		x.byServer(c, s)
		return true
	}
	asks := isRequest(s.payload)
	if !asks && (!s.syn || s.ack) {
		return false
	}
	// A request whose connection began before the capture counts, too.
	c := &conn{client: x.at(s.from.Addr(), f.source), server: s.to, length: -1, accepted: asks}
	if c.client != nil && len(c.client.conns) < mostPerThing {
		c.client.conns = append(c.client.conns, c)
	}
	if len(x.conns) >= mostFlows {
		clear(x.conns)
	}
	x.conns[connKey{s.from, s.to}] = c
	x.byClient(c, s)
	return true
}

func isRequest(b []byte) bool {
	return bytes.HasPrefix(b, []byte("GET ")) || bytes.HasPrefix(b, []byte("HEAD "))
}

func (x *explainer) byClient(c *conn, s *segment) {
	switch {
	case s.syn:
		c.syns++
		if c.syns > 1 && !c.accepted {
			x.event(c.client, "TCP", "asks %s for a connection again", c.server)
		}
	case s.rst:
		c.ended = true
	case isRequest(s.payload):
		line, rest, _ := bytes.Cut(s.payload, []byte("\r\n"))
		request := text(strings.TrimSuffix(string(line), " HTTP/1.1"))
		c.client.follow(c)
		c.request, c.status, c.length, c.got, c.head = request, 0, -1, 0, bytes.HasPrefix(line, []byte("HEAD "))
		host := header(rest, "host")
		if host != "" {
			host = ", host " + host
		}
		x.event(c.client, "HTTP", "asks %s: %s%s", c.server, request, host)
	}
}

// follow keeps the outcome of an earlier request on the same connection.
func (c *client) follow(now *conn) {
	if c == nil || now.request == "" || len(c.conns) >= mostPerThing {
		return
	}
	before := *now
	for i, kept := range c.conns {
		if kept == now { // the past one keeps its place, the present one goes to the end
			c.conns[i] = &before
			c.conns = append(c.conns, now)
			return
		}
	}
}

func (x *explainer) byServer(c *conn, s *segment) {
	switch {
	case s.rst:
		if !c.accepted {
			c.refused = true
			x.event(c.client, "TCP", "%s refuses the connection", c.server)
		} else if !c.complete() {
			c.failed = "the server broke the connection off"
			x.event(c.client, "TCP", "%s breaks the connection off", c.server)
		}
		c.ended = true
		return
	case s.syn:
		c.accepted = true
		return
	}
	c.accepted = true
	if c.request == "" || s.length == 0 {
		c.ended = c.ended || s.fin
		return
	}
	if c.status == 0 {
		if !bytes.HasPrefix(s.payload, []byte("HTTP/1.")) {
			return
		}
		x.response(c, s)
		c.ended = c.ended || s.fin
		return
	}
	// Sequence numbers wrap around; no segment is half of them away.
	if end := s.seq + uint32(s.length); int32(end-c.next) > 0 {
		c.next = end
		c.got += int64(uint32(end - c.begin))
		c.begin = end
	} else {
		c.again++
	}
	c.ended = c.ended || s.fin
}

func (x *explainer) response(c *conn, s *segment) {
	head, body, whole := bytes.Cut(s.payload, []byte("\r\n\r\n"))
	line, rest, _ := bytes.Cut(head, []byte("\r\n"))
	fields := strings.SplitN(string(line), " ", 3)
	if len(fields) > 1 {
		c.status, _ = strconv.Atoi(fields[1])
	}
	if c.status == 0 {
		c.status = -1
	}
	if n, err := strconv.ParseInt(header(rest, "content-length"), 10, 64); err == nil && n >= 0 {
		c.length = n
	}
	c.location = header(rest, "location")
	said := len(s.payload)
	if whole {
		c.got = int64(s.length - (len(s.payload) - len(body)))
		said = s.length
	}
	c.begin = s.seq + uint32(said)
	c.next = c.begin
	what := fmt.Sprintf("%s answers %s", c.server, text(strings.TrimPrefix(strings.TrimPrefix(string(line), "HTTP/1.1 "), "HTTP/1.0 ")))
	if c.length >= 0 {
		what += fmt.Sprintf(", %d bytes", c.length)
	} else {
		what += ", without a length"
	}
	if c.location != "" {
		what += ", to " + c.location
	}
	x.event(c.client, "HTTP", "%s", what)
}

// header is a field of an HTTP message; "" where the capture does not have it.
func header(b []byte, name string) string {
	for line := range bytes.SplitSeq(b, []byte("\r\n")) {
		key, value, ok := bytes.Cut(line, []byte(":"))
		if ok && strings.EqualFold(string(bytes.TrimSpace(key)), name) {
			return text(string(bytes.TrimSpace(value)))
		}
	}
	return ""
}

// complete says whether all of the answer came.
func (c *conn) complete() bool {
	return c.status > 0 && (c.head || c.length >= 0 && c.got >= c.length || c.length < 0 && c.ended)
}
