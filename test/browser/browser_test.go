package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/pki"
	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/lab/vbmc"
	"coldrack.dev/internal/server/controlplane"
	"coldrack.dev/internal/server/daemon"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
	"coldrack.dev/test/require"
)

func TestMain(m *testing.M) {
	if serveIfAsked() {
		return
	}
	daemon.TakeLibraryLogs(slog.New(slog.DiscardHandler))
	os.Exit(m.Run())
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// bench is a server with machines, and a browser that is logged in.
type bench struct {
	*server
	*chromium
	t testing.TB
}

func newBench(t testing.TB, machines []v1alpha1.Machine) *bench {
	t.Helper()
	b := startBench(t, false)
	check(t, seed(t.Context(), b.client, machines))
	return b
}

// startBench is newBench without machines; kindsOnly leaves the controllers out.
func startBench(t testing.TB, kindsOnly bool) *bench {
	t.Helper()
	require.Need(t, program)
	s, err := startServing(t.Context(), t.TempDir(), kindsOnly)
	check(t, err)
	t.Cleanup(s.stop)
	return &bench{server: s, t: t, chromium: newBrowser(t, s)}
}

// newBrowser starts a browser whose page must do nothing that no page of ours may do.
func newBrowser(t testing.TB, s *server) *chromium {
	t.Helper()
	b, end, err := startChromium(context.WithoutCancel(t.Context()), s.cfg.APIAddress)
	check(t, err)
	t.Cleanup(func() {
		for _, problem := range b.trouble() {
			t.Error("the page: " + problem)
		}
		if path := os.Getenv("COLDRACK_BROWSER_PICTURE"); t.Failed() && path != "" {
			if picture, err := act(b, chromedp.CaptureScreenshot()); err == nil {
				_ = os.WriteFile(path, picture, 0o644)
			}
		}
		end()
	})
	check(t, b.look(look{width: 1400, height: 900}))
	return b
}

// login opens the pages by a one-time link.
func (b *bench) login() {
	b.t.Helper()
	link, err := b.link(b.t.Context())
	check(b.t, err)
	check(b.t, b.open(link))
	b.waits(`document.querySelector("header.top")`)
}

// goes to a place.
func (b *bench) goes(path string) {
	b.t.Helper()
	check(b.t, b.open("https://"+b.cfg.APIAddress+path))
}

func (b *bench) waits(expression string) {
	b.t.Helper()
	check(b.t, b.wait(expression))
}

// says waits until the page shows a text.
func (b *bench) says(text string) {
	b.t.Helper()
	b.waits(`document.body.innerText.includes(` + quoted(text) + `)`)
}

func (b *bench) presses(keys ...string) {
	b.t.Helper()
	check(b.t, b.press(keys...))
}

func (b *bench) machine(name string) *v1alpha1.Machine {
	b.t.Helper()
	m := &v1alpha1.Machine{}
	check(b.t, b.client.Get(b.t.Context(), client.ObjectKey{Name: name}, m))
	return m
}

// TestScreens looks at every page with few and with many machines, on a wide screen and on a phone, dark and light.
func TestScreens(t *testing.T) {
	for _, n := range []int{0, 3, 400} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			b := newBench(t, madeUp(n, time.Now()))
			b.login()
			for _, l := range []look{{width: 1400, height: 900}, {width: 390, height: 844, dark: true}} {
				check(t, b.look(l))
				b.goes("/ui/racks")
				b.waits(`document.querySelector(".live").textContent === "live"`)
				if n == 0 {
					b.says("No machines yet")
				} else {
					b.waits(fmt.Sprintf(`document.querySelectorAll(".tile").length === %d`, n))
				}
				stuck := stuckOf(n)
				if stuck > 0 {
					b.says(fmt.Sprintf("%d stuck", stuck))
				}
				b.waits(fmt.Sprintf(`document.querySelectorAll(".tile.bad").length === %d`, stuck))
				b.goes("/ui/machines")
				if n > 0 {
					b.waits(`document.querySelectorAll(".tbody .tr").length > 0 && document.querySelectorAll(".tbody .tr").length < 60`)
					b.waits(fmt.Sprintf(`document.querySelector("[role=grid]").getAttribute("aria-rowcount") === "%d"`, n))
					b.goes("/ui/machines/node-00000")
					b.says("What was asked of it")
				}
				b.waits(`document.documentElement.scrollWidth <= innerWidth`) // nothing sticks out at the side
			}
		})
	}
}

