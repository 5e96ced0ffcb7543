package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"coldrack.dev/internal/base/netns"
)

// State is whether a machine has power.
type State string

const (
	On  State = "on"
	Off State = "off"
)

// ErrOff is returned for what only a machine that is on can do.
var ErrOff = errors.New("the machine is off")

// ErrOn is returned by PowerOn when options were given that the running machine was not started with.
var ErrOn = errors.New("the machine is on already")

// Machine is one virtual machine of a lab. Its methods may be called from several goroutines and programs;
// what it does at one moment is decided by who comes first.
type Machine struct {
	lab  *Lab
	dir  string
	spec Spec
}

// Name is how people call the machine, for example lab-1.
func (m *Machine) Name() string { return m.spec.Name }

// Spec is what the machine is made of.
func (m *Machine) Spec() Spec { return m.spec }

// MAC is the hardware address of the first NIC, which boots.
func (m *Machine) MAC() net.HardwareAddr {
	mac, _ := net.ParseMAC(m.spec.MACs[0]) // we wrote it
	return mac
}

// ConsoleLog is the file that holds everything the serial console ever showed.
func (m *Machine) ConsoleLog() string { return filepath.Join(m.dir, consoleLog) }

// DiskPath is the raw image of a disk, counted from 0.
func (m *Machine) DiskPath(i int) string { return diskPath(m.dir, i) }

// startOptions is what one start does differently.
type startOptions struct {
	// like lends the identity of another machine.
	like *Spec
	// newMAC is the address of the first NIC.
	newMAC   net.HardwareAddr
	diskOnly bool
	clock    time.Time
}

func (o startOptions) any() bool {
	return o.like != nil || o.newMAC != nil || o.diskOnly || !o.clock.IsZero()
}

func (o startOptions) identity(own Spec) Spec {
	if o.like != nil {
		return *o.like
	}
	return own
}

func (o startOptions) serial(own Spec) string { return o.identity(own).Serial }
func (o startOptions) uuid(own Spec) string   { return o.identity(own).UUID }

func (o startOptions) mac(own Spec, nic int) string {
	switch theirs := o.identity(own).MACs; {
	case nic == 0 && o.newMAC != nil:
		return o.newMAC.String()
	case nic < len(theirs):
		return theirs[nic]
	}
	return own.MACs[nic]
}

func (o startOptions) rtc() string {
	if o.clock.IsZero() {
		return "utc"
	}
	return o.clock.UTC().Format("2006-01-02T15:04:05")
}

// StartOption changes one start of a machine.
type StartOption func(*startOptions)

// WithMAC gives the first NIC another hardware address: a replaced card, or a forged one.
func WithMAC(mac net.HardwareAddr) StartOption { return func(o *startOptions) { o.newMAC = mac } }

// Impersonate makes the machine claim all that another one is known by: MAC addresses, SMBIOS UUID and
// serial number. Its disks stay its own. The other machine should be off.
func Impersonate(other *Machine) StartOption {
	return func(o *startOptions) { spec := other.spec; o.like = &spec }
}

// DiskOnly starts from the disks and never asks the network.
func DiskOnly() StartOption { return func(o *startOptions) { o.diskOnly = true } }

// WithClock sets the machine's clock, as if its battery had been empty for years.
func WithClock(now time.Time) StartOption { return func(o *startOptions) { o.clock = now } }

// State observes whether the machine is on.
func (m *Machine) State() State {
	p, err := m.process()
	if err != nil || p == nil {
		return Off
	}
	p.close()
	return On
}

func (m *Machine) process() (*process, error) { return findProcess(filepath.Join(m.dir, pidFile)) }

// PowerOn starts the machine and returns when its processors run. A machine that is on stays as it is.
func (m *Machine) PowerOn(ctx context.Context, options ...StartOption) error {
	in := invocation{spec: m.spec, dir: m.dir, accelerator: m.lab.state.Accelerator}
	for _, option := range options {
		option(&in.start)
	}
	if m.State() == On {
		if in.start.any() {
			return fmt.Errorf("power on %s: %w", m.Name(), ErrOn)
		}
		return nil
	}
	if err := m.powerOn(ctx, in); err != nil {
		return fmt.Errorf("power on %s: %w", m.Name(), err)
	}
	m.lab.log.Debug("machine powered on", "machine", m.Name(), "firmware", m.spec.Firmware, "accelerator", in.accelerator)
	return nil
}

