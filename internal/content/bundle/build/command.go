package build

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path"
	"strings"
	"syscall"
	"time"
)

// command runs one of the host's programs, or one of a tree. Its output goes to the log at debug level, each line also
// to line if that is set; when it fails, the last lines are in the error.
type command struct {
	log  *slog.Logger
	dir  string // that it runs in; empty: the caller's
	root string // folder that it sees as its root; name and dir are paths in it. Empty: the building machine's
	env  []string
	line func(string)
}

// within starts a program with root as its root. Without privileges this takes a user namespace.
func within(root string) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Chroot: root}
	if uid, gid := os.Geteuid(), os.Getegid(); uid != 0 {
		attr.Cloneflags = syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: gid, Size: 1}}
	}
	return attr
}

func (c command) run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = c.dir
	if c.root != "" {
		cmd.SysProcAttr = within(c.root)
		cmd.Dir = path.Join("/", c.dir)
	}
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "LANGUAGE=", "DEBIAN_FRONTEND=noninteractive")
	cmd.Env = append(cmd.Env, c.env...)
	// A chance to unmount what is mounted in a chroot, before it is killed.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	var stdout strings.Builder
	cmd.Stdout = &stdout
	r, w := io.Pipe()
	cmd.Stderr = w
	var tail []string
	read := make(chan struct{})
	go func() {
		defer close(read)
		lines := bufio.NewScanner(r)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			text := strings.TrimSpace(lines.Text())
			c.log.Debug("output", "command", name, "line", text)
			if c.line != nil {
				c.line(text)
			}
			if tail = append(tail, text); len(tail) > 15 {
				tail = tail[1:]
			}
		}
		_, _ = io.Copy(io.Discard, r) // an endless line must not block the program
	}()
	err := cmd.Run()
	_ = w.Close()
	<-read
	if errors.Is(err, exec.ErrNotFound) && name == "go" {
		return "", errors.New("this machine has no Go compiler; install the release of Go that go.mod names")
	}
	if errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("this machine has no program %s; the packages that building needs are listed in recipes/HOST-PACKAGES", name)
	}
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if err != nil {
		return stdout.String(), fmt.Errorf("%s: %w; its last words:\n  %s", name, err, strings.Join(tail, "\n  "))
	}
	return stdout.String(), nil
}
