// Package require decides whether a test that needs a privilege runs, skips or fails.
//
// A developer's laptop may lack network namespaces or QEMU; there such a test skips. A machine that
// is meant to have them says so in COLDRACK_REQUIRE (a comma-separated list such as "netns,qemu"),
// and there the same absence is a failure, so that a green run cannot hide tests that never ran.
// With COLDRACK_REQUIRE=none every such test skips, whatever the machine has.
package require

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Need lets the test go on when every named privilege is present. The known names are
// "root", "netns" (may create network namespaces) and the name of any program in PATH,
// for example "kubectl"; "qemu" stands for qemu-system-x86_64.
func Need(t testing.TB, names ...string) {
	t.Helper()
	if os.Getenv("COLDRACK_REQUIRE") == "none" {
		t.Skipf("needs %s, and COLDRACK_REQUIRE says none", strings.Join(names, ", "))
	}
	for _, name := range names {
		err := missing(name)
		if err == nil {
			continue
		}
		for required := range strings.SplitSeq(os.Getenv("COLDRACK_REQUIRE"), ",") {
			if strings.TrimSpace(required) == name || strings.TrimSpace(required) == "all" {
				t.Fatalf("COLDRACK_REQUIRE says this machine has %q, but: %v", name, err)
			}
		}
		t.Skipf("needs %s: %v", name, err)
	}
}

func missing(name string) error {
	switch name {
	case "root":
		if os.Geteuid() != 0 {
			return fmt.Errorf("running as uid %d, not root", os.Geteuid())
		}
		return nil
	case "netns":
		if err := missing("root"); err != nil {
			return err
		}
		out, err := exec.Command("unshare", "-n", "true").CombinedOutput()
		if err != nil {
			return fmt.Errorf("create a network namespace: %w: %s", err, strings.TrimSpace(string(out)))
		}
		return nil
	case "qemu":
		name = "qemu-system-x86_64"
	}
	_, err := exec.LookPath(name)
	return err
}
