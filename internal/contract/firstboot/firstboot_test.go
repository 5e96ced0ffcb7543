package firstboot_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"coldrack.dev/internal/contract/firstboot"
	"coldrack.dev/internal/contract/nodeconfig"
	"coldrack.dev/internal/contract/validate"
	"coldrack.dev/test/require"
)

const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJlZmVlZDAwYmVmZWVkMDBiZWZlZWQwMGJlZmVlZDAw admin@desk"

func node() firstboot.Node {
	return firstboot.Node{IntentID: "intent-2", Config: nodeconfig.Config{
		Hostname: "r7u12", Domain: "rack.example.com", Timezone: "Europe/Berlin", SSHKeys: []string{key},
		Interfaces: []nodeconfig.Interface{{MAC: "52:54:00:12:34:56", Addresses: []string{"10.7.0.12/24", "fd00:7::12/64"}, Gateway: "10.7.0.1", MTU: 1400}},
		DNS:        []string{"10.7.0.1", "fd00:7::1"},
		Users:      []nodeconfig.User{{Name: "ops", SSHKeys: []string{key}, PasswordHash: "$6$salt$" + strings.Repeat("abcdef./ab", 8) + "abcdef"}},
		Files:      []nodeconfig.File{{Path: "/etc/site.conf", Content: []byte("secret\n"), Mode: 0o600}, {Path: "/opt/ops", Content: []byte("x"), Owner: "ops:ops"}},
		Units:      []nodeconfig.Unit{{Name: "hello.service", Content: "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n", Enabled: true}},
	}}
}

