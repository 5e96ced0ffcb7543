package main

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
)

// seedCluster writes the cluster prod with its machines, as it is while a node is taken for an upgrade, and one member of etcd does not answer.
func seedCluster(ctx context.Context, c client.Client, now time.Time) error {
	roles := []struct {
		group string
		roles []v1alpha1.Role
		from  int
		n     int
	}{
		{"prod-etcd", []v1alpha1.Role{v1alpha1.RoleEtcd}, 0, 3},
		{"prod-control", []v1alpha1.Role{v1alpha1.RoleControlPlane}, 3, 2},
		{"prod-workers", []v1alpha1.Role{v1alpha1.RoleWorker}, 5, 4},
	}
	at := func(ago time.Duration) *metav1.Time { return new(metav1.NewTime(now.Add(-ago).Truncate(time.Second))) }
	cluster := &v1alpha1.Cluster{ObjectMeta: metav1.ObjectMeta{Name: "prod"}, Spec: v1alpha1.ClusterSpec{Version: "v1.37.2", Topology: v1alpha1.TopologyProduction,
		Endpoint: v1alpha1.ClusterEndpoint{VirtualIP: &v1alpha1.VirtualIP{Address: "10.20.0.200"}}}}
	status := v1alpha1.ClusterStatus{
		Phase: v1alpha1.ClusterRolling, Endpoint: "https://10.20.0.200:6443", Version: "v1.36.3", NodesReady: "7/9", Message: "node-00006 is being upgraded to v1.37.2",
		Work: &v1alpha1.ClusterWork{
			Steps:  []v1alpha1.ClusterWorkStep{{Kind: "drain", Operation: "upgrade", Node: "node-00006", Reason: "kubelet v1.36.3 → v1.37.2", StartedAt: at(95 * time.Second)}},
			Waits:  []string{"node-00007 and node-00008 follow when node-00006 is ready"},
			Blocks: []string{"member node-00002 of etcd does not answer: no other member is taken before it does; look at its console"},
		},
		Backup: &v1alpha1.BackupStatus{Last: &v1alpha1.BackupRecord{ID: "20261130-181500", TakenAt: *at(5 * time.Hour), Keys: 1843, Revision: 90211, Size: 31 << 20, Etcd: "3.7.3"},
			TriedAt: at(40 * time.Minute), Error: "the folder /mnt/backups is not mounted", Failures: 2, NextAt: new(metav1.NewTime(now.Add(20 * time.Minute).Truncate(time.Second)))},
		Rotation:   &v1alpha1.RotationStatus{Key: v1alpha1.RotateEncryption, ID: "r1", Stage: v1alpha1.RotationDone, Since: *at(70 * time.Hour), StartedAt: *at(71 * time.Hour), Rewritten: 412, Secrets: 412, RequestedBy: "anna"},
		Addons:     []v1alpha1.ClusterAddon{{Name: "coredns", Version: "v1.13.1", Ready: true}, {Name: "flannel", Version: "v0.27.4", Message: "1 of 9 pods is not ready: kube-flannel-x7k2p on node-00006"}, {Name: "kube-proxy", Version: "v1.36.3", Ready: true}, {Name: "ingress", Version: "1.14.0"}},
		Conditions: []metav1.Condition{{Type: v1alpha1.ConditionBroughtUp, Status: metav1.ConditionTrue, Reason: "AllReady", Message: "every node was ready", LastTransitionTime: *at(300 * time.Hour)}},
	}
	began := now.Add(-300 * time.Hour)
	for i, name := range []string{v1alpha1.ClusterStepMachines, v1alpha1.ClusterStepEtcd, v1alpha1.ClusterStepControlPlane, v1alpha1.ClusterStepObjects, v1alpha1.ClusterStepNodes, v1alpha1.ClusterStepAddons} {
		takes := time.Duration([]int{241, 38, 52, 9, 47, 66}[i]) * time.Second
		status.Steps = append(status.Steps, v1alpha1.Step{Name: name, State: v1alpha1.StepSucceeded, StartedAt: new(metav1.NewMicroTime(began)), FinishedAt: new(metav1.NewMicroTime(began.Add(takes)))})
		began = began.Add(takes)
	}
	for i, kind := range []string{"take", "move-leader", "change", "give-back", "take", "drain", "change", "give-back"} {
		status.History = append(status.History, v1alpha1.ClusterWorkStep{Kind: kind, Operation: "upgrade", Node: fmt.Sprintf("node-0000%d", i/4), Reason: "v1.36.3 → v1.37.2",
			StartedAt: at(time.Duration(1200-100*i) * time.Second), FinishedAt: at(time.Duration(1150-100*i) * time.Second)})
	}
	for _, g := range roles {
		group := &v1alpha1.MachineGroup{ObjectMeta: metav1.ObjectMeta{Name: g.group}, Spec: v1alpha1.MachineGroupSpec{Cluster: "prod", Roles: g.roles, Replicas: new(int32(g.n))}}
		groupStatus := v1alpha1.MachineGroupStatus{Replicas: int32(g.n), ReadyReplicas: int32(g.n)}
		for i := g.from; i < g.from+g.n; i++ {
			m := bare(i)
			ready(&m, now.Add(-300*time.Hour))
			m.Status.Kubernetes = &v1alpha1.KubernetesStatus{Cluster: "prod", Node: m.Name, Roles: g.roles, Version: "v1.36.3", Done: true, CertificatesExpireAt: new(metav1.NewTime(now.AddDate(0, 7, 3)))}
			if err := seed(ctx, c, []v1alpha1.Machine{m}); err != nil {
				return err
			}
			node := v1alpha1.ClusterNode{Machine: m.Name, NodeName: m.Name, Group: g.group, Addresses: []string{m.Status.Address}, Version: "v1.37.2", Ready: true, ReadyChangedAt: at(200 * time.Hour)}
			if g.group == "prod-etcd" {
				node.Etcd = &v1alpha1.EtcdMember{InitialCluster: []string{m.Name + "=https://" + m.Status.Address + ":2380"}}
			}
			switch i {
			case 2:
				node.Ready, node.Message = false, "etcd does not answer on 10.20.0.3:2379"
			case 6:
				node.Ready, node.Message = false, "drained"
				node.Hand = &v1alpha1.NodeHand{Operation: "upgrade", Parts: []string{"kubelet"}, Reason: "kubelet v1.36.3 → v1.37.2", Since: *at(95 * time.Second), Step: "drain", StepSince: at(95 * time.Second)}
			}
			status.Nodes = append(status.Nodes, node)
			groupStatus.Machines = append(groupStatus.Machines, m.Name)
		}
		if err := c.Create(ctx, group); err != nil {
			return err
		}
		group.Status = groupStatus
		if err := c.Status().Update(ctx, group); err != nil {
			return err
		}
	}
	if err := seedAddon(ctx, c, at(26*time.Hour)); err != nil {
		return err
	}
	if err := seedVersions(ctx, c); err != nil {
		return err
	}
	if err := c.Create(ctx, cluster); err != nil {
		return err
	}
	cluster.Status = status
	return c.Status().Update(ctx, cluster)
}

