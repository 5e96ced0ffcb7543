package boot

import (
	"strings"
	"testing"

	"coldrack.dev/api/v1alpha1"
)

func machine(changes ...func(*v1alpha1.Machine)) *v1alpha1.Machine {
	m := &v1alpha1.Machine{}
	for _, change := range changes {
		change(m)
	}
	return m
}

func approved(m *v1alpha1.Machine) { m.Spec.Approved = true }
func installed(m *v1alpha1.Machine) {
	m.Status.Installed = &v1alpha1.InstalledStatus{Image: "debian-12", Disk: "virtio-1"}
}
func rescue(m *v1alpha1.Machine) {
	m.Spec.Rescue = &v1alpha1.Rescue{Autologin: true, RequestedBy: "kim"}
}
func wants(id string, action v1alpha1.IntentAction) func(*v1alpha1.Machine) {
	return func(m *v1alpha1.Machine) {
		m.Spec.Intent = &v1alpha1.Intent{ID: id, Action: action}
		m.Status.Intent = &v1alpha1.IntentStatus{ID: id, Action: action, State: v1alpha1.IntentPending}
	}
}
func acknowledged(id string, action v1alpha1.IntentAction, state v1alpha1.IntentState) func(*v1alpha1.Machine) {
	return func(m *v1alpha1.Machine) {
		m.Status.Intent = &v1alpha1.IntentStatus{ID: id, Action: action, State: state, Message: "disk too small"}
	}
}

func TestDecide(t *testing.T) {
	const install, reinstall, release = v1alpha1.ActionInstall, v1alpha1.ActionReinstall, v1alpha1.ActionRelease
	tests := []struct {
		name    string
		machine *v1alpha1.Machine
		want    v1alpha1.BootAction
		reason  string
	}{
		{"an unknown machine is discovered", nil, v1alpha1.BootDiscover, "not known"},
		{"an unapproved machine waits in discovery", machine(), v1alpha1.BootDiscover, "not approved"},
		{"an unapproved machine is not installed, whatever its intent says", machine(wants("1", install)), v1alpha1.BootDiscover, "not approved"},
		{"an approved machine without an intent waits", machine(approved), v1alpha1.BootDiscover, "once its plan is complete"},
		{"an approved machine with an intent is installed", machine(approved, wants("1", install)), v1alpha1.BootInstall, "intent 1"},
		{"an install that was cut short starts over", machine(approved, wants("1", install), acknowledged("1", install, v1alpha1.IntentRunning)), v1alpha1.BootInstall, "intent 1"},
		{"an install that failed is not repeated by itself", machine(approved, wants("1", install), acknowledged("1", install, v1alpha1.IntentFailed)), v1alpha1.BootDiscover, "disk too small"},
		{"a new intent after a failure tries again", machine(approved, wants("2", install), acknowledged("1", install, v1alpha1.IntentFailed)), v1alpha1.BootInstall, "intent 2"},
		{"an installed machine boots its disk", machine(approved, installed, wants("1", install), acknowledged("1", install, v1alpha1.IntentSucceeded)), v1alpha1.BootLocalDisk, "debian-12"},
		{"an installed machine boots its disk even when approval was withdrawn", machine(installed), v1alpha1.BootLocalDisk, "debian-12"},
		{"a reinstall that was asked for comes before the disk", machine(approved, installed, wants("2", reinstall)), v1alpha1.BootInstall, "reinstall"},
		{"a reinstall that its cluster holds back leaves the disk alone", machine(approved, installed, wants("2", reinstall), acknowledged("1", install, v1alpha1.IntentSucceeded)), v1alpha1.BootLocalDisk, "debian-12"},
		{"a reinstall without approval leaves the disk alone", machine(installed, wants("2", reinstall)), v1alpha1.BootLocalDisk, "no longer approved"},
		{"a reinstall that failed before it touched the disk leaves it bootable", machine(approved, installed, wants("2", reinstall), acknowledged("2", reinstall, v1alpha1.IntentFailed)), v1alpha1.BootLocalDisk, "debian-12"},
		{"a release that was asked for comes before the disk", machine(installed, wants("3", release)), v1alpha1.BootRelease, "intent 3"},
		{"a rescue comes before the disk", machine(approved, installed, rescue), v1alpha1.BootRescue, "coldrack rescue"},
		{"a rescue comes before a reinstall, which waits", machine(approved, installed, wants("2", reinstall), acknowledged("2", reinstall, v1alpha1.IntentPending), rescue), v1alpha1.BootRescue, "coldrack rescue"},
		{"a rescue of a machine that waits", machine(rescue), v1alpha1.BootRescue, "kim asked"},
		{"a released machine is not wiped again", machine(wants("3", release), acknowledged("3", release, v1alpha1.IntentSucceeded)), v1alpha1.BootDiscover, "released"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			plan := Decide(Request{Arch: "x86_64", Platform: PlatformUEFI}, Subject{Machine: test.machine}, Policy{Netboot: true})
			if plan.Action != test.want || !strings.Contains(plan.Reason, test.reason) {
				t.Errorf("got %s (%s), want %s for a reason with %q", plan.Action, plan.Reason, test.want, test.reason)
			}
		})
	}
}

