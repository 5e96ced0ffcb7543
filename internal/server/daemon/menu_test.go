package daemon

import (
	"encoding/base64"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/content/bundle"
	"coldrack.dev/internal/machine/fleet"
	"coldrack.dev/internal/netboot/httpboot"
	"coldrack.dev/internal/server/controllers"
	"coldrack.dev/internal/server/machineapi"
)

// menuRig is the boot HTTP server of a server that knows no machine yet, on a loopback address. Its scripts name the address by which an emulated
// machine reaches it.
type menuRig struct {
	t      *testing.T
	booter *booter
	fleet  *fleet.Fleet
	menus  *menus
	web    *httptest.Server
	port   int
	log    *logText
}

func newMenuRig(t *testing.T, m v1alpha1.BootMenu, pin string) *menuRig {
	t.Helper()
	cfg := testConfig(t)
	store, err := bundle.OpenStore(cfg.path("content"))
	check(t, err)
	path, keyPath := sampleBundle(t)
	trusted, err := bundle.LoadPublicKeys(keyPath)
	check(t, err)
	_, err = bundle.Import(t.Context(), store, path, trusted, nil)
	check(t, err)
	known := fleet.New(fleet.Options{Log: discard()})
	known.MarkSynced()
	r := &menuRig{t: t, fleet: known, menus: newMenus(), log: &logText{}}
	b := &booter{
		fleet: known, nonces: machineapi.NewNonces(nil), content: newContent(store), reach: testReach(t, "10.0.2.2"), caPin: "sha256:00",
		log: slog.New(slog.NewTextHandler(r.log, nil)), metrics: newMetrics(known), bootGate: newBootGate(10, func() bool { return true }), menus: r.menus,
	}
	r.booter = b
	r.web = httptest.NewUnstartedServer(httpboot.New(httpboot.Options{Scripts: b, Content: b, Log: discard()}))
	r.port = int(netip.MustParseAddrPort(r.web.Listener.Addr().String()).Port())
	cfg.BootPort = r.port
	b.cfg = cfg
	r.web.Start()
	t.Cleanup(r.web.Close)
	noPIN := ""
	if pin == "" {
		noPIN = "the PIN was never set"
	}
	r.menus.SetMenus([]controllers.Menu{{Subnet: "rack-1", CIDR: "127.0.0.0/8", Menu: m, PIN: pin, NoPIN: noPIN}})
	return r
}

const menuMAC = "52:54:00:00:00:01"

// ask asks as iPXE does; pin "-": without credentials.
func (r *menuRig) ask(choice, pin string) (status int, script string) {
	r.t.Helper()
	query := url.Values{"mac": {menuMAC}, "arch": {"x86_64"}, "platform": {"pcbios"}}
	if choice != "" {
		query.Set("choice", choice)
	}
	request, err := http.NewRequest(http.MethodGet, r.web.URL+"/boot/ipxe?"+query.Encode(), nil)
	check(r.t, err)
	if pin != "-" {
		request.Header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte("kim:"+pin)))
	}
	response, err := r.web.Client().Do(request)
	check(r.t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	check(r.t, err)
	if response.StatusCode == http.StatusUnauthorized && !strings.HasPrefix(response.Header.Get("WWW-Authenticate"), "Basic ") {
		r.t.Errorf("401 with %q", response.Header.Get("WWW-Authenticate"))
	}
	return response.StatusCode, string(body)
}

func (r *menuRig) want(choice, pin string, status int, parts ...string) {
	r.t.Helper()
	got, script := r.ask(choice, pin)
	if got != status {
		r.t.Errorf("choice %q with PIN %q: %d, want %d\n%s", choice, pin, got, status, script)
	}
	for _, part := range parts {
		if !strings.Contains(script, part) {
			r.t.Errorf("choice %q with PIN %q: no %q in\n%s", choice, pin, part, script)
		}
	}
}

var workerMenu = []v1alpha1.BootMenuEntry{{Name: "worker", Role: v1alpha1.RoleProductionWorker}}

