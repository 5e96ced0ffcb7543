// Package live lets people in to the live system by SSH. Dropbear speaks the protocol, one process a connection; this package says who may
// log in, makes the host key of this boot, and bounds the connections.
package live

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Options say who may log in, and where.
type Options struct {
	// Listen is the address to listen at.
	Listen string
	// Keys may log in as root, one OpenSSH public key each.
	Keys []string
	// Home of root.
	Home string
	// WorkDir holds the host key.
	WorkDir string
	Log     *slog.Logger
	// Tell is called with the fingerprint of the host key, once connections are taken.
	Tell func(fingerprint string)
	// Ready is called with the address that is listened at. Optional.
	Ready func(net.Addr)
	// Server is the command that serves the connection on its standard input. Default: dropbear.
	Server func(ctx context.Context, hostKey string) *exec.Cmd
}

// mostConnections bounds those at one time, of people who have logged in and of strangers.
const mostConnections = 16

// Serve lets people in until ctx ends.
func Serve(ctx context.Context, o Options) error {
	if o.Server == nil {
		o.Server = dropbear
	}
	if err := allow(o.Home, o.Keys); err != nil {
		return fmt.Errorf("write who may log in: %w", err)
	}
	hostKey := filepath.Join(o.WorkDir, "ssh_host_key")
	fingerprint, err := newHostKey(ctx, hostKey)
	if err != nil {
		return fmt.Errorf("make the host key: %w", err)
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.Listen)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	if o.Ready != nil {
		o.Ready(listener.Addr())
	}
	o.Tell(fingerprint)
	places := make(chan struct{}, mostConnections)
	defer func() { // wait for those that run
		for range mostConnections {
			places <- struct{}{}
		}
	}()
	for {
		conn, err := listener.Accept()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil:
			o.Log.Warn("SSH: accept", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
			continue
		}
		select {
		case places <- struct{}{}:
			go func() {
				defer func() { <-places }()
				serve(ctx, o, hostKey, conn)
			}()
		default:
			o.Log.Warn("SSH: too many connections", "from", conn.RemoteAddr())
			conn.Close()
		}
	}
}

func serve(ctx context.Context, o Options, hostKey string, conn net.Conn) {
	socket, err := conn.(*net.TCPConn).File()
	conn.Close() // the socket lives on in the file
	if err != nil {
		o.Log.Warn("SSH: connection", "err", err)
		return
	}
	defer socket.Close()
	var said bytes.Buffer
	cmd := o.Server(ctx, hostKey)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = socket, socket, &said
	cmd.WaitDelay = 2 * time.Second // a shell that was left behind has the standard error open
	err = cmd.Run()
	for lines := bufio.NewScanner(&said); lines.Scan(); {
		o.Log.Info("SSH: " + lines.Text())
	}
	if err != nil {
		o.Log.Info("SSH: connection ended", "err", err)
	}
}

// dropbear serves one connection: keys only, no message of the day. It logs to syslog alone in this mode, which the live system has not.
func dropbear(ctx context.Context, hostKey string) *exec.Cmd {
	return exec.CommandContext(ctx, "dropbear", "-i", "-m", "-s", "-r", hostKey)
}

// allow makes the keys those that may log in. Dropbear wants nobody else to be able to write there.
func allow(home string, keys []string) error {
	dir := filepath.Join(home, ".ssh")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "authorized_keys"), []byte(strings.Join(keys, "\n")+"\n"), 0o600)
}

// newHostKey makes the key of this boot and returns its fingerprint.
func newHostKey(ctx context.Context, file string) (string, error) {
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	out, err := exec.CommandContext(ctx, "dropbearkey", "-t", "ed25519", "-f", file).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("dropbearkey: %w: %s", err, bytes.TrimSpace(out))
	}
	for line := range strings.Lines(string(out)) {
		if fingerprint, ok := strings.CutPrefix(strings.TrimSpace(line), "Fingerprint: "); ok {
			return fingerprint, nil
		}
	}
	return "", fmt.Errorf("dropbearkey tells no fingerprint: %s", bytes.TrimSpace(out))
}
