package racksheet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/google/go-cmp/cmp"
	"github.com/xuri/excelize/v2"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/simplifiedchinese"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
)

// read is what a file makes: a line for each machine, of what is set.
func read(t *testing.T, name string, data []byte, s Settings) (machines []string, notes []Problem, err error) {
	t.Helper()
	grids, err := Read(name, data)
	if err != nil {
		return nil, nil, err
	}
	sheet, err := Parse(grids, s)
	if err != nil {
		return nil, sheet.Notes, err
	}
	wanted, err := sheet.Machines()
	for _, w := range wanted {
		var parts []string
		for _, f := range fieldsOf(w.Machine) {
			if f.value != "" {
				parts = append(parts, fmt.Sprintf("%s=%s", strings.ReplaceAll(string(f.column), " ", "-"), f.value))
			}
		}
		machines = append(machines, strings.Join(parts, " "))
	}
	return machines, sheet.Notes, err
}

func toUTF16(text string, order binary.AppendByteOrder, mark bool) []byte {
	var b []byte
	if mark {
		b = order.AppendUint16(b, 0xfeff)
	}
	for _, u := range utf16.Encode([]rune(text)) {
		b = order.AppendUint16(b, u)
	}
	return b
}

func encoded(text string, encode func(string) (string, error)) []byte {
	out, err := encode(text)
	if err != nil {
		panic(err)
	}
	return []byte(out)
}

