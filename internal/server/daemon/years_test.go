package daemon

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/agent/client"
	"coldrack.dev/internal/agent/identity"
	"coldrack.dev/internal/agent/journal"
	"coldrack.dev/internal/agent/node"
	"coldrack.dev/internal/agent/nodecert"
	"coldrack.dev/internal/agent/nodefile"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/cluster/members"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/internal/machine/fleet"
	"coldrack.dev/internal/server/machineapi"
	"coldrack.dev/internal/server/peopleapi/credentials"
	"coldrack.dev/test/require"
)

// A server, the agent of a node in a cluster, and a machine that waits for its approval run for two years without a restart. The
// clock of this test is moved; everything else is real: authorities, certificates, TLS, the machine API, the agent, and the code by
// which a node keeps its certificates. Every second day everything that ends is verified as of that day.
//
// Two things are not there: the kubelet, which renews its own client certificate through the cluster's API, and the store.
func TestTwoYearsWithoutARestart(t *testing.T) {
	require.Swift(t)
	// Here goroutines wake each other in turn; to do that across processors costs many times what they do.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	synctest.Test(t, twoYears)
}

const day = 24 * time.Hour

func twoYears(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var background sync.WaitGroup
	defer background.Wait()
	defer cancel()
	w := newYears(t, ctx, &background)
	for n := range 365 {
		time.Sleep(2 * day)
		w.verify(fmt.Sprintf("day %d", 2*n+2))
		if t.Failed() {
			return
		}
	}
	for what, seen := range w.seen {
		if len(seen) < 3 {
			t.Errorf("%s: %d certificates in two years, want at least 3: was it never renewed?", what, len(seen))
		}
	}
	if len(w.seen) < 12 {
		t.Errorf("only these were looked at: %v", w.seen)
	}
}

// years is a small world.
type years struct {
	t       *testing.T
	server  *server
	store   *yearStore
	api     *yearListener // of machines
	people  *yearPeople
	disk    nodefile.Disk // of the node
	cluster string
	secret  *v1alpha1.Secret // with the cluster's keys
	waiting *yearSession
	// seen are serial numbers of certificates, by what they are for.
	seen map[string]map[string]bool
	mu   sync.Mutex
}

func newYears(t *testing.T, ctx context.Context, background *sync.WaitGroup) *years {
	cfg := testConfig(t)
	keys, err := openKeys(cfg)
	check(t, err)
	s := &server{cfg: cfg, log: discard(), keys: keys, fleet: fleet.New(fleet.Options{Log: discard()}),
		clusters: members.New(members.Options{Programs: yearPrograms{}, Registry: &kube.Registry{URL: "https://10.0.0.1:7444", CA: keys.machines.CertPEM()}})}
	w := &years{t: t, server: s, store: &yearStore{machines: map[string]*v1alpha1.Machine{}, fleet: s.fleet}, api: newYearListener("10.0.0.1:7444"),
		disk: nodefile.Disk{Root: t.TempDir()}, cluster: "lab", seen: map[string]map[string]bool{}}
	s.fleet.MarkSynced()
	s.audit, err = cfg.openAudit(discard())
	check(t, err)
	t.Cleanup(s.audit.Close)

	// People's API is a TLS listener; what renews its certificate is the server's.
	w.people = &yearPeople{yearListener: newYearListener("127.0.0.1:7443")}
	s.people = w.people
	cert, key, err := s.servingCertificate()
	check(t, err)
	check(t, w.people.ReplaceServingCert(cert, key))
	check(t, s.renewPeopleAt(time.Now())) // as at a start
	background.Go(func() { _ = s.renewPeople(ctx) })
	serve(ctx, background, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "ok") }),
		TLSConfig: &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: keys.people.Pool(),
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return w.people.cert.Load(), nil }}}, w.people.yearListener)

	nonces := machineapi.NewNonces(nil)
	api := machineapi.New(machineapi.Options{Fleet: s.fleet, Store: w.store, Signer: keys.machines, Clusters: s.clusters, Nonces: nonces, Log: discard()})
	certificates := &machineCertificates{authority: keys.machines, now: time.Now}
	serve(ctx, background, api.Server(machineapi.TLSConfig(certificates.get, keys.machines.Pool())), w.api)

	w.waiting = w.enroll("52:54:00:00:00:01", nonces)
	background.Go(func() { w.waiting.keep(ctx) })
	w.startNode(ctx, background, nonces)
	return w
}

