package dialect_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/tools/txtar"

	"coldrack.dev/internal/contract/dialect"
	"coldrack.dev/internal/contract/nodeconfig"
	"coldrack.dev/test/require"
)

var update = flag.Bool("update", false, "rewrite the golden parts of testdata")

// archives are the cases of a kind: the file that is read is the first of each.
func archives(t testing.TB) map[string]*txtar.Archive {
	t.Helper()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	found := map[string]*txtar.Archive{}
	for _, file := range files {
		if found[file], err = txtar.ParseFile(file); err != nil {
			t.Fatal(err)
		}
	}
	return found
}

func describe(title string, findings []dialect.Finding) string {
	text := ""
	for _, f := range findings {
		text += title + ": " + f.String() + "\n"
	}
	return text
}

// Each archive has a file, what is found in it, and what it is in the other dialects.
func TestGolden(t *testing.T) {
	for file, a := range archives(t) {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			text := a.Files[0].Data
			d := dialect.Detect(text)
			var v dialect.Variables
			if strings.Contains(string(a.Comment), "one machine") {
				v = dialect.Variables{PrivateIPv4: netip.MustParseAddr("10.7.0.12"), PublicIPv4: netip.MustParseAddr("203.0.113.12")}
			}
			r := dialect.Parse(d, text, v)
			got := []txtar.File{a.Files[0]}
			add := func(name, text string) { got = append(got, txtar.File{Name: name, Data: []byte(text)}) }
			add("found", fmt.Sprintf("%s %s\n", d, r.Version)+describe("problem", r.Problems)+describe("warning", r.Warnings)+describe("lost", r.Lost))
			if len(r.Problems) == 0 {
				for _, to := range []dialect.Dialect{dialect.Ignition, dialect.CloudConfig, dialect.CloudInit} {
					text, lost, err := dialect.Encode(to, r.Node)
					if err != nil {
						t.Fatalf("as %s: %v", to, err)
					}
					add(string(to), string(text))
					if len(lost) > 0 {
						add("lost in "+string(to), describe("lost", lost))
					}
				}
			}
			if *update {
				a.Files = got
				if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(a.Files, got, cmp.Transformer("text", func(b []byte) string { return string(b) })); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// What was written is read back as it was, from each dialect that is read.
func TestRoundTrip(t *testing.T) {
	n := dialect.Node{
		Config: nodeconfig.Config{
			Hostname: "", SSHKeys: []string{key},
			Users: []nodeconfig.User{{Name: "core", Sudo: true, SSHKeys: []string{key}}, {Name: "audit", Shell: "/bin/sh", PasswordHash: "!"}},
			Files: []nodeconfig.File{{Path: "/etc/a", Content: []byte("x: \"y\" 100%\n")}, {Path: "/opt/b", Content: []byte{0, 0xff}, Mode: 0o750, Owner: "audit:sudo"},
				{Path: "/etc/c", Content: []byte("$private_ipv4 \\$public_ipv4\n")}, {Path: "/etc/d", Content: []byte("\r\ttrailing \n\n\n")}, {Path: "/etc/e"},
				{Path: "/etc/f", Content: []byte("\tindented\n")}, {Path: "/etc/g", Content: []byte("\n\n x\ny")}, {Path: "/etc/h", Content: []byte("  more\nless\n")}},
			Units: []nodeconfig.Unit{{Name: "a.service", Content: "[Service]\nExecStart=/bin/echo $private_ipv4\n[Install]\nWantedBy=multi-user.target\n", Enabled: true},
				{Name: "b.timer", Masked: true}, {Name: "c.socket", Enabled: true}, {Name: "d.service", Content: "\t[Service]\nExecStart=/bin/true\n"}},
		},
		Update: dialect.Update{Group: "beta", Server: "http://update.example.com/v1/update/", RebootStrategy: "off"},
	}
	for _, d := range []dialect.Dialect{dialect.Ignition, dialect.CloudConfig} {
		t.Run(string(d), func(t *testing.T) {
			n := n
			if d == dialect.Ignition {
				n.KernelArgs, n.Config.Timezone = []string{"quiet", "console=ttyS0"}, "Europe/Berlin"
			}
			text, lost, err := dialect.Encode(d, n)
			if err != nil || len(lost) > 0 {
				t.Fatal(err, lost)
			}
			if got := dialect.Detect(text); got != d {
				t.Errorf("it is taken for %q", got)
			}
			r := dialect.Parse(d, text, dialect.Variables{})
			// A folder of ours is lost on the way back, and made again on the way out.
			for _, l := range r.Lost {
				if !strings.Contains(l.Message, "/etc/sudoers.d") {
					t.Errorf("lost: %v", l)
				}
			}
			if len(r.Problems) > 0 {
				t.Fatalf("%v\n%s", r.Problems, text)
			}
			sameFile := cmpopts.SortSlices(func(a, b nodeconfig.File) bool { return a.Path < b.Path })
			for i := range r.Node.Config.Files {
				if r.Node.Config.Files[i].Mode == 0o644 {
					r.Node.Config.Files[i].Mode = 0
				}
			}
			sameUnit := cmpopts.SortSlices(func(a, b nodeconfig.Unit) bool { return a.Name < b.Name })
			if diff := cmp.Diff(n, r.Node, sameFile, sameUnit, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("%s\n%s", diff, text)
			}
		})
	}
}

// The real cloud-init has nothing against what is written for it.
func TestCloudInitAcceptsIt(t *testing.T) {
	t.Parallel()
	require.Need(t, "cloud-init")
	program := require.Program("cloud-init")
	schema := func(t *testing.T, text []byte) (string, error) {
		file := filepath.Join(t.TempDir(), "user-data")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/usr/bin/python3", program, "schema", "--config-file", file)
		cmd.Env = append(os.Environ(), "PYTHONPATH="+filepath.Join(program, "../../lib/python3/dist-packages"))
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	n := dialect.Node{Config: nodeconfig.Config{
		Hostname: "r7u12", Domain: "rack.example.com", Timezone: "Europe/Berlin", NTP: []string{"10.7.0.1"}, SSHKeys: []string{key},
		Users: []nodeconfig.User{{Name: "ops", Sudo: true, SSHKeys: []string{key}}, {Name: "audit", PasswordHash: "!", Shell: "/bin/sh"}},
		Files: []nodeconfig.File{{Path: "/etc/a", Content: []byte("x\n"), Mode: 0o600}, {Path: "/etc/c", Content: []byte("\tx\n")}, {Path: "/opt/b", Content: []byte{0, 0xff}, Owner: "ops:ops"}},
		Units: []nodeconfig.Unit{{Name: "a.service", Content: "[Service]\nExecStart=/bin/true\n", Enabled: true}, {Name: "b.timer", Masked: true}},
	}}
	text, lost, err := dialect.Encode(dialect.CloudInit, n)
	if err != nil || len(lost) > 0 {
		t.Fatal(err, lost)
	}
	if out, err := schema(t, text); err != nil {
		t.Errorf("%v\n%s\n%s", err, out, text)
	}
	// It does look: the same with a mistake is refused.
	if out, err := schema(t, []byte(strings.Replace(string(text), "write_files:", "write_files: 7\nx:", 1))); err == nil {
		t.Errorf("a mistake was accepted: %s", out)
	}
}

func TestDetect(t *testing.T) {
	for name, tt := range map[string]struct {
		text string
		want dialect.Dialect
	}{
		"a cloud-config":               {"#cloud-config\n", dialect.CloudConfig},
		"one with the ends of Windows": {"#cloud-config\r\nhostname: x\r\n", dialect.CloudConfig},
		"one that begins with a space": {" #cloud-config\n", ""},
		"Ignition":                     {"\n{\"ignition\": {\"version\": \"3.3.0\"}}", dialect.Ignition},
		"Ignition that is broken":      {`{"ignition": {`, dialect.Ignition},
		"a Profile":                    {"apiVersion: coldrack.dev/v1alpha1\nkind: Profile\n", dialect.Profile},
		"a Profile in JSON":            {`{"apiVersion": "coldrack.dev/v1alpha1"}`, dialect.Profile},
		"a script":                     {"#!/bin/sh\n", ""},
		"nothing":                      {"", ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got := dialect.Detect([]byte(tt.text)); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestTooBigAFile(t *testing.T) {
	t.Parallel()
	big := []byte("#cloud-config\n" + strings.Repeat("#", dialect.MaxSize))
	if r := dialect.Parse(dialect.CloudConfig, big, dialect.Variables{}); len(r.Problems) != 1 {
		t.Errorf("got %v", r.Problems)
	}
}

// A few lines can stand for more than memory holds.
func TestAliasesAreBounded(t *testing.T) {
	text := "#cloud-config\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
	for i := range 9 {
		text += fmt.Sprintf("a%d: &a%d [%s]\n", i+1, i+1, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i), 10), ", "))
	}
	r := dialect.Parse(dialect.CloudConfig, []byte(text), dialect.Variables{})
	if len(r.Problems) != 1 || !strings.Contains(r.Problems[0].Message, "more than") {
		t.Errorf("got %v", r.Problems)
	}
}

// What is read can be written, and is then read without a complaint.
func fuzz(f *testing.F, d dialect.Dialect) {
	for _, a := range archives(f) {
		f.Add(a.Files[0].Data)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		r := dialect.Parse(d, text, dialect.Variables{PrivateIPv4: netip.MustParseAddr("10.0.0.1")})
		for _, p := range append(r.Problems, r.Lost...) {
			if p.Message == "" {
				t.Fatalf("a finding says nothing: %+v", p)
			}
		}
		if len(r.Problems) > 0 {
			return
		}
		for _, to := range []dialect.Dialect{dialect.Ignition, dialect.CloudConfig, dialect.CloudInit} {
			written, _, err := dialect.Encode(to, r.Node)
			if err != nil {
				b, _ := json.Marshal(r.Node)
				t.Fatalf("cannot be written as %s: %v\n%s", to, err, b)
			}
			if to == dialect.CloudInit {
				continue
			}
			if again := dialect.Parse(to, written, dialect.Variables{}); len(again.Problems) > 0 {
				t.Fatalf("what was written as %s is wrong: %v\n%s", to, again.Problems, written)
			}
		}
	})
}

func FuzzIgnition(f *testing.F)    { fuzz(f, dialect.Ignition) }
func FuzzCloudConfig(f *testing.F) { fuzz(f, dialect.CloudConfig) }
