package daemon

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/content/bundle"
	"coldrack.dev/internal/content/diskimage"
	"coldrack.dev/internal/machine/fleet"
	"coldrack.dev/internal/netboot/boot"
	"coldrack.dev/internal/netboot/dhcp"
	"coldrack.dev/internal/netboot/httpboot"
	"coldrack.dev/internal/server/controllers"
	"coldrack.dev/internal/server/machineapi"
	"coldrack.dev/test/netns"
)

const rackAddress = "10.20.0.2"

// bootRack are the boot services of a server in a network namespace, on their well-known ports, and a client in
// another one.
type bootRack struct {
	t      *testing.T
	server *server
	boots  *booter
	dhcp   dhcpBackend
	web    *http.Client
	listen func() (*net.UDPConn, error)
}

// newBootServer is a server with what serves machines and nothing else; path is a bundle that it has, "" for none.
func newBootServer(t *testing.T, cfg Config, log *slog.Logger, path string) *server {
	t.Helper()
	lock, err := lockDataDir(cfg)
	check(t, err)
	t.Cleanup(func() { lock.Close() })
	keys, err := openKeys(cfg)
	check(t, err)
	store, err := bundle.OpenStore(cfg.path("content"))
	check(t, err)
	if path != "" {
		trusted, err := trustedKeys(cfg)
		check(t, err)
		_, err = bundle.Import(t.Context(), store, path, trusted, nil)
		check(t, err)
	}
	sockets, err := openSockets(t.Context(), cfg)
	check(t, err)
	machines := fleet.New(fleet.Options{Log: discard()})
	s := &server{cfg: cfg, log: log, keys: keys, sockets: sockets, content: newContent(store), fleet: machines, metrics: newMetrics(machines),
		bootGate: newBootGate(1000, func() bool { return true })}
	s.reach, err = newReach(cfg, s.inside, discard())
	check(t, err)
	s.importer = newImporter(cfg, store, discard())
	s.images, err = s.newImages(s.importer.reserve)
	check(t, err)
	s.metrics.watchRegistry(s.images)
	return s
}

// startBoot serves machines, and follows the interfaces, until the test ends.
func (s *server) startBoot(t *testing.T, nonces *machineapi.Nonces) controllers.SubnetSink {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.reach.run(ctx) })
	sink, err := s.serveBoot(ctx, group, nonces, controllers.NewStore(nil, s.fleet), controllers.NewPlans(nil))
	check(t, err)
	t.Cleanup(func() {
		cancel()
		if err := group.Wait(); err != nil {
			t.Errorf("boot services: %v", err)
		}
	})
	return sink
}

func newBootRack(t *testing.T, edit ...func(*Config)) *bootRack {
	ns, machine := netns.New(t), netns.New(t)
	netns.Veth(ns, "rack0", machine, "eth0")
	ns.Address("rack0", rackAddress+"/24")
	machine.Address("eth0", "10.20.0.9/24")

	cfg := testConfig(t)
	cfg.NoBoot, cfg.BootNetns, cfg.Interfaces = false, ns.Path(), []string{"rack0"}
	path, keyPath := sampleBundle(t)
	cfg.TrustedKeys = []string{keyPath}
	for _, f := range edit {
		f(&cfg)
	}
	log := slog.New(slog.DiscardHandler)
	s := newBootServer(t, cfg, log, path)
	nonces := machineapi.NewNonces(nil)
	s.startBoot(t, nonces)
	dial := func(network, address string) (conn net.Conn, err error) {
		err = machine.Do(func() error { conn, err = net.Dial(network, address); return err })
		return conn, err
	}
	// The answers of TFTP come from other ports than the request went to, so this is no connected socket.
	listen := func() (conn *net.UDPConn, err error) {
		err = machine.Do(func() error { conn, err = net.ListenUDP("udp4", nil); return err })
		return conn, err
	}
	boots := s.newBooter(nonces)
	return &bootRack{
		t: t, server: s, boots: boots, listen: listen,
		dhcp: dhcpBackend{booter: boots, log: log, ipxes: &recentClients{now: time.Now}, replaced: &replacedIPXEs{now: time.Now}},
		web: &http.Client{Timeout: within, Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext:       func(_ context.Context, network, address string) (net.Conn, error) { return dial(network, address) },
		}},
	}
}

