package main

import (
	"context"
	"fmt"
	"time"

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
	if err := c.Create(ctx, cluster); err != nil {
		return err
	}
	cluster.Status = status
	return c.Status().Update(ctx, cluster)
}
