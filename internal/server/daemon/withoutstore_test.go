package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/machine/fleet"
	"coldrack.dev/internal/netboot/dhcp"
	"coldrack.dev/test/netns"
)

const (
	installedMAC, newMAC = "52:54:00:00:00:0a", "52:54:00:00:00:0b"
	installedAddress     = "10.20.0.50"
)

// storeRack is a rack with a server, one machine that is installed, and one that nobody knows.
type storeRack struct {
	t       *testing.T
	cfg     Config
	machine *netns.NS
	web     *http.Client
	process *os.Process // that was begun last
}

func newStoreRack(t *testing.T, dataDir string) *storeRack {
	ns, machine := netns.New(t), netns.New(t)
	netns.Veth(ns, "rack0", machine, "eth0")
	ns.Address("rack0", rackAddress+"/24")
	machine.Run("ip", "link", "set", "eth0", "address", installedMAC)
	machine.Address("eth0", "10.20.0.9/24")
	path, keyPath := sampleBundle(t)
	cfg := testConfig(t)
	cfg.DataDir = dataDir
	cfg.NoBoot, cfg.BootNetns, cfg.Interfaces = false, ns.Path(), []string{"rack0"}
	cfg.TrustedKeys, cfg.Bundles = []string{keyPath}, []string{path}
	cfg.Manifests = []string{writeManifest(t, rackSubnet)}
	return &storeRack{t: t, cfg: cfg, machine: machine, web: &http.Client{Timeout: within, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
			err = machine.Do(func() error { conn, err = (&net.Dialer{}).DialContext(ctx, network, address); return err })
			return conn, err
		},
	}}}
}

// ask is what iPXE of a machine asks.
func (r *storeRack) ask(mac string) (status int, script string, err error) {
	response, err := r.web.Get(fmt.Sprintf("http://%s:%d/boot/ipxe?mac=%s&arch=x86_64&platform=efi", rackAddress, r.cfg.BootPort, strings.ReplaceAll(mac, ":", "-")))
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, string(body), err
}

// wantBoots waits until the installed machine is sent to its disk, and the new one gets what it should.
func (r *storeRack) wantBoots(newStatus int, newScript string) {
	r.t.Helper()
	eventually(r.t, func() error {
		status, script, err := r.ask(installedMAC)
		if err != nil || status != http.StatusOK || !strings.Contains(script, "local.efi") {
			return fmt.Errorf("the installed machine gets %d %s %v", status, script, err)
		}
		if status, script, err = r.ask(newMAC); err != nil || status != newStatus || !strings.Contains(script, newScript) {
			return fmt.Errorf("the new machine gets %d %s %v", status, script, err)
		}
		return nil
	})
}

// wantLease asks for an address as the firmware of the installed machine.
func (r *storeRack) wantLease() {
	r.t.Helper()
	eventually(r.t, func() error {
		var offer *dhcpv4.DHCPv4
		err := r.machine.Do(func() error {
			c, err := nclient4.New("eth0", nclient4.WithTimeout(5*time.Second), nclient4.WithRetry(2))
			if err != nil {
				return err
			}
			defer c.Close()
			offer, err = c.DiscoverOffer(r.t.Context(), dhcpv4.WithOption(dhcpv4.OptClassIdentifier("PXEClient:Arch:00007")))
			return err
		})
		if err != nil {
			return err
		}
		if offer.YourIPAddr.String() != installedAddress || offer.BootFileName == "" && offer.BootFileNameOption() == "" {
			return fmt.Errorf("offered %s", offer.Summary())
		}
		return nil
	})
}

// begin starts a server in a process of its own, and does not wait for its store.
func (r *storeRack) begin() (log *logText, done <-chan error, stop func()) {
	r.t.Helper()
	config, err := json.Marshal(r.cfg)
	check(r.t, err)
	text, ended := &logText{}, make(chan error, 1)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), runEnv+"="+string(config))
	cmd.Stderr = text
	// A test that is killed takes its servers along.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	check(r.t, cmd.Start())
	r.process = cmd.Process
	exited := make(chan struct{})
	go func() {
		ended <- cmd.Wait()
		close(exited)
	}()
	r.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-exited
		if r.t.Failed() {
			r.t.Logf("log of the server:\n%s", text)
		}
	})
	return text, ended, func() { check(r.t, cmd.Process.Signal(syscall.SIGTERM)) }
}