// An old copy of what is known may start a disk, and nothing else.
func TestWhatACopyDecides(t *testing.T) {
	const install, release = v1alpha1.ActionReinstall, v1alpha1.ActionRelease
	for name, test := range map[string]struct {
		machine *v1alpha1.Machine
		want    bool
	}{
		"an installed machine":                      {machine(approved, installed), true},
		"an unknown machine":                        {nil, false},
		"a machine that waits":                      {machine(approved), false},
		"a machine that is to be installed":         {machine(approved, wants("1", install)), false},
		"one that was installing when it was known": {machine(approved, wants("1", install), acknowledged("1", install, v1alpha1.IntentRunning)), false},
		"one that is to be reinstalled":             {machine(approved, installed, wants("2", install)), false},
		"one that is to be rescued":                 {machine(approved, installed, rescue), false},
		"one that is to be released":                {machine(installed, wants("3", release)), false},
		"one that was reinstalled, says the copy":   {machine(approved, installed, wants("2", install), acknowledged("2", install, v1alpha1.IntentSucceeded)), true},
	} {
		t.Run(name, func(t *testing.T) {
			plan := Decide(Request{Arch: "x86_64", Platform: PlatformUEFI}, Subject{Machine: test.machine}, Policy{Netboot: true})
			if plan.FromCopy() != test.want {
				t.Errorf("%s (%s): carried out is %v", plan.Action, plan.Reason, plan.FromCopy())
			}
		})
	}
}

func TestDecideBetweenRivals(t *testing.T) {
	request, policy := Request{Arch: "x86_64", Platform: PlatformUEFI}, Policy{Netboot: true}
	plan := Decide(request, Subject{Rivals: []*v1alpha1.Machine{machine(), machine(installed, wants("2", v1alpha1.ActionReinstall))}}, policy)
	if plan.Action != v1alpha1.BootLocalDisk || plan.Local != LocalUEFI || !strings.Contains(plan.Reason, "is installed") {
		t.Errorf("one of them is installed: got %+v, want its disk", plan)
	}
	if plan := Decide(request, Subject{Rivals: []*v1alpha1.Machine{machine(), machine(approved)}}, policy); plan.Action != v1alpha1.BootDiscover {
		t.Errorf("none of them is installed: got %+v, want discovery", plan)
	}
}

func TestDecideWithoutContent(t *testing.T) {
	request := Request{Arch: "x86_64", Platform: PlatformUEFI}
	if plan := Decide(request, Subject{}, Policy{}); plan.Action != v1alpha1.BootRefuse || !strings.Contains(plan.Reason, "bundle import") {
		t.Errorf("without a bundle: got %s (%s), want a refusal that says how to import one", plan.Action, plan.Reason)
	}
	if plan := Decide(request, Subject{Machine: machine(installed)}, Policy{}); plan.Action != v1alpha1.BootLocalDisk {
		t.Errorf("an installed machine must boot its disk without any bundle, got %s", plan.Action)
	}
	if plan := Decide(Request{Arch: "arm64"}, Subject{}, Policy{Netboot: true}); plan.Action != v1alpha1.BootRefuse {
		t.Errorf("arm64 without content: got %s, want a refusal", plan.Action)
	}
}

func TestScripts(t *testing.T) {
	target := Target{Machine: "m", KernelURL: "http://s/k", InitrdURL: "http://s/i", Args: []string{"a=b"}, LocalURL: "http://s/local.lkrn", RetryURL: "http://s/boot.ipxe"}
	for action, want := range map[v1alpha1.BootAction]string{
		v1alpha1.BootRescue: "kernel --name vmlinuz http://s/k initrd=initrd.img a=b ||", v1alpha1.BootInstall: "kernel --name vmlinuz",
		v1alpha1.BootLocalDisk: "chain http://s/local.lkrn ||",
	} {
		got, err := Script(Plan{Action: action}, target)
		if err != nil || !strings.Contains(got, want) {
			t.Errorf("%s: %v\n%s", action, err, got)
		}
	}
}

func TestLocalDiskByFirmware(t *testing.T) {
	for platform, want := range map[Platform]string{PlatformBIOS: "local.lkrn", PlatformUEFI: "local.efi"} {
		if plan := Decide(Request{Platform: platform}, Subject{Machine: machine(installed)}, Policy{}); plan.LocalFile() != want {
			t.Errorf("%s: got %s, want %s", platform, plan.LocalFile(), want)
		}
	}
}

