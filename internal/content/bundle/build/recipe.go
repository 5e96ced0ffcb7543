package build

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	kjson "sigs.k8s.io/json"
)

// Recipe says what a bundle is built from: the content of recipe.yaml. Paths in it are relative to
// the recipe's folder. Every part may be left out, but one of image, netboot, bootloaders, programs and
// containers must be there.
//
// With base, a recipe says only in what it differs from another one, whose folder base names: see loadDocument. What
// versions lists may be named everywhere else: see expand.
type Recipe struct {
	Name     string            `json:"name"`
	Versions map[string]string `json:"versions,omitempty"`
	// SourceDate is the time that files in the products carry at most.
	SourceDate time.Time `json:"sourceDate"`

	Apt         *AptRecipe         `json:"apt,omitempty"` // needed by image, netboot, bootloaders and layers
	Image       *ImageRecipe       `json:"image,omitempty"`
	Netboot     *NetbootRecipe     `json:"netboot,omitempty"`
	Bootloaders *BootloadersRecipe `json:"bootloaders,omitempty"`

	// Go are modules whose programs are built; programs and containers say where these go.
	Go []GoRecipe `json:"go,omitempty"`
	// Layers are file systems that containers are built on.
	Layers     []LayerRecipe     `json:"layers,omitempty"`
	Programs   *ProgramsRecipe   `json:"programs,omitempty"`
	Containers []ContainerRecipe `json:"containers,omitempty"`
}

// AptRecipe says where packages come from.
type AptRecipe struct {
	Suite      string   `json:"suite"`      // for example "trixie"; its -updates and -security are used too where configured
	Components []string `json:"components"` // for example "main"
	// Mirrors replace what apt is configured with on the building machine.
	Mirrors []MirrorRecipe `json:"mirrors,omitempty"`
}

// MirrorRecipe is one line of sources.list.
type MirrorRecipe struct {
	URI     string `json:"uri"`
	Suite   string `json:"suite"`
	Keyring string `json:"keyring,omitempty"` // absolute path on the building machine; empty: apt's trusted keys
}

// ImageRecipe describes the operating-system image.
type ImageRecipe struct {
	Name       string   `json:"name"`
	Packages   []string `json:"packages"`
	KernelArgs []string `json:"kernelArgs,omitempty"`
	// Exclude are dpkg path-exclude patterns, Include the exceptions from them.
	Exclude []string `json:"exclude,omitempty"`
	Include []string `json:"include,omitempty"`
	// Overlay is a folder that is copied over the root before packages are installed.
	Overlay string `json:"overlay,omitempty"`
	// Enable are systemd units to enable.
	Enable []string `json:"enable,omitempty"`
	// Disable are units of packages that are not to start by themselves.
	Disable []string `json:"disable,omitempty"`
	// FreePercent is the room left in the file system, in percent of its content.
	FreePercent int `json:"freePercent"`
	// Label of the file system.
	Label string `json:"label"`
}

// NetbootRecipe describes the discovery system.
type NetbootRecipe struct {
	Name     string   `json:"name"`
	Kernel   string   `json:"kernel"`             // the package that depends on the kernel
	Packages []string `json:"packages"`           // where Files come from
	Firmware []string `json:"firmware,omitempty"` // packages, whole
	// Files are glob patterns over the packages' files; ** stands for any number of folders. Shared libraries
	// that programs need are found by themselves.
	Files   []string `json:"files"`
	Overlay string   `json:"overlay,omitempty"`
	// Modules are glob patterns below /lib/modules/VERSION, for names that end in .ko, compressed or not; what matches
	// Exclude is left out. What a module depends on comes with it.
	Modules        []string `json:"modules"`
	ModulesExclude []string `json:"modulesExclude,omitempty"`
	MaxMiB         int64    `json:"maxMiB"`
}

// BootloadersRecipe describes the boot loaders.
type BootloadersRecipe struct {
	Name     string   `json:"name"`
	Packages []string `json:"packages"`
}

// FieldError is a mistake in a recipe.
type FieldError struct {
	Field string // path, for example "image.packages[3]"
	Text  string // what was found and what would be right
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Text }

