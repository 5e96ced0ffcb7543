package controllers

import (
	"fmt"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/machine/fleet"
)

func rack(changes ...func(*v1alpha1.SubnetSpec)) v1alpha1.Subnet {
	s := v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: "rack"}, Spec: v1alpha1.SubnetSpec{
		CIDR: "10.0.0.0/24", Gateway: "10.0.0.1", DHCP: v1alpha1.DHCPServer, Discovery: "10.0.0.100-10.0.0.200", Static: "10.0.0.10-10.0.0.12",
	}}
	for _, change := range changes {
		change(&s.Spec)
	}
	return s
}

func policy(name string, changes ...func(*v1alpha1.EnrollmentPolicySpec)) v1alpha1.EnrollmentPolicy {
	p := v1alpha1.EnrollmentPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.EnrollmentPolicySpec{
		Approve: true, Hostname: "node-{index:03}", Profile: "default", Subnet: "rack", Labels: map[string]string{"rack": "r1"},
	}}
	for _, change := range changes {
		change(&p.Spec)
	}
	return p
}

// Two that are enrolled at once do not get the same, also while neither is written; what is not written in the end is free again.
func TestEnrolledAtOnce(t *testing.T) {
	known := fleet.New(fleet.Options{})
	machines := map[string]*v1alpha1.Machine{}
	for i, name := range []string{"a", "b", "c"} {
		m := &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)}}
		m.Status.Inventory = &v1alpha1.Inventory{}
		m.Spec.Identifiers = v1alpha1.Identifiers{MACs: []string{fmt.Sprintf("52:54:00:00:00:0%d", i+1)}}
		machines[name] = m
		known.Put(m)
	}
	r := &enrollment{Deps: Deps{Fleet: known, Now: time.Now}, underway: map[string]*v1alpha1.Machine{}}
	give := func(name string) string {
		t.Helper()
		next, held := r.decide(machines[name], []v1alpha1.EnrollmentPolicy{policy("all")}, []v1alpha1.Subnet{rack()}, nil)
		if next == nil {
			t.Fatalf("%s gets nothing: %s", name, held)
		}
		return next.Spec.Hostname + " " + next.Spec.Network.Address
	}
	if got := give("a"); got != "node-001 10.0.0.10" {
		t.Errorf("a gets %s", got)
	}
	if got := give("b"); got != "node-002 10.0.0.11" {
		t.Errorf("while a is being written b gets %s", got)
	}
	if got := give("a"); got != "node-001 10.0.0.10" {
		t.Errorf("decided again a gets %s", got)
	}
	r.settled("a") // it was deleted meanwhile
	if got := give("c"); got != "node-001 10.0.0.10" {
		t.Errorf("when a came to nothing c gets %s", got)
	}
}

// A machine may be called anything that an object may be called.
func TestTheKeyOfEverythingIsNobodysName(t *testing.T) {
	if len(validation.IsDNS1123Subdomain(everything)) == 0 {
		t.Errorf("a machine could be called %q", everything)
	}
}
