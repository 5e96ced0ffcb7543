package daemon

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"coldrack.dev/internal/agent/identity"
	"coldrack.dev/internal/agent/nodecert"
	"coldrack.dev/internal/server/controlplane"
	"coldrack.dev/internal/server/etcddiscovery"
	"coldrack.dev/internal/server/peopleapi"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
	"coldrack.dev/internal/server/ui"
)

// Where keys, certificates and tokens rest, and what row of docs/operations.md, "What ends, and when", they are. The first that
// matches counts. Which functions make them is in test/house.
func restingPlaces() []struct{ where, row string } {
	const (
		authorities = "authorities of machines and of people"
		cluster     = "authorities of a cluster"
		keys        = "a cluster's service-account key and the key that its Secrets are encrypted with"
		node        = "a node's certificate in a cluster (API server, etcd, clients), and the kubeconfigs with it"
		identity    = "identity of a node"
	)
	return []struct{ where, row string }{
		{`^data/pki/(machine|people)-ca\.(crt authority|key\.sealed sealed)$`, authorities},
		{`^data/pki/master\.key secret$`, "the server's master key, and what is derived from it"},
		{`^data/admin\.kubeconfig authority$`, authorities},
		{`^data/admin\.kubeconfig (certificate|key)$`, "`admin.kubeconfig`"},
		{`^data/tokens\.json secret$`, "a person's token (`coldrack token create`)"},
		{`^data/ui-sessions\.json secret$`, "session of the web pages"},
		{`^data/etcd-discovery\.json secret$`, "token for the discovery of an etcd cluster"},
		{`^store/secrets/cluster-lab (ca|front-proxy-ca|etcd-ca)\.(crt authority|key key)$`, cluster},
		{`^store/secrets/cluster-lab \S+ (public key|key|secret)$`, keys},
		{`^node/etc/coldrack/agent\.json authority$`, authorities},
		{`^node/var/lib/coldrack/agent/node\.pem (certificate|key)$`, identity},
		{`^node/etc/containerd/certs\.d/\S+ authority$`, authorities},
		{`^node/var/lib/kubelet/pki/kubelet-client-coldrack\.pem (certificate|key)$`, "the kubelet's two certificates"},
		{`^node/etc/kubernetes/(pki/)?(\S+/)?\S+ authority$`, cluster},
		{`^node/etc/kubernetes/pki/sa\.(key key|pub public key)$`, keys},
		{`^node/etc/kubernetes/\S*encryption\S* secret$`, keys},
		{`^node/etc/kubernetes/\S+ (certificate|key)$`, node},
		{`^node/var/lib/coldrack/\S+ (certificate|key)$`, node},
	}
}

// resting is a key, a certificate or a secret that was found.
type resting struct {
	what string // authority, certificate, key, public key, secret or sealed
	cert *x509.Certificate
}

var (
	encodedPEM = regexp.MustCompile(`LS0tLS1CRUdJTi[A-Za-z0-9+/]+=*`)
	hexSecret  = regexp.MustCompile(`(^|[^0-9a-f:])([0-9a-f]{64}|[0-9a-f]{32})($|[^0-9a-f])`)
	// A record of the audit log names a certificate by its digest.
	certificateID = regexp.MustCompile(`X509SHA256=[0-9a-f]{64}`)
	textSecret    = regexp.MustCompile(`(^|[^A-Za-z0-9+/=])[A-Za-z0-9+/]{43}=($|[^A-Za-z0-9+/=])`)
)

// restingIn finds keys, certificates and secrets in a file or a field, also those that are in base64 or in a string of JSON.
func restingIn(content []byte) []resting {
	var found []resting
	begins := []byte("LS0tLS1CRUdJTi") // in base64
	for rest, i := content, 0; ; rest = rest[i+len(begins):] {
		if i = bytes.Index(rest, begins); i < 0 {
			break
		}
		encoded := encodedPEM.Find(rest[i:])
		if decoded, err := base64.StdEncoding.DecodeString(string(encoded)); err == nil {
			found = append(found, restingIn(decoded)...)
		}
	}
	rest := content
	if bytes.Contains(content, []byte("-----BEGIN ")) {
		rest = bytes.ReplaceAll(content, []byte(`\n`), []byte("\n"))
	}
	for {
		i := bytes.Index(rest, []byte("-----BEGIN "))
		if i < 0 {
			break
		}
		block, after := pem.Decode(rest[i:])
		if block == nil {
			break
		}
		rest = after
		switch {
		case block.Type == "CERTIFICATE":
			if cert, err := x509.ParseCertificate(block.Bytes); err != nil {
				found = append(found, resting{what: "certificate that cannot be read"})
			} else if cert.IsCA {
				found = append(found, resting{"authority", cert})
			} else {
				found = append(found, resting{"certificate", cert})
			}
		case strings.HasSuffix(block.Type, "PRIVATE KEY"):
			found = append(found, resting{what: "key"})
		default:
			found = append(found, resting{what: strings.ToLower(block.Type)})
		}
	}
	if bytes.IndexByte(content, 0) >= 0 {
		return found // a digest in a database is no secret
	}
	content = certificateID.ReplaceAll(content, nil)
	if hexSecret.Match(content) || textSecret.Match(content) {
		found = append(found, resting{what: "secret"})
	}
	return found
}

