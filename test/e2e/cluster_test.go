package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/lab"
	"coldrack.dev/test/require"
)

// segmentYAML installs whatever is plugged in; clusters take their machines from what is there.
const segmentYAML = `
apiVersion: coldrack.dev/v1alpha1
kind: Subnet
metadata: {name: rack}
spec:
  cidr: 10.77.0.0/24
  ntp: [10.77.0.1]
  discovery: 10.77.0.100-10.77.0.199
  static: 10.77.0.10-10.77.0.99
---
apiVersion: coldrack.dev/v1alpha1
kind: Profile
metadata: {name: default}
spec:
  image: debian-13
  console: ["ttyS0,115200"]
  kernelArgs: [tsc=reliable, mitigations=off, highres=off] # see examples/lab/lab.yaml
  sshKeys: [%[1]q]
  timezone: Europe/Berlin
  files:
  - {path: /etc/motd, content: "installed by coldrack\n"}
---
apiVersion: coldrack.dev/v1alpha1
kind: EnrollmentPolicy
metadata: {name: everything}
spec:
  approve: true
  hostname: "node-{index}"
  profile: default
  subnet: rack
`

// workloadYAML is a pod on every node and a service over them.
const workloadYAML = `
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: probe, namespace: shop}
spec:
  selector: {matchLabels: {app: probe}}
  template:
    metadata: {labels: {app: probe}}
    spec:
      tolerations: [{operator: Exists}]
      containers:
      - name: probe
        image: coldrack.dev/probe:v2
        ports: [{containerPort: 8080}]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}}
        env:
        - name: NODE_NAME
          valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
---
apiVersion: v1
kind: Service
metadata: {name: probe, namespace: shop}
spec:
  selector: {app: probe}
  ports: [{port: 80, targetPort: 8080}]
`

// cluster is a Kubernetes cluster on the rack's machines.
type cluster struct {
	*rack
	name       string
	kubectlBin string
	config     string // kubeconfig of an administrator, through the lab's forwarder
}

// TestLaptopCluster takes one blank machine to a cluster of its own, whose power then goes.
func TestLaptopCluster(t *testing.T) {
	needClusters(t)
	key, public := sshKey(t)
	r := newRack(t, fmt.Sprintf(segmentYAML, public), lab.Options{Machines: 1, Firmware: lab.UEFI, CPUs: 2, Memory: 3 * lab.GiB})
	r.sshKey = key
	r.noWayOut()
	c := r.bringUp("solo", "--preset", "laptop")
	c.useIt()
	c.verify()
	c.kubeadmReadsIt()
	c.powerCut(c.machineWith(v1alpha1.RoleControlPlane))
	c.useIt()
	c.verifyWithin(10 * time.Minute)
	c.account()
}

// TestDevelopmentCluster takes two blank machines to a working cluster, without a person: one of UEFI with etcd and control plane, one
// of BIOS for workloads. Each is what it was to become. In "make e2e-failures" the power of the worker goes, too, and somebody
// tries to pass for it. Two cores without KVM take a quarter of an hour; with a third machine, twice that.
func TestDevelopmentCluster(t *testing.T) {
	require.Need(t, "kubectl", "ssh")
	key, public := sshKey(t)
	// Emulated processors that outnumber the host's wait for each other: only the control plane gets two, and it goes first.
	control := lab.Options{Machines: 1, Firmware: lab.UEFI, CPUs: 2, Memory: 3 * lab.GiB}
	workers := lab.Options{Machines: 2, Firmware: lab.BIOS, CPUs: 1, Nice: 8, Memory: 3 * lab.GiB}
	r := newRack(t, fmt.Sprintf(segmentYAML, public), control, workers)
	r.sshKey = key
	r.pools("control-plane", "worker")
	r.noWayOut()

	c := r.bringUp("dev", "--preset", "development", "--pools", "--workers", "1")
	nodes := c.nodes()
	if len(nodes) != 2 {
		t.Fatalf("%d nodes, want 2: %v", len(nodes), nodes)
	}
	c.clocksAreSet()
	worker := c.machineWith(v1alpha1.RoleWorker)
	c.isWhatItWasMade(worker, "BIOS")
	c.lookAround(worker)
	c.useIt()
	c.verifyWithin(8 * time.Minute)
	c.kubeadmReadsIt()
	r.noWayOut()
	if withFailures() {
		c.workerLosesPower(worker)
	}
	c.account()
}

