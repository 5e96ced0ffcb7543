package validate

import (
	"strings"
	"testing"
)

func TestVersionStep(t *testing.T) {
	for _, test := range []struct {
		to   string
		runs []string
		want string // part of the refusal; empty: allowed
	}{
		{"v1.37.2", []string{"v1.36.3"}, ""},
		{"v1.37.2", []string{"v1.37.1", "v1.37.2"}, ""},
		{"v1.37.1", []string{"v1.37.2"}, ""}, // back from a bad patch release
		{"v1.36.3", []string{"v1.37.2"}, "downgrade across minor releases"},
		{"v1.36.3", []string{"v1.36.3", "v1.37.2"}, "downgrade across minor releases"},
		{"v1.37.2", []string{"v1.35.1"}, "go to a patch release of 1.36 first"},
		{"v1.38.0", []string{"v1.37.2", "v1.36.3"}, "wait until every machine runs it"},
		{"3.7.3", []string{"3.6.16"}, ""},
		{"3.7.3", []string{"3.5.20"}, "skips a minor release"},
		{"v2.0.0", []string{"v1.37.2"}, "major release"},
		{"v1.37", []string{"v1.37.2"}, "is not a version"},
		{"v1.37.2", []string{"latest"}, "is not a version"},
	} {
		err := VersionStep(test.to, test.runs...)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("from %v to %s: got %v, want %q", test.runs, test.to, err, test.want)
		}
	}
}
