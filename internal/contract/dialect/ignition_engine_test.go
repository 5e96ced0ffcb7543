package dialect_test

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"coldrack.dev/internal/agent/target"
	"coldrack.dev/internal/contract/dialect"
	"coldrack.dev/internal/contract/nodeconfig"
	"coldrack.dev/test/require"
)

const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJlZmVlZDAwYmVmZWVkMDBiZWZlZWQwMGJlZmVlZDAw admin@desk"

// imageRoot makes the part of an image that both ways to configure it look at.
func imageRoot(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	// Ignition writes keys as the login that they are for.
	if err := errors.Join(os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"etc/passwd":     "root:x:0:0:root:/root:/bin/bash\ncore:x:500:500::/home/core:/bin/bash\n",
		"etc/shadow":     "root:*:19000:0:99999:7:::\ncore:*:19000:0:99999:7:::\n",
		"etc/group":      "root:x:0:\nsudo:x:27:\nshadow:x:42:\nusers:x:100:\ncore:x:500:\n",
		"etc/gshadow":    "root:*::\nsudo:*::\nshadow:*::\nusers:*::\ncore:*::\n",
		"etc/login.defs": "UID_MIN 1000\nUID_MAX 60000\nGID_MIN 1000\nGID_MAX 60000\nHOME_MODE 0700\n",
		"etc/hostname":   "build-machine\n", "etc/motd": "welcome\n",
		"bin/bash": "", "bin/sh": "", "root/.profile": "", "home/core/.profile": "",
		"etc/selinux/config":                                          "SELINUX=disabled\nSELINUXTYPE=none\n",
		"usr/lib/systemd/system/systemd-networkd.service":             "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\nAlso=systemd-networkd-wait-online.service\n",
		"usr/lib/systemd/system/systemd-networkd-wait-online.service": "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=network-online.target\n",
		"usr/lib/systemd/system/systemd-timesyncd.service":            "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=sysinit.target\n",
		"usr/lib/systemd/system/chrony.service":                       "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n",
		"usr/lib/systemd/system/other.service":                        "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n",
		"usr/lib/systemd/system/getty@.service":                       "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=getty.target\n",
		"usr/lib/systemd/system/apt-daily.timer":                      "[Timer]\nOnCalendar=daily\n[Install]\nWantedBy=timers.target\n",
		// As Flatcar and Fedora CoreOS have it: nothing is enabled that no preset enables.
		"usr/lib/systemd/system-preset/99-default.preset": "disable *\n",
	} {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"home/core", "home/core/.profile"} {
		if err := os.Chown(filepath.Join(dir, name), 500, 500); err != nil {
			t.Fatal(err)
		}
	}
	for _, shadow := range []string{"etc/shadow", "etc/gshadow"} {
		if err := errors.Join(os.Chown(filepath.Join(dir, shadow), 0, 42), os.Chmod(filepath.Join(dir, shadow), 0o640)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// igniteRoot has the real Ignition carry out its configuration on a root, as in the initial RAM disk, and systemd what it does
// about units when it first starts there.
func igniteRoot(t *testing.T, root string, config []byte) {
	t.Helper()
	state := t.TempDir()
	file := filepath.Join(state, "config.ign")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		t.Fatal(err)
	}
	// Debian's Ignition labels what it wrote for SELinux in any case. There are no labels here.
	if err := os.WriteFile(filepath.Join(state, "setfiles"), []byte("#!/bin/sh\nexec cat >/dev/null\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, stage := range []string{"fetch", "files"} {
		cmd := exec.Command(require.Program("ignition"), "--platform", "file", "--stage", stage, "--root", root, "--log-to-stdout",
			"--config-cache", filepath.Join(state, "cache.json"), "--state-file", filepath.Join(state, "state"), "--neednet", filepath.Join(state, "neednet"))
		cmd.Env = append(os.Environ(), "IGNITION_CONFIG_FILE="+file, "IGNITION_SYSTEM_CONFIG_DIR="+filepath.Join(state, "none"),
			"PATH="+state+":"+os.Getenv("PATH"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("ignition, stage %s: %v\n%s", stage, err, out)
		}
	}
	if out, err := exec.Command("systemctl", "--root", root, "preset-all").CombinedOutput(); err != nil {
		t.Fatalf("systemctl preset-all: %v\n%s", err, out)
	}
}

// tree is mode, owner and content of all that is in a root but folders, by path. Owners are named by the root's own accounts.
func tree(t *testing.T, root string) map[string]string {
	t.Helper()
	names := map[string]map[string]string{}
	for _, db := range []string{"passwd", "group"} {
		names[db] = map[string]string{}
		for _, line := range lines(t, filepath.Join(root, "etc", db)) {
			f := strings.Split(line, ":")
			names[db][f[2]] = f[0]
		}
	}
	found := map[string]string{}
	err := filepath.WalkDir(root, func(p string, entry fs.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		stat := info.Sys().(*syscall.Stat_t)
		head := fmt.Sprintf("%v %s:%s", info.Mode(), names["passwd"][fmt.Sprint(stat.Uid)], names["group"][fmt.Sprint(stat.Gid)])
		name := strings.TrimPrefix(p, root)
		switch {
		case entry.IsDir():
			found[name+"/"] = head
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(p)
			if err != nil {
				return err
			}
			if !filepath.IsAbs(to) {
				to = filepath.Join(filepath.Dir(name), to)
			}
			// systemctl with --root writes links that begin at that root.
			found[name] = "-> " + strings.TrimPrefix(to, root)
		default:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			found[name] = head + "\n" + string(b)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func lines(t *testing.T, file string) []string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

// settle removes the differences that are meant, each with its reason, and changes what is said in two ways into one.
func settle(t *testing.T, root string) map[string]string {
	t.Helper()
	found := tree(t, root)
	for name, content := range found {
		switch {
		case strings.Contains(name, "coldrack-agent.service"), strings.Contains(name, "coldrack-ssh-hostkeys.service"):
			delete(found, name) // Coldrack's own on systems that it installs
		case name == "/etc/machine-id", strings.HasPrefix(name, "/var/"):
			delete(found, name) // what readies an image for many disks; one that starts with Ignition is ready
		case name == "/etc/.pwd.lock", strings.HasPrefix(name, "/etc/") && strings.HasSuffix(name, "-"):
			delete(found, name) // left by useradd
		case name == "/etc/.ignition-result.json":
			delete(found, name) // Ignition's report
		case strings.HasPrefix(name, "/etc/systemd/system-preset"):
			delete(found, name) // how it tells systemd what to enable
		case strings.HasSuffix(name, ".d/") && strings.Contains(name, "authorized_keys"):
			delete(found, name)
		case strings.HasSuffix(name, "/authorized_keys.d/ignition"):
			// Where Flatcar and Fedora CoreOS have their sshd look.
			delete(found, name)
			found[strings.TrimSuffix(name, ".d/ignition")] = content
		case name == "/etc/shadow":
			// The day of the last change is today's with useradd, and empty with ours: there is no clock yet. Both lock a login without a password.
			var kept []string
			for _, line := range lines(t, filepath.Join(root, name)) {
				f := strings.Split(line, ":")
				kept = append(kept, f[0]+":"+strings.Replace(f[1], "!", "*", 1))
			}
			head, _, _ := strings.Cut(content, "\n")
			slices.Sort(kept)
			found[name] = head + "\n" + strings.Join(kept, "\n")
		case name == "/etc/passwd", name == "/etc/group":
			sorted := lines(t, filepath.Join(root, name))
			for i, line := range sorted {
				f := strings.Split(line, ":")
				f[2] = "N" // numbers are given in another order
				if name == "/etc/passwd" {
					f[3] = "N"
				}
				sorted[i] = strings.Join(f, ":")
			}
			slices.Sort(sorted)
			head, _, _ := strings.Cut(content, "\n")
			found[name] = head + "\n" + strings.Join(sorted, "\n")
		case name == "/etc/gshadow":
			delete(found, name) // no group has a password
		}
	}
	return found
}

// A machine that Ignition configures has the files, modes, owners, links, logins and enabled units of one that the installer configures.
func TestIgnitionMakesWhatTheInstallerMakes(t *testing.T) {
	t.Parallel()
	require.Need(t, "root", "ignition")
	config := nodeconfig.Config{
		Hostname: "r7u12", Domain: "rack.example.com", Timezone: "Europe/Berlin",
		Interfaces: []nodeconfig.Interface{
			{MAC: "52:54:00:12:34:56", Addresses: []string{"10.7.0.12/24", "fd00:7::12/64"}, Gateway: "10.7.0.1", MTU: 9000},
			{MAC: "52:54:00:12:34:57", Addresses: []string{"192.168.9.12/24"}}},
		DNS: []string{"10.7.0.1"}, NTP: []string{"time.example.com"}, SSHKeys: []string{key},
		Users: []nodeconfig.User{{Name: "ops", Sudo: true, SSHKeys: []string{key, `from="10.0.0.0/8" ` + key}},
			{Name: "audit", Shell: "/bin/sh", PasswordHash: "$6$salt$" + strings.Repeat("abcdef./ab", 8) + "abcdef"}},
		Files: []nodeconfig.File{
			{Path: "/etc/motd", Content: []byte("äöü 100% \"x\" #1?\n\ttab\n")}, {Path: "/etc/sysctl.d/90-site.conf", Content: []byte("net.ipv4.ip_forward=1\n")},
			{Path: "/opt/x/run", Content: []byte("#!/bin/sh\n"), Mode: 0o755, Owner: "ops:ops"}, {Path: "/opt/x/secret", Content: []byte{0, 1, 0xff}, Mode: 0o600},
			{Path: "/etc/empty"}, {Path: "/etc/systemd/system/chrony.service.d/10-site.conf", Content: []byte("[Service]\nNice=5\n")},
			{Path: "/home/ops/.config/tool", Content: []byte("x\n"), Owner: "ops:ops"}},
		// No instance of a template: Ignition then asks a running systemd for its version.
		Units: []nodeconfig.Unit{
			{Name: "hello.service", Content: "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\nAlias=hi.service\n", Enabled: true},
			{Name: "quiet.service", Content: "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n"},
			{Name: "apt-daily.timer", Masked: true}, {Name: "chrony.service", Enabled: true}},
		Hosts: []nodeconfig.Host{{Address: "10.7.0.1", Names: []string{"gw", "gw.example.com"}}},
	}
	ours := imageRoot(t)
	ops, err := nodeconfig.Direct(config)
	if err != nil {
		t.Fatal(err)
	}
	system, err := target.Open(ours, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer system.Close()
	if err := system.Apply(ops); err != nil {
		t.Fatal(err)
	}
	text, lost, err := dialect.Encode(dialect.Ignition, dialect.Node{Config: config})
	if err != nil || len(lost) > 0 {
		t.Fatal(err, lost)
	}
	theirs := imageRoot(t)
	igniteRoot(t, theirs, text)
	want, got := settle(t, ours), settle(t, theirs)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the installer (-) and Ignition (+):\n%s", diff)
	}
	// That both are empty would be equal, too.
	for _, name := range []string{"/etc/systemd/system/multi-user.target.wants/hello.service", "/etc/systemd/system/apt-daily.timer", "/home/ops/.ssh/authorized_keys", "/etc/sysctl.d/90-site.conf", "/etc/localtime"} {
		if got[name] == "" {
			t.Errorf("Ignition did not make %s; it made %s", name, strings.Join(slices.Sorted(maps.Keys(got)), " "))
		}
	}
	if got["/etc/systemd/system/multi-user.target.wants/quiet.service"] != "" || got["/etc/systemd/system/multi-user.target.wants/other.service"] != "" {
		t.Error("a unit is enabled that nobody enabled")
	}
}

// A file that was written for CoreOS configures the login that images of its successors come with.
func TestIgnitionOfACloudConfig(t *testing.T) {
	t.Parallel()
	require.Need(t, "root", "ignition")
	r := dialect.Parse(dialect.CloudConfig, []byte("#cloud-config\nhostname: old\nssh_authorized_keys:\n- "+key+"\ncoreos:\n  update: {reboot-strategy: off, group: beta}\n"), dialect.Variables{})
	if len(r.Problems)+len(r.Lost) > 0 {
		t.Fatal(r.Problems, r.Lost)
	}
	text, _, err := dialect.Encode(dialect.Ignition, r.Node)
	if err != nil {
		t.Fatal(err)
	}
	root := imageRoot(t)
	igniteRoot(t, root, text)
	got := tree(t, root)
	for name, want := range map[string]string{
		"/etc/hostname": "-rw-r--r-- root:root\nold\n",
		"/home/core/.ssh/authorized_keys.d/ignition": "-rw------- core:core\n" + key + "\n",
		"/etc/flatcar/update.conf":                   "-rw-r--r-- root:root\nGROUP=beta\nREBOOT_STRATEGY=off\n",
		"/etc/sudoers.d/90-coldrack":                 "-r--r----- root:root\ncore ALL=(ALL:ALL) NOPASSWD:ALL\n",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
}

// Ignition drops these bits without a word, so we say it.
func TestSpecialBitsAreLostInIgnition(t *testing.T) {
	text, lost, err := dialect.Encode(dialect.Ignition, dialect.Node{Config: nodeconfig.Config{Files: []nodeconfig.File{{Path: "/opt/a", Mode: 0o755}, {Path: "/opt/b", Mode: 0o4755}}}})
	if err != nil {
		t.Fatal(err)
	}
	if len(lost) != 1 || !strings.Contains(lost[0].Message, "/opt/b") {
		t.Errorf("lost: %v", lost)
	}
	if r := dialect.Parse(dialect.Ignition, text, dialect.Variables{}); len(r.Node.Config.Files) != 2 || r.Node.Config.Files[1].Mode != 0o755 {
		t.Errorf("got %+v", r.Node.Config.Files)
	}
}
