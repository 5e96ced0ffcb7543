package bringup

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"coldrack.dev/internal/agent/nodecert"
	"coldrack.dev/internal/contract/wire"
)

// certificate makes sure that the node has one of the plan's certificates. It reports whether it changed.
func (p *part) certificate(ctx context.Context, c wire.NodeCertificate) (bool, error) {
	d := p.disk
	if err := nodecert.FinishPair(d, c); err != nil {
		return false, err
	}
	was, err := nodecert.Look(d, p.plan, c, p.Now())
	if err != nil {
		return false, err
	}
	var certificate, key []byte
	ask := p.asSigned(c)
	if was.Why != "" {
		certificate, key = p.keptPair(c)
		// One that the server signed for its newer plan does as well: there is no other to be had.
		newer, err := nodecert.Look(d, p.plan, ask, p.Now())
		if err != nil {
			return false, err
		}
		if certificate == nil && newer.Usable {
			was = newer
		}
	}
	p.track.expiry(c.Name, was.Leaf, p.renewAt(c, was.Leaf))
	if p.dueByServer(c, was) {
		was.Why = nodecert.WhyDue
	}
	if err := p.removeRemade(c, ask); err != nil {
		return false, err
	}
	if was.Why == "" || p.waitsToRenew(c, was) {
		return false, p.certificateModes(c)
	}
	if certificate == nil {
		certificate, key, err = nodecert.Request(ctx, p.Server, p.plan.Cluster, ask, p.Now)
	}
	if err != nil {
		if was.Usable && ctx.Err() == nil {
			p.Log.Warn("certificate renewal failed; the current certificate is still valid", "certificate", c.Name, "expires", was.Leaf.NotAfter, "err", err)
			return false, nil
		}
		return false, fmt.Errorf("certificate %s: %s; a new one: %w", c.Name, was.Why, err)
	}
	// Before the new end of life is told: who waits for a renewal waits until it was done, and asks for both.
	p.track.reopen(p.name, followers(p.plan, p.name))
	paths := []string{c.CertPath}
	if c.KeyPath != c.CertPath {
		paths = append(paths, c.KeyPath, nodecert.Fresh(c))
	}
	if err := p.prepare(paths); err != nil {
		return false, err
	}
	if err := p.keepCertificate(c.Name); err != nil {
		return false, err
	}
	if err := nodecert.WritePair(d, c, certificate, key); err != nil {
		return false, fmt.Errorf("certificate %s: %w", c.Name, err)
	}
	if link, _ := nodecert.Source(p.plan, c); link != c.CertPath {
		// The link may point at a rotated certificate that is of no use any more.
		if target, err := os.Readlink(d.At(link)); err != nil || target != c.CertPath {
			if err := p.prepare([]string{link}); err != nil {
				return false, err
			}
			if err := d.Link(link, c.CertPath); err != nil {
				return false, err
			}
		}
	}
	list, err := nodecert.Parse(certificate)
	if err != nil {
		return false, err
	}
	p.track.expiry(c.Name, list[0], p.renewAt(c, list[0]))
	p.Log.Info("certificate written", "certificate", c.Name, "path", c.CertPath, "because", was.Why, "expires", list[0].NotAfter)
	return true, nil
}

// removeRemade removes certificates that their user makes by itself and that an authority has signed which signs no more.
func (p *pass) removeRemade(c, ask wire.NodeCertificate) error {
	for _, file := range c.Remade {
		content, err := p.disk.Read(file)
		if errors.Is(err, fs.ErrNotExist) {
			p.track.gone(remadeName(file))
			continue
		} else if err != nil {
			return fmt.Errorf("certificate %s: %w", c.Name, err)
		}
		if nodecert.SignedBy(content, c.Authority, ask.Authority) {
			if list, err := nodecert.Parse(content); err == nil {
				p.track.expiry(remadeName(file), list[0], time.Time{})
			}
			continue
		}
		if err := p.prepare([]string{c.CertPath}); err != nil { // its reader is restarted
			return err
		}
		if err := os.Remove(p.disk.At(file)); err != nil {
			return fmt.Errorf("certificate %s: %w", c.Name, err)
		}
		p.Log.Info("certificate of another authority removed; its user has it made anew", "path", file)
	}
	return nil
}

// remadeName is by what name the end of a certificate is told that its user makes by itself, as kubelet-server-current.
func remadeName(file string) string { return strings.TrimSuffix(path.Base(file), path.Ext(file)) }

// renewAt is when a certificate is due whose renewal restarts something; zero for others, which the server need not know of.
func (p *pass) renewAt(c wire.NodeCertificate, leaf *x509.Certificate) time.Time {
	if leaf == nil || len(c.Restart) == 0 {
		return time.Time{}
	}
	return nodecert.RenewAt(p.plan.NodeName, leaf).UTC().Truncate(time.Second)
}

// dueByServer says that the node was taken to renew a certificate that is not quite due by its own clock: the server's is ahead, and waits
// for it.
func (p *pass) dueByServer(c wire.NodeCertificate, is nodecert.Check) bool {
	if !p.renew || len(c.Restart) == 0 || is.Leaf == nil || is.Why != "" {
		return false
	}
	ahead := is.Leaf.NotAfter.Sub(is.Leaf.NotBefore) / 20
	return !p.Now().Before(nodecert.RenewAt(p.plan.NodeName, is.Leaf).Add(-ahead))
}

// waitsToRenew says that a certificate is due, and that its renewal, which restarts something, waits for the node's turn. Late
// in its life it waits no longer: what it would restart ends otherwise.
func (p *pass) waitsToRenew(c wire.NodeCertificate, is nodecert.Check) bool {
	return p.hold && len(c.Restart) > 0 && is.Usable && is.Why == nodecert.WhyDue && !nodecert.Late(is.Leaf, p.Now())
}

// asSigned is a certificate as the server signs it now.
func (p *pass) asSigned(c wire.NodeCertificate) wire.NodeCertificate {
	now := find(p.signed, func(s wire.NodeCertificate) bool { return s.Name == c.Name })
	if now.CertPath != c.CertPath || now.KeyPath != c.KeyPath || now.Rotated != c.Rotated {
		return c
	}
	return now
}

// certificateModes corrects the modes of files whose content is right.
func (p *pass) certificateModes(c wire.NodeCertificate) error {
	modes := map[string]fs.FileMode{c.CertPath: fs.FileMode(c.CertMode).Perm()}
	modes[c.KeyPath] = 0o600
	for file, mode := range modes {
		info, err := os.Lstat(p.disk.At(file))
		if err != nil || !info.Mode().IsRegular() || info.Mode().Perm() == mode {
			continue // one that is rotated may be gone from its first place
		}
		if err := os.Chmod(p.disk.At(file), mode); err != nil {
			return fmt.Errorf("certificate %s: %w", c.Name, err)
		}
		p.Log.Info("file mode corrected", "path", file, "was", info.Mode().Perm(), "is", mode)
	}
	return nil
}
