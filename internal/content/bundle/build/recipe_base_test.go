package build

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestARecipeThatBuildsOnAnother(t *testing.T) {
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{
		"base/recipe.yaml": `
name: base
sourceDate: "2025-01-01T00:00:00Z"
versions: {tools: v1.2.3, other: "4.5"}
apt: {suite: trixie, components: [main]}
image: {name: system, label: root, freePercent: 10, packages: [systemd], overlay: files, exclude: [/a, /b]}
bootloaders: {name: amd64, packages: [ipxe]}
go:
- {name: tools, folder: "../modules/tools-{tools.minor}", version: "{tools}", programs: {hello: example.com/hello}, stamps: {main.v: "{version}"}}
programs: {name: "tools-{other}", files: [{name: hello, path: /hello, go: tools/hello}]}
containers: [{image: "example.com/hello:{tools.number}-0", files: [{path: /hello, go: tools/hello}]}]
`,
		"base/files/etc/motd":      "hello\n",
		"modules/tools-1.2/go.mod": "module x\n",
		"modules/tools-2.0/go.mod": "module x\n",
		"far/away/recipe.yaml":     "base: ../../base\nname: derived\nversions: {tools: v2.0.1}\napt: {suite: bookworm}\nimage: {name: old, exclude: [/c]}\nbootloaders: null\n",
		"circle/recipe.yaml":       "base: ../circle\n",
		"nowhere/recipe.yaml":      "base: ../missing\n",
		"absolute/recipe.yaml":     "base: /etc\n",
		"wrong/recipe.yaml":        "base: ../base\nimage: {label: seventeen-letters}\n",
		"unknown/recipe.yaml":      "base: ../base\nprograms: {name: \"x-{tulz}\"}\n",
		"form/recipe.yaml":         "base: ../base\nprograms: {name: \"x-{tools.patch}\"}\n",
		"strange/recipe.yaml":      "base: ../base\nversions: {tools: \"v1; rm\"}\n",
		"reserved/recipe.yaml":     "base: ../base\nversions: {date: v1}\n",
	})
	base, err := LoadRecipe(filepath.Join(dir, "base"))
	if err != nil {
		t.Fatal(err)
	}
	derived, err := LoadRecipe(filepath.Join(dir, "far/away"))
	if err != nil {
		t.Fatal(err)
	}
	if derived.Bootloaders != nil || derived.Apt.Suite != "bookworm" || derived.Image.Name != "old" || base.Image.Name != "system" {
		t.Errorf("derived: %+v %+v, base: %+v", derived.Apt, derived.Image, base.Image)
	}
	for _, tt := range []struct{ what, got, want string }{
		{"a map is joined", derived.Image.Label, "root"},
		{"a list is replaced", strings.Join(derived.Image.Exclude, " "), "/c"},
		{"a folder of the base", derived.Image.Overlay, "../../base/files"},
		{"a module of the base", derived.Go[0].Folder, "../../modules/tools-2.0"},
		{"a version of its own", derived.Go[0].Version, "v2.0.1"},
		{"a version of the base", derived.Programs.Name, "tools-4.5"},
		{"a version without v", derived.Containers[0].Image, "example.com/hello:2.0.1-0"},
		{"the base itself", base.Containers[0].Image, "example.com/hello:1.2.3-0"},
		{"a word of stamps is left alone", base.Go[0].Stamps["main.v"], "{version}"},
	} {
		if diff := cmp.Diff(tt.want, tt.got); diff != "" {
			t.Errorf("%s: %s", tt.what, diff)
		}
	}
	for folder, want := range map[string]string{
		"circle":   "base: leads back to this recipe",
		"nowhere":  "missing has no recipe.yaml",
		"absolute": "base: is /etc, want the folder of another recipe",
		"wrong":    "image.label",
		"unknown":  `programs.name: names {tulz}; want {NAME}, {NAME.number} or {NAME.minor} with a name out of versions: ["other" "tools"]`,
		"form":     "programs.name: names {tools.patch}",
		"strange":  "versions.tools: is v1; rm, want a version",
		"reserved": `versions: "date" is not a name`,
	} {
		if _, err := LoadRecipe(filepath.Join(dir, folder)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error is %v, want %q in it", folder, err, want)
		}
	}
}
