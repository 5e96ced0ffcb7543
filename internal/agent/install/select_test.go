package install

import (
	"strings"
	"testing"

	"coldrack.dev/internal/contract/wire"
)

func TestSelectDisk(t *testing.T) {
	const gib = 1 << 30
	yes, no := true, false
	ssd := wire.Disk{Name: "sda", ByID: []string{"wwn-0x55cd2e4150e3f5a1", "ata-INTEL_SSD_PHYF01"}, Model: "INTEL SSD", Serial: "PHYF01", WWN: "0x55cd2e4150e3f5a1", SizeBytes: 480 * gib, Transport: "sata"}
	twin := wire.Disk{Name: "sdb", ByID: []string{"ata-INTEL_SSD_PHYF02"}, Model: "INTEL SSD", Serial: "PHYF02", SizeBytes: 480 * gib, Transport: "sata"}
	data := wire.Disk{Name: "sdc", Model: "ST12000", SizeBytes: 12000 * gib, Transport: "sas", Rotational: true}
	nvme := wire.Disk{Name: "nvme0n1", Model: "P5500", SizeBytes: 1920 * gib, Transport: "nvme"}
	stick := wire.Disk{Name: "sdd", SizeBytes: 32 * gib, Transport: "usb", Removable: true}
	locked := wire.Disk{Name: "sde", SizeBytes: 64 * gib, Transport: "sata", ReadOnly: true}
	tiny := wire.Disk{Name: "sdf", SizeBytes: gib, Transport: "sata"}
	for name, tt := range map[string]struct {
		disks []wire.Disk
		hints wire.DiskHints
		inUse map[string]string
		want  string // name of the disk, or
		fails []string
	}{
		"the only disk needs no hint":                      {disks: []wire.Disk{ssd}, want: "sda"},
		"the only disk that can be installed to":           {disks: []wire.Disk{stick, locked, tiny, nvme}, want: "nvme0n1"},
		"two disks and no hint":                            {disks: []wire.Disk{ssd, nvme}, fails: []string{"2 disks match", "no rootDisk hint", "sda (480 GiB, sata, INTEL SSD, serial PHYF01): matches", "nvme0n1"}},
		"a serial, in whatever case":                       {disks: []wire.Disk{ssd, twin, data}, hints: wire.DiskHints{Serial: "phyf02"}, want: "sdb"},
		"a WWN as the label has it":                        {disks: []wire.Disk{ssd, twin}, hints: wire.DiskHints{WWN: "55CD2E4150E3F5A1"}, want: "sda"},
		"a WWN as sysfs has it":                            {disks: []wire.Disk{ssd, twin}, hints: wire.DiskHints{WWN: "naa.55cd2e4150e3f5a1"}, want: "sda"},
		"a by-id name":                                     {disks: []wire.Disk{ssd, twin}, hints: wire.DiskHints{ByID: "ata-INTEL_SSD_PHYF02"}, want: "sdb"},
		"a by-id pattern with its folder":                  {disks: []wire.Disk{ssd, data}, hints: wire.DiskHints{ByID: "/dev/disk/by-id/ata-INTEL*"}, fails: []string{"rootDisk.byID", "leave the folder out"}},
		"a by-id pattern that two match":                   {disks: []wire.Disk{ssd, twin}, hints: wire.DiskHints{ByID: "ata-INTEL*"}, fails: []string{"2 disks match", "byID=ata-INTEL*"}},
		"a model pattern":                                  {disks: []wire.Disk{ssd, nvme}, hints: wire.DiskHints{Model: "p55*"}, want: "nvme0n1"},
		"a transport":                                      {disks: []wire.Disk{ssd, nvme}, hints: wire.DiskHints{Transport: "nvme"}, want: "nvme0n1"},
		"what does not rotate":                             {disks: []wire.Disk{data, nvme}, hints: wire.DiskHints{Rotational: &no}, want: "nvme0n1"},
		"what rotates":                                     {disks: []wire.Disk{data, nvme}, hints: wire.DiskHints{Rotational: &yes}, want: "sdc"},
		"between two sizes":                                {disks: []wire.Disk{ssd, nvme, data}, hints: wire.DiskHints{MinSizeBytes: 500 * gib, MaxSizeBytes: 2000 * gib}, want: "nvme0n1"},
		"the smallest":                                     {disks: []wire.Disk{data, nvme, ssd}, hints: wire.DiskHints{Smallest: true}, want: "sda"},
		"the smallest of what a hint leaves":               {disks: []wire.Disk{data, nvme, ssd}, hints: wire.DiskHints{Smallest: true, MinSizeBytes: 1000 * gib}, want: "nvme0n1"},
		"the smallest is never one that is too small":      {disks: []wire.Disk{tiny, ssd}, hints: wire.DiskHints{Smallest: true}, want: "sda"},
		"two smallest of the same size":                    {disks: []wire.Disk{ssd, twin, data}, hints: wire.DiskHints{Smallest: true}, fails: []string{"2 disks match", "sdc (11.7 TiB, sas, ST12000): is not the smallest"}},
		"hints that hold for different disks only":         {disks: []wire.Disk{ssd, nvme}, hints: wire.DiskHints{Transport: "nvme", Serial: "PHYF01"}, fails: []string{"no disk matches", "sda (480 GiB, sata, INTEL SSD, serial PHYF01): is attached by \"sata\"", "has another serial"}},
		"a disk that matches but is too small":             {disks: []wire.Disk{tiny}, hints: wire.DiskHints{Transport: "sata"}, fails: []string{"no disk matches", "is too small: the image needs 4 GiB"}},
		"a stick that matches":                             {disks: []wire.Disk{stick}, hints: wire.DiskHints{Transport: "usb"}, fails: []string{"is removable"}},
		"a disk with a write lock":                         {disks: []wire.Disk{locked}, fails: []string{"is read-only"}},
		"the disk that the running system was booted from": {disks: []wire.Disk{ssd}, inUse: map[string]string{"sda": "mounted at /"}, fails: []string{"in use by the running system: mounted at /"}},
		"no disk at all":                                   {fails: []string{"shows no disk at all"}},
		"a broken pattern":                                 {disks: []wire.Disk{ssd}, hints: wire.DiskHints{ByID: "["}, fails: []string{"rootDisk.byID", "is not a pattern"}},
		"a broken pattern of a model":                      {disks: []wire.Disk{ssd}, hints: wire.DiskHints{Model: `x\`}, fails: []string{"rootDisk.model", "is not a pattern"}},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := SelectDisk(tt.disks, tt.hints, 4*gib, tt.inUse)
			if d.Name != tt.want {
				t.Errorf("chose %q, want %q (%v)", d.Name, tt.want, err)
			}
			if (err == nil) != (len(tt.fails) == 0) {
				t.Fatalf("error is %v", err)
			}
			for _, part := range tt.fails {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q is not in: %v", part, err)
				}
			}
		})
	}
}
