package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"coldrack.dev/internal/content/bundle"
)

// importer brings bundles into the store, one at a time: those that the configuration names at start, and
// those that people upload.
type importer struct {
	cfg     Config
	store   *bundle.Store
	log     *slog.Logger
	reserve *diskReserve
	turn    chan struct{} // one token: whoever holds it imports
	begun   chan struct{} // closed when the configuration's bundles have been tried
	mu      sync.Mutex
	waiting []func() // called after each import
}

func newImporter(cfg Config, store *bundle.Store, log *slog.Logger) *importer {
	return &importer{cfg: cfg, store: store, log: log.With("part", "bundles"), reserve: newDiskReserve(cfg, log), turn: make(chan struct{}, 1), begun: make(chan struct{})}
}

// onImport registers what is to be called after each import and each deletion, for those who show what the store holds.
func (i *importer) onImport(f func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.waiting = append(i.waiting, f)
}

// run imports the bundles that the configuration names. A bundle that cannot be imported is an error in
// the log, not the end of the server: machines that are installed must still be served.
func (i *importer) run(ctx context.Context) error {
	defer close(i.begun)
	for _, path := range i.cfg.Bundles {
		summary, err := i.importFile(ctx, path, true, func(bundle.Progress) {})
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			i.log.Error("cannot import a configured bundle", "path", path, "err", err)
		default:
			i.log.Info("bundle already imported", "bundle", summary.Name, "digest", summary.Digest)
		}
	}
	return nil
}

// beginning says whether a bundle of the configuration may still bring what the store lacks.
func (i *importer) beginning() bool {
	select {
	case <-i.begun:
		return false
	default:
		return true
	}
}

