package imagefile

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"coldrack.dev/internal/base/digest"
	"coldrack.dev/test/require"
)

func must[T any](t testing.TB) func(T, error) T {
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func imageFor(t testing.TB, arch string) v1.Image {
	t.Helper()
	image := must[v1.Image](t)(random.Image(20_000, 2))
	config := must[*v1.ConfigFile](t)(image.ConfigFile()).DeepCopy()
	config.OS, config.Architecture = "linux", arch
	return must[v1.Image](t)(mutate.ConfigFile(image, config))
}

// whole checks that everything that an image names is readable under its digest, and returns the image of the name.
func whole(t testing.TB, f *File, name string) Image {
	t.Helper()
	at := slices.IndexFunc(f.Images, func(i Image) bool { return i.Name == name })
	if at < 0 {
		t.Fatalf("no image %q among %d", name, len(f.Images))
	}
	i := f.Images[at]
	for _, m := range i.Manifests {
		if digest.Of(m.Raw).String() != m.Digest || m.MediaType == "" {
			t.Errorf("manifest %s has other bytes, or no type", m.Digest)
		}
	}
	if last := i.Manifests[len(i.Manifests)-1]; last.Digest != i.Digest {
		t.Errorf("the last manifest is %s, want %s", last.Digest, i.Digest)
	}
	for _, b := range i.Blobs {
		content, err := b.Open()
		check(t, err)
		raw, err := io.ReadAll(content)
		check(t, errors.Join(err, content.Close()))
		if digest.Of(raw).String() != b.Digest || int64(len(raw)) != b.Size {
			t.Errorf("content %s has other bytes", b.Digest)
		}
	}
	return i
}

func read(t testing.TB, path string) *File {
	t.Helper()
	f, err := Read(path)
	check(t, err)
	t.Cleanup(func() { check(t, f.Close()) })
	return f
}

// multi writes an OCI layout with an image of two platforms.
func multi(t testing.TB, name string) (dir string, index v1.ImageIndex) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "layout")
	index = empty.Index
	for _, arch := range []string{"amd64", "arm64"} {
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: imageFor(t, arch), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	path, err := layout.Write(dir, empty.Index)
	check(t, err)
	check(t, path.AppendIndex(index, layout.WithAnnotations(map[string]string{annotationRef: name})))
	return dir, index
}

// pack makes a tar file of a folder, without what skip says.
func pack(t testing.TB, dir string, skip func(path string) bool) string {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	check(t, filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		relative := must[string](t)(filepath.Rel(dir, path))
		if skip(relative) {
			return nil
		}
		content := must[[]byte](t)(os.ReadFile(path))
		check(t, w.WriteHeader(&tar.Header{Name: "./" + relative, Mode: 0o644, Size: int64(len(content)), Typeflag: tar.TypeReg}))
		return errors.Join(func() error { _, err := w.Write(content); return err }())
	}))
	check(t, w.Close())
	file := filepath.Join(t.TempDir(), "image.tar")
	check(t, os.WriteFile(file, out.Bytes(), 0o600))
	return file
}

func nothing(string) bool { return false }

func TestOneImageOfSeveralPlatforms(t *testing.T) {
	dir, index := multi(t, "rack.example/app:1")
	want := must[v1.Hash](t)(index.Digest()).String()
	for what, path := range map[string]string{"a folder": dir, "an archive": pack(t, dir, nothing)} {
		i := whole(t, read(t, path), "rack.example/app:1")
		if i.Digest != want || len(i.Manifests) != 3 || len(i.Blobs) != 6 || len(i.Absent) != 0 {
			t.Errorf("%s: %s with %d manifests, %d blobs, without %q", what, i.Digest, len(i.Manifests), len(i.Blobs), i.Absent)
		}
	}
}

func TestAPlatformMayBeAbsent(t *testing.T) {
	dir, index := multi(t, "rack.example/app:1")
	manifests := must[*v1.IndexManifest](t)(index.IndexManifest()).Manifests
	arm := must[v1.Image](t)(index.Image(manifests[1].Digest))
	layer := must[[]v1.Layer](t)(arm.Layers())[0]
	for what, gone := range map[string]v1.Hash{"its manifest": manifests[1].Digest, "one of its layers": must[v1.Hash](t)(layer.Digest())} {
		path := pack(t, dir, func(path string) bool { return strings.HasSuffix(path, gone.Hex) })
		i := whole(t, read(t, path), "rack.example/app:1")
		if len(i.Manifests) != 2 || len(i.Blobs) != 3 || !slices.Equal(i.Absent, []string{"linux/arm64"}) {
			t.Errorf("without %s: %d manifests, %d blobs, without %q", what, len(i.Manifests), len(i.Blobs), i.Absent)
		}
	}
	path := pack(t, dir, func(path string) bool {
		return strings.HasSuffix(path, manifests[0].Digest.Hex) || strings.HasSuffix(path, manifests[1].Digest.Hex)
	})
	if _, err := Read(path); err == nil || !strings.Contains(err.Error(), "none of its images is in the file") {
		t.Errorf("without both: %v", err)
	}
}

