package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// ownDir is on a file system that a power cut empties.
	ownDir = "/run/rack"
	// realProc is a second view of /proc, whose kernel parameters are the real ones.
	realProc = ownDir + "/proc"
)

// boot is PID 1 of a machine: boot ROOT HOSTNAME FROM:TO..., where each folder FROM of the host is to be at TO, read-only. It
// returns only when the machine cannot start.
func boot(args []string) error {
	if os.Getpid() != 1 || len(args) < 2 {
		return errors.New("boot ROOT HOSTNAME FROM:TO... is for PID 1 of a machine of the rack")
	}
	root, hostname, binds := args[0], args[1], args[2:]
	if err := mountAll(root, binds); err != nil {
		return fmt.Errorf("file systems: %w", err)
	}
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	if err := pretendKernel(); err != nil {
		return fmt.Errorf("what the kernel tells: %w", err)
	}
	os.Clearenv()
	if err := os.Setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"); err != nil {
		return err
	}
	m := newManager()
	go m.reap()
	if err := m.listen(); err != nil {
		return err
	}
	m.startEnabled()
	select {}
}

// mountAll makes root this process' root, with what an installed system has beside its disk.
func mountAll(root string, binds []string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount(root, root, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", root, err)
	}
	tmpfs := func(at, options string) error {
		return mount("tmpfs", filepath.Join(root, at), "tmpfs", unix.MS_NOSUID, options)
	}
	err := errors.Join(
		mount("proc", filepath.Join(root, "proc"), "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""),
		tmpfs("run", "mode=755"), tmpfs("dev", "mode=755"), tmpfs("sys", "mode=755"), tmpfs("tmp", "mode=1777"))
	if err != nil {
		return err
	}
	for _, device := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		at := filepath.Join(root, "dev", device)
		if err := os.WriteFile(at, nil, 0o666); err != nil {
			return err
		}
		if err := unix.Mount("/dev/"+device, at, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind /dev/%s: %w", device, err)
		}
	}
	for _, bind := range binds {
		from, to, _ := strings.Cut(bind, ":")
		at := filepath.Join(root, to)
		if err := mount(from, at, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		if err := unix.Mount("", at, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			return fmt.Errorf("make %s read-only: %w", to, err)
		}
	}
	// The old root is put over the new one and taken away from there (pivot_root(2)).
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	return errors.Join(unix.Unmount(".", unix.MNT_DETACH), os.Chdir("/"))
}

func mount(what, at, kind string, flags uintptr, options string) error {
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(what, at, kind, flags, options); err != nil {
		return fmt.Errorf("mount %s at %s: %w", what, at, err)
	}
	return nil
}

// pretendKernel gives the machine a boot of its own and kernel parameters of its own: most of the real ones are the
// host's, and not the machine's to change.
func pretendKernel() error {
	if err := mount("proc", realProc, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	if err := mount("tmpfs", "/proc/sys", "tmpfs", unix.MS_NOSUID, "mode=755"); err != nil {
		return err
	}
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	release, err := os.ReadFile(realProc + "/sys/kernel/osrelease")
	if err != nil {
		return err
	}
	for file, text := range map[string]string{
		"/proc/sys/kernel/random/boot_id": fmt.Sprintf("%x-%x-4%x-8%x-%x\n", id[:4], id[4:6], id[6:8], id[8:10], id[10:])[:36] + "\n",
		"/proc/sys/kernel/osrelease":      string(release),
		ownDir + "/stat":                  fmt.Sprintf("btime %d\n", time.Now().Unix()),
	} {
		if err := writeBelow(file, text); err != nil {
			return err
		}
	}
	return unix.Mount(ownDir+"/stat", "/proc/stat", "", unix.MS_BIND, "")
}

// writeBelow writes a file and makes the folders above it.
func writeBelow(file, text string) error {
	return errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644))
}

// setParameters does the work of systemd-sysctl. What belongs to the network namespace is set for real.
func setParameters() error {
	return eachLine("/etc/sysctl.d/*.conf", func(line string) error {
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			return nil
		}
		key, value = strings.ReplaceAll(strings.TrimSpace(key), ".", "/"), strings.TrimSpace(value)+"\n"
		if strings.HasPrefix(key, "net/") {
			if _, err := os.Stat(filepath.Join(realProc, "sys", key)); err == nil {
				if err := os.WriteFile(filepath.Join(realProc, "sys", key), []byte(value), 0o644); err != nil {
					return err
				}
			}
		}
		return writeBelow(filepath.Join("/proc/sys", key), value)
	})
}

// loadModules does the work of systemd-modules-load: the host's kernel has what it has.
func loadModules() error {
	return eachLine("/etc/modules-load.d/*.conf", func(line string) error {
		return os.MkdirAll(filepath.Join("/sys/module", line), 0o755)
	})
}

// eachLine calls do with the lines of files that are no comments.
func eachLine(pattern string, do func(line string) error) error {
	files, err := filepath.Glob(pattern)
	if err != nil {
		return err
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b)) {
			if line = strings.TrimSpace(line); line == "" || strings.ContainsAny(line[:1], "#;") {
				continue
			}
			if err := do(line); err != nil {
				return fmt.Errorf("%s: %s: %w", file, line, err)
			}
		}
	}
	return nil
}
