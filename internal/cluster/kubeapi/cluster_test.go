package kubeapi

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/test/ca"
	"coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

// testCluster is a rendered cluster whose etcd and API servers are real: the programs run with the flags, files and
// certificates of the plan, each machine in a network namespace with its address. There are no kubelets and no
// controllers; tests do what those would ask of the API.
type testCluster struct {
	t           *testing.T
	rack        *netns.NS
	cluster     *v1alpha1.Cluster
	plan        *kube.Plan
	machines    []kube.Machine
	authorities map[kube.Authority]*testAuthority
	hosts       map[string]*testHost
}

// testHost is a machine.
type testHost struct {
	ns        *netns.NS
	root      string
	processes map[string]*exec.Cmd
}

// startCluster brings up one etcd and two API servers.
func startCluster(t *testing.T) *testCluster {
	require.Need(t, "netns", "etcd", "kube-apiserver", "kubectl")
	c := &testCluster{t: t, rack: netns.New(t), authorities: map[kube.Authority]*testAuthority{}, hosts: map[string]*testHost{}}
	c.rack.Bridge("br0")
	c.rack.Address("br0", "10.20.0.1/16")
	c.render()
	for i, m := range c.machines {
		c.addHost(i, c.plan.Nodes[m.Name])
	}
	c.start("machine-01", "etcd")
	c.start("machine-01", "kube-apiserver")
	c.start("machine-02", "kube-apiserver")
	c.awaitReady()
	return c
}

func (c *testCluster) render() {
	cluster, groups, err := kube.Preset(v1alpha1.TopologyDevelopment, kube.PresetOptions{Name: "rack", Version: kube.DefaultVersion(), Workers: 1})
	check(c.t, err)
	cluster.Spec.Topology = v1alpha1.TopologyCustom
	cluster.UID = "0b2f5a7e-1111-2222-3333-444455556666"
	one := int32(1)
	second := v1alpha1.MachineGroup{Spec: v1alpha1.MachineGroupSpec{Cluster: cluster.Name, Replicas: &one, Roles: []v1alpha1.Role{v1alpha1.RoleControlPlane}}}
	second.Name = "rack-second"
	groups = slices.Insert(groups, 1, second)
	c.cluster = cluster
	input := kube.Input{Cluster: cluster, Groups: groups, Authorities: map[kube.Authority][]byte{}}
	for _, spec := range kube.Authorities(cluster) {
		a := newTestAuthority(c.t, spec)
		c.authorities[spec.Authority] = a
		input.Authorities[spec.Authority] = a.pem
	}
	serviceAccounts := ca.NewKey(c.t)
	public, err := x509.MarshalPKIXPublicKey(serviceAccounts.Public())
	check(c.t, err)
	input.ServiceAccountKeys = pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})
	for _, g := range groups {
		for range g.WantedReplicas() {
			number := len(input.Machines) + 1
			input.Machines = append(input.Machines, kube.Machine{
				Name: fmt.Sprintf("machine-%02d", number), Hostname: fmt.Sprintf("node-%02d", number), Group: g.Name,
				Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 20, 0, byte(10 + number)})}, Interface: "eth0",
			})
		}
	}
	input.Machines, err = kube.Assign(cluster, groups, input.Machines, nil)
	check(c.t, err)
	plan, err := kube.Render(input)
	check(c.t, err)
	c.plan, c.machines = plan, input.Machines

	// The secrets of the plan, as the server would deliver them.
	key, err := x509.MarshalPKCS8PrivateKey(serviceAccounts)
	check(c.t, err)
	encryption, err := kube.EncryptionConfig([]kube.EncryptionKey{{Name: "key", Secret: base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32))}})
	check(c.t, err)
	secrets := map[kube.SecretRef][]byte{
		kube.SecretServiceAccountKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
		kube.SecretEncryptionConfig:  encryption,
	}
	for name, node := range plan.Nodes {
		for i := range node.Files {
			if ref := node.Files[i].Secret; ref != "" {
				if secrets[ref] == nil {
					c.t.Fatalf("machine %s needs secret %s", name, ref)
				}
				node.Files[i].Content = secrets[ref]
			}
		}
	}
}