// TestKeyboardOnly approves and installs a machine without a mouse.
func TestKeyboardOnly(t *testing.T) {
	machines := []v1alpha1.Machine{bare(0), bare(1), bare(2)}
	for i := range machines {
		waiting(&machines[i], time.Now())
	}
	b := newBench(t, machines)
	check(t, b.client.Create(t.Context(), &v1alpha1.Profile{ObjectMeta: metav1.ObjectMeta{Name: "worker"}, Spec: v1alpha1.ProfileSpec{Image: "debian-13"}}))
	b.login()
	b.waits(`document.querySelectorAll(".tile").length === 3`)
	b.presses("2")
	b.waits(`document.activeElement.getAttribute("role") === "grid" && document.querySelectorAll(".tbody .tr").length === 3`)
	b.presses("ArrowDown")
	b.waits(`document.querySelector(".tr.at")?.dataset.machine === "node-00001"`)
	b.presses("a")
	b.waits(`document.querySelector("dialog[open]") && [...document.querySelectorAll("dialog option")].some((o) => o.value === "worker")`)
	b.presses("Enter")
	b.says("1 of 1 done")
	if m := b.machine("node-00001"); !m.Spec.Approved {
		t.Fatal("it was not approved")
	}
	b.presses("Enter") // closes the report
	b.waits(`!document.querySelector("dialog")`)
	b.presses("i")
	b.waits(`document.querySelector("dialog[open]")`)
	b.presses("Enter")
	b.says("1 of 1 done")
	intent := b.machine("node-00001").Spec.Intent
	if intent == nil || intent.Action != v1alpha1.ActionInstall || intent.RequestedBy != "admin" || intent.ID == "" {
		t.Fatalf("intent %+v", intent)
	}
	for _, other := range []string{"node-00000", "node-00002"} {
		if m := b.machine(other); m.Spec.Approved || m.Spec.Intent != nil {
			t.Errorf("%s: approved %v, intent %v", other, m.Spec.Approved, m.Spec.Intent)
		}
	}
	b.presses("Enter")
	b.waits(`!document.querySelector("dialog")`)
	b.presses("Enter")
	b.waits(`location.pathname === "/ui/machines/node-00001"`)
}

// TestMany chooses all machines that match and sees what became of each; data is destroyed only for who types how many they are.
func TestMany(t *testing.T) {
	machines := []v1alpha1.Machine{bare(0), bare(1), bare(2), bare(3)}
	ready(&machines[0], time.Now().Add(-time.Hour))
	ready(&machines[1], time.Now().Add(-time.Hour))
	waiting(&machines[2], time.Now())
	waiting(&machines[3], time.Now())
	b := newBench(t, machines)
	b.login()
	b.goes("/ui/machines")
	b.waits(`document.querySelectorAll(".tbody .tr").length === 4`)
	b.presses("*")
	b.says("4 chosen")
	b.presses("r")
	b.waits(`document.activeElement.name === "confirm"`)
	b.presses("5", "Enter")
	b.says("What you typed is not 4. Nothing was done.")
	if m := b.machine("node-00000"); m.Spec.Intent.Action != v1alpha1.ActionInstall {
		t.Fatalf("a wrong number was enough: %+v", m.Spec.Intent)
	}
	check(t, b.write("[name=confirm]", "4"))
	b.presses("Enter")
	b.says("4 of 4 done")
	b.says("2 refused")
	b.says("node-00002: it is not approved")
	for _, name := range []string{"node-00000", "node-00001"} {
		if m := b.machine(name); m.Spec.Intent.Action != v1alpha1.ActionReinstall {
			t.Errorf("%s: %+v", name, m.Spec.Intent)
		}
	}
}

