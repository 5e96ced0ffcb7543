package systemd

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// Systemctl is the service manager that this system runs.
type Systemctl struct {
	// User: that of this user instead, which tests have.
	User bool
}

func (s Systemctl) command(ctx context.Context, args ...string) *exec.Cmd {
	if s.User {
		args = append([]string{"--user"}, args...)
	}
	return exec.CommandContext(ctx, "systemctl", args...)
}

// Queue has systemd start, stop or restart a unit, and does not wait for it. What is wrong with the unit's files is an error.
func (s Systemctl) Queue(ctx context.Context, verb, unit string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if out, err := s.command(ctx, verb, "--no-block", "--no-ask-password", "--no-pager", "--", unit).CombinedOutput(); err != nil {
		return fmt.Errorf("systemctl %s %s: %w: %s", verb, unit, err, oneLine(out))
	}
	return nil
}

// systemctlLimit is longer than systemd itself waits for a unit to start (90 s by default).
const systemctlLimit = 10 * time.Minute

// Do runs systemctl.
func (s Systemctl) Do(ctx context.Context, verb string, units ...string) error {
	ctx, cancel := context.WithTimeout(ctx, systemctlLimit)
	defer cancel()
	args := []string{verb, "--no-ask-password", "--no-pager"}
	if verb == "enable" || verb == "disable" {
		args = append(args, "--no-reload")
	}
	args = append(append(args, "--"), units...)
	out, err := s.command(ctx, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("systemctl %s %s: %w: %s", verb, strings.Join(units, " "), err, oneLine(out))
	}
	return nil
}

// State is how one unit is.
func (s Systemctl) State(ctx context.Context, unit string) (UnitState, error) {
	all, err := s.States(ctx, unit)
	return all[unit], err
}

// States is how units are, by one call of systemctl show, whose output is made for programs.
func (s Systemctl) States(ctx context.Context, units ...string) (map[string]UnitState, error) {
	if len(units) == 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := s.command(ctx, append([]string{"show", "--no-pager",
		"--property=LoadState,ActiveState,SubState,UnitFileState,Result,NRestarts,NeedDaemonReload", "--"}, units...)...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("systemctl show %s: %w: %s", Cut(strings.Join(units, " "), 200), err, oneLine(said.Bytes()))
	}
	return parseStates(out.Bytes(), units)
}

// parseStates reads what systemctl show says of units: a block for each in their order, with an empty line between two.
func parseStates(out []byte, units []string) (map[string]UnitState, error) {
	blocks := bytes.Split(bytes.TrimSpace(out), []byte("\n\n"))
	if len(blocks) != len(units) {
		return nil, fmt.Errorf("systemctl show answered for %d units, and was asked for %d", len(blocks), len(units))
	}
	all := make(map[string]UnitState, len(units))
	for i, unit := range units {
		all[unit] = parseState(blocks[i])
	}
	return all, nil
}

func parseState(out []byte) UnitState {
	var s UnitState
	for line := range strings.Lines(string(out)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "LoadState":
			s.Load = value
		case "ActiveState":
			s.Active = value
		case "SubState":
			s.Sub = value
		case "UnitFileState":
			s.File = value
		case "Result":
			s.Result = value
		case "NRestarts":
			s.Restarts = value
		case "NeedDaemonReload":
			s.NeedReload = value == "yes"
		}
	}
	return s
}

// Log runs journalctl.
func (Systemctl) Log(ctx context.Context, unit string, lines int) []string {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "journalctl", "--no-pager", "--quiet", "--output=cat", "--lines="+strconv.Itoa(lines), "--unit="+unit).Output()
	if err != nil {
		return nil
	}
	return LastLines(out, lines)
}

func oneLine(out []byte) string {
	return strings.Join(strings.Fields(string(bytes.TrimSpace(out))), " ")
}

// LastLines are the last n lines of a text that are not empty, each cut to what a person reads.
func LastLines(text []byte, n int) []string {
	var lines []string
	for line := range bytes.Lines(text) {
		if line = bytes.TrimSpace(line); len(line) > 0 {
			lines = append(lines, Cut(string(line), 240))
		}
	}
	return lines[max(0, len(lines)-n):]
}

// Cut shortens a text to n bytes and says so.
func Cut(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + "..."
	}
	return strings.ToValidUTF8(s, "")
}
