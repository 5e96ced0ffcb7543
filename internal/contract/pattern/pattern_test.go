package pattern

import (
	"path"
	"strings"
	"testing"
	"time"
)

func TestMatch(t *testing.T) {
	for _, test := range []struct {
		pattern, text string
		want          bool
	}{
		{"X9SCL*", "X9SCL/X9SCM", true},
		{"dell*", "Dell Inc.", true},
		{"*/X9SCM", "X9SCL/X9SCM", true},
		{"x9scl?x9scm", "X9SCL/X9SCM", true},
		{"PowerEdge R[67]40", "PowerEdge R640", true},
		{"PowerEdge R[67]40", "PowerEdge R540", false},
		{"PowerEdge R[^67]40", "PowerEdge R540", true},
		{"[A-C]1", "b1", true},
		{`\*x`, "*X", true},
		{`\*x`, "ax", false},
		{`[\]]`, "]", true},
		{"", "", true},
		{"", "x", false},
		{"*", "", true},
		{"a*b*c", "aXbYbZc", true},
		{"a*b*c", "aXbYbZ", false},
		{"ÄB*", "äbc", true},
		{"[", "[", false},
		{"[a", "a", false},
		{`a\`, "a", false},
		{"[a-", "a", false},
		{"[]a]", "]", true},
		{"[a-]", "-", true},
		{"[^?]", "?", false},
		{"a[", "b", false},
		{"*[", "x[", false},
	} {
		if got := Match(test.pattern, test.text); got != test.want {
			t.Errorf("Match(%q, %q) = %v", test.pattern, test.text, got)
		}
	}
}

// Many stars must not take for ever: everybody who can write a policy could stop enrolment.
func TestStarsStayCheap(t *testing.T) {
	done := make(chan bool, 1)
	go func() { done <- Match(strings.Repeat("a*", 60)+"b", strings.Repeat("a", 5000)) }()
	select {
	case got := <-done:
		if got {
			t.Error("it matched")
		}
	case <-time.After(time.Minute):
		t.Fatal("still matching after a minute")
	}
}

// What is no class and has no separator matches as in a pattern of files.
func FuzzMatch(f *testing.F) {
	f.Add("a*b?c", "axxbyc")
	f.Add("[a-c]*", "b")
	f.Fuzz(func(t *testing.T, p, s string) {
		got := Match(p, s)
		if strings.ContainsAny(p+s, "/") || p != strings.ToLower(p) || s != strings.ToLower(s) || strings.ToValidUTF8(p+s, "") != p+s {
			return
		}
		if want, err := path.Match(p, s); err == nil && got != want {
			t.Errorf("Match(%q, %q) = %v, path.Match says %v", p, s, got, want)
		}
	})
}
