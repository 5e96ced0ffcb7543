package controlplane

import (
	"bufio"
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"coldrack.dev/test/require"
	"k8s.io/client-go/rest"
)

// kubectl runs the real kubectl as one person.
type kubectl struct {
	t          testing.TB
	kubeconfig string
	cache      string
}

func newKubectl(t testing.TB, c *rest.Config) kubectl {
	t.Helper()
	require.Need(t, "kubectl")
	return kubectl{t, kubeconfig(t, c), t.TempDir()}
}

func (k kubectl) command(stdin string, args ...string) *exec.Cmd {
	cmd := exec.Command("kubectl", append([]string{"--kubeconfig", k.kubeconfig, "--cache-dir", k.cache}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	// kubectl diff runs diff; nothing else of the environment matters.
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + filepath.Dir(k.kubeconfig)}
	return cmd
}

// try returns everything that kubectl prints and whether it succeeded.
func (k kubectl) try(stdin string, args ...string) (string, bool) {
	k.t.Helper()
	cmd := k.command(stdin, args...)
	out, err := cmd.CombinedOutput()
	return string(out), err == nil
}

// ok fails the test unless kubectl succeeds and prints every wanted text.
func (k kubectl) ok(stdin string, args []string, want ...string) string {
	k.t.Helper()
	out, ok := k.try(stdin, args...)
	if !ok {
		k.t.Fatalf("kubectl %s: failed:\n%s", strings.Join(args, " "), out)
	}
	k.contains(out, args, want)
	return out
}

// fails fails the test unless kubectl fails and prints every wanted text.
func (k kubectl) fails(stdin string, args []string, want ...string) {
	k.t.Helper()
	out, ok := k.try(stdin, args...)
	if ok {
		k.t.Fatalf("kubectl %s: succeeded:\n%s", strings.Join(args, " "), out)
	}
	k.contains(out, args, want)
}

func (k kubectl) contains(out string, args, want []string) {
	k.t.Helper()
	squeezed := strings.Join(strings.Fields(out), " ")
	for _, w := range want {
		if !strings.Contains(squeezed, w) {
			k.t.Errorf("kubectl %s: output lacks %q:\n%s", strings.Join(args, " "), w, out)
		}
	}
}

func words(s string) []string { return strings.Fields(s) }

const rack1 = `
apiVersion: coldrack.dev/v1alpha1
kind: Subnet
metadata: {name: rack-1}
spec: {cidr: 10.20.0.0/24, gateway: 10.20.0.1, discovery: 10.20.0.200-10.20.0.250, static: 10.20.0.10-10.20.0.99}
`

const machineA = `
apiVersion: coldrack.dev/v1alpha1
kind: Machine
metadata: {name: a, labels: {rack: r1}}
spec:
  identifiers: {macs: ["52:54:00:00:00:01"], serial: AB123}
  location: {rack: r1, unit: 7}
`

func TestKubectl(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	c := startTest(t, testConfig(t, ca))
	k := newKubectl(t, ca.person(t, c.Address(), "ada", GroupAdmin))

	t.Run("discovery lists every kind with its short names", func(t *testing.T) {
		k := k
		k.t = t
		k.ok("", words("api-resources --api-group=coldrack.dev"), "machines mc,machine coldrack.dev/v1alpha1 false Machine", "subnets sn ", "secrets coldrack.dev/v1alpha1 false Secret")
		k.ok("", words("api-versions"), "coldrack.dev/v1alpha1")
		k.ok("", words("get --raw /apis"), `"name":"coldrack.dev"`, `"name":"apiextensions.k8s.io"`)
		k.ok("", words("get --raw /apis/coldrack.dev"), `"kind":"APIGroup"`, `"preferredVersion":{"groupVersion":"coldrack.dev/v1alpha1"`)
		k.ok("", words("get --raw /apis/coldrack.dev/v1alpha1"), `"name":"machines/status"`)
		k.ok("", words("get --raw /version"), `"gitVersion": "v1.37.0+coldrack.0.1.0-test"`)
		k.ok("", words("get --raw /readyz"), "ok")
		k.ok("", words("get --raw /metrics"), "apiserver_request_total")
	})
	t.Run("everybody can ask who they are and what they may do", func(t *testing.T) {
		k := newKubectl(t, ca.person(t, c.Address(), "bob", GroupViewer))
		k.ok("", words("auth whoami"), "Username bob", "Groups [coldrack:viewer system:authenticated]")
		k.ok("", words("auth can-i list machines.coldrack.dev"), "yes")
		k.fails("", words("auth can-i delete machines.coldrack.dev"), "no - this needs role operator, you have role viewer")
		k.fails("", words("auth can-i get secrets.coldrack.dev"), "Secrets are only for admins")
		k.ok("", words("auth can-i get /metrics"), "yes")
		// Secrets are not of the category, so that it can be listed by everybody with a role.
		k.ok("", words("get coldrack"), "No resources found")
	})
	t.Run("what kubectl prints can be applied", func(t *testing.T) {
		k := k
		k.t = t
		const two = `
apiVersion: coldrack.dev/v1alpha1
kind: Machine
metadata: {name: trip-1}
spec: {hostname: trip-1}
---
apiVersion: coldrack.dev/v1alpha1
kind: Machine
metadata: {name: trip-2}
spec: {hostname: trip-2}
`
		k.ok(two, words("apply -f -"), "machine.coldrack.dev/trip-1 created", "machine.coldrack.dev/trip-2 created")
		printed := k.ok("", words("get machines trip-1 trip-2 -o yaml"), "apiVersion: v1", "kind: List")
		// kubectl itself notes what was applied last, which changes the objects.
		k.ok(printed, words("apply -f -"), "machine.coldrack.dev/trip-1 configured", "machine.coldrack.dev/trip-2 configured")
		printed = k.ok("", words("get machines trip-1 trip-2 -o yaml"))
		k.ok(strings.ReplaceAll(printed, "hostname: trip-", "hostname: way-"), words("apply -f -"), "machine.coldrack.dev/trip-1 configured")
		k.ok("", words("get machine trip-2 -o jsonpath={.spec.hostname}"), "way-2")
		k.ok("", words("delete machine trip-1 trip-2"))
		k.ok("", words("get --raw /api"), `"versions":["v1"]`)
		k.ok("", words("get --raw /api/v1"), `"resources":[]`)
	})
	t.Run("explain describes nested fields", func(t *testing.T) {
		k := k
		k.t = t
		k.ok("", words("explain machines"), "KIND: Machine", "Machine is one server, physical or virtual", "status <Object>")
		k.ok("", words("explain mc.spec.identifiers.macs"), "MACs of network interfaces, lower case with colons")
		k.ok("", words("explain subnet.spec.dhcp"), "ENUM: server proxy off")
		k.ok("", words("explain machines.status --recursive"), "byID")
	})
	t.Run("apply creates, changes and leaves alone", func(t *testing.T) {
		k := k
		k.t = t
		k.ok(rack1+"---"+machineA, words("apply -f -"), "subnet.coldrack.dev/rack-1 created", "machine.coldrack.dev/a created")
		k.ok(rack1+"---"+machineA, words("apply -f -"), "subnet.coldrack.dev/rack-1 unchanged", "machine.coldrack.dev/a unchanged")
		changed := strings.Replace(machineA, "unit: 7", "unit: 8", 1)
		if out, ok := k.try(changed, words("diff -f -")...); ok || !strings.Contains(out, "+    unit: 8") {
			t.Errorf("diff: %s", out)
		}
		k.ok(changed, words("apply -f -"), "machine.coldrack.dev/a configured")
		k.ok("", words("get machine a -o jsonpath={.spec.location.unit}"), "8")
	})
	t.Run("get prints our columns", func(t *testing.T) {
		k := k
		k.t = t
		k.ok("", words("get machines"), "NAME PHASE STEP ADDRESS PROFILE MESSAGE AGE a ")
		k.ok("", words("get mc -o wide"), "RACK UNIT SERIAL MODEL", "r1 8")
		k.ok("", words("get sn"), "NAME CIDR DHCP DISCOVERY STATIC READY MESSAGE AGE", "rack-1 10.20.0.0/24 server 10.20.0.200-10.20.0.250 10.20.0.10-10.20.0.99")
		k.ok("", words("get coldrack"), "machine.coldrack.dev/a", "subnet.coldrack.dev/rack-1")
		k.ok("", words("get machines -l rack=r1 -o name"), "machine.coldrack.dev/a")
		k.ok("", words("get machines --field-selector metadata.name=a -o name"), "machine.coldrack.dev/a")
		k.ok("", words("get machines -o yaml"), "kind: List", "serial: AB123")
		k.ok("", words("describe machine a"), "Serial: AB123")
	})
	t.Run("server-side apply keeps owners apart", func(t *testing.T) {
		k := k
		k.t = t
		profile := func(wipe string) string {
			return "{apiVersion: coldrack.dev/v1alpha1, kind: Profile, metadata: {name: p}, spec: {image: debian, wipe: " + wipe + "}}"
		}
		k.ok(profile("Always"), words("apply --server-side --field-manager=one -f -"), "profile.coldrack.dev/p serverside-applied")
		k.fails(profile("RefuseForeign"), words("apply --server-side --field-manager=two -f -"), `conflict with "one": .spec.wipe`)
		k.ok(profile("RefuseForeign"), words("apply --server-side --field-manager=two --force-conflicts -f -"), "serverside-applied")
		k.ok(profile("Always"), words("apply --server-side --field-manager=one --force-conflicts --dry-run=server -f -"), "(server dry run)")
		k.ok("", words("get profile p -o jsonpath={.spec.wipe}"), "RefuseForeign")
	})
	t.Run("patch, label, annotate, edit in place", func(t *testing.T) {
		k := k
		k.t = t
		k.ok("", []string{"patch", "machine", "a", "--type=merge", "-p", `{"spec":{"approved":true}}`}, "patched")
		k.ok("", []string{"patch", "machine", "a", "--type=json", "-p", `[{"op":"add","path":"/spec/hostname","value":"node-a"}]`}, "patched")
		k.ok("", words("label machine a row=3"), "labeled")
		k.ok("", words("annotate machine a note=hello"), "annotated")
		k.ok("", words("get machine a -o jsonpath={.spec.approved}{.spec.hostname}{.metadata.labels.row}{.metadata.annotations.note}"), "truenode-a3hello")
	})
	t.Run("wait and watch see what happens", func(t *testing.T) {
		k := k
		k.t = t
		watch := k.command("", words("get machines --watch -o name --request-timeout=20s")...)
		seen, err := watch.StdoutPipe()
		check(t, err)
		check(t, watch.Start())
		wait := k.command("", words("wait machine/a --for=condition=Ready --timeout=30s")...)
		var waited bytes.Buffer
		wait.Stdout, wait.Stderr = &waited, &waited
		check(t, wait.Start())
		k.ok("", []string{"patch", "machine", "a", "--subresource=status", "--type=merge", "-p",
			`{"status":{"phase":"Ready","conditions":[{"type":"Ready","status":"True","reason":"Up","message":"m","lastTransitionTime":"2026-01-01T00:00:00Z"}]}}`})
		if err := wait.Wait(); err != nil {
			t.Errorf("wait: %v: %s", err, waited.String())
		}
		k.ok("", []string{"wait", "machine/a", "--for=jsonpath={.status.phase}=Ready", "--timeout=30s"}, "condition met")
		if line, err := bufio.NewReader(seen).ReadString('\n'); err != nil || line != "machine.coldrack.dev/a\n" {
			t.Errorf("watch printed %q, %v", line, err)
		}
		check(t, watch.Process.Kill())
		watch.Wait()
	})
	t.Run("wrong input is refused with the field and the reason", func(t *testing.T) {
		k := k
		k.t = t
		subnet := func(name, spec string) string {
			return "{apiVersion: coldrack.dev/v1alpha1, kind: Subnet, metadata: {name: " + name + "}, spec: {" + spec + "}}"
		}
		machine := func(name, spec string) string {
			return "{apiVersion: coldrack.dev/v1alpha1, kind: Machine, metadata: {name: " + name + "}, spec: {" + spec + "}}"
		}
		apply := words("apply -f -")
		k.fails("kind: [", apply, "error converting YAML")
		k.fails(subnet("x", "cidr: 10.20.0.128/25, dhcp: 'off'"), apply, `The Subnet "x" is invalid`, "spec.cidr", "overlaps with 10.20.0.0/24 of Subnet rack-1")
		k.fails(subnet("x", "cidr: 10.30.0.0/24, discovery: 10.30.0.10-10.30.0.20, static: 10.30.0.15-10.30.0.30"), apply, "spec.static", "overlaps with the discovery range 10.30.0.10-10.30.0.20")
		k.fails(subnet("x", "cidr: 10.30.0.0/24, gateway: 10.31.0.1, dhcp: 'off'"), apply, "spec.gateway must lie within spec.cidr")
		k.fails(subnet("x", "cidr: nonsense, dhcp: 'off'"), apply, "spec.cidr must be a network such as 10.20.0.0/24")
		k.fails(subnet("x", "cidr: 10.30.0.0/24, dhcp: maybe"), apply, `Unsupported value: "maybe"`)
		k.fails(subnet("x", "cdir: 10.30.0.0/24"), apply, `unknown field "spec.cdir"`)
		k.fails(machine("b", `identifiers: {macs: ["52:54:00:00:00:01"]}`), apply, "spec.identifiers.macs[0]", "belongs to Machine a already")
		k.fails(machine("b", `identifiers: {serial: ab123}`), apply, "spec.identifiers.serial", "belongs to Machine a already")
		k.fails(machine("b", `identifiers: {macs: ["52:54:00:00:00:0G"]}`), apply, "spec.identifiers.macs[0]")
		k.fails(machine("b", "network: {subnet: rack-1, address: 10.21.0.9}"), apply, "is not in the network 10.20.0.0/24 (Subnet rack-1)")
		k.fails("{apiVersion: coldrack.dev/v1alpha1, kind: EnrollmentPolicy, metadata: {name: e}, spec: {match: {product: 'R[67'}}}", apply, "spec.match.product", "bracket is not closed")
		group := func(spec string) string {
			return "{apiVersion: coldrack.dev/v1alpha1, kind: RebootGroup, metadata: {name: storage}, spec: {" + spec + "}}"
		}
		k.fails(group("maxUnavailable: 0"), apply, "spec.maxUnavailable", "greater than or equal to 1")
		k.fails(group("lockTTL: 5s"), apply, "spec.lockTTL", "must be at least 1m and at most 24h")
		k.fails(group("maintenanceWindows: [{from: '22:00'}]"), apply, "say when the window ends")
		k.fails(group("selector: {matchExpressions: [{key: rack, operator: Near}]}"), apply, "spec.selector", `"Near"`)
		k.fails(group("whenOverdue: Panic"), apply, `Unsupported value: "Panic"`)
		k.ok(group("selector: {matchLabels: {role: storage}}, maintenanceWindows: [{from: '22:00', duration: 6h}]"), apply, "created")
		k.ok("", words("get rg storage"), "MACHINES", "AWAY", "MAX", "HOLDERS")
		k.ok(machine("b", "profile: nothing"), apply, `Warning: spec.profile: there is no profile "nothing" yet`, "created")
		bmc := "bmc: {address: 10.20.0.9}"
		k.ok(machine("b", bmc), apply, "Warning: spec.bmc.credentialsSecret: is empty, so the machine cannot be switched yet: coldrack bmc set-password b", "configured")
		if out := k.ok(machine("b", bmc+", hostname: b"), apply, "configured"); strings.Contains(out, "Warning") {
			t.Errorf("a machine whose BMC was there before is warned of again:\n%s", out)
		}
		k.fails("", words("get machine nothing"), `machines.coldrack.dev "nothing" not found`)
	})
	t.Run("an act that runs is not swapped for another", func(t *testing.T) {
		k := k
		k.t = t
		k.ok("", []string{"patch", "machine", "b", "--type=merge", "-p", `{"spec":{"intent":{"id":"1","action":"Install"}}}`})
		k.ok("", []string{"patch", "machine", "b", "--subresource=status", "--type=merge", "-p", `{"status":{"intent":{"id":"1","action":"Install","state":"Running"}}}`})
		k.fails("", []string{"patch", "machine", "b", "--type=merge", "-p", `{"spec":{"intent":{"id":"2","action":"Release"}}}`}, "spec.intent.id", "carrying out intent 1 (Install)")
		k.fails("", []string{"patch", "machine", "b", "--type=merge", "-p", `{"spec":{"intent":{"action":"Release"}}}`}, "spec.intent.action", "another act needs another id")
		k.ok("", []string{"patch", "machine", "b", "--subresource=status", "--type=merge", "-p", `{"status":{"intent":{"state":"Succeeded"}}}`})
		k.ok("", []string{"patch", "machine", "b", "--type=merge", "-p", `{"spec":{"intent":{"id":"2","action":"Release"}}}`})
	})
	t.Run("what belonged to a machine is free when it is gone", func(t *testing.T) {
		k := k
		k.t = t
		k.ok("", words("delete machine a --wait=true"), `machine.coldrack.dev "a" deleted`)
		k.ok(strings.Replace(machineA, "name: a", "name: c", 1), words("apply -f -"), "machine.coldrack.dev/c created")
		k.ok("", words("delete machine b c --cascade=foreground"), "deleted")
		k.ok(machineA, words("apply -f -"), "created")
		k.ok("", words("delete machines --all"), "deleted")
		k.ok("", words("get machines"), "No resources found")
	})
}
