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

// BootAddresses are the IPv4 addresses of the Ethernet interfaces with those names, or of all that are up.
func BootAddresses(wanted []string) ([]string, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var found []string
	for _, i := range all {
		if i.Flags&net.FlagLoopback != 0 || i.Flags&net.FlagUp == 0 || len(i.HardwareAddr) != 6 || len(wanted) > 0 && !slices.Contains(wanted, i.Name) {
			continue
		}
		for _, a := range ipv4Of(i) {
			address, _, _ := strings.Cut(a, "/")
			found = append(found, address)
		}
	}
	return found, nil
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
