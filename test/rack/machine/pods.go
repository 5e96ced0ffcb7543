package main

import (
	"context"
	"crypto/md5"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	kubeletconfig "k8s.io/kubelet/config/v1beta1"
	"sigs.k8s.io/yaml"
)

const (
	// images hold programs: the image NAME:TAG is a folder of that name.
	images = "/rack/images"
	// podState remembers what runs, for a kubelet that is started again; a power cut empties it.
	podState = ownDir + "/pods"
	podLogs  = "/var/log/pods"
	// manifestsEvery is how often manifests are looked at; a kubelet is told of changes by the kernel.
	manifestsEvery = 200 * time.Millisecond
	// Of a container that ends again and again; the kubelet's own numbers.
	firstBackoff, backoffReset = 10 * time.Second, 10 * time.Minute
)

// containerState is what a container's status says.
type containerState struct {
	ready            bool
	started          time.Time
	restarts         int
	waiting, message string
}

// shownPod is a static pod as mirror pods show it.
type shownPod struct {
	pod   *corev1.Pod
	hash  string
	state containerState
}

// staticPods runs the pods of a folder of manifests.
type staticPods struct {
	dir        string
	maxBackoff time.Duration
	mu         sync.Mutex
	pods       map[string]*staticPod // by file
}

// staticPod is what becomes of one manifest.
type staticPod struct {
	owner *staticPods
	file  string
	wake  chan struct{} // of capacity one

	// Guarded by owner.mu.
	want  *corev1.Pod // nil: it shall end
	hash  string
	state containerState
}

func newStaticPods(config kubeletconfig.KubeletConfiguration) *staticPods {
	s := &staticPods{dir: config.StaticPodPath, maxBackoff: 5 * time.Minute, pods: map[string]*staticPod{}}
	if limit := config.CrashLoopBackOff.MaxContainerRestartPeriod; limit != nil {
		s.maxBackoff = limit.Duration
	}
	return s
}

// list is what there is now, by name.
func (s *staticPods) list() []shownPod {
	s.mu.Lock()
	defer s.mu.Unlock()
	var shown []shownPod
	for _, p := range s.pods {
		if p.want != nil {
			shown = append(shown, shownPod{p.want, p.hash, p.state})
		}
	}
	return shown
}

// run follows the folder.
func (s *staticPods) run(ctx context.Context) {
	for ctx.Err() == nil {
		s.look(ctx)
		pause(ctx, manifestsEvery)
	}
}

func (s *staticPods) look(ctx context.Context) {
	files, _ := filepath.Glob(filepath.Join(s.dir, "*.yaml"))
	files = slices.DeleteFunc(files, func(f string) bool { return strings.HasPrefix(filepath.Base(f), ".") })
	s.mu.Lock()
	defer s.mu.Unlock()
	for file, p := range s.pods {
		if p.want != nil && !slices.Contains(files, file) {
			p.want, p.hash = nil, ""
			p.poke()
		}
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // it has just gone
		}
		p := s.pods[file]
		hash := fmt.Sprintf("%x", md5.Sum(b))
		if p != nil && p.hash == hash {
			continue
		}
		pod := &corev1.Pod{}
		if err := yaml.UnmarshalStrict(b, pod); err != nil || len(pod.Spec.Containers) != 1 {
			fmt.Fprintf(os.Stderr, "%s is no pod of one container: %v\n", file, err)
			continue
		}
		if p == nil {
			p = &staticPod{owner: s, file: file, wake: make(chan struct{}, 1)}
			s.pods[file] = p
			go p.run(ctx)
		}
		p.want, p.hash = pod, hash
		p.poke()
	}
}

func (p *staticPod) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *staticPod) wanted() (*corev1.Pod, string) {
	p.owner.mu.Lock()
	defer p.owner.mu.Unlock()
	return p.want, p.hash
}

func (p *staticPod) set(change func(*containerState)) {
	p.owner.mu.Lock()
	defer p.owner.mu.Unlock()
	change(&p.state)
}

// ran is a program of a static pod that was started.
type ran struct {
	PID      int       `json:"pid"`
	Ticks    string    `json:"ticks"` // see process
	Hash     string    `json:"hash"`
	Started  time.Time `json:"started"`
	Restarts int       `json:"restarts"`

	ended chan struct{}
}

func (p *staticPod) stateFile() string { return filepath.Join(podState, filepath.Base(p.file)+".json") }

// adopt finds what an earlier kubelet started.
func (p *staticPod) adopt() *ran {
	var r ran
	b, err := os.ReadFile(p.stateFile())
	if err != nil || json.Unmarshal(b, &r) != nil {
		return nil
	}
	if is, err := readProcess(r.PID); err != nil || is.started != r.Ticks || is.state == "Z" {
		return nil
	}
	r.follow(nil)
	return &r
}

