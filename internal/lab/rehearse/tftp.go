package rehearse

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
)

// download is a client's side of one TFTP transfer. It is pure: its caller sends, receives and waits.
type download struct {
	client tftpClient
	name   string
	// sizeOnly ends the transfer as soon as the size is known, as firmware does that first asks for it.
	sizeOnly bool

	size      int64 // as the server told, -1 before
	received  int64
	block     uint64 // last block that arrived in order
	blockSize int
	window    int
	answered  bool   // some packet has come from the server
	last      []byte // what was sent last
	misses    int
	// gap is true from the first block out of order until one in order arrives.
	gap bool
}

const (
	tftpRead, tftpData, tftpAck, tftpError, tftpOptions = 1, 3, 4, 5, 6
)

// start gives the request.
func (d *download) start() []byte {
	d.size, d.blockSize, d.window = -1, 512, 1
	b := binary.BigEndian.AppendUint16(nil, tftpRead)
	text := func(s string) { b = append(append(b, s...), 0) }
	option := func(name string, value int) {
		text(name)
		text(strconv.Itoa(value))
	}
	text(d.name)
	text("octet")
	option("tsize", 0)
	if d.client.blockSize > 0 {
		option("blksize", d.client.blockSize)
	}
	if d.client.windowSize > 1 && !d.sizeOnly {
		option("windowsize", d.client.windowSize)
	}
	d.last = b
	return b
}

// expire gives what to send when nothing has come for the client's timeout.
func (d *download) expire() ([]byte, error) {
	if d.misses++; d.misses >= d.client.tries {
		if !d.answered {
			return nil, fmt.Errorf("TFTP server did not answer the request for %s %d times: %w", d.name, d.misses, errGivenUp)
		}
		return nil, fmt.Errorf("TFTP transfer of %s stopped at byte %d of %d: %w", d.name, d.received, d.size, errGivenUp)
	}
	return d.last, nil
}

// receive takes a packet of the server. reply is nil when there is nothing to say; done after the last one.
func (d *download) receive(packet []byte) (reply []byte, done bool, err error) {
	if len(packet) < 4 {
		return nil, false, nil
	}
	value := binary.BigEndian.Uint16(packet[2:])
	switch binary.BigEndian.Uint16(packet) {
	case tftpError:
		return nil, false, fmt.Errorf("TFTP server refused %s: %s (code %d)", d.name, bytes.TrimRight(packet[4:], "\x00"), value)
	case tftpOptions:
		if d.block > 0 {
			return nil, false, nil
		}
		d.progress()
		if err := d.options(packet[2:]); err != nil {
			return nil, false, err
		}
		if d.sizeOnly {
			// "Transfer aborted" is no failure; RFC 2349 means it so.
			return append([]byte{0, tftpError, 0, 0}, "size known\x00"...), true, nil
		}
		return d.ack(), false, nil
	case tftpData:
		next := d.block + 1
		if value != uint16(next) {
			switch {
			case value == uint16(d.block) && d.block > 0:
				// What ended the last window once more: our ACK was lost.
				return d.ack(), false, nil
			case d.window > 1 && !d.gap && uint16(value-uint16(next)) < 0x8000:
				d.gap = true // RFC 7440, section 4: say once where to go on
				return d.ack(), false, nil
			}
			return nil, false, nil
		}
		d.progress()
		d.block, d.gap = next, false
		d.received += int64(len(packet) - 4)
		if len(packet)-4 < d.blockSize {
			if d.size >= 0 && d.received != d.size {
				return nil, false, fmt.Errorf("TFTP transfer of %s ended after %d bytes instead of %d", d.name, d.received, d.size)
			}
			return d.ack(), true, nil
		}
		if d.block%uint64(d.window) == 0 {
			return d.ack(), false, nil
		}
		// What a timeout would send: the end of what is there.
		d.last = acknowledge(d.block)
		return nil, false, nil
	}
	return nil, false, nil
}

func (d *download) progress() { d.misses, d.answered = 0, true }

func (d *download) ack() []byte {
	d.last = acknowledge(d.block)
	return d.last
}

func acknowledge(block uint64) []byte {
	b := binary.BigEndian.AppendUint16(nil, tftpAck)
	return binary.BigEndian.AppendUint16(b, uint16(block))
}

var errOptions = errors.New("TFTP server answered with options that make no sense")

func (d *download) options(b []byte) error {
	fields := bytes.Split(b, []byte{0})
	for i := 0; i+1 < len(fields); i += 2 {
		value, err := strconv.ParseInt(string(fields[i+1]), 10, 64)
		if len(fields[i]) == 0 {
			break
		}
		if err != nil || value < 0 {
			return fmt.Errorf("%w: %s=%q", errOptions, fields[i], fields[i+1])
		}
		switch string(bytes.ToLower(fields[i])) {
		case "tsize":
			d.size = value
		case "blksize":
			if value < 8 || int(value) > max(d.client.blockSize, 512) {
				return fmt.Errorf("%w: blksize %d, asked for %d", errOptions, value, d.client.blockSize)
			}
			d.blockSize = int(value)
		case "windowsize":
			if value < 1 || int(value) > d.client.windowSize {
				return fmt.Errorf("%w: windowsize %d, asked for %d", errOptions, value, d.client.windowSize)
			}
			d.window = int(value)
		}
	}
	return nil
}
