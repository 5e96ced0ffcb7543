package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	controlSocket = ownDir + "/control"
	unitLogs      = "/var/log/rack"
	// stopLimit is how long a unit may take to end.
	stopLimit = 10 * time.Second
)

// builtIn are units of the system that this program carries out itself.
var builtIn = map[string]func() error{
	"systemd-sysctl.service":       setParameters,
	"systemd-modules-load.service": loadModules,
	"systemd-networkd.service":     func() error { return nil }, // the rack configures the network
}

// manager starts units and keeps them running, as systemd does.
type manager struct {
	mu       sync.Mutex
	services map[string]*service
	// children are processes that somebody waits for; all others are reaped by reap.
	children map[int]bool
}

// service is a unit that was loaded.
type service struct {
	// job is held while the unit is started or stopped.
	job sync.Mutex

	// Guarded by manager.mu.
	unit     *unit
	state    string // ActiveState
	result   string
	restarts int
	process  *os.Process
	ended    chan struct{} // closed when process has ended
	stopping bool
	starts   []time.Time // that count for the start limit
}

func newManager() *manager {
	return &manager{services: map[string]*service{}, children: map[int]bool{}}
}

// reap collects processes whose parents are gone.
func (m *manager) reap() {
	for range time.Tick(200 * time.Millisecond) {
		processes, _ := filepath.Glob("/proc/[0-9]*")
		m.mu.Lock()
		for _, dir := range processes {
			pid, err := strconv.Atoi(filepath.Base(dir))
			if err != nil || m.children[pid] {
				continue // whoever started it comes for it
			}
			if p, err := readProcess(pid); err == nil && p.state == "Z" && p.parent == 1 {
				_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
			}
		}
		m.mu.Unlock()
	}
}

// run starts a command that somebody waits for.
func (m *manager) run(cmd *exec.Cmd) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return err
	}
	m.children[cmd.Process.Pid] = true
	return nil
}

func (m *manager) wait(cmd *exec.Cmd) error {
	err := cmd.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.children, cmd.Process.Pid)
	return err
}

func (m *manager) startEnabled() {
	for _, name := range enabled() {
		if err := m.start(name); err != nil {
			fmt.Fprintf(os.Stderr, "start %s: %v\n", name, err)
		}
	}
}

// service loads a unit, or returns it as it was loaded.
func (m *manager) service(name string) (*service, *unit, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.services[name]; s != nil && s.unit != nil {
		return s, s.unit, nil
	}
	u, err := readUnit(name)
	if err != nil {
		return nil, nil, err
	}
	s := m.services[name]
	if s == nil {
		s = &service{state: "inactive"}
		m.services[name] = s
	}
	s.unit = u
	return s, u, nil
}

// reload reads all units anew when they are next used.
func (m *manager) reload() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.services {
		s.unit = nil
	}
}

