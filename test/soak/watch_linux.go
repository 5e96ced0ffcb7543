package soak

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
)

// What docs/security.md says that the server takes, and what follows from it for a soak.
const (
	// maxRecorded strangers: 10,000, and some that enrol before room is made.
	maxRecorded = 11_000
	// baseMemory and machineMemory bound resident memory, bytes: for the program and its caches, and for each machine, known or not.
	// connectionMemory is for each connection that the limit of open files allows.
	baseMemory, machineMemory, connectionMemory = 512 << 20, 96 << 10, 64 << 10
	// storeFolder is what the store's folder takes beside twice its quota, bytes: its log, and a copy while it is defragmented.
	storeFolder = 640 << 20
	// otherFolders: audit log, leases, keys.
	otherFolders = 1 << 30
	// logMinute is what one minute may add to the log, bytes.
	logMinute = 8 << 20
)

// breach is a bound that did not hold.
type breach struct{ bound, what string }

// figures are what was seen at most.
type figures struct {
	memory, disk, log, logMinute      int64
	files, strangers, checks          int
	bootConns, machineConns, unproven int
	reserveGone                       bool
	// Boots that came to nothing because the server was down, or had no processor.
	duringDown, duringStarvation int
}

type watched struct {
	mu       sync.Mutex
	breaches []breach
	figures  figures
}

func (w *watched) breach(bound, what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.breaches = append(w.breaches, breach{bound, what})
	if len(w.breaches) <= 50 {
		fmt.Fprintf(os.Stderr, "BROKEN: %s: %s\n", bound, what)
	}
}

func (w *watched) saw(change func(*figures)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(&w.figures)
}

func (s *soak) memoryBound() int64 {
	return baseMemory + machineMemory*int64(s.Machines+maxRecorded) + connectionMemory*int64(s.Files*5/8)
}

func (s *soak) diskBound() int64 { return int64(s.StoreMiB)<<21 + storeFolder + otherFolders }

// watch measures until ctx ends.
func (s *soak) watch(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var logs []int64 // sizes, one a second
	for second := 0; ; second++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s.watchServer(ctx)
		s.host.observe(sample{s.time(), busyTime(), s.ours()}, runtime.NumCPU())
		info, err := os.Stat(s.LogFile)
		if err == nil {
			logs = append(logs, info.Size())
			minute := info.Size() - logs[max(0, len(logs)-61)]
			s.watched.saw(func(f *figures) { f.log, f.logMinute = info.Size(), max(f.logMinute, minute) })
		}
		if second%5 == 0 {
			s.watchInside(ctx)
		}
		for _, f := range s.machines.takeFailures(s.up) {
			switch s.excused(f) {
			case "the server was down":
				s.watched.saw(func(f *figures) { f.duringDown++ })
				continue
			case "others had the processors":
				s.watched.saw(func(f *figures) { f.duringStarvation++ })
				continue
			}
			s.watched.breach("no known machine is refused, lost or given another address", fmt.Sprintf("at %s: %s", f.to.Round(time.Second), f.text))
		}
		if second%15 == 14 {
			s.progress()
		}
	}
}

// watchServer looks at the process from outside, and starts one again that has ended by itself.
func (s *soak) watchServer(ctx context.Context) {
	s.mu.Lock()
	server, expected := s.server, s.expected
	s.mu.Unlock()
	select {
	case <-server.Ended():
		if expected || ctx.Err() != nil {
			return
		}
		s.watched.breach("the server goes on", fmt.Sprintf("it ended by itself: %v; see its log", server.Err()))
		s.mu.Lock()
		s.expected = true
		s.down = append(s.down, span{from: s.time()})
		s.mu.Unlock()
		if err := s.restart(ctx); err != nil {
			s.watched.breach("the server goes on", err.Error())
		}
		return
	default:
	}
	usage := server.Usage()
	entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", server.PID()))
	s.watched.saw(func(f *figures) { f.memory, f.files = max(f.memory, usage.Memory), max(f.files, len(entries)) })
	if usage.Memory > s.memoryBound() {
		s.watched.breach("resident memory", fmt.Sprintf("%d MiB at %s, the bound is %d", usage.Memory>>20, s.time().Round(time.Second), s.memoryBound()>>20))
	}
	if len(entries) > s.Files*7/8 {
		s.watched.breach("open descriptors", fmt.Sprintf("%d of %d", len(entries), s.Files))
	}
}

