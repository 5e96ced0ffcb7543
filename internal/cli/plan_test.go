package cli

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

func TestPlanPictures(t *testing.T) {
	etcd, worker := []v1alpha1.Role{v1alpha1.RoleControlPlane, v1alpha1.RoleEtcd}, []v1alpha1.Role{v1alpha1.RoleWorker}
	phases := []kube.PhaseChange{
		{Name: "content", Reason: "fetch and verify the programs of this release"},
		{Name: "runtime", After: []kube.PhaseName{"content"}, Reason: "start containerd"},
	}
	added := func(machine string, roles []v1alpha1.Role) kube.NodeChange {
		return kube.NodeChange{Machine: machine, Node: machine, Roles: roles, Change: kube.Added, Version: "v1.37.2", Phases: phases,
			Files: []kube.FileChange{
				{Change: kube.Added, Path: "/etc/kubernetes/pki/sa.key", Mode: "-rw-------", Note: "secret service-account-key, not shown"},
				{Change: kube.Added, Path: "/var/lib/kubelet/config.yaml", Mode: "-rw-------", Diff: "--- now/x\n+++ then/x\n@@ -0,0 +1,1 @@\n+kind: KubeletConfiguration\n"}},
			Units:        []kube.FileChange{{Change: kube.Added, Path: "kubelet.service"}},
			Certificates: []kube.CertificateChange{{Change: kube.Added, Name: "kubelet-client", Says: "CN=system:node:n O=system:nodes; ECDSA-P256, 365 days, by ca"}}}
	}
	fresh := kube.Preview{
		Cluster: "lab", Missing: []string{"image registry.k8s.io/pause:3.10.1"},
		Machines: []kube.PreviewMachine{
			{Machine: "m1", Group: "lab-control", Roles: etcd, Address: "10.20.0.11", Why: "approved and in no other group", Install: "is installed with profile worker"},
			{Machine: "m2", Group: "lab-workers", Roles: worker, Address: "10.20.0.12", Why: "approved, has rack=r1"},
			{Machine: "m3", Group: "lab-workers", Roles: worker, Address: "10.20.0.13", Why: "approved, has rack=r1"}},
		Changes: kube.Changes{
			Authorities: []kube.Authority{"ca", "etcd-ca", "front-proxy-ca"},
			Nodes:       []kube.NodeChange{added("m1", etcd), added("m2", worker), added("m3", worker)},
			Objects:     []kube.ObjectChange{{Change: kube.Added, Addon: "bootstrap", Object: "ConfigMap kube-system/kubeadm-config"}, {Change: kube.Added, Addon: "coredns", Object: "Service kube-system/kube-dns"}},
		},
	}
	changed := kube.Preview{
		Cluster: "lab", Exists: true, Warnings: []string{"version v1.36.3 becomes v1.37.2: nodes keep theirs until the upgrade reaches them, one after the other"},
		Written:  []kube.ObjectChange{{Change: kube.Changed, Object: "Cluster lab", Diff: "--- now/Cluster lab\n+++ then/Cluster lab\n@@ -1,1 +1,1 @@\n-version: v1.36.3\n+version: v1.37.2\n"}},
		Machines: []kube.PreviewMachine{{Machine: "m1", Group: "lab-control", Roles: etcd, Has: true, Why: "belongs to it"}},
		Changes: kube.Changes{Nodes: []kube.NodeChange{
			{Machine: "m1", Change: kube.Changed, FromVersion: "v1.36.3", Version: "v1.37.2", Phases: phases, Other: []string{"+ route 10.244.2.0/24 via 10.20.0.13"},
				Certificates: []kube.CertificateChange{{Change: kube.Changed, Name: "apiserver", Says: "CN=kube-apiserver for a, b", Was: "CN=kube-apiserver for a"}},
				Disruptions:  []kube.Disruption{{What: "the kubelet restarts", Effect: "pods keep running"}, {What: "the API server restarts", Effect: "it is the only one", Outage: true}}},
			{Machine: "m9", Change: kube.Removed, Disruptions: []kube.Disruption{{What: "the machine is no longer part of the plan", Effect: "it keeps running"}}},
		}},
	}
	same := kube.Preview{Cluster: "lab", Exists: true}
	wrong := kube.Preview{Cluster: "lab", Invalid: []string{"spec.version: v1.99.0 is in no imported bundle"}}
	waits := kube.Preview{Cluster: "lab", Problems: []string{"MachineGroup lab-all can have 1; it wants 3"}}
	rolled := peoplewire.ClusterPlan{Preview: kube.Preview{Cluster: "lab", Exists: true,
		Written: []kube.ObjectChange{{Change: kube.Changed, Object: "Cluster lab", Diff: "-version: v1.36.3\n+version: v1.37.2\n"}}},
		Forecast: &peoplewire.Forecast{Takes: "9m12s", Steps: []peoplewire.ForecastStep{
			{After: "0s", Takes: "2m0s", Step: "pull", Operation: "upgrade", Machine: "m1", Reason: "every node has everything before the first one changes"},
			{After: "0s", Takes: "2m0s", Step: "pull", Operation: "upgrade", Machine: "w1", Reason: "every node has everything before the first one changes"},
			{After: "0s", Takes: "8m0s", Step: "add", Operation: "join", Machine: "w9", Reason: "group lab-workers wants 3 machines and has 2", CarriedOut: true},
			{After: "2m0s", Takes: "1s", Step: "take", Operation: "upgrade", Machine: "m1", Reason: "etcd goes from 3.6.16 to 3.7.3"},
			{After: "2m1s", Takes: "40s", Step: "change", Operation: "upgrade", Machine: "m1", Reason: "etcd goes from 3.6.16 to 3.7.3", Disruption: "etcd does not answer until its member is back", Outage: true},
			{After: "2m41s", Takes: "2s", Step: "move-virtual-ip", Operation: "upgrade", Machine: "m1", To: "m2", Reason: "it holds the virtual IP"}},
			EndsAt: []peoplewire.ForecastBlock{{Machine: "w2", Reason: "PodDisruptionBudget shop/db never allows to evict pod shop/db-0", Remedy: "let it allow a disruption"}},
			Notes:  []string{"this version does not carry out the steps marked ?"}}}
	long := peoplewire.ClusterPlan{Preview: kube.Preview{Cluster: "lab", Exists: true}, Forecast: &peoplewire.Forecast{Takes: "10h0m0s"}}
	for i := range 100 {
		long.Forecast.Steps = append(long.Forecast.Steps, peoplewire.ForecastStep{After: fmt.Sprint(i, "m0s"), Step: "change", Machine: fmt.Sprint("w", i), Reason: "its configuration changes", CarriedOut: true})
	}
	plans := func(previews ...kube.Preview) (list []peoplewire.ClusterPlan) {
		for _, p := range previews {
			list = append(list, peoplewire.ClusterPlan{Preview: p})
		}
		return list
	}
	picture := func(details bool, previews ...kube.Preview) []byte {
		return []byte(RenderPlan(Plan{Previews: plans(previews...), Details: details}))
	}
	if text := RenderPlan(Plan{Previews: []peoplewire.ClusterPlan{long}}); !strings.Contains(text, "60 more lines: --details") || strings.Contains(text, "w41") {
		t.Errorf("a long forecast is not cut:\n%s", text)
	}
	if text := RenderPlan(Plan{Previews: []peoplewire.ClusterPlan{long}, Details: true}); !strings.Contains(text, "w99") {
		t.Errorf("with --details a long forecast is cut:\n%s", text)
	}
	golden(t, "plan", &txtar.Archive{Files: []txtar.File{
		{Name: "new", Data: picture(false, fresh)},
		{Name: "new --details", Data: picture(true, fresh)},
		{Name: "changed, and another that is not", Data: picture(false, changed, same)},
		{Name: "wrong", Data: picture(false, wrong)},
		{Name: "waits", Data: picture(false, waits)},
		{Name: "steps", Data: []byte(RenderPlan(Plan{Previews: []peoplewire.ClusterPlan{rolled}}))},
	}})
	for _, p := range []struct {
		preview kube.Preview
		changes bool
	}{{fresh, true}, {changed, true}, {same, false}, {wrong, true}, {waits, true}} {
		if plan := (Plan{Previews: plans(p.preview)}); plan.Changes() != p.changes {
			t.Errorf("changes: %t\n%s", plan.Changes(), RenderPlan(plan))
		}
	}
}