// install makes the Machine of an installed one, as its install would leave it, and waits until the copy has it.
func (r *storeRack) install(c client.Client) {
	r.t.Helper()
	m := &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: "node1"}, Spec: v1alpha1.MachineSpec{
		Identifiers: v1alpha1.Identifiers{MACs: []string{installedMAC}}, Approved: true,
		Network: &v1alpha1.MachineNetwork{Subnet: "rack", Address: installedAddress, MAC: installedMAC},
	}}
	check(r.t, c.Create(r.t.Context(), m))
	eventually(r.t, func() error {
		if err := c.Get(r.t.Context(), metaKey("node1"), m); err != nil {
			return err
		}
		m.Status.Installed = &v1alpha1.InstalledStatus{Image: "debian-12", Disk: "virtio-1", Profile: "p", At: metav1.Now()}
		return c.Status().Update(r.t.Context(), m)
	})
	eventually(r.t, func() error {
		text, err := os.ReadFile(filepath.Join(r.cfg.DataDir, copyFile))
		if err != nil || !strings.Contains(string(text), `"disk":"virtio-1"`) || !strings.Contains(string(text), "10.20.0.0/24") {
			return fmt.Errorf("the copy has %s, %v", text, err)
		}
		return nil
	})
}

// A store that does not come up keeps no installed machine from its address, its disk and its files; and nobody else is taken for
// new. When it comes up later, everything is as usual.
func TestAStartWithoutAStore(t *testing.T) {
	rack := newStoreRack(t, filepath.Join(t.TempDir(), "data"))
	server := run(t, rack.cfg)
	rack.install(kinds(t, server.rest))
	server.stop()
	admin := kubeconfigOf(t, rack.cfg)
	rack.cfg.APIAddress = strings.TrimPrefix(admin.Host, "https://") // where clients look for it

	db := filepath.Join(rack.cfg.DataDir, "etcd", "member", "snap", "db")
	check(t, os.Rename(db, db+".good"))
	check(t, os.WriteFile(db, []byte(strings.Repeat("damaged ", 10_000)), 0o600))
	log, done, stop := rack.begin()
	rack.wantBoots(http.StatusServiceUnavailable, "ask again")
	rack.wantLease()
	if _, err := rack.get("/local.efi"); err != nil {
		t.Error(err)
	}
	if text, err := rack.get("/healthz"); err == nil || !strings.Contains(text, "the store is not there") {
		t.Errorf("/healthz says %q, %v", text, err)
	}
	eventually(t, func() error {
		if !strings.Contains(log.String(), "the store is not there: installed machines are answered") {
			return errors.New("the log does not say so")
		}
		why, err := os.ReadFile(filepath.Join(rack.cfg.DataDir, storeLostFile))
		if err == nil && !strings.Contains(string(why), "damaged") {
			err = fmt.Errorf("the doctor is told %q", why)
		}
		return err
	})

	// People are told so, and so is what watches the server.
	err := kinds(t, admin).Get(t.Context(), metaKey("node1"), &v1alpha1.Machine{})
	if !apierrors.IsServiceUnavailable(err) {
		t.Errorf("a client is told %v", err)
	}
	plain := rest.CopyConfig(admin)
	plain.Timeout = within
	people, err := rest.HTTPClientFor(plain)
	check(t, err)
	for path, want := range map[string]string{"/livez": "200 ok", "/readyz": "503 [-]store failed: ", metricsPath: "\ncoldrack_store_lost 1\n"} {
		response, err := people.Get(admin.Host + path)
		check(t, err)
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if said := fmt.Sprintf("%d %s", response.StatusCode, body); err != nil || !strings.Contains(said, want) {
			t.Errorf("%s says %v %s; want %q", path, err, said, want)
		}
	}

	check(t, os.Rename(db+".good", db))
	rack.wantBoots(http.StatusOK, "coldrack.nonce")
	eventually(t, func() error { return kinds(t, admin).Get(t.Context(), metaKey("node1"), &v1alpha1.Machine{}) })
	eventually(t, func() error {
		if _, err := os.Stat(filepath.Join(rack.cfg.DataDir, storeLostFile)); err == nil {
			return errors.New("the doctor is still told that the store is lost")
		}
		return nil
	})
	stop()
	if err := <-done; err != nil {
		t.Errorf("the server stopped with %v", err)
	}
}

func (r *storeRack) get(path string) (string, error) {
	response, err := r.web.Get(fmt.Sprintf("http://%s:%d%s", rackAddress, r.cfg.BootPort, path))
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = errors.New(response.Status)
	}
	return string(body), err
}

