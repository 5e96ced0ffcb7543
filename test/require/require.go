// Package require decides whether a test that needs a privilege runs, skips or fails.
//
// A developer's laptop may lack network namespaces or QEMU; there such a test skips. A machine that
// is meant to have them says so in COLDRACK_REQUIRE (a comma-separated list such as "netns,qemu"),
// and there the same absence is a failure, so that a green run cannot hide tests that never ran.
// With COLDRACK_REQUIRE=none every such test skips, whatever the machine has.
//
// Programs that this repository builds are taken from its folder bin and nowhere else, because what a test is about depends
// on their version.
package require

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Need lets the test go on when every named privilege is present. The known names are
// "root", "netns" (may create network namespaces) and the name of any program in PATH,
// for example "kubectl"; "qemu" stands for qemu-system-x86_64, "kubernetes-1.36" for the programs of a control plane of
// that release, where it is not the newest.
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

// Has says whether a privilege is present, for a test that can do more with it.
func Has(name string) bool { return missing(name) == nil }

// built are the programs that make builds into bin.
func built() []string {
	return []string{"containerd", "ctr", "etcd", "etcd-debian", "kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubeadm", "kubectl", "oci-conformance", "versitygw"}
}

// unpacked are programs of packages that hack/setup.sh only unpacks, and where below bin/unpacked.
var unpacked = map[string]string{"named": "bind9/usr/sbin/named", "chronyd": "chrony/usr/sbin/chronyd",
	"timesyncd": "systemd-timesyncd/usr/lib/systemd/systemd-timesyncd",
	"dhcpd":     "isc-dhcp-server/usr/sbin/dhcpd", "dhcrelay": "isc-dhcp-relay/usr/sbin/dhcrelay", "kea-dhcp4": "kea-dhcp4-server/usr/sbin/kea-dhcp4",
	"bird": "bird2/usr/sbin/bird", "birdc": "bird2/usr/sbin/birdc",
	"mdadm": "mdadm/usr/sbin/mdadm", "drbdmeta": "drbd-utils/usr/sbin/drbdmeta",
	"make-bcache": "bcache-tools/usr/sbin/make-bcache", "bcache-super-show": "bcache-tools/usr/sbin/bcache-super-show",
	"ignition": "ignition/usr/lib/dracut/modules.d/30ignition/ignition", "cloud-init": "cloud-init/usr/bin/cloud-init",
	"linux.uml": "user-mode-linux/usr/bin/linux.uml"}

// Program is the path of a program that Need has found, where it is not in PATH.
func Program(name string) string {
	if path := filepath.Join(preferBuilt(), "unpacked", unpacked[name]); unpacked[name] != "" {
		return path
	}
	return name
}

// preferBuilt puts the repository's bin into PATH, before the first folder with one of the built programs, and not before
// what a test has put there itself; it returns "" outside of the repository.
var preferBuilt = sync.OnceValue(func() string {
	dir, err := os.Getwd()
	if err != nil {
		return ""
	}
	for ; filepath.Dir(dir) != dir; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
			continue
		}
		bin := filepath.Join(dir, "bin")
		path := filepath.SplitList(os.Getenv("PATH"))
		at := slices.IndexFunc(path, func(folder string) bool {
			return slices.ContainsFunc(built(), func(name string) bool {
				_, err := os.Stat(filepath.Join(folder, name))
				return err == nil
			})
		})
		if at < 0 {
			at = len(path)
		}
		if err := os.Setenv("PATH", strings.Join(slices.Insert(path, at, bin), string(os.PathListSeparator))); err != nil {
			return ""
		}
		return bin
	}
	return ""
})

func missing(name string) error {
	bin := preferBuilt()
	if slices.Contains(built(), name) {
		if _, err := exec.LookPath(filepath.Join(bin, name)); err != nil {
			return fmt.Errorf("%w; build it: make bin/%s", err, name)
		}
		return nil
	}
	if unpacked[name] != "" {
		if _, err := exec.LookPath(Program(name)); err != nil {
			return fmt.Errorf("%w; unpack it: make setup", err)
		}
		return nil
	}
	if minor, ok := strings.CutPrefix(name, "kubernetes-"); ok {
		for _, program := range []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"} {
			if _, err := exec.LookPath(filepath.Join(bin, minor, program)); err != nil {
				return fmt.Errorf("%w; build it: make bin/%s/%s", err, minor, program)
			}
		}
		return nil
	}
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

// Swift skips a test in the run with the race detector, which would take minutes for it and is not what the test is about. The
// Makefile's target "unit" runs every such test without it.
func Swift(t testing.TB) {
	t.Helper()
	if raceDetector {
		t.Skip("runs without the race detector: make unit")
	}
}
