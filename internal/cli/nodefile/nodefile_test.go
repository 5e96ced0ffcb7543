package nodefile_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"coldrack.dev/internal/cli/nodefile"
	"coldrack.dev/internal/contract/dialect"
	"coldrack.dev/internal/contract/nodeconfig"
)

const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJlZmVlZDAwYmVmZWVkMDBiZWZlZWQwMGJlZmVlZDAw admin@desk"

// A Profile that was written says the same when it is read, whatever YAML makes of its text.
func TestProfileRoundTrip(t *testing.T) {
	n := dialect.Node{
		Config: nodeconfig.Config{
			SSHKeys: []string{key}, Timezone: "Europe/Berlin",
			Users: []nodeconfig.User{{Name: "ops", Sudo: true, SSHKeys: []string{`from="10.0.0.0/8" ` + key}}, {Name: "yes", Shell: "/bin/sh", PasswordHash: "!"}},
			Units: []nodeconfig.Unit{{Name: "a.service", Content: "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n", Enabled: true}, {Name: "b.timer", Masked: true}},
		},
		KernelArgs: []string{"quiet", "console=ttyS0"},
	}
	for i, content := range []string{"x\n", "x", "", "\n", "\n\n x", "  indented\nless\n", "trailing \n\n\n", "\ttab\n", "\r\n", "a\r\nb\r\n", "yes", "0755", "1:20", "null", "~", "- x: y\n",
		"#!/bin/sh\n", "a: b", "\"quoted\" 'twice'\\\n", "äöü \u2028 \u0085 \ufeff\n", "---\n...\n", "x # y\n", "{{.x}} $y %z\n", strings.Repeat("long ", 100)} {
		n.Config.Files = append(n.Config.Files, nodeconfig.File{Path: "/opt/" + string(rune('a'+i)), Content: []byte(content)})
	}
	n.Config.Files[1].Mode, n.Config.Files[2].Owner = 0o4750, "ops:ops"
	o := nodefile.Options{Name: "worker", Image: "debian-13"}
	text, lost, err := nodefile.Write(dialect.Profile, n, o)
	if err != nil || len(lost) > 0 {
		t.Fatal(err, lost)
	}
	if got := dialect.Detect(text); got != dialect.Profile {
		t.Errorf("it is taken for %q", got)
	}
	_, r := nodefile.Read("worker.yaml", text, "", o)
	if len(r.Problems)+len(r.Lost)+len(r.Warnings) > 0 {
		t.Fatalf("%v %v %v\n%s", r.Problems, r.Lost, r.Warnings, text)
	}
	for i := range r.Node.Config.Files {
		if r.Node.Config.Files[i].Mode == 0o644 {
			r.Node.Config.Files[i].Mode = 0
		}
	}
	if diff := cmp.Diff(n, r.Node, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("%s\n%s", diff, text)
	}
}

// What a Profile cannot say is named, and nothing is written that the server would refuse.
func TestWhatAProfileCannotSay(t *testing.T) {
	n := dialect.Node{
		Config: nodeconfig.Config{Hostname: "r7u12", Files: []nodeconfig.File{{Path: "/opt/b", Content: []byte{0, 0xff}}, {Path: "/opt/c", Content: []byte("x")}}},
		Update: dialect.Update{Group: "beta"},
	}
	text, lost, err := nodefile.Write(dialect.Profile, n, nodefile.Options{Name: "worker", Image: "debian-13"})
	if err != nil {
		t.Fatal(err)
	}
	var fields []string
	for _, l := range lost {
		fields = append(fields, l.Field)
	}
	if diff := cmp.Diff([]string{"files[/opt/b]", "hostname", "update"}, fields); diff != "" {
		t.Error(diff)
	}
	if strings.Contains(string(text), "/opt/b") || !strings.Contains(string(text), "/opt/c") {
		t.Errorf("%s", text)
	}
	n.Config.Files = []nodeconfig.File{{Path: "relative", Content: []byte("x")}}
	if text, _, err := nodefile.Write(dialect.Profile, n, nodefile.Options{Name: "worker", Image: "debian-13"}); err == nil {
		t.Errorf("a Profile with a relative path was written:\n%s", text)
	}
}
