package inventory

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/test/require"
)

// pciFunction is one function of a device, as sysfs shows it.
type pciFunction struct {
	path                                    string // below sys/devices, its last part is the address
	class, vendor, device, subVendor, subID int
	numa                                    int
	speed, width, maxSpeed, maxWidth        string
	extra                                   map[string]string
}

// gpuServer is a machine with two GPUs, one of them on half of its lanes, a card with RDMA that a riser of eight lanes holds, a DPU with a
// virtual function, an NVMe disk, and what every server has.
var gpuServer = []pciFunction{
	{path: "pci0000:00/0000:00:00.0", class: 0x060000, vendor: 0x8086, device: 0x09a2, numa: 0},
	{path: "pci0000:00/0000:00:1f.4", class: 0x0c0500, vendor: 0x8086, device: 0xa1a3, numa: 0},
	{path: "pci0000:00/0000:00:1c.0", class: 0x060400, vendor: 0x8086, device: 0xa110, numa: 0, speed: "5.0 GT/s PCIe", width: "1", maxSpeed: "8.0 GT/s PCIe", maxWidth: "4"},
	{path: "pci0000:00/0000:00:1c.0/0000:03:00.0", class: 0x030000, vendor: 0x1a03, device: 0x2000, subVendor: 0x1a03, subID: 0x2000, numa: 0},
	{path: "pci0000:16/0000:16:02.0", class: 0x060400, vendor: 0x8086, device: 0x347a, numa: 0, speed: "16.0 GT/s PCIe", width: "16", maxSpeed: "16.0 GT/s PCIe", maxWidth: "16"},
	{path: "pci0000:16/0000:16:02.0/0000:17:00.0", class: 0x030200, vendor: 0x10de, device: 0x20b5, subVendor: 0x10de, subID: 0x1533, numa: 0, speed: "16.0 GT/s PCIe", width: "16", maxSpeed: "16.0 GT/s PCIe", maxWidth: "16"},
	{path: "pci0000:64/0000:64:02.0", class: 0x060400, vendor: 0x8086, device: 0x347a, numa: 1, speed: "16.0 GT/s PCIe", width: "8", maxSpeed: "16.0 GT/s PCIe", maxWidth: "16"},
	{path: "pci0000:64/0000:64:02.0/0000:65:00.0", class: 0x030200, vendor: 0x10de, device: 0x20b5, subVendor: 0x10de, subID: 0x1533, numa: 1, speed: "16.0 GT/s PCIe", width: "8", maxSpeed: "16.0 GT/s PCIe", maxWidth: "16"},
	{path: "pci0000:80/0000:80:02.0", class: 0x060400, vendor: 0x8086, device: 0x347b, numa: 1, speed: "8.0 GT/s PCIe", width: "8", maxSpeed: "16.0 GT/s PCIe", maxWidth: "8"},
	{path: "pci0000:80/0000:80:02.0/0000:81:00.0", class: 0x020000, vendor: 0x15b3, device: 0x1017, subVendor: 0x15b3, subID: 0x0016, numa: 1, speed: "8.0 GT/s PCIe", width: "8", maxSpeed: "8.0 GT/s PCIe", maxWidth: "16"},
	{path: "pci0000:80/0000:80:03.0/0000:82:00.0", class: 0x020000, vendor: 0x15b3, device: 0xa2d6, numa: 1, speed: "16.0 GT/s PCIe", width: "16", maxSpeed: "16.0 GT/s PCIe", maxWidth: "16"},
	{path: "pci0000:80/0000:80:03.0/0000:82:00.2", class: 0x020000, vendor: 0x15b3, device: 0x101e, numa: 1, speed: "Unknown", width: "0", maxSpeed: "16.0 GT/s PCIe", maxWidth: "16", extra: map[string]string{"physfn@": "../0000:82:00.0"}},
	{path: "pci0000:80/0000:80:04.0/0000:83:00.0", class: 0x010802, vendor: 0x144d, device: 0xa80a, subVendor: 0x144d, subID: 0xa801, numa: -1, speed: "Unknown", width: "255", maxSpeed: "16.0 GT/s PCIe", maxWidth: "4"},
}

func (f pciFunction) address() string { return filepath.Base(f.path) }

