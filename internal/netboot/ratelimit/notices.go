package ratelimit

import "time"

const (
	noticeEvery = time.Minute
	mostNotices = 1000
)

// Notices says of each subject once a minute that it is due to be told of. It remembers a bounded number, and forgets all of them beyond
// that. The zero value is ready; it is not safe for concurrent use.
type Notices struct {
	told map[string]time.Time
}

// Due is true when nothing was due of the subject for a minute, and counts as having told it.
func (n *Notices) Due(subject string, now time.Time) bool {
	if told, known := n.told[subject]; known && now.Sub(told) < noticeEvery {
		return false
	}
	if n.told == nil {
		n.told = map[string]time.Time{}
	}
	if len(n.told) > mostNotices {
		clear(n.told)
	}
	n.told[subject] = now
	return true
}
