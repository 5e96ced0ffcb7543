package fleet

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
)

const (
	macA, macA2, macB, macNew = "52:54:00:00:00:0a", "52:54:00:00:0a:02", "52:54:00:00:00:0b", "52:54:00:00:00:99"
	uuidA, uuidB              = "a0a0a0a0-1111-4111-8111-0123456789ab", "b0b0b0b0-2222-4222-8222-0123456789ab"
	amiUUID                   = "03000200-0400-0500-0006-000700080009"
)

// expected is a machine from a rack sheet, or one that a boot script made.
func expected(name string, ids v1alpha1.Identifiers) *v1alpha1.Machine {
	return &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.MachineSpec{Identifiers: ids}}
}

// reported is a machine that has reported its inventory.
func reported(name, uuid, serial string, macs ...string) *v1alpha1.Machine {
	m := expected(name, v1alpha1.Identifiers{})
	m.Status.Inventory = &v1alpha1.Inventory{System: v1alpha1.SystemInfo{UUID: uuid, Serial: serial}}
	for _, mac := range macs {
		m.Status.Inventory.NICs = append(m.Status.Inventory.NICs, v1alpha1.NIC{MAC: mac})
	}
	return m
}
