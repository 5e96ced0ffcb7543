package rack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/test/netns"
)

// Server is coldrack serve, a process of its own in a namespace of its own. What it stores survives its death.
type Server struct {
	r       *Rack
	ns      *netns.NS
	data    string
	logFile string
	bundle  string
	key     string
	// settings are more environment variables of the server, and of verbs that read its settings.
	settings []string

	mu      sync.Mutex
	api     client.Client // nil before the first start
	process *exec.Cmd
	exited  chan struct{}
}

func newServer(r *Rack) *Server {
	r.t.Helper()
	s := &Server{r: r, ns: r.plug("server", "", serverAddress), data: filepath.Join(r.dir, "server"), logFile: filepath.Join(r.dir, "server.log")}
	var err error
	if s.bundle, s.key, err = makeBundle(r.t.Context(), r.dir, r.programs.versions); err != nil {
		r.t.Fatal(err)
	}
	return s
}

// Start starts the server and waits until it says that it is ready.
func (s *Server) Start() {
	t := s.r.t
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil {
		t.Fatal("the server runs already")
	}
	before := readySoFar(s.logFile)
	cmd := exec.Command(s.r.programs.coldrack, "serve", "--data-dir", s.data, "--boot-address", serverAddress, "--interfaces", "eth0",
		"--bundles", s.bundle, "--trusted-keys", s.key, "--heartbeat-interval", "2s", "--lost-after", "10s")
	cmd.Env = append(os.Environ(), s.settings...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := startIn(s.ns, cmd, s.logFile); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(exited)
	}()
	s.process, s.exited = cmd, exited
	for began := time.Now(); readySoFar(s.logFile) == before; time.Sleep(20 * time.Millisecond) {
		select {
		case <-exited:
			t.Fatalf("the server ended at its start:\n%s", tail(s.logFile, 4000))
		default:
		}
		if time.Since(began) > patience {
			t.Fatalf("the server does not become ready:\n%s", tail(s.logFile, 4000))
		}
	}
}

// readySoFar counts the starts that a log tells of.
func readySoFar(log string) int {
	b, _ := os.ReadFile(log)
	return strings.Count(string(b), "msg=ready ")
}

// Kill ends the server without warning.
func (s *Server) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return
	}
	_ = s.process.Process.Kill()
	<-s.exited
	s.process = nil
}

// Restart is Kill and Start.
func (s *Server) Restart() {
	s.r.t.Helper()
	s.Kill()
	s.Start()
}

// ContentAway has nobody fetch programs any more: the port of the boot listener refuses connections.
func (s *Server) ContentAway() {
	s.ns.Run("nft", "add table inet away; add chain inet away input { type filter hook input priority 0; }; add rule inet away input tcp dport 7080 reject with tcp reset")
}

func (s *Server) kubeconfig() string { return filepath.Join(s.data, "admin.kubeconfig") }

// Try runs a verb of coldrack beside the server, as an administrator, and returns what it printed.
func (s *Server) Try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(s.r.t.Context(), patience)
	defer cancel()
	command := append([]string{"env", "COLDRACK_KUBECONFIG=" + s.kubeconfig()}, s.settings...)
	return s.ns.Try(ctx, append(append(command, s.r.programs.coldrack), args...)...)
}

// kubectl runs kubectl beside the server, as an administrator of its API.
func (s *Server) kubectl(args ...string) string {
	s.r.t.Helper()
	out, err := s.ns.Try(s.r.t.Context(), append([]string{s.r.programs.kubectl, "--kubeconfig", s.kubeconfig()}, args...)...)
	if err != nil {
		s.r.t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// Run is Try for what must not fail.
func (s *Server) Run(args ...string) string {
	s.r.t.Helper()
	out, err := s.Try(args...)
	if err != nil {
		s.r.t.Fatalf("coldrack %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// Client of the server's API, as an administrator.
func (s *Server) Client() (client.Client, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.api != nil {
		return s.api, nil
	}
	config, err := clientcmd.BuildConfigFromFlags("", s.kubeconfig())
	if err != nil {
		return nil, err
	}
	config.Dial, config.QPS = dial(s.ns), -1
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	log.SetLogger(logr.Discard())
	s.api, err = client.New(config, client.Options{Scheme: scheme})
	return s.api, err
}

// Get reads an object of the server's API by its name.
func (s *Server) Get(name string, into client.Object) error {
	api, err := s.Client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(s.r.t.Context(), 10*time.Second)
	defer cancel()
	return api.Get(ctx, client.ObjectKey{Name: name}, into)
}

// create makes objects.
func (s *Server) create(objects ...client.Object) error {
	api, err := s.Client()
	if err != nil {
		return err
	}
	var errs []error
	for _, o := range objects {
		if err := api.Create(s.r.t.Context(), o); err != nil {
			errs = append(errs, fmt.Errorf("%T %s: %w", o, o.GetName(), err))
		}
	}
	return errors.Join(errs...)
}
