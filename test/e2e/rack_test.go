// Package e2e takes real firmware from power-on to Ready, and breaks things on the way. Its machines are
// those of the lab (QEMU, with or without KVM), its server is the coldrack binary as a process of its own.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/lab"
	"coldrack.dev/test/require"
)

// rack is a server and its virtual machines.
type rack struct {
	t       *testing.T
	dir     string
	bin     string // folder of coldrack and coldrack-agent
	bundle  string
	lab     *lab.Lab
	machine map[string]*lab.Machine // Machine object's name to virtual machine

	sshKey string // private key file whose public half is in the profile

	mu     sync.Mutex
	server *exec.Cmd
	exited chan struct{}
	log    string // the server's
	// patience is how long a machine may be silent before it counts as lost.
	patience time.Duration
	started  time.Time
	ready    []time.Duration // of each start, until the API answered as admin
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// newRack makes the lab, with everything off, and starts the server. Further options add machines of another kind: each
// says how many there are then.
func newRack(t *testing.T, objects string, options lab.Options, more ...lab.Options) *rack {
	require.Need(t, "netns", "qemu")
	bundlePath := os.Getenv("COLDRACK_E2E_BUNDLE")
	if bundlePath == "" {
		bundlePath = filepath.Join(root(t), "build", "default.bundle.tar")
	}
	if _, err := os.Stat(bundlePath); err != nil {
		t.Fatalf("no bundle to install from: %v; run: make e2e", err)
	}
	dir, err := os.MkdirTemp("", "coldrack-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	r := &rack{t: t, dir: dir, bin: filepath.Join(root(t), "bin"), bundle: bundlePath,
		machine: map[string]*lab.Machine{}, log: filepath.Join(dir, "server.log"), started: time.Now(), patience: 30 * time.Second}
	if options.OwnTime {
		r.patience = 3 * time.Minute // a second of the machines may be several of ours
	}
	// A lab of the folder's name: several racks may stand side by side.
	options.Dir, options.Name = filepath.Join(dir, "lab"), "e2e-"+strings.TrimPrefix(filepath.Base(dir), "coldrack-e2e-")
	t.Cleanup(func() {
		if t.Failed() {
			r.show()
		}
		r.kill()
		if err := lab.Down(context.Background(), options.Dir, options.Name, false); err != nil {
			t.Errorf("take the lab down: %v", err)
		}
		if !t.Failed() {
			os.RemoveAll(dir)
		}
	})
	for _, o := range append([]lab.Options{options}, more...) {
		o.Dir, o.Name = options.Dir, options.Name
		if r.lab, err = lab.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	accelerator, _ := r.lab.Accelerator()
	for _, m := range r.lab.Machines() {
		r.machine["m-"+strings.ReplaceAll(m.MAC().String(), ":", "")] = m
	}
	r.serve()
	if objects != "" {
		r.apply(objects)
	}
	t.Logf("%d machines, accelerator %s, server ready after %s", len(r.machine), accelerator, r.ready[0].Round(time.Millisecond))
	return r
}

// name of the Machine object that a virtual machine becomes.
func (r *rack) name(index int) string {
	return "m-" + strings.ReplaceAll(r.lab.Machine(index).MAC().String(), ":", "")
}

func (r *rack) kubeconfig() string { return filepath.Join(r.dir, "data", "admin.kubeconfig") }

// serve starts the server and waits until its API answers.
func (r *rack) serve() {
	r.t.Helper()
	log, err := os.OpenFile(r.log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		r.t.Fatal(err)
	}
	defer log.Close()
	command := exec.Command(filepath.Join(r.bin, "coldrack"), "serve",
		"--data-dir", filepath.Join(r.dir, "data"), "--api-address", "127.0.0.1:0", // its kubeconfig says which port it got

		"--boot-netns", r.lab.Namespace(), "--bundles", r.bundle, "--trusted-keys", publicKey(r.bundle),
		"--heartbeat-interval", "10s", "--lost-after", r.patience.String(), "--discovery-args", "tsc=reliable,mitigations=off,highres=off")
	command.Stdout, command.Stderr = log, log
	began := time.Now()
	if err := command.Start(); err != nil {
		r.t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() {
		_ = command.Wait()
		close(exited)
	}()
	r.mu.Lock()
	r.server, r.exited = command, exited
	r.mu.Unlock()
	for {
		if c, err := r.client(); err == nil {
			if err = c.List(r.t.Context(), &v1alpha1.SubnetList{}); err == nil {
				r.ready = append(r.ready, time.Since(began))
				return
			}
		}
		select {
		case <-exited:
			r.t.Fatal("the server ended at its start")
		case <-time.After(50 * time.Millisecond):
		}
		if time.Since(began) > 2*time.Minute {
			r.t.Fatal("the server does not answer")
		}
	}
}

// kill ends the server without warning, as a crash would.
func (r *rack) kill() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.server == nil {
		return
	}
	_ = r.server.Process.Signal(syscall.SIGKILL)
	<-r.exited
	r.server = nil
}

// publicKey is the file of the key that signed a bundle; "make bundle" puts it beside the bundle.
func publicKey(bundle string) string {
	if path := os.Getenv("COLDRACK_E2E_KEY"); path != "" {
		return path
	}
	return filepath.Join(filepath.Dir(bundle), "bundle.pub")
}

func (r *rack) client() (client.Client, error) {
	config, err := clientcmd.BuildConfigFromFlags("", r.kubeconfig())
	if err != nil {
		return nil, err
	}
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	return client.New(config, client.Options{Scheme: scheme})
}

// run runs a verb of coldrack as an administrator and returns what it printed.
func (r *rack) run(args ...string) string {
	r.t.Helper()
	out, err := r.try(args...)
	if err != nil {
		r.t.Fatalf("coldrack %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (r *rack) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(r.t.Context(), 15*time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, filepath.Join(r.bin, "coldrack"), args...)
	command.Env = append(os.Environ(), "COLDRACK_KUBECONFIG="+r.kubeconfig())
	out, err := command.CombinedOutput()
	return string(out), err
}

// get reads a Machine; nil when it does not exist (yet) or the server is away.
func (r *rack) get(name string) *v1alpha1.Machine {
	c, err := r.client()
	if err != nil {
		return nil
	}
	m := &v1alpha1.Machine{}
	if err := c.Get(r.t.Context(), client.ObjectKey{Name: name}, m); err != nil {
		return nil
	}
	return m
}

// await waits until the machine is as wanted, telling its way there, and fails when it takes too long.
func (r *rack) await(name, what string, within time.Duration, wanted func(*v1alpha1.Machine) bool) *v1alpha1.Machine {
	r.t.Helper()
	began, told := time.Now(), ""
	for {
		m := r.get(name)
		if m != nil {
			if now := fmt.Sprintf("%s %s %s", m.Status.Phase, stepName(m.Status.CurrentStep), m.Status.Message); now != told {
				told = now
				r.t.Logf("%6.1fs %s: %s", time.Since(r.started).Seconds(), name, now)
			}
			if wanted(m) {
				return m
			}
		}
		if time.Since(began) > within {
			r.t.Fatalf("%s is not %s after %s; it is: %s", name, what, within, told)
		}
		time.Sleep(300 * time.Millisecond)
	}
}

// stepName leaves the progress out, so that a transition is told once.
func stepName(step string) string {
	name, _, _ := strings.Cut(step, " ")
	return name
}

func phase(wanted ...v1alpha1.MachinePhase) func(*v1alpha1.Machine) bool {
	return func(m *v1alpha1.Machine) bool { return slices.Contains(wanted, m.Status.Phase) }
}

// during holds while the named step of an attempt is running and has moved bytes.
func during(step string, attempt int32) func(*v1alpha1.Machine) bool {
	return func(m *v1alpha1.Machine) bool {
		return m.Status.Intent != nil && m.Status.Intent.Attempts == attempt &&
			slices.ContainsFunc(m.Status.Steps, func(s v1alpha1.Step) bool {
				return s.Name == step && s.State == v1alpha1.StepRunning && s.BytesDone > 0
			})
	}
}

// times tells how long each step of the last act took.
func times(m *v1alpha1.Machine) string {
	var b strings.Builder
	for _, s := range m.Status.Steps {
		if s.StartedAt != nil && s.FinishedAt != nil {
			fmt.Fprintf(&b, " %s %.1fs", s.Name, s.FinishedAt.Sub(s.StartedAt.Time).Seconds())
		}
	}
	return b.String()
}

// memory is the server's resident memory in MiB: now and at its peak.
func (r *rack) memory() (now, peak int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.server.Process.Pid))
	if err != nil {
		r.t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		var kib int
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &kib); err == nil {
			now = kib / 1024
		}
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kib); err == nil {
			peak = kib / 1024
		}
	}
	return now, peak
}

