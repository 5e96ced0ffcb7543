package filename

import (
	"path/filepath"
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

// What Clean lets through names something below the top, and stays as it is when it is asked once more.
func FuzzClean(f *testing.F) {
	for _, seed := range []string{"undionly.kpxe", "/a//b", `\EFI\BOOT\bootx64.efi`, "../../etc/passwd", "a\x00b", "a\xfe", strings.Repeat("a/", 200)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		name, ok := Clean(in)
		if !ok {
			return
		}
		if again, ok := Clean(name); !ok || again != name || !filepath.IsLocal(name) || strings.ContainsAny(name, "\\\x00\n") || len(name) > maxLen {
			t.Errorf("Clean(%q) = %q, and of that %q, %v", in, name, again, ok)
		}
	})
}

func TestOptional(t *testing.T) {
	for name, want := range map[string]bool{
		"revocations_sku.efi": true, "revocations_sbat.efi": true, "revocations.efi": true, "shim_certificate_0.efi": true,
		"bootrevocations_sku.efi":     true, // glued by shim: TFTP over IPv6
		"autoexec.ipxe":               true,
		"grub/x86_64-efi/command.lst": true, "grub/x86_64-efi/fs.lst": true, "grub/x86_64-efi/crypto.lst": true, "grub/x86_64-efi/terminal.lst": true,
		"grub/x86_64-efi/grub.cfg": true, "grub/grub.cfg-amd64": true, "grub/grub.cfg-01-52-54-00-12-34-56": true,
		"grub/locale/de.mo": true, "grub/fonts/unicode.pf2": true,

		"grub/grub.cfg": false, "grub/x86_64-efi/http.mod": false, "grubx64.efi": false, "shimx64.efi": false, "snponly.efi": false,
		"boot.ipxe": false, "command.lst": false, "": false,
	} {
		if got := Optional(name); got != want {
			t.Errorf("Optional(%q) = %v", name, got)
		}
	}
}