// serve runs an HTTP server over TLS until ctx ends.
func serve(ctx context.Context, background *sync.WaitGroup, server *http.Server, listener net.Listener) {
	background.Go(func() { _ = server.ServeTLS(listener, "", "") })
	background.Go(func() {
		<-ctx.Done()
		_ = server.Close()
	})
}

// yearSession is the session of a machine in discovery.
type yearSession struct {
	w       *years
	client  *client.Client
	name    string
	csr     string
	expires time.Time
	use     func(chain string)
	leaf    atomic.Pointer[x509.Certificate]
}

func (w *years) connect() *client.Client {
	pin, err := client.ParsePin(w.server.keys.machines.Fingerprint())
	check(w.t, err)
	c, err := client.New(client.Options{Server: "https://10.0.0.1:7444", Pin: pin, Dial: w.api.dial})
	check(w.t, err)
	return c
}

func (w *years) enroll(mac string, nonces *machineapi.Nonces) *yearSession {
	s := &yearSession{w: w, client: w.connect()}
	key, csr, err := client.NewKey("discovery")
	check(w.t, err)
	s.csr = csr
	s.use = func(chain string) {
		pair, err := client.KeyPair(chain, key)
		check(w.t, err)
		leaf, err := x509.ParseCertificate(pair.Certificate[0])
		check(w.t, err)
		s.leaf.Store(leaf)
		s.client.Use(pair)
	}
	nonce := nonces.Issue(machineapi.Binding{Identifiers: v1alpha1.Identifiers{MACs: []string{mac}}, Action: v1alpha1.BootDiscover})
	answer, err := s.client.Enroll(w.t.Context(), wire.EnrollRequest{Nonce: nonce, Identifiers: wire.Identifiers{MACs: []string{mac}}, BootMAC: mac, CSR: csr})
	check(w.t, err)
	s.name, s.expires = answer.Machine, answer.ExpiresAt
	s.use(answer.Certificate)
	return s
}

// keep renews the session as discovery does, when half of its time is left.
func (s *yearSession) keep(ctx context.Context) {
	for ctx.Err() == nil {
		sleepUntil(ctx, time.Until(s.expires)/2)
		answer, err := s.client.Renew(ctx, wire.RenewRequest{CSR: s.csr})
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			s.w.t.Errorf("%s: the session of a waiting machine: %v", time.Now(), err)
			return
		}
		s.use(answer.Certificate)
		s.expires = answer.ExpiresAt
	}
}