// pciTree lays functions out as the kernel does.
func pciTree(t *testing.T, functions []pciFunction) (root string) {
	t.Helper()
	root = t.TempDir()
	write := func(path, content string) {
		t.Helper()
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if link, ok := strings.CutSuffix(path, "@"); ok {
			err = os.Symlink(content, link)
		} else {
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range functions {
		dir := "sys/devices/" + f.path + "/"
		for file, n := range map[string]int{"class": f.class, "vendor": f.vendor, "device": f.device, "subsystem_vendor": f.subVendor, "subsystem_device": f.subID} {
			digits := 4
			if file == "class" {
				digits = 6
			}
			write(dir+file, fmt.Sprintf("0x%0*x\n", digits, n))
		}
		write(dir+"numa_node", fmt.Sprintf("%d\n", f.numa))
		if f.maxWidth != "" {
			write(dir+"current_link_speed", f.speed+"\n")
			write(dir+"current_link_width", f.width+"\n")
			write(dir+"max_link_speed", f.maxSpeed+"\n")
			write(dir+"max_link_width", f.maxWidth+"\n")
		}
		for file, content := range f.extra {
			write(dir+file, content)
		}
		// What lspci wants besides.
		config := make([]byte, 64)
		binary.LittleEndian.PutUint16(config, uint16(f.vendor))
		binary.LittleEndian.PutUint16(config[2:], uint16(f.device))
		binary.LittleEndian.PutUint32(config[8:], uint32(f.class)<<8)
		if f.class>>8 == 0x0604 {
			config[0x0E] = 1
		} else {
			binary.LittleEndian.PutUint16(config[0x2C:], uint16(f.subVendor))
			binary.LittleEndian.PutUint16(config[0x2E:], uint16(f.subID))
		}
		write(dir+"config", string(config))
		write(dir+"resource", strings.Repeat("0x0000000000000000 0x0000000000000000 0x0000000000000000\n", 7))
		write(dir+"irq", "0\n")
		write("sys/bus/pci/devices/"+f.address()+"@", "../../../devices/"+f.path)
	}
	write("sys/class/infiniband/mlx5_0@", "../../devices/pci0000:80/0000:80:02.0/0000:81:00.0/infiniband/mlx5_0")
	write("sys/devices/pci0000:80/0000:80:02.0/0000:81:00.0/infiniband/mlx5_0/device@", "../../../0000:81:00.0")
	write("sys/class/infiniband/rxe0/node_type", "1: CA\n")
	return root
}

func TestPCI(t *testing.T) {
	root := pciTree(t, gpuServer)
	list := `# a list of our own
10de  NVIDIA Corporation
	20b5  GA100 [A100 PCIe 80GB]
		10de 1533  A100 PCIe
15b3  Mellanox Technologies
	1017  MT27800 Family [ConnectX-5]
20b5  A vendor that is called like a device
C 02  Network controller
	00  Ethernet controller
C 03  Display controller
	00  VGA compatible controller
		00  VGA controller
	02  3D controller
`
	if err := os.MkdirAll(filepath.Join(root, "usr/share/hwdata"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "usr/share/hwdata/pci.ids"), []byte(list), 0o644); err != nil {
		t.Fatal(err)
	}
	gpu := wire.PCIDevice{Class: "030200", Vendor: "10de", Device: "20b5", SubVendor: "10de", SubDevice: "1533",
		ClassName: "3D controller", VendorName: "NVIDIA Corporation", DeviceName: "GA100 [A100 PCIe 80GB]"}
	whole, half := gpu, gpu
	whole.Address, whole.NUMANode, whole.Link = "0000:17:00.0", new(0), &wire.PCILink{Width: 16, SpeedMTs: 16000, MaxWidth: 16, MaxSpeedMTs: 16000}
	half.Address, half.NUMANode, half.Link = "0000:65:00.0", new(1), &wire.PCILink{Width: 8, SpeedMTs: 16000, MaxWidth: 16, MaxSpeedMTs: 16000}
	want := []wire.PCIDevice{
		{Address: "0000:03:00.0", Class: "030000", Vendor: "1a03", Device: "2000", SubVendor: "1a03", SubDevice: "2000", ClassName: "VGA compatible controller", NUMANode: new(0)},
		whole, half,
		// The riser has eight lanes: this is all that can be had.
		{Address: "0000:81:00.0", Class: "020000", Vendor: "15b3", Device: "1017", SubVendor: "15b3", SubDevice: "0016", ClassName: "Ethernet controller", VendorName: "Mellanox Technologies",
			DeviceName: "MT27800 Family [ConnectX-5]", NUMANode: new(1), Link: &wire.PCILink{Width: 8, SpeedMTs: 8000, MaxWidth: 8, MaxSpeedMTs: 8000}, RDMA: true},
		{Address: "0000:82:00.0", Class: "020000", Vendor: "15b3", Device: "a2d6", ClassName: "Ethernet controller", VendorName: "Mellanox Technologies", NUMANode: new(1),
			Link: &wire.PCILink{Width: 16, SpeedMTs: 16000, MaxWidth: 16, MaxSpeedMTs: 16000}},
		{Address: "0000:83:00.0", Class: "010802", Vendor: "144d", Device: "a80a", SubVendor: "144d", SubDevice: "a801"},
	}
	if diff := cmp.Diff(want, Collector{Root: root}.PCI()); diff != "" {
		t.Error(diff)
	}
}

// TestLspciReadsTheSame compares with what lspci says of the same tree and of this machine, by the list of names that it uses itself.
func TestLspciReadsTheSame(t *testing.T) {
	require.Need(t, "lspci")
	root := pciTree(t, gpuServer)
	if err := os.MkdirAll(filepath.Join(root, "usr/share/misc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/usr/share/misc/pci.ids", filepath.Join(root, "usr/share/misc/pci.ids")); err != nil {
		t.Fatal(err)
	}
	for _, root := range []string{root, "/"} {
		out, err := exec.Command("lspci", "-A", "linux-sysfs", "-O", "sysfs.path="+filepath.Join(root, "sys/bus/pci"), "-D", "-vmm", "-nn").CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		theirs := map[string]map[string]string{}
		for block := range strings.SplitSeq(string(out), "\n\n") {
			fields := map[string]string{}
			for line := range strings.SplitSeq(block, "\n") {
				k, v, _ := strings.Cut(line, ":\t")
				fields[k] = v
			}
			theirs[fields["Slot"]] = fields
		}
		ours := Collector{Root: root}.PCI()
		if root != "/" && len(ours) == 0 {
			t.Error("no device found")
		}
		for _, d := range ours {
			fields := theirs[d.Address]
			// Where the list has no name, lspci says "Device [1234]".
			named := func(name, what, id string) string {
				if name == "" {
					name = what
				}
				return fmt.Sprintf("%s [%s]", name, id)
			}
			node := ""
			if d.NUMANode != nil {
				node = fmt.Sprint(*d.NUMANode)
			}
			for field, mine := range map[string]string{"Class": named(d.ClassName, "Class", d.Class[:4]), "Vendor": named(d.VendorName, "Vendor", d.Vendor), "Device": named(d.DeviceName, "Device", d.Device), "NUMANode": node} {
				if mine != fields[field] {
					t.Errorf("%s below %s: lspci says %s %q, and we %q", d.Address, root, field, fields[field], mine)
				}
			}
			if sub := fields["SVendor"]; (sub == "") != (d.SubVendor == "") || !strings.Contains(sub, d.SubVendor) {
				t.Errorf("%s below %s: lspci says SVendor %q, and we %q", d.Address, root, sub, d.SubVendor)
			}
		}
	}
}

// healthPage is a log page as NVM Express Base Specification 2.0, figure 207, lays it out.
func healthPage(warning byte, kelvin uint16, spare, threshold, used byte) []byte {
	page := make([]byte, nvmeHealthSize)
	page[0], page[3], page[4], page[5] = warning, spare, threshold, used
	binary.LittleEndian.PutUint16(page[1:], kelvin)
	for offset, n := range map[int]uint64{48: 3_000_000, 112: 12, 128: 20_000, 144: 7, 160: 2} {
		binary.LittleEndian.PutUint64(page[offset:], n)
	}
	return page
}

func TestNVMeHealth(t *testing.T) {
	healthy := &wire.DiskHealth{UsedPercent: 3, SparePercent: 100, SpareThresholdPercent: 10, TemperatureCelsius: 38, PowerOnHours: 20_000, UnsafeShutdowns: 7, MediaErrors: 2, WrittenBytes: 1_536_000_000_000}
	failing := *healthy
	failing.Warnings, failing.UsedPercent, failing.SparePercent = []string{"spare", "reliability", "read-only"}, 143, 4
	endless := *healthy
	endless.WrittenBytes = math.MaxUint64
	huge := healthPage(0, 311, 100, 10, 3)
	huge[48+8] = 1
	for name, tt := range map[string]struct {
		page []byte
		want *wire.DiskHealth
	}{
		"a healthy disk":                       {healthPage(0, 311, 100, 10, 3), healthy},
		"a disk that its vendor has given up":  {healthPage(0b1101, 311, 4, 10, 143), &failing},
		"a counter that does not fit":          {huge, &endless},
		"a controller that knows no such page": {make([]byte, nvmeHealthSize), nil},
		"half a page":                          {make([]byte, 100), nil},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, nvmeHealth(tt.page)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestTheKernelsNumbers: linux/nvme_ioctl.h and linux/ipmi.h, as their macros come out on amd64.
func TestTheKernelsNumbers(t *testing.T) {
	if n := unsafe.Sizeof(nvmeAdminCommand{}); n != 72 {
		t.Errorf("struct nvme_admin_cmd has 72 bytes, not %d", n)
	}
	if nvmeAdminIoctl != 0xC0484E41 || ipmiSend != 0x8028690d || ipmiReceiveTrunc != 0xC030690b {
		t.Errorf("NVME_IOCTL_ADMIN_CMD %#x, IPMICTL_SEND_COMMAND %#x, IPMICTL_RECEIVE_MSG_TRUNC %#x", nvmeAdminIoctl, ipmiSend, ipmiReceiveTrunc)
	}
}

func TestBMCFirmware(t *testing.T) {
	// Get Device ID of a BMC with version 2.14 whose update is under way.
	if got := bmcFirmware([]byte{0x20, 0x81, 0x82, 0x14, 0x02, 0xBF}); got != "2.14" {
		t.Errorf("got %q", got)
	}
	if got := bmcFirmware(nil); got != "" {
		t.Errorf("of nothing: %q", got)
	}
}
