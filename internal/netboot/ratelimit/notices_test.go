package ratelimit

import (
	"fmt"
	"testing"
	"time"
)

func TestNotices(t *testing.T) {
	var n Notices
	now := time.Unix(1e9, 0)
	for _, step := range []struct {
		subject string
		after   time.Duration
		want    bool
	}{{"a", 0, true}, {"a", 0, false}, {"b", 0, true}, {"a", noticeEvery - 1, false}, {"a", 1, true}, {"a", 1, false}} {
		now = now.Add(step.after)
		if n.Due(step.subject, now) != step.want {
			t.Errorf("%s at %s: %t", step.subject, now, !step.want)
		}
	}
	for i := range 10 * mostNotices {
		n.Due(fmt.Sprint(i), now)
	}
	if len(n.told) > mostNotices+1 {
		t.Errorf("%d are remembered", len(n.told))
	}
}
