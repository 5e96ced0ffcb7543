package bringup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"coldrack.dev/internal/agent/client"
	"coldrack.dev/internal/agent/nodefile"
	"coldrack.dev/internal/agent/systemd"
	"coldrack.dev/internal/content/fetch"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/test/ca"
)

// fakeServer is the machine API with one assignment, over TLS and with the wire's real types, and the boot
// listener's content.
type fakeServer struct {
	t       testing.TB
	ca      *ca.CA // of the machine API
	api     *httptest.Server
	boot    *httptest.Server
	blobs   map[string][]byte
	mu      sync.Mutex
	cas     map[string]*ca.CA // of the cluster, by PEM
	assign  wire.NodeAssignment
	reports []wire.PhaseReport
	signed  []string
	fetched map[string]int
	// refuse answers certificate requests by name with this status.
	refuse map[string]int
	life   time.Duration
	now    func() time.Time // by which it signs
	away   bool
}

func newFakeServer(t testing.TB) *fakeServer {
	t.Helper()
	s := &fakeServer{t: t, ca: ca.New(t, "machines"), blobs: map[string][]byte{}, cas: map[string]*ca.CA{}, fetched: map[string]int{},
		refuse: map[string]int{}, life: 12 * time.Hour, now: time.Now}
	s.boot = httptest.NewServer(http.HandlerFunc(s.serveContent))
	t.Cleanup(s.boot.Close)
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+wire.PathNode, s.node)
	mux.HandleFunc("POST "+wire.PathCertificate, s.certificate)
	mux.HandleFunc("POST "+wire.PathPhases, s.phases)
	pair := s.ca.Issue(ca.Server("127.0.0.1"))
	pair.Certificate = append(pair.Certificate, s.ca.Cert.Raw)
	s.api = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		away := s.away
		s.mu.Unlock()
		if away {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		mux.ServeHTTP(w, r)
	}))
	s.api.TLS = &tls.Config{Certificates: []tls.Certificate{*pair}}
	s.api.EnableHTTP2 = true
	s.api.StartTLS()
	t.Cleanup(s.api.Close)
	return s
}

func (s *fakeServer) answer(w http.ResponseWriter, v any) {
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.t.Log(err)
	}
}

func (s *fakeServer) node(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer(w, s.assign)
}

func (s *fakeServer) certificate(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var in wire.CertificateRequest
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	if status := s.refuse[in.Name]; status != 0 {
		w.WriteHeader(status)
		s.answer(w, wire.Error{Code: wire.CodeForbidden, Message: "it may not have " + in.Name})
		return
	}
	want := find(s.assign.Plan.Certificates, func(c wire.NodeCertificate) bool { return c.Name == in.Name })
	block, _ := pem.Decode([]byte(in.CSR))
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || csr.CheckSignature() != nil || want.Name == "" || in.Cluster != s.assign.Plan.Cluster {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	template := &x509.Certificate{Subject: pkix.Name{CommonName: want.CommonName, Organization: want.Organizations}, DNSNames: want.DNSNames,
		NotBefore: s.now().Add(-5 * time.Minute), NotAfter: s.now().Add(s.life), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	for _, ip := range want.IPAddresses {
		template.IPAddresses = append(template.IPAddresses, net.ParseIP(ip))
	}
	leaf, err := s.cas[want.Authority].Sign(template, csr.PublicKey)
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	s.signed = append(s.signed, in.Name)
	s.answer(w, wire.CertificateResponse{Certificate: string(ca.EncodeCert(leaf)), ExpiresAt: template.NotAfter})
}

func (s *fakeServer) phases(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var in wire.PhaseReport
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	s.reports = append(s.reports, in)
	s.answer(w, wire.Empty{})
}

func (s *fakeServer) serveContent(w http.ResponseWriter, r *http.Request) {
	digest := "sha256:" + strings.TrimPrefix(r.URL.Path, "/content/sha256/")
	s.mu.Lock()
	blob, ok := s.blobs[digest]
	s.fetched[digest]++
	s.mu.Unlock()
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(blob))
}

// program puts a program into the content store.
func (s *fakeServer) program(name, path string, body []byte) wire.Program {
	s.t.Helper()
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		s.t.Fatal(err)
	}
	packed := enc.EncodeAll(body, nil)
	c := wire.Content{Digest: sha(packed), Size: int64(len(packed))}
	s.mu.Lock()
	s.blobs[c.Digest] = packed
	s.mu.Unlock()
	return wire.Program{Name: name, Path: path, Content: c, Digest: sha(body), Size: int64(len(body)), Version: "v1.37.2", Phase: "content"}
}

