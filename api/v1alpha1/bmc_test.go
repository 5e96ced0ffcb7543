package v1alpha1

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Whoever may write a Machine must not have a password sent anywhere.
func TestCredentialsAreForTheirAddressesOnly(t *testing.T) {
	c := BMCCredentials{Addresses: []string{"10.0.9.0/24", "10.1.0.7", "bmc-1.example.org", "fd00::/64"}}
	for address, want := range map[string]bool{
		"10.0.9.21": true, "10.0.9.21:8443": true, "10.1.0.7": true, "10.1.0.8": false, "10.0.10.1": false, "BMC-1.example.org:443": true, "bmc-2.example.org": false,
		"fd00::5": true, "[fd00::5]:443": true, "fd01::5": false, "10.0.9.0/24": true, "10.0.9.128/25": true, "10.0.0.0/16": false, "": false, "10.0.9": false,
		"10.0.9.21.evil.example.org": false, "::ffff:10.0.9.21": false,
	} {
		if got := c.For(address); got != want {
			t.Errorf("%q: %t", address, got)
		}
	}
	if (BMCCredentials{}).For("10.0.9.21") {
		t.Error("a Secret without addresses is for none")
	}
}

func TestReadBMCCredentials(t *testing.T) {
	secret := func(kind, user, password string) *Secret {
		s := &Secret{Type: kind, Data: map[string][]byte{BMCSecretUsername: []byte(user), BMCSecretPassword: []byte(password), BMCSecretAddresses: []byte("10.0.9.0/24\n10.1.0.7\n")}}
		s.Name = "bmc-r1"
		return s
	}
	c, err := ReadBMCCredentials(secret(SecretTypeBMC, "admin", "s3cret"))
	if err != nil || c.Username != "admin" || c.Password != "s3cret" || len(c.Addresses) != 2 {
		t.Errorf("%d addresses, %v", len(c.Addresses), err)
	}
	for want, s := range map[string]*Secret{
		"is not of type bmc-credentials": secret("", "admin", "s3cret"), "has no username or no password": secret(SecretTypeBMC, "", "s3cret"), "no password": secret(SecretTypeBMC, "admin", ""),
	} {
		if _, err := ReadBMCCredentials(s); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestValidateBMC(t *testing.T) {
	fingerprint := "sha256:" + strings.Repeat("0", 64)
	for want, b := range map[string]*BMC{
		"":                                {Address: "10.0.9.21", Certificate: fingerprint},
		"spec.bmc.address":                {Address: "https://10.0.9.21"},
		"is not a port":                   {Address: "10.0.9.21:x"},
		"is not a host":                   {Address: "a b"},
		"is not the IP address of a host": {Address: "0.0.0.0"},
		"spec.bmc.certificate":            {Address: "bmc-1", Certificate: "sha256:0"},
		"excludes spec.bmc.certificate":   {Address: "bmc-1:443", Certificate: fingerprint, Authority: "x"},
		"holds no PEM certificate":        {Address: "[fd00::1]:443", Authority: "x"},
	} {
		errs := validateBMC(field.NewPath("spec", "bmc"), b)
		if text := errs.ToAggregate(); (text == nil) != (want == "") || text != nil && !strings.Contains(text.Error(), want) {
			t.Errorf("%q: %v", want, text)
		}
	}
	old := &Machine{Spec: MachineSpec{BMC: &BMC{Address: "https://10.0.9.21"}}}
	if errs := ValidateMachine(old.DeepCopy(), old); len(errs) != 0 {
		t.Errorf("what an earlier version took keeps a machine from being changed: %v", errs)
	}
}