// start starts a unit that does not run.
func (m *manager) start(name string) error {
	if do := builtIn[name]; do != nil {
		return do()
	}
	s, u, err := m.service(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	s.job.Lock()
	defer s.job.Unlock()
	m.mu.Lock()
	active := s.state == "active"
	s.stopping = false
	m.mu.Unlock()
	if active {
		return nil
	}
	return m.launch(s, u)
}

// launch runs the unit's commands; the caller holds job.
func (m *manager) launch(s *service, u *unit) error {
	m.mu.Lock()
	now := time.Now()
	s.starts = append(slices.DeleteFunc(s.starts, func(at time.Time) bool { return now.Sub(at) > 10*time.Second }), now)
	tooOften := len(s.starts) > 5 && !u.unlimited
	s.state, s.result = "activating", "success"
	m.mu.Unlock()
	fail := func(result string, err error) error {
		m.mu.Lock()
		defer m.mu.Unlock()
		s.state, s.result = "failed", result
		return fmt.Errorf("%s failed: %w", u.name, err)
	}
	if tooOften {
		return fail("start-limit-hit", errors.New("it was started too often"))
	}
	variables, err := u.variables()
	if err != nil {
		return fail("resources", err)
	}
	log, err := openLog(u.name)
	if err != nil {
		return fail("resources", err)
	}
	defer log.Close()
	command := func(line string) (cmd *exec.Cmd, tolerant bool) {
		args, tolerant := words(line, variables)
		cmd = exec.Command(args[0], args[1:]...)
		cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, "/"
		cmd.Env = append(os.Environ(), variables...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		return cmd, tolerant
	}
	first := u.pre
	if u.oneshot {
		first = append(slices.Clone(first), u.exec...)
	}
	for _, line := range first {
		cmd, tolerant := command(line)
		err := m.run(cmd)
		if err == nil {
			err = m.wait(cmd)
		}
		if err != nil && !tolerant {
			return fail("exit-code", fmt.Errorf("%s: %w", line, err))
		}
	}
	if u.oneshot {
		m.mu.Lock()
		defer m.mu.Unlock()
		if s.state = "inactive"; u.remain {
			s.state = "active"
		}
		return nil
	}
	cmd, _ := command(u.exec[0])
	if err := m.run(cmd); err != nil {
		return fail("exec", err)
	}
	ended := make(chan struct{})
	m.mu.Lock()
	s.state, s.process, s.ended = "active", cmd.Process, ended
	m.mu.Unlock()
	go m.watch(s, u, cmd, ended)
	return nil
}

// watch waits for a unit's process, and starts it again where the unit says so.
func (m *manager) watch(s *service, u *unit, cmd *exec.Cmd, ended chan struct{}) {
	err := m.wait(cmd)
	m.mu.Lock()
	again := u.restart && !s.stopping
	s.state, s.process = "inactive", nil
	if err != nil && !s.stopping {
		s.state, s.result = "failed", "exit-code"
	}
	if again {
		s.state = "activating"
	}
	close(ended)
	m.mu.Unlock()
	if !again {
		return
	}
	time.Sleep(u.restartAfter)
	s.job.Lock()
	defer s.job.Unlock()
	m.mu.Lock()
	again = !s.stopping && s.state == "activating"
	s.restarts++
	m.mu.Unlock()
	if !again {
		return
	}
	if _, now, err := m.service(u.name); err == nil {
		u = now
	}
	if err := m.launch(s, u); err != nil {
		fmt.Fprintf(os.Stderr, "start again: %v\n", err)
	}
}

func (m *manager) stop(name string) error {
	if builtIn[name] != nil {
		return nil
	}
	m.mu.Lock()
	s := m.services[name]
	m.mu.Unlock()
	if s == nil {
		return nil
	}
	s.job.Lock()
	defer s.job.Unlock()
	m.mu.Lock()
	s.stopping, s.starts = true, nil
	process, ended := s.process, s.ended
	if process == nil {
		s.state = "inactive"
	}
	m.mu.Unlock()
	if process == nil {
		return nil
	}
	// What containers run in has sessions of its own.
	_ = unix.Kill(-process.Pid, unix.SIGTERM)
	select {
	case <-ended:
	case <-time.After(stopLimit):
		_ = unix.Kill(-process.Pid, unix.SIGKILL)
		<-ended
	}
	return nil
}

func openLog(name string) (*os.File, error) {
	if err := os.MkdirAll(unitLogs, 0o755); err != nil {
		return nil, err
	}
	return os.OpenFile(filepath.Join(unitLogs, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
}

// reloadUnit has a unit that runs read its files again; it is false for one that cannot.
func (m *manager) reloadUnit(name string) (reloads bool, err error) {
	m.mu.Lock()
	s := m.services[name]
	if s == nil || s.process == nil || s.unit == nil || len(s.unit.reload) == 0 {
		m.mu.Unlock()
		return false, nil
	}
	lines, pid := s.unit.reload, s.process.Pid
	m.mu.Unlock()
	for _, line := range lines {
		words := strings.Fields(strings.ReplaceAll(line, "$MAINPID", strconv.Itoa(pid)))
		cmd := exec.Command(strings.TrimLeft(words[0], "-@:+!"), words[1:]...)
		if err = m.run(cmd); err == nil {
			err = m.wait(cmd)
		}
		if err != nil {
			return true, fmt.Errorf("reload %s: %w", name, err)
		}
	}
	return true, nil
}

// do carries out one of systemctl's verbs.
func (m *manager) do(verb string, units []string) (out string, err error) {
	for _, name := range units {
		switch verb {
		case "start":
			err = m.start(name)
		case "stop":
			err = m.stop(name)
		case "restart":
			if err = m.stop(name); err == nil {
				err = m.start(name)
			}
		case "try-restart":
			if m.state(name) == "active" {
				_, err = m.do("restart", []string{name})
			}
		case "reload-or-restart":
			var reloads bool
			if reloads, err = m.reloadUnit(name); !reloads && err == nil {
				_, err = m.do("restart", []string{name})
			}
		case "reset-failed":
			m.forgive(name)
		case "enable":
			if err = os.MkdirAll(wantsDir, 0o755); err == nil {
				if err = os.Symlink("../"+name, filepath.Join(wantsDir, name)); errors.Is(err, os.ErrExist) {
					err = nil
				}
			}
		case "disable":
			if err = os.Remove(filepath.Join(wantsDir, name)); errors.Is(err, os.ErrNotExist) {
				err = nil
			}
		case "show":
			out += m.show(name)
		default:
			err = fmt.Errorf("this systemctl has no verb %q", verb)
		}
		if err != nil {
			return "", err
		}
	}
	switch verb {
	case "daemon-reload":
		m.reload()
	case "list-units":
		out = m.failed()
	}
	return out, nil
}

func (m *manager) state(name string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.services[name]; s != nil {
		return s.state
	}
	return "inactive"
}

func (m *manager) forgive(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.services[name]; s != nil {
		s.starts, s.restarts = nil, 0
		if s.state == "failed" {
			s.state = "inactive"
		}
	}
}

// show prints the properties that the agent asks for.
func (m *manager) show(name string) string {
	if builtIn[name] != nil {
		return "LoadState=loaded\nActiveState=active\nSubState=exited\nUnitFileState=static\nResult=success\nNRestarts=0\nNeedDaemonReload=no\n"
	}
	file := "disabled"
	if _, err := os.Lstat(filepath.Join(wantsDir, name)); err == nil {
		file = "enabled"
	}
	s, u, err := m.service(name)
	if err != nil {
		load := "bad-setting"
		if errors.Is(err, errNoUnit) {
			load, file = "not-found", ""
		}
		return fmt.Sprintf("LoadState=%s\nActiveState=inactive\nSubState=dead\nUnitFileState=%s\nResult=success\nNRestarts=0\nNeedDaemonReload=no\n", load, file)
	}
	changed := "no"
	if now, err := readUnit(name); err != nil || now.text != u.text {
		changed = "yes"
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	sub := map[string]string{"active": "running", "inactive": "dead", "failed": "failed", "activating": "auto-restart"}[s.state]
	return fmt.Sprintf("LoadState=loaded\nActiveState=%s\nSubState=%s\nUnitFileState=%s\nResult=%s\nNRestarts=%d\nNeedDaemonReload=%s\n",
		s.state, sub, file, s.result, s.restarts, changed)
}

// failed lists units as list-units does.
func (m *manager) failed() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var lines []string
	for name, s := range m.services {
		if s.state == "failed" {
			lines = append(lines, name+" loaded failed failed\n")
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// order is what systemctl wants of the manager, and answer what it gets.
type order struct {
	Verb  string
	Units []string
}

type answer struct{ Out, Err string }

func (m *manager) listen() error {
	if err := os.MkdirAll(ownDir, 0o755); err != nil {
		return err
	}
	listener, err := net.Listen("unix", controlSocket)
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go m.serve(conn)
		}
	}()
	return nil
}

func (m *manager) serve(conn net.Conn) {
	defer conn.Close()
	var o order
	if json.NewDecoder(conn).Decode(&o) != nil {
		return
	}
	if o.Verb == "reboot" {
		os.Exit(rebootStatus)
	}
	var a answer
	var err error
	if a.Out, err = m.do(o.Verb, o.Units); err != nil {
		a.Err = err.Error()
	}
	_ = json.NewEncoder(conn).Encode(a) // a caller that went away does not want it
}

// rebootStatus is how PID 1 tells the rack to start the machine again.
const rebootStatus = 3

// systemctl has the manager carry out a verb. Options have no meaning here.
func systemctl(args []string) error {
	args = slices.DeleteFunc(args, func(arg string) bool { return strings.HasPrefix(arg, "-") })
	if len(args) == 0 {
		return errors.New("usage: systemctl VERB UNIT")
	}
	if args[0] == "set-property" {
		return nil // there are no control groups
	}
	for i, name := range args[1:] {
		if !strings.Contains(name, ".") {
			args[i+1] = name + ".service"
		}
	}
	conn, err := (&net.Dialer{}).DialContext(context.Background(), "unix", controlSocket)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := json.NewEncoder(conn).Encode(order{args[0], args[1:]}); err != nil {
		return err
	}
	var a answer
	if err := json.NewDecoder(conn).Decode(&a); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	fmt.Print(a.Out)
	if a.Err != "" {
		return errors.New(a.Err)
	}
	return nil
}

// journalctl prints the end of a unit's log.
func journalctl(args []string) error {
	for _, arg := range args {
		if name, ok := strings.CutPrefix(arg, "--unit="); ok {
			b, err := os.ReadFile(filepath.Join(unitLogs, name+".log"))
			if err == nil {
				_, err = os.Stdout.Write(b[max(0, len(b)-16<<10):])
			}
			return err
		}
	}
	return errors.New("journalctl --unit=NAME")
}
