package bundle

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/klauspost/compress/zstd"

	"coldrack.dev/internal/base/digest"
)

// samplePrograms is an artifact with programs of the given names, which are a few kilobytes of text each.
func samplePrograms(t testing.TB, dir, name, kubernetes string, programs ...string) ArtifactSpec {
	t.Helper()
	config := ProgramsConfig{Name: name, Kubernetes: kubernetes}
	spec := ArtifactSpec{Kind: KindPrograms, Name: name}
	for _, p := range programs {
		body := bytes.Repeat([]byte(p+" "+kubernetes+"\n"), 300)
		enc, err := zstd.NewWriter(nil)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name+kubernetes+p)
		if err := os.WriteFile(path, enc.EncodeAll(body, nil), 0o644); err != nil {
			t.Fatal(err)
		}
		title := p + ".zst"
		config.Programs = append(config.Programs, ProgramFile{
			Name: p, Path: "/usr/bin/" + p, Version: kubernetes, Digest: digest.Of(body).String(), Size: int64(len(body)), File: title,
		})
		spec.Files = append(spec.Files, FileSpec{Title: title, Path: path})
	}
	spec.Config = config
	return spec
}

// sampleContainer is an image with two layers of bytes that seed decides.
func sampleContainer(t testing.TB, seed byte) v1.Image {
	t.Helper()
	noise := rand.NewChaCha8([32]byte{seed})
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	for _, size := range []int{2000, 4000} {
		b := make([]byte, size)
		_, _ = noise.Read(b)
		next, err := mutate.AppendLayers(img, static.NewLayer(b, types.OCIUncompressedLayer))
		if err != nil {
			t.Fatal(err)
		}
		img = next
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	img, err = mutate.ConfigFile(img, config)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func importSpec(t testing.TB, s *Store, spec Spec) Summary {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.bundle")
	if _, err := Pack(context.Background(), spec, testKey(1), path, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(context.Background(), path, public(testKey(1)), nil); err != nil {
		t.Fatal(err)
	}
	summary, err := Import(context.Background(), s, path, public(testKey(1)), nil)
	if err != nil {
		t.Fatal(err)
	}
	return summary
}

func TestBundlesForTwoVersionsOfKubernetesBesideEachOther(t *testing.T) {
	const pause, proxy = "registry.k8s.io/pause:3.10.2", "registry.k8s.io/kube-proxy:v1.36.3"
	dir := t.TempDir()
	s := newStore(t)
	if _, err := s.Programs("v1.37.2"); !errors.Is(err, ErrNotFound) {
		t.Errorf("an empty store gives %v", err)
	}
	if len(s.Containers()) != 0 || len(s.KubernetesVersions()) != 0 {
		t.Error("an empty store has something")
	}
	importSpec(t, s, Spec{Name: "one", Artifacts: []ArtifactSpec{
		samplePrograms(t, dir, "kubernetes-1.37", "v1.37.2", "kubelet", "containerd"),
		samplePrograms(t, dir, "debugging", "", "kubelet", "crictl"),
		{Kind: KindContainer, Name: pause, Image: sampleContainer(t, 1)},
	}})
	older := sampleContainer(t, 2)
	importSpec(t, s, Spec{Name: "two", Artifacts: []ArtifactSpec{
		samplePrograms(t, dir, "kubernetes-1.9", "v1.9.11", "kubelet"),
		{Kind: KindContainer, Name: pause, Image: older},
		{Kind: KindContainer, Name: proxy, Image: sampleContainer(t, 1)},
	}})
	if diff := cmp.Diff([]string{"v1.9.11", "v1.37.2"}, s.KubernetesVersions()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{proxy, pause}, s.Containers()); diff != "" {
		t.Error(diff)
	}
	programs, err := s.Programs("v1.37.2")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range programs {
		names = append(names, p.Name+" "+p.Version)
		f, size, err := s.Open(p.Content.Digest)
		if err != nil || size != p.Content.Size {
			t.Fatal(size, err)
		}
		if err := p.check(f); err != nil {
			t.Error(err)
		}
		_ = f.Close()
	}
	if diff := cmp.Diff([]string{"containerd v1.37.2", "crictl ", "kubelet v1.37.2"}, names); diff != "" {
		t.Error(diff)
	}
	if _, err := s.Programs("v1.34.0"); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "v1.37.2") {
		t.Errorf("a version that is not there gives %v, want those that are", err)
	}

	// The image of the bundle that came last counts.
	want, err := older.Digest()
	if err != nil {
		t.Fatal(err)
	}
	got, ok := s.Container(pause)
	if !ok || got.Digest != want.String() || got.MediaType != string(types.OCIManifestSchema1) {
		t.Errorf("%s is %+v, want %s", pause, got, want)
	}
	f, size, err := s.Open(got.Digest)
	if err != nil || size != got.Size {
		t.Fatalf("manifest of %d bytes, want %d, %v", size, got.Size, err)
	}
	raw, err := io.ReadAll(f)
	_ = f.Close()
	if manifest, parseErr := v1.ParseManifest(bytes.NewReader(raw)); err != nil || parseErr != nil || len(manifest.Layers) != 2 {
		t.Errorf("manifest %s: %v, %v", raw, err, parseErr)
	}
	if _, ok := s.Container("registry.k8s.io/pause:latest"); ok {
		t.Error("an image of another tag was found")
	}
}

func TestAnotherOCIImplementationReadsAContainerOfTheStore(t *testing.T) {
	s := newStore(t)
	summary := importSpec(t, s, Spec{Name: "x", Artifacts: []ArtifactSpec{{Kind: KindContainer, Name: "registry.k8s.io/pause:1", Image: sampleContainer(t, 1)}}})
	l, err := layout.FromPath(s.Dir())
	if err != nil {
		t.Fatal(err)
	}
	top, err1 := l.ImageIndex()
	index, err2 := v1.NewHash(summary.Digest)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	nested, err := top.ImageIndex(index)
	if err != nil {
		t.Fatal(err)
	}
	h, err := v1.NewHash(summary.Artifacts[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	img, err := nested.Image(h)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(img, validate.Fast); err != nil {
		t.Error(err)
	}
}

func TestPackRefusesContainersAndProgramsThatNoNodeCouldUse(t *testing.T) {
	dir := t.TempDir()
	withConfig := func(change func(*v1.ConfigFile)) v1.Image {
		img := sampleContainer(t, 1)
		config, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		config = config.DeepCopy()
		change(config)
		img, err = mutate.ConfigFile(img, config)
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	container := func(name string, img v1.Image) ArtifactSpec {
		return ArtifactSpec{Kind: KindContainer, Name: name, Image: img}
	}
	programs := func(change func(*ProgramsConfig)) ArtifactSpec {
		a := samplePrograms(t, dir, "p", "v1.37.2", "kubelet", "ctr")
		c := a.Config.(ProgramsConfig)
		c.Programs = slices.Clone(c.Programs)
		change(&c)
		a.Config = c
		return a
	}
	for name, tt := range map[string]struct {
		artifact ArtifactSpec
		want     string
	}{
		"no image":                  {container("registry.k8s.io/pause:1", nil), "has no image"},
		"a name without registry":   {container("pause:1", sampleContainer(t, 1)), "want registry, repository and tag"},
		"a name without tag":        {container("registry.k8s.io/pause", sampleContainer(t, 1)), "want registry, repository and tag"},
		"a name by digest":          {container("registry.k8s.io/pause@"+digest.Of(nil).String(), sampleContainer(t, 1)), "want registry, repository and tag"},
		"a name that climbs":        {container("registry.k8s.io/../pause:1", sampleContainer(t, 1)), "want registry, repository and tag"},
		"no operating system":       {container("registry.k8s.io/pause:1", withConfig(func(c *v1.ConfigFile) { c.OS = "" })), `is for "" on "amd64"`},
		"no architecture":           {container("registry.k8s.io/pause:1", withConfig(func(c *v1.ConfigFile) { c.Architecture = "" })), `is for "linux" on ""`},
		"a layer that is not known": {container("registry.k8s.io/pause:1", withConfig(func(c *v1.ConfigFile) { c.RootFS.DiffIDs = c.RootFS.DiffIDs[:1] })), "with 1 layers, but the manifest has 2"},
		"no programs":               {programs(func(c *ProgramsConfig) { c.Programs = nil }), "programs is empty"},
		"a relative path":           {programs(func(c *ProgramsConfig) { c.Programs[1].Path = "bin/ctr" }), `programs[1].path: is "bin/ctr", want an absolute path`},
		"a path that climbs":        {programs(func(c *ProgramsConfig) { c.Programs[1].Path = "/usr/../etc/shadow" }), "programs[1].path"},
		"two programs in one place": {programs(func(c *ProgramsConfig) { c.Programs[1].Path = c.Programs[0].Path }), "a second program at /usr/bin/kubelet"},
		"two programs of one name":  {programs(func(c *ProgramsConfig) { c.Programs[1].Name = "kubelet" }), "programs[1]: a second kubelet"},
		"a layer that is missing":   {programs(func(c *ProgramsConfig) { c.Programs[1].File = "other" }), `programs[1].file: is "other", which the artifact does not have`},
		"a digest that is none":     {programs(func(c *ProgramsConfig) { c.Programs[1].Digest = "sha256:x" }), "programs[1].digest"},
		"a program of no bytes":     {programs(func(c *ProgramsConfig) { c.Programs[0].Size = 0 }), "programs[0].size"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Pack(context.Background(), Spec{Name: "x", Artifacts: []ArtifactSpec{tt.artifact}}, testKey(1), filepath.Join(dir, "x.bundle"), nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error is %v, want %q in it", err, tt.want)
			}
		})
	}
}

func TestVerifyReadsProgramsBehindTheirCompression(t *testing.T) {
	dir := t.TempDir()
	for name, change := range map[string]func(*ProgramFile){
		"another digest":      func(p *ProgramFile) { p.Digest = digest.Of([]byte("other")).String() },
		"one byte less":       func(p *ProgramFile) { p.Size-- },
		"one byte more":       func(p *ProgramFile) { p.Size++ },
		"not compressed data": func(p *ProgramFile) { p.File = "plain" },
	} {
		t.Run(name, func(t *testing.T) {
			a := samplePrograms(t, dir, "p", "v1.37.2", "kubelet")
			plain := filepath.Join(dir, "plain")
			if err := os.WriteFile(plain, []byte("#!/bin/sh\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			a.Files = append(a.Files, FileSpec{Title: "plain", Path: plain})
			c := a.Config.(ProgramsConfig)
			change(&c.Programs[0])
			a.Config = c
			path := filepath.Join(dir, "x.bundle")
			if _, err := Pack(context.Background(), Spec{Name: "x", Artifacts: []ArtifactSpec{a}}, testKey(1), path, nil); err != nil {
				t.Fatal(err)
			}
			_, err := Verify(context.Background(), path, public(testKey(1)), nil)
			if err == nil || !strings.Contains(err.Error(), `programs "p": program kubelet: `) {
				t.Errorf("error is %v", err)
			}
		})
	}
}

func TestVersionsAreComparedByNumber(t *testing.T) {
	versions := []string{"v1.37.10", "v1.9.0", "v1.37.2", "v1.37", "v2.0.0"}
	slices.SortFunc(versions, compareVersions)
	if diff := cmp.Diff([]string{"v1.9.0", "v1.37", "v1.37.2", "v1.37.10", "v2.0.0"}, versions); diff != "" {
		t.Error(diff)
	}
}
