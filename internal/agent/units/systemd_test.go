package units

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"coldrack.dev/internal/agent/systemd"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/test/require"
)

// realSystemd starts a service manager of its own for the test, systemd's instance of a user, in namespaces. Its units are in the folder that is
// returned.
func realSystemd(t *testing.T) (root string) {
	t.Helper()
	if os.Getenv("COLDRACK_E2E_UNITS") == "" {
		t.Skip("starts systemd in a control group; make e2e-units runs it")
	}
	require.Need(t, "root", "unshare", "nsenter", "systemctl")
	program := "/usr/lib/systemd/systemd"
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("this test needs Debian's systemd: %v", err)
	}
	// A path of a socket is short.
	root, err := os.MkdirTemp("", "cru")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	group := filepath.Base(root)
	// systemd takes the control group that it is in as its own; it is not process 1, which no instance of a user is.
	script := `
for h in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
	if [ -f $h/cgroup.procs ] && mkdir $h/` + group + `; then echo 0 >$h/` + group + `/cgroup.procs; fi
done
mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system
/usr/lib/systemd/systemd --user --unit=basic.target &
wait`
	units := filepath.Join(root, systemd.UnitDir)
	run := filepath.Join(root, "run")
	for dir, mode := range map[string]os.FileMode{units: 0o755, run: 0o700} {
		if err := os.MkdirAll(dir, mode); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(units, "basic.target"), "[Unit]\nDescription=a test's machine\nWants=multi-user.target\n")
	write(t, filepath.Join(units, "multi-user.target"), "[Unit]\nDescription=a test's multi-user\n")
	for key, value := range map[string]string{"XDG_RUNTIME_DIR": run, "HOME": root, "SYSTEMD_UNIT_PATH": units, "DBUS_SESSION_BUS_ADDRESS": ""} {
		t.Setenv(key, value)
	}
	boot := exec.CommandContext(t.Context(), "unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", script)
	var said bytes.Buffer
	boot.Stdout, boot.Stderr = &said, &said
	boot.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := boot.Start(); err != nil {
		t.Fatal(err)
	}
	// systemd talks to processes of its own process namespace only.
	real, err := exec.LookPath("systemctl")
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(root, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	child := ""
	until(t, func() error {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", boot.Process.Pid))
		if child = strings.TrimSpace(string(b)); child == "" {
			return fmt.Errorf("unshare has no child: %w; it said: %s", err, said.String())
		}
		return nil
	})
	inside := fmt.Sprintf("#!/bin/sh\nexec nsenter --target %s --pid --mount %s \"$@\"\n", child, real)
	if err := os.WriteFile(filepath.Join(bin, "systemctl"), []byte(inside), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Cleanup(func() {
		_ = boot.Process.Kill()
		_ = boot.Wait()
		for _, h := range []string{"/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
			removeGroup(filepath.Join(h, group))
		}
	})
	until(t, func() error {
		if err := exec.Command("systemctl", "--user", "is-active", "basic.target").Run(); err != nil {
			return fmt.Errorf("systemd is not up: %w; it said: %s", err, said.String())
		}
		return nil
	})
	return root
}

// removeGroup removes a control group and those in it, whose processes may be ending.
func removeGroup(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if e.IsDir() {
			removeGroup(filepath.Join(dir, e.Name()))
		}
	}
	for range 50 {
		if err := os.Remove(dir); !errors.Is(err, syscall.EBUSY) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// until waits for something that another program does.
func until(t *testing.T, check func() error) {
	t.Helper()
	var err error
	for range 1500 {
		if err = check(); err == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal(err)
}

func realKeeper(root string) *Keeper {
	return &Keeper{Log: slog.New(slog.DiscardHandler), Systemd: systemd.Systemctl{User: true}, Machine: "m1", Root: root, UnitDir: systemd.UnitDir}
}

// reaches passes until a unit is as it should; an empty state: it is not there.
func reaches(t *testing.T, k *Keeper, name, active string) (is wire.UnitState) {
	t.Helper()
	until(t, func() error {
		report, _ := k.Pass(t.Context())
		is = wire.UnitState{}
		for _, u := range report.Units {
			if u.Name == name {
				is = u
			}
		}
		if is.Active != active || active == "" && is.Name != "" {
			return fmt.Errorf("%s is %+v, and should be %q", name, is, active)
		}
		return nil
	})
	return is
}

func property(t *testing.T, name, key string) string {
	t.Helper()
	out, err := exec.Command("systemctl", "--user", "show", "--value", "-p", key, "--", name).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// TestUnitsOfRealSystemd: units come, change, go and stay, as a real systemd sees it.
func TestUnitsOfRealSystemd(t *testing.T) {
	root := realSystemd(t)
	k := realKeeper(root)
	web := unit("web.service", sleeper(1000), true)
	instance := unit("job@7.service", "[Service]\nExecStart=/bin/sleep 10%i\n", true)
	loaded := unit("later.service", sleeper(3), false)
	take(t, k, assignment(web, instance, loaded))
	reaches(t, k, web.Name, "active")
	reaches(t, k, instance.Name, "active")
	reaches(t, k, loaded.Name, "inactive")
	pid := property(t, web.Name, "MainPID")
	if text := property(t, instance.Name, "ExecStart"); !strings.Contains(text, "sleep 107") {
		t.Errorf("the instance runs %s", text)
	}

	// Whatever comes that does not name it leaves it alone; also an agent that was killed and began anew.
	for _, a := range []wire.UnitAssignment{assignment(), {Version: "2", Machine: "m1"}, {Version: "3", Machine: "m1", Run: []wire.UnitFile{loaded}}} {
		take(t, realKeeper(root), a)
		reaches(t, realKeeper(root), web.Name, "active")
	}
	if err := k.Take(wire.UnitAssignment{Machine: "m2", Drop: []wire.UnitDrop{{Name: web.Name, Reason: "for another machine"}}}); err == nil {
		t.Error("took another machine's answer")
	}
	if err := k.Take(wire.UnitAssignment{}); err == nil {
		t.Error("took an empty answer")
	}
	reaches(t, k, web.Name, "active")
	if is := property(t, web.Name, "MainPID"); is != pid {
		t.Errorf("it was started again: process %s, before %s", is, pid)
	}

	// What is wanted and what is dropped in one answer stays.
	a := assignment(web)
	a.Drop = []wire.UnitDrop{{Name: web.Name, Reason: "a contradiction"}}
	take(t, k, a)
	reaches(t, k, web.Name, "active")

	// A new text restarts it.
	web = unit("web.service", sleeper(2000), true)
	take(t, k, assignment(web))
	reaches(t, k, web.Name, "active")
	until(t, func() error {
		if text := property(t, web.Name, "ExecStart"); !strings.Contains(text, "sleep 2000") || property(t, web.Name, "MainPID") == pid {
			return fmt.Errorf("it still runs %s", text)
		}
		return nil
	})

	// A file that somebody removed comes back.
	if err := os.Remove(filepath.Join(root, systemd.UnitDir, web.Name)); err != nil {
		t.Fatal(err)
	}
	reaches(t, k, web.Name, "active")
	if _, err := os.Stat(filepath.Join(root, systemd.UnitDir, web.Name)); err != nil {
		t.Error(err)
	}

	// systemd itself starts at boot what is launched, without agent and server: the target's links say what.
	if wants := property(t, Target, "Wants"); !strings.Contains(wants, web.Name) || !strings.Contains(wants, instance.Name) || strings.Contains(wants, loaded.Name) {
		t.Errorf("started at boot: %s", wants)
	}
	if wants := property(t, "multi-user.target", "Wants"); !strings.Contains(wants, Target) {
		t.Errorf("multi-user.target wants %s", wants)
	}

	// A unit that fails says why, and is not started for ever.
	broken := unit("broken.service", "[Service]\nExecStart=/bin/false\n", true)
	take(t, k, assignment(broken))
	if is := reaches(t, k, broken.Name, "failed"); !strings.Contains(is.Message, "exit-code") {
		t.Errorf("broken: %+v", is)
	}
	worse := unit("worse.service", "[Service]\nExecStart=sleep-is-no-path/x 1\n", true)
	take(t, k, assignment(worse))
	until(t, func() error {
		report, _ := k.Pass(t.Context())
		for _, u := range report.Units {
			if u.Name == worse.Name && strings.Contains(u.Message, "systemctl start") {
				return nil
			}
		}
		return fmt.Errorf("%+v", report)
	})

	// Explicitly dropped ones go, with their files.
	take(t, k, wire.UnitAssignment{Machine: "m1", Drop: []wire.UnitDrop{{Name: web.Name, Reason: "moved"}, {Name: broken.Name}, {Name: instance.Name}, {Name: "unknown.service"}}})
	for _, name := range []string{web.Name, broken.Name, instance.Name} {
		reaches(t, k, name, "")
		for _, path := range []string{k.fileOf(name), k.linkOf(name), k.recordOf(name)} {
			if _, err := os.Lstat(filepath.Join(root, path)); err == nil {
				t.Errorf("%s is still there", path)
			}
		}
		if state := property(t, name, "ActiveState"); state != "inactive" {
			t.Errorf("%s is %s", name, state)
		}
	}

	// A unit of the machine's own is neither replaced nor removed.
	own := filepath.Join(root, systemd.UnitDir, "site.service")
	write(t, own, sleeper(5))
	take(t, k, assignment(unit("site.service", sleeper(6), true)))
	report, _ := k.Pass(t.Context())
	if !strings.Contains(fmt.Sprint(report), "a unit of its own, /etc/systemd/system/site.service") {
		t.Errorf("report: %+v", report)
	}
	take(t, k, wire.UnitAssignment{Machine: "m1", Drop: []wire.UnitDrop{{Name: "site.service"}}})
	reaches(t, k, "site.service", "")
	if b, err := os.ReadFile(own); err != nil || string(b) != sleeper(5) {
		t.Errorf("the machine's own unit: %q %v", b, err)
	}
}

// TestUnitsKilledWithRealSystemd: wherever the agent is killed, the next one brings it to an end, from what is on the disk alone.
func TestUnitsKilledWithRealSystemd(t *testing.T) {
	root := realSystemd(t)
	web := unit("web.service", sleeper(1000), true)
	for _, n := range []int{1, 4, 6} {
		left := n
		take(t, realKeeper(root), assignment(web))
		killedPass(t, realKeeper(root), &left)
		reaches(t, realKeeper(root), web.Name, "active")
		pid := property(t, web.Name, "MainPID")
		reaches(t, realKeeper(root), web.Name, "active")
		if is := property(t, web.Name, "MainPID"); is != pid {
			t.Errorf("killed at %d: it was started twice", n)
		}
		left = n
		take(t, realKeeper(root), wire.UnitAssignment{Machine: "m1", Drop: []wire.UnitDrop{{Name: web.Name}}})
		killedPass(t, realKeeper(root), &left)
		reaches(t, realKeeper(root), web.Name, "")
		if state := property(t, web.Name, "ActiveState"); state != "inactive" {
			t.Errorf("killed at %d: it is %s", n, state)
		}
	}
}
