package controlplane

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"coldrack.dev/api/v1alpha1"
	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/storage/value"
	"k8s.io/apiserver/pkg/storage/value/encrypt/aes"
	"k8s.io/apiserver/pkg/storage/value/encrypt/identity"
)

// encryptionKeySize is the seed from which one AES-256-GCM key per write is derived.
const encryptionKeySize = aes.MinSeedSizeExtendedNonceGCM

// openEncryption prepares the encryption of Secrets and fails when the store holds some that the key does not
// open.
func openEncryption(ctx context.Context, client *clientv3.Client, cfg Config) (encryptSecrets, error) {
	e, err := newEncryptSecrets(cfg.EncryptionKey)
	if err != nil {
		return encryptSecrets{}, err
	}
	return e, e.checkSecretsReadable(ctx, client, cfg.EtcdPrefix)
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
		errors.New("stored without encryption or with another key"),
		value.PrefixTransformer{
			Prefix:      []byte(encryptedPrefix + hex.EncodeToString(sum[:4]) + ":"),
			Transformer: sealed,
		})}, nil
}

// checkSecretsReadable fails when the store holds a Secret that our key does not open, before anything is written
// with it.
func (e encryptSecrets) checkSecretsReadable(ctx context.Context, client *clientv3.Client, prefix string) error {
	got, err := client.Get(ctx, prefix+"/"+v1alpha1.Group+"/secrets/", clientv3.WithPrefix(), clientv3.WithLimit(1))
	if err != nil {
		return fmt.Errorf("read a Secret from the store: %w", err)
	}
	for _, kv := range got.Kvs {
		if _, _, err := e.transformer.TransformFromStorage(ctx, kv.Value, value.DefaultContext(kv.Key)); err != nil {
			return fmt.Errorf("the Secrets in the store cannot be decrypted: %w; "+
				"restore the master key that they were written with, from a backup or from another server of the same store", err)
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
