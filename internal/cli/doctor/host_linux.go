package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// server is the coldrack server that holds a data folder.
type server struct {
	dataDir string
	pid     int // 0: none runs
}

// runningServer finds the process that holds the lock of a data folder.
func runningServer(dataDir string) server {
	s := server{dataDir: dataDir}
	file, err := os.Open(filepath.Join(dataDir, "lock"))
	if err != nil {
		return s
	}
	defer file.Close()
	if err := unix.Flock(int(file.Fd()), unix.LOCK_SH|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		return s // closing the file gives a lock that was had back
	}
	text, err := os.ReadFile(file.Name())
	if err == nil {
		s.pid, _ = strconv.Atoi(strings.TrimSpace(string(text)))
	}
	return s
}

func (s server) result() Result {
	if s.pid == 0 {
		return ok("server", "none runs on %s", s.dataDir)
	}
	return ok("server", "process %d runs on %s", s.pid, s.dataDir)
}

// store says whether the running server has its store.
func (s server) store() Result {
	const check = "store"
	why, err := os.ReadFile(filepath.Join(s.dataDir, "store-lost"))
	if s.pid == 0 || err != nil {
		return ok(check, "nothing is known against it")
	}
	return fail(check, "the server runs without it, and answers only machines that are known to be installed: "+strings.TrimSpace(string(why)),
		"the server tries again by itself; see its log, and docs/operations.md, \"Without the store\"")
}

// ports tries to open each port and gives it back at once.
func ports(wanted []Port, running server) []Result {
	var results []Result
	for _, p := range wanted {
		check := "port " + portName(p)
		err := tryPort(p)
		switch {
		case err == nil:
			results = append(results, ok(check, "free, for %s", p.For))
		case errors.Is(err, unix.EADDRINUSE):
			results = append(results, portInUse(check, p, running))
		case errors.Is(err, unix.EACCES):
			results = append(results, fail(check, "may not be opened by this user, for "+p.For,
				"run as root, or give the server CAP_NET_BIND_SERVICE as packaging/coldrack.service does"))
		case errors.Is(err, unix.EADDRNOTAVAIL):
			results = append(results, fail(check, fmt.Sprintf("%s is no address of this machine", p.Address), "set an address that `ip address` shows, or 0.0.0.0"))
		default:
			results = append(results, fail(check, err.Error(), "look at the address"))
		}
	}
	return results
}

func tryPort(p Port) error {
	if strings.HasPrefix(p.Network, "udp") {
		conn, err := net.ListenPacket(p.Network, p.Address)
		if err != nil {
			return err
		}
		return conn.Close()
	}
	listener, err := net.Listen(p.Network, p.Address)
	if err != nil {
		return err
	}
	return listener.Close()
}

func portInUse(check string, p Port, running server) Result {
	pid, name := socketOwner(p)
	switch {
	case pid != 0 && pid == running.pid:
		return ok(check, "in use by the running server, for %s", p.For)
	case pid == 0 && running.pid != 0:
		// Without root the owner of a socket cannot be seen.
		return warn(check, "in use; the server that runs is likely the one, for "+p.For, "run as root to be sure")
	case pid == 0:
		return fail(check, "in use by another program, needed for "+p.For, "run as root to see which one, and stop it, or choose another port")
	}
	return fail(check, fmt.Sprintf("in use by %s (process %d), needed for %s", name, pid, p.For),
		fmt.Sprintf("stop it (if it is a service: systemctl disable --now %s), or choose another port", name))
}

func portName(p Port) string {
	_, port, err := net.SplitHostPort(p.Address)
	if err != nil {
		port = p.Address
	}
	return port + "/" + strings.TrimRight(p.Network, "46")
}

// socketOwner finds the process that has a port open, by way of the kernel's socket tables.
func socketOwner(p Port) (pid int, name string) {
	_, portText, err := net.SplitHostPort(p.Address)
	if err != nil {
		return 0, ""
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		return 0, ""
	}
	base := strings.TrimRight(p.Network, "46")
	inodes := map[string]bool{}
	for _, table := range []string{base, base + "6"} {
		text, err := os.ReadFile("/proc/net/" + table)
		if err == nil {
			addInodes(inodes, string(text), port)
		}
	}
	if len(inodes) == 0 {
		return 0, ""
	}
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil {
			continue
		}
		inode, isSocket := strings.CutPrefix(target, "socket:[")
		if !isSocket || !inodes[strings.TrimSuffix(inode, "]")] {
			continue
		}
		process := strings.Split(link, "/")[2]
		comm, _ := os.ReadFile("/proc/" + process + "/comm")
		pid, _ = strconv.Atoi(process)
		return pid, strings.TrimSpace(string(comm))
	}
	return 0, ""
}

