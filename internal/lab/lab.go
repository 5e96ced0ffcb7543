package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"coldrack.dev/internal/base/durable"
	"coldrack.dev/internal/base/netns"
)

// ErrNotFound is returned for a lab, or a machine of it, that does not exist.
var ErrNotFound = errors.New("does not exist")

const (
	stateFile   = "lab.json"
	lockFile    = "lab.lock"
	machineFile = "machine.json"
	// stateVersion changes when the files change in a way that an older or newer program would misread.
	stateVersion = 1
)

// state is lab.json.
type state struct {
	Version int          `json:"version"`
	Name    string       `json:"name"`
	Subnet  netip.Prefix `json:"subnet"`
	// Accelerator is empty until there are machines: finding it out takes a moment.
	Accelerator Accelerator `json:"accelerator,omitempty"`
	// AcceleratorReason says why it is not KVM.
	AcceleratorReason string `json:"acceleratorReason,omitempty"`
}

// Lab is a private network and its machines.
type Lab struct {
	dir      string
	state    state
	network  network
	machines []*Machine
	log      *slog.Logger
}

// Create makes the lab, or what is missing of it: namespace, bridge, machines with blank disks. It powers
// nothing on. It may be interrupted and called again.
func Create(ctx context.Context, o Options) (*Lab, error) {
	o = o.withDefaults()
	if err := o.Validate(); err != nil {
		return nil, err
	}
	dir, err := canonical(o.Dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("lab %s: %w", o.Name, err)
	}
	unlock, err := lock(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("lab %s: %w", o.Name, err)
	}
	defer unlock()
	l, err := create(ctx, dir, o)
	if err != nil {
		return nil, fmt.Errorf("lab %s: %w", o.Name, err)
	}
	return l, nil
}

func create(ctx context.Context, dir string, o Options) (*Lab, error) {
	l, err := load(dir, o.Log)
	if errors.Is(err, ErrNotFound) {
		l = newLab(dir, state{Version: stateVersion, Name: o.Name, Subnet: o.Subnet.Masked()}, o.Log)
		err = writeJSON(filepath.Join(dir, stateFile), l.state)
	}
	switch {
	case err != nil:
		return nil, err
	case l.state.Name != o.Name:
		return nil, fmt.Errorf("folder %s holds the lab %q", dir, l.state.Name)
	case l.state.Subnet != o.Subnet.Masked():
		return nil, fmt.Errorf("has the subnet %s; take it down before it gets another", l.state.Subnet)
	}
	if err := l.network.ensure(); err != nil {
		return nil, err
	}
	if max(o.Machines, len(l.machines)) == 0 {
		return l, nil
	}
	if err := l.ensureAccelerator(ctx, o.Accelerator); err != nil {
		return nil, err
	}
	for index := 1; index <= o.Machines; index++ {
		if slices.ContainsFunc(l.machines, func(m *Machine) bool { return m.spec.Index == index }) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		m := &Machine{lab: l, dir: filepath.Join(dir, machineName(o.Name, index)), spec: specOf(o, index)}
		if err := m.make(); err != nil {
			return nil, fmt.Errorf("machine %s: %w", m.Name(), err)
		}
		l.machines = append(l.machines, m)
	}
	l.sort()
	l.warnAboutMemory()
	return l, nil
}

func newLab(dir string, s state, log *slog.Logger) *Lab {
	return &Lab{dir: dir, state: s, log: log, network: network{
		namespace: "coldrack-" + s.Name,
		subnet:    s.Subnet,
		bridgeMAC: macOf(s.Name, 0, 0),
		owner:     ownerMark(dir),
	}}
}

// Open finds a lab that was created before. The error is ErrNotFound when there is none in the folder.
// A nil log discards.
func Open(dir string, log *slog.Logger) (*Lab, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	dir, err := canonical(dir)
	if err != nil {
		return nil, err
	}
	l, err := load(dir, log)
	if err != nil {
		return nil, fmt.Errorf("lab in %s: %w", dir, err)
	}
	return l, nil
}

