package build

import (
	"fmt"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/content/bundle"
)

// GoRecipe is a folder with a go.mod of its own, which pins what its programs are built from.
type GoRecipe struct {
	Name   string `json:"name"`   // what programs and containers call it
	Folder string `json:"folder"` // with go.mod and go.sum; may lie beside the recipe's folder
	// Module is the one that the programs belong to; empty: that of the folder. Version is what go.mod must
	// select of it, so that a recipe cannot name another version than it builds.
	Module  string `json:"module,omitempty"`
	Version string `json:"version"`
	// Programs are package paths by the program's name.
	Programs map[string]string `json:"programs"`
	// Stamps set string variables, by "package path.name". {version}, {major}, {minor} and {date} stand for
	// what the module's version says.
	Stamps map[string]string `json:"stamps,omitempty"`
	Tags   []string          `json:"tags,omitempty"`
	// Cgo links C code in, statically; it takes a C compiler.
	Cgo bool `json:"cgo,omitempty"`
	// Always asks Go whether something changed, for programs whose sources are not pinned by go.sum and the
	// folder alone.
	Always bool `json:"always,omitempty"`
}

// SourceRecipe says where a file comes from: built here, or released elsewhere. Both can be used for the same
// programs and images.
type SourceRecipe struct {
	// Go is MODULE/PROGRAM of the recipe's part go.
	Go string `json:"go,omitempty"`
	// URL of a file, or of a tar archive (plain, gzip or zstd) that has it as Member. Digest is of what lies
	// at URL.
	URL    string `json:"url,omitempty"`
	Digest string `json:"digest,omitempty"`
	Member string `json:"member,omitempty"`
}

// ProgramsRecipe describes what nodes run outside containers.
type ProgramsRecipe struct {
	Name string `json:"name"`
	// Kubernetes is the version that these programs make a node of; empty where they go with any.
	Kubernetes string          `json:"kubernetes,omitempty"`
	Files      []ProgramRecipe `json:"files"`
}

// ProgramRecipe is a program on nodes.
type ProgramRecipe struct {
	Name string `json:"name"`
	Path string `json:"path"` // on the node
	SourceRecipe
	// Version of what URL leads to; what is built here knows its own.
	Version string `json:"version,omitempty"`
}

// LayerRecipe is a file system made of Debian packages, of which only the named files are taken, and what
// these need.
type LayerRecipe struct {
	Name     string   `json:"name"`
	Packages []string `json:"packages,omitempty"`
	// Files are glob patterns as in netboot.files.
	Files   []string          `json:"files,omitempty"`
	Links   map[string]string `json:"links,omitempty"` // path to target
	Overlay string            `json:"overlay,omitempty"`
	// Temporary are folders that everybody may write to, such as /tmp.
	Temporary []string `json:"temporary,omitempty"`
	// Certificates joins the authorities of the package ca-certificates to one file.
	Certificates bool `json:"certificates,omitempty"`
}

// ContainerRecipe is a container image: built from layers and files, or taken whole from URL (an archive of
// docker save or in OCI layout, with Digest) or from a registry.
type ContainerRecipe struct {
	Image string `json:"image"` // full name with tag

	Layers     []string          `json:"layers,omitempty"`
	Files      []ImageFileRecipe `json:"files,omitempty"`
	Entrypoint []string          `json:"entrypoint,omitempty"`
	Command    []string          `json:"command,omitempty"`
	User       string            `json:"user,omitempty"`
	WorkingDir string            `json:"workingDir,omitempty"`
	Env        []string          `json:"env,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`

	URL    string `json:"url,omitempty"`
	Digest string `json:"digest,omitempty"`
	// Pull is REGISTRY/REPOSITORY@DIGEST.
	Pull string `json:"pull,omitempty"`
}

// ImageFileRecipe is a program in a container image.
type ImageFileRecipe struct {
	Path string `json:"path"`
	SourceRecipe
	// BindLowPorts lets the program listen on ports below 1024 whoever runs it.
	BindLowPorts bool `json:"bindLowPorts,omitempty"`
}

