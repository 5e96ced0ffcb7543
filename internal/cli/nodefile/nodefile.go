// Package nodefile reads a file that says what a node must have, in whichever dialect it is written, and writes it in another.
package nodefile

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/contract/dialect"
	"coldrack.dev/internal/contract/manifest"
	"coldrack.dev/internal/contract/nodeconfig"
)

// Options are what a file itself does not say.
type Options struct {
	Variables dialect.Variables
	// Name and Image of a Profile that is written.
	Name, Image string
}

// Read reads a file; name is what errors call it. With a dialect of "" it is told from the text.
func Read(name string, text []byte, d dialect.Dialect, o Options) (dialect.Dialect, dialect.Result) {
	if d = cmp.Or(d, dialect.Detect(text)); d == "" {
		return "", dialect.Result{Problems: []dialect.Finding{{Message: "is none of: a Profile (apiVersion: coldrack.dev/v1alpha1), Ignition (JSON with \"ignition\"), " +
			"a #cloud-config (that is its first line); --from says which it is meant to be"}}}
	}
	if d == dialect.Profile {
		return d, readProfile(name, text)
	}
	return d, dialect.Parse(d, text, o.Variables)
}

// Write writes what was read in a dialect, and tells what was lost on the way.
func Write(d dialect.Dialect, n dialect.Node, o Options) ([]byte, []dialect.Finding, error) {
	if d == dialect.Profile {
		return writeProfile(n, o)
	}
	return dialect.Encode(d, n)
}

func readProfile(name string, text []byte) dialect.Result {
	var r dialect.Result
	problem := func(line int, field, message string) {
		r.Problems = append(r.Problems, dialect.Finding{Line: line, Field: field, Message: message})
	}
	documents, err := manifest.Parse(name, string(text))
	if err != nil {
		// It names file, document and line itself.
		for line := range strings.Lines(err.Error()) {
			problem(0, "", strings.TrimSuffix(strings.TrimPrefix(line, name+": "), "\n"))
		}
		return r
	}
	if len(documents) != 1 || documents[0].Object.GetKind() != "Profile" || documents[0].Object.GetAPIVersion() != v1alpha1.GroupVersion.String() {
		problem(0, "", fmt.Sprintf("must be one object, of kind Profile and apiVersion %s; `coldrack apply --dry-run` checks other kinds", v1alpha1.GroupVersion))
		return r
	}
	d := documents[0]
	r.Version = v1alpha1.GroupVersion.Version
	var p v1alpha1.Profile
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(d.Object.Object, &p, true); err != nil {
		var strict interface{ Errors() []error }
		if errors.As(err, &strict) {
			for _, one := range strict.Errors() {
				field := ""
				if _, quoted, ok := strings.Cut(one.Error(), `unknown field "`); ok {
					field, _, _ = strings.Cut(quoted, `"`)
				}
				problem(d.Line(field), field, "unknown field")
			}
		} else {
			problem(0, "", err.Error())
		}
		return r
	}
	if p.Spec.Image == "" {
		problem(d.Line("spec"), "spec.image", "is missing; want the name of an Image, such as debian-13")
	}
	for _, e := range v1alpha1.ValidateProfile(&p) {
		problem(d.Line(e.Field), e.Field, e.ErrorBody())
	}
	if len(r.Problems) > 0 {
		return r
	}
	r.Node, r.Lost = fromProfile(&p)
	for i := range r.Lost {
		r.Lost[i].Line = d.Line(r.Lost[i].Field)
	}
	return r
}

// fromProfile takes what a Profile says of a node, not of how it gets there.
func fromProfile(p *v1alpha1.Profile) (n dialect.Node, lost []dialect.Finding) {
	c := &n.Config
	c.SSHKeys, c.Timezone = p.Spec.SSHKeys, p.Spec.Timezone
	for _, u := range p.Spec.Users {
		one := nodeconfig.User{Name: u.Name, SSHKeys: u.SSHKeys, PasswordHash: u.PasswordHash, Sudo: u.Sudo, Shell: u.Shell}
		if one.Shell == nodeconfig.DefaultShell {
			one.Shell = ""
		}
		c.Users = append(c.Users, one)
	}
	for _, f := range p.Spec.Files {
		mode, _ := f.FileMode() // ValidateProfile saw it
		c.Files = append(c.Files, nodeconfig.File{Path: f.Path, Content: []byte(f.Content), Mode: mode, Owner: f.Owner})
	}
	for _, u := range p.Spec.Units {
		c.Units = append(c.Units, nodeconfig.Unit{Name: u.Name, Content: u.Content, Enabled: u.Enabled, Masked: u.Masked})
	}
	n.KernelArgs = slices.Clone(p.Spec.KernelArgs)
	for _, console := range p.Spec.Console {
		n.KernelArgs = append(n.KernelArgs, "console="+console)
	}
	if p.Spec.RootDisk != (v1alpha1.DiskHints{}) {
		lost = append(lost, dialect.Finding{Field: "spec.rootDisk", Message: "other installers are told the disk beside the file"})
	}
	if p.Spec.Wipe != "" {
		lost = append(lost, dialect.Finding{Field: "spec.wipe", Message: "other installers overwrite the disk that they are told"})
	}
	if p.Spec.Network != nil {
		lost = append(lost, dialect.Finding{Field: "spec.network", Message: "names interfaces as each machine has them; write the files of systemd-networkd for each"})
	}
	return n, lost
}

