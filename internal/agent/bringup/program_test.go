package bringup

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/test/require"
)

func TestAProgramThatTheServerLacks(t *testing.T) {
	r := newRig(t)
	plan := r.controlPlane()
	delete(r.blobs, plan.Programs[1].Content.Digest)
	e := r.executor()
	r.start(e)
	e.Assign(r.give("v1", plan))
	report := r.until("it fails", func(p wire.PhaseReport) bool { return step(p, "content").State == wire.StateFailed })
	if m := step(report, "content").Message; !strings.Contains(m, "does not have program containerd") || !strings.Contains(m, "coldrack bundle import") {
		t.Errorf("it says %q", m)
	}
	enc := r.program("containerd", "/usr/local/bin/containerd", []byte("containerd")) // imported meanwhile
	if enc.Content.Digest != plan.Programs[1].Content.Digest {
		t.Fatal("not the same")
	}
	r.done("v1")
}

func TestProgramsThatAreNotWhatThePlanSays(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*rig, *wire.Program)
		want   string
	}{
		"another file inside":   {func(_ *rig, p *wire.Program) { p.Digest = sha([]byte("other")) }, "is not what the plan says once it is unpacked"},
		"a longer file inside":  {func(_ *rig, p *wire.Program) { p.Size-- }, "is not what the plan says"},
		"a shorter file inside": {func(_ *rig, p *wire.Program) { p.Size++ }, "is not what the plan says"},
		"damage that still unpacks": {func(r *rig, p *wire.Program) {
			r.blobs[p.Content.Digest] = r.blobs[r.program("x", "/x", []byte("containerX")).Content.Digest]
		}, "arrived damaged"},
		"damage that does not": {func(r *rig, p *wire.Program) {
			r.blobs[p.Content.Digest] = bytes.Repeat([]byte{7}, int(p.Content.Size))
		}, "cannot be unpacked"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			plan := r.controlPlane()
			tt.change(r, &plan.Programs[1])
			e := r.executor()
			r.start(e)
			e.Assign(r.give("v1", plan))
			report := r.until("it fails", func(p wire.PhaseReport) bool { return step(p, "content").State == wire.StateFailed })
			if m := step(report, "content").Message; !strings.Contains(m, tt.want) {
				t.Errorf("it says %q, want %q", m, tt.want)
			}
			if r.has(plan.Programs[1].Path) {
				t.Error("it was installed all the same")
			}
		})
	}
}

// Programs of the same content are fetched once and lie on the disk once. Each can be replaced without the others.
func TestProgramsThatAreOne(t *testing.T) {
	r := newRig(t)
	plan := r.controlPlane()
	plan.Programs[0] = r.program("kubelet", "/usr/bin/kubelet", []byte("kubelet v1.37.2"))
	plan.Programs[1] = r.program("kubeadm", "/usr/bin/kubeadm", []byte("kubelet v1.37.2"))
	plan.Programs[2] = r.program("kubectl", "/usr/bin/kubectl", []byte("kubelet v1.37.2"))
	a := r.give("v1", plan)
	r.bringUp(a)
	if n := r.fetched[plan.Programs[0].Content.Digest]; n != 1 {
		t.Errorf("fetched %d times", n)
	}
	inode := func(path string) uint64 {
		t.Helper()
		var s unix.Stat_t
		if err := unix.Lstat(filepath.Join(r.root, path), &s); err != nil {
			t.Fatal(err)
		}
		return s.Ino
	}
	if inode("/usr/bin/kubelet") != inode("/usr/bin/kubeadm") || inode("/usr/bin/kubelet") != inode("/usr/bin/kubectl") {
		t.Error("they lie on the disk more than once")
	}
	digests := map[string]known{}
	if err := json.Unmarshal([]byte(r.read(digestsFile)), &digests); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/usr/bin/kubelet", "/usr/bin/kubeadm", "/usr/bin/kubectl"} {
		info, err := os.Lstat(filepath.Join(r.root, path))
		if err != nil {
			t.Fatal(err)
		}
		now := identify(info)
		if now.Digest = plan.Programs[0].Digest; digests[path] != now {
			t.Errorf("%s would be read once more: %+v is noted, it is %+v", path, digests[path], now)
		}
	}

	plan = copyOf(a).Plan
	plan.Programs[0] = r.program("kubelet", "/usr/bin/kubelet", []byte("kubelet v1.37.3"))
	r.bringUp(r.give("v2", plan))
	if r.read("/usr/bin/kubelet") != "kubelet v1.37.3" || r.read("/usr/bin/kubeadm") != "kubelet v1.37.2" {
		t.Errorf("kubelet is %q, kubeadm %q", r.read("/usr/bin/kubelet"), r.read("/usr/bin/kubeadm"))
	}
}

