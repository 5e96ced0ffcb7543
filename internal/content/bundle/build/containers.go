package build

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"coldrack.dev/internal/content/bundle"
)

// lowPorts is the extended attribute that setcap cap_net_bind_service=+ep gives a file: revision 2 of
// struct vfs_cap_data (capabilities(7)), effective bit, permitted bit 10.
const lowPorts = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// container makes or fetches an image and returns it with what is in it.
func (b *builder) container(ctx context.Context, r ContainerRecipe, layers map[string]baseLayer, files map[SourceRecipe]artefact) (v1.Image, part, error) {
	bill := part{name: string(bundle.KindContainer) + "/" + r.Image}
	step := "container-" + stepName(path.Base(r.Image))
	inputs := []any{r, b.recipe.SourceDate}
	make := func(ctx context.Context, dir string) error { return b.pull(ctx, r, dir) }
	switch {
	case r.URL != "":
		file, err := b.download(ctx, r.URL, r.Digest)
		if err != nil {
			return nil, bill, err
		}
		make = func(_ context.Context, dir string) error { return convertArchive(file, b.workDir(), dir) }
	case r.Pull == "":
		for _, l := range r.Layers {
			inputs = append(inputs, layers[l].imageLayer)
			for _, p := range layers[l].Packages {
				if !slices.Contains(bill.packages, p) {
					bill.packages = append(bill.packages, p)
				}
			}
		}
		for _, f := range r.Files {
			inputs = append(inputs, files[f.SourceRecipe])
			bill.programs = append(bill.programs, files[f.SourceRecipe])
		}
		make = func(_ context.Context, dir string) error { return b.assemble(r, layers, files, dir) }
	}
	dir, err := b.steps.run(ctx, step, inputs, make)
	if err != nil {
		return nil, bill, err
	}
	img, err := onlyImage(dir)
	if err != nil {
		return nil, bill, fmt.Errorf("%s: %w", step, err)
	}
	if bill.packages == nil && bill.programs == nil {
		h, err := img.Digest()
		if err != nil {
			return nil, bill, fmt.Errorf("%s: %w", step, err)
		}
		bill.programs = []artefact{{Name: r.Image, Digest: h.String()}}
	}
	return img, bill, nil
}

// assemble builds an image of the recipe's layers and one of its own.
func (b *builder) assemble(r ContainerRecipe, layers map[string]baseLayer, files map[SourceRecipe]artefact, dir string) error {
	work, err := os.MkdirTemp(b.workDir(), "container-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	var parts []v1.Layer
	for _, l := range r.Layers {
		parts = append(parts, layers[l].imageLayer)
	}
	version := ""
	if len(r.Files) > 0 {
		w, err := newLayerWriter(filepath.Join(work, fileLayer), b.recipe.SourceDate)
		if err != nil {
			return err
		}
		defer w.abandon()
		for _, f := range r.Files {
			var pax map[string]string
			if f.BindLowPorts {
				pax = map[string]string{"SCHILY.xattr.security.capability": lowPorts}
			}
			if err := w.file(merged(f.Path), files[f.SourceRecipe].Path, 0o755, pax); err != nil {
				return err
			}
		}
		own, err := w.close()
		if err != nil {
			return err
		}
		parts = append(parts, own)
		version = files[r.Files[0].SourceRecipe].Version
	}
	config := v1.Config{
		Entrypoint: r.Entrypoint, Cmd: r.Command, User: r.User, WorkingDir: r.WorkingDir,
		Env: r.Env, Labels: map[string]string{"org.opencontainers.image.title": title(r.Image)},
	}
	if config.Env == nil {
		config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	}
	if version != "" {
		config.Labels["org.opencontainers.image.version"] = version
	}
	for key, value := range r.Labels {
		config.Labels[key] = value
	}
	return writeImage(dir, parts, v1.ConfigFile{
		OS: "linux", Architecture: "amd64", Created: v1.Time{Time: b.recipe.SourceDate.UTC()}, Config: config,
	})
}

// title is the last word of an image's name.
func title(image string) string {
	base, _, _ := strings.Cut(path.Base(image), ":")
	return base
}

// writeImage writes an OCI layout with one image, whose config gets its layers here.
func writeImage(dir string, layers []v1.Layer, config v1.ConfigFile) error {
	config.RootFS, config.History = v1.RootFS{Type: "layers"}, nil
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	img, err := mutate.ConfigFile(img, &config)
	if err != nil {
		return err
	}
	for _, l := range layers {
		if img, err = mutate.Append(img, mutate.Addendum{Layer: l, MediaType: types.OCILayerZStd, History: v1.History{Created: config.Created}}); err != nil {
			return err
		}
	}
	return writeLayout(dir, img)
}

func writeLayout(dir string, img v1.Image) error {
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	return l.AppendImage(img)
}

// onlyImage opens the layout that writeLayout left.
func onlyImage(dir string) (v1.Image, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, err
	}
	m, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	for _, d := range m.Manifests {
		if d.MediaType.IsImage() && (d.Platform == nil || d.Platform.Satisfies(ourPlatform())) {
			return index.Image(d.Digest)
		}
		if d.MediaType.IsIndex() {
			nested, err := index.ImageIndex(d.Digest)
			if err != nil {
				return nil, err
			}
			if img, err := imageOf(nested); err == nil {
				return img, nil
			}
		}
	}
	return nil, errors.New("has no image for linux/amd64")
}

