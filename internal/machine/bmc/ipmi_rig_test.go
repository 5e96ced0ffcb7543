package bmc_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"coldrack.dev/internal/machine/bmc"
	"coldrack.dev/test/require"
)

// chassisScript is the machine behind ipmi_sim (ipmi_lan(5), chassis_control): its state is in files.
const chassisScript = `#!/bin/sh
dir=$(dirname "$0")
op=$2
shift 2
case $op in
get)
	for what; do
		case $what in power | boot) echo "$what:$(cat "$dir/$what")" ;; *) exit 1 ;; esac
	done
	;;
set)
	[ ! -e "$dir/stuck" ] || exit 0
	while [ $# -gt 0 ]; do
		case $1 in
		power)
			[ "$2" = 0 ] || echo >>"$dir/restarts"
			echo "$2" >"$dir/power"
			;;
		reset) echo >>"$dir/restarts" ;;
		shutdown) echo 0 >"$dir/power" ;;
		boot) echo "$2" >"$dir/boot" ;;
		*) exit 1 ;;
		esac
		shift 2
	done
	;;
esac
`

const simulatorConfig = `name "test"
set_working_mc 0x20
  startlan 1
    addr 127.0.0.1 0
    priv_limit admin
    allowed_auths_operator md5
    allowed_auths_admin md5
    guid %s
  endlan
  chassis_control "%s 0x20"
  user 2 true "operator" "s3cret" admin 10 md5
`

const simulatorCommands = `mc_setbmc 0x20
mc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr
sel_enable 0x20 1000 0x0a
mc_enable 0x20
`

