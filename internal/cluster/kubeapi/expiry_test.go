package kubeapi

import (
	"strings"
	"testing"
	"time"
)

func TestCertificatesThatShouldHaveBeenRenewed(t *testing.T) {
	const day = 24 * time.Hour
	for name, test := range map[string]struct {
		left, life time.Duration
		want       string
	}{
		"a kubelet's, before the last moment at which it renews": {left: 37 * day, life: 365 * day},
		"after that moment":        {left: 30 * day, life: 365 * day, want: "should have been renewed"},
		"short lives":              {left: 3 * time.Hour, life: 24 * time.Hour},
		"short lives, late":        {left: time.Hour, life: 24 * time.Hour, want: "should have been renewed"},
		"a life that is not known": {left: time.Hour},
		"expired":                  {left: -time.Hour, life: 365 * day, want: "see the agent's log"},
	} {
		detail, err := expiry(map[string]time.Time{"first to expire": time.Now().Add(test.left), "other": time.Now().Add(900 * day)}, test.life)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %q, error %v, want %q", name, detail, err, test.want)
		}
	}
}