// watchInside asks the server, and looks at its folder.
func (s *soak) watchInside(ctx context.Context) {
	disk := used(s.dataDir())
	s.watched.saw(func(f *figures) { f.disk = max(f.disk, disk) })
	if disk > s.diskBound() {
		s.watched.breach("the data folder", fmt.Sprintf("%d MiB, the bound is %d", disk>>20, s.diskBound()>>20))
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	m := s.operator.metrics(ctx)
	if m == nil {
		return
	}
	s.watched.saw(func(f *figures) {
		f.bootConns = max(f.bootConns, int(m["coldrack_boot_http_connections"]))
		f.machineConns = max(f.machineConns, int(m["coldrack_machine_api_connections"]))
		f.unproven = max(f.unproven, int(m["coldrack_machine_api_unproven_connections"]))
		f.strangers = max(f.strangers, int(m["coldrack_machines"])-s.Machines-len(s.acknowledged().recorded))
		f.reserveGone = f.reserveGone || m["coldrack_disk_reserve_bytes"] == 0
	})
}

func (s *soak) progress() {
	s.mu.Lock()
	c := s.counts
	s.mu.Unlock()
	s.watched.mu.Lock()
	f, breaches := s.watched.figures, len(s.watched.breaches)
	s.watched.mu.Unlock()
	m := s.machines.state()
	s.Log("%s: %d of %d machines installed, %d ready, %d boots, %d heartbeats; server %d MiB, %d files, folder %d MiB, log %d KiB; strangers: %d enrolled, %d forged, %d inventories, %d TFTP, %d silent connections, %d junk; %d bounds broken",
		s.time().Round(time.Second), m.installed, m.all, m.ready, m.boots, m.heartbeats, s.process().Usage().Memory>>20, f.files, f.disk>>20, f.log>>10,
		c["strangersEnrolled"], c["enrolmentsForged"]+c["bootsForged"], c["inventories"], c["tftpForged"]+c["tftpSilent"], c["connectionsHeld"], c["junk"], breaches)
}

// row of the report: what was done, what must hold, what was seen.
type row struct {
	attack, bound, seen string
	broken              bool
}

// report is the outcome of a soak.
type report struct {
	rows     []row
	breaches []breach
}

func (r *report) broken() bool {
	for _, row := range r.rows {
		if row.broken {
			return true
		}
	}
	return len(r.breaches) > 0
}

// String is the table, and what did not hold.
func (r *report) String() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\tATTACK\tBOUND\tSEEN")
	for _, row := range r.rows {
		state := "ok"
		if row.broken {
			state = "BROKEN"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", state, row.attack, row.bound, row.seen)
	}
	w.Flush()
	counted := map[string]int{}
	for _, breach := range r.breaches {
		if counted[breach.bound]++; counted[breach.bound] <= 10 {
			fmt.Fprintf(&b, "BROKEN: %s: %s\n", breach.bound, breach.what)
		}
	}
	for bound, n := range counted {
		if n > 10 {
			fmt.Fprintf(&b, "BROKEN: %s: %d times in all\n", bound, n)
		}
	}
	return b.String()
}

// sumUp compares what was seen with the bounds.
func (s *soak) sumUp() *report {
	s.mu.Lock()
	c, did, slowest := s.counts, s.did, s.slowest
	s.mu.Unlock()
	s.watched.mu.Lock()
	f, breaches := s.watched.figures, s.watched.breaches
	s.watched.mu.Unlock()
	broken := func(bound string) bool {
		for _, b := range breaches {
			if b.bound == bound {
				return true
			}
		}
		return false
	}
	m, acked := s.machines.state(), s.acknowledged()
	r := &report{breaches: breaches}
	add := func(attack, bound string, broken bool, seen string, args ...any) {
		r.rows = append(r.rows, row{attack, bound, fmt.Sprintf(seen, args...), broken})
	}
	var idle []string
	for _, attack := range []string{"enrolmentsForged", "bootsForged", "strangersEnrolled", "inventoriesTaken", "tftpForged", "tftpAnswers", "tftpSilent", "informs", "informAnswers", "informsForeign",
		"dhcpForged", "dhcpMadeUp", "connections", "junk"} {
		if c[attack] == 0 {
			idle = append(idle, attack)
		}
	}
	add("", "every attack took place", len(idle) > 0, "without effect: %s", cmp.Or(strings.Join(idle, ", "), "none"))
	add("everything at once", "no known machine is refused, lost or given another address", broken("no known machine is refused, lost or given another address"),
		"%d machines, %d boots after the install, %d heartbeats; %d boots were repeated because the server was down, %d because others had this host's processors (%s in all)",
		m.all, m.boots, m.heartbeats, f.duringDown, f.duringStarvation, s.host.starvedFor(0, s.time()).Round(time.Second))
	add("", "every known machine is ready in the end", m.ready < m.all, "%d of %d ready %s", m.ready, m.all, strings.Join(s.machines.unfinished(), "; "))
	add("enrolments that list an installed machine's MACs, UUID and serial", "no session in its name", c["sessionsTaken"] > 0, "%d enrolments, %d sessions in its name", c["enrolmentsForged"], c["sessionsTaken"])
	add("boot requests with an installed machine's MACs", "no nonce", c["noncesTaken"] > 0, "%d requests, %d nonces", c["bootsForged"], c["noncesTaken"])
	add("DECLINE, RELEASE, REQUEST for its address; DISCOVER of made-up MACs", "it keeps its address", broken("a known machine keeps its address"), "%d and %d messages", c["dhcpForged"], c["dhcpMadeUp"])
	add("machines that nobody knows", fmt.Sprintf("%d recorded", maxRecorded), f.strangers > maxRecorded, "%d enrolled, at most %d recorded", c["strangersEnrolled"], f.strangers)
	add("inventories as large as they may be", "those of strangers take 1 MiB a second of the store", false, "%d of %d (%d MiB) were taken", c["inventoriesTaken"], c["inventories"], c["inventoryBytes"]>>20)
	add("TFTP requests from forged senders", "one packet each", c["tftpAnswers"] > c["tftpForged"], "%d requests (%d KiB), %d packets (%d KiB)", c["tftpForged"], c["tftpForgedBytes"]>>10, c["tftpAnswers"], c["tftpAnswerBytes"]>>10)
	add("TFTP requests that are never acknowledged", "known machines load their first stage", false, "%d requests", c["tftpSilent"])
	add("DHCPINFORM for others in the subnet", "one packet each", c["informAnswers"] > c["informs"], "%d messages, %d answers", c["informs"], c["informAnswers"])
	add("DHCPINFORM for addresses outside", "no answer", c["informForeignAnswers"] > 0, "%d messages, %d answers", c["informsForeign"], c["informForeignAnswers"])
	add("silent connections", fmt.Sprintf("%d to boot HTTP, %d to the machine API, %d of them unproven", s.Files/8, s.Files/2, s.Files/4),
		f.bootConns > min(s.Files/8, 4096) || f.machineConns > s.Files/2 || f.unproven > s.Files/4,
		"%d opened, %d closed by the server; at most %d, %d, %d", c["connections"], c["connectionsClosed"], f.bootConns, f.machineConns, f.unproven)
	add("junk", fmt.Sprintf("the log grows by %d MiB a minute", logMinute>>20), f.logMinute > logMinute, "%d requests and datagrams; %d KiB in the worst minute, %d KiB in all", c["junk"], f.logMinute>>10, f.log>>10)
	add("everything at once", fmt.Sprintf("resident memory %d MiB", s.memoryBound()>>20), broken("resident memory"), "%d MiB", f.memory>>20)
	add("", fmt.Sprintf("%d of %d descriptors", s.Files*7/8, s.Files), broken("open descriptors"), "%d", f.files)
	add("", fmt.Sprintf("the data folder %d MiB", s.diskBound()>>20), broken("the data folder"), "%d MiB", f.disk>>20)
	add("the disk is filled", "the server goes on", broken("the server goes on"), "%d times; the reserve was given up: %v", did["disk filled"], f.reserveGone)
	add(fmt.Sprintf("the store of %d MiB is filled", s.StoreMiB), "it takes writes again when it was emptied", !s.operator.writes() || did["store full"] == 0, "%d times, of which it was full %d times", did["store filled"], did["store full"])
	add("the server is killed", "it starts, and what was acknowledged is there", broken("what was acknowledged is there") || broken("the server starts again"),
		"%d times, ready again after %s at most; %d writes, %d records and %d installs compared", did["server killed"], slowest.Round(time.Millisecond), acked.number, len(acked.recorded), m.installed)
	add(fmt.Sprintf("the clock jumps by %s", jump), "no known machine is refused, lost or given another address", false, "%d times forward and back, %d times back and forward",
		did["clock jumped forward, and back"], did["clock jumped back, and forward"])
	return r
}
