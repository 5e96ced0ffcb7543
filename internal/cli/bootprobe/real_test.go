package bootprobe

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coldrack.dev/test/foreigndhcp"
	netnstest "coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

// report probes until what is wanted is seen: servers may just be starting, and a loaded machine is slow.
func report(t *testing.T, machine *netnstest.NS, want func(Report) error) Report {
	t.Helper()
	patience, stop := netnstest.Patience(t)
	defer stop()
	for last := ""; ; {
		r, err := Run(patience, Options{Interface: "eth0", Inside: machine.Do, Patience: time.Second, Quiet: 400 * time.Millisecond})
		if err == nil {
			err = want(r)
		}
		if err == nil {
			return r
		}
		if patience.Err() != nil {
			t.Fatalf("%v; before: %s", err, last)
		}
		last = fmt.Sprintf("%v\n%+v", err, r)
	}
}

// verdicts wants states and verdicts of kinds of clients.
func verdicts(r Report, want map[string]string) error {
	for _, c := range r.Clients {
		state, text, _ := strings.Cut(want[c.Kind], " ")
		if _, ok := want[c.Kind]; ok && (string(c.State) != state || !strings.Contains(c.Verdict, text)) {
			return fmt.Errorf("%s: %s, %s; want %s", c.Kind, c.State, c.Verdict, want[c.Kind])
		}
	}
	return nil
}

