package dhcp

import (
	"net/netip"
	"testing"

	"coldrack.dev/test/require"
)

func TestFindProxies(t *testing.T) {
	require.Need(t, "netns")
	n := newNetwork(t)
	other := n.machine(40)
	for _, a := range []string{"192.0.2.16/24", "192.0.2.31/24"} { // a machine may have several addresses
		other.Address("eth0", a)
	}
	find := func() (asked int, found []Proxy) {
		t.Helper()
		err := n.server.Do(func() (err error) {
			asked, found, err = FindProxies(t.Context(), "br0", netip.MustParsePrefix("192.0.2.1/24"))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return asked, found
	}
	if asked, found := find(); asked != maxAsked || len(found) != 0 {
		t.Errorf("without a proxy: %v of %d", found, asked)
	}
	answerEveryARP(t, n.machine(50), mac(50))
	if asked, found := find(); asked != maxAsked || len(found) != 1 || found[0].Holder != mac(50).String() || found[0].Answered != asked {
		t.Errorf("with one: %v of %d", found, asked)
	}
}

func TestSpread(t *testing.T) {
	for network, want := range map[string]struct {
		n           int
		first, last string
	}{
		"10.0.0.1/24":   {16, "10.0.0.16", "10.0.0.241"},
		"10.0.0.200/24": {16, "10.0.0.1", "10.0.0.226"},
		"10.0.0.1/29":   {5, "10.0.0.2", "10.0.0.6"},
		"10.0.0.1/30":   {1, "10.0.0.2", "10.0.0.2"},
		"10.0.0.1/31":   {0, "", ""},
		"10.0.0.1/32":   {0, "", ""},
		"10.9.9.9/8":    {16, "10.0.0.1", "10.239.255.242"},
		"fd00::1/64":    {0, "", ""},
	} {
		got := spread(netip.MustParsePrefix(network), 16)
		if len(got) != want.n || want.n > 0 && (got[0].String() != want.first || got[len(got)-1].String() != want.last) {
			t.Errorf("%s: %v, want %d from %s to %s", network, got, want.n, want.first, want.last)
		}
	}
}
