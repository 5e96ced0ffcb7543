package rack

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"
	"sigs.k8s.io/yaml"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/test/require"
)

// What the rack cannot give kubeadm, and what it says of a CoreDNS that is newer than itself.
const (
	noRuntime   = "ContainerRuntimeVersion,ImagePull"
	noContainer = "SystemVerification" // the machine's kernel and cgroups are the host's, and hidden
	newCoreDNS  = "CoreDNSUnsupportedPlugins,CoreDNSMigration"
)

// TestKubeadmTakesOver has the real kubeadm do on a cluster of ours what people do with it: look at certificates, make tokens, plan an upgrade
// and carry it out on every node, and take a node out or give the cluster back. Nothing but the programs' version may be another one afterwards.
func TestKubeadmTakesOver(t *testing.T) {
	if os.Getenv("COLDRACK_RACK_KUBEADM") == "" {
		t.Skip("runs with: make rack-kubeadm")
	}
	require.Need(t, "kubeadm")
	for _, stacked := range []bool{true, false} {
		name := "etcd on machines of its own"
		if stacked {
			name = "etcd on the control planes"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			takeOver(t, stacked)
		})
	}
}

func takeOver(t *testing.T, stacked bool) {
	r := New(t, Options{EarlierPatch: true})
	size := Size{Etcd: 1, ControlPlanes: 2, Workers: 1}
	if stacked {
		size = Size{ControlPlanes: 3, Workers: 1}
	}
	r.Cluster(size, func(o *ClusterObjects) {
		o.Cluster.Spec.Topology = v1alpha1.TopologyCustom
		if !stacked {
			return
		}
		o.Groups = slices.DeleteFunc(o.Groups, func(g v1alpha1.MachineGroup) bool {
			return slices.Equal(g.Spec.Roles, []v1alpha1.Role{v1alpha1.RoleEtcd})
		})
		for i := range o.Groups {
			if o.Groups[i].HasRole(v1alpha1.RoleControlPlane) {
				o.Groups[i].Spec.Roles = append(o.Groups[i].Spec.Roles, v1alpha1.RoleEtcd)
			}
		}
	})
	r.PowerOn()
	r.AwaitReady()
	k := &kubeadm{r, "/programs/" + r.programs.newest + "/kubeadm"}
	first := r.Machine("control-1")

	k.looks(t, first)
	k.tokens(t, first)

	load := r.ClientAtBalancer("worker-1")
	r.Server().Run("cluster", "pause", r.cluster)
	before := map[string]*onDisk{}
	for _, m := range r.Machines() {
		before[m.name] = readNode(t, m)
	}
	if stacked {
		k.handOver(t)
	}
	target := r.programs.newest
	out := k.run(t, first, "upgrade", "apply", target, "--yes", "--ignore-preflight-errors="+strings.Join([]string{newCoreDNS, noContainer, noRuntime}, ","))
	if !strings.Contains(out, "SUCCESS! A control plane node of your cluster was upgraded to") || strings.Contains(out, "External CA detected") == stacked {
		t.Errorf("apply does not say what was expected")
	}
	for _, m := range r.Machines() {
		if m != first && m.pool != "etcd" {
			k.run(t, m, "upgrade", "node", "--ignore-preflight-errors="+strings.Join([]string{noContainer, noRuntime}, ","))
		}
	}
	for _, m := range r.Machines() {
		before[m.name].compare(t, m, r.programs.version, target)
	}
	k.serversRun(t, target, size.ControlPlanes)
	if image := r.Kubectl("get", "-n", "kube-system", "daemonset", "kube-proxy", "-o", "jsonpath={.spec.template.spec.containers[0].image}"); image != "registry.k8s.io/kube-proxy:"+target {
		t.Errorf("kube-proxy is %s", image)
	}
	load.AwaitAnswers(20)
	// kubeadm waits for a pod of the component, and not until the API answers again: it may lose requests.
	t.Logf("through the worker's balancer, while kubeadm upgraded: %s", load.Stop())

	k.coldrackSays(t)

	if stacked {
		k.reset(t, r.Machine("worker-1"))
	} else {
		k.putBack(t, before, size.ControlPlanes)
	}
}

// kubeadm runs on machines of the rack.
type kubeadm struct {
	*Rack
	program string
}

func (k *kubeadm) run(t *testing.T, m *Machine, args ...string) string {
	t.Helper()
	out, err := m.RunInside(append([]string{k.program}, args...)...)
	t.Logf("%s: kubeadm %s\n%s", m.name, strings.Join(args, " "), out)
	if err != nil {
		t.Fatalf("%s: kubeadm %s: %v", m.name, strings.Join(args, " "), err)
	}
	return out
}

