package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// load is the client's side: load tftp NAME BLOCK WINDOW PARALLEL EACH, load http URLPATH CONNECTIONS SECONDS, or load
// scripts RATE SECONDS. It prints one line of numbers.
func load(args []string) error {
	number := func(i int) int {
		v, _ := strconv.Atoi(args[i])
		return v
	}
	switch {
	case len(args) == 6 && args[0] == "tftp":
		rate, failed, slowest := tftpLoad(netip.MustParseAddr(serverAddress), 69, args[1], number(2), number(3), number(4), number(5))
		fmt.Printf("%f %d %f\n", rate, failed, slowest.Seconds())
		return nil
	case len(args) == 4 && args[0] == "http":
		rate, err := httpLoad(serverAddress+":80", args[1], number(2), time.Duration(number(3))*time.Second)
		fmt.Printf("%f\n", rate)
		return err
	case len(args) == 3 && args[0] == "scripts":
		rate, p99, slowest, err := scriptLoad(serverAddress+":7080", number(1), number(2))
		fmt.Printf("%f %f %f\n", rate, p99.Seconds(), slowest.Seconds())
		return err
	}
	return errors.New("load: wrong arguments")
}

func (b *bench) load(ctx context.Context, args ...string) ([]float64, error) {
	cmd := inside(ctx, b.client, append([]string{b.self, "load"}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	var values []float64
	for _, field := range strings.Fields(string(out)) {
		v, _ := strconv.ParseFloat(field, 64)
		values = append(values, v)
	}
	if err == nil && len(values) == 0 {
		err = errors.New("the load printed nothing")
	}
	return values, err
}

func (b *bench) tftp(ctx context.Context) error {
	if err := errors.Join(b.file("large", 32<<20), b.file("small", 1<<20)); err != nil {
		return err
	}
	atLeast := func(factor float64) func(a, p float64) bool {
		return func(a, p float64) bool { return a >= factor*p }
	}
	files := filepath.Join(b.dir, "files")
	for _, server := range []string{"Coldrack", "dnsmasq"} {
		args := []string{b.self, "serve", "tftp", files}
		if server == "dnsmasq" {
			args = []string{"dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--enable-tftp", "--tftp-root=" + files, "--tftp-max=1000",
				"--user=root", "--pid-file", "--listen-address=" + serverAddress}
		}
		stop, err := b.run(ctx, server, args...)
		if err != nil {
			return err
		}
		err = b.await(ctx, server, "-u", "69")
		into := func(r *row, v float64) {
			if server == "Coldrack" {
				r.ours = append(r.ours, v)
			} else {
				r.peer = append(r.peer, v)
			}
		}
		for _, shape := range []struct {
			what          string
			block, window string
			factor        float64
			target        string
		}{
			{"TFTP, one transfer, blocks of 512", "512", "1", 1, "at least the peer's"},
			{"TFTP, one transfer, blocks of 1468", "1468", "1", 1, "at least the peer's"},
			{"TFTP, one transfer, blocks of 1468, window 4 (UEFI)", "1468", "4", 1.5, "clearly ahead"},
			{"TFTP, one transfer, blocks of 1468, window 16", "1468", "16", 1.5, "clearly ahead"},
		} {
			if err != nil {
				break
			}
			var got []float64
			if got, err = b.load(ctx, "tftp", "large", shape.block, shape.window, "1", "2"); err == nil {
				into(b.row(shape.what, "MB/s", "dnsmasq", shape.target, atLeast(shape.factor)), got[0]/1e6)
			}
		}
		if err == nil {
			var got []float64
			if got, err = b.load(ctx, "tftp", "small", "1468", "1", "500", "1"); err == nil && len(got) == 3 {
				into(b.row("TFTP, 500 transfers at once, all together", "MB/s", "dnsmasq --tftp-max=1000", "", nil), got[0]/1e6)
				into(b.row("TFTP, 500 transfers at once, failures", "", "dnsmasq --tftp-max=1000", "none", func(a, _ float64) bool { return a == 0 }), got[1])
			}
		}
		stop()
		if err != nil {
			return fmt.Errorf("%s: %w", server, err)
		}
	}
	return nil
}

const nginxConfig = `worker_processes auto; daemon off; pid %[1]s/nginx.pid; error_log %[1]s/nginx.err; user root;
events { worker_connections 1024; }
http { access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000; client_body_temp_path %[1]s/nginx.body;
 proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
 server { listen 80; root %[1]s/files; } }
`

func (b *bench) http(ctx context.Context) error {
	if err := b.file("image", 256<<20); err != nil {
		return err
	}
	config := filepath.Join(b.dir, "nginx.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, nginxConfig, b.dir), 0o644); err != nil {
		return err
	}
	for _, server := range []string{"Coldrack", "nginx"} {
		args := []string{b.self, "serve", "http", filepath.Join(b.dir, "files")}
		if server == "nginx" {
			args = []string{"nginx", "-c", config}
		}
		stop, err := b.run(ctx, server+"-http", args...)
		if err != nil {
			return err
		}
		err = b.await(ctx, server+"-http", "-t", "80")
		for _, connections := range []string{"1", "64"} {
			var got []float64
			if err == nil {
				got, err = b.load(ctx, "http", "/image", connections, "4")
			}
			if err == nil {
				r := b.row("HTTP, 256 MiB file, connections: "+connections, "GB/s", "nginx", "at least 0.9 of the peer's", func(a, p float64) bool { return a >= 0.9*p })
				if server == "Coldrack" {
					r.ours = append(r.ours, got[0]/1e9)
				} else {
					r.peer = append(r.peer, got[0]/1e9)
				}
			}
		}
		stop()
		if err != nil {
			return fmt.Errorf("%s: %w", server, err)
		}
	}
	return nil
}

// httpLoad gets a file again and again over a number of connections and drops what comes without copying it.
func httpLoad(address, path string, connections int, last time.Duration) (float64, error) {
	var total atomic.Int64
	var all sync.WaitGroup
	var failed error
	var once sync.Once
	began := time.Now()
	until := began.Add(last)
	for range connections {
		all.Go(func() {
			for time.Now().Before(until) {
				err := httpDrop(address, path, until, &total)
				if errors.Is(err, io.ErrUnexpectedEOF) {
					// Counts against the server by the time that it takes to connect again.
					fmt.Fprintln(os.Stderr, "  the server closed a connection in the middle of a file")
					continue
				}
				if err != nil {
					once.Do(func() { failed = err })
				}
				return
			}
		})
	}
	all.Wait()
	return float64(total.Load()) / time.Since(began).Seconds(), failed
}

func httpDrop(address, path string, until time.Time, total *atomic.Int64) error {
	conn, err := net.Dial("tcp4", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	header := make([]byte, 4096)
	for time.Now().Before(until) {
		if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: bench\r\n\r\n", path); err != nil {
			return err
		}
		n, at := 0, -1
		for at < 0 {
			m, err := conn.Read(header[n:])
			if err != nil {
				return err
			}
			n += m
			at = bytes.Index(header[:n], []byte("\r\n\r\n"))
		}
		match := lengthField.FindSubmatch(header[:at+2])
		if match == nil || !bytes.Contains(header[:20], []byte(" 200 ")) {
			return fmt.Errorf("answer %q", header[:at])
		}
		length, _ := strconv.ParseInt(string(match[1]), 10, 64)
		left := length - int64(n-at-4)
		total.Add(int64(n - at - 4))
		for left > 0 {
			var got int
			var failed error
			err := raw.Read(func(fd uintptr) bool {
				r, _, errno := unix.Syscall6(unix.SYS_RECVFROM, fd, 0, uintptr(min(left, 4<<20)), unix.MSG_TRUNC|unix.MSG_DONTWAIT, 0, 0)
				if errno == unix.EAGAIN {
					return false
				}
				if got = int(r); errno != 0 {
					got, failed = 0, errno
				}
				return true
			})
			if err = errors.Join(err, failed); err != nil {
				return err
			}
			if got == 0 {
				return io.ErrUnexpectedEOF
			}
			left -= int64(got)
			total.Add(int64(got))
			if time.Now().After(until) {
				return nil
			}
		}
	}
	return nil
}

var lengthField = regexp.MustCompile(`(?i)\r\ncontent-length: *(\d+)\r\n`)

const keaConfig = `{"Dhcp4": {"interfaces-config": {"interfaces": ["s0"]},
 "lease-database": {"type": "memfile", "persist": true, "name": "%[1]s/kea-leases4.csv", "lfc-interval": 0},
 "multi-threading": {"enable-multi-threading": true, "thread-pool-size": %[2]d, "packet-queue-size": 64},
 "valid-lifetime": 3600, "subnet4": [{"id": 1, "subnet": "10.98.0.0/15", "pools": [{"pool": "10.98.1.0-10.99.255.250"}]}],
 "loggers": [{"name": "kea-dhcp4", "severity": "ERROR", "output_options": [{"output": "stderr"}]}]}}
`

func (b *bench) dhcp(ctx context.Context) error {
	for _, server := range []string{"Coldrack", "Kea"} {
		rate, err := b.exchanges(ctx, server)
		if err != nil {
			return fmt.Errorf("%s: %w", server, err)
		}
		r := b.row("DHCP, four-way exchanges of strangers below 0.1 % drops, leases persisted", "/s", "Kea, memfile", "twice the peer's", func(a, p float64) bool { return a >= 2*p })
		if server == "Coldrack" {
			r.ours = append(r.ours, rate)
		} else {
			r.peer = append(r.peer, rate)
		}
		// perfdhcp takes more of a processor for an exchange than either server, so the rates above are nearly its own. What a
		// server takes says more.
		run, err := b.perfdhcp(ctx, server, 6000)
		if err != nil {
			return fmt.Errorf("%s: %w", server, err)
		}
		for _, part := range []struct {
			what string
			took time.Duration
		}{{"DHCP, processor time of the server for an exchange, at 6,000/s", run.server}, {"... and of perfdhcp, which asks", run.load}} {
			r := b.row(part.what, "µs", "Kea, memfile", "", nil)
			each := part.took.Seconds() * 1e6 / (6000 * perfSeconds)
			if server == "Coldrack" {
				r.ours = append(r.ours, each)
			} else {
				r.peer = append(r.peer, each)
			}
		}
	}
	return nil
}

// exchanges finds the highest rate of completed exchanges at which fewer than 0.1 % are dropped.
func (b *bench) exchanges(ctx context.Context, server string) (best float64, err error) {
	for low, high, try := 0.0, 0.0, 4000.0; ; {
		run, err := b.perfdhcp(ctx, server, try)
		if err != nil {
			return 0, err
		}
		got, drops := run.rate, run.drops
		fmt.Fprintf(os.Stderr, "  %s: asked %.0f/s, got %.0f/s, drops %.3f %%\n", server, try, got, drops)
		if drops < 0.1 {
			low, best = try, max(best, got)
		} else {
			high = try
		}
		switch {
		case high == 0 && try < 100000 && got > 0.8*try:
			try *= 1.6
		case high == 0:
			return best, nil // the load cannot ask faster
		case high/max(low, 1) < 1.1 || high < 500:
			return best, nil
		default:
			try = (max(low, high/4) + high) / 2
		}
	}
}

var (
	perfRate  = regexp.MustCompile(`Rate: ([0-9.e+]+) 4-way exchanges/second`)
	perfDrops = regexp.MustCompile(`drops ratio: ([0-9.e+-]+|nan|-nan) %`)
)

// perfRun is what came of asking for some seconds.
type perfRun struct {
	rate, drops  float64       // completed exchanges a second; lost ones in percent
	server, load time.Duration // processor time
}

const perfSeconds = 4

func (b *bench) perfdhcp(ctx context.Context, server string, rate float64) (run perfRun, err error) {
	leases, err := os.MkdirTemp(b.dir, "leases")
	if err != nil {
		return run, err
	}
	args, comm := []string{b.self, "serve", "dhcp", leases}, filepath.Base(b.self)
	if server == "Kea" {
		config := filepath.Join(leases, "kea.conf")
		if err := os.WriteFile(config, fmt.Appendf(nil, keaConfig, leases, runtime.NumCPU()), 0o644); err != nil {
			return run, err
		}
		args = []string{"env", "KEA_PIDFILE_DIR=" + leases, "KEA_LOCKFILE_DIR=" + leases, "kea-dhcp4", "-c", config}
		comm = "kea-dhcp4"
	}
	stop, err := b.run(ctx, server+"-dhcp", args...)
	if err != nil {
		return run, err
	}
	defer stop()
	if err := b.await(ctx, server+"-dhcp", "-u", "67"); err != nil {
		return run, err
	}
	time.Sleep(300 * time.Millisecond)
	before, err := b.processorTime(comm)
	if err != nil {
		return run, err
	}
	// Exit status 3 says that exchanges were dropped.
	perf := inside(ctx, b.client, "perfdhcp", "-4", "-r", fmt.Sprintf("%.0f", rate), "-R", "100000", "-p", strconv.Itoa(perfSeconds), "-W", "1000000", "-l", "c0", serverAddress)
	out, err := perf.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 3) {
		return run, fmt.Errorf("perfdhcp: %w: %s", err, out)
	}
	match := perfRate.FindSubmatch(out)
	if match == nil {
		return run, fmt.Errorf("perfdhcp printed no rate: %s", out)
	}
	after, err := b.processorTime(comm)
	if err != nil {
		return run, err
	}
	run.server, run.load = after-before, perf.ProcessState.UserTime()+perf.ProcessState.SystemTime()
	run.rate, _ = strconv.ParseFloat(string(match[1]), 64)
	// It counts the second in which it waits for the last answers.
	run.rate *= (perfSeconds + 1.0) / perfSeconds
	for _, m := range perfDrops.FindAllSubmatch(out, -1) {
		v, err := strconv.ParseFloat(string(m[1]), 64)
		if err == nil {
			run.drops = max(run.drops, v)
		}
	}
	return run, nil
}

const inventory = 10000

var wrkRate = regexp.MustCompile(`Requests/sec:\s+([0-9.]+)`)

func (b *bench) scripts(ctx context.Context) error {
	var text strings.Builder
	text.WriteString("apiVersion: coldrack.dev/v1alpha1\nkind: Subnet\nmetadata: {name: bench}\nspec: {cidr: 10.98.0.0/15, dhcp: server, discovery: 10.98.1.0-10.98.200.0}\n")
	for i := range inventory {
		fmt.Fprintf(&text, "---\napiVersion: coldrack.dev/v1alpha1\nkind: Machine\nmetadata: {name: m%05d}\nspec: {identifiers: {macs: ['02:00:00:00:%02x:%02x'], serial: BENCH%05d}}\n", i, i>>8, i&255, i)
	}
	manifest, data := filepath.Join(b.dir, "inventory.yaml"), filepath.Join(b.dir, "data")
	script := filepath.Join(b.dir, "scripts.lua")
	lua := fmt.Sprintf("math.randomseed(1)\nrequest = function() local n = math.random(0, %d)\n return wrk.format('GET', string.format('/boot/ipxe?mac=02-00-00-00-%%02x-%%02x&serial=BENCH%%05d&arch=x86_64&platform=efi', math.floor(n/256), n%%256, n)) end\n", inventory-1)
	if err := errors.Join(os.WriteFile(manifest, []byte(text.String()), 0o644), os.WriteFile(script, []byte(lua), 0o644)); err != nil {
		return err
	}
	// People's API stays inside the namespace too: whoever asks is there.
	stop, err := b.run(ctx, "coldrack", b.coldrack, "serve", "--config", "/dev/null", "--data-dir", data, "--manifests", manifest, "--interfaces", "s0", "--log-level", "warn")
	if err != nil {
		return err
	}
	defer stop()
	kubeconfig := filepath.Join(data, "admin.kubeconfig")
	for try := 0; ; try++ {
		if _, err := os.Stat(kubeconfig); err == nil {
			break
		}
		if try == 1200 {
			text, _ := os.ReadFile(filepath.Join(b.dir, "coldrack.log"))
			return fmt.Errorf("the server is not ready after two minutes: %s", text)
		}
		time.Sleep(100 * time.Millisecond)
	}
	out, err := inside(ctx, b.client, "wrk", "-t", "1", "-c", "32", "-d", "8s", "-s", script, "http://"+serverAddress+":7080/").CombinedOutput()
	match := wrkRate.FindSubmatch(out)
	if err != nil || match == nil || bytes.Contains(out, []byte("Non-2xx")) {
		return fmt.Errorf("wrk: %w: %s", err, out)
	}
	rate, _ := strconv.ParseFloat(string(match[1]), 64)
	r := b.row("boot scripts with 10,000 machines in the inventory, as fast as 32 connections can ask", "/s", "", "5,000", func(a, _ float64) bool { return a >= 5000 })
	r.ours = append(r.ours, rate)
	got, err := b.load(ctx, "scripts", "5000", "8")
	if err != nil || len(got) != 3 {
		return fmt.Errorf("load scripts: %w: %v", err, got)
	}
	r = b.row("... asked for 5,000 times a second: answers", "/s", "", "5,000", func(a, _ float64) bool { return a >= 4990 })
	r.ours = append(r.ours, got[0])
	r = b.row("... from when each was due to its answer, p99", "ms", "", "below 10", func(a, _ float64) bool { return a < 10 })
	r.ours = append(r.ours, got[1]*1000)
	r = b.row("... the slowest", "ms", "", "", nil)
	r.ours = append(r.ours, got[2]*1000)
	began := time.Now()
	if out, err := inside(ctx, b.server, b.coldrack, "--kubeconfig", kubeconfig, "machines").CombinedOutput(); err != nil {
		return fmt.Errorf("coldrack machines: %w: %.300s", err, out)
	}
	r = b.row("`coldrack machines` with 10,000 machines", "s", "", "below 1", func(a, _ float64) bool { return a < 1 })
	r.ours = append(r.ours, time.Since(began).Seconds())
	if memory, err := b.memory("coldrack"); err == nil {
		r = b.row("server's memory with 10,000 machines, after this", "MiB", "", "below 1024", func(a, _ float64) bool { return a < 1024 })
		r.ours = append(r.ours, memory)
	}
	return nil
}

// processorTime is what the server of that name in the namespace has taken so far.
func (b *bench) processorTime(name string) (time.Duration, error) {
	pid, err := b.process(name)
	if err != nil {
		return 0, err
	}
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	var ticks int64 // utime and stime, of which Linux shows 100 a second
	for _, field := range fields[11:13] {
		n, _ := strconv.ParseInt(field, 10, 64)
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100), nil
}

// process finds a program that runs in the server's namespace.
func (b *bench) process(name string) (pid string, err error) {
	out, err := exec.Command("ip", "netns", "pids", b.server).Output()
	if err != nil {
		return "", err
	}
	for _, pid := range strings.Fields(string(out)) {
		if comm, _ := os.ReadFile("/proc/" + pid + "/comm"); strings.TrimSpace(string(comm)) == name {
			return pid, nil
		}
	}
	return "", fmt.Errorf("no %s runs", name)
}

// memory is what the server that runs in the namespace has resident, MiB.
func (b *bench) memory(name string) (float64, error) {
	pid, err := b.process(name)
	if err != nil {
		return 0, err
	}
	status, _ := os.ReadFile("/proc/" + pid + "/status")
	m := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(status)
	if m == nil {
		return 0, errors.New("no such process")
	}
	kib, _ := strconv.ParseFloat(string(m[1]), 64)
	return kib / 1024, nil
}

// rehearsal is what is read of a rehearsal's result.
type rehearsal struct {
	Ready, Lost, Refused, Waiting int
	FinishedAt                    time.Duration
	Timings                       map[string]struct{ P99 time.Duration }
	Server                        struct {
		PeakMemoryBytes float64
		HoldCPU         float64
	}
}

func (b *bench) rehearse(ctx context.Context, args ...string) (got rehearsal, err error) {
	cmd := exec.CommandContext(ctx, b.coldrack, append([]string{"rehearse", "--timeout", "5m", "-o", "json"}, args...)...)
	cmd.Stderr = os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	out, err := cmd.Output()
	if err != nil {
		return got, err
	}
	return got, json.Unmarshal(out, &got)
}

func (b *bench) storm(ctx context.Context) error {
	got, err := b.rehearse(ctx, "--machines", "1000", "--ramp", "10s", "--hold", "10s")
	if err != nil {
		return err
	}
	const what = "storm of 1,000 machines within 10 s: "
	add := func(name, unit, target string, value float64, met func(a, _ float64) bool) {
		r := b.row(what+name, unit, "", target, met)
		r.ours = append(r.ours, value)
	}
	add("lost", "", "none", float64(got.Lost+got.Refused), func(a, _ float64) bool { return a == 0 })
	add("not ready in the end", "", "none", float64(got.Lost+got.Refused+got.Waiting), func(a, _ float64) bool { return a == 0 })
	add("last one ready after", "s", "", got.FinishedAt.Seconds(), nil)
	add("boot decision, p99", "ms", "below 50", got.Timings["boot decision"].P99.Seconds()*1000, func(a, _ float64) bool { return a < 50 })
	add("server's memory at most", "MiB", "below 500", got.Server.PeakMemoryBytes/(1<<20), func(a, _ float64) bool { return a < 500 })
	if got, err = b.rehearse(ctx, "--machines", "334", "--heartbeat-interval", "1s", "--hold", "40s"); err != nil {
		return err
	}
	r := b.row("334 nodes report every second, as many times as 10,000 do every 30 s: the server takes", "cores", "", "below 0.5", func(a, _ float64) bool { return a < 0.5 })
	r.ours = append(r.ours, got.Server.HoldCPU)
	return nil
}
