package lab_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"coldrack.dev/internal/lab"
	"coldrack.dev/internal/machine/bmc"
	"coldrack.dev/test/require"
)

// The server's driver switches a real virtual machine: its process comes, is replaced, and goes.
func TestBMC(t *testing.T) {
	require.Need(t, "root", "netns", "qemu")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	o := lab.Options{
		Dir: filepath.Join(t.TempDir(), "lab"), Name: "bmc" + strconv.Itoa(os.Getpid()%10000), Machines: 1, Firmware: lab.BIOS, CPUs: 1, Memory: 64 * lab.MiB, Disks: []lab.Size{lab.MiB},
		Nice: 19, Accelerator: lab.TCG,
	}
	l, err := lab.Create(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Down(context.Background(), o.Dir, o.Name, false); err != nil {
			t.Error(err)
		}
	})
	controller, err := l.OpenBMC(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := l.OpenBMC(ctx); err != nil || again.Certificate != controller.Certificate || again.Password != controller.Password {
		t.Errorf("opened again it is another: %v", err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serving, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- controller.Serve(serving, listener) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()

	m := l.Machine(1)
	driver, err := bmc.Open(bmc.Target{Address: listener.Addr().String(), Certificate: controller.Certificate, Username: controller.User, Password: bmc.Password(controller.Password)}, bmc.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer driver.Close()
	do := func(action bmc.Action) (pid int) {
		t.Helper()
		if err := driver.Do(ctx, action); err != nil {
			t.Fatalf("%s: %v", action, err)
		}
		usage, _ := m.Usage()
		return usage.PID
	}
	probe, err := driver.Probe(ctx)
	if err != nil || probe.Inventory.Serial != m.Spec().Serial || probe.Inventory.MACs[0] != m.MAC().String() || probe.Power != bmc.Off {
		t.Fatalf("%+v, %v", probe, err)
	}
	first := do(bmc.PowerOn)
	if m.State() != lab.On || first == 0 {
		t.Fatal("the machine is off after power on")
	}
	if same := do(bmc.Reset); same != first {
		t.Error("a reset took the power away")
	}
	if err := driver.BootOnce(ctx, bmc.Boot{Device: bmc.BootDisk}); err != nil {
		t.Fatal(err)
	}
	second := do(bmc.PowerCycle)
	if second == first || second == 0 {
		t.Errorf("process %d after a power cycle, %d before", second, first)
	}
	if line := commandLine(t, second); strings.Contains(line, "mac="+m.MAC().String()+",bootindex") {
		t.Errorf("the network is asked although the disk was chosen: %s", line)
	}
	if third := do(bmc.PowerCycle); !strings.Contains(commandLine(t, third), "mac="+m.MAC().String()+",bootindex") {
		t.Error("the disk was chosen for one boot, and it is still so")
	}
	if do(bmc.PowerOff) != 0 || m.State() != lab.Off {
		t.Error("the machine is on after power off")
	}
}

func commandLine(t *testing.T, pid int) string {
	t.Helper()
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(text), "\x00", " ")
}
