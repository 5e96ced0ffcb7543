package power

import (
	"context"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"coldrack.dev/internal/lab/vbmc"
	"coldrack.dev/internal/machine/bmc"
	"coldrack.dev/internal/machine/racksheet"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

// off is a machine that nobody switches.
type off struct{}

func (off) On() bool                                   { return false }
func (off) PowerOn(context.Context, vbmc.Device) error { return nil }
func (off) PowerOff(context.Context) error             { return nil }
func (off) Shutdown(context.Context) error             { return nil }
func (off) Reset(context.Context) error                { return nil }

// What real Redfish services tell of their machines becomes a sheet in the order of their addresses, and that sheet the plan of which
// MAC gets which address.
func TestAScanBecomesAnIPPlan(t *testing.T) {
	var found []peoplewire.BMC
	for i := range 3 {
		server := httptest.NewTLSServer(vbmc.New(vbmc.Options{Username: "u", Password: "p", Systems: []vbmc.System{{
			Name: "1", Manufacturer: "Maker", Model: "Model 7", Serial: fmt.Sprintf("SN%d", i), MACs: []string{fmt.Sprintf("52:54:00:00:0%d:01", i), fmt.Sprintf("52:54:00:00:0%d:02", i)}, Machine: off{}}}}))
		defer server.Close()
		seen, ok := bmc.Look(t.Context(), server.Listener.Addr().String(), bmc.Target{Username: "u", Password: "p"}, bmc.Options{})
		if !ok || seen.Problem != "" {
			t.Fatalf("BMC %d: %v %s", i, ok, seen.Problem)
		}
		p := seen.Probe
		// The addresses of a management network, in an order in which nobody wants them.
		found = append(found, peoplewire.BMC{Address: fmt.Sprintf("10.0.9.%d", 30-10*i), Protocol: string(seen.Protocol), System: p.System, Systems: p.Systems, Manufacturer: p.Inventory.Manufacturer,
			Product: p.Inventory.Model, Serial: p.Inventory.Serial, MACs: p.Inventory.MACs})
	}
	found = append(found, peoplewire.BMC{Address: "10.0.9.9", Protocol: "redfish", Problem: "does not accept the password"},
		peoplewire.BMC{Address: "10.0.9.40", Protocol: "redfish", Systems: []string{"blade1", "blade2"}, System: "blade1", Serial: "B1"})
	SortFound(found)
	sheet, err := FoundSheet(found, "bmc-factory")
	if err != nil {
		t.Fatal(err)
	}
	// A person fills in the rack, and leaves the BMC out that told nothing.
	text := string(sheet)
	text = strings.Replace(text, ",,,,10.0.9.9,", "#,,,,10.0.9.9,", 1)
	for i, address := range []string{"10.0.9.10", "10.0.9.20", "10.0.9.30"} {
		text = strings.Replace(text, ",,,,"+address+",", fmt.Sprintf("a1,%d,,,%s,", i+1, address), 1)
	}
	grids, err := racksheet.Read("scan.csv", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	changes, _, err := racksheet.Plan(grids, racksheet.Settings{NameTemplate: "node-{{pad 3 .Sequence}}", AddressTemplate: `{{ip "10.12.0.9" .Sequence}}`}, racksheet.World{})
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	var got []string
	for _, c := range changes {
		m := c.After
		got = append(got, fmt.Sprintf("%s %s %s %s %s/%d %s %s", m.Name, m.Spec.Network.Address, m.Spec.Identifiers.MACs, m.Spec.Identifiers.Serial, m.Spec.Location.Rack, m.Spec.Location.Unit, m.Spec.BMC.Address, m.Spec.BMC.CredentialsSecret))
	}
	want := []string{
		"node-001 10.12.0.10 [52:54:00:00:02:01 52:54:00:00:02:02] SN2 a1/1 10.0.9.10 bmc-factory",
		"node-002 10.12.0.11 [52:54:00:00:01:01 52:54:00:00:01:02] SN1 a1/2 10.0.9.20 bmc-factory",
		"node-003 10.12.0.12 [52:54:00:00:00:01 52:54:00:00:00:02] SN0 a1/3 10.0.9.30 bmc-factory",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s\nof\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"), text)
	}
}
