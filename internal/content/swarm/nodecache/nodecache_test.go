package nodecache

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"math"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"coldrack.dev/internal/agent/client"
	"coldrack.dev/internal/base/pki"
	"coldrack.dev/internal/content/fetch"
	"coldrack.dev/internal/content/swarm"
	"coldrack.dev/internal/content/swarm/kit"
	"coldrack.dev/internal/content/swarm/peer"
	"coldrack.dev/internal/contract/wire"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// site is a server with content, and the machines that it brings together.
type site struct {
	t       *testing.T
	ca      *pki.Authority
	tracker *swarm.Tracker
	blobs   map[string][]byte
	parts   []kit.Part
	kit     kit.Kit
	refusal error // of the kit
	web     *httptest.Server
	sent    atomic.Int64
}

const manifestType = "application/vnd.oci.image.manifest.v1+json"

func newSite(t *testing.T) *site {
	dir := t.TempDir()
	master, err := pki.OpenMasterKey(dir)
	check(t, err)
	ca, err := pki.OpenAuthority(dir, "machines", master)
	check(t, err)
	s := &site{t: t, ca: ca, tracker: swarm.NewTracker(swarm.TrackerOptions{}), blobs: map[string][]byte{}}
	s.add(9_000_000, "")
	s.add(1000, "")
	s.add(700, manifestType)
	s.add(3_000_000, "application/vnd.oci.image.layer.v1.tar+gzip")
	s.kit, err = kit.Make(t.Context(), s.parts, func(digest string) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(s.blobs[digest])), nil
	})
	check(t, err)
	s.web = httptest.NewServer(s)
	t.Cleanup(s.web.Close)
	return s
}

func (s *site) add(size int, mediaType string) {
	b := make([]byte, size)
	_, _ = mrand.NewChaCha8([32]byte{byte(len(s.parts))}).Read(b)
	sum := sha256.Sum256(b)
	p := kit.Part{Digest: "sha256:" + hex.EncodeToString(sum[:]), Size: int64(size), MediaType: mediaType}
	s.parts, s.blobs[p.Digest] = append(s.parts, p), b
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, ok := s.blobs["sha256:"+strings.TrimPrefix(r.URL.Path, "/content/sha256/")]
	if !ok {
		http.NotFound(w, r)
		return
	}
	http.ServeContent(&counter{w, &s.sent}, r, "", time.Time{}, bytes.NewReader(b))
}

type counter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c *counter) Write(b []byte) (int, error) {
	c.n.Add(int64(len(b)))
	return c.ResponseWriter.Write(b)
}

// api is the machine API as one node sees it.
type api struct {
	*site
	name, key string
}

func (a api) Kit(context.Context) (kit.Kit, error) { return a.kit, a.refusal }

func (a api) Swarm(_ context.Context, in wire.SwarmAnnounce) (wire.SwarmAnswer, error) {
	have, err := swarm.ParseSet(in.Have, in.Chunks)
	if err != nil {
		return wire.SwarmAnswer{}, err
	}
	me := swarm.Member{ID: a.name, Key: a.key}
	if in.Port > 0 {
		me.Address = fmt.Sprint("127.0.0.1:", in.Port)
	}
	told := a.tracker.Announce(time.Now(), in.Blob, me, swarm.Announcement{
		Have: have, Wants: in.Wants, Idle: in.Idle, Returned: in.Returned, Lost: in.Lost, Bad: in.Bad, Known: in.Known, Leaving: in.Leaving,
	})
	out := wire.SwarmAnswer{PeersVersion: told.PeersVersion, Fetch: told.Grants, AgainMillis: 100, AskMillis: 20}
	for _, p := range told.Peers {
		out.Peers = append(out.Peers, wire.SwarmPeer{Machine: p.ID, Address: p.Address, Key: p.Key, Near: p.Near})
	}
	return out, nil
}

var listeners atomic.Int64

// node is one machine of the site.
type node struct {
	*Sharer
	site   *site
	listen string
	end    func()
}

