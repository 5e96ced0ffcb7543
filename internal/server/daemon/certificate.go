package daemon

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"coldrack.dev/internal/base/pki"
	"coldrack.dev/internal/server/peopleapi/credentials"
)

const (
	servingTTL = 365 * 24 * time.Hour
	// renewalLook is how often the server looks whether a certificate of people's API is due.
	renewalLook = time.Hour
)

// peopleAPI is the listener of people's API.
type peopleAPI interface {
	Address() string
	ReplaceServingCert(certPEM, keyPEM []byte) error
}

// served is when the certificate that people's API shows ends.
func (s *server) served() time.Time { return time.Unix(s.servingUntil.Load(), 0) }

// renewPeople replaces the certificates of people's API in time, until ctx ends: a server may run for years.
func (s *server) renewPeople(ctx context.Context) error {
	tick := time.NewTicker(renewalLook)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := s.renewPeopleAt(time.Now()); err != nil {
				s.log.Error("cannot renew the certificates of people's API; trying again", "until", s.served(), "err", err)
			}
		}
	}
}

// renewPeopleAt replaces what ends soon after now.
func (s *server) renewPeopleAt(now time.Time) error {
	if s.served().Sub(now) <= credentials.RenewBefore {
		cert, key, err := s.showCertificate()
		if err != nil {
			return err
		}
		if err := s.people.ReplaceServingCert(cert, key); err != nil {
			return err
		}
		s.log.Info("certificate of people's API renewed", "until", s.served())
	}
	written, err := credentials.WriteAdmin(s.cfg.AdminKubeconfig(), s.keys.people, credentials.URL(s.people.Address()), now)
	if err == nil && written {
		s.recordAdmin(s.cfg.AdminKubeconfig())
		s.log.Info("administrator's kubeconfig renewed", "path", s.cfg.AdminKubeconfig())
	}
	return err
}

// servingCertificate returns the certificate and key, PEM, of people's API: for the address it listens on,
// the addresses and names of this host, and those that the configuration adds. It is made at every start and renewed (see
// renewPeople), since its authority is what people's kubeconfigs trust.
func (s *server) servingCertificate() (certPEM, keyPEM []byte, err error) {
	names := []string{"localhost"}
	addresses := []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	if name, err := os.Hostname(); err == nil {
		names = append(names, name)
	}
	host, _, err := net.SplitHostPort(s.cfg.APIAddress)
	if err != nil {
		return nil, nil, fmt.Errorf("apiAddress %q: %w", s.cfg.APIAddress, err)
	}
	extra := append([]string{host}, s.cfg.APINames...)
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		all, err := ownAddresses("")
		if err != nil {
			return nil, nil, err
		}
		for _, address := range all {
			addresses = append(addresses, address.AsSlice())
		}
		extra = s.cfg.APINames
	}
	for _, name := range extra {
		if ip := net.ParseIP(name); ip != nil {
			addresses = append(addresses, ip)
		} else {
			names = append(names, name)
		}
	}
	return s.keys.people.NewServerPEM("coldrack API", names, addresses, servingTTL)
}

// showCertificate is servingCertificate for the API itself; when it ends is told.
func (s *server) showCertificate() (certPEM, keyPEM []byte, err error) {
	if certPEM, keyPEM, err = s.servingCertificate(); err != nil {
		return nil, nil, err
	}
	leaf, err := pki.ParseCertificate(certPEM)
	if err != nil {
		return nil, nil, err
	}
	s.servingUntil.Store(leaf.NotAfter.Unix())
	return certPEM, keyPEM, nil
}
