package machineapi

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/pki"
	"coldrack.dev/internal/contract/nodeconfig"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/internal/machine/fleet"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// memory is a Store and Plans that survive restarts of the server under test.
type memory struct {
	mu       sync.Mutex
	version  int
	machines map[string]*v1alpha1.Machine
	profiles map[string]*v1alpha1.Profile
	images   map[string]*v1alpha1.Image
	subnets  []v1alpha1.Subnet
	facts    *nodeconfig.ImageFacts // of every image
	broken   error                  // what every write answers
}

func newMemory() *memory {
	return &memory{
		machines: map[string]*v1alpha1.Machine{},
		profiles: map[string]*v1alpha1.Profile{"default": {
			ObjectMeta: metav1.ObjectMeta{Name: "default"},
			Spec: v1alpha1.ProfileSpec{
				Image: "debian-12", Wipe: v1alpha1.WipeRefuseForeign, Console: []string{"ttyS0"}, KernelArgs: []string{"quiet"},
				SSHKeys: []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFEBxI3wzQb9z0X7gqTnhYJqBHZCIw3K0P9r3D7b3fQZ"}, Files: []v1alpha1.File{{Path: "/etc/motd", Content: "hi", Mode: "0600"}},
			},
		}},
		images: map[string]*v1alpha1.Image{"debian-12": {
			ObjectMeta: metav1.ObjectMeta{Name: "debian-12"},
			Spec:       v1alpha1.ImageSpec{Family: v1alpha1.FamilyDebian, Size: resource.MustParse("1Gi"), Index: "sha256:1", Digest: "sha256:2", KernelArgs: []string{"rw"}},
		}},
		subnets: []v1alpha1.Subnet{{
			ObjectMeta: metav1.ObjectMeta{Name: "rack"},
			Spec:       v1alpha1.SubnetSpec{CIDR: "10.0.0.0/24", Gateway: "10.0.0.1", DNS: []string{"10.0.0.2"}, NTP: []string{"10.0.0.3"}, Domain: "lab"},
		}},
	}
}

func notFound(kind, name string) error {
	return apierrors.NewNotFound(schema.GroupResource{Group: v1alpha1.Group, Resource: kind}, name)
}

func (s *memory) put(m *v1alpha1.Machine) *v1alpha1.Machine {
	s.version++
	m = m.DeepCopy()
	m.ResourceVersion = strconv.Itoa(s.version)
	if m.UID == "" {
		m.UID = types.UID("uid-" + m.ResourceVersion)
	}
	s.machines[m.Name] = m
	return m.DeepCopy()
}

func (s *memory) Get(_ context.Context, name string) (*v1alpha1.Machine, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m, ok := s.machines[name]; ok {
		return m.DeepCopy(), nil
	}
	return nil, notFound("machines", name)
}

func (s *memory) Create(_ context.Context, m *v1alpha1.Machine) (*v1alpha1.Machine, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return nil, s.broken
	}
	if _, ok := s.machines[m.Name]; ok {
		return nil, apierrors.NewAlreadyExists(schema.GroupResource{Resource: "machines"}, m.Name)
	}
	return s.put(m), nil
}

func (s *memory) UpdateStatus(_ context.Context, name string, change func(*v1alpha1.Machine) error) (*v1alpha1.Machine, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, ok := s.machines[name]
	if !ok {
		return nil, notFound("machines", name)
	}
	m = m.DeepCopy()
	if err := change(m); err != nil {
		return nil, err
	}
	if s.broken != nil {
		return nil, s.broken
	}
	return s.put(m), nil
}

func (s *memory) Profile(_ context.Context, name string) (*v1alpha1.Profile, error) {
	if p, ok := s.profiles[name]; ok {
		return p, nil
	}
	return nil, notFound("profiles", name)
}

func (s *memory) Image(_ context.Context, name string) (*v1alpha1.Image, error) {
	if i, ok := s.images[name]; ok {
		return i, nil
	}
	return nil, notFound("images", name)
}

func (s *memory) Subnets(context.Context) ([]v1alpha1.Subnet, error) { return s.subnets, nil }

func (s *memory) ImageFiles(*v1alpha1.Image) (wire.Content, wire.BootFiles, error) {
	return wire.Content{Digest: "sha256:1", Size: 100}, wire.BootFiles{GRUB: wire.Content{Digest: "sha256:3", Size: 4}}, nil
}

func (s *memory) ImageFacts(*v1alpha1.Image) *nodeconfig.ImageFacts { return s.facts }

// server is one life of the server over a memory.
type server struct {
	t     testing.TB
	store *memory
	ca    *pki.Authority
	fleet *fleet.Fleet
	api   *API
	http  *httptest.Server
	clock *clock
}

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func newServer(t testing.TB) *server {
	t.Helper()
	dir := t.TempDir()
	master, err := pki.OpenMasterKey(dir)
	check(t, err)
	ca, err := pki.OpenAuthority(dir, "machine", master)
	check(t, err)
	s := &server{t: t, store: newMemory(), ca: ca, clock: &clock{now: time.Now()}}
	s.start()
	return s
}

