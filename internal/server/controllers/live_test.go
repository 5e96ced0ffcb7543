package controllers

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/pki"
	"coldrack.dev/internal/cluster/members"
	"coldrack.dev/internal/cluster/rebootlock"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/internal/machine/drift"
	"coldrack.dev/internal/machine/fleet"
	"coldrack.dev/internal/machine/identify"
	"coldrack.dev/internal/machine/units"
	"coldrack.dev/internal/server/controlplane"
)

// liveWorld is a real API with the parts of this package running against it.
type liveWorld struct {
	t       *testing.T
	plane   *controlplane.ControlPlane
	client  client.Client
	store   *Store
	catalog *fakeCatalog
	plans   *planSink
	menus   *menuSink

	fleet    *fleet.Fleet // of the present life
	clusters *members.Set
	deps     Deps
	stop     func()

	// dial reaches the nodes of a test that has some.
	dial atomic.Pointer[func(ctx context.Context, network, address string) (net.Conn, error)]
}

type planSink struct {
	mu      sync.Mutex
	names   []string
	reports map[string]SubnetReport
	refused string // what it says of every subnet
	changed chan struct{}
}

func (p *planSink) SetSubnets(subnets []v1alpha1.Subnet) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.names, p.reports = nil, map[string]SubnetReport{}
	for _, s := range subnets {
		p.names = append(p.names, s.Name)
		p.reports[s.Name] = SubnetReport{Generation: s.Generation}
	}
	p.tell()
}

// tell requires mu.
func (p *planSink) tell() {
	for name, report := range p.reports {
		report.Served, report.Refused = p.refused == "", p.refused
		p.reports[name] = report
	}
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *planSink) refuse(why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refused = why
	p.tell()
}

func (p *planSink) Subnet(name string) (SubnetReport, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	report, known := p.reports[name]
	return report, known
}

func (p *planSink) Changed() <-chan struct{} { p.mu.Lock(); defer p.mu.Unlock(); return p.changed }

func (p *planSink) has(names ...string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Equal(p.names, names)
}

type fakeCatalog struct {
	mu      sync.Mutex
	images  []v1alpha1.Image
	bundles []v1alpha1.Bundle
	missing string
	// kubernetes versions that bundles have.
	kubernetes []string
	changed    chan struct{}
}

func (c *fakeCatalog) Images() []v1alpha1.Image {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.images)
}
func (c *fakeCatalog) Bundles() []v1alpha1.Bundle {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.bundles)
}
func (c *fakeCatalog) Missing(*v1alpha1.Image) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.missing
}
func (c *fakeCatalog) KubernetesVersions() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.kubernetes
}
func (c *fakeCatalog) MissingImages(*v1alpha1.Cluster, []string) []string { return nil }
func (c *fakeCatalog) Changed() <-chan struct{}                           { c.mu.Lock(); defer c.mu.Unlock(); return c.changed }

func (c *fakeCatalog) set(change func(*fakeCatalog)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(c)
	close(c.changed)
	c.changed = make(chan struct{})
}

func testLog() *slog.Logger {
	level := slog.LevelError + 1 // what is stopped in the middle of something complains
	if os.Getenv("COLDRACK_TEST_DEBUG") != "" {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

// TestLive runs everything that needs a real API against one, since a new one takes seconds.
func TestLive(t *testing.T) {
	plane := startPlane(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *liveWorld)
	}{
		{"a machine from its first boot to Ready, and back", fromFirstBootToReadyAndBack},
		{"machines that arrive together get different names and addresses", arriveTogether},
		{"a machine that is held says why", heldSaysWhy},
		{"a policy takes a machine by its accelerators, and what goes missing is told until a person accepts it", hardwareDrifts},
		{"a restored server installs nothing by itself until a person confirms", restoredWithholds},
		{"what was chosen in a boot menu is recorded and carried out, once", choiceAtTheConsole},
		{"DHCP hears of valid subnets, and what was imported becomes Images and Bundles", subnetsAndCatalog},
		{"machines of a reboot group go one after another, also over a restart", rebootsOfAGroup},
		{"a deleted machine is forgotten", deletedIsForgotten},
		{"strangers that fell silent give way to new ones", strangersGiveWay},
		{"a cluster gets its machines, is recorded, and then handed out, also after a restart", clusterIsRecorded},
		{"the keys of a cluster are made once", keysAreMadeOnce},
		{"a cluster that cannot be carried out says which field, and its nodes keep what they have", invalidClusterSaysWhy},
		{"a machine that comes back does not meet its former Node", comesBack},
		{"a deleted cluster waits for its machines, and its keys are kept", deletedClusterWaits},
		{"an add-on says what it waits for, and goes when its cluster is not there", addonWithoutCluster},
		{"a unit is placed, followed, and moved", unitsArePlaced},
		{"the store starts over when it was not the fastest", storeStartsOver},
		{"the store never takes an interruption for success", storeInterrupted},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, newLiveWorld(t, plane)) })
	}
}

