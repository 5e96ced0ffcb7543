package audit

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"coldrack.dev/test/ca"
	"coldrack.dev/test/require"
)

// A real receiver reads what we send: rsyslog, by each of the ways, takes header and record apart. It runs where rsyslogd is
// installed; `make setup` does not install it, because it would begin to keep that machine's log.
func TestRsyslogReadsOurMessages(t *testing.T) {
	require.Need(t, "rsyslogd")
	for _, network := range []string{"udp", "tcp", "unix", "tls"} {
		t.Run(network, func(t *testing.T) {
			dir := t.TempDir()
			var export Export
			out, input, to := filepath.Join(dir, "out"), "", ""
			switch network {
			case "udp", "tcp":
				port := freePort(t, network)
				input = fmt.Sprintf("module(load=\"im%s\")\ninput(type=\"im%s\" address=\"127.0.0.1\" port=\"%d\")", network, network, port)
				to = fmt.Sprintf("%s://127.0.0.1:%d", network, port)
			case "unix":
				socket := filepath.Join(dir, "log")
				input = fmt.Sprintf("module(load=\"imuxsock\" SysSock.Use=\"off\")\ninput(type=\"imuxsock\" Socket=%q CreatePath=\"on\" IgnoreTimestamp=\"off\" UseSysTimeStamp=\"off\" UseSpecialParser=\"off\" ParseHostname=\"on\")", socket)
				to = "unix://" + socket
			case "tls": // rsyslog-openssl
				authority, port := ca.New(t, "logs"), freePort(t, "tcp")
				file := func(name string, content []byte) string {
					check(t, os.WriteFile(filepath.Join(dir, name), content, 0o600))
					return filepath.Join(dir, name)
				}
				cert, key := authority.IssuePEM(ca.Server("127.0.0.1"))
				input = fmt.Sprintf(`global(defaultNetstreamDriverCAFile=%q defaultNetstreamDriverCertFile=%q defaultNetstreamDriverKeyFile=%q)
module(load="imtcp" StreamDriver.Name="ossl" StreamDriver.Mode="1" StreamDriver.AuthMode="x509/name" PermittedPeer=["coldrack"])
input(type="imtcp" address="127.0.0.1" port="%d")`, file("ca.pem", authority.PEM()), file("cert.pem", cert), file("key.pem", key), port)
				to = fmt.Sprintf("tls://127.0.0.1:%d", port)
				cert, key = authority.IssuePEM(ca.Client("coldrack"))
				export = Export{SyslogCAFile: filepath.Join(dir, "ca.pem"), SyslogCertFile: file("own.pem", cert), SyslogKeyFile: file("own-key.pem", key)}
			}
			export.Syslog = to
			config := filepath.Join(dir, "rsyslog.conf")
			check(t, os.WriteFile(config, fmt.Appendf(nil, `global(workDirectory=%q)
%s
template(name="parts" type="string" string="%%protocol-version%%|%%syslogfacility%%|%%syslogseverity%%|%%timereported:::date-rfc3339%%|%%app-name%%|%%msgid%%|%%msg%%\n")
action(type="omfile" file=%q template="parts")
`, dir, input, out), 0o600))
			receiver := exec.Command("rsyslogd", "-n", "-f", config, "-i", filepath.Join(dir, "pid"))
			receiver.Stderr = os.Stderr
			check(t, receiver.Start())
			defer func() {
				_ = receiver.Process.Kill()
				_ = receiver.Wait()
			}()
			l := open(t, Options{File: filepath.Join(dir, "audit.log"), MaxBytes: 1 << 20, Export: export})
			want := "1|13|6|2026-02-03T04:05:06.789012Z|coldrack|audit|" + string(stamped(0))
			// Who listens to datagrams cannot be told from who does not yet, so the record is sent until it is there.
			eventually(t, func() error {
				check(t, l.Keep(stamped(0)))
				content, _ := os.ReadFile(out)
				for line := range strings.Lines(string(content)) {
					if strings.TrimSpace(line) == want {
						return nil
					}
				}
				first, _, _ := strings.Cut(string(content), "\n")
				return fmt.Errorf("rsyslog wrote %q, want %q", first, want)
			})
		})
	}
}

// freePort is one that nobody had a moment ago.
func freePort(t testing.TB, network string) int {
	t.Helper()
	if network == "udp" {
		conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		check(t, err)
		defer conn.Close()
		return conn.LocalAddr().(*net.UDPAddr).Port
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
