package rack

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/util/retry"

	"coldrack.dev/api/v1alpha1"
)

// TestANodeChangesWhenItIsTold changes settings of all kubelets and the API server. No node takes them before its record in the
// Cluster says so, each takes them alone, and goes back to what it had when it is told to.
func TestANodeChangesWhenItIsTold(t *testing.T) {
	r := New(t, Options{})
	r.Cluster(Size{Etcd: 1, ControlPlanes: 1, Workers: 1}, func(o *ClusterObjects) { o.Cluster.Spec.Upgrade.Strategy = v1alpha1.UpgradeManual })
	r.PowerOn()
	r.AwaitReady()
	had := map[string]v1alpha1.ConfigDigests{}
	for _, m := range r.Machines() {
		had[m.Name()] = r.awaitConfig(m, "there is one", func(v1alpha1.KubernetesStatus) bool { return true })
	}
	before := r.running()

	r.updateCluster(func(c *v1alpha1.Cluster) {
		c.Spec.APIServer.ExtraArgs = map[string]string{"max-requests-inflight": "500"}
		c.Spec.Kubelet.Config = &runtime.RawExtension{Raw: []byte(`{"nodeStatusUpdateFrequency": "2s", "nodeLeaseDurationSeconds": 8, "maxPods": 77}`)}
	}, nil)
	r.awaitHeard(before)
	held := r.running()
	for _, m := range r.Machines() {
		now := r.awaitConfig(m, "it is done", func(v1alpha1.KubernetesStatus) bool { return true })
		if now != had[m.Name()] || held[m.Name()].lives != before[m.Name()].lives {
			t.Errorf("%s was to wait; it has %+v, had %+v, and runs %q, before %q", m.Name(), now, had[m.Name()], held[m.Name()].lives, before[m.Name()].lives)
		}
	}

	tell := func(machine string, hand *v1alpha1.NodeHand) {
		t.Helper()
		r.updateCluster(nil, func(c *v1alpha1.Cluster) {
			for i := range c.Status.Nodes {
				if n := &c.Status.Nodes[i]; n.Machine == machine {
					n.Hand = hand
				}
			}
		})
	}
	since := metav1.Now()
	for _, name := range []string{"worker-1", "control-1"} {
		was := r.running()
		tell(name, &v1alpha1.NodeHand{Operation: "change", Since: since, Changed: true})
		r.awaitConfig(r.Machine(name), "it is another", func(k v1alpha1.KubernetesStatus) bool {
			return *k.Config != had[name] && k.FormerConfig != nil && *k.FormerConfig == had[name]
		})
		for other, now := range r.running() {
			if changed := now.lives != was[other].lives; changed != (other == name) {
				t.Errorf("%s was told to change; %s runs %q, before %q", name, other, now.lives, was[other].lives)
			}
		}
		if config := r.file(name, "/var/lib/kubelet/config.yaml"); !strings.Contains(config, "maxPods: 77") {
			t.Errorf("the kubelet of %s is configured with\n%s", name, config)
		}
	}
	const manifest = "/etc/kubernetes/manifests/kube-apiserver.yaml"
	if text := r.file("control-1", manifest); !strings.Contains(text, "--max-requests-inflight=500") {
		t.Errorf("the API server is\n%s", text)
	}

	was := r.running()
	tell("control-1", &v1alpha1.NodeHand{Operation: "change", Since: since, Changed: true, RolledBack: true})
	r.awaitConfig(r.Machine("control-1"), "it is the former one", func(k v1alpha1.KubernetesStatus) bool { return *k.Config == had["control-1"] && k.FormerConfig == nil })
	if text := r.file("control-1", manifest) + r.file("control-1", "/var/lib/kubelet/config.yaml"); strings.Contains(text, "inflight") || strings.Contains(text, "maxPods: 77") {
		t.Errorf("back, control-1 is configured with\n%s", text)
	}
	r.AwaitReady()
	back := r.running()
	for name := range back {
		if changed := back[name].lives != was[name].lives; changed != (name == "control-1") {
			t.Errorf("control-1 went back; %s runs %q, before %q", name, back[name].lives, was[name].lives)
		}
	}

	tell("control-1", nil)
	tell("worker-1", nil)
	r.Await("the operations are over", func() (bool, string) {
		now := r.running()
		return now["control-1"].heard != back["control-1"].heard && now["worker-1"].heard != back["worker-1"].heard, ""
	})
	if now := r.running(); now["control-1"].lives != back["control-1"].lives || now["worker-1"].lives != back["worker-1"].lives {
		t.Errorf("after the operations %+v runs, before %+v", now, back)
	}
}

