package menu

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/netboot/boot"
)

var update = flag.Bool("update", false, "write the golden files anew")

var (
	request = boot.Request{Arch: "x86_64", Platform: boot.PlatformBIOS}
	have    = boot.Policy{Netboot: true}
	from    = netip.MustParseAddr("10.20.0.100")
	noon    = time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
)

func policy(mode v1alpha1.BootMenuMode) *Policy {
	return &Policy{
		Subnet: "rack-1", Network: netip.MustParsePrefix("10.20.0.0/24"), PIN: "271828",
		Menu: v1alpha1.BootMenu{Mode: mode, Entries: []v1alpha1.BootMenuEntry{
			{Name: "worker", Role: v1alpha1.RoleProductionWorker, Profile: "debian"},
			{Name: "db", Title: `Database ${mac} && "x"`, Group: "databases"},
		}},
	}
}

func machine(name string, changes ...func(*v1alpha1.Machine)) *v1alpha1.Machine {
	m := &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, change := range changes {
		change(m)
	}
	return m
}

func approved(m *v1alpha1.Machine) { m.Spec.Approved = true }
func installedOn(m *v1alpha1.Machine) {
	m.Status.Installed = &v1alpha1.InstalledStatus{Image: "debian-13", Disk: "sda"}
}
func identified(m *v1alpha1.Machine) {
	m.Status.Identity = &v1alpha1.IdentityStatus{KeyFingerprint: "sha256:00"}
}
func released(m *v1alpha1.Machine) {
	m.Spec.Intent = &v1alpha1.Intent{ID: "1", Action: v1alpha1.ActionRelease}
	m.Status.Intent = &v1alpha1.IntentStatus{ID: "1", Action: v1alpha1.ActionRelease, State: v1alpha1.IntentSucceeded}
}
func reinstalling(m *v1alpha1.Machine) {
	m.Spec.Intent = &v1alpha1.Intent{ID: "2", Action: v1alpha1.ActionReinstall}
	m.Status.Intent = &v1alpha1.IntentStatus{ID: "2", Action: v1alpha1.ActionReinstall, State: v1alpha1.IntentPending}
}
func rescued(m *v1alpha1.Machine) { m.Spec.Rescue = &v1alpha1.Rescue{Autologin: true} }
func policyTook(m *v1alpha1.Machine) {
	m.Annotations = map[string]string{v1alpha1.AnnotationEnrolledBy: "all"}
}

