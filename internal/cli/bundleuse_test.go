package cli

import (
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
)

func TestWhatGoesWithABundle(t *testing.T) {
	content := func(kind, name, digest string) v1alpha1.BundleContent {
		return v1alpha1.BundleContent{Kind: kind, Name: name, Digest: digest}
	}
	bundle := func(name string, contents ...v1alpha1.BundleContent) v1alpha1.Bundle {
		return v1alpha1.Bundle{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.BundleSpec{Contents: contents}}
	}
	all := []v1alpha1.Bundle{
		bundle("new", content("image", "debian-13", "n"), content("netboot", "discovery", "n"), content("image", "only", "n"),
			content("container", "registry.k8s.io/kube-apiserver:v1.37.2", "n"), content("container", "registry.k8s.io/pause:3.10.2", "same")),
		bundle("old", content("image", "debian-13", "o"), content("netboot", "discovery", "o"), content("container", "registry.k8s.io/pause:3.10.2", "same")),
	}
	use := UseOf(&all[0], all)
	var lost []string
	for _, c := range use.Lost {
		lost = append(lost, c.Name)
	}
	if want := []string{"only", "registry.k8s.io/kube-apiserver:v1.37.2"}; !slices.Equal(lost, want) {
		t.Errorf("lost are %q, want %q", lost, want)
	}
	if want := []string{"image debian-13 from bundle old", "netboot discovery from bundle old"}; !slices.Equal(use.Older, want) {
		t.Errorf("older are %q, want %q", use.Older, want)
	}
	profile := func(name, image string) v1alpha1.Profile {
		return v1alpha1.Profile{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.ProfileSpec{Image: image}}
	}
	cluster := func(name, version string) v1alpha1.Cluster {
		return v1alpha1.Cluster{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.ClusterSpec{Version: version}}
	}
	machine := v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: "m"}, Spec: v1alpha1.MachineSpec{Image: "only"}}
	users := use.Users([]v1alpha1.Profile{profile("a", "debian-13"), profile("b", "only")}, []v1alpha1.Machine{machine}, []v1alpha1.Cluster{cluster("c", "v1.37.2"), cluster("d", "v1.36.3")})
	if got, want := strings.Join(users, "; "), "Cluster c runs Kubernetes v1.37.2; Machine m installs image only; Profile b installs image only"; got != want {
		t.Errorf("users are %s, want %s", got, want)
	}
}
