// Package rehearse finds out what would happen if a whole rack were switched on: it starts a real `coldrack
// serve` in a network of its own and lets simulated machines boot from it and install themselves.
//
// A simulated machine speaks the real protocols to the real server - DHCP as its firmware, as iPXE and as the
// discovery system does, TFTP, HTTP, the machine API over TLS - with the patience of the real thing: it repeats
// what its firmware repeats, and is lost when its firmware would have given up. It has no disk: images are
// fetched and dropped.
//
// Firmware, the parts of the protocols that decide, inventories and statistics are pure (firmware.go, dhcp.go,
// tftp.go, script.go, fleet.go, record.go, report.go, plot.go). The machines run in a process of their own, inside
// the rehearsal's network namespace (machine.go, rack.go, cable_linux.go); another namespace has the server's
// sockets (stage_linux.go, server.go).
package rehearse

import (
	"fmt"
	"time"

	"coldrack.dev/internal/contract/wire"
)

// schedule is how long a client waits for an answer after each time it asks. When it has run out, the client
// gives up.
type schedule []time.Duration

// seconds makes a schedule.
func seconds(waits ...float64) schedule {
	out := make(schedule, len(waits))
	for i, s := range waits {
		out[i] = time.Duration(s * float64(time.Second))
	}
	return out
}

// wait is how long to wait after asking for the attempt-th time, counted from 0; false: give up instead.
func (s schedule) wait(attempt int) (time.Duration, bool) {
	if attempt < 0 || attempt >= len(s) {
		return 0, false
	}
	return s[attempt], true
}

func (s schedule) total() (sum time.Duration) {
	for _, w := range s {
		sum += w
	}
	return sum
}

// dhcpClient is how one program speaks DHCP.
type dhcpClient struct {
	name     string
	vendor   string // option 60
	user     string // option 77
	arch     uint16 // option 93, when pxe
	pxe      bool   // sends options 93, 94 and 97, and takes only an offer with a boot file
	ipxe     bool   // sends option 175
	discover schedule
	request  schedule
	fails    string // what the console would say in the end
}

// tftpClient is how one program reads a file by TFTP.
type tftpClient struct {
	blockSize, windowSize int // 0: not asked for
	// askSize first asks only for the size, and ends that transfer by an ERROR.
	askSize bool
	// timeout after which the last packet is sent again; the tries-th time it gives up.
	timeout time.Duration
	tries   int
}

// Firmware is what a machine starts with.
type Firmware struct {
	Name     string
	Platform string // as iPXE calls it: efi or pcbios
	dhcp     dhcpClient
	tftp     tftpClient
}

// The firmware that machines have. Timeouts of UEFI are those of EDK2's UefiPxeBcDxe (DHCP 4, 8, 16 and 32 s; TFTP
// six times 4 s; window 4), those of BIOS ROMs come from the PXE specification 2.1, section 2.2.6 and appendix C.
var (
	pxeSchedule = seconds(4, 8, 16, 32)
	uefi        = Firmware{
		Name: "UEFI", Platform: "efi",
		dhcp: dhcpClient{name: "UEFI PXE", vendor: "PXEClient:Arch:00007:UNDI:003016", arch: 7, pxe: true,
			discover: pxeSchedule, request: pxeSchedule, fails: "PXE-E16: no valid offer received"},
		tftp: tftpClient{blockSize: 1468, windowSize: 4, askSize: true, timeout: 4 * time.Second, tries: 6},
	}
	bios = Firmware{
		Name: "BIOS", Platform: "pcbios",
		dhcp: dhcpClient{name: "BIOS PXE", vendor: "PXEClient:Arch:00000:UNDI:002001", arch: 0, pxe: true,
			discover: pxeSchedule, request: seconds(1, 2, 3, 4), fails: "PXE-E51: no DHCP offers were received"},
		tftp: tftpClient{blockSize: 1456, timeout: 4 * time.Second, tries: 6},
	}
	// ipxe waits 1, 2, 4 and 8 s by default (DHCP_DISC_START_TIMEOUT_SEC, DHCP_DISC_END_TIMEOUT_SEC).
	ipxeDHCP = dhcpClient{name: "iPXE", vendor: "PXEClient:Arch:00007:UNDI:003010", user: "iPXE", arch: 7, pxe: true, ipxe: true,
		discover: seconds(1, 2, 4, 8), request: seconds(1, 2, 4, 8), fails: "iPXE: no configuration methods succeeded"}
	// The discovery system asks for ever; a quarter of an hour is for ever.
	agentDHCP = dhcpClient{name: "discovery system", vendor: wire.DHCPClass,
		discover: forever(5*time.Second, 15*time.Minute), request: seconds(5, 5, 5), fails: "the discovery system got no address"}
)

func forever(every, total time.Duration) (s schedule) {
	for range int(total / every) {
		s = append(s, every)
	}
	return s
}

// ipxeFor is iPXE as a firmware has loaded it.
func ipxeFor(f Firmware) dhcpClient {
	c := ipxeDHCP
	c.arch = f.dhcp.arch
	c.vendor = fmt.Sprintf("PXEClient:Arch:%05d:UNDI:003010", c.arch)
	return c
}

// Limits of iPXE and of our script (see httpboot.ChainScript and boot.Script).
const (
	// httpStall is how long iPXE waits for a connection or the next byte.
	httpStall = 60 * time.Second
	// scriptAttempts of /boot/ipxe, scriptPause apart; then iPXE hands over to the boot order.
	scriptAttempts = 15
	scriptPause    = 4 * time.Second
	// retryPause before the machine's script asks again after a failure.
	retryPause = 30 * time.Second
)