// addHost makes a machine with the plan's files and certificates below its root.
func (c *testCluster) addHost(number int, plan kube.NodePlan) {
	h := &testHost{ns: netns.New(c.t), root: c.t.TempDir(), processes: map[string]*exec.Cmd{}}
	c.rack.Plug("br0", fmt.Sprintf("port%d", number), h.ns, "eth0")
	h.ns.Address("eth0", plan.Address.String()+"/16")
	c.hosts[plan.Machine] = h
	for _, f := range plan.Files {
		switch {
		case f.Mode&fs.ModeDir != 0:
			check(c.t, os.MkdirAll(h.root+f.Path, 0o700))
		case f.Link == "":
			writeFile(c.t, h.root+f.Path, f.Content)
		}
	}
	for _, request := range plan.Certificates {
		cert, key := c.authorities[request.Authority].IssuePEM(request.Template(time.Now()))
		if request.CertPath == request.KeyPath {
			writeFile(c.t, h.root+request.CertPath, append(cert, key...))
			continue
		}
		writeFile(c.t, h.root+request.CertPath, cert)
		writeFile(c.t, h.root+request.KeyPath, key)
	}
}

// start runs a component with the very command of its static pod; only the paths lie below the machine's root.
func (c *testCluster) start(machine, component string) {
	c.t.Helper()
	plan, h := c.plan.Nodes[machine], c.hosts[machine]
	i := slices.IndexFunc(plan.StaticPods, func(p kube.StaticPod) bool { return p.Name == component })
	if i < 0 {
		c.t.Fatalf("%s has no %s", machine, component)
	}
	var arguments []string
	for _, argument := range plan.StaticPods[i].Pod.Spec.Containers[0].Command {
		if flag, value, _ := strings.Cut(argument, "="); strings.HasPrefix(value, "/") {
			argument = flag + "=" + h.root + value
		}
		arguments = append(arguments, argument)
	}
	log, err := os.OpenFile(filepath.Join(h.root, component+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	check(c.t, err)
	defer log.Close()
	cmd := exec.Command(arguments[0], arguments[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	check(c.t, h.ns.Start(cmd))
	h.processes[component] = cmd
	c.t.Cleanup(func() { c.kill(machine, component) })
}

// kill ends a component as a power cut would.
func (c *testCluster) kill(machine, component string) {
	h := c.hosts[machine]
	if cmd := h.processes[component]; cmd != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		delete(h.processes, component)
	}
}

func (c *testCluster) servers() []netip.AddrPort {
	var servers []netip.AddrPort
	for _, machine := range []string{"machine-01", "machine-02"} {
		servers = append(servers, netip.AddrPortFrom(c.plan.Nodes[machine].Address, 6443))
	}
	return servers
}

func (c *testCluster) dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = c.rack.Do(func() error {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

func (c *testCluster) target(servers ...netip.AddrPort) Target {
	if len(servers) == 0 {
		servers = c.servers()
	}
	return Target{Cluster: "rack", Servers: servers, CA: c.authorities[kube.AuthorityKubernetes].pem, Dial: c.dial,
		Certificate: func() (*tls.Certificate, error) {
			return c.authorities[kube.AuthorityKubernetes].client(c.t, "coldrack", "system:masters"), nil
		}}
}

func (c *testCluster) connect(servers ...netip.AddrPort) *Connection {
	c.t.Helper()
	connection, err := Connect(c.target(servers...))
	check(c.t, err)
	c.t.Cleanup(connection.Close)
	return connection
}

// as is a client with a certificate of the cluster's authority.
func (c *testCluster) as(user string, groups ...string) *kubernetes.Clientset {
	c.t.Helper()
	return c.withConfig(c.authorities[kube.AuthorityKubernetes].client(c.t, user, groups...), func(*rest.Config) {})
}

// withCertificate is a client with a PEM certificate that the cluster gave out.
func (c *testCluster) withCertificate(certificate []byte, private crypto.PrivateKey) *kubernetes.Clientset {
	c.t.Helper()
	block, _ := pem.Decode(certificate)
	return c.withConfig(&tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: private}, func(*rest.Config) {})
}

// withConfig is a client with a certificate and whatever else change sets.
func (c *testCluster) withConfig(certificate *tls.Certificate, change func(*rest.Config)) *kubernetes.Clientset {
	c.t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	check(c.t, err)
	config := &rest.Config{Host: "https://" + c.servers()[0].String(), Dial: c.dial, QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{CAData: c.authorities[kube.AuthorityKubernetes].pem,
			CertData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]}),
			KeyData:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})}}
	change(config)
	client, err := kubernetes.NewForConfig(config)
	check(c.t, err)
	return client
}

