// Package rack is a rack of machines at native speed: each is a network, process and mount namespace with a folder as its
// disk. In it runs the real agent, against a real server, and the static pods that the agent writes are started as the
// programs that they name: real etcd, real Kubernetes. DESIGN.md says what is real and what is not.
//
//	r := rack.New(t, rack.Options{})
//	r.Cluster(rack.Size{Etcd: 3, ControlPlanes: 2, Workers: 2})
//	r.PowerOn()
//	r.AwaitReady()
//	r.Machine("control-1").PowerCut()
package rack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"

	"coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

// Addresses on the rack's one segment.
const (
	serverAddress = "10.78.0.1"
	deskAddress   = "10.78.0.2"
	virtualIP     = "10.78.0.5"
	segmentBits   = "/24"
	apiPort       = "6443"
	// balancerAddress is where a node's own programs reach the API servers.
	balancerAddress = "127.0.0.1:7445"
)

// patience is how long the rack waits for what takes seconds on an idle machine. It bounds what never comes; it measures nothing.
const patience = 5 * time.Minute

// Options of a rack.
type Options struct {
	// Kubernetes is the minor release that clusters begin with, such as "1.36". Default: the newest.
	Kubernetes string
	// VirtualIP has the control planes carry an address of the API. It needs keepalived.
	VirtualIP bool
	// EarlierPatch has clusters begin with the patch release before the newest, so that there is one to upgrade to.
	EarlierPatch bool
}

// Rack is a server, machines and the switch between them. Its methods end the test when they fail, so they are for the
// test's own goroutine.
type Rack struct {
	t        testing.TB
	options  Options
	dir      string
	began    time.Time
	programs programs
	hub      *netns.NS // the switch
	desk     *netns.NS // a person's computer
	server   *Server
	machines []*Machine
	cluster  string               // name, once there is one
	fetched  int                  // kubeconfigs that were fetched anew
	api      kubernetes.Interface // of the cluster, once it was asked for
}

