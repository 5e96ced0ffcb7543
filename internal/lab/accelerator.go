package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"time"
)

// kvmLimit is how long the firmware of an empty machine may take under KVM to find nothing to boot and give up, when
// emulation needed so long for it. There are hosts, virtual ones mostly, on which KVM works and is ten or a hundred times slower
// than emulation. A comparison holds on a busy host, too: both are slow there. The half second is what QEMU itself needs.
func kvmLimit(emulation time.Duration) time.Duration { return emulation + 500*time.Millisecond }

// ProbeAccelerator finds out by trying what runs machines here: KVM, or emulation and why not KVM. That /dev/kvm opens and
// makes virtual machines proves nothing: on some hosts QEMU's first virtual processor fails, on others it is slow.
func ProbeAccelerator(ctx context.Context) (chosen Accelerator, whyNotKVM string, err error) {
	if _, err := exec.LookPath(emulator); err != nil {
		return "", "", missingEmulator(err)
	}
	device, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return TCG, err.Error(), nil
	}
	device.Close()
	began := time.Now()
	reason, err := tryAccelerator(ctx, acceleratorArgs(TCG, 64*MiB), time.Minute)
	switch {
	case err != nil:
		return "", "", err
	case reason != "":
		return "", "", fmt.Errorf("%s cannot run a machine, not even by emulation: %s", emulator, reason)
	}
	limit := kvmLimit(time.Since(began))
	reason, err = tryAccelerator(ctx, acceleratorArgs(KVM, 64*MiB), limit)
	switch {
	case err != nil:
		return "", "", err
	case reason != "":
		return TCG, reason, nil
	}
	return KVM, "", nil
}

// tryAccelerator starts a machine with nothing in it. Its BIOS finds no device to boot, asks for a reset,
// and QEMU ends. The reason is empty when that happened in time; the error is for a trial that could not
// be made.
func tryAccelerator(ctx context.Context, accelerator []string, limit time.Duration) (reason string, err error) {
	dir, err := os.MkdirTemp("", "coldrack-kvm-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	trial, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	args := append(slices.Clone(accelerator), "-machine", "q35,graphics=off", "-m", "64M", "-nodefaults", "-no-user-config",
		"-display", "none", "-no-reboot", "-boot", "reboot-timeout=1")
	command := exec.CommandContext(trial, emulator, args...)
	command.Dir = dir
	command.WaitDelay = time.Second
	out, err := command.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case trial.Err() != nil:
		return fmt.Sprintf("firmware did not get through in %s", limit.Round(time.Millisecond)), nil
	case errors.As(err, &exit):
		return fmt.Sprintf("%s: %s", exit, firstLine(out)), nil
	}
	return "", err
}

func missingEmulator(err error) error {
	return fmt.Errorf("%w: install the Debian package qemu-system-x86", err)
}
