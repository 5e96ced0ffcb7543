package lldp

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"coldrack.dev/internal/base/termtext"
	"coldrack.dev/internal/contract/wire"
)

func tlv(kind int, value ...byte) []byte {
	return append([]byte{byte(kind<<1 | len(value)>>8), byte(len(value))}, value...)
}

func join(parts ...[]byte) (out []byte) {
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func chars(subtype byte, s string) []byte { return append([]byte{subtype}, s...) }

func TestParse(t *testing.T) {
	chassis := tlv(1, 4, 0x00, 0x1C, 0x73, 0xAA, 0xBB, 0xCC)
	port := tlv(2, chars(5, "Ethernet12")...)
	ttl := tlv(3, 0, 120)
	full := wire.LLDP{ChassisID: "00:1c:73:aa:bb:cc", PortID: "Ethernet12", SystemName: "tor-07", PortDesc: "rack 7 unit 12", VLAN: 301}
	for name, tt := range map[string]struct {
		in   []byte
		want wire.LLDP
		fail bool
	}{
		"a top-of-rack switch with name, description and VLAN": {
			in: join(chassis, port, ttl, tlv(5, []byte("tor-07")...), tlv(4, []byte("rack 7 unit 12")...),
				tlv(127, 0x00, 0x80, 0xC2, 1, 1, 45), tlv(0)),
			want: full,
		},
		"Ethernet padding after the end mark": {
			in:   join(chassis, port, ttl, tlv(0), make([]byte, 20)),
			want: wire.LLDP{ChassisID: full.ChassisID, PortID: full.PortID},
		},
		"no end mark": {
			in:   join(chassis, port, ttl),
			want: wire.LLDP{ChassisID: full.ChassisID, PortID: full.PortID},
		},
		"network addresses as IDs": {
			in:   join(tlv(1, 5, 1, 10, 0, 0, 1), tlv(2, 3, 2, 4, 6, 8, 10, 12), ttl),
			want: wire.LLDP{ChassisID: "10.0.0.1", PortID: "02:04:06:08:0a:0c"},
		},
		"escape sequences in a name are removed": {
			in:   join(chassis, port, ttl, tlv(5, []byte("\x1b[2Jevil\x00")...)),
			want: wire.LLDP{ChassisID: full.ChassisID, PortID: full.PortID, SystemName: "[2Jevil"},
		},
		"empty":                        {fail: true},
		"only a chassis":               {in: chassis, fail: true},
		"the port before the chassis":  {in: join(port, chassis, ttl), fail: true},
		"a part longer than the frame": {in: join(chassis, port, ttl, []byte{5 << 1, 40, 'a'}), fail: true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Parse(tt.in)
			if (err != nil) != tt.fail {
				t.Fatalf("error is %v", err)
			}
			if diff := cmp.Diff(tt.want, got); err == nil && diff != "" {
				t.Error(diff)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add(join(tlv(1, 4, 0, 1, 2, 3, 4, 5), tlv(2, chars(5, "e1")...), tlv(3, 0, 1), tlv(127, 0, 0x80, 0xC2, 1, 0, 1), tlv(0)))
	f.Add([]byte{2, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := Parse(b)
		if err != nil {
			return
		}
		for _, s := range []string{n.ChassisID, n.PortID, n.SystemName, n.PortDesc} {
			if s != termtext.Line(s, 0) {
				t.Errorf("%q would disturb a terminal", s)
			}
		}
	})
}
