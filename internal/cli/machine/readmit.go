package machine

import (
	"context"
	"strings"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cli/exit"
)

// Readmit asks that the key with this fingerprint be the machine's identity in place of the recorded one.
func Readmit(ctx context.Context, c client.Client, m *v1alpha1.Machine, key string) error {
	_, err := update(ctx, c, m, func(m *v1alpha1.Machine) error { return readmit(m, key) })
	return err
}

// readmit takes only the key that the server refused last, so that a person has compared what the node says with what the server saw.
func readmit(m *v1alpha1.Machine, key string) error {
	if !strings.HasPrefix(key, "sha256:") {
		key = "sha256:" + key
	}
	identity, refused := m.Status.Identity, m.Status.KeyRefused
	switch {
	case identity == nil && refused == nil:
		return exit.Refusedf("machine %s has no identity, and no node has shown one for it", m.Name)
	case identity != nil && identity.KeyFingerprint == key:
		return exit.Refusedf("key %s is the identity of machine %s already", key, m.Name)
	case refused == nil:
		return exit.Refusedf("no key was refused for machine %s; if the server was restarted a moment ago, wait for the node's next report", m.Name)
	case refused.KeyFingerprint != key:
		return exit.Refusedf("the node at %s shows key %s, not %s; compare it with \"coldrack-agent fingerprint\" on the node", refused.From, refused.KeyFingerprint, key)
	}
	if m.Annotations == nil {
		m.Annotations = map[string]string{}
	}
	m.Annotations[v1alpha1.AnnotationReadmit] = m.ReadmitValue(key)
	return nil
}
