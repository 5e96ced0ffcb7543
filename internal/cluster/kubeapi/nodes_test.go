package kubeapi

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// register does what a kubelet does when it starts.
func (c *testCluster) register(t *testing.T, name string, addresses ...string) {
	t.Helper()
	client := c.as(nodeUser+name, nodesGroup)
	node, err := client.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name,
		Labels: map[string]string{"kubernetes.io/hostname": name, "from.kubelet/label": "kept"}},
		Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: "node.example/kubelet", Effect: corev1.TaintEffectNoSchedule}}}}, metav1.CreateOptions{})
	check(t, err)
	for _, a := range addresses {
		node.Status.Addresses = append(node.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	node.Status.NodeInfo.KubeletVersion = "v1.37.2"
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady",
		Message: "kubelet is posting ready status", LastTransitionTime: metav1.Now()}}
	node.ResourceVersion = ""
	_, err = client.CoreV1().Nodes().UpdateStatus(t.Context(), node, metav1.UpdateOptions{})
	check(t, err)
}

func (c *testCluster) node(t *testing.T, name string) *corev1.Node {
	t.Helper()
	node, err := c.as("admin", "system:masters").CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
	check(t, err)
	return node
}

func taintTexts(node *corev1.Node) []string {
	var texts []string
	for _, taint := range node.Spec.Taints {
		// The API server's own admission adds this one to new nodes; a controller takes it off.
		if taint.Key != corev1.TaintNodeNotReady {
			texts = append(texts, taint.Key)
		}
	}
	slices.Sort(texts)
	return texts
}

func (c *testCluster) testNodes(t *testing.T) {
	const controlPlane = "node-role.kubernetes.io/control-plane"
	w := c.run(t, nil)
	c.register(t, "node-01", "10.20.0.11")
	eventually(t, "a machine of the plan has its networks, labels and taints", func() (bool, string) {
		n := c.node(t, "node-01")
		_, role := n.Labels[controlPlane]
		return role && n.Labels["coldrack.dev/machine"] == "machine-01" && n.Labels["from.kubelet/label"] == "kept" &&
			n.Spec.PodCIDR == "10.244.0.0/24" && slices.Equal(taintTexts(n), []string{controlPlane, "node.example/kubelet"}), fmt.Sprintf("%+v", n)
	})
	eventually(t, "it is reported", func() (bool, string) {
		s := w.last()
		n := s.Nodes["node-01"]
		return s.Reachable && s.Objects.Digest == Digest(c.plan.Objects) && n.Planned && n.Ready && n.Reason == "KubeletReady" && n.KubeletVersion == "v1.37.2" && n.Problem == "" &&
			slices.Equal(n.Addresses, []netip.Addr{netip.MustParseAddr("10.20.0.11")}) && len(n.PodCIDRs) == 1 && len(s.Problems) == 0, fmt.Sprintf("%+v", s)
	})

	t.Run("what people take off comes back, what they add stays", func(t *testing.T) {
		for _, arguments := range [][]string{
			{"taint", "node", "node-01", controlPlane + "-"},
			{"taint", "node", "node-01", "own.example/taint=x:NoExecute"},
			{"label", "node", "node-01", "coldrack.dev/group-", controlPlane + "-", "own.example/label=kept"},
			{"label", "--overwrite", "node", "node-01", "coldrack.dev/machine=another"},
		} {
			if out, err := c.kubectl(arguments...); err != nil {
				t.Fatalf("%v: %s", arguments, out)
			}
		}
		eventually(t, "ours are back", func() (bool, string) {
			n := c.node(t, "node-01")
			_, role := n.Labels[controlPlane]
			return role && n.Labels["coldrack.dev/group"] != "" && n.Labels["coldrack.dev/machine"] == "machine-01" && n.Labels["own.example/label"] == "kept" &&
				slices.Equal(taintTexts(n), []string{controlPlane, "node.example/kubelet", "own.example/taint"}), fmt.Sprintf("%+v", n)
		})
	})
	t.Run("a node with other networks is told of and left alone", func(t *testing.T) {
		_, err := c.as("admin", "system:masters").CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-02"},
			Spec: corev1.NodeSpec{PodCIDR: "10.244.99.0/24", PodCIDRs: []string{"10.244.99.0/24"}}}, metav1.CreateOptions{})
		check(t, err)
		eventually(t, "the problem is reported", func() (bool, string) {
			s := w.last()
			return strings.Contains(strings.Join(s.Problems, "\n"), "node node-02 has pod networks 10.244.99.0/24, the plan says 10.244.1.0/24"), fmt.Sprintf("%+v", s)
		})
		if n := c.node(t, "node-02"); n.Spec.PodCIDR != "10.244.99.0/24" {
			t.Errorf("networks are %v", n.Spec.PodCIDRs)
		}
		check(t, c.as("admin", "system:masters").CoreV1().Nodes().Delete(t.Context(), "node-02", metav1.DeleteOptions{}))
		eventually(t, "a node that is gone is forgotten", func() (bool, string) {
			s := w.last()
			_, there := s.Nodes["node-02"]
			return !there && len(s.Problems) == 0, fmt.Sprintf("%+v", s)
		})
	})
	t.Run("a node from outside gets networks and nothing else", func(t *testing.T) {
		c.register(t, "guest", "10.20.0.99")
		eventually(t, "its networks are there", func() (bool, string) {
			n := c.node(t, "guest")
			return n.Spec.PodCIDR == "10.244.77.0/24" && slices.Equal(taintTexts(n), []string{"node.example/kubelet"}), fmt.Sprintf("%+v", n)
		})
		eventually(t, "it is reported as not planned", func() (bool, string) {
			n, there := w.last().Nodes["guest"]
			return there && !n.Planned && n.Ready && len(n.PodCIDRs) == 1, fmt.Sprintf("%+v", n)
		})
	})
	t.Run("a second node from outside does not get networks that are taken", func(t *testing.T) {
		c.register(t, "guest-2", "10.20.0.98")
		eventually(t, "the problem is reported", func() (bool, string) {
			s := w.last()
			return strings.Contains(s.Nodes["guest-2"].Problem, "overlaps that of node guest"), fmt.Sprintf("%+v", s)
		})
		check(t, c.as("admin", "system:masters").CoreV1().Nodes().Delete(t.Context(), "guest-2", metav1.DeleteOptions{}))
	})
	t.Run("a node from outside that brings a machine's networks is told of", func(t *testing.T) {
		_, err := c.as(nodeUser+"thief", nodesGroup).CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "thief"},
			Spec: corev1.NodeSpec{PodCIDR: "10.244.2.0/24", PodCIDRs: []string{"10.244.2.0/24"}}}, metav1.CreateOptions{})
		check(t, err)
		eventually(t, "the problem is reported", func() (bool, string) {
			s := w.last()
			return strings.Contains(s.Nodes["thief"].Problem, "which belong to node node-03"), fmt.Sprintf("%+v", s)
		})
		check(t, c.as("admin", "system:masters").CoreV1().Nodes().Delete(t.Context(), "thief", metav1.DeleteOptions{}))
	})
}

