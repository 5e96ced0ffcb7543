package node

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/cluster/loadbalancer"
	"coldrack.dev/test/ca"
	"coldrack.dev/test/netns"
	"coldrack.dev/test/require"
	"coldrack.dev/test/router"
)

// asNode makes this program a node: a test runs it in the node's network.
const asNode = "COLDRACK_TEST_LOADBALANCER"

type nodeConfig struct {
	Name, API, Token string
	Home             netip.Addr
	// ProxyHealth is asked where kube-proxy runs; empty: rules in nftables stand for it.
	ProxyHealth string
}

const backendPort = 8080

func TestMain(m *testing.M) {
	if text := os.Getenv(asNode); text != "" {
		if err := runNode(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runNode is what a pod of the DaemonSet does, and what answers behind a Service on its node.
func runNode(text string) error {
	var c nodeConfig
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	backend, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.Home, backendPort)))
	if err != nil {
		return err
	}
	go func() {
		b := make([]byte, 100)
		for {
			_, from, err := backend.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = backend.WriteToUDPAddrPort([]byte(c.Name), from)
		}
	}()
	var healthy func(context.Context) error
	if c.ProxyHealth != "" {
		healthy = ProxyHealth(c.ProxyHealth)
	}
	return Run(ctx, Options{Healthy: healthy, Log: slog.New(slog.NewTextHandler(os.Stdout, nil)).With("node", c.Name), Node: c.Name, Namespace: "kube-system",
		API: &rest.Config{Host: c.API, BearerToken: c.Token, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}, Nodes: "node-role.kubernetes.io/worker=", Steady: time.Second})
}

// site is an API server with etcd, three nodes and a client on one switch.
type site struct {
	t      *testing.T
	server *netns.NS
	client *netns.NS
	nodes  map[string]*siteNode
	token  string
	api    *exec.Cmd
	token0 string
}

type siteNode struct {
	nodeConfig
	ns         *netns.NS
	cmd, proxy *exec.Cmd
}

const apiURL = "https://10.20.0.1:6443"

func newSite(t *testing.T, proxy bool) *site {
	require.Need(t, "netns", "ip", "nft", "etcd", "kube-apiserver", "kubectl")
	s := &site{t: t, server: netns.New(t), client: netns.New(t), nodes: map[string]*siteNode{}, token0: "administrator"}
	s.server.Bridge("br0")
	s.server.Address("br0", "10.20.0.1/24")
	s.server.Plug("br0", "client", s.client, "eth0")
	s.client.Address("eth0", "10.20.0.9/24")
	s.startAPI()
	for _, o := range s.objects() {
		s.apply(string(o.Content))
	}
	s.token = strings.TrimSpace(s.kubectl("create", "token", Name, "--namespace", "kube-system", "--duration", "1h"))
	for i := range 3 {
		n := &siteNode{ns: netns.New(t), nodeConfig: nodeConfig{Name: fmt.Sprintf("node-%d", i+1), API: apiURL, Token: s.token, Home: netip.AddrFrom4([4]byte{10, 20, 0, byte(11 + i)})}}
		s.nodes[n.Name] = n
		s.server.Plug("br0", n.Name, n.ns, "eth0")
		n.ns.Address("eth0", n.Home.String()+"/24")
		s.apply(fmt.Sprintf(`{"apiVersion":"v1","kind":"Node","metadata":{"name":%q,"labels":{"node-role.kubernetes.io/worker":""}}}`, n.Name))
		s.kubectl("patch", "node", n.Name, "--subresource=status", "--type=merge", "--patch", fmt.Sprintf(`{"status":{"addresses":[{"type":"InternalIP","address":%q}]}}`, n.Home))
		if proxy {
			s.startProxy(n)
			continue
		}
		// As kube-proxy does it, for all addresses of the pools.
		n.ns.Run("nft", fmt.Sprintf("add table ip proxy; add chain ip proxy prerouting { type nat hook prerouting priority dstnat; }; "+
			"add rule ip proxy prerouting ip daddr 10.20.0.240-10.20.0.250 udp dport 80 dnat to %s:%d", n.Home, backendPort))
		s.start(n.Name)
	}
	return s
}

