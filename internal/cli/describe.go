package cli

import (
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
)

// Describe is everything that is known of a machine, for a person.
func Describe(m *v1alpha1.Machine, now time.Time) string {
	d := &description{now: now}
	d.summary(m)
	d.wanted(m)
	d.installed(m)
	d.kubernetes(m.Status.Kubernetes)
	d.inventory(m.Status.Inventory)
	d.hardware(m.Status.Hardware)
	d.steps(m)
	d.conditions(m.Status.Conditions)
	d.boots(m.Status.Boots)
	return d.String()
}

// BootTable lists boots, newest first.
func BootTable(boots []v1alpha1.BootRecord, now time.Time) *Table {
	t := &Table{Header: []string{"WHEN", "DECISION", "MAC", "ADDRESS", "FIRMWARE", "REASON"}}
	for _, b := range boots {
		t.Add(ago(b.At.Time, now), string(b.Action), b.MAC, b.Address, b.Firmware, b.Reason)
	}
	return t
}

type description struct {
	strings.Builder
	now time.Time
}

// field writes one line unless there is nothing to say.
func (d *description) field(name, format string, args ...any) {
	if text := oneLine(fmt.Sprintf(format, args...)); text != "" {
		fmt.Fprintf(d, "%-14s %s\n", name+":", text)
	}
}

func (d *description) table(title string, t *Table) {
	if len(t.Rows) == 0 {
		return
	}
	fmt.Fprintf(d, "\n%s\n", title)
	for _, line := range align(append([][]string{t.Header}, t.Rows...)) {
		fmt.Fprintf(d, "  %s\n", line)
	}
}

func (d *description) summary(m *v1alpha1.Machine) {
	d.field("Machine", "%s", m.Name)
	phase := PhaseOf(m)
	if m.Status.PhaseSince != nil {
		phase += " for " + since(m, d.now)
	}
	d.field("Phase", "%s", phase)
	d.field("Message", "%s", m.Status.Message)
	if text := Stuck(m, d.now); text != "" && text != m.Status.Message {
		d.field("Stuck", "%s", text)
	}
	d.field("Address", "%s", AddressOf(m))
	d.field("Place", "%s", place(m.Spec.Location))
	d.field("Labels", "%s", labelText(m.Labels))
	d.field("Known since", "%s", ago(m.CreationTimestamp.Time, d.now))
	id := m.Spec.Identifiers
	d.field("MACs", "%s", strings.Join(id.MACs, ", "))
	d.field("UUID", "%s", id.UUID)
	d.field("Serial", "%s", id.Serial)
	d.field("BMC MAC", "%s", id.BMCMAC)
	if b := m.Spec.BMC; b != nil {
		d.field("BMC", "%s (%s)", b.Address, orElse(b.Protocol, "redfish"))
	}
	if p := m.Status.Power; p != nil {
		text := string(p.State)
		if p.SeenAt != nil {
			text += ", seen " + ago(p.SeenAt.Time, d.now)
		}
		d.field("Power", "%s", text)
		d.field("BMC problem", "%s", p.Problem)
	}
}

func (d *description) wanted(m *v1alpha1.Machine) {
	fmt.Fprintln(d, "\nWanted")
	approved := "no: no disk is touched until `coldrack approve " + m.Name + "`"
	if m.Spec.Approved {
		approved = "yes"
	}
	d.field("  Approved", "%s", approved)
	d.field("  Hostname", "%s", m.Spec.Hostname)
	d.field("  Profile", "%s", m.Spec.Profile)
	d.field("  Image", "%s", m.Spec.Image)
	if n := m.Spec.Network; n != nil {
		d.field("  Network", "%s", strings.TrimSpace(n.Address+" "+n.Subnet+" "+n.MAC))
	}
	if intent := m.Spec.Intent; intent != nil {
		text := fmt.Sprintf("%s %s (%s)", intent.Action, IntentStateOf(m), intent.ID)
		if intent.RequestedBy != "" {
			text += " by " + intent.RequestedBy
		}
		if intent.RequestedAt != nil {
			text += ", " + ago(intent.RequestedAt.Time, d.now)
		}
		d.field("  Intent", "%s", text)
	}
	if ack := m.Status.Intent; ack != nil && ack.Message != "" {
		d.field("  Outcome", "%s", ack.Message)
	}
}

