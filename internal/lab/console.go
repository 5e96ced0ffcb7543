package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"time"
)

// consolePoll is how often a console log is looked at; files have no readiness to wait for.
const consolePoll = 100 * time.Millisecond

// Printable turns what was sent to a terminal into text: no control sequences, no control characters but
// tabs and line ends.
func Printable(raw []byte) string {
	return string(controls.ReplaceAll(raw, nil))
}

// controls matches ECMA-48 control sequences, operating-system commands, other escapes, and single control
// characters.
var controls = regexp.MustCompile(`\x1b\[[0-9:;<=>?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(\x07|\x1b\\)|\x1b[ -/]*[0-Z\\^-~]|[\x00-\x08\x0b-\x1f\x7f]`)

// ConsoleMark is the present end of the console log: everything after it is new.
func (m *Machine) ConsoleMark() int64 {
	info, err := os.Stat(m.ConsoleLog())
	if err != nil {
		return 0
	}
	return info.Size()
}

// WaitConsole waits for a line of the serial console that matches, among those after the mark (0 is the
// first power-on ever; see ConsoleMark), and returns it. The end of a line need not have come yet. The
// error, when ctx ends first, shows the last lines.
func (m *Machine) WaitConsole(ctx context.Context, mark int64, line *regexp.Regexp) (string, error) {
	var partial []byte
	err := m.FollowConsole(ctx, mark, func(chunk []byte) error {
		partial = append(partial, chunk...)
		for {
			text, rest, complete := bytes.Cut(partial, []byte("\n"))
			if clean := Printable(text); line.MatchString(clean) {
				partial = text
				return errFound
			}
			if !complete {
				return nil
			}
			partial = rest
		}
	})
	if errors.Is(err, errFound) {
		return Printable(partial), nil
	}
	return "", fmt.Errorf("machine %s (%s): console shows no %q: %w; its last lines:\n%s", m.Name(), m.State(), line, err, m.consoleTail(20))
}

var errFound = errors.New("found")

// FollowConsole calls fn with each piece of the console log from the mark on, as it comes, until fn returns
// an error or ctx ends, and returns that error.
func (m *Machine) FollowConsole(ctx context.Context, mark int64, fn func([]byte) error) error {
	var file *os.File
	defer func() {
		if file != nil {
			file.Close()
		}
	}()
	buffer := make([]byte, 64<<10)
	tick := time.NewTicker(consolePoll)
	defer tick.Stop()
	for {
		if file == nil {
			var err error
			if file, err = os.Open(m.ConsoleLog()); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		for file != nil {
			n, err := file.ReadAt(buffer, mark)
			mark += int64(n)
			if n > 0 {
				if err := fn(buffer[:n]); err != nil {
					return err
				}
			}
			if err != nil {
				if !errors.Is(err, io.EOF) {
					return err
				}
				break
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// ConsoleTail is the mark at which the last lines of the console log begin; a negative count means all.
func (m *Machine) ConsoleTail(lines int) (mark int64, err error) {
	if lines < 0 {
		return 0, nil
	}
	text, err := os.ReadFile(m.ConsoleLog())
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	end := len(bytes.TrimSuffix(text, []byte("\n")))
	for range lines {
		end = bytes.LastIndexByte(text[:max(0, end)], '\n')
	}
	if lines == 0 {
		return int64(len(text)), nil
	}
	return int64(end) + 1, nil
}

// LastLine is the last line on the console that says anything.
func (m *Machine) LastLine() string { return m.consoleTail(1) }

// consoleTail returns the last lines of the console log that are not blank.
func (m *Machine) consoleTail(count int) string {
	file, err := os.Open(m.ConsoleLog())
	if err != nil {
		return ""
	}
	defer file.Close()
	const window = 16 << 10
	from := max(0, m.ConsoleMark()-window)
	raw := make([]byte, window)
	n, _ := file.ReadAt(raw, from)
	var lines []string
	for text := range strings.Lines(Printable(raw[:n])) {
		if text = strings.TrimSpace(text); text != "" {
			lines = append(lines, text)
		}
	}
	return strings.Join(lines[max(0, len(lines)-count):], "\n")
}

// DialConsole connects to the serial console. Machines have one; a second visitor waits.
func (m *Machine) DialConsole(ctx context.Context) (io.ReadWriteCloser, error) {
	conn, err := dialIn(ctx, m.dir, consoleSocket)
	if err != nil {
		if m.State() == Off {
			return nil, fmt.Errorf("machine %s: %w", m.Name(), ErrOff)
		}
		return nil, fmt.Errorf("machine %s: connect to its console: %w", m.Name(), err)
	}
	return conn, nil
}

func firstLine(text []byte) string {
	line, _, _ := bytes.Cut(bytes.TrimSpace(text), []byte("\n"))
	return string(line)
}
