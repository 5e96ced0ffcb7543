package controlplane

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"coldrack.dev/test/ca"
)

// Whoever serves has the door, and the stand-in has it at all other times. The port stays the same.
func TestTheDoorIsNeverClosed(t *testing.T) {
	authority := ca.New(t, "people")
	tokens := OpenTokens(filepath.Join(t.TempDir(), "tokens.json"))
	secret, err := tokens.Create("prometheus", []string{GroupViewer}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	door, err := OpenDoor(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDoor(t.Context(), door.Address()); err == nil || !strings.Contains(err.Error(), "is in use; stop the program that holds it") {
		t.Errorf("a second one on the port: %v", err)
	}
	certificate := authority.Issue(ca.Server("127.0.0.1"))
	ended := make(chan error, 1)
	go func() {
		ended <- door.ServeStandIn(context.Background(), StandIn{
			Certificate: func() (*tls.Certificate, error) { return certificate, nil }, ClientCAs: authority.Pool(), Tokens: tokens,
			Why: func() string { return "it is being looked for" }, MetricsPath: "/m", Log: slog.New(slog.DiscardHandler),
			Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "lost 1") }),
		})
	}()
	client := &http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: authority.Pool()}}}
	ask := func(path, token string) string {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+door.Address()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			request.Header.Set("Authorization", "Bearer "+token)
		}
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%d %s", response.StatusCode, body)
	}
	alone := func() {
		t.Helper()
		for _, q := range []struct{ path, token, want string }{
			{"/livez", "", "200 ok"},
			{"/readyz", "", "503 [-]store failed: reason withheld"},
			{"/readyz", "coldrack-wrong", "503 [-]store failed: reason withheld"},
			{"/readyz", secret, "503 [-]store failed: it is being looked for"},
			{"/m", "", `403 {"kind":"Status"`},
			{"/m", "coldrack-wrong", `401 {"kind":"Status"`},
			{"/m", secret, "200 lost 1"},
			{"/apis", secret, `the store of this server is not there: it is being looked for.`},
		} {
			if said := ask(q.path, q.token); !strings.Contains(said, q.want) {
				t.Errorf("%s says %s; want %s", q.path, said, q.want)
			}
		}
	}
	alone()
	for life := range 2 {
		listener := door.API()
		alone() // it does not serve yet
		server := &http.Server{TLSConfig: &tls.Config{Certificates: []tls.Certificate{*certificate}},
			Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "life %d", life) })}
		served := make(chan error, 1)
		go func() { served <- server.ServeTLS(listener, "", "") }()
		// Its first Accept is a moment after the start.
		for want := fmt.Sprintf("200 life %d", life); ask("/apis", secret) != want; {
			runtime.Gosched()
		}
		_ = server.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
		client.CloseIdleConnections()
		alone()
	}
	if err := door.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", door.Address()); err == nil {
		conn.Close()
		t.Error("the door is closed and answers")
	}
}
