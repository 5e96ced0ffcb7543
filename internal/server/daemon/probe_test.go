package daemon

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli/bootprobe"
	"coldrack.dev/internal/content/bundle"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/internal/server/machineapi"
	"coldrack.dev/test/foreigndhcp"
	"coldrack.dev/test/netns"
)

// bootableBundle packs what a machine loads, each file with the first bytes that such files have.
func bootableBundle(t testing.TB) (path, keyPath string) {
	t.Helper()
	dir := t.TempDir()
	program := func(linux bool) []byte {
		b := make([]byte, 200_000)
		copy(b, "MZ")
		binary.LittleEndian.PutUint32(b[0x3c:], 0x80)
		copy(b[0x80:], "PE\x00\x00\x64\x86")
		if linux {
			copy(b[0x202:], "HdrS")
		}
		return b
	}
	files := func(titles ...string) (specs []bundle.FileSpec) {
		for _, title := range titles {
			content := program(false)
			switch title {
			case bundle.FileKernel:
				content = program(true)
			case bundle.FileInitrd:
				content = append([]byte{0x1f, 0x8b}, make([]byte, 300_000)...)
			case bundle.FileUndionly, bundle.FileLocalPC:
				content = bytes.Repeat([]byte{0xea, 5, 0, 0xc0}, 20_000)
			}
			path := filepath.Join(dir, title)
			check(t, os.WriteFile(path, content, 0o644))
			specs = append(specs, bundle.FileSpec{Title: title, Path: path})
		}
		return specs
	}
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, ed25519.SeedSize))
	path = filepath.Join(dir, "test.bundle")
	_, err := bundle.Pack(context.Background(), bundle.Spec{Name: "test", Created: time.Unix(1_750_000_000, 0), Artifacts: []bundle.ArtifactSpec{
		{Kind: bundle.KindNetboot, Name: "discovery", Config: bundle.NetbootConfig{Name: "discovery", Arch: "amd64", KernelVersion: "6.1.0", AgentVersion: "v0"},
			Files: files(bundle.FileKernel, bundle.FileInitrd)},
		{Kind: bundle.KindBootloaders, Name: "amd64", Config: bundle.BootloadersConfig{Name: "amd64", Arch: "amd64"},
			Files: files(bundle.FileUndionly, bundle.FileIPXE, bundle.FileSNPOnly, bundle.FileLocal, bundle.FileLocalPC, bundle.FileBootImg, bundle.FileCoreImg, bundle.FileShim, bundle.FileGRUB)},
	}}, key, path, nil)
	check(t, err)
	keyPath = filepath.Join(dir, "key.pub")
	check(t, os.WriteFile(keyPath, bundle.MarshalPublicKey(key.Public().(ed25519.PublicKey)), 0o644))
	return path, keyPath
}

// probeRack is a switch with a server, a place for another server, and a machine without an address, each in a network namespace.
type probeRack struct {
	t                       *testing.T
	server                  *server
	nonces                  *machineapi.Nonces
	sink                    *dhcpSubnets
	site, ns, other, client *netns.NS
}

func newProbeRack(t *testing.T) *probeRack {
	t.Helper()
	r := &probeRack{t: t, site: netns.New(t), ns: netns.New(t), other: netns.New(t), client: netns.New(t), nonces: machineapi.NewNonces(nil)}
	r.site.Bridge("br0")
	r.site.Plug("br0", "port1", r.ns, "rack0")
	r.site.Plug("br0", "port2", r.other, "eth0")
	r.site.Plug("br0", "port3", r.client, "eth0")
	r.ns.Address("rack0", "192.0.2.1/24")
	r.other.Address("eth0", "192.0.2.2/24")
	cfg := testConfig(t)
	cfg.NoBoot, cfg.BootNetns = false, r.ns.Path()
	path, keyPath := bootableBundle(t)
	cfg.TrustedKeys = []string{keyPath}
	r.server = newBootServer(t, cfg, discard(), path)
	r.sink = r.server.startBoot(t, r.nonces).(*dhcpSubnets)
	r.server.fleet.MarkSynced()
	return r
}

