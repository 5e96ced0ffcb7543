package kubeapi

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"coldrack.dev/internal/kube"
)

// Digest of a list of objects, in its order.
func Digest(objects []kube.Object) string {
	digest := sha256.New()
	for _, o := range objects {
		fmt.Fprintf(digest, "%s %s %s %d\n", o.Kind, o.Namespace, o.Name, len(o.Content))
		digest.Write(o.Content)
	}
	return "sha256:" + hex.EncodeToString(digest.Sum(nil))
}
