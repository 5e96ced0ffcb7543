package members

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/cluster/planner"
	"coldrack.dev/internal/contract/wire"
)

// prefetch is what a node with these roles needs of another version of Kubernetes; nil for version "".
func (s *Set) prefetch(c *cluster, roles []v1alpha1.Role, version string) (*wire.Prefetch, error) {
	if version == "" {
		return nil, nil
	}
	out := &wire.Prefetch{KubernetesVersion: version}
	programs, err := s.Programs.Programs(version)
	if err != nil {
		return nil, fmt.Errorf("nothing is fetched for %s: %w", version, err)
	}
	for _, p := range programs {
		phase, wanted := kube.ProgramPhase(p.Name, roles)
		if wanted {
			p.Phase = string(phase)
			out.Programs = append(out.Programs, p)
		}
	}
	images, _, err := kube.ImagesOf(at(c.input.Cluster, version), roles)
	if err != nil {
		return nil, err
	}
	for _, name := range images {
		image := wire.PrefetchImage{Name: name}
		if s.ImageDigest != nil {
			image.Digest = s.ImageDigest(name)
		}
		out.Images = append(out.Images, image)
	}
	hash := sha256.New()
	_ = json.NewEncoder(hash).Encode(out) // as in versioned
	out.ID = hex.EncodeToString(hash.Sum(nil)[:12])
	return out, nil
}

// at is a cluster as it would be with another version.
func at(c *v1alpha1.Cluster, version string) *v1alpha1.Cluster {
	next := *c
	next.Spec.Version = version
	return &next
}

// Prefetched says whether a machine has everything that it was told to fetch for a version, by what it reports, or cannot be told to. why says what hinders
// it, how how far it is.
func (s *Set) Prefetched(m *v1alpha1.Machine, version string) (done bool, how, why string) {
	assignment, _ := s.Node(m.Name)
	want := assignment.Prefetch
	if want == nil || want.KubernetesVersion != version {
		return false, "it is not told what to fetch yet", assignment.Message
	}
	up := kubernetesOf(m)
	if up == nil {
		return false, "it has not reported anything", ""
	}
	has := up.Prefetch
	switch {
	case has == nil:
		return true, "", "" // its agent is of a release that fetches nothing before
	case has.ID != want.ID:
		return false, "it has not begun", ""
	case has.Done:
		return true, "", ""
	case has.Failing:
		return false, "", has.Message
	case has.BytesTotal > 0 && has.BytesDone < has.BytesTotal:
		return false, fmt.Sprintf("%d of %d MiB", has.BytesDone>>20, (has.BytesTotal+1<<20-1)>>20), ""
	}
	return false, has.Message, ""
}

// LackingBlock says why a change is not begun that needs images that no bundle and, by have, no node has. nil: there are none.
func (s *Set) LackingBlock(cluster *v1alpha1.Cluster, have func() (map[string]bool, error)) *planner.Block {
	var images []string
	for _, text := range s.Lacking(cluster) {
		if name, is := strings.CutPrefix(text, kube.NeedImage+" "); is {
			images = append(images, name)
		}
	}
	if len(images) == 0 {
		return nil
	}
	there, err := have()
	if err != nil {
		return nil // what nodes have is not known, and most changes need no image
	}
	if images = slices.DeleteFunc(images, func(name string) bool { return there[name] }); len(images) == 0 {
		return nil
	}
	return &planner.Block{Operation: planner.OperationChange, Reason: lackingText(images, "the images that the cluster is to run"), Remedy: importRemedy}
}

// Lacking is what no imported bundle has of the programs and images of a cluster at the version that its spec says. Images that come from a
// registry of their own (spec.registries, or one that this server fetches from) are not asked for there.
func (s *Set) Lacking(cluster *v1alpha1.Cluster) []string {
	required, err := kube.RequirementsOf(cluster)
	if err != nil {
		return []string{err.Error()}
	}
	supply := kube.Supply{Images: map[string]string{}}
	for _, image := range required.Images {
		registry, _, _ := strings.Cut(image, "/")
		elsewhere := s.ImageDigest == nil || s.FetchesFrom != nil && s.FetchesFrom(registry) ||
			slices.ContainsFunc(cluster.Spec.Registries, func(r v1alpha1.RegistryMirror) bool { return r.Host == registry && len(r.Endpoints) > 0 })
		if elsewhere || s.ImageDigest(image) != "" {
			supply.Images[image] = "here"
		}
	}
	programs, err := s.Programs.Programs(cluster.Spec.Version)
	if err != nil {
		return []string{err.Error()}
	}
	for _, p := range programs {
		supply.Programs = append(supply.Programs, kube.SuppliedProgram{Name: p.Name, Path: p.Path, Version: p.Version, Place: "here"})
	}
	return required.Lacking(supply)
}
