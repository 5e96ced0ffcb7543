package bmc_test

import (
	"context"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"coldrack.dev/internal/machine/bmc"
)

// answers are what a BMC says to the first packets of a session (sections 13.6, 13.17 and 22.13): without them a program that
// answers at random gets no further than the first.
func answers() [][]byte {
	return [][]byte{
		{6, 0, 0xff, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0x81, 0x1c, 0x63, 0x20, 0x04, 0x38, 0, 1, 0x97, 4, 3, 0, 0, 0, 0, 0},
		{6, 0, 0xff, 7, 6, 0x11, 0, 0, 0, 0, 0, 0, 0, 0, 36, 0, 0, 0, 4, 0, 0xa3, 0xa2, 0xa1, 0xa0, 1, 0, 0, 0, 0, 0, 0, 8, 1, 0, 0, 0, 1, 0, 0, 8, 1, 0, 0, 0, 2, 0, 0, 8, 1, 0, 0, 0},
		append([]byte{6, 0, 0xff, 7, 6, 0x13, 0, 0, 0, 0, 0, 0, 0, 0, 60, 0, 0, 0, 0, 0, 0xa3, 0xa2, 0xa1, 0xa0}, make([]byte, 52)...),
	}
}

// Whatever answers in place of a BMC, the server lives.
func TestHostileIPMI(t *testing.T) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		buffer := make([]byte, 2048)
		for {
			n, from, err := conn.ReadFromUDP(buffer)
			if err != nil {
				return
			}
			// The right answer, spoiled: bytes changed, cut off, or added.
			reply := append([]byte{}, answers()[min(kindOf(buffer[:n]), 2)]...)
			for range random.IntN(4) {
				reply[random.IntN(len(reply))] = byte(random.IntN(256))
			}
			switch random.IntN(4) {
			case 0:
				reply = reply[:random.IntN(len(reply)+1)]
			case 1:
				reply = append(reply, make([]byte, random.IntN(64))...)
			}
			_, _ = conn.WriteToUDP(reply, from)
		}
	}()
	t.Cleanup(func() { conn.Close(); <-ended })
	for range 500 {
		d, err := bmc.Open(bmc.Target{Address: conn.LocalAddr().String(), Protocol: bmc.IPMI, Username: "operator", Password: "s3cret"}, bmc.Options{Request: 20 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Power(context.WithoutCancel(t.Context())); err == nil {
			t.Fatal("a stranger was taken for the BMC")
		}
		d.Close()
	}
}

func kindOf(request []byte) int {
	if len(request) < 6 || request[4] != 6 {
		return 0
	}
	switch request[5] & 0x3f {
	case 0x10:
		return 1
	case 0x12:
		return 2
	}
	return 0
}
