package racksheet

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"coldrack.dev/api/v1alpha1"
)

// fieldValue is one column of a Machine's line.
type fieldValue struct {
	column
	value string
}

// fieldsOf are all columns of a Machine, in the order in which they are exported. Parse reads each value as it stands here.
func fieldsOf(m *v1alpha1.Machine) []fieldValue {
	l, ids := m.Spec.Location, m.Spec.Identifiers
	bmc, network, expected := v1alpha1.BMC{}, v1alpha1.MachineNetwork{}, v1alpha1.Expected{}
	if m.Spec.BMC != nil {
		bmc = *m.Spec.BMC
	}
	if m.Spec.Network != nil {
		network = *m.Spec.Network
	}
	if m.Spec.Expected != nil {
		expected = *m.Spec.Expected
	}
	memory := ""
	if expected.Memory != nil {
		memory = memoryText(expected.Memory.Value())
	}
	var labels, ports []string
	for _, key := range slices.Sorted(maps.Keys(m.Labels)) {
		if key != LabelGroup {
			labels = append(labels, key+"="+m.Labels[key])
		}
	}
	for _, p := range expected.SwitchPorts {
		text := p.Switch
		if p.Port != "" {
			text += ":" + p.Port
		}
		if p.MAC != "" {
			text += "@" + p.MAC
		}
		ports = append(ports, text)
	}
	return []fieldValue{
		{columnName, m.Name}, {columnHostname, m.Spec.Hostname}, {columnSite, l.Site}, {columnRoom, l.Room}, {columnRack, l.Rack}, {columnUnit, count(l.Unit)}, {columnChassis, l.Chassis}, {columnSlot, count(l.Slot)},
		{columnSerial, ids.Serial}, {columnUUID, ids.UUID}, {columnMAC, strings.Join(ids.MACs, " ")}, {columnBMCMAC, ids.BMCMAC},
		{columnBMCAddress, bmc.Address}, {columnBMCProtocol, bmc.Protocol}, {columnBMCSystem, bmc.System}, {columnBMCSecret, bmc.CredentialsSecret},
		{columnAddress, network.Address}, {columnSubnet, network.Subnet}, {columnGroup, m.Labels[LabelGroup]}, {columnLabels, strings.Join(labels, " ")}, {columnProfile, m.Spec.Profile}, {columnApproved, yes(m.Spec.Approved)},
		{columnMemory, memory}, {columnCores, count(expected.Cores)}, {columnDisks, count(expected.Disks)}, {columnSwitchPorts, strings.Join(ports, " ")},
	}
}

func count(n int32) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return ""
}

// memoryText is an amount as parseMemory reads it back.
func memoryText(bytes int64) string {
	for _, unit := range []struct {
		name  string
		shift int
	}{{"GiB", 30}, {"MiB", 20}} {
		if bytes>>unit.shift<<unit.shift == bytes && bytes>>unit.shift > 0 {
			return fmt.Sprintf("%d %s", bytes>>unit.shift, unit.name)
		}
	}
	return fmt.Sprintf("%d KiB", bytes>>10)
}

// byPlace orders machines as they stand: racks by name, then from the bottom upwards.
func byPlace(a, b *v1alpha1.Machine) int {
	l, r := a.Spec.Location, b.Spec.Location
	return cmp.Or(cmp.Compare(l.Site, r.Site), cmp.Compare(l.Room, r.Room), cmp.Compare(l.Rack, r.Rack), cmp.Compare(l.Unit, r.Unit),
		cmp.Compare(l.Chassis, r.Chassis), cmp.Compare(l.Slot, r.Slot), cmp.Compare(a.Name, b.Name))
}