// TestLive sees changes without asking, also after the server was killed and started again.
func TestLive(t *testing.T) {
	b := newBench(t, madeUp(3, time.Now()))
	b.login()
	b.waits(`document.querySelectorAll(".tile").length === 3`)
	m := bare(77)
	check(t, b.client.Create(t.Context(), &m))
	b.waits(`document.querySelector('.tile.s-Expected[data-machine="node-00077"]')`)

	// Where nothing has happened for long, the store has forgotten the newest version that memory knows.
	again, err := value[string](b.chromium, `(async () => { const api = await import("/ui/js/api.js"), names = [];
		const version = await api.listMemory(api.kindPath("machines"), {}, { put() {}, listed: (all) => names.push(...all) }, new AbortController().signal, true);
		return Number(version) > 0 ? names.sort().join() : "no version"; })()`)
	if err != nil || again != "node-00000,node-00001,node-00002,node-00077" {
		t.Errorf("listed again: %s, %v", again, err)
	}

	b.kill()
	b.says("not live since")
	check(t, b.start(t.Context()))
	b.waits(`document.querySelector(".live").textContent === "live"`)
	seen := b.machine("node-00077")
	bare := seen.DeepCopy()
	waiting(seen, time.Now())
	check(t, b.client.Status().Patch(t.Context(), seen, client.MergeFrom(bare)))
	b.waits(`document.querySelector('.tile.s-Waiting[data-machine="node-00077"]')`)
	check(t, b.client.Delete(t.Context(), seen))
	b.waits(`!document.querySelector('.tile[data-machine="node-00077"]')`)
}

// TestViewer may look, and is told why there is nothing to press.
func TestViewer(t *testing.T) {
	b := newBench(t, madeUp(3, time.Now()))
	tokens := controlplane.OpenTokens(controlplane.TokensPath(b.cfg.DataDir))
	secret, err := tokens.Create("guest", []string{controlplane.GroupViewer}, time.Hour)
	check(t, err)
	b.goes("/ui/racks?m=node-00000")
	b.waits(`document.getElementById("token")`)
	check(t, b.write("#token", "coldrack-wrong"))
	b.presses("Enter")
	b.says("The server does not accept this token.")
	check(t, b.write("#token", secret))
	b.presses("Enter")
	b.says("To change machines needs role operator; you have role viewer.")
	b.waits(`!document.querySelector("[data-action]")`)
	b.presses("a")
	b.waits(`!document.querySelector("dialog")`)
	check(t, tokens.Revoke("guest"))
	b.goes("/ui/racks")
	b.waits(`document.getElementById("token")`)
	if got, err := value[string](b.chromium, `document.cookie`); err != nil || got != "" {
		t.Errorf("scripts see the cookie %q, %v", got, err)
	}
}

// TestPower switches a machine by its BMC, and is told what the one without a BMC lacks. What interrupts something asks for the name.
func TestPower(t *testing.T) {
	on := &switched{}
	service := httptest.NewTLSServer(vbmc.New(vbmc.Options{Username: "operator", Password: "s3cret", Systems: []vbmc.System{{Name: "1", Serial: "SN-1", Machine: on}}}))
	t.Cleanup(service.Close)
	machines := madeUp(3, time.Now())
	machines[0].Spec.BMC = &v1alpha1.BMC{Address: service.Listener.Addr().String(), System: "1", Authority: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: service.Certificate().Raw})), CredentialsSecret: "bmc"}
	b := startBench(t, false)
	check(t, b.client.Create(t.Context(), &v1alpha1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "bmc"}, Type: "bmc-credentials", Data: map[string][]byte{
		"username": []byte("operator"), "password": []byte("s3cret"), "addresses": []byte("127.0.0.1")}}))
	check(t, seed(t.Context(), b.client, machines))
	b.login()
	ask := func(name, action string) {
		t.Helper()
		b.goes("/ui/machines/" + name)
		b.waits(`document.querySelector("[data-action=power]")`)
		b.presses("p")
		b.waits(`document.querySelector("dialog [name=power]")`)
		_, err := value[bool](b.chromium, fmt.Sprintf(`(() => { const s = document.querySelector("dialog [name=power]"); s.value = %q; s.dispatchEvent(new Event("change")); return true; })()`, action))
		check(t, err)
	}
	press := func() {
		t.Helper()
		_, err := value[bool](b.chromium, `(() => { document.querySelector("dialog [value=do]").click(); return true; })()`)
		check(t, err)
	}
	ask(machines[0].Name, "on")
	b.waits(`document.querySelector("dialog [name=confirm]").closest("label").hidden`)
	press()
	b.says(machines[0].Name + ": power is On, was Off")
	ask(machines[0].Name, "off")
	b.says("What runs there is interrupted.")
	check(t, b.write("dialog [name=confirm]", machines[1].Name))
	press()
	b.says("Nothing was done.")
	if !on.On() {
		t.Error("the wrong name was typed, and the machine is off")
	}
	ask(machines[0].Name, "off")
	check(t, b.write("dialog [name=confirm]", machines[0].Name))
	press()
	b.says(machines[0].Name + ": power is Off, was On")
	ask(machines[1].Name, "on")
	press()
	b.says("spec.bmc")
}

