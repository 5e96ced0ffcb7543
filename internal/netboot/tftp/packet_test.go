package tftp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"coldrack.dev/internal/netboot/filename"
)

func encodeRequest(op uint16, parts ...string) []byte {
	b := binary.BigEndian.AppendUint16(nil, op)
	for _, part := range parts {
		b = append(append(b, part...), 0)
	}
	return b
}

func TestParseRequest(t *testing.T) {
	tests := map[string]struct {
		packet []byte
		want   request
		bad    bool
	}{
		"a plain read request": {
			packet: encodeRequest(opRead, "undionly.kpxe", "octet"),
			want:   request{op: opRead, name: "undionly.kpxe", mode: "octet"},
		},
		"the mode and the names of options may be in any case": {
			packet: encodeRequest(opRead, "f", "OCTET", "BLKSIZE", "1468"),
			want:   request{op: opRead, name: "f", mode: "octet", options: []option{{"blksize", "1468"}}},
		},
		"a PXE ROM that drags the DHCP End option along": {
			packet: encodeRequest(opRead, "undionly.kpxe\xff", "octet"),
			want:   request{op: opRead, name: "undionly.kpxe", mode: "octet"},
		},
		"padding after the options is ignored": {
			packet: append(encodeRequest(opRead, "f", "octet", "tsize", "0"), "junk"...),
			want:   request{op: opRead, name: "f", mode: "octet", options: []option{{"tsize", "0"}}},
		},
		"an option without its value is ignored": {
			packet: encodeRequest(opRead, "f", "octet", "tsize"),
			want:   request{op: opRead, name: "f", mode: "octet"},
		},
		"a write request is told from a read request": {
			packet: encodeRequest(opWrite, "f", "octet"),
			want:   request{op: opWrite, name: "f", mode: "octet"},
		},
		"nothing at all":              {packet: nil, bad: true},
		"one byte":                    {packet: []byte{0}, bad: true},
		"no file name":                {packet: encodeRequest(opRead, "", "octet"), bad: true},
		"a file name without its end": {packet: []byte("\x00\x01undionly"), bad: true},
		"no mode":                     {packet: encodeRequest(opRead, "f"), bad: true},
		"an endless file name":        {packet: encodeRequest(opRead, strings.Repeat("x", 300), "octet"), bad: true},
		"data sent to the port":       {packet: []byte{0, opData, 0, 1, 'x'}, bad: true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := parseRequest(test.packet)
			if test.bad != (err != nil) || test.bad && !errors.Is(err, errMalformed) {
				t.Fatalf("err = %v, want an error: %v", err, test.bad)
			}
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(request{}, option{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestNegotiate(t *testing.T) {
	standard := limits{blockSize: maxBlockSize, windowSize: 64, windowMemory: 128 << 10}
	tests := map[string]struct {
		asked []option
		limit limits
		want  parameters
	}{
		"no options mean RFC 1350": {
			want: parameters{blockSize: 512, windowSize: 1},
		},
		"everything at once, answered in the order asked": {
			asked: []option{{"tsize", "0"}, {"blksize", "1468"}, {"timeout", "3"}, {"windowsize", "8"}},
			want: parameters{blockSize: 1468, windowSize: 8, timeout: 3 * time.Second,
				accepted: []option{{"tsize", "1000000"}, {"blksize", "1468"}, {"timeout", "3"}, {"windowsize", "8"}}},
		},
		"what is too much is lowered": {
			asked: []option{{"blksize", "9000"}, {"windowsize", "65535"}},
			limit: limits{blockSize: 1408, windowSize: 16, windowMemory: 128 << 10},
			want: parameters{blockSize: 1408, windowSize: 16,
				accepted: []option{{"blksize", "1408"}, {"windowsize", "16"}}},
		},
		"a window of huge blocks shrinks to its share of memory": {
			asked: []option{{"windowsize", "64"}, {"blksize", "65464"}},
			want: parameters{blockSize: 65464, windowSize: 2,
				accepted: []option{{"windowsize", "2"}, {"blksize", "65464"}}},
		},
		"values out of range and unknown options are left out": {
			asked: []option{{"blksize", "7"}, {"timeout", "0"}, {"windowsize", "0"}, {"tsize", "-1"},
				{"multicast", ""}, {"blksize2", "1024"}},
			want: parameters{blockSize: 512, windowSize: 1},
		},
		"words instead of numbers are left out": {
			asked: []option{{"blksize", "big"}, {"tsize", ""}},
			want:  parameters{blockSize: 512, windowSize: 1},
		},
		"of an option given twice the first counts": {
			asked: []option{{"blksize", "1024"}, {"blksize", "2048"}},
			want:  parameters{blockSize: 1024, windowSize: 1, accepted: []option{{"blksize", "1024"}}},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if test.limit == (limits{}) {
				test.limit = standard
			}
			got := negotiate(test.asked, 1_000_000, test.limit)
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(parameters{}, option{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func FuzzRequest(f *testing.F) {
	f.Add(encodeRequest(opRead, "undionly.kpxe", "octet", "tsize", "0", "blksize", "1468", "windowsize", "4"))
	f.Add(encodeRequest(opRead, `..\..\etc/passwd`, "netascii"))
	f.Add([]byte{0, opWrite})
	f.Fuzz(func(t *testing.T, packet []byte) {
		req, err := parseRequest(packet)
		if err != nil {
			return
		}
		if name, ok := filename.Clean(req.name); ok && !fs.ValidPath(name) {
			t.Errorf("%q became %q", req.name, name)
		}
		limit := limits{blockSize: maxBlockSize, windowSize: 64, windowMemory: 128 << 10}
		p := negotiate(req.options, 1<<20, limit)
		if p.blockSize < minBlockSize || p.blockSize > maxBlockSize || p.windowSize < 1 || p.windowSize > 64 ||
			p.blockSize*p.windowSize > max(limit.windowMemory, maxBlockSize) {
			t.Errorf("%q: %+v", packet, p)
		}
		if oack := encodeOack(p.accepted); len(p.accepted) > 4 || len(oack) > 512 {
			t.Errorf("%q: OACK %q", packet, oack)
		}
	})
}

func FuzzReply(f *testing.F) {
	f.Add([]byte{0, opAck, 0, 1})
	f.Add(encodeError(codeUndefined, "User aborted the transfer"))
	f.Fuzz(func(t *testing.T, packet []byte) {
		r, err := parseReply(packet)
		if err == nil && r.op != opAck && r.op != opError {
			t.Errorf("%q: %+v", packet, r)
		}
		if bytes.ContainsAny([]byte(r.text), "\n\r\x1b") {
			t.Errorf("%q: text unfit for a log: %q", packet, r.text)
		}
	})
}
