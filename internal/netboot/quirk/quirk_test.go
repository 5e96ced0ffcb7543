package quirk

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestTheTableThatComesWithTheServer(t *testing.T) {
	for _, test := range []struct {
		name   string
		client Client
		want   string
	}{
		{"a BIOS", Client{VendorClass: "PXEClient:Arch:00000:UNDI:002001", MAC: "52:54:00:00:00:01"}, ""},
		{"firmware that tells no architecture", Client{VendorClass: "PXEClient", Architecture: NoArchitecture}, "no-architecture: 0"},
		{"UEFI x64", Client{Architecture: 7}, ""},
		{"UEFI x64 as RFC 4578 said it", Client{Architecture: 9}, "architecture-9: 7"},
		{"a Raspberry Pi", Client{VendorClass: "PXEClient:Arch:00000:UNDI:002001", MAC: "dc:a6:32:01:02:03"}, "raspberry-pi: noBootFile"},
		{"a Raspberry Pi with UEFI", Client{VendorClass: "PXEClient:Arch:00011:UNDI:003000", MAC: "dc:a6:32:01:02:03", Architecture: 11}, ""},
		{"gPXE", Client{IPXE: true, UserClass: "gPXE", Features: map[Feature]bool{HTTP: true, BzImage: true}}, "gpxe: ownIPXE"},
		{"iPXE that lists nothing", Client{IPXE: true, UserClass: "iPXE"}, ""},
		{"iPXE with all that BIOS needs", Client{IPXE: true, Features: map[Feature]bool{HTTP: true, BzImage: true}}, ""},
		{"iPXE with all that UEFI needs", Client{IPXE: true, Architecture: 7, Features: map[Feature]bool{HTTP: true, EFI: true}}, ""},
		{"iPXE without HTTP", Client{IPXE: true, Features: map[Feature]bool{BzImage: true}}, "ipxe-without-http: ownIPXE"},
		{"iPXE on BIOS without kernels", Client{IPXE: true, Features: map[Feature]bool{HTTP: true, EFI: true}}, "ipxe-without-bzimage: ownIPXE"},
		{"so when it tells no architecture", Client{IPXE: true, Architecture: NoArchitecture, Features: map[Feature]bool{HTTP: true}}, "no-architecture, ipxe-without-bzimage: 0 ownIPXE"},
		{"iPXE on UEFI without EFI programs", Client{IPXE: true, Architecture: 9, Features: map[Feature]bool{HTTP: true, BzImage: true}}, "architecture-9, ipxe-without-efi: 7 ownIPXE"},
		{"what is no iPXE lacks nothing", Client{Features: map[Feature]bool{}}, ""},
	} {
		if got := tell((*Table)(nil).For(test.client)); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
	for _, q := range BuiltIn().Quirks() {
		if q.Source == "" || q.Seen == "" {
			t.Errorf("%s: who has seen it?", q.Name)
		}
	}
}

// tell puts remedies into a line.
func tell(r Remedies) string {
	if len(r.Names) == 0 {
		return ""
	}
	var all []string
	if r.Architecture != nil {
		all = append(all, fmt.Sprint(*r.Architecture))
	}
	for name, set := range map[string]bool{"ownIPXE": r.OwnIPXE, "ownDrivers": r.OwnDrivers, "noBootFile": r.NoBootFile, "smallReply": r.SmallReply, "broadcast": r.Broadcast} {
		if set {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return strings.Join(r.Names, ", ") + ": " + strings.Join(append(all, r.KernelArgs...), " ")
}

func TestATableOfOnesOwn(t *testing.T) {
	own, err := Parse("own.yaml", []byte(`
quirks:
- name: raspberry-pi   # ours have UEFI on a card
  off: true
- name: dl20
  seen: its UEFI driver stops after a megabyte
  match: {mac: "3c:a8:2a:*", architecture: [7]}
  remedy: {ownDrivers: true, smallReply: true, broadcast: true}
- name: old-graphics
  seen: a blank screen
  match: {manufacturer: "dell*", product: ["R2?0", "R310"]}
  remedy: {kernelArgs: [nomodeset, "video=640x480"]}
- name: gpxe
  seen: ours run scripts
  match: {userClass: gPXE}
  remedy: {broadcast: true}
`))
	if err != nil {
		t.Fatal(err)
	}
	table := BuiltIn().With(own)
	for _, test := range []struct {
		client Client
		want   string
	}{
		{Client{VendorClass: "PXEClient:Arch:00000:UNDI:002001", MAC: "dc:a6:32:01:02:03"}, ""},
		{Client{MAC: "3c:a8:2a:00:00:01", Architecture: 9}, "architecture-9, dl20: 7 broadcast ownDrivers smallReply"},
		{Client{MAC: "3c:a8:2a:00:00:01"}, ""},
		{Client{Manufacturer: "Dell Inc.", Product: "R210 "}, "old-graphics: nomodeset video=640x480"},
		{Client{Manufacturer: "Dell Inc.", Product: "R640"}, ""},
		{Client{IPXE: true, UserClass: "gPXE"}, "gpxe: broadcast"},
	} {
		if got := tell(table.For(test.client)); got != test.want {
			t.Errorf("%+v: %q, want %q", test.client, got, test.want)
		}
	}
	if n := len(BuiltIn().Quirks()); len(table.Quirks()) != n-1+2 {
		t.Errorf("%d quirks of %d and 4", len(table.Quirks()), n)
	}
	if empty, err := Parse("empty.yaml", []byte("# nothing yet\n")); err != nil || len(BuiltIn().With(empty).Quirks()) != len(BuiltIn().Quirks()) {
		t.Errorf("an empty file: %v", err)
	}
}

func TestWhatIsWrongIsNamedByLineAndField(t *testing.T) {
	entry := func(lines string) string { return "quirks:\n- name: a\n  seen: it fails\n" + lines }
	for name, test := range map[string]struct{ text, want string }{
		"no YAML":                    {"quirks: [", "q.yaml: line"},
		"no mapping":                 {"- a", "q.yaml: line 1: keys with values are wanted: quirks"},
		"another key":                {"quirk: []", "q.yaml: line 1: quirk: there is no such key; there are quirks"},
		"no list":                    {"quirks: {}", "q.yaml: line 1: quirks: a list is wanted"},
		"two documents":              {"quirks: []\n---\nquirks: []", "one document"},
		"a misspelt remedy":          {entry("  match: {mac: a*}\n  remedy: {broadcasts: true}"), "q.yaml: line 5: quirks[0].remedy.broadcasts: there is no such key; there are architecture, broadcast,"},
		"no boolean":                 {entry("  match: {mac: a*}\n  remedy: {broadcast: yes please}"), `line 5: quirks[0].remedy.broadcast: true or false is wanted, not "yes please"`},
		"a bad name":                 {"quirks:\n- name: A b\n  off: true", "line 2: quirks[0].name"},
		"a name twice":               {"quirks:\n- {name: a, off: true}\n- {name: a, off: true}", "line 3: quirks[1].name: a is there already, on line 2"},
		"no match":                   {entry("  remedy: {broadcast: true}"), "quirks[0].match: it would fit every machine"},
		"no remedy":                  {entry("  match: {mac: a*}\n  remedy: {}"), "line 5: quirks[0].remedy: nothing would be done"},
		"nobody has seen it":         {"quirks:\n- name: a\n  match: {mac: a*}\n  remedy: {broadcast: true}", "line 2: quirks[0].seen: say what"},
		"a bad pattern":              {entry("  match:\n    mac:\n    - \"[a\"\n  remedy: {broadcast: true}"), "line 6: quirks[0].match.mac[0]"},
		"no architecture":            {entry("  match: {architecture: [0, x64]}\n  remedy: {broadcast: true}"), `line 4: quirks[0].match.architecture[1]: "x64" is no value of option 93`},
		"none is no remedy":          {entry("  match: {mac: a*}\n  remedy: {architecture: none}"), "line 5: quirks[0].remedy.architecture"},
		"an unknown feature":         {entry("  match: {lacks: NFS}\n  remedy: {ownIPXE: true}"), "line 4: quirks[0].match.lacks"},
		"SMBIOS by DHCP":             {entry("  match: {product: x*}\n  remedy: {broadcast: true}"), "line 4: quirks[0].match: manufacturer and product are not told by DHCP"},
		"arguments by DHCP":          {entry("  match: {architecture: 7}\n  remedy: {kernelArgs: [quiet]}"), "line 5: quirks[0].remedy.kernelArgs"},
		"an argument that is two":    {entry("  match: {mac: a*}\n  remedy: {kernelArgs: [\"a b\"]}"), "line 5: quirks[0].remedy.kernelArgs[0]"},
		"an argument that iPXE eats": {entry("  match: {mac: a*}\n  remedy: {kernelArgs: [\"a=${x}\"]}"), "line 5: quirks[0].remedy.kernelArgs[0]"},
		"an argument of ours":        {entry("  match: {mac: a*}\n  remedy: {kernelArgs: [coldrack.ca=x]}"), "none of Coldrack's own"},
		"a contradiction":            {entry("  match: {mac: a*}\n  remedy: {ownIPXE: true, noBootFile: true}"), "contradict"},
		"two steps in one":           {entry("  match: {mac: a*}\n  remedy: {architecture: 7, broadcast: true}"), "stands alone"},
		"a column too many":          {entry("  source: \"a | b\"\n  match: {mac: a*}\n  remedy: {broadcast: true}"), "line 4: quirks[0].source: one line"},
		"an empty list":              {entry("  match: {mac: []}\n  remedy: {broadcast: true}"), "line 4: quirks[0].match.mac: the list is empty"},
		"an alias":                   {"quirks:\n- name: &n a\n  seen: *n\n  match: {mac: a*}\n  remedy: {broadcast: true}", "line 3: quirks[0].seen: aliases"},
	} {
		if _, err := Parse("q.yaml", []byte(test.text)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
	_, err := Parse("q.yaml", []byte(entry("  match: {maac: a*}\n  remedy: {broadcast: 1}")))
	if err == nil || strings.Count(err.Error(), "q.yaml: line") < 3 {
		t.Errorf("all errors are told at once: %v", err)
	}
}

func TestTheTableInTheDocumentIsCurrent(t *testing.T) {
	text, err := os.ReadFile("../../../docs/booting.md")
	if err != nil {
		t.Fatal(err)
	}
	want, err := Section(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != want {
		t.Error("docs/booting.md has another table than quirks.yaml: run make generate")
	}
	if _, err := Section("no place"); err == nil {
		t.Error("a document without its marks was taken")
	}
}

func FuzzParse(f *testing.F) {
	f.Add(builtIn)
	f.Add([]byte("quirks:\n- {name: a, off: true}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		table, err := Parse("q.yaml", text)
		if err != nil {
			return
		}
		_ = BuiltIn().With(table).For(Client{MAC: "52:54:00:00:00:01", Architecture: 9, IPXE: true, Features: map[Feature]bool{}})
		if lines := strings.Count(table.Markdown(), "\n"); lines != 2+len(table.Quirks()) {
			t.Errorf("%d lines for %d quirks", lines, len(table.Quirks()))
		}
	})
}
