package house

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The rows of docs/operations.md, "What ends, and when", by their first column.
const (
	endPeopleAPI    = "certificate of people's API"
	endMachineAPI   = "certificate of the machine API, the registry included"
	endInside       = "certificate and token inside the API server of the store"
	endSession      = "session of a machine in discovery"
	endNonce        = "one-time nonce of a boot"
	endIdentity     = "identity of a node"
	endNode         = "a node's certificate in a cluster (API server, etcd, clients), and the kubeconfigs with it"
	endKubelet      = "the kubelet's two certificates"
	endServers      = "this server's certificates for a cluster's API and etcd"
	endKubeconfig   = "a person's kubeconfig (`coldrack kubeconfig`)"
	endToken        = "a person's token (`coldrack token create`)"
	endUI           = "session of the web pages"
	endDiscovery    = "token for the discovery of an etcd cluster"
	endAuthorities  = "authorities of machines and of people"
	endServices     = "certificate for people and services ([`coldrack pki`](pki.md))"
	endCluster      = "authorities of a cluster"
	endClusterKeys  = "a cluster's service-account key and the key that its Secrets are encrypted with"
	endAnnouncers   = "key that announcers of Service addresses know each other by"
	endMaster       = "the server's master key, and what is derived from it"
	endBundleKey    = "key that bundles are signed with"
	endDrawn        = "names that are drawn by lot: uploads, requests, restores, trials of `cluster verify` and what they make"
	endLab          = "the lab's virtual BMCs, and simulated machines"
	endsInDocuments = "../../docs/operations.md"
)

// endsOf are the rows, with the life that each states.
func endsOf(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile(endsInDocuments)
	must(t, err)
	_, text, ok := bytes.Cut(text, []byte("\n## What ends, and when\n"))
	if !ok {
		t.Fatalf("%s has no heading %q", endsInDocuments, "What ends, and when")
	}
	rows := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "## ") || strings.HasPrefix(line, "**") {
			break
		}
		cells := strings.Split(line, " | ")
		if len(cells) == 5 && strings.HasPrefix(line, "| ") && !strings.HasPrefix(line, "| what ") {
			rows[strings.TrimPrefix(cells[0], "| ")] = cells[1]
		}
	}
	return rows
}

// makers are all functions of the product that make a key, a certificate or a secret, and which row of the table that is.
func makers() map[string]string {
	return map[string]string{
		"internal/base/pki.createAuthority":                      endAuthorities,
		"internal/base/pki.sign":                                 endAuthorities, // and every leaf; who asks for one is below
		"internal/base/pki.Authority.NewServerKeyPair":           endMachineAPI,
		"internal/base/pki.Authority.NewServerPEM":               endPeopleAPI,
		"internal/base/pki.Authority.NewClientKeyPair":           endKubeconfig,
		"internal/base/pki.OpenMasterKey":                        endMaster,
		"internal/server/daemon.server.servingCertificate":       endPeopleAPI,
		"internal/server/daemon.machineCertificates.get":         endMachineAPI,
		"internal/server/daemon.restoration.makeStore":           endDrawn,
		"internal/server/peopleapi/credentials.Kubeconfig":       endKubeconfig, // and admin.kubeconfig
		"internal/server/peopleapi.ClusterAPI.certificate":       endKubeconfig,
		"internal/server/controlplane.Tokens.Create":             endToken,
		"internal/server/controlplane.ControlPlane.secure":       endInside, // the token of clients inside
		"cmd/coldrack.app.kubeconfigCommand":                     endKubeconfig,
		"internal/server/controlplane.loopbackCertificate":       endInside,
		"internal/server/ui.newSecret":                           endUI,
		"internal/server/etcddiscovery.Registry.New":             endDiscovery,
		"internal/server/machineapi.Nonces.Issue":                endNonce,
		"internal/server/machineapi.API.enroll":                  endSession,
		"internal/server/machineapi.API.renewSession":            endSession,
		"internal/server/machineapi.API.signNode":                endIdentity,
		"internal/server/controllers.ServerCertificate":          endServers,
		"internal/server/controllers.restorer.begin":             endDrawn,
		"internal/cluster/members.Set.EtcdClient":                endServers,
		"internal/cluster/members.Set.Sign":                      endNode,
		"internal/cluster/members.Set.SignTemplate":              endKubelet,
		"internal/cluster/members.Set.ClientCertificate":         endKubeconfig, // and the server's own
		"internal/cluster/members.newKey":                        endCluster,
		"internal/cluster/members.sign":                          endCluster,
		"internal/cluster/members.newEncryptionKey":              endClusterKeys,
		"internal/cluster/loadbalancer/node.agent.key":           endAnnouncers,
		"internal/cluster/kubeapi.newCallee":                     endDrawn,
		"internal/cluster/kubeapi.verification.webhook":          endDrawn,
		"internal/cluster/kubeapi.verification.secretEncryption": endDrawn,
		"internal/agent/client.NewKey":                           endIdentity, // and of the session
		"internal/agent/nodecert.KeyMaker":                       endNode,
		"internal/content/bundle.createKey":                      endBundleKey,
		"internal/content/imagestore.Store.Begin":                endDrawn,
		"internal/cli/bootprobe.newXID":                          endDrawn,
		"internal/lab.Lab.OpenBMC":                               endLab,
		"internal/lab.newBMCKey":                                 endLab,
		"internal/lab/vbmc.random":                               endLab,
		"internal/lab/rehearse.MakeBundle":                       endLab,
		"internal/server/certs/acme.newID":                       endDrawn,
		"internal/server/certs/acme.nonces.make":                 endNonce,
		"internal/server/certs/acme.nonces.reset":                endNonce,
		"internal/cli/csrfile.File.New":                          endServices,
		"cmd/coldrack.newRequest":                                endKubeconfig,
	}
}

