// Package soak lets a real server run for a while under everything at once: known machines boot, install themselves, report and are
// switched off and on, while strangers forge, flood and hold on, the disk and the store fill and empty, the server is killed, and its
// clock jumps. All the time it is checked that no known machine is refused or loses its address, that what the server takes stays
// within its bounds, and that nothing that it acknowledged is lost.
//
// Everything is native: the machines are those of a rehearsal, the server and they run in network namespaces, the data folder is
// on a file system of its own, and all of it vanishes with the test's process.
package soak

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"coldrack.dev/internal/base/netns"
	"coldrack.dev/internal/lab/rehearse"
)

// options of a soak.
type options struct {
	Program  string        // coldrack
	Self     string        // this program, which becomes the strangers
	Duration time.Duration // of the attacks
	Machines int
	Kills    int     // of the server
	Files    int     // the server's limit of open files
	Rate     float64 // of the strangers, see runStrangers
	Hold     int     // silent connections to each port, more than the server has room for
	StoreMiB int     // the store's quota
	DiskMiB  int
	// Cycle is how long an installed machine runs, by and large, before it is switched off and on.
	Cycle     time.Duration
	Heartbeat time.Duration
	// LogFile gets the server's log.
	LogFile string
	Log     func(format string, args ...any)
}

// jump is how far the server's clock jumps, there and back.
const jump = 3 * time.Hour

var serverAddress = netip.MustParsePrefix("10.64.0.1/14")

const plan = `apiVersion: coldrack.dev/v1alpha1
kind: Subnet
metadata: {name: soak}
spec:
  cidr: 10.64.0.0/14
  dhcp: server
  discovery: 10.65.0.0-10.65.255.250
  static: 10.66.0.0-10.66.255.250
---
apiVersion: coldrack.dev/v1alpha1
kind: Profile
metadata: {name: soak}
spec: {image: debian-12, wipe: RefuseForeign}
`

// soak is a running one.
type soak struct {
	options
	dir      string
	disk     *disk
	stage    *rehearse.Stage
	args     []string
	began    time.Time
	machines *machines
	operator *operator
	watched  *watched
	host     host

	rack      *rehearse.Process
	strangers int // their process

	mu     sync.Mutex
	server *rehearse.Process
	// clocks are those of the server and of the machines, which take their time from it.
	clocks map[int]*clock
	offset time.Duration
	// down are the times during which the server did not run, since began.
	down []span
	// expected says that the server's end is our doing.
	expected bool
	counts   counts // of the strangers
	did      map[string]int
	slowest  time.Duration // restart
}

// span is a time from a moment to another; to is 0 as long as it lasts.
type span struct{ from, to time.Duration }

func (s *soak) dataDir() string { return filepath.Join(s.disk.path, "data") }

// run soaks a server and returns what was seen. An error says that the soak itself could not go on.
func run(ctx context.Context, o options) (_ *report, err error) {
	s := &soak{options: o, clocks: map[int]*clock{}, counts: counts{}, did: map[string]int{}}
	if s.dir, err = os.MkdirTemp("", "coldrack-soak-"); err != nil {
		return nil, err
	}
	defer os.RemoveAll(s.dir)
	if s.disk, err = newDisk(int64(o.DiskMiB) << 20); err != nil {
		return nil, err
	}
	defer s.disk.close()
	if s.stage, err = rehearse.OpenStage(serverAddress, false); err != nil {
		return nil, err
	}
	defer s.stage.Close()
	if err := s.wire(); err != nil {
		return nil, err
	}
	if err := s.prepare(ctx); err != nil {
		return nil, err
	}
	s.began = time.Now()
	if err := s.startServer(ctx); err != nil {
		return nil, err
	}
	defer func() { s.process().Stop(20 * time.Second) }()
	if err := s.process().AwaitBundle(ctx, s.stage.ServerPath(), serverAddress.Addr()); err != nil {
		return nil, err
	}
	if s.operator, err = newOperator(s); err != nil {
		return nil, err
	}
	fleet := rehearse.Fleet(rehearse.FleetOptions{Machines: o.Machines, Seed: 1, Ramp: min(o.Duration/4, 5*time.Minute)})
	o.Log("recording %d machines", len(fleet))
	if err := s.operator.recordMachines(ctx, fleet); err != nil {
		return nil, err
	}
	s.machines, s.watched = newMachines(fleet, s.time, max(90*time.Second, 4*o.Heartbeat)), &watched{}
	return s.attack(ctx, fleet)
}

