package v1alpha1

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"coldrack.dev/internal/contract/validate"
)

// SecretTypeBMC is the type of Secrets with credentials of BMCs.
const SecretTypeBMC = "bmc-credentials"

// Keys of such a Secret.
const (
	BMCSecretUsername = "username"
	BMCSecretPassword = "password"
	// BMCSecretAddresses are the BMCs that the password may be sent to: addresses, networks and host names, one a line.
	BMCSecretAddresses = "addresses"
)

// BMCCredentials are what such a Secret holds.
//
// +kubebuilder:object:generate=false
type BMCCredentials struct {
	Username, Password string
	Addresses          []string
}

// ReadBMCCredentials reads a Secret. Its errors name no value.
func ReadBMCCredentials(s *Secret) (BMCCredentials, error) {
	c := BMCCredentials{Username: string(s.Data[BMCSecretUsername]), Password: string(s.Data[BMCSecretPassword]), Addresses: strings.Fields(string(s.Data[BMCSecretAddresses]))}
	switch {
	case s.Type != SecretTypeBMC:
		return BMCCredentials{}, fmt.Errorf("Secret %s is not of type %s", s.Name, SecretTypeBMC)
	case c.Username == "" || c.Password == "":
		return BMCCredentials{}, fmt.Errorf("Secret %s has no username or no password", s.Name)
	}
	return c, nil
}

// For says whether the password may be sent to an address: a host, host:port or network.
func (c BMCCredentials) For(address string) bool {
	host := address
	if h, _, err := net.SplitHostPort(address); err == nil {
		host = h
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	wanted, isNetwork := prefixOf(host)
	return slices.ContainsFunc(c.Addresses, func(allowed string) bool {
		network, ok := prefixOf(allowed)
		if !ok || !isNetwork {
			return strings.ToLower(allowed) == host
		}
		return network.Bits() <= wanted.Bits() && network.Contains(wanted.Addr())
	})
}

// prefixOf reads an address or a network.
func prefixOf(text string) (netip.Prefix, bool) {
	if p, err := netip.ParsePrefix(text); err == nil {
		return p.Masked(), true
	}
	a, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, a.BitLen()), true
}

// ValidateBMCAddresses refuses what is neither an address, a network nor a host name.
func ValidateBMCAddresses(addresses []string) error {
	for _, a := range addresses {
		if _, ok := prefixOf(a); !ok && validate.DNSName(strings.ToLower(a)) != nil {
			return fmt.Errorf("%q is not an address, a network or a host name", a)
		}
	}
	return nil
}

var fingerprintSyntax = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

func validateBMC(at *field.Path, b *BMC) field.ErrorList {
	if b == nil {
		return nil
	}
	var errs field.ErrorList
	if err := bmcAddress(b.Address); err != nil {
		errs = append(errs, field.Invalid(at.Child("address"), shorten(b.Address), err.Error()))
	}
	if b.Certificate != "" && !fingerprintSyntax.MatchString(b.Certificate) {
		errs = append(errs, field.Invalid(at.Child("certificate"), shorten(b.Certificate), "is not sha256: and 64 hexadecimal digits; coldrack bmc trust records it"))
	}
	if b.Certificate != "" && b.Authority != "" {
		errs = append(errs, field.Invalid(at.Child("authority"), "", "excludes spec.bmc.certificate: the BMC is known by one of them"))
	}
	if b.Authority != "" {
		if block, _ := pem.Decode([]byte(b.Authority)); block == nil || block.Type != "CERTIFICATE" {
			errs = append(errs, field.Invalid(at.Child("authority"), "", "holds no PEM certificate"))
		} else if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			errs = append(errs, field.Invalid(at.Child("authority"), "", "its certificate cannot be read: "+err.Error()))
		}
	}
	return errs
}

func bmcAddress(address string) error {
	if strings.Contains(address, "://") {
		return errors.New("is a URL; want a host or host:port")
	}
	host := address
	if h, port, err := net.SplitHostPort(address); err == nil {
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			return fmt.Errorf("%q is not a port", port)
		}
		host = h
	}
	if a, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return validate.HostAddress(a)
	}
	if validate.DNSName(strings.ToLower(host)) != nil {
		return errors.New("is not a host or host:port")
	}
	return nil
}
