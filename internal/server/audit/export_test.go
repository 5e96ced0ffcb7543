package audit

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"coldrack.dev/test/ca"
)

// within is how long tests wait for what exports do by themselves.
const within = time.Minute

func eventually(t testing.TB, what func() error) {
	t.Helper()
	for end := time.Now().Add(within); ; time.Sleep(5 * time.Millisecond) {
		err := what()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after %s: %v", within, err)
		}
	}
}

// stamped is a record with a time.
func stamped(n int) []byte {
	return fmt.Appendf(nil, `{"n":%d,"stageTimestamp":"2026-02-03T04:05:06.789012Z"}`, n)
}

// wantSyslog checks one message against RFC 5424.
func wantSyslog(t testing.TB, message string, n int) {
	t.Helper()
	host, err := os.Hostname()
	check(t, err)
	want := fmt.Sprintf("<110>1 2026-02-03T04:05:06.789012Z %s coldrack %d audit - %s", host, os.Getpid(), stamped(n))
	if message != want {
		t.Errorf("got  %s\nwant %s", message, want)
	}
}

func TestSyslogOverDatagrams(t *testing.T) {
	local := filepath.Join(t.TempDir(), "log")
	for name, c := range map[string]struct{ network, address string }{"udp": {"udp", "127.0.0.1:0"}, "unix": {"unixgram", local}} {
		t.Run(name, func(t *testing.T) {
			receiver, err := net.ListenPacket(c.network, c.address)
			check(t, err)
			defer receiver.Close()
			to := "udp://" + receiver.LocalAddr().String()
			if name == "unix" {
				to = "unix://" + local
			}
			l := open(t, Options{File: filepath.Join(t.TempDir(), "audit.log"), MaxBytes: 1 << 20, Export: Export{Syslog: to}})
			for n := range 3 {
				check(t, l.Keep(stamped(n)))
				buffer := make([]byte, 1<<16)
				check(t, receiver.SetReadDeadline(time.Now().Add(within)))
				size, _, err := receiver.ReadFrom(buffer)
				check(t, err)
				wantSyslog(t, string(buffer[:size]), n)
			}
		})
	}
}

// A receiver that restarts gets what was written meanwhile.
// readCounted reads a message with its length before it.
func readCounted(t testing.TB, r *bufio.Reader) string {
	t.Helper()
	length, err := r.ReadString(' ')
	check(t, err)
	size, err := strconv.Atoi(strings.TrimSpace(length))
	check(t, err)
	message := make([]byte, size)
	_, err = io.ReadFull(r, message)
	check(t, err)
	return string(message)
}

func TestSyslogOverTCP(t *testing.T) {
	receiver, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	address := receiver.Addr().String()
	l := open(t, Options{File: filepath.Join(t.TempDir(), "audit.log"), MaxBytes: 1 << 20, Export: Export{Syslog: "tcp://" + address}})
	read := func(receiver net.Listener, from, to int) {
		t.Helper()
		conn, err := receiver.Accept()
		check(t, err)
		defer conn.Close()
		check(t, conn.SetReadDeadline(time.Now().Add(within)))
		for r, n := bufio.NewReader(conn), from; n < to; n++ {
			wantSyslog(t, readCounted(t, r), n)
		}
	}
	check(t, l.Keep(stamped(0)))
	check(t, l.Keep(stamped(1)))
	read(receiver, 0, 2)
	receiver.Close()
	// It is noticed that the receiver has closed the connection before the next record is written into it.
	eventually(t, func() error {
		select {
		case <-l.exports[0].to.(*syslog).gone:
			return nil
		default:
			return fmt.Errorf("the connection seems to be open")
		}
	})
	check(t, l.Keep(stamped(2)))
	eventually(t, func() error {
		if l.Stats().Exports[0].Problem == "" {
			return fmt.Errorf("no problem with a receiver that is gone")
		}
		return nil
	})
	receiver, err = net.Listen("tcp", address)
	check(t, err)
	defer receiver.Close()
	read(receiver, 2, 3)
}

