package kubeapi

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// testControllers do what kube-controller-manager, scheduler, kubelet and kube-proxy do with a verification: a pod of the
// real probe on each node, an address for its service, and namespaces that end.
type testControllers struct {
	c       *testCluster
	admin   kubernetes.Interface
	program string
	// noServices leaves machines without any way to the probes' service.
	noServices atomic.Bool
	// serving are probes by machine, ended those pods whose probe ran to its end, addresses the services' on each machine.
	serving   map[string]*exec.Cmd
	ended     map[types.UID]bool
	addresses map[string]bool
	jobs      sync.WaitGroup
}

var verifyMachines = []string{"machine-01", "machine-02"}

func (c *testCluster) playControllers(t *testing.T, admin kubernetes.Interface) *testControllers {
	p := &testControllers{c: c, admin: admin, program: filepath.Join(t.TempDir(), "coldrack-probe"),
		serving: map[string]*exec.Cmd{}, ended: map[types.UID]bool{}, addresses: map[string]bool{}}
	if out, err := exec.Command("go", "build", "-o", p.program, "coldrack.dev/cmd/coldrack-probe").CombinedOutput(); err != nil {
		t.Fatalf("build the probe: %v\n%s", err, out)
	}
	for i, machine := range verifyMachines {
		ns := c.hosts[machine].ns
		ns.Run("ip", "address", "add", fmt.Sprintf("10.244.%d.10/32", i), "dev", "lo")
		ns.Run("ip", "route", "add", fmt.Sprintf("10.244.%d.10/32", 1-i), "via", fmt.Sprintf("10.20.0.%d", 12-i), "src", fmt.Sprintf("10.20.0.%d", 11+i))
	}
	c.serveAPIAddress(t, "machine-02")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	t.Cleanup(func() {
		cancel()
		<-done
		p.jobs.Wait()
		p.stopServing()
	})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			p.once(ctx)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	return p
}

// serveAPIAddress gives a machine a way to the API's service.
func (c *testCluster) serveAPIAddress(t *testing.T, machine string) {
	ns := c.hosts[machine].ns
	ns.Run("ip", "address", "add", "10.96.0.1/32", "dev", "lo")
	var listener net.Listener
	check(t, ns.Do(func() (err error) {
		listener, err = net.Listen("tcp", "10.96.0.1:443")
		return err
	}))
	var served sync.WaitGroup
	served.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	})
	t.Cleanup(func() {
		listener.Close()
		served.Wait()
	})
}

// once ignores errors: it is called again.
func (p *testControllers) once(ctx context.Context) {
	for _, name := range []string{verifyNamespace, policyNamespace, hostNamespace} {
		namespace, err := p.admin.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
		switch {
		case err != nil:
		case namespace.DeletionTimestamp != nil:
			p.empty(ctx, namespace)
		default:
			_, _ = p.admin.CoreV1().ServiceAccounts(name).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})
		}
	}
	p.daemons(ctx)
	p.hostPods(ctx)
}

// empty ends a namespace, and with the probes' own what runs in it.
func (p *testControllers) empty(ctx context.Context, namespace *corev1.Namespace) {
	name := namespace.Name
	now, all := int64(0), metav1.ListOptions{}
	immediately := metav1.DeleteOptions{GracePeriodSeconds: &now}
	_ = p.admin.AppsV1().DaemonSets(name).DeleteCollection(ctx, immediately, all)
	_ = p.admin.CoreV1().Pods(name).DeleteCollection(ctx, immediately, all)
	_ = p.admin.CoreV1().Secrets(name).DeleteCollection(ctx, immediately, all)
	_ = p.admin.CoreV1().ServiceAccounts(name).DeleteCollection(ctx, immediately, all)
	_ = p.admin.DiscoveryV1().EndpointSlices(name).DeleteCollection(ctx, immediately, all)
	_ = p.admin.CoreV1().Services(name).Delete(ctx, probeName, immediately)
	if name == verifyNamespace {
		p.stopServing()
		for address := range p.addresses {
			for _, machine := range verifyMachines {
				_, _ = p.c.hosts[machine].ns.Try(ctx, "ip", "address", "del", address, "dev", "lo")
			}
		}
		clear(p.addresses)
	}
	namespace.Spec.Finalizers = nil
	_, _ = p.admin.CoreV1().Namespaces().Finalize(ctx, namespace, metav1.UpdateOptions{})
}

func (p *testControllers) stopServing() {
	for machine, cmd := range p.serving {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		delete(p.serving, machine)
	}
}

// daemons makes the DaemonSet's pods and what belongs to its service.
func (p *testControllers) daemons(ctx context.Context) {
	daemons, err := p.admin.AppsV1().DaemonSets(verifyNamespace).Get(ctx, probeName, metav1.GetOptions{})
	if err != nil || daemons.DeletionTimestamp != nil {
		return
	}
	service, err := p.admin.CoreV1().Services(verifyNamespace).Get(ctx, probeName, metav1.GetOptions{})
	if err != nil {
		return
	}
	p.route(ctx, service)
	for i, machine := range verifyMachines {
		name := fmt.Sprintf("%s-%d", probeName, i)
		pod, err := p.admin.CoreV1().Pods(verifyNamespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			pod = &corev1.Pod{ObjectMeta: *daemons.Spec.Template.ObjectMeta.DeepCopy(), Spec: *daemons.Spec.Template.Spec.DeepCopy()}
			pod.Name, pod.Spec.NodeName = name, fmt.Sprintf("node-0%d", i+1)
			if pod, err = p.admin.CoreV1().Pods(verifyNamespace).Create(ctx, pod, metav1.CreateOptions{}); err != nil {
				continue
			}
		}
		if pod.Status.PodIP != "" || !p.serve(ctx, machine, pod) {
			continue
		}
		pod.Status.Phase, pod.Status.PodIP = corev1.PodRunning, fmt.Sprintf("10.244.%d.10", i)
		pod.Status.PodIPs = []corev1.PodIP{{IP: pod.Status.PodIP}}
		pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		_, _ = p.admin.CoreV1().Pods(verifyNamespace).UpdateStatus(ctx, pod, metav1.UpdateOptions{})
	}
}