// dnsmasq alone, once without and once with something to boot. The machine that asks has no address: it takes a lease, and gives it back.
func TestDnsmasqAlone(t *testing.T) {
	require.Need(t, "netns", "dnsmasq")
	site, machine := netnstest.New(t), netnstest.New(t)
	netnstest.Veth(site, "eth0", machine, "eth0")
	site.Address("eth0", "192.0.2.2/24")
	files := t.TempDir()
	for name, content := range map[string][]byte{"pxelinux.0": bytes.Repeat([]byte{0xea, 1, 2, 3}, 10_000), "wrong.efi": program(0xaa64, false)} {
		if err := os.WriteFile(filepath.Join(files, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}

	t.Run("without a boot file", func(t *testing.T) {
		dir := foreigndhcp.Dnsmasq.Start(t, site, "no-ping")
		r := report(t, machine, func(r Report) error {
			if len(r.Servers) != 1 || len(r.Servers[0].Answers) != 1+len(Firmwares()) {
				return fmt.Errorf("servers: %+v", r.Servers)
			}
			return verdicts(r, map[string]string{"BIOS PXE": "fail not Coldrack: 192.0.2.2 gives addresses", "UEFI arm64 HTTP": "fail not Coldrack", "iPXE on UEFI x64": "fail not Coldrack"})
		})
		if len(r.Servers[0].Gives) != 1 || len(r.Servers[0].Boots) != 0 {
			t.Errorf("servers: %+v", r.Servers)
		}
		if !strings.HasPrefix(r.MAC, "02:c0:1d:") {
			t.Errorf("asked with %s", r.MAC)
		}
		leftNothing(t, machine, filepath.Join(dir, "leases"))
	})
	t.Run("with files of its own", func(t *testing.T) {
		dir := foreigndhcp.Dnsmasq.Start(t, site, "no-ping\nenable-tftp\ntftp-root="+files+"\n"+
			"dhcp-match=set:bios,option:client-arch,0\ndhcp-match=set:uefi,option:client-arch,7\ndhcp-match=set:arm,option:client-arch,11\ndhcp-userclass=set:ipxe,iPXE\n"+
			"dhcp-boot=tag:bios,tag:!ipxe,pxelinux.0\ndhcp-boot=tag:uefi,tag:!ipxe,wrong.efi\ndhcp-boot=tag:arm,nothing.efi\ndhcp-boot=tag:ipxe,http://192.0.2.2:1/boot.ipxe")
		r := report(t, machine, func(r Report) error {
			return verdicts(r, map[string]string{
				"BIOS PXE":         "warn 192.0.2.2: loads pxelinux.0 (40 kB), which is not Coldrack's",
				"UEFI x64 PXE":     "fail stops at the loader tftp://192.0.2.2/wrong.efi: this machine cannot start it: it is an EFI program for arm64",
				"UEFI arm64 PXE":   "fail the TFTP server refuses",
				"UEFI x64 HTTP":    "warn no boot file for this kind",
				"iPXE on BIOS":     "fail the connection is refused",
				"iPXE on UEFI x64": "fail the connection is refused",
			})
		})
		if !r.Leased || !r.Address.IsValid() || r.Address.String()[:9] != "192.0.2.1" {
			t.Errorf("fetched from %v, leased %v", r.Address, r.Leased)
		}
		leftNothing(t, machine, filepath.Join(dir, "leases"))
	})
}

// leftNothing wants no lease in dnsmasq's file, and no address on the interface.
func leftNothing(t *testing.T, machine *netnstest.NS, leases string) {
	t.Helper()
	patience, stop := netnstest.Patience(t)
	defer stop()
	for { // the RELEASE may be under way
		text, err := os.ReadFile(leases)
		if err == nil && len(bytes.TrimSpace(text)) == 0 {
			break
		}
		if patience.Err() != nil {
			t.Fatalf("leases stay behind: %q, %v", text, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if shown := machine.Run("ip", "-4", "-o", "addr", "show", "dev", "eth0"); strings.TrimSpace(shown) != "" {
		t.Errorf("an address stays behind: %s", shown)
	}
}

func TestNobodyAnswers(t *testing.T) {
	site, machine := netnstest.New(t), netnstest.New(t)
	netnstest.Veth(site, "eth0", machine, "eth0")
	r, err := Run(t.Context(), Options{Interface: "eth0", Inside: machine.Do, Patience: 50 * time.Millisecond, Quiet: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Servers) != 0 || len(r.Clients) != len(Firmwares()) {
		t.Errorf("%+v", r)
	}
	for _, c := range r.Clients {
		if c.State != Fail || !strings.HasPrefix(c.Verdict, "nobody answers") {
			t.Errorf("%s: %s, %s", c.Kind, c.State, c.Verdict)
		}
	}
	for device, want := range map[string]string{"eth7": "interface eth7", "lo": "no Ethernet"} {
		if _, err := Run(t.Context(), Options{Interface: device, Inside: machine.Do}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", device, err)
		}
	}
	site.Run("ip", "link", "set", "eth0", "down")
	patience, stop := netnstest.Patience(t)
	defer stop()
	for { // the kernel notices a while later
		_, err := Run(t.Context(), Options{Interface: "eth0", Inside: machine.Do, Patience: time.Millisecond, Quiet: time.Millisecond})
		if err != nil && strings.Contains(err.Error(), "has no link") {
			break
		}
		if patience.Err() != nil {
			t.Fatalf("without a link: %v", err)
		}
	}
}

// What HTTP servers do that firmware does not take.
func TestFetchByHTTP(t *testing.T) {
	mux := http.NewServeMux()
	file := bytes.Repeat([]byte("0123456789abcdef"), 8192)
	mux.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "file", time.Time{}, bytes.NewReader(file))
	})
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/file", http.StatusFound) })
	mux.HandleFunc("/chunked", func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write(file)
		w.(http.Flusher).Flush()
	})
	mux.HandleFunc("/cut", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(file)))
		if r.Method == http.MethodGet {
			_, _ = w.Write(file[:1000])
		}
	})
	mux.HandleFunc("/busy", func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "the server cannot tell now, ask again", http.StatusServiceUnavailable)
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	home, _ := net.InterfaceByName("lo")
	own, _, err := addressesOf(home)
	if err != nil {
		t.Fatal(err)
	}
	n := network{inside: func(fn func() error) error { return fn() }, device: "lo", own: own}
	firmware, ipxe := Firmwares()[2], Firmwares()[6]
	for _, test := range []struct {
		path  string
		f     Firmware
		whole bool
		want  string
	}{
		{"/file", firmware, true, "131072 of 131072"},
		{"/file", ipxe, false, "65536 of 131072"},
		{"/moved", ipxe, true, "131072 of 131072"},
		{"/moved", firmware, true, "302 Found"},
		{"/chunked", firmware, true, "no Content-Length"},
		{"/chunked", ipxe, true, "131072 of -1"},
		{"/cut", ipxe, true, "stops after 1000 bytes"},
		{"/busy", ipxe, true, "503 Service Unavailable: the server cannot tell now"},
		{"/nothing", ipxe, true, "404 Not Found"},
	} {
		got, err := n.fetch(context.Background(), test.f, server.URL+test.path, test.whole)
		outcome := fmt.Sprintf("%d of %d", got.read, got.size)
		if err != nil {
			outcome = err.Error()
		}
		if !strings.Contains(outcome, test.want) {
			t.Errorf("%s as %s: %s, want %s", test.path, test.f.Name, outcome, test.want)
		}
	}
	closed := server.URL
	server.Close()
	if _, err := n.fetch(context.Background(), ipxe, closed+"/file", true); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a closed port: %v", err)
	}
}
