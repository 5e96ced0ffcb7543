package validate_test

import (
	"encoding/hex"
	"strings"
	"testing"

	"coldrack.dev/internal/contract/validate"
)

func TestDHCPOption(t *testing.T) {
	for _, test := range []struct {
		name        string
		code        int
		value, hex  string
		want, error string // one of them; want in hexadecimal digits
	}{
		{"the MTU", 26, "9000", "", "2328", ""},
		{"an MTU that is too small", 26, "67", "", "", "want a number from 68 to 65535"},
		{"an MTU that is too large", 26, "65536", "", "", "want a number from 68"},
		{"a time offset to the west", 2, "-3600", "", "fffff1f0", ""},
		{"a number of one byte", 23, "64", "", "40", ""},
		{"one that has no room", 23, "256", "", "", "want a number of 8 bits"},
		{"a search list", 119, "rack.example, a.b", "", "047261636b076578616d706c650001610162" + "00", ""},
		{"a search list with a bad name", 119, "rack.example, -a", "", "", `"-a"`},
		{"routes", 121, "10.0.0.0/8 via 10.20.0.1, 10.9.128.0/17 via 10.20.0.2,0.0.0.0/0 via 10.20.0.3", "", "080a0a140001" + "110a09800a140002" + "000a140003", ""},
		{"a route to a host", 121, "10.0.0.1/8 via 10.20.0.1", "", "", "the network is 10.0.0.0/8"},
		{"a route without a router", 121, "10.0.0.0/8", "", "", "is not a route such as"},
		{"a route by IPv6", 121, "fd00::/8 via fd00::1", "", "", "is not a route such as"},
		{"addresses", 7, "10.0.0.1, 10.0.0.2", "", "0a0000010a000002", ""},
		{"names for addresses", 7, "log.example", "", "", `"log.example" is not an IPv4 address`},
		{"text", 100, "UTC", "", "555443", ""},
		{"bytes", 43, "", "01:04:c0.00 02:01", "0104c0000201", ""},
		{"bytes for a known form", 26, "", "05dc", "05dc", ""},
		{"half a byte", 43, "", "012", "", "want pairs of hexadecimal digits"},
		{"vendor options as text", 43, "x", "", "", "write it as hex"},
		{"both", 224, "a", "61", "", "needs either value or hex"},
		{"neither", 224, "", "", "", "needs either value or hex"},
		{"nothing but commas", 7, " , ", "", "", "has 0 bytes"},
		{"too long", 224, strings.Repeat("x", 121), "", "", "has 121 bytes; want between 1 and 120"},
		{"a field of its own", 6, "10.0.0.1", "", "", "it is spec.dns"},
		{"the host name", 12, "a", "", "", "it is the Machine's host name"},
		{"the boot file", 67, "x", "", "", "it is what Coldrack boots machines by"},
		{"the message type", 53, "", "01", "", "belongs to the exchange itself"},
		{"the end", 255, "", "01", "", "is not between 1 and 254"},
		{"the padding", 0, "", "01", "", "is not between 1 and 254"},
	} {
		got, err := validate.DHCPOption(test.code, test.value, test.hex)
		switch {
		case test.error == "" && (err != nil || hex.EncodeToString(got) != test.want):
			t.Errorf("%s: % x, %v; want %s", test.name, got, err, test.want)
		case test.error != "" && (err == nil || !strings.Contains(err.Error(), test.error)):
			t.Errorf("%s: % x, %v; want an error with %q", test.name, got, err, test.error)
		}
	}
}