// start begins a new life: all memory of the one before is gone, the store and the CA are not.
func (s *server) start() {
	s.t.Helper()
	if s.http != nil {
		s.http.CloseClientConnections()
		s.http.Close()
	}
	s.fleet = fleet.New(fleet.Options{Now: s.clock.Now})
	for _, m := range s.store.machines {
		s.fleet.Put(m.DeepCopy())
	}
	s.fleet.MarkSynced()
	s.api = New(Options{
		Fleet: s.fleet, Store: s.store, Plans: s.store, Content: s.store, Signer: s.ca, Now: s.clock.Now,
		Nonces: NewNonces(s.clock.Now), Log: slog.New(slog.DiscardHandler),
	})
	pair, err := s.ca.NewServerKeyPair("coldrack", nil, []net.IP{net.IPv4(127, 0, 0, 1)}, time.Hour)
	check(s.t, err)
	s.http = httptest.NewUnstartedServer(s.api)
	s.http.Config = s.api.Server(nil)
	s.http.TLS = TLSConfig(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &pair, nil }, s.ca.Pool())
	// httptest brings a certificate of its own where there is none.
	s.http.TLS.Certificates = []tls.Certificate{pair}
	s.http.EnableHTTP2 = true
	s.http.StartTLS()
	s.t.Cleanup(s.http.Close)
}

// boot issues what the boot script would carry.
func (s *server) boot(macs ...string) string {
	ids := v1alpha1.Identifiers{MACs: macs}
	m, _, _ := s.fleet.Lookup(ids)
	b := Binding{Identifiers: ids, Action: v1alpha1.BootDiscover}
	if m != nil {
		b.Machine = m.Name
	}
	return s.api.Nonces.Issue(b)
}

// spec changes what a person wants of a machine.
func (s *server) spec(name string, change func(*v1alpha1.MachineSpec)) {
	s.t.Helper()
	s.store.mu.Lock()
	m := s.store.machines[name].DeepCopy()
	change(&m.Spec)
	if i := m.WantedIntent(); i != nil && i.Action != v1alpha1.ActionInstall {
		m.AcknowledgeIntent() // as the reconciler of intents does, where no cluster rests on the machine
	}
	m = s.store.put(m)
	s.store.mu.Unlock()
	s.fleet.Put(m)
}

// approve makes an install due.
func (s *server) approve(name, intentID string, action v1alpha1.IntentAction) {
	s.t.Helper()
	s.spec(name, func(spec *v1alpha1.MachineSpec) {
		spec.Approved, spec.Profile = true, "default"
		if spec.Network == nil {
			spec.Network = &v1alpha1.MachineNetwork{Subnet: "rack", Address: "10.0.0." + strconv.Itoa(len(s.store.machines)+10)}
		}
		spec.Intent = &v1alpha1.Intent{ID: intentID, Action: action}
	})
}

func (s *server) status(name string) v1alpha1.MachineStatus {
	s.t.Helper()
	m, err := s.store.Get(s.t.Context(), name)
	check(s.t, err)
	return m.Status
}

// agent is what coldrack-agent does, without a disk.
type agent struct {
	s    *server
	key  *ecdsa.PrivateKey
	cert string
	name string
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	return key
}