// route makes the service's address each machine's own, and tells API servers of its endpoints.
func (p *testControllers) route(ctx context.Context, service *corev1.Service) {
	if address := service.Spec.ClusterIP + "/32"; !p.noServices.Load() && !p.addresses[address] {
		for _, machine := range verifyMachines {
			_, _ = p.c.hosts[machine].ns.Try(ctx, "ip", "address", "add", address, "dev", "lo")
		}
		p.addresses[address] = true
	}
	slice := &discovery.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: probeName, Labels: map[string]string{discovery.LabelServiceName: probeName}}, AddressType: discovery.AddressTypeIPv4}
	ready := true
	for i := range verifyMachines {
		slice.Endpoints = append(slice.Endpoints, discovery.Endpoint{Addresses: []string{fmt.Sprintf("10.244.%d.10", i)}, Conditions: discovery.EndpointConditions{Ready: &ready}})
	}
	for _, port := range service.Spec.Ports {
		slice.Ports = append(slice.Ports, discovery.EndpointPort{Name: &port.Name, Port: &port.Port})
	}
	_, _ = p.admin.DiscoveryV1().EndpointSlices(service.Namespace).Create(ctx, slice, metav1.CreateOptions{})
}

// serve runs a pod's container on a machine; it tells whether it is ready.
func (p *testControllers) serve(ctx context.Context, machine string, pod *corev1.Pod) bool {
	if p.serving[machine] == nil {
		environment, err := p.environment(ctx, pod)
		if err != nil {
			return false
		}
		cmd := exec.Command(p.program, "serve")
		cmd.Env, cmd.Stderr = environment, os.Stderr
		if err := p.c.hosts[machine].ns.Start(cmd); err != nil {
			return false
		}
		p.serving[machine] = cmd
	}
	return p.c.hosts[machine].ns.Do(func() error {
		for _, port := range pod.Spec.Containers[0].Ports {
			conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port.ContainerPort))
			if err != nil {
				return err
			}
			conn.Close()
		}
		return nil
	}) == nil
}

// environment is what a kubelet makes of a container's variables.
func (p *testControllers) environment(ctx context.Context, pod *corev1.Pod) ([]string, error) {
	var environment []string
	fields := map[string]string{"metadata.name": pod.Name, "metadata.namespace": pod.Namespace, "spec.nodeName": pod.Spec.NodeName}
	for _, e := range pod.Spec.Containers[0].Env {
		value := e.Value
		switch from := e.ValueFrom; {
		case from != nil && from.FieldRef != nil:
			value = fields[from.FieldRef.FieldPath]
		case from != nil && from.SecretKeyRef != nil:
			secret, err := p.admin.CoreV1().Secrets(pod.Namespace).Get(ctx, from.SecretKeyRef.Name, metav1.GetOptions{})
			if err != nil {
				return nil, err
			}
			value = string(secret.Data[from.SecretKeyRef.Key])
		}
		environment = append(environment, e.Name+"="+value)
	}
	return environment, nil
}

// hostPods runs pods in nodes' own networks to their end.
func (p *testControllers) hostPods(ctx context.Context) {
	pods, err := p.admin.CoreV1().Pods(hostNamespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return
	}
	for i := range pods.Items {
		pod := &pods.Items[i]
		if p.ended[pod.UID] || !pod.Spec.HostNetwork {
			continue
		}
		p.ended[pod.UID] = true
		p.jobs.Go(func() { p.runHostPod(ctx, pod) })
	}
}

func (p *testControllers) runHostPod(ctx context.Context, pod *corev1.Pod) {
	file := filepath.Join(filepath.Dir(p.program), string(pod.UID))
	environment, err := p.environment(ctx, pod)
	if err != nil {
		return
	}
	cmd := exec.CommandContext(ctx, p.program, pod.Spec.Containers[0].Args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = append(environment, "COLDRACK_PROBE_REPORT="+file), io.Discard, os.Stderr
	host := p.c.hosts["machine"+pod.Spec.NodeName[len("node"):]]
	if err := host.ns.Start(cmd); err != nil {
		return
	}
	_ = cmd.Wait()
	report, _ := os.ReadFile(file)
	pod.Status.Phase = corev1.PodSucceeded
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: probeName, State: corev1.ContainerState{
		Terminated: &corev1.ContainerStateTerminated{ExitCode: int32(cmd.ProcessState.ExitCode()), Message: string(report)}}}}
	_, _ = p.admin.CoreV1().Pods(hostNamespace).UpdateStatus(ctx, pod, metav1.UpdateOptions{})
}