func (s *soak) time() time.Duration { return time.Since(s.began) }

func (s *soak) process() *rehearse.Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.server
}

// wire gives strangers addresses, and the server a way to those whose addresses they forge.
func (s *soak) wire() error {
	var mac net.HardwareAddr
	err := netns.Do(s.stage.RackPath(), func() error {
		link, err := netlink.LinkByName(rehearse.RackLink)
		if err != nil {
			return err
		}
		mac = link.Attrs().HardwareAddr
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST,
			Dst: &net.IPNet{IP: strangersNet.Addr().AsSlice(), Mask: net.CIDRMask(strangersNet.Bits(), 32)}})
	})
	if err != nil {
		return fmt.Errorf("addresses of strangers: %w", err)
	}
	return netns.Do(s.stage.ServerPath(), func() error {
		link, err := netlink.LinkByName(rehearse.ServerLink)
		if err != nil {
			return err
		}
		// Permanent neighbours, as the rehearsal's machines are: the kernel's table of learned ones is the host's.
		neighbours := []netip.Addr{foreign}
		for i := range strangersAddresses {
			neighbours = append(neighbours, nth(strangersNet, 1+i))
		}
		for i := range forgedAddresses {
			neighbours = append(neighbours, nth(forgedNet, 1+i))
		}
		for _, a := range neighbours {
			if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac}); err != nil {
				return fmt.Errorf("make %s a neighbour: %w", a, err)
			}
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Scope: unix.RT_SCOPE_LINK, Dst: &net.IPNet{IP: foreign.AsSlice(), Mask: net.CIDRMask(32, 32)}})
	})
}

// prepare makes what the server is started with.
func (s *soak) prepare(ctx context.Context) error {
	work := filepath.Join(s.dir, "bundle")
	if err := errors.Join(os.Mkdir(work, 0o700), os.WriteFile(filepath.Join(s.dir, "plan.yaml"), []byte(plan), 0o600)); err != nil {
		return err
	}
	sizes := rehearse.Sizes{FirstStage: 128 << 10, Kernel: 256 << 10, Initrd: 512 << 10, Image: 256 << 10}
	archive, key, err := rehearse.MakeBundle(ctx, work, sizes, []string{"debian-12"})
	if err != nil {
		return err
	}
	s.args = []string{"--config", os.DevNull, "--data-dir", s.dataDir(), "--api-address", "127.0.0.1:7443", "--interfaces", rehearse.ServerLink,
		"--bundles", archive, "--trusted-keys", key, "--manifests", filepath.Join(s.dir, "plan.yaml"),
		"--heartbeat-interval", s.Heartbeat.String(), "--store-quota-mib", fmt.Sprint(s.StoreMiB)}
	return nil
}

// startServer starts the server, as machines would find it, and gives it the clock that the last one had.
func (s *soak) startServer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute) // as long as the unit lets it
	defer cancel()
	server, err := rehearse.StartServer(ctx, rehearse.ServerOptions{Program: s.Program, Args: s.args, Log: s.LogFile, Namespace: s.stage.ServerPath(), Files: s.Files,
		Born: func(p *rehearse.Process) error { return s.takeClock(p.PID()) }})
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.server, s.expected = server, false
	s.mu.Unlock()
	return nil
}