func (c *testCluster) testFormer(t *testing.T) {
	connection, admin := c.connect(), c.as("admin", "system:masters")
	remove := func(seen NodeState, want bool) {
		t.Helper()
		removed, err := connection.RemoveFormer(t.Context(), seen)
		check(t, err)
		_, err = admin.CoreV1().Nodes().Get(t.Context(), seen.Name, metav1.GetOptions{})
		if there := !apierrors.IsNotFound(err); removed != want || there == want {
			t.Errorf("removed %t, still there %t; want removed %t", removed, there, want)
		}
	}
	c.register(t, "former", "10.20.0.97")
	first := stateOf(c.node(t, "former"))

	_, err := c.as(nodeUser+"former", nodesGroup).CoreV1().Nodes().Patch(t.Context(), "former", types.StrategicMergePatchType,
		[]byte(`{"status":{"nodeInfo":{"bootID":"present"}}}`), metav1.PatchOptions{}, "status")
	check(t, err)
	remove(first, false) // the kubelet of another boot has taken it over
	second := stateOf(c.node(t, "former"))

	check(t, admin.CoreV1().Nodes().Delete(t.Context(), "former", metav1.DeleteOptions{}))
	removed, err := connection.RemoveFormer(t.Context(), second)
	if removed || err != nil {
		t.Errorf("one that is gone: removed %t, %v", removed, err)
	}
	c.register(t, "former", "10.20.0.97")
	third := stateOf(c.node(t, "former"))
	remove(first, false) // another one of its name

	if out, err := c.kubectl("label", "node", "former", "own.example/label=x"); err != nil {
		t.Fatal(out)
	}
	remove(third, true) // that others wrote to it changes nothing
}