// ipmiRig is OpenIPMI's simulator, with a relay before it that loses datagrams.
func ipmiRig(t *testing.T) *rig {
	require.Need(t, "ipmi_sim", "ipmitool")
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	write := func(name, text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(file(name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("chassis", chassisScript, 0o700)
	write("power", "0\n", 0o600)
	write("boot", "default\n", 0o600)
	write("restarts", "", 0o600)
	// The bytes of a GUID come in the order of SMBIOS.
	write("lan.conf", fmt.Sprintf(simulatorConfig, "78563412bc9af0de123456789abcdef0", file("chassis")), 0o600)
	write("sim.emu", simulatorCommands+fruCommand("Maker", "Model 7", "SN-0042"), 0o600)
	address := startSimulator(t, dir)
	relay := newRelay(t, address)
	restarts := func() int {
		text, _ := os.ReadFile(file("restarts"))
		return bytes.Count(text, []byte("\n"))
	}
	return &rig{
		pause:    50 * time.Millisecond, // the simulator switches in real time
		target:   bmc.Target{Address: relay.address(), Protocol: bmc.IPMI, Username: "operator", Password: "s3cret"},
		restarts: restarts,
		on:       func() bool { return strings.Contains(ipmitool(t, address, "chassis", "power", "status"), "is on") },
		boots: func() bmc.Device {
			text := ipmitool(t, address, "chassis", "bootparam", "get", "5")
			switch {
			case strings.Contains(text, "Force PXE"):
				return bmc.BootNetwork
			case strings.Contains(text, "Force Boot from default Hard-Drive"):
				return bmc.BootDisk
			}
			return bmc.Device(text)
		},
		set: func(on bool) {
			if on {
				write("power", "1\n", 0o600)
			} else {
				write("power", "0\n", 0o600)
			}
		},
		fault: fault{
			silent: func() { relay.mode.Store(relaySilent) },
			gone:   func() { relay.close() },
			deaf:   func() { relay.mode.Store(relayDeaf) },
			stuck:  func() { write("stuck", "", 0o600) },
			without: func(string) {
				// Another simulator, without FRU.
				dir = t.TempDir()
				write("chassis", chassisScript, 0o700)
				write("power", "0\n", 0o600)
				write("restarts", "", 0o600)
				write("lan.conf", fmt.Sprintf(simulatorConfig, "78563412bc9af0de123456789abcdef0", file("chassis")), 0o600)
				write("sim.emu", simulatorCommands, 0o600)
				address = startSimulator(t, dir)
				relay.to.Store(address)
			},
		},
	}
}

// fruCommand gives the simulator a product area (IPMI FRU specification, sections 8 and 12).
func fruCommand(maker, model, serial string) string {
	area := []byte{1, 0, 25}
	for _, text := range []string{maker, model, "PN", "1", serial, ""} {
		area = append(append(area, 0xc0|byte(len(text))), text...)
	}
	area = append(area, 0xc1)
	for len(area)%8 != 7 {
		area = append(area, 0)
	}
	area[1] = byte((len(area) + 1) / 8)
	area = append(area, checksum(area))
	header := []byte{1, 0, 0, 0, 1, 0, 0}
	header = append(header, checksum(header))
	data := append(header, area...)
	command := fmt.Sprintf("mc_add_fru_data 0x20 0 %d data", len(data))
	for _, b := range data {
		command += fmt.Sprintf(" 0x%02x", b)
	}
	return command + "\n"
}

func checksum(b []byte) byte {
	var sum byte
	for _, x := range b {
		sum += x
	}
	return -sum
}

func ipmitool(t *testing.T, address string, args ...string) string {
	t.Helper()
	host, port, _ := net.SplitHostPort(address)
	out, err := exec.CommandContext(t.Context(), "ipmitool", append([]string{"-I", "lanplus", "-C", "3", "-H", host, "-p", port, "-U", "operator", "-P", "s3cret"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("ipmitool %v: %v: %s", args, err, out)
	}
	return string(out)
}

// startSimulator runs ipmi_sim on a port that the kernel chooses, and asks the kernel which it is.
func startSimulator(t *testing.T, dir string) string {
	t.Helper()
	command := exec.Command("ipmi_sim", "-c", "lan.conf", "-f", "sim.emu", "-s", dir, "-n")
	command.Dir = dir
	// A file, not a pipe: programs that the simulator starts hold it open.
	out, err := os.Create(filepath.Join(dir, "output"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	command.Stdout, command.Stderr = out, out
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = command.Wait(); close(ended) }()
	t.Cleanup(func() { _ = command.Process.Kill(); <-ended })
	for {
		if port, ok := udpPortOf(command.Process.Pid); ok {
			return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		}
		select {
		case <-ended:
			text, _ := os.ReadFile(out.Name())
			t.Fatalf("ipmi_sim ended: %s", text)
		case <-t.Context().Done():
			t.Fatal("ipmi_sim opened no port")
		case <-time.After(10 * time.Millisecond): // it tells nobody when it is ready
		}
	}
}

// udpPortOf is the port of the one UDP socket that a process has.
func udpPortOf(pid int) (int, bool) {
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/udp", pid))
	if err != nil {
		return 0, false
	}
	descriptors, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	for _, d := range descriptors {
		name, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, d.Name()))
		inode, ok := strings.CutPrefix(strings.TrimSuffix(name, "]"), "socket:[")
		if !ok {
			continue
		}
		for line := range strings.Lines(string(table)) {
			fields := strings.Fields(line)
			if len(fields) < 10 || fields[9] != inode {
				continue
			}
			_, hex, _ := strings.Cut(fields[1], ":")
			port, err := strconv.ParseUint(hex, 16, 16)
			return int(port), err == nil && port != 0
		}
	}
	return 0, false
}

const (
	relayOpen int32 = iota
	relaySilent
	relayDeaf
)

// relay passes datagrams to the simulator, each client's by a socket of its own.
type relay struct {
	mode atomic.Int32
	to   atomic.Value // string
	conn *net.UDPConn
}

func (r *relay) address() string { return r.conn.LocalAddr().String() }
func (r *relay) close()          { _ = r.conn.Close() }

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{conn: conn}
	r.to.Store(to)
	t.Cleanup(r.close)
	go func() { // ends with the socket
		type client struct {
			up *net.UDPConn
			// commands counts those of the session; lost: their answers are lost until there is a new session.
			commands int
			lost     atomic.Bool
		}
		clients := map[string]*client{}
		defer func() {
			for _, c := range clients {
				_ = c.up.Close()
			}
		}()
		buffer := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFromUDP(buffer)
			if err != nil {
				return
			}
			mode := r.mode.Load()
			if mode == relaySilent {
				continue
			}
			c := clients[from.String()]
			if c == nil {
				up, err := net.Dial("udp", r.to.Load().(string))
				if err != nil {
					return
				}
				c = &client{up: up.(*net.UDPConn)}
				clients[from.String()] = c
				go func() { // ends with the socket
					answer := make([]byte, 4096)
					for {
						n, err := c.up.Read(answer)
						if err != nil {
							return
						}
						if !c.lost.Load() {
							_, _ = conn.WriteToUDP(answer[:n], from)
						}
					}
				}()
			}
			// In a session the first command sets the privilege level, the second reads the power, the third changes it.
			if sequence, inSession := sessionSequence(buffer[:n]); inSession {
				c.commands = int(sequence)
				if mode == relayDeaf && c.commands >= 3 {
					r.mode.CompareAndSwap(relayDeaf, relayOpen)
					c.lost.Store(true)
				}
			}
			_, _ = c.up.Write(buffer[:n])
		}
	}()
	return r
}

// sessionSequence is the sequence number of a packet of an authenticated session (section 13.6).
func sessionSequence(packet []byte) (uint32, bool) {
	if len(packet) < 14 || packet[4] != 6 || packet[5]&0x3f != 0 {
		return 0, false
	}
	return binary.LittleEndian.Uint32(packet[10:14]), packet[5]&0x80 != 0
}
