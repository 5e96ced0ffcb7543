package validate

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestUnitFilesAsSystemdReadsThem(t *testing.T) {
	for text, want := range map[string]string{
		"[Service]\nExecStart=/bin/a \\\n# why\n  b\n":             "Service.ExecStart=/bin/a    b@2",
		"[Service]\r\nExecStart = /bin/a\r\n":                      "Service.ExecStart=/bin/a@2",
		"\ufeff[Service]\nExecStart=/bin/a \\\\\nUser=x\n":         `Service.ExecStart=/bin/a \\@2 Service.User=x@3`,
		"[Service]\nExecStart=/bin/a \\\n[X-Fleet]\nGlobal=true\n": "Service.ExecStart=/bin/a  [X-Fleet]@2 Service.Global=true@4",
		"[Service]\nExecStart=/bin/a\rUser=x\n":                    "! carriage return",
		"[Service]\nExecStart=/bin/a \\":                           "! ends with a backslash",
		"ExecStart=/bin/a\n":                                       "! before the first section",
		"[Service\nExecStart=/bin/a\n":                             "! is not a section",
		"[Service]\nExecStart\n":                                   "! neither a section",
		"[Service]\n" + strings.Repeat("#", MaxUnitFile):           "! at most",
		"[Service]\nExecStart=\x00":                                "! zero byte",
		"[Service]\nExecStart=\xff":                                "! UTF-8",
		"# only a comment\n;and another\n\n":                       "",
	} {
		options, err := ParseUnitFile(text)
		var all []string
		for _, o := range options {
			all = append(all, fmt.Sprintf("%s.%s=%s@%d", o.Section, o.Name, o.Value, o.Line))
		}
		got := strings.Join(all, " ")
		if part, wrong := strings.CutPrefix(want, "! "); wrong {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("%.60q: error %v, want %s", text, err, part)
			}
		} else if err != nil || got != want {
			t.Errorf("%.60q: got %s, %v, want %s", text, got, err, want)
		}
	}
}

func TestMachinesGetNoFleetSection(t *testing.T) {
	for text, want := range map[string]string{
		"[Service]\nExecStart=/bin/a\n[X-Fleet]\nGlobal=true\n":                         "[Service]\nExecStart=/bin/a\n",
		"[X-Fleet]\nConflicts=a \\\n[Service]\n\n# runs\n[Service]\nExecStart=/bin/a\n": "# runs\n[Service]\nExecStart=/bin/a\n",
		"[Service]\nExecStart=/bin/a \\\n[X-Fleet]\nUser=x\n":                           "[Service]\nExecStart=/bin/a \\\n[X-Fleet]\nUser=x\n",
	} {
		if got := WithoutFleet(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

// FuzzUnitFile: what machines get has every option outside of [X-Fleet] and none of it, and no file is read in two ways.
func FuzzUnitFile(f *testing.F) {
	for _, text := range []string{
		"[Unit]\nDescription=a\n[Service]\nExecStart=/bin/a %i\n[Install]\nWantedBy=multi-user.target\n",
		"[Service]\nExecStart=/bin/a\n[X-Fleet]\nMachineMetadata=\"disk=ssd\" \"disk=nvme\"\nMachineMetadata=zone=%i\nConflicts=web@*.service db.service\n",
		"[X-Fleet]\nX-ConditionMachineOf=%p@%i.service\nX-Conflicts=%n\n[Service]\nExecStart=/bin/a\n",
		"[X-Fleet]\nMachineID=m1\n",
		"[X-Fleet]\nMachineID=m1\nMachineOf=a.service\nGlobal=TRUE\n",
		"[X-Fleet]\nReplaces=a.service\n",
		"[X-Fleet]\nConflicts=a \\\n# b\n[Service]\n\n;c\n[Service]\nExecStart=/bin/a \\\\\n",
		"\ufeff[X-Fleet]\r\nGlobal=maybe\r\n",
		"\\\n[X-Fleet]\nGlobal=1",
		"[X-Fleet]\\\n\nGlobal=1\n[Service]\\\n\nType=oneshot",
	} {
		f.Add("web@7.service", text)
	}
	f.Fuzz(func(t *testing.T, name, text string) {
		_, _ = Fleet(name, text)
		_ = PlacedUnitFile(name, text)
		options, err := ParseUnitFile(text)
		if err != nil {
			return
		}
		lines := strings.Count(text, "\n") + 1
		var want []UnitOption
		for _, o := range options {
			if o.Section == "" || o.Name == "" || o.Line < 1 || o.Line > lines || strings.Contains(o.Value, "\n") {
				t.Fatalf("option %+v of %q", o, text)
			}
			if o.Section != FleetSection {
				o.Line = 0
				want = append(want, o)
			}
		}
		sent := WithoutFleet(text)
		got, err := ParseUnitFile(sent)
		for i := range got {
			got[i].Line = 0
		}
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("%q is sent as %q: %+v %v, want %+v", text, sent, got, err, want)
		}
	})
}
