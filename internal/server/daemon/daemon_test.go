package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/server/controlplane"
	"coldrack.dev/internal/server/peopleapi/credentials"
	"coldrack.dev/test/engines"
	"coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

// TestWhatKeepsAServerFromStartingIsNamed: each start fails before anything has happened.
func TestWhatKeepsAServerFromStartingIsNamed(t *testing.T) {
	// A namespace of the test's own: nobody else has ports there.
	ns := netns.New(t)
	withBoot := func(cfg *Config) { cfg.NoBoot, cfg.BootNetns = false, ns.Path() }
	taken, takenUDP := takeTCP(t, ns), takeUDP(t, ns)
	takenHere := takeTCP(t, nil)
	for name, c := range map[string]struct {
		spoil func(*Config)
		want  []string
	}{
		"the boot HTTP port is in use": {func(cfg *Config) { withBoot(cfg); cfg.BootPort = taken },
			[]string{"boot HTTP", strconv.Itoa(taken), "--boot-port"}},
		"the machine API's port is in use": {func(cfg *Config) { withBoot(cfg); cfg.MachinePort = taken },
			[]string{"machine API", strconv.Itoa(taken), "--machine-port"}},
		"the TFTP port is in use": {func(cfg *Config) { withBoot(cfg); cfg.TFTPPort = takenUDP },
			[]string{"TFTP", strconv.Itoa(takenUDP), "--tftp-port"}},
		"the people's API's port is in use": {func(cfg *Config) { cfg.APIAddress = fmt.Sprintf("127.0.0.1:%d", takenHere) },
			[]string{strconv.Itoa(takenHere), "--api-address"}},
		"the network namespace does not exist": {func(cfg *Config) { withBoot(cfg); cfg.BootNetns = "coldrack-gone" },
			[]string{"coldrack-gone", "coldrack lab up"}},
		"a manifest is broken, before a port is": {func(cfg *Config) {
			withBoot(cfg)
			cfg.BootPort = taken
			cfg.Manifests = []string{writeManifest(t, "kind: [")}
		}, []string{"manifest.yaml: document 1: line 2"}},
		"a manifest is of a kind that is not ours": {func(cfg *Config) {
			cfg.Manifests = []string{writeManifest(t, "apiVersion: v1\nkind: Secret\nmetadata: {name: x}\n---\napiVersion: coldrack.dev/v1alpha1\nkind: Mashine\nmetadata: {name: y}\n")}
		}, []string{`document 1 (Secret x): line 1: apiVersion: "v1": must be coldrack.dev/v1alpha1`, `document 2 (Mashine y): line 6: kind: "Mashine": there is no such kind`}},
		"a manifest is not there": {func(cfg *Config) { cfg.Manifests = []string{"gone.yaml"} }, []string{"manifests", "gone.yaml"}},
		"a trusted key is none":   {func(cfg *Config) { cfg.TrustedKeys = []string{writeManifest(t, "hello")} }, []string{"manifest.yaml"}},
		"the data folder is a file": {func(cfg *Config) { cfg.DataDir = writeManifest(t, "") },
			[]string{"dataDir", "is not a folder"}},
		"two stores": {func(cfg *Config) { cfg.Kubeconfig, cfg.EtcdEndpoints = "a", []string{"b"} }, []string{"exclude each other"}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t)
			c.spoil(&cfg)
			wantAll(t, refused(t, cfg), c.want...)
		})
	}
}