func TestDockerSave(t *testing.T) {
	one, two := imageFor(t, "amd64"), imageFor(t, "amd64")
	file := filepath.Join(t.TempDir(), "save.tar")
	check(t, tarball.MultiWriteToFile(file, map[name.Tag]v1.Image{
		must[name.Tag](t)(name.NewTag("web:1")): one, must[name.Tag](t)(name.NewTag("rack.example:5000/team/app:2")): two,
	}))
	f := read(t, file)
	if len(f.Images) != 2 {
		t.Fatalf("%d images", len(f.Images))
	}
	config := must[v1.Hash](t)(one.ConfigName()).String()
	if i := whole(t, f, "docker.io/library/web:1"); i.Blobs[0].Digest != config {
		t.Errorf("its config is %s, want %s", i.Blobs[0].Digest, config)
	}
	whole(t, f, "rack.example:5000/team/app:2")
	// The same each time, or it would be loaded twice.
	again := whole(t, read(t, file), "docker.io/library/web:1")
	if first := whole(t, f, "docker.io/library/web:1"); again.Digest != first.Digest {
		t.Errorf("the digest is %s, and then %s", first.Digest, again.Digest)
	}
}

func TestWhatIsNoImage(t *testing.T) {
	dir, index := multi(t, "rack.example/app:1")
	hash := must[*v1.IndexManifest](t)(index.IndexManifest()).Manifests[0].Digest.Hex
	damaged := filepath.Join(dir, "blobs", "sha256", hash)
	whole := pack(t, dir, nothing)
	check(t, os.WriteFile(damaged, []byte(`{"schemaVersion":2}`), 0o600))
	write := func(content string) string {
		path := filepath.Join(t.TempDir(), "x.tar")
		check(t, os.WriteFile(path, []byte(content), 0o600))
		return path
	}
	escape := filepath.Join(t.TempDir(), "escape")
	check(t, os.Mkdir(escape, 0o700))
	check(t, os.Symlink(filepath.Join(dir, "index.json"), filepath.Join(escape, "index.json")))
	half := must[[]byte](t)(os.ReadFile(whole))
	for what, test := range map[string]struct{ path, want string }{
		"nothing":                       {filepath.Join(t.TempDir(), "none"), "no such file"},
		"text":                          {write(strings.Repeat("this is no tar file\n", 100)), "is no tar file, or damaged"},
		"a compressed archive":          {write("\x1f\x8b\x08\x00rest"), "unpack it with gunzip first"},
		"an archive cut short":          {write(string(half[:len(half)/2+100])), "is no tar file, or damaged"},
		"another archive":               {pack(t, filepath.Join(dir, "blobs"), nothing), "no index.json and no manifest.json"},
		"a manifest with other bytes":   {dir, "is damaged: its bytes are those of"},
		"a folder whose files are away": {escape, "escapes"},
	} {
		if _, err := Read(test.path); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", what, err, test.want)
		}
	}
}

// TestWhatSkopeoWrites reads each form that a real skopeo writes of one image.
func TestWhatSkopeoWrites(t *testing.T) {
	require.Need(t, "skopeo")
	dir, _ := multi(t, "rack.example/app:1")
	skopeo := func(args ...string) string {
		out, err := exec.CommandContext(t.Context(), "skopeo", append([]string{"--insecure-policy"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("skopeo %q: %v: %s", args, err, out)
		}
		return string(out)
	}
	from := "oci:" + dir + ":rack.example/app:1"
	for _, form := range []string{"oci-archive", "oci"} {
		path := filepath.Join(t.TempDir(), "out")
		to := form + ":" + path + ":rack.example/app:1"
		skopeo("copy", "--all", from, to)
		i := whole(t, read(t, path), "rack.example/app:1")
		if raw := skopeo("inspect", "--raw", to); digest.Of([]byte(raw)).String() != i.Digest || len(i.Manifests) != 3 {
			t.Errorf("%s: %s with %d manifests, skopeo sees %s", form, i.Digest, len(i.Manifests), raw)
		}
	}
	path := filepath.Join(t.TempDir(), "out")
	skopeo("--override-arch=arm64", "copy", from, "docker-archive:"+path+":rack.example/app:1")
	if i := whole(t, read(t, path), "rack.example/app:1"); len(i.Manifests) != 1 || len(i.Blobs) != 3 {
		t.Errorf("docker-archive: %d manifests, %d blobs", len(i.Manifests), len(i.Blobs))
	}
}
