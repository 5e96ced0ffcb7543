package registry_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/pelletier/go-toml/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protowire"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/content/bundle"
	"coldrack.dev/internal/content/registry"
	"coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

type content struct{ store *bundle.Store }

func (c content) Images() []registry.Image {
	var all []registry.Image
	for _, a := range c.store.Artifacts() {
		if a.Kind == bundle.KindContainer {
			all = append(all, registry.Image{Name: a.Name, Digest: a.Digest})
		}
	}
	return all
}

func (c content) Open(digest string) (*os.File, int64, error) { return c.store.Open(digest) }

func must[T any](t *testing.T) func(T, error) T {
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// TestContainerdPullsThroughRenderedMirrors runs a real containerd with the configuration that a node of a cluster
// gets, in a network namespace from which nothing but the registry can be reached, and pulls as a kubelet does.
func TestContainerdPullsThroughRenderedMirrors(t *testing.T) {
	require.Need(t, "netns", "containerd", "ctr")
	images := map[string]v1.Image{}
	for _, reference := range []string{"registry.k8s.io/pause:3.10.2", "ghcr.io/flannel-io/flannel:v0.28.10", "coldrack.dev/probe:v2", "docker.io/library/web:1"} {
		image := must[v1.Image](t)(random.Image(100_000, 2))
		config := must[*v1.ConfigFile](t)(image.ConfigFile()).DeepCopy()
		config.OS, config.Architecture = "linux", "amd64"
		image = must[v1.Image](t)(mutate.ConfigFile(image, config))
		images[reference] = mutate.ConfigMediaType(mutate.MediaType(image, types.OCIManifestSchema1), types.OCIConfigJSON)
	}
	dir := t.TempDir()
	store := must[*bundle.Store](t)(bundle.OpenStore(filepath.Join(dir, "content")))
	importImages(t, store, images)

	ns := netns.New(t)
	served, err := registry.New(registry.Options{Content: content{store}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	var requests atomic.Int32
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		served.ServeHTTP(w, r)
	}))
	server.Listener.Close()
	if err := ns.Do(func() (err error) { server.Listener, err = net.Listen("tcp", "127.0.0.1:7444"); return err }); err != nil {
		t.Fatal(err)
	}
	server.StartTLS()
	defer server.Close()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})

	runtime := startContainerd(t, ns, dir, renderedFiles(t, "https://127.0.0.1:7444", ca))
	for reference, image := range images {
		before := requests.Load()
		got, err := runtime.pull(reference)
		if err != nil {
			t.Errorf("%s: %v\n%s", reference, err, runtime.log())
			continue
		}
		config := must[v1.Hash](t)(image.ConfigName())
		if got != config.String() {
			t.Errorf("%s: the image is %s, want its config's digest %s", reference, got, config)
		}
		if requests.Load() == before {
			t.Errorf("%s did not come from the registry", reference)
		}
	}
	// Pulled, unpacked and complete, says containerd's own tool.
	out, err := runtime.ctr("images", "check", "--snapshotter", "native")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for reference := range images {
		found := false
		for line := range strings.Lines(out) {
			found = found || strings.HasPrefix(line, reference+" ") && strings.Contains(line, "complete (") && strings.Contains(line, " true")
		}
		if !found {
			t.Errorf("%s is not whole and unpacked:\n%s", reference, out)
		}
	}
	if _, err := runtime.pull("registry.k8s.io/pause:none"); err == nil || !strings.Contains(err.Error(), "registry.k8s.io/pause:none: not found") {
		t.Errorf("an image that is not there: %v", err)
	}
	// By the tool that people use on a node, with the same folder of mirrors.
	if out, err := runtime.ctr("images", "pull", "--hosts-dir", filepath.Join(runtime.etc, "certs.d"), "--snapshotter", "native", "registry.k8s.io/pause@"+must[v1.Hash](t)(images["registry.k8s.io/pause:3.10.2"].Digest()).String()); err != nil {
		t.Errorf("ctr by digest: %v: %s", err, out)
	}
	if stats := served.Stats(); stats.Failed != 0 || stats.Bytes < 800_000 {
		t.Errorf("counted %+v", stats)
	}
}

func importImages(t *testing.T, store *bundle.Store, images map[string]v1.Image) {
	t.Helper()
	dir := t.TempDir()
	spec := bundle.Spec{Name: "images"}
	for name, image := range images {
		spec.Artifacts = append(spec.Artifacts, bundle.ArtifactSpec{Kind: bundle.KindContainer, Name: name, Image: image})
	}
	key, _, err := bundle.LoadOrCreateKey(filepath.Join(dir, "bundle.key"))
	if err != nil {
		t.Fatal(err)
	}
	trusted, err := bundle.LoadPublicKeys(filepath.Join(dir, "bundle.pub"))
	if err != nil {
		t.Fatal(err)
	}
	must[bundle.Summary](t)(bundle.Pack(t.Context(), spec, key, filepath.Join(dir, "b.tar"), nil))
	must[bundle.Summary](t)(bundle.Import(t.Context(), store, filepath.Join(dir, "b.tar"), trusted, nil))
}

