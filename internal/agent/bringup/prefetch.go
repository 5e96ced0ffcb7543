package bringup

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"
	"time"

	"coldrack.dev/internal/agent/nodefile"
	"coldrack.dev/internal/content/fetch"
	"coldrack.dev/internal/contract/wire"
)

// Images is the container runtime as bring-up uses it.
type Images interface {
	// Pull has the runtime fetch an image, unless it is there with the same digest. An empty digest stands for any.
	Pull(ctx context.Context, ctr string, image wire.PrefetchImage) error
}

// programCtr is the program by which images are put into containerd.
const programCtr = "ctr"

// prefetched are programs that may be fetched beside what runs: they lie where a former one would, and are put in place like it.
func prefetched(want *wire.Prefetch) []string {
	if want == nil {
		return nil
	}
	var paths []string
	for _, p := range want.Programs {
		paths = append(paths, keptProgram(p))
	}
	return paths
}

// prefetchWanted is what the newest assignment says.
func (e *Executor) prefetchWanted() *wire.Prefetch {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.newest()
}

// newest needs e.mu.
func (e *Executor) newest() *wire.Prefetch {
	switch {
	case e.next != nil:
		return e.next.Prefetch
	case e.begun != nil:
		return e.begun.Prefetch
	}
	return nil
}

// kitVersion is the version of Kubernetes of which nodes exchange what they fetch: what runs is here already. It needs e.mu.
func (e *Executor) kitVersion() string {
	if want := e.newest(); want != nil {
		return want.KubernetesVersion
	}
	return e.begun.Plan.KubernetesVersion
}

// prefetch fetches what is wanted beside what runs, until ctx ends. What is there is looked at again after a restart, and is not
// fetched again.
func (e *Executor) prefetch(ctx context.Context) error {
	done, failures := "", 0
	for ctx.Err() == nil {
		want := e.prefetchWanted()
		if want == nil || want.ID == done {
			if want == nil {
				done = ""
				e.track.prefetch(&wire.PrefetchReport{})
			}
			select {
			case <-e.beside:
			case <-ctx.Done():
			}
			continue
		}
		inner, cancel := context.WithCancel(ctx)
		watched := make(chan struct{})
		go func() { // another wish ends this one
			defer close(watched)
			for {
				select {
				case <-inner.Done():
					return
				case <-e.beside:
					if now := e.prefetchWanted(); now == nil || now.ID != want.ID {
						cancel()
						return
					}
				}
			}
		}()
		err := e.fetchBeside(inner, want)
		superseded := inner.Err() != nil
		cancel()
		<-watched
		switch {
		case superseded:
			failures = 0
		case err == nil:
			done, failures = want.ID, 0
			e.track.prefetch(&wire.PrefetchReport{ID: want.ID, Done: true})
			e.Log.Info("everything of another version is here", "version", want.KubernetesVersion, "programs", len(want.Programs), "images", len(want.Images))
		default:
			failures++
			wait := e.Pace.backoff(failures)
			e.track.prefetch(&wire.PrefetchReport{ID: want.ID, Failing: true, Message: err.Error()})
			if failures&(failures-1) == 0 {
				e.Log.Error("cannot fetch what another version needs", "version", want.KubernetesVersion, "err", err, "failures", failures, "again", wait)
			}
			e.Sleep(ctx, wait)
		}
	}
	return nil
}

