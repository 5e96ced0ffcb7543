package rack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"coldrack.dev/test/netns"
)

// rebootStatus is how a machine's PID 1 says that the machine restarts.
const rebootStatus = 3

// Machine is one machine. Its disk is a folder, and survives everything.
type Machine struct {
	r    *Rack
	name string
	pool string
	dir  string
	disk string
	mac  string
	uuid string
	// address of the installed node, and the one that it boots with before.
	address, discovery string

	mu        sync.Mutex
	ns        *netns.NS // nil without power
	process   *exec.Cmd
	exited    chan struct{}
	installed bool
	// endBoot ends a boot from the network; nil when there was none.
	endBoot context.CancelFunc
}

func (r *Rack) addMachine(name, pool string) *Machine {
	n := len(r.machines) + 11
	dir := filepath.Join(r.dir, "machines", name)
	m := &Machine{r: r, name: name, pool: pool, dir: dir, disk: filepath.Join(dir, "disk"), mac: fmt.Sprintf("52:54:00:78:00:%02x", n),
		uuid: fmt.Sprintf("78000000-0000-4000-8000-%012d", n), address: fmt.Sprintf("10.78.0.%d", n), discovery: fmt.Sprintf("10.78.0.%d", n+100)}
	if err := os.MkdirAll(m.disk, 0o755); err != nil {
		r.t.Fatal(err)
	}
	r.machines = append(r.machines, m)
	return m
}

// Name of the machine, of its Machine object and of its node.
func (m *Machine) Name() string { return m.name }

// Address of its node.
func (m *Machine) Address() string { return m.address }

// Disk is the folder that it has as its disk.
func (m *Machine) Disk() string { return m.disk }

// port is the machine's socket at the switch.
func (m *Machine) port() string { return m.name }

// PowerOn starts the machine from its disk, or first has it installed.
func (m *Machine) PowerOn() {
	t := m.r.t
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ns != nil {
		t.Errorf("%s has power already", m.name)
		return
	}
	if err := m.powerOn(); err != nil {
		t.Errorf("%s: power on: %v", m.name, err)
	}
}

func (m *Machine) powerOn() error {
	first := m.address
	if !m.installed {
		first = m.discovery
	}
	m.ns = m.r.plug(m.port(), m.mac, first)
	if !m.installed {
		ctx, cancel := context.WithTimeout(m.r.t.Context(), patience)
		defer cancel()
		if err := m.netboot(ctx); err != nil {
			return fmt.Errorf("install: %w", err)
		}
		m.installed = true
	}
	return m.start()
}

// reboot boots the machine from the network, as its firmware does, and then from its disk.
func (m *Machine) reboot(cmd *exec.Cmd) {
	m.mu.Lock()
	ctx, cancel := context.WithCancel(m.r.t.Context())
	defer cancel()
	if m.process != cmd || m.ns == nil {
		m.mu.Unlock()
		return
	}
	m.process, m.endBoot = nil, cancel
	m.mu.Unlock()
	err := m.netboot(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	if ctx.Err() != nil || m.ns == nil {
		return // without power
	}
	if err == nil {
		err = m.start()
	}
	if err != nil {
		m.r.t.Errorf("%s: reboot: %v", m.name, err)
	}
}

// start runs PID 1 of the machine.
func (m *Machine) start() error {
	cmd := exec.Command(m.r.programs.machine, append([]string{"boot", m.disk, m.name}, m.r.programs.binds...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL,
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC}
	if err := startIn(m.ns, cmd, filepath.Join(m.dir, "console.log")); err != nil {
		return err
	}
	exited := make(chan struct{})
	m.process, m.exited = cmd, exited
	go func() {
		err := cmd.Wait()
		close(exited)
		var status *exec.ExitError
		if errors.As(err, &status) && status.ExitCode() == rebootStatus {
			m.reboot(cmd)
		}
	}()
	return nil
}

// PowerCut ends everything that runs in the machine at once. Nobody hears of it: its link goes first.
func (m *Machine) PowerCut() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ns == nil {
		return
	}
	_, _ = m.link("down")
	if m.endBoot != nil {
		m.endBoot()
	}
	if m.process != nil {
		// The kernel ends every process of a namespace whose PID 1 is gone.
		_ = m.process.Process.Kill()
		<-m.exited
		m.process = nil
	}
	m.ns.Close()
	_, _ = m.r.hub.Try(context.Background(), "ip", "link", "del", m.port())
	m.ns = nil
}

func (m *Machine) link(state string) (string, error) {
	return m.r.hub.Try(context.Background(), "ip", "link", "set", m.port(), state)
}

// LinkDown pulls the machine's cable.
func (m *Machine) LinkDown() { m.mustLink("down") }

// LinkUp plugs it in again.
func (m *Machine) LinkUp() { m.mustLink("up") }

func (m *Machine) mustLink(state string) {
	m.r.t.Helper()
	if out, err := m.link(state); err != nil {
		m.r.t.Fatalf("%s: link %s: %v: %s", m.name, state, err, out)
	}
}

// Run runs a program of the host in the machine's network, and returns what it printed.
func (m *Machine) Run(args ...string) (string, error) {
	m.mu.Lock()
	ns := m.ns
	m.mu.Unlock()
	if ns == nil {
		return "", fmt.Errorf("%s has no power", m.name)
	}
	ctx, cancel := context.WithTimeout(m.r.t.Context(), time.Minute)
	defer cancel()
	return ns.Try(ctx, args...)
}

// RunInside runs a program of the machine's own in all its namespaces, and returns what it printed. It sees the machine's disk as its
// root, and nothing of the host but what the machine sees, read-only.
func (m *Machine) RunInside(args ...string) (string, error) {
	m.mu.Lock()
	cmd := m.process
	m.mu.Unlock()
	if cmd == nil {
		return "", fmt.Errorf("%s does not run", m.name)
	}
	// Until PID 1 has made the machine's root its own, it sees the host's.
	own, err := os.Stat(fmt.Sprintf("/proc/%d/root/", cmd.Process.Pid))
	if err != nil {
		return "", err
	}
	if host, err := os.Stat("/"); err != nil || os.SameFile(own, host) {
		return "", errors.Join(fmt.Errorf("%s has not made its file system yet", m.name), err)
	}
	ctx, cancel := context.WithTimeout(m.r.t.Context(), patience)
	defer cancel()
	enter := exec.CommandContext(ctx, "nsenter", slices.Concat([]string{"--target", fmt.Sprint(cmd.Process.Pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--"}, args)...)
	enter.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "HOME=/root"}
	out, err := enter.CombinedOutput()
	return string(out), err
}

// CarriesVirtualIP says whether the machine has the API's virtual address now.
func (m *Machine) CarriesVirtualIP() bool {
	out, err := m.Run("ip", "-o", "addr", "show", "to", virtualIP)
	return err == nil && strings.Contains(out, virtualIP)
}
