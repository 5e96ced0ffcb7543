package inventory

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	"golang.org/x/tools/txtar"

	"coldrack.dev/internal/contract/wire"
)

func rackServer(t *testing.T) wire.Inventory {
	t.Helper()
	a, err := txtar.ParseFile(filepath.Join("testdata", "rack-server-uefi.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	c := Collector{Root: tree(t, a), NVMeHealth: func(string) ([]byte, error) { return healthPage(1, 311, 4, 10, 97), nil }}
	inv := c.Collect("")
	inv.Hardware.PCI = append(inv.Hardware.PCI, Collector{Root: pciTree(t, gpuServer)}.PCI()...)
	return inv
}

func TestWriteTable(t *testing.T) {
	var out bytes.Buffer
	if err := Write(&out, "table", rackServer(t)); err != nil {
		t.Fatal(err)
	}
	want := `Model:      Dell Inc. PowerEdge R650
Serial:     7XK2M93
UUID:       4c4c4544-0058-4b10-8032-b7c04f4d3933
CPU:        2 x Intel(R) Xeon(R) Gold 6338 CPU @ 2.00GHz, 4 cores, 8 threads
Microcode:  0xd0003e7
Memory:     32 GiB
Firmware:   UEFI, Secure Boot, TPM 2.0, 1.12.1 09/14/2023

MEMORY SLOT  SIZE    TYPE      SPEED              MANUFACTURER  PART              SERIAL
A1           16 GiB  DDR4 ECC  2933 of 3200 MT/s  00CE00B300CE  M393A2K43DB3-CWE  19D2B5F3
B1           16 GiB  DDR4 ECC  2933 of 3200 MT/s  00CE00B300CE  M393A2K43DB3-CWE  19D2B6A7
A2           empty

PCI           CLASS         DEVICE  IDS        NUMA  LINK                DRIVER
0000:65:00.0  class 010802          8086:0b60  1     x4, 16 GT/s         nvme
0000:03:00.0  class 030000          1a03:2000  0
0000:17:00.0  class 030200          10de:20b5  0     x16, 16 GT/s
0000:65:00.0  class 030200          10de:20b5  1     x8 of x16, 16 GT/s
0000:81:00.0  class 020000          15b3:1017  1     x8, 8 GT/s          (RDMA)
0000:82:00.0  class 020000          15b3:a2d6  1     x16, 16 GT/s
0000:83:00.0  class 010802          144d:a80a

DISK     SIZE       TRANSPORT  MODEL                              SERIAL          FIRMWARE  HEALTH
nvme0n1  1.7 TiB    nvme       Dell Ent NVMe P5500 RI U.2 1.92TB  S5XXNE0R123456  1.2.1     WARNS OF spare; 97% used, spare 4%, 38 °C, 2 media errors
sda      447.1 GiB  sata       INTEL SSDSC2KB480G8                PHYF0123480BGN
sdb      10.9 TiB   sas        SEAGATE ST12000NM0027              ZJV0ABCD        E004      offline
sdc      29.3 GiB   usb        SanDisk Ultra

NIC     MAC                DRIVER     LINK
eno1    d0:94:66:10:20:30  bnxt_en    10000 Mbit/s
eno2    d0:94:66:10:20:31  bnxt_en    down
ens3f0  b8:59:9f:00:00:01  mlx5_core  down
usb0    be:3a:f2:b6:05:9f             down
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

// TestYAMLIsTheJSON: the same names and values, in another style.
func TestYAMLIsTheJSON(t *testing.T) {
	inv := rackServer(t)
	inv.System.Serial, inv.System.AssetTag = "0123", "yes" // a number and a truth, if they were not quoted
	var asJSON, asYAML bytes.Buffer
	if err := Write(&asJSON, "json", inv); err != nil {
		t.Fatal(err)
	}
	if err := Write(&asYAML, "yaml", inv); err != nil {
		t.Fatal(err)
	}
	var want, got any
	if err := json.Unmarshal(asJSON.Bytes(), &want); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(asYAML.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if bytes.Contains(asYAML.Bytes(), []byte("{")) {
		t.Errorf("in JSON's style:\n%s", asYAML.Bytes())
	}
}
