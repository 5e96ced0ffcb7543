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
