package fetch

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/content/diskimage"
	"coldrack.dev/internal/contract/wire"
)

func digestOf(s string) string { return digest.Of([]byte(s)).String() }

// source is served by h, which is told how often it was asked before.
func source(t *testing.T, h func(n int, w http.ResponseWriter, r *http.Request)) (*Source, *atomic.Int32) {
	t.Helper()
	var asked, told atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h(int(asked.Add(1)), w, r)
	}))
	t.Cleanup(s.Close)
	out := New(s.URL, "test", func(string, error, time.Duration) { told.Add(1) })
	out.stall = 200 * time.Millisecond
	return out, &told
}

func give(w http.ResponseWriter, r *http.Request, body string) {
	http.ServeContent(w, r, "", time.Time{}, strings.NewReader(body))
}

func TestGet(t *testing.T) {
	const body = "boot loader"
	for name, tt := range map[string]struct {
		serve func(n int, w http.ResponseWriter, r *http.Request)
		told  int32
		text  string
	}{
		"at once":                      {serve: func(_ int, w http.ResponseWriter, r *http.Request) { give(w, r, body) }},
		"from a server without ranges": {serve: func(_ int, w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) }},
		"after a server's trouble": {told: 1, serve: func(n int, w http.ResponseWriter, r *http.Request) {
			if n == 1 {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			give(w, r, body)
		}},
		"after a transfer that stopped in the middle": {told: 1, serve: func(n int, w http.ResponseWriter, r *http.Request) {
			if n == 1 {
				w.Header().Set("Content-Length", "11")
				_, _ = w.Write([]byte("boot"))
				w.(http.Flusher).Flush()
				<-r.Context().Done()
				return
			}
			give(w, r, body)
		}},
		"damaged once": {told: 1, serve: func(n int, w http.ResponseWriter, r *http.Request) {
			give(w, r, map[bool]string{true: "BOOT loader", false: body}[n == 1])
		}},
		"damaged always": {told: 2, text: "arrived damaged twice: digest is " + digestOf("BOOT loader"), serve: func(_ int, w http.ResponseWriter, r *http.Request) { give(w, r, "BOOT loader") }},
		"missing":        {text: "does not have shim (" + digestOf(body) + "; it answered 404): import the bundle", serve: func(_ int, w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }},
	} {
		t.Run(name, func(t *testing.T) {
			s, told := source(t, tt.serve)
			b, err := s.Get(context.Background(), "shim", wire.Content{Digest: digestOf(body), Size: int64(len(body))}, 1000)
			if (err != nil) != (tt.text != "") || err != nil && !strings.Contains(err.Error(), tt.text) {
				t.Fatalf("error is %v, want %q", err, tt.text)
			}
			if err == nil && string(b) != body {
				t.Errorf("got %q", b)
			}
			if told.Load() != tt.told {
				t.Errorf("told of %d tries, want %d", told.Load(), tt.told)
			}
		})
	}
}

func TestGetBoundsWhatItFetches(t *testing.T) {
	s, _ := source(t, func(int, http.ResponseWriter, *http.Request) { t.Error("asked") })
	for _, size := range []int64{-1, 0, 1001} {
		if _, err := s.Get(context.Background(), "x", wire.Content{Digest: digestOf(""), Size: size}, 1000); err == nil {
			t.Errorf("%d bytes were asked for", size)
		}
	}
}

func TestAWrongRangeIsNotTaken(t *testing.T) {
	const blob = "aaaabbbbcccc"
	s, _ := source(t, func(n int, w http.ResponseWriter, r *http.Request) {
		if n == 1 { // a cache that forgot the range
			_, _ = w.Write([]byte(blob))
			return
		}
		give(w, r, blob)
	})
	c := diskimage.Chunk{Digest: digestOf("bbbb"), BlobOffset: 4, BlobLength: 4}
	b, err := s.Blob("image", digestOf(blob)).ReadChunk(context.Background(), c)
	if err != nil || string(b) != "bbbb" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestAChunkThatStaysWrongIsNamed(t *testing.T) {
	s, _ := source(t, func(_ int, w http.ResponseWriter, r *http.Request) { give(w, r, "aaaaBBBBcccc") })
	_, err := s.Blob("image debian-12", digestOf("x")).ReadChunk(context.Background(), diskimage.Chunk{Digest: digestOf("bbbb"), BlobOffset: 4, BlobLength: 4})
	var wrong *DigestError
	if !errors.As(err, &wrong) || wrong.Want != digestOf("bbbb") || !strings.Contains(err.Error(), "image debian-12 at byte 4") {
		t.Error(err)
	}
}