// A receiver with TLS that asks for a certificate gets one, and records; one that nobody vouches for gets none.
func TestSyslogOverTLS(t *testing.T) {
	authority, dir := ca.New(t, "logs"), t.TempDir()
	file := func(name string, content []byte) string {
		check(t, os.WriteFile(filepath.Join(dir, name), content, 0o600))
		return filepath.Join(dir, name)
	}
	cert, key := authority.IssuePEM(ca.Client("coldrack"))
	export := Export{SyslogCAFile: file("ca.pem", authority.PEM()), SyslogCertFile: file("own.pem", cert), SyslogKeyFile: file("own-key.pem", key)}
	listen := func(signer *ca.CA) net.Listener {
		receiver, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{*signer.Issue(ca.Server("127.0.0.1"))},
			ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: authority.Pool()})
		check(t, err)
		t.Cleanup(func() { receiver.Close() })
		return receiver
	}

	receiver := listen(authority)
	export.Syslog = "tls://" + receiver.Addr().String()
	check(t, open(t, Options{File: filepath.Join(dir, "audit.log"), MaxBytes: 1 << 20, Export: export}).Keep(stamped(0)))
	conn, err := receiver.Accept()
	check(t, err)
	defer conn.Close()
	check(t, conn.SetReadDeadline(time.Now().Add(within)))
	wantSyslog(t, readCounted(t, bufio.NewReader(conn)), 0)
	if peer := conn.(*tls.Conn).ConnectionState().PeerCertificates; len(peer) != 1 || peer[0].Subject.CommonName != "coldrack" {
		t.Errorf("the receiver sees %v", peer)
	}

	stranger := listen(ca.New(t, "stranger"))
	go func() {
		for {
			conn, err := stranger.Accept()
			if err != nil {
				return
			}
			if n, err := conn.Read(make([]byte, 1)); err == nil {
				t.Errorf("%d bytes for a stranger", n)
			}
			conn.Close()
		}
	}()
	export.Syslog = "tls://" + stranger.Addr().String()
	l := open(t, Options{File: filepath.Join(dir, "audit2.log"), MaxBytes: 1 << 20, Export: export})
	check(t, l.Keep(stamped(0)))
	eventually(t, func() error {
		if problem := l.Stats().Exports[0].Problem; !strings.Contains(problem, "unknown authority") {
			return fmt.Errorf("the problem with a stranger is %q", problem)
		}
		return nil
	})
}

func TestSyslogMessagesAreNotTooLong(t *testing.T) {
	long := strings.Repeat("ä", 3000)
	for name, text := range map[string]string{
		"body": fmt.Sprintf(`{"auditID":"1","verb":"create","requestObject":{"x":%q},"annotations":{"a":"b"}}`, long+long),
		"uri":  fmt.Sprintf(`{"auditID":"1","verb":"create","user":{"username":"ada","groups":["x"]},"requestURI":%q}`, long+long),
	} {
		short := shorten([]byte(text), 4000)
		var fields map[string]any
		check(t, json.Unmarshal(short, &fields))
		if len(short) > 4000 || fields["verb"] != "create" || fields["annotations"].(map[string]any)[truncated] != "true" {
			t.Errorf("%s: %d bytes: %s", name, len(short), short)
		}
	}
	if text := `{"a":1}`; string(shorten([]byte(text), 100)) != text {
		t.Error("a short record was changed")
	}
}

// hook is a receiver of a webhook.
type hook struct {
	mu     sync.Mutex
	got    []int
	tokens map[string]bool
	answer func(items []int) int
}

func (h *hook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var list struct {
		Kind, APIVersion string
		Items            []struct{ N int }
	}
	if err := json.NewDecoder(r.Body).Decode(&list); err != nil || list.Kind != "EventList" || list.APIVersion != "audit.k8s.io/v1" {
		http.Error(w, fmt.Sprint(err, list.Kind), http.StatusTeapot)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var items []int
	for _, i := range list.Items {
		items = append(items, i.N)
	}
	if h.answer != nil {
		if code := h.answer(items); code != http.StatusOK {
			http.Error(w, "no", code)
			return
		}
	}
	h.tokens[r.Header.Get("Authorization")] = true
	h.got = append(h.got, items...)
}

func (h *hook) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.got)
}

