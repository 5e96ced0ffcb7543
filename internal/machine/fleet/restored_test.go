package fleet

import (
	"testing"
	"time"

	"coldrack.dev/api/v1alpha1"
)

// TestRestored: nodes whose machine is lost are remembered until the restore is confirmed, and whoever waits for that is woken.
func TestRestored(t *testing.T) {
	f := New(Options{})
	f.UnknownNode("lost", "10.0.0.9", time.Time{})
	if nodes := f.UnknownNodes(); len(nodes) != 0 {
		t.Errorf("without a restore: %v", nodes)
	}
	restored := time.Date(2026, 12, 1, 8, 0, 0, 0, time.UTC)
	f.SetRestored(restored)
	at, changed := f.RestoredAt()
	_, plans := f.Changed("a")
	f.UnknownNode("lost", "10.0.0.9", restored)
	f.UnknownNode("back", "10.0.0.8", restored)
	f.Put(version(expected("back", v1alpha1.Identifiers{}), "", "1"))
	if nodes := f.UnknownNodes(); !at.Equal(restored) || len(nodes) != 1 || nodes[0].Machine != "lost" || nodes[0].Address != "10.0.0.9" || !nodes[0].IssuedAt.Equal(restored) {
		t.Errorf("%v %v", at, nodes)
	}
	for i := range 2 * maxUnknownNodes {
		f.UnknownNode(time.Unix(int64(i), 0).String(), "10.0.0.7", restored)
	}
	if n := len(f.unknownNodes); n != maxUnknownNodes {
		t.Errorf("%d are remembered", n)
	}
	f.SetRestored(time.Time{})
	<-changed
	<-plans
	if at, _ := f.RestoredAt(); !at.IsZero() || len(f.UnknownNodes()) != 0 {
		t.Errorf("after the confirmation: %v %v", at, f.UnknownNodes())
	}
}