// life is what of a machine can be seen without asking the server.
type life struct {
	// heard is the version of what the agent was told last.
	heard string
	// lives are starts of what a change restarts: how often the kubelet, since when etcd and API server.
	lives string
}

var startTime = regexp.MustCompile(`(?m)^process_start_time_seconds (\S+)$`)

func (r *Rack) running() map[string]life {
	r.t.Helper()
	out := map[string]life{}
	for _, m := range r.Machines() {
		var state struct{ Version string }
		if err := json.Unmarshal([]byte(r.file(m.Name(), "/var/lib/coldrack/kubernetes/assignment.json")), &state); err != nil {
			r.t.Fatal(err)
		}
		log := r.file(m.Name(), "/var/log/rack/coldrack-agent.service.log")
		lives := "kubelet " + strings.Repeat("I", strings.Count(log, "unit=kubelet.service by=restart"))
		if text, err := m.Run("curl", "--silent", "http://127.0.0.1:2381/metrics"); err == nil {
			lives += " etcd " + startTime.FindString(text)
		}
		if strings.HasPrefix(m.Name(), "control") {
			lives += " API server " + startTime.FindString(r.Kubectl("get", "--raw", "/metrics"))
		}
		out[m.Name()] = life{state.Version, lives}
	}
	return out
}

func (r *Rack) file(machine, path string) string {
	r.t.Helper()
	b, err := os.ReadFile(filepath.Join(r.Machine(machine).Disk(), path))
	if err != nil {
		r.t.Fatal(err)
	}
	return string(b)
}

// awaitHeard waits until every agent was told something else than before.
func (r *Rack) awaitHeard(before map[string]life) {
	r.t.Helper()
	r.Await("all nodes heard of the change", func() (bool, string) {
		for name, now := range r.running() {
			if now.heard == before[name].heard {
				return false, name + " has not"
			}
		}
		return true, ""
	})
}

// awaitConfig waits until a machine's node is done with a configuration.
func (r *Rack) awaitConfig(m *Machine, what string, is func(v1alpha1.KubernetesStatus) bool) (has v1alpha1.ConfigDigests) {
	r.t.Helper()
	r.Await("configuration of "+m.Name()+": "+what, func() (bool, string) {
		object := &v1alpha1.Machine{}
		if err := r.server.Get(m.Name(), object); err != nil {
			return false, err.Error()
		}
		k := object.Status.Kubernetes
		if k == nil || k.Config == nil {
			return false, "none"
		}
		has = *k.Config
		text, _ := json.Marshal(k.Config)
		return k.Done && is(*k), string(text) + " " + k.Message
	})
	return has
}

// updateCluster changes the Cluster as it is, and its status.
func (r *Rack) updateCluster(spec, status func(*v1alpha1.Cluster)) {
	r.t.Helper()
	api, err := r.server.Client()
	if err == nil {
		err = retry.RetryOnConflict(retry.DefaultBackoff, func() error {
			c := &v1alpha1.Cluster{}
			if err := r.server.Get(r.cluster, c); err != nil {
				return err
			}
			if spec != nil {
				spec(c)
				return api.Update(r.t.Context(), c)
			}
			status(c)
			return api.Status().Update(r.t.Context(), c)
		})
	}
	if err != nil {
		r.t.Fatal(err)
	}
}
