package bootprobe

import (
	"encoding/binary"
	"fmt"
	"net/url"
	"strings"
	"testing"
)

func TestScripts(t *testing.T) {
	base, _ := url.Parse("http://10.20.0.2:7080/dir/boot.ipxe")
	settings := map[string]string{"mac": "02:c0:1d:00:00:01", "platform": "efi", "buildarch": "x86_64", "ip": "10.20.0.9", "product": "A & B"}
	for name, test := range map[string]struct {
		script string
		want   string
	}{
		"a relative URL with settings": {"#!ipxe\nchain --replace --autofree /boot/ipxe?mac=${netX/mac:hexhyp}&mac=${net1/mac:hexhyp}&p=${product:uristring} ||\necho never", "chain http://10.20.0.2:7080/boot/ipxe?mac=02-c0-1d-00-00-01&mac=&p=A%20%26%20B"},
		"a kernel and initrds":         {"#!ipxe\necho one two\nkernel --name vmlinuz k initrd=i || goto failed\ninitrd --name i i1 || goto failed\ninitrd http://x/i2\nboot || goto failed\n:failed\nshell", "says one two; kernel http://10.20.0.2:7080/dir/k http://10.20.0.2:7080/dir/i1 http://x/i2"},
		"told to wait":                 {"#!ipxe\necho no\ngoto retry\n:failed\necho failed\n:retry\nimgfree ||\nsleep 30\nchain --replace http://x/y || goto retry", "says no; waits"},
		"a condition that holds":       {"#!ipxe\niseq ${platform} efi && goto uefi || goto bios\n:bios\nchain b.lkrn\n:uefi\nchain u.efi", "chain http://10.20.0.2:7080/dir/u.efi"},
		"a condition that does not":    {"#!ipxe\niseq ${platform} pcbios && goto bios ||\nchain u.efi\n:bios\nchain b.lkrn", "chain http://10.20.0.2:7080/dir/u.efi"},
		"a setting that is there":      {"#!ipxe\nset next tftp://x/y\nisset ${next} || set next http://no/\nchain ${next}", "chain tftp://x/y"},
		"a failure ends it":            {"#!ipxe\nisset ${nothing}\nchain x.efi", "stop"},
		"the boot order":               {"#!ipxe\nexit", "boot order"},
		"a menu":                       {"#!ipxe\nmenu Choose\nitem a A\nchoose x && goto ${x}", "person"},
		"a circle":                     {"#!ipxe\n:a\ngoto a", "error the script runs in circles"},
		"a jump into the void":         {"#!ipxe\ngoto b", `error the script jumps to "b", which it lacks`},
	} {
		t.Run(name, func(t *testing.T) {
			did, err := runScript(test.script, base, settings)
			var got []string
			if len(did.says) > 0 {
				got = append(got, "says "+strings.Join(did.says, ", "))
			}
			switch {
			case err != nil:
				got = append(got, "error "+err.Error())
			case did.chain != "":
				got = append(got, "chain "+did.chain)
			case did.end == endKernel:
				got = append(got, strings.Join(append([]string{"kernel", did.kernel}, did.initrds...), " "))
			default:
				got = append(got, string(did.end))
			}
			if text := strings.Join(got, "; "); text != test.want {
				t.Errorf("got  %s\nwant %s", text, test.want)
			}
		})
	}
}

// program is the beginning of an EFI program for a machine type, with a Linux header where that is asked for.
func program(machine uint16, linux bool) []byte {
	b := make([]byte, 0x400)
	copy(b, "MZ")
	binary.LittleEndian.PutUint32(b[0x3c:], 0x80)
	copy(b[0x80:], "PE\x00\x00")
	binary.LittleEndian.PutUint16(b[0x84:], machine)
	if linux {
		copy(b[0x202:], "HdrS")
	}
	return b
}

func TestFormats(t *testing.T) {
	old := make([]byte, 0x300)
	copy(old[0x202:], "HdrS")
	kinds := map[string]Firmware{}
	for _, f := range Firmwares() {
		kinds[f.Name] = f
	}
	for _, test := range []struct {
		head   []byte
		want   Format
		starts string // the kinds that can start it
	}{
		{[]byte("#!ipxe\n"), Script, "iPXE on BIOS, iPXE on UEFI x64"},
		{program(0x8664, false), EFIx64, "UEFI x64 PXE, UEFI x64 HTTP, iPXE on UEFI x64"},
		{program(0xaa64, false), EFIarm64, "UEFI arm64 PXE, UEFI arm64 HTTP"},
		{program(0x14c, false), EFIother, ""},
		{program(0x8664, true), LinuxEFI, "BIOS PXE, UEFI x64 PXE, UEFI x64 HTTP, iPXE on BIOS, iPXE on UEFI x64"},
		{old, Linux, "BIOS PXE, iPXE on BIOS, iPXE on UEFI x64"},
		{[]byte("<!DOCTYPE html><title>Log in"), HTML, ""},
		{[]byte{0xea, 5, 0, 0xc0, 7}, "", "BIOS PXE, iPXE on BIOS, iPXE on UEFI x64"},
		{nil, "", "BIOS PXE, iPXE on BIOS, iPXE on UEFI x64"},
		{[]byte("MZ\xff\xff\xff\xff"), "", "BIOS PXE, iPXE on BIOS, iPXE on UEFI x64"},
	} {
		if got := formatOf(test.head); got != test.want {
			t.Errorf("%.8q is %q, want %q", test.head, got, test.want)
		}
		var starts []string
		for _, f := range Firmwares() {
			if f.refuses(test.want) == "" {
				starts = append(starts, f.Name)
			}
		}
		if got := strings.Join(starts, ", "); got != test.starts {
			t.Errorf("%q is started by %s; want %s", test.want, got, test.starts)
		}
	}
}

func FuzzScript(f *testing.F) {
	f.Add("#!ipxe\nchain ${netX/mac:hexhyp}/x ||\ngoto a\n:a\n")
	base, _ := url.Parse("http://10.20.0.2/")
	f.Fuzz(func(t *testing.T, script string) {
		_, _ = runScript(script, base, map[string]string{"mac": "02:c0:1d:00:00:01"})
		if format := formatOf([]byte(script)); format != "" {
			_ = fmt.Sprint(Firmwares()[0].refuses(format))
		}
	})
}
