package rehearse

import (
	"fmt"
	"strings"
)

// bootScript is what a machine's iPXE script makes of it.
type bootScript struct {
	kernel string // URL
	initrd string
	args   string // kernel command line
	local  string // URL of what starts the machine's own disk
	retry  bool   // nothing to boot: ask again after a pause
	says   string // its first line for the console
}

// parseScript reads the scripts that boot.Script makes; it is no interpreter of iPXE's language.
func parseScript(text string) (bootScript, error) {
	var s bootScript
	if !strings.HasPrefix(text, "#!ipxe") {
		return s, fmt.Errorf("the boot script does not begin with #!ipxe but with %.40q", text)
	}
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(strings.TrimSpace(line), " ||")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if strings.HasPrefix(words[0], ":") {
			break // what follows is for failures
		}
		operand := func() string {
			for i := 1; i < len(words); i++ {
				switch words[i] {
				case "--name", "-n":
					i++
				case "--replace", "--autofree":
				default:
					words = words[i:]
					return words[0]
				}
			}
			return ""
		}
		switch words[0] {
		case "echo":
			if s.says == "" {
				s.says = strings.TrimSpace(strings.TrimPrefix(line, "echo"))
			}
		case "kernel":
			s.kernel = operand()
			s.args = strings.Join(words[1:], " ")
		case "initrd":
			s.initrd = operand()
		case "chain":
			s.local = operand()
		case "goto":
			s.retry = true
		}
	}
	if !s.retry && s.local == "" && (s.kernel == "" || s.initrd == "") {
		return s, fmt.Errorf("the boot script neither loads a kernel nor starts a disk:\n%s", text)
	}
	return s, nil
}