func (i *importer) importFile(ctx context.Context, path string, onlyNew bool, progress func(bundle.Progress)) (bundle.Summary, error) {
	select {
	case i.turn <- struct{}{}:
		defer func() { <-i.turn }()
	case <-ctx.Done():
		return bundle.Summary{}, ctx.Err()
	}
	if onlyNew {
		summary, err := bundle.Inspect(path)
		if err != nil {
			return bundle.Summary{}, err
		}
		for _, have := range i.store.Bundles() {
			if have.Digest == summary.Digest {
				summary.Info = have
				return summary, nil
			}
		}
	}
	keys, err := trustedKeys(i.cfg)
	if err != nil {
		return bundle.Summary{}, err
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	summary, err := bundle.Import(ctx, i.store, path, keys, func(p bundle.Progress) {
		if full := i.reserve.checkRoom(); full != nil {
			stop(full)
		}
		progress(p)
	})
	if full := context.Cause(ctx); errors.Is(full, errDiskFull) {
		return bundle.Summary{}, fmt.Errorf("%w; make room below %s, then run the import again, it goes on where this one ended", full, i.cfg.DataDir)
	}
	if err != nil {
		return bundle.Summary{}, bundle.Advise(err, trustAdvice)
	}
	for _, newer := range summary.Behind {
		i.log.Warn("the imported bundle is older than another, which is used on for what both have; delete that one to go back",
			"bundle", summary.Name, "built", summary.Created, "newer", newer.Name, "newerBuilt", newer.Created, "newerDigest", newer.Digest)
	}
	i.tell()
	return summary, nil
}

// uploadName keeps an upload inside the spool folder.
var uploadName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// offsetHeader says how much of an upload has arrived.
const offsetHeader = "Coldrack-Offset"

// trustAdvice is how a person makes a key trusted by this server.
const trustAdvice = "trust it on the server's machine: coldrack bundle trust KEY_FILE"

// ServeHTTP takes uploads of bundles:
//
//	POST ?name=N            the head of the archive: is it signed by a trusted key? Nothing is kept
//	HEAD ?name=N            how many bytes of upload N have arrived, in the header Coldrack-Offset
//	PUT  ?name=N&offset=O   the rest of it, from byte O on; when complete it is imported
//
// and deletes imported ones:
//
//	DELETE ?digest=D        the bundle whose index has that digest; the answer is a bundle.Removal
//
// The answer to PUT is a stream of JSON lines: {"progress":…} while it is imported, and one last line
// with {"bundle":…} or {"error":…}.
func (i *importer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodDelete {
		i.remove(w, r)
		return
	}
	name := r.URL.Query().Get("name")
	if !uploadName.MatchString(name) {
		http.Error(w, "name: must be a file name of letters, digits, dots, dashes and underscores", http.StatusBadRequest)
		return
	}
	path := i.cfg.path("uploads", name)
	switch r.Method {
	case http.MethodHead:
		var size int64
		if info, err := os.Stat(path); err == nil {
			size = info.Size()
		}
		w.Header().Set(offsetHeader, strconv.FormatInt(size, 10))
		w.WriteHeader(http.StatusOK) // the API server drops headers of an answer that is never written
	case http.MethodPost:
		if err := i.trustsHead(http.MaxBytesReader(w, r.Body, bundle.MaxHead)); err != nil {
			i.log.Warn("a bundle was refused before it was sent", "upload", name, "err", err)
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	case http.MethodPut:
		i.put(w, r, path)
	default:
		w.Header().Set("Allow", "HEAD, POST, PUT, DELETE")
		http.Error(w, "only HEAD, POST, PUT and DELETE", http.StatusMethodNotAllowed)
	}
}

func (i *importer) remove(w http.ResponseWriter, r *http.Request) {
	select {
	case i.turn <- struct{}{}:
		defer func() { <-i.turn }()
	default:
		http.Error(w, "a bundle is being imported; delete when that has ended", http.StatusConflict)
		return
	}
	removed, err := i.store.Remove(r.Context(), r.URL.Query().Get("digest"))
	switch {
	case errors.Is(err, bundle.ErrNotFound):
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	case err != nil:
		i.log.Error("cannot delete a bundle", "err", err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	i.log.Info("bundle deleted", "bundle", removed.Name, "digest", removed.Digest, "freed", removed.Freed, "kept", removed.Kept)
	i.tell()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(removed)
}

// tell calls those who show what the store holds.
func (i *importer) tell() {
	i.mu.Lock()
	waiting := i.waiting
	i.mu.Unlock()
	for _, f := range waiting {
		f()
	}
}

// trustsHead says what is wrong with the signature of an archive, as far as its head tells.
func (i *importer) trustsHead(archive io.Reader) error {
	keys, err := trustedKeys(i.cfg)
	if err != nil {
		return err
	}
	return bundle.Advise(bundle.VerifyHead(archive, keys), trustAdvice)
}

func (i *importer) put(w http.ResponseWriter, r *http.Request, path string) {
	// An upload takes as long as its link needs.
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{})
	_ = control.SetWriteDeadline(time.Time{})
	if status, err := i.spool(r, path); err != nil {
		i.log.Warn("bundle upload ended early", "path", path, "err", err)
		http.Error(w, err.Error(), status)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	lines := json.NewEncoder(w)
	say := func(line any) {
		_ = lines.Encode(line)
		_ = control.Flush()
	}
	var last time.Time
	summary, err := i.importFile(r.Context(), path, false, func(p bundle.Progress) {
		if now := time.Now(); now.Sub(last) > 500*time.Millisecond {
			last = now
			say(map[string]bundle.Progress{"progress": p})
		}
	})
	if r.Context().Err() == nil {
		// Whether it was good or bad, the upload has served; only one that was cut off is worth keeping.
		_ = os.Remove(path)
	}
	if err != nil {
		i.log.Error("cannot import an uploaded bundle", "path", path, "err", err)
		say(map[string]string{"error": err.Error()})
		return
	}
	i.log.Info("bundle imported", "bundle", summary.Name, "digest", summary.Digest)
	say(map[string]bundle.Summary{"bundle": summary})
}

func (i *importer) spool(r *http.Request, path string) (status int, err error) {
	var offset int64
	if text := r.URL.Query().Get("offset"); text != "" {
		if offset, err = strconv.ParseInt(text, 10, 64); err != nil || offset < 0 {
			return http.StatusBadRequest, fmt.Errorf("offset: %q: must be a number of bytes", text)
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return http.StatusInternalServerError, err
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return http.StatusInternalServerError, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return http.StatusInternalServerError, err
	}
	if offset > info.Size() {
		return http.StatusConflict, fmt.Errorf("offset %d is beyond what has arrived (%d bytes); ask with HEAD first", offset, info.Size())
	}
	if err := file.Truncate(offset); err != nil {
		return http.StatusInternalServerError, err
	}
	if _, err := file.Seek(offset, io.SeekStart); err != nil {
		return http.StatusInternalServerError, err
	}
	body := io.Reader(r.Body)
	if offset == 0 {
		// Of a bundle that is not trusted, nothing is kept: the head is looked at before the rest is read.
		var head bytes.Buffer
		if err := i.trustsHead(io.TeeReader(r.Body, &head)); err != nil {
			return http.StatusForbidden, errors.Join(err, os.Remove(path))
		}
		body = io.MultiReader(&head, r.Body)
	}
	switch _, err := io.Copy(file, &roomReader{r: body, check: i.reserve.checkRoom}); {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, errDiskFull):
		return http.StatusInsufficientStorage, fmt.Errorf("the server's disk is full: make room below %s, then run the import again, it goes on where this one ended: %w",
			i.cfg.DataDir, errors.Join(err, file.Sync()))
	case err != nil:
		return http.StatusBadRequest, fmt.Errorf("receive the upload: %w; run the import again, it goes on where this one ended", errors.Join(err, file.Sync()))
	}
	return http.StatusOK, file.Sync()
}

// roomReader ends an upload before it takes the room that the store needs.
type roomReader struct {
	r     io.Reader
	check func() error
	ahead int64 // bytes until the next check
}

func (r *roomReader) Read(b []byte) (int, error) {
	const every = 8 << 20
	if r.ahead <= 0 {
		if err := r.check(); err != nil {
			return 0, err
		}
		r.ahead = every
	}
	n, err := r.r.Read(b)
	r.ahead -= int64(n)
	return n, err
}
