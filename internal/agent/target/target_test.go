package target

import (
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"coldrack.dev/internal/contract/nodeconfig"
	"coldrack.dev/test/require"
)

// system makes the little of a Debian root that the operations look at.
func system(t *testing.T) (*Target, string) {
	t.Helper()
	require.Need(t, "root") // owners are set
	dir := t.TempDir()
	for name, content := range map[string]string{
		"etc/passwd":        "root:x:0:0:root:/root:/bin/bash\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\nfirst:x:1000:1000::/home/first:/bin/sh\n",
		"etc/shadow":        "root:*:19000:0:99999:7:::\nsshd:!:19000::::::\nfirst:!:19000:0:99999:7:::\n",
		"etc/group":         "root:x:0:\nsudo:x:27:first\nshadow:x:42:\nfirst:x:1000:\nother:x:1001:\n",
		"etc/gshadow":       "root:*::\nsudo:*::first\nshadow:*::\nfirst:!::\n",
		"etc/hostname":      "build-machine\n",
		"etc/skel/.profile": "# profile\n",
		"usr/bin/bash":      "", "usr/bin/sh": "",
		"usr/lib/systemd/system/systemd-networkd.service":             "[Install]\nWantedBy=multi-user.target\nAlias=dbus-org.freedesktop.network1.service\nAlso=systemd-networkd-wait-online.service absent.service\n",
		"usr/lib/systemd/system/systemd-networkd-wait-online.service": "[Install]\nWantedBy=network-online.target\n",
		"usr/lib/systemd/system/console.service":                      "[Install]\nWantedBy=multi-user.target\nAlso=masked.service\n",
		"usr/lib/systemd/system/getty@.service":                       "[Install]\nWantedBy=getty.target\n",
	} {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for from, to := range map[string]string{"bin": "usr/bin", "lib": "usr/lib", "etc/resolv.conf": "/run/resolv.conf", "var-outside": "/var", "usr/lib/systemd/system/masked.service": "/dev/null"} {
		if err := os.Symlink(to, filepath.Join(dir, from)); err != nil {
			t.Fatal(err)
		}
	}
	target, err := Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = target.Close() })
	return target, dir
}

// show is mode, owner and content or link target of a file.
func show(t *testing.T, p string) string {
	t.Helper()
	info, err := os.Lstat(p)
	if err != nil {
		return "absent"
	}
	stat := info.Sys().(*syscall.Stat_t)
	head := fmt.Sprintf("%v %d:%d", info.Mode(), stat.Uid, stat.Gid)
	if info.Mode()&fs.ModeSymlink != 0 {
		to, err := os.Readlink(p)
		if err != nil {
			t.Fatal(err)
		}
		return "-> " + to
	}
	if info.IsDir() {
		return head
	}
	b, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	return head + " " + string(b)
}

