package httpboot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"coldrack.dev/test/require"
)

// store is both Content and FS, over a directory.
type store struct{ dir string }

func (s store) OpenBlob(_ context.Context, digest string) (File, error) {
	return os.Open(filepath.Join(s.dir, digest))
}

func (s store) Open(_ context.Context, name string, _ netip.AddrPort) (File, error) {
	switch name {
	case "secret":
		return nil, fs.ErrPermission
	case "broken":
		return nil, errors.New("disk /dev/sdx on fire")
	}
	return os.Open(filepath.Join(s.dir, name))
}

func (s store) put(t testing.TB, data []byte) (digest string) {
	t.Helper()
	sum := sha256.Sum256(data)
	digest = hex.EncodeToString(sum[:])
	if err := os.WriteFile(filepath.Join(s.dir, digest), data, 0o644); err != nil {
		t.Fatal(err)
	}
	return digest
}

type scriptsFunc func(context.Context, Query) (string, error)

func (f scriptsFunc) BootScript(ctx context.Context, q Query) (string, error) { return f(ctx, q) }

// serve runs a server on loopback until the test ends.
func serve(t testing.TB, options Options) (base string, server *Server) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, listener, options)
}

func serveOn(t testing.TB, listener net.Listener, options Options) (string, *Server) {
	t.Helper()
	if options.Drain == 0 {
		options.Drain = time.Millisecond
	}
	server := New(options)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return "http://" + listener.Addr().String(), server
}

func content(size int) []byte {
	b := make([]byte, size)
	source := rand.NewChaCha8([32]byte{1})
	source.Read(b)
	return b
}

// raw sends a request as it stands and returns the answer; no client library smooths it.
func raw(t testing.TB, base, request string) (*http.Response, string) {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	io.WriteString(conn, request)
	all, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	head, body, _ := strings.Cut(string(all), "\r\n\r\n")
	lines := strings.Split(head, "\r\n")
	response := &http.Response{Status: strings.TrimPrefix(lines[0], "HTTP/1.1 "), Header: http.Header{}}
	for _, line := range lines[1:] {
		key, value, _ := strings.Cut(line, ": ")
		response.Header.Add(key, value)
	}
	return response, body
}

