// Package router runs Debian's BIRD as the router of a test's network.
package router

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

// Router is BIRD in a network namespace.
type Router struct {
	t      testing.TB
	where  *netns.NS
	folder string
	cmd    *exec.Cmd
}

// Kernel is configuration that has the kernel route what BIRD knows, over all nodes that announce the same.
const Kernel = `
protocol device { scan time 1; }
protocol kernel kernel4 { ipv4 { import none; export all; }; merge paths on; }
protocol kernel kernel6 { ipv6 { import none; export all; }; merge paths on; }
`

// Start runs BIRD with a configuration until the test ends, and waits until it can be asked.
func Start(t testing.TB, where *netns.NS, config string) *Router {
	t.Helper()
	require.Need(t, "netns", "ip", "bird", "birdc")
	r := &Router{t: t, where: where, folder: t.TempDir()}
	r.write(config)
	r.cmd = exec.Command(require.Program("bird"), "-f", "-c", r.config(), "-s", r.socket(), "-P", filepath.Join(r.folder, "pid"))
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var log bytes.Buffer
	r.cmd.Stdout, r.cmd.Stderr = &log, &log
	if err := where.Start(r.cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = r.cmd.Process.Kill()
		_ = r.cmd.Wait()
		if t.Failed() {
			t.Logf("bird: %s", log.String())
		}
	})
	r.Await("show status", func(out string) bool { return strings.Contains(out, "Daemon is up and running") })
	return r
}

func (r *Router) config() string { return filepath.Join(r.folder, "bird.conf") }

// socket has a short name: a path of a socket has at most 107 bytes.
func (r *Router) socket() string { return filepath.Join(r.folder, "s") }

func (r *Router) write(config string) {
	r.t.Helper()
	if err := os.WriteFile(r.config(), []byte(config), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// Configure gives it another configuration.
func (r *Router) Configure(config string) {
	r.t.Helper()
	r.write(config)
	r.Ask("configure")
}

// Ask gives BIRD a command and returns what it says.
func (r *Router) Ask(command string) string {
	out, err := exec.CommandContext(r.t.Context(), require.Program("birdc"), "-s", r.socket(), "-v", command).CombinedOutput()
	if err != nil {
		return err.Error()
	}
	return string(out)
}

// Await asks until the answer fits, and returns it.
func (r *Router) Await(command string, fits func(string) bool) string {
	r.t.Helper()
	ctx, cancel := netns.Patience(r.t)
	defer cancel()
	out := ""
	for ctx.Err() == nil {
		if out = r.Ask(command); fits(out) {
			return out
		}
		time.Sleep(20 * time.Millisecond)
	}
	r.t.Fatalf("bird: %s: still\n%s", command, out)
	return ""
}

// Hops are the next hops that the router's kernel has for an address.
func (r *Router) Hops(address string) []string {
	r.t.Helper()
	family := "-4"
	if strings.Contains(address, ":") {
		family = "-6"
	}
	var hops []string
	fields := strings.Fields(r.where.Run("ip", family, "route", "show", "exact", address))
	for i, f := range fields {
		if f == "via" && i+1 < len(fields) {
			hops = append(hops, fields[i+1])
		}
	}
	return hops
}
