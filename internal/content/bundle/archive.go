package bundle

import (
	"archive/tar"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/base/durable"
	"coldrack.dev/internal/content/diskimage"
)

const (
	entryLayout    = "oci-layout"
	entryIndex     = "index.json"
	entrySignature = "index.json.sig"
	entryBlobs     = "blobs/sha256/"

	maxEntries = 1 << 20
)

// Progress says how far a long operation has come.
type Progress struct {
	Bundle  string `json:"bundle"`
	File    string `json:"file"`    // what is being read, for example `image "debian-12", chunks`
	Done    int64  `json:"done"`    // bytes
	Total   int64  `json:"total"`   // bytes
	Skipped int64  `json:"skipped"` // bytes of Done that were in the store before
}

// tracker feeds a progress function; it is an io.Writer that counts.
type tracker struct {
	report func(Progress)
	at     Progress
}

func (t *tracker) file(b blobRef) { t.at.File = b.artifact + ", " + b.file }

func (t *tracker) Write(p []byte) (int, error) {
	t.add(int64(len(p)))
	return len(p), nil
}

func (t *tracker) add(n int64) {
	t.at.Done += n
	if t.report != nil {
		t.report(t.at)
	}
}

// archive gives random access to the entries of an uncompressed tar file.
type archive struct {
	r       io.ReaderAt
	entries map[string]extent
}

type extent struct{ offset, size int64 }

// openArchive reads the headers of a tar file of the given size. It accepts exactly what belongs into
// an OCI image layout with a signature, so no name can lead out of a directory.
func openArchive(r io.ReaderAt, size int64) (*archive, error) {
	section := io.NewSectionReader(r, 0, size)
	tr := tar.NewReader(section)
	a := &archive{r: r, entries: map[string]extent{}}
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, fmt.Errorf("archive is cut short after %d bytes; copy it again", size)
		}
		if err != nil {
			return nil, fmt.Errorf("archive is not a readable tar file: %w", err)
		}
		if h.Typeflag == tar.TypeDir {
			continue // nothing is ever created from an entry's name
		}
		if h.Typeflag != tar.TypeReg || len(h.PAXRecords) > 0 {
			return nil, fmt.Errorf("archive entry %.200q is of type %q, want plain files and directories only", h.Name, h.Typeflag)
		}
		if !allowedEntry(h.Name) {
			return nil, fmt.Errorf("archive entry %.200q does not belong into a bundle", h.Name)
		}
		if _, twice := a.entries[h.Name]; twice {
			return nil, fmt.Errorf("archive has two entries %q", h.Name)
		}
		if len(a.entries) == maxEntries {
			return nil, fmt.Errorf("archive has more than %d entries", maxEntries)
		}
		// The reader does not read ahead of the header it returned, so this is where the content starts.
		offset, err := section.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, fmt.Errorf("archive entry %q: %w", h.Name, err)
		}
		if h.Size < 0 || h.Size > size-offset {
			return nil, fmt.Errorf("archive is cut short: entry %q needs %d bytes at byte %d, the file ends at %d; copy it again", h.Name, h.Size, offset, size)
		}
		a.entries[h.Name] = extent{offset, h.Size}
	}
	for _, name := range []string{entryLayout, entryIndex, entrySignature} {
		if _, ok := a.entries[name]; !ok {
			return nil, fmt.Errorf("archive has no %s; it is not a bundle, or it is cut short", name)
		}
	}
	return a, nil
}

func allowedEntry(name string) bool {
	if name == entryLayout || name == entryIndex || name == entrySignature {
		return true
	}
	hex, ok := strings.CutPrefix(name, entryBlobs)
	return ok && digest.Valid("sha256:"+hex)
}

func (a *archive) section(name string) (*io.SectionReader, error) {
	e, ok := a.entries[name]
	if !ok {
		return nil, fmt.Errorf("archive has no %s", name)
	}
	return io.NewSectionReader(a.r, e.offset, e.size), nil
}

func (a *archive) small(name string, limit int64) ([]byte, error) {
	s, err := a.section(name)
	if err != nil {
		return nil, err
	}
	if s.Size() > limit {
		return nil, fmt.Errorf("archive entry %s has %d bytes, want at most %d", name, s.Size(), limit)
	}
	return io.ReadAll(s)
}

func blobEntry(name string) string { return entryBlobs + strings.TrimPrefix(name, "sha256:") }

// blob returns the reader of a blob, whose length is as promised.
func (a *archive) blob(d Descriptor) (*io.SectionReader, error) {
	s, err := a.section(blobEntry(d.Digest))
	if err != nil {
		return nil, err
	}
	if s.Size() != d.Size {
		return nil, fmt.Errorf("archive entry %s has %d bytes, want %d", blobEntry(d.Digest), s.Size(), d.Size)
	}
	return s, nil
}