// workerLosesPower pulls the plug of a worker and puts it back: the node comes back by itself, from its disk, with its pods. Meanwhile
// somebody tries to pass for it.
func (c *cluster) workerLosesPower(worker string) {
	c.t.Helper()
	var light time.Time
	c.powerCut(worker, func() {
		c.impersonate(worker)
		light = time.Now()
	})
	if m := c.get(worker); newest(m).Action != v1alpha1.BootLocalDisk || !after(m, light) {
		c.t.Errorf("the last boot was %+v, want LocalDisk after the power cut", newest(m))
	}
	if out := c.run("explain-boot", worker); !strings.Contains(out, "LocalDisk") {
		c.t.Errorf("explain-boot does not speak of the local disk:\n%s", out)
	}
	c.useIt()
}

// withFailures says whether somebody asked for what goes wrong, too, on emulated machines. Most of it is seen on machines that are
// namespaces; without KVM the emulated ones take long.
func withFailures() bool { return os.Getenv("COLDRACK_E2E_FAILURES") != "" }

func needFailures(t *testing.T) {
	if !withFailures() {
		t.Skip("runs with: make e2e-failures")
	}
}

// needClusters skips where nobody has asked for more clusters than the one of every run.
func needClusters(t *testing.T) {
	if os.Getenv("COLDRACK_E2E_CLUSTERS") == "" {
		t.Skip("runs with: make e2e-laptop, make e2e-production")
	}
	require.Need(t, "kubectl", "ssh")
}

