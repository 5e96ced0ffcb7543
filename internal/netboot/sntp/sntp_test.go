package sntp

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"net"
	"testing"
	"time"
)

func ask(version byte) []byte {
	b := make([]byte, packetSize)
	b[0] = version<<3 | modeClient
	b[2] = 6
	copy(b[40:], "transmit")
	return b
}

func ntpTime(b []byte) time.Time {
	seconds, fraction := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
	return time.Unix(int64(seconds)+epoch, int64(uint64(fraction)*uint64(time.Second)>>32))
}

func TestAnswer(t *testing.T) {
	received := time.Date(2026, 11, 21, 12, 30, 0, 250_000_000, time.UTC)
	sent := received.Add(time.Millisecond)
	got := answer(ask(4), received, sent, false)
	if got[0] != 0x24 || got[1] != stratumAlone || got[2] != 6 || !bytes.Equal(got[24:32], []byte("transmit")) {
		t.Errorf("% x", got)
	}
	for at, want := range map[int]time.Time{32: received, 40: sent} {
		if is := ntpTime(got[at:]); is.Sub(want).Abs() > time.Microsecond {
			t.Errorf("timestamp at %d is %s, want %s", at, is, want)
		}
	}
	// RFC 4330, section 3: 2 ** 32 seconds after 1900 is 2036-02-07 06:28:16 UTC.
	b := make([]byte, 8)
	putTime(b, time.Date(2036, 2, 7, 6, 28, 15, 500_000_000, time.UTC))
	if want := []byte{0xff, 0xff, 0xff, 0xff, 0x80, 0, 0, 0}; !bytes.Equal(b, want) {
		t.Errorf("the end of the era is % x, want % x", b, want)
	}
	if got := answer(ask(3), received, sent, true); got[0] != 0x1c || got[1] != stratumSynced {
		t.Errorf("version 3 gets % x", got)
	}
}

func TestWhatIsNoQuestionGetsNoAnswer(t *testing.T) {
	now := time.Now()
	reply := answer(ask(4), now, now, true)
	for name, packet := range map[string][]byte{
		"nothing": nil, "a short one": ask(4)[:47], "an answer": reply, "version 0": ask(0), "version 7": ask(7),
		"a broadcast": append([]byte{4<<3 | 5}, ask(4)[1:]...), "a control message": append([]byte{2<<3 | 6}, ask(4)[1:]...),
	} {
		if got := answer(packet, now, now, true); got != nil {
			t.Errorf("%s gets % x", name, got)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(ask(4))
	f.Fuzz(func(t *testing.T, packet []byte) {
		now := time.Now()
		if reply := answer(packet, now, now, true); reply != nil && (len(reply) > len(packet) || answer(reply, now, now, true) != nil) {
			t.Errorf("% x gets % x", packet, reply)
		}
	})
}

func TestServe(t *testing.T) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- Serve(ctx, conn, slog.New(slog.DiscardHandler)) }()
	client, err := net.Dial("udp", conn.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	client.SetDeadline(time.Now().Add(time.Minute)) // a server that fails to answer fails the test
	asked := time.Now()
	client.Write([]byte("not a question"))
	client.Write(ask(4))
	reply := make([]byte, 100)
	if n, err := client.Read(reply); err != nil || n != packetSize {
		t.Fatalf("%d bytes, %v", n, err)
	}
	const resolution = time.Microsecond
	if told := ntpTime(reply[40:]); told.Before(asked.Add(-resolution)) || told.After(time.Now().Add(resolution)) {
		t.Errorf("asked at %s, it is told %s", asked, told)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