func strangersGiveWay(t *testing.T, w *liveWorld) {
	now := time.Now()
	known := fleet.New(fleet.Options{MaxStrangers: 2, Now: func() time.Time { return now }})
	for i, name := range []string{"silent", "waiting", "approved"} {
		m := &v1alpha1.Machine{
			ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{v1alpha1.AnnotationDiscoveredBy: identify.DiscoveredByBoot}},
			Spec:       v1alpha1.MachineSpec{Identifiers: v1alpha1.Identifiers{MACs: []string{fmt.Sprintf("52:54:00:00:00:%02x", i)}}, Approved: name == "approved"},
		}
		check(t, w.client.Create(t.Context(), m))
		known.Put(m)
	}
	known.MarkSynced()
	deps := Deps{Client: w.client, Fleet: known, Log: testLog()}
	if places := makePlaces(t.Context(), deps, 1); places != 0 {
		t.Errorf("%d places although all were heard of a moment ago", places)
	}
	now = now.Add(silentFor + time.Minute)
	known.Contacted("waiting", "")
	// The controllers write the machines' status meanwhile, and a machine that has changed is not deleted.
	left := &v1alpha1.MachineList{}
	w.until(func() bool {
		places := makePlaces(t.Context(), deps, 1)
		check(t, w.client.List(t.Context(), left))
		for i := range left.Items {
			known.Put(&left.Items[i])
		}
		return places == 1
	}, func() string { return fmt.Sprintf("the silent one has not given way; left are %d", len(left.Items)) })
	var names []string
	for i := range left.Items {
		names = append(names, left.Items[i].Name)
	}
	if !slices.Equal(names, []string{"approved", "waiting"}) {
		t.Errorf("left are %v", names)
	}
}

func startPlane(t *testing.T) *controlplane.ControlPlane {
	t.Helper()
	dir := t.TempDir()
	master, err := pki.OpenMasterKey(dir)
	check(t, err)
	ca, err := pki.OpenAuthority(dir, "people", master)
	check(t, err)
	cert, key, err := ca.NewServerPEM("test", nil, []net.IP{net.IPv4(127, 0, 0, 1)}, time.Hour)
	check(t, err)
	plane, err := controlplane.Start(t.Context(), controlplane.Config{
		Logger: testLog(), DataDir: dir, Address: "127.0.0.1:0", ServingCert: cert, ServingKey: key, ClientCAs: ca.CertPEM(), Version: "v0.0.0-test",
		EncryptionKey: bytes.Repeat([]byte{7}, 32),
	})
	check(t, err)
	t.Cleanup(plane.Stop)
	return plane
}

// newLiveWorld empties the API and starts a life of the server.
func newLiveWorld(t *testing.T, plane *controlplane.ControlPlane) *liveWorld {
	t.Helper()
	var err error
	w := &liveWorld{t: t, plane: plane, catalog: &fakeCatalog{changed: make(chan struct{})}, plans: &planSink{changed: make(chan struct{})}, menus: &menuSink{arrived: make(chan struct{})}}
	w.client, err = client.New(w.config(), client.Options{Scheme: w.scheme()})
	check(t, err)
	leftovers := &v1alpha1.ClusterList{}
	check(t, w.client.List(t.Context(), leftovers))
	for i := range leftovers.Items {
		leftovers.Items[i].Finalizers = nil
		check(t, w.client.Update(t.Context(), &leftovers.Items[i]))
	}
	for _, kind := range []client.Object{&v1alpha1.Cluster{}, &v1alpha1.MachineGroup{}, &v1alpha1.Secret{}, &v1alpha1.Machine{}, &v1alpha1.Subnet{}, &v1alpha1.Profile{}, &v1alpha1.Image{}, &v1alpha1.Bundle{}, &v1alpha1.EnrollmentPolicy{}, &v1alpha1.Addon{}, &v1alpha1.Unit{}, &v1alpha1.RebootGroup{}} {
		check(t, w.client.DeleteAllOf(t.Context(), kind))
	}
	w.start()
	t.Cleanup(func() { w.stop() })
	return w
}

