// Package supply tells what bundles lack of everything that planned clusters need, from the bare machine to their own
// workloads.
package supply

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/runtime"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/addon"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/content/bundle"
	"coldrack.dev/internal/contract/manifest"
	"coldrack.dev/internal/contract/manifest/yamlerr"
)

// ProbeImage is what `coldrack cluster verify` runs in a cluster.
const ProbeImage = "coldrack.dev/probe:v2"

// Need is something that a cluster needs, and where it was found.
type Need struct {
	kube.Need
	// Advice says what to do when it is missing.
	Advice string `json:"-"`
}

// Report is what planned clusters need.
type Report struct {
	Clusters []string `json:"clusters"`
	Missing  int      `json:"missing"`
	Needs    []Need   `json:"needs"`
}

// Report on clusters that run the images of manifests beside their own.
func (c *Content) Report(plans []Planned, images map[string]string) (Report, error) {
	report := Report{}
	for _, p := range plans {
		report.Clusters = append(report.Clusters, p.Cluster.Name)
		needs, err := c.needsOf(p, images)
		if err != nil {
			return report, err
		}
		report.Needs = append(report.Needs, needs...)
	}
	for _, need := range report.Needs {
		if need.Found == "" {
			report.Missing++
		}
	}
	return report, nil
}

// Advice is what to do about everything that is missing.
func (r *Report) Advice() []string {
	var advice []string
	for _, need := range r.Needs {
		if need.Found == "" && !slices.Contains(advice, need.Advice) {
			advice = append(advice, need.Advice)
		}
	}
	return advice
}

// Planned is a cluster of files, with its groups and the operating systems of its machines.
type Planned struct {
	Cluster *v1alpha1.Cluster
	groups  []v1alpha1.MachineGroup
	// images of its Addons, each with the one that names it first.
	images map[string]string
	// systems are the images that the groups' Profiles name; all says that some group's is not known here.
	systems []string
	all     bool
}

// ErrNoCluster says that there is none among the documents.
var ErrNoCluster = errors.New("there is no Cluster")

