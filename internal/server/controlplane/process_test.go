package controlplane

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
)

// serveEnv makes the test binary a server: its value is a Config in JSON.
const serveEnv = "COLDRACK_TEST_SERVE"

// serve is what a subprocess does instead of tests. It prints its address when it is ready.
func serve(config string) error {
	var cfg Config
	if err := json.Unmarshal([]byte(config), &cfg); err != nil {
		return err
	}
	cfg.Logger = testLogger()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	c, err := Start(ctx, cfg)
	if err != nil {
		return err
	}
	defer c.Stop()
	fmt.Println("ready", c.Address())
	return c.Wait(ctx)
}

// server is a control plane in a process of its own.
type server struct {
	cmd     *exec.Cmd
	address string
	waited  chan error
}

// startServer runs a control plane in a process of its own, with stderr passed through.
func startServer(t testing.TB, cfg Config) *server {
	t.Helper()
	cfg.Logger = nil
	config, err := json.Marshal(cfg)
	check(t, err)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), serveEnv+"="+string(config))
	cmd.Stderr = os.Stderr
	// A test that is killed takes its servers along.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	check(t, err)
	check(t, cmd.Start())
	s := &server{cmd: cmd, waited: make(chan error, 1)}
	line, readErr := bufio.NewReader(out).ReadString('\n')
	go func() {
		io.Copy(io.Discard, out)
		s.waited <- cmd.Wait()
	}()
	t.Cleanup(func() { s.signal(t, syscall.SIGKILL) })
	if readErr != nil || !strings.HasPrefix(line, "ready ") {
		t.Fatalf("the server did not get ready: %q", line)
	}
	s.address = strings.TrimSpace(strings.TrimPrefix(line, "ready "))
	return s
}

// signal ends the process and returns how it ended. Without effect when it has ended before.
func (s *server) signal(t testing.TB, signal syscall.Signal) error {
	if s.cmd == nil {
		return nil
	}
	check(t, s.cmd.Process.Signal(signal))
	s.cmd = nil
	return <-s.waited
}