func TestAnswers(t *testing.T) {
	files := store{t.TempDir()}
	data := content(100_000)
	digest := files.put(t, data)
	if err := os.WriteFile(filepath.Join(files.dir, "snponly.efi"), []byte("MZ"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(files.dir, "folder"), 0o755); err != nil {
		t.Fatal(err)
	}
	base, _ := serve(t, Options{
		Files: files, Content: files,
		Now: func() time.Time { return time.Date(2026, 3, 4, 5, 6, 7, 8, time.FixedZone("", 3600)) },
		Scripts: scriptsFunc(func(_ context.Context, q Query) (string, error) {
			if q.Serial == "unlucky" {
				return "", errors.New("etcd at 10.0.0.1 is away")
			}
			return fmt.Sprintf("#!ipxe\necho %v %s from %s\n", q.MACs, q.Serial, q.Remote.Addr()), nil
		}),
	})
	blob := "/content/sha256/" + digest
	tests := []struct {
		name, method, path, headers string
		status, body                string
		header                      map[string]string
	}{
		{"the first script", "GET", "/boot.ipxe", "", "200 OK", ChainScript(), map[string]string{"Content-Type": "text/plain; charset=utf-8"}},
		{"a machine's script", "GET", "/boot/ipxe?mac=52:54:00:12:34:56&serial=A%20b", "", "200 OK",
			"#!ipxe\necho [52:54:00:12:34:56] A b from 127.0.0.1\n", map[string]string{"Cache-Control": "no-store"}},
		{"a script asked for with a wrong MAC", "GET", "/boot/ipxe?mac=x", "", "400 Bad Request",
			"mac: \"x\" is not a MAC address, such as 52:54:00:12:34:56\n", nil},
		{"a script that cannot be told says nothing of the inside", "GET", "/boot/ipxe?serial=unlucky", "", "503 Service Unavailable",
			"the server cannot tell now, ask again\n", map[string]string{"Retry-After": "5"}},
		{"the time is UTC", "GET", "/time", "", "200 OK", "2026-03-04T04:06:07.000000008Z\n", nil},
		{"health", "GET", "/healthz", "", "200 OK", "ok\n", nil},
		{"a blob", "GET", blob, "", "200 OK", string(data), map[string]string{
			"Etag": `"sha256:` + digest + `"`, "Cache-Control": "public, max-age=31536000, immutable",
			"Content-Length": "100000", "Accept-Ranges": "bytes"}},
		{"a blob's head", "HEAD", blob, "", "200 OK", "", map[string]string{"Content-Length": "100000"}},
		{"a range in the middle", "GET", blob, "Range: bytes=500-599\r\n", "206 Partial Content", string(data[500:600]),
			map[string]string{"Content-Range": "bytes 500-599/100000"}},
		{"the rest from an offset", "GET", blob, "Range: bytes=99990-\r\n", "206 Partial Content", string(data[99990:]), nil},
		{"the last bytes", "GET", blob, "Range: bytes=-7\r\n", "206 Partial Content", string(data[99993:]), nil},
		{"a range beyond the end", "GET", blob, "Range: bytes=100000-\r\n", "416 Requested Range Not Satisfiable", "", nil},
		{"a resumed download of the same blob", "GET", blob, "Range: bytes=99999-\r\nIf-Range: \"sha256:" + digest + "\"\r\n",
			"206 Partial Content", string(data[99999:]), nil},
		{"a blob one has already", "GET", blob, "If-None-Match: \"sha256:" + digest + "\"\r\n", "304 Not Modified", "", nil},
		{"a blob that is not there", "GET", "/content/sha256/" + strings.Repeat("0", 64), "", "404 Not Found", "no such file\n",
			map[string]string{"Cache-Control": ""}},
		{"a digest that is none", "GET", "/content/sha256/abc", "", "400 Bad Request", "a digest is 64 lower-case hexadecimal digits\n", nil},
		{"a digest in upper case", "GET", strings.ToUpper(blob), "", "404 Not Found", "no such file\n", nil},
		{"a first stage", "GET", "/snponly.efi", "", "200 OK", "MZ", map[string]string{"Content-Type": "application/efi"}},
		{"a first stage with firmware's slashes", "GET", `//\snponly.efi`, "", "200 OK", "MZ", nil},
		{"climbing out", "GET", "/../../../../etc/passwd", "", "404 Not Found", "no such file\n", nil},
		{"climbing out, escaped", "GET", "/%2e%2e/%2e%2e/etc/passwd", "", "404 Not Found", "no such file\n", nil},
		{"climbing out of the content", "GET", "/content/sha256/../../../etc/passwd", "", "404 Not Found", "no such file\n", nil},
		{"a folder", "GET", "/folder", "", "404 Not Found", "no such file\n", nil},
		{"the top", "GET", "/", "", "404 Not Found", "no such file\n", nil},
		{"a forbidden file", "GET", "/secret", "", "403 Forbidden", "access denied\n", nil},
		{"trouble of the server's own says nothing of the inside", "GET", "/broken", "", "500 Internal Server Error", "the server cannot read it\n", nil},
		{"a write", "PUT", "/snponly.efi", "", "405 Method Not Allowed", "this server only reads: GET or HEAD\n", map[string]string{"Allow": "GET, HEAD"}},
		{"a body", "GET", "/time", "Content-Length: 5\r\n", "400 Bad Request", "a request here has no body\n", nil},
		{"a body without a length", "GET", "/time", "Transfer-Encoding: chunked\r\n", "400 Bad Request", "a request here has no body\n", nil},
		{"a URL beyond reason", "GET", "/boot/ipxe?serial=" + strings.Repeat("x", 10_000), "", "414 Request URI Too Long", "the URL is too long\n", nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			response, body := raw(t, base, test.method+" "+test.path+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"+test.headers+"\r\n")
			if response.Status != test.status {
				t.Errorf("status %s, want %s", response.Status, test.status)
			}
			if test.status[0] != '4' || test.body != "" {
				if body != test.body {
					t.Errorf("body of %d bytes %.100q, want %d bytes %.100q", len(body), body, len(test.body), test.body)
				}
			}
			for key, want := range test.header {
				if got := response.Header.Get(key); got != want {
					t.Errorf("%s: %q, want %q", key, got, want)
				}
			}
		})
	}
}

func TestAServerWithNothingToGive(t *testing.T) {
	base, _ := serve(t, Options{Ready: func() error { return errors.New("no bundle") }})
	for path, want := range map[string]string{
		"/healthz":   "503 Service Unavailable",
		"/x":         "404 Not Found",
		"/boot/ipxe": "503 Service Unavailable",
		"/content/sha256/" + strings.Repeat("0", 64): "404 Not Found",
	} {
		if response, _ := raw(t, base, "GET "+path+" HTTP/1.0\r\n\r\n"); !strings.HasSuffix(response.Status, want) {
			t.Errorf("%s: %s, want %s", path, response.Status, want)
		}
	}
}

func TestFilesInMemoryAreServedToo(t *testing.T) {
	mapped := fstest.MapFS{"a/b": &fstest.MapFile{Data: []byte("hello")}}
	base, _ := serve(t, Options{Files: fsFunc(func(name string) (File, error) {
		file, err := mapped.Open(name)
		if err != nil {
			return nil, err
		}
		return struct{ File }{file.(File)}, nil // without Seek
	})})
	response, body := raw(t, base, "GET /a/b HTTP/1.1\r\nHost: x\r\nRange: bytes=1-2\r\nConnection: close\r\n\r\n")
	if response.Status != "206 Partial Content" || body != "el" {
		t.Errorf("%s %q", response.Status, body)
	}
}

type fsFunc func(string) (File, error)

func (f fsFunc) Open(_ context.Context, name string, _ netip.AddrPort) (File, error) { return f(name) }

// spy notes from what a connection is asked to send: sendfile(2) happens only for an *os.File.
type spy struct {
	net.Listener
	mu      sync.Mutex
	sources []string
}

type spied struct {
	*net.TCPConn
	spy *spy
}

func (s *spy) Accept() (net.Conn, error) {
	conn, err := s.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return spied{conn.(*net.TCPConn), s}, nil
}

func (s spied) ReadFrom(r io.Reader) (int64, error) {
	source := fmt.Sprintf("%T", r)
	if l, ok := r.(*io.LimitedReader); ok {
		source = fmt.Sprintf("%T", l.R)
	}
	s.spy.mu.Lock()
	s.spy.sources = append(s.spy.sources, source)
	s.spy.mu.Unlock()
	return s.TCPConn.ReadFrom(r)
}

func TestBlobsAreSentByTheKernel(t *testing.T) {
	files := store{t.TempDir()}
	data := content(3 << 20)
	digest := files.put(t, data)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	watch := &spy{Listener: listener}
	reports := make(chan Transfer, 1)
	base, server := serveOn(t, watch, Options{Content: files, OnTransfer: func(r Transfer) { reports <- r }})
	_, body := raw(t, base, "GET /content/sha256/"+digest+" HTTP/1.0\r\n\r\n")
	if body != string(data) {
		t.Fatalf("%d bytes", len(body))
	}
	watch.mu.Lock()
	defer watch.mu.Unlock()
	if len(watch.sources) < 3<<20/stretch {
		t.Errorf("sources %v", watch.sources)
	}
	for _, source := range watch.sources {
		if source != "*os.File" {
			t.Errorf("sent from a %s", source)
		}
	}
	if report := <-reports; report.Bytes != int64(len(data)) || report.Err != nil || report.Status != 200 || !report.Remote.IsValid() {
		t.Errorf("report %+v", report)
	}
	if stats := server.Stats(); stats.Bytes != uint64(len(data)) || stats.Requests != 1 {
		t.Errorf("stats %+v", stats)
	}
}

// What is paced arrives whole and no faster than it should, from files and from memory, and is told of.
func TestPace(t *testing.T) {
	files := store{t.TempDir()}
	data := content(400 << 10)
	digest := files.put(t, data)
	var taken atomic.Int32
	base, _ := serve(t, Options{Content: files, Files: fsFunc(func(name string) (File, error) {
		file, err := fstest.MapFS{"kernel": &fstest.MapFile{Data: data}}.Open(name)
		if err != nil {
			return nil, err
		}
		return struct{ File }{file.(File)}, nil
	}), Pace: 1 << 20, Taking: func(client netip.Addr) {
		if !client.IsLoopback() {
			t.Errorf("%s takes something", client)
		}
		taken.Add(1)
	}})
	for _, path := range []string{"/content/sha256/" + digest, "/kernel"} {
		taken.Store(0)
		began := time.Now()
		_, body := raw(t, base, "GET "+path+" HTTP/1.0\r\n\r\n")
		if took := time.Since(began); took < 300*time.Millisecond { // 390 ms at 1 MiB/s
			t.Errorf("%s: %d bytes in %s", path, len(body), took)
		}
		if body != string(data) {
			t.Errorf("%s: %d bytes, and not those", path, len(body))
		}
		if n := taken.Load(); n < 4 {
			t.Errorf("%s: told %d times that somebody takes it", path, n)
		}
	}
	if _, body := raw(t, base, "GET /healthz HTTP/1.0\r\n\r\n"); body == "" {
		t.Error("no answer")
	}
}

func TestAClientThatTakesNothingIsCutOff(t *testing.T) {
	files := store{t.TempDir()}
	digest := files.put(t, nil)
	if err := os.Truncate(filepath.Join(files.dir, digest), 256<<20); err != nil {
		t.Fatal(err)
	}
	reports := make(chan Transfer, 1)
	base, _ := serve(t, Options{Content: files, StallTimeout: 50 * time.Millisecond, OnTransfer: func(r Transfer) { reports <- r }})
	conn, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET /content/sha256/"+digest+" HTTP/1.1\r\nHost: x\r\n\r\n")
	select {
	case report := <-reports:
		if !errors.Is(report.Err, os.ErrDeadlineExceeded) {
			t.Errorf("report %+v", report)
		}
	case <-time.After(time.Minute):
		t.Fatal("the answer is never ended")
	}
}

func TestOneClientCannotTakeAllConnections(t *testing.T) {
	base, server := serve(t, Options{MaxConnsPerClient: 3})
	for range 3 {
		conn, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, "GET /time HTTP/1.1\r\nHost: x\r\n\r\n")
		conn.Read(make([]byte, 100))
	}
	conn, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	if n, err := conn.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the fourth connection: %d, %v", n, err)
	}
	if stats := server.Stats(); stats.TooMany != 1 || stats.Conns != 3 {
		t.Errorf("stats %+v", stats)
	}
	// Another address is not concerned.
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	other, err := dialer.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	io.WriteString(other, "GET /healthz HTTP/1.0\r\n\r\n")
	if all, _ := io.ReadAll(other); !bytes.Contains(all, []byte("ok\n")) {
		t.Errorf("%q", all)
	}
}

