package peopleapi

import (
	"fmt"
	"net/http"
	"sync"

	"golang.org/x/time/rate"

	"coldrack.dev/internal/server/controlplane"
)

// Limit bounds what people may ask of one handler. The zero value of a field sets no bound.
type Limit struct {
	// AtOnce is how many requests are answered at the same time, Each how many of those of one person.
	AtOnce, Each int
	// PerMinute is how many requests one person may make in a minute, after as many at once.
	PerMinute int
}

// maxRemembered bounds the people whose rate is remembered.
const maxRemembered = 1000

// Around answers 429 to requests beyond the limit.
func (l Limit) Around(handler http.Handler) http.Handler {
	s := &inFlight{limit: l, of: map[string]int{}, rates: map[string]*rate.Limiter{}}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := controlplane.PersonOf(r).Name
		if refused := s.begin(name); refused != "" {
			w.Header().Set("Retry-After", "1")
			http.Error(w, refused, http.StatusTooManyRequests)
			return
		}
		defer s.end(name)
		handler.ServeHTTP(w, r)
	})
}

type inFlight struct {
	limit Limit

	mu    sync.Mutex
	all   int
	of    map[string]int
	rates map[string]*rate.Limiter
}

// begin counts a request, or says why it is refused.
func (s *inFlight) begin(name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.limit.Each > 0 && s.of[name] >= s.limit.Each:
		return fmt.Sprintf("%d requests of %s are being answered here, which is as many as one person may have; try again when one has ended", s.limit.Each, name)
	case s.limit.AtOnce > 0 && s.all >= s.limit.AtOnce:
		return fmt.Sprintf("%d requests are being answered here, which is as many as there may be; try again in a moment", s.limit.AtOnce)
	case s.limit.PerMinute > 0 && !s.rate(name).Allow():
		return fmt.Sprintf("%s may ask %d times a minute here; try again in a moment", name, s.limit.PerMinute)
	}
	s.all++
	s.of[name]++
	return ""
}

func (s *inFlight) rate(name string) *rate.Limiter {
	if s.rates[name] == nil {
		if len(s.rates) >= maxRemembered {
			clear(s.rates)
		}
		s.rates[name] = rate.NewLimiter(rate.Limit(float64(s.limit.PerMinute)/60), s.limit.PerMinute)
	}
	return s.rates[name]
}

func (s *inFlight) end(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all--
	if s.of[name]--; s.of[name] == 0 {
		delete(s.of, name)
	}
}
