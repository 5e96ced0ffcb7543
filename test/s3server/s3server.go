// Package s3server runs a real S3 server for tests: versitygw on a folder, behind a relay that keeps its address while the server is away, and
// that can cut connections.
package s3server

import (
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"coldrack.dev/test/ca"
	"coldrack.dev/test/require"
)

// Server is one that a test has started.
type Server struct {
	// URL is its address, with TLS by an authority of the test's own.
	URL *url.URL
	// CA is that authority, PEM.
	CA []byte
	// AccessKey and SecretKey may do everything.
	AccessKey, SecretKey string
	// Dir holds a folder for each bucket, in which each object is a file.
	Dir string

	t       testing.TB
	scratch string
	socket  string
	process *exec.Cmd
	limit   atomic.Pointer[limit] // nil: everything comes through
}

// Bucket is one that there is from the beginning.
const Bucket = "backups"

// New starts a server with a bucket. It ends with the test.
func New(t testing.TB) *Server {
	t.Helper()
	return NewIn(t, func(f func() error) error { return f() })
}

// NewIn is New for a server whose address is where within runs a function, such as a network namespace.
func NewIn(t testing.TB, within func(func() error) error) *Server {
	t.Helper()
	require.Need(t, "versitygw")
	// Names of sockets must be short.
	scratch, err := os.MkdirTemp("", "s3")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(scratch) })
	s := &Server{t: t, AccessKey: "coldrack", SecretKey: "secret-of-the-test", scratch: scratch, Dir: filepath.Join(scratch, "data"), socket: filepath.Join(scratch, "socket")}
	for _, dir := range []string{filepath.Join(s.Dir, Bucket), filepath.Join(scratch, "meta"), filepath.Join(scratch, "iam")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	authority := ca.New(t, "s3")
	s.CA = authority.PEM()
	cert, key := authority.IssuePEM(ca.Server("127.0.0.1"))
	for name, content := range map[string][]byte{"cert": cert, "key": key} {
		if err := os.WriteFile(filepath.Join(scratch, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var relay net.Listener
	err = within(func() (err error) {
		relay, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	s.URL = &url.URL{Scheme: "https", Host: relay.Addr().String()}
	var conns sync.WaitGroup
	conns.Go(func() { s.relay(relay, &conns) })
	t.Cleanup(func() {
		relay.Close()
		s.Mend()
		s.Stop()
		conns.Wait()
	})
	s.Start()
	return s
}

// Start starts it again after Stop, with what it had.
func (s *Server) Start() {
	s.t.Helper()
	_ = os.Remove(s.socket)
	at := func(name string) string { return filepath.Join(s.scratch, name) }
	s.process = exec.Command("versitygw", "--quiet", "--keep-alive", "--access", s.AccessKey, "--secret", s.SecretKey, "--port", s.socket, "--cert", at("cert"), "--key", at("key"),
		"--iam-dir", at("iam"), "posix", "--sidecar", at("meta"), s.Dir)
	s.process.Env = []string{}
	s.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.process.Start(); err != nil {
		s.t.Fatal(err)
	}
	for tries := 0; ; tries++ {
		conn, err := net.Dial("unix", s.socket)
		if err == nil {
			conn.Close()
			return
		}
		if tries == 600 {
			s.t.Fatalf("versitygw does not answer: %v", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Stop kills it. Its address stays, and whoever connects is cut off.
func (s *Server) Stop() {
	if s.process != nil {
		_ = s.process.Process.Kill()
		_ = s.process.Wait()
		s.process = nil
	}
}

// limit is how many bytes still come through.
type limit struct {
	left atomic.Int64
	// held is closed when what was held back is cut off; nil: it is cut off at once.
	held chan struct{}
}

// CutAfter cuts all connections once they have brought so many bytes together, counted from now, until Mend.
func (s *Server) CutAfter(bytes int64) { s.limitTo(&limit{}, bytes) }

// HoldAfter is CutAfter, and what comes then is not cut off but hangs until Mend.
func (s *Server) HoldAfter(bytes int64) { s.limitTo(&limit{held: make(chan struct{})}, bytes) }

func (s *Server) limitTo(l *limit, bytes int64) {
	l.left.Store(bytes)
	s.limit.Store(l)
}

// Mend ends CutAfter and HoldAfter. Connections that hang are cut off.
func (s *Server) Mend() {
	if l := s.limit.Swap(nil); l != nil && l.held != nil {
		close(l.held)
	}
}

// Holds says whether a connection hangs.
func (s *Server) Holds() bool {
	l := s.limit.Load()
	return l != nil && l.held != nil && l.left.Load() < 0
}

// limited is what comes through.
type limited struct {
	s    *Server
	from io.Reader
}

// Read implements io.Reader.
func (c limited) Read(b []byte) (int, error) {
	n, err := c.from.Read(b)
	if l := c.s.limit.Load(); l != nil && l.left.Add(-int64(n)) < 0 {
		if l.held != nil {
			<-l.held
		}
		return 0, io.EOF
	}
	return n, err
}

func (s *Server) relay(listener net.Listener, conns *sync.WaitGroup) {
	for {
		client, err := listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("unix", s.socket)
		if err != nil {
			client.Close()
			continue
		}
		end := func() {
			client.Close()
			server.Close()
		}
		conns.Go(func() {
			defer end()
			_, _ = io.Copy(server, limited{s, client})
		})
		conns.Go(func() {
			defer end()
			_, _ = io.Copy(client, server)
		})
	}
}
