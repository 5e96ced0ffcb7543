package e2e

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/lab"
	"coldrack.dev/test/require"
)

// poolYAML puts a machine into the pool of its purpose; it goes before the policy for everything else.
const poolYAML = `---
apiVersion: coldrack.dev/v1alpha1
kind: EnrollmentPolicy
metadata: {name: machine-%[1]d}
spec:
  priority: 10
  match: {serial: %[2]q}
  approve: true
  hostname: %[3]q
  profile: default
  subnet: rack
  labels: {coldrack.dev/pool: %[4]s}
`

// pools says what each machine is for.
func (r *rack) pools(purposes ...string) {
	r.t.Helper()
	var objects strings.Builder
	for i, purpose := range purposes {
		fmt.Fprintf(&objects, poolYAML, i+1, r.lab.Machine(i+1).Spec().Serial, fmt.Sprintf("%s-%d", purpose, i+1), purpose)
	}
	r.apply(objects.String())
}

// TestProductionCluster takes six blank machines to three etcd members, two control planes and a worker; takes one of each
// of the first two away; and then the whole rack loses its power. It takes half an hour without KVM and runs on its
// own: make e2e-production.
func TestProductionCluster(t *testing.T) {
	needClusters(t)
	require.Need(t, "curl")
	const virtualIP = "10.77.0.5"
	key, public := sshKey(t)
	// Six emulated machines share what processors there are. By the host's clock each would be too slow for Kubernetes' own
	// deadlines; by their own, none is.
	r := newRack(t, fmt.Sprintf(segmentYAML, public),
		lab.Options{Machines: 3, Firmware: lab.UEFI, CPUs: 1, OwnTime: true, Memory: 2 * lab.GiB},
		lab.Options{Machines: 5, Firmware: lab.UEFI, CPUs: 1, OwnTime: true, Memory: 3 * lab.GiB},
		lab.Options{Machines: 6, Firmware: lab.UEFI, CPUs: 1, OwnTime: true, Memory: 2560 * lab.MiB})
	r.sshKey = key
	r.pools("etcd", "etcd", "etcd", "control-plane", "control-plane", "worker")
	r.noWayOut()

	// Members that share processors are not equally fast: a leader's heartbeats may come late by another's clock.
	c := r.bringUpChanged("prod", "\nspec:\n", `
spec:
  etcd: {extraArgs: {heartbeat-interval: "500", election-timeout: "5000"}}
`, "--preset", "production", "--etcd", "3", "--control-planes", "2", "--workers", "1", "--vip", virtualIP)
	if nodes := c.nodes(); len(nodes) != 6 {
		t.Fatalf("%d nodes are Ready, want 6: %v", len(nodes), nodes)
	}
	c.useIt()
	c.verify()

	// One etcd member and one control plane go at once. A client on the worker reaches the API through the local
	// balancer, and one outside through the virtual IP.
	etcd, controlPlane := c.machineWith(v1alpha1.RoleEtcd), c.carrierOf(virtualIP)
	worker := c.get(c.machineWith(v1alpha1.RoleWorker)).Spec.Network.Address
	boots := map[string]string{}
	for _, name := range []string{etcd, controlPlane} {
		boots[name] = c.bootID(c.get(name).Spec.Hostname)
	}
	gone := time.Now()
	for _, name := range []string{etcd, controlPlane} {
		if err := c.machine[name].PowerOff(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	c.answers("through the worker's balancer", gone, func() (string, error) {
		return c.ssh(worker, "curl -sk --max-time 10 https://127.0.0.1:7445/readyz || true"), nil
	})
	c.answers("through the virtual IP", gone, func() (string, error) {
		var out []byte
		err := c.lab.Do(func() (err error) {
			out, err = exec.Command("curl", "-sk", "--max-time", "10", "https://"+virtualIP+":6443/readyz").CombinedOutput()
			return err
		})
		return string(out), err
	})
	c.kubectl(5*time.Minute, "-n", "shop", "create", "configmap", "written-meanwhile", "--from-literal=by=the-others")
	t.Logf("written with one etcd member and one control plane away, %.0f s after they went", time.Since(gone).Seconds())
	for _, name := range []string{etcd, controlPlane} {
		if err := c.machine[name].PowerOn(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{etcd, controlPlane} {
		c.awaitNode(c.get(name).Spec.Hostname, boots[name], 15*time.Minute)
	}
	c.awaitCluster(c.name, "whole again", 15*time.Minute, func(k *v1alpha1.Cluster) bool {
		return k.Status.Phase == v1alpha1.ClusterReady && len(c.nodes()) == 6
	})
	t.Logf("whole again %.0f s after they went", time.Since(gone).Seconds())

	// The whole rack loses its power, the server stays.
	for _, vm := range c.machine {
		if err := vm.PowerOff(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	c.awaitCluster(c.name, "noticed to be dark", 5*time.Minute, func(k *v1alpha1.Cluster) bool { return k.Status.Phase != v1alpha1.ClusterReady })
	light := time.Now()
	if err := c.lab.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.awaitCluster(c.name, "back by itself", 20*time.Minute, func(k *v1alpha1.Cluster) bool { return k.Status.Phase == v1alpha1.ClusterReady })
	t.Logf("the rack is back %.0f s after its power", time.Since(light).Seconds())
	c.kubectl(2*time.Minute, "-n", "shop", "get", "configmap", "written-meanwhile")
	c.useIt()
	c.verifyWithin(10 * time.Minute)
	c.account()
}

// carrierOf is the control-plane machine that has an address now.
func (c *cluster) carrierOf(address string) string {
	c.t.Helper()
	for _, name := range c.machinesWith(v1alpha1.RoleControlPlane) {
		if strings.Contains(c.ssh(c.get(name).Spec.Network.Address, "ip -o -4 addr show to "+address), address) {
			return name
		}
	}
	c.t.Fatalf("no control plane carries %s", address)
	return ""
}

// answers waits until the API says that it is ready.
func (c *cluster) answers(how string, since time.Time, ask func() (string, error)) {
	c.t.Helper()
	for {
		out, err := ask()
		if err == nil && strings.TrimSpace(out) == "ok" {
			c.t.Logf("the API answers %s, %.0f s after the power cut", how, time.Since(since).Seconds())
			return
		}
		if time.Since(since) > 5*time.Minute {
			c.t.Fatalf("the API does not answer %s: %v %s", how, err, out)
		}
		time.Sleep(time.Second)
	}
}