// switched is a machine that a virtual BMC switches.
type switched struct{ on atomic.Bool }

func (s *switched) On() bool                                   { return s.on.Load() }
func (s *switched) PowerOn(context.Context, vbmc.Device) error { s.on.Store(true); return nil }
func (s *switched) PowerOff(context.Context) error             { s.on.Store(false); return nil }
func (s *switched) Shutdown(context.Context) error             { s.on.Store(false); return nil }
func (s *switched) Reset(context.Context) error                { return nil }

// TestHostileMachines puts what would do something into every field that a machine can set. Nothing of it does.
func TestHostileMachines(t *testing.T) {
	const (
		markup = `<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>`
		escape = "\x1b]0;owned\x07\x1b[31mred"
		turned = "abc\u202egpj.exe\u2066\u200b"
		quote  = `"'><svg/onload=document.title='owned'>`
	)
	all := markup + escape + turned + quote
	m := bare(0)
	inventory(&m, time.Now())
	i := m.Status.Inventory
	i.System = v1alpha1.SystemInfo{Vendor: all, Product: all, Serial: all, UUID: all, AssetTag: all, ChassisSerial: all, BIOSVersion: all}
	i.CPU.Model, i.Firmware, i.TPM, i.BMC = all, all, all, &v1alpha1.BMCInfo{Address: all, MAC: all}
	i.Disks = []v1alpha1.Disk{{Name: all, ByID: all, Model: all, Vendor: all, Serial: all, WWN: all, Transport: all, Size: resource.MustParse("1Gi"), Contents: []string{all}}}
	i.NICs = []v1alpha1.NIC{{Name: all, MAC: all, Driver: all, Bus: all, LLDP: &v1alpha1.LLDPNeighbour{ChassisID: all, SystemName: all, PortID: all, PortDesc: all}}}
	m.Status.Boots = []v1alpha1.BootRecord{{At: metav1.Now(), Action: v1alpha1.BootAction(all), Reason: all, MAC: all, Address: all, Firmware: all}}
	m.Status.Address, m.Status.Lease = all, &v1alpha1.LeaseStatus{Address: all, Subnet: all, MAC: all}
	intended(&m, v1alpha1.IntentFailed, time.Now(), []v1alpha1.Step{{Name: all, State: v1alpha1.StepFailed, StartedAt: new(metav1.NowMicro()), FinishedAt: new(metav1.NowMicro()), Message: all}})
	m.Spec.Intent.RequestedBy, m.Status.Intent.Message = all, all
	m.Status.Node = &v1alpha1.NodeStatus{AgentVersion: all, OS: all, Kernel: all, BootID: all, Addresses: []string{all}, Interface: all, FailedUnits: []string{all}}
	m.Status.Kubernetes = &v1alpha1.KubernetesStatus{Cluster: all, Node: all, Version: all, Message: all, Phases: []v1alpha1.Step{{Name: all, State: v1alpha1.StepRunning, Message: all}}}
	since(&m, v1alpha1.PhaseFailed, time.Now())
	b := newBench(t, []v1alpha1.Machine{m})
	b.login()
	for _, path := range []string{"/ui/racks?m=node-00000", "/ui/machines", "/ui/machines/node-00000"} {
		b.goes(path)
		b.waits(`document.body.innerText.includes("onerror") && document.querySelector("main").innerText.length > 100`)
		b.waits(`document.title !== "owned" && !document.querySelector("main img, main script, main svg, header img")`)
		found, err := value[string](b.chromium, `(() => { const walk = document.createTreeWalker(document.documentElement, NodeFilter.SHOW_ELEMENT | NodeFilter.SHOW_TEXT); let bad = "";
			for (let n = walk.currentNode; n; n = walk.nextNode()) for (const text of n.nodeType === 3 ? [n.data] : [...n.attributes].map((a) => a.value))
				if (/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2066-\u2069]/.test(text)) bad += text; return bad; })()`)
		check(t, err)
		if found != "" {
			t.Errorf("%s: hidden characters in %.200q", path, found)
		}
	}
	b.waits(`document.body.innerText.includes("\u241b]0;owned") && document.body.innerText.includes("\u27e8U+202E\u27e9")`)
}

