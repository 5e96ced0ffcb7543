package kubeapi

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coldrack.dev/internal/cluster/kube"
	coordination "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

func (c *testCluster) verifyOptions() VerifyOptions {
	return VerifyOptions{
		Target: c.target(), Nodes: c.wanted().Nodes, PodSecurity: "baseline", Timeout: 20 * time.Second, settle: time.Second,
		EtcdMembers: []netip.AddrPort{netip.MustParseAddrPort("10.20.0.11:2379")}, EtcdCA: c.authorities[kube.AuthorityEtcd].pem,
		EtcdCertificate: func() (*tls.Certificate, error) {
			return c.authorities[kube.AuthorityEtcd].client(c.t, "coldrack"), nil
		},
		Certificates: map[string]map[string]time.Time{
			"node-01": {"apiserver": time.Now().Add(300 * 24 * time.Hour), "etcd-peer": time.Now().Add(30 * 24 * time.Hour)},
			"node-02": {"apiserver": time.Now().Add(-time.Hour)},
		},
	}
}

// collect runs a verification to its end.
func collect(ctx context.Context, o VerifyOptions) map[string]Check {
	checks := map[string]Check{}
	for c := range Verify(ctx, o) {
		checks[c.Name+" "+c.Target] = c
	}
	return checks
}

func expect(t *testing.T, checks map[string]Check, name string, ok bool, detail string) {
	t.Helper()
	c, there := checks[name]
	if !there || c.OK != ok || !strings.Contains(c.Detail, detail) {
		t.Errorf("check %q: %+v (there: %v), want ok %v and %q", name, c, there, ok, detail)
	}
}