// contents reads everything but the files' bytes. With check, the signature must be by a trusted key;
// that is looked at before anything else is read.
func (a *archive) contents(check bool, trusted []ed25519.PublicKey) (*contents, error) {
	layout, err := a.small(entryLayout, 1<<10)
	if err != nil {
		return nil, err
	}
	var version struct {
		Version string `json:"imageLayoutVersion"`
	}
	if err := decodeJSON(layout, &version); err != nil || version.Version != "1.0.0" {
		return nil, fmt.Errorf("%s: want %s", entryLayout, ociLayout)
	}
	index, err := a.small(entryIndex, maxIndexSize)
	if err != nil {
		return nil, err
	}
	rawSignature, err := a.small(entrySignature, 1<<14)
	if err != nil {
		return nil, err
	}
	var signature Signature
	if err := decodeJSON(rawSignature, &signature); err != nil {
		return nil, fmt.Errorf("%s: %w", entrySignature, err)
	}
	if check {
		if err := signature.verify(index, trusted); err != nil {
			return nil, err
		}
	}
	c, err := readContents(index, true, func(d Descriptor, limit int64) ([]byte, error) {
		if d.Size > limit {
			return nil, fmt.Errorf("has %d bytes, want at most %d", d.Size, limit)
		}
		s, err := a.blob(d)
		if err != nil {
			return nil, err
		}
		return io.ReadAll(s)
	})
	if err != nil {
		return nil, err
	}
	c.signature, c.info.KeyID = signature, signature.KeyID
	referenced := map[string]bool{entryLayout: true, entryIndex: true, entrySignature: true}
	for _, b := range c.blobs {
		if _, err := a.blob(b.Descriptor); err != nil {
			return nil, fmt.Errorf("%s, file %q: %w", b.artifact, b.file, err)
		}
		referenced[blobEntry(b.Digest)] = true
	}
	for name := range a.entries {
		if !referenced[name] {
			return nil, fmt.Errorf("archive entry %s is not part of any artifact, so the signature does not cover it", name)
		}
	}
	for i := range c.artifacts {
		c.artifacts[i].Bundle = c.info
	}
	return c, nil
}

// MaxHead is how long the head of an archive can be: the layout, the index, the signature, and their tar headers.
const MaxHead = maxIndexSize + 1<<15

// Head returns the beginning of an archive up to the end of its signature, or nil if other things come first.
func Head(path string) ([]byte, error) {
	a, closeFile, err := openArchiveFile(path)
	if err != nil {
		return nil, fmt.Errorf("read bundle %s: %w", path, err)
	}
	defer closeFile()
	var end int64
	for _, name := range []string{entryLayout, entryIndex, entrySignature} {
		e := a.entries[name]
		end = max(end, e.offset+e.size)
	}
	if end > MaxHead {
		return nil, nil
	}
	head := make([]byte, end)
	if _, err := a.r.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("read bundle %s: %w", path, err)
	}
	return head, nil
}

// VerifyHead checks the signature by the head of an archive, so that a bundle that nobody trusts is refused before
// the rest of it is sent. It reads no further than the head. An archive in another order, or one that is cut short,
// gives no error: only Verify of the whole can tell.
func VerifyHead(r io.Reader, trusted []ed25519.PublicKey) error {
	tr := tar.NewReader(io.LimitReader(r, MaxHead))
	parts := map[string][]byte{}
	for len(parts) < 3 {
		h, err := tr.Next()
		if err != nil || h.Name != entryLayout && h.Name != entryIndex && h.Name != entrySignature {
			return nil
		}
		if parts[h.Name], err = io.ReadAll(tr); err != nil {
			return nil
		}
	}
	var signature Signature
	if err := decodeJSON(parts[entrySignature], &signature); err != nil {
		return fmt.Errorf("%s: %w", entrySignature, err)
	}
	return signature.verify(parts[entryIndex], trusted)
}

// Summary is what a bundle says of itself.
type Summary struct {
	Info
	Artifacts []Artifact `json:"artifacts"`
	Size      int64      `json:"size"` // bytes of all blobs
	// Behind are imported bundles that were built later and hold some of the same, which is used from there. Of an import only.
	Behind []Info `json:"behind,omitempty"`
}

func (c *contents) summary() Summary {
	return Summary{Info: c.info, Artifacts: c.artifacts, Size: c.size()}
}

// Inspect reads what a bundle contains. It trusts nobody's signature and does not read the files, so
// its answer is a claim; Verify makes it a fact.
func Inspect(path string) (Summary, error) {
	a, closeFile, err := openArchiveFile(path)
	if err != nil {
		return Summary{}, fmt.Errorf("inspect bundle %s: %w", path, err)
	}
	defer closeFile()
	c, err := a.contents(false, nil)
	if err != nil {
		return Summary{}, fmt.Errorf("inspect bundle %s: %w", path, err)
	}
	return c.summary(), nil
}

// Verify checks the signature, every reference and every byte of a bundle. A blob that is not what
// it should be gives a *BlobError, a signature that does not count an *UntrustedError.
func Verify(ctx context.Context, path string, trusted []ed25519.PublicKey, progress func(Progress)) (Summary, error) {
	a, closeFile, err := openArchiveFile(path)
	if err != nil {
		return Summary{}, fmt.Errorf("verify bundle %s: %w", path, err)
	}
	defer closeFile()
	c, err := a.verify(ctx, trusted, progress)
	if err != nil {
		return Summary{}, fmt.Errorf("verify bundle %s: %w", path, err)
	}
	return c.summary(), nil
}