// renderedFiles are those of containerd on a worker of a cluster.
func renderedFiles(t *testing.T, url string, ca []byte) []kube.File {
	t.Helper()
	cluster, groups, err := kube.Preset(v1alpha1.TopologyLaptop, kube.PresetOptions{Name: "lab"})
	if err != nil {
		t.Fatal(err)
	}
	machines, err := kube.Assign(cluster, groups, []kube.Machine{{
		Name: "m1", Hostname: "m1", Group: groups[0].Name, Addresses: []netip.Addr{netip.MustParseAddr("10.20.0.11")}, Interface: "eth0", Memory: 8 << 30,
	}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := kube.Render(kube.Input{
		Cluster: cluster, Groups: groups, Machines: machines,
		Authorities:        map[kube.Authority][]byte{kube.AuthorityKubernetes: []byte("a\n"), kube.AuthorityEtcd: []byte("b\n"), kube.AuthorityFrontProxy: []byte("c\n")},
		ServiceAccountKeys: []byte("d\n"), Registry: &kube.Registry{URL: url, CA: ca},
	})
	if err != nil {
		t.Fatal(err)
	}
	var files []kube.File
	for _, f := range plan.Nodes["m1"].Files {
		if strings.HasPrefix(f.Path, "/etc/containerd/") && !f.Mode.IsDir() {
			files = append(files, f)
		}
	}
	return files
}

// containerd is a running one.
type containerd struct {
	t       *testing.T
	ns      *netns.NS
	etc     string
	socket  string
	logFile string
	images  *grpc.ClientConn
}

// startContainerd writes the files below another folder than /etc/containerd and runs containerd on them.
func startContainerd(t *testing.T, ns *netns.NS, dir string, files []kube.File) *containerd {
	t.Helper()
	c := &containerd{t: t, ns: ns, etc: filepath.Join(dir, "etc"), logFile: filepath.Join(dir, "containerd.log")}
	// The path of a socket may have 107 characters.
	short, err := os.MkdirTemp("/tmp", "ctrd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(short) })
	c.socket = filepath.Join(short, "s")
	for _, f := range files {
		path := filepath.Join(c.etc, strings.TrimPrefix(f.Path, "/etc/containerd"))
		text := bytes.ReplaceAll(f.Content, []byte("/etc/containerd"), []byte(c.etc))
		if filepath.Base(path) == "config.toml" {
			text = moved(t, text, dir)
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	log, err := os.Create(c.logFile)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	// What it makes elsewhere, whatever its configuration says, goes with its mount namespace.
	command := exec.Command("unshare", "--mount", "sh", "-c", `mount -t tmpfs none /run && mount -t tmpfs none /opt && exec "$@"`, "sh",
		"containerd", "--config", filepath.Join(c.etc, "config.toml"), "--root", filepath.Join(dir, "root"),
		"--state", filepath.Join(short, "state"), "--address", c.socket)
	command.Stdout, command.Stderr = log, log
	if err := ns.Start(command); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	t.Cleanup(func() {
		_ = command.Process.Signal(os.Interrupt)
		select {
		case <-ended:
		case <-time.After(2 * time.Minute):
			_ = command.Process.Kill()
			<-ended
		}
	})
	if c.images, err = grpc.NewClient("unix://"+c.socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(rawMessages{}))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.images.Close() })
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if _, err = c.call("/runtime.v1.ImageService/ListImages", nil); err == nil {
			return c
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("containerd ended: %v\n%s", err, c.log())
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("containerd does not answer: %v\n%s", err, c.log())
		}
	}
}

// moved changes of a node's configuration what this machine may not have: overlayfs below a temporary folder, the right
// to set out-of-memory scores, folders of CNI.
func moved(t *testing.T, text []byte, dir string) []byte {
	t.Helper()
	var config map[string]any
	if err := toml.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	delete(config, "oom_score")
	plugins := config["plugins"].(map[string]any)
	plugins["io.containerd.cri.v1.images"].(map[string]any)["snapshotter"] = "native"
	plugins["io.containerd.cri.v1.runtime"].(map[string]any)["cni"] = map[string]any{"bin_dirs": []string{dir}, "conf_dir": dir}
	plugins["io.containerd.nri.v1.nri"] = map[string]any{"disable": true}
	// The transfer service unpacks for it.
	plugins["io.containerd.transfer.v1.local"] = map[string]any{"unpack_config": []map[string]any{{"platform": "linux/amd64", "snapshotter": "native"}}}
	text, err := toml.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (c *containerd) log() string {
	text, _ := os.ReadFile(c.logFile)
	return string(text)
}

func (c *containerd) ctr(args ...string) (string, error) {
	return c.ns.Try(c.t.Context(), append([]string{"ctr", "--address", c.socket, "--namespace", "k8s.io"}, args...)...)
}

// pull asks as a kubelet does, by the container runtime interface: PullImageRequest{image: ImageSpec{image: reference}}, both
// first fields; the answer's first field is the image's id.
func (c *containerd) pull(reference string) (string, error) {
	spec := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), reference)
	answer, err := c.call("/runtime.v1.ImageService/PullImage", protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), spec))
	if err != nil {
		return "", err
	}
	_, _, n := protowire.ConsumeTag(answer)
	if n < 0 {
		return "", fmt.Errorf("answer %q", answer)
	}
	id, n := protowire.ConsumeBytes(answer[n:])
	if n < 0 {
		return "", fmt.Errorf("answer %q", answer)
	}
	return string(id), nil
}

func (c *containerd) call(method string, request []byte) (answer []byte, err error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	err = c.images.Invoke(ctx, method, &request, &answer)
	return answer, err
}

// rawMessages leaves messages encoded, so that a few fields need no generated code.
type rawMessages struct{}

func (rawMessages) Name() string { return "proto" }

func (rawMessages) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

func (rawMessages) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = bytes.Clone(data)
	return nil
}