// looks runs what changes nothing.
func (k *kubeadm) looks(t *testing.T, m *Machine) {
	out := k.run(t, m, "certs", "check-expiration")
	for line := range strings.Lines(out) {
		if strings.Contains(line, "MISSING") && !strings.Contains(line, "super-admin.conf") {
			t.Errorf("kubeadm misses %s", line)
		}
	}
	target := k.programs.newest
	// Without the preflight check of CoreDNS, kubeadm would not even plan.
	out = k.run(t, m, "upgrade", "plan", target, "--ignore-preflight-errors="+newCoreDNS)
	if !strings.Contains(out, "kubeadm upgrade apply "+target) {
		t.Errorf("the plan does not say how to go on")
	}
	out = k.run(t, m, "upgrade", "diff", target)
	if !strings.Contains(out, "+    image: registry.k8s.io/kube-apiserver:"+target) {
		t.Errorf("the difference does not show the API server's image")
	}
}

// tokens makes a token and takes it back.
func (k *kubeadm) tokens(t *testing.T, m *Machine) {
	out := k.run(t, m, "token", "create", "--ttl", "1h")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	token := lines[len(lines)-1]
	id, _, _ := strings.Cut(token, ".")
	if out = k.run(t, m, "token", "list"); !strings.Contains(out, token) {
		t.Errorf("token %s is not listed", token)
	}
	k.run(t, m, "token", "delete", id)
	if out = k.run(t, m, "token", "list"); strings.Contains(out, token) {
		t.Errorf("token %s is listed after its deletion", token)
	}
}

