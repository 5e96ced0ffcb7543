package machine

import (
	"strings"
	"testing"

	"coldrack.dev/api/v1alpha1"
)

func TestReadmit(t *testing.T) {
	machine := func(identity, refused string) *v1alpha1.Machine {
		m := &v1alpha1.Machine{}
		m.Name = "node-1"
		if identity != "" {
			m.Status.Identity = &v1alpha1.IdentityStatus{KeyFingerprint: identity}
		}
		if refused != "" {
			m.Status.KeyRefused = &v1alpha1.KeyRefusedStatus{KeyFingerprint: refused, From: "10.0.0.9"}
		}
		return m
	}
	for _, test := range []struct {
		name              string
		identity, refused string
		key, want         string
	}{
		{"the key that was refused", "sha256:old", "sha256:new", "sha256:new", ""},
		{"without the algorithm's name", "sha256:old", "sha256:new", "new", ""},
		{"another key than the one that was refused", "sha256:old", "sha256:new", "sha256:else", "the node at 10.0.0.9 shows key sha256:new, not sha256:else"},
		{"nothing was refused", "sha256:old", "", "sha256:new", "no key was refused"},
		{"the identity itself", "sha256:old", "sha256:new", "sha256:old", "is the identity of machine node-1 already"},
		{"a machine that was never installed", "", "", "sha256:new", "has no identity"},
		{"a machine whose install is missing in the backup", "", "sha256:new", "sha256:new", ""},
		{"such a machine, and another key", "", "sha256:new", "sha256:else", "the node at 10.0.0.9 shows key sha256:new"},
	} {
		m := machine(test.identity, test.refused)
		err := readmit(m, test.key)
		switch {
		case test.want == "" && (err != nil || !m.Readmits("sha256:new")):
			t.Errorf("%s: error %v, annotations %v", test.name, err, m.Annotations)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
}
