package dns

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"coldrack.dev/test/require"
)

func TestParseKey(t *testing.T) {
	key, err := ParseKey("key \"Coldrack\" {\n\talgorithm hmac-sha256;\n\tsecret \"c2VjcmV0\";\n};\n")
	if want := (Key{"coldrack.", "hmac-sha256.", "c2VjcmV0"}); err != nil || key != want {
		t.Errorf("%+v, %v", key, err)
	}
	for text, want := range map[string]string{
		"": "no name of a key in it", `key k { algorithm hmac-sha256; };`: "no secret", `key k { algorithm hmac-md5; secret "c2VjcmV0"; };`: "not supported", `key k { algorithm hmac-sha256; secret "c2VjcmV0x"; };`: "base64",
	} {
		if _, err := ParseKey(text); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "c2VjcmV0") {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func files(z *Zones) map[string]string {
	all := map[string]string{}
	for _, zone := range z.List() {
		all[zone.Name] = zone.File()
	}
	return all
}

// A site's server loads the files as they are.
func TestZoneFilesLoad(t *testing.T) {
	require.Need(t, "named-checkzone")
	for name, file := range files(Build(rack(), fixed)) {
		path := filepath.Join(t.TempDir(), "zone")
		if err := os.WriteFile(path, []byte(file), 0o644); err != nil {
			t.Fatal(err)
		}
		// -i local: the name server of a reverse zone is in another one.
		out, err := exec.Command("named-checkzone", "-i", "local", strings.TrimSuffix(name, "."), path).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "loaded serial 7") || strings.Contains(string(out), "ignored") {
			t.Errorf("%s: %v\n%s\n%s", name, err, out, file)
		}
	}
}

// The site's server, a real one, is brought up to date, again and again; its own names stay.
func TestSiteIsBroughtUpToDate(t *testing.T) {
	require.Need(t, "netns", "dig", "named")
	s := newSegment(t)
	primary := func(zone, file string) string {
		return fmt.Sprintf("zone %q { type primary; file %q; update-policy { grant coldrack zonesub any; }; allow-transfer { key coldrack; }; };\n", zone, file)
	}
	empty := "$TTL 60\n@ SOA ns.rack.example.org. hostmaster 1 60 60 60 60\n@ NS ns.rack.example.org.\n"
	// The site has one zone for all of 10.20 and half of our names' addresses.
	files1 := map[string]string{"rack": empty + "ns A 10.20.0.53\nm-3 A 192.0.2.99\nprinter A 10.20.0.77\n", "ten": empty + "77.0 PTR printer.rack.example.org.\n", "two": empty, "wide": empty, "wider": empty, "six": empty}
	zones := primary("rack.example.org", "rack") + primary("20.10.in-addr.arpa", "ten") + primary("2.0.192.in-addr.arpa", "two") + primary("10.in-addr.arpa", "wide") +
		primary("0.0.0.0.0.0.0.0.0.2.0.0.0.0.d.f.ip6.arpa", "six")
	s.prepare = files1
	s.named("", zones)

	key, err := ParseKey(keyClause)
	if err != nil {
		t.Fatal(err)
	}
	site := Site{Server: "10.20.0.53:53", Key: key, Owner: "rack-1"}
	sync := func(in Inventory) (changed, kept string) {
		t.Helper()
		var changes []Change
		err := s.server.Do(func() error { // connections are made by this thread alone
			var err error
			if changes, err = site.Plan(context.Background(), files(Build(in, fixed))); err != nil {
				return err
			}
			return site.Apply(context.Background(), changes)
		})
		if err != nil {
			t.Fatal(err)
		}
		var all, others []string
		for _, c := range changes {
			if c.Kept != "" {
				others = append(others, c.Name)
				continue
			}
			all = append(all, fmt.Sprintf("%s +%d -%d", c.Name, len(c.Add), len(c.Remove)))
		}
		return strings.Join(all, ", "), strings.Join(others, " ")
	}
	ask := func(args ...string) string {
		out, err := s.server.Try(t.Context(), append([]string{"dig", "@10.20.0.53", "+short"}, args...)...)
		if err != nil {
			t.Errorf("dig: %v", err)
		}
		return strings.Join(strings.Fields(out), " ")
	}
	if changed, kept := sync(rack()); kept != "m-3.rack.example.org." || !strings.Contains(changed, "db.rack.example.org. +2 -0") {
		t.Errorf("changed %s; kept %s", changed, kept)
	}
	for _, test := range [][2]string{
		{"db.rack.example.org A", "10.20.0.11"}, {"db.rack.example.org AAAA", "fd00:20::11"}, {"-x 10.20.0.11", "db.rack.example.org."}, {"-x fd00:20::11", "db.rack.example.org."},
		{"-x 192.0.2.70", "m-2.rack.example.org."}, {"m-3.rack.example.org A", "192.0.2.99"}, {"printer.rack.example.org A", "10.20.0.77"}, {"-x 10.20.0.77", "printer.rack.example.org."},
		{"_kubernetes._tcp.prod.rack.example.org SRV", "0 0 6443 api.prod.rack.example.org."}, {"rack.example.org NS", "ns.rack.example.org."},
	} {
		if got := ask(strings.Fields(test[0])...); got != test[1] {
			t.Errorf("%s: %s, want %s", test[0], got, test[1])
		}
	}
	if changed, _ := sync(rack()); changed != "" {
		t.Errorf("changed again without a change: %s", changed)
	}
	in := rack()
	in.Claims[0].Addresses, in.Claims[3].Addresses = addresses("10.20.0.21"), addresses("10.20.0.21")
	in.Claims = append(in.Claims[:1], in.Claims[2:]...) // m-2 has gone
	changed, _ := sync(in)
	for _, want := range []string{"db.rack.example.org. +1 -2", "m-2.rack.example.org. +0 -1", "70.2.0.192.in-addr.arpa. +0 -1", "11.0.20.10.in-addr.arpa. +0 -1", "21.0.20.10.in-addr.arpa. +1 -0"} {
		if !strings.Contains(changed, want) {
			t.Errorf("%q is not in %s", want, changed)
		}
	}
	for _, name := range []string{"m-2.rack.example.org", "11.0.20.10.in-addr.arpa"} {
		for _, kind := range []string{"A", "PTR", "TXT"} {
			if got := ask(name, kind); got != "" {
				t.Errorf("%s %s of a machine that has gone: %s", name, kind, got)
			}
		}
	}
	if got := ask("db.rack.example.org", "AAAA") + ask("db.rack.example.org", "A"); got != "10.20.0.21" {
		t.Errorf("after the move: %s", got)
	}

	for what, test := range map[string]struct {
		site  Site
		files map[string]string
		want  string
	}{
		"a wrong secret":     {Site{site.Server, Key{key.Name, key.Algorithm, "bm90IGl0"}, "x"}, files(Build(rack(), fixed)), "does not take key"},
		"another's zone":     {site, map[string]string{"example.net.": "$ORIGIN example.net.\nx 60 A 192.0.2.1\n"}, "allow-transfer"},
		"a zone of nobody's": {site, map[string]string{"nobody.test.": ""}, "has no zone for nobody.test."},
		"no server":          {Site{"10.20.0.1:54", key, "x"}, files(Build(rack(), fixed)), "refused"},
	} {
		err := s.server.Do(func() error { _, err := test.site.Plan(context.Background(), test.files); return err })
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "bm90") {
			t.Errorf("%s: %v, want %q", what, err, test.want)
		}
	}
}
