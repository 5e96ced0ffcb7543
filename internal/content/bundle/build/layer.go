package build

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	certificatesPackage = "ca-certificates"
	certificatesFile    = "etc/ssl/certs/ca-certificates.crt"
)

// imageLayer is a layer of a container image that lies in a file; it implements v1.Layer.
type imageLayer struct {
	File   string  `json:"-"`
	Hash   v1.Hash `json:"digest"` // of the compressed form
	DiffOf v1.Hash `json:"diffID"`
	Bytes  int64   `json:"size"` // compressed
}

func (l imageLayer) Digest() (v1.Hash, error)            { return l.Hash, nil }
func (l imageLayer) DiffID() (v1.Hash, error)            { return l.DiffOf, nil }
func (l imageLayer) Size() (int64, error)                { return l.Bytes, nil }
func (l imageLayer) MediaType() (types.MediaType, error) { return types.OCILayerZStd, nil }
func (l imageLayer) Compressed() (io.ReadCloser, error)  { return os.Open(l.File) }
func (l imageLayer) Uncompressed() (io.ReadCloser, error) {
	return nil, errors.New("is stored compressed")
}

const (
	fileLayer     = "layer.tar.zst"
	fileLayerMeta = "layer.json"
)

// layerWriter makes a layer: a tar archive with owners, times and order fixed, compressed with zstd, which
// nodes unpack several times as fast as gzip.
type layerWriter struct {
	tw      *tar.Writer
	z       io.WriteCloser
	f       *os.File
	raw     *hashCounter
	packed  *hashCounter
	date    time.Time
	folders map[string]bool
}

type hashCounter struct {
	w   io.Writer
	sum hashWriter
	n   int64
}

type hashWriter interface {
	io.Writer
	Sum([]byte) []byte
}

func (h *hashCounter) Write(p []byte) (int, error) {
	_, _ = h.sum.Write(p)
	h.n += int64(len(p))
	return h.w.Write(p)
}

func (h *hashCounter) hash() v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.sum.Sum(nil))}
}

func newLayerWriter(file string, date time.Time) (*layerWriter, error) {
	f, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	packed := &hashCounter{w: f, sum: sha256.New()}
	z, err := newZstd(packed)
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	raw := &hashCounter{w: z, sum: sha256.New()}
	return &layerWriter{tw: tar.NewWriter(raw), z: z, f: f, raw: raw, packed: packed, date: date, folders: map[string]bool{}}, nil
}

// add writes an entry and the folders it lies in. Names have no leading slash; calls must be in an order that
// depends on nothing but the content.
func (w *layerWriter) add(h tar.Header, r io.Reader) error {
	if err := w.parents(h.Name); err != nil {
		return err
	}
	h.ModTime = w.date
	if err := w.tw.WriteHeader(&h); err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	if r == nil {
		return nil
	}
	if _, err := io.Copy(w.tw, r); err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	return nil
}

func (w *layerWriter) parents(name string) error {
	parent := path.Dir(name)
	if parent == "." || w.folders[parent] {
		return nil
	}
	return w.folder(parent, 0o755)
}

func (w *layerWriter) folder(name string, mode int64) error {
	if w.folders[name] {
		return nil
	}
	if err := w.parents(name); err != nil {
		return err
	}
	w.folders[name] = true
	return w.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode, ModTime: w.date})
}

func (w *layerWriter) link(name, target string) error {
	return w.add(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, nil)
}

func (w *layerWriter) bytes(name string, mode int64, content []byte) error {
	return w.add(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content))}, strings.NewReader(string(content)))
}

// file writes a file of the building machine, with what pax records say besides.
func (w *layerWriter) file(name, from string, mode int64, pax map[string]string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	return w.opened(name, f, mode, pax)
}

// opened writes an opened file, and closes it.
func (w *layerWriter) opened(name string, f *os.File, mode int64, pax map[string]string) error {
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	return w.add(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: st.Size(), PAXRecords: pax}, f)
}

// close completes the layer.
func (w *layerWriter) close() (imageLayer, error) {
	if err := w.tw.Close(); err != nil {
		return imageLayer{}, err
	}
	return w.finish()
}

// finish is close for a layer whose archive was written whole.
func (w *layerWriter) finish() (imageLayer, error) {
	if err := errors.Join(w.z.Close(), w.f.Close()); err != nil {
		return imageLayer{}, err
	}
	return imageLayer{File: w.f.Name(), Hash: w.packed.hash(), DiffOf: w.raw.hash(), Bytes: w.packed.n}, nil
}

func (w *layerWriter) abandon() { _ = w.f.Close() }

// baseLayer is a finished layer of the recipe and the packages that its files are from.
type baseLayer struct {
	imageLayer
	Packages []pkg `json:"packages"`
}

