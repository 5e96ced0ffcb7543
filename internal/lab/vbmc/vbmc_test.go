package vbmc_test

import (
	"context"
	"encoding/pem"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"coldrack.dev/internal/lab/vbmc"
	"coldrack.dev/test/require"
)

// machine is one that only remembers.
type machine struct {
	mu   sync.Mutex
	on   bool
	from vbmc.Device
	done []string
}

func (m *machine) did(what string, f func()) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done = append(m.done, what)
	f()
	return nil
}

func (m *machine) On() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.on
}
func (m *machine) PowerOn(_ context.Context, from vbmc.Device) error {
	return m.did("on from "+string(from), func() { m.on, m.from = true, from })
}
func (m *machine) PowerOff(context.Context) error { return m.did("off", func() { m.on = false }) }
func (m *machine) Shutdown(context.Context) error { return m.did("button", func() { m.on = false }) }
func (m *machine) Reset(context.Context) error    { return m.did("reset", func() {}) }

// serve returns where a service is, and the file of its certificate.
func serve(t *testing.T, machines ...*machine) (address, certificate string, service *vbmc.Service) {
	t.Helper()
	o := vbmc.Options{Username: "operator", Password: "s3cret"}
	for i, m := range machines {
		name := []string{"lab-1", "lab-2"}[i]
		o.Systems = append(o.Systems, vbmc.System{Name: name, Manufacturer: "Maker", Model: "Model 7", Serial: "SN-" + name, UUID: "12345678-9abc-def0-1234-56789abcdef0",
			MACs: []string{"52:54:00:00:00:01"}, Machine: m})
	}
	service = vbmc.New(o)
	server := httptest.NewTLSServer(service)
	t.Cleanup(server.Close)
	certificate = filepath.Join(t.TempDir(), "bmc.pem")
	if err := os.WriteFile(certificate, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return server.Listener.Addr().String(), certificate, service
}

// DMTF's own client takes it for a Redfish service.
func TestRedfishtool(t *testing.T) {
	require.Need(t, "redfishtool")
	m := &machine{}
	address, _, service := serve(t, m)
	tool := func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), "redfishtool", append([]string{"-r", address, "-u", "operator", "-p", "s3cret", "-S", "Always", "-A", "Session"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("redfishtool %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	if out := tool("Systems", "-1"); !strings.Contains(out, `"PowerState": "Off"`) || !strings.Contains(out, "SN-lab-1") {
		t.Errorf("Systems: %s", out)
	}
	tool("Systems", "-1", "setBootOverride", "Once", "Pxe")
	tool("Systems", "-1", "reset", "On")
	tool("Systems", "-1", "reset", "ForceRestart")
	tool("Systems", "-1", "reset", "GracefulShutdown")
	if got := strings.Join(m.done, ", "); got != "on from Pxe, reset, button" {
		t.Errorf("the machine was told: %s", got)
	}
	if service.Sessions() != 0 {
		t.Errorf("%d sessions are left", service.Sessions())
	}
}

const sushyProgram = `
import sys, sushy
s = sushy.Sushy("https://" + sys.argv[1], username="operator", password="s3cret")
systems = s.get_system_collection().get_members()
one = [x for x in systems if x.identity == "lab-2"][0]
print(len(systems), one.power_state, one.serial_number, sorted(one.ethernet_interfaces.summary))
one.set_system_boot_options(target=sushy.BOOT_SOURCE_TARGET_HDD, enabled=sushy.BOOT_SOURCE_ENABLED_ONCE)
one.reset_system(sushy.RESET_ON)
one.refresh()
print(one.power_state)
one.reset_system(sushy.RESET_FORCE_OFF)
`

// OpenStack's client does so, too, with two machines.
func TestSushy(t *testing.T) {
	const python = "/usr/bin/python3" // Debian's, for which python3-sushy installs it
	if exec.CommandContext(t.Context(), python, "-c", "import sushy").Run() != nil {
		require.Need(t, "sushy") // a library: no program has this name
	}
	first, second := &machine{}, &machine{}
	address, certificate, _ := serve(t, first, second)
	command := exec.CommandContext(t.Context(), python, "-W", "ignore", "-c", sushyProgram, address)
	command.Env = append(os.Environ(), "REQUESTS_CA_BUNDLE="+certificate)
	out, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if got := string(out); !strings.Contains(got, "2 PowerState.OFF SN-lab-2 ['52:54:00:00:00:01']") || !strings.Contains(got, "\nPowerState.ON\n") {
		t.Errorf("%s", got)
	}
	if got := strings.Join(second.done, ", "); got != "on from Hdd, off" || len(first.done) != 0 {
		t.Errorf("the machines were told: %v, %s", first.done, got)
	}
}
