package peopleapi

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"k8s.io/apiserver/pkg/authentication/user"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"
)

func by(name string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	return r.WithContext(apirequest.WithUser(r.Context(), &user.DefaultInfo{Name: name}))
}

func TestLimit(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	handler := Limit{AtOnce: 3, Each: 2}.Around(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		entered <- struct{}{}
		<-leave
	}))
	done := make(chan struct{})
	begin := func(name string) {
		go func() {
			handler.ServeHTTP(httptest.NewRecorder(), by(name))
			done <- struct{}{}
		}()
		<-entered
	}
	refused := func(name, want string) {
		t.Helper()
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, by(name))
		if w.Code != http.StatusTooManyRequests || !strings.Contains(w.Body.String(), want) || w.Header().Get("Retry-After") == "" {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
	}
	begin("vera")
	begin("vera")
	refused("vera", "2 requests of vera")
	begin("otto") // another's requests do not count
	refused("ada", "3 requests are being answered")
	leave <- struct{}{}
	<-done
	begin("ada")
	for range 3 {
		leave <- struct{}{}
		<-done
	}
}

func TestLimitByRate(t *testing.T) {
	handler := Limit{PerMinute: 5}.Around(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	codes := map[string]map[int]int{"vera": {}, "otto": {}}
	for range 100 {
		for name, counts := range codes {
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, by(name))
			counts[w.Code]++
		}
	}
	for name, counts := range codes {
		if n := counts[http.StatusOK]; n < 5 || n > 50 {
			t.Errorf("%s: %v", name, counts)
		}
	}
}
