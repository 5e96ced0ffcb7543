package rack

import (
	"fmt"
	"net"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kube"
)

// ClusterObjects are a cluster and its groups, before the server gets them.
type ClusterObjects struct {
	Cluster *v1alpha1.Cluster
	Groups  []v1alpha1.MachineGroup
}

// segment is what the server must know of the rack before there is any machine.
func segment() []client.Object {
	return []client.Object{
		&v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: "rack"},
			Spec: v1alpha1.SubnetSpec{CIDR: "10.78.0.0/24", DHCP: v1alpha1.DHCPServer, Discovery: "10.78.0.111-10.78.0.210", Static: "10.78.0.11-10.78.0.110"}},
		&v1alpha1.Profile{ObjectMeta: metav1.ObjectMeta{Name: "default"}, Spec: v1alpha1.ProfileSpec{Image: operatingSystem}},
	}
}

// object is the machine as an operator has written it down before it comes.
func (m *Machine) object() *v1alpha1.Machine {
	return &v1alpha1.Machine{
		ObjectMeta: metav1.ObjectMeta{Name: m.name, Labels: map[string]string{"coldrack.dev/pool": m.pool}},
		Spec: v1alpha1.MachineSpec{Identifiers: v1alpha1.Identifiers{MACs: []string{m.mac}, UUID: m.uuid}, Approved: true, Profile: "default",
			Network: &v1alpha1.MachineNetwork{Subnet: "rack", Address: m.address}}}
}

// applyCluster makes the objects of the cluster.
func (r *Rack) applyCluster(size Size, change []func(*ClusterObjects)) {
	t := r.t
	t.Helper()
	r.cluster = "rack"
	options := kube.PresetOptions{Name: r.cluster, Version: r.programs.version, Profile: "default", Servers: size.Etcd, ControlPlanes: size.ControlPlanes, Workers: size.Workers}
	if r.options.VirtualIP {
		options.VirtualIP = virtualIP
	}
	cluster, groups, err := kube.Preset(v1alpha1.TopologyProduction, options)
	if err != nil {
		t.Fatal(err)
	}
	if size.Etcd < 3 || size.ControlPlanes < 2 {
		cluster.Spec.Topology = v1alpha1.TopologyCustom // a preset of production has more
	}
	quick(cluster)
	own := &ClusterObjects{cluster, groups}
	for _, c := range change {
		c(own)
	}
	objects := []client.Object{own.Cluster}
	for i := range own.Groups {
		objects = append(objects, &own.Groups[i])
	}
	if err := r.server.create(objects...); err != nil {
		t.Fatal(err)
	}
}

// quick has the control plane notice in seconds what it otherwise notices in a minute: a node without power. A program that
// ended because the API server was away is started again as soon.
func quick(cluster *v1alpha1.Cluster) {
	cluster.Spec.ControllerManager.ExtraArgs = map[string]string{"node-monitor-grace-period": "8s", "node-monitor-period": "1s"}
	cluster.Spec.Kubelet.Config = &runtime.RawExtension{Raw: []byte(`{"nodeStatusUpdateFrequency": "2s", "nodeLeaseDurationSeconds": 8, "crashLoopBackOff": {"maxContainerRestartPeriod": "3s"}}`)}
}

// AwaitReady waits until the server says that the cluster is as it should be, and Kubernetes says so of each node.
func (r *Rack) AwaitReady() {
	r.t.Helper()
	r.AwaitCluster("ready", func(c *v1alpha1.Cluster) bool { return c.Status.Phase == v1alpha1.ClusterReady })
	r.Await("nodes", func() (bool, string) {
		ready, err := r.ReadyNodes()
		if err != nil {
			return false, err.Error()
		}
		return len(ready) == len(r.machines), fmt.Sprintf("%d of %d are Ready", len(ready), len(r.machines))
	})
}

