package ui

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"strings"
)

//go:embed static
var static embed.FS

// page is what paths without a file are answered with: they are places in the pages.
const page = "index.html"

var types = map[string]string{
	".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
	".svg": "image/svg+xml", ".webmanifest": "application/manifest+json",
}

// file is one of the pages' files, as it is and compressed.
type file struct {
	plain, packed     []byte
	contentType, etag string
}

// files by name.
type files map[string]file

func loadFiles() (files, error) {
	all := files{}
	return all, fs.WalkDir(static, "static", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := static.ReadFile(name)
		if err != nil {
			return err
		}
		contentType := types[path.Ext(name)]
		if contentType == "" {
			return fmt.Errorf("%s: files of this sort have no content type here", name)
		}
		var packed bytes.Buffer
		z, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
		if err != nil {
			return err
		}
		_, _ = z.Write(content) // to memory
		if err := z.Close(); err != nil {
			return err
		}
		sum := sha256.Sum256(content)
		all[strings.TrimPrefix(name, "static/")] = file{content, packed.Bytes(), contentType, `"` + hex.EncodeToString(sum[:12]) + `"`}
		return nil
	})
}

// ServeHTTP gives a file, and the page for every path that names none.
func (f files) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "only GET", http.StatusMethodNotAllowed)
		return
	}
	name := strings.TrimPrefix(r.URL.Path, root)
	// A machine may be called node.js.
	found, ok := f[name]
	if !ok {
		found = f[page]
		if strings.HasPrefix(name, "js/") {
			http.NotFound(w, r)
			return
		}
	}
	h := w.Header()
	h.Set("Content-Type", found.contentType)
	h.Set("ETag", found.etag)
	h.Set("Vary", "Accept-Encoding")
	// Nothing of this is secret; a browser asks whether it is still the same.
	h.Set("Cache-Control", "no-cache")
	if r.Header.Get("If-None-Match") == found.etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	content := found.plain
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		h.Set("Content-Encoding", "gzip")
		content = found.packed
	}
	h.Set("Content-Length", fmt.Sprint(len(content)))
	if r.Method == http.MethodGet {
		_, _ = w.Write(content)
	}
}