// get fetches an URL as iPXE would, and fails the test naming it when it is not served.
func (r *bootRack) get(t *testing.T, address string) string {
	t.Helper()
	response, err := r.web.Get(address)
	if err != nil {
		t.Errorf("%s is handed out and not served: %v", address, err)
		return ""
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK || len(body) == 0 {
		t.Errorf("%s is handed out and not served: %s, %d bytes, %v", address, response.Status, len(body), err)
	}
	return string(body)
}

// tftp fetches a file as the simplest firmware would (RFC 1350, without options).
func (r *bootRack) tftp(server netip.Addr, name string) ([]byte, error) {
	conn, err := r.listen()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(within))
	request := append([]byte{0, 1}, name...)
	request = append(append(append(request, 0), "octet"...), 0)
	if _, err := conn.WriteToUDPAddrPort(request, netip.AddrPortFrom(server, 69)); err != nil {
		return nil, err
	}
	var file []byte
	packet := make([]byte, 600)
	for block := uint16(1); ; {
		n, from, err := conn.ReadFromUDPAddrPort(packet)
		switch {
		case err != nil:
			return nil, err
		case n < 4:
			return nil, fmt.Errorf("packet of %d bytes", n)
		case packet[1] == 5:
			return nil, fmt.Errorf("server says %q", strings.TrimRight(string(packet[4:n]), "\x00"))
		case packet[1] != 3 || binary.BigEndian.Uint16(packet[2:4]) != block:
			continue // a block that was sent again
		}
		file = append(file, packet[4:n]...)
		if _, err := conn.WriteToUDPAddrPort([]byte{0, 4, packet[2], packet[3]}, from); err != nil {
			return nil, err
		}
		if n < 4+512 {
			return file, nil
		}
		block++
	}
}