// layer makes one of the recipe's layers.
func (b *builder) layer(ctx context.Context, r LayerRecipe) (baseLayer, error) {
	var pkgs []pkg
	var err error
	if len(r.Packages) > 0 {
		if pkgs, err = b.apt.resolve(ctx, r.Packages); err != nil {
			return baseLayer{}, fmt.Errorf("layer %s: %w", r.Name, err)
		}
	}
	overlay, err := hashTree(b.overlay(r.Overlay))
	if err != nil {
		return baseLayer{}, fmt.Errorf("layer %s: %w", r.Name, err)
	}
	inputs := []any{r, pkgs, overlay, b.recipe.SourceDate}
	dir, err := b.steps.run(ctx, "layer-"+r.Name, inputs, func(ctx context.Context, dir string) error {
		made, err := b.makeLayer(ctx, r, pkgs, filepath.Join(dir, fileLayer))
		if err != nil {
			return err
		}
		return writeJSON(filepath.Join(dir, fileLayerMeta), made)
	})
	if err != nil {
		return baseLayer{}, err
	}
	var made baseLayer
	if err := readJSON(filepath.Join(dir, fileLayerMeta), &made); err != nil {
		return made, err
	}
	made.File = filepath.Join(dir, fileLayer)
	return made, nil
}

func (b *builder) makeLayer(ctx context.Context, r LayerRecipe, pkgs []pkg, out string) (baseLayer, error) {
	work, err := os.MkdirTemp(b.workDir(), "layer-")
	if err != nil {
		return baseLayer{}, err
	}
	defer func() { _ = os.RemoveAll(work) }()
	t, err := newTree(filepath.Join(work, "tree"))
	if err != nil {
		return baseLayer{}, err
	}
	defer t.close()
	if len(pkgs) > 0 {
		if err := b.apt.download(ctx, r.Packages, pkgs); err != nil {
			return baseLayer{}, err
		}
	}
	owner := map[string]pkg{}
	for _, p := range pkgs {
		err := t.unpack(ctx, b.apt.deb(p), func(name string) bool {
			owner[name] = p
			return wantedForNetboot(name)
		})
		if err != nil {
			return baseLayer{}, err
		}
	}
	names, err := b.layerFiles(r, t)
	if err != nil {
		return baseLayer{}, err
	}
	w, err := newLayerWriter(out, b.recipe.SourceDate)
	if err != nil {
		return baseLayer{}, err
	}
	defer w.abandon()
	var made baseLayer
	used := map[string]bool{}
	for _, name := range names {
		if err := w.fromTree(t, name); err != nil {
			return made, err
		}
		if p, ok := owner[name]; ok {
			used[p.Name] = true
		}
	}
	if err := b.layerExtras(r, t, w, names); err != nil {
		return made, err
	}
	for _, p := range pkgs {
		if used[p.Name] || (r.Certificates && p.Name == certificatesPackage) {
			made.Packages = append(made.Packages, p)
		}
	}
	made.imageLayer, err = w.close()
	return made, err
}

// layerFiles are the files that the recipe names and what they need, sorted.
func (b *builder) layerFiles(r LayerRecipe, t *tree) ([]string, error) {
	if err := t.copyOverlay(b.overlay(r.Overlay)); err != nil {
		return nil, err
	}
	files, err := t.files()
	if err != nil {
		return nil, err
	}
	selected, err := matchFiles("layers["+r.Name+"].files", r.Files, files)
	if err != nil {
		return nil, err
	}
	overlay, err := overlayFiles(b.overlay(r.Overlay))
	if err != nil {
		return nil, err
	}
	need, err := t.closure(append(selected, overlay...), b.log)
	if err != nil {
		return nil, err
	}
	return sortedKeys(need), nil
}

// layerExtras adds what is in no package.
func (b *builder) layerExtras(r LayerRecipe, t *tree, w *layerWriter, names []string) error {
	// The folders that Debian merged into usr are still found where they were.
	for _, old := range []string{"bin", "lib", "lib64", "sbin"} {
		if slices.ContainsFunc(names, func(name string) bool { return strings.HasPrefix(name, "usr/"+old+"/") }) {
			if err := w.link(old, "usr/"+old); err != nil {
				return err
			}
		}
	}
	for _, link := range slices.Sorted(maps.Keys(r.Links)) {
		if err := w.link(merged(link), r.Links[link]); err != nil {
			return err
		}
	}
	for _, folder := range slices.Sorted(slices.Values(r.Temporary)) {
		if err := w.folder(merged(folder), 0o1777); err != nil {
			return err
		}
	}
	if !r.Certificates {
		return nil
	}
	authorities, err := joinCertificates(t)
	if err != nil {
		return err
	}
	return w.bytes(certificatesFile, 0o644, authorities)
}

// joinCertificates does what update-ca-certificates does at installation.
func joinCertificates(t *tree) ([]byte, error) {
	files, err := t.glob("usr/share/ca-certificates/mozilla", "*.crt")
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("the package %s has no certificates: %w", certificatesPackage, errors.Join(err, fs.ErrNotExist))
	}
	var all []byte
	for _, f := range files {
		raw, err := t.readFile(f)
		if err != nil {
			return nil, err
		}
		all = append(all, raw...)
	}
	return all, nil
}

// fromTree copies a file or link of unpacked packages.
func (w *layerWriter) fromTree(t *tree, name string) error {
	info, err := t.lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // where a link of a package leads to nothing
	}
	if err != nil {
		return err
	}
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := t.readlink(name)
		if err != nil {
			return err
		}
		return w.link(name, target)
	case info.IsDir():
		return w.folder(name, 0o755)
	}
	f, err := t.open(name)
	if err != nil {
		return err
	}
	return w.opened(name, f, int64(info.Mode().Perm()), nil)
}

func writeJSON(file string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(file, raw, 0o644)
}

func readJSON(file string, v any) error {
	raw, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(raw, v)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	return nil
}