// New builds the rack with its server, which runs, and no machines yet. Everything ends with the test.
func New(t testing.TB, o Options) *Rack {
	t.Helper()
	require.Need(t, "netns", "ip", "nft", "curl", "etcd", "kubectl", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
	if o.VirtualIP {
		require.Need(t, "keepalived")
	}
	r := &Rack{t: t, options: o, dir: t.TempDir(), began: time.Now()}
	r.programs = findPrograms(t, r.dir, o.Kubernetes)
	if o.EarlierPatch {
		r.programs.addEarlierPatch(t, r.dir)
	}
	r.hub = netns.New(t)
	r.hub.Bridge("br0")
	r.desk = r.plug("desk", "", deskAddress)
	r.server = newServer(r)
	t.Cleanup(r.end)
	r.server.Start()
	if err := r.server.create(segment()...); err != nil {
		t.Fatal(err)
	}
	return r
}

// plug connects a new namespace to the switch by an interface eth0.
func (r *Rack) plug(port, mac, address string) *netns.NS {
	r.t.Helper()
	ns := netns.New(r.t)
	r.hub.Plug("br0", port, ns, "eth0")
	if mac != "" {
		ns.Run("ip", "link", "set", "eth0", "address", mac)
	}
	ns.Address("eth0", address+segmentBits)
	return ns
}

// Size is how many machines of each kind a cluster has, as in the production preset.
type Size struct{ Etcd, ControlPlanes, Workers int }

// Cluster adds machines without power, named etcd-1, control-1, worker-1 and so on, and has the server make a cluster of
// them. change may alter what the preset says.
func (r *Rack) Cluster(size Size, change ...func(*ClusterObjects)) {
	r.t.Helper()
	for _, kind := range []struct {
		name, pool string
		count      int
	}{{"etcd", "etcd", size.Etcd}, {"control", "control-plane", size.ControlPlanes}, {"worker", "worker", size.Workers}} {
		for i := range kind.count {
			r.Add(fmt.Sprintf("%s-%d", kind.name, i+1), kind.pool)
		}
	}
	r.applyCluster(size, change)
}

// Add puts one more machine without power into the rack, and a Machine object for it on the server. Its pool says which
// groups of a cluster may take it: etcd, control-plane or worker.
func (r *Rack) Add(name, pool string) *Machine {
	r.t.Helper()
	m := r.addMachine(name, pool)
	if err := r.server.create(m.object()); err != nil {
		r.t.Fatal(err)
	}
	return m
}

// Server of the rack.
func (r *Rack) Server() *Server { return r.server }

// Machine by name.
func (r *Rack) Machine(name string) *Machine {
	r.t.Helper()
	i := slices.IndexFunc(r.machines, func(m *Machine) bool { return m.name == name })
	if i < 0 {
		r.t.Fatalf("there is no machine %s in this rack", name)
	}
	return r.machines[i]
}

// Machines are all of them, in the order in which they were added.
func (r *Rack) Machines() []*Machine { return slices.Clone(r.machines) }

// PowerOn switches the named machines on at once, or all. A machine that boots for the first time is installed.
func (r *Rack) PowerOn(names ...string) {
	r.t.Helper()
	var on sync.WaitGroup
	for _, m := range r.pick(names) {
		on.Go(m.PowerOn)
	}
	on.Wait()
	if r.t.Failed() {
		r.t.FailNow()
	}
}

// PowerCut takes the power of the named machines at once, or of all.
func (r *Rack) PowerCut(names ...string) {
	r.t.Helper()
	var off sync.WaitGroup
	for _, m := range r.pick(names) {
		off.Go(m.PowerCut)
	}
	off.Wait()
}

func (r *Rack) pick(names []string) []*Machine {
	r.t.Helper()
	if len(names) == 0 {
		return r.Machines()
	}
	var machines []*Machine
	for _, name := range names {
		machines = append(machines, r.Machine(name))
	}
	return machines
}

// Kubectl runs kubectl as an administrator of the cluster, from the desk, and returns what it printed.
func (r *Rack) Kubectl(args ...string) string {
	r.t.Helper()
	out, err := r.TryKubectl(args...)
	if err != nil {
		r.t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// TryKubectl is Kubectl for what may fail.
func (r *Rack) TryKubectl(args ...string) (string, error) {
	file, err := r.kubeconfig()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	return r.desk.Try(ctx, append([]string{r.programs.kubectl, "--kubeconfig", file, "--request-timeout", "20s"}, args...)...)
}

// kubeconfig of an administrator of the cluster. The desk reaches the API by the virtual IP, or else at the first control
// plane.
func (r *Rack) kubeconfig() (string, error) {
	file := filepath.Join(r.dir, "kubeconfig")
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	address := virtualIP
	if !r.options.VirtualIP {
		address = r.Machine("control-1").address
	}
	out, err := r.server.Try("kubeconfig", r.cluster, "--admin", "--server", "https://"+net.JoinHostPort(address, apiPort), "-o", file)
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return file, nil
}

// FetchKubeconfig has whoever asks the cluster from now on use a new kubeconfig, and returns the file of the one before.
func (r *Rack) FetchKubeconfig() (before string) {
	r.t.Helper()
	file, err := r.kubeconfig()
	if err != nil {
		r.t.Fatal(err)
	}
	r.fetched++
	before = fmt.Sprintf("%s.%d", file, r.fetched)
	if err := os.Rename(file, before); err != nil {
		r.t.Fatal(err)
	}
	r.api = nil
	if _, err := r.kubeconfig(); err != nil {
		r.t.Fatal(err)
	}
	return before
}

// Await waits until done says so; its text is what is seen meanwhile, for the test's log.
func (r *Rack) Await(what string, done func() (bool, string)) {
	r.t.Helper()
	told := ""
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		is, seen := done()
		if seen != told {
			told = seen
			r.t.Logf("%5.1fs %s: %s", time.Since(r.began).Seconds(), what, seen)
		}
		if is {
			return
		}
		if time.Since(began) > patience {
			r.t.Fatalf("%s: not after %s; seen last: %s", what, patience, told)
		}
	}
}

// end takes everything down, and shows what happened when the test has failed.
func (r *Rack) end() {
	if r.t.Failed() {
		r.show()
	}
	r.PowerCut()
	r.server.Kill()
	if to := os.Getenv("COLDRACK_RACK_LOGS"); to != "" {
		copying := exec.Command("sh", "-c", `mkdir -p "$0" && find . -name '*.log' -exec cp --parents {} "$0" \;`, filepath.Join(to, r.t.Name()))
		copying.Dir = r.dir
		if out, err := copying.CombinedOutput(); err != nil {
			r.t.Logf("keep the logs: %v %s", err, out)
		}
	}
}

// show logs the ends of all logs.
func (r *Rack) show() {
	r.t.Logf("the server's log ends with:\n%s", tail(r.server.logFile, 6000))
	for _, m := range r.machines {
		for _, pattern := range []string{"console.log", "disk/var/log/rack/*.log", "disk/var/log/pods/*/*/*.log"} {
			files, _ := filepath.Glob(filepath.Join(m.dir, pattern))
			for _, file := range files {
				if text := tail(file, 1500); text != "" {
					r.t.Logf("%s: %s ends with:\n%s", m.name, strings.TrimPrefix(file, m.dir+"/"), text)
				}
			}
		}
	}
}

func tail(file string, n int) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	return string(b[max(0, len(b)-n):])
}

// dial opens a connection from within a namespace.
func dial(ns *netns.NS) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = ns.Do(func() error {
			conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
}

// startIn starts a process in a namespace; it dies with the test.
func startIn(ns *netns.NS, cmd *exec.Cmd, log string) error {
	file, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	cmd.Stdout, cmd.Stderr = file, file
	return errors.Join(ns.Start(cmd))
}