func (r *probeRack) subnet(mode v1alpha1.DHCPMode) {
	spec := v1alpha1.SubnetSpec{CIDR: "192.0.2.0/24", DHCP: mode, Static: "192.0.2.10-192.0.2.20"}
	if mode == v1alpha1.DHCPServer {
		spec.Discovery = "192.0.2.100-192.0.2.101" // more than one probe may take is more than there is
	}
	r.sink.SetSubnets([]v1alpha1.Subnet{{ObjectMeta: metav1.ObjectMeta{Name: "rack"}, Spec: spec}})
}

// probe probes from a namespace until all verdicts are as wanted: a state, and a part of the sentence, by kind.
func (r *probeRack) probe(from *netns.NS, device string, want map[string]string) bootprobe.Report {
	r.t.Helper()
	var report bootprobe.Report
	eventually(r.t, func() (err error) {
		report, err = bootprobe.Run(r.t.Context(), bootprobe.Options{Interface: device, Inside: from.Do, Patience: 2 * time.Second, Quiet: 800 * time.Millisecond})
		if err != nil {
			return err
		}
		for _, c := range report.Clients {
			state, part, _ := strings.Cut(want[c.Kind], " ")
			if string(c.State) != state || !strings.Contains(c.Verdict, part) {
				return fmt.Errorf("%s: %s, %s; want %s\n%+v", c.Kind, c.State, c.Verdict, want[c.Kind], c)
			}
		}
		return nil
	})
	return report
}

// leftNothing wants that the server keeps nothing of a probe.
func (r *probeRack) leftNothing(mac string) {
	r.t.Helper()
	if !wire.IsProbe(mac) {
		r.t.Errorf("asked with %s", mac)
	}
	eventually(r.t, func() error { // the RELEASE may be under way
		for _, s := range r.sink.server.Stats().Subnets {
			if s.Leased+s.Held != 0 {
				return fmt.Errorf("%d leases and %d offers stay behind", s.Leased, s.Held)
			}
		}
		return nil
	})
	if counts := r.server.bootGate.gate.Counts(time.Now()); counts.Asked != 0 {
		r.t.Errorf("counted among machines that boot: %+v", counts)
	}
	if newcomers, _ := r.server.fleet.Newcomers(); len(r.server.fleet.List())+len(newcomers) != 0 {
		r.t.Errorf("machines %v, newcomers %v", r.server.fleet.List(), newcomers)
	}
	for _, s := range r.sink.server.Services() {
		if len(s.Unheeded) != 0 {
			r.t.Errorf("taken for firmware that heeds no proxy: %v", s.Unheeded)
		}
	}
}

