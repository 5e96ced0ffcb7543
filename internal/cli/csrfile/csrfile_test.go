package csrfile

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"coldrack.dev/test/require"
)

func TestFilesThatAreNone(t *testing.T) {
	for text, want := range map[string]string{
		"":                            "neither",
		"x":                           "neither",
		"{":                           "cannot be read",
		"{}":                          `neither "CN"`,
		`{"CN": "a", "ca": {}}`:       "authority",
		`{"CN": 7}`:                   "cannot be read",
		`{"CN": "a", "key": "ecdsa"}`: `"key"`,
		`{"CN": "a", "names": [{"SerialNumber": "1"}]}`:     "SerialNumber",
		`{"CN": "a", "key": {"algo": "rsa", "size": 1024}}`: "rsa of 1024 bits",
		`{"CN": "a", "key": {"algo": "dsa", "size": 2048}}`: "dsa of 2048 bits",
		`{"csr": "x"}`: "neither",
		"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n": "type CERTIFICATE,",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func TestEachKindOfKey(t *testing.T) {
	for _, name := range Keys() {
		k, err := ParseKey(name)
		if err != nil || k.String() != name {
			t.Fatalf("%s: %v %v", name, k, err)
		}
		if strings.HasPrefix(name, "rsa-") && k.Size > 2048 {
			continue // they differ by their size alone, and cost seconds
		}
		_, csr, err := File{Key: k, Hosts: []string{"a.example", "10.0.0.1", "a@b.example", "spiffe://a.example/b"}}.New()
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(csr)
		r, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil || r.CheckSignature() != nil || len(r.DNSNames) != 1 || len(r.IPAddresses) != 1 || len(r.EmailAddresses) != 1 || len(r.URIs) != 1 {
			t.Errorf("%s: %+v %v", name, r, err)
		}
	}
	for _, text := range []string{"", "rsa", "rsa-1024", "ecdsa-224", "ed25519-1", "rsa-x"} {
		if k, err := ParseKey(text); err == nil {
			t.Errorf("%q: %v", text, k)
		}
	}
}

// TestFilesOfCfssl reads what cfssl prints as a sample and what it writes, and compares its request with ours.
func TestFilesOfCfssl(t *testing.T) {
	require.Need(t, "cfssl", "openssl")
	dir := t.TempDir()
	run := func(command string) []byte {
		t.Helper()
		c := exec.Command("sh", "-c", command)
		c.Dir = dir
		out, err := c.Output()
		if err != nil {
			t.Fatalf("%s: %v", command, err)
		}
		return out
	}
	sample := run("cfssl print-defaults csr")
	f, err := Parse(sample)
	if err != nil {
		t.Fatal(err)
	}
	_, csr, err := f.New()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sample.json"), sample, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ours.csr"), csr, 0o600); err != nil {
		t.Fatal(err)
	}
	written := run("cfssl genkey sample.json")
	theirs, err := Parse(written)
	if err != nil || len(theirs.CSR) == 0 {
		t.Fatalf("what cfssl genkey wrote: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "theirs.csr"), theirs.CSR, 0o600); err != nil {
		t.Fatal(err)
	}
	show := "openssl req -noout -subject -text -verify -in %.csr | grep -v -e '^  *[0-9a-f][0-9a-f]:' -e 'verify OK'"
	ours, his := string(run(strings.ReplaceAll(show, "%", "ours"))), string(run(strings.ReplaceAll(show, "%", "theirs")))
	if ours != his || !strings.Contains(ours, "DNS:www.example.net") {
		t.Errorf("ours:\n%s\ncfssl's:\n%s", ours, his)
	}
}