// AwaitCluster waits until the server says something of the cluster.
func (r *Rack) AwaitCluster(what string, is func(*v1alpha1.Cluster) bool) {
	r.t.Helper()
	r.Await("the cluster is "+what, func() (bool, string) {
		c := &v1alpha1.Cluster{}
		if err := r.server.Get(r.cluster, c); err != nil {
			return false, err.Error()
		}
		seen := fmt.Sprintf("%s %s %s", c.Status.Phase, c.Status.NodesReady, c.Status.Message)
		if w := c.Status.Work; w != nil {
			for _, step := range w.Steps {
				seen += fmt.Sprintf("; %s %s %s", step.Node, step.Kind, step.Message)
			}
			seen += "; waits: " + strings.Join(w.Waits, ", ")
		}
		return is(c), strings.TrimSpace(seen)
	})
}

// Boots are the boot ids that nodes have reported, by name.
func (r *Rack) Boots() (map[string]string, error) {
	nodes, err := r.nodes()
	if err != nil {
		return nil, err
	}
	boots := map[string]string{}
	for _, node := range nodes {
		boots[node.Name] = node.Status.NodeInfo.BootID
	}
	return boots, nil
}

// AwaitBack waits until the named machines, or all, have booted anew since before was seen, do their part in the cluster,
// and the cluster is ready.
func (r *Rack) AwaitBack(before map[string]string, names ...string) {
	r.t.Helper()
	machines := r.pick(names)
	r.Await("machines that are back", func() (bool, string) {
		boots, err := r.Boots()
		if err != nil {
			return false, err.Error()
		}
		var missing []string
		for _, m := range machines {
			if boots[m.name] == before[m.name] || !m.serves() {
				missing = append(missing, m.name)
			}
		}
		return len(missing) == 0, strings.Join(missing, ", ")
	})
	r.AwaitReady()
}

// serves says whether what others need of the machine is ready.
func (m *Machine) serves() bool {
	url := ""
	switch m.pool {
	case "etcd":
		url = "http://127.0.0.1:2381/readyz"
	case "control-plane":
		url = "https://" + net.JoinHostPort(m.address, apiPort) + "/readyz"
	default:
		return true
	}
	_, err := m.Run("curl", "--insecure", "--silent", "--fail", "--max-time", "5", url)
	return err == nil
}

// API is an administrator's client of the cluster, at the desk.
func (r *Rack) API() (kubernetes.Interface, error) {
	if r.api != nil {
		return r.api, nil
	}
	config, err := r.restConfig("", r.desk)
	if err != nil {
		return nil, err
	}
	config.Timeout = 5 * time.Second
	// By HTTP/2 a connection to a machine that has lost its power is used for another three quarters of a minute.
	config.NextProtos = []string{"http/1.1"}
	r.api, err = kubernetes.NewForConfig(config)
	return r.api, err
}

func (r *Rack) nodes() ([]corev1.Node, error) {
	api, err := r.API()
	if err != nil {
		return nil, err
	}
	list, err := api.CoreV1().Nodes().List(r.t.Context(), metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

// ReadyNodes are the nodes that Kubernetes calls Ready.
func (r *Rack) ReadyNodes() ([]string, error) {
	nodes, err := r.nodes()
	if err != nil {
		return nil, err
	}
	var ready []string
	for _, node := range nodes {
		for _, c := range node.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
				ready = append(ready, node.Name)
			}
		}
	}
	return ready, nil
}

func seconds(n int) metav1.Duration { return metav1.Duration{Duration: time.Duration(n) * time.Second} }

// update changes an object of the server's API.
func (r *Rack) update(name string, into client.Object, change func(client.Object)) {
	r.t.Helper()
	r.Await("write "+name, func() (bool, string) {
		api, err := r.server.Client()
		if err != nil {
			return false, err.Error()
		}
		if err := r.server.Get(name, into); err != nil {
			return false, err.Error()
		}
		was := into.DeepCopyObject().(client.Object)
		change(into)
		if err := api.Patch(r.t.Context(), into, client.MergeFromWithOptions(was, client.MergeFromWithOptimisticLock{})); err != nil {
			return false, err.Error()
		}
		return true, ""
	})
}