func sha(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// authority makes one of the cluster's authorities.
func (s *fakeServer) authority(name string) string {
	a := ca.New(s.t, name)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cas[string(a.PEM())] = a
	return string(a.PEM())
}

// give makes plan what the server assigns, and returns that assignment.
func (s *fakeServer) give(version string, plan *wire.NodePlan) wire.NodeAssignment {
	return s.order(wire.NodeAssignment{Version: version, Plan: plan})
}

// order is give with more than a plan.
func (s *fakeServer) order(a wire.NodeAssignment) wire.NodeAssignment {
	s.mu.Lock()
	defer s.mu.Unlock()
	a.Plan.ContentURL = s.boot.URL
	s.assign = a
	return copyOf(a)
}

// copyOf goes through JSON, as everything does that an agent gets.
func copyOf(a wire.NodeAssignment) wire.NodeAssignment {
	b, err := json.Marshal(a)
	if err != nil {
		panic(err)
	}
	var c wire.NodeAssignment
	if err := json.Unmarshal(b, &c); err != nil {
		panic(err)
	}
	return c
}

func (s *fakeServer) last() wire.PhaseReport {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.reports) == 0 {
		return wire.PhaseReport{}
	}
	return s.reports[len(s.reports)-1]
}

func (s *fakeServer) client() *client.Client {
	s.t.Helper()
	c, err := client.New(client.Options{Server: s.api.URL, Pin: client.PinOf(s.ca.Cert), Agent: "test"})
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// twin behaves as systemd does towards an agent, with its state in a folder of the same root, so that it survives
// the agent's death. What a unit reads when it starts is noted.
type twin struct {
	root string
	// reads are files of a unit besides its own.
	reads map[string][]string
	// packaged are units that come with the image.
	packaged []string
	// broken units do not start.
	broken map[string]error
	mu     sync.Mutex
	did    []string
}

const twinDir = "/run/twin"

type twinUnit struct {
	Active  string
	Enabled bool
	Starts  int
	// Loaded are the unit's files as systemd knows them, Read the digests of what the unit read when it started.
	Loaded, Read map[string]string
}

func (w *twin) load(unit string) twinUnit {
	var u twinUnit
	b, err := os.ReadFile(filepath.Join(w.root, twinDir, unit))
	if err == nil {
		_ = json.Unmarshal(b, &u)
	}
	return u
}

func (w *twin) store(unit string, u twinUnit) {
	b, err := json.Marshal(u)
	if err == nil {
		err = nodefile.Disk{Root: w.root}.Write(twinDir+"/"+unit, b, 0o600)
	}
	if err != nil {
		panic(err)
	}
}

func (w *twin) digests(paths []string) map[string]string {
	out := map[string]string{}
	for _, p := range paths {
		if b, err := os.ReadFile(filepath.Join(w.root, p)); err == nil {
			out[p] = sha(b)
		}
	}
	return out
}

// own are the files of a unit itself.
func (w *twin) own(unit string) []string {
	files := []string{systemd.UnitDir + "/" + unit}
	dropIns, _ := filepath.Glob(filepath.Join(w.root, systemd.UnitDir, unit+".d", "*.conf"))
	for _, f := range dropIns {
		files = append(files, strings.TrimPrefix(f, w.root))
	}
	return files
}

func (w *twin) Do(_ context.Context, verb string, units ...string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.did = append(w.did, strings.TrimSpace(verb+" "+strings.Join(units, " ")))
	if verb == "daemon-reload" {
		files, _ := filepath.Glob(filepath.Join(w.root, systemd.UnitDir, "*.service"))
		for _, f := range files {
			name := filepath.Base(f)
			u := w.load(name)
			u.Loaded = w.digests(w.own(name))
			w.store(name, u)
		}
		return nil
	}
	for _, unit := range units {
		u := w.load(unit)
		if err := w.broken[unit]; err != nil && (verb == "start" || verb == "restart" || verb == "reload-or-restart") {
			u.Active = "failed"
			w.store(unit, u)
			return err
		}
		switch verb {
		case "enable":
			u.Enabled = true
		case "disable":
			u.Enabled = false
		case "stop":
			u.Active = "inactive"
		case "reset-failed":
			u.Active = "inactive"
		case "start", "restart", "try-restart":
			u.Active = "active"
			u.Starts++
			u.Read = w.digests(append(w.own(unit), w.reads[unit]...))
			if err := w.apply(unit); err != nil {
				return err
			}
		case "reload-or-restart":
			u.Read = w.digests(append(w.own(unit), w.reads[unit]...))
		default:
			return fmt.Errorf("unknown verb %s", verb)
		}
		w.store(unit, u)
	}
	return nil
}

// apply does what the system's own units do.
func (w *twin) apply(unit string) error {
	each := func(glob string, f func(line string) error) error {
		files, _ := filepath.Glob(filepath.Join(w.root, glob))
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(b)) {
				if err := f(strings.TrimSpace(line)); err != nil {
					return err
				}
			}
		}
		return nil
	}
	switch unit {
	case "systemd-modules-load.service":
		return each("etc/modules-load.d/*.conf", func(line string) error {
			return os.MkdirAll(filepath.Join(w.root, "sys/module", strings.ReplaceAll(line, "-", "_")), 0o755)
		})
	case "systemd-sysctl.service":
		return each("etc/sysctl.d/*.conf", func(line string) error {
			key, value, _ := strings.Cut(line, " = ")
			file := filepath.Join(w.root, "proc/sys", strings.ReplaceAll(key, ".", "/"))
			return errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(value+"\n"), 0o644))
		})
	}
	return nil
}

