package pki

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// MasterKey seals what must be encrypted at rest. Every use gets a key of its own, derived by HKDF
// (RFC 5869) from the master key and the name of the use.
type MasterKey struct{ secret []byte }

const masterKeySize = 32

// masterKeyFile holds the master key in the folder of the authorities.
const masterKeyFile = "master.key"

// CredentialName is the systemd credential (LoadCredential=, LoadCredentialEncrypted=) from which the
// master key is taken when there is one; the key then never rests beside the data.
const CredentialName = "coldrack-master-key"

// OpenMasterKey takes the master key from the systemd credential if there is one, else from dir/master.key,
// which is made on first use. Every server that shares one store needs the same master key.
func OpenMasterKey(dir string) (MasterKey, error) {
	if credentials := os.Getenv("CREDENTIALS_DIRECTORY"); credentials != "" {
		path := filepath.Join(credentials, CredentialName)
		if text, err := os.ReadFile(path); err == nil {
			return parseMasterKey(path, text)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return MasterKey{}, fmt.Errorf("read master key: %w", err)
		}
	}
	path := filepath.Join(dir, masterKeyFile)
	text, err := os.ReadFile(path)
	if err == nil {
		return parseMasterKey(path, text)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return MasterKey{}, fmt.Errorf("read master key: %w", err)
	}
	if sealed, _ := filepath.Glob(filepath.Join(dir, "*.sealed")); len(sealed) > 0 {
		return MasterKey{}, fmt.Errorf("master key %s is missing, but %s was sealed with one; restore it from a backup", path, filepath.Base(sealed[0]))
	}
	secret := make([]byte, masterKeySize)
	if _, err := rand.Read(secret); err != nil {
		return MasterKey{}, fmt.Errorf("make master key: %w", err)
	}
	if err := replaceFile(path, []byte(hex.EncodeToString(secret)+"\n"), 0o600); err != nil {
		return MasterKey{}, err
	}
	return MasterKey{secret: secret}, nil
}

// HasMasterKey says whether OpenMasterKey would find a master key, and make none.
func HasMasterKey(dir string) bool {
	if credentials := os.Getenv("CREDENTIALS_DIRECTORY"); credentials != "" {
		if _, err := os.Stat(filepath.Join(credentials, CredentialName)); err == nil {
			return true
		}
	}
	_, err := os.Stat(filepath.Join(dir, masterKeyFile))
	return err == nil
}

// ReadMasterKey reads a copy of the master key in a file. Another one that is in dir already is an error.
func ReadMasterKey(file, dir string) (MasterKey, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return MasterKey{}, fmt.Errorf("read master key: %w", err)
	}
	key, err := parseMasterKey(file, text)
	if err != nil || !HasMasterKey(dir) {
		return key, err
	}
	is, err := OpenMasterKey(dir)
	if err == nil && !bytes.Equal(is.secret, key.secret) {
		err = fmt.Errorf("%s is another master key than the one that this server has (%s)", file, dir)
	}
	return key, err
}

// Install writes the master key into dir, where OpenMasterKey finds it, unless it finds it already.
func (m MasterKey) Install(dir string) error {
	if HasMasterKey(dir) {
		return nil
	}
	return replaceFile(filepath.Join(dir, masterKeyFile), []byte(hex.EncodeToString(m.secret)+"\n"), 0o600)
}

func parseMasterKey(path string, text []byte) (MasterKey, error) {
	secret, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(secret) != masterKeySize {
		return MasterKey{}, fmt.Errorf("master key %s must be %d hex digits", path, 2*masterKeySize)
	}
	return MasterKey{secret: secret}, nil
}

// Derive returns the 32-byte key of one use.
func (m MasterKey) Derive(use string) ([]byte, error) {
	if len(m.secret) != masterKeySize {
		return nil, errors.New("no master key")
	}
	key, err := hkdf.Key(sha256.New, m.secret, nil, "coldrack "+use, 32)
	if err != nil {
		return nil, fmt.Errorf("derive key for %s: %w", use, err)
	}
	return key, nil
}

// Seal encrypts content for one use.
func (m MasterKey) Seal(use string, content []byte) ([]byte, error) {
	aead, err := m.aead(use)
	if err != nil {
		return nil, err
	}
	return aead.Seal(nil, nil, content, []byte(use)), nil
}

// Open decrypts what Seal made for the same use.
func (m MasterKey) Open(use string, sealed []byte) ([]byte, error) {
	aead, err := m.aead(use)
	if err != nil {
		return nil, err
	}
	content, err := aead.Open(nil, nil, sealed, []byte(use))
	if err != nil {
		return nil, errors.New("the master key does not open it: wrong master key, or the file is damaged")
	}
	return content, nil
}

func (m MasterKey) aead(use string) (cipher.AEAD, error) {
	key, err := m.Derive(use)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}