// config reaches the API without client-go's own limit of a few requests a second.
func (w *liveWorld) config() *rest.Config {
	config := w.plane.RESTConfig()
	config.QPS = -1
	return config
}

func (w *liveWorld) scheme() *runtime.Scheme {
	scheme := runtime.NewScheme()
	check(w.t, v1alpha1.AddToScheme(scheme))
	return scheme
}

// start begins a life of the server: a new cache, a new fleet, new reconcilers.
func (w *liveWorld) start() {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cached, err := cache.New(w.config(), cache.Options{Scheme: w.scheme(), DefaultTransform: cache.TransformStripManagedFields()})
	check(w.t, err)
	w.fleet = fleet.New(fleet.Options{Log: testLog()})
	w.store = NewStore(w.client, w.fleet)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return cached.Start(ctx) })
	synced, err := Feed(ctx, cached, w.fleet)
	check(w.t, err)
	w.clusters = members.New(members.Options{Programs: noPrograms{}, Log: testLog()})
	deps := Deps{Client: w.client, Cache: cached, Fleet: w.fleet, Log: testLog(), Catalog: w.catalog, Subnets: w.plans, Menus: w.menus, LostAfter: time.Hour,
		Clusters: w.clusters, Reboots: &rebootlock.Set{}, Units: units.NewDesk(), DialNode: func(ctx context.Context, network, address string) (net.Conn, error) {
			if dial := w.dial.Load(); dial != nil {
				return (*dial)(ctx, network, address)
			}
			return nil, errNoNode
		}}
	w.deps = deps
	group.Go(func() error { return synced(ctx) })
	group.Go(func() error { return Serve(ctx, deps) })
	group.Go(func() error { return Lead(ctx, deps) })
	w.stop = func() {
		cancel()
		if err := group.Wait(); err != nil {
			w.t.Errorf("stopped with %v", err)
		}
	}
	select {
	case <-w.fleet.Synced():
	case <-time.After(2 * time.Minute):
		w.t.Fatal("the fleet never read its machines")
	}
	check(w.t, FeedRebootGroups(ctx, deps))
}

func (w *liveWorld) restart() {
	w.stop()
	w.start()
}

// create writes an object as a person would.
func (w *liveWorld) create(object client.Object) {
	w.t.Helper()
	check(w.t, w.client.Create(w.t.Context(), object))
}

// edit changes a machine's spec as a person would.
func (w *liveWorld) edit(name string, change func(*v1alpha1.MachineSpec)) {
	w.t.Helper()
	m, err := w.store.Get(w.t.Context(), name)
	check(w.t, err)
	before := m.DeepCopy()
	change(&m.Spec)
	check(w.t, w.client.Patch(w.t.Context(), m, client.MergeFrom(before)))
}

// wait polls until a machine is as it should be.
func (w *liveWorld) wait(name, what string, until func(*v1alpha1.Machine) bool) *v1alpha1.Machine {
	w.t.Helper()
	var m *v1alpha1.Machine
	w.until(func() bool {
		var err error
		m, err = w.store.Get(w.t.Context(), name)
		return err == nil && until(m)
	}, func() string { return fmt.Sprintf("machine %s is not %s: %+v %+v", name, what, m.Spec, m.Status) })
	return m
}

func (w *liveWorld) until(done func() bool, otherwise func() string) {
	w.t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatal(otherwise())
		}
	}
}

func (w *liveWorld) phase(name string, want v1alpha1.MachinePhase) *v1alpha1.Machine {
	w.t.Helper()
	return w.wait(name, string(want), func(m *v1alpha1.Machine) bool { return m.Status.Phase == want })
}

