package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process is a running emulator. It is held by a pidfd, which cannot come to mean another process.
type process struct {
	pid int
	fd  int
}

// findProcess returns the emulator whose pid file is the given one, or nil when there is none. A process
// counts only when its own command line names that very file.
func findProcess(pidPath string) (*process, error) {
	text, err := os.ReadFile(pidPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 1 {
		return nil, nil // written by halves, or by nobody we know
	}
	return openProcess(pid, func(path string) bool { return path == pidPath })
}

// findProcesses returns every emulator whose pid file lies below a folder, whether or not the file is
// still there.
func findProcesses(dir string) ([]*process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []*process
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		p, err := openProcess(pid, func(path string) bool { return strings.HasPrefix(path, dir+"/") })
		if err != nil {
			return found, err
		}
		if p != nil {
			found = append(found, p)
		}
	}
	return found, nil
}

// openProcess returns the process when it is an emulator with a pid file that matches.
func openProcess(pid int, match func(pidPath string) bool) (*process, error) {
	// Opened before the command line is read, so that what is read belongs to what is held.
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, nil // gone, or a thread
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	p := &process{pid: pid, fd: fd}
	// A dead process that nobody has waited for has an empty command line.
	line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	args := bytes.Split(line, []byte{0})
	i := slices.IndexFunc(args, func(arg []byte) bool { return string(arg) == "-pidfile" })
	if i < 0 || i+1 >= len(args) || !match(string(args[i+1])) {
		p.close()
		return nil, nil
	}
	return p, nil
}

func (p *process) close() { unix.Close(p.fd) }

// kill ends the process at once, as a pulled plug does, and waits until it holds nothing any more.
func (p *process) kill(ctx context.Context) error {
	if err := unix.PidfdSendSignal(p.fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", p.pid, err)
	}
	return p.wait(ctx)
}

// wait returns when the process has ended.
func (p *process) wait(ctx context.Context) error {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}, 100)
		switch {
		case n > 0:
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("wait for process %d: %w", p.pid, err)
		case ctx.Err() != nil:
			return fmt.Errorf("process %d goes on: %w", p.pid, ctx.Err())
		}
	}
}

// Usage is what a machine takes from the host.
type Usage struct {
	PID int
	// Memory is resident now, Peak the most since power-on.
	Memory, Peak Size
	// CPU is the processor time spent since power-on.
	CPU time.Duration
	// On is the time since power-on.
	On time.Duration
}

// clockTicks is the unit of times in /proc/PID/stat; Linux shows user space 100 a second on every
// architecture we build for.
const clockTicks = 100

func (p *process) usage() (Usage, error) {
	u := Usage{PID: p.pid}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(status)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		kib, _ := strconv.ParseInt(fields[1], 10, 64)
		switch fields[0] {
		case "VmRSS:":
			u.Memory = Size(kib) << 10
		case "VmHWM:":
			u.Peak = Size(kib) << 10
		}
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		return u, err
	}
	// The second field is the program's name in parentheses and may hold anything, so count from its end.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 {
		return u, fmt.Errorf("/proc/%d/stat: has %d fields, want 20 or more", p.pid, len(fields))
	}
	ticks := func(i int) time.Duration {
		n, _ := strconv.ParseInt(fields[i], 10, 64)
		return time.Duration(n) * time.Second / clockTicks
	}
	u.CPU = ticks(11) + ticks(12)
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return u, err
	}
	u.On = time.Duration(now.Nano()) - ticks(19)
	return u, nil
}

// killBelow ends every emulator of a lab.
func killBelow(ctx context.Context, dir string) (count int, err error) {
	processes, err := findProcesses(filepath.Clean(dir))
	for _, p := range processes {
		err = errors.Join(err, p.kill(ctx))
		p.close()
	}
	return len(processes), err
}
