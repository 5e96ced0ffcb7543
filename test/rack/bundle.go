package rack

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/content/bundle"
	"coldrack.dev/internal/lab/rehearse"
)

// operatingSystem is the name of the image that machines are installed with, and nextSystem that of another one.
const operatingSystem, nextSystem = "debian-13", "debian-14"

// makeBundle packs what the server hands out: an operating system of noise, which nobody boots, and the programs and images of a
// node. Programs are scripts of one line, whose interpreter plays them.
func makeBundle(ctx context.Context, dir string, versions []string) (path, key string, err error) {
	dir = filepath.Join(dir, "bundle")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", "", err
	}
	var programs []bundle.ArtifactSpec
	for _, version := range versions {
		spec, err := nodePrograms(filepath.Join(dir, version), version)
		if err != nil {
			return "", "", err
		}
		programs = append(programs, spec)
	}
	images, err := nodeImages(versions)
	if err != nil {
		return "", "", err
	}
	programs = append(programs, images...)
	small := rehearse.Sizes{FirstStage: 4096, Kernel: 4096, Initrd: 4096, Image: 4096}
	return rehearse.MakeBundle(ctx, dir, small, []string{operatingSystem, nextSystem}, programs...)
}

// nodeImages are those that clusters of these versions run. Each has one layer, with its name: what they would start is on the machines
// already.
func nodeImages(versions []string) (specs []bundle.ArtifactSpec, err error) {
	made := map[string]bool{}
	for _, version := range versions {
		names, err := imagesOf(version)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if made[name] {
				continue
			}
			made[name] = true
			image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
			if image, err = mutate.AppendLayers(image, static.NewLayer([]byte(name), types.OCIUncompressedLayer)); err != nil {
				return nil, err
			}
			config, err := image.ConfigFile()
			if err != nil {
				return nil, err
			}
			config = config.DeepCopy()
			config.OS, config.Architecture = "linux", runtime.GOARCH
			if image, err = mutate.ConfigFile(image, config); err != nil {
				return nil, err
			}
			specs = append(specs, bundle.ArtifactSpec{Kind: bundle.KindContainer, Name: name, Image: image})
		}
	}
	return specs, nil
}

// nodePrograms are what a node of this version must have.
func nodePrograms(dir, version string) (bundle.ArtifactSpec, error) {
	config := bundle.ProgramsConfig{Name: "kubernetes-" + version, Kubernetes: version}
	spec := bundle.ArtifactSpec{Kind: bundle.KindPrograms, Name: config.Name}
	cluster, _, err := kube.Preset("production", kube.PresetOptions{Name: "any", Version: version, Workers: 1})
	if err != nil {
		return spec, err
	}
	required, err := kube.RequirementsOf(cluster)
	if err != nil {
		return spec, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return spec, err
	}
	packer, err := zstd.NewWriter(nil)
	if err != nil {
		return spec, err
	}
	defer packer.Close()
	for _, p := range append(required.Programs, kube.Program{Name: "ctr", Path: "/usr/local/bin/ctr"}) {
		body := fmt.Appendf(nil, "#!/rack/machine %s %s\n", p.Name, version)
		title := p.Name + ".zst"
		if err := os.WriteFile(filepath.Join(dir, title), packer.EncodeAll(body, nil), 0o600); err != nil {
			return spec, err
		}
		config.Programs = append(config.Programs, bundle.ProgramFile{Name: p.Name, Path: p.Path, Version: p.Version,
			Digest: digest.Of(body).String(), Size: int64(len(body)), File: title})
		spec.Files = append(spec.Files, bundle.FileSpec{Title: title, Path: filepath.Join(dir, title)})
	}
	spec.Config = config
	return spec, nil
}
