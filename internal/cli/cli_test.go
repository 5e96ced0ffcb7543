package cli

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
)

var update = flag.Bool("update", false, "write golden files")

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// golden compares sections with testdata/name.txtar.
func golden(t *testing.T, name string, got *txtar.Archive) {
	t.Helper()
	path := "testdata/" + name + ".txtar"
	if *update {
		if err := os.WriteFile(path, txtar.Format(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; run go test -update", err)
	}
	if diff := cmp.Diff(string(want), string(txtar.Format(got))); diff != "" {
		t.Errorf("%s differs; go test -update accepts it:\n%s", path, diff)
	}
}

func machine(name string, phase v1alpha1.MachinePhase, age time.Duration, changes ...func(*v1alpha1.Machine)) v1alpha1.Machine {
	m := v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(noon.Add(-2 * time.Hour))}}
	m.Status.Phase = phase
	m.Status.PhaseSince = &metav1.Time{Time: noon.Add(-age)}
	for _, change := range changes {
		change(&m)
	}
	return m
}

func says(text string) func(*v1alpha1.Machine) {
	return func(m *v1alpha1.Machine) { m.Status.Message = text }
}

func at(address, rack string, unit int32) func(*v1alpha1.Machine) {
	return func(m *v1alpha1.Machine) {
		m.Status.Address, m.Spec.Location.Rack, m.Spec.Location.Unit = address, rack, unit
	}
}

// steps puts the machine into the named step of an install, with a share of its bytes done.
func steps(current string, done int64, state v1alpha1.StepState) func(*v1alpha1.Machine) {
	return func(m *v1alpha1.Machine) {
		past := true
		start := noon.Add(-3 * time.Minute)
		for i, name := range []string{"preflight", "select-disk", "wipe", "partition", "filesystem", "image", "bootloader", "node-config", "identity", "reboot"} {
			step := v1alpha1.Step{Name: name, State: v1alpha1.StepPending}
			if name == "image" {
				step.BytesTotal = 1 << 30
			}
			begun := metav1.NewMicroTime(start.Add(time.Duration(i) * 4 * time.Second))
			ended := metav1.NewMicroTime(begun.Add(3700 * time.Millisecond))
			switch {
			case name == current:
				past = false
				step.State, step.BytesDone, step.StartedAt = state, done, &begun
				if state == v1alpha1.StepFailed {
					step.Message, step.FinishedAt = "two disks match: sda, sdb", &ended
				}
			case past:
				step.State, step.BytesDone, step.StartedAt, step.FinishedAt = v1alpha1.StepSucceeded, step.BytesTotal, &begun, &ended
			}
			m.Status.Steps = append(m.Status.Steps, step)
		}
	}
}

func inventory(m *v1alpha1.Machine) {
	m.Status.Inventory = &v1alpha1.Inventory{
		ReportedAt: metav1.NewTime(noon.Add(-time.Hour)),
		System:     v1alpha1.SystemInfo{Vendor: "Dell Inc.", Product: "PowerEdge R640", Serial: "ABC123", UUID: "4c4c4544-0000-1000-8000-000000000001"},
		CPU:        v1alpha1.CPUInfo{Model: "Xeon Gold 6130", Sockets: 2, Cores: 32, Threads: 64},
		Memory:     resource.MustParse("384Gi"),
		Firmware:   "UEFI", SecureBoot: true, TPM: "2.0",
		Disks: []v1alpha1.Disk{
			{Name: "sda", ByID: "scsi-3600", Model: "PM1643", Size: resource.MustParse("960G"), Transport: "sas", Contents: []string{"gpt", "ext4 /dev/sda3"}},
			{Name: "nvme0n1", Model: "P4610", Size: resource.MustParse("1600G"), Transport: "nvme"},
		},
		NICs: []v1alpha1.NIC{
			{Name: "eno1", MAC: "52:54:00:00:00:01", Driver: "i40e", Link: true, SpeedMbps: 10000, Boot: true,
				LLDP: &v1alpha1.LLDPNeighbour{SystemName: "tor-1", PortID: "Ethernet4"}},
			{Name: "eno2", MAC: "52:54:00:00:00:02", Driver: "i40e"},
		},
	}
}

