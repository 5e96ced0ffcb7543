package install

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"coldrack.dev/internal/agent/target"
	"coldrack.dev/internal/contract/validate"
)

// findKernel prefers the links that Debian keeps at the newest kernel, so that the node boots what an
// upgrade brought without a new grub.cfg.
func findKernel(t *target.Target) (kernel, initrd string, err error) {
	if t.Exists("/vmlinuz") && t.Exists("/initrd.img") {
		return "/vmlinuz", "/initrd.img", nil
	}
	kernels := t.Glob("/boot", "vmlinuz-*")
	slices.SortFunc(kernels, versions)
	for _, k := range slices.Backward(kernels) {
		version := strings.TrimPrefix(k, "vmlinuz-")
		if t.Exists("/boot/initrd.img-" + version) {
			return "/boot/" + k, "/boot/initrd.img-" + version, nil
		}
	}
	return "", "", errors.New("the image has no kernel with an initramfs: neither /vmlinuz and /initrd.img nor /boot/vmlinuz-* with its /boot/initrd.img-*")
}

// versions compares kernel names with numbers in them by value: 6.1.0-9 is older than 6.1.0-10.
func versions(a, b string) int {
	digits := func(s string) int {
		n := 0
		for n < len(s) && s[n] >= '0' && s[n] <= '9' {
			n++
		}
		return n
	}
	for a != "" && b != "" {
		if na, nb := digits(a), digits(b); na > 0 && nb > 0 {
			x, y := strings.TrimLeft(a[:na], "0"), strings.TrimLeft(b[:nb], "0")
			if len(x) != len(y) {
				return len(x) - len(y)
			}
			if c := strings.Compare(x, y); c != 0 {
				return c
			}
			a, b = a[na:], b[nb:]
			continue
		}
		if a[0] != b[0] {
			return int(a[0]) - int(b[0])
		}
		a, b = a[1:], b[1:]
	}
	return len(a) - len(b)
}

// grubArgs are the kernel's arguments, each quoted for GRUB's script language. consoles come last, the last
// of them being the kernel's primary one.
func grubArgs(args, consoles []string) (string, error) {
	var out []string
	for _, list := range []struct {
		field, prefix string
		values        []string
	}{{"kernelArgs", "", args}, {"console", "console=", consoles}} {
		for i, v := range list.values {
			if err := validate.KernelArg(v); err != nil {
				return "", fmt.Errorf("%s[%d]: %q: %w", list.field, i, v, err)
			}
			v = list.prefix + v
			if strings.ContainsAny(v, " \t\"\\$;&|<>{}#()") {
				v = "'" + v + "'"
			}
			out = append(out, v)
		}
	}
	return strings.Join(out, " "), nil
}

// espConfig is what the boot loader reads first. Everything else is on the root file system, where the
// node's own tools can change it.
func espConfig(rootUUID string) []byte {
	return fmt.Appendf(nil, `# Written by Coldrack when this disk was installed.
search --no-floppy --fs-uuid --set=root %[1]s
if [ -e ($root)/boot/grub/grub.cfg ]; then
    configfile ($root)/boot/grub/grub.cfg
fi
echo "Coldrack: the root file system %[1]s is not on any disk that the firmware shows."
sleep 30
reboot
`, rootUUID)
}

// serialLine is how GRUB names what the kernel calls "ttyS0,115200n8".
func serialLine(consoles []string) string {
	for _, c := range slices.Backward(consoles) {
		port, ok := strings.CutPrefix(c, "ttyS")
		if !ok {
			continue
		}
		unit, speed, _ := strings.Cut(port, ",")
		n := 0
		for n < len(speed) && speed[n] >= '0' && speed[n] <= '9' {
			n++
		}
		if speed = speed[:n]; speed == "" {
			speed = "115200"
		}
		if unit == "" || strings.Trim(unit, "0123456789") != "" {
			continue
		}
		return fmt.Sprintf("serial --unit=%s --speed=%s", unit, speed)
	}
	return ""
}

// grubConfig is the node's boot menu. It uses only commands that are built into both GRUBs (package
// diskboot), for there are no module files on the disk.
func grubConfig(rootUUID, kernel, initrd, args string, consoles []string) []byte {
	var b strings.Builder
	b.WriteString("# Written by Coldrack when this disk was installed.\nset default=0\nset timeout=2\n")
	if serial := serialLine(consoles); serial != "" {
		// UEFI firmware mirrors its console to the serial port itself; twice the same port would garble it.
		fmt.Fprintf(&b, "if [ \"$grub_platform\" = pc ]; then\n    %s\n    terminal_input console serial\n    terminal_output console serial\nfi\n", serial)
	}
	entry := func(title, more string) {
		line := strings.Join(strings.Fields("root=UUID="+rootUUID+" ro "+more), " ")
		if args != "" {
			line += " " + args
		}
		fmt.Fprintf(&b, "menuentry '%s' {\n    search --no-floppy --fs-uuid --set=root %s\n    linux %s %s\n    initrd %s\n}\n", title, rootUUID, kernel, line, initrd)
	}
	entry("Debian GNU/Linux", "")
	entry("Debian GNU/Linux, single user", "single")
	return []byte(b.String())
}