// Everything that a server and a node keep is in the table of what ends: after a machine was installed and became the node of a cluster,
// and people got all that they can get, the data folder, the store and the node's files are looked through.
func TestWhatRestsIsInTheTableOfWhatEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var background sync.WaitGroup
	defer background.Wait()
	defer cancel()
	w := newYears(t, ctx, &background)
	s := w.server
	people := handOut(t, w)

	table := newEndTable(t)
	table.walk("data", s.cfg.DataDir, func(path string) bool {
		// What stands for content by its digest is no secret. The store's own files are looked through below, by its API; here they may
		// hold nothing that can be read.
		return strings.HasPrefix(path, "data/content/") || strings.HasPrefix(path, "data/images/")
	})
	table.walkStore(people)
	layNode(t, w)
	table.walk("node", w.disk.Root, nil)
	table.done()
}

// handOut starts the real store and people's API on the server's keys, keeps a cluster there, and gets what people get.
func handOut(t *testing.T, w *years) *rest.Config {
	s := w.server
	s.cfg.APIAddress = "127.0.0.1:0"
	s.clusterAPI, s.bootGate = peopleapi.NewClusterAPI(discard()), newBootGate(1000, func() bool { return true })
	s.metrics, s.importer = newMetrics(s.fleet), newImporter(s.cfg, nil, discard())
	var err error
	s.images, err = s.newImages(s.importer.reserve)
	check(t, err)
	s.ui, err = ui.New(s.cfg.path("ui-sessions.json"), discard())
	check(t, err)
	s.plane, err = s.startControlPlane(t.Context())
	check(t, err)
	t.Cleanup(s.plane.Stop)
	s.people = s.plane
	_, err = s.greet()
	check(t, err)

	c := kinds(t, s.plane.RESTConfig())
	check(t, c.Create(t.Context(), w.secret))
	_, err = controlplane.OpenTokens(controlplane.TokensPath(s.cfg.DataDir)).Create("robot", []string{controlplane.GroupViewer}, 365*day)
	check(t, err)
	registry, err := etcddiscovery.Open(s.cfg.path("etcd-discovery.json"))
	check(t, err)
	_, err = registry.New(3, 0, "anna", false)
	check(t, err)
	admin, err := clientcmd.BuildConfigFromFlags("", s.cfg.AdminKubeconfig())
	check(t, err)
	browser, err := rest.HTTPClientFor(admin)
	check(t, err)
	answer, err := browser.Post(admin.Host+peoplewire.PathUISession, "application/json", nil)
	check(t, err)
	answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		t.Fatalf("a session of the web pages: %s", answer.Status)
	}
	return s.plane.RESTConfig()
}

// layNode writes what a node of the plan has: its agent's settings, files, certificates and kubeconfigs.
func layNode(t *testing.T, w *years) {
	id := mustLoad(t, w.disk)
	machine := strings.TrimPrefix(id.Certificate.Leaf.Subject.CommonName, "node:")
	for _, m := range w.server.fleet.List() {
		if m.Status.Installed != nil {
			machine = m.Name
		}
	}
	settings, err := identity.Settings{Machine: machine, Server: "https://10.0.0.1:7444", Pin: w.server.keys.machines.Fingerprint(), CA: string(w.server.keys.machines.CertPEM())}.Encode()
	check(t, err)
	check(t, os.MkdirAll(w.disk.At("/etc/coldrack"), 0o755))
	check(t, os.WriteFile(w.disk.At(identity.SettingsFile), settings, 0o600))
	assignment, _ := w.server.clusters.Node(machine)
	plan := assignment.Plan
	eventually(t, func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, c := range plan.Certificates {
			if look, err := nodecert.Look(w.disk, plan, c, time.Now()); err != nil || !look.Usable {
				return fmt.Errorf("certificate %s: %+v, %v", c.Name, look, err)
			}
		}
		return nil
	})
	for _, f := range plan.Files {
		if _, err := os.Lstat(w.disk.At(f.Path)); err == nil {
			continue
		}
		check(t, os.MkdirAll(filepath.Dir(w.disk.At(f.Path)), 0o755))
		check(t, w.disk.Put(f, f.Content))
	}
	for _, k := range plan.Kubeconfigs {
		content, err := nodecert.Kubeconfig(w.disk, plan, k)
		check(t, err)
		check(t, os.MkdirAll(filepath.Dir(w.disk.At(k.Path)), 0o755))
		check(t, os.WriteFile(w.disk.At(k.Path), content, 0o600))
	}
}