// addInodes collects the sockets of a table in the format of proc_net_tcp(5) that are bound to port and
// not connected.
func addInodes(inodes map[string]bool, table string, port int) {
	for row := range strings.Lines(table) {
		fields := strings.Fields(row)
		if len(fields) < 10 {
			continue
		}
		_, local, _ := strings.Cut(fields[1], ":")
		_, remote, _ := strings.Cut(fields[2], ":")
		bound, err := strconv.ParseInt(local, 16, 32)
		if err == nil && int(bound) == port && remote == "0000" {
			inodes[fields[9]] = true
		}
	}
}

// Capabilities that boot services need, by their bit in capabilities(7).
var neededCapabilities = []struct {
	name string
	bit  uint
	why  string
}{
	{"CAP_NET_BIND_SERVICE", unix.CAP_NET_BIND_SERVICE, "ports 67 and 69"},
	{"CAP_NET_RAW", unix.CAP_NET_RAW, "answers to machines that have no address yet, and conflict probes"},
}

func privileges() Result {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return warn("privileges", err.Error(), "mount /proc")
	}
	var effective uint64
	for row := range strings.Lines(string(text)) {
		if value, found := strings.CutPrefix(row, "CapEff:"); found {
			effective, _ = strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		}
	}
	var missing []string
	for _, c := range neededCapabilities {
		if effective&(1<<c.bit) == 0 {
			missing = append(missing, c.name+" for "+c.why)
		}
	}
	if len(missing) > 0 {
		return fail("privileges", "missing: "+strings.Join(missing, "; "),
			"run as root, or as a service with packaging/coldrack.service, which grants just these")
	}
	return ok("privileges", "user %d has all that boot services need", os.Geteuid())
}

// interfaces lists where machines can be reached.
func interfaces(wanted []string) Result {
	const check = "interfaces"
	all, err := net.Interfaces()
	if err != nil {
		return fail(check, err.Error(), "")
	}
	var found, trouble []string
	seen := map[string]bool{}
	for _, i := range all {
		seen[i.Name] = true
		if i.Flags&net.FlagLoopback != 0 || len(wanted) > 0 && !slices.Contains(wanted, i.Name) {
			continue
		}
		addresses := ipv4Of(i)
		switch {
		case len(addresses) > 0 && i.Flags&net.FlagRunning != 0:
			found = append(found, i.Name+" "+strings.Join(addresses, " "))
		case slices.Contains(wanted, i.Name) && len(addresses) == 0:
			trouble = append(trouble, i.Name+" has no IPv4 address")
		case slices.Contains(wanted, i.Name):
			trouble = append(trouble, i.Name+" has no link")
		}
	}
	for _, name := range wanted {
		if !seen[name] {
			trouble = append(trouble, name+" does not exist")
		}
	}
	switch {
	case len(trouble) > 0:
		return fail(check, strings.Join(trouble, "; "), "mend it, or name others with --interfaces; `ip address` shows all")
	case len(found) == 0:
		return fail(check, "none that is up has an IPv4 address", "give the interface towards the rack a static address")
	}
	return ok(check, "%s", strings.Join(found, "; "))
}

func ipv4Of(i net.Interface) []string {
	addresses, err := i.Addrs()
	if err != nil {
		return nil
	}
	var texts []string
	for _, a := range addresses {
		if prefix, isNet := a.(*net.IPNet); isNet && prefix.IP.To4() != nil {
			texts = append(texts, prefix.String())
		}
	}
	return texts
}

// oldestClock is a time that any running system is past.
var oldestClock = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)

// clock checks the time that every machine will be given.
func clock(now time.Time) Result {
	const check = "clock"
	if now.Before(oldestClock) {
		return fail(check, now.UTC().Format(time.RFC3339)+" cannot be right", "set the clock: every machine takes its time from this server")
	}
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	switch {
	case err != nil:
		return warn(check, now.UTC().Format(time.RFC3339)+"; the kernel does not tell whether it is synchronised", "")
	case state == unix.TIME_ERROR || t.Status&unix.STA_UNSYNC != 0:
		return warn(check, now.UTC().Format(time.RFC3339)+", not synchronised by NTP",
			"run chrony or systemd-timesyncd, even against one local source: every machine takes its time from this server")
	}
	return ok(check, "%s, synchronised by NTP", now.UTC().Format(time.RFC3339))
}