func (s *site) startAPI() {
	dir := s.t.TempDir()
	key := ca.NewKey(s.t)
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		s.t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"tokens.csv": []byte(s.token0 + ",administrator,1,system:masters\n"),
		"sa.key":     pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private}),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	s.process(s.server, "etcd", "--data-dir", at("etcd"), "--unsafe-no-fsync", "--log-level", "error")
	s.api = s.process(s.server, "kube-apiserver", "--etcd-servers=http://127.0.0.1:2379", "--bind-address=10.20.0.1", "--advertise-address=10.20.0.1", "--cert-dir="+at("certs"),
		"--token-auth-file="+at("tokens.csv"), "--authorization-mode=RBAC", "--service-account-issuer=https://site", "--service-account-key-file="+at("sa.key"),
		"--service-account-signing-key-file="+at("sa.key"), "--service-cluster-ip-range=10.96.0.0/16,fd96::/112")
	s.await("the API server", func() (string, bool) {
		out, err := s.tryKubectl("", "get", "--raw", "/readyz")
		return out, err == nil
	})
}

// process runs a program until the test ends.
func (s *site) process(where *netns.NS, args ...string) *exec.Cmd {
	cmd := exec.Command(args[0], args[1:]...)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := where.Start(cmd); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if s.t.Failed() {
			text := log.String()
			s.t.Logf("%s: %s", args[0], text[max(0, len(text)-3000):])
		}
	})
	return cmd
}

// objects are those that Coldrack gives a cluster for this.
func (s *site) objects() []kube.Object {
	cluster, groups, err := kube.Preset(v1alpha1.TopologyLaptop, kube.PresetOptions{Name: "site", Version: kube.DefaultVersion()})
	if err != nil {
		s.t.Fatal(err)
	}
	cluster.UID = "0b2f5a7e-1111-2222-3333-444455556666"
	cluster.Spec.Network.LoadBalancer = &v1alpha1.ClusterLoadBalancer{
		Pools: []v1alpha1.LoadBalancerPool{{Name: "default", Addresses: []string{"10.20.0.240-10.20.0.242"}}, {Name: "far", Addresses: []string{"198.51.100.0/24"}, OnRequest: true, Announce: v1alpha1.AnnounceBGP, Communities: []string{"64512:7"}}},
		BGP:   &v1alpha1.LoadBalancerBGP{LocalASN: 64512, Peers: []v1alpha1.BGPPeer{{Name: "tor", Address: "10.20.0.1", ASN: 64513, PasswordKey: "tor"}}}}
	input := kube.Input{Cluster: cluster, Groups: groups, Authorities: map[kube.Authority][]byte{}, ServiceAccountKeys: []byte("unused"),
		Machines: []kube.Machine{{Name: "m", Hostname: "m", Group: groups[0].Name, Addresses: []netip.Addr{netip.MustParseAddr("10.20.0.11")}, Interface: "eth0"}}}
	for _, spec := range kube.Authorities(cluster) {
		input.Authorities[spec.Authority] = ca.New(s.t, string(spec.Authority)).PEM()
	}
	if input.Machines, err = kube.Assign(cluster, groups, input.Machines, nil); err != nil {
		s.t.Fatal(err)
	}
	plan, err := kube.Render(input)
	if err != nil {
		s.t.Fatal(err)
	}
	var objects []kube.Object
	for _, o := range plan.Objects {
		if o.Addon == "loadbalancer" {
			objects = append(objects, o)
		}
	}
	if len(objects) == 0 {
		s.t.Fatal("no objects are rendered")
	}
	return objects
}

func (s *site) start(name string) {
	n := s.nodes[name]
	config, err := json.Marshal(n.nodeConfig)
	if err != nil {
		s.t.Fatal(err)
	}
	n.cmd = exec.Command(os.Args[0])
	n.cmd.Env = append(os.Environ(), asNode+"="+string(config))
	n.cmd.Stdout, n.cmd.Stderr = testLog{s.t}, testLog{s.t}
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := n.ns.Start(n.cmd); err != nil {
		s.t.Fatal(err)
	}
	cmd := n.cmd
	s.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
}