func (c *testCluster) testUpdate(t *testing.T) {
	w := c.run(t, nil)
	eventually(t, "the first plan is applied", func() (bool, string) {
		s := w.last()
		return s.Objects.Digest == Digest(c.plan.Objects) && s.Nodes["node-01"].Planned, fmt.Sprintf("%+v", s)
	})
	options := w.options(c)
	nodes := slices.Clone(options.Wanted.Nodes)
	nodes[0].Labels = map[string]string{"changed.example/label": "yes"}
	nodes[0].Taints = []corev1.Taint{{Key: "changed.example/taint", Effect: corev1.TaintEffectNoSchedule}}
	options.Wanted.Nodes = nodes
	options.Wanted.Objects = options.Wanted.Objects[:len(options.Wanted.Objects)-1]
	options.Target.Servers = options.Target.Servers[:1]
	check(t, w.Update(options))
	eventually(t, "the second plan is applied", func() (bool, string) {
		n := c.node(t, "node-01")
		_, old := n.Labels["coldrack.dev/machine"]
		s := w.last()
		return !old && n.Labels["changed.example/label"] == "yes" && n.Labels["own.example/label"] == "kept" &&
			slices.Equal(taintTexts(n), []string{"changed.example/taint", "node.example/kubelet", "own.example/taint"}) &&
			s.Objects.Digest == Digest(options.Wanted.Objects), fmt.Sprintf("%+v\n%+v", n, s)
	})
	if out, err := c.kubectl("-n", "kube-system", "get", "deployment", "coredns"); err == nil {
		t.Errorf("the object that left the plan is still there: %s", out)
	}
	other := options
	other.Target.Cluster = "another"
	if err := w.Update(other); err == nil {
		t.Error("options of another cluster are taken")
	}
	other = options
	other.Target.Servers = nil
	if err := w.Update(other); err == nil {
		t.Error("options without servers are taken")
	}
	check(t, w.Update(w.options(c)))
	eventually(t, "the first plan is back", func() (bool, string) {
		s := w.last()
		return s.Objects.Digest == Digest(c.plan.Objects), fmt.Sprintf("%+v", s)
	})
}

func TestTaints(t *testing.T) {
	taint := func(key, value string, effect corev1.TaintEffect) corev1.Taint {
		return corev1.Taint{Key: key, Value: value, Effect: effect}
	}
	const no, exec = corev1.TaintEffectNoSchedule, corev1.TaintEffectNoExecute
	for _, test := range []struct {
		name           string
		record         string
		has, want, get []corev1.Taint
	}{
		{"a node without any gets ours", "", nil, []corev1.Taint{taint("a", "", no)}, []corev1.Taint{taint("a", "", no)}},
		{"others' stay where they are", "", []corev1.Taint{taint("x", "", no)}, []corev1.Taint{taint("a", "", no)},
			[]corev1.Taint{taint("x", "", no), taint("a", "", no)}},
		{"ours that leave the plan go", `[{"key":"a","effect":"NoSchedule"}]`, []corev1.Taint{taint("a", "", no), taint("x", "", no)}, nil,
			[]corev1.Taint{taint("x", "", no)}},
		{"one that the kubelet brought and the plan never had stays", "", []corev1.Taint{taint("a", "", no)}, nil, []corev1.Taint{taint("a", "", no)}},
		{"the same key with another effect is another taint", `[{"key":"a","effect":"NoSchedule"}]`, []corev1.Taint{taint("a", "", exec)}, nil,
			[]corev1.Taint{taint("a", "", exec)}},
		{"a changed value is corrected in place", "", []corev1.Taint{taint("a", "1", no), taint("x", "", no)}, []corev1.Taint{taint("a", "2", no)},
			[]corev1.Taint{taint("a", "2", no), taint("x", "", no)}},
		{"a record that cannot be read removes nothing", `{`, []corev1.Taint{taint("a", "", no)}, nil, []corev1.Taint{taint("a", "", no)}},
	} {
		t.Run(test.name, func(t *testing.T) {
			node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{annotationTaints: test.record}}, Spec: corev1.NodeSpec{Taints: test.has}}
			got, record := mergeTaints(node, test.want)
			if !reflect.DeepEqual(got, test.get) {
				t.Errorf("taints are %v, want %v", got, test.get)
			}
			node.Annotations[annotationTaints], node.Spec.Taints = record, got
			if again, same := mergeTaints(node, test.want); !reflect.DeepEqual(again, got) || same != record {
				t.Errorf("a second time they are %v", again)
			}
		})
	}
}