// show prints what a person would look at after a failure.
func (r *rack) show() {
	r.t.Logf("state is kept in %s", r.dir)
	tail := func(title, path string, lines int) {
		content, err := os.ReadFile(path)
		if err != nil {
			return
		}
		text := strings.Split(strings.TrimRight(lab.Printable(content), "\n"), "\n")
		r.t.Logf("%s, last lines:\n%s", title, strings.Join(text[max(0, len(text)-lines):], "\n"))
	}
	tail("server log", r.log, 60)
	for _, m := range r.lab.Machines() {
		tail("console of "+m.Name(), m.ConsoleLog(), 40)
		for name, virtual := range r.machine {
			if object := r.get(name); virtual == m && object != nil {
				object.ManagedFields = nil
				text, _ := json.MarshalIndent(object.Status, "", " ")
				r.t.Logf("status of %s (%s):\n%s", name, m.Name(), text)
			}
		}
	}
}

// curl asks the boot server from inside the lab, as anybody on the segment can.
func (r *rack) curl(path string) string {
	r.t.Helper()
	var out []byte
	err := r.lab.Do(func() (err error) {
		out, err = exec.Command("curl", "-sS", "--max-time", "20", "http://"+r.lab.ServerAddress().String()+":7080"+path).CombinedOutput()
		return err
	})
	if err != nil {
		r.t.Fatalf("curl %s: %v: %s", path, err, out)
	}
	return string(out)
}