const (
	leastDisk  = 2 << 30
	enoughDisk = 20 << 30
	// etcd asks for a 99th percentile below 10 ms; a spinning disk without a write cache needs about 30.
	slowSync = 50 * time.Millisecond
)

// dataDir checks the disk below the data folder, which need not exist yet.
func dataDir(dir string) []Result {
	const check = "data folder"
	existing := dir
	for {
		info, err := os.Stat(existing)
		if err == nil && info.IsDir() {
			break
		}
		if err == nil {
			return []Result{fail(check, existing+" is not a folder", "choose another one with --data-dir")}
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return []Result{fail(check, err.Error(), "run as the owner of the data folder")}
		}
		existing = filepath.Dir(existing)
	}
	return []Result{space(dir, existing), syncSpeed(existing)}
}

func space(dir, existing string) Result {
	const check = "disk space"
	var fsStat unix.Statfs_t
	if err := unix.Statfs(existing, &fsStat); err != nil {
		return warn(check, err.Error(), "")
	}
	free := fsStat.Bavail * uint64(fsStat.Bsize)
	text := fmt.Sprintf("%.1f GiB free for %s", float64(free)/(1<<30), dir)
	do := "make room, or choose another folder with --data-dir; a bundle needs about 2 GiB, and a full disk stops the store"
	switch {
	case free < leastDisk:
		return fail(check, text, do)
	case free < enoughDisk:
		return warn(check, text, do)
	}
	return ok(check, "%s", text)
}

// syncSpeed measures how long the disk takes to make a small write durable.
func syncSpeed(dir string) Result {
	const check = "disk sync"
	file, err := os.CreateTemp(dir, ".coldrack-doctor-*")
	if err != nil {
		return fail(check, err.Error(), "run as the owner of the data folder")
	}
	defer os.Remove(file.Name())
	defer file.Close()
	const rounds = 20
	times := make([]time.Duration, 0, rounds)
	block := make([]byte, 4096)
	for range rounds {
		start := time.Now()
		if _, err := file.Write(block); err != nil {
			return fail(check, err.Error(), "make room or choose another folder with --data-dir")
		}
		if err := file.Sync(); err != nil {
			return fail(check, err.Error(), "look at the disk: dmesg, smartctl")
		}
		times = append(times, time.Since(start))
	}
	slices.Sort(times)
	median, worst := times[rounds/2], times[rounds-1]
	text := fmt.Sprintf("%s median, %s worst of %d", median.Round(10*time.Microsecond), worst.Round(10*time.Microsecond), rounds)
	if median > slowSync {
		return warn(check, text, "the store waits for each sync: put the data folder on an SSD")
	}
	return ok(check, "%s", text)
}

func kvm(ctx context.Context, probe func(context.Context) (whyNot string, err error)) Result {
	const consequence = "only the lab wants it; without it virtual machines are emulated, about ten times slower"
	whyNot, err := probe(ctx)
	switch {
	case err != nil:
		return warn("kvm", "not tried: "+err.Error(), consequence)
	case whyNot != "":
		return warn("kvm", "not usable: "+whyNot, consequence)
	}
	return ok("kvm", "usable: QEMU ran a virtual machine with it")
}

// hostPrograms are run by parts of coldrack other than the server.
var hostPrograms = []struct{ program, pkg, use string }{
	{"mmdebstrap", "mmdebstrap", "bundle build"},
	{"qemu-system-x86_64", "qemu-system-x86", "lab"},
}

func programs() Result {
	var missing, packages []string
	for _, p := range hostPrograms {
		if _, err := exec.LookPath(p.program); err != nil {
			missing = append(missing, fmt.Sprintf("%s (%s)", p.program, p.use))
			packages = append(packages, p.pkg)
		}
	}
	if len(missing) > 0 {
		return warn("programs", "missing: "+strings.Join(missing, ", ")+"; the server itself needs none", "apt-get install "+strings.Join(packages, " "))
	}
	return ok("programs", "all there that bundle build and lab use")
}
