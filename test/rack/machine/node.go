package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

var errNodeGone = errors.New("the Node object is gone")

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

func existsAny(pattern string) bool {
	files, _ := filepath.Glob(pattern)
	return len(files) > 0
}

// register makes the Node object, or takes the one that is there, and reports its status.
func (k *hollow) register(ctx context.Context) (*corev1.Node, error) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: k.name, Labels: map[string]string{
		corev1.LabelHostname: k.name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64",
	}}}
	maps.Copy(node.Labels, k.labels)
	node.Spec.Taints = k.config.RegisterWithTaints
	k.fill(node)
	if _, err := k.api.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return nil, fmt.Errorf("register: %w", err)
	}
	return k.report(ctx)
}

// report writes the node's status.
func (k *hollow) report(ctx context.Context) (*corev1.Node, error) {
	node, err := k.api.CoreV1().Nodes().Get(ctx, k.name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, errNodeGone
	} else if err != nil {
		return nil, fmt.Errorf("read the node: %w", err)
	}
	k.fill(node)
	node, err = k.api.CoreV1().Nodes().UpdateStatus(ctx, node, metav1.UpdateOptions{})
	if err != nil {
		return nil, fmt.Errorf("write the node's status: %w", err)
	}
	return node, nil
}

// fill sets the status to what this machine is.
func (k *hollow) fill(node *corev1.Node) {
	s := &node.Status
	s.Capacity = corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("8Gi"),
		corev1.ResourcePods: resource.MustParse("110"), corev1.ResourceEphemeralStorage: resource.MustParse("100Gi"),
	}
	s.Allocatable = s.Capacity
	s.Addresses = nil
	for _, ip := range k.ips {
		s.Addresses = append(s.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip})
	}
	s.Addresses = append(s.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: k.name})
	read := func(file string) string {
		b, _ := os.ReadFile(file)
		return strings.TrimSpace(string(b))
	}
	s.DaemonEndpoints.KubeletEndpoint.Port = 10250
	s.NodeInfo = corev1.NodeSystemInfo{
		KubeletVersion: k.version, OperatingSystem: "linux", Architecture: "amd64", OSImage: "a machine of the rack",
		ContainerRuntimeVersion: "containerd://2.4.2", KernelVersion: read("/proc/sys/kernel/osrelease"),
		BootID: read("/proc/sys/kernel/random/boot_id"), MachineID: k.name, SystemUUID: k.name,
	}
	status, reason, message := k.ready()
	conditions := []corev1.NodeCondition{
		{Type: corev1.NodeMemoryPressure, Status: corev1.ConditionFalse, Reason: "KubeletHasSufficientMemory"},
		{Type: corev1.NodeDiskPressure, Status: corev1.ConditionFalse, Reason: "KubeletHasNoDiskPressure"},
		{Type: corev1.NodePIDPressure, Status: corev1.ConditionFalse, Reason: "KubeletHasSufficientPID"},
		{Type: corev1.NodeReady, Status: status, Reason: reason, Message: message},
	}
	now := metav1.Now()
	for i := range conditions {
		c := &conditions[i]
		c.LastHeartbeatTime, c.LastTransitionTime = now, now
		for _, old := range s.Conditions {
			if old.Type == c.Type && old.Status == c.Status {
				c.LastTransitionTime = old.LastTransitionTime
			}
		}
	}
	s.Conditions = conditions
}

// renew tells the control plane that the node is there.
func (k *hollow) renew(ctx context.Context, node *corev1.Node, lasts time.Duration) error {
	leases := k.api.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	now, seconds := metav1.NowMicro(), int32(lasts.Seconds())
	lease, err := leases.Get(ctx, k.name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		lease = &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: k.name,
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID}}}}
		lease.Spec = coordinationv1.LeaseSpec{HolderIdentity: &k.name, LeaseDurationSeconds: &seconds, RenewTime: &now}
		_, err = leases.Create(ctx, lease, metav1.CreateOptions{})
	} else if err == nil {
		lease.Spec.HolderIdentity, lease.Spec.LeaseDurationSeconds, lease.Spec.RenewTime = &k.name, &seconds, &now
		_, err = leases.Update(ctx, lease, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("renew the lease: %w", err)
	}
	return nil
}