// LoadRecipe reads recipe.yaml in dir.
func LoadRecipe(dir string) (Recipe, error) {
	file := filepath.Join(dir, "recipe.yaml")
	doc, err := loadDocument(dir, nil)
	if err != nil {
		return Recipe{}, err
	}
	r, err := decodeRecipe(doc)
	if err != nil {
		return Recipe{}, fmt.Errorf("recipe %s: %w", file, err)
	}
	for field, folder := range r.folders() {
		if st, err := os.Stat(filepath.Join(dir, folder)); err != nil || !st.IsDir() {
			return Recipe{}, fmt.Errorf("recipe %s: %w", file, &FieldError{field, fmt.Sprintf("%q is not a folder beside recipe.yaml", folder)})
		}
	}
	for i, g := range r.Go {
		if _, err := os.Stat(filepath.Join(dir, g.Folder, "go.mod")); err != nil {
			return Recipe{}, fmt.Errorf("recipe %s: %w", file, &FieldError{fmt.Sprintf("go[%d].folder", i), fmt.Sprintf("%q has no go.mod", g.Folder)})
		}
	}
	return r, nil
}

// folders are those that the recipe names, by field.
func (r *Recipe) folders() map[string]string {
	named := map[string]string{}
	if r.Image != nil {
		named["image.overlay"] = r.Image.Overlay
	}
	if r.Netboot != nil {
		named["netboot.overlay"] = r.Netboot.Overlay
	}
	for i, g := range r.Go {
		named[fmt.Sprintf("go[%d].folder", i)] = g.Folder
	}
	for i, l := range r.Layers {
		named[fmt.Sprintf("layers[%d].overlay", i)] = l.Overlay
	}
	maps.DeleteFunc(named, func(_, folder string) bool { return folder == "" })
	return named
}

// ParseRecipe decodes and checks a recipe without base. It reports every mistake, each with its field's path.
func ParseRecipe(raw []byte) (Recipe, error) {
	doc, err := parseDocument(raw)
	if err != nil {
		return Recipe{}, err
	}
	return decodeRecipe(doc)
}

func decodeRecipe(doc document) (Recipe, error) {
	var r Recipe
	if err := expand(doc); err != nil {
		return r, err
	}
	raw, err := json.Marshal(doc)
	if err != nil {
		return r, err
	}
	strict, err := kjson.UnmarshalStrict(raw, &r)
	if err != nil {
		return r, err
	}
	if err := errors.Join(strict...); err != nil {
		return r, err
	}
	return r, r.validate()
}