// report is what the machine API writes when a machine has told what it consists of.
func (w *liveWorld) report(name, serial string, macs ...string) {
	w.t.Helper()
	m, err := w.store.UpdateStatus(w.t.Context(), name, func(m *v1alpha1.Machine) error {
		m.Status.Inventory = &v1alpha1.Inventory{ReportedAt: metav1.Now(), Firmware: "UEFI", Memory: resource.MustParse("2Gi"),
			System: v1alpha1.SystemInfo{Serial: serial, Vendor: "QEMU"}, CPU: v1alpha1.CPUInfo{Cores: 1}}
		for _, mac := range macs {
			m.Status.Inventory.NICs = append(m.Status.Inventory.NICs, v1alpha1.NIC{Name: "eth0", MAC: mac, Boot: true})
		}
		return nil
	})
	check(w.t, err)
	w.fleet.Put(m)
	w.fleet.Enrolled(name, "key", time.Now())
	w.fleet.Contacted(name, "10.0.0.150")
}

// act is what the machine API writes while a machine carries its intent out.
func (w *liveWorld) act(name string, change func(*v1alpha1.MachineStatus)) {
	w.t.Helper()
	m, err := w.store.UpdateStatus(w.t.Context(), name, func(m *v1alpha1.Machine) error { change(&m.Status); return nil })
	check(w.t, err)
	w.fleet.Put(m)
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mac(i int) string { return fmt.Sprintf("52:54:00:00:01:%02x", i) }

func boot(w *liveWorld, i int) string {
	return w.fleet.Booted(v1alpha1.Identifiers{MACs: []string{mac(i)}}, v1alpha1.BootRecord{Action: v1alpha1.BootDiscover, Reason: "new", MAC: mac(i), Address: "10.0.0.150"})
}

func fromFirstBootToReadyAndBack(t *testing.T, w *liveWorld) {
	subnet, profile, rule := rack(), &v1alpha1.Profile{ObjectMeta: metav1.ObjectMeta{Name: "default"}, Spec: v1alpha1.ProfileSpec{Image: "debian-12"}}, policy("all")
	w.create(&subnet)
	w.create(profile)

	name := boot(w, 1)
	m := w.phase(name, v1alpha1.PhaseDiscovering)
	if len(m.Status.Boots) != 1 || m.Status.Boots[0].Reason != "new" || m.Spec.Identifiers.MACs[0] != mac(1) {
		t.Fatalf("recorded as %+v, %+v", m.Spec, m.Status.Boots)
	}
	w.report(name, "SN-1", mac(1))
	w.phase(name, v1alpha1.PhaseWaiting)

	w.create(&rule)
	m = w.wait(name, "enrolled", func(m *v1alpha1.Machine) bool { return m.Spec.Intent != nil && m.Status.Intent != nil })
	if m.Spec.Hostname != "node-001" || m.Spec.Network.Address != "10.0.0.10" || m.Status.Intent.State != v1alpha1.IntentPending || m.Labels["rack"] != "r1" {
		t.Fatalf("enrolled as %+v, %+v", m.Spec, m.Status.Intent)
	}
	w.phase(name, v1alpha1.PhaseApproved)
	id := m.Spec.Intent.ID

	w.act(name, func(s *v1alpha1.MachineStatus) {
		s.Intent.State, s.Intent.Attempts, s.Intent.StartedAt = v1alpha1.IntentRunning, 1, new(metav1.Now())
	})
	w.fleet.Begun(name, id)
	w.fleet.Progressed(name, id, []wire.Step{{Name: "image", State: wire.StateRunning, BytesDone: 43, BytesTotal: 100}}, nil)
	m = w.wait(name, "installing with progress", func(m *v1alpha1.Machine) bool { return m.Status.CurrentStep == "image 43%" })
	if m.Status.Phase != v1alpha1.PhaseInstalling || m.Status.Steps[0].BytesDone != 43 {
		t.Errorf("installing: %+v", m.Status)
	}
	w.fleet.Progressed(name, id, []wire.Step{{Name: "image", State: wire.StateRunning, BytesDone: 99, BytesTotal: 100}}, nil)
	w.wait(name, "further on", func(m *v1alpha1.Machine) bool { return m.Status.CurrentStep == "image 99%" })

	w.act(name, func(s *v1alpha1.MachineStatus) {
		s.Identity = &v1alpha1.IdentityStatus{KeyFingerprint: "sha256:x", IssuedAt: metav1.Now(), ExpiresAt: metav1.Now()}
		s.Installed = &v1alpha1.InstalledStatus{IntentID: id, Image: "debian-12", Disk: "virtio-1", At: metav1.Now()}
		s.Intent.State, s.Intent.FinishedAt = v1alpha1.IntentSucceeded, new(metav1.Now())
	})
	w.phase(name, v1alpha1.PhaseRebooting)
	w.fleet.Beat(name, wire.Heartbeat{BootID: "b1", Kernel: "6.1", Addresses: []string{"10.0.0.10/24"}}, "10.0.0.10")
	m = w.phase(name, v1alpha1.PhaseReady)
	if m.Status.Node == nil || m.Status.Node.Kernel != "6.1" || m.Status.Address != "10.0.0.10" || !meta.IsStatusConditionTrue(m.Status.Conditions, v1alpha1.ConditionReady) {
		t.Errorf("ready: %+v", m.Status)
	}

	w.restart()
	w.fleet.Contacted(name, "10.0.0.10")
	if m := w.phase(name, v1alpha1.PhaseReady); m.Spec.Intent.ID != id || m.Status.Intent.State != v1alpha1.IntentSucceeded || len(m.Status.Boots) != 1 {
		t.Errorf("after a restart: %+v, %+v", m.Spec.Intent, m.Status)
	}

	w.edit(name, func(s *v1alpha1.MachineSpec) { s.Intent = &v1alpha1.Intent{ID: "bye", Action: v1alpha1.ActionRelease} })
	w.phase(name, v1alpha1.PhaseReleasing)
	w.wait(name, "about to be released", func(m *v1alpha1.Machine) bool { return slices.Equal(m.AcknowledgedIntents(), []string{id, "bye"}) })
	w.act(name, func(s *v1alpha1.MachineStatus) {
		s.Intent.State, s.Intent.FinishedAt = v1alpha1.IntentSucceeded, new(metav1.Now())
		s.Identity, s.Installed, s.Node = nil, nil, nil
	})
	if m := w.phase(name, v1alpha1.PhaseReleased); m.Spec.Approved || m.Spec.Intent != nil {
		t.Errorf("released, and still approved: %+v", m.Spec)
	}
	w.restart()
	w.report(name, "SN-1", mac(1))
	if m := w.phase(name, v1alpha1.PhaseReleased); m.Spec.Approved || m.Spec.Intent != nil {
		t.Errorf("a policy took a released machine again: %+v", m.Spec)
	}
	w.edit(name, func(s *v1alpha1.MachineSpec) { s.Approved = true })
	m = w.wait(name, "due again", func(m *v1alpha1.Machine) bool { return m.Spec.Intent != nil })
	if m.Spec.Intent.Action != v1alpha1.ActionInstall || m.Spec.Intent.RequestedBy != "approval" {
		t.Errorf("approved again: %+v", m.Spec.Intent)
	}
}

func arriveTogether(t *testing.T, w *liveWorld) {
	const n = 25
	subnet := rack(func(s *v1alpha1.SubnetSpec) { s.Static = "10.0.0.10-10.0.0.60" })
	rule := policy("all", func(s *v1alpha1.EnrollmentPolicySpec) { s.Limit = n })
	w.create(&subnet)
	w.create(&rule)
	var wg sync.WaitGroup
	for i := range n + 3 {
		wg.Go(func() {
			name := boot(w, i)
			w.until(func() bool { _, ok := w.fleet.Get(name); return ok }, func() string { return name + " was not recorded" })
			w.report(name, fmt.Sprintf("SN-%d", i), mac(i))
		})
	}
	wg.Wait()
	got := &v1alpha1.EnrollmentPolicy{}
	w.until(func() bool {
		check(t, w.client.Get(t.Context(), client.ObjectKey{Name: "all"}, got))
		s := got.Status
		return s.Enrolled == n && meta.IsStatusConditionTrue(s.Conditions, v1alpha1.ConditionExhausted) &&
			s.Matched == n+3 && s.Missed == 3 && len(s.NearMisses) == 3 && meta.IsStatusConditionTrue(s.Conditions, v1alpha1.ConditionNearMisses)
	}, func() string { return fmt.Sprintf("policy: %+v", got.Status) })
	list := &v1alpha1.MachineList{}
	check(t, w.client.List(t.Context(), list))
	names, addresses := map[string]bool{}, map[string]bool{}
	for _, m := range list.Items {
		if m.Spec.Approved {
			names[m.Spec.Hostname], addresses[m.Spec.Network.Address] = true, true
		}
	}
	if len(names) != n || len(addresses) != n || len(list.Items) != n+3 {
		t.Errorf("%d names and %d addresses for %d of %d machines", len(names), len(addresses), n, len(list.Items))
	}
}

func heldSaysWhy(t *testing.T, w *liveWorld) {
	rule := policy("all")
	w.create(&rule)
	name := boot(w, 1)
	w.until(func() bool { _, ok := w.fleet.Get(name); return ok }, func() string { return "not recorded" })
	w.report(name, "SN-1", mac(1))
	w.wait(name, "held", func(m *v1alpha1.Machine) bool {
		return strings.Contains(m.Status.Message, "subnet rack does not exist")
	})
	subnet := rack()
	w.create(&subnet)
	w.wait(name, "enrolled once the subnet is there", func(m *v1alpha1.Machine) bool { return m.Spec.Intent != nil })
}

func restoredWithholds(t *testing.T, w *liveWorld) {
	rule, subnet := policy("all"), rack()
	w.create(&subnet)
	w.fleet.SetRestored(time.Now())
	w.create(&rule)
	var names []string
	for i := range 3 {
		name := boot(w, i)
		w.until(func() bool { _, ok := w.fleet.Get(name); return ok }, func() string { return name + " was not recorded" })
		names = append(names, name)
	}
	blank, marked, byHand := names[0], names[1], names[2]
	const marker = "2b1f7a6e-0000-5000-8000-0000000000c1"
	for i, name := range names {
		w.report(name, fmt.Sprintf("SN-%d", i), mac(i))
	}
	w.act(marked, func(s *v1alpha1.MachineStatus) { s.Inventory.Disks = []v1alpha1.Disk{{Name: "sda", Marker: marker}} })
	w.wait(blank, "held", func(m *v1alpha1.Machine) bool {
		return strings.Contains(m.Status.Message, "coldrack server restored --confirm")
	})
	unknown := func(m *v1alpha1.Machine) bool {
		return meta.IsStatusConditionTrue(m.Status.Conditions, v1alpha1.ConditionUnknownInstallation)
	}
	w.wait(marked, "told of as one with an installation", unknown)
	w.edit(byHand, func(spec *v1alpha1.MachineSpec) { spec.Approved = true })
	w.wait(byHand, "held though approved", func(m *v1alpha1.Machine) bool { return strings.Contains(m.Status.Message, "coldrack install "+byHand) })

	w.fleet.SetRestored(time.Time{})
	for _, name := range []string{blank, byHand} {
		w.wait(name, "enrolled after the confirmation", func(m *v1alpha1.Machine) bool { return m.Spec.Approved && m.Spec.Intent != nil })
	}
	if m := w.wait(marked, "still told of", unknown); m.Spec.Approved || m.Spec.Intent != nil {
		t.Errorf("a policy took a machine with an installation that nobody knows: %+v", m.Spec)
	}
	asked := &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: marked}}
	check(t, w.client.Patch(t.Context(), asked, client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`, v1alpha1.AnnotationAdopt, marker))))
	w.wait(marked, "adopted", func(m *v1alpha1.Machine) bool {
		return m.Status.Installed != nil && m.Status.Installed.Marker == marker && !unknown(m) && m.Spec.Intent == nil
	})
}

// hardwareDrifts has the definition of Machine keep all of what the machine API writes, too.
func hardwareDrifts(t *testing.T, w *liveWorld) {
	rule, subnet := policy("gpus"), rack()
	rule.Spec.Match.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{v1alpha1.LabelAccelerator + "nvidia-a100": "8"}}
	w.create(&subnet)
	w.create(&rule)
	without, with := boot(w, 0), boot(w, 1)
	for _, name := range []string{without, with} {
		w.until(func() bool { _, ok := w.fleet.Get(name); return ok }, func() string { return name + " was not recorded" })
	}
	hardware := func(gpus int32) *v1alpha1.Hardware {
		return &v1alpha1.Hardware{
			ReportedAt: metav1.NewTime(time.Now().Truncate(time.Second)),
			Firmware:   v1alpha1.FirmwareVersions{BIOSVersion: "1.12.1", BIOSDate: "09/14/2023", BMC: "7.10", Microcode: "0xd0003e7"},
			Devices: []v1alpha1.PCIDevice{{ID: "10de:20b5", Subsystem: "10de:1533", Name: "NVIDIA GA100 [A100]", Class: "030200", ClassName: "3D controller", Kind: v1alpha1.AcceleratorGPU,
				Count: gpus, Addresses: []string{"0000:17:00.0"}, NUMANode: new(int32(0)), Link: &v1alpha1.PCILink{Width: 16, MaxWidth: 16, MaxSpeedMTs: 16000}},
				{ID: "8086:1563", Class: "020000", Count: 1}},
			MemoryModules:    []v1alpha1.MemoryModule{{Slot: "A1", Size: resource.MustParse("16Gi"), Type: "DDR4", ECC: true, SpeedMTs: 2933, MaxSpeedMTs: 3200, Manufacturer: "Samsung", PartNumber: "M393", Serial: "19D2"}},
			EmptyMemorySlots: []string{"A2"},
			Disks: []v1alpha1.DiskState{{Name: "nvme0n1", Model: "P5500", Serial: "S1", WWN: "eui.1", Size: resource.MustParse("1Ti"), Firmware: "1.2", State: "dead",
				Health: &v1alpha1.DiskHealth{Warnings: []string{"spare"}, UsedPercent: 101, SparePercent: 4, SpareThresholdPercent: 10, TemperatureCelsius: 38, PowerOnHours: 1, UnsafeShutdowns: 2, MediaErrors: 3, WrittenBytes: 1 << 62}}},
		}
	}
	w.act(with, func(s *v1alpha1.MachineStatus) { s.Hardware = hardware(8) })
	for i, name := range []string{without, with} {
		w.report(name, fmt.Sprintf("SN-%d", i), mac(i))
	}
	drifted := func(m *v1alpha1.Machine) bool {
		return meta.IsStatusConditionTrue(m.Status.Conditions, v1alpha1.ConditionHardwareDrift)
	}
	m := w.wait(with, "approved, and its hardware accepted", func(m *v1alpha1.Machine) bool { return m.Spec.Approved && m.Status.AcceptedHardware != nil })
	want := hardware(8)
	want.ReportedAt = m.Status.Hardware.ReportedAt
	if !equality.Semantic.DeepEqual(m.Status.Hardware, want) || drifted(m) || !meta.IsStatusConditionTrue(m.Status.Conditions, v1alpha1.ConditionDiskFailing) {
		t.Errorf("kept: %+v, conditions %+v", m.Status.Hardware, m.Status.Conditions)
	}
	w.wait(without, "left to a person", func(m *v1alpha1.Machine) bool { return !m.Spec.Approved && m.Status.Phase == v1alpha1.PhaseWaiting })

	w.act(with, func(s *v1alpha1.MachineStatus) { s.Hardware = hardware(7) })
	m = w.wait(with, "told of", drifted)
	if c := meta.FindStatusCondition(m.Status.Conditions, v1alpha1.ConditionHardwareDrift); c.Reason != "Missing" || !strings.HasPrefix(c.Message, "missing: 1 of 8 NVIDIA GA100 [A100] (10de:20b5). ") {
		t.Errorf("%+v", c)
	}
	if m.AcceleratorLabels()[v1alpha1.LabelAccelerator+"nvidia-a100"] != "8" {
		t.Errorf("a GPU that fails takes the machine out of its group: %v", m.AcceleratorLabels())
	}
	asked := &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: with}}
	check(t, w.client.Patch(t.Context(), asked, client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`, v1alpha1.AnnotationAcceptHardware, drift.Digest(drift.Parts(m.Status.Hardware))))))
	w.wait(with, "accepted as it is", func(m *v1alpha1.Machine) bool {
		return !drifted(m) && m.Status.AcceptedHardware.Digest != "" && m.AcceleratorLabels()[v1alpha1.LabelAccelerator+"nvidia-a100"] == "7"
	})
}