// Every call by which the product makes a key, a certificate or a secret is in makers, and what it makes is in the documents.
func TestWhatIsMadeIsInTheTableOfWhatEnds(t *testing.T) {
	const root = "../.."
	found := map[string]bool{}
	for _, top := range []string{"internal", "cmd"} {
		must(t, filepath.WalkDir(filepath.Join(root, top), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			folder, err := filepath.Rel(root, filepath.Dir(path))
			if err != nil {
				return err
			}
			for _, name := range makersIn(file) {
				found[filepath.ToSlash(folder)+"."+name] = true
			}
			return nil
		}))
	}
	known, rows := makers(), endsOf(t)
	for _, name := range slices.Sorted(maps.Keys(found)) {
		if known[name] == "" {
			t.Errorf("%s makes a key, a certificate or a secret: say in %s when it ends, and name the row in makers", name, endsInDocuments)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(known)) {
		if !found[name] {
			t.Errorf("makers has %s, which makes nothing", name)
		}
		if _, ok := rows[known[name]]; !ok {
			t.Errorf("%s has no row %q, for %s", endsInDocuments, known[name], name)
		}
	}
}

// makersIn are the functions of a file that call something of the standard library that makes keys, certificates and random bytes, or
// what signs with an authority.
func makersIn(file *ast.File) []string {
	cryptoRand := slices.ContainsFunc(file.Imports, func(i *ast.ImportSpec) bool { return i.Path.Value == `"crypto/rand"` && i.Name == nil })
	signs := []string{"SignClient", "SignServer", "NewServerKeyPair", "NewServerPEM", "NewClientKeyPair", "issue", "ClientCertificate"}
	var names []string
	for _, declaration := range file.Decls {
		function, ok := declaration.(*ast.FuncDecl)
		if !ok || function.Body == nil {
			continue
		}
		makes := false
		ast.Inspect(function.Body, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			selector, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			of, _ := selector.X.(*ast.Ident)
			from := ""
			if of != nil {
				from = of.Name
			}
			switch name := selector.Sel.Name; {
			case from == "x509" && name == "CreateCertificate", name == "GenerateKey",
				from == "rand" && cryptoRand && (name == "Read" || name == "Text" || name == "Int"), slices.Contains(signs, name):
				makes = true
			}
			return true
		})
		if !makes {
			continue
		}
		name := function.Name.Name
		if function.Recv != nil {
			receiver := function.Recv.List[0].Type
			if star, ok := receiver.(*ast.StarExpr); ok {
				receiver = star.X
			}
			if ident, ok := receiver.(*ast.Ident); ok {
				name = ident.Name + "." + name
			}
		}
		names = append(names, name)
	}
	return names
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
