package identify

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"coldrack.dev/api/v1alpha1"
)

func TestNormalize(t *testing.T) {
	for name, test := range map[string]struct{ ids, want v1alpha1.Identifiers }{
		"nothing stays nothing": {},
		"both byte orders of a UUID are one": {
			v1alpha1.Identifiers{UUID: "00112233-4455-6677-8899-aabbccddeeff"},
			v1alpha1.Identifiers{UUID: "00112233-4455-6677-8899-aabbccddeeff"}},
		"the other byte order": {
			v1alpha1.Identifiers{UUID: "33221100-5544-7766-8899-aabbccddeeff"},
			v1alpha1.Identifiers{UUID: "00112233-4455-6677-8899-aabbccddeeff"}},
		"what vendors put on many machines is empty, and positions are kept": {
			v1alpha1.Identifiers{UUID: "03000200-0400-0500-0006-000700080009", Serial: "To be filled by O.E.M.", MACs: []string{"00:00:00:00:00:00", "52:54:00:00:00:01"}},
			v1alpha1.Identifiers{MACs: []string{"", "52:54:00:00:00:01"}}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, Normalize(test.ids)); diff != "" {
				t.Error(diff)
			}
		})
	}
}