// What a probe says of the real server: alone, beside dnsmasq as the site's own server, and in a race with it.
func TestProbeOfASegment(t *testing.T) {
	r := newProbeRack(t)
	boots := map[string]string{
		"BIOS PXE":         "ok 192.0.2.1: loads undionly.kpxe (80 kB), boot.ipxe",
		"UEFI x64 PXE":     "ok 192.0.2.1: loads snponly.efi (200 kB), boot.ipxe",
		"UEFI x64 HTTP":    "ok 192.0.2.1: loads snponly.efi (200 kB), boot.ipxe",
		"UEFI arm64 PXE":   "warn no boot file for this kind",
		"UEFI arm64 HTTP":  "warn no boot file for this kind",
		"iPXE on BIOS":     "ok ipxe (",
		"iPXE on UEFI x64": `ok kernel (200 kB), initrd (300 kB) (its console says "new machine: Discover: the machine is not known yet`,
	}
	t.Run("the server alone", func(t *testing.T) {
		r.t = t
		r.subnet(v1alpha1.DHCPServer)
		report := r.probe(r.client, "eth0", boots)
		if len(report.Servers) != 1 || report.Servers[0].Address.String() != "192.0.2.1" || len(report.Servers[0].Gives) != 1 || !report.Leased {
			t.Errorf("servers %+v, leased %v", report.Servers, report.Leased)
		}
		for range 3 { // it takes one of two addresses, however often it asks
			r.leftNothing(report.MAC)
			if again := r.probe(r.client, "eth0", boots); again.MAC != report.MAC {
				t.Errorf("asked with %s and with %s", report.MAC, again.MAC)
			}
		}
		r.leftNothing(report.MAC)
	})
	t.Run("from the server's own host", func(t *testing.T) {
		r.t = t
		if report := r.probe(r.ns, "rack0", boots); report.Leased || report.Address.String() != "192.0.2.1" {
			t.Errorf("fetched from %v, leased %v", report.Address, report.Leased)
		} else {
			r.leftNothing(report.MAC)
		}
	})
	foreigndhcp.Dnsmasq.Start(t, r.other, "no-ping")
	t.Run("two servers race", func(t *testing.T) {
		r.t = t
		race := "fail 2 servers race for it: 192.0.2.1, which leads to Coldrack (tftp://192.0.2.1/undionly.kpxe), 192.0.2.2 (no boot file)"
		report := r.probe(r.client, "eth0", map[string]string{"BIOS PXE": race, "UEFI x64 PXE": "fail race", "UEFI x64 HTTP": "fail race", "UEFI arm64 PXE": "warn no boot file for this kind", "UEFI arm64 HTTP": "warn no boot file for this kind",
			"iPXE on BIOS": "fail race", "iPXE on UEFI x64": "fail race"})
		if len(report.Servers) != 2 {
			t.Errorf("servers: %+v", report.Servers)
		}
		if do := report.Clients[0].Do; !strings.Contains(do, "switch DHCP of 192.0.2.2 off") {
			t.Errorf("advice: %s", do)
		}
		r.leftNothing(report.MAC)
	})
	t.Run("beside the site's server", func(t *testing.T) {
		r.t = t
		r.subnet(v1alpha1.DHCPProxy)
		report := r.probe(r.client, "eth0", boots)
		if len(report.Servers) != 2 || len(report.Servers[0].Gives) != 0 {
			t.Errorf("servers: %+v", report.Servers)
		}
		r.leftNothing(report.MAC)
	})
	t.Run("the site's server alone", func(t *testing.T) {
		r.t = t
		r.subnet(v1alpha1.DHCPOff)
		want := map[string]string{}
		for kind := range boots {
			want[kind] = "fail not Coldrack: 192.0.2.2 gives addresses and names no boot file"
		}
		r.probe(r.client, "eth0", want)
	})
}

// The script of a probe has no nonce by which anybody could enrol, asks nobody, and is no machine's.
func TestTheScriptOfAProbe(t *testing.T) {
	r := newMenuRig(t, v1alpha1.BootMenu{Mode: v1alpha1.BootMenuFree}, "")
	ask := func(query string) string {
		response, err := r.web.Client().Get(r.web.URL + "/boot/ipxe?arch=x86_64&platform=efi&" + query)
		check(t, err)
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		check(t, err)
		return string(body)
	}
	mac := wire.ProbeMAC(net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}).String()
	script := ask("mac=" + mac)
	wantAll(t, script, "Discover", "kernel ", "coldrack.nonce="+probeNonce+" ")
	if newcomers, _ := r.fleet.Newcomers(); len(newcomers) != 0 {
		t.Errorf("newcomers: %v", newcomers)
	}
	// With a second MAC it may be a machine's, whose disk must not be hidden by it.
	if script := ask("mac=" + mac + "&mac=52-54-00-00-00-01"); !strings.Contains(script, "prompt --key") {
		t.Errorf("taken for a probe:\n%s", script)
	}
}
