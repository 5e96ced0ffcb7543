// Package house tests the structure of the repository itself: which package may import which, and that
// every package says what it is.
package house

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

const module = "coldrack.dev/"

type goPackage struct {
	ImportPath string
	Doc        string
	GoFiles    []string
	Name       string
	Imports    []string
	Deps       []string
}

// forbidden is a rule of docs/architecture.md: packages below from may not reach packages below to, or with a
// "$" at its end that package alone.
type forbidden struct {
	from, to string
	// transitive also forbids reaching it through others.
	transitive bool
	why        string
}

// shared is the one package that every other may import: the rules for values, which import nothing themselves.
const shared = module + "internal/validate"

var rules = []forbidden{
	{"api/", "internal/", true, "the vocabulary knows nothing of how it is carried out; the rules for values are shared"},
	{"internal/validate", "internal/", true, "the rules for values are pure and stand below everything"},
	{"internal/validate", "k8s.io/", true, "the agent uses it"},
	{"internal/validate", module + "api/", true, "the vocabulary stands on the rules, not they on it"},
	{"internal/netboot/boot", "internal/", true, "the boot decision is pure"},
	{"internal/netboot/boot", "net/http", false, "the boot decision is pure"},
	{"internal/machine/nodeconfig", "internal/", true, "node configuration is pure data; the rules for values are shared"},
	{"internal/machine/nodeconfig", "k8s.io/", true, "the agent uses it"},
	{"internal/machine/identify", "internal/", true, "which machine speaks is decided by pure code"},
	{"internal/machine/enroll", module + "internal/machine/fleet", true, "enrolment is decided by pure code"},
	{"internal/machine/enroll", "sigs.k8s.io/controller-runtime", true, "enrolment is decided by pure code"},
	{"internal/machine/lifecycle", "sigs.k8s.io/controller-runtime", true, "where a machine stands is decided by pure code"},
	{"internal/content/diskimage", "internal/", true, "the chunk format stands alone"},
	{"internal/content/diskimage", "k8s.io/", true, "the agent uses it"},
	{"internal/content/swarm", "internal/", true, "who fetches what from whom is decided by pure code, which the simulation runs, too"},
	{"internal/content/swarm", "net", false, "who fetches what from whom is decided by pure code"},
	{"internal/netboot/gate", "internal/", true, "whose turn it is is decided by pure code"},
	{"internal/netboot/gate", "net", false, "whose turn it is is decided by pure code"},
	{"internal/netboot/sntp", "internal/", true, "protocol servers have no product knowledge"},
	{"internal/wire", "k8s.io/", true, "the agent uses it; it must stay small"},
	{"cmd/coldrack-agent", "k8s.io/", true, "no Kubernetes API machinery in the agent: it is loaded over the network by every machine"},
	{"cmd/coldrack-agent", "sigs.k8s.io/", true, "no Kubernetes API machinery in the agent"},
	{"cmd/coldrack-agent", "go.etcd.io/", true, "no store in the agent"},
	{"cmd/coldrack-agent", module + "api/", true, "the agent speaks only internal/wire"},
	{"internal/agent", module + "internal/server/controlplane", true, "the agent reaches neither the control plane nor the controllers"},
	{"internal/agent", module + "internal/server/controllers", true, "the agent reaches neither the control plane nor the controllers"},
	{"internal/cluster/kube", "internal/", true, "what a cluster needs on each machine is rendered by a pure function"},
	{"internal/cluster/members", module + "internal/server/machineapi$", true, "siblings meet in daemon only; the wire's words are shared"},
	{"internal/cluster/members", module + "internal/server/controllers", true, "engines do not know the controllers"},
	{"internal/cluster/members", module + "internal/content/bundle", true, "siblings meet in daemon only"},
	{"internal/netboot/dhcp", module + "api/", true, "protocol servers have no product knowledge"},
	{"internal/netboot/tftp", module + "api/", true, "protocol servers have no product knowledge"},
	{"internal/netboot/httpboot", module + "api/", true, "protocol servers have no product knowledge"},
	{"internal/netboot/dhcp", module + "internal/machine/fleet", true, "siblings meet in daemon only"},
	{"internal/netboot/tftp", module + "internal/content/bundle", true, "siblings meet in daemon only"},
	{"internal/netboot/httpboot", module + "internal/content/bundle", true, "siblings meet in daemon only"},
	{"internal/content/registry", module + "api/", true, "protocol servers have no product knowledge"},
	{"internal/content/registry", module + "internal/content/bundle", true, "siblings meet in daemon only"},
	{"cmd/coldrack-probe", module + "internal/", true, "the probe is pulled by nodes of any cluster; it stays small"},
	{"internal/content/bundle", module + "internal/server/controllers", true, "engines do not know the controllers"},
	{"internal/server/controlplane", module + "internal/server/controllers", true, "engines do not know the controllers"},
	{"internal/server/machineapi", module + "internal/server/controllers", true, "siblings meet in daemon only"},
	{"internal/server/machineapi", module + "internal/server/controlplane", true, "machines never reach people's API"},
	{"internal/server/controllers", module + "internal/server/machineapi$", false, "siblings meet in daemon only; the wire's words are shared"},
	{"internal/server/controllers", module + "internal/server/controlplane", false, "controllers take a rest.Config, so that any Kubernetes API serves"},
	{"internal/lab/rehearse", module + "internal/server/daemon", true, "a rehearsal meets the server as machines do: over the network"},
	{"internal/lab/rehearse", module + "internal/server/machineapi$", true, "a rehearsal meets the server as machines do: over the network"},
	{"internal/", module + "cmd/", true, "nothing imports a command"},
	{"internal/", module + "test/", false, "the product does not import its tests"},
}

func packages(t *testing.T) []goPackage {
	t.Helper()
	command := exec.Command("go", "list", "-deps=false", "-json=ImportPath,Doc,GoFiles,Name,Imports,Deps", module+"...")
	var stderr bytes.Buffer
	command.Stderr = &stderr
	out, err := command.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var all []goPackage
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 10 {
		t.Fatalf("go list found only %d packages", len(all))
	}
	return all
}

func TestForbiddenImports(t *testing.T) {
	matched := make([]bool, len(rules))
	for _, p := range packages(t) {
		for i, rule := range rules {
			if !strings.HasPrefix(p.ImportPath, module+rule.from) {
				continue
			}
			matched[i] = true
			to := rule.to
			if strings.HasPrefix(to, "internal/") {
				to = module + to
			}
			reached := p.Imports
			if rule.transitive {
				reached = p.Deps
			}
			for _, dep := range reached {
				// A package may reach its own subpackages, and those their parent.
				hit := strings.HasPrefix(dep, to)
				if alone, ok := strings.CutSuffix(to, "$"); ok {
					hit = dep == alone
				}
				if hit && dep != shared && !strings.HasPrefix(dep, module+rule.from) {
					t.Errorf("%s reaches %s: %s", p.ImportPath, dep, rule.why)
				}
			}
		}
	}
	for i, rule := range rules {
		if !matched[i] {
			t.Errorf("rule about %s protects nothing: no such package", rule.from)
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for _, p := range packages(t) {
		if p.Doc == "" && len(p.GoFiles) > 0 {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
		for _, banned := range []string{"util", "utils", "common", "helpers", "misc"} {
			if p.Name == banned {
				t.Errorf("%s: a package named %s says nothing about what belongs in it", p.ImportPath, banned)
			}
		}
	}
}
