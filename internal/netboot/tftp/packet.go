package tftp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"coldrack.dev/internal/base/termtext"
)

// Operation codes, RFC 1350 section 5 and RFC 2347.
const (
	opRead  = 1
	opWrite = 2
	opData  = 3
	opAck   = 4
	opError = 5
	opOack  = 6
)

// ErrorCode is the code of an ERROR packet, RFC 1350 appendix and RFC 2347.
type ErrorCode uint16

const (
	codeUndefined       ErrorCode = 0
	codeNotFound        ErrorCode = 1
	codeAccess          ErrorCode = 2
	codeIllegal         ErrorCode = 4
	codeOptionsRejected ErrorCode = 8
)

// Limits of the options, RFC 2348, 2349 and 7440.
const (
	defaultBlockSize = 512
	minBlockSize     = 8
	maxBlockSize     = 65464
)

// maxName is longer than any boot file's name. It also bounds what ends up in logs.
const maxName = 255

var errMalformed = errors.New("malformed packet")

// request is a read or write request.
type request struct {
	op      uint16
	name    string // as received, but without the quirks that parseRequest removes
	mode    string // lower case
	options []option
}

type option struct{ name, value string } // name in lower case

// parseRequest reads an RRQ or WRQ: two strings, then pairs of strings, each ended by a zero byte.
func parseRequest(packet []byte) (request, error) {
	if len(packet) < 2 {
		return request{}, fmt.Errorf("%w: %d bytes", errMalformed, len(packet))
	}
	req := request{op: binary.BigEndian.Uint16(packet)}
	if req.op != opRead && req.op != opWrite {
		return request{}, fmt.Errorf("%w: operation %d is not a request", errMalformed, req.op)
	}
	name, rest, ok := cutString(packet[2:])
	if !ok || name == "" || len(name) > maxName {
		return request{}, fmt.Errorf("%w: no usable file name", errMalformed)
	}
	mode, rest, ok := cutString(rest)
	if !ok || len(mode) > len("netascii") {
		return request{}, fmt.Errorf("%w: no usable transfer mode", errMalformed)
	}
	// Some PXE ROMs take DHCP option 67 for a zero-ended string and drag the End option's 0xff along.
	for strings.HasSuffix(name, "\xff") {
		name = name[:len(name)-1]
	}
	req.name = name
	req.mode = strings.ToLower(mode)
	for len(rest) > 0 {
		var key, value string
		key, rest, ok = cutString(rest)
		if !ok {
			break // Padding after the last option; several ROMs send it.
		}
		value, rest, ok = cutString(rest)
		if !ok {
			break
		}
		req.options = append(req.options, option{strings.ToLower(key), value})
	}
	return req, nil
}

func cutString(b []byte) (s string, rest []byte, ok bool) {
	end := bytes.IndexByte(b, 0)
	if end < 0 {
		return "", nil, false
	}
	return string(b[:end]), b[end+1:], true
}

// parameters are what a transfer works with after option negotiation.
type parameters struct {
	blockSize  int
	windowSize int
	timeout    time.Duration // zero: the client leaves it to the server
	accepted   []option      // what the OACK says; empty: no OACK
}

// limits bound what negotiation may agree to.
type limits struct {
	blockSize    int
	windowSize   int
	windowMemory int // bytes
}

// negotiate agrees to the options it knows. An option it does not know, or whose value makes no
// sense, is left out of the answer, which RFC 2347 defines as a refusal of that option alone.
func negotiate(asked []option, size int64, limit limits) parameters {
	p := parameters{blockSize: defaultBlockSize, windowSize: 1}
	seen := map[string]bool{}
	for _, o := range asked {
		if seen[o.name] {
			continue // RFC 2347: an option may be given once. The first one counts.
		}
		seen[o.name] = true
		value, err := strconv.ParseInt(o.value, 10, 64)
		if err != nil || value < 0 {
			continue
		}
		switch o.name {
		case "blksize":
			if value < minBlockSize {
				continue
			}
			p.blockSize = int(min(value, int64(limit.blockSize)))
			p.accept(o.name, int64(p.blockSize))
		case "tsize":
			p.accept(o.name, size)
		case "timeout":
			if value < 1 || value > 255 {
				continue
			}
			p.timeout = time.Duration(value) * time.Second
			p.accept(o.name, value)
		case "windowsize":
			if value < 1 || value > 65535 {
				continue
			}
			p.windowSize = int(min(value, int64(limit.windowSize)))
			p.accept(o.name, int64(p.windowSize))
		}
	}
	// The block size may have been agreed after the window, so memory is looked at last.
	if most := max(1, limit.windowMemory/p.blockSize); p.windowSize > most {
		p.windowSize = most
		for i := range p.accepted {
			if p.accepted[i].name == "windowsize" {
				p.accepted[i].value = strconv.Itoa(most)
			}
		}
	}
	return p
}

func (p *parameters) accept(name string, value int64) {
	p.accepted = append(p.accepted, option{name, strconv.FormatInt(value, 10)})
}

func encodeOack(options []option) []byte {
	b := binary.BigEndian.AppendUint16(nil, opOack)
	for _, o := range options {
		b = append(append(b, o.name...), 0)
		b = append(append(b, o.value...), 0)
	}
	return b
}

func encodeError(code ErrorCode, text string) []byte {
	b := binary.BigEndian.AppendUint16(nil, opError)
	b = binary.BigEndian.AppendUint16(b, uint16(code))
	if len(text) > 400 {
		text = text[:400] // the packet stays below 512 bytes, which every client's buffer holds
	}
	return append(append(b, strings.ReplaceAll(text, "\x00", "")...), 0)
}

// reply is what a client says during a transfer.
type reply struct {
	op    uint16
	block uint16 // of an ACK
	code  ErrorCode
	text  string // of an ERROR
}

func parseReply(packet []byte) (reply, error) {
	if len(packet) < 4 {
		return reply{}, fmt.Errorf("%w: %d bytes", errMalformed, len(packet))
	}
	r := reply{op: binary.BigEndian.Uint16(packet)}
	value := binary.BigEndian.Uint16(packet[2:])
	switch r.op {
	case opAck:
		r.block = value
	case opError:
		r.code = ErrorCode(value)
		text := packet[4:]
		if end := bytes.IndexByte(text, 0); end >= 0 {
			text = text[:end]
		}
		r.text = termtext.Mark(string(text[:min(len(text), maxName)]), 0)
	default:
		return reply{}, fmt.Errorf("%w: operation %d during a transfer", errMalformed, r.op)
	}
	return r, nil
}
