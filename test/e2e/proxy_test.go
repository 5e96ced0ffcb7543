package e2e

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/lab"
	netnstest "coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

const proxyYAML = `
apiVersion: coldrack.dev/v1alpha1
kind: Subnet
metadata: {name: rack}
spec: {cidr: 10.77.0.0/24, dhcp: proxy, static: 10.77.0.10-10.77.0.99}
`

// TestBesideTheSitesServer has real firmware, by BIOS and by UEFI, find its way into the discovery system while dnsmasq gives the addresses and
// knows nothing of Coldrack.
func TestBesideTheSitesServer(t *testing.T) {
	if os.Getenv("COLDRACK_E2E_PROXY") == "" {
		t.Skip("runs with: make e2e-proxy")
	}
	require.Need(t, "netns", "qemu", "dnsmasq")
	r := newRack(t, proxyYAML, lab.Options{Machines: 2, Firmware: lab.Mixed, CPUs: 1})
	site := netnstest.New(t)
	for _, args := range [][]string{
		{"link", "add", "site0", "type", "veth", "peer", "name", "eth0", "netns", site.Path()},
		{"link", "set", "site0", "master", "lab0", "up"},
	} {
		if out, err := exec.Command("ip", append([]string{"-n", r.lab.Namespace()}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	site.Run("ip", "link", "set", "eth0", "up")
	site.Address("eth0", "10.77.0.2/24")
	theirs := exec.Command("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--interface=eth0", "--bind-interfaces", "--user=root", "--pid-file=",
		"--log-dhcp", "--log-facility=-", "--dhcp-leasefile="+filepath.Join(t.TempDir(), "leases"), "--dhcp-range=10.77.0.150,10.77.0.199,10m")
	theirs.Stderr = os.Stderr
	if err := site.Start(theirs); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = theirs.Process.Kill()
		_ = theirs.Wait()
	})
	for _, vm := range r.lab.Machines() {
		if err := vm.PowerOn(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for index := range 2 {
		name := r.name(index + 1)
		m := r.await(name, "Waiting for approval", 15*time.Minute, func(m *v1alpha1.Machine) bool {
			return m.Status.Phase == v1alpha1.PhaseWaiting && m.Status.Inventory != nil
		})
		lease := m.Status.Lease
		if lease == nil {
			t.Fatalf("%s (%s): no address is recorded", name, m.Status.Inventory.Firmware)
		}
		if a, err := netip.ParseAddr(lease.Address); err != nil || a.Less(netip.MustParseAddr("10.77.0.150")) {
			t.Errorf("%s (%s) has the address %s, which is not the site's to give", name, m.Status.Inventory.Firmware, lease.Address)
		}
		t.Logf("%s, %s, with %s: %s", name, m.Status.Inventory.Firmware, lease.Address, newest(m).Reason)
	}
}
