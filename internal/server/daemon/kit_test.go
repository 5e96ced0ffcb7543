package daemon

import (
	"slices"
	"testing"

	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/test/require"
)

// common is what the nodes of every cluster have in common.
type common struct {
	programs []wire.Program
	images   []string
}

func (c common) Kit(machine string) ([]wire.Program, []string, bool, error) {
	return c.programs, c.images, machine == "node", nil
}

func TestAKitIsMadeOfTheBundles(t *testing.T) {
	require.Need(t, "netns")
	rack := newBootRack(t)
	kernel, _, ok := rack.server.content.netboot() // any blob does for a program
	if !ok {
		t.Fatal("no bundle")
	}
	k := &kits{store: rack.server.content.store, clusters: common{
		[]wire.Program{{Name: "kubelet", Content: wire.Content{Digest: kernel.Digest, Size: kernel.Size}}}, []string{"registry.example.org/own:v1", sampleImage},
	}}
	if _, ok, err := k.Kit(t.Context(), "other"); ok || err != nil {
		t.Errorf("a machine without a kit: %v, %v", ok, err)
	}
	got, ok, err := k.Kit(t.Context(), "node")
	check(t, err)
	if !ok || len(got.Parts) != 4 { // the program; manifest, config and layer of the image that a bundle has
		t.Fatalf("the kit has %+v", got.Parts)
	}
	image := containerImage(t)
	digest, err := image.Digest()
	check(t, err)
	manifest, err := image.Manifest()
	check(t, err)
	want := []string{kernel.Digest, digest.String(), manifest.Config.Digest.String(), manifest.Layers[0].Digest.String()}
	var parts []string
	for _, p := range got.Parts {
		parts = append(parts, p.Digest)
	}
	if !slices.Equal(parts, want) || got.Parts[1].MediaType != string(manifest.MediaType) {
		t.Errorf("the kit has %+v, want %v", got.Parts, want)
	}
	again, _, err := k.Kit(t.Context(), "node")
	check(t, err)
	if again.Digest != got.Digest || len(k.made) != 1 {
		t.Errorf("asked again: %s, made %d", again.Digest, len(k.made))
	}
	if err := got.Validate(); err != nil {
		t.Error(err)
	}
	k.clusters = common{programs: []wire.Program{{Content: wire.Content{Digest: bundleless, Size: 5}}}}
	if _, ok, err := k.Kit(t.Context(), "node"); ok || err == nil {
		t.Errorf("a program that no bundle has: %v, %v", ok, err)
	}
}

const bundleless = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
