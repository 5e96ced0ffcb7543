package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"coldrack.dev/internal/cli/upload"
	"coldrack.dev/internal/content/bundle"
)

// packBundle writes a small signed bundle with a discovery system of a megabyte, and the public key beside
// it: packbundle FILE KEY.key
func packBundle(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: packbundle FILE KEY.key")
	}
	out := ts.MkAbs(args[0])
	key, _, err := bundle.LoadOrCreateKey(ts.MkAbs(args[1]))
	ts.Check(err)
	file := func(title string, size int) bundle.FileSpec {
		path := filepath.Join(filepath.Dir(out), "content-"+title)
		ts.Check(os.WriteFile(path, []byte(strings.Repeat(title+"\n", size/len(title)+1))[:size], 0o644))
		return bundle.FileSpec{Title: title, Path: path}
	}
	spec := bundle.Spec{Name: "small", Artifacts: []bundle.ArtifactSpec{
		{Kind: bundle.KindNetboot, Name: "discovery",
			Config: bundle.NetbootConfig{Name: "discovery", Arch: "amd64", KernelVersion: "6.1", AgentVersion: "v0"},
			Files:  []bundle.FileSpec{file(bundle.FileKernel, 100_000), file(bundle.FileInitrd, 1_000_000)}},
		{Kind: bundle.KindSBOM, Name: "small", Config: bundle.SBOMConfig{Name: "small", Format: "SPDX-2.3"},
			Files: []bundle.FileSpec{file(bundle.FileSBOM, 100)}},
	}}
	_, err = bundle.Pack(context.Background(), spec, key, out, nil)
	ts.Check(err)
}

// damage changes one byte of a file's blob inside a bundle: damage FILE TEXT_IN_THE_BLOB
func damage(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: damage FILE TEXT")
	}
	path := ts.MkAbs(args[0])
	content, err := os.ReadFile(path)
	ts.Check(err)
	at := strings.Index(string(content), strings.Repeat(args[1]+"\n", 20))
	if at < 0 {
		ts.Check(errors.New("the text is not in the file"))
	}
	content[at+100] ^= 1
	ts.Check(os.WriteFile(path, content, 0o644))
}

// halfUpload leaves the first three quarters of a bundle with the server, as an upload that was cut off
// does: halfupload FILE
func halfUpload(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: halfupload FILE")
	}
	path := ts.MkAbs(args[0])
	summary, err := bundle.Inspect(path)
	ts.Check(err)
	content, err := os.ReadFile(path)
	ts.Check(err)
	folder := filepath.Join(ts.Getenv("COLDRACK_DATA_DIR"), "uploads")
	ts.Check(os.MkdirAll(folder, 0o700))
	ts.Check(os.WriteFile(filepath.Join(folder, upload.Name(summary.Digest)), content[:len(content)*3/4], 0o600))
}
