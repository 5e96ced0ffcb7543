// Package foreigndhcp runs the DHCP servers that sites have, each with a folder of its own in a network namespace of a test.
package foreigndhcp

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	netnstest "coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

// Server is a kind of DHCP server. It gives 192.0.2.150 to .159 of 192.0.2.0/24, with the router 192.0.2.254.
type Server struct {
	// Program is its name in PATH.
	Program string
	// config is its file; %s is where further lines go.
	config string
	// args; DIR is the folder.
	args string
}

// The servers.
var (
	Dnsmasq = Server{"dnsmasq", "port=0\ninterface=eth0\nbind-interfaces\nuser=root\npid-file=\ndhcp-authoritative\ndhcp-leasefile=DIR/leases\n" +
		"dhcp-range=192.0.2.150,192.0.2.159,10m\ndhcp-option=3,192.0.2.254\n%s\n", "--keep-in-foreground --conf-file=DIR/conf"}
	ISC = Server{"dhcpd", "authoritative; default-lease-time 600; max-lease-time 600;\n%s\n" +
		"subnet 192.0.2.0 netmask 255.255.255.0 { range 192.0.2.150 192.0.2.159; option routers 192.0.2.254; }\n", "-4 -f -q -cf DIR/conf -lf DIR/leases --no-pid eth0"}
	Kea = Server{"kea-dhcp4", `{"Dhcp4": {"interfaces-config": {"interfaces": ["eth0"]}, "valid-lifetime": 600,
"lease-database": {"type": "memfile", "persist": false},
%s
"subnet4": [{"id": 1, "subnet": "192.0.2.0/24", "pools": [{"pool": "192.0.2.150-192.0.2.159"}], "option-data": [{"name": "routers", "data": "192.0.2.254"}]}],
"loggers": [{"name": "kea-dhcp4", "severity": "ERROR", "output_options": [{"output": "stderr"}]}]}}
`, "-c DIR/conf"}
)

// All of them.
func All() []Server { return []Server{Dnsmasq, ISC, Kea} }

// Start runs the server in a network namespace with an interface eth0, with further lines in its file, until the test ends. It returns its folder,
// in which the file "leases" has what it gave out, save for Kea's.
func (s Server) Start(t testing.TB, ns *netnstest.NS, lines string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, text := range map[string]string{"conf": strings.ReplaceAll(fmt.Sprintf(s.config, lines), "DIR", dir), "leases": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var said bytes.Buffer
	cmd := exec.Command(require.Program(s.Program), strings.Fields(strings.ReplaceAll(s.args, "DIR", dir))...)
	cmd.Env = append(os.Environ(), "KEA_PIDFILE_DIR="+dir, "KEA_LOCKFILE_DIR="+dir)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := ns.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s said: %s", s.Program, said.String())
		}
	})
	return dir
}
