package main

import (
	"os/exec"
	"testing"
	"time"

	"coldrack.dev/test/require"
)

func TestDebianVersion(t *testing.T) {
	when := time.Date(2026, 12, 1, 12, 49, 12, 0, time.FixedZone("east", 3600))
	for _, c := range []struct{ describe, want string }{
		{"v1.2.3", "1.2.3-1"},
		{"1.2", "1.2-1"},
		{"v1.2.3-rc.1", "1.2.3~rc.1-1"},
		{"v1.2.3-rc.1-12-g0123abc", "1.2.3~rc.1+12.g0123abc-1"},
		{"v1.2.3-beta-two", "1.2.3~beta.two-1"},
		{"v1.2.3-4-g0123abcdef01", "1.2.3+4.g0123abcdef01-1"},
		{"v1.2.3-4-g0123abcdef01-dirty", "1.2.3+4.g0123abcdef01+dirty-1"},
		{"v1.2.3-dirty", "1.2.3+dirty-1"},
		{"0123abcdef01", "0~git20261201114912.0123abcdef01-1"},
		{"0123abcdef01-dirty", "0~git20261201114912.0123abcdef01+dirty-1"},
		{"unknown", ""},
		{"", ""},
		{"v1", ""},
		{"v1.2.3 4", ""},
		{"v1.2.3/../4", ""},
	} {
		got, err := debianVersion(c.describe, when)
		if (err != nil) != (c.want == "") || got != c.want {
			t.Errorf("debianVersion(%q) = %q, %v; want %q", c.describe, got, err, c.want)
		}
	}
}

// TestVersionsGoUp asks dpkg whether each version replaces the one before.
func TestVersionsGoUp(t *testing.T) {
	require.Need(t, "dpkg")
	day := func(n int) time.Time { return time.Date(2026, 12, n, 0, 0, 0, 0, time.UTC) }
	var last string
	for i, describe := range []string{"fffffff", "0000000", "0000000-dirty", "v0.1.0-alpha", "v0.1.0-rc.1", "v0.1.0-rc.1-2-gfffffff", "v0.1.0-rc.2", "v0.1.0", "v0.1.0-2-gfffffff", "v0.1.0-10-g0000000", "v0.1.1", "v0.10.0"} {
		version, err := debianVersion(describe, day(min(i+1, 2)))
		if err != nil {
			t.Fatal(err)
		}
		if last != "" {
			if err := exec.Command("dpkg", "--compare-versions", last, "lt", version).Run(); err != nil {
				t.Errorf("%s does not come after %s: %v", version, last, err)
			}
		}
		last = version
	}
}
