// Package pid1 is the first process of the discovery system. It mounts what every program needs, runs the
// installer as a child, reaps orphans, and when the installer ends for whatever reason, says so on the
// console and restarts the machine: a machine in a rack must never hang in silence.
package pid1

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"coldrack.dev/internal/agent/console"
	"coldrack.dev/internal/agent/discovery"
)

// Verb is how the child is called.
const Verb = "discover"

// deathDelay is how long the reason stays on the console before the restart.
const deathDelay = 60 * time.Second

// Run is the life of PID 1. It returns only when this process is not PID 1.
func Run() error {
	if os.Getpid() != 1 {
		return fmt.Errorf("init is for PID 1 of the discovery system; this is process %d", os.Getpid())
	}
	con := console.New(os.Stderr)
	defer func() {
		// The end of PID 1 is a kernel panic, so even a fault in here must end in a restart.
		reason := recover()
		con.Fail("PID 1: %v", reason)
		restart(con, deathDelay)
	}()
	prepare()
	con = console.Open()
	status, err := supervise(con)
	if err == nil && status.Exited() && status.ExitStatus() == 0 {
		restart(con, 0) // the installer asked for it, and said why
	}
	if err != nil {
		con.Fail("the installer could not be started: %v", err)
	} else {
		con.Fail("the installer ended (%s); what it printed is above. Nothing more will happen to any disk", describe(status))
	}
	restart(con, deathDelay)
	return nil
}

// restart syncs the disks and reboots the machine.
func restart(con *console.Console, after time.Duration) {
	if after > 0 {
		con.Say("this machine restarts in %s", after)
		time.Sleep(after)
	}
	con.Say("restarting")
	con.Close()
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	for { // some firmware takes its time
		time.Sleep(time.Hour)
	}
}

func describe(s unix.WaitStatus) string {
	switch {
	case s.Signaled() && s.Signal() == unix.SIGKILL:
		return "killed; the machine may be out of memory"
	case s.Signaled():
		return "signal " + s.Signal().String()
	}
	return fmt.Sprintf("exit status %d", s.ExitStatus())
}

// prepare mounts the kernel's file systems. A failure shows later, at whoever needs the thing.
func prepare() {
	unix.Umask(0o022)
	os.Clearenv()
	for k, v := range map[string]string{"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "TERM": "linux"} {
		_ = os.Setenv(k, v)
	}
	for _, m := range []struct {
		kind, dir string
		flags     uintptr
		options   string
	}{
		{"proc", "/proc", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV, ""},
		{"sysfs", "/sys", unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV, ""},
		{"devtmpfs", "/dev", unix.MS_NOSUID, "mode=0755"},
		{"devpts", "/dev/pts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0620"},
		{"tmpfs", "/run", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
		{"tmpfs", "/tmp", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	} {
		_ = os.MkdirAll(m.dir, 0o755)
		if err := unix.Mount(m.kind, m.dir, m.kind, m.flags, m.options); err != nil && !errors.Is(err, unix.EBUSY) {
			fmt.Fprintf(os.Stderr, "coldrack: mount %s: %v\n", m.dir, err)
		}
	}
	if _, err := os.Stat("/sys/firmware/efi/efivars"); err == nil {
		_ = unix.Mount("efivarfs", "/sys/firmware/efi/efivars", "efivarfs", unix.MS_NOSUID|unix.MS_NOEXEC|unix.MS_NODEV|unix.MS_RDONLY, "")
	}
	_ = unix.Sethostname([]byte("discovery"))
	for file, value := range map[string]string{
		"/proc/sys/kernel/printk": "4 4 1 7", // the kernel's errors may show; its chatter would hide ours
		"/proc/sys/kernel/panic":  "30",      // seconds until a restart
	} {
		_ = os.WriteFile(file, []byte(value), 0o644)
	}
}

// supervise runs the installer and returns how it ended. All children of PID 1 are waited for here and
// nowhere else, so this process must not use os/exec.
func supervise(con *console.Console) (unix.WaitStatus, error) {
	signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	child, err := start(Verb, "/dev/console", false)
	if err != nil {
		return 0, err
	}
	shell := -1
	cmdline, _ := os.ReadFile("/proc/cmdline")
	args, _ := discovery.ParseArguments(string(cmdline)) // the shell is wanted most where the rest is wrong
	if args.Shell {
		con.Say("coldrack.debug=shell: a root shell is on %s", primary())
		shell = startShell()
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait for children: %w", err)
		case pid == child && args.Shell && (!status.Exited() || status.ExitStatus() != 0):
			con.Fail("the installer ended (%s); the shell stays", describe(status))
		case pid == child:
			return status, nil
		case pid == shell:
			time.Sleep(time.Second)
			shell = startShell()
		}
	}
}

func start(verb, tty string, control bool) (int, error) {
	f, err := os.OpenFile(tty, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		f = os.Stderr
	}
	argv := []string{"coldrack-agent", verb}
	path := "/proc/self/exe"
	if control {
		argv, path = []string{"sh", "-l"}, verb
	}
	p, err := os.StartProcess(path, argv, &os.ProcAttr{
		Files: []*os.File{f, f, f},
		Sys:   &unix.SysProcAttr{Setsid: true, Setctty: control},
	})
	if f != os.Stderr {
		_ = f.Close()
	}
	if err != nil {
		return 0, err
	}
	pid := p.Pid
	_ = p.Release() // Wait4 above waits for it
	return pid, nil
}

// primary is the console that /dev/console stands for. It must be named itself, because /dev/console cannot
// be a controlling terminal.
func primary() string {
	devices := console.Devices()
	return "/dev/" + devices[len(devices)-1]
}

func startShell() int {
	for _, sh := range strings.Fields("/bin/sh /usr/bin/sh") {
		if pid, err := start(sh, primary(), true); err == nil {
			return pid
		}
	}
	return -1
}