func (w *twin) State(_ context.Context, unit string) (systemd.UnitState, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	u := w.load(unit)
	s := systemd.UnitState{Load: "not-found", Active: "inactive", Sub: "dead"}
	switch {
	case slices.Contains(w.packaged, unit), len(u.Loaded) > 0 && u.Loaded[systemd.UnitDir+"/"+unit] != "":
		s.Load = "loaded"
	}
	if u.Active != "" {
		s.Active = u.Active
	}
	s.File = "disabled"
	if u.Enabled {
		s.File = "enabled"
	}
	now := w.digests(w.own(unit))
	s.NeedReload = s.Load == "loaded" && fmt.Sprint(now) != fmt.Sprint(u.Loaded) && !slices.Contains(w.packaged, unit)
	return s, nil
}

func (w *twin) Log(context.Context, string, int) []string { return []string{"it says why"} }

func (w *twin) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	did := w.did
	w.did = nil
	return did
}

// recorder stands for router and balancer.
type recorder struct {
	mu       sync.Mutex
	routes   [][]wire.NodeRoute
	services [][]wire.ServiceRoute
	balancer []wire.LoadBalancer
	err      error
}

func (r *recorder) router() Router { return routerFunc(r.setRoutes) }
func (r *recorder) lb() Balancer   { return balancerFunc(r.setBalancer) }
func (r *recorder) fail(err error) { r.mu.Lock(); defer r.mu.Unlock(); r.err = err }
func (r *recorder) counts() (int, int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.routes), len(r.balancer)
}

func (r *recorder) lastServices() []wire.ServiceRoute {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.services[len(r.services)-1]
}

func (r *recorder) setRoutes(routes []wire.NodeRoute, services []wire.ServiceRoute) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.routes, r.services = append(r.routes, routes), append(r.services, services)
	return r.err
}

func (r *recorder) setBalancer(c wire.LoadBalancer) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.balancer = append(r.balancer, c)
	return nil
}

type routerFunc func([]wire.NodeRoute, []wire.ServiceRoute) error

func (f routerFunc) Set(r []wire.NodeRoute, s []wire.ServiceRoute) error { return f(r, s) }

type balancerFunc func(wire.LoadBalancer) error

func (f balancerFunc) Set(c wire.LoadBalancer) error { return f(c) }

func (balancerFunc) Health() (bool, []string) {
	return false, []string{"10.20.0.11:6443: connection refused"}
}

// rig is a node with its server.
type rig struct {
	t *testing.T
	*fakeServer
	root   string
	twin   *twin
	record *recorder
	probe  *httptest.Server
	well   func() bool // the probe answers 200
	log    *bytes.Buffer
	logMu  sync.Mutex
	offset atomic.Int64 // of the node's clock, a time.Duration
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, fakeServer: newFakeServer(t), root: t.TempDir(), record: &recorder{}, log: &bytes.Buffer{}, well: func() bool { return true }}
	r.twin = newTwin(r.root)
	r.probe = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !r.well() {
			w.WriteHeader(http.StatusInternalServerError)
			fmt.Fprint(w, "[+]ping ok\n[-]etcd failed: reason withheld\n")
		}
	}))
	t.Cleanup(r.probe.Close)
	return r
}