// TestBootContract proves that every name that DHCP or a boot script can hand out is really served, where it is
// said to be.
func TestBootContract(t *testing.T) {
	rack := newBootRack(t)
	server := netip.MustParseAddr(rackAddress)
	url := "http://" + rackAddress + ":7080"

	t.Run("every answer of DHCP", func(t *testing.T) {
		answers := 0
		for _, arch := range []uint16{
			boot.ArchBIOS, boot.ArchUEFI32, boot.ArchUEFI64, boot.ArchUEFI64Old, boot.ArchUEFIARM64,
			boot.ArchHTTPUEFIBC, boot.ArchHTTPUEFI64, boot.ArchHTTPARM64, boot.ArchUnknown, 4711,
		} {
			for kind, query := range map[string]dhcp.Query{
				"PXE": {PXE: true}, "HTTP": {HTTP: true}, "iPXE": {IPXE: true}, "iPXE by PXE": {IPXE: true, PXE: true}, "neither": {},
			} {
				query.Arch, query.Server, query.MAC = arch, server, "52:54:00:00:00:01"
				answer, ok := rack.dhcp.BootFile(netip.MustParsePrefix("10.20.0.0/24"), query)
				switch {
				case !ok && answer.File != "":
					t.Errorf("architecture %d by %s: refused with a file, %s", arch, kind, answer.File)
				case !ok:
					continue
				case strings.Contains(answer.File, "://"):
					rack.get(t, answer.File)
				default:
					if _, err := rack.tftp(answer.NextServer, answer.File); err != nil {
						t.Errorf("architecture %d by %s is told tftp://%s/%s, which is not served: %v", arch, kind, answer.NextServer, answer.File, err)
					}
				}
				answers++
			}
		}
		if answers < 20 {
			t.Errorf("only %d requests had an answer", answers)
		}
	})

	t.Run("every first stage by name", func(t *testing.T) {
		for _, name := range boot.FirstStageFiles() {
			overHTTP := rack.get(t, url+"/"+name)
			if strings.HasSuffix(name, ".ipxe") {
				continue // is given to iPXE alone, as an URL
			}
			overTFTP, err := rack.tftp(server, name)
			if err != nil || string(overTFTP) != overHTTP {
				t.Errorf("%s: by TFTP %d bytes, %v; by HTTP %d bytes", name, len(overTFTP), err, len(overHTTP))
			}
		}
	})

	t.Run("what is not handed out is not served", func(t *testing.T) {
		for _, name := range []string{"nothing.efi", bundle.FileShim, "../lock", "etc/passwd"} {
			if _, err := rack.tftp(server, name); err == nil {
				t.Errorf("%s is served by TFTP", name)
			}
		}
		response, err := rack.web.Get(url + "/content/sha256/" + strings.Repeat("0", 64))
		check(t, err)
		response.Body.Close()
		if response.StatusCode != http.StatusNotFound {
			t.Errorf("content that does not exist: %s", response.Status)
		}
	})

	t.Run("every boot script, and everything it names", rack.everyScript)

	t.Run("everything that an install plan names", func(t *testing.T) {
		images := newCatalog(rack.server.content.store, nil, rack.server.log).Images()
		if len(images) != 1 {
			t.Fatalf("images: %v", images)
		}
		for range 2 { // what was read once is kept
			if facts := rack.server.content.ImageFacts(&images[0]); facts == nil || !slices.Equal(facts.Timezones, []string{"Etc/UTC"}) {
				t.Errorf("facts of the image: %+v", facts)
			}
		}
		index, files, err := rack.server.content.ImageFiles(&images[0])
		check(t, err)
		plan, err := json.Marshal([]any{index, files})
		check(t, err)
		digests := regexp.MustCompile(`sha256:([0-9a-f]{64})`).FindAllStringSubmatch(string(plan), -1)
		if len(digests) != 5 {
			t.Errorf("the plan names %d blobs: %s", len(digests), plan)
		}
		for _, digest := range digests {
			rack.get(t, url+"/content/sha256/"+digest[1])
		}
		var chunks diskimage.Index
		check(t, json.Unmarshal([]byte(rack.get(t, url+"/content/sha256/"+strings.TrimPrefix(index.Digest, "sha256:"))), &chunks))
		rack.get(t, url+"/content/sha256/"+strings.TrimPrefix(chunks.Blob, "sha256:"))
	})
}

