package controllers

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

// realAPI is the API of cluster rack: the etcd and the API server of machine a, with the files, flags and certificates that a is handed out,
// in a network namespace that has a's address. There is no kubelet; tests register as one would.
type realAPI struct {
	w  *liveWorld
	ns *netns.NS
}

// startAPI starts what machine a would.
func (w *liveWorld) startAPI(t *testing.T) *realAPI {
	t.Helper()
	a := &realAPI{w: w, ns: netns.New(t)}
	plan, root := w.plan("a").Plan, t.TempDir()
	a.ns.Run("ip", "address", "add", plan.Address+"/32", "dev", "lo")
	write := func(path string, content []byte) {
		check(t, os.MkdirAll(filepath.Dir(root+path), 0o700))
		check(t, os.WriteFile(root+path, content, 0o600))
	}
	for _, f := range plan.Files {
		switch {
		case f.Dir:
			check(t, os.MkdirAll(root+f.Path, 0o700))
		case f.Link == "":
			write(f.Path, f.Content)
		}
	}
	for _, c := range plan.Certificates {
		key, keyPEM := newKey(t)
		cert, _, err := w.clusters.Sign("a", "rack", c.Name, key.Public())
		check(t, err)
		if c.CertPath == c.KeyPath {
			keyPEM = append(cert, keyPEM...)
		} else {
			write(c.CertPath, cert)
		}
		write(c.KeyPath, keyPEM)
	}
	for _, component := range []string{"etcd", "kube-apiserver"} {
		pod, content := &corev1.Pod{}, fileOf(t, plan, "/etc/kubernetes/manifests/"+component+".yaml")
		check(t, yaml.Unmarshal(content, pod))
		var arguments []string
		for _, argument := range pod.Spec.Containers[0].Command {
			if flag, value, _ := strings.Cut(argument, "="); strings.HasPrefix(value, "/") {
				argument = flag + "=" + root + value
			}
			arguments = append(arguments, argument)
		}
		log, err := os.Create(filepath.Join(root, component+".log"))
		check(t, err)
		cmd := exec.Command(arguments[0], arguments[1:]...)
		cmd.Stdout, cmd.Stderr = log, log
		check(t, a.ns.Start(cmd))
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			log.Close()
			if said, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
				t.Logf("%s: %s", component, said[max(0, len(said)-3000):])
			}
		})
	}
	dial := func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = a.ns.Do(func() error {
			conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
	w.dial.Store(&dial)
	admin := a.as("admin", "system:masters")
	w.until(func() bool {
		_, err := admin.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
		return err == nil
	}, func() string { return "the cluster's API does not answer" })
	return a
}

func fileOf(t *testing.T, plan *wire.NodePlan, path string) []byte {
	t.Helper()
	for _, f := range plan.Files {
		if f.Path == path {
			return f.Content
		}
	}
	t.Fatalf("the plan has no %s", path)
	return nil
}

func newKey(t *testing.T) (crypto.Signer, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	check(t, err)
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// as is a client with a certificate of the cluster's authority.
func (a *realAPI) as(user string, groups ...string) *kubernetes.Clientset {
	a.w.t.Helper()
	key, keyPEM := newKey(a.w.t)
	cert, _, err := a.w.clusters.ClientCertificate("rack", user, groups, time.Hour, key.Public())
	check(a.w.t, err)
	view, _, _ := a.w.clusters.View("rack")
	client, err := kubernetes.NewForConfig(&rest.Config{Host: "https://" + view.APIServers[0].String(), Dial: *a.w.dial.Load(), QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{CAData: view.Authority, CertData: cert, KeyData: keyPEM}})
	check(a.w.t, err)
	return client
}

// register does what a kubelet does when it starts and reports.
func (a *realAPI) register(name, boot string, spec corev1.NodeSpec) *corev1.Node {
	a.w.t.Helper()
	kubelet, ctx := a.as("system:node:"+name, "system:nodes"), a.w.t.Context()
	_, err := kubelet.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{})
	check(a.w.t, err)
	return a.report(kubelet, name, boot, corev1.ConditionTrue)
}

func (a *realAPI) report(as *kubernetes.Clientset, name, boot string, ready corev1.ConditionStatus) *corev1.Node {
	a.w.t.Helper()
	patch := fmt.Appendf(nil, `{"status":{"nodeInfo":{"bootID":%q,"kubeletVersion":"v1.37.2","machineID":"","systemUUID":"","kernelVersion":"","osImage":"","containerRuntimeVersion":"",`+
		`"kubeProxyVersion":"","operatingSystem":"","architecture":""},"conditions":[{"type":"Ready","status":%q,"reason":"Test"}]}}`, boot, ready)
	node, err := as.CoreV1().Nodes().Patch(a.w.t.Context(), name, "application/strategic-merge-patch+json", patch, metav1.PatchOptions{}, "status")
	check(a.w.t, err)
	return node
}

// gone waits until a node was removed.
func (a *realAPI) gone(admin *kubernetes.Clientset, node *corev1.Node) {
	a.w.t.Helper()
	var is *corev1.Node
	a.w.until(func() bool {
		var err error
		is, err = admin.CoreV1().Nodes().Get(a.w.t.Context(), node.Name, metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	}, func() string { return fmt.Sprintf("node %s is still there: %+v", node.Name, is) })
}

// A machine leaves a cluster and comes back under its name, while the Node that its former kubelet registered is there.
func comesBack(t *testing.T, w *liveWorld) {
	require.Need(t, "netns", "etcd", "kube-apiserver")
	rackCluster(t, w)
	for i, name := range []string{"a", "b", "c"} {
		w.ready(name, fmt.Sprintf("10.0.0.%d", 20+i))
	}
	c := w.cluster("recorded", func(c *v1alpha1.Cluster) bool { return len(c.Status.Nodes) == 3 })
	if recorded(c) != "a=10.244.0.0/24 b=10.244.1.0/24 c=10.244.2.0/24" {
		t.Fatalf("recorded %s", recorded(c))
	}
	api := w.startAPI(t)
	admin := api.as("admin", "system:masters")
	networksOf := func(name string) string {
		n, err := admin.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		return n.Spec.PodCIDR
	}

	// It leaves. Its kubelet is alive until the wipe, and its Node is removed whether that counts as ready or not.
	first := api.register("c", "first", corev1.NodeSpec{})
	w.until(func() bool { return networksOf("c") == "10.244.2.0/24" }, func() string { return "a node of the plan has pod network " + networksOf("c") })
	w.edit("c", func(s *v1alpha1.MachineSpec) { s.Approved, s.Intent = false, nil })
	w.act("c", func(s *v1alpha1.MachineStatus) {
		s.Installed, s.Identity = nil, nil
		s.Intent = &v1alpha1.IntentStatus{ID: "r", Action: v1alpha1.ActionRelease, State: v1alpha1.IntentSucceeded, FinishedAt: &metav1.Time{Time: first.CreationTimestamp.Add(time.Second)}}
	})
	w.cluster("smaller", func(c *v1alpha1.Cluster) bool { return len(c.Status.Nodes) == 2 })
	api.gone(admin, first)

	// It is installed again, and something has registered under its name before that.
	w.act("c", func(s *v1alpha1.MachineStatus) { s.Intent = nil })
	w.wait("c", "without a record of its release", func(m *v1alpha1.Machine) bool { return m.Status.Intent == nil })
	former := api.register("c", "former", corev1.NodeSpec{PodCIDR: "10.244.9.0/24", PodCIDRs: []string{"10.244.9.0/24"},
		Taints: []corev1.Taint{{Key: "former.example/taint", Effect: corev1.TaintEffectNoSchedule}}})
	at := metav1.NewTime(former.CreationTimestamp.Add(time.Second)) // of whole seconds
	w.until(func() bool { return time.Now().After(at.Time) }, func() string { return "the second has not passed" })
	w.act("c", func(s *v1alpha1.MachineStatus) {
		s.Installed = &v1alpha1.InstalledStatus{IntentID: "i", Image: "debian-13", Disk: "d", At: at}
		s.Intent = &v1alpha1.IntentStatus{ID: "i", Action: v1alpha1.ActionInstall, State: v1alpha1.IntentSucceeded, FinishedAt: &at}
	})
	w.fleet.Beat("c", wire.Heartbeat{BootID: "present"}, "10.0.0.22")
	w.wait("c", "heard of", func(m *v1alpha1.Machine) bool { return m.Status.Node != nil && m.Status.Node.BootID == "present" })
	w.edit("c", func(s *v1alpha1.MachineSpec) { s.Approved = true })
	c = w.cluster("waiting for a person while the kubelet answers", func(c *v1alpha1.Cluster) bool {
		return strings.Contains(c.Status.Message, "machine c does not join: the cluster has a Node c already, and it is older than the machine's installation and counts as ready")
	})
	if is, err := admin.CoreV1().Nodes().Get(t.Context(), "c", metav1.GetOptions{}); err != nil || is.UID != former.UID || len(c.Status.Nodes) != 2 {
		t.Fatalf("a node that may work is %+v, %v; recorded %s", is, err, recorded(c))
	}
	if plan, _ := w.clusters.Node("c"); plan.Plan != nil {
		t.Fatal("a plan was handed out that meets a former Node")
	}

	// The kubelet falls silent. The Node goes first, then the machine joins, with a pod network of its own and nothing of the former one's.
	api.report(admin, "c", "former", corev1.ConditionUnknown)
	w.plan("c")
	if is := networksOf("c"); !strings.Contains(is, "not found") {
		t.Fatalf("the plan was handed out while there is a Node with pod network %s", is)
	}
	if c = w.cluster("whole", func(c *v1alpha1.Cluster) bool { return len(c.Status.Nodes) == 3 }); recorded(c) != "a=10.244.0.0/24 b=10.244.1.0/24 c=10.244.2.0/24" || len(c.Status.ForeignNodes) != 0 {
		t.Errorf("recorded %s, foreign %v", recorded(c), c.Status.ForeignNodes)
	}
	api.register("c", "present", corev1.NodeSpec{})
	w.until(func() bool { return networksOf("c") == "10.244.2.0/24" }, func() string { return "it has pod network " + networksOf("c") })
}