func sleepUntil(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// startNode installs a machine, as far as its identity goes, makes it the only machine of a cluster, and runs its agent.
func (w *years) startNode(ctx context.Context, background *sync.WaitGroup, nonces *machineapi.Nonces) {
	t := w.t
	session := w.enroll("52:54:00:00:00:02", nonces)
	w.store.change(session.name, func(m *v1alpha1.Machine) {
		m.Spec.Approved, m.Spec.Intent = true, &v1alpha1.Intent{ID: "i1", Action: v1alpha1.ActionInstall}
		m.Spec.Network = &v1alpha1.MachineNetwork{Address: "10.0.0.20"}
	})
	_, err := session.client.Progress(t.Context(), wire.Progress{IntentID: "i1"})
	check(t, err)
	key, csr, err := client.NewKey(session.name)
	check(t, err)
	answer, err := session.client.Identity(t.Context(), wire.IdentityRequest{IntentID: "i1", CSR: csr})
	check(t, err)
	encoded, err := identity.Encode(key, answer.Certificate)
	check(t, err)
	check(t, os.MkdirAll(w.disk.At(identity.Dir), 0o700))
	check(t, os.WriteFile(filepath.Join(w.disk.At(identity.Dir), identity.NodeFile), encoded, 0o600))
	w.store.change(session.name, func(m *v1alpha1.Machine) {
		m.Status.Intent.State = v1alpha1.IntentSucceeded
		m.Status.Installed = &v1alpha1.InstalledStatus{At: metav1.Now()}
		m.Status.Inventory = &v1alpha1.Inventory{Memory: resource.MustParse("8Gi"), NICs: []v1alpha1.NIC{{Name: "eth0", Boot: true}}}
	})
	w.makeCluster(session.name)

	server, id := w.connect(), mustLoad(t, w.disk)
	agent := &node.Agent{
		Log: discard(), Lines: journal.New(10), Server: server, Identity: id, Machine: session.name, Root: w.disk.Root,
		Use:    func(n identity.Node) { server.Use(n.Certificate) },
		Look:   func(context.Context) wire.Heartbeat { return wire.Heartbeat{BootID: "1"} },
		Reboot: func(context.Context, string) error { return errors.New("a reboot that nobody asked for") },
		Now:    time.Now,
		// Once a day is often enough for a test; a node reports each half minute.
		Sleep:   func(ctx context.Context, d time.Duration) { sleepUntil(ctx, max(d, day)) },
		Cluster: func(ctx context.Context) error { return w.keepCertificates(ctx, server, session.name) },
	}
	background.Go(func() { _ = agent.Run(ctx) })
}

func mustLoad(t *testing.T, d nodefile.Disk) identity.Node {
	t.Helper()
	id, err := identity.Load(d.Root, identity.NodeFile)
	check(t, err)
	return id
}

// makeCluster has one machine with every role.
func (w *years) makeCluster(machine string) {
	t := w.t
	cluster, groups, err := kube.Preset(v1alpha1.TopologyLaptop, kube.PresetOptions{Name: w.cluster})
	check(t, err)
	cluster.UID, cluster.Generation, cluster.Status.ObservedGeneration = "lab-uid", 1, 1
	m, err := w.store.Get(t.Context(), machine)
	check(t, err)
	m.Labels = groups[0].Spec.Selector.MatchLabels
	situation := members.Situation{Cluster: cluster, Clusters: []v1alpha1.Cluster{*cluster}, Groups: groups, Machines: []v1alpha1.Machine{*m}}
	decision, err := members.Decide(situation)
	check(t, err)
	cluster.Status.Nodes = decision.Nodes
	material, err := members.NewMaterial(cluster, time.Now())
	check(t, err)
	w.secret, err = material.Secret(cluster)
	check(t, err)
	w.server.clusters.Put(members.Record{Cluster: cluster, Groups: groups, Machines: situation.Machines, Secret: w.secret})
}

// keepCertificates does every day what the bring-up does with each certificate of the node's plan, and for one that the kubelet
// rotates what the kubelet does.
func (w *years) keepCertificates(ctx context.Context, server *client.Client, machine string) error {
	for ctx.Err() == nil {
		assignment, _ := w.server.clusters.Node(machine)
		if assignment.Plan == nil {
			w.t.Errorf("no plan for the node: %+v", assignment)
			return nil
		}
		for _, c := range assignment.Plan.Certificates {
			if err := w.keepCertificate(ctx, server, assignment.Plan, c); err != nil && ctx.Err() == nil {
				w.t.Errorf("%s: certificate %s: %v", time.Now(), c.Name, err)
				return nil
			}
		}
		if err := server.Phases(ctx, w.record(machine, assignment.Plan)); err != nil && ctx.Err() == nil {
			w.t.Errorf("%s: the node's report: %v", time.Now(), err)
			return nil
		}
		sleepUntil(ctx, day)
	}
	return nil
}

func (w *years) keepCertificate(ctx context.Context, server *client.Client, plan *wire.NodePlan, c wire.NodeCertificate) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := nodecert.FinishPair(w.disk, c); err != nil {
		return err
	}
	was, err := nodecert.Look(w.disk, plan, c, time.Now())
	if err != nil {
		return err
	}
	if c.Rotated && was.Usable {
		return w.rotate(plan, c, was.Leaf)
	}
	if was.Why == "" {
		return nil
	}
	certificate, key, err := nodecert.Request(ctx, server, plan.Cluster, c, time.Now)
	if err != nil {
		return err
	}
	for _, path := range []string{c.CertPath, c.KeyPath} {
		check(w.t, os.MkdirAll(filepath.Dir(w.disk.At(path)), 0o700))
	}
	if err := nodecert.WritePair(w.disk, c, certificate, key); err != nil {
		return err
	}
	if link, _ := nodecert.Source(plan, c); link != c.CertPath {
		check(w.t, os.MkdirAll(filepath.Dir(w.disk.At(link)), 0o700))
		return w.disk.Link(link, c.CertPath)
	}
	return nil
}