// nodePods are the pods that the API has for this node.
type nodePods struct {
	k    *hollow
	node *corev1.Node
	// addresses that were given out, by UID of the pod.
	addresses map[types.UID]int
}

func newNodePods(k *hollow, node *corev1.Node) *nodePods {
	return &nodePods{k: k, node: node, addresses: map[types.UID]int{}}
}

// run compares the API's pods with this node's, every second.
func (p *nodePods) run(ctx context.Context) error {
	return each(ctx, time.Second, func(ctx context.Context) error {
		list, err := p.k.api.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + p.k.name, ResourceVersion: "0"})
		if err != nil {
			return fmt.Errorf("list pods: %w", err)
		}
		var errs []error
		mirrors := map[string]*corev1.Pod{}
		for i := range list.Items {
			pod := &list.Items[i]
			if pod.Annotations[corev1.MirrorPodAnnotationKey] != "" {
				mirrors[pod.Name] = pod
				continue
			}
			errs = append(errs, p.pretend(ctx, pod))
		}
		return errors.Join(append(errs, p.mirror(ctx, mirrors))...)
	})
}

// pretend says of a pod that it runs, or ends it when it shall.
func (p *nodePods) pretend(ctx context.Context, pod *corev1.Pod) error {
	pods := p.k.api.CoreV1().Pods(pod.Namespace)
	if pod.DeletionTimestamp == nil && pod.Status.Phase == corev1.PodSucceeded {
		return nil
	}
	if pod.DeletionTimestamp != nil {
		now := int64(0)
		err := pods.Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &now, Preconditions: &metav1.Preconditions{UID: &pod.UID}})
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return nil
		}
		return err
	}
	status := running(pod, p.address(pod), p.node.Status.Addresses[0].Address, nil)
	if saysItsVersion(pod) {
		status = ended(status)
	}
	return p.write(ctx, pod, status)
}

// saysItsVersion is true of a pod that only prints a version: "kubeadm upgrade" runs one to see whether pods run at all.
func saysItsVersion(pod *corev1.Pod) bool {
	c := pod.Spec.Containers
	return len(c) == 1 && strings.Contains(c[0].Image, "/pause:") && slices.Equal(c[0].Args, []string{"-v"})
}

// ended is the status of a pod whose containers have all ended well.
func ended(status corev1.PodStatus) corev1.PodStatus {
	status.Phase = corev1.PodSucceeded
	for i := range status.ContainerStatuses {
		c := &status.ContainerStatuses[i]
		if c.State.Running != nil {
			c.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "Completed", StartedAt: c.State.Running.StartedAt, FinishedAt: metav1.Now()}}
		}
		c.Ready = false
	}
	now := metav1.Now()
	for _, kind := range []corev1.PodConditionType{corev1.ContainersReady, corev1.PodReady} {
		setCondition(&status, corev1.PodCondition{Type: kind, Status: corev1.ConditionFalse}, now)
	}
	return status
}

// write updates a pod's status where it differs.
func (p *nodePods) write(ctx context.Context, pod *corev1.Pod, status corev1.PodStatus) error {
	if equality.Semantic.DeepEqual(pod.Status, status) {
		return nil
	}
	next := pod.DeepCopy()
	next.Status = status
	_, err := p.k.api.CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, next, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // looked at again in a moment
	}
	return err
}

// address of a pod: its node's, or one of the node's network. Nothing answers there.
func (p *nodePods) address(pod *corev1.Pod) string {
	if pod.Spec.HostNetwork {
		return p.node.Status.Addresses[0].Address
	}
	if pod.Status.PodIP != "" {
		return pod.Status.PodIP
	}
	n, known := p.addresses[pod.UID]
	if !known {
		n = len(p.addresses) + 2
		p.addresses[pod.UID] = n
	}
	node, _, _ := strings.Cut(p.node.Status.Addresses[0].Address, "/")
	last := node[strings.LastIndexByte(node, '.')+1:]
	return fmt.Sprintf("10.244.%s.%d", last, n%250)
}

