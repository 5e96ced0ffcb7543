// Package console shows a person at the machine, or at its serial line, what the installer is doing: short
// lines on every console that the kernel was told of.
package console

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"coldrack.dev/internal/agent/journal"
	"coldrack.dev/internal/agent/probe"
	"coldrack.dev/internal/base/termtext"
	"coldrack.dev/internal/contract/wire"
)

// progressEvery is the least time between two lines about the same running step.
const progressEvery = 5 * time.Second

// Console writes to several devices. One that does not take bytes, such as a serial port whose other end
// holds it up, loses lines but never delays the installer or the other devices.
type Console struct {
	begun   time.Time
	devices []*device

	mu    sync.Mutex
	steps map[string]shown
}

type shown struct {
	state wire.State
	at    time.Time
	bytes int64
}

type device struct {
	w     io.Writer
	lines chan string
	done  chan struct{}
}

// New shows on the given writers.
func New(writers ...io.Writer) *Console {
	c := &Console{begun: time.Now(), steps: map[string]shown{}}
	for _, w := range writers {
		d := &device{w: w, lines: make(chan string, 200), done: make(chan struct{})}
		c.devices = append(c.devices, d)
		go d.run()
	}
	return c
}

// Open finds the consoles of the running kernel: those in /sys/class/tty/console/active, in the absence of
// which /dev/console.
func Open() *Console {
	var writers []io.Writer
	for _, name := range Devices() {
		// Without O_NONBLOCK, opening a serial port may wait for a carrier that never comes.
		fd, err := unix.Open("/dev/"+name, unix.O_WRONLY|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		_ = unix.SetNonblock(fd, false)
		writers = append(writers, os.NewFile(uintptr(fd), name))
	}
	if len(writers) == 0 {
		writers = append(writers, os.Stderr)
	}
	return New(writers...)
}

// Devices are the names of the kernel's consoles below /dev, the primary one last.
func Devices() []string {
	b, err := os.ReadFile("/sys/class/tty/console/active")
	names := strings.Fields(string(b))
	if err != nil || len(names) == 0 {
		return []string{"console"}
	}
	return names
}

func (d *device) run() {
	defer close(d.done)
	for line := range d.lines {
		_, _ = io.WriteString(d.w, line)
	}
}

// Close waits a moment for what is still to be shown.
func (c *Console) Close() {
	for _, d := range c.devices {
		close(d.lines)
	}
	limit := time.After(2 * time.Second)
	for _, d := range c.devices {
		select {
		case <-d.done:
		case <-limit:
		}
	}
}

func (c *Console) print(s string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// Raw consoles need the carriage return; on cooked ones it does no harm.
	line := fmt.Sprintf("\r[%7.1f] coldrack: %s\r\n", time.Since(c.begun).Seconds(), s)
	for _, d := range c.devices {
		select {
		case d.lines <- line:
		default:
		}
	}
}

// Say shows a line.
func (c *Console) Say(format string, args ...any) {
	c.print(termtext.ASCII(fmt.Sprintf(format, args...)))
}

// Good shows a line about something that a person waited for.
func (c *Console) Good(format string, args ...any) {
	c.print("\x1b[1;32m" + termtext.ASCII(fmt.Sprintf(format, args...)) + "\x1b[0m")
}

// Fail shows what went wrong, why, and what to do, so that it is seen from across the room.
func (c *Console) Fail(format string, args ...any) {
	c.print("\x1b[1;31mFAILED: " + termtext.ASCII(fmt.Sprintf(format, args...)) + "\x1b[0m")
}

// Step shows a step's transitions, and its progress now and then.
func (c *Console) Step(s wire.Step) {
	now := time.Now()
	c.mu.Lock()
	last := c.steps[s.Name]
	show := last.state != s.State || (s.State == wire.StateRunning && s.BytesTotal > 0 && now.Sub(last.at) >= progressEvery)
	if show {
		c.steps[s.Name] = shown{s.State, now, s.BytesDone}
	}
	c.mu.Unlock()
	if !show {
		return
	}
	switch s.State {
	case wire.StateSucceeded:
		c.Say("%s", strings.TrimSpace(fmt.Sprintf("%-12s done  %s", s.Name, s.Message)))
	case wire.StateFailed:
		c.Fail("%s: %s", s.Name, s.Message)
	case wire.StateRunning:
		if s.BytesDone == 0 {
			c.Say("%s", strings.TrimSpace(fmt.Sprintf("%-12s ...   %s", s.Name, s.Message)))
			return
		}
		rate := ""
		if seconds := now.Sub(last.at).Seconds(); last.state == s.State && seconds > 0 {
			rate = ", " + probe.Size(int64(float64(s.BytesDone-last.bytes)/seconds)) + "/s"
		}
		c.Say("%-12s %3d %%  %s of %s%s %s", s.Name, 100*s.BytesDone/s.BytesTotal, probe.Size(s.BytesDone), probe.Size(s.BytesTotal), rate, s.Message)
	}
}

// Handler is a log handler that shows warnings and errors, and passes all records on.
func (c *Console) Handler(next slog.Handler) slog.Handler {
	return journal.Handler(next, func(l slog.Level, line string) {
		if l >= slog.LevelWarn {
			c.print(termtext.ASCII(line))
		}
	})
}
