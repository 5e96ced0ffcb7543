package validate_test

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"coldrack.dev/internal/contract/validate"
)

func TestRules(t *testing.T) {
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFEBxI3wzQb9z0X7gqTnhYJqBHZCIw3K0P9r3D7b3fQZ"
	for _, test := range []struct {
		name      string
		rule      func(string) error
		good, bad []string
	}{
		{"DNSName", validate.DNSName, []string{"a", "rack-7.example.net", strings.Repeat("a", 63)},
			[]string{"", ".", "a.", "-a", "A", "a_b", strings.Repeat("a", 64), strings.Repeat("abc.", 64) + "a"}},
		{"Hostname", validate.Hostname, []string{"n1", strings.Repeat("a", 63)}, []string{"", strings.Repeat("abcdefg.", 8) + "a"}},
		{"Domain", validate.Domain, []string{"example.net"}, []string{"a b", strings.Repeat("abcdefghi.", 20) + "net"}},
		{"TimeServer", validate.TimeServer, []string{"10.0.0.1", "fd00::1", "ntp.example.net"}, []string{"", "0.0.0.0", "224.0.0.1", "fe80::1%eth0", "a b"}},
		{"MAC", validate.MAC, []string{"52:54:00:12:34:56"}, []string{"", "52-54-00-12-34-56", "52:54:00:12:34:AA", "01:00:5e:00:00:01", "00:00:00:00:00:00", "00:00:00:00:fe:80:00:00"}},
		{"Timezone", validate.Timezone, []string{"UTC", "Europe/Berlin", "America/Argentina/Ushuaia", "Etc/GMT+5"}, []string{"", "/etc/shadow", "../../etc/shadow", "a b", "Europe/"}},
		{"KernelArg", validate.KernelArg, []string{"quiet", `dyndbg="file x +p"`, "ttyS0,115200"}, []string{"", "a b", `a"b`, "a\nb", "a'b", "ä"}},
		{"SSHKey", validate.SSHKey, []string{key, key + " me", `restrict,command="echo a b" ` + key}, []string{"", "hello", "ssh-ed25519", "ssh-ed25519 AAAA", "ssh-rsa " + strings.Fields(key)[1], key + "\n" + key}},
		{"PatternSyntax", validate.PatternSyntax, []string{"", "Dell*", "X9SCL/X9SCM", "R[67]40", "[^a-f]?", "[]]", "[a-]", `\[x`, `[\]]`}, []string{"[", "a[", "*[a", "[]", "[^]", "[a-", `x\`, `[a\]`, `[\`}},
		{"DiskID", validate.DiskID, []string{"", "nvme-*", "wwn-0x5000[ab]*"}, []string{"/dev/disk/by-id/nvme-*", "by-id/x", "["}},
		{"UserName", validate.UserName, []string{"ops", "_a", "a-b_1"}, []string{"", "Ops", "root", "operator", "www-data", "systemd-network", strings.Repeat("a", 33)}},
		{"FilePath", validate.FilePath, []string{"/etc/motd", "/etc/coldrack2"}, []string{"", "/", "etc", "/a/../b", "/a b", "/etc/fstab", "/etc/coldrack", "/etc/coldrack/x", "/run/x", "/var/run/x", "/var/lock/x", "/usr/local/bin/coldrack-agent"}},
		{"FileOwner", validate.FileOwner, []string{"root:root", "a:b"}, []string{"", "root", "0:0", "a:b:c"}},
		{"UnitName", validate.UnitName, []string{"a.service", "getty@tty1.service", "x.automount"}, []string{"", "a", "a/b.service", "10-a.network", "10-a.netdev", "10-a.link", "coldrack-agent.service"}},
	} {
		for _, s := range test.good {
			if err := test.rule(s); err != nil {
				t.Errorf("%s refuses %q: %v", test.name, s, err)
			}
		}
		for _, s := range test.bad {
			if test.rule(s) == nil {
				t.Errorf("%s accepts %q", test.name, s)
			}
		}
	}
	for d, good := range map[time.Duration]bool{0: false, 30 * time.Second: false, time.Minute: true, time.Hour: true, 9000 * time.Hour: false} {
		if err := validate.LeaseTime(d); (err == nil) != good {
			t.Errorf("lease time %s: %v", d, err)
		}
	}
}

func TestPasswordHash(t *testing.T) {
	hashes := map[string]bool{
		"!": true, "*": true,
		"$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7": true, // crypt(5)
		"$2b$12$GhvMmNVjRW29ulnudl.LbuAnUtN/LRfe1JsBm1Xu6LE3059z5Tr8m":              true,
		"$6$rounds=10000$saltstring$" + strings.Repeat("a", 86):                     true,
		"": false, "secret": false, "$6$": false, "$6$salt$abc": false, "$6$salt$" + strings.Repeat("a", 85): false, "!x": false,
		"$6$salt$" + strings.Repeat("a", 86) + ":0:0": false,
	}
	if path, err := exec.LookPath("openssl"); err == nil { // what the error advises
		for _, method := range []string{"-6", "-5", "-1"} {
			made, err := exec.Command(path, "passwd", method, "secret").Output()
			if err != nil {
				t.Fatal(err)
			}
			hashes[strings.TrimSpace(string(made))] = true
		}
	}
	for hash, good := range hashes {
		if err := validate.PasswordHash(hash); (err == nil) != good {
			t.Errorf("%q: %v", hash, err)
		}
	}
}

func TestHostOf(t *testing.T) {
	for _, test := range []struct{ network, address, want string }{
		{"10.0.0.0/24", "10.0.0.1", ""},
		{"10.0.0.7/24", "10.0.0.1", ""},
		{"10.0.0.0/24", "10.0.0.0", "network address"},
		{"10.0.0.0/24", "10.0.0.255", "broadcast address"},
		{"10.0.0.0/31", "10.0.0.0", ""},
		{"10.0.0.0/24", "10.0.1.1", "is not in the network 10.0.0.0/24"},
		{"fd00::/64", "fd00::", ""},
		{"0.0.0.0/0", "224.0.0.1", "is not the IP address of a host"},
	} {
		got := validate.HostOf(netip.MustParsePrefix(test.network), netip.MustParseAddr(test.address))
		if (got == "") != (test.want == "") || !strings.Contains(got, test.want) {
			t.Errorf("%s in %s: %q, want %q", test.address, test.network, got, test.want)
		}
	}
}
