package lab

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"regexp"
)

// Options says what a lab shall be. The zero value of each field but Dir has a default.
type Options struct {
	// Dir is the lab's folder. Everything the lab leaves on the host is in it.
	Dir string
	// Name is "lab". The namespace is called coldrack-NAME.
	Name string
	// Machines is how many there shall be; machines that exist already are kept, with what they are
	// made of, even when there are more.
	Machines int

	Firmware Firmware // Mixed
	CPUs     int      // 2
	// Nice is how readily a machine leaves the host's processors to others, as of nice(1). 5.
	Nice int
	// OwnTime has the clock of an emulated machine go by the instructions that it runs, not by the host's clock. Many such
	// machines on few processors are slow, but none of them notices: what has half a minute by the machine's clock gets as
	// much done in it as if the machine was alone. It needs one CPU. With KVM, clocks are the host's in any case.
	OwnTime bool

	Memory Size   // 2GiB
	Disks  []Size // one of 8GiB
	Bus    Bus    // SCSI
	NICs   int    // 1

	// Subnet is 10.77.0.0/24; its first address is the server's.
	Subnet netip.Prefix
	// Accelerator is found out by trying when it is empty.
	Accelerator Accelerator

	// Log hears of what takes time or surprises; nil discards.
	Log *slog.Logger
}

// DefaultSubnet is the network of a lab that is not told another.
var DefaultSubnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, 0, 0}), 24)

// nameSyntax keeps names fit for a namespace, a host name and a folder.
var nameSyntax = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

func (o Options) withDefaults() Options {
	if o.Name == "" {
		o.Name = "lab"
	}
	if o.Firmware == "" {
		o.Firmware = Mixed
	}
	if o.CPUs == 0 {
		o.CPUs = 2
	}
	if o.Nice == 0 {
		o.Nice = usualNice
	}
	if o.Memory == 0 {
		o.Memory = 2 * GiB
	}
	if o.Disks == nil {
		o.Disks = []Size{8 * GiB}
	}
	if o.Bus == "" {
		o.Bus = SCSI
	}
	if o.NICs == 0 {
		o.NICs = 1
	}
	if !o.Subnet.IsValid() {
		o.Subnet = DefaultSubnet
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// Validate reports at once everything that cannot work.
func (o Options) Validate() error {
	o = o.withDefaults()
	var errs []error
	bad := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	bad(o.Dir != "", "the lab's folder is not given")
	bad(nameSyntax.MatchString(o.Name), "name %q: use up to 32 lower-case letters, digits and dashes", o.Name)
	bad(o.Machines >= 0 && o.Machines <= MaxMachines, "%d machines: must be between 0 and %d", o.Machines, MaxMachines)
	bad(o.Firmware == BIOS || o.Firmware == UEFI || o.Firmware == Mixed, "firmware %q: must be bios, uefi or mixed", o.Firmware)
	bad(o.CPUs >= 1 && o.CPUs <= 64, "%d CPUs: must be between 1 and 64", o.CPUs)
	bad(o.Nice >= 1 && o.Nice <= 19, "nice %d: must be between 1 and 19", o.Nice)
	bad(!o.OwnTime || o.CPUs == 1, "%d CPUs with a time of their own: only one can have that", o.CPUs)
	bad(o.Memory >= 64*MiB && o.Memory%MiB == 0, "memory %s: must be whole MiB and at least 64MiB", o.Memory)
	bad(len(o.Disks) <= maxDisks, "%d disks: at most %d", len(o.Disks), maxDisks)
	for _, size := range o.Disks {
		bad(size >= MiB && size%MiB == 0, "disk %s: must be whole MiB", size)
	}
	switch o.Bus {
	case SCSI, Virtio, NVMe, SATA:
	default:
		bad(false, "disk bus %q: must be scsi, virtio, nvme or sata", o.Bus)
	}
	bad(o.Bus != SATA || len(o.Disks) <= 6, "%d disks: the SATA controller has six ports", len(o.Disks))
	bad(o.NICs >= 1 && o.NICs <= maxNICs, "%d NICs: must be between 1 and %d", o.NICs, maxNICs)
	bad(o.Subnet.Addr().Is4() && o.Subnet.Bits() <= 29, "subnet %s: must be IPv4 and at least a /29", o.Subnet)
	switch o.Accelerator {
	case "", KVM, TCG:
	default:
		bad(false, "accelerator %q: must be kvm or tcg", o.Accelerator)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	return nil
}

// canonical makes a folder's name independent of where the program runs: processes of the lab are
// recognised by it.
func canonical(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	// A folder that does not exist yet is below one that does.
	for parent, rest := dir, ""; ; parent, rest = filepath.Dir(parent), filepath.Join(filepath.Base(parent), rest) {
		if real, err := filepath.EvalSymlinks(parent); err == nil {
			return filepath.Join(real, rest), nil
		}
		if parent == filepath.Dir(parent) {
			return dir, nil
		}
	}
}
