package machineapi

import (
	"strings"
	"testing"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/contract/wire"
)

// approved is a machine with all that its install is made of.
func approved() ingredients {
	store := newMemory()
	m := &v1alpha1.Machine{}
	m.Name = "a"
	m.Spec = v1alpha1.MachineSpec{
		Identifiers: v1alpha1.Identifiers{MACs: []string{"52:54:00:00:00:0a"}}, Approved: true, Profile: "default",
		Network: &v1alpha1.MachineNetwork{Subnet: "rack", Address: "10.0.0.9"},
		Intent:  &v1alpha1.Intent{ID: "1", Action: v1alpha1.ActionInstall},
	}
	return ingredients{machine: m, profile: store.profiles["default"], image: store.images["debian-12"], subnets: store.subnets, addressOwners: []string{"a"}}
}

func TestAssign(t *testing.T) {
	good := approved
	tests := []struct {
		name    string
		change  func(*ingredients)
		action  wire.Action
		message string
	}{
		{"an approved machine with everything it needs", func(*ingredients) {}, wire.ActionInstall, "install debian-12 as a"},
		{"an unapproved machine", func(in *ingredients) { in.machine.Spec.Approved = false }, wire.ActionWait, "not approved"},
		{"no intent yet", func(in *ingredients) { in.machine.Spec.Intent = nil }, wire.ActionWait, "waiting for the server to plan"},
		{"no intent and no approval", func(in *ingredients) { in.machine.Spec.Intent, in.machine.Spec.Approved = nil, false }, wire.ActionWait, "coldrack approve a"},
		{"something is missing", func(in *ingredients) { in.missing = "image x is not in any imported bundle" }, wire.ActionWait, "image x"},
		{"no address", func(in *ingredients) { in.machine.Spec.Network = nil }, wire.ActionWait, "has no address"},
		{"a subnet that does not exist", func(in *ingredients) { in.machine.Spec.Network.Subnet = "gone" }, wire.ActionWait, "subnet gone does not exist"},
		{"an address outside its subnet", func(in *ingredients) { in.machine.Spec.Network.Address = "10.9.0.1" }, wire.ActionWait, "not in subnet rack"},
		{"an address outside every subnet", func(in *ingredients) {
			in.machine.Spec.Network = &v1alpha1.MachineNetwork{Address: "10.9.0.1"}
		}, wire.ActionWait, "in no subnet"},
		{"an address that another machine has", func(in *ingredients) { in.addressOwners = []string{"a", "b"} }, wire.ActionWait, "also the address of machine b"},
		{"an address that is none", func(in *ingredients) { in.machine.Spec.Network.Address = "10.0.0.x" }, wire.ActionWait, "not an IP address"},
		{"several NICs and no word which one", func(in *ingredients) {
			in.machine.Spec.Identifiers.MACs = []string{"52:54:00:00:00:0a", "52:54:00:00:00:0b"}
		}, wire.ActionWait, "spec.network.mac"},
		{"a mode that is not octal", func(in *ingredients) {
			in.profile = in.profile.DeepCopy()
			in.profile.Spec.Files = []v1alpha1.File{{Path: "/x", Mode: "rw"}}
		}, wire.ActionWait, "files[/x].mode"},
		{"an install of what is installed", func(in *ingredients) {
			in.machine.Status.Installed = &v1alpha1.InstalledStatus{IntentID: "0"}
		}, wire.ActionWait, "coldrack reinstall a"},
		{"a reinstall of what is installed", func(in *ingredients) {
			in.machine.Spec.Intent.Action = v1alpha1.ActionReinstall
			in.machine.Status.Intent = &v1alpha1.IntentStatus{ID: "1", Action: v1alpha1.ActionReinstall, State: v1alpha1.IntentPending}
			in.machine.Status.Installed = &v1alpha1.InstalledStatus{IntentID: "0"}
		}, wire.ActionInstall, "install"},
		{"a release needs neither approval nor profile", func(in *ingredients) {
			in.machine.Spec.Intent.Action, in.machine.Spec.Approved, in.profile = v1alpha1.ActionRelease, false, nil
		}, wire.ActionRelease, "wiped"},
		{"after a failure", func(in *ingredients) {
			in.machine.Status.Intent = &v1alpha1.IntentStatus{ID: "1", Action: v1alpha1.ActionInstall, State: v1alpha1.IntentFailed, Message: "two disks match"}
		}, wire.ActionWait, "two disks match"},
		{"after a success", func(in *ingredients) {
			in.machine.Status.Intent = &v1alpha1.IntentStatus{ID: "1", Action: v1alpha1.ActionInstall, State: v1alpha1.IntentSucceeded}
			in.machine.Status.Installed = &v1alpha1.InstalledStatus{IntentID: "1"}
		}, wire.ActionReboot, "boots from its disk"},
		{"after a release", func(in *ingredients) {
			in.machine.Spec.Intent, in.machine.Spec.Approved = nil, false
			in.machine.Status.Intent = &v1alpha1.IntentStatus{ID: "1", Action: v1alpha1.ActionRelease, State: v1alpha1.IntentSucceeded}
		}, wire.ActionWait, "released"},
	}
	versions := map[string]string{}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			in := good()
			test.change(&in)
			got, _ := assign(in)
			if got.Action != test.action || !strings.Contains(got.Message, test.message) {
				t.Errorf("got %s: %s, want %s with %q", got.Action, got.Message, test.action, test.message)
			}
			if (got.Plan != nil) != (got.Action == wire.ActionInstall) || (got.Release != nil) != (got.Action == wire.ActionRelease) {
				t.Errorf("plan and action disagree: %+v", got)
			}
			if again, _ := assign(in); again.Version != got.Version || got.Version == "" {
				t.Errorf("the version is not stable: %q, %q", got.Version, again.Version)
			}
			versions[got.Version] = test.name
		})
	}
	if len(versions) < 12 {
		t.Errorf("only %d versions of so many different assignments", len(versions))
	}
}