// TestSameRules compares what the pages say of machines with what the command line says.
func TestSameRules(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	machines := madeUp(170, now)
	for i, phase := range cli.Phases() {
		m := bare(1000 + i)
		since(&m, phase, now.Add(-2*time.Hour))
		m.Status.Message = "because"
		machines = append(machines, m)
	}
	conflict := bare(2000)
	conflict.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionIdentityConflict, Status: metav1.ConditionTrue, Message: "same serial as another"}}
	machines = append(machines, conflict)
	b := newBench(t, nil)
	b.login()
	type verdict struct {
		Stuck, Step, Address string
		Overall              float64
	}
	content, err := json.Marshal(machines)
	check(t, err)
	got, err := value[[]verdict](b.chromium, fmt.Sprintf(`(async () => { const m = await import("/ui/js/model.js"); return (%s).map((one) => { const r = m.rowOf(one); const p = m.progressOf(one.status?.steps);
		return { Stuck: m.stuck(r, %d), Step: p ? m.progressText(p) : "", Address: m.addressOf(one), Overall: m.overall(one.status?.steps) }; }); })()`, content, now.UnixMilli()))
	check(t, err)
	for i := range machines {
		m := &machines[i]
		want := verdict{Stuck: cli.Stuck(m, now), Address: cli.AddressOf(m), Overall: cli.Overall(m)}
		if p, ok := cli.ProgressOf(m); ok {
			want.Step = p.String()
		}
		if got[i] != want {
			t.Errorf("%s: the page says %+v, the command line %+v", m.Name, got[i], want)
		}
	}
	for _, d := range []time.Duration{0, 59 * time.Second, 61 * time.Second, 9*time.Minute + 59*time.Second, time.Hour - time.Second, 5*time.Hour + 12*time.Minute, 200 * time.Hour} {
		text, err := value[string](b.chromium, fmt.Sprintf(`import("/ui/js/model.js").then((m) => m.age(%d))`, d.Milliseconds()))
		if err != nil || text != cli.Age(d) {
			t.Errorf("%s: the page says %q, the command line %q (%v)", d, text, cli.Age(d), err)
		}
	}
}

// TestTenThousand shows as many machines as there may be: all are counted, few are drawn, and changes arrive as with three.
func TestTenThousand(t *testing.T) {
	const n = 10_000
	b := startBench(t, true)
	check(t, seed(t.Context(), b.client, madeUp(n, time.Now())))
	b.login()
	b.goes("/ui/racks")
	b.waits(fmt.Sprintf(`document.querySelectorAll(".tile").length === %d`, n))
	b.says("3 stuck")
	// How long the page was busy while a person scrolls is told, not judged: it depends on the machine.
	scroll := func(selector string) string {
		busy, err := value[string](b.chromium, `(async () => {
			const tasks = [], seen = new PerformanceObserver((list) => tasks.push(...list.getEntries().map((e) => Math.round(e.duration))));
			seen.observe({ type: "longtask" });
			const e = document.querySelector(`+quoted(selector)+`), frame = () => new Promise(requestAnimationFrame);
			let frames = 0;
			for (let y = 0; y < e.scrollHeight && frames < 300; y += e.clientHeight / 2, frames++) { e.scrollTop = y; await frame(); }
			e.scrollTop = e.scrollHeight;
			await frame(); await frame();
			seen.disconnect();
			return frames + " frames, tasks of more than 50 ms: " + JSON.stringify(tasks); })()`)
		check(t, err)
		return busy
	}
	t.Log("racks: " + scroll("html"))
	b.goes("/ui/machines")
	b.waits(fmt.Sprintf(`document.querySelector("[role=grid]")?.getAttribute("aria-rowcount") === "%d" && document.querySelectorAll(".tbody .tr").length > 0`, n))
	t.Log("table: " + scroll("[role=grid]"))
	b.waits(`document.querySelectorAll(".tbody .tr").length < 100 && document.querySelector('.tbody .tr[aria-rowindex="10000"]')`)
	check(t, b.write("input[type=search]", "node-07777"))
	b.waits(`document.querySelectorAll(".tbody .tr").length === 1`)
	seen := b.machine("node-07777")
	bare := seen.DeepCopy()
	seen.Spec.Hostname = "renamed"
	check(t, b.client.Patch(t.Context(), seen, client.MergeFrom(bare)))
	check(t, b.write("input[type=search]", "renamed"))
	b.waits(`document.querySelector('.tbody .tr[data-machine="node-07777"]')`)
}