type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func (s *site) tryKubectl(in string, args ...string) (string, error) {
	ctx, cancel := netns.Patience(s.t)
	defer cancel()
	cmd := exec.CommandContext(ctx, "kubectl", append([]string{"--server", apiURL, "--token", s.token0, "--insecure-skip-tls-verify", "--kubeconfig", "/dev/null", "--cache-dir", filepath.Join(os.TempDir(), "coldrack-lb-kubectl")}, args...)...)
	cmd.Stdin = strings.NewReader(in)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := s.server.Start(cmd); err != nil {
		return "", err
	}
	err := cmd.Wait()
	return out.String(), err
}

func (s *site) kubectl(args ...string) string {
	s.t.Helper()
	out, err := s.tryKubectl("", args...)
	if err != nil {
		s.t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (s *site) apply(object string) {
	s.t.Helper()
	if out, err := s.tryKubectl(object, "apply", "--server-side", "--force-conflicts", "--filename", "-"); err != nil {
		s.t.Fatalf("apply %s: %v\n%s", object, err, out)
	}
}

// await waits until look says that it is so.
func (s *site) await(what string, look func() (string, bool)) {
	s.t.Helper()
	ctx, cancel := netns.Patience(s.t)
	defer cancel()
	seen := ""
	for ctx.Err() == nil {
		var ok bool
		if seen, ok = look(); ok {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	s.t.Fatalf("%s: still %q", what, seen)
}

// answers asks an address once, as a client outside of the cluster.
func (s *site) answers(address string) string {
	var conn net.Conn
	if err := s.client.Do(func() (err error) { conn, err = net.Dial("udp", address+":80"); return err }); err != nil {
		return ""
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(200 * time.Millisecond))
	b := make([]byte, 100)
	if _, err := conn.Write([]byte("who?")); err != nil {
		return ""
	}
	n, err := conn.Read(b)
	if err != nil {
		return ""
	}
	return string(b[:n])
}

func (s *site) awaitAnswers(address string, fits func(string) bool) string {
	s.t.Helper()
	who := ""
	s.await("who answers at "+address, func() (string, bool) {
		first := s.answers(address)
		who = first
		return who, fits(who) && s.answers(address) == first
	})
	return who
}

func (s *site) awaitStatus(service, want string) {
	s.t.Helper()
	s.await("addresses of Service "+service, func() (string, bool) {
		out := s.kubectl("get", "service", service, "--output", "jsonpath={range .status.loadBalancer.ingress[*]}{.ip} {.ipMode} {end}")
		return out, strings.TrimSpace(out) == want
	})
}

func (s *site) awaitEvent(service, text string) {
	s.t.Helper()
	s.await("events of Service "+service, func() (string, bool) {
		out := s.kubectl("get", "events", "--field-selector", "involvedObject.name="+service, "--output", "jsonpath={range .items[*]}{.reason}: {.message}; {end}")
		return out, strings.Contains(out, text)
	})
}

func service(name, more string) string {
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"Service","metadata":{"name":%q},"spec":{"type":"LoadBalancer","ports":[{"port":80,"protocol":"UDP"}]%s}}`, name, more)
}

// TestAtARealAPIServer tells one story: each part goes on with what the one before left.
func TestAtARealAPIServer(t *testing.T) {
	s := newSite(t, false)
	someone := func(who string) bool { return who != "" }
	nobody := func(who string) bool { return who == "" }

	s.apply(service("web", ""))
	s.awaitStatus("web", "10.20.0.240 VIP")
	s.awaitEvent("web", "AddressAssigned: its address is 10.20.0.240")
	all := []loadbalancer.Member{{Name: "node-1", Standing: loadbalancer.Ready}, {Name: "node-2", Standing: loadbalancer.Ready}, {Name: "node-3", Standing: loadbalancer.Ready}}
	first := loadbalancer.Holder(loadbalancer.Address{Addr: netip.MustParseAddr("10.20.0.240")}, all)
	s.awaitAnswers("10.20.0.240", func(who string) bool { return who == first })

	t.Log("requests, and what cannot be had")
	s.apply(service("asked", `,"loadBalancerIP":"10.20.0.242"`))
	s.awaitStatus("asked", "10.20.0.242 VIP")
	s.apply(service("taken", `,"loadBalancerIP":"10.20.0.240"`))
	s.awaitEvent("taken", "AddressTaken: 10.20.0.240 is the address of Service default/web")
	s.apply(service("other", `,"loadBalancerClass":"example.org/other"`))
	s.apply(service("second", ""))
	s.awaitStatus("second", "10.20.0.241 VIP")
	s.apply(service("late", ""))
	s.awaitEvent("late", "PoolExhausted: all IPv4 addresses of the pools are in use")
	s.awaitStatus("other", "")
	s.kubectl("delete", "service", "second")
	s.awaitStatus("late", "10.20.0.241 VIP")

	t.Log("what somebody else writes into a status is not announced")
	s.kubectl("patch", "service", "other", "--subresource=status", "--type=merge", "--patch", `{"status":{"loadBalancer":{"ingress":[{"ip":"10.20.0.245"}]}}}`)
	if who := s.answers("10.20.0.245"); who != "" {
		t.Errorf("%s answers for an address that is in no pool", who)
	}

	t.Log("a node that is cordoned hands over, and takes its part again")
	s.kubectl("cordon", first)
	second := s.awaitAnswers("10.20.0.240", func(who string) bool { return someone(who) && who != first })
	s.kubectl("uncordon", first)
	s.awaitAnswers("10.20.0.240", func(who string) bool { return who == first })

	s.logMemory(first)
	t.Log("endpoints decide with externalTrafficPolicy Local")
	slice := func(node string) string {
		return fmt.Sprintf(`{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{"name":"web-1","labels":{"kubernetes.io/service-name":"web"}},"addressType":"IPv4",
			"ports":[{"port":8080,"protocol":"UDP"}],"endpoints":[{"addresses":["10.244.1.7"],"nodeName":%q,"conditions":{"ready":true}}]}`, node)
	}
	s.apply(service("web", `,"externalTrafficPolicy":"Local"`))
	s.awaitAnswers("10.20.0.240", nobody)
	s.apply(slice(second))
	s.awaitAnswers("10.20.0.240", func(who string) bool { return who == second })
	s.apply(slice(first))
	s.awaitAnswers("10.20.0.240", func(who string) bool { return who == first })
	s.apply(service("web", `,"externalTrafficPolicy":"Cluster"`))

	t.Log("the API is away, and a node loses its power")
	if err := s.api.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	s.server.Run("ip", "link", "set", first, "down")
	_ = s.nodes[first].cmd.Process.Kill()
	s.awaitAnswers("10.20.0.240", func(who string) bool { return someone(who) && who != first })
	if err := s.api.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}

	t.Log("other pools, without a restart; whoever allocated may be the node that is gone")
	s.apply(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"coldrack-loadbalancer","namespace":"kube-system"},"data":{"pools.json":"[{\"name\":\"default\",\"addresses\":[\"10.20.0.241-10.20.0.244\"]}]"}}`)
	s.awaitStatus("web", "10.20.0.243 VIP")
	s.awaitAnswers("10.20.0.243", someone)
	s.awaitAnswers("10.20.0.240", nobody)

	t.Log("a Service of another type has no address any more")
	s.apply(`{"apiVersion":"v1","kind":"Service","metadata":{"name":"web"},"spec":{"type":"ClusterIP","ports":[{"port":80,"protocol":"UDP"}]}}`)
	s.awaitStatus("web", "")
	s.awaitAnswers("10.20.0.243", nobody)
}

// TestRoutersAreToldOfAddresses: BIRD is the router, with real nodes, Services and endpoints of an API server.
func TestRoutersAreToldOfAddresses(t *testing.T) {
	require.Need(t, "bird", "birdc")
	s := newSite(t, false)
	bird := router.Start(t, s.server, router.Kernel+`router id 10.20.0.1;
protocol bgp nodes { local 10.20.0.1 as 64513; direct; password "secret of tor"; neighbor range 10.20.0.0/24 as 64512; dynamic name "node"; ipv4 { import all; export none; }; }
`)
	hops := func(want ...string) {
		t.Helper()
		s.await("next hops of 198.51.100.0", func() (string, bool) {
			got := strings.Join(bird.Hops("198.51.100.0"), " ")
			return got, got == strings.Join(want, " ")
		})
	}
	nodeEvent := func(node, text string) {
		t.Helper()
		s.await("events of node "+node, func() (string, bool) {
			out := s.kubectl("get", "events", "--field-selector", "involvedObject.name="+node, "--output", "jsonpath={range .items[*]}{.reason}: {.message}; {end}")
			return out, strings.Contains(out, text)
		})
	}
	s.apply(`{"apiVersion":"v1","kind":"Service","metadata":{"name":"web","annotations":{"coldrack.dev/loadbalancer-pool":"far"}},"spec":{"type":"LoadBalancer","ports":[{"port":80,"protocol":"UDP"}]}}`)
	s.awaitStatus("web", "198.51.100.0 VIP")
	nodeEvent("node-1", "BGPSessionDown: no session with router tor: there is no Secret kube-system/coldrack-loadbalancer-bgp")
	hops()

	t.Log("the password comes")
	s.kubectl("--namespace", "kube-system", "create", "secret", "generic", PasswordsName, "--from-literal=tor=secret of tor")
	hops("10.20.0.11", "10.20.0.12", "10.20.0.13")
	nodeEvent("node-1", "BGPSessionUp: session with router tor (10.20.0.1, AS 64513) is up")
	bird.Await("show route all for 198.51.100.0/32", func(out string) bool { return strings.Count(out, "(64512,7)") == 3 })

	t.Log("a node is cordoned, all are, and one comes back")
	began := time.Now()
	s.kubectl("cordon", "node-1")
	hops("10.20.0.12", "10.20.0.13")
	t.Logf("no route to a node %s after kubectl cordon began", time.Since(began).Round(time.Millisecond))
	s.kubectl("cordon", "node-2", "node-3")
	hops("10.20.0.11", "10.20.0.12", "10.20.0.13") // better than none
	s.kubectl("uncordon", "node-2")
	hops("10.20.0.12")
	s.kubectl("uncordon", "node-1", "node-3")
	hops("10.20.0.11", "10.20.0.12", "10.20.0.13")
	s.logMemory("node-1")

	t.Log("endpoints decide with externalTrafficPolicy Local")
	s.kubectl("patch", "service", "web", "--patch", `{"spec":{"externalTrafficPolicy":"Local"}}`)
	hops()
	s.apply(`{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{"name":"web-1","labels":{"kubernetes.io/service-name":"web"}},"addressType":"IPv4",
		"ports":[{"port":8080,"protocol":"UDP"}],"endpoints":[{"addresses":["10.244.1.7"],"nodeName":"node-3","conditions":{"ready":true}},{"addresses":["10.244.1.8"],"nodeName":"node-2","conditions":{"ready":true}}]}`)
	hops("10.20.0.12", "10.20.0.13")
	s.kubectl("patch", "service", "web", "--patch", `{"spec":{"externalTrafficPolicy":"Cluster"}}`)
	hops("10.20.0.11", "10.20.0.12", "10.20.0.13")

	t.Log("the program is stopped, and killed and started, while the API is away")
	if err := s.api.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	_ = s.nodes["node-3"].cmd.Process.Signal(syscall.SIGTERM)
	hops("10.20.0.11", "10.20.0.12")
	t.Logf("no route to a node %s after its program was told to end", time.Since(began).Round(time.Millisecond))
	_ = s.nodes["node-2"].cmd.Process.Kill()
	hops("10.20.0.11")
	if err := s.api.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	s.start("node-2")
	hops("10.20.0.11", "10.20.0.12")

	t.Log("another password on one side")
	s.kubectl("--namespace", "kube-system", "patch", "secret", PasswordsName, "--patch", `{"stringData":{"tor":"another"}}`)
	hops()
	nodeEvent("node-1", "BGPSessionDown: no session with router tor (10.20.0.1, AS 64513): it does not answer; it is away, a filter is between, or the password is another one")
}

// logMemory of a node's process, for the documents.
func (s *site) logMemory(node string) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.nodes[node].cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "VmRSS") || strings.HasPrefix(line, "RssAnon") {
			s.t.Logf("%s: %s", node, strings.TrimSpace(line))
		}
	}
}

