package bringup

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"
	"time"

	"github.com/klauspost/compress/zstd"

	"coldrack.dev/internal/agent/nodefile"
	"coldrack.dev/internal/content/fetch"
	"coldrack.dev/internal/contract/wire"
)

const (
	// programKubelet is the program whose version is the node's.
	programKubelet = "kubelet"
	// spare is left free on a disk that a program is written to.
	spare = 64 << 20
	// maxWindow bounds the memory that unpacking takes.
	maxWindow = 32 << 20
)

// Fetcher brings content by digest.
type Fetcher interface {
	// Copy writes the whole blob to w and fails if it was not what its digest says. It waits for a server
	// that is away.
	Copy(ctx context.Context, what string, c wire.Content, w io.Writer) error
}

// known is the digest of a file as it was when it was last read from one end to the other. Reading
// hundreds of megabytes at each start takes a slow machine minutes.
type known struct {
	Digest  string `json:"digest"`
	Size    int64  `json:"size"`
	Inode   uint64 `json:"inode"`
	Mtime   int64  `json:"mtime"` // nanoseconds
	Changed int64  `json:"ctime"` // nanoseconds; cannot be set back
}

func identify(info fs.FileInfo) known {
	k := known{Size: info.Size(), Mtime: info.ModTime().UnixNano()}
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		k.Inode, k.Changed = s.Ino, s.Ctim.Nano()
	}
	return k
}

// programs brings those of one phase, and keeps in mind what it read of them.
func (p *part) programs(ctx context.Context, programs []wire.Program) error {
	p.reading.Lock()
	defer p.reading.Unlock()
	digests := map[string]known{}
	if err := nodefile.ReadJSON(p.disk, digestsFile, &digests); err != nil && !errors.Is(err, fs.ErrNotExist) {
		p.Log.Warn("list of installed programs is unusable; hashing the programs again", "err", err)
		digests = map[string]known{}
	}
	var missing []wire.Program
	var total int64
	news := false
	for _, program := range programs {
		there, read, err := p.hasProgram(ctx, program, digests)
		if err != nil {
			return err
		}
		news = news || read
		if !there {
			missing = append(missing, program)
			total += program.Content.Size
		} else if program.Name == programKubelet {
			p.track.kubelet(p.versionOf(program))
		}
	}
	var done int64
	for _, program := range missing {
		p.say("fetches %s %s", program.Name, program.Version)
		p.track.bytes(p.name, done, total)
		if err := p.fetch(ctx, program, digests, func(n int64) { p.track.bytes(p.name, done+n, total) }); err != nil {
			return err
		}
		done += program.Content.Size
		p.track.bytes(p.name, done, total)
		info, err := os.Stat(p.disk.At(program.Path))
		if err != nil {
			return err
		}
		k := identify(info)
		k.Digest = program.Digest
		digests[program.Path], news = k, true
		for file, other := range digests { // another name for a file changes the time of its last change, and nothing that was read
			if other.Digest == k.Digest && other.Inode == k.Inode && other.Mtime == k.Mtime && p.sameFile(file, program.Path) {
				digests[file] = k
			}
		}
		if program.Name == programKubelet {
			p.track.kubelet(p.versionOf(program))
		}
		p.changed("program installed", "program", program.Name, "version", program.Version, "path", program.Path)
	}
	if !news {
		return nil
	}
	for file := range digests {
		if find(p.plan.Programs, func(w wire.Program) bool { return w.Path == file }).Path == "" {
			delete(digests, file)
		}
	}
	return nodefile.WriteJSON(p.disk, digestsFile, digests)
}

func (p *pass) versionOf(program wire.Program) string {
	if program.Version != "" {
		return program.Version
	}
	return p.plan.KubernetesVersion
}

// hasProgram says whether a program is there, and whether the file had to be read for it.
func (p *pass) hasProgram(ctx context.Context, program wire.Program, digests map[string]known) (there, read bool, err error) {
	file := p.disk.At(program.Path)
	info, err := os.Lstat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return false, false, nil
	} else if err != nil {
		return false, false, err
	}
	if info.IsDir() {
		return false, false, fmt.Errorf("program %s: there is a folder at %s; it is not Coldrack's, so a person has to remove it", program.Name, program.Path)
	}
	if !info.Mode().IsRegular() || info.Size() != program.Size {
		return false, false, nil
	}
	if s, ok := info.Sys().(*syscall.Stat_t); info.Mode().Perm() != 0o755 || ok && int(s.Uid) != os.Geteuid() {
		if err := errors.Join(os.Chmod(file, 0o755), os.Lchown(file, os.Geteuid(), os.Getegid())); err != nil {
			return false, false, err
		}
		if info, err = os.Lstat(file); err != nil {
			return false, false, err
		}
	}
	now := identify(info)
	was := digests[program.Path]
	now.Digest = was.Digest
	if was == now {
		return was.Digest == program.Digest, false, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return false, false, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, contextReader{ctx, f}); err != nil {
		return false, false, fmt.Errorf("read %s: %w", program.Path, err)
	}
	now.Digest = digestOf(h)
	digests[program.Path] = now
	return now.Digest == program.Digest, true, nil
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}

