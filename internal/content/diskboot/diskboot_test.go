package diskboot_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"strings"
	"testing"

	"coldrack.dev/internal/content/diskboot"
)

// fakeBoot and fakeCore have what the package looks at, and recognisable bytes elsewhere. That the
// real images start a real machine is shown by the end-to-end tests.
func fakeBoot() []byte {
	b := bytes.Repeat([]byte{0xB0}, 512)
	copy(b[0x180:], "GRUB \x00Geom")
	b[0x64] = 0xff
	b[510], b[511] = 0x55, 0xaa
	return b
}

func fakeCore(size int) []byte {
	b := bytes.Repeat([]byte{0xC0}, size)
	if size >= 512 {
		binary.LittleEndian.PutUint16(b[510:], 0x820)
	}
	return b
}

type disk []byte

func (d disk) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(d).ReadAt(p, off) }

func (d disk) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > int64(len(d)) {
		return 0, io.ErrShortWrite
	}
	return copy(d[off:], p), nil
}

func TestInstallBIOS(t *testing.T) {
	d := disk(bytes.Repeat([]byte{0xD0}, 600*512))
	if err := diskboot.InstallBIOS(d, fakeBoot(), fakeCore(1500), 34, 100); err != nil {
		t.Fatal(err)
	}
	mbr := d[:512]
	if got := binary.LittleEndian.Uint64(mbr[0x5c:]); got != 34 {
		t.Errorf("the boot sector loads LBA %d, want 34", got)
	}
	for name, r := range map[string][3]int{
		"the parameter block is the disk's":                 {0x03, 0x5a, 0xD0},
		"disk signature and partition table are the disk's": {0x1b8, 0x1fe, 0xD0},
		"the code is GRUB's":                                {0x68, 0x180, 0xB0},
		"the drive check is disabled":                       {0x66, 0x68, 0x90},
		"the drive is the one that the BIOS names":          {0x64, 0x65, 0xff},
		"nothing before the boot partition changed":         {512, 34 * 512, 0xD0},
		"core.img's code is there":                          {34 * 512, 34*512 + 500, 0xC0},
		"core.img's last sector is padded with zeros":       {34*512 + 1500, 37 * 512, 0},
		"nothing after core.img changed":                    {37 * 512, 600 * 512, 0xD0},
	} {
		if got := d[r[0]:r[1]]; strings.Trim(string(got), string([]byte{byte(r[2])})) != "" {
			t.Errorf("%s: bytes %#x to %#x are not all %#x", name, r[0], r[1], r[2])
		}
	}
	list := d[34*512+500:]
	if start, n := binary.LittleEndian.Uint64(list), binary.LittleEndian.Uint16(list[8:]); start != 35 || n != 2 {
		t.Errorf("core.img loads %d sectors from LBA %d, want 2 from 35", n, start)
	}
}

func TestInstallBIOSRefusesWhatWouldNotStart(t *testing.T) {
	for name, tt := range map[string]struct {
		boot, core   []byte
		lba, sectors uint64
		want         string
	}{
		"a boot sector that is not GRUB's":     {bytes.Repeat([]byte{0}, 512), fakeCore(1500), 34, 100, "not a boot sector"},
		"a boot.img cut short":                 {fakeBoot()[:100], fakeCore(1500), 34, 100, "has 100 bytes"},
		"a core.img for another platform":      {fakeBoot(), make([]byte, 1500), 34, 100, "segment 0x0"},
		"an empty core.img":                    {fakeBoot(), nil, 34, 100, "has 0 bytes"},
		"a core.img larger than its partition": {fakeBoot(), fakeCore(1500), 34, 2, "needs 3 sectors"},
		"a core.img over the boot sector":      {fakeBoot(), fakeCore(1500), 0, 100, "LBA 0"},
	} {
		t.Run(name, func(t *testing.T) {
			d := disk(bytes.Repeat([]byte{0xD0}, 600*512))
			before := bytes.Clone(d)
			err := diskboot.InstallBIOS(d, tt.boot, tt.core, tt.lba, tt.sectors)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error is %v, want %q in it", err, tt.want)
			}
			if !bytes.Equal(d, before) {
				t.Error("the disk was changed")
			}
		})
	}
}
