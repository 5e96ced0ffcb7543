package httpboot

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestParseQuery(t *testing.T) {
	tests := map[string]struct {
		raw  string
		want Query
		bad  string // part of the error
	}{
		"what iPXE sends in QEMU": {
			raw: "mac=52:54:00:12:34:56&mac=52:54:00:12:34:56&mac=&mac=&uuid=4C4C4544-0042-3510-8052-B4C04F4D4D32" +
				"&serial=&manufacturer=QEMU&product=Standard%20PC%20(Q35%20%2B%20ICH9%2C%202009)&asset=&arch=x86_64&platform=efi&ip=192.0.2.10",
			want: Query{MACs: []string{"52:54:00:12:34:56"}, UUID: "4c4c4544-0042-3510-8052-b4c04f4d4d32", Manufacturer: "QEMU",
				Product: "Standard PC (Q35 + ICH9, 2009)", Arch: "x86_64", Platform: "efi", IP: netip.MustParseAddr("192.0.2.10")},
		},
		"several interfaces, the booting one first": {
			raw:  "mac=52:54:00:00:00:02&mac=52:54:00:00:00:01&mac=52:54:00:00:00:02",
			want: Query{MACs: []string{"52:54:00:00:00:02", "52:54:00:00:00:01"}},
		},
		"every notation of one address is the same address": {
			raw:  "mac=AA:bb:CC:00:11:22&mac=aa-bb-cc-00-11-22&mac=aabbcc001122&mac=01-aa-bb-cc-00-11-22",
			want: Query{MACs: []string{"aa:bb:cc:00:11:22"}},
		},
		"an address of zeros says nothing":       {raw: "mac=00:00:00:00:00:00"},
		"nothing at all":                         {raw: ""},
		"what is not known is ignored":           {raw: "colour=blue&serial=A1", want: Query{Serial: "A1"}},
		"spaces around a serial are padding":     {raw: "serial=%20%20ABC%201%20", want: Query{Serial: "ABC 1"}},
		"strange bytes in a serial are replaced": {raw: "serial=A%ff%00%0a%1b[1mB", want: Query{Serial: "A?? ?[1mB"}},
		"an empty value beside a full one":       {raw: "serial=&serial=B", want: Query{Serial: "B"}},

		"a MAC that is none":            {raw: "mac=hello", bad: `mac: "hello" is not a MAC address`},
		"a group address":               {raw: "mac=ff:ff:ff:ff:ff:ff", bad: "group address"},
		"an address of eight bytes":     {raw: "mac=02:00:5e:10:00:00:00:01", bad: "is not a MAC address"},
		"a UUID that is none":           {raw: "uuid=1234", bad: "is not a UUID"},
		"a UUID in braces":              {raw: "uuid={4c4c4544-0042-3510-8052-b4c04f4d4d32}", bad: "is not a UUID"},
		"two different serials":         {raw: "serial=A&serial=B", bad: "serial: given 2 times"},
		"an endless serial":             {raw: "serial=" + strings.Repeat("x", 257), bad: "serial: 257 bytes long"},
		"an endless query":              {raw: strings.Repeat("x", 9000), bad: "9000 bytes long"},
		"a platform that is a sentence": {raw: "platform=a+b", bad: "platform:"},
		"an address that is none":       {raw: "ip=192.0.2", bad: "ip:"},
		"broken escapes":                {raw: "serial=%zz", bad: "query:"},
		"more interfaces than any machine has": {
			raw: func() string {
				var all []string
				for i := range 65 {
					all = append(all, fmt.Sprintf("mac=02:00:00:00:00:%02x", i))
				}
				return strings.Join(all, "&")
			}(),
			bad: "mac: more than 64",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ParseQuery(test.raw)
			if test.bad != "" {
				if err == nil || !strings.Contains(err.Error(), test.bad) {
					t.Fatalf("got %v, want an error with %q", err, test.bad)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func FuzzQuery(f *testing.F) {
	f.Add("mac=52:54:00:12:34:56&uuid=4C4C4544-0042-3510-8052-B4C04F4D4D32&serial=A%20b&arch=x86_64&platform=efi&ip=192.0.2.1")
	f.Add("mac=01-aa-bb-cc-00-11-22&mac=aabbcc001122&serial=%ff%00")
	f.Fuzz(func(t *testing.T, raw string) {
		q, err := ParseQuery(raw)
		if err != nil {
			if text := err.Error(); strings.ContainsAny(text, "\n\r\x1b") {
				t.Errorf("error unfit for a log: %q", text)
			}
			return
		}
		for _, text := range []string{q.Serial, q.Manufacturer, q.Product, q.Asset, q.Arch, q.Platform} {
			if len(text) > maxText*4 || strings.ContainsAny(text, "\n\r\x00\x1b") {
				t.Errorf("%q: value %q", raw, text)
			}
		}
		// What was understood is understood again from its normal form.
		again := url.Values{"mac": q.MACs, "uuid": {q.UUID}, "arch": {q.Arch}, "platform": {q.Platform}}
		if q.IP.IsValid() {
			again.Set("ip", q.IP.String())
		}
		q2, err := ParseQuery(again.Encode())
		if err != nil || !cmp.Equal(q.MACs, q2.MACs) || q.UUID != q2.UUID || q.Arch != q2.Arch || q.Platform != q2.Platform || q.IP != q2.IP {
			t.Errorf("%q: %+v, then %+v, %v", raw, q, q2, err)
		}
	})
}