func TestConnectionsAboveTheLimitWaitForAPlace(t *testing.T) {
	base, _ := serve(t, Options{MaxConns: 1})
	first, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(first, "GET /time HTTP/1.1\r\nHost: x\r\n\r\n")
	first.Read(make([]byte, 100))
	second, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	io.WriteString(second, "GET /healthz HTTP/1.0\r\n\r\n")
	first.Close()
	if all, _ := io.ReadAll(second); !bytes.Contains(all, []byte("ok\n")) {
		t.Errorf("%q", all)
	}
}

func TestRunningAnswersMayFinishWhenTheServerStops(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan struct{})
	listener := &closing{Listener: tcp, tell: sync.OnceFunc(func() { close(closed) })}
	ctx, cancel := context.WithCancel(context.Background())
	server := New(Options{Drain: time.Minute, Scripts: scriptsFunc(func(context.Context, Query) (string, error) {
		cancel()
		<-closed
		return "#!ipxe\n", nil
	})})
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, listener) }()
	if _, body := raw(t, "http://"+listener.Addr().String(), "GET /boot/ipxe HTTP/1.1\r\nHost: x\r\n\r\n"); body != "#!ipxe\n" {
		t.Errorf("body %q", body)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// closing tells when a listener is closed.
type closing struct {
	net.Listener
	tell func()
}

func (c *closing) Close() error {
	defer c.tell()
	return c.Listener.Close()
}

func TestCurlResumesADownload(t *testing.T) {
	require.Need(t, "curl")
	files := store{t.TempDir()}
	data := content(2 << 20)
	digest := files.put(t, data)
	base, _ := serve(t, Options{Content: files})
	out := filepath.Join(t.TempDir(), "out")
	if err := os.WriteFile(out, data[:700_000], 0o644); err != nil {
		t.Fatal(err)
	}
	if printed, err := exec.Command("curl", "-sSf", "-C", "-", "-o", out, base+"/content/sha256/"+digest).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, printed)
	}
	if got, _ := os.ReadFile(out); !bytes.Equal(got, data) {
		t.Errorf("%d bytes differ", len(got))
	}
}

func TestTheChainScriptAsksOnlyForWhatTheServerKnows(t *testing.T) {
	_, after, ok := strings.Cut(ChainScript(), "/boot/ipxe?")
	query, _, _ := strings.Cut(after, " ")
	if !ok {
		t.Fatal("no query")
	}
	for _, parameter := range strings.Split(query, "&") {
		name, value, _ := strings.Cut(parameter, "=")
		if !strings.HasPrefix(value, "${") {
			t.Errorf("%s asks for %s", name, value)
		}
		// A word is wrong for every field that is checked, and kept by every other.
		q, err := ParseQuery(name + "=no%21")
		if err == nil && q.Serial+q.Manufacturer+q.Product+q.Asset == "" {
			t.Errorf("%s is not known to ParseQuery", name)
		}
	}
}