// endTable compares what is found with the table in the documents.
type endTable struct {
	t     *testing.T
	lives map[string]string // by row
	used  map[string]bool   // places
}

func newEndTable(t *testing.T) *endTable {
	const path = "../../../docs/operations.md"
	text, err := os.ReadFile(path)
	check(t, err)
	_, section, ok := strings.Cut(string(text), "\n## What ends, and when\n")
	if !ok {
		t.Fatalf("%s has no such heading", path)
	}
	table := &endTable{t: t, lives: map[string]string{}, used: map[string]bool{}}
	for line := range strings.Lines(section) {
		if cells := strings.Split(line, " | "); len(cells) == 5 {
			table.lives[strings.TrimPrefix(cells[0], "| ")] = cells[1]
		}
	}
	return table
}

func (e *endTable) walk(name, root string, skip func(string) bool) {
	check(e.t, filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		where := name + strings.TrimPrefix(path, root)
		if skip != nil && skip(where) {
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if strings.HasSuffix(path, ".sealed") {
			e.found(where, resting{what: "sealed"})
		}
		for _, r := range restingIn(content) {
			e.found(where, r)
		}
		return nil
	}))
}

// walkStore looks through every object of every kind.
func (e *endTable) walkStore(config *rest.Config) {
	kinds, err := discovery.NewDiscoveryClientForConfig(config)
	check(e.t, err)
	objects, err := dynamic.NewForConfig(config)
	check(e.t, err)
	lists, err := kinds.ServerPreferredResources()
	check(e.t, err)
	n := 0
	for _, list := range lists {
		for _, kind := range list.APIResources {
			if !strings.Contains(kind.Verbs.String(), "list") {
				continue
			}
			version, err := schema.ParseGroupVersion(list.GroupVersion)
			check(e.t, err)
			all, err := objects.Resource(version.WithResource(kind.Name)).List(e.t.Context(), metav1.ListOptions{})
			check(e.t, err)
			for i := range all.Items {
				n++
				e.object(kind.Name, &all.Items[i])
			}
		}
	}
	if n == 0 {
		e.t.Error("the store is empty")
	}
}

func (e *endTable) object(kind string, object *unstructured.Unstructured) {
	data, _, _ := unstructured.NestedStringMap(object.Object, "data")
	if kind == "secrets" {
		unstructured.RemoveNestedField(object.Object, "data")
	}
	for key, encoded := range data {
		content, err := base64.StdEncoding.DecodeString(encoded)
		check(e.t, err)
		found := restingIn(content)
		if len(found) == 0 {
			found = []resting{{what: "secret"}}
		}
		for _, r := range found {
			e.found("store/secrets/"+object.GetName()+" "+key, r)
		}
	}
	text, err := json.Marshal(object.Object)
	check(e.t, err)
	for _, r := range restingIn(text) {
		e.found("store/"+kind+"/"+object.GetName(), r)
	}
}

// found holds what was found against the row that it belongs to: there must be one, and a certificate lives as long as the row says.
func (e *endTable) found(where string, r resting) {
	for _, place := range restingPlaces() {
		if !regexp.MustCompile(place.where).MatchString(where + " " + r.what) {
			continue
		}
		e.used[place.where] = true
		life, ok := e.lives[place.row]
		if !ok {
			e.t.Errorf("%s: docs/operations.md has no row %q", where, place.row)
		} else if want, ok := lifeOf(life); ok && r.cert != nil {
			// Certificates are backdated by a day at most.
			if got := r.cert.NotAfter.Sub(r.cert.NotBefore); got < want || got > want+25*time.Hour {
				e.t.Errorf("%s lives for %s, and the row %q says %s", where, got, place.row, life)
			}
		}
		return
	}
	e.t.Errorf("%s: a %s that no row of docs/operations.md, \"What ends, and when\", stands for", where, r.what)
}

// lifeOf reads the beginning of a cell, as "1 year".
func lifeOf(cell string) (time.Duration, bool) {
	number, rest, _ := strings.Cut(cell, " ")
	n, err := strconv.Atoi(number)
	if err != nil {
		return 0, false
	}
	unit, _, _ := strings.Cut(strings.TrimSuffix(rest, ","), " ")
	life, ok := map[string]time.Duration{"h": time.Hour, "days": day, "year": 365 * day, "years": 365 * day}[unit]
	return time.Duration(n) * life, ok
}

func (e *endTable) done() {
	for _, place := range restingPlaces() {
		if !e.used[place.where] {
			e.t.Errorf("nothing was found at %s: what is wrong, the place or the search?", place.where)
		}
	}
}