// follow closes ended when the program has ended.
func (r *ran) follow(cmd *exec.Cmd) {
	r.ended = make(chan struct{})
	go func() {
		defer close(r.ended)
		if cmd != nil {
			_ = cmd.Wait()
			return
		}
		_ = awaitEnd(r.PID)
	}()
}

// run keeps one pod as its manifest says. It leaves the program alone when the kubelet ends.
func (p *staticPod) run(ctx context.Context) {
	now := p.adopt()
	restarts, backoff := 0, time.Duration(0)
	if now != nil {
		restarts = now.Restarts
	}
	for ctx.Err() == nil {
		pod, hash := p.wanted()
		if now != nil && now.Hash != hash {
			now.stop(pod)
			_ = os.Remove(p.stateFile())
			now, restarts, backoff = nil, 0, 0
			continue
		}
		if pod == nil {
			select {
			case <-p.wake:
			case <-ctx.Done():
			}
			continue
		}
		if now == nil {
			var err error
			if now, err = p.start(pod, hash, restarts); err != nil {
				p.set(func(s *containerState) {
					*s = containerState{restarts: restarts, waiting: "ErrImagePull", message: err.Error()}
				})
				p.sleep(ctx, time.Second)
				continue
			}
		}
		health := p.watch(ctx, pod, now)
		select {
		case <-ctx.Done():
		case <-p.wake:
		case <-now.ended:
			if time.Since(now.Started) > backoffReset {
				backoff = 0
			}
			_ = os.Remove(p.stateFile())
			now = nil
			restarts++
			p.set(func(s *containerState) {
				*s = containerState{restarts: restarts, waiting: "CrashLoopBackOff", message: "the program ended"}
			})
			health()
			p.sleep(ctx, backoff)
			backoff = min(max(firstBackoff, 2*backoff), p.owner.maxBackoff)
			continue
		}
		health()
	}
}

// sleep waits, but not longer than until the manifest changes.
func (p *staticPod) sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-p.wake:
		p.poke()
	case <-time.After(d):
	}
}