func TestChooseFirstStage(t *testing.T) {
	tests := []struct {
		name    string
		request FirstStageRequest
		file    string
		url     bool
	}{
		{"BIOS", FirstStageRequest{Arch: ArchBIOS}, "undionly.kpxe", false},
		{"UEFI x64", FirstStageRequest{Arch: ArchUEFI64}, "snponly.efi", false},
		{"UEFI x64 whose own driver fails", FirstStageRequest{Arch: ArchUEFI64, OwnDrivers: true}, "ipxe.efi", false},
		{"BIOS has no other driver", FirstStageRequest{Arch: ArchBIOS, OwnDrivers: true}, "undionly.kpxe", false},
		{"UEFI x64 by HTTP", FirstStageRequest{Arch: ArchHTTPUEFI64, HTTP: true}, "snponly.efi", true},
		{"UEFI x64 by HTTP whose own driver fails", FirstStageRequest{Arch: ArchHTTPUEFI64, HTTP: true, OwnDrivers: true}, "ipxe.efi", true},
		{"iPXE gets its script, whatever it runs on", FirstStageRequest{Arch: ArchUEFI64, IPXE: true}, "boot.ipxe", true},
		{"an iPXE that cannot run it gets ours by TFTP", FirstStageRequest{Arch: ArchBIOS, IPXE: true, Replace: "it lacks HTTP"}, "undionly.kpxe", false},
		{"so it does on UEFI", FirstStageRequest{Arch: ArchUEFI64, IPXE: true, Replace: "it lacks EFI programs"}, "snponly.efi", false},
		{"by TFTP also where the firmware boots by HTTP", FirstStageRequest{Arch: ArchHTTPUEFI64, HTTP: true, IPXE: true, Replace: "it lacks HTTP"}, "snponly.efi", false},
		{"what we gave out is not given again", FirstStageRequest{Arch: ArchBIOS, IPXE: true, Replace: "it lacks HTTP", Given: true}, "boot.ipxe", true},
		{"arm64's iPXE without HTTP: there is none of ours", FirstStageRequest{Arch: ArchUEFIARM64, IPXE: true, Replace: "it lacks HTTP"}, "", false},
		{"arm64 gets nothing rather than a file it cannot run", FirstStageRequest{Arch: ArchUEFIARM64}, "", false},
		{"an unheard-of architecture gets nothing", FirstStageRequest{Arch: 4711}, "", false},
		{"nor does one that is not told", FirstStageRequest{Arch: ArchUnknown}, "", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := ChooseFirstStage(test.request)
			replaces := test.request.IPXE && test.file != "" && !test.url
			if got.File != test.file || got.URL != test.url || got.Replaces != replaces || got.Reason == "" {
				t.Errorf("got %+v, want file %q, url %v, replaces %v and a reason", got, test.file, test.url, replaces)
			}
		})
	}
}

func TestScript(t *testing.T) {
	target := Target{Machine: "m1", KernelURL: "http://10.0.0.1/k", InitrdURL: "http://10.0.0.1/i",
		Args: []string{"coldrack.nonce=abc"}, LocalURL: "http://10.0.0.1/local.efi", RetryURL: "http://10.0.0.1/boot.ipxe"}
	tests := []struct {
		name    string
		plan    Plan
		has     []string
		lacking []string
	}{
		{"discovery loads our kernel", Plan{Action: v1alpha1.BootDiscover, Reason: "new"},
			[]string{"kernel --name vmlinuz http://10.0.0.1/k initrd=initrd.img coldrack.nonce=abc", "initrd --name initrd.img http://10.0.0.1/i", "chain --replace http://10.0.0.1/boot.ipxe"}, []string{"local.efi"}},
		{"an installed machine starts its disk through a small GRUB", Plan{Action: v1alpha1.BootLocalDisk, Local: LocalUEFI, Reason: "installed"},
			[]string{"chain http://10.0.0.1/local.efi || goto failed"}, []string{"kernel", "nonce"}},
		{"a refusal says why and asks again", Plan{Action: v1alpha1.BootRefuse, Reason: "no bundle"},
			[]string{"no bundle", "sleep 30"}, []string{"kernel", "nonce"}},
		{"a reason cannot become a command", Plan{Action: v1alpha1.BootRefuse, Reason: "x || shell\nshell ${net0/mac} && reboot"},
			[]string{"x __ shell_shell _{net0/mac} __ reboot"}, []string{"\nshell", "${", "x ||"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			script, err := Script(test.plan, target)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(script, "#!ipxe\n") {
				t.Errorf("not an iPXE script:\n%s", script)
			}
			for _, want := range test.has {
				if !strings.Contains(script, want) {
					t.Errorf("lacks %q:\n%s", want, script)
				}
			}
			for _, unwanted := range test.lacking {
				if strings.Contains(script, unwanted) {
					t.Errorf("must not have %q:\n%s", unwanted, script)
				}
			}
		})
	}
}

func TestScriptRefusesArgumentsThatWouldBreakIt(t *testing.T) {
	for _, arg := range []string{"", "two words", "new\nline", "${net0/mac}", "ümlaut"} {
		if _, err := Script(Plan{Action: v1alpha1.BootDiscover}, Target{Args: []string{arg}}); err == nil {
			t.Errorf("argument %q was accepted", arg)
		}
	}
}
