package rehearse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"coldrack.dev/internal/netns"
)

// child is a process that the rehearsal started, and what it has taken of this host so far.
type child struct {
	name  string
	cmd   *exec.Cmd
	ended chan struct{}
	err   error
}

func start(name string, cmd *exec.Cmd, inside func(func() error) error) (*child, error) {
	// A rehearsal that is killed takes its processes along.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	c := &child{name: name, cmd: cmd, ended: make(chan struct{})}
	if err := inside(cmd.Start); err != nil {
		return nil, fmt.Errorf("start the %s: %w", name, err)
	}
	go func() {
		c.err = cmd.Wait()
		close(c.ended)
	}()
	return c, nil
}

// stop asks for an end, and enforces it.
func (c *child) stop(patience time.Duration) {
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-c.ended:
	case <-time.After(patience):
		_ = c.cmd.Process.Kill()
		<-c.ended
	}
}

// usage is what a process has taken.
type usage struct {
	cpu          time.Duration
	memory, peak int64 // bytes resident, now and at most
}

func (c *child) usage() usage {
	var u usage
	pid := c.cmd.Process.Pid
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(status)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		kib, _ := strconv.ParseInt(fields[1], 10, 64)
		switch fields[0] {
		case "VmRSS:":
			u.memory = kib << 10
		case "VmHWM:":
			u.peak = kib << 10
		}
	}
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	// The program's name, in parentheses, may hold anything.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) > 12 {
		// utime and stime in ticks, of which Linux shows user space 100 a second.
		for _, field := range fields[11:13] {
			ticks, _ := strconv.ParseInt(field, 10, 64)
			u.cpu += time.Duration(ticks) * (time.Second / 100)
		}
	}
	return u
}

// startServer starts `coldrack serve` and waits until it is ready.
func startServer(ctx context.Context, program, dir string, args []string) (*child, error) {
	// The path of a Unix socket is short, that of a folder need not be.
	short, err := os.MkdirTemp("", "rehearse")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(short)
	socket := filepath.Join(short, "notify")
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	defer notify.Close()
	log, err := os.Create(filepath.Join(dir, "server.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(program, append([]string{"serve"}, args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(withoutSettings(os.Environ()), "NOTIFY_SOCKET="+socket)
	server, err := start("server", cmd, func(fn func() error) error { return fn() })
	if err != nil {
		return nil, err
	}
	buffer := make([]byte, 256)
	for {
		_ = notify.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		n, err := notify.Read(buffer)
		if err == nil && strings.Contains(string(buffer[:n]), "READY=1") {
			return server, nil
		}
		select {
		case <-server.ended:
			text, _ := os.ReadFile(log.Name())
			return nil, fmt.Errorf("the server ended before it was ready: %w\n%s", errors.Join(server.err, err), tail(text, 20))
		case <-ctx.Done():
			server.stop(time.Second)
			return nil, context.Cause(ctx)
		default:
		}
	}
}

// awaitBundle waits until the server has what machines load first. It is ready to be asked before it has read its bundle.
func (c *child) awaitBundle(ctx context.Context, dir, namespace string, at netip.Addr) error {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return netns.Dial(ctx, namespace, network, address)
		},
	}}
	url := "http://" + netip.AddrPortFrom(at, 7080).String() + "/snponly.efi"
	for {
		if resp, err := client.Get(url); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		text, _ := os.ReadFile(filepath.Join(dir, "server.log"))
		if bytes.Contains(text, []byte("cannot import a configured bundle")) {
			return fmt.Errorf("the server cannot use the bundle:\n%s", tail(text, 5))
		}
		select {
		case <-c.ended:
			return fmt.Errorf("the server ended before it had read its bundle: %w\n%s", c.err, tail(text, 20))
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// withoutSettings keeps this shell's settings of another server out of the rehearsal's.
func withoutSettings(environment []string) (kept []string) {
	for _, variable := range environment {
		if !strings.HasPrefix(variable, "COLDRACK_") {
			kept = append(kept, variable)
		}
	}
	return kept
}

func tail(text []byte, lines int) string {
	all := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