func (p *staticPod) start(pod *corev1.Pod, hash string, restarts int) (*ran, error) {
	c := pod.Spec.Containers[0]
	if err := prepareVolumes(pod); err != nil {
		return nil, err
	}
	if pulled(c.Image) == "" {
		if err := pull("kubelet", c.Image); err != nil {
			return nil, err
		}
	}
	program := filepath.Join(images, c.Image, c.Command[0])
	if _, err := os.Stat(program); err != nil {
		return nil, fmt.Errorf("image %s: %w", c.Image, err)
	}
	// The log is where a kubelet has it, without the times that a container runtime writes before each line.
	dir := filepath.Join(podLogs, fmt.Sprintf("%s_%s-%s_%s", pod.Namespace, pod.Name, hostname(), hash), c.Name)
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.MkdirAll(podState, 0o755)); err != nil {
		return nil, err
	}
	earlier, _ := filepath.Glob(filepath.Join(dir, "*.log")) // a kubelet goes on with the number where a pod comes back
	log, err := os.OpenFile(filepath.Join(dir, fmt.Sprintf("%d.log", len(earlier))), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(program, append(slices.Clone(c.Command[1:]), c.Args...)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	for _, e := range c.Env {
		cmd.Env = append(cmd.Env, e.Name+"="+e.Value)
	}
	if cmd.Env == nil {
		cmd.Env = []string{"PATH=/usr/bin"}
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	r := &ran{PID: cmd.Process.Pid, Hash: hash, Started: time.Now(), Restarts: restarts}
	if is, err := readProcess(r.PID); err == nil {
		r.Ticks = is.started
	}
	r.follow(cmd)
	if b, err := json.Marshal(r); err == nil {
		_ = os.WriteFile(p.stateFile(), b, 0o600) // without it a later kubelet starts the program anew
	}
	p.set(func(s *containerState) { *s = containerState{started: r.Started, restarts: restarts} })
	return r, nil
}

func hostname() string {
	name, _ := os.Hostname()
	return name
}

// stop ends the program as a kubelet does, with the time that the pod gives it.
func (r *ran) stop(pod *corev1.Pod) {
	grace := 30 * time.Second
	if pod != nil && pod.Spec.TerminationGracePeriodSeconds != nil {
		grace = time.Duration(*pod.Spec.TerminationGracePeriodSeconds) * time.Second
	}
	_ = unix.Kill(-r.PID, unix.SIGTERM)
	select {
	case <-r.ended:
	case <-time.After(grace):
		_ = unix.Kill(-r.PID, unix.SIGKILL)
		<-r.ended
	}
}

// prepareVolumes makes what the pod mounts. A program sees the machine's own files, so each must be mounted where it is.
func prepareVolumes(pod *corev1.Pod) error {
	at := map[string]string{}
	for _, m := range pod.Spec.Containers[0].VolumeMounts {
		at[m.Name] = m.MountPath
	}
	for _, v := range pod.Spec.Volumes {
		if v.HostPath == nil || v.HostPath.Path != at[v.Name] {
			return fmt.Errorf("volume %s: the rack mounts folders of the machine at their own path only", v.Name)
		}
		kind := corev1.HostPathUnset
		if v.HostPath.Type != nil {
			kind = *v.HostPath.Type
		}
		info, err := os.Stat(v.HostPath.Path)
		switch {
		case err == nil && (kind == corev1.HostPathDirectory || kind == corev1.HostPathDirectoryOrCreate) && !info.IsDir():
			return fmt.Errorf("volume %s: %s is no folder", v.Name, v.HostPath.Path)
		case err == nil:
		case !errors.Is(err, fs.ErrNotExist):
			return err
		case kind == corev1.HostPathDirectoryOrCreate:
			if err := os.MkdirAll(v.HostPath.Path, 0o755); err != nil {
				return err
			}
		case kind == corev1.HostPathFileOrCreate:
			if err := writeBelow(v.HostPath.Path, ""); err != nil {
				return err
			}
		default:
			return fmt.Errorf("volume %s: %w", v.Name, err)
		}
	}
	return nil
}

// watch asks the container's probes until the function that it returns is called. Liveness and readiness wait for
// startup; a container that fails startup or liveness is killed.
func (p *staticPod) watch(ctx context.Context, pod *corev1.Pod, r *ran) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	c := pod.Spec.Containers[0]
	var probes sync.WaitGroup
	started := make(chan struct{})
	kill := func(what string, err error) {
		fmt.Fprintf(os.Stderr, "%s failed its %s probe and is killed: %v\n", pod.Name, what, err)
		r.stop(pod)
	}
	probes.Go(func() {
		if c.StartupProbe == nil {
			close(started)
			return
		}
		repeat(ctx, c, c.StartupProbe, r.Started, func(ok bool, failures int, err error) bool {
			if ok {
				close(started)
			} else if failures >= int(c.StartupProbe.FailureThreshold) {
				kill("startup", err)
				return false
			}
			return !ok
		})
	})
	afterStart := func(probe *corev1.Probe, seen func(ok bool, failures int, err error) bool) {
		probes.Go(func() {
			select {
			case <-started:
			case <-ctx.Done():
				return
			}
			if probe == nil {
				seen(true, 0, nil)
				return
			}
			repeat(ctx, c, probe, r.Started, seen)
		})
	}
	afterStart(c.LivenessProbe, func(ok bool, failures int, err error) bool {
		if ok || failures < int(c.LivenessProbe.FailureThreshold) {
			return true
		}
		kill("liveness", err)
		return false
	})
	afterStart(c.ReadinessProbe, func(ok bool, failures int, _ error) bool {
		if ok || failures >= int(c.ReadinessProbe.FailureThreshold) {
			p.set(func(s *containerState) { s.ready = ok })
		}
		return true
	})
	return func() {
		cancel()
		probes.Wait()
	}
}

// repeat asks a probe until seen returns false.
func repeat(ctx context.Context, c corev1.Container, probe *corev1.Probe, started time.Time, seen func(ok bool, failures int, err error) bool) {
	pause(ctx, time.Until(started.Add(time.Duration(probe.InitialDelaySeconds)*time.Second)))
	for failures := 0; ctx.Err() == nil; {
		err := ask(ctx, c, probe)
		if ctx.Err() != nil {
			return
		}
		if failures++; err == nil {
			failures = 0
		}
		if !seen(err == nil, failures, err) {
			return
		}
		pause(ctx, time.Duration(max(probe.PeriodSeconds, 1))*time.Second)
	}
}

// prober does not verify certificates, as a kubelet does not.
var prober = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}

func ask(ctx context.Context, c corev1.Container, probe *corev1.Probe) error {
	get := probe.HTTPGet
	if get == nil {
		return errors.New("the rack knows only probes by HTTP")
	}
	port := get.Port.IntValue()
	if get.Port.Type == intstr.String {
		i := slices.IndexFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.Name == get.Port.StrVal })
		if i < 0 {
			return fmt.Errorf("there is no port %q", get.Port.StrVal)
		}
		port = int(c.Ports[i].ContainerPort)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(max(probe.TimeoutSeconds, 1))*time.Second)
	defer cancel()
	url := strings.ToLower(string(get.Scheme)) + "://" + net.JoinHostPort(get.Host, fmt.Sprint(port)) + get.Path
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := prober.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 64<<10))
	if response.StatusCode < 200 || response.StatusCode >= 400 {
		return fmt.Errorf("it answers %s", response.Status)
	}
	return nil
}
