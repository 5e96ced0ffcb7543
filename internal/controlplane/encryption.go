package controlplane

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"coldrack.dev/api/v1alpha1"
	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/storage/value"
	"k8s.io/apiserver/pkg/storage/value/encrypt/aes"
	"k8s.io/apiserver/pkg/storage/value/encrypt/identity"
)

// encryptionKeySize is the seed from which one AES-256-GCM key per write is derived.
const encryptionKeySize = aes.MinSeedSizeExtendedNonceGCM

// openEncryption prepares the encryption of Secrets with the key of this server.
func openEncryption(ctx context.Context, client *clientv3.Client, cfg Config) (encryptSecrets, error) {
	name := cfg.path(encryptionKeyFile)
	key, made, err := loadEncryptionKey(name)
	if err != nil {
		return encryptSecrets{}, err
	}
	e, err := newEncryptSecrets(key)
	if err != nil {
		return encryptSecrets{}, err
	}
	if err := e.checkSecretsReadable(ctx, client, cfg.EtcdPrefix, name); err != nil {
		if made {
			// The right key is still to be put here.
			err = errors.Join(err, os.Remove(name))
		}
		return encryptSecrets{}, err
	}
	return e, nil
}

// loadEncryptionKey reads the key from a file, base64 on one line, and makes it when the file does not exist.
func loadEncryptionKey(name string) (key []byte, made bool, err error) {
	key, err = readEncryptionKey(name)
	if errors.Is(err, fs.ErrNotExist) {
		key, err = makeEncryptionKey(name)
		return key, true, err
	}
	return key, false, err
}

func readEncryptionKey(name string) ([]byte, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read the encryption key: %w", err)
	}
	info, err := os.Stat(name)
	if err != nil {
		return nil, fmt.Errorf("read the encryption key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("the encryption key %s may be read by others (mode %04o); chmod 600 it", name, info.Mode().Perm())
	}
	key, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(text)))
	if err != nil || len(key) != encryptionKeySize {
		return nil, fmt.Errorf("the encryption key %s must be %d bytes in base64; restore it from a backup", name, encryptionKeySize)
	}
	return key, nil
}

func makeEncryptionKey(name string) ([]byte, error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return nil, fmt.Errorf("write the encryption key: %w", err)
	}
	key := make([]byte, encryptionKeySize)
	rand.Read(key)
	if err := writeFileSync(name, []byte(base64.StdEncoding.EncodeToString(key)+"\n")); err != nil {
		return nil, fmt.Errorf("write the encryption key: %w", err)
	}
	return key, nil
}

// writeFileSync replaces a file by one of mode 0600 that is on disk, whole, when the call returns.
func writeFileSync(name string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// encryptSecrets is the rule which kinds are stored encrypted: Secrets are, nothing else is.
type encryptSecrets struct{ transformer value.Transformer }

var secretsResource = schema.GroupResource{Group: v1alpha1.Group, Resource: "secrets"}

// newEncryptSecrets stores a Secret as "coldrack:enc:aesgcm:v1:", eight hex digits that tell the key, a colon and
// the sealed object. Its place in the store is authenticated with it, so that a value moved to another name
// is refused.
func newEncryptSecrets(key []byte) (encryptSecrets, error) {
	sealed, err := aes.NewHKDFExtendedNonceGCMTransformer(key)
	if err != nil {
		return encryptSecrets{}, err
	}
	sum := sha256.Sum256(key)
	return encryptSecrets{value.NewPrefixTransformers(
		errors.New("stored without encryption or with another key than pki/encryption.key"),
		value.PrefixTransformer{
			Prefix:      []byte(encryptedPrefix + hex.EncodeToString(sum[:4]) + ":"),
			Transformer: sealed,
		})}, nil
}

// checkSecretsReadable fails when the store holds a Secret that our key does not open, before anything is written
// with it.
func (e encryptSecrets) checkSecretsReadable(ctx context.Context, client *clientv3.Client, prefix, keyFile string) error {
	got, err := client.Get(ctx, prefix+"/"+v1alpha1.Group+"/secrets/", clientv3.WithPrefix(), clientv3.WithLimit(1))
	if err != nil {
		return fmt.Errorf("read a Secret from the store: %w", err)
	}
	for _, kv := range got.Kvs {
		if _, _, err := e.transformer.TransformFromStorage(ctx, kv.Value, value.DefaultContext(kv.Key)); err != nil {
			return fmt.Errorf("the Secrets in the store cannot be decrypted with %s: %w; "+
				"restore the key that they were written with, from a backup or from another server of the same store", keyFile, err)
		}
	}
	return nil
}

const encryptedPrefix = "coldrack:enc:aesgcm:v1:"

// TransformerForResource implements value.ResourceTransformers.
func (e encryptSecrets) TransformerForResource(resource schema.GroupResource) value.Transformer {
	if resource == secretsResource {
		return e.transformer
	}
	return identity.NewEncryptCheckTransformer()
}
