package swarm

import "time"

// Bucket limits a rate: it fills with Rate bytes per second up to Burst, and may be overdrawn once, so that a
// taker of any size gets through. The zero value does not limit.
type Bucket struct {
	Rate  float64 // bytes per second; 0 for no limit
	Burst float64 // bytes that may be taken at once after a pause

	level float64
	at    time.Time
}

// Take takes n bytes and says how long the taker must wait before it uses them. Takers are served in the order
// of their calls.
func (b *Bucket) Take(now time.Time, n int) time.Duration {
	if b.Rate <= 0 {
		return 0
	}
	if b.at.IsZero() {
		b.level, b.at = b.Burst, now
	}
	b.level = min(b.Burst, b.level+b.Rate*now.Sub(b.at).Seconds())
	b.at = now
	b.level -= float64(n)
	if b.level >= 0 {
		return 0
	}
	return time.Duration(-b.level / b.Rate * float64(time.Second))
}
