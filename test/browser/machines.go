package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
)

// seed writes machines into a server that has none: status too, as a server finds it that was restarted. What the controllers make of it is
// what they would make of real machines with this history.
func seed(ctx context.Context, c client.Client, machines []v1alpha1.Machine) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(16)
	for i := range machines {
		group.Go(func() error {
			m := machines[i].DeepCopy()
			status := m.Status
			if err := c.Create(ctx, m); err != nil {
				return fmt.Errorf("create machine %s: %w", m.Name, err)
			}
			bare := m.DeepCopy()
			m.Status = status
			// Controllers have written it in between.
			if err := c.Status().Patch(ctx, m, client.MergeFrom(bare)); err != nil {
				return fmt.Errorf("status of machine %s: %w", m.Name, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// unitsOfRack is how many machines stand in one rack.
const unitsOfRack = 40

// stuckOf is how many of n made-up machines are stuck.
func stuckOf(n int) int {
	switch {
	case n < 3:
		return 0
	case n == 3:
		return 2
	}
	return 3
}

// madeUp makes n machines with all sorts of fates: a few are stuck (stuckOf), the others are where one finds them on a good day.
func madeUp(n int, now time.Time) []v1alpha1.Machine {
	machines := make([]v1alpha1.Machine, 0, n)
	for i := range n {
		m := bare(i)
		switch {
		case n >= 3 && i == n/3:
			failed(&m, now)
		case n >= 3 && i == 2*n/3:
			lost(&m, now)
		case n >= 3 && i == n-1:
			failedDisk(&m, now)
		case n <= 3 || i%40 == 7:
			waiting(&m, now)
		case i%40 == 11:
			installing(&m, now, i)
		case i%80 == 23:
			rebooting(&m, now)
		case i%80 == 63:
			// written beforehand, not seen
		case i%160 == 97:
			waiting(&m, now)
			m.Spec.Location = v1alpha1.Location{}
		default:
			ready(&m, now.Add(-time.Duration(i%700)*time.Hour))
		}
		machines = append(machines, m)
	}
	return machines
}

func bare(i int) v1alpha1.Machine {
	rack, unit := i/unitsOfRack, i%unitsOfRack
	m := v1alpha1.Machine{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("node-%05d", i), Labels: map[string]string{"row": fmt.Sprintf("r%d", rack/10)}},
		Spec: v1alpha1.MachineSpec{
			Identifiers: v1alpha1.Identifiers{MACs: []string{mac(i, 0)}, Serial: fmt.Sprintf("SN%07d", i)},
			Location:    v1alpha1.Location{Site: fmt.Sprintf("dc%d", rack/100+1), Rack: fmt.Sprintf("%c%02d", 'A'+rack/10%26, rack%10+1), Unit: int32(unit + 1)},
		},
	}
	return m
}

func mac(i, nic int) string {
	return fmt.Sprintf("02:%02x:%02x:%02x:%02x:%02x", nic, i>>24&255, i>>16&255, i>>8&255, i&255)
}

func inventory(m *v1alpha1.Machine, now time.Time) {
	var i int
	_, _ = fmt.Sscanf(m.Name, "node-%d", &i)
	m.Status.Inventory = &v1alpha1.Inventory{
		ReportedAt: metav1.NewTime(now), Firmware: "UEFI", TPM: "2.0", Memory: resource.MustParse("256Gi"),
		System: v1alpha1.SystemInfo{Vendor: "Example Computer", Product: "R740", Serial: m.Spec.Identifiers.Serial, UUID: fmt.Sprintf("4c4c4544-0000-4000-8000-%012x", i+1), BIOSVersion: "2.19.1"},
		CPU:    v1alpha1.CPUInfo{Model: "Xeon Gold 6338 @ 2.00GHz", Sockets: 2, Cores: 64, Threads: 128},
		Disks: []v1alpha1.Disk{
			{Name: "nvme0n1", ByID: fmt.Sprintf("nvme-EX960_%07d", i), Model: "EX960", Serial: fmt.Sprintf("D%07d", i), Size: resource.MustParse("894Gi"), Transport: "nvme"},
			{Name: "sda", ByID: fmt.Sprintf("ata-EX8T_%07d", i), Model: "EX8T", Serial: fmt.Sprintf("E%07d", i), Size: resource.MustParse("7452Gi"), Transport: "sata", Rotational: true},
		},
		NICs: []v1alpha1.NIC{
			{Name: "eno1", MAC: mac(i, 0), Driver: "ice", Link: true, SpeedMbps: 25000, Boot: true, Bus: "pci", LLDP: &v1alpha1.LLDPNeighbour{SystemName: "leaf-" + m.Spec.Location.Rack, PortID: fmt.Sprintf("Ethernet%d", i%48+1)}},
			{Name: "eno2", MAC: mac(i, 1), Driver: "ice", Bus: "pci"},
		},
	}
	m.Status.Address = fmt.Sprintf("10.20.%d.%d", i/250, i%250+1)
	m.Status.Boots = []v1alpha1.BootRecord{{At: metav1.NewTime(now.Add(-2 * time.Minute)), Action: v1alpha1.BootDiscover, Reason: "nobody approved it", MAC: mac(i, 0), Address: m.Status.Address, Firmware: "UEFI x64"}}
}

func since(m *v1alpha1.Machine, phase v1alpha1.MachinePhase, at time.Time) {
	m.Status.Phase, m.Status.PhaseSince = phase, new(metav1.NewTime(at.Truncate(time.Second)))
}

func waiting(m *v1alpha1.Machine, now time.Time) {
	inventory(m, now)
	since(m, v1alpha1.PhaseWaiting, now.Add(-7*time.Minute))
}

// intended gives a machine an intent in a state, with its steps up to the one at which it stands.
func intended(m *v1alpha1.Machine, state v1alpha1.IntentState, at time.Time, steps []v1alpha1.Step) {
	m.Spec.Approved, m.Spec.Profile = true, "worker"
	m.Spec.Intent = &v1alpha1.Intent{ID: "intent-" + m.Name, Action: v1alpha1.ActionInstall, RequestedBy: "anna@admin"}
	m.Status.Intent = &v1alpha1.IntentStatus{ID: m.Spec.Intent.ID, Action: v1alpha1.ActionInstall, State: state, Attempts: 1, StartedAt: new(metav1.NewTime(at.Truncate(time.Second)))}
	m.Status.Steps = steps
}

var stepNames = []string{"checks", "wipe", "layout", "image", "grow", "config", "identity", "bootloader", "finish", "reboot"}

// imageSize is what the step image moves.
const imageSize = 1_400_000_000

// steps are those of an install that began at a time and stands at a step.
func steps(began time.Time, at int, state v1alpha1.StepState, done int64, message string) []v1alpha1.Step {
	takes := []time.Duration{2, 3, 1, 41, 4, 1, 2, 3, 1, 60}
	var all []v1alpha1.Step
	when := began
	for i, name := range stepNames {
		s := v1alpha1.Step{Name: name, State: v1alpha1.StepPending}
		if name == "image" {
			s.BytesTotal = imageSize
		}
		if i <= at {
			s.StartedAt = new(metav1.NewMicroTime(when))
			when = when.Add(takes[i] * time.Second)
			s.State, s.FinishedAt, s.BytesDone = v1alpha1.StepSucceeded, new(metav1.NewMicroTime(when)), s.BytesTotal
		}
		if i == at {
			s.State, s.Message = state, message
			if state == v1alpha1.StepRunning {
				s.FinishedAt, s.BytesDone = nil, done
			}
		}
		all = append(all, s)
	}
	return all
}

func installing(m *v1alpha1.Machine, now time.Time, i int) {
	began := now.Add(-40 * time.Second)
	inventory(m, began)
	intended(m, v1alpha1.IntentRunning, began, steps(began, 3, v1alpha1.StepRunning, imageSize/100*int64(i%97), ""))
	since(m, v1alpha1.PhaseInstalling, began)
}

func installed(m *v1alpha1.Machine, at time.Time) {
	inventory(m, at)
	intended(m, v1alpha1.IntentSucceeded, at, steps(at, len(stepNames)-1, v1alpha1.StepSucceeded, 0, ""))
	m.Status.Intent.FinishedAt = new(metav1.NewTime(at.Add(2 * time.Minute).Truncate(time.Second)))
	m.Status.Installed = &v1alpha1.InstalledStatus{
		IntentID: m.Spec.Intent.ID, Image: "debian-13", ImageDigest: "sha256:" + fmt.Sprintf("%064x", 13), Disk: m.Status.Inventory.Disks[0].ByID, Profile: "worker", At: metav1.NewTime(at.Add(time.Minute).Truncate(time.Second)),
	}
}

func rebooting(m *v1alpha1.Machine, now time.Time) {
	installed(m, now.Add(-3*time.Minute))
	since(m, v1alpha1.PhaseRebooting, now.Add(-2*time.Minute))
}

func ready(m *v1alpha1.Machine, at time.Time) {
	installed(m, at)
	up := new(metav1.NewTime(at.Add(3 * time.Minute).Truncate(time.Second)))
	m.Status.Node = &v1alpha1.NodeStatus{AgentVersion: "v0.9.0", OS: "Debian GNU/Linux 13", Kernel: "6.12.48-amd64", BootID: "b-" + m.Name, BootedAt: up, ReadyAt: up, Addresses: []string{m.Status.Address + "/16"}, Interface: "eno1"}
	since(m, v1alpha1.PhaseReady, at)
}

func lost(m *v1alpha1.Machine, now time.Time) {
	ready(m, now.Add(-90*time.Hour))
	since(m, v1alpha1.PhaseLost, now.Add(-22*time.Minute))
	m.Status.Message = "no heartbeat since " + now.Add(-23*time.Minute).UTC().Format(time.RFC3339) + ": check power, network and console"
}

func failed(m *v1alpha1.Machine, now time.Time) {
	const why = "disk nvme-EX960 was removed while it was written: the kernel says I/O error; reseat or replace it"
	failedAt(m, now, 3, why)
}

func failedDisk(m *v1alpha1.Machine, now time.Time) {
	failedAt(m, now, 0, "the disk sda has partitions that Coldrack did not write (ntfs, 2 TiB); the profile says RefuseForeign. Wipe it, or use a profile with wipe: Always")
}

func failedAt(m *v1alpha1.Machine, now time.Time, step int, why string) {
	began := now.Add(-12 * time.Minute)
	inventory(m, began)
	intended(m, v1alpha1.IntentFailed, began, steps(began, step, v1alpha1.StepFailed, 0, why))
	m.Status.Intent.Message, m.Status.Intent.FinishedAt = why, new(metav1.NewTime(now.Add(-11*time.Minute).Truncate(time.Second)))
	since(m, v1alpha1.PhaseFailed, now.Add(-11*time.Minute))
}
