package digest

import (
	"crypto/sha256"
	"strings"
	"testing"
)

const empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestWrittenForm(t *testing.T) {
	if got := Of(nil).String(); got != empty {
		t.Errorf("got %s", got)
	}
	h := sha256.New()
	_, _ = h.Write([]byte("a"))
	if Sum(h) != Of([]byte("a")) || Sum(h) == Of(nil) {
		t.Errorf("got %s", Sum(h))
	}
	d, err := Parse(empty)
	if err != nil || d != Of(nil) || d.String() != empty || Hex(empty) != strings.TrimPrefix(empty, "sha256:") {
		t.Errorf("got %s, %v", d, err)
	}
}

func TestWhatIsNoDigest(t *testing.T) {
	digits := strings.Repeat("0f", 32)
	for name, s := range map[string]string{
		"nothing":           "",
		"no digits":         "sha256:",
		"no algorithm":      digits,
		"another algorithm": "sha512:" + digits,
		"upper case":        "sha256:" + strings.ToUpper(digits),
		"too short":         "sha256:" + digits[1:],
		"too long":          "sha256:" + digits + "0",
		"no hexadecimal":    "sha256:" + strings.Repeat("zz", 32),
		"a path":            "sha256:../../../etc/passwd" + digits[23:],
	} {
		if _, err := Parse(s); err == nil || Valid(s) || Hex(s) != "" {
			t.Errorf("%s: %q is accepted", name, s)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(empty)
	f.Add("sha256:")
	f.Fuzz(func(t *testing.T, s string) {
		if d, err := Parse(s); err == nil && d.String() != s {
			t.Errorf("%q came back as %s", s, d)
		}
	})
}