func (d *description) installed(m *v1alpha1.Machine) {
	if i := m.Status.Installed; i != nil {
		fmt.Fprintln(d, "\nInstalled")
		d.field("  Image", "%s (%s)", i.Image, i.ImageDigest)
		d.field("  Disk", "%s", i.Disk)
		d.field("  Profile", "%s", i.Profile)
		d.field("  When", "%s", ago(i.At.Time, d.now))
	}
	if i := m.Status.Identity; i != nil {
		d.field("  Identity", "%s, until %s", i.KeyFingerprint, i.ExpiresAt.UTC().Format(time.RFC3339))
	}
	if n := m.Status.Node; n != nil {
		fmt.Fprintln(d, "\nNode")
		d.field("  System", "%s, kernel %s, agent %s", n.OS, n.Kernel, n.AgentVersion)
		if n.BootedAt != nil {
			d.field("  Up for", "%s", Age(d.now.Sub(n.BootedAt.Time)))
		}
		d.field("  Addresses", "%s", strings.Join(n.Addresses, ", "))
		d.field("  Failed units", "%s", strings.Join(n.FailedUnits, ", "))
	}
}

func (d *description) kubernetes(k *v1alpha1.KubernetesStatus) {
	if k == nil {
		return
	}
	fmt.Fprintln(d, "\nKubernetes")
	d.field("  Cluster", "%s", k.Cluster)
	d.field("  Node", "%s", k.Node)
	d.field("  Roles", "%s", roleText(k.Roles))
	d.field("  Kubelet", "%s", k.Version)
	d.field("  Message", "%s", k.Message)
	d.table("Phases of the bring-up", stepTable(k.Phases, d.now))
}

func (d *description) inventory(inv *v1alpha1.Inventory) {
	if inv == nil {
		return
	}
	fmt.Fprintf(d, "\nInventory, reported %s\n", ago(inv.ReportedAt.Time, d.now))
	d.field("  Model", "%s %s", inv.System.Vendor, inv.System.Product)
	d.field("  Serial", "%s", inv.System.Serial)
	d.field("  UUID", "%s", inv.System.UUID)
	d.field("  Asset tag", "%s", inv.System.AssetTag)
	d.field("  CPU", "%d x %s, %d cores, %d threads", inv.CPU.Sockets, inv.CPU.Model, inv.CPU.Cores, inv.CPU.Threads)
	d.field("  Memory", "%s", Bytes(inv.Memory.Value()))
	firmware := inv.Firmware
	if inv.SecureBoot {
		firmware += ", Secure Boot"
	}
	if inv.TPM != "" {
		firmware += ", TPM " + inv.TPM
	}
	if inv.System.BIOSVersion != "" {
		firmware += ", version " + inv.System.BIOSVersion
	}
	d.field("  Firmware", "%s", firmware)
	if inv.BMC != nil {
		d.field("  BMC", "%s %s", inv.BMC.Address, inv.BMC.MAC)
	}
	disks := &Table{Header: []string{"DISK", "SIZE", "TRANSPORT", "MODEL", "SERIAL", "BY-ID", "CONTENTS"}}
	for _, disk := range inv.Disks {
		contents := orElse(strings.Join(disk.Contents, "; "), "blank")
		disks.Add(disk.Name, Bytes(disk.Size.Value()), disk.Transport, strings.TrimSpace(disk.Vendor+" "+disk.Model), disk.Serial, disk.ByID, contents)
	}
	d.table("Disks", disks)
	nics := &Table{Header: []string{"NIC", "MAC", "DRIVER", "LINK", "SWITCH PORT", ""}}
	for _, nic := range inv.NICs {
		link := "down"
		if nic.Link {
			link = "up"
			if nic.SpeedMbps > 0 {
				link = fmt.Sprintf("%d Mbit/s", nic.SpeedMbps)
			}
		}
		port, boot := "", ""
		if l := nic.LLDP; l != nil {
			port = strings.TrimSpace(orElse(l.SystemName, l.ChassisID) + " " + orElse(l.PortDesc, l.PortID))
		}
		if nic.Boot {
			boot = "booted from"
		}
		nics.Add(nic.Name, nic.MAC, nic.Driver, link, port, boot)
	}
	d.table("Network interfaces", nics)
}