func newTwin(root string) *twin {
	return &twin{root: root, packaged: []string{"systemd-modules-load.service", "systemd-sysctl.service", "systemd-networkd.service", "keepalived.service"},
		broken: map[string]error{}, reads: map[string][]string{
			"containerd.service": {"/etc/containerd/config.toml", "/usr/local/bin/containerd"},
			"kubelet.service":    {"/usr/bin/kubelet", "/var/lib/kubelet/config.yaml", "/etc/kubernetes/kubelet.conf"},
			"masquerade.service": {"/etc/coldrack/kubernetes/masquerade.nft", "/etc/coldrack/kubernetes/nat.nft"},
			"keepalived.service": {"/etc/keepalived/keepalived.conf"},
		}}
}

func quickPace() Pace {
	return Pace{Probe: 5 * time.Millisecond, ProbeLimit: 5 * time.Second, Restart: time.Hour, Explain: 20 * time.Millisecond, Retry: 5 * time.Millisecond,
		MaxRetry: 20 * time.Millisecond, Again: time.Hour, Look: 5 * time.Millisecond, ReportDelay: time.Millisecond, ReportAgain: time.Hour}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (r *rig) Write(b []byte) (int, error) {
	r.logMu.Lock()
	defer r.logMu.Unlock()
	return r.log.Write(b)
}

func (r *rig) logged() string {
	r.logMu.Lock()
	defer r.logMu.Unlock()
	return r.log.String()
}

func (r *rig) executor(change ...func(*Options)) *Executor {
	r.t.Helper()
	o := Options{Log: slog.New(slog.NewTextHandler(r, nil)), Root: r.root, Server: r.client(), Systemd: r.twin, Router: r.record.router(),
		Balancer: r.record.lb(), Content: newSource, Pace: quickPace(), Sleep: wait, Now: func() time.Time { return time.Now().Add(time.Duration(r.offset.Load())) }}
	for _, f := range change {
		f(&o)
	}
	e, err := New(o)
	if err != nil {
		r.t.Fatal(err)
	}
	return e
}

func newSource(base string, tell func(string, error, time.Duration)) Fetcher {
	return fetch.New(base, "test", tell)
}

// start runs an executor until the test or stop ends it. What earlier ones reported is forgotten, so that until and done
// wait for this one.
func (r *rig) start(e *Executor) (stop func()) {
	r.mu.Lock()
	r.reports = nil
	r.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-ended; err != nil {
				r.t.Error(err)
			}
		})
	}
	r.t.Cleanup(stop)
	return stop
}

func (r *rig) until(what string, is func(wire.PhaseReport) bool) wire.PhaseReport {
	r.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if last := r.last(); is(last) {
			return last
		}
	}
	b, _ := json.MarshalIndent(r.last(), "", " ")
	r.t.Fatalf("it is not so that %s; the last report is %s\nlog:\n%s", what, b, r.logged())
	return wire.PhaseReport{}
}

func (r *rig) done(version string) wire.PhaseReport {
	r.t.Helper()
	return r.until("version "+version+" is done", func(p wire.PhaseReport) bool { return p.Done && p.Version == version })
}

func step(p wire.PhaseReport, name string) wire.Step {
	return find(p.Phases, func(s wire.Step) bool { return s.Name == name })
}

// bringUp carries out an assignment with an executor of its own.
func (r *rig) bringUp(a wire.NodeAssignment) {
	r.t.Helper()
	e := r.executor()
	stop := r.start(e)
	e.Assign(a)
	r.done(a.Version)
	stop()
}

func (r *rig) read(p string) string {
	r.t.Helper()
	b, err := os.ReadFile(filepath.Join(r.root, p))
	if err != nil {
		r.t.Fatal(err)
	}
	return string(b)
}

func (r *rig) has(p string) bool {
	_, err := os.Lstat(filepath.Join(r.root, p))
	return err == nil
}

// tree is what is below root, without what differs from one time to the other: keys and all that comes of them.
func tree(t *testing.T, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) (failure error) {
		// An executor that still runs may replace or remove what was listed a moment ago.
		defer func() {
			if errors.Is(failure, fs.ErrNotExist) {
				failure = nil
			}
		}()
		if err != nil {
			return err
		}
		p := strings.TrimPrefix(file, root)
		info, err := d.Info()
		if err != nil {
			return err
		}
		text := info.Mode().String()
		if strings.HasPrefix(p, twinDir) || p == digestsFile || p == ledgerFile || p == podsFile {
			return nil
		}
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(file)
			if err != nil {
				return err
			}
			text += " -> " + target
		case info.Mode().IsRegular() && !strings.HasSuffix(p, ".crt") && !strings.HasSuffix(p, ".key") && !strings.HasSuffix(p, ".pem") && !strings.HasSuffix(p, ".conf"):
			b, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			if !strings.Contains(string(b), annotationCertificates) {
				text += " " + sha(b)
			}
		}
		out[p] = text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
