package containerd

import "testing"

func TestDigestOfAListedImage(t *testing.T) {
	list := []byte("REF                               TYPE                                       DIGEST                     SIZE    PLATFORMS   LABELS\n" +
		"registry.k8s.io/pause:3.10.2      application/vnd.oci.image.manifest.v1+json sha256:aa11                312.0 KiB linux/amd64 io.cri-containerd.image=managed\n" +
		"registry.k8s.io/pause:3.10.2-old  application/vnd.oci.image.manifest.v1+json sha256:bb22                312.0 KiB linux/amd64 -\n")
	for name, want := range map[string]string{"registry.k8s.io/pause:3.10.2": "sha256:aa11", "registry.k8s.io/pause:3.10.2-old": "sha256:bb22", "registry.k8s.io/pause:3.10": ""} {
		if got := digestIn(list, name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

func TestNameWithoutItsTag(t *testing.T) {
	for name, want := range map[string]string{
		"registry.k8s.io/pause:3.10.2": "registry.k8s.io/pause", "example.org:5000/a/b:1": "example.org:5000/a/b", "example.org:5000/a/b": "example.org:5000/a/b",
	} {
		if got := untagged(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}