func (c *testCluster) testVerify(t *testing.T) {
	admin := c.as("admin", "system:masters")
	c.playControllers(t, admin)
	c.register(t, "node-02", "10.20.0.12")
	w := c.run(t, nil)
	eventually(t, "the nodes are as planned", func() (bool, string) {
		s := w.last()
		return len(s.Nodes["node-01"].PodCIDRs) == 1 && len(s.Nodes["node-02"].PodCIDRs) == 1 && s.Objects.Digest != "", fmt.Sprintf("%+v", s)
	})
	for _, name := range []string{"early", "guest", "liar", "newcomer-2"} {
		check(t, admin.CoreV1().Nodes().Delete(t.Context(), name, metav1.DeleteOptions{}))
	}
	for _, name := range []string{"kube-controller-manager", "kube-scheduler"} {
		holder, now := "node-01_1234", metav1.NewMicroTime(time.Now())
		if name == "kube-scheduler" {
			now = metav1.NewMicroTime(time.Now().Add(-time.Hour))
		}
		_, err := admin.CoordinationV1().Leases("kube-system").Create(t.Context(), &coordination.Lease{ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: coordination.LeaseSpec{HolderIdentity: &holder, RenewTime: &now}}, metav1.CreateOptions{})
		check(t, err)
	}
	gone := func(t *testing.T) {
		t.Helper()
		for _, name := range []string{verifyNamespace, policyNamespace} {
			if _, err := admin.CoreV1().Namespaces().Get(t.Context(), name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				t.Errorf("namespace %s is still there: %v", name, err)
			}
		}
	}

	t.Run("each thing is told with what was found", func(t *testing.T) {
		checks := collect(t.Context(), c.verifyOptions())
		for _, server := range []string{"10.20.0.11:6443", "10.20.0.12:6443"} {
			expect(t, checks, "API server "+server, true, "checks passed")
			expect(t, checks, "API server certificate "+server, true, "good for 364 days")
			expect(t, checks, "anonymous access "+server, true, "health endpoints only")
		}
		expect(t, checks, "etcd 10.20.0.11:2379", true, "healthy")
		expect(t, checks, "component kube-controller-manager", true, "led by node-01")
		expect(t, checks, "component kube-scheduler", false, "node-01 led until 1h0m")
		expect(t, checks, "component static pods", false, "kube-apiserver-node-01: there is no such pod")
		expect(t, checks, "nodes rack", true, "2 registered, 3 planned")
		expect(t, checks, "node node-01", true, "Ready, v1.37.2")
		expect(t, checks, "node node-03", false, "is not registered")
		expect(t, checks, "kubelet certificate node-01", false, "connection refused")
		expect(t, checks, "certificates node-01", true, "etcd-peer is good for 29 days")
		expect(t, checks, "certificates node-02", false, "apiserver is good for no more: expired 1h0m0s ago")
		expect(t, checks, "addon kube-system/coredns", false, "0 of 2 ready")
		expect(t, checks, "secrets encrypted etcd", true, "with secretbox")
		expect(t, checks, "pod security baseline", true, "a privileged pod is refused")
		for node, other := range map[string]string{"node-01": "10.244.1.10", "node-02": "10.244.0.10"} {
			expect(t, checks, "pod runs "+node, true, "ready")
			expect(t, checks, "API server to pod "+node, true, "10.244.")
			expect(t, checks, "pod to pod from "+node, true, other+":8080")
			expect(t, checks, "service address from "+node, true, "10.96.")
			// No DNS server here: the failure must be told with its reason.
			expect(t, checks, "DNS from "+node, false, "1 of 1: dns:kubernetes.default.svc.cluster.local.: ")
		}
		expect(t, checks, "clean-up coldrack-verify", true, "removed")
		gone(t)
	})
	t.Run("a leader whose clock is off leads all the same", func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			leases := admin.CoordinationV1().Leases("kube-system")
			for ctx.Err() == nil {
				if lease, err := leases.Get(ctx, "kube-scheduler", metav1.GetOptions{}); err == nil {
					at := metav1.NewMicroTime(lease.Spec.RenewTime.Add(10 * time.Millisecond))
					lease.Spec.RenewTime = &at
					_, _ = leases.Update(ctx, lease, metav1.UpdateOptions{})
				}
				time.Sleep(10 * time.Millisecond)
			}
		}()
		options := c.verifyOptions()
		options.NoPods = true
		checks := collect(t.Context(), options)
		stop()
		<-ended
		expect(t, checks, "component kube-scheduler", true, "led by node-01, whose clock is off by 1h0m")
	})
	t.Run("what an earlier verification left is removed first", func(t *testing.T) {
		_, err := admin.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: verifyNamespace}}, metav1.CreateOptions{})
		check(t, err)
		options := c.verifyOptions()
		options.NoPods = true
		checks := collect(t.Context(), options)
		expect(t, checks, "namespace coldrack-verify", true, "after the remains of an earlier verification were removed")
		expect(t, checks, "secrets encrypted etcd", true, "with secretbox")
		if _, there := checks["pod runs node-01"]; there {
			t.Error("pods ran")
		}
		gone(t)
	})
	t.Run("everything is removed when nobody listens any more", func(t *testing.T) {
		for check := range Verify(t.Context(), c.verifyOptions()) {
			if check.Name == "probe pods" {
				break
			}
		}
		gone(t)
	})
	t.Run("everything is removed when time is up", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for check := range Verify(ctx, c.verifyOptions()) {
			if check.Name == "namespace" {
				cancel()
			}
		}
		gone(t)
	})
	t.Run("an API server that is open in every way is told of", func(t *testing.T) {
		c.kill("machine-02", "kube-apiserver")
		root := c.hosts["machine-02"].root + "/etc/kubernetes/apiserver/"
		encrypted, err := os.ReadFile(root + "encryption.yaml")
		check(t, err)
		// What is there can still be read, but what is written is plain.
		writeFile(t, root+"encryption.yaml", []byte(strings.Replace(string(encrypted), "providers:\n", "providers:\n  - identity: {}\n", 1)))
		writeFile(t, root+"authentication.yaml", []byte("apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\nanonymous: {enabled: true}\n"))
		writeFile(t, root+"admission.yaml", []byte("apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\nplugins: []\n"))
		c.start("machine-02", "kube-apiserver")
		second := c.servers()[1]
		connection := c.connect(second)
		eventually(t, "it is back", func() (bool, string) {
			_, err := connection.Check(t.Context())
			return err == nil, fmt.Sprint(err)
		})
		options := c.verifyOptions()
		options.Target = c.target(second)
		options.NoPods = true
		checks := collect(t.Context(), options)
		expect(t, checks, "secrets encrypted etcd", false, "a Secret is readable in etcd")
		expect(t, checks, "pod security baseline", false, "a privileged pod is allowed")
		expect(t, checks, "anonymous access "+second.String(), false, "/version answers strangers with 200")
		gone(t)
	})
	t.Run("a cluster that does not answer is told of", func(t *testing.T) {
		options := c.verifyOptions()
		options.Target = c.target(netip.MustParseAddrPort("10.20.0.13:6443"))
		checks := collect(t.Context(), options)
		expect(t, checks, "API server 10.20.0.13:6443", false, "connection refused")
		expect(t, checks, "API rack", false, "nothing else can be looked at")
	})
}

