package capture

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coldrack.dev/test/foreigndhcp"
	"coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

// A capture as tcpdump writes it, while real clients ask a real server.
func TestCaptureOfRealClients(t *testing.T) {
	require.Need(t, "netns", "tcpdump", "dnsmasq", "udhcpc", "dhclient", "curl", "tftp")
	site, rack := netns.New(t), netns.New(t)
	netns.Veth(site, "eth0", rack, "eth0")
	site.Address("eth0", "192.0.2.1/24")
	mac := rack.Interface("eth0").HardwareAddr.String()

	root := t.TempDir()
	image := bytes.Repeat([]byte("boot loader "), 6000)
	if err := os.WriteFile(filepath.Join(root, "snponly.efi"), image, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	foreigndhcp.Dnsmasq.Start(t, site, "no-ping\nenable-tftp\ntftp-root="+root+"\ndhcp-boot=snponly.efi")
	serveHTTP(t, site, "192.0.2.1:7080", image)
	file := startTcpdump(t, site)

	ctx, cancel := netns.Patience(t)
	defer cancel()
	run := func(args ...string) {
		t.Helper()
		if out, err := rack.Try(ctx, args...); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	run("udhcpc", "-f", "-n", "-q", "-t", "10", "-T", "2", "-i", "eth0", "-V", "PXEClient:Arch:00007:UNDI:003016", "-x", "0x5d:0007", "-s", "/bin/true")
	dir := t.TempDir()
	conf := filepath.Join(dir, "conf")
	if err := os.WriteFile(conf, []byte("timeout 50;\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	run("dhclient", "-1", "-v", "-sf", "/bin/true", "-cf", conf, "-lf", filepath.Join(dir, "lease"), "-pf", filepath.Join(dir, "pid"), "eth0")
	if pid, err := os.ReadFile(filepath.Join(dir, "pid")); err == nil {
		_, _ = rack.Try(ctx, "kill", strings.TrimSpace(string(pid))) // it has gone into the background
	}
	// The clients' scripts set nothing; the address is the one that udhcpc asked for last.
	told := await(t, ctx, file, "ACK of 192.0.2.1: ")
	_, rest, _ := strings.Cut(told, "ACK of 192.0.2.1: ")
	address, _, _ := strings.Cut(rest, ",")
	rack.Address("eth0", address+"/24")
	run("curl", "-sf", "-o", filepath.Join(dir, "got"), "--tftp-blksize", "1024", "tftp://192.0.2.1/snponly.efi")
	_, _ = rack.Try(ctx, "tftp", "-m", "binary", "192.0.2.1", "-c", "get", "no-such-file.efi", filepath.Join(dir, "none")) // it fails, and may say so
	run("curl", "-sf", "-o", filepath.Join(dir, "script"), "http://192.0.2.1:7080/boot.ipxe")
	run("curl", "-sf", "-I", "-o", "/dev/null", "http://192.0.2.1:7080/boot/vmlinuz")
	run("curl", "-s", "-o", "/dev/null", "http://192.0.2.1:7080/no-such-kernel")

	told = await(t, ctx, file, "answers 404 Not Found")
	for _, want := range []string{
		"DHCP: DISCOVER: UEFI x64 (7), PXE, ",
		"DHCP: OFFER of 192.0.2.1: the address " + address + ", boot file snponly.efi on 192.0.2.1",
		"DHCP: REQUEST: takes " + address + " of the server 192.0.2.1",
		"DHCP: DISCOVER: no network boot",
		"TFTP: asks 192.0.2.1 for snponly.efi (",
		"TFTP: 192.0.2.1 agrees for snponly.efi: ",
		fmt.Sprintf("TFTP: the last block of snponly.efi: %d bytes in %d blocks", len(image), len(image)/1024+1),
		"TFTP: error for no-such-file.efi: 192.0.2.1 says ",
		"HTTP: asks 192.0.2.1:7080: GET /boot.ipxe, host 192.0.2.1:7080",
		fmt.Sprintf("HTTP: 192.0.2.1:7080 answers 200 OK, %d bytes", len(image)),
		"HTTP: asks 192.0.2.1:7080: HEAD /boot/vmlinuz",
	} {
		if !strings.Contains(told, mac+" "+want) {
			t.Errorf("not told: %s %s", mac, want)
		}
	}
	capture, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, report := explain(t, capture)
	if len(report.Clients) != 1 {
		t.Fatalf("clients: %+v", report.Clients)
	}
	c := report.Clients[0]
	if c.MAC != mac || c.State != Fail || c.Verdict != "asked 192.0.2.1:7080 for GET /no-such-kernel, and was answered 404" {
		t.Errorf("the verdict: %+v", c)
	}
	if t.Failed() {
		t.Log(told)
	}
}

// startTcpdump captures at an interface eth0 until the test ends, and returns the file.
func startTcpdump(t *testing.T, ns *netns.NS) string {
	t.Helper()
	// tcpdump gives up its privileges for a user that may write nowhere here.
	file := filepath.Join(t.TempDir(), "capture.pcap")
	cmd := exec.Command("tcpdump", "-Z", "root", "-i", "eth0", "-n", "-s", "0", "-U", "--immediate-mode", "-w", file)
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	var heard bytes.Buffer
	buffer := make([]byte, 256)
	for !strings.Contains(heard.String(), "listening on") {
		n, err := said.Read(buffer)
		heard.Write(buffer[:n])
		if err != nil {
			t.Fatalf("tcpdump: %v\n%s", err, heard.String())
		}
	}
	return file
}

// await reads a capture that is being written until it tells of something.
func await(t *testing.T, ctx context.Context, file, want string) string {
	t.Helper()
	for {
		if capture, err := os.ReadFile(file); err == nil && len(capture) > 0 {
			var told strings.Builder
			_, err := Explain(bytes.NewReader(capture), func(e Event) { fmt.Fprintf(&told, "%s %s: %s\n", e.Client, e.Protocol, e.Text) })
			if err == nil && strings.Contains(told.String(), want) {
				return told.String()
			}
			if ctx.Err() != nil {
				t.Logf("it tells: %v\n%s", err, told.String())
			}
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the capture never tells %q", want)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func serveHTTP(t *testing.T, ns *netns.NS, address string, content []byte) {
	t.Helper()
	var listener net.Listener
	if err := ns.Do(func() (err error) { listener, err = net.Listen("tcp4", address); return err }); err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/no-such") {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		if r.Method == http.MethodGet {
			_, _ = w.Write(content)
		}
	})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Close()
		<-served
	})
}
