package build

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"coldrack.dev/internal/contract/nodeconfig"
)

// smallImage makes the little of an image that its facts are read from.
func smallImage(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{
		"etc/passwd":                                      "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n",
		"etc/group":                                       "root:x:0:\noperator:x:37:\n",
		"etc/systemd/system/override.service":             "[Install]\n",
		"usr/lib/systemd/system/override.service":         "[Install]\n",
		"usr/lib/systemd/system/getty@.service":           "[Install]\n",
		"usr/lib/systemd/system/x.service.d/10.conf":      "",
		"usr/lib/systemd/system/apt-daily.timer":          "[Install]\n",
		"usr/share/zoneinfo/UTC":                          "TZif2",
		"usr/share/zoneinfo/Europe/Berlin":                "TZif2",
		"usr/share/zoneinfo/America/Indiana/Indianapolis": "TZif2",
		"usr/share/zoneinfo/posix/Europe/Berlin":          "TZif2",
		"usr/share/zoneinfo/zone.tab":                     "# no zone",
		"usr/share/zoneinfo/tzdata.zi":                    "# no zone",
		"usr/share/zoneinfo/leapseconds":                  "# no zone",
		"usr/bin/bash":                                    "", "usr/bin/notes": "", "usr/sbin/nologin": "", "opt/dash": "",
	})
	link := func(target, name string) error { return os.Symlink(target, filepath.Join(dir, name)) }
	if err := errors.Join(
		link("/dev/null", "etc/systemd/system/apt-daily.timer"), link("/gone", "usr/lib/systemd/system/gone.service"),
		link("/lib/systemd/system/getty@.service", "etc/systemd/system/console@.service"),
		link("Berlin", "usr/share/zoneinfo/Europe/Bonn"), link("/etc/localtime", "usr/share/zoneinfo/localtime"),
		link("/opt/dash", "usr/bin/sh"), link("/etc/passwd", "usr/bin/passwd-file"), link("../../../../../bin/true", "usr/bin/outside"),
		link("usr/bin", "bin"), link("usr/sbin", "sbin"), link("usr/lib", "lib"),
		os.Chmod(filepath.Join(dir, "usr/bin/bash"), 0o755), os.Chmod(filepath.Join(dir, "usr/sbin/nologin"), 0o755), os.Chmod(filepath.Join(dir, "opt/dash"), 0o755),
	); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestImageFacts(t *testing.T) {
	got, err := imageFacts(smallImage(t))
	if err != nil {
		t.Fatal(err)
	}
	want := &nodeconfig.ImageFacts{
		Version:     nodeconfig.FactsVersion,
		Users:       map[string]int{"root": 0, "nobody": 65534},
		Groups:      map[string]int{"root": 0, "operator": 37},
		Timezones:   []string{"America/Indiana/Indianapolis", "Europe/Berlin", "Europe/Bonn", "UTC"},
		Units:       []string{"console@.service", "getty@.service", "override.service"},
		MaskedUnits: []string{"apt-daily.timer"},
		Programs:    map[string][]string{"/usr/bin": {"bash", "sh"}, "/usr/sbin": {"nologin"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("facts (-want +got):\n%s", diff)
	}
}

func TestImageFactsOfABrokenImage(t *testing.T) {
	dir := smallImage(t)
	if err := os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("root:x:zero:0::/root:/bin/bash\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := imageFacts(dir); err == nil || !strings.Contains(err.Error(), `root has the number "zero"`) {
		t.Errorf("got %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "etc/passwd")); err != nil {
		t.Fatal(err)
	}
	if _, err := imageFacts(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no passwd: %v", err)
	}
}