// fetchBeside brings programs to where they are put in place from, and images into containerd.
func (e *Executor) fetchBeside(ctx context.Context, want *wire.Prefetch) error {
	e.mu.Lock()
	plan, content, version := e.begun, e.content, ""
	if plan != nil {
		version = e.kitVersion()
	}
	e.mu.Unlock()
	if plan == nil {
		return errors.New("this node has no plan yet")
	}
	if e.Kit != nil {
		e.Kit.Set(plan.Plan.Kit, content, version)
	}
	report := wire.PrefetchReport{ID: want.ID}
	stalled := time.AfterFunc(e.Pace.Explain, func() {
		e.track.stalled(fmt.Sprintf("nothing has arrived for %s: is %s open to this node?", e.Pace.Explain, e.contentURL()))
	})
	defer stalled.Stop()
	for _, p := range want.Programs {
		report.BytesTotal += p.Content.Size
	}
	for i, p := range want.Programs {
		report.Message = fmt.Sprintf("fetches %s %s", p.Name, p.Version)
		before := report.BytesDone
		tell := func(n int64) {
			stalled.Reset(e.Pace.Explain)
			report.BytesDone, report.Failing = before+n, false
			e.track.prefetching(report)
		}
		stuck := func(what string, err error, wait time.Duration) {
			failing := report
			failing.Failing, failing.Message = true, fmt.Sprintf("%s: %v", what, err)
			e.track.prefetch(&failing)
		}
		tell(0)
		if err := e.programBeside(ctx, p, want.Programs[:i], tell, stuck); err != nil {
			return err
		}
		tell(p.Content.Size)
	}
	stalled.Stop()
	ctr := find(plan.Plan.Programs, func(p wire.Program) bool { return p.Name == programCtr }).Path
	if e.Images == nil || ctr == "" {
		return nil // containerd pulls when pods start
	}
	for _, image := range want.Images {
		report.Message = "pulls " + image.Name
		e.track.prefetch(&report)
		if err := e.Images.Pull(ctx, e.disk.At(ctr), image); err != nil {
			return fmt.Errorf("image %s: %w", image.Name, err)
		}
	}
	return nil
}

// programBeside fetches one program, unless it is in place already, or beside it, or the same as one of those that are there now.
func (e *Executor) programBeside(ctx context.Context, program wire.Program, there []wire.Program, progress func(int64), stuck func(string, error, time.Duration)) error {
	kept := keptProgram(program)
	for _, file := range []string{program.Path, kept} {
		switch has, err := e.digestAt(ctx, file, program.Size); {
		case err != nil:
			return err
		case has == program.Digest:
			return nil
		}
	}
	for _, other := range there {
		if other.Digest != program.Digest {
			continue
		}
		for _, file := range []string{keptProgram(other), other.Path} {
			if has, err := e.digestAt(ctx, file, program.Size); err != nil || has != program.Digest {
				continue
			}
			if err := e.ledger.Prepare(append([]string{kept}, e.disk.MissingParents(kept)...), nil); err != nil {
				return err
			}
			if err := e.disk.Share(kept, file); !errors.Is(err, syscall.EXDEV) {
				return err
			}
		}
	}
	if free, total := e.disk.Space(path.Dir(kept)); total > 0 && free < program.Size+spare {
		return fmt.Errorf("program %s needs %s beside the one that runs, and the file system of %s has %s free of %s: remove what is not needed there",
			program.Name, nodefile.Size(program.Size+spare), path.Dir(kept), nodefile.Size(free), nodefile.Size(total))
	}
	if err := e.ledger.Prepare(append([]string{kept}, e.disk.MissingParents(kept)...), nil); err != nil {
		return err
	}
	err := e.disk.Stream(kept, 0o755, func(w io.Writer) error {
		return unpack(ctx, e.Content(e.contentURL(), stuck), program, w, progress)
	})
	var missing *fetch.MissingError
	if errors.As(err, &missing) {
		return fmt.Errorf("the server does not have program %s %s (%s; it answered %d): import the bundle that contains it (coldrack bundle import FILE)",
			program.Name, program.Version, missing.Digest, missing.Status)
	}
	return err
}

// digestAt is the digest of a file of this size; "" when there is none.
func (e *Executor) digestAt(ctx context.Context, file string, size int64) (string, error) {
	info, err := os.Lstat(e.disk.At(file))
	if errors.Is(err, fs.ErrNotExist) || err == nil && (!info.Mode().IsRegular() || info.Size() != size) {
		return "", nil
	} else if err != nil {
		return "", err
	}
	f, err := os.Open(e.disk.At(file))
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, contextReader{ctx, f}); err != nil {
		return "", fmt.Errorf("read %s: %w", file, err)
	}
	return digestOf(h), nil
}
