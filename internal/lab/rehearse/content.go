package rehearse

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"coldrack.dev/internal/content/bundle"
	"coldrack.dev/internal/content/diskimage"
)

// Sizes of what a made-up bundle holds, bytes. The defaults are about those of the default bundle.
type Sizes struct {
	FirstStage, Kernel, Initrd, Image int64
}

// DefaultSizes are about those of recipes/default.
var DefaultSizes = Sizes{FirstStage: 256 << 10, Kernel: 8 << 20, Initrd: 36 << 20, Image: 126 << 20}

// MakeBundle packs a bundle of noise that machines can be led through an install with, and returns the files of
// the bundle and of the key that signed it. Its images have the given names; more artifacts may come with them.
func MakeBundle(ctx context.Context, dir string, sizes Sizes, images []string, more ...bundle.ArtifactSpec) (path, keyPath string, err error) {
	noise := mathrand.NewChaCha8([32]byte{1})
	write := func(title string, size int64) (bundle.FileSpec, error) {
		content := make([]byte, size)
		_, _ = noise.Read(content) // never fails
		path := filepath.Join(dir, title)
		return bundle.FileSpec{Title: title, Path: path}, os.WriteFile(path, content, 0o600)
	}
	files := func(sizes map[string]int64) (specs []bundle.FileSpec, err error) {
		for title, size := range sizes {
			spec, err := write(title, size)
			if err != nil {
				return nil, err
			}
			specs = append(specs, spec)
		}
		return specs, nil
	}
	netboot, err := files(map[string]int64{bundle.FileKernel: sizes.Kernel, bundle.FileInitrd: sizes.Initrd})
	if err != nil {
		return "", "", err
	}
	const small = 64 << 10
	loaders, err := files(map[string]int64{bundle.FileUndionly: sizes.FirstStage, bundle.FileIPXE: sizes.FirstStage, bundle.FileSNPOnly: sizes.FirstStage,
		bundle.FileLocal: small, bundle.FileLocalPC: small, bundle.FileBootImg: 512, bundle.FileCoreImg: small, bundle.FileShim: small, bundle.FileGRUB: small})
	if err != nil {
		return "", "", err
	}
	raw := make([]byte, max(sizes.Image, 4096)/4096*4096)
	_, _ = noise.Read(raw)
	var chunks bytes.Buffer
	index, err := diskimage.Encode(ctx, bytes.NewReader(raw), int64(len(raw)), &chunks)
	if err != nil {
		return "", "", err
	}
	encoded, err := json.Marshal(index)
	if err != nil {
		return "", "", err
	}
	artifacts := []bundle.ArtifactSpec{
		{Kind: bundle.KindNetboot, Name: "discovery", Files: netboot,
			Config: bundle.NetbootConfig{Name: "discovery", Arch: "amd64", KernelVersion: "6.1.0", AgentVersion: "rehearsal"}},
		{Kind: bundle.KindBootloaders, Name: "amd64", Config: bundle.BootloadersConfig{Name: "amd64", Arch: "amd64"}, Files: loaders},
	}
	for _, name := range images {
		spec := bundle.ArtifactSpec{Kind: bundle.KindImage, Name: name, Config: bundle.ImageConfig{Name: name, Family: "debian", Version: "12",
			Arch: "amd64", KernelVersion: "6.1.0", RootFS: "ext4", Size: int64(len(raw))}}
		for title, content := range map[string][]byte{bundle.FileImageIndex: encoded, bundle.FileImageChunks: chunks.Bytes()} {
			path := filepath.Join(dir, title)
			if err := os.WriteFile(path, content, 0o600); err != nil {
				return "", "", err
			}
			spec.Files = append(spec.Files, bundle.FileSpec{Title: title, Path: path})
		}
		artifacts = append(artifacts, spec)
	}
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", "", err
	}
	path, keyPath = filepath.Join(dir, "rehearsal.bundle.tar"), filepath.Join(dir, "rehearsal.pub")
	if _, err = bundle.Pack(ctx, bundle.Spec{Name: "rehearsal", Created: time.Now(), Artifacts: append(artifacts, more...)}, key, path, nil); err != nil {
		return "", "", fmt.Errorf("pack a bundle: %w", err)
	}
	return path, keyPath, os.WriteFile(keyPath, bundle.MarshalPublicKey(public), 0o600)
}
