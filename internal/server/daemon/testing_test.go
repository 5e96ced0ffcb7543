package daemon

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/etcddata"
	"coldrack.dev/internal/content/bundle"
	"coldrack.dev/internal/content/diskimage"
	"coldrack.dev/internal/contract/nodeconfig"
	"coldrack.dev/internal/netboot/dhcp"
	"coldrack.dev/internal/netboot/dhcp6"
	"coldrack.dev/test/netns"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// runEnv makes the test binary a server: its value is a Config in JSON.
const runEnv = "COLDRACK_TEST_RUN"

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == etcddata.Verb { // the process that reads snapshots
		if err := etcddata.Serve(os.Stdin, os.Stdout); err != nil {
			os.Exit(1)
		}
		return
	}
	TakeLibraryLogs(discard())
	if config := os.Getenv(runEnv); config != "" {
		if err := runConfig(config); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	m.Run()
}

func runConfig(text string) error {
	var cfg Config
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	fill := make(chan os.Signal, 1)
	signal.Notify(fill, syscall.SIGUSR1)
	go func() {
		for range fill {
			if err := fillLogOfStore(cfg.DataDir); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}
	}()
	return Run(ctx, cfg, slog.New(slog.NewTextHandler(os.Stderr, nil)))
}

// within is how long tests wait for what a server does by itself: a loaded machine is slow with -race.
const within = 2 * time.Minute

// eventually waits until what returns nil.
func eventually(t testing.TB, what func() error) {
	t.Helper()
	for end := time.Now().Add(within); ; time.Sleep(20 * time.Millisecond) {
		err := what()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after %s: %v", within, err)
		}
	}
}

// sampleBundle packs a small bundle that has all that a rack needs, and returns the files of the bundle and of the
// key that signed it.
func sampleBundle(t testing.TB) (path, keyPath string) {
	t.Helper()
	dir := t.TempDir()
	write := func(title string, content []byte) bundle.FileSpec {
		path := filepath.Join(dir, title)
		check(t, os.WriteFile(path, content, 0o644))
		return bundle.FileSpec{Title: title, Path: path}
	}
	files := func(titles ...string) (specs []bundle.FileSpec) {
		for _, title := range titles {
			specs = append(specs, write(title, bytes.Repeat([]byte(title+"\n"), 200)))
		}
		return specs
	}
	raw := bytes.Repeat([]byte("root file system\n"), 8192)
	raw = append(raw, make([]byte, 4096-len(raw)%4096)...)
	var chunks bytes.Buffer
	index, err := diskimage.Encode(context.Background(), bytes.NewReader(raw), int64(len(raw)), &chunks)
	check(t, err)
	encoded, err := json.Marshal(index)
	check(t, err)
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, ed25519.SeedSize))
	path = filepath.Join(dir, "test.bundle")
	_, err = bundle.Pack(context.Background(), bundle.Spec{Name: "test", Created: time.Unix(1_750_000_000, 0), Artifacts: []bundle.ArtifactSpec{
		{Kind: bundle.KindImage, Name: "debian-12", Config: bundle.ImageConfig{
			Name: "debian-12", Family: "debian", Version: "12.11", Arch: "amd64", KernelVersion: "6.1.0", RootFS: "ext4", Size: int64(len(raw)),
			Facts: &nodeconfig.ImageFacts{Version: nodeconfig.FactsVersion, Units: []string{"systemd-networkd.service"}, Timezones: []string{"Etc/UTC"}},
		}, Files: []bundle.FileSpec{write(bundle.FileImageIndex, encoded), write(bundle.FileImageChunks, chunks.Bytes())}},
		{Kind: bundle.KindNetboot, Name: "discovery", Config: bundle.NetbootConfig{Name: "discovery", Arch: "amd64", KernelVersion: "6.1.0", AgentVersion: "v0"},
			Files: files(bundle.FileKernel, bundle.FileInitrd)},
		{Kind: bundle.KindBootloaders, Name: "amd64", Config: bundle.BootloadersConfig{Name: "amd64", Arch: "amd64"},
			Files: files(bundle.FileUndionly, bundle.FileIPXE, bundle.FileSNPOnly, bundle.FileLocal, bundle.FileLocalPC, bundle.FileBootImg, bundle.FileCoreImg, bundle.FileShim, bundle.FileGRUB)},
		{Kind: bundle.KindContainer, Name: sampleImage, Image: containerImage(t)},
	}}, key, path, nil)
	check(t, err)
	keyPath = filepath.Join(dir, "key.pub")
	check(t, os.WriteFile(keyPath, bundle.MarshalPublicKey(key.Public().(ed25519.PublicKey)), 0o644))
	return path, keyPath
}

// listener is the handler of a test's log: it keeps everything and tells when the server says that it is ready.
type listener struct {
	slog.Handler
	ready chan struct{}
	once  *sync.Once
}

func (l listener) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == "ready" {
		l.once.Do(func() { close(l.ready) })
	}
	return l.Handler.Handle(ctx, r)
}
func (l listener) WithAttrs(attrs []slog.Attr) slog.Handler {
	return listener{l.Handler.WithAttrs(attrs), l.ready, l.once}
}
func (l listener) WithGroup(name string) slog.Handler {
	return listener{l.Handler.WithGroup(name), l.ready, l.once}
}

// logText is a log that can be read while it is written.
type logText struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logText) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// running is a server in this process.
type running struct {
	cfg  Config
	rest *rest.Config // of people's API, as its first administrator; nil when the kinds live elsewhere
	log  *logText
	stop func() // gracefully; fails the test when it is no graceful stop
}