// A store that can write no more ends under a running server. Boot services go on; where the store's remains are in the way the
// process ends, and the next one serves machines from the copy at once.
func TestTheStoreDiesUnderARunningServer(t *testing.T) {
	rack := newStoreRack(t, filepath.Join(t.TempDir(), "data"))
	rack.cfg.AuditFailure = AuditContinue // the audit log is not what this test is about
	log, done, _ := rack.begin()
	eventually(t, func() error {
		if !strings.Contains(log.String(), "msg=ready") {
			return errors.New("not ready")
		}
		return nil
	})
	c := kinds(t, kubeconfigOf(t, rack.cfg))
	rack.install(c)

	check(t, rack.process.Signal(syscall.SIGUSR1)) // see fillLogOfStore
	eventually(t, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		err := c.Create(ctx, &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{GenerateName: "late-"}})
		if !strings.Contains(log.String(), "the store is not there") {
			return fmt.Errorf("the store lives; the last write said %v", err)
		}
		return nil
	})
	// Either it comes back in the same process, or that ends. Until then machines are answered from memory.
	eventually(t, func() error {
		select {
		case err := <-done: // the service manager starts it again
			t.Logf("the process ended: %v", err)
			wantAll(t, log.String(), "the store does not end")
			rack.begin()
		default:
		}
		status, script, err := rack.ask(newMAC)
		if err != nil || status != http.StatusOK {
			return fmt.Errorf("the new machine gets %d %s %v", status, script, err)
		}
		return nil
	})
	rack.wantBoots(http.StatusOK, "coldrack.nonce")
	rack.wantLease()
}

// fillLogOfStore makes each further write to the log of etcd, which runs in this process, end as on a full disk.
func fillLogOfStore(dir string) error {
	full, err := unix.Open("/dev/full", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(full)
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, entry := range files {
		fd, _ := strconv.Atoi(entry.Name())
		file, err := os.Readlink("/proc/self/fd/" + entry.Name())
		if err != nil || !strings.HasPrefix(file, dir) || !strings.HasSuffix(file, ".wal") {
			continue
		}
		if err := unix.Dup3(full, fd, unix.O_CLOEXEC); err != nil {
			return err
		}
	}
	return nil
}

// A store that refuses writes keeps nobody from booting: known machines as they are known, new ones into the discovery system.
func TestBootsOfAFullStore(t *testing.T) {
	rack := newStoreRack(t, filepath.Join(t.TempDir(), "data"))
	server := run(t, rack.cfg)
	c := kinds(t, server.rest)
	rack.install(c)
	etcd, err := clientv3.New(clientv3.Config{Logger: zap.NewNop(), Endpoints: []string{"unix://" + filepath.Join(rack.cfg.DataDir, "etcd", "etcd.sock")}})
	check(t, err)
	defer etcd.Close()
	status, err := etcd.Status(t.Context(), etcd.Endpoints()[0])
	check(t, err)
	refused := func() error {
		err := c.Create(t.Context(), &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{GenerateName: "late-"}})
		if err == nil || !strings.Contains(err.Error(), "space exceeded") {
			return fmt.Errorf("a write says %v", err)
		}
		return nil
	}
	// The server looks after a store that is said to be full, and tells it that it has room; then it is said again.
	eventually(t, func() error {
		_, err := etcdserverpb.NewMaintenanceClient(etcd.ActiveConnection()).Alarm(t.Context(), &etcdserverpb.AlarmRequest{
			Action: etcdserverpb.AlarmRequest_ACTIVATE, Alarm: etcdserverpb.AlarmType_NOSPACE, MemberID: status.Header.MemberId,
		})
		if err == nil {
			err = refused()
		}
		if err != nil {
			return err
		}
		rack.wantBoots(http.StatusOK, "coldrack.nonce")
		rack.wantLease()
		return refused()
	})
}

