package filename

import (
	"strings"
	"testing"
)

func TestClean(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"a plain name", "undionly.kpxe", "undionly.kpxe"},
		{"a leading slash", "/undionly.kpxe", "undionly.kpxe"},
		{"several", "//efi//snponly.efi", "efi/snponly.efi"},
		{"backslashes", `\EFI\BOOT\bootx64.efi`, "EFI/BOOT/bootx64.efi"},
		{"climbing stays below the top", "../../etc/passwd", "etc/passwd"},
		{"climbing by backslashes too", `..\..\etc\passwd`, "etc/passwd"},
		{"climbing from below", "a/../../b", "b"},
		{"only a slash", "/", ""},
		{"only dots", "..", ""},
		{"a control character", "a\nb", ""},
		{"bytes that are no text", "a\xfeb", ""},
		{"a name that is too long", strings.Repeat("a", 256), ""},
		{"the longest name", strings.Repeat("a", 255), strings.Repeat("a", 255)},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, ok := Clean(test.in)
			if got != test.want || ok != (test.want != "") {
				t.Errorf("Clean(%q) = %q, %v", test.in, got, ok)
			}
		})
	}
}