func TestDecide(t *testing.T) {
	const pin, free = v1alpha1.BootMenuPIN, v1alpha1.BootMenuFree
	const discover, install, local, rescue = v1alpha1.BootDiscover, v1alpha1.BootInstall, v1alpha1.BootLocalDisk, v1alpha1.BootRescue
	unknown := boot.Subject{}
	known := func(changes ...func(*v1alpha1.Machine)) boot.Subject {
		return boot.Subject{Machine: machine("m1", changes...)}
	}
	rivals := func(changes ...func(*v1alpha1.Machine)) boot.Subject {
		return boot.Subject{Rivals: []*v1alpha1.Machine{machine("m1", changes...), machine("m2")}}
	}
	for name, test := range map[string]struct {
		mode    v1alpha1.BootMenuMode
		entry   string
		pin     PINState
		subject boot.Subject
		action  v1alpha1.BootAction
		claim   bool
		ask     bool
		refused string
	}{
		"to go on needs nothing":                           {pin, "continue", PINNotAsked, unknown, discover, false, false, ""},
		"an installed machine goes on to its disk":         {pin, "continue", PINNotAsked, known(approved, installedOn), local, false, false, ""},
		"an unknown machine may start its disk":            {pin, "local", PINNotAsked, unknown, local, false, false, ""},
		"an unknown machine may be discovered":             {pin, "discover", PINNotAsked, unknown, discover, false, false, ""},
		"an installed machine is not discovered":           {free, "discover", PINNotAsked, known(approved, installedOn), "", false, false, "is installed"},
		"nor is one that may be an installed one":          {free, "discover", PINNotAsked, rivals(installedOn), "", false, false, "is installed"},
		"an unknown machine installs for free":             {free, "worker", PINNotAsked, unknown, discover, true, false, ""},
		"a waiting machine installs for free":              {free, "worker", PINNotAsked, known(), discover, true, false, ""},
		"with a PIN it is asked first":                     {pin, "worker", PINNotAsked, unknown, "", false, true, ""},
		"the right PIN installs":                           {pin, "worker", PINRight, unknown, discover, true, false, ""},
		"the wrong PIN does not":                           {pin, "worker", PINWrong, unknown, "", false, false, "PIN is wrong"},
		"nor does any after too many":                      {pin, "worker", PINLocked, unknown, "", false, false, "too many"},
		"an installed machine is never installed again":    {pin, "worker", PINRight, known(approved, installedOn), "", false, false, "coldrack reinstall m1"},
		"nor one that has an identity":                     {pin, "worker", PINRight, known(identified), "", false, false, "coldrack reinstall m1"},
		"nor one whose approval was withdrawn":             {pin, "worker", PINRight, known(installedOn), "", false, false, "coldrack reinstall m1"},
		"nor one that may be installed":                    {pin, "worker", PINRight, rivals(installedOn), "", false, false, "cannot be told from m1"},
		"nor one that may be another":                      {free, "worker", PINNotAsked, rivals(), "", false, false, "cannot be told from m1"},
		"an approved machine keeps what was decided":       {pin, "worker", PINRight, known(approved), "", false, false, "approved already"},
		"so does one that was released":                    {free, "worker", PINNotAsked, known(released), "", false, false, "decided about m1"},
		"so does one that a policy took":                   {free, "worker", PINNotAsked, known(policyTook), "", false, false, "decided about m1"},
		"no choice keeps a reinstall from beginning":       {pin, "local", PINNotAsked, known(approved, installedOn, reinstalling), install, false, false, ""},
		"nor a rescue":                                     {free, "worker", PINNotAsked, known(rescued), rescue, false, false, ""},
		"a shell needs the PIN":                            {pin, "live", PINNotAsked, known(approved, installedOn), "", false, true, ""},
		"the right PIN opens one, on an installed machine": {pin, "live", PINRight, known(approved, installedOn), rescue, false, false, ""},
		"a shell for free":                                 {free, "live", PINNotAsked, unknown, rescue, false, false, ""},
		"an entry that is gone":                            {free, "router", PINNotAsked, unknown, "", false, false, `no entry "router"`},
	} {
		t.Run(name, func(t *testing.T) {
			all := boot.Policy{Netboot: true}
			decided := boot.Decide(request, test.subject, all)
			got := policy(test.mode).Decide(Choice{Entry: test.entry, PIN: test.pin, By: "eve", From: from, At: noon}, request, test.subject, decided, all)
			if got.Plan.Action != test.action || got.AskPIN != test.ask || (got.Claim != nil) != test.claim {
				t.Errorf("got %+v", got)
			}
			if test.refused == "" != (got.Refused == "") || !strings.Contains(got.Refused, test.refused) {
				t.Errorf("refused for %q, want %q", got.Refused, test.refused)
			}
			if got.Claim != nil && (got.Claim.PIN != (test.pin == PINRight) || got.Claim.Entry != test.entry || got.Claim.By != "eve" || got.Claim.Subnet != "rack-1" || !got.Claim.At.Equal(noon)) {
				t.Errorf("claim %+v", got.Claim)
			}
			if got.Plan.Action == rescue && got.Plan.Shell != true {
				t.Error("no shell")
			}
		})
	}
}

func TestThePINThatWasNeverSet(t *testing.T) {
	p := policy(v1alpha1.BootMenuPIN)
	p.PIN, p.NoPIN = "", "the PIN was never set"
	for _, state := range []PINState{PINNotAsked, PINRight, PINWrong} {
		got := p.Decide(Choice{Entry: "worker", PIN: state}, request, boot.Subject{}, boot.Plan{Action: v1alpha1.BootDiscover}, have)
		if !strings.Contains(got.Refused, "never set") || got.Claim != nil {
			t.Errorf("%v: got %+v", state, got)
		}
	}
	if SamePIN("", "") {
		t.Error("an empty PIN is right")
	}
}

func TestTheLiveSystemWithoutAnImage(t *testing.T) {
	got := policy(v1alpha1.BootMenuFree).Decide(Choice{Entry: "live"}, request, boot.Subject{Machine: machine("m1", installedOn)}, boot.Plan{Action: v1alpha1.BootLocalDisk}, boot.Policy{})
	if got.Plan.Action != v1alpha1.BootRefuse || !strings.Contains(got.Plan.Reason, "bundle import") {
		t.Errorf("got %+v", got)
	}
}

func TestFor(t *testing.T) {
	off := *policy(v1alpha1.BootMenuOff)
	on := *policy(v1alpha1.BootMenuFree)
	on.Network = netip.MustParsePrefix("10.30.0.0/24")
	for client, want := range map[string]bool{"10.20.0.9": false, "10.30.0.9": true, "::ffff:10.30.0.9": true, "10.40.0.1": false} {
		if got := For([]Policy{off, on}, netip.MustParseAddr(client)); (got != nil) != want {
			t.Errorf("%s: got %+v", client, got)
		}
	}
}