func TestUglySheets(t *testing.T) {
	german := "Schrank;HE;Seriennummer;MAC-Adresse;Bemerkung\r\nA1;1,0;CZ1;52-54-00-00-00-01;Gerät links\r\nA1;2,0;CZ2;5254.0000.0002;\r\n;;;;\r\n"
	germanWant := []string{"name=a1-u1 rack=A1 unit=1 serial=CZ1 mac=52:54:00:00:00:01", "name=a1-u2 rack=A1 unit=2 serial=CZ2 mac=52:54:00:00:00:02"}
	chinese := "机柜,U位,序列号,带外IP,网卡MAC,备注\nB2,U07,SN7,10.0.9.7,525400000007,新\n"
	chineseWant := []string{"name=b2-u7 rack=B2 unit=7 serial=SN7 mac=52:54:00:00:00:07 bmc-address=10.0.9.7"}
	for _, test := range []struct {
		name     string
		file     string
		data     []byte
		settings Settings
		want     []string
	}{
		{"a plain sheet", "", []byte("name,rack,unit,serial\nn1,a1,3,S1\n"), Settings{}, []string{"name=n1 rack=a1 unit=3 serial=S1"}},
		{"German, semicolons, decimals", "", []byte(german), Settings{}, germanWant},
		{"with a byte order mark", "", []byte("\xef\xbb\xbf" + german), Settings{}, germanWant},
		{"UTF-16 as Excel writes Unicode text", "", toUTF16(strings.ReplaceAll(german, ";", "\t"), binary.LittleEndian, true), Settings{}, germanWant},
		{"UTF-16, big end first", "", toUTF16(german, binary.BigEndian, true), Settings{}, germanWant},
		{"UTF-16 without a mark", "", toUTF16(german, binary.LittleEndian, false), Settings{}, germanWant},
		{"Windows-1252 as German Excel writes CSV", "", encoded(german, charmap.Windows1252.NewEncoder().String), Settings{}, germanWant},
		{"Chinese", "", []byte(chinese), Settings{}, chineseWant},
		{"GBK as Chinese Excel writes CSV", "", encoded(chinese, simplifiedchinese.GBK.NewEncoder().String), Settings{}, chineseWant},
		{"the separator is said", "", []byte("sep=|\nrack|unit|serial\na1|1|S,1;x\n"), Settings{}, []string{"name=a1-u1 rack=a1 unit=1 serial=S,1;x"}},
		{"line ends of old Macs", "", []byte("rack,unit,serial\ra1,1,S1\ra1,2,S2\r"), Settings{}, []string{"name=a1-u1 rack=a1 unit=1 serial=S1", "name=a1-u2 rack=a1 unit=2 serial=S2"}},
		{"quotes, line ends in fields, and a quote that nobody doubled", "", []byte("rack,unit,serial,mac,notes\n\"a1\",1,\"S1\",\"52:54:00:00:00:01\n52:54:00:00:00:02\",\"19\"\" \"\"wide\"\"\"\na1,2,S2,,19\" rack\n"), Settings{},
			[]string{"name=a1-u1 rack=a1 unit=1 serial=S1 mac=52:54:00:00:00:01 52:54:00:00:00:02", "name=a1-u2 rack=a1 unit=2 serial=S2"}},
		{"a title, an empty line and defaults above the header", "", []byte("Inventory of hall 4;;;\n;;;\nRack:;C7;;\nProfile;worker;;\nname template;c7-{{pad 2 .Unit}};;\nHE;S/N;Group\n1;S1;storage\n# spare;;\n12;S2;\n"), Settings{},
			[]string{"name=c7-01 rack=C7 unit=1 serial=S1 group=storage profile=worker", "name=c7-12 rack=C7 unit=12 serial=S2 profile=worker"}},
		{"a header and a rack for each part", "", []byte("HE,SN\nRack: a1,\n1,S1\n,\nRack: a2,\nHE,SN\n1,S2\nSumme,\n"), Settings{}, []string{"name=a1-u1 rack=a1 unit=1 serial=S1", "name=a2-u1 rack=a2 unit=1 serial=S2"}},
		{"two MACs with their cables", "", []byte("name,mac 1,switch 1,port 1,mac 2,switch 2,port 2\nn1,52:54:00:00:00:01,leaf1,Eth1/1,,leaf2,Eth1/1\n"), Settings{},
			[]string{"name=n1 mac=52:54:00:00:00:01 switch-ports=leaf1:Eth1/1@52:54:00:00:00:01 leaf2:Eth1/1"}},
		{"what hardware is expected", "", []byte("name;Serial;RAM (GB);Kerne;Festplatten\nn1;S1;512,0;2x;\n"), Settings{}, nil},
		{"amounts of memory", "", []byte("name;serial;RAM GB;cores;disks\nn1;S1;512,0;64;10\nn2;S2;0,5 TB;;\nn3;S3;16 x 32 GB;;\n"), Settings{},
			[]string{"name=n1 serial=S1 memory=512 GiB cores=64 disks=10", "name=n2 serial=S2 memory=512 GiB", "name=n3 serial=S3 memory=512 GiB"}},
		{"nothing in many spellings, blades", "", []byte("chassis,slot,bay serial,serial,bmc ip\nenc1,1,,n/a,https://10.0.9.1/\nenc1,Bay 2,,S2,-\n"), Settings{},
			[]string{"name=enc1-s1 chassis=enc1 slot=1 bmc-address=10.0.9.1", "name=enc1-s2 chassis=enc1 slot=2 serial=S2"}},
		{"addresses that count", "", []byte("mac\n52:54:00:00:00:01\n52:54:00:00:00:02\n"), Settings{NameTemplate: "n{{.Sequence}}", AddressTemplate: `{{ip "10.0.0.254" .Sequence}}`},
			[]string{"name=n1 mac=52:54:00:00:00:01 address=10.0.0.255", "name=n2 mac=52:54:00:00:00:02 address=10.0.1.0"}},
		{"YAML with defaults and templates", "x.yaml", []byte("name: 'core-{{.Rack}}-{{.Unit}}'\naddress: '10.12.{{.Rack}}.{{.Unit}}'\nprofile: worker\ndefaults: {rack: 4}\nmachines:\n- {unit: 1, serial: 0012, macs: ['52:54:00:00:00:01'], labels: {role: db}}\n- unit: 2\n  bmc mac: 52:54:00:00:00:0a\n"), Settings{},
			[]string{"name=core-4-1 rack=4 unit=1 serial=0012 mac=52:54:00:00:00:01 address=10.12.4.1 labels=role=db profile=worker", "name=core-4-2 rack=4 unit=2 bmc-mac=52:54:00:00:00:0a address=10.12.4.2 profile=worker"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, _, err := read(t, cmpOr(test.file, "x.csv"), test.data, test.settings)
			if test.want == nil {
				if err == nil {
					t.Fatalf("no error; got %q", got)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func TestNotationsOfMACs(t *testing.T) {
	for _, text := range []string{"52:54:00:AB:cd:0e", "52-54-00-AB-CD-0E", "5254.00ab.cd0e", "525400ABCD0E", "52 54 00 ab cd 0e", "52:54:0:ab:cd:e", "5254-00ab-cd0e"} {
		if got, err := parseMACs(text); err != nil || !slices.Equal(got, []string{"52:54:00:ab:cd:0e"}) {
			t.Errorf("%s: %q, %v", text, got, err)
		}
	}
	if got, err := parseMACs("52:54:00:00:00:01 / 52-54-00-00-00-02,\n525400000003"); err != nil || len(got) != 3 {
		t.Errorf("three in one cell: %q, %v", got, err)
	}
	for text, why := range map[string]string{
		"52:54:00:ab:cd":          "is no MAC",
		"52:54:00:ab:cd:0e (eth0": "is no MAC",
		"112233445":               "has 9 digits, not 12; a spreadsheet drops leading zeros",
		"1.12233E+11":             "took for a number",
		"00:00:00:00:00:00":       "zeros",
		"ff:ff:ff:ff:ff:ff":       "broadcast",
		"88:88:88:88:87:88":       "tells this machine from no other",
		"0002c903000010f2":        "not a GUID of InfiniBand",
	} {
		if got, err := parseMACs(text); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %q, %v", text, got, err)
		}
	}
}

// All that is wrong is told at once, each with its place.
func TestProblems(t *testing.T) {
	for _, test := range []struct {
		name, file, text string
		settings         Settings
		want             []string
	}{
		{"values", "x.csv", "Rack,Unit,Serial,MAC,IP,RAM\na1,zwölf,S1,52:54:00:00:00:01,10.0.0.1,lots\na1,2,S2,xx,10.0.0.300,1.024 GB\na1,101,Default string,,,\n", Settings{}, []string{
			`line 2, column "Unit": "zwölf" is no rack unit; want a number from 1 to 100, such as 12, U12 or 12-13`,
			`line 2, column "RAM": "lots" is no amount of memory; want one such as 512 GB`,
			`line 3, column "MAC": "xx" is no MAC`,
			`line 3, column "IP": "10.0.0.300" is not the IP address of a host`,
			`line 3, column "RAM": "1.024 GB" can be read in two ways; write 1024, or 1`,
			`line 4, column "Unit": "101" is no rack unit`,
			`line 4, column "Serial": "Default string" is on many machines`,
			`line 4: has no serial, MAC, UUID, BMC MAC or BMC address: nothing would tell which machine it is`,
		}},
		{"what two lines have", "x.csv", "name,rack,unit,serial,mac,bmc ip,ip\nn1,a1,1,S1,52:54:00:00:00:01,10.0.9.1,10.0.0.1\nN1,a1,1,s1,52-54-00-00-00-01,10.0.9.1,10.0.0.1\n", Settings{}, []string{
			`line 3, column "name": name n1 is in line 2 already`,
			`line 3, column "serial": serial S1 is in line 2 already`,
			`line 3, column "ip": address 10.0.0.1 is in line 2 already`,
			`line 3, column "mac": MAC 52:54:00:00:00:01 is in line 2 already`,
			`line 3, column "bmc ip": the BMC at 10.0.9.1 is in line 2 already`,
			`line 3, column "unit": the place rack a1, unit 1 is in line 2 already`,
		}},
		{"templates", "x.csv", "rack,unit,serial\n,1,S1\na1,300,S2\n", Settings{NameTemplate: "n-{{.Rack}}-{{.Unit}}"}, []string{`line 3, column "unit": "300" is no rack unit`}},
		{"templates that ask for more", "x.csv", "rack,unit,serial\n,1,S1\n12,,S2\n", Settings{NameTemplate: "n-{{.Rack}}-{{.Sequence}}", AddressTemplate: "10.0.{{.Rack}}.{{.Unit}}"}, []string{
			`line 2: has no name, and template "n-{{.Rack}}-{{.Sequence}}" asks for the rack`,
			`line 2: has no address, and template "10.0.{{.Rack}}.{{.Unit}}" asks for the rack`,
			`line 3: has no address, and template "10.0.{{.Rack}}.{{.Unit}}" asks for the unit`,
		}},
		{"an address that is none", "x.csv", "name,serial\nn1,S1\n", Settings{AddressTemplate: "10.0.0.{{add .Sequence 255}}"}, []string{`line 2: has no address, and "10.0.0.256" is not the IP address of a host`}},
		{"a quote that does not end", "x.csv", "rack,unit,serial\na1,1,\"S1\na1,2,S2\n", Settings{}, []string{`line 2: a quoted field begins here that does not end: "\"S1"`}},
		{"two columns of one meaning", "x.csv", "rack,schrank,serial\na,b,S1\n", Settings{}, []string{`line 1, column "schrank": means "rack", as column "rack" does; rename one of them`}},
		{"no header", "x.csv", "a,b\nc,d\n", Settings{}, []string{`no line has two headers that are known`}},
		{"nothing at all", "x.csv", "", Settings{}, []string{`no line has two headers that are known`}},
		{"no machines", "x.csv", "rack,unit,serial\n,,\n", Settings{}, []string{`the sheet has no machine`}},
		{"YAML with a map as value", "x.yaml", "machines:\n- unit: {a: 1}\n- 7\n", Settings{}, []string{`line 2, column unit: has keys of its own`, `line 3: is no machine`}},
		{"YAML with a key for nobody", "x.yaml", "colour: red\nmachines:\n- {name: a, serial: S1}\n", Settings{}, []string{`line 1, column colour: is no value that can hold for all machines`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, _, err := read(t, test.file, []byte(test.text), test.settings)
			var problems Problems
			if !errors.As(err, &problems) {
				t.Fatalf("got %q, %v", got, err)
			}
			for i := range max(len(problems), len(test.want)) {
				switch {
				case i >= len(problems):
					t.Errorf("missing: %s", test.want[i])
				case i >= len(test.want):
					t.Errorf("unexpected: %s", problems[i])
				case !strings.HasPrefix(problems[i].String(), test.want[i]):
					t.Errorf("got  %s\nwant %s", problems[i], test.want[i])
				}
			}
		})
	}
}

func TestNotes(t *testing.T) {
	_, notes, err := read(t, "x.csv", []byte("Stock of May,,,\nrack,unit,Seriall,Asset tag,serial,\na1,1,,77,S1,stray\nreserved for storage,,,,,\n"), Settings{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, n := range notes {
		got = append(got, n.String())
	}
	want := []string{
		`line 1: "Stock of May" stands above the header, and is not read`,
		`line 2, column "Seriall": is not known, and not read; if it is the column "serial", call it that`,
		`line 2, column "Asset tag": is not known, and not read`,
		`line 3: "stray" has no header above it, and is not read`,
		`line 4: has nothing that identifies a machine, and is not read`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// workbook makes one as Excel would: titles, merged cells, numbers that are numbers, a sheet without machines and a hidden one.
func workbook(t testing.TB) []byte {
	t.Helper()
	f := excelize.NewFile()
	defer f.Close()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(f.SetSheetName("Sheet1", "Halle 4"))
	for i, row := range [][]any{
		{"Server"},
		{},
		{"Rack", "HE", "Seriennr.", "MAC", "", "BMC IP", "RAM (GB)", "Preis"},
		{"A1", 1.0, "CZ1", "52:54:00:00:00:01", "52:54:00:00:00:11", "10.0.9.1", 512, 9999.5},
		{"", 2, 123456789012345, 525400112233, "", "10.0.9.2", 512.0, 1},
		{"B1", "3-4", "CZ3", "52-54-00-00-00-03", "", "10.0.9.3", "0,5 TB", nil},
	} {
		must(f.SetSheetRow("Halle 4", fmt.Sprintf("A%d", i+1), &row))
	}
	must(f.MergeCell("Halle 4", "A1", "G1"))
	must(f.MergeCell("Halle 4", "D3", "E3"))
	must(f.MergeCell("Halle 4", "A4", "A5"))
	for _, name := range []string{"Notizen", "Alt"} {
		_, err := f.NewSheet(name)
		must(err)
	}
	must(f.SetCellValue("Notizen", "A1", "Ansprechpartner: Frau Beispiel"))
	must(f.SetSheetRow("Alt", "A1", &[]any{"Rack", "Serial"}))
	must(f.SetSheetRow("Alt", "A2", &[]any{"Z9", "OLD"}))
	must(f.SetSheetVisible("Alt", false))
	var b bytes.Buffer
	must(f.Write(&b))
	return b.Bytes()
}

func TestWorkbook(t *testing.T) {
	got, notes, err := read(t, "x.xlsx", workbook(t), Settings{})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"name=a1-u1 rack=A1 unit=1 serial=CZ1 mac=52:54:00:00:00:01 52:54:00:00:00:11 bmc-address=10.0.9.1 memory=512 GiB",
		"name=a1-u2 rack=A1 unit=2 serial=123456789012345 mac=52:54:00:11:22:33 bmc-address=10.0.9.2 memory=512 GiB",
		"name=b1-u3 rack=B1 unit=3 serial=CZ3 mac=52:54:00:00:00:03 bmc-address=10.0.9.3 memory=512 GiB",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	text := fmt.Sprint(notes)
	for _, part := range []string{`sheet "Halle 4", line 1`, `column H ("Preis"): is not known`, `sheet "Notizen": no line has two headers`} {
		if !strings.Contains(text, part) {
			t.Errorf("no note %s in %s", part, text)
		}
	}
	if strings.Contains(text, "OLD") || strings.Contains(text, "Alt") {
		t.Errorf("a hidden sheet was read: %s", text)
	}
}

func machineOf(name string, change func(*v1alpha1.Machine)) v1alpha1.Machine {
	m := v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: name}}
	change(&m)
	return m
}

func TestCompare(t *testing.T) {
	lease := func(m *v1alpha1.Machine) { m.Status.Lease = &v1alpha1.LeaseStatus{Address: "10.0.0.77"} }
	subnets := []v1alpha1.Subnet{{ObjectMeta: metav1.ObjectMeta{Name: "rack"}, Spec: v1alpha1.SubnetSpec{CIDR: "10.0.0.0/24", Gateway: "10.0.0.1", Discovery: "10.0.0.100-10.0.0.200"}}}
	machines := []v1alpha1.Machine{
		machineOf("same", func(m *v1alpha1.Machine) {
			m.Spec.Identifiers.Serial, m.Spec.Location = "S1", v1alpha1.Location{Rack: "a1", Unit: 1}
		}),
		machineOf("m-525400000002", func(m *v1alpha1.Machine) {
			m.Status.Inventory = &v1alpha1.Inventory{System: v1alpha1.SystemInfo{Serial: "s2"}, NICs: []v1alpha1.NIC{{MAC: "52:54:00:00:00:02"}}}
		}),
		machineOf("gone", func(m *v1alpha1.Machine) { m.Spec.Location = v1alpha1.Location{Rack: "a1", Unit: 40} }),
		machineOf("elsewhere", func(m *v1alpha1.Machine) {
			lease(m)
			m.Spec.Location = v1alpha1.Location{Rack: "z9", Unit: 1}
			m.Spec.Identifiers.MACs = []string{"52:54:00:00:00:99"}
		}),
	}
	compare := func(t *testing.T, text string) ([]Change, error) {
		t.Helper()
		grids, err := Read("x.csv", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		sheet, err := Parse(grids, Settings{})
		if err != nil {
			t.Fatal(err)
		}
		wanted, err := sheet.Machines()
		if err != nil {
			t.Fatal(err)
		}
		changes, _, err := sheet.Compare(wanted, World{Machines: machines, Subnets: subnets})
		return changes, err
	}
	changes, err := compare(t, "name,rack,unit,serial,mac,ip\nsame,a1,1,S1,,\nsecond,a1,2,S2,52:54:00:00:00:02,10.0.0.12\nnew,a1,3,S3,,10.0.0.13\n")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range changes {
		got = append(got, fmt.Sprintf("%s %s %d %v", c.Action, c.Machine, c.Line, c.Fields))
	}
	want := []string{
		"unchanged same 2 []",
		"change m-525400000002 3 [{hostname  second} {rack  a1} {unit  2} {serial  S2} {mac  52:54:00:00:00:02} {address  10.0.0.12} {subnet  rack}]",
		"create new 4 [{name  new} {rack  a1} {unit  3} {serial  S3} {address  10.0.0.13} {subnet  rack}]",
		"missing gone 0 []",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	_, err = compare(t, "name,rack,unit,serial,mac,ip\nsame,a1,1,S2,,10.0.0.1\nn2,a1,40,S9,52:54:00:00:00:99 52:54:00:00:00:02,10.0.0.77\nelsewhere2,z9,1,S4,,10.0.0.150\nfar,z9,2,S5,,10.9.0.1\n")
	var problems Problems
	if !errors.As(err, &problems) {
		t.Fatal(err)
	}
	text := problems.Error()
	for _, part := range []string{
		`line 2, column "name": is called as machine same of the server, but is m-525400000002 by its serial S2`,
		`line 2, column "ip": 10.0.0.1 is the gateway`,
		`line 3: can be several machines of the server: elsewhere by its MAC 52:54:00:00:00:99, m-525400000002 by its MAC 52:54:00:00:00:02`,
		`line 4, column "ip": 10.0.0.150 lies in the discovery range`,
		`line 4, column "unit": the place rack z9, unit 1 belongs to machine elsewhere of the server`,
		`line 5, column "ip": 10.9.0.1 is in no Subnet of the server; there are rack (10.0.0.0/24)`,
	} {
		if !strings.Contains(text, part) {
			t.Errorf("no %s in\n%s", part, text)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add("x.csv", []byte("rack;HE;SN;MAC\na1;1,0;S1;52:54:00:00:00:01\n"))
	f.Add("x.csv", []byte("Rack: a1\n\"unit\",serial\n\"1\n\",S1\n"))
	f.Add("x.csv", toUTF16("rack\tunit\n1\t2\n", binary.LittleEndian, true))
	f.Add("x.yaml", []byte("defaults: {rack: a}\nmachines:\n- &a {unit: 1, serial: S, macs: [a, b]}\n- *a\n"))
	f.Add("x.xlsx", workbook(f))
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		grids, err := Read(name, data)
		if err != nil {
			return
		}
		sheet, err := Parse(grids, Settings{})
		if err != nil {
			return
		}
		wanted, err := sheet.Machines()
		if err != nil {
			return
		}
		for _, w := range wanted {
			if w.Machine.Name == "" || !w.Row.hasIdentity() {
				t.Errorf("a machine that nobody can recognise: %+v", w.Machine)
			}
		}
		if _, _, err := sheet.Compare(wanted, World{}); err != nil {
			t.Errorf("an empty server refuses it: %v", err)
		}
	})
}

// What is exported is imported as it was, in every form.
func TestRoundTrip(t *testing.T) {
	memory := resource.MustParse("512Gi")
	machines := []v1alpha1.Machine{
		machineOf("b", func(m *v1alpha1.Machine) {
			m.Labels = map[string]string{"group": "db", "role": "primary", "zone": "z1"}
			m.Spec = v1alpha1.MachineSpec{
				Identifiers: v1alpha1.Identifiers{MACs: []string{"52:54:00:00:00:02", "52:54:00:00:00:12"}, Serial: "=00123", UUID: "4c4c4544-0035-4c10-8051-c4c04f4a3232", BMCMAC: "52:54:00:00:00:22"},
				Location:    v1alpha1.Location{Site: "ber", Room: "Halle 4", Rack: "A1", Unit: 2, Chassis: "enc-1", Slot: 3},
				BMC:         &v1alpha1.BMC{Address: "10.0.9.2:623", Protocol: "ipmi", CredentialsSecret: "bmc-a1"}, Approved: true, Hostname: "db-1", Profile: "worker",
				Network:  &v1alpha1.MachineNetwork{Subnet: "rack", Address: "10.0.0.12"},
				Expected: &v1alpha1.Expected{Memory: &memory, Cores: 64, Disks: 10, SwitchPorts: []v1alpha1.SwitchPort{{Switch: "leaf1", Port: "Eth1/2:1", MAC: "52:54:00:00:00:02"}, {Switch: "leaf2"}}},
			}
		}),
		machineOf("a", func(m *v1alpha1.Machine) { m.Spec.Identifiers.Serial = "+7" }),
	}
	world := World{Machines: machines, Subnets: []v1alpha1.Subnet{{ObjectMeta: metav1.ObjectMeta{Name: "rack"}, Spec: v1alpha1.SubnetSpec{CIDR: "10.0.0.0/24"}}}}
	for name, encode := range map[string]func([][]string) ([]byte, error){"x.csv": CSV, "x.xlsx": Workbook, "x.yaml": YAML} {
		data, err := encode(Table(machines))
		if err != nil {
			t.Fatal(err)
		}
		grids, err := Read(name, data)
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, data)
		}
		changes, notes, err := Plan(grids, Settings{}, world)
		if err != nil || len(notes) > 0 {
			t.Errorf("%s: %v %v", name, err, notes)
		}
		for _, c := range changes {
			if c.Action != Unchanged {
				t.Errorf("%s: %s %s %v", name, c.Action, c.Machine, c.Fields)
			}
		}
		// On a server that lost everything they are made anew.
		changes, _, err = Plan(grids, Settings{}, World{Subnets: world.Subnets})
		if err != nil || len(changes) != 2 {
			t.Fatalf("%s: %v %v", name, changes, err)
		}
		for _, c := range changes {
			at := slices.IndexFunc(machines, func(m v1alpha1.Machine) bool { return m.Name == c.Machine })
			if at < 0 || len(Differences(&machines[at], c.After)) > 0 {
				t.Errorf("%s: %s is not as it was: %v", name, c.Machine, Differences(&machines[max(at, 0)], c.After))
			}
		}
	}
}

// A site of ten thousand machines is one sheet.
func TestManyLines(t *testing.T) {
	var b strings.Builder
	b.WriteString("rack,unit,serial,mac,address\n")
	for i := range 10_000 {
		fmt.Fprintf(&b, "r%d,%d,S%d,5254%08x,10.%d.%d.%d\n", i/40, i%40+1, i, i, i/40/200+1, i/40%200, i%40+1)
	}
	grids, err := Read("x.csv", []byte(b.String()))
	if err != nil {
		t.Fatal(err)
	}
	changes, notes, err := Plan(grids, Settings{}, World{})
	if err != nil || len(changes) != 10_000 {
		t.Errorf("%d changes, %v", len(changes), err)
	}
	if len(notes) != 1 { // no Subnet is there yet
		t.Errorf("%d notes", len(notes))
	}
}