func load(dir string, log *slog.Logger) (*Lab, error) {
	var s state
	if err := readJSON(filepath.Join(dir, stateFile), &s); err != nil {
		return nil, err
	}
	if s.Version != stateVersion {
		return nil, fmt.Errorf("%s is of version %d, this program reads version %d: take the lab down with the program that made it", stateFile, s.Version, stateVersion)
	}
	l := newLab(dir, s, log)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		if !isMachineFolder(s.Name, entry) {
			continue
		}
		m := &Machine{lab: l, dir: filepath.Join(dir, entry.Name())}
		err := readJSON(filepath.Join(m.dir, machineFile), &m.spec)
		if errors.Is(err, ErrNotFound) {
			continue // its making was interrupted; Create makes it again
		}
		if err != nil {
			return nil, err
		}
		if len(m.spec.MACs) == 0 {
			return nil, fmt.Errorf("%s: machine %s has no NIC", machineFile, entry.Name())
		}
		l.machines = append(l.machines, m)
	}
	l.sort()
	return l, nil
}

func (l *Lab) sort() {
	slices.SortFunc(l.machines, func(a, b *Machine) int { return a.spec.Index - b.spec.Index })
}

func isMachineFolder(lab string, entry fs.DirEntry) bool {
	index, ok := strings.CutPrefix(entry.Name(), lab+"-")
	number, err := strconv.Atoi(index)
	return ok && err == nil && number > 0 && entry.IsDir()
}

func (l *Lab) ensureAccelerator(ctx context.Context, wanted Accelerator) error {
	before := l.state
	switch {
	case wanted != "":
		l.state.Accelerator, l.state.AcceleratorReason = wanted, "asked for"
	case l.state.Accelerator == "":
		chosen, reason, err := ProbeAccelerator(ctx)
		if err != nil {
			return err
		}
		l.state.Accelerator, l.state.AcceleratorReason = chosen, reason
		if chosen == TCG {
			l.log.Info("KVM does not work here; machines are emulated", "reason", reason)
		}
	}
	if l.state == before {
		return nil
	}
	return writeJSON(filepath.Join(l.dir, stateFile), l.state)
}

// warnAboutMemory speaks up before the kernel has to choose whom to kill.
func (l *Lab) warnAboutMemory() {
	var need Size
	for _, m := range l.machines {
		if m.State() == Off {
			need += m.spec.Memory
		}
	}
	info, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return
	}
	match := memAvailable.FindSubmatch(info)
	if match == nil {
		return
	}
	kib, _ := strconv.ParseInt(string(match[1]), 10, 64)
	if have := Size(kib) << 10; need > have {
		l.log.Warn("the machines may use more memory than this host has free", "machines", need, "free", have/MiB*MiB)
	}
}

var memAvailable = regexp.MustCompile(`(?m)^MemAvailable:\s+(\d+) kB`)

// make lays the machine's folder out. The file that makes it count comes last.
func (m *Machine) make() error {
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return err
	}
	for i, disk := range m.spec.Disks {
		if err := blankDisk(m.DiskPath(i), disk.Size); err != nil {
			return err
		}
	}
	if m.spec.Firmware == UEFI {
		_, template, err := findUEFI()
		if err != nil {
			return err
		}
		vars, err := os.ReadFile(template)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(m.dir, varsFile), vars, 0o600); err != nil {
			return err
		}
	}
	return writeJSON(filepath.Join(m.dir, machineFile), m.spec)
}

// blankDisk makes a file of zeroes that takes no room.
func blankDisk(path string, size Size) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(file.Truncate(int64(size)), file.Close())
}

// Name is the lab's name.
func (l *Lab) Name() string { return l.state.Name }

// Dir is the lab's folder.
func (l *Lab) Dir() string { return l.dir }

// Namespace is the name of the network namespace, for netns.Do and `coldrack serve --boot-netns`.
func (l *Lab) Namespace() string { return l.network.namespace }

// Bridge is the interface in the namespace on which machines are reached.
func (l *Lab) Bridge() string { return bridgeName }

// Subnet is the network of the lab.
func (l *Lab) Subnet() netip.Prefix { return l.state.Subnet }

// ServerAddress is the bridge's address, where machines find the server.
func (l *Lab) ServerAddress() netip.Addr { return serverAddress(l.state.Subnet).Addr() }

// Accelerator is how machines run, and, when they are emulated, why. It is empty while there are none.
func (l *Lab) Accelerator() (a Accelerator, reason string) {
	return l.state.Accelerator, l.state.AcceleratorReason
}