func csr(t testing.TB, key *ecdsa.PrivateKey) string {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	check(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func (s *server) agent() *agent { return &agent{s: s, key: newKey(s.t)} }

// apiError is a refusal as the agent sees it.
type apiError struct {
	status int
	wire.Error
}

func (e apiError) String() string { return strconv.Itoa(e.status) + " " + e.Code + ": " + e.Message }

type failure struct{ apiError }

func (f failure) Error() string { return f.String() }

func send[T any](a *agent, method, path string, in any) (T, error) {
	var out T
	config := &tls.Config{RootCAs: a.s.ca.Pool()}
	if a.cert != "" {
		block, _ := pem.Decode([]byte(a.cert))
		config.Certificates = []tls.Certificate{{Certificate: [][]byte{block.Bytes}, PrivateKey: a.key}}
	}
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	var text []byte
	switch in := in.(type) {
	case nil:
	case []byte:
		text = in
	default:
		text, _ = json.Marshal(in)
	}
	request, err := http.NewRequest(method, a.s.http.URL+path, bytes.NewReader(text))
	if err != nil {
		return out, err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return out, err
	}
	defer response.Body.Close()
	text, err = io.ReadAll(response.Body)
	if err != nil {
		return out, err
	}
	if response.StatusCode >= 400 {
		no := failure{apiError{status: response.StatusCode}}
		if err := json.Unmarshal(text, &no.apiError.Error); err != nil {
			return out, errors.New(response.Status + ": " + string(text))
		}
		return out, no
	}
	return out, json.Unmarshal(text, &out)
}

// code of a refusal, "" for none, "?" for an error that is no refusal.
func code(err error) string {
	if err == nil {
		return ""
	}
	var no failure
	if errors.As(err, &no) {
		return no.Code
	}
	return "?" + err.Error()
}

func (a *agent) enroll(nonce string, ids wire.Identifiers) error {
	boot := ""
	if len(ids.MACs) > 0 {
		boot = ids.MACs[0]
	}
	answer, err := send[wire.EnrollResponse](a, "POST", wire.PathEnroll, wire.EnrollRequest{Nonce: nonce, Identifiers: ids, BootMAC: boot, CSR: csr(a.s.t, a.key), AgentVersion: "test"})
	if err == nil {
		a.cert, a.name = answer.Certificate, answer.Machine
	}
	return err
}

func (a *agent) assignment() (wire.Assignment, error) {
	return send[wire.Assignment](a, "GET", wire.PathAssignment, nil)
}

func (a *agent) progress(intent string, steps ...wire.Step) (wire.ProgressResponse, error) {
	return send[wire.ProgressResponse](a, "POST", wire.PathProgress, wire.Progress{IntentID: intent, Steps: steps})
}

// identity returns the node that the machine becomes.
func (a *agent) identity(intent string) (*agent, error) {
	node := &agent{s: a.s, key: newKey(a.s.t), name: a.name}
	answer, err := send[wire.IdentityResponse](a, "POST", wire.PathIdentity, wire.IdentityRequest{IntentID: intent, CSR: csr(a.s.t, node.key)})
	node.cert = answer.Certificate
	return node, err
}

func (a *agent) complete(intent string, state wire.State, message string) error {
	_, err := send[wire.Empty](a, "POST", wire.PathComplete, wire.Complete{IntentID: intent, State: state, Message: message, Disk: "virtio-1", ImageDigest: "sha256:2"})
	return err
}

func (a *agent) heartbeat() (wire.HeartbeatResponse, error) { return a.heartbeatOf("b") }

func (a *agent) heartbeatOf(boot string) (wire.HeartbeatResponse, error) {
	return send[wire.HeartbeatResponse](a, "POST", wire.PathHeartbeat, wire.Heartbeat{BootID: boot, AgentVersion: "test"})
}

// discovered is a machine in discovery.
func (s *server) discovered(ids wire.Identifiers) *agent {
	s.t.Helper()
	a := s.agent()
	check(s.t, a.enroll(s.boot(ids.MACs[0]), ids))
	_, err := send[wire.Empty](a, "POST", wire.PathInventory, inventoryWith(ids))
	check(s.t, err)
	return a
}

func inventoryWith(ids wire.Identifiers) wire.Inventory {
	inv := wire.Inventory{Identifiers: ids, System: wire.System{UUID: ids.UUID, Serial: ids.Serial, Product: "VM"}, Firmware: "BIOS",
		Disks: []wire.Disk{{Name: "vda", ByID: []string{"virtio-1"}, SizeBytes: 10 << 30}}}
	for i, mac := range ids.MACs {
		nic := wire.NIC{Name: "eth" + strconv.Itoa(i), MAC: mac, Boot: i == 0}
		if slices.Contains(ids.USBMACs, mac) {
			nic.Bus = "usb"
		}
		inv.NICs = append(inv.NICs, nic)
	}
	return inv
}

// installed goes the whole way; it returns the session and the node.
func (s *server) installed(ids wire.Identifiers, intent string) (session, node *agent) {
	s.t.Helper()
	session = s.discovered(ids)
	s.approve(session.name, intent, v1alpha1.ActionInstall)
	node = s.install(session, intent)
	return session, node
}

func (s *server) install(session *agent, intent string) *agent {
	s.t.Helper()
	assignment, err := session.assignment()
	check(s.t, err)
	if assignment.Action != wire.ActionInstall || assignment.Plan.IntentID != intent {
		s.t.Fatalf("assignment: %+v, want an install for intent %s", assignment, intent)
	}
	_, err = session.progress(intent, wire.Step{Name: wire.StepPreflight, State: wire.StateRunning})
	check(s.t, err)
	node, err := session.identity(intent)
	check(s.t, err)
	check(s.t, session.complete(intent, wire.StateSucceeded, ""))
	return node
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

type fleetLine = fleet.LogLine

func newEmptyFleet() *fleet.Fleet { return fleet.New(fleet.Options{}) }

func fingerprintOf(t *testing.T, a *agent) string {
	t.Helper()
	fingerprint, err := pki.Fingerprint(a.key.Public())
	check(t, err)
	return fingerprint
}

func decode[T any](body []byte) (T, error) {
	var out T
	err := json.Unmarshal(body, &out)
	return out, err
}
