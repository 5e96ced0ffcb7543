// Package identity keeps, on an installed node, where its server is and the key and certificate by which
// the node is known. The installer writes them into the new system; the node agent reads and renews them.
package identity

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"coldrack.dev/internal/agent/client"
	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/base/durable"
)

// Paths on an installed node.
const (
	SettingsFile = "/etc/coldrack/agent.json"
	// Dir is readable by root only. The key and its certificate are one file, so that a renewal replaces
	// both at once or neither.
	Dir      = "/var/lib/coldrack/agent"
	NodeFile = "node.pem"
	// NextFile is a renewed identity that the server has not been seen to accept yet.
	NextFile = "node.pem.next"
)

// Settings say where the server is and how to know it.
type Settings struct {
	Machine string `json:"machine"`
	Server  string `json:"server"` // https://HOST:PORT of the machine API
	Pin     string `json:"pin"`    // of the machine CA, as on the kernel command line
	CA      string `json:"ca"`     // PEM
}

// Encode is the content of SettingsFile.
func (s Settings) Encode() ([]byte, error) {
	b, err := json.MarshalIndent(s, "", "  ")
	return append(b, '\n'), err
}

// LoadSettings reads them below root ("/" on a node).
func LoadSettings(root string) (Settings, error) {
	var s Settings
	b, err := os.ReadFile(filepath.Join(root, SettingsFile))
	if err != nil {
		return s, fmt.Errorf("read the node agent's settings: %w (the installer writes them; is this machine installed by Coldrack?)", err)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("%s: %w", SettingsFile, err)
	}
	if s.Machine == "" || s.Server == "" || s.Pin == "" {
		return s, fmt.Errorf("%s: machine, server and pin must all be there", SettingsFile)
	}
	return s, nil
}

// Client returns a client of the server that the settings name, without a certificate yet.
func (s Settings) Client(agent string) (*client.Client, error) {
	pin, err := client.ParsePin(s.Pin)
	if err != nil {
		return nil, fmt.Errorf("%s: pin: %w", SettingsFile, err)
	}
	var cas []*x509.Certificate
	if s.CA != "" {
		if cas, err = client.ParseCAs(s.CA); err != nil {
			return nil, fmt.Errorf("%s: ca: %w", SettingsFile, err)
		}
	}
	return client.New(client.Options{Server: s.Server, Pin: pin, CAs: cas, Agent: agent})
}

// Node is a node's key with the certificate chain for it.
type Node struct {
	Certificate tls.Certificate
	NotBefore   time.Time
	NotAfter    time.Time
}

// Encode is the content of NodeFile.
func Encode(key *ecdsa.PrivateKey, chain string) ([]byte, error) {
	if _, err := client.KeyPair(chain, key); err != nil {
		return nil, fmt.Errorf("the certificate that the server sent does not fit the key: %w", err)
	}
	b, err := client.EncodeKey(key)
	return append(b, chain...), err
}

// Decode reads what Encode made.
func Decode(b []byte) (Node, error) {
	cert, err := tls.X509KeyPair(b, b)
	if err != nil {
		return Node{}, err
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return Node{}, err
	}
	cert.Leaf = leaf
	return Node{cert, leaf.NotBefore, leaf.NotAfter}, nil
}

// Fingerprint is the key's, as the server names it.
func (n Node) Fingerprint() string {
	return digest.Of(n.Certificate.Leaf.RawSubjectPublicKeyInfo).String()
}

// RenewAt is when two thirds of the certificate's life are over.
func (n Node) RenewAt() time.Time { return n.NotBefore.Add(n.NotAfter.Sub(n.NotBefore) * 2 / 3) }

// Load reads a node's identity from a file of Dir below root.
func Load(root, name string) (Node, error) {
	file := filepath.Join(root, Dir, name)
	b, err := os.ReadFile(file)
	if err != nil {
		return Node{}, fmt.Errorf("read the node's identity: %w", err)
	}
	n, err := Decode(b)
	if err != nil {
		return n, fmt.Errorf("%s: %w", file, err)
	}
	return n, nil
}

// SaveNext writes a renewed identity beside the present one, durably.
func SaveNext(root string, b []byte) error {
	if err := durable.WriteFile(filepath.Join(root, Dir, NextFile), b, 0o600); err != nil {
		return fmt.Errorf("save the node's next identity: %w", err)
	}
	return nil
}

// Promote makes the next identity the present one.
func Promote(root string) error {
	dir := filepath.Join(root, Dir)
	if err := durable.Rename(filepath.Join(dir, NextFile), filepath.Join(dir, NodeFile)); err != nil {
		return fmt.Errorf("replace the node's identity: %w", err)
	}
	return nil
}

// Drop forgets the next identity.
func Drop(root string) error { return os.Remove(filepath.Join(root, Dir, NextFile)) }