// TestServer is one server's life with everything switched on, since a start takes a second.
func TestServer(t *testing.T) {
	ns, machine := netns.New(t), netns.New(t)
	netns.Veth(ns, "rack0", machine, "eth0")
	ns.Address("rack0", "10.20.0.2/24")
	machine.Address("eth0", "10.20.0.9/24")

	cfg := testConfig(t)
	cfg.NoBoot, cfg.BootNetns, cfg.Interfaces = false, ns.Path(), []string{"rack0"}
	path, keyPath := sampleBundle(t)
	cfg.TrustedKeys = []string{keyPath}
	// YAML 1.1 would take "off" for false here.
	cfg.Manifests = []string{writeManifest(t, rackSubnet+"---\napiVersion: coldrack.dev/v1alpha1\nkind: Subnet\nmetadata: {name: silent}\nspec: {cidr: 10.21.0.0/24, dhcp: off}\n")}
	first := run(t, cfg)
	objects := kinds(t, first.rest)
	web, err := rest.HTTPClientFor(first.rest)
	check(t, err)
	ask := func(method, path string, body io.Reader) (*http.Response, string) {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), method, first.rest.Host+path, body)
		check(t, err)
		response, err := web.Do(request)
		check(t, err)
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		check(t, err)
		return response, string(text)
	}

	t.Run("manifests are applied and judged", func(t *testing.T) {
		wantSubnet(t, objects, "rack")
		wantSubnet(t, objects, "silent")
	})
	t.Run("a second server keeps off the data folder", func(t *testing.T) {
		second := testConfig(t)
		second.DataDir = cfg.DataDir
		wantAll(t, refused(t, second), "data folder "+cfg.DataDir, "in use by another coldrack server", strconv.Itoa(os.Getpid()), "--data-dir")
	})
	t.Run("an upload that was cut off goes on where it ended", func(t *testing.T) {
		content, err := os.ReadFile(path)
		check(t, err)
		const at = "/coldrack/v1/bundles?name=test.bundle"
		half := len(content) / 2
		// The client's line breaks in the middle of the body.
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPut, first.rest.Host+at, io.MultiReader(bytes.NewReader(content[:half]), cut{}))
		check(t, err)
		request.ContentLength = int64(len(content))
		if response, err := web.Do(request); err == nil {
			response.Body.Close()
			t.Fatal("half an upload was taken for a whole one")
		}
		// A line that breaks may lose what was under way; what has arrived is told.
		arrived := 0
		eventually(t, func() error {
			response, _ := ask(http.MethodHead, at, nil)
			arrived, err = strconv.Atoi(response.Header.Get(offsetHeader))
			check(t, err)
			if arrived == 0 || !strings.Contains(first.log.String(), "bundle upload ended early") {
				return fmt.Errorf("%d bytes have arrived", arrived)
			}
			return nil
		})
		response, text := ask(http.MethodPut, fmt.Sprintf("%s&offset=%d", at, len(content)), bytes.NewReader(nil))
		if response.StatusCode != http.StatusConflict {
			t.Errorf("an upload with a hole: %s: %s", response.Status, text)
		}
		_, text = ask(http.MethodPut, fmt.Sprintf("%s&offset=%d", at, arrived), bytes.NewReader(content[arrived:]))
		wantAll(t, text, `{"bundle":`, `"name":"test"`)
		if _, err := os.Stat(filepath.Join(cfg.DataDir, "uploads", "test.bundle")); !os.IsNotExist(err) {
			t.Errorf("the upload is kept after its import: %v", err)
		}
		eventually(t, func() error {
			image := &v1alpha1.Image{}
			return objects.Get(t.Context(), metaKey("debian-12"), image)
		})
	})
	t.Run("an upload that is no bundle changes nothing", func(t *testing.T) {
		_, text := ask(http.MethodPut, "/coldrack/v1/bundles?name=bad", strings.NewReader("hello"))
		wantAll(t, text, `{"error":`)
		if response, _ := ask(http.MethodPut, "/coldrack/v1/bundles?name=..%2Flock", strings.NewReader("hello")); response.StatusCode != http.StatusBadRequest {
			t.Errorf("an upload to ../lock: %s", response.Status)
		}
	})
	t.Run("a machine boots, and metrics tell of it", func(t *testing.T) {
		out := machine.Run("curl", "-sSf", "http://10.20.0.2:7080/boot/ipxe?mac=52-54-00-00-00-01&arch=x86_64&platform=efi")
		wantAll(t, out, "Discover", "kernel --name vmlinuz http://10.20.0.2:7080/content/sha256/")
		eventually(t, func() error {
			_, text := ask(http.MethodGet, metricsPath, nil)
			for _, want := range []string{
				`coldrack_boots_total{action="Discover"} 1`, `coldrack_boots_total{action="Refuse"} 0`,
				`coldrack_machines{phase="Discovering"} 1`, `coldrack_machines{phase="Ready"} 0`,
				`coldrack_boot_http_requests_total 1`, `coldrack_tftp_transfers 0`,
				`coldrack_dhcp_pool_addresses{state="free",subnet="rack"} 101`,
			} {
				if !strings.Contains(text, want+"\n") {
					return fmt.Errorf("the metrics lack %q:\n%s", want, text)
				}
			}
			return nil
		})
	})
	t.Run("the log has nothing of the libraries' own", func(t *testing.T) {
		if text := first.log.String(); strings.Contains(text, "Starting EventSource") || strings.Contains(text, "Starting Controller") {
			t.Errorf("log:\n%s", text)
		}
	})
	t.Run("it stops, and another start goes on", func(t *testing.T) {
		first.stop()
		again := run(t, cfg)
		objects := kinds(t, again.rest)
		wantSubnet(t, objects, "rack")
		check(t, objects.Get(t.Context(), metaKey("debian-12"), &v1alpha1.Image{}))
		again.stop()
		if text := again.log.String(); strings.Contains(text, "level=ERROR") {
			t.Errorf("errors in the log of the second life:\n%s", text)
		}
	})
}

