package cli

import (
	"fmt"
	"slices"
	"strings"

	"coldrack.dev/api/v1alpha1"
)

// BundleUse is what becomes of the content of a bundle that is to be deleted.
type BundleUse struct {
	// Lost is what no other bundle has.
	Lost []v1alpha1.BundleContent
	// Older is what another bundle has in another form, which becomes the one that is used: "image debian-13 from bundle b".
	Older []string
}

// UseOf compares a bundle with the others.
func UseOf(doomed *v1alpha1.Bundle, all []v1alpha1.Bundle) BundleUse {
	var use BundleUse
	for _, content := range doomed.Spec.Contents {
		found := false
		for i := range all {
			other := &all[i]
			if other.Name == doomed.Name {
				continue
			}
			j := slices.IndexFunc(other.Spec.Contents, func(c v1alpha1.BundleContent) bool { return c.Kind == content.Kind && c.Name == content.Name })
			if j < 0 {
				continue
			}
			found = true
			if other.Spec.Contents[j].Digest != content.Digest {
				use.Older = append(use.Older, fmt.Sprintf("%s %s from bundle %s", content.Kind, content.Name, other.Name))
			}
			break
		}
		if !found {
			use.Lost = append(use.Lost, content)
		}
	}
	return use
}

// Users names the Profiles, Machines and Clusters that need what would be lost.
func (u BundleUse) Users(profiles []v1alpha1.Profile, machines []v1alpha1.Machine, clusters []v1alpha1.Cluster) []string {
	images, versions := map[string]bool{}, map[string]bool{}
	for _, content := range u.Lost {
		switch content.Kind {
		case "image":
			images[content.Name] = true
		case "container":
			if _, version, ok := strings.Cut(content.Name, "/kube-apiserver:"); ok {
				versions[version] = true
			}
		}
	}
	var users []string
	for i := range profiles {
		if image := profiles[i].Spec.Image; images[image] {
			users = append(users, fmt.Sprintf("Profile %s installs image %s", profiles[i].Name, image))
		}
	}
	for i := range machines {
		if image := machines[i].Spec.Image; images[image] {
			users = append(users, fmt.Sprintf("Machine %s installs image %s", machines[i].Name, image))
		}
	}
	for i := range clusters {
		if version := clusters[i].Spec.Version; versions[version] {
			users = append(users, fmt.Sprintf("Cluster %s runs Kubernetes %s", clusters[i].Name, version))
		}
	}
	slices.Sort(users)
	return users
}
