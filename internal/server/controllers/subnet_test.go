package controllers

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
)

type fixedReports map[string]SubnetReport

func (fixedReports) SetSubnets([]v1alpha1.Subnet) {}
func (f fixedReports) Subnet(name string) (SubnetReport, bool) {
	report, known := f[name]
	return report, known
}
func (fixedReports) Changed() <-chan struct{} { return nil }

func TestSubnetReady(t *testing.T) {
	for name, test := range map[string]struct {
		cidr            string
		dhcp            SubnetSink
		status          metav1.ConditionStatus // "": nothing is written yet
		reason, message string
	}{
		"DHCP serves it":                      {"10.0.0.0/24", fixedReports{"rack": {Generation: 2, Served: true}}, "True", "Served", ""},
		"DHCP refuses it":                     {"10.0.0.0/24", fixedReports{"rack": {Generation: 2, Refused: "no pool"}}, "False", "NotServed", "no pool"},
		"DHCP knows an earlier generation":    {"10.0.0.0/24", fixedReports{"rack": {Generation: 1, Served: true}}, "", "", ""},
		"DHCP has not been told of it yet":    {"10.0.0.0/24", fixedReports{}, "", "", ""},
		"DHCP has nothing to do with it":      {"fd00::/64", fixedReports{"rack": {Generation: 2}}, "True", "Valid", ""},
		"this server serves no DHCP":          {"10.0.0.0/24", nil, "True", "Valid", ""},
		"a plan that is invalid, DHCP or not": {"10.0.0.0", fixedReports{}, "False", "Invalid", "spec.cidr"},
	} {
		t.Run(name, func(t *testing.T) {
			subnet := v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: "rack", Generation: 2}, Spec: v1alpha1.SubnetSpec{CIDR: test.cidr}}
			got, known := subnetReady(&subnet, []v1alpha1.Subnet{subnet}, test.dhcp)
			if known != (test.status != "") {
				t.Fatalf("known: %v", known)
			}
			if known && (got.Status != test.status || got.Reason != test.reason || !strings.Contains(got.Message, test.message)) {
				t.Errorf("got %s %s %q", got.Status, got.Reason, got.Message)
			}
		})
	}
}

func TestFindingsOfASubnet(t *testing.T) {
	var conditions []metav1.Condition
	ready := metav1.Condition{ObservedGeneration: 2, LastTransitionTime: metav1.Now()}
	setFinding(&conditions, v1alpha1.ConditionARPProxy, "", ready)
	if len(conditions) != 0 {
		t.Errorf("nothing was found: %v", conditions)
	}
	setFinding(&conditions, v1alpha1.ConditionARPProxy, "52:54:00:00:00:32 answers", ready)
	if len(conditions) != 1 || conditions[0].Status != metav1.ConditionTrue || conditions[0].Message != "52:54:00:00:00:32 answers" {
		t.Errorf("found: %v", conditions)
	}
	setFinding(&conditions, v1alpha1.ConditionARPProxy, "", ready)
	if len(conditions) != 1 || conditions[0].Status != metav1.ConditionFalse || conditions[0].Message != "" {
		t.Errorf("gone: %v", conditions)
	}
}