// Machines are all machines in the order of their index.
func (l *Lab) Machines() []*Machine { return slices.Clone(l.machines) }

// Machine is the machine with an index, counted from 1 as in its name. It panics when there is none.
func (l *Lab) Machine(index int) *Machine {
	m, err := l.Lookup(strconv.Itoa(index))
	if err != nil {
		panic(err)
	}
	return m
}

// Lookup finds a machine by its name, its index, a MAC address or its serial number.
func (l *Lab) Lookup(name string) (*Machine, error) {
	var known []string
	for _, m := range l.machines {
		s := m.spec
		if name == s.Name || name == strconv.Itoa(s.Index) || name == s.Serial || slices.Contains(s.MACs, strings.ToLower(name)) {
			return m, nil
		}
		known = append(known, s.Name)
	}
	if len(known) == 0 {
		return nil, fmt.Errorf("machine %q: %w: lab %s has no machines", name, ErrNotFound, l.Name())
	}
	return nil, fmt.Errorf("machine %q: %w: lab %s has %s", name, ErrNotFound, l.Name(), strings.Join(known, ", "))
}

// PowerOn starts all machines that are off.
func (l *Lab) PowerOn(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for _, m := range l.machines {
		group.Go(func() error { return m.PowerOn(ctx) })
	}
	return group.Wait()
}

// Served tells whether somebody listens for DHCP requests of the machines.
func (l *Lab) Served() (bool, error) { return l.network.served() }

// Do runs fn inside the lab's namespace; see netns.Do for what fn may do.
func (l *Lab) Do(fn func() error) error { return netns.Do(l.Namespace(), fn) }

// Down pulls the plug of all machines of the lab and removes its network; with keepDisks the machines can be
// had back by Create, otherwise nothing remains. It works on a lab that is half made or half gone, and on
// one that does not exist.
func Down(ctx context.Context, dir, name string, keepDisks bool) error {
	if !nameSyntax.MatchString(name) {
		return fmt.Errorf("lab %q: not a name of a lab", name)
	}
	dir, err := canonical(dir)
	if err != nil {
		return err
	}
	if err := down(ctx, dir, name, keepDisks); err != nil {
		return fmt.Errorf("take lab %s down: %w", name, err)
	}
	return nil
}

func down(ctx context.Context, dir, name string, keepDisks bool) error {
	if fileExists(dir) {
		unlock, err := lock(ctx, dir)
		if err != nil {
			return err
		}
		defer unlock()
	}
	if _, err := killBelow(ctx, dir); err != nil {
		return err
	}
	network := newLab(dir, state{Name: name, Subnet: DefaultSubnet}, nil).network
	// Somebody else's network of this name is nothing to take down here.
	if err := network.remove(); err != nil && !errors.Is(err, errForeign) {
		return err
	}
	if keepDisks || !fileExists(dir) {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if isMachineFolder(name, entry) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, entry.Name())))
		}
	}
	if err != nil {
		return err
	}
	for _, file := range []string{stateFile, bmcKeyFile, bmcPasswordFile, lockFile} {
		if err := os.Remove(filepath.Join(dir, file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	// Whatever else a person keeps in the folder stays.
	if err := os.Remove(dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	return nil
}

// List names the labs whose folders are in stateDir.
func List(stateDir string) ([]string, error) {
	entries, err := os.ReadDir(stateDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, entry := range entries {
		if fileExists(filepath.Join(stateDir, entry.Name(), stateFile)) {
			names = append(names, entry.Name())
		}
	}
	return names, err
}

// lock keeps other programs from changing the lab at the same time.
func lock(ctx context.Context, dir string) (unlock func(), err error) {
	path := filepath.Join(dir, lockFile)
	for {
		file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && sameFile(file, path) {
			return func() { file.Close() }, nil
		}
		file.Close()
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("another program is changing the lab: %w", ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// sameFile is false when the file was removed, and perhaps made anew, after it was opened.
func sameFile(file *os.File, path string) bool {
	ours, err := file.Stat()
	if err != nil {
		return false
	}
	theirs, err := os.Stat(path)
	return err == nil && os.SameFile(ours, theirs)
}

// writeJSON replaces a file whole or not at all.
func writeJSON(path string, value any) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(path, append(text, '\n'), 0o600)
}

func readJSON(path string, value any) error {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return ErrNotFound
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, value); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}