func (s *soak) takeClock(pid int) error {
	// The shell that sets the limit of open files becomes the server.
	for range 3000 {
		if target, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && filepath.Base(target) == filepath.Base(s.Program) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	c, err := takeClock(pid)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clocks[pid] = c
	return c.set(s.offset)
}

// setClock lets the clocks of server and machines jump.
func (s *soak) setClock(offset time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.offset = offset
	for pid, c := range s.clocks {
		if err := c.set(offset); err != nil {
			// The process has ended.
			c.close()
			delete(s.clocks, pid)
		}
	}
	return nil
}

// attack is the soak itself.
func (s *soak) attack(ctx context.Context, fleet []rehearse.Machine) (*report, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	rack, err := rehearse.StartRack(s.Program, s.stage, rehearse.RackConfig{Link: rehearse.RackLink, ServerNS: s.stage.ServerPath(), Port: rehearse.ServerLink, Machines: fleet, Cycle: s.Cycle})
	if err != nil {
		return nil, err
	}
	defer rack.Stop()
	if err := s.takeClock(rack.PID()); err != nil {
		return nil, err
	}
	s.rack = rack.Process
	strangers, told, err := s.startStrangers(ctx)
	if err != nil {
		return nil, err
	}
	defer strangers.Stop()
	s.strangers = strangers.cmd.Process.Pid
	s.machines.installed = func(v victim) { _ = told.Encode(v) }

	var running sync.WaitGroup
	defer running.Wait()
	defer cancel(nil)
	running.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case e, ok := <-rack.Events():
				if !ok {
					cancel(fmt.Errorf("the machines' process ended: %w", rack.Err()))
					return
				}
				s.machines.take(e)
			}
		}
	})
	running.Go(func() { s.operator.work(ctx) })
	running.Go(func() { s.watch(ctx) })

	base := s.time()
	if err := s.mishaps(ctx, base); err != nil {
		return nil, err
	}
	s.Log("the attacks end; waiting for all machines")
	strangers.Stop()
	s.settle(ctx)
	s.checkAcknowledged(ctx)
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	return s.sumUp(), nil
}

// strangersProcess is the process of the strangers.
type strangersProcess struct {
	cmd  *exec.Cmd
	in   io.Closer
	once sync.Once
	read sync.WaitGroup
}

// strangersVariable makes this program the strangers.
const strangersVariable = "COLDRACK_SOAK_STRANGERS"

func (s *soak) startStrangers(context.Context) (*strangersProcess, *json.Encoder, error) {
	cmd := exec.Command(s.Self)
	cmd.Env = append(os.Environ(), strangersVariable+"=1")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := netns.Do(s.stage.RackPath(), cmd.Start); err != nil {
		return nil, nil, err
	}
	p := &strangersProcess{cmd: cmd, in: in}
	p.read.Go(func() {
		for decoder := json.NewDecoder(out); ; {
			now := counts{}
			if decoder.Decode(&now) != nil {
				return
			}
			s.mu.Lock()
			s.counts = now
			s.mu.Unlock()
		}
	})
	told := json.NewEncoder(in)
	return p, told, told.Encode(strangersConfig{Server: serverAddress.Addr(), Link: rehearse.RackLink, Hold: s.Hold, Rate: s.Rate})
}

// Stop ends the strangers, who may be in the middle of something.
func (p *strangersProcess) Stop() {
	p.once.Do(func() {
		p.in.Close()
		kill := time.AfterFunc(30*time.Second, func() { _ = p.cmd.Process.Kill() })
		defer kill.Stop()
		p.read.Wait()
		_ = p.cmd.Wait()
	})
}