// written is a Profile as people write it: without the fields that only a server sets.
type written struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        struct {
		Name string `json:"name"`
	} `json:"metadata"`
	Spec v1alpha1.ProfileSpec `json:"spec"`
}

func writeProfile(n dialect.Node, o Options) (text []byte, lost []dialect.Finding, err error) {
	report := func(field, message string) { lost = append(lost, dialect.Finding{Field: field, Message: message}) }
	var p v1alpha1.Profile
	p.Name = o.Name
	p.Spec.Image = o.Image
	c := n.Config
	p.Spec.SSHKeys, p.Spec.Timezone = c.SSHKeys, c.Timezone
	for _, u := range c.Users {
		p.Spec.Users = append(p.Spec.Users, v1alpha1.User{Name: u.Name, SSHKeys: u.SSHKeys, PasswordHash: u.PasswordHash, Sudo: u.Sudo, Shell: u.Shell})
	}
	for _, f := range c.Files {
		if !utf8.Valid(f.Content) {
			report("files["+f.Path+"]", "is no text; make it part of the image")
			continue
		}
		one := v1alpha1.File{Path: f.Path, Content: string(f.Content), Owner: f.Owner}
		if f.Mode != 0 && f.Mode != 0o644 {
			one.Mode = fmt.Sprintf("%04o", f.Mode)
		}
		p.Spec.Files = append(p.Spec.Files, one)
	}
	for _, u := range c.Units {
		p.Spec.Units = append(p.Spec.Units, v1alpha1.SystemdUnit{Name: u.Name, Content: u.Content, Enabled: u.Enabled, Masked: u.Masked})
	}
	for _, a := range n.KernelArgs {
		if console, ok := strings.CutPrefix(a, "console="); ok {
			p.Spec.Console = append(p.Spec.Console, console)
			continue
		}
		p.Spec.KernelArgs = append(p.Spec.KernelArgs, a)
	}
	if c.Hostname != "" {
		report("hostname", fmt.Sprintf("%q is one machine's, and a Profile is for many; set spec.hostname of its Machine", c.Hostname))
	}
	if n.Update != (dialect.Update{}) {
		report("update", "another Image in the Profile updates installed nodes, and nodes of a Cluster reboot within its spec.maintenanceWindows; "+
			"`--to ignition` carries it over to Flatcar")
	}
	if errs := v1alpha1.ValidateProfile(&p); len(errs) > 0 {
		return nil, nil, fmt.Errorf("the Profile would not be valid: %w", errs.ToAggregate())
	}
	w := written{Spec: p.Spec}
	w.APIVersion, w.Kind, w.Metadata.Name = v1alpha1.GroupVersion.String(), "Profile", p.Name
	raw, err := json.Marshal(w)
	if err != nil {
		return nil, nil, err
	}
	var object map[string]any
	if err := json.Unmarshal(raw, &object); err != nil {
		return nil, nil, err
	}
	if spec, ok := object["spec"].(map[string]any); ok {
		// It cannot be left out while it is empty.
		delete(spec, "rootDisk")
	}
	quoteIndented(object)
	// sigs.k8s.io/yaml would fold long lines, such as SSH keys.
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(object); err != nil {
		return nil, nil, err
	}
	return b.Bytes(), lost, e.Close()
}

// quoteIndented quotes texts that begin with white space. As blocks, the encoder writes some that no decoder reads.
func quoteIndented(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key, one := range v {
			v[key] = quoteIndented(one)
		}
	case []any:
		for i, one := range v {
			v[i] = quoteIndented(one)
		}
	case string:
		if strings.TrimLeft(v, " \t\n") != v {
			return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Style: yaml.DoubleQuotedStyle, Value: v}
		}
	}
	return v
}
