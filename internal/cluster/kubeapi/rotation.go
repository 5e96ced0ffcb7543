package kubeapi

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
)

// rootAuthority is the ConfigMap with the authorities that every pod verifies the API with.
const rootAuthority = "kube-root-ca.crt"

// PodsKnow says whether pods that start now verify the API with exactly these authorities, which are PEM. The controller manager hands them
// out, some moments after it has started with them.
func (c *Connection) PodsKnow(ctx context.Context, authorities []byte) (bool, error) {
	is, err := c.client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, rootAuthority, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("read ConfigMap %s: %w", rootAuthority, err)
	}
	return strings.TrimSpace(is.Data["ca.crt"]) == string(bytes.TrimSpace(authorities)), nil
}

// extensionTrust is the ConfigMap by which extension API servers know whom to believe.
const extensionTrust = "extension-apiserver-authentication"

// TrustOnly has extension API servers believe exactly these authorities, which are PEM: those of clients, and those of API servers that
// speak for clients. API servers only ever add theirs, so that one that is dropped stays there for good. It says whether it was so already.
func (c *Connection) TrustOnly(ctx context.Context, clients, frontProxies []byte) (already bool, err error) {
	maps := c.client.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	is, err := maps.Get(ctx, extensionTrust, metav1.GetOptions{})
	if err != nil {
		return false, fmt.Errorf("read ConfigMap %s: %w", extensionTrust, err)
	}
	already = true
	for name, want := range map[string][]byte{"client-ca-file": clients, "requestheader-client-ca-file": frontProxies} {
		if has := is.Data[name]; has != "" && !slices.Equal(certificatesIn([]byte(has)), certificatesIn(want)) {
			is.Data[name], already = string(want), false
		}
	}
	if already {
		return true, nil
	}
	if _, err := maps.Update(ctx, is, metav1.UpdateOptions{}); err != nil && !apierrors.IsConflict(err) {
		return false, fmt.Errorf("write ConfigMap %s: %w", extensionTrust, err)
	}
	return false, nil
}

// certificatesIn a PEM text, sorted.
func certificatesIn(text []byte) []string {
	var list []string
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		list = append(list, string(block.Bytes))
	}
	slices.Sort(list)
	return list
}

// rewritePage is how many Secrets are written anew in one go.
const rewritePage = 100

// Rewrite says how far Secrets are written anew.
type Rewrite struct {
	// Next is where the rest begins, empty when there is none.
	Next string
	// Done Secrets, in this go, and those that are left after it.
	Done, Left int64
}

// RewriteSecrets writes some Secrets as they are, so that the API server encrypts them with the key that it uses now. next is empty at
// first, and Rewrite.Next from then on. One that somebody else writes or deletes meanwhile needs no more.
func (c *Connection) RewriteSecrets(ctx context.Context, next string) (r Rewrite, err error) {
	secrets := c.client.CoreV1().Secrets(metav1.NamespaceAll)
	list, err := secrets.List(ctx, metav1.ListOptions{Limit: rewritePage, Continue: next})
	if err != nil {
		return r, fmt.Errorf("list Secrets: %w", err)
	}
	for i := range list.Items {
		s := &list.Items[i]
		_, err := c.client.CoreV1().Secrets(s.Namespace).Update(ctx, s, metav1.UpdateOptions{})
		if err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			return r, fmt.Errorf("write Secret %s/%s: %w", s.Namespace, s.Name, err)
		}
		r.Done++
	}
	r.Next = list.Continue
	if list.RemainingItemCount != nil {
		r.Left = *list.RemainingItemCount
	}
	return r, nil
}

// ResignTokens has those tokens of service accounts signed anew that are kept in Secrets and that another key than signer has signed. It
// returns the names of those that it found, as NAMESPACE/NAME; none when all are signed by it.
func (c *Connection) ResignTokens(ctx context.Context, signer crypto.PublicKey) (names []string, err error) {
	id, err := keyID(signer)
	if err != nil {
		return nil, err
	}
	list, err := c.client.CoreV1().Secrets(metav1.NamespaceAll).List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("type", string(corev1.SecretTypeServiceAccountToken)).String()})
	if err != nil {
		return nil, fmt.Errorf("list tokens of service accounts: %w", err)
	}
	for i := range list.Items {
		s := &list.Items[i]
		token := s.Data[corev1.ServiceAccountTokenKey]
		if len(token) > 0 && signerOf(token) == id {
			continue
		}
		names = append(names, s.Namespace+"/"+s.Name)
		if len(token) == 0 {
			continue // the controller manager is about to sign it
		}
		delete(s.Data, corev1.ServiceAccountTokenKey)
		if _, err := c.client.CoreV1().Secrets(s.Namespace).Update(ctx, s, metav1.UpdateOptions{}); err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			return names, fmt.Errorf("have the token of Secret %s/%s signed anew: %w", s.Namespace, s.Name, err)
		}
	}
	return names, nil
}

// keyID is how a token names the key that signed it.
func keyID(public crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return "", fmt.Errorf("key of service accounts: %w", err)
	}
	sum := sha256.Sum256(der)
	return base64.RawURLEncoding.EncodeToString(sum[:]), nil
}

// signerOf is the id of the key that signed a token, empty when it names none.
func signerOf(token []byte) string {
	header, _, _ := bytes.Cut(token, []byte("."))
	text, err := base64.RawURLEncoding.DecodeString(string(header))
	if err != nil {
		return ""
	}
	var says struct {
		Kid string `json:"kid"`
	}
	_ = json.Unmarshal(text, &says) // what is no JSON names none
	return says.Kid
}
