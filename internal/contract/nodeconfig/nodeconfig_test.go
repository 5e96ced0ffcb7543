package nodeconfig_test

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"coldrack.dev/internal/contract/nodeconfig"
)

var update = flag.Bool("update", false, "rewrite the golden parts of testdata")

func format(op nodeconfig.Op) string {
	switch op.Kind {
	case nodeconfig.WriteFile:
		s := fmt.Sprintf("file %s %04o %s\n", op.Path, op.Mode, op.Owner)
		for line := range strings.SplitSeq(strings.TrimSuffix(string(op.Content), "\n"), "\n") {
			s += "    " + line + "\n"
		}
		return s
	case nodeconfig.MakeDir:
		return fmt.Sprintf("dir %s %04o %s\n", op.Path, op.Mode, op.Owner)
	case nodeconfig.MakeLink:
		return fmt.Sprintf("link %s -> %s\n", op.Path, op.Target)
	case nodeconfig.MakeUser:
		return fmt.Sprintf("user %s shell=%s sudo=%v password=%q\n", op.Login.Name, op.Login.Shell, op.Login.Sudo, op.Login.PasswordHash)
	case nodeconfig.EnableUnit, nodeconfig.MaskUnit:
		return fmt.Sprintf("%s %s optional=%v\n", op.Kind, op.Unit, op.Optional)
	}
	return fmt.Sprintf("%s %s\n", op.Kind, op.Path)
}

// Each archive has config.json and either ops.txt or problems.txt.
func TestDirect(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var c nodeconfig.Config
			if err := json.Unmarshal(a.Files[0].Data, &c); err != nil {
				t.Fatalf("%s: %v", a.Files[0].Name, err)
			}
			ops, err := nodeconfig.Direct(c)
			name, got := "ops.txt", ""
			var problems nodeconfig.Problems
			if errors.As(err, &problems) {
				name = "problems.txt"
				for _, p := range problems {
					got += p.Path + ": " + p.Message + "\n"
				}
			} else if err != nil {
				t.Fatal(err)
			}
			for _, op := range ops {
				got += format(op)
			}
			if *update {
				a.Files = append(a.Files[:1], txtar.File{Name: name, Data: []byte(got)})
				if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if len(a.Files) != 2 || a.Files[1].Name != name {
				t.Fatalf("got %s:\n%s", name, got)
			}
			if diff := cmp.Diff(string(a.Files[1].Data), got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestEnable(t *testing.T) {
	for name, tt := range map[string]struct {
		unit, content string
		want          []string
		also          []string
	}{
		"a plain service": {"a.service", "[Unit]\nWantedBy=no.target\n[Install]\n# WantedBy=commented.target\nWantedBy = multi-user.target",
			[]string{"multi-user.target.wants/a.service"}, nil},
		"several targets over two lines": {"a.service", "[Install]\nWantedBy=x.target \\\n y.target\nRequiredBy=z.target\n",
			[]string{"x.target.wants/a.service", "y.target.wants/a.service", "z.target.requires/a.service"}, nil},
		"an alias and others along with it": {"systemd-networkd.service", "[Install]\nAlias=dbus-org.freedesktop.network1.service\nAlso=systemd-networkd.socket\n",
			[]string{"dbus-org.freedesktop.network1.service"}, []string{"systemd-networkd.socket"}},
		"an instance":                          {"getty@tty1.service", "[Install]\nWantedBy=getty.target\n", []string{"getty.target.wants/getty@tty1.service"}, nil},
		"a template with a default instance":   {"getty@.service", "[Install]\nWantedBy=getty.target\nDefaultInstance=tty1", []string{"getty.target.wants/getty@tty1.service"}, nil},
		"a template without":                   {"getty@.service", "[Install]\nWantedBy=getty.target\n", nil, nil},
		"an empty assignment starts afresh":    {"a.service", "[Install]\nWantedBy=x.target\nWantedBy=\nWantedBy=y.target\n", []string{"y.target.wants/a.service"}, nil},
		"a target that would leave the folder": {"a.service", "[Install]\nWantedBy=../../../evil.target\n", nil, nil},
		"no install section":                   {"a.service", "[Service]\nExecStart=/bin/true\n", nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			links, also := nodeconfig.Enable(tt.unit, "/lib/systemd/system/"+nodeconfig.UnitFile(tt.unit), []byte(tt.content))
			var got []string
			for _, l := range links {
				got = append(got, strings.TrimPrefix(l.Path, "/etc/systemd/system/"))
				if l.Target != "/lib/systemd/system/"+nodeconfig.UnitFile(tt.unit) {
					t.Errorf("%s points to %s", l.Path, l.Target)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(tt.also, also); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// FuzzDirect: whatever the input, a configuration that is accepted keeps to its folders and lines.
func FuzzDirect(f *testing.F) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		a, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(a.Files[0].Data)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var c nodeconfig.Config
		if json.Unmarshal(b, &c) != nil {
			return
		}
		ops, err := nodeconfig.Direct(c)
		if (err == nil) != (nodeconfig.Validate(c) == nil) {
			t.Fatalf("Direct and Validate disagree: %v", err)
		}
		for _, op := range ops {
			for _, s := range []string{op.Path, op.Target, op.Login.Name, op.Login.Shell, op.Login.PasswordHash, op.Unit, op.Owner} {
				if strings.ContainsAny(s, "\n\x00") || strings.Contains(s+"/", "/../") {
					t.Fatalf("%+v has %q", op, s)
				}
			}
			if op.Path != "" && (op.Path[0] != '/' || filepath.Clean(op.Path) != op.Path) {
				t.Fatalf("%+v is not below the root", op)
			}
		}
	})
}
