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
	"strings"

	"coldrack.dev/internal/agent/nodecert"
	"coldrack.dev/internal/contract/wire"
)

// What a former plan needs and nobody else may have any more stays on the node until the next change: programs beside those that
// replaced them, and certificates with their keys.

// keptProgram is where a program of the former plan is kept. It is on the same file system, so that moving it takes nothing.
func keptProgram(p wire.Program) string {
	digest := strings.TrimPrefix(p.Digest, "sha256:")
	return path.Join(path.Dir(p.Path), fmt.Sprintf(".%s.%s.coldrack-former", path.Base(p.Path), digest[:min(12, len(digest))]))
}

// keptCertificate is where a certificate of the former plan is kept.
func keptCertificate(c wire.NodeCertificate) wire.NodeCertificate {
	base := StateDir + "/former/" + path.Base(c.Name)
	c.CertPath, c.KeyPath, c.Rotated = base+".crt", base+".key", false
	return c
}

// keepsakes are all paths that are kept for a roll-back to a plan, nil for none.
func keepsakes(former *wire.NodePlan) []string {
	if former == nil {
		return nil
	}
	var paths []string
	for _, p := range former.Programs {
		paths = append(paths, keptProgram(p))
	}
	for _, c := range former.Certificates {
		kept := keptCertificate(c)
		paths = append(paths, kept.CertPath, kept.KeyPath)
	}
	return paths
}

// formerProgram is the program that a roll-back would want at a path.
func (p *pass) formerProgram(file string) (program wire.Program) {
	if p.former != nil {
		program = find(p.former.Programs, func(w wire.Program) bool { return w.Path == file })
	}
	return program
}

// keepProgram keeps the program at a path, of which has is the digest, if a roll-back would need it.
func (p *pass) keepProgram(file, has string) error {
	former := p.formerProgram(file)
	if former.Path == "" || former.Digest != has {
		return nil
	}
	kept := keptProgram(former)
	if err := p.prepare([]string{kept}); err != nil {
		return err
	}
	if err := os.Link(p.disk.At(file), p.disk.At(kept)); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("keep %s for a roll-back: %w", file, err)
	}
	return p.disk.Sync(path.Dir(file))
}

// restoreProgram puts a program in place that was kept, and says whether there was one.
func (p *part) restoreProgram(ctx context.Context, program wire.Program) (bool, error) {
	kept := p.disk.At(keptProgram(program))
	f, err := os.Open(kept)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, contextReader{ctx, f}); err != nil {
		return false, fmt.Errorf("read %s: %w", keptProgram(program), err)
	}
	if digestOf(h) != program.Digest {
		p.Log.Warn("kept program is damaged; fetching it", "path", keptProgram(program))
		return false, os.Remove(kept)
	}
	if err := p.prepare([]string{program.Path}); err != nil {
		return false, err
	}
	if err := os.Rename(kept, p.disk.At(program.Path)); err != nil {
		return false, p.disk.Explain(program.Path, err)
	}
	p.Log.Info("kept program put back", "program", program.Name, "path", program.Path)
	return true, p.disk.Sync(path.Dir(program.Path))
}

// keepCertificate keeps the pair in place, if a roll-back would need it. A pair that a user rotates by itself is never replaced
// for a change.
func (p *pass) keepCertificate(name string) error {
	if p.former == nil {
		return nil
	}
	former := find(p.former.Certificates, func(c wire.NodeCertificate) bool { return c.Name == name })
	if former.Name == "" || former.Rotated || former.CertPath == former.KeyPath {
		return nil
	}
	check, err := nodecert.Look(p.disk, p.former, former, p.Now())
	if err != nil || !check.Usable {
		return err
	}
	kept := keptCertificate(former)
	if err := p.prepare([]string{kept.CertPath, kept.KeyPath}); err != nil {
		return err
	}
	for from, to := range map[string]string{former.KeyPath: kept.KeyPath, former.CertPath: kept.CertPath} {
		content, err := p.disk.Read(from)
		if err == nil {
			err = p.disk.Write(to, content, 0o600)
		}
		if err != nil {
			return fmt.Errorf("keep %s for a roll-back: %w", from, err)
		}
	}
	return nil
}

// keptPair is a pair that was kept and does for c; it is empty when there is none.
func (p *pass) keptPair(c wire.NodeCertificate) (certificate, key []byte) {
	kept := keptCertificate(c)
	certificate, err := p.disk.Read(kept.CertPath)
	if err != nil {
		return nil, nil
	}
	if key, err = p.disk.Read(kept.KeyPath); err != nil {
		return nil, nil
	}
	if check := nodecert.Inspect(p.plan.NodeName, c, certificate, key, p.Now()); check.Why != "" {
		return nil, nil
	}
	return certificate, key
}