func (m *Machine) powerOn(ctx context.Context, in invocation) (err error) {
	if m.spec.Firmware == UEFI {
		if in.uefiCode, _, err = findUEFI(); err != nil {
			return err
		}
	}
	program, err := exec.LookPath(emulator)
	if err != nil {
		return missingEmulator(err)
	}
	nice, err := exec.LookPath("nice")
	if err != nil {
		return err
	}
	cut := m.NetworkCut()
	for nic := range m.spec.MACs {
		if err := m.lab.network.ensureTap(tapOf(m.spec.Index, nic), !cut); err != nil {
			return err
		}
	}
	command := exec.CommandContext(ctx, nice, append([]string{"-n", strconv.Itoa(m.spec.Nice), program}, in.args()...)...)
	command.Dir = m.dir
	command.WaitDelay = 10 * time.Second
	// QEMU returns once it is set up, or fails; the machine then runs in a process of its own session.
	var out []byte
	err = netns.Do(m.lab.Namespace(), func() (err error) {
		out, err = command.CombinedOutput()
		return err
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return permission(fmt.Errorf("QEMU: %w: %s", err, firstLine(out)))
	}
	m.autogroup()
	if cut {
		return qmp(ctx, m.dir, m.linkCommands(false)...)
	}
	return nil
}

// autogroup makes being nice mean something between sessions, too, where the kernel shares processors among these
// first (sched(7), "The autogroup feature"). Where it does not, there is nothing to do.
func (m *Machine) autogroup() {
	if p, err := m.process(); err == nil && p != nil {
		defer p.close()
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", p.pid), []byte(strconv.Itoa(m.spec.Nice)), 0)
	}
}

// PowerOff pulls the plug: nothing that the machine holds in memory is saved. A machine that is off stays so.
func (m *Machine) PowerOff(ctx context.Context) error {
	p, err := m.process()
	if err != nil || p == nil {
		return err
	}
	defer p.close()
	if err := p.kill(ctx); err != nil {
		return fmt.Errorf("power off %s: %w", m.Name(), err)
	}
	return nil
}

// Shutdown presses the power button. The operating system decides what follows; WaitOff waits for it.
func (m *Machine) Shutdown(ctx context.Context) error {
	return m.control(ctx, "shut down", qmpCommand{Execute: "system_powerdown"})
}

// Reset presses the reset button: memory is lost, the firmware starts again.
func (m *Machine) Reset(ctx context.Context) error {
	return m.control(ctx, "reset", qmpCommand{Execute: "system_reset"})
}

// WaitOff returns when the machine is off.
func (m *Machine) WaitOff(ctx context.Context) error {
	p, err := m.process()
	if err != nil || p == nil {
		return err
	}
	defer p.close()
	if err := p.wait(ctx); err != nil {
		return fmt.Errorf("wait until %s is off: %w; its last lines:\n%s", m.Name(), err, m.consoleTail(20))
	}
	return nil
}

func (m *Machine) control(ctx context.Context, what string, commands ...qmpCommand) error {
	err := ErrOff
	if m.State() == On {
		err = qmp(ctx, m.dir, commands...)
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", what, m.Name(), err)
	}
	return nil
}

// CutNetwork pulls every network cable: the machine sees no carrier and its frames go nowhere. It stays so over
// power cycles until RestoreNetwork.
func (m *Machine) CutNetwork(ctx context.Context) error {
	if err := os.WriteFile(m.cutFile(), nil, 0o600); err != nil {
		return fmt.Errorf("cut network of %s: %w", m.Name(), err)
	}
	return m.setNetwork(ctx, "cut", false)
}

// RestoreNetwork plugs the cables in again.
func (m *Machine) RestoreNetwork(ctx context.Context) error {
	if err := os.Remove(m.cutFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("restore network of %s: %w", m.Name(), err)
	}
	return m.setNetwork(ctx, "restore", true)
}

// NetworkCut tells whether the cables are pulled.
func (m *Machine) NetworkCut() bool { return fileExists(m.cutFile()) }

func (m *Machine) cutFile() string { return filepath.Join(m.dir, "network-cut") }

func (m *Machine) setNetwork(ctx context.Context, what string, up bool) error {
	for nic := range m.spec.MACs {
		if err := m.lab.network.ensureTap(tapOf(m.spec.Index, nic), up); err != nil {
			return fmt.Errorf("%s network of %s: %w", what, m.Name(), err)
		}
	}
	if m.State() == Off {
		return nil
	}
	if err := qmp(ctx, m.dir, m.linkCommands(up)...); err != nil {
		return fmt.Errorf("%s network of %s: %w", what, m.Name(), err)
	}
	return nil
}

func (m *Machine) linkCommands(up bool) []qmpCommand {
	var commands []qmpCommand
	for nic := range m.spec.MACs {
		commands = append(commands, qmpCommand{"set_link", map[string]any{"name": fmt.Sprintf("net%d", nic), "up": up}})
	}
	return commands
}

// Usage is what the machine takes from the host now. It fails with ErrOff when the machine is off.
func (m *Machine) Usage() (Usage, error) {
	p, err := m.process()
	if err != nil {
		return Usage{}, err
	}
	if p == nil {
		return Usage{}, ErrOff
	}
	defer p.close()
	return p.usage()
}
