package termtext

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestLine(t *testing.T) {
	for name, c := range map[string]struct {
		text   string
		limit  int
		line   string
		marked string
	}{
		"plain text":                    {"PowerEdge R650", 0, "PowerEdge R650", "PowerEdge R650"},
		"letters of every script":       {"Größe 大きさ размер", 0, "Größe 大きさ размер", "Größe 大きさ размер"},
		"line ends and tabs":            {" a\n\tb\n", 0, "a  b", "a  b"},
		"a color":                       {"\x1b[31mred", 0, "[31mred", "?[31mred"},
		"an escape sequence in one C1":  {"\u009b2Jgone", 0, "2Jgone", "?2Jgone"},
		"a bell and a delete":           {"a\a\x7fb", 0, "ab", "a??b"},
		"a carriage return":             {"good\rbad", 0, "goodbad", "good?bad"},
		"text that is written backward": {"a\u202eb\u2066c", 0, "abc", "a?b?c"},
		"nothing that is visible":       {"a\u200bb\ufeff", 0, "ab", "a?b?"},
		"separators of lines":           {"a\u2028b\u2029c", 0, "abc", "a?b?c"},
		"no UTF-8":                      {"a\xff\xfeb", 0, "ab", "a?b"},
		"the replacement character":     {"a\ufffdb", 0, "ab", "a?b"},
		"cut":                           {"abcdefgh", 6, "abcdef", "abc…"},
		"cut within a rune":             {"abäbcäf", 6, "abäbc", "ab…"},
		"just fits":                     {"abcdef", 6, "abcdef", "abcdef"},
		"no room for an ellipsis":       {"abcdef", 2, "ab", ""},
	} {
		if got := Line(c.text, c.limit); got != c.line {
			t.Errorf("%s: line %q, want %q", name, got, c.line)
		}
		if got := Mark(c.text, c.limit); got != c.marked {
			t.Errorf("%s: marked %q, want %q", name, got, c.marked)
		}
	}
}

func TestLinesAndASCII(t *testing.T) {
	if got := Lines("a\tb\n\x1b[1mc\u202e\r\n"); got != "a\tb\n[1mc\n" {
		t.Errorf("lines: %q", got)
	}
	if got := ASCII("● 5 MiB…\nä\x1b"); got != "* 5 MiB... ??" {
		t.Errorf("ASCII: %q", got)
	}
}

func FuzzLine(f *testing.F) {
	f.Add("\x1b]0;title\a", 10)
	f.Add("ä\xff", 3)
	f.Fuzz(func(t *testing.T, text string, limit int) {
		limit &= 0xff
		for _, got := range []string{Line(text, limit), Mark(text, limit)} {
			if !utf8.ValidString(got) || strings.ContainsFunc(got, Unsafe) || limit > 0 && len(got) > limit {
				t.Errorf("%q (limit %d) became %q", text, limit, got)
			}
		}
	})
}