// running is the status of a pod whose containers all run. parts says otherwise of containers by name.
func running(pod *corev1.Pod, ip, host string, parts map[string]containerState) corev1.PodStatus {
	status := *pod.Status.DeepCopy()
	now := metav1.Now()
	if status.StartTime == nil {
		status.StartTime = &now
	}
	status.Phase, status.PodIP, status.PodIPs = corev1.PodRunning, ip, []corev1.PodIP{{IP: ip}}
	status.HostIP, status.HostIPs = host, []corev1.HostIP{{IP: host}}
	ready := true
	old := status.ContainerStatuses
	status.ContainerStatuses = nil
	for _, c := range pod.Spec.Containers {
		part, known := parts[c.Name]
		if !known {
			part = containerState{ready: true, started: status.StartTime.Time}
		}
		state := corev1.ContainerStatus{Name: c.Name, Image: c.Image, ImageID: c.Image, ContainerID: "rack://" + string(pod.UID) + "/" + c.Name,
			Ready: part.ready, Started: &part.ready, RestartCount: int32(part.restarts)}
		if part.waiting != "" {
			state.State.Waiting = &corev1.ContainerStateWaiting{Reason: part.waiting, Message: part.message}
		} else {
			state.State.Running = &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(part.started.Truncate(time.Second))}
		}
		for _, was := range old {
			if was.Name == c.Name {
				state.LastTerminationState = was.LastTerminationState
			}
		}
		ready = ready && part.ready
		status.ContainerStatuses = append(status.ContainerStatuses, state)
	}
	truth := map[bool]corev1.ConditionStatus{true: corev1.ConditionTrue, false: corev1.ConditionFalse}
	for _, c := range []corev1.PodCondition{
		{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}, {Type: corev1.PodInitialized, Status: corev1.ConditionTrue},
		{Type: corev1.PodReadyToStartContainers, Status: corev1.ConditionTrue},
		{Type: corev1.ContainersReady, Status: truth[ready]}, {Type: corev1.PodReady, Status: truth[ready]},
	} {
		setCondition(&status, c, now)
	}
	return status
}

func setCondition(status *corev1.PodStatus, c corev1.PodCondition, now metav1.Time) {
	for i := range status.Conditions {
		have := &status.Conditions[i]
		if have.Type != c.Type {
			continue
		}
		if have.Status != c.Status {
			have.Status, have.LastTransitionTime, have.Reason, have.Message = c.Status, now, "", ""
		}
		return
	}
	c.LastTransitionTime = now
	status.Conditions = append(status.Conditions, c)
}

// mirror shows static pods in the API, by pods that only describe them.
func (p *nodePods) mirror(ctx context.Context, have map[string]*corev1.Pod) error {
	var errs []error
	remove := func(pod *corev1.Pod) {
		now := int64(0)
		err := p.k.api.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &now, Preconditions: &metav1.Preconditions{UID: &pod.UID}})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			errs = append(errs, fmt.Errorf("remove mirror pod %s: %w", pod.Name, err))
		}
	}
	for _, static := range p.k.pods.list() {
		want := p.mirrorOf(static)
		pod := have[want.Name]
		delete(have, want.Name)
		switch {
		case pod == nil:
			if _, err := p.k.api.CoreV1().Pods(want.Namespace).Create(ctx, want, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
				errs = append(errs, fmt.Errorf("mirror pod %s: %w", want.Name, err))
			}
		case pod.Annotations[corev1.MirrorPodAnnotationKey] != static.hash || pod.DeletionTimestamp != nil:
			remove(pod)
		default:
			address := p.node.Status.Addresses[0].Address
			errs = append(errs, p.write(ctx, pod, running(pod, address, address, map[string]containerState{pod.Spec.Containers[0].Name: static.state})))
		}
	}
	for _, pod := range have {
		remove(pod)
	}
	return errors.Join(errs...)
}

// mirrorOf is the mirror pod of a static pod, as a kubelet makes it.
func (p *nodePods) mirrorOf(static shownPod) *corev1.Pod {
	pod := static.pod.DeepCopy()
	pod.Name += "-" + p.k.name
	pod.Spec.NodeName = p.k.name
	pod.Spec.Tolerations = append(pod.Spec.Tolerations, corev1.Toleration{Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute})
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	pod.Annotations["kubernetes.io/config.source"] = "file"
	pod.Annotations["kubernetes.io/config.hash"] = static.hash
	pod.Annotations[corev1.MirrorPodAnnotationKey] = static.hash
	controller := true
	pod.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: p.node.Name, UID: p.node.UID, Controller: &controller}}
	return pod
}