func subnetsAndCatalog(t *testing.T, w *liveWorld) {
	subnet := rack()
	w.create(&subnet)
	w.until(func() bool { return w.plans.has("rack") }, func() string { return "DHCP was not told of the subnet" })
	ready := func(status metav1.ConditionStatus, reason, message string) {
		t.Helper()
		w.until(func() bool {
			check(t, w.client.Get(t.Context(), client.ObjectKey{Name: "rack"}, &subnet))
			c := meta.FindStatusCondition(subnet.Status.Conditions, v1alpha1.ConditionReady)
			return c != nil && c.Status == status && c.Reason == reason && c.Message == message && c.ObservedGeneration == subnet.Generation
		}, func() string { return fmt.Sprintf("subnet: %+v", subnet.Status) })
	}
	ready(metav1.ConditionTrue, "Served", "")
	w.plans.refuse("the pool holds this server's own address")
	ready(metav1.ConditionFalse, "NotServed", "the pool holds this server's own address")
	w.plans.refuse("")
	ready(metav1.ConditionTrue, "Served", "")
	check(t, w.client.Delete(t.Context(), &subnet))
	w.until(func() bool { return w.plans.has() }, func() string { return "DHCP still has a subnet that was deleted" })

	digest := func(c string) string { return "sha256:" + strings.Repeat(c, 64) }
	image := v1alpha1.Image{ObjectMeta: metav1.ObjectMeta{Name: "debian-12"}, Spec: v1alpha1.ImageSpec{
		Family: v1alpha1.FamilyDebian, Arch: "amd64", Size: resource.MustParse("1Gi"), Index: digest("1"), Digest: digest("2"), Bundle: "default"}}
	w.catalog.set(func(c *fakeCatalog) {
		c.images = []v1alpha1.Image{image}
		c.bundles = []v1alpha1.Bundle{{ObjectMeta: metav1.ObjectMeta{Name: "default"}, Spec: v1alpha1.BundleSpec{Digest: digest("3"), Size: resource.MustParse("2Gi"),
			Contents: []v1alpha1.BundleContent{{Kind: "image", Name: "debian-12", Digest: digest("1"), Size: resource.MustParse("1Gi")}}}}}
	})
	available := func(want bool, index string) {
		t.Helper()
		got := &v1alpha1.Image{}
		w.until(func() bool {
			err := w.client.Get(t.Context(), client.ObjectKey{Name: "debian-12"}, got)
			return err == nil && got.Spec.Index == index && len(got.Status.Conditions) > 0 && meta.IsStatusConditionTrue(got.Status.Conditions, "Available") == want
		}, func() string { return fmt.Sprintf("image: %+v", got) })
	}
	available(true, digest("1"))
	w.until(func() bool {
		return w.client.Get(t.Context(), client.ObjectKey{Name: "default"}, &v1alpha1.Bundle{}) == nil
	}, func() string { return "no Bundle" })
	w.catalog.set(func(c *fakeCatalog) { c.images[0].Spec.Index = digest("4") })
	available(true, digest("4"))
	w.catalog.set(func(c *fakeCatalog) { c.missing = "its chunk index is gone" })
	available(false, digest("4"))
}

