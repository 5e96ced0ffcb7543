// Command bench measures Coldrack's boot services beside their peers on one machine: each in turn, several rounds, in
// one set-up of network namespaces. It prints tables of medians and writes them into docs/performance.md.
//
// It needs root and the Debian packages that hack/setup.sh installs. `make bench` runs it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func command(ctx context.Context, args []string) error {
	// The processes that bench starts are this program too.
	if len(args) > 0 && args[0] == "serve" {
		return serve(ctx, args[1:])
	}
	if len(args) > 0 && args[0] == "load" {
		return load(args[1:])
	}
	b := &bench{}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.IntVar(&b.rounds, "rounds", 3, "rounds; each measures everything once")
	flags.StringVar(&b.coldrack, "coldrack", "bin/coldrack", "the program")
	flags.StringVar(&b.swarmTest, "swarm-test", "bin/swarm.test", "the measurement of test/swarm")
	only := flags.String("only", "tftp,http,dhcp,scripts,storm,swarm", "what to measure")
	out := flags.String("o", "docs/performance.md", "file with a generated part; empty: print only")
	if err := flags.Parse(args); err != nil {
		return err
	}
	for _, program := range []string{"ip", "dnsmasq", "nginx", "kea-dhcp4", "perfdhcp", "wrk", "udp-sender", "aria2c"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%w: run make setup", err)
		}
	}
	began := time.Now()
	if err := b.open(); err != nil {
		return err
	}
	defer b.close()
	parts := map[string]func(context.Context) error{"tftp": b.tftp, "http": b.http, "dhcp": b.dhcp, "scripts": b.scripts, "storm": b.storm, "swarm": b.swarm}
	for _, name := range strings.Split(*only, ",") {
		if parts[name] == nil {
			return fmt.Errorf("-only: there is no %q", name)
		}
	}
	before := loadAverage()
	for round := range b.rounds {
		for _, name := range []string{"tftp", "http", "dhcp", "scripts", "storm", "swarm"} {
			if !slices.Contains(strings.Split(*only, ","), name) {
				continue
			}
			// What takes long and varies little is measured once.
			if round > 0 && (name == "scripts" || name == "storm" || name == "swarm") {
				continue
			}
			fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", round+1, b.rounds, name)
			if err := parts[name](ctx); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
	}
	text := fmt.Sprintf("%s\nMeasured %s, %d rounds, in %s; load average before: %s.\n\n%s",
		machine(), time.Now().UTC().Format("2006-01-02"), b.rounds, time.Since(began).Round(time.Second), before, b.table())
	fmt.Print(text)
	if *out == "" {
		return nil
	}
	return replacePart(*out, text)
}

// bench is the set-up and what was measured.
type bench struct {
	rounds   int
	coldrack string
	// swarmTest is test/swarm as a program.
	swarmTest string
	dir       string
	self      string
	server    string // names of the namespaces
	client    string
	rows      []*row
}

// row is one line of the table.
type row struct {
	what, unit string
	ours, peer []float64
	peerName   string
	target     string
	// met judges the medians.
	met func(ours, peer float64) bool
}

func (b *bench) row(what, unit, peerName, target string, met func(ours, peer float64) bool) *row {
	for _, r := range b.rows {
		if r.what == what && r.peerName == peerName {
			return r
		}
	}
	r := &row{what: what, unit: unit, peerName: peerName, target: target, met: met}
	b.rows = append(b.rows, r)
	return r
}

const (
	serverAddress = "10.98.0.1"
	clientAddress = "10.98.0.2"
)

func (b *bench) open() (err error) {
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	if b.swarmTest, err = filepath.Abs(b.swarmTest); err != nil {
		return err
	}
	if b.coldrack, err = filepath.Abs(b.coldrack); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("/var/tmp", "coldrack-bench-"); err != nil {
		return err
	}
	// nginx and dnsmasq read the files as other users.
	if err := os.Chmod(b.dir, 0o755); err != nil {
		return err
	}
	b.server, b.client = fmt.Sprintf("crbench%ds", os.Getpid()), fmt.Sprintf("crbench%dc", os.Getpid())
	for _, line := range []string{
		"netns add " + b.server,
		"netns add " + b.client,
		"link add s0 netns " + b.server + " type veth peer name c0 netns " + b.client,
		"-n " + b.server + " addr add " + serverAddress + "/15 dev s0",
		"-n " + b.client + " addr add " + clientAddress + "/15 dev c0",
		"-n " + b.server + " link set lo up",
		"-n " + b.client + " link set lo up",
		"-n " + b.server + " link set s0 up",
		"-n " + b.client + " link set c0 up",
	} {
		if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", line, err, out)
		}
	}
	return nil
}

func (b *bench) close() {
	for _, ns := range []string{b.server, b.client} {
		if ns != "" {
			_ = exec.Command("ip", "netns", "del", ns).Run()
		}
	}
	if b.dir != "" {
		_ = os.RemoveAll(b.dir)
	}
}

// inside prepares a program to run in a namespace; it ends with this one.
func inside(ctx context.Context, ns string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", ns}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// run starts a server in its namespace and gives what ends it. Its output goes to a file of the folder.
func (b *bench) run(ctx context.Context, name string, args ...string) (stop func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	log, err := os.Create(filepath.Join(b.dir, name+".log"))
	if err != nil {
		cancel()
		return nil, err
	}
	defer log.Close()
	cmd := inside(ctx, b.server, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		cancel()
		return nil, err
	}
	return func() {
		cancel()
		_ = cmd.Wait()
	}, nil
}

// await waits until the server's namespace has a socket on the port.
func (b *bench) await(ctx context.Context, name, kind, port string) error {
	for range 300 {
		out, _ := inside(ctx, b.server, "ss", "-H", "-l", "-n", kind, "sport = :"+port).Output()
		if len(out) > 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
	}
	text, _ := os.ReadFile(filepath.Join(b.dir, name+".log"))
	return errors.New(name + " does not listen: " + string(text))
}

// file makes a file of noise once.
func (b *bench) file(name string, size int64) error {
	path := filepath.Join(b.dir, "files", name)
	if info, err := os.Stat(path); err == nil && info.Size() == size {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return exec.Command("dd", "if=/dev/urandom", "of="+path, "bs=1M", fmt.Sprintf("count=%d", size>>20), "status=none").Run()
}

func median(values []float64) float64 {
	sorted := slices.Clone(values)
	slices.Sort(sorted)
	if len(sorted) == 0 {
		return 0
	}
	return sorted[len(sorted)/2]
}