// TestCluster looks at a cluster of which one member of etcd does not answer, and gets a kubeconfig refused for want of keys.
func TestCluster(t *testing.T) {
	b := startBench(t, true)
	check(t, seedCluster(t.Context(), b.client, time.Now()))
	b.login()
	for _, l := range []look{{width: 1400, height: 900}, {width: 390, height: 844, dark: true}} {
		check(t, b.look(l))
		b.goes("/ui/clusters")
		b.says("member node-00002 of etcd does not answer")
		b.goes("/ui/clusters/prod")
		b.waits(`document.querySelectorAll(".member.up").length === 2 && document.querySelectorAll(".member.down").length === 1`)
		for _, text := range []string{"2 of 3 are ready; one more that fails ends the quorum", "taken for upgrade: drain", "node-00007 and node-00008 follow", "move-leader", "cluster-authority",
			"/mnt/backups is not mounted", "1843 keys, 31 MiB", "412 of 412", "1 of 9 pods is not ready", "example.com/ingress:1.14.0", "Drifted", "v1.37.3, v1.38.0", "could not be listed"} {
			b.says(text)
		}
		b.waits(`document.documentElement.scrollWidth <= innerWidth`)
		b.pictures(fmt.Sprintf("cluster-%d.png", l.width))
	}
	check(t, b.look(look{width: 1400, height: 900}))
	b.goes("/ui/clusters/prod")
	click := func(selector string) {
		t.Helper()
		b.waits(`document.querySelector(` + quoted(selector) + `)`)
		_, err := value[bool](b.chromium, `(() => { document.querySelector(`+quoted(selector)+`).click(); return true; })()`)
		check(t, err)
	}
	scale := func(group, replicas string) {
		t.Helper()
		click("[data-action=scale][data-group=" + group + "]")
		b.waits(`document.querySelector("dialog [name=replicas]")`)
		check(t, b.write("dialog [name=replicas]", replicas))
		click("dialog [value=do]")
	}
	b.waits(`document.querySelectorAll("[data-restore]").length === 3 && !document.body.innerText.includes("v1.39.0")`)
	click("[data-restore]")
	b.waits(`document.querySelector("pre") && [...document.querySelectorAll("pre")].some((e) => e.textContent.startsWith("coldrack cluster restore prod --from 20"))`)
	click("[data-action=backup]")
	b.says("no member of etcd that can be reached")
	scale("prod-etcd", "2")
	b.says("tolerate no more failures")
	click("dialog [value=no]")
	scale("prod-workers", "5")
	b.waits(`!document.querySelector("dialog")`)
	group := &v1alpha1.MachineGroup{}
	check(t, b.client.Get(t.Context(), client.ObjectKey{Name: "prod-workers"}, group))
	if group.WantedReplicas() != 5 {
		t.Errorf("the group wants %d machines", group.WantedReplicas())
	}
	for _, action := range []string{"pause", "abort", "resume"} {
		click("[data-action=" + action + "]")
		click("dialog [value=do]")
		b.waits(`!document.querySelector("dialog")`)
	}
	b.waits(`document.querySelector("[data-action=pause]") && !document.querySelector("[data-action=resume]")`)
	cluster := &v1alpha1.Cluster{}
	check(t, b.client.Get(t.Context(), client.ObjectKey{Name: "prod"}, cluster))
	if cluster.Spec.Paused || cluster.Annotations[v1alpha1.AnnotationAbort] != "" {
		t.Errorf("it was resumed, and is paused %t, annotated %v", cluster.Spec.Paused, cluster.Annotations)
	}
}