// The copy has what boots need, is not written again for what it lacks, and has no strangers.
func TestTheCopyOfMachines(t *testing.T) {
	subnets, _ := testDHCPSubnets(t)
	subnets.SetSubnets([]v1alpha1.Subnet{{ObjectMeta: metav1.ObjectMeta{Name: "rack"}, Spec: v1alpha1.SubnetSpec{CIDR: "10.20.0.0/24", Discovery: "10.20.0.100-10.20.0.110", DHCP: v1alpha1.DHCPServer}}})
	known := fleet.New(fleet.Options{})
	keeper := &copyKeeper{file: filepath.Join(t.TempDir(), copyFile), fleet: known, subnets: subnets, log: discard()}
	put := func(version string, change func(*v1alpha1.Machine)) {
		m := &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: "node1", UID: "1", ResourceVersion: version}}
		m.Spec.Identifiers.MACs = []string{installedMAC}
		m.Spec.BMC = &v1alpha1.BMC{Address: "bmc.example.org"}
		m.Status.Installed = &v1alpha1.InstalledStatus{Image: "debian-12", Disk: "d"}
		m.Status.Inventory = &v1alpha1.Inventory{NICs: []v1alpha1.NIC{{Name: "eth1", MAC: "52:54:00:00:01:0a"}}}
		change(m)
		known.Put(m)
	}
	put("1", func(*v1alpha1.Machine) {})
	known.Put(&v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: "m-stranger", UID: "2", ResourceVersion: "1", Annotations: map[string]string{v1alpha1.AnnotationDiscoveredBy: "boot"}}})
	check(t, keeper.keep())
	if _, err := os.Stat(keeper.file); err == nil {
		t.Error("a copy was written before all machines were read")
	}
	known.MarkSynced()
	check(t, keeper.keep())
	text, err := os.ReadFile(keeper.file)
	check(t, err)
	wantAll(t, string(text), "node1", "52:54:00:00:01:0a", "10.20.0.0/24")
	for _, unwanted := range []string{"m-stranger", "bmc.example.org"} {
		if strings.Contains(string(text), unwanted) {
			t.Errorf("the copy has %s: %s", unwanted, text)
		}
	}
	before, err := os.Stat(keeper.file)
	check(t, err)
	same := func() bool {
		t.Helper()
		check(t, keeper.keep())
		now, err := os.Stat(keeper.file)
		check(t, err)
		return os.SameFile(before, now)
	}
	put("2", func(m *v1alpha1.Machine) { m.Status.CurrentStep = "image 43%" })
	if !same() {
		t.Error("the copy was written again for what it does not have")
	}
	put("3", func(m *v1alpha1.Machine) { m.Spec.Network = &v1alpha1.MachineNetwork{Address: installedAddress} })
	if same() {
		t.Error("the copy was not written again for an address")
	}

	again := fleet.New(fleet.Options{})
	next, _ := testDHCPSubnets(t)
	if !(&copyKeeper{file: keeper.file, fleet: again, subnets: next, log: discard()}).restore() {
		t.Fatal("the copy was not read")
	}
	if r, ok := again.ByMAC("52:54:00:00:01:0a"); !ok || r.Address != netip.MustParseAddr(installedAddress) || len(next.current()) != 1 {
		t.Errorf("from the copy: %+v, %v", r, next.current())
	}
	check(t, os.WriteFile(keeper.file, []byte(`{"machines": 7}`), 0o600))
	if (&copyKeeper{file: keeper.file, fleet: again, subnets: next, log: discard()}).restore() {
		t.Error("a damaged copy was taken")
	}
}

// A machine that was installed after the copy was written has an address that the copy does not know.
func TestWithoutTheStoreOnlyKnownAddressesAreGiven(t *testing.T) {
	machine := func(name, mac, address string) *v1alpha1.Machine {
		m := &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)}, Spec: v1alpha1.MachineSpec{Approved: true, Identifiers: v1alpha1.Identifiers{MACs: []string{mac}}}}
		if address != "" {
			m.Spec.Network = &v1alpha1.MachineNetwork{Subnet: "rack", Address: address}
		}
		return m
	}
	machines := fleet.New(fleet.Options{Log: slog.New(slog.DiscardHandler)})
	s := &server{fleet: machines, bootGate: newBootGate(10, func() bool { return true })}
	answered := func(mac string) bool {
		return s.admitDHCP(dhcp.Query{MAC: mac})
	}
	machines.Restore([]*v1alpha1.Machine{machine("installed", "02:00:00:00:00:01", "10.0.0.1"), machine("since", "02:00:00:00:00:02", "")})
	for mac, want := range map[string]bool{"02:00:00:00:00:01": true, "02:00:00:00:00:02": false, "02:00:00:00:00:03": false} {
		if got := answered(mac); got != want {
			t.Errorf("%s is answered: %v", mac, got)
		}
	}
	machines.MarkSynced()
	for _, mac := range []string{"02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03"} {
		if !answered(mac) {
			t.Errorf("%s is not answered although the store is there", mac)
		}
	}
}
