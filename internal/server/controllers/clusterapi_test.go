package controllers

import (
	"context"
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
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/wire"
	"coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

// node does what coldrack-agent and a kubelet do: it puts what the machine is handed out below a folder, makes keys
// and has them signed, and runs the static pods' programs in a network namespace.
type node struct {
	w    *liveWorld
	ns   *netns.NS
	root string
	plan *wire.NodePlan
	run  map[string]*exec.Cmd
}

func newNode(w *liveWorld, ns *netns.NS, plan *wire.NodePlan, machine string) *node {
	n := &node{w: w, ns: ns, root: w.t.TempDir(), plan: plan, run: map[string]*exec.Cmd{}}
	for _, f := range plan.Files {
		switch {
		case f.Dir:
			check(w.t, os.MkdirAll(n.root+f.Path, 0o700))
		case f.Link == "":
			n.write(f.Path, f.Content)
		}
	}
	for _, c := range plan.Certificates {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		check(w.t, err)
		cert, _, err := w.clusters.Sign(machine, plan.Cluster, c.Name, key.Public())
		check(w.t, err)
		der, err := x509.MarshalPKCS8PrivateKey(key)
		check(w.t, err)
		keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
		if c.CertPath == c.KeyPath {
			n.write(c.CertPath, append(cert, keyPEM...))
			continue
		}
		n.write(c.CertPath, cert)
		n.write(c.KeyPath, keyPEM)
	}
	return n
}

func (n *node) write(path string, content []byte) {
	n.w.t.Helper()
	check(n.w.t, os.MkdirAll(filepath.Dir(n.root+path), 0o700))
	check(n.w.t, os.WriteFile(n.root+path, content, 0o600))
}

// start runs a component with the very command of its static pod; only the paths lie below the node's root.
func (n *node) start(component string) {
	t := n.w.t
	t.Helper()
	i := slices.IndexFunc(n.plan.Files, func(f wire.NodeFile) bool { return f.Path == "/etc/kubernetes/manifests/"+component+".yaml" })
	pod := &corev1.Pod{}
	check(t, yaml.Unmarshal(n.plan.Files[i].Content, pod))
	var arguments []string
	for _, argument := range pod.Spec.Containers[0].Command {
		if flag, value, _ := strings.Cut(argument, "="); strings.HasPrefix(value, "/") {
			argument = flag + "=" + n.root + value
		}
		arguments = append(arguments, argument)
	}
	log, err := os.Create(filepath.Join(n.root, component+".log"))
	check(t, err)
	defer log.Close()
	cmd := exec.Command(arguments[0], arguments[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	check(t, n.ns.Start(cmd))
	n.run[component] = cmd
	t.Cleanup(func() {
		n.kill(component)
		if text, err := os.ReadFile(log.Name()); t.Failed() && err == nil {
			t.Logf("%s ended with:\n%s", component, text[max(0, len(text)-3000):])
		}
	})
}

func (n *node) kill(component string) {
	if cmd := n.run[component]; cmd != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		delete(n.run, component)
	}
}

// TestAClusterOfRealPrograms goes from a written cluster to Ready with a real etcd and API server, which have
// nothing but what the server hands out and signs.
// addonsReady says what controllers would say, and pods, of which there are none here.
func (n *node) addonsReady(endpoint, authority string) {
	t := n.w.t
	t.Helper()
	const admin = "/var/lib/coldrack/kubernetes/admin"
	cert, err := os.ReadFile(n.root + admin + ".crt")
	check(t, err)
	key, err := os.ReadFile(n.root + admin + ".key")
	check(t, err)
	api, err := kubernetes.NewForConfig(&rest.Config{Host: endpoint, Dial: n.w.dial, QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{CAData: []byte(authority), CertData: cert, KeyData: key}})
	check(t, err)
	daemons, err := api.AppsV1().DaemonSets(metav1.NamespaceSystem).List(t.Context(), metav1.ListOptions{})
	check(t, err)
	for i := range daemons.Items {
		d := &daemons.Items[i]
		d.Status = appsv1.DaemonSetStatus{ObservedGeneration: d.Generation, DesiredNumberScheduled: 1, NumberReady: 1, NumberAvailable: 1, UpdatedNumberScheduled: 1}
		_, err = api.AppsV1().DaemonSets(d.Namespace).UpdateStatus(t.Context(), d, metav1.UpdateOptions{})
		check(t, err)
	}
	deployments, err := api.AppsV1().Deployments(metav1.NamespaceSystem).List(t.Context(), metav1.ListOptions{})
	check(t, err)
	for i := range deployments.Items {
		d := &deployments.Items[i]
		d.Status = appsv1.DeploymentStatus{ObservedGeneration: d.Generation, Replicas: *d.Spec.Replicas, ReadyReplicas: *d.Spec.Replicas, AvailableReplicas: *d.Spec.Replicas, UpdatedReplicas: *d.Spec.Replicas}
		_, err = api.AppsV1().Deployments(d.Namespace).UpdateStatus(t.Context(), d, metav1.UpdateOptions{})
		check(t, err)
	}
}

func TestAClusterOfRealPrograms(t *testing.T) {
	require.Need(t, "netns", "etcd", "kube-apiserver")
	ns := netns.New(t)
	ns.Bridge("br0")
	ns.Address("br0", "10.0.0.20/24")
	w := newLiveWorld(t, startPlane(t), func(w *liveWorld) {
		w.dial = func(ctx context.Context, network, address string) (conn net.Conn, err error) {
			err = ns.Do(func() error {
				conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
				return err
			})
			return conn, err
		}
	})
	w.catalog.set(func(c *fakeCatalog) { c.kubernetes = kube.KnownVersions() })
	subnet := rack()
	w.create(&subnet)
	cluster, groups, err := kube.Preset(v1alpha1.TopologyLaptop, kube.PresetOptions{Name: "rack", Profile: "default"})
	check(t, err)
	w.create(cluster)
	w.create(&groups[0])
	w.ready("a", "10.0.0.20")
	plan := w.plan("a").Plan
	w.installed("a")
	n := newNode(w, ns, plan, "a")
	n.start("etcd")
	n.start("kube-apiserver")
	w.fleet.BroughtUp("a", wire.PhaseReport{Cluster: "rack", Done: true, KubernetesVersion: plan.KubernetesVersion})

	c := w.cluster("applied to", func(c *v1alpha1.Cluster) bool {
		return len(c.Status.Steps) > 3 && c.Status.Steps[3].State == v1alpha1.StepSucceeded
	})
	if c.Status.Phase != v1alpha1.ClusterBringUp || c.Status.NodesReady != "0/1" || !strings.Contains(c.Status.Message, "not registered") {
		t.Errorf("%s %s: %s", c.Status.Phase, c.Status.NodesReady, c.Status.Message)
	}
	// The kubelet registers itself with the certificate that was signed for it.
	kubelet, err := os.ReadFile(n.root + "/var/lib/kubelet/pki/kubelet-client-coldrack.pem")
	check(t, err)
	api, err := kubernetes.NewForConfig(&rest.Config{Host: c.Status.Endpoint, Dial: w.dial, QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{CAData: []byte(plan.Certificates[0].Authority), CertData: kubelet, KeyData: kubelet}})
	check(t, err)
	object, err := api.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, metav1.CreateOptions{})
	check(t, err)
	say := func(status corev1.ConditionStatus, message string) {
		t.Helper()
		w.until(func() bool {
			object, err = api.CoreV1().Nodes().Get(t.Context(), "a", metav1.GetOptions{})
			check(t, err)
			object.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: status, LastTransitionTime: metav1.Now(), Message: message, Reason: "Test"}}
			_, err = api.CoreV1().Nodes().UpdateStatus(t.Context(), object, metav1.UpdateOptions{})
			return err == nil
		}, func() string { return fmt.Sprint(err) })
	}
	say(corev1.ConditionTrue, "")
	w.cluster("waiting for its addons", func(c *v1alpha1.Cluster) bool {
		return c.Status.Phase == v1alpha1.ClusterBringUp && strings.Contains(c.Status.Message, "coredns: 0 of 1 ready")
	})
	n.addonsReady(c.Status.Endpoint, plan.Certificates[0].Authority)
	c = w.cluster("ready", func(c *v1alpha1.Cluster) bool { return c.Status.Phase == v1alpha1.ClusterReady })
	if c.Status.NodesReady != "1/1" || !c.Status.Nodes[0].Ready || c.Status.Message != "" {
		t.Errorf("ready: %+v", c.Status)
	}
	w.until(func() bool {
		object, err = api.CoreV1().Nodes().Get(t.Context(), "a", metav1.GetOptions{})
		return err == nil && object.Spec.PodCIDR == "10.244.0.0/24" && object.Labels["coldrack.dev/machine"] == "a"
	}, func() string { return fmt.Sprintf("node %+v, %v", object, err) })
	g := &groups[0]
	w.until(func() bool {
		list := &v1alpha1.MachineGroupList{}
		check(t, w.client.List(t.Context(), list))
		*g = list.Items[0]
		return g.Status.ReadyReplicas == 1
	}, func() string { return fmt.Sprintf("group %+v", g.Status) })

	say(corev1.ConditionFalse, "the network is not ready")
	w.cluster("degraded", func(c *v1alpha1.Cluster) bool {
		return c.Status.Phase == v1alpha1.ClusterDegraded && strings.Contains(c.Status.Message, "node a is not ready since") && strings.Contains(c.Status.Message, "the network is not ready")
	})
	say(corev1.ConditionTrue, "")
	w.cluster("ready again", func(c *v1alpha1.Cluster) bool { return c.Status.Phase == v1alpha1.ClusterReady })
	n.kill("kube-apiserver")
	w.cluster("without an API", func(c *v1alpha1.Cluster) bool {
		return c.Status.Phase == v1alpha1.ClusterDegraded && strings.Contains(c.Status.Message, "API does not answer since")
	})
}