func TestTheMenuAsksForItsPIN(t *testing.T) {
	r := newMenuRig(t, v1alpha1.BootMenu{Mode: v1alpha1.BootMenuPIN, PINSecret: "menu", Entries: workerMenu}, "271828")
	r.want("", "-", 200, "prompt --key m", "Install: Production: worker (PIN)", "choice=worker")
	r.want("continue", "-", 200, "Discover", "kernel ")
	r.want("worker", "-", 401)
	r.want("worker", "314159", 200, "PIN is wrong")
	if choices, _ := r.menus.Choices(); len(choices) != 0 {
		t.Errorf("chosen without the PIN: %v", choices)
	}
	r.want("worker", "271828", 200, "worker was chosen at the console by kim", "kernel ")
	choices, _ := r.menus.Choices()
	if len(choices) != 1 {
		t.Fatalf("choices: %v", choices)
	}
	for name, choice := range choices {
		if choice.Entry != "worker" || choice.Subnet != "rack-1" || !choice.PIN || choice.By != "kim" || choice.From != "127.0.0.1" {
			t.Errorf("choice %+v", choice)
		}
		r.menus.Recorded(name, choice)
	}
	if choices, _ := r.menus.Choices(); len(choices) != 0 {
		t.Errorf("recorded, and still there: %v", choices)
	}
	r.want("live", "271828", 200, "Rescue", "coldrack.live=1", "coldrack.debug=shell")
	r.want("local", "-", 200, "local.lkrn")
	r.want("worker", "1", 200, "PIN is wrong")
	r.want("worker", "2", 200, "PIN is wrong")
	r.want("worker", "271828", 200, "too many wrong PINs")
	r.want("router", "-", 200, "no entry")
	if text := r.log.String(); strings.Contains(text, "271828") || strings.Contains(text, "314159") {
		t.Errorf("the log has PINs:\n%s", text)
	}
	if status, _ := r.ask("NO/SUCH", "-"); status != 400 {
		t.Errorf("a choice that cannot be: %d", status)
	}
	if status, _ := r.ask("worker", strings.Repeat("1", 1000)); status != 400 {
		t.Errorf("a PIN of 1000 digits: %d", status)
	}
}

func TestTheMenuWithoutItsPIN(t *testing.T) {
	r := newMenuRig(t, v1alpha1.BootMenu{Mode: v1alpha1.BootMenuPIN, PINSecret: "menu", Entries: workerMenu}, "")
	r.want("worker", "-", 200, "the PIN was never set")
	r.want("worker", "", 200, "the PIN was never set")
}

func TestMachinesThatHaveNoMenu(t *testing.T) {
	r := newMenuRig(t, v1alpha1.BootMenu{Mode: v1alpha1.BootMenuFree, Entries: workerMenu}, "")
	node := &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "1", ResourceVersion: "1"}, Spec: v1alpha1.MachineSpec{Approved: true, Identifiers: v1alpha1.Identifiers{MACs: []string{menuMAC}}}}
	node.Status.Installed = &v1alpha1.InstalledStatus{Image: "debian-13", Disk: "sda"}
	r.fleet.Put(node.DeepCopy())
	r.want("", "-", 200, "prompt --key m", "Go on: LocalDisk")
	r.want("worker", "-", 200, "n1 is installed")
	r.want("discover", "-", 200, "the machine is installed")

	node.ResourceVersion, node.Spec.Rescue = "2", &v1alpha1.Rescue{SSHKeys: []string{"ssh-ed25519 AAAA"}}
	r.fleet.Put(node.DeepCopy())
	r.want("", "-", 200, "Rescue", "coldrack.live=1")
	r.want("worker", "-", 200, "Rescue")
	if _, script := r.ask("", "-"); strings.Contains(script, "coldrack.debug") || strings.Contains(script, "AAAA") {
		t.Errorf("a shell, or a key, that was not asked for:\n%s", script)
	}
	r.menus.SetMenus(nil)
	node.ResourceVersion, node.Spec.Rescue = "3", nil
	r.fleet.Put(node.DeepCopy())
	if _, script := r.ask("", "-"); strings.Contains(script, "prompt") || !strings.Contains(script, "local.lkrn") {
		t.Errorf("a menu in a Subnet that has none:\n%s", script)
	}
	if choices, _ := r.menus.Choices(); len(choices) != 0 {
		t.Errorf("chosen: %v", choices)
	}
}

func TestChoicesAreBounded(t *testing.T) {
	m := newMenus()
	for i := range mostChoices {
		if !m.claim("m"+string(rune('a'+i%26))+time.Duration(i).String(), v1alpha1.MenuChoice{Entry: "worker"}) {
			t.Fatalf("no room for choice %d", i)
		}
	}
	if m.claim("one-more", v1alpha1.MenuChoice{}) {
		t.Error("room for one more")
	}
	if !m.claim("ma0s", v1alpha1.MenuChoice{Entry: "db"}) {
		t.Error("a machine cannot choose anew")
	}
	if m.claim("", v1alpha1.MenuChoice{}) {
		t.Error("a machine without a name")
	}
}