// rack is one machine of every kind that an operator meets.
func rackOfMachines() []v1alpha1.Machine {
	return []v1alpha1.Machine{
		machine("node-10", v1alpha1.PhaseReady, 26*time.Hour, at("10.20.0.40", "r1", 10)),
		machine("node-2", v1alpha1.PhaseReady, 40*time.Minute, at("10.20.0.32", "r1", 2)),
		machine("node-3", v1alpha1.PhaseInstalling, 3*time.Minute, at("10.20.0.103", "r1", 3), steps("image", 461708984, v1alpha1.StepRunning)),
		machine("node-4", v1alpha1.PhaseInstalling, 20*time.Second, at("10.20.0.104", "r1", 4), steps("partition", 0, v1alpha1.StepRunning)),
		machine("node-5", v1alpha1.PhaseFailed, 9*time.Minute, at("10.20.0.105", "r1", 5), steps("select-disk", 0, v1alpha1.StepFailed),
			says("hint model=PM* matches two disks: sda, sdb; add serial or smallest to Profile worker")),
		machine("node-6", v1alpha1.PhaseLost, 2*time.Hour, at("10.20.0.36", "r2", 6), says("no heartbeat for 2h; look at power and network")),
		machine("node-7", v1alpha1.PhaseDiscovering, 40*time.Minute, at("10.20.0.107", "r2", 7)),
		machine("m-525400000008", v1alpha1.PhaseWaiting, 5*time.Minute, at("10.20.0.108", "", 0), says("waits for approval: coldrack approve m-525400000008"), inventory),
		machine("node-9", "", 0, at("", "r2", 9)),
	}
}

func TestRenderWatch(t *testing.T) {
	all := rackOfMachines()
	var many []v1alpha1.Machine
	for i := range 400 {
		many = append(many, machine(fmt.Sprintf("node-%d", i+1), v1alpha1.PhaseReady, time.Hour))
	}
	many[216] = machine("node-217", v1alpha1.PhaseFailed, time.Minute, says("no link on eno1"))
	pictures := []struct {
		name          string
		snapshot      Snapshot
		width, height int
	}{
		{"a wide terminal shows everything", Snapshot{Machines: all, Server: "https://10.0.0.1:7443"}, 160, 20},
		{"a narrow one shows who is stuck and why", Snapshot{Machines: all, Server: "https://10.0.0.1:7443", Goal: "3 Ready"}, 70, 20},
		{"a low one counts what does not fit", Snapshot{Machines: all, Server: "x", Trouble: "connection\nrefused"}, 120, 8},
		{"of four hundred machines the stuck one is on top", Snapshot{Machines: many, Server: "x"}, 100, 8},
		{"a storm", Snapshot{Machines: all[:2], Server: "x", Boots: BootsText(412, 96, 316, 0)}, 100, 10},
		{"beside a rehearsal", Snapshot{Machines: all, Server: "x", Rehearsed: "1 of 4 ready after 64.0 s; rehearsed: 3, and 1 after 24.0 s",
			Stragglers: map[string]string{all[len(all)-1].Name: "straggler: 111.0 s since its boot; the others take 60.0 s here"}}, 140, 20},
		{"no machines yet", Snapshot{Server: "x"}, 100, 10},
	}
	archive := &txtar.Archive{}
	for _, p := range pictures {
		picture := RenderWatch(p.snapshot, p.width, p.height, noon)
		lines := strings.Split(picture, "\n")
		if len(lines) > p.height {
			t.Errorf("%s: %d lines do not fit on %d", p.name, len(lines), p.height)
		}
		for _, l := range lines {
			if utf8.RuneCountInString(l) > p.width {
				t.Errorf("%s: line is wider than %d: %q", p.name, p.width, l)
			}
		}
		archive.Files = append(archive.Files, txtar.File{Name: p.name, Data: []byte(picture + "\n")})
	}
	golden(t, "watch", archive)
}

func TestRenderWatchFitsAnySize(t *testing.T) {
	snapshot := Snapshot{Machines: rackOfMachines(), Server: "https://10.0.0.1:7443", Trouble: "gone", Goal: "3 Ready"}
	for width := 1; width < 200; width += 7 {
		for height := 1; height < 30; height++ {
			lines := strings.Split(RenderWatch(snapshot, width, height, noon), "\n")
			if len(lines) > height {
				t.Fatalf("%dx%d: %d lines", width, height, len(lines))
			}
			for _, l := range lines {
				if utf8.RuneCountInString(l) > width {
					t.Fatalf("%dx%d: line is too wide: %q", width, height, l)
				}
			}
		}
	}
}