func TestDefault(t *testing.T) {
	for name, test := range map[string]struct {
		mode    v1alpha1.BootMenuMode
		entry   string
		subject boot.Subject
		want    string
	}{
		"nothing said":                               {v1alpha1.BootMenuFree, "", boot.Subject{}, "continue"},
		"an entry for a new machine":                 {v1alpha1.BootMenuFree, "worker", boot.Subject{}, "worker"},
		"an entry for one that is installed":         {v1alpha1.BootMenuFree, "worker", boot.Subject{Machine: machine("m", approved, installedOn)}, "continue"},
		"an entry for one that is approved":          {v1alpha1.BootMenuFree, "worker", boot.Subject{Machine: machine("m", approved)}, "continue"},
		"an entry that needs the PIN":                {v1alpha1.BootMenuPIN, "worker", boot.Subject{}, "continue"},
		"the disk, of a new machine":                 {v1alpha1.BootMenuPIN, "local", boot.Subject{}, "local"},
		"the disk, of an installed one: as decided":  {v1alpha1.BootMenuPIN, "local", boot.Subject{Machine: machine("m", installedOn)}, "continue"},
		"an entry that was removed from the entries": {v1alpha1.BootMenuFree, "gone", boot.Subject{}, "continue"},
	} {
		p := policy(test.mode)
		p.Menu.Default = test.entry
		if got := p.Default(test.subject, boot.Decide(request, test.subject, have), have); got != test.want {
			t.Errorf("%s: %s, want %s", name, got, test.want)
		}
	}
}

func TestTries(t *testing.T) {
	p, now := policy(v1alpha1.BootMenuPIN), noon
	var tries Tries
	check := func(pin, machine string, want PINState) {
		t.Helper()
		if got := tries.Check(pin, p, machine, now); got != want {
			t.Errorf("%s from %s at %s: %v, want %v", pin, machine, now.Format("15:04:05"), got, want)
		}
	}
	for range 5 {
		check("271828", "m1", PINRight) // the right one costs nothing
	}
	for range wrongPerMachine {
		check("000000", "m1", PINWrong)
	}
	check("271828", "m1", PINLocked)
	check("271828", "m2", PINRight)
	now = now.Add(perTry)
	check("271828", "m1", PINRight)
	check("000000", "m1", PINWrong)
	check("271828", "m1", PINLocked)

	// Whoever calls himself another machine each time meets the limit of the Subnet.
	tries = Tries{}
	for i := range wrongPerSubnet {
		check("000000", string(rune('a'+i)), PINWrong)
	}
	check("271828", "other", PINLocked)
	elsewhere := policy(v1alpha1.BootMenuPIN)
	elsewhere.Subnet = "rack-2"
	if got := tries.Check("271828", elsewhere, "other", now); got != PINRight {
		t.Errorf("another Subnet: %v", got)
	}
	now = now.Add(perTry)
	check("271828", "other", PINRight)
	check("000000", "z", PINWrong)
	check("271828", "other", PINLocked)
}

func TestTriesRememberABoundedNumber(t *testing.T) {
	p, now := policy(v1alpha1.BootMenuPIN), noon
	var tries Tries
	for i := range 3 * mostMachines {
		p.Subnet = "rack"
		tries.Check("000000", p, string(rune(i+1000)), now)
		now = now.Add(perTry / 100)
	}
	if n := len(tries.full); n > mostMachines+1 {
		t.Errorf("%d remembered", n)
	}
}

func TestScript(t *testing.T) {
	target := Target{Host: "10.20.0.2:7080", Ask: "/boot/ipxe?mac=${netX/mac:hexhyp}"}
	waiting := boot.Subject{}
	node := boot.Subject{Machine: machine("rack1-u10", approved, installedOn)}
	for name, test := range map[string]struct {
		mode    v1alpha1.BootMenuMode
		subject boot.Subject
		machine string
	}{
		"new-pin":        {v1alpha1.BootMenuPIN, waiting, ""},
		"installed-free": {v1alpha1.BootMenuFree, node, "rack1-u10"},
	} {
		t.Run(name, func(t *testing.T) {
			p, at := policy(test.mode), target
			at.Machine = test.machine
			decided := boot.Decide(request, test.subject, have)
			all := boot.Policy{Netboot: true}
			got := Script(p.Items(test.subject, decided, all), p.Default(test.subject, decided, all), p, at)
			golden(t, name, got)
			if strings.Contains(got, p.PIN) {
				t.Error("the script has the PIN")
			}
			// Each wait has an end of its own, but for the PIN's.
			for line := range strings.Lines(got) {
				if strings.HasPrefix(line, "prompt") && !strings.Contains(line, "--timeout") || strings.HasPrefix(line, "choose") {
					t.Errorf("waits without end: %s", line)
				}
			}
		})
	}
	golden(t, "refusal", Refusal("m1 is installed; ${run} && it", target))
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name+".ipxe")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; run the test with -update and look at the change:\n%s", file, got)
	}
}
