package e2e

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/klauspost/compress/zstd"

	"coldrack.dev/internal/content/bundle"
	"coldrack.dev/test/require"
)

// TestProgramsAndImagesOfTheBundleAreWhatTheySay runs every program and every container's program of the real
// bundle once, and has it say its version.
func TestProgramsAndImagesOfTheBundleAreWhatTheySay(t *testing.T) {
	t.Parallel()
	require.Need(t, "root")
	file := os.Getenv("COLDRACK_E2E_BUNDLE")
	if file == "" {
		file = filepath.Join(root(t), "build", "default.bundle.tar")
	}
	if _, err := os.Stat(file); err != nil {
		t.Fatalf("no bundle to look into: %v; run: make e2e", err)
	}
	trusted, err := bundle.LoadPublicKeys(publicKey(file))
	if err != nil {
		t.Fatal(err)
	}
	store, err := bundle.OpenStore(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bundle.Import(t.Context(), store, file, trusted, nil); err != nil {
		t.Fatal(err)
	}
	versions := store.KubernetesVersions()
	if len(versions) == 0 {
		t.Fatal("the bundle has no programs for any version of Kubernetes")
	}
	for _, version := range versions {
		programs, err := store.Programs(version)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range programs {
			t.Run(p.Name, func(t *testing.T) {
				file := filepath.Join(t.TempDir(), path.Base(p.Path))
				unpackProgram(t, store, p, file)
				if said := versionOf(t, "", file); !strings.Contains(said, strings.TrimPrefix(p.Version, "v")) {
					t.Errorf("%s is to be %s, but says %q", p.Path, p.Version, said)
				}
			})
		}
	}
	for _, image := range store.Containers() {
		t.Run(path.Base(image), func(t *testing.T) {
			dir, config := unpackImage(t, store, image)
			program := append(config.Config.Entrypoint, config.Config.Cmd...)[0]
			want := config.Config.Labels["org.opencontainers.image.version"]
			if strings.HasPrefix(image, "coldrack.dev/") {
				if _, err := os.Stat(filepath.Join(dir, program)); err != nil {
					t.Error(err)
				}
				return // these are of this repository, and have no version of their own
			}
			if said := versionOf(t, dir, program); want == "" || !strings.Contains(said, strings.TrimPrefix(want, "v")) {
				t.Errorf("%s is to be %s, but says %q", program, want, said)
			}
			if strings.Contains(image, "/kube-proxy:") || strings.Contains(image, "/flannel:") {
				for program, want := range map[string]string{"/usr/sbin/nft": "nftables v1", "/usr/sbin/iptables": "(nf_tables)", "/usr/sbin/ip6tables-save": "(nf_tables)"} {
					if said := versionOf(t, dir, program); !strings.Contains(said, want) {
						t.Errorf("%s says %q, want %q in it", program, said, want)
					}
				}
			}
			if strings.Contains(image, "/etcd:") {
				for _, program := range []string{"/usr/local/bin/etcdctl", "/usr/local/bin/etcdutl"} {
					if said := versionOf(t, dir, program); !strings.Contains(said, strings.TrimPrefix(want, "v")) {
						t.Errorf("%s says %q", program, said)
					}
				}
			}
		})
	}
}

func unpackProgram(t *testing.T, store *bundle.Store, p bundle.StoredProgram, to string) {
	t.Helper()
	f, _, err := store.Open(p.Content.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := zstd.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	// A program that a child of this process has open for writing, if only between fork and exec, does not start (ETXTBSY); other
	// tests start machines meanwhile.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(out, z)
	if err := errors.Join(err, out.Close()); err != nil {
		t.Fatal(err)
	}
}

// versionOf asks a program in one of the ways that programs know; root is what it sees as /.
func versionOf(t *testing.T, root, program string) string {
	t.Helper()
	var all []byte
	var errs []error
	for _, argument := range []string{"--version", "version", "-version", "-v"} {
		cmd := exec.CommandContext(t.Context(), program, argument)
		if strings.HasPrefix(path.Base(program), "kubectl") {
			cmd.Args = append(cmd.Args, "--client")
		}
		cmd.Env = []string{"HOME=/nonexistent"}
		if strings.Contains(program, "bridge") || strings.Contains(program, "host-local") || strings.Contains(program, "loopback") || strings.Contains(program, "portmap") {
			cmd.Args = cmd.Args[:1] // a CNI plugin says what it is when it is asked nothing
		}
		if root != "" {
			cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
			cmd.Path, cmd.Dir = program, "/"
		}
		out, err := cmd.CombinedOutput()
		all = append(all, out...)
		if err == nil {
			return string(all)
		}
		errs = append(errs, err)
	}
	t.Logf("%s: %v", program, errors.Join(errs...))
	return string(all)
}

// unpackImage makes the folder that a container of an image sees as /.
func unpackImage(t *testing.T, store *bundle.Store, name string) (string, *v1.ConfigFile) {
	t.Helper()
	manifest, ok := store.Container(name)
	if !ok {
		t.Fatalf("no image %s", name)
	}
	img := imageOf(t, store, manifest)
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	tree, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	r := mutate.Extract(img)
	defer r.Close()
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return dir, config
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(tree.MkdirAll(path.Dir(h.Name), 0o755), unpackEntry(tree, h, tr)); err != nil {
			t.Fatalf("%s: %v", h.Name, err)
		}
	}
}

func unpackEntry(tree *os.Root, h *tar.Header, r io.Reader) error {
	switch h.Typeflag {
	case tar.TypeDir:
		return tree.MkdirAll(h.Name, 0o755)
	case tar.TypeSymlink:
		return tree.Symlink(h.Linkname, h.Name)
	}
	syscall.ForkLock.RLock() // see unpackProgram
	defer syscall.ForkLock.RUnlock()
	f, err := tree.OpenFile(h.Name, os.O_CREATE|os.O_WRONLY, os.FileMode(h.Mode).Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// imageOf reads an image as any tool for OCI layouts does.
func imageOf(t *testing.T, store *bundle.Store, manifest bundle.Descriptor) v1.Image {
	t.Helper()
	top, err := layout.ImageIndexFromPath(store.Dir())
	if err != nil {
		t.Fatal(err)
	}
	bundles, err := top.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	want, err := v1.NewHash(manifest.Digest)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range bundles.Manifests {
		nested, err := top.ImageIndex(b.Digest)
		if err != nil {
			t.Fatal(err)
		}
		if img, err := nested.Image(want); err == nil {
			return img
		}
	}
	t.Fatalf("no bundle has %s", want)
	return nil
}