func TestAWholeConfigurationTwice(t *testing.T) {
	target, dir := system(t)
	key := "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJlZmVlZDAwYmVmZWVkMDBiZWZlZWQwMGJlZmVlZDAw"
	ops, err := nodeconfig.Direct(nodeconfig.Config{
		Hostname:   "n1",
		Interfaces: []nodeconfig.Interface{{MAC: "52:54:00:00:00:01", Addresses: []string{"10.0.0.1/24"}}},
		DNS:        []string{"10.0.0.53"}, NTP: []string{"10.0.0.123"}, SSHKeys: []string{key},
		Users: []nodeconfig.User{{Name: "ops", SSHKeys: []string{key}, Sudo: true}},
		Files: []nodeconfig.File{{Path: "/opt/run", Content: []byte("x"), Mode: 0o4755, Owner: "ops:ops"}},
		Units: []nodeconfig.Unit{{Name: "getty@tty7.service", Enabled: true}, {Name: "apt-daily.timer", Masked: true}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := target.Apply(ops); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]string{
			"etc/hostname":                  "-rw-r--r-- 0:0 n1\n",
			"etc/resolv.conf":               "-rw-r--r-- 0:0 nameserver 10.0.0.53\n",
			"etc/localtime":                 "-> /usr/share/zoneinfo/UTC",
			"root/.ssh":                     "drwx------ 0:0",
			"root/.ssh/authorized_keys":     "-rw------- 0:0 " + key + "\n",
			"home/ops":                      "drwx------ 1002:1002",
			"home/ops/.profile":             "-rw-r--r-- 1002:1002 # profile\n",
			"home/ops/.ssh/authorized_keys": "-rw------- 1002:1002 " + key + "\n",
			"opt/run":                       "urwxr-xr-x 1002:1002 x",
			"etc/sudoers.d/90-coldrack":     "-r--r----- 0:0 ops ALL=(ALL:ALL) NOPASSWD:ALL\n",
			"etc/group":                     "-rw-r--r-- 0:0 root:x:0:\nsudo:x:27:first,ops\nshadow:x:42:\nfirst:x:1000:\nother:x:1001:\nops:x:1002:\n",
			"etc/gshadow":                   "-rw-r----- 0:42 root:*::\nsudo:*::first,ops\nshadow:*::\nfirst:!::\nops:!::\n",
			"etc/shadow":                    "-rw-r----- 0:42 root:*:19000:0:99999:7:::\nsshd:!:19000::::::\nfirst:!:19000:0:99999:7:::\nops:!::0:99999:7:::\n",
			"etc/systemd/system/multi-user.target.wants/systemd-networkd.service":                 "-> /usr/lib/systemd/system/systemd-networkd.service",
			"etc/systemd/system/dbus-org.freedesktop.network1.service":                            "-> /usr/lib/systemd/system/systemd-networkd.service",
			"etc/systemd/system/network-online.target.wants/systemd-networkd-wait-online.service": "-> /usr/lib/systemd/system/systemd-networkd-wait-online.service",
			"etc/systemd/system/getty.target.wants/getty@tty7.service":                            "-> /usr/lib/systemd/system/getty@.service",
			"etc/systemd/system/multi-user.target.wants/coldrack-agent.service":                   "-> /etc/systemd/system/coldrack-agent.service",
			"etc/systemd/system/apt-daily.timer":                                                  "-> /dev/null",
		} {
			if got := show(t, filepath.Join(dir, name)); got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
		if left, err := filepath.Glob(dir + "/*/.coldrack-new*"); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	}
}

func TestNothingOutsideIsReached(t *testing.T) {
	for name, tt := range map[string]struct {
		link, to string // a link in the image
		op       nodeconfig.Op
	}{
		"a parent folder that leads out":      {"etc/x", "/etc", nodeconfig.Op{Kind: nodeconfig.WriteFile, Path: "/etc/x/evil"}},
		"a parent folder that climbs out":     {"etc/x", "../../../../../../../../tmp", nodeconfig.Op{Kind: nodeconfig.WriteFile, Path: "/etc/x/evil"}},
		"a folder to make below one":          {"etc/x", "/tmp", nodeconfig.Op{Kind: nodeconfig.MakeDir, Path: "/etc/x/evil", Mode: 0o755}},
		"a folder that is itself such a link": {"etc/x", "/tmp", nodeconfig.Op{Kind: nodeconfig.MakeDir, Path: "/etc/x", Mode: 0o700}},
		"something to remove below one":       {"etc/x", "/etc", nodeconfig.Op{Kind: nodeconfig.Remove, Path: "/etc/x/passwd"}},
		"a link to make below one":            {"etc/x", "/tmp", nodeconfig.Op{Kind: nodeconfig.MakeLink, Path: "/etc/x/evil", Target: "y"}},
		"logins in a file elsewhere":          {"etc/passwd", "/etc/passwd", nodeconfig.Op{Kind: nodeconfig.MakeUser, Login: nodeconfig.User{Name: "evil"}}},
	} {
		t.Run(name, func(t *testing.T) {
			target, dir := system(t)
			p := filepath.Join(dir, tt.link)
			_ = os.Remove(p)
			if err := os.Symlink(tt.to, p); err != nil {
				t.Fatal(err)
			}
			before := show(t, "/tmp")
			if err := target.Apply([]nodeconfig.Op{tt.op}); err == nil || !strings.Contains(err.Error(), "leads out of it") {
				t.Errorf("error is %v", err)
			}
			if after := show(t, "/tmp"); after != before {
				t.Errorf("/tmp was %s and is %s", before, after)
			}
			for _, evil := range []string{"/etc/evil", "/tmp/evil"} {
				if _, err := os.Lstat(evil); err == nil {
					t.Errorf("%s was made", evil)
				}
			}
		})
	}
}

func TestAFileInPlaceOfALinkIsReplaced(t *testing.T) {
	target, dir := system(t)
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("keep"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, filepath.Join(dir, "etc/motd")); err != nil {
		t.Fatal(err)
	}
	if err := target.WriteFile("/etc/motd", []byte("new"), 0o644, ""); err != nil {
		t.Fatal(err)
	}
	if got := show(t, victim); !strings.HasSuffix(got, "keep") {
		t.Errorf("the link was followed: %s", got)
	}
}

func TestApplyExplains(t *testing.T) {
	for name, tt := range map[string]struct {
		op   nodeconfig.Op
		text string
	}{
		"a unit that the image lacks":      {nodeconfig.Op{Kind: nodeconfig.EnableUnit, Unit: "nothere.service"}, "no unit nothere.service"},
		"a login that is a system account": {nodeconfig.Op{Kind: nodeconfig.MakeUser, Login: nodeconfig.User{Name: "sshd"}}, "system account"},
		"a login that is a group":          {nodeconfig.Op{Kind: nodeconfig.MakeUser, Login: nodeconfig.User{Name: "other"}}, "is a group"},
		"a shell that the image lacks":     {nodeconfig.Op{Kind: nodeconfig.MakeUser, Login: nodeconfig.User{Name: "u", Shell: "/bin/zsh"}}, "no shell /bin/zsh"},
		"an owner that the image lacks":    {nodeconfig.Op{Kind: nodeconfig.WriteFile, Path: "/x", Owner: "nobody1:root"}, `no "nobody1"`},
		"a file where a folder is":         {nodeconfig.Op{Kind: nodeconfig.WriteFile, Path: "/etc"}, "file /etc"},
		"an operation from the future":     {nodeconfig.Op{Kind: "teleport", Path: "/x"}, "unknown operation"},
	} {
		t.Run(name, func(t *testing.T) {
			target, _ := system(t)
			if err := target.Apply([]nodeconfig.Op{tt.op}); err == nil || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error is %v, want %q in it", err, tt.text)
			}
		})
	}
}

// A unit of the image may name others that the image masks; that keeps nobody from enabling it.
func TestAlsoOfAMaskedUnit(t *testing.T) {
	target, dir := system(t)
	if err := target.Apply([]nodeconfig.Op{{Kind: nodeconfig.EnableUnit, Unit: "console.service"}}); err != nil {
		t.Fatal(err)
	}
	if got, want := show(t, filepath.Join(dir, "etc/systemd/system/multi-user.target.wants/console.service")), "-> /usr/lib/systemd/system/console.service"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if err := target.Apply([]nodeconfig.Op{{Kind: nodeconfig.EnableUnit, Unit: "masked.service"}}); err == nil || !strings.Contains(err.Error(), "masked.service is masked in the image") {
		t.Errorf("enabled by itself: %v", err)
	}
}
