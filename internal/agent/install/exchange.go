package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"coldrack.dev/internal/agent/probe"
	"coldrack.dev/internal/content/diskimage"
	"coldrack.dev/internal/content/swarm/peer"
	"coldrack.dev/internal/contract/wire"
)

const (
	// keepAlign and keepGap place the stored chunks at the end of the root partition, apart from the image at its
	// beginning.
	keepAlign = 1 << 20
	keepGap   = 16 << 20
	// keepMemory is the share of the available memory that stored chunks may take where the disk has no room.
	keepMemory = 4
)

// shared is this machine's part in the distribution of its image.
type shared struct {
	*peer.Exchange
	base int64    // of the stored chunks in the root partition; -1 when they are in memory
	view *os.File // from which chunks are given after the image is written
}

// chunks says where the image's chunks come from: other machines and the server, or the server alone when anything
// stands against it. The end of the first size bytes of root (the root partition, or the disk), beyond the image, keeps what is given to others; the new system
// takes the place over when it grows.
func (o *operation) chunks(ctx context.Context, root *os.File, size int64) diskimage.Source {
	origin := o.Content.Blob("image "+o.plan.Image.Name, o.index.Blob)
	if o.Exchange == nil || strings.Contains(" "+o.CommandLine+" ", " "+wire.ArgSwarm+"=off ") {
		return origin
	}
	base, store := o.keep(root, size)
	if store == nil {
		o.Log.Info("no room on disk or in memory to share the image; using the server only", "needs", probe.Size(o.index.BlobSize))
		return origin
	}
	config := *o.Exchange
	config.Log = o.Log
	x, err := peer.Join(ctx, config, o.index, origin, store)
	if err != nil {
		o.Log.Warn("peer distribution unavailable; fetching the image from the server only", "err", err)
		return origin
	}
	o.shared = &shared{Exchange: x, base: base}
	return x
}

// keep finds a place for the stored chunks, nil if there is none.
func (o *operation) keep(root *os.File, size int64) (base int64, store peer.Store) {
	base, ok := place(size, o.index.Size, o.index.BlobSize, memoryAvailable())
	switch {
	case !ok:
		return 0, nil
	case base < 0:
		return base, memory(make([]byte, o.index.BlobSize))
	}
	return base, region{io.NewSectionReader(root, base, o.index.BlobSize), io.NewOffsetWriter(root, base)}
}

// place says where in a partition a blob is kept while the image is written to its beginning; base is -1 for the
// memory.
func place(partition, image, blob, available int64) (base int64, ok bool) {
	base = (partition - blob - keepAlign) &^ (keepAlign - 1)
	if base >= image+keepGap {
		return base, true
	}
	return -1, blob <= available/keepMemory
}

type region struct {
	io.ReaderAt
	io.WriterAt
}

// memory keeps chunks where the disk has no room. No two calls touch the same chunk at once, save to write the
// same bytes again.
type memory []byte

func (m memory) ReadAt(p []byte, at int64) (int, error) {
	n := copy(p, m[at:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m memory) WriteAt(p []byte, at int64) (int, error) {
	n := copy(m[at:], p)
	if n < len(p) {
		return n, io.ErrShortWrite
	}
	return n, nil
}

// seal ends all writing of chunks. From now on nothing but the new system's file system may write to the partition:
// a page that was changed through the partition and not written back yet would later overwrite a file. The view is
// read-only also because some kernels mount no partition that anybody may write to.
func (o *operation) seal(path string) error {
	if o.shared == nil {
		return nil
	}
	if o.shared.base < 0 {
		return nil // what is in memory stays as it is
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the new system's partition to serve other machines from: %w", err)
	}
	o.shared.view = f
	o.shared.Seal(io.NewSectionReader(f, o.shared.base, o.index.BlobSize))
	return nil
}

// leave ends this machine's part.
func (o *operation) leave() error {
	s := o.shared
	if s == nil {
		return nil
	}
	o.shared = nil
	s.Leave()
	st := s.Stats()
	o.Log.Info("stopped serving other machines", "given", probe.Size(st.Given), "damaged", st.Bad)
	if s.view == nil {
		return nil
	}
	if err := s.view.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// fetched says for people where the image came from.
func (o *operation) fetched() string {
	stored := probe.Size(o.index.StoredBytes())
	if o.shared == nil {
		return stored + " fetched"
	}
	st := o.shared.Stats()
	return fmt.Sprintf("%s fetched, %d%% of it from other machines", stored, 100*st.FromPeers/max(st.FromPeers+st.FromOrigin, 1))
}
