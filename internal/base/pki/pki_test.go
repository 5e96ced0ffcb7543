package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func openTestAuthority(t *testing.T, dir string) (*Authority, error) {
	t.Helper()
	master, err := OpenMasterKey(dir)
	if err != nil {
		return nil, err
	}
	return OpenAuthority(dir, "machine-ca", master)
}

func TestAuthoritySurvivesARestart(t *testing.T) {
	dir := t.TempDir()
	first, err := openTestAuthority(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	second, err := openTestAuthority(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	if first.Fingerprint() != second.Fingerprint() {
		t.Errorf("fingerprint changed over a restart: %s, then %s", first.Fingerprint(), second.Fingerprint())
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, cert, err := first.SignClient(key.Public(), "node:a", []string{"coldrack:node"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: second.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Errorf("a certificate signed before the restart is refused after it: %v", err)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: second.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err == nil {
		t.Error("a client certificate passes as a server's")
	}
}

func TestAuthorityKeyIsSealed(t *testing.T) {
	dir := t.TempDir()
	authority, err := openTestAuthority(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(authority.key)
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		content, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(content), string(der)) || strings.Contains(string(content), "PRIVATE KEY") {
			t.Errorf("%s holds the authority's key in clear", entry.Name())
		}
	}
}

func TestAuthorityIsNeverReplaced(t *testing.T) {
	tests := []struct {
		name   string
		damage func(dir string) error
		want   string
	}{
		{"when its key is missing", func(dir string) error { return os.Remove(filepath.Join(dir, "machine-ca.key.sealed")) }, "restore"},
		{"when its key is damaged", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "machine-ca.key.sealed"), []byte("damaged beyond repair, but long enough"), 0o600)
		}, "master key"},
		{"when the master key is another", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "master.key"), []byte(strings.Repeat("ab", 32)), 0o600)
		}, "master key"},
		{"when the master key is missing", func(dir string) error { return os.Remove(filepath.Join(dir, "master.key")) }, "restore"},
		{"when the master key is not one", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "master.key"), []byte("hello"), 0o600)
		}, "64 hex digits"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			if _, err := openTestAuthority(t, dir); err != nil {
				t.Fatal(err)
			}
			before, err := os.ReadFile(filepath.Join(dir, "machine-ca.crt"))
			if err != nil {
				t.Fatal(err)
			}
			if err := test.damage(dir); err != nil {
				t.Fatal(err)
			}
			_, err = openTestAuthority(t, dir)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got error %v, want one that says %q", err, test.want)
			}
			after, err := os.ReadFile(filepath.Join(dir, "machine-ca.crt"))
			if err != nil || string(after) != string(before) {
				t.Error("the certificate was replaced")
			}
		})
	}
}

func TestAuthorityCreationThatWasCutShortIsRepeated(t *testing.T) {
	dir := t.TempDir()
	if _, err := openTestAuthority(t, dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "machine-ca.crt")); err != nil {
		t.Fatal(err)
	}
	if _, err := openTestAuthority(t, dir); err != nil {
		t.Error(err)
	}
}

func TestParseCSRUsesOnlyTheKey(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	request := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	public, err := ParseCSR(request)
	if err != nil {
		t.Fatal(err)
	}
	if !key.PublicKey.Equal(public) {
		t.Error("another public key came back")
	}
	der[len(der)-1] ^= 1
	if _, err := ParseCSR(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})); err == nil {
		t.Error("a request with a broken signature was accepted")
	}
	if _, err := ParseCSR([]byte("hello")); err == nil {
		t.Error("text was accepted as a request")
	}
}

// What a server whose clock was ahead has signed counts when its clock was set.
func TestCertificatesOutliveAClockThatIsSetBack(t *testing.T) {
	dir := t.TempDir()
	master, err := OpenMasterKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	authority, err := OpenAuthority(dir, "machine", master)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	_, leaf, err := authority.SignClient(key.Public(), "node:a", []string{"coldrack:node"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	options := x509.VerifyOptions{Roots: authority.Pool(), CurrentTime: began.Add(-23 * time.Hour), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	if _, err := leaf.Verify(options); err != nil {
		t.Errorf("a day earlier: %v", err)
	}
	if issued := IssuedAt(leaf); issued.Before(began.Add(-time.Second)) || issued.After(time.Now()) {
		t.Errorf("issued at %s, now is %s", issued, began)
	}
}

// A request comes from whoever has a nonce. What is taken of it is a public key that can be named.
func FuzzParseCSR(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	f.Add(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der[:len(der)/2]}))
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n"))
	f.Fuzz(func(t *testing.T, request []byte) {
		public, err := ParseCSR(request)
		if err != nil {
			return
		}
		if _, err := Fingerprint(public); err != nil {
			t.Errorf("a key was taken that has no fingerprint: %v", err)
		}
	})
}

func TestAMasterKeyIsBroughtBack(t *testing.T) {
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	one, other, fresh := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "pki")
	was, err := OpenMasterKey(one)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenMasterKey(other); err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(one, masterKeyFile)
	if _, err := ReadMasterKey(copied, other); err == nil || !strings.Contains(err.Error(), "another master key") {
		t.Errorf("into a folder that has another: %v", err)
	}
	if _, err := ReadMasterKey(filepath.Join(one, "gone"), fresh); err == nil {
		t.Error("of a file that is not there")
	}
	key, err := ReadMasterKey(copied, fresh)
	if err != nil || HasMasterKey(fresh) {
		t.Fatalf("%v, or it was written already", err)
	}
	if err := key.Install(fresh); err != nil || !HasMasterKey(fresh) {
		t.Fatal(err)
	}
	sealed, err := was.Seal("test", []byte("content"))
	if err != nil {
		t.Fatal(err)
	}
	is, err := OpenMasterKey(fresh)
	if err != nil {
		t.Fatal(err)
	}
	if content, err := is.Open("test", sealed); err != nil || string(content) != "content" {
		t.Errorf("%q, %v", content, err)
	}
	if _, err := ReadMasterKey(copied, fresh); err != nil {
		t.Errorf("a second time: %v", err)
	}
}
