package lab

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSizes(t *testing.T) {
	for text, want := range map[string]Size{
		"1KiB": 1 << 10, "512MiB": 512 * MiB, "8GiB": 8 * GiB, "2TiB": 2 << 40, "8Gi": 8 * GiB, "8G": 8 * GiB, "100 MiB": 100 * MiB,
	} {
		got, err := ParseSize(text)
		if err != nil || got != want {
			t.Errorf("%q is %d (%v), want %d", text, got, err, want)
		}
		if again, err := ParseSize(got.String()); err != nil || again != got {
			t.Errorf("%q prints as %q, which reads as %d (%v)", text, got, again, err)
		}
	}
	for _, text := range []string{"", "8", "GiB", "0GiB", "-1GiB", "1.5GiB", "8 gigabytes", "8GG", "99999999999TiB", "8iB"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("%q is taken for %d", text, got)
		}
	}
}

func TestASpecFollowsFromNameAndIndex(t *testing.T) {
	o := Options{Dir: "/x", Name: "rack", Firmware: Mixed, NICs: 2, Disks: []Size{8 * GiB, GiB}}.withDefaults()
	want := Spec{
		Name: "rack-2", Index: 2, Firmware: UEFI, CPUs: 2, Nice: 5, Memory: 2 * GiB, Bus: SCSI,
		Disks: []Disk{
			{Size: 8 * GiB, Serial: "LAB33C9-002-D0", WWN: "5525400033c90200"},
			{Size: GiB, Serial: "LAB33C9-002-D1", WWN: "5525400033c90201"},
		},
		MACs:   []string{"52:54:00:c9:02:00", "52:54:00:c9:02:01"},
		UUID:   "c358cadd-c63a-5428-9dd6-f657fb6bde8a",
		Serial: "LAB33C9-002",
	}
	got := specOf(o, 2)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := specOf(o, 3).Firmware; got != BIOS {
		t.Errorf("the third machine of a mixed lab has %s", got)
	}
}

func TestNoTwoMachinesAreAlike(t *testing.T) {
	seen := map[string]string{}
	for _, lab := range []string{"lab", "demo", "e2e"} {
		o := Options{Dir: "/x", Name: lab, NICs: 2, Disks: []Size{GiB, GiB}}.withDefaults()
		for index := 1; index <= MaxMachines; index++ {
			s := specOf(o, index)
			identifiers := append([]string{s.UUID, s.Serial}, s.MACs...)
			for _, disk := range s.Disks {
				if len(disk.Serial) > 20 || len(disk.WWN) != 16 {
					t.Fatalf("%s: disk %+v does not fit", s.Name, disk)
				}
				identifiers = append(identifiers, disk.Serial, disk.WWN)
			}
			for _, id := range identifiers {
				if other, taken := seen[id]; taken {
					t.Fatalf("%s and %s both have %s", other, s.Name, id)
				}
				seen[id] = s.Name
			}
			for nic := range s.MACs {
				if name := tapOf(index, nic); len(name) > 15 {
					t.Fatalf("interface name %s is too long", name)
				}
			}
		}
	}
}

func TestTheServerHasTheFirstAddress(t *testing.T) {
	for subnet, want := range map[string]string{
		"10.77.0.0/24": "10.77.0.1/24",
		"10.9.8.77/16": "10.9.0.1/16",
		"192.0.2.8/29": "192.0.2.9/29",
	} {
		if got := serverAddress(netip.MustParsePrefix(subnet)).String(); got != want {
			t.Errorf("%s: server has %s, want %s", subnet, got, want)
		}
	}
}

func TestOptionsThatCannotWork(t *testing.T) {
	for name, test := range map[string]struct {
		options Options
		want    string
	}{
		"no folder":                               {Options{Dir: "-"}, "folder is not given"},
		"a name that is a path":                   {Options{Name: "../x"}, `name "../x"`},
		"a name that is too long":                 {Options{Name: strings.Repeat("a", 33)}, "up to 32"},
		"too many machines":                       {Options{Machines: 251}, "251 machines: must be between 0 and 250"},
		"a firmware that nobody has":              {Options{Firmware: "coreboot"}, `firmware "coreboot": must be bios, uefi or mixed`},
		"memory below what firmware needs":        {Options{Memory: MiB}, "memory 1MiB: must be whole MiB and at least 64MiB"},
		"a disk of odd size":                      {Options{Disks: []Size{MiB + 512}}, "must be whole MiB"},
		"a bus of another age":                    {Options{Bus: "floppy"}, "must be scsi, virtio, nvme or sata"},
		"more SATA disks than ports":              {Options{Bus: SATA, Disks: make([]Size, 7)}, "six ports"},
		"an IPv6 subnet":                          {Options{Subnet: netip.MustParsePrefix("2001:db8::/64")}, "must be IPv4"},
		"a subnet without room":                   {Options{Subnet: netip.MustParsePrefix("10.0.0.0/30")}, "at least a /29"},
		"two processors with a time of their own": {Options{CPUs: 2, OwnTime: true}, "only one can have that"},
		"an accelerator that does not exist":      {Options{Accelerator: "xen"}, "must be kvm or tcg"},
	} {
		t.Run(name, func(t *testing.T) {
			switch test.options.Dir {
			case "":
				test.options.Dir = t.TempDir()
			case "-":
				test.options.Dir = ""
			}
			_, err := Create(t.Context(), test.options)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v, want one with %q", err, test.want)
			}
		})
	}
}