// seedAddon gives the cluster an add-on that somebody has changed there.
func seedAddon(ctx context.Context, c client.Client, applied *metav1.Time) error {
	a := &v1alpha1.Addon{ObjectMeta: metav1.ObjectMeta{Name: "ingress"}, Spec: v1alpha1.AddonSpec{Cluster: "prod", Version: "1.14.0", WhenChanged: v1alpha1.DriftReport,
		Files: []v1alpha1.AddonFile{{Name: "a.yaml", Content: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n"}}}}
	if err := c.Create(ctx, a); err != nil {
		return err
	}
	a.Status = v1alpha1.AddonStatus{Phase: "Drifted", Healthy: "11/12", AppliedAt: applied, Message: "Deployment ingress/controller was changed in the cluster: spec.replicas", MissingImages: []string{"example.com/ingress:1.14.0"}, Left: []string{"Namespace old: removeData is not set"}}
	return c.Status().Update(ctx, a)
}

// seedVersions writes a bundle with versions of Kubernetes: some that the cluster can go to, and some that it cannot.
func seedVersions(ctx context.Context, c client.Client) error {
	b := &v1alpha1.Bundle{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: v1alpha1.BundleSpec{Digest: "sha256:" + fmt.Sprintf("%064x", 1), Version: "2026-11-30", Size: resource.MustParse("2Gi"), KeyID: fmt.Sprintf("%064x", 2)}}
	for _, version := range []string{"v1.36.9", "v1.37.2", "v1.37.3", "v1.38.0", "v1.39.0"} {
		b.Spec.Contents = append(b.Spec.Contents, v1alpha1.BundleContent{Kind: "container", Name: "registry.k8s.io/kube-apiserver:" + version, Digest: "sha256:" + fmt.Sprintf("%064x", 3), Size: resource.MustParse("90Mi")})
	}
	return c.Create(ctx, b)
}