// playControllers does what kube-controller-manager, scheduler, kubelet and kube-proxy do with a verification: a pod
// of the real probe on each node, an address for its service, and namespaces that end.
func (c *testCluster) playControllers(t *testing.T, admin kubernetes.Interface) {
	program := filepath.Join(t.TempDir(), "coldrack-probe")
	if out, err := exec.Command("go", "build", "-o", program, "coldrack.dev/cmd/coldrack-probe").CombinedOutput(); err != nil {
		t.Fatalf("build the probe: %v\n%s", err, out)
	}
	for i, machine := range []string{"machine-01", "machine-02"} {
		ns := c.hosts[machine].ns
		ns.Run("ip", "address", "add", fmt.Sprintf("10.244.%d.10/32", i), "dev", "lo")
		ns.Run("ip", "route", "add", fmt.Sprintf("10.244.%d.10/32", 1-i), "via", fmt.Sprintf("10.20.0.%d", 12-i), "src", fmt.Sprintf("10.20.0.%d", 11+i))
		cmd := exec.Command(program, "serve")
		cmd.Stderr = os.Stderr
		check(t, ns.Start(cmd))
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	t.Cleanup(func() {
		cancel()
		<-done
	})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			c.controllersOnce(ctx, admin)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
}

// controllersOnce ignores errors: it is called again.
func (c *testCluster) controllersOnce(ctx context.Context, admin kubernetes.Interface) {
	for _, name := range []string{verifyNamespace, policyNamespace} {
		namespace, err := admin.CoreV1().Namespaces().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			continue
		}
		if namespace.DeletionTimestamp != nil {
			now, all := int64(0), metav1.ListOptions{}
			immediately := metav1.DeleteOptions{GracePeriodSeconds: &now}
			_ = admin.AppsV1().DaemonSets(name).DeleteCollection(ctx, immediately, all)
			_ = admin.CoreV1().Pods(name).DeleteCollection(ctx, immediately, all)
			_ = admin.CoreV1().Secrets(name).DeleteCollection(ctx, immediately, all)
			_ = admin.CoreV1().ServiceAccounts(name).DeleteCollection(ctx, immediately, all)
			_ = admin.CoreV1().Services(name).Delete(ctx, probeName, immediately)
			namespace.Spec.Finalizers = nil
			_, _ = admin.CoreV1().Namespaces().Finalize(ctx, namespace, metav1.UpdateOptions{})
			continue
		}
		_, _ = admin.CoreV1().ServiceAccounts(name).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})
	}
	daemons, err := admin.AppsV1().DaemonSets(verifyNamespace).Get(ctx, probeName, metav1.GetOptions{})
	if err != nil || daemons.DeletionTimestamp != nil {
		return
	}
	if service, err := admin.CoreV1().Services(verifyNamespace).Get(ctx, probeName, metav1.GetOptions{}); err == nil {
		for _, machine := range []string{"machine-01", "machine-02"} {
			_, _ = c.hosts[machine].ns.Try(ctx, "ip", "address", "add", service.Spec.ClusterIP+"/32", "dev", "lo")
		}
	}
	for i := range 2 {
		name := fmt.Sprintf("%s-%d", probeName, i)
		pod, err := admin.CoreV1().Pods(verifyNamespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			pod = &corev1.Pod{ObjectMeta: *daemons.Spec.Template.ObjectMeta.DeepCopy(), Spec: *daemons.Spec.Template.Spec.DeepCopy()}
			pod.Name, pod.Spec.NodeName = name, fmt.Sprintf("node-0%d", i+1)
			if pod, err = admin.CoreV1().Pods(verifyNamespace).Create(ctx, pod, metav1.CreateOptions{}); err != nil {
				continue
			}
		}
		if pod.Status.PodIP != "" {
			continue
		}
		pod.Status.Phase, pod.Status.PodIP = corev1.PodRunning, fmt.Sprintf("10.244.%d.10", i)
		pod.Status.PodIPs = []corev1.PodIP{{IP: pod.Status.PodIP}}
		pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		_, _ = admin.CoreV1().Pods(verifyNamespace).UpdateStatus(ctx, pod, metav1.UpdateOptions{})
	}
}
