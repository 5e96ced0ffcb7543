package main

import (
	"context"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/rogpeppe/go-internal/testscript"

	"coldrack.dev/internal/content/bundle"
)

// packContainer makes a bundle with one container image: packcontainer FILE KEY.key NAME
func packContainer(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: packcontainer FILE KEY.key NAME")
	}
	key, _, err := bundle.LoadOrCreateKey(ts.MkAbs(args[1]))
	ts.Check(err)
	spec := bundle.Spec{Name: "containers", Artifacts: []bundle.ArtifactSpec{{Kind: bundle.KindContainer, Name: args[2], Image: imageFor(ts, "amd64")}}}
	_, err = bundle.Pack(context.Background(), spec, key, ts.MkAbs(args[0]), nil)
	ts.Check(err)
}

func imageFor(ts *testscript.TestScript, arch string) v1.Image {
	image, err := random.Image(100_000, 2)
	ts.Check(err)
	config, err := image.ConfigFile()
	ts.Check(err)
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", arch
	image, err = mutate.ConfigFile(mutate.ConfigMediaType(mutate.MediaType(image, types.OCIManifestSchema1), types.OCIConfigJSON), config)
	ts.Check(err)
	return image
}

// packImage writes a folder in OCI image layout with one image: packimage FOLDER NAME ARCHITECTURE...
func packImage(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: packimage FOLDER NAME ARCHITECTURE...")
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range args[2:] {
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: imageFor(ts, arch), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	path, err := layout.Write(ts.MkAbs(filepath.Clean(args[0])), empty.Index)
	ts.Check(err)
	ts.Check(path.AppendIndex(index, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": args[1]})))
}
