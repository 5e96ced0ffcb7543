package bmc_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"coldrack.dev/internal/machine/bmc"
)

func TestScanBounds(t *testing.T) {
	err := bmc.Scan(t.Context(), netip.MustParsePrefix("10.0.0.0/8"), bmc.Target{}, bmc.Options{}, 1, nil)
	if err == nil || !strings.Contains(err.Error(), "more than 4096 addresses") {
		t.Error(err)
	}
}

// Real BMCs, each at its own port: what everybody is told, and what only those who log in are.
func TestLook(t *testing.T) {
	each(t, "tells what answers at an address", func(t *testing.T, r *rig) {
		o := bmc.Options{Request: 10 * time.Second}
		open, ok := bmc.Look(t.Context(), r.target.Address, bmc.Target{}, o)
		if !ok || open.Protocol != r.target.Protocol || open.Probe.Inventory.Serial != "" || open.Problem != "" {
			t.Errorf("without credentials: %+v, %t", open, ok)
		}
		known, ok := bmc.Look(t.Context(), r.target.Address, bmc.Target{Username: "operator", Password: "s3cret"}, o)
		if !ok || known.Probe.Inventory.Serial != "SN-0042" || known.Problem != "" {
			t.Errorf("with credentials: %+v, %t", known, ok)
		}
		refused, ok := bmc.Look(t.Context(), r.target.Address, bmc.Target{Username: "operator", Password: "wrong"}, o)
		if !ok || !strings.Contains(refused.Problem, "does not accept user") {
			t.Errorf("with a wrong password: %+v, %t", refused, ok)
		}
		r.gone()
		if found, ok := bmc.Look(t.Context(), r.target.Address, bmc.Target{}, o); ok {
			t.Errorf("nothing is there: %+v", found)
		}
	})
}