// noWayOut checks that nothing in the lab can reach anything but the lab: whatever the machines have, they have
// from the server.
func (r *rack) noWayOut() {
	r.t.Helper()
	var routes, links []byte
	err := r.lab.Do(func() (err error) {
		if routes, err = exec.Command("ip", "-o", "route", "show", "table", "all", "type", "unicast").CombinedOutput(); err != nil {
			return err
		}
		links, err = exec.Command("ip", "-o", "-details", "link", "show").CombinedOutput()
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	for line := range strings.Lines(string(routes)) {
		if to := strings.Fields(line)[0]; to != "10.77.0.0/24" && !strings.HasPrefix(to, "fe80::") && to != "anycast" && to != "multicast" {
			r.t.Errorf("the lab has a way out: %s", line)
		}
	}
	for line := range strings.Lines(string(links)) {
		if strings.Contains(line, "veth") || strings.Contains(line, "macvlan") || strings.Contains(line, "wireguard") {
			r.t.Errorf("the lab is connected to something else: %s", line)
		}
	}
}

// bringUp applies a preset, powers all machines on at once and waits for the cluster.
func (r *rack) bringUp(name string, preset ...string) *cluster {
	r.t.Helper()
	return r.bringUpChanged(name, "", "", preset...)
}

// bringUpChanged is bringUp with a person's change of the preset: the first of was becomes is.
func (r *rack) bringUpChanged(name, was, is string, preset ...string) *cluster {
	t := r.t
	t.Helper()
	manifest := r.run(append([]string{"cluster", "init", "--name", name}, preset...)...)
	if !strings.Contains(manifest, was) {
		t.Fatalf("the preset does not contain %q:\n%s", was, manifest)
	}
	manifest = strings.Replace(manifest, was, is, 1)
	file := filepath.Join(r.dir, name+".yaml")
	if err := os.WriteFile(file, []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := r.try("bundle", "verify", "-f", file, "--trust", publicKey(r.bundle), r.bundle); err != nil {
		t.Fatalf("bundle verify: %v\n%s", err, out)
	}
	for began := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		if _, err := r.try("get", "images", "debian-13"); err == nil {
			break // the server has imported the bundle that it was started with
		}
		if time.Since(began) > 2*time.Minute {
			t.Fatal("the bundle is not imported")
		}
	}
	r.run("apply", "-f", file)
	powerOn := time.Now()
	if err := r.lab.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	k := r.awaitCluster(name, "Ready", 50*time.Minute, func(k *v1alpha1.Cluster) bool { return k.Status.Phase == v1alpha1.ClusterReady })
	t.Logf("power-on to a Ready cluster: %.0f s", time.Since(powerOn).Seconds())
	for _, node := range k.Status.Nodes {
		r.await(node.Machine, "everything done on it", 5*time.Minute, func(m *v1alpha1.Machine) bool { return m.Status.Kubernetes != nil && m.Status.Kubernetes.Done })
	}
	for _, step := range k.Status.Steps {
		if step.StartedAt != nil && step.FinishedAt != nil {
			t.Logf("  %-28s from %4.0f s to %4.0f s", step.Name, step.StartedAt.Sub(powerOn).Seconds(), step.FinishedAt.Sub(powerOn).Seconds())
		}
	}
	for _, node := range k.Status.Nodes {
		m := r.get(node.Machine)
		if m == nil || m.Status.Kubernetes == nil {
			continue
		}
		t.Logf("  %s (%s): install%s", node.Machine, node.Group, times(m))
		for _, step := range m.Status.Kubernetes.Phases {
			if step.StartedAt != nil && step.FinishedAt != nil {
				t.Logf("    %-16s from %4.0f s, took %5.1f s", step.Name, step.StartedAt.Sub(powerOn).Seconds(), step.FinishedAt.Sub(step.StartedAt.Time).Seconds())
			}
		}
	}
	c := &cluster{rack: r, name: name, kubectlBin: filepath.Join(r.bin, "kubectl"), config: filepath.Join(r.dir, name+".kubeconfig")}
	c.connect(k)
	c.account()
	return c
}

// connect makes the cluster's API reachable from the host and gets an administrator's kubeconfig.
func (c *cluster) connect(k *v1alpha1.Cluster) {
	t := c.t
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var servers []netip.AddrPort
	for _, name := range c.machinesWith(v1alpha1.RoleControlPlane) {
		servers = append(servers, netip.AddrPortFrom(netip.MustParseAddr(c.get(name).Spec.Network.Address), 6443))
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.lab.Forward(ctx, listener, servers)
	}()
	t.Cleanup(func() { stop(); <-done })
	c.run("kubeconfig", c.name, "--admin", "--server", "https://"+listener.Addr().String(), "-o", c.config)
}

func (r *rack) getCluster(name string) *v1alpha1.Cluster {
	api, err := r.client()
	if err != nil {
		return nil
	}
	k := &v1alpha1.Cluster{}
	if err := api.Get(r.t.Context(), client.ObjectKey{Name: name}, k); err != nil {
		return nil
	}
	return k
}

func (r *rack) awaitCluster(name, what string, within time.Duration, wanted func(*v1alpha1.Cluster) bool) *v1alpha1.Cluster {
	r.t.Helper()
	began, told := time.Now(), ""
	for {
		if k := r.getCluster(name); k != nil {
			if now := fmt.Sprintf("%s %s %s", k.Status.Phase, k.Status.NodesReady, k.Status.Message); now != told {
				told = now
				r.t.Logf("%6.1fs cluster %s: %s", time.Since(r.started).Seconds(), name, now)
			}
			if wanted(k) {
				return k
			}
		}
		if time.Since(began) > within {
			r.t.Fatalf("cluster %s is not %s after %s; it is: %s", name, what, within, told)
		}
		time.Sleep(500 * time.Millisecond)
	}
}

// machinesWith are the machines of the cluster that have a role, by name.
func (c *cluster) machinesWith(role v1alpha1.Role) []string {
	c.t.Helper()
	api, err := c.client()
	if err != nil {
		c.t.Fatal(err)
	}
	groups := &v1alpha1.MachineGroupList{}
	if err := api.List(c.t.Context(), groups); err != nil {
		c.t.Fatal(err)
	}
	var machines []string
	for _, node := range c.getCluster(c.name).Status.Nodes {
		for i := range groups.Items {
			if groups.Items[i].Name == node.Group && groups.Items[i].HasRole(role) {
				machines = append(machines, node.Machine)
			}
		}
	}
	return machines
}

func (c *cluster) machineWith(role v1alpha1.Role) string {
	c.t.Helper()
	machines := c.machinesWith(role)
	if len(machines) == 0 {
		c.t.Fatalf("no machine is %s", role)
	}
	return machines[0]
}

func (c *cluster) tryKubectl(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), 10*time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, c.kubectlBin, append([]string{"--kubeconfig", c.config, "--request-timeout", "30s"}, args...)...)
	out, err := command.CombinedOutput()
	return string(out), err
}

