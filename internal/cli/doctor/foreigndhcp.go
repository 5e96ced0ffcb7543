package doctor

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"coldrack.dev/internal/netboot/boot"
)

// ForeignServers are the DHCP servers for which ForeignDHCP knows the lines.
func ForeignServers() []string { return []string{"isc", "kea", "dnsmasq", "windows", "cisco"} }

// firstStages are what the firmwares load from a boot server.
type firstStages struct {
	// Server is the boot server's address, and URL its HTTP service, without a slash at the end.
	Server netip.Addr
	URL    string
	// BIOS and UEFI are names for TFTP, HTTP and Script URLs.
	BIOS, UEFI, HTTP, Script string
}

// stagesOf asks the same function that answers our own DHCP.
func stagesOf(server netip.Addr, port int) firstStages {
	s := firstStages{Server: server, URL: "http://" + netip.AddrPortFrom(server, uint16(port)).String()}
	s.BIOS = boot.ChooseFirstStage(boot.FirstStageRequest{Arch: boot.ArchBIOS}).File
	s.UEFI = boot.ChooseFirstStage(boot.FirstStageRequest{Arch: boot.ArchUEFI64}).File
	s.HTTP = s.URL + "/" + boot.ChooseFirstStage(boot.FirstStageRequest{Arch: boot.ArchHTTPUEFI64, HTTP: true}).File
	s.Script = s.URL + "/" + boot.ChooseFirstStage(boot.FirstStageRequest{Arch: boot.ArchBIOS, IPXE: true}).File
	return s
}

// ForeignDHCP gives the lines that make another DHCP server say what machines boot from a boot server with that address and port of HTTP.
func ForeignDHCP(kind string, server netip.Addr, port int) (string, error) {
	forms := map[string]func(firstStages) string{"isc": iscLines, "kea": keaLines, "dnsmasq": dnsmasqLines, "windows": windowsLines, "cisco": ciscoLines}
	form, ok := forms[kind]
	switch {
	case !ok:
		return "", fmt.Errorf("%q is no DHCP server that this program knows; want one of %s", kind, strings.Join(ForeignServers(), ", "))
	case !server.Is4():
		return "", fmt.Errorf("%s is no IPv4 address; DHCPv4 cannot name it as a boot server", server)
	}
	return form(stagesOf(server, port)), nil
}

func iscLines(s firstStages) string {
	return fmt.Sprintf(`# ISC dhcpd: dhcpd.conf, outside of the subnets or within the one that it is for.
option coldrack-arch code 93 = unsigned integer 16;
if exists user-class and option user-class = "iPXE" {
	filename "%[4]s";
} elsif substring(option vendor-class-identifier, 0, 10) = "HTTPClient" {
	option vendor-class-identifier "HTTPClient";
	filename "%[5]s";
} elsif substring(option vendor-class-identifier, 0, 9) = "PXEClient" {
	next-server %[1]s;
	if option coldrack-arch = 00:07 or option coldrack-arch = 00:09 {
		filename "%[3]s";
	} else {
		filename "%[2]s";
	}
}
`, s.Server, s.BIOS, s.UEFI, s.Script, s.HTTP)
}

func keaLines(s firstStages) string {
	return fmt.Sprintf(`// Kea: kea-dhcp4.conf, within "Dhcp4".
"client-classes": [
  {"name": "coldrack-ipxe", "test": "option[77].hex == 'iPXE'", "boot-file-name": "%[4]s"},
  {"name": "coldrack-http", "test": "not member('coldrack-ipxe') and substring(option[60].hex, 0, 10) == 'HTTPClient'",
   "boot-file-name": "%[5]s", "option-data": [{"name": "vendor-class-identifier", "data": "HTTPClient", "always-send": true}]},
  {"name": "coldrack-uefi", "test": "not member('coldrack-ipxe') and substring(option[60].hex, 0, 9) == 'PXEClient' and (option[93].hex == 0x0007 or option[93].hex == 0x0009)",
   "next-server": "%[1]s", "boot-file-name": "%[3]s"},
  {"name": "coldrack-bios", "test": "not member('coldrack-ipxe') and not member('coldrack-uefi') and substring(option[60].hex, 0, 9) == 'PXEClient'",
   "next-server": "%[1]s", "boot-file-name": "%[2]s"}
],
`, s.Server, s.BIOS, s.UEFI, s.Script, s.HTTP)
}

