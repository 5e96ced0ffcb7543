package kubeapi

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/netip"
	"os"
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
		Target: c.target(), Nodes: c.wanted().Nodes, PodSecurity: "baseline", Timeout: time.Minute, settle: time.Second, callSettle: 2 * time.Minute,
		ServiceNetworks: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")},
		EtcdMembers:     []netip.AddrPort{netip.MustParseAddrPort("10.20.0.11:2379")}, EtcdCA: c.authorities[kube.AuthorityEtcd].pem,
		EtcdCertificate: func() (*tls.Certificate, error) {
			return c.authorities[kube.AuthorityEtcd].client(c.t, "coldrack"), nil
		},
		Certificates: map[string]map[string]time.Time{
			"node-01": {"apiserver": time.Now().Add(300 * 24 * time.Hour), "etcd-peer": time.Now().Add(30 * 24 * time.Hour)},
			"node-02": {"apiserver": time.Now().Add(-time.Hour)},
		},
		Authorities: map[string]time.Time{"ca": time.Now().Add(3650 * 24 * time.Hour), "etcd-ca": time.Now().Add(30 * 24 * time.Hour)},
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
	controllers := c.playControllers(t, admin)
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
		for _, name := range []string{verifyNamespace, policyNamespace, hostNamespace} {
			if _, err := admin.CoreV1().Namespaces().Get(t.Context(), name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				t.Errorf("namespace %s is still there: %v", name, err)
			}
		}
		if _, err := c.connect().dynamic.Resource(apiServices).Get(t.Context(), apiServiceName, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("the APIService is still there: %v", err)
		}
		if _, err := admin.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(t.Context(), webhookName, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("the webhook is still there: %v", err)
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
		expect(t, checks, "authority ca", true, "good for 3649 days")
		expect(t, checks, "authority etcd-ca", false, "is good for 29 days, and what it signs for no longer; replace it: coldrack cluster rotate rack etcd-ca")
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
			expect(t, checks, "host network to DNS from "+node, false, "dns:kubernetes.default.svc.cluster.local.: ")
			expect(t, checks, "host network to service from "+node, true, "10.96.")
		}
		// Only the second machine has a way to the API's service, and neither has a default route.
		expect(t, checks, "host network to API from node-01", false, "10.96.0.1:443: connect: network is unreachable; node-01 has no route to the service network 10.96.0.0/16")
		expect(t, checks, "host network to API from node-02", true, "10.96.0.1:443")
		// The service's address is each machine's own, so each API server is answered by the probe beside it.
		expect(t, checks, "admission webhook from 10.20.0.11:6443", true, "changed by the webhook on node-01")
		expect(t, checks, "admission webhook from 10.20.0.12:6443", true, "changed by the webhook on node-02")
		expect(t, checks, "aggregated API v1.verify.coldrack.dev", true, "Available")
		expect(t, checks, "aggregated API from 10.20.0.11:6443", true, "answered on node-01, for coldrack")
		expect(t, checks, "aggregated API from 10.20.0.12:6443", true, "answered on node-02, for coldrack")
		expect(t, checks, "clean-up coldrack-verify", true, "removed")
		gone(t)
	})
	t.Run("nodes without a route to services are told what to do", func(t *testing.T) {
		controllers.noServices.Store(true)
		defer controllers.noServices.Store(false)
		options := c.verifyOptions()
		options.callSettle = 15 * time.Second
		checks := collect(t.Context(), options)
		for node, server := range map[string]string{"node-01": "10.20.0.11:6443", "node-02": "10.20.0.12:6443"} {
			route := "network is unreachable; " + node + " has no route to the service network 10.96.0.0/16"
			expect(t, checks, "pod to pod from "+node, true, ":8080")
			expect(t, checks, "host network to service from "+node, false, route)
			expect(t, checks, "admission webhook from "+server, false, route)
		}
		expect(t, checks, "aggregated API v1.verify.coldrack.dev", false, "network is unreachable; the control plane's node has no route to the service network")
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
					at := metav1.NewMicroTime(time.Now().Add(-time.Hour))
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
		c.leaveRemains(t, admin)
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
	t.Run("everything is removed when nobody listens while API servers call", func(t *testing.T) {
		for check := range Verify(t.Context(), c.verifyOptions()) {
			if check.Target == apiServiceName {
				break
			}
		}
		gone(t)
	})
	t.Run("what a killed verification left harms nothing and is removed without another", func(t *testing.T) {
		c.leaveRemains(t, admin)
		_, err := admin.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "someones", Labels: map[string]string{labelRun: "killed"}}}, metav1.CreateOptions{})
		check(t, err)
		connection := c.connect()
		if removed, err := connection.removeForgotten(t.Context(), time.Hour); removed || err != nil {
			t.Errorf("one that may still run was removed: %v, error %v", removed, err)
		}
		if removed, err := connection.removeForgotten(t.Context(), 0); !removed || err != nil {
			t.Errorf("nothing was removed: %v", err)
		}
		if removed, err := connection.removeForgotten(t.Context(), 0); removed || err != nil {
			t.Errorf("something was removed twice: %v, error %v", removed, err)
		}
		check(t, admin.CoreV1().Namespaces().Delete(t.Context(), verifyNamespace, metav1.DeleteOptions{}))
		eventually(t, "its namespace ends", func() (bool, string) {
			_, err := admin.CoreV1().Namespaces().Get(t.Context(), verifyNamespace, metav1.GetOptions{})
			return apierrors.IsNotFound(err), fmt.Sprint(err)
		})
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

// leaveRemains leaves what a verification had at the moment when it was killed; its probes are gone.
func (c *testCluster) leaveRemains(t *testing.T, admin kubernetes.Interface) {
	t.Helper()
	_, err := admin.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: verifyNamespace}}, metav1.CreateOptions{})
	check(t, err)
	callee, err := newCallee(time.Now())
	check(t, err)
	_, err = admin.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(t.Context(), webhookConfiguration(callee, "killed"), metav1.CreateOptions{})
	check(t, err)
	_, err = c.connect().dynamic.Resource(apiServices).Create(t.Context(), apiService(callee), metav1.CreateOptions{})
	check(t, err)
}
