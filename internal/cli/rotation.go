package cli

import (
	"fmt"
	"strings"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/termtext"
)

// Rotation is how far the rotation of a cluster's key is.
type Rotation struct {
	Cluster string `json:"cluster"`
	// Wanted is one that has not ended.
	Wanted   *v1alpha1.ClusterRotation `json:"wanted,omitempty"`
	Rotation *v1alpha1.RotationStatus  `json:"rotation,omitempty"`
	// Blocks need a person.
	Blocks []string `json:"blocks,omitempty"`
}

// RotationOf a cluster, for programs.
func RotationOf(c *v1alpha1.Cluster) Rotation {
	r := Rotation{Cluster: c.Name, Wanted: c.WantedRotation(), Rotation: c.Status.Rotation}
	if w := c.Status.Work; w != nil && (r.Wanted != nil || c.Status.OpenRotation() != nil) {
		r.Blocks = w.Blocks
	}
	return r
}

// stages of a rotation, in order, in words.
var stages = map[v1alpha1.RotationStage]string{
	v1alpha1.RotationAccept:    "every node learns to accept the new key",
	v1alpha1.RotationPublish:   "the cluster's own pods start anew with the new authority",
	v1alpha1.RotationSwap:      "everything is made with the new key; the old one is still accepted",
	v1alpha1.RotationDrop:      "the old key is accepted no longer",
	v1alpha1.RotationReturn:    "it is taken back: everything is made with the old key again",
	v1alpha1.RotationUndo:      "it is taken back: the new key is accepted no longer",
	v1alpha1.RotationDone:      "only the new key is there",
	v1alpha1.RotationTakenBack: "only the old key is there",
}

// RotationText is the same for people.
func RotationText(c *v1alpha1.Cluster) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintln(&b, termtext.Line(fmt.Sprintf(format, args...), 500)) }
	r := RotationOf(c)
	is := r.Rotation
	if wanted := r.Wanted; wanted != nil && (is == nil || is.ID != wanted.ID) {
		line("the rotation of %s is wanted and has not begun", wanted.Key)
	} else if is == nil {
		line("no key of cluster %s was ever rotated", c.Name)
	}
	if is != nil {
		line("%s: %s since %s: %s", is.Key, is.Stage, is.Since.UTC().Format(time.DateTime), stages[is.Stage])
		line("begun at %s%s", is.StartedAt.UTC().Format(time.DateTime), after(" by ", is.RequestedBy))
		if is.Secrets > 0 {
			line("Secrets written with the key: %d of %d", is.Rewritten, is.Secrets)
		}
		if len(is.Tokens) > 0 {
			line("tokens signed anew, of which copies elsewhere end with the old key: %s", strings.Join(is.Tokens, ", "))
		}
		if is.Message != "" && !is.Stage.Ended() {
			line("waits: %s", is.Message)
		}
	}
	for _, text := range r.Blocks {
		line("blocked: %s", text)
	}
	return b.String()
}
