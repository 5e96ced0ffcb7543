package live

import (
	"context"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coldrack.dev/test/require"
)

// A real client logs in with its key, runs a program, and gets a terminal; another key is refused.
func TestLogIn(t *testing.T) {
	require.Need(t, "root", "dropbear", "dropbearkey", "ssh", "ssh-keygen")
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	key := func(name string) string {
		out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", file(name)).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		public, err := os.ReadFile(file(name + ".pub"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(public))
	}
	allowed := key("allowed")
	key("other")
	home := file("home")
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	ready, told, done := make(chan string, 1), make(chan string, 1), make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		done <- Serve(ctx, Options{
			Listen: "127.0.0.1:0", Keys: []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBroken nobody", allowed}, Home: home, WorkDir: dir, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
			Ready: func(a net.Addr) { ready <- a.String() }, Tell: func(f string) { told <- f },
			// Dropbear looks for keys in the home of the user database, which is this machine's.
			Server: func(ctx context.Context, hostKey string) *exec.Cmd {
				own := dropbear(ctx, hostKey)
				return exec.CommandContext(ctx, "unshare", append([]string{"--mount", "sh", "-c", `mount --bind "$0" /root && exec "$@"`, home}, own.Args...)...)
			},
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	var address string
	select {
	case address = <-ready:
	case err := <-done:
		done <- err
		t.Fatal(err)
	}
	fingerprint := <-told
	_, port, _ := net.SplitHostPort(address)
	ssh := func(name string, more ...string) (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		args := append([]string{"-F", "none", "-p", port, "-i", file(name), "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "BatchMode=yes",
			"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=" + file("known_hosts"), "-o", "LogLevel=ERROR"}, more...)
		out, err := exec.CommandContext(ctx, "ssh", args...).CombinedOutput()
		return string(out), err
	}
	if out, err := ssh("allowed", "root@127.0.0.1", "id -u; echo $SSH_CONNECTION"); err != nil || !strings.HasPrefix(out, "0\n127.0.0.1 ") {
		t.Errorf("a program: %v\n%s", err, out)
	}
	if out, err := ssh("allowed", "-tt", "root@127.0.0.1", "tty"); err != nil || !strings.Contains(out, "/dev/pts/") {
		t.Errorf("a terminal: %v\n%s", err, out)
	}
	if out, err := ssh("other", "root@127.0.0.1", "true"); err == nil || !strings.Contains(out, "Permission denied") {
		t.Errorf("another key: %v\n%s", err, out)
	}
	if out, err := exec.Command("ssh-keygen", "-l", "-f", file("known_hosts")).CombinedOutput(); err != nil || !strings.Contains(string(out), fingerprint) {
		t.Errorf("the console tells %s, the client sees %s (%v)", fingerprint, out, err)
	}
}