func (d *description) hardware(h *v1alpha1.Hardware) {
	if h == nil {
		return
	}
	fmt.Fprintf(d, "\nHardware, reported %s\n", ago(h.ReportedAt.Time, d.now))
	d.field("  BIOS", "%s", strings.TrimSpace(h.Firmware.BIOSVersion+" "+h.Firmware.BIOSDate))
	d.field("  BMC version", "%s", h.Firmware.BMC)
	d.field("  Microcode", "%s", h.Firmware.Microcode)
	d.field("  Empty slots", "%s", strings.Join(h.EmptyMemorySlots, ", "))
	d.field("  Incomplete", "%s", h.Incomplete)
	devices := &Table{Header: []string{"DEVICES", "NAME", "ID", "KIND", "NUMA", "LINK", "ADDRESSES"}}
	for _, dev := range h.Devices {
		node := ""
		if dev.NUMANode != nil {
			node = fmt.Sprint(*dev.NUMANode)
		}
		devices.Add(fmt.Sprint(dev.Count), orElse(dev.Name, orElse(dev.ClassName, "class "+dev.Class)), dev.ID, string(dev.Kind), node, linkText(dev.Link), strings.Join(dev.Addresses, " "))
	}
	d.table("Devices", devices)
	modules := &Table{Header: []string{"MEMORY", "SIZE", "TYPE", "SPEED", "PART", "SERIAL"}}
	for _, m := range h.MemoryModules {
		kind, speed := m.Type, ""
		if m.ECC {
			kind += " ECC"
		}
		if m.SpeedMTs > 0 {
			speed = fmt.Sprintf("%d MT/s", m.SpeedMTs)
		}
		modules.Add(m.Slot, Bytes(m.Size.Value()), kind, speed, strings.TrimSpace(m.Manufacturer+" "+m.PartNumber), m.Serial)
	}
	d.table("Memory modules", modules)
	disks := &Table{Header: []string{"DISK", "SERIAL", "FIRMWARE", "STATE"}}
	for _, disk := range h.Disks {
		state := disk.State
		if health := disk.Health; health != nil {
			state = fmt.Sprintf("%d%% used, spare %d%%, %d °C, %d media errors", health.UsedPercent, health.SparePercent, health.TemperatureCelsius, health.MediaErrors)
			if len(health.Warnings) > 0 {
				state += ", warns of " + strings.Join(health.Warnings, ", ")
			}
		}
		disks.Add(disk.Name, disk.Serial, disk.Firmware, state)
	}
	d.table("State of the disks", disks)
}

// linkText is "x8 of x16, 16 GT/s".
func linkText(l *v1alpha1.PCILink) string {
	if l == nil {
		return ""
	}
	text := fmt.Sprintf("x%d", l.Width)
	if l.Width < l.MaxWidth {
		text += fmt.Sprintf(" of x%d", l.MaxWidth)
	}
	if l.SpeedMTs > 0 {
		text += fmt.Sprintf(", %g", float64(l.SpeedMTs)/1000)
		if l.SpeedMTs < l.MaxSpeedMTs {
			text += fmt.Sprintf(" of %g", float64(l.MaxSpeedMTs)/1000)
		}
		text += " GT/s"
	}
	return text
}

func (d *description) steps(m *v1alpha1.Machine) {
	t := &Table{Header: []string{"STEP", "STATE", "TOOK", "DATA", "MESSAGE"}}
	for _, step := range m.Status.Steps {
		data := ""
		if step.BytesTotal > 0 {
			data = fmt.Sprintf("%s of %s", Bytes(step.BytesDone), Bytes(step.BytesTotal))
			if step.BytesDone == step.BytesTotal {
				data = Bytes(step.BytesTotal)
			}
		}
		t.Add(step.Name, string(step.State), took(step, d.now), data, step.Message)
	}
	d.table("Steps of the last operation", t)
}

func (d *description) conditions(conditions []metav1.Condition) {
	t := &Table{Header: []string{"CONDITION", "STATUS", "SINCE", "REASON", "MESSAGE"}}
	for _, c := range conditions {
		t.Add(c.Type, string(c.Status), ago(c.LastTransitionTime.Time, d.now), c.Reason, c.Message)
	}
	d.table("Conditions", t)
}

func (d *description) boots(boots []v1alpha1.BootRecord) {
	d.table("Boots, newest first", BootTable(boots, d.now))
}

// took is how long a step ran, or has been running.
func took(step v1alpha1.Step, now time.Time) string {
	switch {
	case step.StartedAt == nil:
		return ""
	case step.FinishedAt != nil:
		d := step.FinishedAt.Sub(step.StartedAt.Time)
		if d < 10*time.Second {
			return fmt.Sprintf("%.1fs", d.Seconds())
		}
		return Age(d)
	case step.State == v1alpha1.StepRunning:
		return Age(now.Sub(step.StartedAt.Time)) + " so far"
	}
	return ""
}

// PlaceOf is where a machine stands, for a person.
func PlaceOf(m *v1alpha1.Machine) string { return place(m.Spec.Location) }

func place(l v1alpha1.Location) string {
	var parts []string
	for _, part := range [][2]string{{"site", l.Site}, {"room", l.Room}, {"rack", l.Rack}} {
		if part[1] != "" {
			parts = append(parts, part[0]+" "+part[1])
		}
	}
	if l.Unit > 0 {
		parts = append(parts, fmt.Sprintf("unit %d", l.Unit))
	}
	return strings.Join(parts, ", ")
}

func labelText(labels map[string]string) string {
	var parts []string
	for key, value := range labels {
		parts = append(parts, key+"="+value)
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}

// ago is a moment as its distance from now.
func ago(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	return Age(now.Sub(t)) + " ago"
}
