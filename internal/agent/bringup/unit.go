package bringup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"coldrack.dev/internal/contract/wire"
)

// units runs the phase's units.
func (p *part) units(ctx context.Context, names []string) error {
	if len(names) == 0 {
		return nil
	}
	if err := p.introduce(ctx); err != nil {
		return err
	}
	for _, name := range names {
		if err := p.unit(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// introduce has systemd know all units of the plan as they are to be, and start them at each boot, once in a pass.
// systemd reads everything anew for it, which takes a slow machine longer than to start a unit: once for all of them.
func (p *part) introduce(ctx context.Context) error {
	p.introducing.Lock()
	defer p.introducing.Unlock()
	if p.introduced {
		return nil
	}
	files := map[string][]byte{}
	for _, u := range p.plan.Units {
		maps.Copy(files, unitFiles(u))
	}
	var list []wire.NodeFile
	for _, file := range slices.Sorted(maps.Keys(files)) {
		list = append(list, wire.NodeFile{Path: file, Mode: 0o644, Content: files[file]})
	}
	if err := p.write(list); err != nil {
		return err
	}
	var disabled []string
	reload := false
	for _, u := range p.plan.Units {
		state, err := p.Systemd.State(ctx, u.Name)
		if err != nil {
			return err
		}
		ours := state.Load == "not-found" && len(u.Content) > 0
		reload = reload || ours || state.NeedReload
		if ours || state.Load == "loaded" && state.File == "disabled" {
			disabled = append(disabled, u.Name)
		}
	}
	if len(disabled) > 0 {
		if err := p.Systemd.Do(ctx, "enable", disabled...); err != nil {
			return err
		}
		p.changed("units enabled", "units", disabled)
	}
	if reload || len(disabled) > 0 {
		if err := p.Systemd.Do(ctx, "daemon-reload"); err != nil {
			return err
		}
	}
	p.introduced = true
	return nil
}

// unit makes sure that a unit runs, with what it reads as it is now.
func (p *part) unit(ctx context.Context, name string) error {
	due, reload := p.ledger.Pending(name), p.ledger.Pending(reloadOf(name))
	state, err := p.Systemd.State(ctx, name)
	if err != nil {
		return err
	}
	switch state.Load {
	case "loaded":
	case "not-found":
		return fmt.Errorf("%s is not on this node: the image lacks the package that brings it", name)
	case "masked":
		return fmt.Errorf("%s is masked: somebody forbade it to start; to allow it again: systemctl unmask %s", name, name)
	default:
		return fmt.Errorf("systemd cannot load %s: %s; see systemctl status %s", name, state.Load, name)
	}
	verb, says := "start", "starts"
	switch {
	case due != 0:
		verb, says = "restart", "restarts"
	case state.Active == "active" && reload == 0:
		return nil
	case state.Active == "active":
		verb, says = "reload-or-restart", "reloads"
	}
	if state.Active == "failed" {
		// systemd gives up on a unit that failed often; what made it fail may be mended now.
		if err := p.Systemd.Do(ctx, "reset-failed", name); err != nil {
			return err
		}
	}
	p.say("%s %s", says, name)
	if err := p.Systemd.Do(ctx, verb, name); err != nil {
		return p.withLog(ctx, err, name)
	}
	p.changed("unit runs", "unit", name, "by", verb)
	return errors.Join(p.ledger.Restarted(name, due), p.ledger.Restarted(reloadOf(name), reload))
}

// stopFirst stops the units that lead others to what the phase is about to replace. Those that another phase starts are running again
// when that is done.
func (p *part) stopFirst(ctx context.Context) error {
	for _, name := range find(p.plan.Phases, func(ph wire.Phase) bool { return ph.Name == p.name }).StopFirst {
		state, err := p.Systemd.State(ctx, name)
		if err != nil {
			return err
		}
		if state.Active != "active" {
			continue
		}
		p.say("stops %s", name)
		if err := p.Systemd.Do(ctx, "stop", name); err != nil {
			return p.withLog(ctx, err, name)
		}
		p.changed("unit stopped until what it leads to is replaced", "unit", name)
	}
	return nil
}

// reloadOf is under what the ledger notes that a unit is to read its files again without an interruption.
func reloadOf(unit string) string { return unit + " reload" }

func (p *part) withLog(ctx context.Context, err error, unit string) error {
	if lines := p.Systemd.Log(ctx, unit, logLines); len(lines) > 0 {
		return fmt.Errorf("%w; the end of its log: %s", err, strings.Join(lines, " | "))
	}
	return err
}

// system has the phase's files for the kernel and systemd take effect: modules are loaded, parameters set. It
// looks at what is in force, so that a setting that something else changed comes back.
func (p *part) system(ctx context.Context, files []string) error {
	for _, e := range effects() {
		own := slices.DeleteFunc(slices.Clone(files), func(f string) bool { return !strings.HasPrefix(f, e.prefix) })
		if len(own) == 0 {
			continue
		}
		due := p.ledger.Pending(e.unit)
		wrong, err := p.inForce(e, own)
		if err != nil {
			return err
		}
		if due == 0 && wrong == "" {
			continue
		}
		p.say("restarts %s", e.unit)
		if err := p.Systemd.Do(ctx, e.verb, e.unit); err != nil {
			return p.withLog(ctx, err, e.unit)
		}
		p.changed("applied", "unit", e.unit, "because", wrong)
		if wrong, err = p.inForce(e, own); err != nil {
			return err
		} else if wrong != "" {
			return fmt.Errorf("%s ran, and still %s", e.unit, wrong)
		}
		if err := p.ledger.Restarted(e.unit, due); err != nil {
			return err
		}
	}
	return nil
}

// inForce says what is not as the files say.
func (p *pass) inForce(e effect, files []string) (string, error) {
	for _, file := range files {
		f := fileAt(p.plan, file)
		if f == nil || f.Dir || f.Link != "" {
			continue
		}
		for line := range strings.Lines(string(f.Content)) {
			line = strings.TrimSpace(line)
			if line == "" || strings.ContainsAny(line[:1], "#;") {
				continue
			}
			switch e.prefix {
			case "/etc/modules-load.d/":
				if !p.hasModule(line) {
					return fmt.Sprintf("kernel module %s is not loaded", line), nil
				}
			case "/etc/sysctl.d/":
				if wrong := p.parameter(line); wrong != "" {
					return wrong, nil
				}
			}
		}
	}
	return "", nil
}

// hasModule knows modules that are loaded and those that are part of the kernel.
func (p *pass) hasModule(name string) bool {
	same := func(s string) string { return strings.ReplaceAll(s, "-", "_") }
	if _, err := os.Stat(p.disk.At("/sys/module/" + same(name))); err == nil {
		return true
	}
	release, err := os.ReadFile(p.disk.At("/proc/sys/kernel/osrelease"))
	if err != nil {
		return false
	}
	builtin, err := os.ReadFile(p.disk.At("/lib/modules/" + strings.TrimSpace(string(release)) + "/modules.builtin"))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(builtin)) {
		if same(strings.TrimSuffix(path.Base(strings.TrimSpace(line)), ".ko")) == same(name) {
			return true
		}
	}
	return false
}

// parameter compares a line of sysctl.d(5) with the kernel.
func (p *pass) parameter(line string) string {
	key, want, ok := strings.Cut(line, "=")
	key, want = strings.TrimSpace(strings.TrimPrefix(key, "-")), strings.Join(strings.Fields(want), " ")
	if !ok || strings.ContainsAny(key, "*") {
		return ""
	}
	file := key
	if first := strings.IndexAny(key, "./"); first >= 0 && key[first] == '.' { // dots and slashes are exchanged where a dot comes first
		file = strings.Map(func(r rune) rune {
			switch r {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return r
		}, key)
	}
	b, err := os.ReadFile(p.disk.At("/proc/sys/" + file))
	if err != nil {
		return fmt.Sprintf("kernel parameter %s cannot be read: %v", key, pathless(err))
	}
	if is := strings.Join(strings.Fields(string(b)), " "); is != want {
		return fmt.Sprintf("kernel parameter %s is %s, want %s (does another file of /etc/sysctl.d set it, too?)", key, is, want)
	}
	return ""
}

func pathless(err error) error {
	if e, ok := err.(*fs.PathError); ok {
		return e.Err
	}
	return err
}