func digestOf(h hash.Hash) string { return "sha256:" + hex.EncodeToString(h.Sum(nil)) }

// fetch brings a program to its place, where another one may be: the one that was kept, or one that is here under another name, or
// else from the server, unpacked while it arrives. One that is running goes on with the old file.
func (p *part) fetch(ctx context.Context, program wire.Program, digests map[string]known, progress func(int64)) error {
	if err := p.keepProgram(program.Path, digests[program.Path].Digest); err != nil {
		return err
	}
	if restored, err := p.restoreProgram(ctx, program); restored || err != nil {
		return err
	}
	if shared, err := p.shareProgram(program, digests); shared || err != nil {
		return err
	}
	if free, total := p.disk.Space(path.Dir(program.Path)); total > 0 && free < program.Size+spare {
		return fmt.Errorf("program %s: %s needs %s and has %s free of %s on its file system: remove what is not needed there",
			program.Name, program.Path, nodefile.Size(program.Size+spare), nodefile.Size(free), nodefile.Size(total))
	}
	if err := p.prepare([]string{program.Path}); err != nil {
		return err
	}
	source := p.Content(p.contentURL(), func(what string, err error, wait time.Duration) {
		p.say("fetching %s: %v; tries again in %s", what, err, wait.Round(time.Second))
	})
	err := p.disk.Stream(program.Path, 0o755, func(w io.Writer) error {
		return unpack(ctx, source, program, w, progress)
	})
	var missing *fetch.MissingError
	if errors.As(err, &missing) {
		return fmt.Errorf("the server does not have program %s %s (%s; it answered %d): import the bundle that contains Kubernetes %s (coldrack bundle import FILE)",
			program.Name, program.Version, missing.Digest, missing.Status, p.plan.KubernetesVersion)
	}
	return err
}

// shareProgram gives a program that is here already its other name, and says whether there was one: some programs are what they are
// called as.
func (p *part) shareProgram(program wire.Program, digests map[string]known) (bool, error) {
	for file, k := range digests {
		if k.Digest != program.Digest || file == program.Path {
			continue
		}
		info, err := os.Lstat(p.disk.At(file))
		if err != nil {
			continue
		}
		now := identify(info)
		if now.Digest = k.Digest; now != k {
			continue // it is not known to be what it was
		}
		if err := p.prepare([]string{program.Path}); err != nil {
			return false, err
		}
		switch err := p.disk.Share(program.Path, file); {
		case errors.Is(err, syscall.EXDEV):
			continue
		case err != nil:
			return false, err
		}
		return true, nil
	}
	return false, nil
}

func (p *part) sameFile(a, b string) bool {
	one, err := os.Lstat(p.disk.At(a))
	if err != nil {
		return false
	}
	other, err := os.Lstat(p.disk.At(b))
	return err == nil && os.SameFile(one, other)
}

func unpack(ctx context.Context, source Fetcher, program wire.Program, w io.Writer, progress func(int64)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	packed, arriving := io.Pipe()
	fetched := make(chan error, 1)
	go func() {
		err := source.Copy(ctx, program.Name, program.Content, &counter{w: arriving, tell: progress})
		arriving.CloseWithError(err)
		fetched <- err
	}()
	err := func() error {
		defer packed.Close()
		dec, err := zstd.NewReader(packed, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return err
		}
		defer dec.Close()
		h := sha256.New()
		out := &writer{w: io.MultiWriter(w, h)}
		n, err := io.Copy(out, io.LimitReader(dec, program.Size+1))
		if out.err != nil {
			return out.err
		}
		if err != nil {
			return fmt.Errorf("program %s cannot be unpacked; it arrived damaged, or the bundle is: %w", program.Name, err)
		}
		if _, err := io.Copy(io.Discard, packed); err != nil { // the digest of what arrived is known at its end
			return err
		}
		if got := digestOf(h); n != program.Size || got != program.Digest {
			return fmt.Errorf("program %s is not what the plan says once it is unpacked: %d bytes with digest %s, want %d with %s; the bundle is damaged or mixed up: coldrack bundle import --again FILE",
				program.Name, n, got, program.Size, program.Digest)
		}
		return nil
	}()
	cancel()
	if late := <-fetched; late != nil && !errors.Is(late, context.Canceled) && !errors.Is(late, io.ErrClosedPipe) {
		return late
	}
	return err
}

// writer tells an error of writing from one of reading.
type writer struct {
	w   io.Writer
	err error
}

func (w *writer) Write(b []byte) (int, error) {
	n, err := w.w.Write(b)
	if err != nil {
		w.err = err
	}
	return n, err
}

type counter struct {
	w    io.Writer
	n    int64
	tell func(int64)
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	c.tell(c.n)
	return n, err
}