var (
	packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)
	plainName   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+-]*$`)
	unitName    = regexp.MustCompile(`^[A-Za-z0-9:_.@-]+\.[a-z]+$`)
)

func (r *Recipe) validate() error {
	c := checker{}
	c.match("name", r.Name, plainName, "letters, digits, and . _ + -")
	if r.SourceDate.Before(time.Unix(1, 0)) {
		c.add("sourceDate", "is not set, want a time such as 2025-01-01T00:00:00Z")
	}
	if r.Image == nil && r.Netboot == nil && r.Bootloaders == nil && r.Programs == nil && len(r.Containers) == 0 {
		c.add("image, netboot, bootloaders, programs, containers", "are all missing, want at least one; there would be nothing in the bundle")
	}
	if r.Apt != nil {
		r.Apt.check(&c)
	} else if r.Image != nil || r.Netboot != nil || r.Bootloaders != nil || len(r.Layers) > 0 {
		c.add("apt", "is missing, want the suite and components of Debian that packages come from")
	}
	if r.Image != nil {
		r.Image.check(&c)
	}
	if r.Netboot != nil {
		r.Netboot.check(&c)
	}
	if r.Bootloaders != nil {
		c.match("bootloaders.name", r.Bootloaders.Name, plainName, "letters, digits, and . _ + -")
		c.list("bootloaders.packages", r.Bootloaders.Packages, true, packageName, "a Debian package name")
	}
	r.checkKubernetes(&c)
	return errors.Join(c.errs...)
}

func (r *AptRecipe) check(c *checker) {
	c.match("apt.suite", r.Suite, plainName, "a Debian suite such as trixie")
	c.list("apt.components", r.Components, true, plainName, "a component such as main")
	for i, m := range r.Mirrors {
		field := fmt.Sprintf("apt.mirrors[%d]", i)
		if m.URI == "" || strings.ContainsAny(m.URI, " \t\n[]#") {
			c.add(field+".uri", fmt.Sprintf("is %q, want an address that apt understands", m.URI))
		}
		c.match(field+".suite", m.Suite, plainName, "a Debian suite such as trixie-security")
		if m.Keyring != "" && (!path.IsAbs(m.Keyring) || strings.ContainsAny(m.Keyring, " \t\n[]#")) {
			c.add(field+".keyring", fmt.Sprintf("is %q, want an absolute path", m.Keyring))
		}
	}
}

func (r *ImageRecipe) check(c *checker) {
	c.match("image.name", r.Name, plainName, "letters, digits, and . _ + -")
	c.list("image.packages", r.Packages, true, packageName, "a Debian package name")
	c.list("image.enable", r.Enable, false, unitName, "a systemd unit name")
	c.list("image.disable", r.Disable, false, unitName, "a systemd unit name")
	c.paths("image.exclude", r.Exclude)
	c.paths("image.include", r.Include)
	c.folder("image.overlay", r.Overlay)
	if r.FreePercent < 5 || r.FreePercent > 100 {
		c.add("image.freePercent", fmt.Sprintf("is %d, want 5 to 100", r.FreePercent))
	}
	if len(r.Label) > 16 || !plainName.MatchString(r.Label) {
		c.add("image.label", fmt.Sprintf("is %q, want 1 to 16 letters, digits and . _ + -", r.Label))
	}
}

func (r *NetbootRecipe) check(c *checker) {
	c.match("netboot.name", r.Name, plainName, "letters, digits, and . _ + -")
	c.match("netboot.kernel", r.Kernel, packageName, "a Debian package such as linux-image-amd64")
	c.list("netboot.packages", r.Packages, true, packageName, "a Debian package name")
	c.list("netboot.firmware", r.Firmware, false, packageName, "a Debian package name")
	c.paths("netboot.files", r.Files)
	c.folder("netboot.overlay", r.Overlay)
	c.globs("netboot.modules", r.Modules)
	c.globs("netboot.modulesExclude", r.ModulesExclude)
	if len(r.Modules) == 0 {
		c.add("netboot.modules", "is empty, want patterns such as kernel/drivers/net/ethernet/**")
	}
	if r.MaxMiB < 1 || r.MaxMiB > 1024 {
		c.add("netboot.maxMiB", fmt.Sprintf("is %d, want 1 to 1024", r.MaxMiB))
	}
}

type checker struct{ errs []error }

func (c *checker) add(field, text string) {
	c.errs = append(c.errs, &FieldError{Field: field, Text: text})
}

func (c *checker) match(field, value string, re *regexp.Regexp, want string) {
	if !re.MatchString(value) {
		c.add(field, fmt.Sprintf("is %q, want %s", value, want))
	}
}

func (c *checker) list(field string, values []string, required bool, re *regexp.Regexp, want string) {
	if required && len(values) == 0 {
		c.add(field, "is empty, want at least one: "+want)
	}
	for i, v := range values {
		c.match(fmt.Sprintf("%s[%d]", field, i), v, re, want)
		if slices.Index(values, v) < i {
			c.add(fmt.Sprintf("%s[%d]", field, i), fmt.Sprintf("%q is there twice", v))
		}
	}
}

// paths checks absolute patterns; they end up on a command line of dpkg, one each.
func (c *checker) paths(field string, values []string) {
	for i, v := range values {
		if !path.IsAbs(v) || strings.ContainsAny(v, " \t\n'\"") {
			c.add(fmt.Sprintf("%s[%d]", field, i), fmt.Sprintf("is %q, want a pattern that starts with / and has no spaces or quotes", v))
		}
	}
}

func (c *checker) globs(field string, values []string) {
	for i, v := range values {
		if v == "" || path.IsAbs(v) {
			c.add(fmt.Sprintf("%s[%d]", field, i), fmt.Sprintf("is %q, want a pattern relative to the kernel's modules, such as kernel/fs/ext4/**", v))
		}
	}
}

func (c *checker) folder(field, v string) {
	if path.IsAbs(v) {
		c.add(field, fmt.Sprintf("is %q, want a folder relative to the recipe's", v))
	}
}

// matcher is a set of glob patterns.
type matcher []*regexp.Regexp

// compileGlobs knows * and ? (within a path element), [] and ** (any number of elements).
func compileGlobs(patterns []string) (matcher, error) {
	var m matcher
	for _, p := range patterns {
		var b strings.Builder
		b.WriteString("^")
		for i := 0; i < len(p); i++ {
			switch ch := p[i]; {
			case strings.HasPrefix(p[i:], "**/"):
				b.WriteString("(?:.*/)?")
				i += 2
			case strings.HasPrefix(p[i:], "**"):
				b.WriteString(".*")
				i++
			case ch == '*':
				b.WriteString("[^/]*")
			case ch == '?':
				b.WriteString("[^/]")
			case ch == '[' || ch == ']':
				b.WriteByte(ch)
			default:
				b.WriteString(regexp.QuoteMeta(string(ch)))
			}
		}
		b.WriteString("$")
		re, err := regexp.Compile(b.String())
		if err != nil {
			return nil, fmt.Errorf("pattern %q: %w", p, err)
		}
		m = append(m, re)
	}
	return m, nil
}

func (m matcher) match(s string) bool {
	for _, re := range m {
		if re.MatchString(s) {
			return true
		}
	}
	return false
}