// startProxy runs kube-proxy, and the speaker that asks how it is.
func (s *site) startProxy(n *siteNode) {
	n.ns.Run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
	kubeconfig := filepath.Join(s.t.TempDir(), "kubeconfig")
	content := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],
		"clusters":[{"name":"c","cluster":{"server":%q,"insecure-skip-tls-verify":true}}],"users":[{"name":"u","user":{"token":%q}}]}`, apiURL, s.token0)
	if err := os.WriteFile(kubeconfig, []byte(content), 0o600); err != nil {
		s.t.Fatal(err)
	}
	n.proxy = s.process(n.ns, "kube-proxy", "--kubeconfig="+kubeconfig, "--hostname-override="+n.Name, "--proxy-mode=nftables", "--cluster-cidr=10.244.0.0/16",
		"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s", "--healthz-bind-address=127.0.0.1:10256")
	n.ProxyHealth = "http://127.0.0.1:10256/livez"
	s.start(n.Name)
}

// TestKubeProxyCarriesTheTraffic needs kube-proxy, which the repository's other tests do not: the data path, and that a node leaves
// addresses to others when its proxy has ended.
func TestKubeProxyCarriesTheTraffic(t *testing.T) {
	require.Need(t, "kube-proxy")
	s := newSite(t, true)
	pod := netns.New(t)
	s.server.Plug("br0", "pod", pod, "eth0")
	pod.Address("eth0", "10.20.0.50/24")
	backend := pod.ListenUDP("10.20.0.50:8080")
	go func() {
		b := make([]byte, 100)
		for {
			_, from, err := backend.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			// The node that the packet came through, since kube-proxy puts its address there.
			_, _ = backend.WriteToUDPAddrPort([]byte(from.Addr().String()), from)
		}
	}()
	s.apply(service("web", `,"allocateLoadBalancerNodePorts":false`))
	s.apply(`{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{"name":"web-1","labels":{"kubernetes.io/service-name":"web"}},"addressType":"IPv4",
		"ports":[{"port":8080,"protocol":"UDP"}],"endpoints":[{"addresses":["10.20.0.50"],"conditions":{"ready":true}}]}`)
	s.awaitStatus("web", "10.20.0.240 VIP")
	all := []loadbalancer.Member{{Name: "node-1", Standing: loadbalancer.Ready}, {Name: "node-2", Standing: loadbalancer.Ready}, {Name: "node-3", Standing: loadbalancer.Ready}}
	first := s.nodes[loadbalancer.Holder(loadbalancer.Address{Addr: netip.MustParseAddr("10.20.0.240")}, all)]
	through := func(n *siteNode) func(string) bool { return func(who string) bool { return who == n.Home.String() } }
	s.awaitAnswers("10.20.0.240", through(first))

	if err := first.proxy.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	second := s.awaitAnswers("10.20.0.240", func(who string) bool { return who != "" && who != first.Home.String() })
	for _, n := range s.nodes {
		if n.Home.String() == second {
			began := time.Now()
			s.server.Run("ip", "link", "set", n.Name, "down")
			_ = n.cmd.Process.Kill()
			_ = n.proxy.Process.Kill()
			s.awaitAnswers("10.20.0.240", func(who string) bool { return who != "" && who != second })
			t.Logf("answered by another node %s after a power cut", time.Since(began).Round(10*time.Millisecond))
		}
	}
}
