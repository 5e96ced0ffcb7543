// Package sntp tells machines the time: the server's side of SNTPv4 (RFC 4330; packets as RFC 5905, section 7.3). A rack
// without the internet has no other clock to agree on, and certificates are worth nothing to a machine whose clock is off.
//
// It passes the host's clock on as it is. Whether that is disciplined by something better is asked of the kernel.
package sntp

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// Port is NTP's well-known UDP port.
const Port = 123

const (
	packetSize = 48
	modeClient = 3
	modeServer = 4
	// stratumSynced is told while the host's clock is disciplined, stratumAlone while it is not: good enough for machines
	// that have nobody else (up to 15 counts as a time), and worse than any real time server.
	stratumSynced, stratumAlone = 4, 10
	// epoch is the Unix time of NTP's zero, 1900-01-01.
	epoch = -2208988800
)

// Serve answers on conn until ctx ends. It closes conn.
func Serve(ctx context.Context, conn *net.UDPConn, log *slog.Logger) error {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	buf := make([]byte, 512)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		received := time.Now()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			continue // an ICMP error of an earlier answer
		}
		if reply := answer(buf[:n], received, time.Now(), disciplined()); reply != nil {
			if _, err := conn.WriteToUDPAddrPort(reply, from); err != nil {
				log.Debug("cannot answer a time request", "to", from, "err", err)
			}
		}
	}
}

// answer is what a request gets; nil for what is none, so that two servers cannot talk to each other for ever.
func answer(request []byte, received, now time.Time, synced bool) []byte {
	if len(request) < packetSize || request[0]&7 != modeClient {
		return nil
	}
	version := request[0] >> 3 & 7
	if version < 1 || version > 4 {
		return nil
	}
	reply := make([]byte, packetSize)
	reply[0] = version<<3 | modeServer
	reply[1] = stratumAlone
	if synced {
		reply[1] = stratumSynced
	}
	reply[2] = request[2]                             // poll interval
	reply[3] = 0xec                                   // precision, 2^-20 s
	binary.BigEndian.PutUint32(reply[8:], 1<<16/100)  // root dispersion, 10 ms in 16.16 fixed point
	copy(reply[12:], "LOCL")                          // reference: this host's clock
	putTime(reply[16:], received.Truncate(time.Hour)) // when that was set; nobody relies on it
	copy(reply[24:32], request[40:48])                // originate: the client's transmit timestamp
	putTime(reply[32:], received)
	putTime(reply[40:], now)
	return reply
}

// putTime writes an NTP timestamp. The era that begins in 2036 is told by the receiver (RFC 4330, section 3).
func putTime(b []byte, t time.Time) {
	binary.BigEndian.PutUint32(b, uint32(t.Unix()-epoch))
	binary.BigEndian.PutUint32(b[4:], uint32(uint64(t.Nanosecond())<<32/uint64(time.Second)))
}

// disciplined says whether the kernel's clock follows a better one (adjtimex(2)).
func disciplined() bool {
	state, err := unix.Adjtimex(&unix.Timex{})
	return err == nil && state != unix.TIME_ERROR
}
