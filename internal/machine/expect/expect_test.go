package expect

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/resource"

	"coldrack.dev/api/v1alpha1"
)

func machine(name string, changes ...func(*v1alpha1.Machine)) v1alpha1.Machine {
	m := v1alpha1.Machine{}
	m.Name, m.Status.Phase = name, v1alpha1.PhaseWaiting
	m.Spec.Location = v1alpha1.Location{Rack: "a1", Unit: 7}
	for _, change := range changes {
		change(&m)
	}
	return m
}

func expects(ports ...v1alpha1.SwitchPort) func(*v1alpha1.Machine) {
	return func(m *v1alpha1.Machine) {
		m.Spec.Expected = &v1alpha1.Expected{Memory: new(resource.MustParse("512Gi")), Cores: 64, Disks: 2, SwitchPorts: ports}
	}
}

func reports(memory string, cores int32, disks int, ports ...string) func(*v1alpha1.Machine) {
	return func(m *v1alpha1.Machine) {
		inv := &v1alpha1.Inventory{Memory: resource.MustParse(memory), CPU: v1alpha1.CPUInfo{Cores: cores}, Disks: []v1alpha1.Disk{{Transport: "usb"}, {Removable: true}}}
		for range disks {
			inv.Disks = append(inv.Disks, v1alpha1.Disk{Transport: "nvme"})
		}
		for i, p := range ports {
			inv.NICs = append(inv.NICs, v1alpha1.NIC{MAC: fmt.Sprintf("52:54:00:00:00:%02x", i), LLDP: &v1alpha1.LLDPNeighbour{SystemName: "leaf1.example.net", ChassisID: "02:00:00:00:00:01", PortID: p}})
		}
		m.Status.Inventory = inv
	}
}

func leaf(port string) v1alpha1.SwitchPort { return v1alpha1.SwitchPort{Switch: "leaf1", Port: port} }

func TestAudit(t *testing.T) {
	for _, test := range []struct {
		name     string
		machines []v1alpha1.Machine
		want     []string
	}{
		{"all is as written down, in other spelling", []v1alpha1.Machine{machine("a", expects(leaf("Eth1/1"), v1alpha1.SwitchPort{Switch: "LEAF1"}), reports("512Gi", 64, 2, "Ethernet1/1", "Ethernet1/9"))}, nil},
		{"a kernel counts a little less", []v1alpha1.Machine{machine("a", expects(), reports("527000000Ki", 64, 2))}, nil},
		{"a memory module, a processor and a disk are missing", []v1alpha1.Machine{machine("a", expects(), reports("496Gi", 32, 1))}, []string{
			"cores a 64 32  has 32 cores, not 64", "disks a 2 1  has 1 disks, not 2", "memory a 512GiB 496GiB  has 496GiB of memory, not 512GiB"}},
		{"nothing was written down", []v1alpha1.Machine{machine("a", reports("1Gi", 1, 0))}, nil},
		{"no switch says what it is", []v1alpha1.Machine{machine("a", expects(leaf("Eth1/1")), reports("512Gi", 64, 2))}, nil},
		{"a cable at another port", []v1alpha1.Machine{machine("a", expects(leaf("Eth1/1"), leaf("Eth1/2")), reports("512Gi", 64, 2, "Ethernet1/1", "Ethernet1/12"))}, []string{
			"cable a leaf1:Eth1/2 leaf1.example.net:Ethernet1/12  no cable to leaf1:Eth1/2; the cable ends at leaf1.example.net:Ethernet1/12"}},
		{"the interface is another one", []v1alpha1.Machine{machine("a", expects(v1alpha1.SwitchPort{Switch: "leaf1", Port: "Eth1/1", MAC: "52:54:00:00:00:01"}), reports("512Gi", 64, 2, "Ethernet1/1", "Ethernet1/2"))}, []string{
			"cable a leaf1:Eth1/1 leaf1.example.net:Ethernet1/2  no cable to leaf1:Eth1/1; the cable ends at leaf1.example.net:Ethernet1/2"}},
		{"swapped", []v1alpha1.Machine{machine("a", expects(leaf("Eth1/1")), reports("512Gi", 64, 2, "Ethernet1/2")), machine("b", expects(leaf("Eth1/2")), reports("512Gi", 64, 2, "Ethernet1/1"))}, []string{
			"cable a leaf1:Eth1/1 leaf1.example.net:Ethernet1/2 b no cable to leaf1:Eth1/1; the cable ends at leaf1.example.net:Ethernet1/2; b is at that port, and this one at a port of it: their cables are swapped, or the servers are in each other's place",
			"cable b leaf1:Eth1/2 leaf1.example.net:Ethernet1/1 a no cable to leaf1:Eth1/2; the cable ends at leaf1.example.net:Ethernet1/1; a is at that port, and this one at a port of it: their cables are swapped, or the servers are in each other's place"}},
		{"one never came, one that nobody wrote down did", []v1alpha1.Machine{
			machine("a", func(m *v1alpha1.Machine) { m.Status.Phase = v1alpha1.PhaseExpected }),
			machine("m-1", reports("1Gi", 1, 1), func(m *v1alpha1.Machine) {
				m.Spec.Location = v1alpha1.Location{}
				m.Annotations = map[string]string{v1alpha1.AnnotationDiscoveredBy: "enrolment"}
				m.Status.Inventory.System.Serial = "S9"
			})}, []string{
			"missing a    is expected in rack a1, unit 7, and has never been seen", "unexpected m-1  S9  was discovered, and nobody has written down where it stands"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got []string
			for _, f := range Audit(test.machines) {
				got = append(got, fmt.Sprintf("%s %s %s %s %s %s", f.Kind, f.Machine, f.Want, f.Found, f.Other, f.Message))
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestPorts(t *testing.T) {
	for _, test := range []struct {
		a, b string
		same bool
	}{{"Eth1/1", "Ethernet1/1", true}, {"Te1/0/12", "TenGigabitEthernet1/0/12", true}, {"swp1", "swp1", true}, {"swp1", "swp11", false}, {"Eth1/1", "Eth1/10", false}, {"", "Ethernet1", false}, {"1/1", "Ethernet1/1", true}} {
		if got := samePort(test.a, test.b); got != test.same {
			t.Errorf("%s and %s: %v", test.a, test.b, got)
		}
	}
}
