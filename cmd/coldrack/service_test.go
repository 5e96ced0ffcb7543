package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

const serviceUnit = "../../packaging/coldrack.service"

func readUnit(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(serviceUnit)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestServiceUnitIsAccepted(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("no systemd here")
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "coldrack.service")
	text := strings.Replace(readUnit(t), "ExecStart=/usr/bin/coldrack", "ExecStart="+program, 1)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(analyze, "verify", "--man=no", path).CombinedOutput()
	if err != nil || len(bytes.TrimSpace(out)) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// TestServiceCapabilitiesSuffice runs the whole server, boot services included, with what the unit grants
// and nothing else.
func TestServiceCapabilitiesSuffice(t *testing.T) {
	require.Need(t, "netns", "setpriv")
	match := regexp.MustCompile(`(?m)^CapabilityBoundingSet=(.*)$`).FindStringSubmatch(readUnit(t))
	if match == nil {
		t.Fatal("the unit bounds no capabilities")
	}
	granted := strings.Fields(match[1])
	t.Run("with what the unit grants it is ready", func(t *testing.T) {
		out, ready := serveWith(t, granted)
		if !ready {
			t.Errorf("not ready:\n%s", out)
		}
	})
	for _, missing := range granted {
		t.Run("without "+missing+" it says so", func(t *testing.T) {
			less := slices.DeleteFunc(slices.Clone(granted), func(name string) bool { return name == missing })
			out, ready := serveWith(t, less)
			if ready || !strings.Contains(out, missing) {
				t.Errorf("ready: %v; want it to end with an error that names %s:\n%s", ready, missing, out)
			}
		})
	}
}

// serveWith starts the server in a network of its own. It returns when the server has told the service
// manager that it is ready and serves DHCP and TFTP, or has ended, with what it wrote.
func serveWith(t *testing.T, capabilities []string) (out string, ready bool) {
	t.Helper()
	server, rack := netns.New(t), netns.New(t)
	netns.Veth(server, "eth0", rack, "eth0")
	server.Address("eth0", "10.20.0.1/24")
	dir := t.TempDir()
	manifest := filepath.Join(dir, "subnet.yaml")
	subnet := "apiVersion: coldrack.dev/v1alpha1\nkind: Subnet\nmetadata: {name: rack}\nspec: {cidr: 10.20.0.0/24, discovery: 10.20.0.100-10.20.0.200}\n"
	if err := os.WriteFile(manifest, []byte(subnet), 0o644); err != nil {
		t.Fatal(err)
	}
	// The path of a Unix socket is short, that of a test's folder need not be.
	short, err := os.MkdirTemp("", "coldrack")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(short)
	socket := filepath.Join(short, "notify")
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()

	set := []string{"-all"}
	for _, name := range capabilities {
		set = append(set, "+"+strings.ToLower(strings.TrimPrefix(name, "CAP_")))
	}
	list := strings.Join(set, ",")
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	cmd := exec.CommandContext(ctx, "setpriv", "--bounding-set", list, "--inh-caps", list, "--ambient-caps", list, "--no-new-privs",
		"coldrack", "serve", "--data-dir", filepath.Join(dir, "data"), "--manifests", manifest, "--interfaces", "eth0")
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+socket)
	var text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &text, &text
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	if err := server.Start(cmd); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	ready = toldReady(notify, ended) && serves(server, ended)
	cancel()
	<-ended
	return text.String(), ready
}

// toldReady waits for sd_notify's READY=1.
func toldReady(notify *net.UnixConn, ended <-chan struct{}) bool {
	buffer := make([]byte, 100)
	for {
		_ = notify.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		n, err := notify.Read(buffer)
		if err == nil && strings.Contains(string(buffer[:n]), "READY=1") {
			return true
		}
		select {
		case <-ended:
			return false
		default:
		}
	}
}

// serves waits until the kernel shows the sockets that need privileges: a packet socket, port 67, port 69.
func serves(ns *netns.NS, ended <-chan struct{}) bool {
	for {
		udp := ns.Run("cat", "/proc/net/udp", "/proc/net/udp6")
		packets := strings.Count(ns.Run("cat", "/proc/net/packet"), "\n")
		if strings.Contains(udp, ":0043 ") && strings.Contains(udp, ":0045 ") && packets > 1 {
			return true
		}
		select {
		case <-ended:
			return false
		case <-time.After(50 * time.Millisecond):
		}
	}
}
