package httpboot

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// logText is a log that the server writes while the test reads.
type logText struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logText) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// counted is a server whose scripts count how often they were asked for.
func counted(t *testing.T, answer func(Query) (string, error)) (base string, server *Server, asked *atomic.Int32, log *logText) {
	t.Helper()
	files := store{t.TempDir()}
	for name, text := range map[string]string{"grubx64.efi": "MZ grub", "grub.cfg": "echo\n"} {
		if err := os.WriteFile(filepath.Join(files.dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	asked, log = &atomic.Int32{}, &logText{}
	base, server = serve(t, Options{Files: files, Log: slog.New(slog.NewTextHandler(log, nil)), Scripts: scriptsFunc(func(_ context.Context, q Query) (string, error) {
		asked.Add(1)
		return answer(q)
	})})
	return base, server, asked, log
}

func request(method, path string) string {
	return method + " " + path + " HTTP/1.1\r\nHost: 10.9.0.1\r\nUser-Agent: GRUB 2.12-9+deb13u4\r\nConnection: close\r\n\r\n"
}

// Probes are answered at once, without a redirect, and nobody hears of them.
func TestProbesOfBootLoadersAreNoErrors(t *testing.T) {
	base, server, _, log := counted(t, nil)
	for _, name := range []string{
		"revocations_sku.efi", "revocations_sbat.efi", "shim_certificate_0.efi", "grub/x86_64-efi/command.lst", "grub/x86_64-efi/fs.lst",
		"grub/x86_64-efi/crypto.lst", "grub/x86_64-efi/terminal.lst", "grub/x86_64-efi/grub.cfg", "grub/grub.cfg-amd64", "grub/locale/de.gmo", "autoexec.ipxe",
	} {
		for _, method := range []string{"HEAD", "GET"} {
			response, _ := raw(t, base, request(method, "/"+name))
			if response.Status != "404 Not Found" || response.Header.Get("Content-Length") == "" {
				t.Errorf("%s %s: %s, length %q", method, name, response.Status, response.Header.Get("Content-Length"))
			}
		}
	}
	if stats := server.Stats(); stats.BadRequest != 0 {
		t.Errorf("%d probes were counted as errors", stats.BadRequest)
	}
	if log.String() != "" {
		t.Errorf("they are in the log:\n%s", log)
	}
	raw(t, base, request("GET", "/grub/x86_64-efi/http.mod"))
	if stats := server.Stats(); stats.BadRequest != 1 || !strings.Contains(log.String(), "http.mod") {
		t.Errorf("what is missing is counted and told: %+v\n%s", stats, log)
	}
}

// As shim asks: a doubled slash, which must not become a redirect, and a length that it cannot do without.
func TestBootFilesHaveTheirLength(t *testing.T) {
	base, _, _, _ := counted(t, nil)
	for _, path := range []string{"/grubx64.efi", "//grubx64.efi", "/grub.cfg"} {
		var lengths []string
		for _, method := range []string{"HEAD", "GET"} {
			response, body := raw(t, base, request(method, path))
			if response.Status != "200 OK" || response.Header.Get("Transfer-Encoding") != "" || response.Header.Get("Location") != "" || (method == "GET") != (body != "") {
				t.Errorf("%s %s: %s, %v", method, path, response.Status, response.Header)
			}
			lengths = append(lengths, response.Header.Get("Content-Length"))
		}
		if lengths[0] == "" || lengths[0] != lengths[1] {
			t.Errorf("%s: HEAD and GET announce %q", path, lengths)
		}
	}
}