func TestWhatAFamilyCannotBeTold(t *testing.T) {
	for name, tt := range map[string]struct {
		family string
		change func(*firstboot.Node)
		want   string
	}{
		"kernel arguments of a disk with its own boot loader": {firstboot.CloudInit, func(n *firstboot.Node) { n.KernelArgs = []string{"quiet"} }, "remove kernelArgs"},
		"its console":             {firstboot.CloudInit, func(n *firstboot.Node) { n.Console = []string{"ttyS0"} }, "remove console"},
		"bonds in cloud-init":     {firstboot.CloudInit, links, "gets one interface"},
		"bonds in NetworkManager": {firstboot.FCOS, links, "gets one interface"},
		"host entries in cloud-init": {firstboot.CloudInit, func(n *firstboot.Node) {
			n.Config.Hosts = []nodeconfig.Host{{Address: "10.0.0.1", Names: []string{"x"}}}
		}, "cannot be told: hosts"},
		"special bits in Ignition": {firstboot.Flatcar, func(n *firstboot.Node) { n.Config.Files[0].Mode = 0o4755 }, "cannot be told: files"},
		"a host name that is none": {firstboot.Flatcar, func(n *firstboot.Node) { n.Config.Hostname = "a b" }, "hostname"},
		"a family that is no disk": {"debian", func(*firstboot.Node) {}, "are no whole disks"},
	} {
		n := node()
		tt.change(&n)
		if _, err := firstboot.Make(tt.family, n); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
	n := node()
	links(&n)
	if _, err := firstboot.Make(firstboot.Flatcar, n); err != nil {
		t.Errorf("Flatcar has systemd-networkd: %v", err)
	}
}

func links(n *firstboot.Node) {
	mac := n.Config.Interfaces[0].MAC
	n.Config.Interfaces = []nodeconfig.Interface{{MAC: mac}}
	n.Config.Links = &nodeconfig.Links{Link: "v7", VLANs: []validate.LinkVLAN{{Name: "v7", ID: 7, Parent: mac}}, Addresses: []validate.LinkAddress{{Link: "v7", Address: "10.7.0.12/24"}}}
}

// NoCloud by Debian's real cloud-init: a root with the files where the installer puts them, no network, all stages of a first boot.
func TestRealCloudInitMakesTheMachine(t *testing.T) {
	require.Need(t, "root", "cloud-init", "unshare")
	made, err := firstboot.Make(firstboot.CloudInit, node())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	seed := filepath.Join(dir, "seed")
	if err := os.Mkdir(seed, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"user-data": made.NoCloud.UserData, "meta-data": made.NoCloud.MetaData, "network-config": made.NoCloud.NetworkConfig} {
		if err := os.WriteFile(filepath.Join(seed, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	unpacked := filepath.Join(filepath.Dir(require.Program("cloud-init")), "../..")
	// The host's Debian under an overlay, in namespaces of its own. cloud-init sees one interface with the machine's MAC.
	script := `set -eu
mkdir -p "$1/top"
mount -t tmpfs none "$1/top"
mkdir -p "$1/top/upper" "$1/top/work" "$1/top/root"
mount -t overlay none -o "lowerdir=/,upperdir=$1/top/upper,workdir=$1/top/work" "$1/top/root"
root="$1/top/root"
for d in proc sys dev run tmp; do mkdir -p "$root/$d"; done
mount -t proc none "$root/proc"
mount -t sysfs -o ro none "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs none "$root/run"
mount -t tmpfs none "$root/tmp"
mkdir -p "$root/run/unpacked"
mount --bind "$2" "$root/run/unpacked"
rm -rf "$root/etc/cloud" "$root/var/lib/cloud" "$root/etc/netplan" "$root/etc/network" "$root"/etc/systemd/network/*
cp -a "$2/etc/cloud" "$root/etc/cloud"
printf 'datasource_list: [NoCloud, None]\n' > "$root/etc/cloud/cloud.cfg.d/95_coldrack.cfg"
mkdir -p "$root/var/lib/cloud/seed"
cp -a "$1/seed" "$root/var/lib/cloud/seed/nocloud"
ip link add eth7 address 52:54:00:12:34:56 type veth peer name peer0
export PYTHONPATH=/run/unpacked/usr/lib/python3/dist-packages LC_ALL=C.UTF-8 SYSTEMD_OFFLINE=1 # systemctl does without a running systemd
for stage in "init --local" "init" "modules --mode=config" "modules --mode=final"; do
    chroot "$root" /usr/bin/python3 /run/unpacked/usr/bin/cloud-init $stage >> "$1/log" 2>&1 || echo "stage $stage failed" >> "$1/log"
done
cd "$root"
cp var/lib/cloud/data/result.json "$1/result.json"
cat var/log/cloud-init.log >> "$1/log" 2>/dev/null || true
{ for f in etc/hostname etc/timezone etc/site.conf opt/ops root/.ssh/authorized_keys home/ops/.ssh/authorized_keys etc/systemd/system/hello.service etc/systemd/system/multi-user.target.wants/hello.service etc/systemd/network/*; do
    printf '%s %s\n' "$f" "$(chroot "$root" stat -c '%a %U:%G' "/$f" 2>&1)"; cat "$f" 2>/dev/null || true; echo; done
  readlink etc/localtime || true
  grep '^ops:' etc/passwd etc/shadow || true; cat var/lib/cloud/data/instance-id; } > "$1/found" 2>&1
`
	cmd := exec.Command("unshare", "--mount", "--net", "--uts", "--pid", "--fork", "sh", "-c", script, "sh", dir, unpacked)
	out, err := cmd.CombinedOutput()
	log, _ := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatalf("%v: %s\n%s", err, out, log)
	}
	var result struct {
		V1 struct {
			Datasource string   `json:"datasource"`
			Errors     []string `json:"errors"`
		} `json:"v1"`
	}
	b, err := os.ReadFile(filepath.Join(dir, "result.json"))
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	if err := json.Unmarshal(b, &result); err != nil {
		t.Fatal(err)
	}
	for _, e := range result.V1.Errors {
		// This host has no locales, which images for clouds have; and there is no running systemd to start a unit that was enabled.
		if !strings.Contains(e, "'locale'") && !strings.Contains(e, "('scripts-user', RuntimeError('Runparts: 1 failures (runcmd)") {
			t.Errorf("cloud-init: %s", e)
		}
	}
	if !strings.Contains(result.V1.Datasource, "DataSourceNoCloud [seed=/var/lib/cloud/seed/nocloud]") {
		t.Errorf("cloud-init: %s\n%s", b, log)
	}
	found, err := os.ReadFile(filepath.Join(dir, "found"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"etc/hostname 644 root:root\nr7u12\n", "etc/site.conf 600 root:root\nsecret\n", "Europe/Berlin", key,
		"Address=10.7.0.12/24", "Address=fd00:7::12/64", "Gateway=10.7.0.1", "DNS=10.7.0.1 fd00:7::1", "MACAddress=52:54:00:12:34:56", "Name=lan0", "MTUBytes=1400", "Domains=rack.example.com",
		"ExecStart=/bin/true", "etc/passwd:ops:", "etc/shadow:ops:$6$salt$", "coldrack-intent-2", "multi-user.target.wants/hello.service 777", "opt/ops 644 ops:ops",
	} {
		if !strings.Contains(string(found), want) {
			t.Errorf("cloud-init did not make %q", want)
		}
	}
	if t.Failed() {
		t.Logf("%s\n%s\n%s", found, made.NoCloud.NetworkConfig, log)
	}
}

// The real Ignition carries the config out, and what it wrote puts the agent in place, wherever that is cut off.
func TestRealIgnitionMakesTheMachine(t *testing.T) {
	require.Need(t, "root", "ignition")
	for family, tt := range map[string]struct{ programs, network string }{
		firstboot.Flatcar: {"/opt/bin", "etc/systemd/network/10-coldrack-525400123456.network"},
		firstboot.FCOS:    {"/usr/local/bin", "etc/NetworkManager/system-connections/coldrack-lan0.nmconnection"},
	} {
		t.Run(family, func(t *testing.T) {
			n := node()
			n.Console = []string{"ttyS0,115200"}
			made, err := firstboot.Make(family, n)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(made.Ignition.Config), `"console=ttyS0,115200"`) {
				t.Error("the console is not among the kernel arguments")
			}
			root := igniteRoot(t, withoutKernelArguments(t, made.Ignition.Config))
			for file, want := range map[string]string{
				"etc/hostname": "r7u12\n", "etc/site.conf": "secret\n", tt.network: "10.7.0.12/24",
				"etc/systemd/system/coldrack-agent.service":       "ExecStart=" + tt.programs + "/coldrack-agent node",
				"etc/systemd/system/coldrack-place-agent.service": "ConditionPathExists=!/var/lib/coldrack/agent/node.pem",
			} {
				b, err := os.ReadFile(filepath.Join(root, file))
				if err != nil || !strings.Contains(string(b), want) {
					t.Errorf("%s: %v: %q", file, err, b)
				}
			}
			for _, unit := range []string{"coldrack-agent.service", "coldrack-place-agent.service", "hello.service"} {
				if _, err := os.Lstat(filepath.Join(root, "etc/systemd/system/multi-user.target.wants", unit)); err != nil {
					t.Error(err)
				}
			}
			placed(t, root, tt.programs)
		})
	}
}

func placed(t *testing.T, root, programs string) {
	t.Helper()
	from := t.TempDir()
	for name, body := range map[string]string{"coldrack-agent": "program", "agent.json": "{}", "node.pem": "KEY"} {
		if err := errors.Join(os.MkdirAll(filepath.Join(from, "coldrack"), 0o700), os.WriteFile(filepath.Join(from, "coldrack", name), []byte(body), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("sh", filepath.Join(root, "etc/coldrack/place-agent.sh"), from, root).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for name, want := range map[string]string{programs + "/coldrack-agent": "755 program", "etc/coldrack/agent.json": "{}", "var/lib/coldrack/agent/node.pem": "600 KEY"} {
		info, err := os.Stat(filepath.Join(root, name))
		if err != nil {
			t.Error(err)
			continue
		}
		b, _ := os.ReadFile(filepath.Join(root, name))
		if got := fmt.Sprintf("%o %s", info.Mode().Perm(), b); !strings.HasSuffix(got, want) {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if _, err := os.Stat(filepath.Join(from, "coldrack/node.pem")); err == nil {
		t.Error("the key is still where the installer left it")
	}
}

// withoutKernelArguments: Ignition carries these out in another stage, by a program of the operating system.
func withoutKernelArguments(t *testing.T, text []byte) []byte {
	t.Helper()
	var config map[string]any
	if err := json.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	delete(config, "kernelArguments")
	out, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// igniteRoot has Ignition carry out a config on as much of a root as it looks at.
func igniteRoot(t *testing.T, config []byte) string {
	t.Helper()
	root, state := t.TempDir(), t.TempDir()
	// Ignition writes keys as the login that they are for.
	if err := errors.Join(os.Chmod(filepath.Dir(root), 0o755), os.Chmod(root, 0o755)); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"etc/passwd":     "root:x:0:0:root:/root:/bin/bash\ncore:x:500:500::/home/core:/bin/bash\n",
		"etc/shadow":     "root:*:19000:0:99999:7:::\ncore:*:19000:0:99999:7:::\n",
		"etc/group":      "root:x:0:\nsudo:x:27:\nshadow:x:42:\nusers:x:100:\ncore:x:500:\n",
		"etc/gshadow":    "root:*::\nsudo:*::\nshadow:*::\nusers:*::\ncore:*::\n",
		"etc/login.defs": "UID_MIN 1000\nUID_MAX 60000\nGID_MIN 1000\nGID_MAX 60000\nHOME_MODE 0700\n",
		"bin/bash":       "", "bin/sh": "", "root/.profile": "", "etc/selinux/config": "SELINUX=disabled\nSELINUXTYPE=none\n",
		"usr/lib/systemd/system/systemd-networkd.service":  "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n",
		"usr/lib/systemd/system/systemd-timesyncd.service": "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=sysinit.target\n",
		"usr/lib/systemd/system-preset/99-default.preset":  "disable *\n",
	} {
		p := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(state, "config.ign")
	// Debian's Ignition labels what it wrote for SELinux in any case. There are no labels here.
	if err := errors.Join(os.WriteFile(file, config, 0o600), os.WriteFile(filepath.Join(state, "setfiles"), []byte("#!/bin/sh\nexec cat >/dev/null\n"), 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, stage := range []string{"fetch", "files"} {
		cmd := exec.Command(require.Program("ignition"), "--platform", "file", "--stage", stage, "--root", root, "--log-to-stdout",
			"--config-cache", filepath.Join(state, "cache.json"), "--state-file", filepath.Join(state, "state"), "--neednet", filepath.Join(state, "neednet"))
		cmd.Env = append(os.Environ(), "IGNITION_CONFIG_FILE="+file, "IGNITION_SYSTEM_CONFIG_DIR="+filepath.Join(state, "none"), "PATH="+state+":"+os.Getenv("PATH"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("ignition, stage %s: %v\n%s", stage, err, out)
		}
	}
	if out, err := exec.Command("systemctl", "--root", root, "preset-all").CombinedOutput(); err != nil {
		t.Fatalf("systemctl preset-all: %v\n%s", err, out)
	}
	return root
}
