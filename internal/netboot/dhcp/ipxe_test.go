package dhcp

import (
	"testing"
)

func TestWhatIPXETells(t *testing.T) {
	// As an iPXE with everything sends it: bus, version, then features, one of them in version 2.
	full := []byte{0xb1, 5, 1, 0x1a, 0xf4, 0x10, 0, 0xeb, 3, 1, 21, 1, 0x17, 1, 1, 0x22, 1, 1, 0x13, 1, 1, 0x14, 1, 1, 0x11, 1, 1, 0x10, 1, 2, 0x15, 1, 1, 0x18, 1, 1, 0x26, 1, 1}
	for name, test := range map[string]struct {
		option []byte
		want   IPXE
	}{
		"nothing":                         {nil, IPXE{}},
		"all that a BIOS needs":           {full, IPXE{Features: true, HTTP: true, BzImage: true, Version: "1.21.1"}},
		"a UEFI's":                        {[]byte{0x13, 1, 1, 0x24, 1, 1}, IPXE{Features: true, HTTP: true, EFI: true}},
		"TFTP only":                       {[]byte{0x15, 1, 1}, IPXE{Features: true}},
		"no features, only its bus":       {[]byte{0xb1, 1, 1}, IPXE{}},
		"padding and an end":              {[]byte{0, 0x13, 1, 1, 0, 255, 0x18, 1, 1}, IPXE{Features: true, HTTP: true}},
		"a feature in version 0":          {[]byte{0x13, 1, 0}, IPXE{Features: true}},
		"a feature without a value":       {[]byte{0x13, 0}, IPXE{Features: true}},
		"a version that is none":          {[]byte{0xeb, 1, 1}, IPXE{}},
		"cut in a value: nothing":         {[]byte{0x13, 1, 1, 0x18, 4, 1}, IPXE{}},
		"cut after a tag: nothing":        {[]byte{0x13, 1, 1, 0x18}, IPXE{}},
		"our own answer's option is none": {[]byte{ipxeNoProxyDHCP.Code(), 1, 1}, IPXE{}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := parseIPXE(test.option); got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
			if q := queryOf(message(discover, 1, option(175, test.option...))); q.Told != test.want {
				t.Errorf("in a message: %+v, want %+v", q.Told, test.want)
			}
		})
	}
}

func FuzzIPXE(f *testing.F) {
	f.Add([]byte{0xb1, 5, 1, 0x1a, 0xf4, 0x10, 0, 0xeb, 3, 1, 21, 1, 0x13, 1, 1, 0x18, 1, 1})
	f.Add([]byte{0x13, 1, 1, 0x18, 200})
	f.Add([]byte{0, 255, 0x24})
	f.Fuzz(func(t *testing.T, b []byte) {
		got := parseIPXE(b)
		if (got.HTTP || got.BzImage || got.EFI) && !got.Features {
			t.Fatalf("%x: a feature without features: %+v", b, got)
		}
		// Encapsulated options may come in any order but for the end: what is put before them changes nothing.
		if after := parseIPXE(append([]byte{0, 0xb1, 1, 1}, b...)); after != got {
			t.Fatalf("%x: %+v, behind another option %+v", b, got, after)
		}
	})
}