func TestARunningProgramIsReplaced(t *testing.T) {
	r := newRig(t)
	sleep, err := os.ReadFile("/bin/sleep")
	if err != nil {
		t.Skip(err)
	}
	plan := r.controlPlane()
	plan.Programs[1] = r.program("containerd", "/usr/local/bin/containerd", sleep)
	a := r.give("v1", plan)
	r.bringUp(a)
	process, err := os.StartProcess(filepath.Join(r.root, "/usr/local/bin/containerd"), []string{"sleep", "60"}, &os.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = process.Kill(); _, _ = process.Wait() }()
	plan = copyOf(a).Plan
	plan.Programs[1] = r.program("containerd", "/usr/local/bin/containerd", []byte("new"))
	r.bringUp(r.give("v2", plan))
	if r.read("/usr/local/bin/containerd") != "new" {
		t.Error("it was not replaced")
	}
	if err := process.Signal(unix.Signal(0)); err != nil {
		t.Errorf("the running one ended: %v", err)
	}
}

// TestAFullDisk runs on a file system of 1 MiB: the error says what and how much, and nothing half-written is left.
func TestAFullDisk(t *testing.T) {
	require.Need(t, "root")
	r := newRig(t)
	small := filepath.Join(r.root, "etc", "containerd")
	if err := os.MkdirAll(small, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("cannot mount: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(small, unix.MNT_DETACH) })
	plan := r.controlPlane()
	noise := make([]byte, 2<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(noise)
	fileAt(plan, "/etc/containerd/config.toml").Content = noise
	plan.Programs[2] = r.program("cni-bridge", "/etc/containerd/bin/bridge", noise)
	e := r.executor()
	stop := r.start(e)
	e.Assign(r.give("v1", plan))
	report := r.until("both fail", func(p wire.PhaseReport) bool {
		return step(p, "config").State == wire.StateFailed && step(p, "content").State == wire.StateFailed
	})
	if m := step(report, "config").Message; !strings.Contains(m, "/etc/containerd/config.toml: the disk is full") || !strings.Contains(m, "of 1.0 MiB") {
		t.Errorf("it says %q", m)
	}
	if m := step(report, "content").Message; !strings.Contains(m, "/etc/containerd/bin/bridge needs 66.0 MiB and has") {
		t.Errorf("it says %q", m)
	}
	stop() // it would be trying again while the folder is looked at
	left, err := filepath.Glob(small + "/.*")
	if err != nil || len(left) > 0 || r.has("/etc/containerd/config.toml") {
		t.Errorf("left behind: %q", left)
	}
	if err := unix.Mount("", small, "", unix.MS_REMOUNT, "size=100m"); err != nil {
		t.Fatal(err)
	}
	r.start(r.executor())
	r.done("v1")
}

func TestRoutesThatCannotBeSetAreSaid(t *testing.T) {
	r := newRig(t)
	r.record.fail(errors.New("network is unreachable"))
	e := r.executor()
	r.start(e)
	e.Assign(r.give("v1", r.controlPlane()))
	report := r.until("it fails", func(p wire.PhaseReport) bool { return step(p, "network").State == wire.StateFailed })
	if m := step(report, "network").Message; !strings.Contains(m, "unreachable") {
		t.Errorf("it says %q", m)
	}
	r.record.fail(nil)
	r.done("v1")
}

// A slow download is not cut off because it is time to look at everything again.
func TestADownloadOutlastsALookAround(t *testing.T) {
	r := newRig(t)
	e := r.executor(func(o *Options) {
		o.Pace.Again = 10 * time.Millisecond
		o.Content = func(base string, tell func(string, error, time.Duration)) Fetcher { return slow{newSource(base, tell)} }
	})
	r.start(e)
	e.Assign(r.give("v1", r.controlPlane()))
	r.done("v1")
	for digest, n := range r.fetched {
		if n > 1 {
			t.Errorf("%s was begun %d times", digest, n)
		}
	}
}

type slow struct{ Fetcher }

func (s slow) Copy(ctx context.Context, what string, c wire.Content, w io.Writer) error {
	wait(ctx, 50*time.Millisecond)
	if ctx.Err() != nil {
		return fmt.Errorf("cut off: %w", ctx.Err())
	}
	return s.Fetcher.Copy(ctx, what, c, w)
}