// ReadPlanned finds the clusters of documents, each with what belongs to it.
func ReadPlanned(documents []*manifest.Document) ([]Planned, error) {
	var plans []Planned
	var groups []v1alpha1.MachineGroup
	systems := map[string]string{} // by Profile
	var addons []*v1alpha1.Addon
	var errs []error
	for _, d := range documents {
		var err error
		switch kind := d.Object.GetKind(); {
		case d.Object.GroupVersionKind().Group != v1alpha1.GroupVersion.Group:
		case kind == "Cluster":
			p := Planned{Cluster: &v1alpha1.Cluster{}}
			if err = decodeInto(d, p.Cluster); err == nil {
				plans = append(plans, p)
			}
		case kind == "MachineGroup":
			var g v1alpha1.MachineGroup
			err = decodeInto(d, &g)
			groups = append(groups, g)
		case kind == "Addon":
			a := &v1alpha1.Addon{}
			err = decodeInto(d, a)
			addons = append(addons, a)
		case kind == "Profile":
			var p v1alpha1.Profile
			err = decodeInto(d, &p)
			systems[p.Name] = p.Spec.Image
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	for i := range plans {
		p := &plans[i]
		for _, g := range groups {
			if g.Spec.Cluster != p.Cluster.Name {
				continue
			}
			p.groups = append(p.groups, g)
			if image, ok := systems[g.Spec.Profile]; !ok {
				p.all = true
			} else if !slices.Contains(p.systems, image) {
				p.systems = append(p.systems, image)
			}
		}
		for _, a := range addons {
			if a.Spec.Cluster != p.Cluster.Name {
				continue
			}
			if err := p.addImages(a); err != nil {
				errs = append(errs, fmt.Errorf("add-on %s: %w", a.Name, err))
			}
		}
		for _, problem := range v1alpha1.ValidateCluster(p.Cluster, v1alpha1.ClusterFacts{Groups: p.groups}) {
			errs = append(errs, fmt.Errorf("cluster %s: %w", p.Cluster.Name, problem))
		}
	}
	if len(plans) == 0 && len(errs) == 0 {
		errs = append(errs, ErrNoCluster)
	}
	return plans, errors.Join(errs...)
}

// addImages collects what an add-on's pods run.
func (p *Planned) addImages(a *v1alpha1.Addon) error {
	objects, err := addon.ObjectsOf(a, addon.FactsOf(p.Cluster))
	if err != nil {
		return err
	}
	if p.images == nil {
		p.images = map[string]string{}
	}
	for _, image := range addon.Images(objects, kube.ImageReferences) {
		full, err := FullImageName(image)
		if err != nil {
			return err
		}
		if _, known := p.images[full]; !known {
			p.images[full] = "add-on " + a.Name
		}
	}
	return nil
}

func decodeInto(d *manifest.Document, object any) error {
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(d.Object.Object, object, true); err != nil {
		return fmt.Errorf("%s: %w", d.Place(), err)
	}
	return nil
}

// ManifestImages are the images that a folder of manifests runs, each with the file that names it first. The manifests
// are anybody's, so nothing but pods' fields is looked at.
func ManifestImages(names []string) (map[string]string, error) {
	images := map[string]string{}
	for _, name := range names {
		files, err := manifest.Files(name)
		if err != nil {
			return nil, err
		}
		if len(files) == 0 {
			return nil, fmt.Errorf("no manifests in %s; a folder holds them in .yaml, .yml or .json files", name)
		}
		for _, file := range files {
			if err := imagesOfFile(file, images); err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
		}
	}
	return images, nil
}

func imagesOfFile(file string, images map[string]string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	for decoder := yaml.NewDecoder(f); ; {
		var document any
		err := decoder.Decode(&document)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return errors.New(yamlerr.Text(err))
		}
		for _, reference := range kube.ImageReferences(document) {
			full, err := FullImageName(reference)
			if err != nil {
				return err
			}
			if _, known := images[full]; !known {
				images[full] = file
			}
		}
	}
}

// FullImageName is what containerd makes of an image's name in a manifest. Where there are a tag and a digest, the digest
// alone counts.
func FullImageName(reference string) (string, error) {
	parsed, err := name.ParseReference(reference)
	if err != nil {
		return "", fmt.Errorf("image %q: %w", reference, err)
	}
	return strings.Replace(parsed.Name(), name.DefaultRegistry+"/", "docker.io/", 1), nil
}

// Content is what bundles contain.
type Content struct {
	artifacts []bundle.Artifact // newest bundle first
	read      func(bundle.Artifact, string) ([]byte, error)
	// From names the bundles, for people.
	From string
}

// OfStore is what a server has imported.
func OfStore(store *bundle.Store) (*Content, error) {
	if err := errors.Join(store.Problems()...); err != nil {
		return nil, fmt.Errorf("an imported bundle is damaged; import it again with --again: %w", err)
	}
	read := func(artifact bundle.Artifact, title string) ([]byte, error) {
		file, size, err := store.Open(artifact.Files[title].Digest)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		if size > maxSBOM {
			return nil, fmt.Errorf("%s of %s has %d bytes", title, artifact.Name, size)
		}
		return io.ReadAll(file)
	}
	return &Content{artifacts: store.Artifacts(), From: "the content of this server", read: read}, nil
}

// OfArchives is the content of archives. verify checks every byte of one.
func OfArchives(paths []string, verify func(path string) (bundle.Summary, error)) (*Content, error) {
	content := &Content{From: "bundle " + strings.Join(paths, ", ")}
	archives := map[string]string{} // by digest of the bundle
	for _, path := range paths {
		summary, err := verify(path)
		if err != nil {
			return nil, err
		}
		archives[summary.Digest] = path
		content.artifacts = append(content.artifacts, summary.Artifacts...)
	}
	content.read = func(artifact bundle.Artifact, title string) ([]byte, error) {
		return bundle.ReadFile(archives[artifact.Bundle.Digest], artifact.Files[title], maxSBOM)
	}
	return content, nil
}

// maxSBOM bounds what is read of a bill of materials.
const maxSBOM = 64 << 20

func placeOf(artifact bundle.Artifact) string { return "bundle " + artifact.Bundle.Name }

// needsOf lists everything that a cluster needs, from the bare machine to its own workloads.
func (c *Content) needsOf(p Planned, manifests map[string]string) ([]Need, error) {
	var needs []Need
	byCluster := "cluster " + p.Cluster.Name
	const complete = "build a bundle of a complete recipe (recipes/default), and name or import it, too"
	for _, kind := range []bundle.Kind{bundle.KindNetboot, bundle.KindBootloaders} {
		need := kube.Need{Kind: string(kind), Name: "any", For: byCluster}
		if at := slices.IndexFunc(c.artifacts, func(a bundle.Artifact) bool { return a.Kind == kind }); at >= 0 {
			need.Name, need.Found = c.artifacts[at].Name, placeOf(c.artifacts[at])
		}
		needs = append(needs, Need{need, string(kind) + ": " + complete})
	}
	supply, systems, err := c.supplyFor(p)
	if err != nil {
		return nil, err
	}
	for _, need := range systems {
		need.For = byCluster
		needs = append(needs, Need{need, "operating-system image: " + complete})
	}
	required, err := kube.RequirementsOf(p.Cluster)
	if err != nil {
		return nil, fmt.Errorf("cluster %s: %w", p.Cluster.Name, err)
	}
	kubernetes := fmt.Sprintf("Kubernetes %s: build a bundle with the recipe of that version (recipes/kubernetes-*), and name or import it, too; these have %s",
		p.Cluster.Spec.Version, cmp.Or(strings.Join(c.kubernetes(), ", "), "no Kubernetes"))
	for _, need := range required.Check(supply) {
		need.For = byCluster
		advice := kubernetes
		switch {
		case need.Kind == kube.NeedPackage && len(supply.Systems) == 0:
			advice = "operating-system image: " + complete
		case need.Kind == kube.NeedPackage:
			advice = "package " + need.Name + ": add it to image.packages of the operating-system image's recipe, and build that bundle again"
		}
		needs = append(needs, Need{need, advice})
	}
	needs = append(needs, Need{
		kube.Need{Kind: kube.NeedImage, Name: ProbeImage, For: "coldrack cluster verify", Found: supply.Images[ProbeImage]},
		"image " + ProbeImage + ": the recipes of Kubernetes (recipes/kubernetes-*) of this version of Coldrack bring it; build the bundle again",
	})
	wanted := maps.Clone(p.images)
	if wanted == nil {
		wanted = map[string]string{}
	}
	maps.Copy(wanted, manifests)
	for _, image := range slices.Sorted(maps.Keys(wanted)) {
		need := kube.Need{Kind: kube.NeedImage, Name: image, For: wanted[image], Found: supply.Images[image]}
		if mirror := mirrorOf(p.Cluster, image); need.Found == "" && mirror != "" {
			need.Found, need.Note = mirror, "a registry of spec.registries, not asked"
		}
		needs = append(needs, Need{need, "image " + image + ": add it to the containers of a recipe, or give a registry that has it in spec.registries"})
	}
	return needs, nil
}

// MissingImages are those of images that no artifact is, that were not loaded beside bundles (nil: none was), and that no registry of
// the cluster may have.
func MissingImages(artifacts []bundle.Artifact, loaded func(name string) bool, cluster *v1alpha1.Cluster, images []string) []string {
	has := map[string]bool{}
	for _, a := range artifacts {
		if a.Kind != bundle.KindContainer {
			continue
		}
		if full, err := FullImageName(a.Name); err == nil {
			has[full], has[full[:strings.LastIndexByte(full, ':')]+"@"+a.Digest] = true, true
		}
	}
	var missing []string
	for _, image := range images {
		full, err := FullImageName(image)
		if err != nil || !has[full] && (loaded == nil || !loaded(full)) && mirrorOf(cluster, full) == "" {
			missing = append(missing, image)
		}
	}
	return missing
}

// mirrorOf is the registry beside Coldrack's own that nodes would pull an image from.
func mirrorOf(cluster *v1alpha1.Cluster, image string) string {
	host, _, _ := strings.Cut(image, "/")
	for _, r := range cluster.Spec.Registries {
		if r.Host == host && len(r.Endpoints) > 0 {
			return r.Endpoints[0]
		}
	}
	return ""
}

// kubernetes are the versions that there are programs for.
func (c *Content) kubernetes() []string {
	var versions []string
	for _, artifact := range c.artifacts {
		var config bundle.ProgramsConfig
		if artifact.Kind == bundle.KindPrograms && json.Unmarshal(artifact.Config, &config) == nil && config.Kubernetes != "" {
			versions = append(versions, config.Kubernetes)
		}
	}
	slices.Sort(versions)
	return slices.Compact(versions)
}

// supplyFor is what there is for a cluster, and a line for each operating-system image that its machines get.
func (c *Content) supplyFor(p Planned) (kube.Supply, []kube.Need, error) {
	supply := kube.Supply{Images: map[string]string{}}
	wanted := slices.Clone(p.systems)
	for _, artifact := range c.artifacts {
		place := placeOf(artifact)
		switch artifact.Kind {
		case bundle.KindContainer:
			full, err := FullImageName(artifact.Name)
			if err != nil {
				return supply, nil, err
			}
			repository := full[:strings.LastIndexByte(full, ':')]
			supply.Images[full], supply.Images[repository+"@"+artifact.Digest] = place, place
		case bundle.KindPrograms:
			var config bundle.ProgramsConfig
			if err := json.Unmarshal(artifact.Config, &config); err != nil {
				return supply, nil, fmt.Errorf("%s: programs %s: %w", place, artifact.Name, err)
			}
			if config.Kubernetes != "" && config.Kubernetes != p.Cluster.Spec.Version {
				continue
			}
			for _, f := range config.Programs {
				supply.Programs = append(supply.Programs, kube.SuppliedProgram{Name: f.Name, Path: f.Path, Version: f.Version, Place: place})
			}
		case bundle.KindImage:
			if p.all && !slices.Contains(wanted, artifact.Name) {
				wanted = append(wanted, artifact.Name)
			}
		}
	}
	if len(wanted) == 0 {
		return supply, []kube.Need{{Kind: "os image", Name: "any"}}, nil
	}
	var needs []kube.Need
	for _, system := range wanted {
		need := kube.Need{Kind: "os image", Name: system}
		at := slices.IndexFunc(c.artifacts, func(a bundle.Artifact) bool { return a.Kind == bundle.KindImage && a.Name == system })
		if at >= 0 {
			image := c.artifacts[at]
			need.Found = placeOf(image)
			packages, err := c.packagesOf(image)
			if err != nil {
				return supply, nil, err
			}
			supply.Systems = append(supply.Systems, kube.System{Name: image.Name, Place: need.Found, Packages: packages})
		}
		needs = append(needs, need)
	}
	return supply, needs, nil
}

// packagesOf reads the Debian packages of an image from the bill of materials of its bundle.
func (c *Content) packagesOf(image bundle.Artifact) ([]string, error) {
	at := slices.IndexFunc(c.artifacts, func(a bundle.Artifact) bool {
		return a.Kind == bundle.KindSBOM && a.Bundle.Digest == image.Bundle.Digest
	})
	if at < 0 {
		return nil, fmt.Errorf("%s has no bill of materials, so that nobody knows which packages image %s has; build it again", placeOf(image), image.Name)
	}
	raw, err := c.read(c.artifacts[at], bundle.FileSBOM)
	if err != nil {
		return nil, err
	}
	packages, err := debianPackages(raw, string(bundle.KindImage)+"/"+image.Name)
	if err != nil {
		return nil, fmt.Errorf("%s: bill of materials: %w", placeOf(image), err)
	}
	return packages, nil
}

// debianPackages are what an SPDX document says that a part of it contains.
func debianPackages(raw []byte, part string) ([]string, error) {
	var document struct {
		Packages []struct {
			ID       string `json:"SPDXID"`
			Name     string `json:"name"`
			External []struct {
				Locator string `json:"referenceLocator"`
			} `json:"externalRefs"`
		} `json:"packages"`
		Relationships []struct {
			From string `json:"spdxElementId"`
			Type string `json:"relationshipType"`
			To   string `json:"relatedSpdxElement"`
		} `json:"relationships"`
	}
	if err := json.Unmarshal(raw, &document); err != nil {
		return nil, err
	}
	within, debian := "", map[string]string{} // names by ID
	for _, p := range document.Packages {
		if p.Name == part {
			within = p.ID
		}
		for _, e := range p.External {
			if strings.HasPrefix(e.Locator, "pkg:deb/") {
				debian[p.ID] = p.Name
			}
		}
	}
	if within == "" {
		return nil, fmt.Errorf("does not speak of %s", part)
	}
	var names []string
	for _, r := range document.Relationships {
		if name, ok := debian[r.To]; ok && r.From == within && r.Type == "CONTAINS" {
			names = append(names, name)
		}
	}
	return names, nil
}
