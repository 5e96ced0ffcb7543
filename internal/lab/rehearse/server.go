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

	"coldrack.dev/internal/base/netns"
)

// Process is one that the rehearsal started. It dies with the rehearsal.
type Process struct {
	cmd   *exec.Cmd
	log   string
	ended chan struct{}
	err   error
}

func start(name string, cmd *exec.Cmd, inside func(func() error) error) (*Process, error) {
	// A rehearsal that is killed takes its processes along.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	p := &Process{cmd: cmd, ended: make(chan struct{})}
	if err := inside(cmd.Start); err != nil {
		return nil, fmt.Errorf("start the %s: %w", name, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// Stop asks for an end, and enforces it.
func (p *Process) Stop(patience time.Duration) {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.Kill()
	}
}

// Kill ends the process at once, as a host that loses its power does, and waits for it.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// Ended is closed when the process has ended; Err says how, then.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Err says how the process has ended.
func (p *Process) Err() error {
	return errors.Join(p.err, errors.New(p.cmd.ProcessState.String()))
}

// PID of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Usage is what a process has taken of this host so far.
type Usage struct {
	CPU          time.Duration
	Memory, Peak int64 // bytes resident, now and at most
}

// Usage reads what the process has taken; it is zero for one that has ended.
func (p *Process) Usage() Usage { return UsageOf(p.PID()) }

// UsageOf reads what any process has taken.
func UsageOf(pid int) Usage {
	var u Usage
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(status)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		kib, _ := strconv.ParseInt(fields[1], 10, 64)
		switch fields[0] {
		case "VmRSS:":
			u.Memory = kib << 10
		case "VmHWM:":
			u.Peak = kib << 10
		}
	}
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	// The program's name, in parentheses, may hold anything.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) > 12 {
		// utime and stime in ticks, of which Linux shows user space 100 a second.
		for _, field := range fields[11:13] {
			ticks, _ := strconv.ParseInt(field, 10, 64)
			u.CPU += time.Duration(ticks) * (time.Second / 100)
		}
	}
	return u
}

// ServerOptions say how a server is started.
type ServerOptions struct {
	Program string
	Args    []string // of `coldrack serve`
	Log     string   // file that gets its log, after what is in it
	// Namespace is where the whole server runs; empty: in this process' own.
	Namespace string
	// Files is its limit of open files; 0: this process' own.
	Files int
	// Born is called with the new process before the server is ready.
	Born func(*Process) error
}

// StartServer starts `coldrack serve` and waits until it is ready.
func StartServer(ctx context.Context, o ServerOptions) (*Process, error) {
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
	log, err := os.OpenFile(o.Log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	args := append([]string{o.Program, "serve"}, o.Args...)
	if o.Files > 0 {
		args = append([]string{"sh", "-c", `ulimit -n "$0" && exec "$@"`, strconv.Itoa(o.Files)}, args...)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(withoutSettings(os.Environ()), "NOTIFY_SOCKET="+socket)
	server, err := start("server", cmd, func(fn func() error) error { return netns.Do(o.Namespace, fn) })
	if err != nil {
		return nil, err
	}
	server.log = o.Log
	if o.Born != nil {
		if err := o.Born(server); err != nil {
			server.Kill()
			return nil, err
		}
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
			return nil, fmt.Errorf("the server ended before it was ready: %w\n%s", server.Err(), server.lastWords())
		case <-ctx.Done():
			server.Stop(time.Second)
			return nil, context.Cause(ctx)
		default:
		}
	}
}

// lastWords are the last lines of the server's log.
func (p *Process) lastWords() string {
	text, _ := os.ReadFile(p.log)
	return tail(text, 20)
}

// AwaitBundle waits until the server has what machines load first. It is ready to be asked before it has read its bundle.
func (p *Process) AwaitBundle(ctx context.Context, namespace string, at netip.Addr) error {
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
		text, _ := os.ReadFile(p.log)
		if bytes.Contains(text, []byte("cannot import a configured bundle")) {
			return fmt.Errorf("the server cannot use the bundle:\n%s", tail(text, 5))
		}
		select {
		case <-p.ended:
			return fmt.Errorf("the server ended before it had read its bundle: %w\n%s", p.Err(), tail(text, 20))
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
