package boot

import (
	"fmt"
	"strings"

	"coldrack.dev/api/v1alpha1"
)

// Target is where a machine gets what its plan names. URLs are absolute.
type Target struct {
	Machine   string // name for the console; empty when unknown
	KernelURL string
	InitrdURL string
	// Args are the kernel arguments, each without white space.
	Args []string
	// LocalURL is that of the plan's LocalFile.
	LocalURL string
	// RetryURL is chained to when anything fails.
	RetryURL string
}

// Script renders a plan for iPXE. It holds no secret but the one-time nonce among the arguments, which
// is worth nothing without the private key that the machine makes after it.
func Script(plan Plan, target Target) (string, error) {
	for _, arg := range target.Args {
		if arg == "" || strings.ContainsFunc(arg, func(r rune) bool { return r <= ' ' || r > '~' || r == '$' }) {
			return "", fmt.Errorf("kernel argument %q: white space, control characters and $ cannot be passed through a boot script", arg)
		}
	}
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	name := target.Machine
	if name == "" {
		name = "new machine"
	}
	line("#!ipxe")
	line("echo Coldrack: %s: %s: %s", Printable(name), Printable(string(plan.Action)), Printable(plan.Reason))
	switch plan.Action {
	case v1alpha1.BootLocalDisk:
		line("chain %s || goto failed", target.LocalURL)
	case v1alpha1.BootDiscover, v1alpha1.BootInstall, v1alpha1.BootRelease, v1alpha1.BootRescue:
		// UEFI kernels find the initramfs by the name in initrd=; BIOS ignores it.
		line("kernel --name vmlinuz %s initrd=initrd.img %s || goto failed", target.KernelURL, strings.Join(target.Args, " "))
		line("initrd --name initrd.img %s || goto failed", target.InitrdURL)
		line("boot || goto failed")
	case v1alpha1.BootRefuse:
		line("goto retry")
	default:
		return "", fmt.Errorf("no boot script for action %q", plan.Action)
	}
	line(":failed")
	line("echo Coldrack: this boot failed")
	line(":retry")
	line("echo Coldrack: asking again in 30 seconds")
	// Images that were loaded before the failure would be booted along with the next ones.
	line("imgfree ||")
	line("sleep 30")
	line("chain --replace %s || goto retry", target.RetryURL)
	return b.String(), nil
}

// Printable keeps a text from being anything but text to iPXE, which expands ${…}, splits at || and &&,
// and takes # at the start of a word as a comment.
func Printable(text string) string {
	const longest = 200
	var b strings.Builder
	for _, r := range text {
		if b.Len() >= longest {
			b.WriteString("...")
			break
		}
		switch {
		case r == '$' || r == '|' || r == '&' || r == '#' || r == '"' || r == '\'' || r == '\\' || r < ' ' || r > '~':
			b.WriteByte('_')
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