var (
	kubernetesVersion = regexp.MustCompile(`^v1\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)$`)
	modulePath        = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._~/-]*$`)
	stampName         = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._~/-]*\.[A-Za-z_][A-Za-z0-9_]*$`)
	stampValue        = regexp.MustCompile(`^[A-Za-z0-9:./_+{}-]*$`)
	tagName           = regexp.MustCompile(`^[A-Za-z0-9_]+$`)
	userName          = regexp.MustCompile(`^[A-Za-z0-9_.-]*(:[A-Za-z0-9_.-]+)?$`)
)

// checkKubernetes looks at the parts that become programs and container images.
func (r *Recipe) checkKubernetes(c *checker) {
	programs := map[string]bool{}
	for i, g := range r.Go {
		g.check(c, fmt.Sprintf("go[%d]", i))
		for program := range g.Programs {
			if key := g.Name + "/" + program; programs[key] {
				c.add(fmt.Sprintf("go[%d]", i), fmt.Sprintf("builds a second %q", key))
			} else {
				programs[key] = true
			}
		}
	}
	layers := map[string]bool{}
	for i, l := range r.Layers {
		field := fmt.Sprintf("layers[%d]", i)
		l.check(c, field)
		if layers[l.Name] {
			c.add(field+".name", fmt.Sprintf("%q is there twice", l.Name))
		}
		layers[l.Name] = true
	}
	if p := r.Programs; p != nil {
		p.check(c, programs)
	}
	images := map[string]bool{}
	for i, container := range r.Containers {
		field := fmt.Sprintf("containers[%d]", i)
		container.check(c, field, programs, layers)
		if images[container.Image] {
			c.add(field+".image", fmt.Sprintf("%q is there twice", container.Image))
		}
		images[container.Image] = true
	}
}

func (g *GoRecipe) check(c *checker, field string) {
	c.match(field+".name", g.Name, plainName, "letters, digits, and . _ + -")
	if g.Folder == "" || path.IsAbs(g.Folder) {
		c.add(field+".folder", fmt.Sprintf("is %q, want a folder with a go.mod, relative to the recipe's", g.Folder))
	}
	if g.Module != "" {
		c.match(field+".module", g.Module, modulePath, "a module path such as k8s.io/kubernetes")
	}
	c.match(field+".version", g.Version, plainName, "the version that go.mod selects, or of the program")
	if len(g.Programs) == 0 {
		c.add(field+".programs", "is empty, want the path of a package for each program's name")
	}
	for program, pkg := range g.Programs {
		c.match(field+".programs", program, plainName, "letters, digits, and . _ + - for a name")
		c.match(field+".programs["+program+"]", pkg, modulePath, "the path of a package such as k8s.io/kubernetes/cmd/kubelet")
	}
	for variable, value := range g.Stamps {
		c.match(field+".stamps", variable, stampName, "the name of a variable such as k8s.io/component-base/version.gitVersion")
		c.match(field+".stamps["+variable+"]", value, stampValue, "a version, a date or the like")
	}
	c.list(field+".tags", g.Tags, false, tagName, "a build tag")
}

func (s *SourceRecipe) check(c *checker, field string, programs map[string]bool) {
	switch {
	case (s.Go == "") == (s.URL == ""):
		c.add(field, "has go and url, or neither, want one of them")
	case s.Go != "":
		if !programs[s.Go] {
			c.add(field+".go", fmt.Sprintf("is %q, which the recipe's part go does not build", s.Go))
		}
		if s.Digest != "" || s.Member != "" {
			c.add(field, "has a digest or member, which go with url")
		}
	default:
		c.download(field, s.URL, s.Digest)
		if s.Member != "" && path.Clean("/"+s.Member) != "/"+strings.TrimPrefix(s.Member, "/") {
			c.add(field+".member", fmt.Sprintf("is %q, want the name of a file in the archive", s.Member))
		}
	}
}

func (c *checker) download(field, address, want string) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		c.add(field+".url", fmt.Sprintf("is %q, want an address that starts with https://", address))
	}
	if !digest.Valid(want) {
		c.add(field+".digest", fmt.Sprintf("is %q, want sha256: and 64 lower-case hexadecimal digits; without it nobody knows what comes", want))
	}
}