// rotate renews a certificate as the kubelet does, when four fifths of its life are over. The cluster's API is not there; what signs
// for it is.
func (w *years) rotate(plan *wire.NodePlan, c wire.NodeCertificate, leaf *x509.Certificate) error {
	if life := leaf.NotAfter.Sub(leaf.NotBefore); time.Until(leaf.NotAfter) > life/5 {
		return nil
	}
	newKey, err := nodecert.KeyMaker(c.KeyAlgorithm)
	if err != nil {
		return err
	}
	private, key, err := newKey()
	if err != nil {
		return err
	}
	template := &x509.Certificate{Subject: leaf.Subject, NotBefore: time.Now().Add(-5 * time.Minute), NotAfter: time.Now().Add(365 * day),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: leaf.ExtKeyUsage, BasicConstraintsValid: true}
	certificate, err := w.server.clusters.SignTemplate(plan.Cluster, template, crypto.PublicKey(private.Public()))
	if err != nil {
		return err
	}
	return w.disk.Write(c.CertPath, slices.Concat(certificate, key), 0o600)
}

// record is what the node's bring-up reports. A controller, which is not there, would keep the first end in the Machine's status.
func (w *years) record(machine string, plan *wire.NodePlan) wire.PhaseReport {
	report := wire.PhaseReport{Cluster: plan.Cluster, Version: "v1", Done: true, Certificates: map[string]time.Time{}}
	var first time.Time
	for _, c := range plan.Certificates {
		check, err := nodecert.Look(w.disk, plan, c, time.Now())
		if err != nil || check.Leaf == nil {
			continue
		}
		report.Certificates[c.Name] = check.Leaf.NotAfter
		if first.IsZero() || check.Leaf.NotAfter.Before(first) {
			first = check.Leaf.NotAfter
		}
	}
	w.store.change(machine, func(m *v1alpha1.Machine) {
		m.Status.Kubernetes = &v1alpha1.KubernetesStatus{Cluster: plan.Cluster, CertificatesExpireAt: new(metav1.NewTime(first))}
	})
	return report
}

