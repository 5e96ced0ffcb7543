package lab_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/packet"

	"coldrack.dev/internal/lab"
	"coldrack.dev/test/require"
)

// eavesdrop returns a function that waits for the next DHCPDISCOVER of a hardware address on the bridge and
// gives its client architecture (option 93).
func eavesdrop(t *testing.T, l *lab.Lab) func(context.Context, net.HardwareAddr) (arch uint16, err error) {
	t.Helper()
	var conn *packet.Conn
	err := l.Do(func() error {
		bridge, err := net.InterfaceByName(l.Bridge())
		if err != nil {
			return err
		}
		conn, err = packet.Listen(bridge, packet.Raw, 0x0800, nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return func(ctx context.Context, mac net.HardwareAddr) (uint16, error) {
		deadline, _ := ctx.Deadline()
		if err := conn.SetReadDeadline(deadline); err != nil {
			return 0, err
		}
		frame := make([]byte, 2048)
		for {
			n, _, err := conn.ReadFrom(frame)
			if err != nil {
				return 0, fmt.Errorf("no DHCPDISCOVER of %s: %w", mac, err)
			}
			if arch, ok := discover(frame[:n], mac); ok {
				return arch, nil
			}
		}
	}
}

// discover reads an Ethernet frame.
func discover(frame []byte, mac net.HardwareAddr) (arch uint16, ok bool) {
	const ethernet, udp, fixed = 14, 8, 240
	if len(frame) < ethernet+20 {
		return 0, false
	}
	ip := frame[ethernet:]
	header := int(ip[0]&15) * 4
	if ip[9] != 17 || len(ip) < header+udp+fixed || binary.BigEndian.Uint16(ip[header+2:]) != 67 {
		return 0, false
	}
	message := ip[header+udp:]
	if net.HardwareAddr(message[28:34]).String() != mac.String() {
		return 0, false
	}
	for options := message[fixed:]; len(options) > 2 && options[0] != 255; {
		if options[0] == 0 {
			options = options[1:]
			continue
		}
		length := int(options[1])
		if len(options) < 2+length {
			break
		}
		value := options[2 : 2+length]
		switch {
		case options[0] == 53 && length == 1:
			ok = value[0] == 1
		case options[0] == 93 && length >= 2:
			arch = binary.BigEndian.Uint16(value)
		}
		options = options[2+length:]
	}
	return arch, ok
}

// TestMachinesAskTheNetwork powers real firmware on and off. There is no server: what counts is what the
// machines ask.
func TestMachinesAskTheNetwork(t *testing.T) {
	require.Need(t, "netns", "qemu")
	// A folder's name longer than the name of a socket may be, and with what QEMU takes for a separator.
	o := lab.Options{
		Dir:  filepath.Join(t.TempDir(), strings.Repeat("long,", 25), "lab"),
		Name: labName("vm"), Machines: 2, Firmware: lab.Mixed, Memory: 256 * lab.MiB, CPUs: 1,
	}
	l := create(t, o)
	accelerator, reason := l.Accelerator()
	t.Logf("accelerator %s %s", accelerator, reason)
	bios, uefi := l.Machine(1), l.Machine(2)
	next := eavesdrop(t, l)
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	asks := func(m *lab.Machine, mac net.HardwareAddr, want uint16) {
		t.Helper()
		start := time.Now()
		arch, err := next(ctx, mac)
		if err != nil {
			t.Fatalf("%v; console:\n%s", err, m.LastLine())
		}
		if arch != want {
			t.Errorf("%s says it has architecture %d, want %d", m.Name(), arch, want)
		}
		use, err := m.Usage()
		check(err)
		t.Logf("%s: first DHCPDISCOVER after %s, using %s and %s of processor", m.Spec().Firmware, time.Since(start).Round(10*time.Millisecond), use.Peak, use.CPU)
	}

	// What a machine says while its cable is pulled, nobody hears. (Its old iPXE does not notice the missing
	// carrier, so it does speak.)
	check(bios.CutNetwork(ctx))
	check(bios.PowerOn(ctx))
	_, err := bios.WaitConsole(ctx, 0, regexp.MustCompile(`Configuring \(net0 .*\)\.\.`))
	check(err)
	deaf, stop := context.WithTimeout(ctx, 300*time.Millisecond)
	defer stop()
	if _, err := next(deaf, bios.MAC()); err == nil {
		t.Error("a machine is heard through a cable that is pulled")
	}
	mark := bios.ConsoleMark()
	check(bios.RestoreNetwork(ctx))
	asks(bios, bios.MAC(), 0)

	// Reset starts the firmware over.
	check(bios.Reset(ctx))
	_, err = bios.WaitConsole(ctx, mark, regexp.MustCompile(`^SeaBIOS`))
	check(err)
	asks(bios, bios.MAC(), 0)

	// The next program finds the machine and pulls its plug.
	again, err := lab.Open(o.Dir, nil)
	check(err)
	if state := again.Machine(1).State(); state != lab.On {
		t.Errorf("another program sees the machine %s", state)
	}
	check(bios.PowerOn(ctx)) // stays as it is
	if err := bios.PowerOn(ctx, lab.DiskOnly()); !errors.Is(err, lab.ErrOn) {
		t.Errorf("another way to start a machine that is on: %v", err)
	}
	check(again.Machine(1).PowerOff(ctx))
	if state := bios.State(); state != lab.Off {
		t.Errorf("after the plug was pulled the machine is %s", state)
	}

	// A machine that lies about its address, and one that does not ask at all.
	check(bios.PowerOn(ctx, lab.Impersonate(uefi)))
	asks(bios, uefi.MAC(), 0)
	check(bios.PowerOff(ctx))
	mark = bios.ConsoleMark()
	check(bios.PowerOn(ctx, lab.DiskOnly()))
	_, err = bios.WaitConsole(ctx, mark, regexp.MustCompile(`not a bootable disk`))
	check(err)
	raw, err := os.ReadFile(bios.ConsoleLog())
	check(err)
	if strings.Contains(lab.Printable(raw[mark:]), "iPXE") {
		t.Error("a machine that starts from its disks only asked the network")
	}
	check(bios.PowerOff(ctx))

	check(uefi.PowerOn(ctx))
	asks(uefi, uefi.MAC(), 7)

	check(lab.Down(ctx, o.Dir, o.Name, false))
	if state := uefi.State(); state != lab.Off {
		t.Errorf("after the lab went down its machine is %s", state)
	}
}