// everyScript renders the script of every outcome of boot.Decide on every platform, by asking as iPXE does, and
// fetches all that it names.
func (r *bootRack) everyScript(t *testing.T) {
	installed := &v1alpha1.InstalledStatus{Image: "debian-12", Disk: "/dev/sda"}
	intent := func(action v1alpha1.IntentAction) *v1alpha1.Intent { return &v1alpha1.Intent{ID: "1", Action: action} }
	machines := map[string]struct {
		change func(*v1alpha1.Machine)
		want   v1alpha1.BootAction
	}{
		"unknown":         {nil, v1alpha1.BootDiscover},
		"not approved":    {func(*v1alpha1.Machine) {}, v1alpha1.BootDiscover},
		"to be installed": {func(m *v1alpha1.Machine) { m.Spec.Approved, m.Spec.Intent = true, intent(v1alpha1.ActionInstall) }, v1alpha1.BootInstall},
		"to be installed again": {func(m *v1alpha1.Machine) {
			m.Spec.Approved, m.Spec.Intent, m.Status.Installed = true, intent(v1alpha1.ActionReinstall), installed
			m.Status.Intent = &v1alpha1.IntentStatus{ID: "1", Action: v1alpha1.ActionReinstall, State: v1alpha1.IntentPending}
		}, v1alpha1.BootInstall},
		"to be wiped":             {func(m *v1alpha1.Machine) { m.Spec.Intent = intent(v1alpha1.ActionRelease) }, v1alpha1.BootRelease},
		"installed":               {func(m *v1alpha1.Machine) { m.Spec.Approved, m.Status.Installed = true, installed }, v1alpha1.BootLocalDisk},
		"of another architecture": {func(*v1alpha1.Machine) {}, v1alpha1.BootRefuse},
	}
	number := 0
	macs := map[string]string{}
	for name, machine := range machines {
		number++
		macs[name] = fmt.Sprintf("52:54:00:00:00:%02x", number)
		if machine.change == nil {
			continue
		}
		m := &v1alpha1.Machine{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("m", number), UID: "u", ResourceVersion: "1"},
			Spec:       v1alpha1.MachineSpec{Identifiers: v1alpha1.Identifiers{MACs: []string{macs[name]}}},
		}
		machine.change(m)
		r.server.fleet.Put(m)
	}
	r.server.fleet.MarkSynced()

	chain := r.get(t, "http://"+rackAddress+":7080/boot.ipxe")
	for name, machine := range machines {
		for _, platform := range []boot.Platform{boot.PlatformBIOS, boot.PlatformUEFI} {
			t.Run(fmt.Sprintf("%s, %s", name, platform), func(t *testing.T) {
				arch := "x86_64"
				if machine.want == v1alpha1.BootRefuse {
					arch = "arm64"
				}
				script := r.get(t, "http://"+rackAddress+":7080"+expand(chain, macs[name], arch, platform))
				if want := fmt.Sprintf(": %s: ", machine.want); !strings.Contains(script, want) {
					t.Errorf("the script lacks %q:\n%s", want, script)
				}
				named := namedURLs(script)
				for _, address := range named {
					r.get(t, address)
				}
				want := map[v1alpha1.BootAction]int{v1alpha1.BootDiscover: 3, v1alpha1.BootInstall: 3, v1alpha1.BootRelease: 3, v1alpha1.BootRefuse: 1, v1alpha1.BootLocalDisk: 2}[machine.want]
				if len(named) != want {
					t.Errorf("the script names %d files, want %d:\n%s", len(named), want, script)
				}
				again, err := r.boots.BootScript(context.Background(), httpboot.Query{
					MACs: []string{macs[name]}, Arch: arch, Platform: string(platform),
					Local: netip.MustParseAddrPort(rackAddress + ":7080"), Remote: netip.MustParseAddrPort("10.20.0.9:1"),
				})
				if err != nil || len(namedURLs(again)) != want {
					t.Errorf("BootScript: %v\n%s", err, again)
				}
			})
		}
	}
}

// expand returns what iPXE asks for after /boot.ipxe: the URL that it chains to, with the settings of a machine.
func expand(script, mac, arch string, platform boot.Platform) string {
	_, rest, _ := strings.Cut(script, "chain --replace --autofree ")
	address, _, _ := strings.Cut(rest, " ")
	settings := map[string]string{
		"netX/mac:hexhyp": strings.ReplaceAll(mac, ":", "-"), "net0/mac:hexhyp": strings.ReplaceAll(mac, ":", "-"),
		"serial:uristring": "S%201", "manufacturer:uristring": url.QueryEscape("Acme & Sons"), "buildarch": arch, "platform": string(platform), "netX/ip": "10.20.0.9",
	}
	return regexp.MustCompile(`\$\{([^}]*)\}`).ReplaceAllStringFunc(address, func(setting string) string {
		return settings[setting[2:len(setting)-1]]
	})
}

// namedURLs are the URLs that iPXE loads by a script: the first that each line of kernel, initrd or chain has.
func namedURLs(script string) (found []string) {
	for line := range strings.SplitSeq(script, "\n") {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] != "kernel" && words[0] != "initrd" && words[0] != "chain" {
			continue
		}
		for _, word := range words {
			if strings.HasPrefix(word, "http://") {
				found = append(found, word)
				break
			}
		}
	}
	return found
}