// verify looks at everything that ends, as of now.
func (w *years) verify(when string) {
	t, now := w.t, time.Now()
	chain := func(what string, leaf *x509.Certificate, roots *x509.CertPool) {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
			t.Errorf("%s: %s: %v", when, what, err)
		}
		if w.seen[what] == nil {
			w.seen[what] = map[string]bool{}
		}
		w.seen[what][leaf.SerialNumber.String()] = true
	}
	keys := w.server.keys

	content, err := os.ReadFile(w.server.cfg.AdminKubeconfig())
	check(t, err)
	config, err := clientcmd.RESTConfigFromKubeConfig(content)
	check(t, err)
	config.Dial = w.people.dial
	if err := w.askPeople(config); err != nil {
		t.Errorf("%s: people's API with admin.kubeconfig: %v", when, err)
	}
	admin, err := tls.X509KeyPair(config.CertData, config.KeyData)
	check(t, err)
	chain("admin.kubeconfig", parsed(t, admin.Certificate[0]), keys.people.Pool())
	chain("people's API", parsed(t, w.people.cert.Load().Certificate[0]), keys.people.Pool())

	conn, err := w.api.dial(t.Context(), "", "")
	check(t, err)
	shown := tls.Client(conn, &tls.Config{RootCAs: keys.machines.Pool(), ServerName: "10.0.0.1"})
	if err := shown.Handshake(); err != nil {
		t.Errorf("%s: the machine API: %v", when, err)
		return
	}
	chain("the machine API", shown.ConnectionState().PeerCertificates[0], keys.machines.Pool())
	shown.Close()

	chain("session of a waiting machine", w.waiting.leaf.Load(), keys.machines.Pool())
	if _, err := w.waiting.client.Assignment(t.Context(), "", 0); err != nil {
		t.Errorf("%s: the waiting machine asks what to do: %v", when, err)
	}
	id := mustLoad(t, w.disk)
	chain("identity of the node", id.Certificate.Leaf, keys.machines.Pool())
	for _, m := range w.server.fleet.List() {
		if m.Status.Installed == nil {
			continue
		}
		if beat := w.server.fleet.Live(m.Name).HeartbeatAt; now.Sub(beat) > day+time.Hour {
			t.Errorf("%s: the last heartbeat of the node was at %s", when, beat)
		}
		w.verifyPlan(m.Name, chain)
	}
	ends := w.server.expiry(now)
	for _, e := range ends {
		if e.Overdue != "" || !e.Until.After(now) {
			t.Errorf("%s: %+v", when, e)
		}
	}
	if len(ends) != 7 {
		t.Errorf("%s: what ends: %+v, want seven sorts", when, ends)
	}
}

