package v1alpha1

import (
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestAddonsThatCannotBeStored(t *testing.T) {
	file := func(name, text string) AddonFile { return AddonFile{Name: name, Content: text} }
	for name, c := range map[string]struct {
		addon Addon
		want  string
	}{
		"good":                          {Addon{Spec: AddonSpec{Files: []AddonFile{file("a.yaml", "x")}}}, ""},
		"packed":                        {Addon{Spec: AddonSpec{Files: []AddonFile{PackedAddonFile("a.yaml", strings.Repeat("x: y\n", 1<<20))}}}, ""},
		"the name of one of Coldrack's": {Addon{ObjectMeta: metav1.ObjectMeta{Name: "flannel"}}, "metadata.name"},
		"too large":                     {Addon{Spec: AddonSpec{Files: []AddonFile{file("a.yaml", strings.Repeat("x", 700<<10))}}}, "pack the files"},
		"too large when unpacked":       {Addon{Spec: AddonSpec{Files: []AddonFile{PackedAddonFile("a.yaml", strings.Repeat("x", 17<<20))}}}, "file a.yaml has more than"},
		"packed by nobody":              {Addon{Spec: AddonSpec{Files: []AddonFile{{Name: "a.yaml", Gzip: "aGVsbG8="}}}}, "file a.yaml: gzip"},
		"packed and not":                {Addon{Spec: AddonSpec{Files: []AddonFile{{Name: "a.yaml", Gzip: "aGVsbG8=", Content: "x"}}}}, "has content and gzip"},
		"no time at all":                {Addon{Spec: AddonSpec{Timeout: &metav1.Duration{Duration: -time.Second}}}, "spec.timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			err := ValidateAddon(&c.addon).ToAggregate()
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("says %v, want %q", err, c.want)
			}
		})
	}
	if text, err := new(PackedAddonFile("a", "hello\n")).Text(); err != nil || text != "hello\n" {
		t.Errorf("unpacked: %q, %v", text, err)
	}
}