// absolute checks the path of a file on a node or in an image.
func (c *checker) absolute(field, value string) {
	if !path.IsAbs(value) || path.Clean(value) != value || value == "/" || strings.ContainsAny(value, "\x00\n") {
		c.add(field, fmt.Sprintf("is %q, want an absolute path", value))
	}
}

func (p *ProgramsRecipe) check(c *checker, programs map[string]bool) {
	c.match("programs.name", p.Name, plainName, "letters, digits, and . _ + -")
	if p.Kubernetes != "" {
		c.match("programs.kubernetes", p.Kubernetes, kubernetesVersion, "a version such as v1.37.2, or nothing")
	}
	if len(p.Files) == 0 {
		c.add("programs.files", "is empty, want at least one program")
	}
	for i, f := range p.Files {
		field := fmt.Sprintf("programs.files[%d]", i)
		c.match(field+".name", f.Name, plainName, "letters, digits, and . _ + -")
		c.absolute(field+".path", f.Path)
		f.SourceRecipe.check(c, field, programs)
		if (f.Version == "") != (f.URL == "") {
			c.add(field+".version", fmt.Sprintf("is %q, want it with url and without go", f.Version))
		}
		if slices.ContainsFunc(p.Files[:i], func(g ProgramRecipe) bool { return g.Name == f.Name || g.Path == f.Path }) {
			c.add(field, fmt.Sprintf("is a second %s or a second file at %s", f.Name, f.Path))
		}
	}
}

func (l *LayerRecipe) check(c *checker, field string) {
	c.match(field+".name", l.Name, plainName, "letters, digits, and . _ + -")
	c.list(field+".packages", l.Packages, len(l.Files) > 0, packageName, "a Debian package name")
	c.paths(field+".files", l.Files)
	c.folder(field+".overlay", l.Overlay)
	for i, folder := range l.Temporary {
		c.absolute(fmt.Sprintf("%s.temporary[%d]", field, i), folder)
	}
	for link, target := range l.Links {
		c.absolute(field+".links", link)
		if target == "" {
			c.add(field+".links["+link+"]", "leads nowhere")
		}
	}
	if l.Certificates && !slices.Contains(l.Packages, certificatesPackage) {
		c.add(field+".certificates", "needs the package "+certificatesPackage+" under packages")
	}
}

func (r *ContainerRecipe) check(c *checker, field string, programs, layers map[string]bool) {
	if err := bundle.CheckReference(r.Image); err != nil {
		c.add(field+".image", err.Error())
	}
	built := len(r.Layers) > 0 || len(r.Files) > 0
	ways := 0
	for _, used := range []bool{built, r.URL != "", r.Pull != ""} {
		if used {
			ways++
		}
	}
	if ways != 1 {
		c.add(field, "wants one of: layers and files, url with digest, pull")
		return
	}
	if !built {
		if len(r.Entrypoint)+len(r.Command)+len(r.Env)+len(r.Labels) > 0 || r.User != "" || r.WorkingDir != "" {
			c.add(field, "is taken whole; entrypoint, command, user, workingDir, env and labels go with files")
		}
		if r.URL != "" {
			c.download(field, r.URL, r.Digest)
		} else if _, err := name.NewDigest(r.Pull, name.StrictValidation); err != nil {
			c.add(field+".pull", fmt.Sprintf("is %q, want REGISTRY/REPOSITORY@sha256:DIGEST; a tag can change", r.Pull))
		}
		return
	}
	for i, l := range r.Layers {
		if !layers[l] {
			c.add(fmt.Sprintf("%s.layers[%d]", field, i), fmt.Sprintf("is %q, which is not the name of one of the recipe's layers", l))
		}
	}
	for i, f := range r.Files {
		at := fmt.Sprintf("%s.files[%d]", field, i)
		c.absolute(at+".path", f.Path)
		f.SourceRecipe.check(c, at, programs)
	}
	c.match(field+".user", r.User, userName, "USER or USER:GROUP")
	if r.WorkingDir != "" {
		c.absolute(field+".workingDir", r.WorkingDir)
	}
}
