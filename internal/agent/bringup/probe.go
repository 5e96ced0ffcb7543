package bringup

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"coldrack.dev/internal/agent/systemd"
	"coldrack.dev/internal/contract/wire"
)

const (
	logLines    = 3
	kubeletUnit = "kubelet.service"
	// podLogs is where the kubelet keeps the logs of containers: NAMESPACE_POD_UID/CONTAINER/N.log.
	podLogs = "/var/log/pods"
)

// criLine is what a container runtime writes before each line of a container: time, stream, and F for a whole line.
var criLine = regexp.MustCompile(`(?m)^\S+ (stdout|stderr) [FP] `)

// newProber makes a client for what runs on this node itself. Certificates are not verified: whoever can answer
// at the node's own addresses owns the node, and nothing secret is sent.
func newProber(limit time.Duration) *http.Client {
	return &http.Client{
		Timeout: limit,
		Transport: &http.Transport{
			DialContext:       (&net.Dialer{Timeout: limit}).DialContext,
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12},
			DisableKeepAlives: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// awaitAPI waits until the load balancer has an API server that is ready. It asks nobody itself: every connection costs the
// API server that is just starting more than it costs us. With a patience above zero it goes on without when that is over,
// in this pass and at once in later ones.
func (p *part) awaitAPI(ctx context.Context, patience time.Duration) error {
	const what = "an API server"
	since := p.waiting(what, p.Now())
	until := ""
	if patience > 0 {
		until = since.Add(patience).UTC().Format(", until 15:04:05 MST at the latest")
	}
	for {
		ready, why := p.Balancer.Health()
		if ready {
			p.waited(what)
			return nil
		}
		if patience > 0 && p.Now().Sub(since) >= patience {
			p.Log.Warn("no API server answered in time; continuing without it", "phase", p.name, "waited", patience, "because", why)
			return nil
		}
		p.say("waits for %s since %s%s: %s", what, since.UTC().Format("15:04:05 MST"), until, strings.Join(why, "; "))
		p.Sleep(ctx, p.Pace.Probe)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// probe waits until a URL answers 200, for as long as it takes: how fast a machine is nobody knows. It says what
// it waits for, and after a while what can be seen of the reason.
func (p *part) probe(ctx context.Context, target string) error {
	since := p.waiting(target, p.Now())
	var seen string
	var looked time.Time
	for {
		err := p.ask(ctx, target)
		if err == nil {
			p.waited(target)
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		now := p.Now()
		if now.Sub(since) >= p.Pace.Explain && (looked.IsZero() || now.Sub(looked) >= p.Pace.Explain/2) {
			seen, looked = p.evidence(ctx, target), now
		}
		// No duration: a message that changes by itself would be reported again and again.
		p.say("waits for %s since %s: %s%s", target, since.UTC().Format("15:04:05 MST"), reason(err), seen)
		p.Sleep(ctx, p.Pace.Probe)
	}
}

func (p *pass) ask(ctx context.Context, target string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return err
	}
	resp, err := p.prober.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<10))
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	if err != nil {
		body = nil
	}
	return &statusError{resp.StatusCode, body}
}

type statusError struct {
	status int
	body   []byte
}

// Error names the checks that failed, where the answer is a list of checks as Kubernetes writes it.
func (e *statusError) Error() string {
	var failed []string
	for line := range bytes.Lines(e.body) {
		if check, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte("[-]")); ok {
			failed = append(failed, systemd.Cut(string(check), 80))
		}
	}
	text := fmt.Sprintf("it answers %d", e.status)
	if len(failed) > 0 {
		return text + ": " + strings.Join(failed, ", ")
	}
	if line, _, _ := strings.Cut(strings.TrimSpace(string(e.body)), "\n"); line != "" {
		return text + ": " + systemd.Cut(line, 120)
	}
	return text
}

// reason is the part of a network error that stays the same from one try to the next.
func reason(err error) string {
	var timeout interface{ Timeout() bool }
	if errors.As(err, &timeout) && timeout.Timeout() {
		return "no answer in time"
	}
	if u := (*url.Error)(nil); errors.As(err, &u) {
		err = u.Err
	}
	if o := (*net.OpError)(nil); errors.As(err, &o) {
		err = o.Err
	}
	if s := (*os.SyscallError)(nil); errors.As(err, &s) {
		err = s.Err
	}
	return err.Error()
}

// evidence is what a person would look at first: the log of the container that should answer, or why there is
// none.
func (p *pass) evidence(ctx context.Context, target string) string {
	if pod := podAt(p.plan, target); pod != "" {
		if file := p.newestLog(pod); file != "" {
			lines := systemd.LastLines(criLine.ReplaceAll(tail(file, 16<<10), nil), logLines)
			if len(lines) > 0 {
				return fmt.Sprintf("; the end of %s's log: %s", pod, strings.Join(lines, " | "))
			}
		}
		return fmt.Sprintf("; %s has no log yet%s", pod, p.kubeletState(ctx))
	}
	return p.kubeletState(ctx)
}

func (p *pass) kubeletState(ctx context.Context) string {
	if find(p.plan.Units, func(u wire.NodeUnit) bool { return u.Name == kubeletUnit }).Name == "" {
		return ""
	}
	state, err := p.Systemd.State(ctx, kubeletUnit)
	if err != nil {
		return ""
	}
	text := "; " + kubeletUnit + " is " + state.String()
	if lines := p.Systemd.Log(ctx, kubeletUnit, logLines); len(lines) > 0 {
		text += ", the end of its log: " + strings.Join(lines, " | ")
	}
	return text
}

// podAt is the static pod that listens at a URL's port, "" if none does.
func podAt(plan *wire.NodePlan, target string) string {
	u, err := url.Parse(target)
	if err != nil || u.Port() == "" {
		return ""
	}
	port := regexp.MustCompile(`(?m)[pP]ort: ` + u.Port() + `$`)
	for _, f := range plan.Files {
		if filepath.Dir(f.Path) == manifestsDir && !f.Dir && port.Match(f.Content) {
			return strings.TrimSuffix(filepath.Base(f.Path), ".yaml")
		}
	}
	return ""
}

func (p *pass) newestLog(pod string) string {
	files := p.logsOf(pod)
	if len(files) == 0 {
		return ""
	}
	return slices.MaxFunc(files, func(a, b string) int { return modified(a).Compare(modified(b)) })
}

func modified(file string) time.Time {
	info, err := os.Stat(file)
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

func tail(file string, n int64) []byte {
	f, err := os.Open(file)
	if err != nil {
		return nil
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > n {
		if _, err := f.Seek(-n, io.SeekEnd); err != nil {
			return nil
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, n))
	if err != nil {
		return nil
	}
	return b
}