// blank says whether a disk holds nothing but zeros.
func blank(t *testing.T, path string) bool {
	t.Helper()
	found := false
	extents(t, path, func(int64, []byte) bool {
		found = true
		return false
	})
	return !found
}

// extents shows every mebibyte of a disk that is not all zeros, until each returns false.
func extents(t *testing.T, path string, each func(offset int64, content []byte) bool) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	// Sparse: only what was ever written has data.
	buffer, zeros := make([]byte, 1<<20), make([]byte, 1<<20)
	for offset := int64(0); ; offset += int64(len(buffer)) {
		data, err := syscall.Seek(int(file.Fd()), offset, 3 /* SEEK_DATA */)
		if errors.Is(err, syscall.ENXIO) {
			return // no data from here on
		}
		if err != nil {
			t.Fatal(err)
		}
		offset = data - data%int64(len(buffer))
		n, err := file.ReadAt(buffer, offset)
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if !bytes.Equal(buffer[:n], zeros[:n]) && !each(offset, buffer[:n]) {
			return
		}
	}
}

// newest is the machine's last boot of which the server was asked.
func newest(m *v1alpha1.Machine) v1alpha1.BootRecord {
	if len(m.Status.Boots) == 0 {
		return v1alpha1.BootRecord{}
	}
	return m.Status.Boots[0]
}

func after(m *v1alpha1.Machine, moment time.Time) bool {
	return newest(m).At.After(moment.Add(-time.Second)) // status has whole seconds
}

// sshKey makes a key pair for logging in to installed nodes.
func sshKey(t *testing.T) (privateFile, public string) {
	t.Helper()
	require.Need(t, "ssh", "ssh-keygen")
	privateFile = filepath.Join(t.TempDir(), "key")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "e2e", "-f", privateFile).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v: %s", err, out)
	}
	content, err := os.ReadFile(privateFile + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	return privateFile, strings.TrimSpace(string(content))
}

// ssh runs a command as root on an installed node, from inside the lab. A node may be Ready before its SSH
// server is: the first start makes the host keys.
func (r *rack) ssh(address, command string) string {
	r.t.Helper()
	for began := time.Now(); ; time.Sleep(time.Second) {
		var out []byte
		err := r.lab.Do(func() (err error) {
			out, err = exec.Command("ssh", "-i", r.sshKey, "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no",
				"-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=60", "root@"+address, command).CombinedOutput()
			return err
		})
		var exit *exec.ExitError
		const sshItself = 255 // every other code is the command's
		if errors.As(err, &exit) && exit.ExitCode() == sshItself && time.Since(began) < 2*time.Minute {
			continue
		}
		if err != nil {
			r.t.Errorf("ssh root@%s %s: %v: %s", address, command, err, out)
		}
		return string(out)
	}
}