func TestTables(t *testing.T) {
	machines := rackOfMachines()
	SortMachines(machines, false, noon)
	var narrow, wide strings.Builder
	if err := MachineTable(machines, noon, false).Print(&narrow, true); err != nil {
		t.Fatal(err)
	}
	if err := MachineTable(machines, noon, true).Print(&wide, true); err != nil {
		t.Fatal(err)
	}
	golden(t, "machines", &txtar.Archive{Files: []txtar.File{
		{Name: "machines", Data: []byte(narrow.String())},
		{Name: "machines -o wide", Data: []byte(wide.String())},
	}})
}

func TestDescribe(t *testing.T) {
	ready := machine("node-1", v1alpha1.PhaseReady, 3*time.Hour, inventory, at("10.20.0.31", "r1", 4), steps("none", 0, ""))
	ready.Labels = map[string]string{"rack": "r1", "a": "b"}
	ready.Spec.Approved, ready.Spec.Profile, ready.Spec.Hostname = true, "worker", "node-1"
	ready.Spec.Intent = &v1alpha1.Intent{ID: "i1", Action: v1alpha1.ActionInstall, RequestedBy: "anna@desk", RequestedAt: &metav1.Time{Time: noon.Add(-3 * time.Hour)}}
	ready.Status.Intent = &v1alpha1.IntentStatus{ID: "i1", Action: v1alpha1.ActionInstall, State: v1alpha1.IntentSucceeded}
	ready.Status.Installed = &v1alpha1.InstalledStatus{Image: "debian-12", ImageDigest: "sha256:00", Disk: "scsi-3600", At: metav1.NewTime(noon.Add(-3 * time.Hour))}
	ready.Status.Node = &v1alpha1.NodeStatus{AgentVersion: "v0.1.0", OS: "Debian 12", Kernel: "6.1.0", BootedAt: &metav1.Time{Time: noon.Add(-3 * time.Hour)}, Addresses: []string{"10.20.0.31/24"}, FailedUnits: []string{"foo.service"}}
	ready.Status.Boots = []v1alpha1.BootRecord{
		{At: metav1.NewTime(noon.Add(-3 * time.Hour)), Action: v1alpha1.BootLocalDisk, Reason: "debian-12 is installed on scsi-3600", MAC: "52:54:00:00:00:01", Address: "10.20.0.31", Firmware: "UEFI"},
	}
	ready.Status.Conditions = []metav1.Condition{{Type: "Ready", Status: "True", Reason: "Heartbeats", Message: "reports every 30s", LastTransitionTime: metav1.NewTime(noon.Add(-3 * time.Hour))}}
	ready.Status.Hardware = &v1alpha1.Hardware{
		ReportedAt: metav1.NewTime(noon.Add(-time.Hour)),
		Firmware:   v1alpha1.FirmwareVersions{BIOSVersion: "2.19.1", BIOSDate: "06/04/2023", BMC: "7.10", Microcode: "0x2006f05"},
		Devices: []v1alpha1.PCIDevice{
			{ID: "10de:20b5", Name: "NVIDIA GA100 [A100 PCIe 80GB]", Class: "030200", Kind: v1alpha1.AcceleratorGPU, Count: 2, NUMANode: new(int32(0)),
				Addresses: []string{"0000:17:00.0", "0000:31:00.0"}, Link: &v1alpha1.PCILink{Width: 8, MaxWidth: 16, MaxSpeedMTs: 16000}},
			{ID: "8086:1572", Class: "020000", Count: 1, Addresses: []string{"0000:01:00.0"}, Link: &v1alpha1.PCILink{Width: 8, MaxWidth: 8, SpeedMTs: 2500, MaxSpeedMTs: 8000}},
		},
		MemoryModules:    []v1alpha1.MemoryModule{{Slot: "A1", Size: resource.MustParse("32Gi"), Type: "DDR4", ECC: true, SpeedMTs: 2666, Manufacturer: "Samsung", PartNumber: "M393A4K40CB2", Serial: "03B1F2"}},
		EmptyMemorySlots: []string{"A2", "B1"},
		Disks:            []v1alpha1.DiskState{{Name: "nvme0n1", Serial: "S1", Firmware: "1.2.1", Health: &v1alpha1.DiskHealth{Warnings: []string{"spare"}, UsedPercent: 97, SparePercent: 4, TemperatureCelsius: 38}}},
	}
	failed := rackOfMachines()[4]
	blank := rackOfMachines()[8]
	archive := &txtar.Archive{}
	for _, m := range []v1alpha1.Machine{ready, failed, blank} {
		archive.Files = append(archive.Files, txtar.File{Name: m.Name, Data: []byte(Describe(&m, noon))})
	}
	golden(t, "describe", archive)
}

