package v1alpha1

import (
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

const webFile = "[Unit]\nDescription=web\n[Service]\nExecStart=/usr/bin/web \\\n  --port 80\n"

func TestValidateUnit(t *testing.T) {
	fleet := func(lines string) func(*Unit) { return func(u *Unit) { u.Spec.File = webFile + "[X-Fleet]\n" + lines } }
	file := func(text string) func(*Unit) { return func(u *Unit) { u.Spec.File = text } }
	named := func(object, unit string) func(*Unit) {
		return func(u *Unit) { u.Name, u.Spec.UnitName = object, unit }
	}
	for _, test := range []struct {
		name   string
		change func(*Unit)
		want   string // part of the error; empty: none
	}{
		{"a service", func(*Unit) {}, ""},
		{"a template", named("web-at.service", "web@.service"), ""},
		{"an instance", named("web-at-7.service", "web@7.service"), ""},
		{"a name with other letters", named("my-web.service", "My_web.service"), ""},
		{"an object of another name", named("web7", "web@7.service"), "is called web-at-7.service"},
		{"a path", named("x.service", "../../etc/x.service"), "is not the name of a systemd unit"},
		{"no type", named("web", ""), "is not the name of a unit of type"},
		{"a target", named("web.target", ""), "is not the name of a unit of type"},
		{"a unit of the system", named("systemd-networkd.service", ""), `begins with "systemd-"`},
		{"the agent", named("coldrack-agent.service", ""), `begins with "coldrack"`},
		{"the kubelet", named("kubelet.service", ""), `begins with "kubelet."`},
		{"nothing to run", file("[Unit]\nDescription=x\n"), "no ExecStart="},
		{"a timer", func(u *Unit) {
			named("web.timer", "")(u)
			u.Spec.File = "[Timer]\nOnCalendar=daily\n"
		}, ""},
		{"a timer without a timer", func(u *Unit) {
			named("web.timer", "")(u)
			u.Spec.File = webFile
		}, "has no section [Timer]"},
		{"a line that is none", file("[Service]\nExecStart=/bin/true\nRestart\n"), `line 3: "Restart" is neither`},
		{"before a section", file("ExecStart=/bin/true\n"), "before the first section"},
		{"a section that is not closed", file("[Service\nExecStart=/bin/true\n"), "is not a section"},
		{"a line that goes on for ever", file("[Service]\nExecStart=/bin/true \\\n"), "ends with a backslash"},
		{"a zero byte", file("[Service]\nExecStart=/bin/true\x00\n"), "zero byte"},
		{"too large", file(webFile + strings.Repeat("# comment\n", 7000)), "at most 65536"},
		{"fleet's options", fleet("MachineMetadata=disk=ssd\nMachineMetadata=\"disk=nvme\" \"zone=a\"\nConflicts=web@*.service db.service\n"), ""},
		{"fleet's old names", fleet("X-Conflicts=web@*.service\nX-ConditionMachineOf=db.service\n"), ""},
		{"fleet's global", fleet("Global=true\n"), ""},
		{"fleet's Replaces", fleet("Replaces=old.service\n"), "Replaces= is not supported"},
		{"fleet's MachineID beside others", fleet("MachineID=m1\nConflicts=x*\n"), "stands alone"},
		{"an unknown option", fleet("MachineOff=x\n"), "is not known in [X-Fleet]"},
		{"both", func(u *Unit) {
			fleet("Global=true\n")(u)
			u.Spec.Conflicts = []string{"x*"}
		}, "write that into one of them only"},
		{"global and replicas", func(u *Unit) { u.Spec.Global, u.Spec.Replicas = true, new(int32(2)) }, "runs on every machine"},
		{"follows itself", func(u *Unit) { u.Spec.MachineOf = "web.service" }, "is the unit itself"},
		{"a glob", func(u *Unit) { u.Spec.Conflicts = []string{"web@[.service"} }, "bracket is not closed"},
		{"moves too soon", func(u *Unit) { u.Spec.MoveAfter = &metav1.Duration{Duration: time.Second} }, "must be at least 2m0s"},
		{"a machine that cannot be", func(u *Unit) { u.Spec.Machine = "a/b" }, "is not the name of a Machine"},
	} {
		t.Run(test.name, func(t *testing.T) {
			u := &Unit{ObjectMeta: metav1.ObjectMeta{Name: "web.service"}, Spec: UnitSpec{File: webFile}}
			test.change(u)
			errs := ValidateUnit(u)
			if text := errs.ToAggregate(); test.want == "" && text != nil || test.want != "" && (text == nil || !strings.Contains(text.Error(), test.want)) {
				t.Errorf("got %v, want %q", text, test.want)
			}
		})
	}
}

// TestUnitWhere: fleet's metadata are labels, one of the values of each key, and its specifiers are replaced.
func TestUnitWhere(t *testing.T) {
	u := &Unit{ObjectMeta: metav1.ObjectMeta{Name: "log-at-7.service"}, Spec: UnitSpec{UnitName: "log@7.service", File: webFile +
		"[X-Fleet]\nMachineOf=web@%i.service\nConflicts=%p@*.service\nMachineMetadata=disk=ssd\nMachineMetadata=disk=nvme\nMachineMetadata=zone=a\n"}}
	where, errs := u.Where()
	if len(errs) > 0 || where.MachineOf != "web@7.service" || len(where.Conflicts) != 1 || where.Conflicts[0] != "log@*.service" {
		t.Errorf("%+v %v", where, errs)
	}
	for text, fits := range map[string]bool{"disk=ssd,zone=a": true, "disk=nvme,zone=a": true, "disk=ssd": false, "disk=tape,zone=a": false} {
		set, err := labels.ConvertSelectorToLabelsMap(text)
		if err != nil || where.Selector.Matches(set) != fits {
			t.Errorf("%s: fits %v (%v)", text, !fits, err)
		}
	}
}