func deletedIsForgotten(t *testing.T, w *liveWorld) {
	name := boot(w, 1)
	m := w.phase(name, v1alpha1.PhaseDiscovering)
	check(t, w.client.Delete(t.Context(), m))
	w.until(func() bool { _, ok := w.fleet.Get(name); return !ok }, func() string { return "the fleet still knows it" })
	if again := boot(w, 1); again != name {
		t.Errorf("booted again it is %q", again)
	}
	w.phase(name, v1alpha1.PhaseDiscovering)
}

func storeStartsOver(t *testing.T, w *liveWorld) {
	w.create(&v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: "a"}})
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			// Each in a server of its own, which does not know of the others.
			_, err := NewStore(w.client, fleet.New(fleet.Options{})).UpdateStatus(t.Context(), "a", func(m *v1alpha1.Machine) error {
				m.Status.PastIntents = append(m.Status.PastIntents, fmt.Sprint(i))
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	m, err := w.store.Get(t.Context(), "a")
	check(t, err)
	if len(m.Status.PastIntents) != 10 {
		t.Errorf("of ten writers' words these are left: %v", m.Status.PastIntents)
	}
}

func storeInterrupted(t *testing.T, w *liveWorld) {
	w.create(&v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: "a"}})
	ctx, cancel := context.WithCancel(t.Context())
	m, err := w.store.UpdateStatus(ctx, "a", func(m *v1alpha1.Machine) error {
		m.Status.PastIntents = []string{"1"}
		cancel() // the machine went away while its word was being written
		return nil
	})
	if err == nil || m != nil {
		t.Errorf("got %v, %v, want an error", m, err)
	}
}

func TestMain(m *testing.M) {
	controlplane.SendKlogTo(testLog())
	ctrl.SetLogger(logr.FromSlogHandler(testLog().Handler()))
	os.Exit(m.Run())
}