func (s *site) node(name, dir string) *node {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(s.t, err)
	chain, leaf, err := s.ca.SignClient(&key.PublicKey, "node:"+name, []string{"coldrack:node"}, time.Hour)
	check(s.t, err)
	pair, err := client.KeyPair(string(chain), key)
	check(s.t, err)
	sum := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	me := api{s, name, "sha256:" + hex.EncodeToString(sum[:])}
	log := slog.New(slog.DiscardHandler)
	n := &node{site: s, Sharer: New(Options{
		Log: log, Server: me, Dir: dir,
		Exchange: peer.Config{
			Log: log, Server: me, Certificate: func() *tls.Certificate { return &pair }, CAs: s.ca.Pool,
			Listen: func(ctx context.Context) (net.Listener, error) {
				return (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
			},
		},
		Source: func(base string) Source { return fetch.New(base, "test", nil) },
		Free:   func(string) int64 { return math.MaxInt64 },
	})}
	// An address that nobody has, and a port that the kernel gives to nobody who asks for any.
	n.listen = fmt.Sprintf("127.%d.%d.%d:7446", 64+os.Getpid()>>8%64, os.Getpid()%256, 1+listeners.Add(1)%250)
	return n
}

func (n *node) start() *node {
	ctx, cancel := context.WithCancel(context.Background())
	var group errgroup.Group
	group.Go(func() error { return n.Run(ctx) })
	n.Set(&wire.NodeKit{Listen: n.listen}, n.site.web.URL, "v1")
	n.end = func() {
		cancel()
		_ = group.Wait()
	}
	n.site.t.Cleanup(n.end)
	return n
}

// program fetches one part as bring-up does.
func (n *node) program(p kit.Part) error {
	var b bytes.Buffer
	ctx, cancel := context.WithTimeout(n.site.t.Context(), time.Minute)
	defer cancel()
	err := n.Through(fetch.New(n.site.web.URL, "test", nil)).Copy(ctx, "program", wire.Content{Digest: p.Digest, Size: p.Size}, &b)
	if err == nil && !bytes.Equal(b.Bytes(), n.site.blobs[p.Digest]) {
		return fmt.Errorf("%d bytes, which are not %s", b.Len(), p.Digest)
	}
	return err
}

func (n *node) whole() {
	n.site.t.Helper()
	path := filepath.Join(n.Dir, strings.TrimPrefix(n.site.kit.Digest, "sha256:"))
	for range 2400 {
		if info, err := os.Stat(path); err == nil && info.Size() == n.site.kit.Size() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	n.site.t.Fatal("the kit never was here as a whole")
}

// ask as containerd does.
func (n *node) ask(method, path, bytes string) (*http.Response, []byte) {
	n.site.t.Helper()
	r, err := http.NewRequestWithContext(n.site.t.Context(), method, "http://"+n.listen+path, nil)
	check(n.site.t, err)
	if bytes != "" {
		r.Header.Set("Range", bytes)
	}
	var resp *http.Response
	for range 3000 {
		if resp, err = http.DefaultClient.Do(r); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	check(n.site.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	check(n.site.t, err)
	return resp, b
}

func TestNodesGiveEachOtherWhatTheyFetch(t *testing.T) {
	s := newSite(t)
	var nodes []*node
	for i := range 8 {
		nodes = append(nodes, s.node(fmt.Sprint("n", i), t.TempDir()).start())
	}
	var group errgroup.Group
	for _, n := range nodes {
		group.Go(func() error {
			for _, p := range s.parts[:2] {
				if err := n.program(p); err != nil {
					return err
				}
			}
			return nil
		})
	}
	check(t, group.Wait())
	for _, n := range nodes {
		n.whole()
	}
	if kits := float64(s.sent.Load()) / float64(s.kit.Size()); kits > 4 {
		t.Errorf("the server sent %.1f kits to 8 nodes", kits)
	}

	n, manifest, layer := nodes[0], s.parts[2], s.parts[3]
	resp, b := n.ask("GET", "/v2/pause/manifests/"+manifest.Digest+"?ns=registry.k8s.io", "")
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != manifestType || !bytes.Equal(b, s.blobs[manifest.Digest]) {
		t.Errorf("a manifest: %s, %s, %d bytes", resp.Status, resp.Header.Get("Content-Type"), len(b))
	}
	if resp, b := n.ask("GET", "/v2/a/b/blobs/"+layer.Digest, ""); resp.StatusCode != http.StatusOK || !bytes.Equal(b, s.blobs[layer.Digest]) {
		t.Errorf("a layer: %s, %d bytes", resp.Status, len(b))
	}
	if resp, _ := n.ask("HEAD", "/v2/a/b/blobs/"+layer.Digest, ""); resp.ContentLength != layer.Size || resp.Header.Get("Docker-Content-Digest") != layer.Digest {
		t.Errorf("a layer's head: %s, %d bytes", resp.Status, resp.ContentLength)
	}
	if resp, b := n.ask("GET", "/v2/a/b/blobs/"+layer.Digest, "bytes=2999000-"); resp.StatusCode != http.StatusPartialContent || !bytes.Equal(b, s.blobs[layer.Digest][2999000:]) {
		t.Errorf("the rest of a layer: %s, %d bytes", resp.Status, len(b))
	}
	for _, path := range []string{"/v2/pause/manifests/3.10", "/v2/a/blobs/sha256:" + strings.Repeat("0", 64), "/v2/a/" + layer.Digest, "/" + layer.Digest, "/x/blobs/" + layer.Digest} {
		if resp, _ := n.ask("GET", path, ""); resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
	if resp, _ := n.ask("POST", "/v2/a/blobs/uploads/", ""); resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("a push: %s", resp.Status)
	}
	if resp, _ := n.ask("GET", "/v2/", ""); resp.StatusCode != http.StatusOK {
		t.Errorf("/v2/: %s", resp.Status)
	}
}

func TestAKitOutlivesTheAgent(t *testing.T) {
	s := newSite(t)
	dir := t.TempDir()
	check(t, os.WriteFile(filepath.Join(dir, "an-older-kit"), []byte("x"), 0o600))
	n := s.node("a", dir).start()
	n.whole()
	n.end()
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("there are %v, %v", entries, err)
	}
	before := s.sent.Load()
	n = s.node("a", dir).start()
	check(t, n.program(s.parts[0]))
	// Another gets it all from this one.
	other := s.node("b", t.TempDir()).start()
	other.whole()
	if sent := s.sent.Load() - before; sent > s.kit.Size()/2 {
		t.Errorf("the server sent %d bytes although a node had all", sent)
	}
	n.end()

	// What the disk has lost comes again.
	f, err := os.OpenFile(filepath.Join(dir, strings.TrimPrefix(s.kit.Digest, "sha256:")), os.O_WRONLY, 0)
	check(t, err)
	_, err = f.WriteAt([]byte("damage"), 4_000_000)
	check(t, err)
	check(t, f.Close())
	n = s.node("a", dir).start()
	check(t, n.program(s.parts[0]))
}

func TestWithoutAKitTheServerGivesAll(t *testing.T) {
	for name, change := range map[string]func(*site, *node){
		"a server that has none": func(s *site, _ *node) {
			s.refusal = &client.Error{Status: http.StatusNotFound, Code: wire.CodeNotFound}
		},
		"a kit that is none":  func(s *site, _ *node) { s.kit.Sums = s.kit.Sums[1:] },
		"a disk that is full": func(_ *site, n *node) { n.Free = func(string) int64 { return 1 << 20 } },
		"a server that takes for ever": func(s *site, n *node) {
			n.patience = 10 * time.Millisecond
			s.refusal = &client.Error{Status: http.StatusServiceUnavailable}
		},
		"a plan without one": func(_ *site, n *node) { n.listen = "" },
		"a folder that cannot be made": func(_ *site, n *node) {
			n.Dir = "/dev/null/x"
		},
		// The server says that the kit has it, and then lacks it there.
		"a kit with a part that nobody has": func(s *site, _ *node) {
			s.kit.Parts[3].Digest = "sha256:" + strings.Repeat("0", 64)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			n := s.node("a", t.TempDir())
			change(s, n)
			n.start()
			check(t, n.program(s.parts[0]))
			check(t, n.program(s.parts[1]))
			for range 3000 { // what has failed takes no room
				if left, _ := filepath.Glob(n.Dir + "/*"); len(left) == 0 {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
			t.Error("something is left on the disk")
		})
	}
}

func TestAnotherWishEndsTheFirst(t *testing.T) {
	s := newSite(t)
	n := s.node("a", t.TempDir()).start()
	check(t, n.program(s.parts[0]))
	n.Set(nil, "", "")
	for range 3000 {
		c, err := net.Dial("tcp", n.listen)
		if err != nil {
			break
		}
		_ = c.Close()
		time.Sleep(20 * time.Millisecond)
	}
	if c, err := net.Dial("tcp", n.listen); err == nil {
		_ = c.Close()
		t.Error("it still serves containerd")
	}
	check(t, n.program(s.parts[1]))
	n.Set(&wire.NodeKit{Listen: n.listen}, s.web.URL, "v2")
	check(t, n.program(s.parts[0]))
	n.whole()
}
