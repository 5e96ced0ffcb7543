package daemon

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/netboot/boot"
	"coldrack.dev/internal/netboot/dhcp"
	"coldrack.dev/internal/netboot/httpboot"
)

const ownQuirks = `quirks:
- name: own-drivers
  seen: its UEFI driver stops
  match: {mac: "52:54:00:00:01:*"}
  remedy: {ownDrivers: true, smallReply: true, broadcast: true}
- name: no-boot
  seen: it is a printer
  match: {vendorClass: "PXEClient*Printer"}
  remedy: {noBootFile: true}
- name: lies
  seen: it says BIOS, and is UEFI
  match: {vendorClass: "PXEClient:Liar"}
  remedy: {architecture: 7}
- name: screen
  seen: a blank screen
  match: {manufacturer: "acme*", product: "X?"}
  remedy: {kernelArgs: [nomodeset]}
`

// Each remedy does what it says.
func TestRemedies(t *testing.T) {
	file := filepath.Join(t.TempDir(), "quirks.yaml")
	check(t, os.WriteFile(file, []byte(ownQuirks), 0o644))
	table, err := readQuirks(file)
	check(t, err)
	s := newChainStage()
	s.quirks = table
	pxe := func(change func(*dhcp.Query)) dhcp.Query {
		q := dhcp.Query{MAC: "52:54:00:00:00:01", PXE: true, VendorClass: "PXEClient:Arch:00000:UNDI:002001", Arch: boot.ArchBIOS}
		change(&q)
		return q
	}
	for name, test := range map[string]struct {
		client dhcp.Query
		file   string
		shape  dhcp.Shape
	}{
		"any BIOS":                   {pxe(func(*dhcp.Query) {}), "undionly.kpxe", dhcp.Shape{}},
		"no architecture":            {pxe(func(q *dhcp.Query) { q.Arch = dhcp.ArchUnknown }), "undionly.kpxe", dhcp.Shape{}},
		"UEFI x64":                   {pxe(func(q *dhcp.Query) { q.Arch = boot.ArchUEFI64 }), "snponly.efi", dhcp.Shape{}},
		"UEFI x64 by its old number": {pxe(func(q *dhcp.Query) { q.Arch = boot.ArchUEFI64Old }), "snponly.efi", dhcp.Shape{}},
		"another architecture":       {pxe(func(q *dhcp.Query) { q.VendorClass = "PXEClient:Liar" }), "snponly.efi", dhcp.Shape{}},
		"drivers of iPXE":            {pxe(func(q *dhcp.Query) { q.MAC, q.Arch = "52:54:00:00:01:07", boot.ArchUEFI64 }), "ipxe.efi", dhcp.Shape{Small: true, Broadcast: true}},
		"by HTTP": {pxe(func(q *dhcp.Query) {
			q.MAC, q.Arch, q.PXE, q.HTTP = "52:54:00:00:01:08", boot.ArchHTTPUEFI64, false, true
		}), "http://10.20.0.2:7080/ipxe.efi", dhcp.Shape{Small: true, Broadcast: true}},
		"its own iPXE replaced by one": {pxe(func(q *dhcp.Query) {
			q.MAC, q.Arch, q.IPXE, q.Told = "52:54:00:00:01:09", boot.ArchUEFI64, true, dhcp.IPXE{Features: true}
		}), "ipxe.efi", dhcp.Shape{Small: true, Broadcast: true}},
		"no boot file":   {pxe(func(q *dhcp.Query) { q.VendorClass = "PXEClient Printer" }), "", dhcp.Shape{}},
		"a Raspberry Pi": {pxe(func(q *dhcp.Query) { q.MAC = "b8:27:eb:00:00:01" }), "", dhcp.Shape{}},
	} {
		if got := s.boots(t, test.client); got != test.file {
			t.Errorf("%s: told %q, want %q", name, got, test.file)
		}
		if got := s.shape(test.client); got != test.shape {
			t.Errorf("%s: shape %+v, want %+v", name, got, test.shape)
		}
	}
}

func TestKernelArgumentsOfQuirks(t *testing.T) {
	r := newMenuRig(t, v1alpha1.BootMenu{}, "")
	file := filepath.Join(t.TempDir(), "quirks.yaml")
	check(t, os.WriteFile(file, []byte(ownQuirks), 0o644))
	var err error
	r.booter.quirks, err = readQuirks(file)
	check(t, err)
	for product, want := range map[string]bool{"X1": true, "X12": false, "": false} {
		script, err := r.booter.BootScript(t.Context(), httpboot.Query{MACs: []string{menuMAC}, Arch: "x86_64", Platform: "efi", Manufacturer: "ACME Corp.", Product: product,
			Local: netip.MustParseAddrPort("10.20.0.2:7080"), Remote: netip.MustParseAddrPort("10.20.0.9:1")})
		if err != nil || !strings.Contains(script, "kernel ") || strings.Contains(script, " nomodeset ") != want {
			t.Errorf("product %q: %v\n%s", product, err, script)
		}
	}
}

func TestAFileOfQuirksThatIsWrong(t *testing.T) {
	cfg := testConfig(t)
	cfg.Quirks = filepath.Join(t.TempDir(), "quirks.yaml")
	wantAll(t, refused(t, cfg), "quirks: open "+cfg.Quirks, "no such file")
	check(t, os.WriteFile(cfg.Quirks, []byte("quirks:\n- name: a\n  seen: b\n  match: {mac: c*}\n  remedy: {reboot: true}\n"), 0o644))
	wantAll(t, refused(t, cfg), cfg.Quirks+": line 5: quirks[0].remedy.reboot: there is no such key")
}