func ourPlatform() v1.Platform { return v1.Platform{OS: "linux", Architecture: "amd64"} }

func imageOf(index v1.ImageIndex) (v1.Image, error) {
	m, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	for _, d := range m.Manifests {
		if d.Platform != nil && d.Platform.Satisfies(ourPlatform()) {
			return index.Image(d.Digest)
		}
	}
	return nil, errors.New("has no image for linux/amd64")
}

// pull takes an image out of a registry, as it is. What comes is checked against the digest.
func (b *builder) pull(ctx context.Context, r ContainerRecipe, dir string) error {
	digest, err := name.NewDigest(r.Pull, name.StrictValidation)
	if err != nil {
		return err
	}
	b.steps.detail("pull %s", r.Pull)
	img, err := remote.Image(digest, remote.WithContext(ctx), remote.WithPlatform(ourPlatform()))
	if err != nil {
		return fmt.Errorf("pull %s: %w", r.Pull, err)
	}
	if err := checkPlatform(img); err != nil {
		return fmt.Errorf("pull %s: %w", r.Pull, err)
	}
	if err := writeLayout(dir, img); err != nil {
		return fmt.Errorf("pull %s: %w", r.Pull, err)
	}
	return nil
}

func checkPlatform(img v1.Image) error {
	config, err := img.ConfigFile()
	if err != nil {
		return err
	}
	if config.OS != "linux" || config.Architecture != "amd64" {
		return fmt.Errorf("is for %s/%s, want linux/amd64", config.OS, config.Architecture)
	}
	return nil
}

// convertArchive reads an archive of docker save, whose layers get compressed here, or an OCI layout, which
// is taken as it is.
func convertArchive(file, work, dir string) error {
	tmp, err := os.MkdirTemp(work, "archive-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	plain, err := plainTar(file, filepath.Join(tmp, "archive.tar"))
	if err != nil {
		return err
	}
	entries, err := tarEntries(plain)
	if err != nil {
		return err
	}
	switch {
	case entries["oci-layout"] && entries["index.json"]:
		return convertLayout(plain, filepath.Join(tmp, "layout"), dir)
	case entries["manifest.json"]:
		return convertDocker(plain, tmp, dir)
	}
	return errors.New("is neither an archive of docker save nor an OCI layout")
}

// plainTar unpacks a compressed archive to a file that can be read at random.
func plainTar(file, to string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	r, err := decompress(f)
	if err != nil {
		return "", err
	}
	out, err := os.Create(to)
	if err != nil {
		return "", err
	}
	_, err = io.Copy(out, r)
	return to, errors.Join(err, out.Close())
}

func tarEntries(file string) (map[string]bool, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	found := map[string]bool{}
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return nil, fmt.Errorf("is not a readable tar archive: %w", err)
		}
		found[strings.TrimPrefix(h.Name, "./")] = true
	}
}

func convertDocker(file, tmp, dir string) error {
	img, err := tarball.ImageFromPath(file, nil)
	if err != nil {
		return err
	}
	if err := checkPlatform(img); err != nil {
		return err
	}
	config, err1 := img.ConfigFile()
	layers, err2 := img.Layers()
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	var ours []v1.Layer
	for i, l := range layers {
		made, err := compressLayer(l, filepath.Join(tmp, fmt.Sprint("layer-", i)))
		if err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
		if made.DiffOf != config.RootFS.DiffIDs[i] {
			return fmt.Errorf("layer %d is %s, but the image's config says %s", i, made.DiffOf, config.RootFS.DiffIDs[i])
		}
		ours = append(ours, made)
	}
	return writeImage(dir, ours, *config)
}

func compressLayer(l v1.Layer, file string) (imageLayer, error) {
	r, err := l.Uncompressed()
	if err != nil {
		return imageLayer{}, err
	}
	defer func() { _ = r.Close() }()
	w, err := newLayerWriter(file, time.Time{})
	if err != nil {
		return imageLayer{}, err
	}
	defer w.abandon()
	if _, err := io.Copy(w.raw, r); err != nil {
		return imageLayer{}, err
	}
	return w.finish()
}

func convertLayout(file, tmp, dir string) error {
	if err := unpackLayout(file, tmp); err != nil {
		return err
	}
	img, err := onlyImage(tmp)
	if err != nil {
		return err
	}
	if err := checkPlatform(img); err != nil {
		return err
	}
	return writeLayout(dir, img)
}

// unpackLayout unpacks an OCI layout, which consists of files alone. A link could make us read what is not in the archive.
func unpackLayout(file, dir string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch h.Typeflag {
		case tar.TypeDir:
			err = root.MkdirAll(path.Clean(h.Name), 0o755)
		case tar.TypeReg:
			err = unpackFile(root, path.Clean(h.Name), tr)
		default:
			err = fmt.Errorf("is of type %q; an OCI layout has only files and folders", h.Typeflag)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
}

func unpackFile(root *os.Root, name string, r io.Reader) error {
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	out, err := root.Create(name)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, r)
	return errors.Join(err, out.Close())
}