// testConfig is a configuration without boot services that works.
func testConfig(t testing.TB) Config {
	t.Helper()
	cfg := DefaultConfig()
	cfg.DataDir = filepath.Join(t.TempDir(), "data")
	cfg.APIAddress = "127.0.0.1:0"
	cfg.NoBoot = true
	return cfg
}

// run starts a server and waits until it is ready.
func run(t *testing.T, cfg Config) *running {
	t.Helper()
	text := &logText{}
	ready := make(chan struct{})
	log := slog.New(listener{slog.NewTextHandler(text, &slog.HandlerOptions{Level: slog.LevelInfo}), ready, &sync.Once{}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, cfg, log) }()
	r := &running{cfg: cfg, log: text}
	r.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("the server stopped with %v", err)
			}
		case <-time.After(within):
			t.Errorf("the server does not stop")
		}
	})
	t.Cleanup(func() {
		r.stop()
		if t.Failed() {
			t.Logf("log of the server:\n%s", text)
		}
	})
	select {
	case <-ready:
	case err := <-done:
		done <- nil
		t.Fatalf("the server did not become ready: %v\n%s", err, text)
	case <-time.After(within):
		t.Fatalf("the server is not ready after %s", within)
	}
	if cfg.Kubeconfig == "" {
		r.rest = kubeconfigOf(t, cfg)
	}
	return r
}

// kubeconfigOf is people's API of a server, as its first administrator.
func kubeconfigOf(t testing.TB, cfg Config) *rest.Config {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", cfg.AdminKubeconfig())
	check(t, err)
	return config
}

// refused runs a server that must not start, and returns why.
func refused(t *testing.T, cfg Config) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	err := Run(ctx, cfg, slog.New(slog.DiscardHandler))
	if err == nil {
		t.Fatal("the server started")
	}
	return err.Error()
}

func kinds(t testing.TB, config *rest.Config) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	check(t, v1alpha1.AddToScheme(scheme))
	c, err := client.New(config, client.Options{Scheme: scheme})
	check(t, err)
	return c
}

// writeManifest writes a file for Config.Manifests.
func writeManifest(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "manifest.yaml")
	check(t, os.WriteFile(path, []byte(text), 0o644))
	return path
}

const rackSubnet = `
apiVersion: coldrack.dev/v1alpha1
kind: Subnet
metadata: {name: rack}
spec: {cidr: 10.20.0.0/24, gateway: 10.20.0.1, discovery: 10.20.0.100-10.20.0.200, static: 10.20.0.10-10.20.0.99}
`

// wantSubnet waits until a controller has judged a Subnet.
func wantSubnet(t *testing.T, c client.Client, name string) {
	t.Helper()
	eventually(t, func() error {
		subnet := &v1alpha1.Subnet{}
		if err := c.Get(context.Background(), client.ObjectKey{Name: name}, subnet); err != nil {
			return err
		}
		for _, condition := range subnet.Status.Conditions {
			if condition.Type == v1alpha1.ConditionReady && condition.Status == "True" {
				return nil
			}
		}
		return fmt.Errorf("subnet %s is not ready: %v", name, subnet.Status.Conditions)
	})
}

// takeTCP holds a port of a namespace, nil for the test's own, until the test ends.
func takeTCP(t testing.TB, ns *netns.NS) int {
	t.Helper()
	var l net.Listener
	check(t, inside(ns, func() (err error) { l, err = net.Listen("tcp", "127.0.0.1:0"); return err }))
	t.Cleanup(func() { l.Close() })
	return l.Addr().(*net.TCPAddr).Port
}

func takeUDP(t testing.TB, ns *netns.NS) int {
	t.Helper()
	var c *net.UDPConn
	check(t, inside(ns, func() (err error) {
		c, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		return err
	}))
	t.Cleanup(func() { c.Close() })
	return c.LocalAddr().(*net.UDPAddr).Port
}

func inside(ns *netns.NS, f func() error) error {
	if ns == nil {
		return f()
	}
	return ns.Do(f)
}

func wantAll(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q\nlacks %q", text, part)
		}
	}
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func metaKey(name string) client.ObjectKey { return client.ObjectKey{Name: name} }

type nobody struct{}

func (nobody) Reservation(netip.Prefix, dhcp.Query) (dhcp.Reservation, bool) {
	return dhcp.Reservation{}, false
}
func (nobody) Options(dhcp.Query) []dhcp.Option                        { return nil }
func (nobody) Reserved(netip.Addr) bool                                { return false }
func (nobody) BootFile(netip.Prefix, dhcp.Query) (dhcp.BootFile, bool) { return dhcp.BootFile{}, false }
func (nobody) Observe(dhcp.Observation)                                {}

// testDHCPSubnets returns what passes IP plans on to a real DHCP server, which does not listen, and its log.
func testDHCPSubnets(t *testing.T) (*dhcpSubnets, *logText) {
	t.Helper()
	text := &logText{}
	base := dhcp.Config{Interfaces: []string{"eth0"}}
	server, err := dhcp.New(dhcp.Options{Backend: nobody{}, Dir: t.TempDir(), Log: discard()}, base)
	check(t, err)
	base6 := dhcp6.Config{Interfaces: []string{"eth0"}}
	six, err := dhcp6.New(dhcp6.Options{Backend: dhcp6Backend{}, Dir: t.TempDir(), Log: discard()}, base6)
	check(t, err)
	return newDHCPSubnets(DefaultConfig(), server, six, base, base6, testReach(t, ""), slog.New(slog.NewTextHandler(text, nil))), text
}
