package registry

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"coldrack.dev/internal/base/digest"
)

// An upstream that stalls, breaks off, knows no ranges or says nothing: what was begun goes on, or ends with the reason.
func TestTransfersOfUpstreamsGoOn(t *testing.T) {
	content := bytes.Repeat([]byte("coldrack"), 64<<10)
	name := digest.Of(content).String()
	half := len(content) / 2
	part := func(w http.ResponseWriter, from, to int) {
		w.Header().Set("Content-Length", fmt.Sprint(len(content)-from))
		if from > 0 {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(content)-1, len(content)))
			w.WriteHeader(http.StatusPartialContent)
		}
		_, _ = w.Write(content[from:to])
		_ = http.NewResponseController(w).Flush()
	}
	from := func(r *http.Request) (at int) {
		_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &at)
		return at
	}
	for _, test := range []struct {
		name  string
		serve func(n int32, w http.ResponseWriter, r *http.Request)
		want  string
		asked int32
	}{
		{"it breaks off once", func(n int32, w http.ResponseWriter, r *http.Request) {
			if n == 1 {
				part(w, 0, half)
				panic(http.ErrAbortHandler)
			}
			part(w, from(r), len(content))
		}, "", 2},
		{"it stalls once", func(n int32, w http.ResponseWriter, r *http.Request) {
			if n == 1 {
				part(w, 0, half)
				<-r.Context().Done()
				return
			}
			part(w, from(r), len(content))
		}, "", 2},
		{"it knows no ranges", func(n int32, w http.ResponseWriter, r *http.Request) {
			if n == 1 {
				part(w, 0, half)
				panic(http.ErrAbortHandler)
			}
			part(w, 0, len(content))
		}, "", 2},
		{"it goes on elsewhere than asked", func(n int32, w http.ResponseWriter, r *http.Request) {
			if n == 1 {
				part(w, 0, half)
				panic(http.ErrAbortHandler)
			}
			part(w, half-1, len(content))
		}, "with range", 6},
		{"it sends other bytes after the break", func(n int32, w http.ResponseWriter, r *http.Request) {
			if n == 1 {
				part(w, 0, half)
				panic(http.ErrAbortHandler)
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from(r), len(content)-1, len(content)))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(bytes.Repeat([]byte{'x'}, len(content)-from(r)))
		}, "the upstream sent sha256:", 2},
		{"it brings nothing more, ever", func(n int32, w http.ResponseWriter, r *http.Request) {
			if n == 1 {
				part(w, 0, half)
				panic(http.ErrAbortHandler)
			}
			<-r.Context().Done()
		}, "the upstream sends nothing any more", 6},
		{"it drips for ever", func(_ int32, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			for i := range content {
				if _, err := w.Write(content[i : i+1]); err != nil || http.NewResponseController(w).Flush() != nil {
					return
				}
				select {
				case <-r.Context().Done():
					return
				case <-time.After(20 * time.Millisecond):
				}
			}
		}, "the transfer takes too long", 1},
		{"it drips for ever, in parts that nobody asked for", func(_ int32, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(content)-1, len(content)))
			w.WriteHeader(http.StatusPartialContent)
			for {
				if _, err := w.Write(content[:1]); err != nil || http.NewResponseController(w).Flush() != nil {
					return
				}
				select {
				case <-r.Context().Done():
					return
				case <-time.After(20 * time.Millisecond):
				}
			}
		}, "the transfer takes too long", 1},
		{"it never answers", func(_ int32, _ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "the upstream sends nothing any more", 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int32
			site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.Contains(r.URL.Path, "/blobs/") {
					test.serve(asked.Add(1), w, r)
				}
			}))
			defer site.Close()
			u := transferUpstream(t, site)
			if test.want == errSlow.Error() {
				u.wholeTime = 0 // but for what its size takes at the slowest rate: two seconds
			}
			d, err := u.download(source{strings.TrimPrefix(site.URL, "http://"), "lib/x"}, name)
			if err != nil {
				t.Fatal(err)
			}
			err = d.wait(t.Context())
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("error %v, want %q", err, test.want)
			}
			if n := asked.Load(); n != test.asked {
				t.Errorf("asked %d times, want %d", n, test.asked)
			}
			if test.want == "" {
				file, _, ok := u.cache.open(name)
				if !ok {
					t.Fatal("not in the cache")
				}
				defer file.Close()
				if got, err := os.ReadFile(file.Name()); err != nil || !bytes.Equal(got, content) {
					t.Errorf("other bytes in the cache; error %v", err)
				}
			}
		})
	}
}

// transferUpstream fetches from a site, impatiently.
func transferUpstream(t *testing.T, site *httptest.Server) *upstream {
	t.Helper()
	u, err := newUpstream(Options{Upstreams: []string{site.URL}, CacheDir: t.TempDir(), CacheBytes: 1 << 30, Log: slog.New(slog.DiscardHandler)}, &counters{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.stop)
	u.headerTime, u.idleTime, u.firstResume = 2*time.Second, 2*time.Second, time.Millisecond
	return u
}

func TestTheQueueForUpstreamsIsBounded(t *testing.T) {
	site := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer site.Close()
	u := transferUpstream(t, site)
	defer u.stop() // before the site waits for its requests
	u.headerTime = time.Hour
	from := source{strings.TrimPrefix(site.URL, "http://"), "lib/x"}
	for n := range maxDownloads + maxWaiting {
		if _, err := u.download(from, digest.Of([]byte{byte(n), byte(n >> 8)}).String()); err != nil {
			t.Fatalf("download %d: %v", n, err)
		}
	}
	_, err := u.download(from, digest.Of([]byte("one more")).String())
	var no *refusal
	if !errors.As(err, &no) || no.status != http.StatusTooManyRequests {
		t.Fatalf("one more: %v", err)
	}
	answer := httptest.NewRecorder()
	no.write(answer, httptest.NewRequest(http.MethodGet, "/", nil))
	if answer.Code != http.StatusTooManyRequests || answer.Header().Get("Retry-After") == "" {
		t.Errorf("answered with %d and %v", answer.Code, answer.Header())
	}
}