// TestKubeconfigRequest makes a certificate request in the browser and reads it as the server does.
func TestKubeconfigRequest(t *testing.T) {
	b := newBench(t, nil)
	b.login()
	_, err := value[bool](b.chromium, `(async () => { const send = window.fetch; window.fetch = async (path, options) => { window.asked = options.body; throw new Error("seen"); };
		const { make } = await import("/ui/js/kubeconfig.js"); try { await make("prod", "anna 安娜"); } catch {} window.fetch = send; return true; })()`)
	check(t, err)
	asked, err := value[string](b.chromium, `window.asked`)
	check(t, err)
	var request peoplewire.CertificateRequest
	check(t, json.Unmarshal([]byte(asked), &request))
	if _, err := pki.ParseCSR([]byte(request.CSR)); err != nil {
		t.Fatalf("%v\n%s", err, request.CSR)
	}
	block, _ := pem.Decode([]byte(request.CSR))
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	check(t, err)
	if csr.CheckSignature() != nil || csr.Subject.CommonName != "anna 安娜" {
		t.Errorf("%+v, %v", csr.Subject, csr.CheckSignature())
	}
}

// TestOtherPages opens the pages about content, network, health, power and the first steps, with and without something to show.
func TestOtherPages(t *testing.T) {
	b := newBench(t, madeUp(3, time.Now()))
	b.login()
	pages := map[string]string{"/ui/network": "No Subnet yet", "/ui/content": "No bundle yet", "/ui/health": "people-api", "/ui/power": "all machines", "/ui/start": "Bring the content in", "/ui/clusters": "No clusters yet"}
	for path, text := range pages {
		b.goes(path)
		b.says(text)
	}
	check(t, b.client.Create(t.Context(), &v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: "rack"}, Spec: v1alpha1.SubnetSpec{CIDR: "10.20.0.0/16", DHCP: v1alpha1.DHCPServer, Discovery: "10.20.200.1-10.20.203.254"}}))
	check(t, b.client.Create(t.Context(), &v1alpha1.Profile{ObjectMeta: metav1.ObjectMeta{Name: "worker"}, Spec: v1alpha1.ProfileSpec{Image: "debian-13"}}))
	check(t, b.client.Create(t.Context(), &v1alpha1.EnrollmentPolicy{ObjectMeta: metav1.ObjectMeta{Name: "ours"}, Spec: v1alpha1.EnrollmentPolicySpec{Match: v1alpha1.MachineMatch{Vendor: "dell*"}, Approve: true}}))
	check(t, b.look(look{width: 390, height: 844, dark: true}))
	for path, text := range map[string]string{"/ui/network": "10.20.200.1-10.20.203.254", "/ui/content": "vendor: dell*", "/ui/start": "Say how machines are installed \u2713"} {
		b.goes(path)
		b.says(text)
		b.waits(`document.documentElement.scrollWidth <= innerWidth`)
	}
}

// TestChinese changes the language and back.
func TestChinese(t *testing.T) {
	b := newBench(t, madeUp(3, time.Now()))
	b.login()
	b.says("2 stuck")
	_, err := value[bool](b.chromium, `(() => { const s = document.querySelector(".menu select"); s.value = "zh"; s.dispatchEvent(new Event("change")); return true; })()`)
	check(t, err)
	b.says("2 台卡住")
	b.waits(`document.documentElement.lang === "zh-CN"`)
	b.goes("/ui/machines")
	b.says("进度和消息")
	missing, err := value[[]string](b.chromium, `(async () => {
		const { words } = await import("/ui/js/zh.js"), missing = new Set(), files = new Set(["main.js"]);
		for (const file of files) {
			const text = await (await fetch("/ui/js/" + file)).text();
			for (const [, other] of text.matchAll(/(?:from |import\()"\.\/([a-z0-9]+\.js)"/g)) files.add(other);
			for (const [, word] of text.matchAll(/\bt\("((?:[^"\\]|\\.)+)"[,)]/g)) if (!(JSON.parse('"' + word + '"') in words)) missing.add(word);
		}
		return files.size > 15 ? [...missing] : ["only " + files.size + " files were found"]; })()`)
	check(t, err)
	if len(missing) > 0 {
		t.Errorf("not in Chinese: %s", strings.Join(missing, "; "))
	}
}