func (a *archive) verify(ctx context.Context, trusted []ed25519.PublicKey, progress func(Progress)) (*contents, error) {
	c, err := a.contents(true, trusted)
	if err != nil {
		return nil, err
	}
	p := &tracker{report: progress, at: Progress{Bundle: c.info.Name, Total: c.size()}}
	for _, b := range c.blobs {
		p.file(b)
		s, err := a.blob(b.Descriptor)
		if err != nil {
			return nil, err
		}
		if err := checkBlob(ctx, s, b, p); err != nil {
			return nil, err
		}
	}
	// The chunks of an image must be what its index says, not only the blob as a whole.
	for _, art := range c.artifacts {
		var err error
		switch art.Kind {
		case KindImage:
			err = a.verifyChunks(ctx, art)
		case KindPrograms:
			err = a.verifyPrograms(ctx, art)
		}
		if err != nil {
			return nil, fmt.Errorf("%s %q: %w", art.Kind, art.Name, err)
		}
	}
	return c, nil
}

func (a *archive) verifyChunks(ctx context.Context, art Artifact) error {
	raw, err := a.small(blobEntry(art.Files[FileImageIndex].Digest), maxIndexSize)
	if err != nil {
		return err
	}
	var idx diskimage.Index
	if err := decodeJSON(raw, &idx); err != nil {
		return err
	}
	blob, err := a.blob(art.Files[FileImageChunks])
	if err != nil {
		return err
	}
	src := diskimage.Blob{ReaderAt: blob}
	for i, c := range idx.Chunks {
		stored, err := src.ReadChunk(ctx, c)
		if err == nil {
			err = c.Verify(stored)
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return &diskimage.ChunkError{Number: i, Total: len(idx.Chunks), Chunk: c, Err: err}
		}
	}
	return nil
}

// checkBlob compares the bytes of r with b's digest.
func checkBlob(ctx context.Context, r io.Reader, b blobRef, p *tracker) error {
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(sum, p), contextReader{ctx, r}); err != nil {
		return fmt.Errorf("%s, file %q: %w", b.artifact, b.file, err)
	}
	if got := digest.Sum(sum).String(); got != b.Digest {
		return b.mismatch(got)
	}
	return nil
}

func openArchiveFile(path string) (*archive, func(), error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	closeFile := func() { _ = f.Close() }
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errors.New("is not a regular file")
	}
	if err != nil {
		closeFile()
		return nil, nil, err
	}
	a, err := openArchive(f, st.Size())
	if err != nil {
		closeFile()
		return nil, nil, err
	}
	return a, closeFile, nil
}

// archiveWriter writes the tar; entries have no times, owners or modes of their own, so that equal
// content gives equal archives.
type archiveWriter struct {
	tw      *tar.Writer
	created time.Time
}

func (w *archiveWriter) add(name string, size int64, r io.Reader) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: w.created, Format: tar.FormatGNU}
	if err := w.tw.WriteHeader(h); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if _, err := io.Copy(w.tw, r); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// writeArchive writes a whole bundle to path, which is replaced only when all is well. open returns a
// blob's content, which is verified on its way.
func writeArchive(ctx context.Context, c *contents, path string, open func(Descriptor) (io.ReadCloser, error), progress func(Progress)) error {
	signature, err := marshalLine(c.signature)
	if err != nil {
		return err
	}
	return durable.Write(path, 0o644, func(f io.Writer) error {
		w := &archiveWriter{tw: tar.NewWriter(f), created: c.info.Created}
		for _, e := range []struct {
			name string
			body []byte
		}{{entryLayout, []byte(ociLayout)}, {entryIndex, c.index}, {entrySignature, signature}} {
			if err := w.add(e.name, int64(len(e.body)), strings.NewReader(string(e.body))); err != nil {
				return err
			}
		}
		p := &tracker{report: progress, at: Progress{Bundle: c.info.Name, Total: c.size()}}
		for _, b := range c.blobs {
			p.file(b)
			if err := w.blob(ctx, b, open, p); err != nil {
				return err
			}
		}
		return w.tw.Close()
	})
}

func (w *archiveWriter) blob(ctx context.Context, b blobRef, open func(Descriptor) (io.ReadCloser, error), p *tracker) error {
	r, err := open(b.Descriptor)
	if err != nil {
		return fmt.Errorf("%s, file %q: %w", b.artifact, b.file, err)
	}
	defer func() { _ = r.Close() }()
	sum := sha256.New()
	if err := w.add(blobEntry(b.Digest), b.Size, io.TeeReader(contextReader{ctx, r}, io.MultiWriter(sum, p))); err != nil {
		return fmt.Errorf("%s, file %q: %w", b.artifact, b.file, err)
	}
	if got := digest.Sum(sum).String(); got != b.Digest {
		return b.mismatch(got)
	}
	return nil
}
