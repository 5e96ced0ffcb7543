package node

import (
	"bufio"
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"coldrack.dev/internal/contract/wire"
)

// failedUnitsEvery is the least time between two looks at all units of the system, which cost more than the rest of a
// heartbeat together.
const failedUnitsEvery = time.Minute

// Looker describes a running system, again and again.
type Looker struct {
	Root    string // "/"
	Version string // of this agent

	failed []string
	asked  time.Time
}

// Look describes the system now. It is not for concurrent use.
func (l *Looker) Look(ctx context.Context) wire.Heartbeat {
	root := l.Root
	if l.asked.IsZero() || time.Since(l.asked) >= failedUnitsEvery {
		l.failed, l.asked = failedUnits(ctx), time.Now()
	}
	list, interfaces := addresses()
	return wire.Heartbeat{
		AgentVersion:   l.Version,
		OS:             prettyName(filepath.Join(root, "etc/os-release")),
		Kernel:         release(),
		BootID:         text(filepath.Join(root, "proc/sys/kernel/random/boot_id")),
		BootedAt:       bootedAt(filepath.Join(root, "proc/stat")),
		Addresses:      list,
		Interfaces:     interfaces,
		FailedUnits:    l.failed,
		RebootRequired: rebootRequired(filepath.Join(root, "run")),
		Now:            time.Now().UTC(),
	}
}

func text(file string) string {
	b, _ := os.ReadFile(file)
	return strings.TrimSpace(string(b))
}

// rebootRequired reads what Debian's packages leave in the folder when they need a reboot: reboot-required, and one name a line,
// some of them twice, in reboot-required.pkgs.
func rebootRequired(dir string) *wire.RebootRequired {
	if _, err := os.Stat(filepath.Join(dir, "reboot-required")); err != nil {
		return nil
	}
	packages := strings.Fields(text(filepath.Join(dir, "reboot-required.pkgs")))
	slices.Sort(packages)
	return &wire.RebootRequired{Packages: slices.Compact(packages)}
}

// prettyName reads os-release(5).
func prettyName(file string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), "PRETTY_NAME="); ok {
			if u, err := strconv.Unquote(v); err == nil {
				return u
			}
			return strings.Trim(v, "'")
		}
	}
	return ""
}

func release() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// bootedAt is the kernel's idea of when it started, which follows the clock when that is set.
func bootedAt(stat string) time.Time {
	f, err := os.Open(stat)
	if err != nil {
		return time.Time{}
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), "btime "); ok {
			if n, err := strconv.ParseInt(v, 10, 64); err == nil {
				return time.Unix(n, 0).UTC()
			}
		}
	}
	return time.Time{}
}

// addresses with prefix length, without those that are of no use to others, and the interface of each.
func addresses() (out []string, interfaces map[string]string) {
	ifaces, err := net.Interfaces()
	if err != nil {
		return nil, nil
	}
	interfaces = map[string]string{}
	for _, i := range ifaces {
		if i.Flags&net.FlagLoopback != 0 {
			continue
		}
		list, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, a := range list {
			if n, ok := a.(*net.IPNet); ok && !n.IP.IsLinkLocalUnicast() && !n.IP.IsLoopback() {
				out = append(out, n.String())
				interfaces[n.IP.String()] = i.Name
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out), interfaces
}

func failedUnits(ctx context.Context) []string {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "systemctl", "list-units", "--failed", "--plain", "--no-legend", "--no-pager").Output()
	if err != nil {
		return nil
	}
	return parseFailed(out)
}

// parseFailed reads the first column of systemctl's list.
func parseFailed(out []byte) []string {
	var units []string
	for line := range bytes.SplitSeq(out, []byte("\n")) {
		if f := strings.Fields(strings.TrimLeft(string(line), "●* ")); len(f) > 0 {
			units = append(units, f[0])
		}
	}
	return units
}

// Reboot asks systemd for an orderly restart.
func Reboot(ctx context.Context, reason string) error {
	out, err := exec.CommandContext(ctx, "systemctl", "reboot", "--message=Coldrack: "+reason).CombinedOutput()
	if err != nil {
		return &rebootError{err, strings.TrimSpace(string(out))}
	}
	return nil
}

type rebootError struct {
	err error
	out string
}

func (e *rebootError) Error() string { return "systemctl reboot: " + e.err.Error() + ": " + e.out }

func (e *rebootError) Unwrap() error { return e.err }

// Notify tells systemd that the service is up (sd_notify(3)); without systemd it does nothing.
func Notify(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte(state))
	return err
}
