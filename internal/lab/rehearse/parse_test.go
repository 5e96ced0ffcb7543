package rehearse

import "testing"

func TestParseRate(t *testing.T) {
	for text, want := range map[string]int64{"1Gbit": 125e6, "100Mbit/s": 125e5, "64kbit": 8000, "2.5Gbit": 3125e5} {
		if got, err := ParseRate(text); got != want {
			t.Errorf("%s: %d (%v), want %d", text, got, err, want)
		}
	}
}
