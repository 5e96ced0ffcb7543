package main

import (
	"context"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"

	"coldrack.dev/internal/lab/vbmc"
)

// virtualMachine is what a virtual BMC of a script switches.
type virtualMachine struct {
	mu sync.Mutex
	on bool
}

func (m *virtualMachine) set(on bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.on = on
	return nil
}
func (m *virtualMachine) On() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.on
}
func (m *virtualMachine) PowerOn(context.Context, vbmc.Device) error { return m.set(true) }
func (m *virtualMachine) PowerOff(context.Context) error             { return m.set(false) }
func (m *virtualMachine) Shutdown(context.Context) error             { return m.set(false) }
func (m *virtualMachine) Reset(context.Context) error                { return nil }

// startBMC starts a BMC with machines, and writes a manifest of machines that name it: startbmc FILE MACHINE...
func startBMC(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: startbmc FILE MACHINE...")
	}
	o := vbmc.Options{Username: "operator", Password: "s3cret"}
	for i, name := range args[1:] {
		o.Systems = append(o.Systems, vbmc.System{Name: name, Manufacturer: "Maker", Model: "Model 7", Serial: "SN-" + name, MACs: []string{fmt.Sprintf("52:54:00:00:00:%02x", i+1)}, Machine: &virtualMachine{}})
	}
	server := httptest.NewTLSServer(vbmc.New(o))
	ts.Defer(server.Close)
	ts.Setenv("BMC", server.Listener.Addr().String())
	var text strings.Builder
	for i, name := range args[1:] {
		fmt.Fprintf(&text, "---\napiVersion: coldrack.dev/v1alpha1\nkind: Machine\nmetadata: {name: %s}\nspec:\n  location: {rack: r1, unit: %d}\n  bmc: {address: %q, system: %s}\n",
			name, len(args)-1-i, server.Listener.Addr().String(), name)
	}
	ts.Check(writeText(filepath.Join(ts.Getenv("WORK"), args[0]), text.String()))
}

func writeText(path, text string) error { return os.WriteFile(path, []byte(text), 0o600) }
