package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
	"github.com/rogpeppe/go-internal/testscript"

	"coldrack.dev/internal/content/bundle"
)

// packKubernetes writes a signed bundle with programs of a version of Kubernetes, of a few bytes each:
// packkubernetes FILE KEY.key VERSION
func packKubernetes(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: packkubernetes FILE KEY.key VERSION")
	}
	out, version := ts.MkAbs(args[0]), args[2]
	key, _, err := bundle.LoadOrCreateKey(ts.MkAbs(args[1]))
	ts.Check(err)
	encoder, err := zstd.NewWriter(nil)
	ts.Check(err)
	config := bundle.ProgramsConfig{Name: "kubernetes", Kubernetes: version}
	programs := bundle.ArtifactSpec{Kind: bundle.KindPrograms, Name: "kubernetes"}
	for _, p := range []struct{ name, path, version string }{
		{"kubelet", "/usr/bin/kubelet", version}, {"containerd", "/usr/local/bin/containerd", "v2.4.2"},
		{"containerd-shim-runc-v2", "/usr/local/bin/containerd-shim-runc-v2", "v2.4.2"},
		{"cni-bridge", "/opt/cni/bin/bridge", "v1.9.0"}, {"cni-host-local", "/opt/cni/bin/host-local", "v1.9.0"},
		{"cni-loopback", "/opt/cni/bin/loopback", "v1.9.0"}, {"cni-portmap", "/opt/cni/bin/portmap", "v1.9.0"},
	} {
		content := bytes.Repeat([]byte(p.name+"\n"), 20)
		digest := sha256.Sum256(content)
		path := filepath.Join(filepath.Dir(out), "program-"+p.name)
		ts.Check(os.WriteFile(path, encoder.EncodeAll(content, nil), 0o644))
		config.Programs = append(config.Programs, bundle.ProgramFile{Name: p.name, Path: p.path, Version: p.version,
			Digest: "sha256:" + hex.EncodeToString(digest[:]), Size: int64(len(content)), File: p.name + ".zst"})
		programs.Files = append(programs.Files, bundle.FileSpec{Title: p.name + ".zst", Path: path})
	}
	programs.Config = config
	sbom := filepath.Join(filepath.Dir(out), "sbom-of-programs")
	ts.Check(os.WriteFile(sbom, []byte("{}"), 0o644))
	_, err = bundle.Pack(context.Background(), bundle.Spec{Name: "kubernetes", Artifacts: []bundle.ArtifactSpec{programs,
		{Kind: bundle.KindSBOM, Name: "kubernetes", Config: bundle.SBOMConfig{Name: "kubernetes", Format: "SPDX-2.3"},
			Files: []bundle.FileSpec{{Title: bundle.FileSBOM, Path: sbom}}}}}, key, out, nil)
	ts.Check(err)
}