// kubectlOfServer speaks to Coldrack's own API.
func (c *cluster) kubectlOfServer(args ...string) string {
	c.t.Helper()
	out, err := exec.Command(c.kubectlBin, append([]string{"--kubeconfig", c.kubeconfig()}, args...)...).CombinedOutput()
	if err != nil {
		c.t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// kubectl tries again for a while: an API server that has just lost its power is away.
func (c *cluster) kubectl(within time.Duration, args ...string) string {
	c.t.Helper()
	for began := time.Now(); ; time.Sleep(2 * time.Second) {
		out, err := c.tryKubectl(args...)
		if err == nil {
			return out
		}
		if time.Since(began) > within {
			c.t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// nodes are the names of the cluster's Ready nodes.
func (c *cluster) nodes() []string {
	c.t.Helper()
	out := c.kubectl(2*time.Minute, "get", "nodes", "-o", `jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type=="Ready")].status} {end}`)
	var ready []string
	for _, word := range strings.Fields(out) {
		if name, ok := strings.CutSuffix(word, "=True"); ok {
			ready = append(ready, name)
		}
	}
	return ready
}

// podList is as much of a list of pods as is looked at.
type podList struct {
	Items []struct {
		Metadata struct{ Name string }
		Spec     struct{ NodeName string }
		Status   struct {
			PodIP      string
			Conditions []struct{ Type, Status string }
		}
	}
}

// useIt runs pods on every node; each must reach each other one, the service, and the cluster's DNS. After a power cut
// the API tells for a while how pods were before it, so what fails is looked at anew.
func (c *cluster) useIt() {
	t := c.t
	t.Helper()
	file := filepath.Join(c.dir, "workload.yaml")
	if err := os.WriteFile(file, []byte(workloadYAML), 0o600); err != nil {
		t.Fatal(err)
	}
	c.kubectl(5*time.Minute, "apply", "-f", file)
	c.kubectl(15*time.Minute, "-n", "shop", "rollout", "status", "daemonset/probe", "--timeout=5m", "--request-timeout=0")
	for began := time.Now(); ; time.Sleep(5 * time.Second) {
		err := c.podsReachEachOther()
		if err == nil {
			t.Logf("pods on every node reach each other, the service and DNS after %.0f s", time.Since(began).Seconds())
			return
		}
		if time.Since(began) > 8*time.Minute {
			t.Fatal(err)
		}
	}
}

// podsReachEachOther has every pod of the workload ask all others, the service and DNS, once.
func (c *cluster) podsReachEachOther() error {
	out, err := c.tryKubectl("-n", "shop", "get", "pods", "-o", "json")
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	var pods podList
	if err := json.Unmarshal([]byte(out), &pods); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	seen := map[string]bool{}
	for _, pod := range pods.Items {
		if pod.Status.PodIP == "" {
			return fmt.Errorf("pod %s on %s has no address", pod.Metadata.Name, pod.Spec.NodeName)
		}
		seen[pod.Spec.NodeName] = true
	}
	if nodes := c.nodes(); len(seen) != len(nodes) {
		return fmt.Errorf("pods run on %d nodes, %d are Ready", len(seen), len(nodes))
	}
	for _, from := range pods.Items {
		targets := []string{"http://probe.shop.svc.cluster.local/healthz", "dns:kubernetes.default.svc.cluster.local"}
		for _, to := range pods.Items {
			targets = append(targets, "http://"+to.Status.PodIP+":8080/whoami&body="+to.Spec.NodeName)
		}
		for _, target := range targets {
			answer, err := c.tryKubectl("get", "--raw", "/api/v1/namespaces/shop/pods/"+from.Metadata.Name+":8080/proxy/check?timeout=15s&target="+target)
			var result struct{ OK bool }
			if err == nil {
				err = json.Unmarshal([]byte(answer), &result)
			}
			if err != nil || !result.OK {
				return fmt.Errorf("from the pod on %s, %s fails: %v %s", from.Spec.NodeName, target, err, answer)
			}
		}
	}
	return nil
}

// clocksAreSet waits until every machine has the time from the server.
func (c *cluster) clocksAreSet() {
	c.t.Helper()
	for _, node := range c.getCluster(c.name).Status.Nodes {
		address := c.get(node.Machine).Spec.Network.Address
		for began := time.Now(); strings.TrimSpace(c.ssh(address, "test -e /run/systemd/timesync/synchronized && echo yes || true")) != "yes"; time.Sleep(2 * time.Second) {
			if time.Since(began) > 3*time.Minute {
				c.t.Fatalf("%s has not set its clock: %s", node.Machine, c.ssh(address, "journalctl --no-pager -u systemd-timesyncd | tail -5"))
			}
		}
	}
}

func (c *cluster) verify() {
	c.t.Helper()
	c.verifyWithin(0)
}

// verifyWithin repeats a verification that finds something for a while: after a power cut, new leaders wait until the leases
// of the old ones are over, two minutes where there is one control plane, and what was started in vain waits before it is
// started again.
func (c *cluster) verifyWithin(patience time.Duration) {
	c.t.Helper()
	for began := time.Now(); ; time.Sleep(10 * time.Second) {
		out, err := c.try("cluster", "verify", c.name)
		c.t.Logf("coldrack cluster verify:\n%s", out)
		if err == nil {
			return
		}
		if time.Since(began) >= patience {
			c.t.Errorf("cluster verify: %v", err)
			return
		}
	}
}

// kubeadmReadsIt has the real kubeadm find its certificates, and its configuration in the cluster.
func (c *cluster) kubeadmReadsIt() {
	c.t.Helper()
	address := c.get(c.machineWith(v1alpha1.RoleControlPlane)).Spec.Network.Address
	out := c.ssh(address, "kubeadm certs check-expiration 2>&1")
	for _, certificate := range []string{"admin.conf", "apiserver ", "apiserver-etcd-client", "controller-manager.conf", "etcd-peer", "front-proxy-client", "scheduler.conf"} {
		if !strings.Contains(out, certificate) {
			c.t.Errorf("kubeadm does not know of %s:\n%s", certificate, out)
		}
	}
	// Nobody's credentials of system:masters lie on a disk: "coldrack kubeconfig --break-glass" makes them for an hour.
	out = strings.Replace(out, "!MISSING! super-admin.conf", "", 1)
	if strings.Contains(out, "MISSING") {
		c.t.Errorf("kubeadm certs check-expiration:\n%s", out)
	}
}

// isWhatItWasMade compares what the server knows of a machine that it installed with the lab's machine, and with what
// policy and subnet were to give it.
func (c *cluster) isWhatItWasMade(name, firmware string) {
	t, vm, m := c.t, c.machine[name], c.get(name)
	t.Helper()
	inventory := m.Status.Inventory
	switch {
	case inventory == nil:
		t.Fatal("no inventory")
	case inventory.Firmware != firmware:
		t.Errorf("firmware is %q, want %s", inventory.Firmware, firmware)
	case inventory.System.Serial != vm.Spec().Serial || inventory.System.UUID != vm.Spec().UUID || inventory.System.Vendor != lab.Manufacturer:
		t.Errorf("SMBIOS: %+v, want serial %s, UUID %s", inventory.System, vm.Spec().Serial, vm.Spec().UUID)
	case len(inventory.Disks) != 1 || inventory.Disks[0].Serial != vm.Spec().Disks[0].Serial || inventory.Disks[0].Size.Value() != int64(vm.Spec().Disks[0].Size):
		t.Errorf("disks: %+v, want one with serial %s", inventory.Disks, vm.Spec().Disks[0].Serial)
	case len(inventory.NICs) == 0 || inventory.NICs[0].MAC != vm.MAC().String():
		t.Errorf("NICs: %+v, want MAC %s", inventory.NICs, vm.MAC())
	}
	if want := fmt.Sprintf("worker-%d", vm.Spec().Index); m.Spec.Hostname != want {
		t.Errorf("the policy gave the host name %q, want %s", m.Spec.Hostname, want)
	}
	var addresses []string
	for _, node := range c.getCluster(c.name).Status.Nodes {
		addresses = append(addresses, c.get(node.Machine).Spec.Network.Address)
	}
	slices.Sort(addresses)
	if !slices.Equal(addresses, []string{"10.77.0.10", "10.77.0.11"}) {
		t.Errorf("the machines have %q, want the first static addresses", addresses)
	}
	if address := m.Spec.Network.Address + "/24"; m.Status.Node == nil || !slices.Contains(m.Status.Node.Addresses, address) || len(m.Status.Node.FailedUnits) > 0 {
		t.Errorf("the node reports %+v, want address %s and no failed units", m.Status.Node, address)
	}
}

// lookAround does on a node what a person would do first.
func (c *cluster) lookAround(name string) {
	c.t.Helper()
	m := c.get(name)
	address := m.Spec.Network.Address
	for command, want := range map[string]string{
		"hostname":                         m.Spec.Hostname,
		"cat /etc/motd":                    "installed by coldrack",
		"date +%Z":                         "CE",
		"ip -o -4 addr show to " + address: "valid_lft forever", // static, not leased
		"stat -c %a /var/lib/coldrack/agent/node.pem": "600",
		"findmnt -rno FSTYPE,OPTIONS /":               "ext4 rw",
	} {
		if out := c.ssh(address, command); !strings.Contains(out, want) {
			c.t.Errorf("%s on the node says %q, want %q", command, out, want)
		}
	}
}

// impersonate has somebody on the segment claim to be an installed machine that is off: no kernel, no nonce, no secret.
func (c *cluster) impersonate(name string) {
	t, vm := c.t, c.machine[name]
	t.Helper()
	spec := vm.Spec()
	script := c.curl("/boot/ipxe?mac=" + vm.MAC().String() + "&uuid=" + spec.UUID + "&serial=" + spec.Serial + "&arch=x86_64&platform=pcbios")
	if !strings.Contains(script, "local.lkrn") || strings.Contains(script, "nonce") || strings.Contains(script, "kernel") {
		t.Errorf("a spoofed MAC got:\n%s", script)
	}
	with, err := lab.Create(t.Context(), lab.Options{Dir: c.lab.Dir(), Name: c.lab.Name(), Machines: len(c.machine) + 1, Firmware: lab.BIOS})
	if err != nil {
		t.Fatal(err)
	}
	thief := with.Machine(len(c.machine) + 1)
	identity, began := c.get(name).Status.Identity.KeyFingerprint, time.Now()
	if err := thief.PowerOn(t.Context(), lab.Impersonate(vm)); err != nil {
		t.Fatal(err)
	}
	m := c.await(name, "asked for by the thief", 5*time.Minute, func(m *v1alpha1.Machine) bool { return after(m, began) })
	if newest(m).Action != v1alpha1.BootLocalDisk || m.Status.Identity == nil || m.Status.Identity.KeyFingerprint != identity {
		t.Errorf("the thief was told %+v, and the identity is %+v, was %s", newest(m), m.Status.Identity, identity)
	}
	if err := thief.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !blank(t, thief.DiskPath(0)) {
		t.Error("something was written to the thief's disk")
	}
}

// powerCut pulls a machine's plug, waits until the server has noticed, puts it back and waits for the node.
func (c *cluster) powerCut(name string, meanwhile ...func()) {
	t := c.t
	t.Helper()
	vm := c.machine[name]
	node := c.get(name).Spec.Hostname
	before := c.bootID(node)
	if err := vm.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, f := range meanwhile {
		f()
	}
	c.await(name, "noticed to be away", 5*time.Minute, func(m *v1alpha1.Machine) bool { return m.Status.Phase != v1alpha1.PhaseReady })
	began := time.Now()
	if err := vm.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.awaitNode(node, before, 10*time.Minute)
	t.Logf("%s is a Ready node again %.0f s after its power came back", name, time.Since(began).Seconds())
	c.awaitCluster(c.name, "Ready again", 5*time.Minute, func(k *v1alpha1.Cluster) bool { return k.Status.Phase == v1alpha1.ClusterReady })
}

// bootID tells one start of a node from another.
func (c *cluster) bootID(node string) string {
	c.t.Helper()
	return c.kubectl(2*time.Minute, "get", "node", node, "-o", "jsonpath={.status.nodeInfo.bootID}")
}

// awaitNode waits until a node is Ready in another start than before.
func (c *cluster) awaitNode(node, before string, within time.Duration) {
	c.t.Helper()
	for began := time.Now(); ; time.Sleep(2 * time.Second) {
		out, err := c.tryKubectl("get", "node", node, "-o", `jsonpath={.status.nodeInfo.bootID} {.status.conditions[?(@.type=="Ready")].status}`)
		if bootID, ready, _ := strings.Cut(out, " "); err == nil && bootID != before && ready == "True" {
			return
		}
		if time.Since(began) > within {
			c.t.Fatalf("node %s does not come back: %v %s", node, err, out)
		}
	}
}

// account tells what it all took.
func (c *cluster) account() {
	t := c.t
	t.Helper()
	for line := range strings.Lines(c.kubectlOfServer("get", "--raw", "/coldrack/v1/metrics")) {
		if name, _, ok := strings.Cut(line, " "); ok && strings.HasSuffix(name, "_sent_bytes_total") {
			var bytes float64
			if _, err := fmt.Sscanf(line, name+" %g", &bytes); err != nil {
				t.Errorf("metrics: %q: %v", line, err)
			}
			t.Logf("%s: %.0f MiB in all", name, bytes/(1<<20))
		}
	}
	now, peak := c.memory()
	t.Logf("server memory %d MiB, peak %d MiB", now, peak)
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for name := range c.machine {
			if !yield(name) {
				return
			}
		}
	}) {
		if usage, err := c.machine[name].Usage(); err == nil {
			t.Logf("%s: %s of memory at its peak, %.0f s of processor time since it was last switched on", name, usage.Peak, usage.CPU.Seconds())
		}
	}
}
