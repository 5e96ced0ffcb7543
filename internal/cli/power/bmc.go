package power

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/machine/racksheet"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

// SortFound orders BMCs by address, as numbers.
func SortFound(found []peoplewire.BMC) {
	slices.SortFunc(found, func(a, b peoplewire.BMC) int {
		x, errX := netip.ParseAddr(a.Address)
		y, errY := netip.ParseAddr(b.Address)
		if errX != nil || errY != nil {
			return cmp.Compare(a.Address, b.Address)
		}
		return x.Compare(y)
	})
}

// FoundTable shows what a scan found.
func FoundTable(found []peoplewire.BMC) *cli.Table {
	t := &cli.Table{Header: []string{"ADDRESS", "KIND", "BMC", "MACHINE", "SERIAL", "POWER", "MACS", "PROBLEM"}}
	for _, b := range found {
		kind := b.Protocol + " " + b.Version
		macs := strings.Join(b.MACs[:min(len(b.MACs), 2)], " ")
		if more := len(b.MACs) - 2; more > 0 {
			macs += fmt.Sprintf(" +%d", more)
		}
		t.Add(b.Address, kind, dash(b.Vendor, b.Model), dash(b.Manufacturer, b.Product), dash(b.Serial), dash(b.Power), dash(macs), b.Problem)
	}
	return t
}

// FoundSheet is a rack sheet of what a scan found, in its order: empty columns for a person to fill in, then what the BMCs said. A BMC
// that told neither a serial nor a MAC is a line that an import leaves out, with the reason.
func FoundSheet(found []peoplewire.BMC, secret string) ([]byte, error) {
	table := [][]string{{"rack", "unit", "name", "address", "bmc address", "bmc protocol", "bmc system", "bmc secret", "bmc mac", "serial", "mac", "notes"}}
	for _, b := range found {
		mark, notes := "", dash(b.Manufacturer, b.Product)
		switch {
		case len(b.Systems) > 1:
			mark, notes = "#", fmt.Sprintf("has several systems, of which each needs a line: %s", strings.Join(b.Systems, ", "))
		case b.Serial == "" && len(b.MACs) == 0:
			notes = cmp.Or(b.Problem, "told neither a serial nor MACs; scan with --credentials")
		}
		table = append(table, []string{mark, "", "", "", b.Address, b.Protocol, b.System, secret, b.BMCMAC, b.Serial, strings.Join(b.MACs, " "), notes})
	}
	return racksheet.CSV(table)
}

func dash(parts ...string) string {
	return cmp.Or(strings.TrimSpace(strings.Join(parts, " ")), "-")
}

// Describe shows one BMC in full.
func Describe(w io.Writer, b peoplewire.BMC) error {
	log := ""
	if b.EventLog != nil {
		log = fmt.Sprintf("%d entries", *b.EventLog)
	}
	for _, f := range [][2]string{
		{"Address", b.Address}, {"Protocol", b.Protocol + " " + b.Version}, {"BMC", dash(b.Vendor, b.Model)}, {"Firmware", b.Firmware}, {"Certificate", b.Certificate},
		{"BMC MAC", b.BMCMAC}, {"Quirks", strings.Join(b.Quirks, "; ")}, {"Event log", log},
		{"System", b.System}, {"Systems", strings.Join(b.Systems, ", ")}, {"Power", b.Power}, {"Can do", strings.Join(b.Actions, ", ")}, {"Can boot", strings.Join(b.Boots, ", ")},
		{"Machine", strings.TrimSpace(b.Manufacturer + " " + b.Product)}, {"Serial", b.Serial}, {"UUID", b.UUID}, {"MACs", strings.Join(b.MACs, ", ")}, {"Problem", b.Problem},
	} {
		if f[1] == "" || f[0] == "Systems" && len(b.Systems) < 2 {
			continue
		}
		if _, err := fmt.Fprintf(w, "%-12s %s\n", f[0]+":", f[1]); err != nil {
			return err
		}
	}
	return nil
}