// handOver gives the control planes the keys of the cluster's authorities, with which kubeadm renews certificates and the controller manager
// signs.
func (k *kubeadm) handOver(t *testing.T) {
	for name, file := range map[string]string{"ca.key": "ca.key", "front-proxy-ca.key": "front-proxy-ca.key", "etcd-ca.key": "etcd/ca.key"} {
		key := k.server.kubectl("get", "secrets.coldrack.dev", "cluster-"+k.cluster, "-o", fmt.Sprintf(`go-template={{index .data %q | base64decode}}`, name))
		for _, m := range k.machines {
			if m.pool != "control-plane" {
				continue
			}
			if err := os.WriteFile(filepath.Join(m.disk, "etc/kubernetes/pki", file), []byte(key), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	out := k.run(t, k.Machine("control-1"), "certs", "check-expiration")
	for line := range strings.Lines(out) {
		if fields := strings.Fields(line); len(fields) > 0 && fields[len(fields)-1] == "yes" {
			t.Errorf("with the authorities' keys, it is managed by somebody else: %s", line)
		}
	}
}

// coldrackSays looks at what the server tells of a cluster that somebody else has changed.
func (k *kubeadm) coldrackSays(t *testing.T) {
	const manifest = "/etc/kubernetes/manifests/kube-apiserver.yaml"
	for _, m := range k.machines {
		if m.pool != "control-plane" {
			continue
		}
		k.Await("what was changed on "+m.name, func() (bool, string) {
			is := &v1alpha1.Machine{}
			if err := k.server.Get(m.name, is); err != nil || is.Status.Kubernetes == nil {
				return false, fmt.Sprint(err)
			}
			return slices.Contains(is.Status.Kubernetes.Drift, manifest), strings.Join(is.Status.Kubernetes.Drift, " ")
		})
	}
	k.AwaitCluster("said to be changed by somebody else", func(c *v1alpha1.Cluster) bool {
		return strings.Contains(c.Status.Message, "leaves them so while it is paused") && strings.Contains(c.Status.Message, manifest)
	})
	out, err := k.server.Try("cluster", "resume", k.cluster)
	if err == nil || !strings.Contains(out, manifest) || !strings.Contains(out, "--put-back") {
		t.Errorf("resume: %v %s", err, out)
	}
}

// putBack has Coldrack go on with the cluster as it left it.
func (k *kubeadm) putBack(t *testing.T, before map[string]*onDisk, servers int) {
	k.server.Run("cluster", "resume", k.cluster, "--put-back")
	k.serversRun(t, k.programs.version, servers)
	k.AwaitReady()
	for _, m := range k.machines {
		before[m.name].compare(t, m, k.programs.version, k.programs.version)
	}
	k.Await("the objects of the cluster", func() (bool, string) {
		config, err := k.TryKubectl("get", "-n", "kube-system", "configmaps", "kubeadm-config", "kube-proxy", "-o", "yaml")
		return err == nil && strings.Contains(config, "kubernetesVersion: "+k.programs.version+"\n") && strings.Contains(config, "server: https://"+balancerAddress+"\n"), ""
	})
}

// reset takes a node out.
func (k *kubeadm) reset(t *testing.T, m *Machine) {
	k.run(t, m, "reset", "--force")
	for _, path := range []string{"etc/kubernetes/kubelet.conf", "etc/kubernetes/pki/ca.crt", "var/lib/kubelet/config.yaml"} {
		if _, err := os.Stat(filepath.Join(m.disk, path)); !os.IsNotExist(err) {
			t.Errorf("after reset, /%s is there: %v", path, err)
		}
	}
	k.Await("a node without a kubelet", func() (bool, string) {
		ready, err := k.ReadyNodes()
		return err == nil && !slices.Contains(ready, m.name) && len(ready) == len(k.machines)-1, fmt.Sprint(ready, err)
	})
}

// serversRun waits until Kubernetes shows that all control planes run a version.
func (k *kubeadm) serversRun(t *testing.T, version string, servers int) {
	t.Helper()
	k.Await("control planes", func() (bool, string) {
		images, err := k.TryKubectl("get", "-n", "kube-system", "pods", "-l", "tier=control-plane,component!=etcd", "-o", `jsonpath={range .items[*]}{.spec.containers[0].image}{"\n"}{end}`)
		return err == nil && strings.Count(images, ":"+version+"\n") == 3*servers && strings.Count(images, "\n") == 3*servers, images
	})
	if said := k.Kubectl("get", "--raw", "/version"); !strings.Contains(said, version) {
		t.Errorf("the API server says that it is %s", said)
	}
}

// onDisk is what of a node's files must outlive kubeadm.
type onDisk struct {
	commands map[string][]string // of static pods: the program and its flags, sorted
	images   map[string]string
	kubelet  kubeletconfig.KubeletConfiguration
}

// notCompared are flags that are otherwise with good reason.
var notCompared = [...]string{
	// empty where kubeadm has not got the authority's key
	"--cluster-signing-cert-file", "--cluster-signing-key-file",
	// etcd looks at them before it has data, and not afterwards
	"--initial-cluster", "--initial-cluster-state",
}

func readNode(t *testing.T, m *Machine) *onDisk {
	t.Helper()
	is := &onDisk{commands: map[string][]string{}, images: map[string]string{}}
	read := func(file string, into any) {
		b, err := os.ReadFile(file)
		if err == nil {
			err = yaml.UnmarshalStrict(b, into)
		}
		if err != nil {
			t.Fatalf("%s: %v", m.name, err)
		}
	}
	read(filepath.Join(m.disk, "var/lib/kubelet/config.yaml"), &is.kubelet)
	manifests, _ := filepath.Glob(filepath.Join(m.disk, "etc/kubernetes/manifests/*.yaml"))
	for _, file := range manifests {
		var pod corev1.Pod
		read(file, &pod)
		c := pod.Spec.Containers[0]
		is.commands[pod.Name] = slices.DeleteFunc(slices.Sorted(slices.Values(c.Command)), func(flag string) bool {
			name, _, _ := strings.Cut(flag, "=")
			return slices.Contains(notCompared[:], name)
		})
		is.images[pod.Name] = c.Image
	}
	return is
}

// compare looks for what is otherwise than before, besides the version of Kubernetes.
func (was *onDisk) compare(t *testing.T, m *Machine, before, after string) {
	t.Helper()
	is := readNode(t, m)
	if !reflect.DeepEqual(was.kubelet, is.kubelet) {
		had, _ := yaml.Marshal(was.kubelet)
		has, _ := yaml.Marshal(is.kubelet)
		t.Errorf("%s: the kubelet's configuration was\n%s\nand is\n%s", m.name, had, has)
	}
	if !slices.Equal(slices.Sorted(maps.Keys(was.commands)), slices.Sorted(maps.Keys(is.commands))) {
		t.Errorf("%s: has the static pods %v", m.name, slices.Sorted(maps.Keys(is.commands)))
	}
	for pod, command := range was.commands {
		if !slices.Equal(command, is.commands[pod]) {
			t.Errorf("%s: the command of %s was\n%s\nand is\n%s", m.name, pod, strings.Join(command, "\n"), strings.Join(is.commands[pod], "\n"))
		}
		if want := strings.Replace(was.images[pod], ":"+before, ":"+after, 1); is.images[pod] != want {
			t.Errorf("%s: the image of %s is %s instead of %s", m.name, pod, is.images[pod], want)
		}
	}
}