func dnsmasqLines(s firstStages) string {
	return fmt.Sprintf(`# dnsmasq: dnsmasq.conf
dhcp-userclass=set:coldrack-ipxe,iPXE
dhcp-vendorclass=set:coldrack-http,HTTPClient
dhcp-vendorclass=set:coldrack-pxe,PXEClient
dhcp-match=set:coldrack-uefi,option:client-arch,7
dhcp-match=set:coldrack-uefi,option:client-arch,9
dhcp-boot=tag:coldrack-pxe,tag:!coldrack-uefi,tag:!coldrack-ipxe,%[2]s,,%[1]s
dhcp-boot=tag:coldrack-pxe,tag:coldrack-uefi,tag:!coldrack-ipxe,%[3]s,,%[1]s
dhcp-boot=tag:coldrack-http,tag:!coldrack-ipxe,%[5]s
dhcp-option-force=tag:coldrack-http,tag:!coldrack-ipxe,60,HTTPClient
dhcp-boot=tag:coldrack-ipxe,%[4]s
`, s.Server, s.BIOS, s.UEFI, s.Script, s.HTTP)
}

func windowsLines(s firstStages) string {
	var b strings.Builder
	b.WriteString(`# Windows Server: PowerShell as administrator, on the DHCP server. Set the scope first.
$scope = "10.20.0.0"
Add-DhcpServerv4OptionDefinition -OptionId 60 -Name "Vendor class" -Type String -ErrorAction SilentlyContinue
`)
	order := 0
	policy := func(name, kind, data string, options ...string) {
		order++
		fmt.Fprintf(&b, "Add-DhcpServerv4Class -Name \"Coldrack %[1]s\" -Type %[2]s -Data \"%[3]s\"\n", name, kind, data)
		wildcard := ""
		if kind == "Vendor" {
			wildcard = "*"
		}
		fmt.Fprintf(&b, "Add-DhcpServerv4Policy -Name \"Coldrack %[1]s\" -ScopeId $scope -ProcessingOrder %[2]d -Condition OR -%[3]sClass EQ,\"Coldrack %[1]s%[4]s\"\n", name, order, kind, wildcard)
		for i := 0; i < len(options); i += 2 {
			fmt.Fprintf(&b, "Set-DhcpServerv4OptionValue -ScopeId $scope -PolicyName \"Coldrack %s\" -OptionId %s -Value \"%s\"\n", name, options[i], options[i+1])
		}
	}
	// Of an option that several policies set, the first in order counts.
	policy("iPXE", "User", "iPXE", "67", s.Script)
	policy("UEFI HTTP", "Vendor", "HTTPClient:Arch:00016", "60", "HTTPClient", "67", s.HTTP)
	policy("UEFI x64", "Vendor", "PXEClient:Arch:00007", "66", s.Server.String(), "67", s.UEFI)
	policy("UEFI x64 (9)", "Vendor", "PXEClient:Arch:00009", "66", s.Server.String(), "67", s.UEFI)
	policy("BIOS", "Vendor", "PXEClient:Arch:00000", "66", s.Server.String(), "67", s.BIOS)
	return b.String()
}

// ciscoItem is the boot server type of the menu's only item. Those from 0x8000 are for everyone to use (PXE 2.1, table 2-2).
var ciscoItem = []byte{0x80, 0x00}

// ciscoVendor is option 43 for a server that cannot tell firmwares apart: ask this boot server alone, by unicast on port 4011, without showing a
// menu (PXE 2.1, table 2-1). It answers each firmware as needed. The menu has to be there: without one OVMF gives up (PXE-E21). With it, an iPXE for
// UEFI, which knows no PXE menus, ends as soon as it has been loaded; the iPXE of a BIOS network card goes on.
func ciscoVendor(server netip.Addr) []byte {
	const title = "Coldrack"
	address := server.As4()
	v := []byte{6, 1, 7} // discovery control: no broadcast, no multicast, only servers of the list
	v = append(append(append(v, 8, 7), ciscoItem...), append([]byte{1}, address[:]...)...)
	v = append(append(append(v, 9, byte(3+len(title))), ciscoItem...), append([]byte{byte(len(title))}, title...)...)
	v = append(v, 10, byte(1+len(title)), 0) // prompt timeout 0: the first item at once
	return append(append(v, title...), 255)
}

func ciscoLines(s firstStages) string {
	var words []string
	digits := hex.EncodeToString(ciscoVendor(s.Server))
	for word := range slices.Chunk([]byte(digits), 4) {
		words = append(words, string(word))
	}
	return fmt.Sprintf(`! Cisco IOS, for machines by BIOS only: a pool tells no firmwares apart, so it sends each of them to port 4011 of %[1]s.
! By UEFI, iPXE is loaded so and then stops at this menu ("No more network devices"): such machines need another DHCP server.
! Set the pool's name. Remove "bootfile" and "next-server" from it. Allow udp/4011, udp/69 and tcp/%[2]s to %[1]s.
ip dhcp pool NAME
 option 60 ascii PXEClient
 option 43 hex %[3]s
! Where the router only relays, nothing of this is needed, but below the interface:
!  ip helper-address %[1]s
`, s.Server, s.URL[strings.LastIndex(s.URL, ":")+1:], strings.Join(words, "."))
}
