package capture

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// transfer is a file that a client asks for by TFTP.
type transfer struct {
	client    *client
	server    netip.Addr
	file      string
	size      int    // of a block, as agreed
	total     int64  // of the file, by option tsize; -1: not told
	block     uint16 // the highest that came
	blocks    int64  // the same, counted on where numbers wrap around
	bytes     int64
	asked     int    // how often the client asked for it
	again     int    // blocks that came again
	failed    string // error of either side
	cancelled bool   // by the client, who wanted to know the size only
	answered  bool
	done      bool
}

const (
	opRRQ, opData, opAck, opError, opOAck = 1, 3, 4, 5, 6
	tftpPort                              = 69
)

func (x *explainer) tftp(f frame) bool {
	u, p := f.udp, f.udp.payload
	if len(p) < 2 {
		return false
	}
	op := binary.BigEndian.Uint16(p)
	if u.to.Port() == tftpPort {
		if op != opRRQ {
			return false
		}
		x.readRequest(f)
		return true
	}
	if t := x.files[u.to]; t != nil && (u.from.Addr() == t.server) {
		return x.fromServer(t, op, p)
	}
	if t := x.files[u.from]; t != nil && (u.to.Addr() == t.server) {
		return x.fromClient(t, op, p)
	}
	return false
}

func (x *explainer) readRequest(f frame) {
	u := f.udp
	fields := strings.Split(string(u.payload[2:]), "\x00")
	file := text(fields[0])
	var options []string
	for i := 2; i+1 < len(fields) && i < 20; i += 2 {
		options = append(options, text(fields[i])+"="+text(fields[i+1]))
	}
	c := x.at(u.from.Addr(), f.source)
	t := x.files[u.from]
	if t == nil || t.done || t.failed != "" || t.file != file {
		if len(x.files) >= mostFlows {
			clear(x.files)
		}
		t = nil
		// Firmware that hears nothing asks again from another port.
		if c != nil {
			for _, before := range c.files {
				if before.file == file && before.server == u.to.Addr() && !before.answered {
					t = before
				}
			}
		}
		if t == nil {
			t = &transfer{client: c, server: u.to.Addr(), file: file, total: -1}
			if c != nil && len(c.files) < mostPerThing {
				c.files = append(c.files, t)
			}
		}
		x.files[u.from] = t
	}
	t.asked++
	t.size = 512
	with := ""
	if len(options) > 0 {
		with = " (" + strings.Join(options, ", ") + ")"
	}
	x.event(c, "TFTP", "asks %s for %s%s", u.to.Addr(), file, with)
}

func (x *explainer) fromServer(t *transfer, op uint16, p []byte) bool {
	t.answered = true
	switch op {
	case opOAck:
		fields := strings.Split(string(p[2:]), "\x00")
		var agreed []string
		for i := 0; i+1 < len(fields) && i < 20; i += 2 {
			n, err := strconv.ParseInt(fields[i+1], 10, 64)
			switch strings.ToLower(fields[i]) {
			case "blksize":
				if err == nil && n >= 8 && n <= 65464 {
					t.size = int(n)
				}
			case "tsize":
				if err == nil && n >= 0 {
					t.total = n
				}
			}
			agreed = append(agreed, text(fields[i])+"="+text(fields[i+1]))
		}
		x.event(t.client, "TFTP", "%s agrees for %s: %s", t.server, t.file, strings.Join(agreed, ", "))
	case opData:
		if len(p) < 4 {
			return false
		}
		number := binary.BigEndian.Uint16(p[2:])
		switch isNew := t.data(number, len(p)-4); {
		case !isNew:
			x.event(t.client, "TFTP", "block %d of %s comes again", number, t.file)
		case t.done:
			x.event(t.client, "TFTP", "the last block of %s: %s", t.file, t.amount())
		case t.blocks == 1:
			x.event(t.client, "TFTP", "the first block of %s", t.file)
		}
	case opError:
		t.failed = t.server.String() + " says " + errorText(p)
		x.event(t.client, "TFTP", "error for %s: %s", t.file, t.failed)
	default:
		return false
	}
	return true
}

// data counts a block, and says whether it is a new one. Numbers wrap around after 65535. Blocks that the capture lacks count, since the client
// got them: it would not be sent later ones.
func (t *transfer) data(number uint16, length int) bool {
	ahead := number - t.block
	if ahead == 0 || ahead > 1<<15 {
		t.again++
		return false
	}
	t.block, t.blocks = number, t.blocks+int64(ahead)
	t.bytes = (t.blocks-1)*int64(t.size) + int64(length)
	t.done = length < t.size
	return true
}

func (x *explainer) fromClient(t *transfer, op uint16, p []byte) bool {
	switch op {
	case opAck:
		return len(p) >= 4
	case opError:
		why := errorText(p)
		if t.blocks == 0 { // RFC 2347: it refuses what was agreed
			t.cancelled = true
			x.event(t.client, "TFTP", "ends the transfer of %s before it began, as firmware does that only wants the size: %s", t.file, why)
			return true
		}
		t.failed = "the client says " + why
		x.event(t.client, "TFTP", "error for %s: %s", t.file, t.failed)
		return true
	}
	return false
}

func errorText(p []byte) string {
	if len(p) < 4 {
		return "an error without a code"
	}
	message, _, _ := bytes.Cut(p[4:], []byte{0})
	return fmt.Sprintf("%q (code %d)", text(string(message)), binary.BigEndian.Uint16(p[2:]))
}

// amount is what came of a file.
func (t *transfer) amount() string {
	s := fmt.Sprintf("%d bytes in %s", t.bytes, plural(int(t.blocks), "block"))
	if t.again > 0 {
		s += fmt.Sprintf(", %d sent again", t.again)
	}
	return s
}