func TestUploadToAFullDisk(t *testing.T) {
	require.Need(t, "root")
	cfg := testConfig(t)
	uploads := cfg.path("uploads")
	check(t, os.MkdirAll(uploads, 0o700))
	status, said := make(chan int, 1), make(chan error, 1)
	go func() {
		// A mount namespace of this thread alone, which ends with the goroutine: nothing is left behind.
		runtime.LockOSThread()
		err := errors.Join(unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS),
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount("small", uploads, "tmpfs", 0, "size=16k"))
		code := 0
		if err == nil {
			body := bytes.NewReader(make([]byte, 1<<20))
			code, err = newImporter(cfg, nil, discard()).spool(httptest.NewRequest(http.MethodPut, "/?name=big", body), cfg.path("uploads", "big"))
		}
		status <- code
		said <- err
	}()
	code, err := <-status, <-said
	if code != http.StatusInsufficientStorage || err == nil {
		t.Fatalf("status %d: %v", code, err)
	}
	wantAll(t, err.Error(), "disk is full", cfg.DataDir, "run the import again")
}

// cut is the end of a line that broke.
type cut struct{}

func (cut) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestOneBadSubnetDoesNotKeepTheOthersFromDHCP(t *testing.T) {
	subnet := func(name, cidr, pool string) v1alpha1.Subnet {
		return v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.SubnetSpec{CIDR: cidr, Discovery: pool, DHCP: v1alpha1.DHCPServer}}
	}
	named := subnet("named", "10.4.0.0/24", "10.4.0.10-10.4.0.20")
	named.Spec.NTP = []string{"ntp.example.org", "10.4.0.1"}
	proxy := subnet("proxy", "10.5.0.0/24", "")
	proxy.Spec.DHCP = v1alpha1.DHCPProxy
	proxy6, pool6 := subnet("six-proxy", "fd00:6::/64", ""), subnet("six-pool", "fd00:7::/64", "fd00:7::1-fd00:7::20")
	proxy6.Spec.DHCP, pool6.Spec.Gateway = v1alpha1.DHCPProxy, "fd00:7::1"
	sink, log := testDHCPSubnets(t)
	sink.SetSubnets([]v1alpha1.Subnet{
		subnet("good", "10.1.0.0/24", "10.1.0.10-10.1.0.20"),
		subnet("broken", "10.2.0.0", ""),
		subnet("outside", "10.3.0.0/24", "10.9.0.10-10.9.0.20"),
		subnet("overlap", "10.1.0.128/25", "10.1.0.130-10.1.0.140"),
		subnet("six", "fd00::/64", "fd00::10-fd00::20"),
		proxy, named, proxy6, pool6,
	})
	var got []string
	for _, s := range sink.server.Stats().Subnets {
		got = append(got, s.Name)
	}
	if strings.Join(got, " ") != "good proxy named" {
		t.Errorf("DHCP serves %v", got)
	}
	for _, name := range []string{"broken", "outside", "overlap"} {
		if !strings.Contains(log.String(), "subnet="+name+" ") {
			t.Errorf("the log does not say why %s is not served:\n%s", name, log)
		}
		if report, _ := sink.Subnet(name); report.Served || report.Refused == "" {
			t.Errorf("the report of %s is %+v", name, report)
		}
	}
	for name, served := range map[string]bool{"good": true, "named": true, "proxy": true, "six": true} {
		if report, known := sink.Subnet(name); !known || report.Served != served || report.Refused != "" {
			t.Errorf("the report of %s is %+v", name, report)
		}
	}
	if six := sink.six.Stats().Subnets; len(six) != 1 || six[0].Name != "six" {
		t.Errorf("DHCPv6 serves %v", six)
	}
	for name, want := range map[string]string{"six-proxy": "is not a mode of DHCPv6", "six-pool": "contains the gateway"} {
		if report, _ := sink.Subnet(name); report.Served || !strings.Contains(report.Refused, want) {
			t.Errorf("the report of %s is %+v", name, report)
		}
	}
}