func (w *years) verifyPlan(machine string, chain func(string, *x509.Certificate, *x509.CertPool)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	assignment, _ := w.server.clusters.Node(machine)
	for _, c := range assignment.Plan.Certificates {
		look, err := nodecert.Look(w.disk, assignment.Plan, c, time.Now())
		if err != nil || !look.Usable {
			w.t.Errorf("certificate %s: %+v, error %v", c.Name, look, err)
			continue
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM([]byte(c.Authority))
		chain("node: "+c.Name, look.Leaf, roots)
	}
}

func (w *years) askPeople(config *rest.Config) error {
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	response, err := client.Get(config.Host + "/readyz")
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return err
}

func parsed(t *testing.T, der []byte) *x509.Certificate {
	t.Helper()
	cert, err := x509.ParseCertificate(der)
	check(t, err)
	return cert
}

// yearListener is a network of two ends, without a kernel, so that time stands still only while nobody has anything to do.
type yearListener struct {
	address net.Addr
	conns   chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

func newYearListener(address string) *yearListener {
	tcp, _ := net.ResolveTCPAddr("tcp", address)
	return &yearListener{address: tcp, conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *yearListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case l.conns <- yearConn{theirs, l.address, &net.TCPAddr{IP: net.IPv4(10, 0, 0, 20), Port: 1024}}:
		return ours, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *yearListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *yearListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *yearListener) Addr() net.Addr { return l.address }

type yearConn struct {
	net.Conn
	local, remote net.Addr
}

func (c yearConn) LocalAddr() net.Addr  { return c.local }
func (c yearConn) RemoteAddr() net.Addr { return c.remote }

// yearPeople is the listener of people's API.
type yearPeople struct {
	*yearListener
	cert atomic.Pointer[tls.Certificate]
}

func (p *yearPeople) Address() string { return p.address.String() }

func (p *yearPeople) ReplaceServingCert(certPEM, keyPEM []byte) error {
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err == nil {
		p.cert.Store(&pair)
	}
	return err
}

type yearPrograms struct{}

func (yearPrograms) Programs(string) ([]wire.Program, error) { return nil, nil }

// yearStore holds machines and lets the fleet know at once.
type yearStore struct {
	mu       sync.Mutex
	machines map[string]*v1alpha1.Machine
	fleet    *fleet.Fleet
}

func (s *yearStore) Get(_ context.Context, name string) (*v1alpha1.Machine, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m, ok := s.machines[name]; ok {
		return m.DeepCopy(), nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Group: v1alpha1.Group, Resource: "machines"}, name)
}

func (s *yearStore) Create(_ context.Context, m *v1alpha1.Machine) (*v1alpha1.Machine, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.machines[m.Name] = m.DeepCopy()
	return m, nil
}

func (s *yearStore) UpdateStatus(_ context.Context, name string, change func(*v1alpha1.Machine) error) (*v1alpha1.Machine, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.machines[name].DeepCopy()
	if err := change(m); err != nil {
		return nil, err
	}
	s.machines[name] = m
	return m.DeepCopy(), nil
}

func (s *yearStore) change(name string, change func(*v1alpha1.Machine)) {
	m, err := s.UpdateStatus(context.Background(), name, func(m *v1alpha1.Machine) error {
		change(m)
		return nil
	})
	if err == nil {
		s.fleet.Put(m)
	}
}

// Authorities live for ten years and are not renewed by themselves. A person is told ninety days before, and what is signed until
// then does not outlive them.
func TestAuthoritiesAreAnnouncedBeforeTheyEnd(t *testing.T) {
	cfg := testConfig(t)
	keys, err := openKeys(cfg)
	check(t, err)
	s := &server{cfg: cfg, log: discard(), keys: keys, fleet: fleet.New(fleet.Options{Log: discard()}), clusters: members.New(members.Options{Programs: yearPrograms{}})}
	w := &years{t: t, server: s, store: &yearStore{machines: map[string]*v1alpha1.Machine{}, fleet: s.fleet}, cluster: "lab"}
	m := &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: "m"}, Spec: v1alpha1.MachineSpec{Approved: true, Network: &v1alpha1.MachineNetwork{Address: "10.0.0.20"}}}
	m.Status.Installed = &v1alpha1.InstalledStatus{}
	m.Status.Inventory = &v1alpha1.Inventory{Memory: resource.MustParse("8Gi"), NICs: []v1alpha1.NIC{{Name: "eth0", Boot: true}}}
	w.store.machines["m"] = m
	w.makeCluster("m")
	_, err = credentials.WriteAdmin(cfg.AdminKubeconfig(), keys.people, "https://127.0.0.1:7443", time.Now())
	check(t, err)

	end := keys.machines.Certificate().NotAfter
	overdue := func(at time.Time) (names []string) {
		for _, e := range s.expiry(at) {
			if e.Overdue != "" && (e.Certificate == machineAuthority || e.Certificate == credentials.Authority || e.Certificate == expiryAuthority) {
				names = append(names, e.Certificate)
			}
		}
		return names
	}
	if got := overdue(end.Add(-91 * day)); got != nil {
		t.Errorf("told too early: %v", got)
	}
	want := []string{machineAuthority, credentials.Authority, expiryAuthority}
	if got := overdue(end.Add(-89 * day)); !slices.Equal(got, want) {
		t.Errorf("89 days before the end: %v, want %v", got, want)
	}
	var log bytes.Buffer
	for _, e := range s.expiry(end.Add(-89 * day)) {
		fmt.Fprintln(&log, e.Overdue)
	}
	if text := log.String(); !strings.Contains(text, "ca of cluster lab ends at ") || !strings.Contains(text, "replace it: coldrack cluster rotate lab ") {
		t.Errorf("the cluster's authority is not named:\n%s", text)
	}
	_, leaf, err := keys.machines.SignClient(keys.people.Certificate().PublicKey, "x", nil, 20*365*day)
	check(t, err)
	if leaf.NotAfter.After(end) {
		t.Errorf("a certificate until %s outlives its authority, which ends at %s", leaf.NotAfter, end)
	}
}
