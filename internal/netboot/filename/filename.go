// Package filename makes names of files of what firmware and boot loaders ask for.
package filename

import (
	"io/fs"
	"path"
	"strings"
)

// maxLen is longer than any boot file's name. It also bounds what ends up in logs.
const maxLen = 255

// Clean turns the name in a request, or a URL's path, into a name as io/fs has it. Leading slashes and backslashes
// (Windows and some UEFI clients send them) disappear, and ".." cannot climb over the top. It reports false when the
// text cannot name a file.
func Clean(name string) (string, bool) {
	for _, r := range name {
		if r < ' ' || r == 0x7f {
			return "", false
		}
	}
	name = strings.ReplaceAll(name, `\`, "/")
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if name == "" || len(name) > maxLen || !fs.ValidPath(name) {
		return "", false
	}
	return name, true
}

// Optional says whether a name is one that boot loaders ask for only to see whether it is there: shim for revocations and certificates
// beside itself, GRUB for lists of modules, for fonts, translations and a machine's own configuration, iPXE for a script of the site's.
// They go on without, so that nobody needs to hear of it.
//
// The shim of Debian 13 joins folder and name without a slash when it was loaded by TFTP over IPv6.
func Optional(name string) bool {
	base := path.Base(name)
	switch {
	case base == "autoexec.ipxe":
		return true
	case strings.HasSuffix(base, ".efi"):
		for _, beside := range []string{"revocations", "shim_certificate_"} {
			if strings.Contains(base, beside) {
				return true
			}
		}
		return false
	}
	below, ok := strings.CutPrefix(name, "grub/")
	if !ok {
		return false
	}
	for _, folder := range []string{"fonts/", "locale/", "themes/"} {
		if strings.HasPrefix(below, folder) {
			return true
		}
	}
	return strings.HasSuffix(below, ".lst") || strings.HasPrefix(below, "grub.cfg-") || strings.HasSuffix(below, "-efi/grub.cfg")
}
