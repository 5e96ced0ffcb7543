package cli

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
)

func TestRotationText(t *testing.T) {
	at := metav1.NewTime(time.Date(2026, 11, 30, 9, 0, 0, 0, time.UTC))
	wanted := &v1alpha1.ClusterRotation{Key: v1alpha1.RotateEncryption, ID: "2"}
	for name, test := range map[string]struct {
		wanted *v1alpha1.ClusterRotation
		is     *v1alpha1.RotationStatus
		want   string
	}{
		"never": {nil, nil, "no key of cluster lab was ever rotated\n"},
		"wanted": {wanted, nil, `the rotation of encryption is wanted and has not begun
blocked: worker-2: it does not answer; bring it back
`},
		"in hand": {wanted, &v1alpha1.RotationStatus{Key: v1alpha1.RotateEncryption, ID: "2", Stage: v1alpha1.RotationSwap, Since: at, StartedAt: at, RequestedBy: "anna@desk",
			Rewritten: 200, Secrets: 650, Message: "200 of 650 Secrets are written with the key"}, `encryption: Swap since 2026-11-30 09:00:00: everything is made with the new key; the old one is still accepted
begun at 2026-11-30 09:00:00 by anna@desk
Secrets written with the key: 200 of 650
waits: 200 of 650 Secrets are written with the key
blocked: worker-2: it does not answer; bring it back
`},
		"at its end": {nil, &v1alpha1.RotationStatus{Key: v1alpha1.RotateServiceAccount, ID: "1", Stage: v1alpha1.RotationDone, Since: at, StartedAt: at, Tokens: []string{"ci/robot"}},
			`service-account: Done since 2026-11-30 09:00:00: only the new key is there
begun at 2026-11-30 09:00:00
tokens signed anew, of which copies elsewhere end with the old key: ci/robot
`},
	} {
		c := &v1alpha1.Cluster{ObjectMeta: metav1.ObjectMeta{Name: "lab"}, Spec: v1alpha1.ClusterSpec{Rotation: test.wanted}}
		c.Status.Rotation, c.Status.Work = test.is, &v1alpha1.ClusterWork{Blocks: []string{"worker-2: it does not answer; bring it back"}}
		if got := RotationText(c); got != test.want {
			t.Errorf("%s:\n%s\nwant\n%s", name, got, test.want)
		}
	}
}