// withToken is a client with a bearer token.
func (c *testCluster) withToken(token string) *kubernetes.Clientset {
	c.t.Helper()
	client, err := kubernetes.NewForConfig(&rest.Config{Host: "https://" + c.servers()[0].String(), Dial: c.dial, QPS: -1, BearerToken: token,
		TLSClientConfig: rest.TLSClientConfig{CAData: c.authorities[kube.AuthorityKubernetes].pem}})
	check(c.t, err)
	return client
}

// kubectl runs as an administrator.
func (c *testCluster) kubectl(arguments ...string) (string, error) {
	c.t.Helper()
	certificate := c.authorities[kube.AuthorityKubernetes].client(c.t, "admin", "system:masters")
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	check(c.t, err)
	dir := c.t.TempDir()
	writeFile(c.t, dir+"/ca.crt", c.authorities[kube.AuthorityKubernetes].pem)
	writeFile(c.t, dir+"/tls.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]}))
	writeFile(c.t, dir+"/tls.key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
	cmd := exec.Command("kubectl", append([]string{"--kubeconfig=/dev/null", "--server=https://" + c.servers()[0].String(), "--cache-dir=" + dir,
		"--certificate-authority=" + dir + "/ca.crt", "--client-certificate=" + dir + "/tls.crt", "--client-key=" + dir + "/tls.key"}, arguments...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	check(c.t, c.rack.Start(cmd))
	err = cmd.Wait()
	return out.String(), err
}

func (c *testCluster) awaitReady() {
	c.t.Helper()
	for i, server := range c.servers() {
		connection := c.connect(server)
		deadline := time.Now().Add(2 * time.Minute)
		for {
			_, err := connection.Check(c.t.Context())
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				c.t.Fatalf("%v\n%s", err, c.log(fmt.Sprintf("machine-%02d", i+1), "kube-apiserver"))
			}
			time.Sleep(200 * time.Millisecond)
		}
	}
}

func (c *testCluster) log(machine, component string) string {
	log, _ := os.ReadFile(filepath.Join(c.hosts[machine].root, component+".log"))
	return string(log[max(0, len(log)-6000):])
}

// wanted is what the plan wants.
func (c *testCluster) wanted() Wanted {
	c.t.Helper()
	w, err := WantedBy(c.cluster, c.plan, c.machines)
	check(c.t, err)
	return w
}

// testAuthority signs.
type testAuthority struct {
	*ca.CA
	pem []byte
}

func newTestAuthority(t *testing.T, spec kube.AuthoritySpec) *testAuthority {
	t.Helper()
	authority := ca.From(t, spec.Template(time.Now()))
	return &testAuthority{authority, authority.PEM()}
}

func (a *testAuthority) sign(template *x509.Certificate, public crypto.PublicKey) ([]byte, error) {
	cert, err := a.Sign(template, public)
	if err != nil {
		return nil, err
	}
	return ca.EncodeCert(cert), nil
}

func (a *testAuthority) client(t *testing.T, user string, groups ...string) *tls.Certificate {
	t.Helper()
	return a.Issue(ca.Client(user, groups...))
}

func writeFile(t *testing.T, path string, content []byte) {
	t.Helper()
	check(t, os.MkdirAll(filepath.Dir(path), 0o700))
	check(t, os.WriteFile(path, content, 0o600))
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until the condition holds.
func eventually(t *testing.T, what string, condition func() (bool, string)) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		ok, detail := condition()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within a minute; last: %s", what, detail)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