// mishaps lets one thing happen after another until the time is over: the time is divided by the kills, and in each part the disk
// fills, the store fills, or the clock jumps. Every second kill comes in the middle of it.
func (s *soak) mishaps(ctx context.Context, base time.Duration) error {
	part := s.Duration / time.Duration(s.Kills+1)
	for i := range s.Kills + 1 {
		begin, end := base+part*time.Duration(i), base+part*time.Duration(i+1)
		s.until(ctx, begin+part/4)
		undo, err := s.mishap(ctx, i)
		if err != nil {
			return err
		}
		if i%2 == 1 && i < s.Kills {
			s.until(ctx, begin+part/2)
			if err := s.kill(ctx); err != nil {
				return err
			}
		}
		s.until(ctx, begin+part*3/4)
		if err := undo(); err != nil {
			return err
		}
		s.until(ctx, end)
		if i%2 == 0 && i < s.Kills {
			if err := s.kill(ctx); err != nil {
				return err
			}
		}
		if err := context.Cause(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (s *soak) until(ctx context.Context, at time.Duration) { pause(ctx, at-s.time()) }

// mishap begins the n-th mishap, and gives what ends it.
func (s *soak) mishap(ctx context.Context, n int) (undo func() error, err error) {
	switch n % 4 {
	case 0:
		s.happened("disk filled")
		return s.disk.empty, s.disk.fill()
	case 1:
		s.happened("store filled")
		s.operator.fillStore(ctx, fillLimit)
		return func() error { return s.operator.emptyStore(ctx) }, nil
	case 2:
		s.happened("clock jumped forward, and back")
		return func() error { return s.setClock(0) }, s.setClock(jump)
	}
	s.happened("clock jumped back, and forward")
	return func() error { return s.setClock(0) }, s.setClock(-jump)
}

func (s *soak) happened(what string) {
	s.Log("%s", what)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.did[what]++
}

// kill ends the server as a power failure does, and starts it again.
func (s *soak) kill(ctx context.Context) error {
	s.happened("server killed")
	s.mu.Lock()
	server := s.server
	s.expected = true
	s.down = append(s.down, span{from: s.time()})
	s.mu.Unlock()
	server.Kill()
	pause(ctx, rand.N(2*time.Second))
	return s.restart(ctx)
}

// restart starts the server again. One that does not start is a breach, and is tried again, as the service manager does.
func (s *soak) restart(ctx context.Context) error {
	began := time.Now()
	for attempt := 1; ; attempt++ {
		err := s.startServer(ctx)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		s.watched.breach("the server starts again", fmt.Sprintf("attempt %d: %v", attempt, err))
		s.Log("the server did not start: %v", err)
		if attempt == 10 {
			return fmt.Errorf("the server does not start any more: %w", err)
		}
		pause(ctx, 2*time.Second)
	}
	took := time.Since(began)
	s.mu.Lock()
	s.slowest = max(s.slowest, took)
	s.down[len(s.down)-1].to = s.time()
	s.mu.Unlock()
	s.Log("the server is ready again after %s", took.Round(time.Millisecond))
	s.checkAcknowledged(ctx)
	return nil
}

// wasDown says whether the server was down at some time of a span.
func (s *soak) wasDown(from, to time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.down {
		if from <= d.to || d.to == 0 {
			if to >= d.from {
				return true
			}
		}
	}
	return false
}

// up is for how long of a span the server ran, and was not starved.
func (s *soak) up(from, to time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum := to - from - s.host.starvedFor(from, to)
	for _, d := range s.down {
		end := d.to
		if end == 0 {
			end = to
		}
		sum -= max(0, min(end, to)-max(d.from, from))
	}
	return sum
}

// ours is the time that the soak's processes have had.
func (s *soak) ours() time.Duration {
	var self unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &self)
	sum := time.Duration(self.Utime.Nano() + self.Stime.Nano())
	return sum + s.process().Usage().CPU + s.rack.Usage().CPU + rehearse.UsageOf(s.strangers).CPU
}

// excused says why a failure says nothing of the server; empty: nothing does.
func (s *soak) excused(f failure) string {
	switch {
	case f.from < 0:
		return ""
	case s.wasDown(f.from, f.to):
		return "the server was down"
	case s.host.starvedFor(f.from, f.to) > (f.to-f.from)/3:
		return "others had the processors"
	}
	return ""
}

// settle waits until every machine is ready and the store takes writes, for as long as machines may need.
func (s *soak) settle(ctx context.Context) {
	limit := s.time() + 3*time.Minute + s.Duration/10
	for s.time() < limit && ctx.Err() == nil {
		if s.machines.allReady() && s.operator.writes() {
			return
		}
		pause(ctx, 500*time.Millisecond)
	}
}