func TestTransitions(t *testing.T) {
	waiting := machine("n", v1alpha1.PhaseWaiting, 0, says("waits for approval"))
	early := machine("n", v1alpha1.PhaseInstalling, 0, steps("image", 1<<20, v1alpha1.StepRunning))
	little := machine("n", v1alpha1.PhaseInstalling, 0, steps("image", 2<<20, v1alpha1.StepRunning))
	half := machine("n", v1alpha1.PhaseInstalling, 0, steps("image", 1<<29, v1alpha1.StepRunning))
	failed := machine("n", v1alpha1.PhaseFailed, 0, steps("image", 1<<29, v1alpha1.StepFailed), says("disk\nis broken"))
	ready := machine("n", v1alpha1.PhaseReady, 0, at("10.0.0.1", "", 0), steps("reboot", 0, v1alpha1.StepRunning))
	tests := []struct {
		name          string
		before, after *v1alpha1.Machine
		want          []string
	}{
		{"a machine that appears is told with its phase", nil, &waiting, []string{"Waiting: waits for approval"}},
		{"nothing changes, nothing is told", &waiting, &waiting, nil},
		{"a phase and its step", &waiting, &early, []string{"Installing", "  [######..............] image 0% (6/10)"}},
		{"a little more of the same step is not told", &early, &little, nil},
		{"another quarter is", &early, &half, []string{"  [###########.........] image 50% (6/10)"}},
		{"a failure is told with its reason on one line", &half, &failed, []string{"Failed: disk is broken", "  [###########.........] image failed (6/10)"}},
		{"steps of the past are not told", &failed, &ready, []string{"Ready at 10.0.0.1"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, Transitions(test.before, test.after)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestStuck(t *testing.T) {
	conflict := machine("n", v1alpha1.PhaseWaiting, 0)
	conflict.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionIdentityConflict, Status: metav1.ConditionTrue, Message: "same serial as node-2"}}
	tests := []struct {
		name    string
		machine v1alpha1.Machine
		want    string
	}{
		{"a Ready machine is not stuck, however old", machine("n", v1alpha1.PhaseReady, 900*time.Hour), ""},
		{"one that waits for approval is not stuck", machine("n", v1alpha1.PhaseWaiting, 900*time.Hour), ""},
		{"a failed one is, with its message", machine("n", v1alpha1.PhaseFailed, 0, says("no disk")), "no disk"},
		{"a failed one without a message still is", machine("n", v1alpha1.PhaseFailed, 0), "failed"},
		{"a slow boot is not", machine("n", v1alpha1.PhaseDiscovering, 14*time.Minute), ""},
		{"one that never comes out of its firmware is", machine("n", v1alpha1.PhaseDiscovering, 16*time.Minute), "discovering for 16m"},
		{"two machines that claim the same serial are", conflict, "same serial as node-2"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := Stuck(&test.machine, noon); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestNaturalOrder(t *testing.T) {
	names := []string{"node-10", "node-9", "node-09", "a", "", "node-9b", "node", "r2-u1", "r10-u1"}
	var machines []v1alpha1.Machine
	for _, n := range names {
		machines = append(machines, machine(n, v1alpha1.PhaseReady, 0))
	}
	SortMachines(machines, false, noon)
	var got []string
	for _, m := range machines {
		got = append(got, m.Name)
	}
	want := []string{"", "a", "node", "node-9", "node-09", "node-9b", "node-10", "r2-u1", "r10-u1"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestTerminalControlIsRemoved(t *testing.T) {
	// A machine's serial and messages come from the network; none of it may reach a terminal as control.
	if got := oneLine("a\x1b[2J\nb\u009b31m\tc\x7f"); got != "a[2J b31m c" {
		t.Errorf("got %q", got)
	}
}

func TestAgeAndBytes(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 59 * time.Second: "59s", 61 * time.Second: "1m01s", 59 * time.Minute: "59m",
		61 * time.Minute: "1h01m", 25 * time.Hour: "1d",
	} {
		if got := Age(d); got != want {
			t.Errorf("Age(%s) = %s, want %s", d, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536 << 20: "1.5 GiB", 1 << 62: "4.0 EiB"} {
		if got := Bytes(n); got != want {
			t.Errorf("Bytes(%d) = %s, want %s", n, got, want)
		}
	}
}