func TestWebhook(t *testing.T) {
	receiver := &hook{tokens: map[string]bool{}}
	// The first request fails; a record that the receiver never takes is left out, and no other.
	failed := false
	receiver.answer = func(items []int) int {
		for _, n := range items {
			switch {
			case !failed:
				failed = true
				return http.StatusServiceUnavailable
			case n == 7:
				return http.StatusBadRequest
			}
		}
		return http.StatusOK
	}
	server := httptest.NewTLSServer(receiver)
	defer server.Close()
	dir := t.TempDir()
	ca, token := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "token")
	check(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	check(t, os.WriteFile(token, []byte("t0p\n"), 0o600))
	l := open(t, Options{File: filepath.Join(dir, "audit.log"), MaxBytes: 1 << 20, Export: Export{Webhook: server.URL + "/hook?key=hidden", WebhookCAFile: ca, WebhookTokenFile: token}})
	for n := range 300 {
		check(t, l.Keep(record(n)))
	}
	eventually(t, func() error {
		if n := receiver.count(); n != 299 {
			return fmt.Errorf("%d records of 299", n)
		}
		return nil
	})
	for i, n := range receiver.got {
		if want := i + min(1, i/7); n != want {
			t.Fatalf("record %d is %d, want %d", i, n, want)
		}
	}
	if !receiver.tokens["Bearer t0p"] || len(receiver.tokens) != 1 {
		t.Errorf("tokens: %v", receiver.tokens)
	}
	eventually(t, func() error {
		if s := l.Stats().Exports[0]; s.Sent != 299 || s.Dropped != 1 || s.Queued != 0 || strings.Contains(s.To, "hidden") {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
}

func TestAWebhookThatIsNotTrustedGetsNothing(t *testing.T) {
	receiver := &hook{tokens: map[string]bool{}}
	server := httptest.NewUnstartedServer(receiver)
	server.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	server.Config.ErrorLog = nil
	server.StartTLS()
	defer server.Close()
	l := open(t, Options{File: filepath.Join(t.TempDir(), "audit.log"), MaxBytes: 1 << 20, Export: Export{Webhook: server.URL}})
	check(t, l.Keep(record(1)))
	eventually(t, func() error {
		if s := l.Stats().Exports[0]; !strings.Contains(s.Problem, "certificate") {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	if n := receiver.count(); n != 0 {
		t.Errorf("it got %d records", n)
	}
}

// A receiver that takes connections and never answers costs a bounded queue, and no writer's time.
func TestAReceiverThatHangs(t *testing.T) {
	receiver, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer receiver.Close()
	l := open(t, Options{File: filepath.Join(t.TempDir(), "audit.log"), MaxBytes: 1 << 30, Export: Export{Webhook: "http://" + receiver.Addr().String()}})
	const more = 500
	for n := range maxQueued + more {
		check(t, l.Keep(record(n)))
	}
	if s := l.Stats(); s.Exports[0].Dropped != more || s.Exports[0].Queued != maxQueued || s.Kept != maxQueued+more {
		t.Errorf("%+v", s)
	}
}

func TestExportsThatCannotWork(t *testing.T) {
	for _, e := range []Export{
		{Syslog: "127.0.0.1:514"}, {Syslog: "http://x"}, {Syslog: "udp://"}, {Syslog: "unix://relative"}, {Syslog: "tcp://x/path"},
		{Syslog: "tls://"}, {Syslog: "tcp://x", SyslogCAFile: "x"}, {Syslog: "tls://x", SyslogCertFile: "x"}, {Syslog: "tls://x", SyslogCAFile: "/nowhere"}, {SyslogKeyFile: "x"},
		{Webhook: "file:///x"}, {Webhook: "https://"}, {WebhookCAFile: "x"}, {WebhookTokenFile: "x"},
	} {
		if len(e.Validate()) != 1 && e.SyslogCAFile != "/nowhere" {
			t.Errorf("%+v was taken: %v", e, e.Validate())
		}
		if _, err := Open(Options{Export: e}); err == nil {
			t.Errorf("%+v was opened", e)
		}
	}
	for _, text := range []string{"udp://log.example.org", "tcp://[2001:db8::1]:6514", "unix:///dev/log", "tls://log.example.org"} {
		if wrong := (Export{Syslog: text}).Validate(); len(wrong) != 0 {
			t.Errorf("%s: %v", text, wrong)
		}
	}
}