func TestServerOnAnEtcdOfItsOwn(t *testing.T) {
	require.Need(t, "etcd")
	cfg := testConfig(t)
	endpoint, _ := engines.Etcd(t)
	cfg.EtcdEndpoints = []string{endpoint}
	cfg.Manifests = []string{writeManifest(t, rackSubnet)}
	r := run(t, cfg)
	wantSubnet(t, kinds(t, r.rest), "rack")
	if _, err := os.Stat(filepath.Join(cfg.DataDir, "etcd")); !os.IsNotExist(err) {
		t.Errorf("an embedded etcd ran as well: %v", err)
	}
}

func TestServerOnAnExistingKubernetes(t *testing.T) {
	kubeconfig, admin := kubernetesLike(t)
	cfg := testConfig(t)
	cfg.Kubeconfig = kubeconfig
	cfg.Manifests = []string{writeManifest(t, rackSubnet)}
	run(t, cfg)
	wantSubnet(t, kinds(t, admin), "rack")
}

// kubernetesLike runs a Kubernetes-style API that knows Leases but none of our kinds.
func kubernetesLike(t *testing.T) (kubeconfig string, admin *rest.Config) {
	t.Helper()
	cfg := testConfig(t)
	lock, err := lockDataDir(cfg)
	check(t, err)
	defer lock.Close()
	keys, err := openKeys(cfg)
	check(t, err)
	s := &server{cfg: cfg, keys: keys}
	certPEM, keyPEM, err := s.servingCertificate()
	check(t, err)
	plane, err := controlplane.Start(t.Context(), controlplane.Config{
		Logger: discard(), DataDir: cfg.DataDir, Address: cfg.APIAddress,
		ServingCert: certPEM, ServingKey: keyPEM, ClientCAs: keys.people.CertPEM(), EncryptionKey: bytes.Repeat([]byte{7}, 32),
	})
	check(t, err)
	t.Cleanup(sync.OnceFunc(plane.Stop))
	admin = plane.RESTConfig()
	engines.Foreign(t, admin)
	content, err := credentials.Kubeconfig(keys.people, credentials.URL(plane.Address()), "admin", []string{controlplane.GroupAdmin}, time.Hour)
	check(t, err)
	kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	check(t, os.WriteFile(kubeconfig, content, 0o600))
	return kubeconfig, admin
}