func TestNoncesAreBounded(t *testing.T) {
	n := NewNonces(nil)
	n.limit = 100
	first := n.Issue(Binding{Identifiers: v1alpha1.Identifiers{MACs: []string{"52:54:00:00:00:0a"}}})
	for range 1000 {
		n.Issue(Binding{Identifiers: v1alpha1.Identifiers{MACs: []string{"52:54:00:00:00:0b"}}})
	}
	if _, ok := n.Peek(first, "k"); !ok {
		t.Error("one machine pushed out the nonce of another")
	}
	for range 1000 {
		n.Issue(Binding{})
	}
	if len(n.issued) > 100 || len(n.order) > 200 || len(n.byMAC) > 2 {
		t.Errorf("%d nonces, %d in order, %d by MAC", len(n.issued), len(n.order), len(n.byMAC))
	}
}

func FuzzInventory(f *testing.F) {
	f.Add([]byte(`{"nics":[{"mac":"52:54:00:00:00:0A","lldp":{}}],"disks":[{"byID":["x"]}],"bmc":{}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		in, err := decode[wire.Inventory](body)
		if err != nil {
			return
		}
		out := inventoryOf(in)
		if len(out.NICs) > maxNICs || len(out.Disks) > maxDisks || len(out.System.Serial) > maxText {
			t.Errorf("too much was kept: %d NICs, %d disks", len(out.NICs), len(out.Disks))
		}
	})
}

func TestTheWipePolicyReachesInstallsAndReleases(t *testing.T) {
	for policy, want := range map[v1alpha1.WipePolicy]string{
		"": "RefuseForeign", v1alpha1.WipeRefuseForeign: "RefuseForeign", v1alpha1.WipeIfOurs: "RefuseForeign", // which agents of older bundles know
		v1alpha1.WipeAlways: "Always", v1alpha1.WipeNever: "Never", v1alpha1.WipeSecure: "Secure",
	} {
		in := approved()
		in.profile.Spec.Wipe = policy
		install, _ := assign(in)
		in.machine.Spec.Intent.Action = v1alpha1.ActionRelease
		release, _ := assign(in)
		if install.Plan == nil || release.Release == nil || install.Plan.Wipe != want || release.Release.Wipe != want {
			t.Errorf("%q: install %+v, release %+v, want %s", policy, install.Plan, release.Release, want)
		}
		if err := wire.CheckWipe(want); err != nil {
			t.Error(err)
		}
	}
}
