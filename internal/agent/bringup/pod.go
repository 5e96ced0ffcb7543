package bringup

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"coldrack.dev/internal/agent/nodefile"
)

// A static pod runs on for a while after its manifest was replaced: the kubelet has to notice it and to end the old pod. Until
// then the old one answers probes, and the change would seem to be done. So what the pod has written logs to is noted before the
// manifest is replaced; the new one has begun when there is another log.

// replacing notes the logs of the pods whose manifests are about to be replaced.
func (p *pass) replacing(pods []string) error {
	if len(pods) == 0 {
		return nil
	}
	p.podsMu.Lock()
	defer p.podsMu.Unlock()
	logs := p.podsReplaced()
	for _, pod := range pods {
		if has := p.logsOf(pod); len(has) > 0 { // else nothing runs that could answer
			logs[pod] = has
		}
	}
	return nodefile.WriteJSON(p.disk, podsFile, logs)
}

// awaitReplaced waits until the pods of these files were started anew after their manifests had been replaced.
func (p *part) awaitReplaced(ctx context.Context, files []string) error {
	for _, file := range files {
		if path.Dir(file) == manifestsDir {
			if err := p.awaitPod(ctx, podOf(file)); err != nil {
				return err
			}
		}
	}
	return nil
}

// awaitPod does not wait for ever: a pod that never starts is for the probe to tell.
func (p *part) awaitPod(ctx context.Context, pod string) error {
	p.podsMu.Lock()
	before, replaced := p.podsReplaced()[pod]
	p.podsMu.Unlock()
	if !replaced {
		return nil
	}
	what := pod + " to start anew"
	since := p.waiting(what, p.Now())
	for !slices.ContainsFunc(p.logsOf(pod), func(log string) bool { return !slices.Contains(before, log) }) {
		if p.Now().Sub(since) >= p.Pace.Restart {
			p.Log.Warn("static pod was not started anew in time; continuing", "phase", p.name, "pod", pod, "waited", p.Pace.Restart)
			break
		}
		p.say("waits for %s since %s", what, since.UTC().Format("15:04:05 MST"))
		p.Sleep(ctx, p.Pace.Probe)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	p.waited(what)
	return p.replaced(pod)
}

// replaced notes that a pod was started anew.
func (p *pass) replaced(pod string) error {
	p.podsMu.Lock()
	defer p.podsMu.Unlock()
	logs := p.podsReplaced()
	delete(logs, pod)
	return nodefile.WriteJSON(p.disk, podsFile, logs)
}

// podsReplaced are the logs of pods before their manifests were replaced. It needs podsMu.
func (p *pass) podsReplaced() map[string][]string {
	logs := map[string][]string{}
	if err := nodefile.ReadJSON(p.disk, podsFile, &logs); err != nil && !errors.Is(err, fs.ErrNotExist) {
		p.Log.Warn("list of static pods that start anew is unusable; not waiting for them", "err", err)
		return map[string][]string{}
	}
	return logs
}

func podOf(manifest string) string { return strings.TrimSuffix(path.Base(manifest), ".yaml") }

// logsOf are the logs of a static pod's containers.
func (p *pass) logsOf(pod string) []string {
	files, _ := filepath.Glob(p.disk.At(podLogs) + "/kube-system_" + pod + "-" + p.plan.NodeName + "_*/*/*.log")
	return files
}
