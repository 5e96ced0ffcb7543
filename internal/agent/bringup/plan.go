package bringup

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"

	"coldrack.dev/internal/agent/nodecert"
	"coldrack.dev/internal/agent/systemd"
	"coldrack.dev/internal/contract/wire"
)

// Validate refuses a plan that cannot be carried out whatever happens: a name that leads nowhere, a circle of
// phases, a path that is none. Everything that is wrong is in the error.
func Validate(plan *wire.NodePlan) error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if plan.Cluster == "" || plan.NodeName == "" {
		wrong("cluster and nodeName must both be there")
	}
	paths := map[string]string{}
	place := func(what, p string) {
		if !path.IsAbs(p) || path.Clean(p) != p || p == "/" {
			wrong("%s: path %q is not absolute and clean", what, p)
		}
		if other, taken := paths[p]; taken && other != what {
			wrong("%s and %s are both to be at %s", other, what, p)
		}
		paths[p] = what
	}
	for i, p := range plan.Programs {
		what := fmt.Sprintf("programs[%d] %s", i, p.Name)
		place(what, p.Path)
		if p.Size <= 0 || !strings.HasPrefix(p.Digest, "sha256:") || !strings.HasPrefix(p.Content.Digest, "sha256:") || p.Content.Size <= 0 {
			wrong("%s: sizes and sha256 digests of the file and of its content must be there", what)
		}
		if !slices.ContainsFunc(plan.Phases, func(ph wire.Phase) bool { return ph.Name == p.Phase }) {
			wrong("%s: there is no phase %q to bring it", what, p.Phase)
		}
	}
	for i, f := range plan.Files {
		place(fmt.Sprintf("files[%d]", i), f.Path)
		if f.Dir && f.Link != "" {
			wrong("files[%d] %s is both a folder and a link", i, f.Path)
		}
	}
	certificates := map[string]bool{}
	for i, c := range plan.Certificates {
		what := fmt.Sprintf("certificates[%d] %s", i, c.Name)
		certificates[c.Name] = true
		place(what, c.CertPath)
		place(what, c.KeyPath)
		if _, err := nodecert.KeyMaker(c.KeyAlgorithm); err != nil {
			wrong("%s: %w", what, err)
		}
		if _, err := nodecert.Parse([]byte(c.Authority)); err != nil {
			wrong("%s: authority: %w", what, err)
		}
	}
	for i, k := range plan.Kubeconfigs {
		place(fmt.Sprintf("kubeconfigs[%d]", i), k.Path)
		if !certificates[k.Certificate] {
			wrong("kubeconfigs[%d] %s: there is no certificate %q", i, k.Path, k.Certificate)
		}
	}
	for i, u := range plan.Units {
		if u.Name == "" || strings.ContainsAny(u.Name, "/ \n") || !strings.Contains(u.Name, ".") {
			wrong("units[%d]: %q is not the name of a unit", i, u.Name)
		}
		for name := range u.DropIns {
			if !strings.HasSuffix(name, ".conf") || strings.Contains(name, "/") {
				wrong("units[%d] %s: %q is not the name of a drop-in", i, u.Name, name)
			}
		}
	}
	for i, r := range plan.Routes {
		if _, err := netip.ParsePrefix(r.To); err != nil {
			wrong("routes[%d]: %w", i, err)
		}
		if _, err := netip.ParseAddr(r.Via); err != nil {
			wrong("routes[%d]: %w", i, err)
		}
	}
	for i, r := range plan.ServiceRoutes {
		to, err := netip.ParsePrefix(r.To)
		if err != nil {
			wrong("serviceRoutes[%d]: %w", i, err)
		}
		source, err := netip.ParseAddr(r.Source)
		if err != nil {
			wrong("serviceRoutes[%d]: %w", i, err)
		}
		if to.IsValid() && source.IsValid() && to.Addr().Is4() != source.Is4() {
			wrong("serviceRoutes[%d]: %s and %s must be of one IP family", i, to, source)
		}
	}
	validatePhases(plan, certificates, wrong)
	if len(errs) > 0 {
		return fmt.Errorf("the plan that the server sent cannot be carried out: %w", errors.Join(errs...))
	}
	return nil
}

func validatePhases(plan *wire.NodePlan, certificates map[string]bool, wrong func(string, ...any)) {
	for i, ph := range plan.Phases {
		what := fmt.Sprintf("phases[%d] %s", i, ph.Name)
		if ph.Name == "" || slices.IndexFunc(plan.Phases, func(p wire.Phase) bool { return p.Name == ph.Name }) != i {
			wrong("%s: every phase needs a name of its own", what)
		}
		for _, p := range ph.Files {
			if fileAt(plan, p) == nil {
				wrong("%s: there is no file %s", what, p)
			}
		}
		for _, c := range ph.Certificates {
			if !certificates[c] {
				wrong("%s: there is no certificate %q", what, c)
			}
		}
		for _, k := range ph.Kubeconfigs {
			if !slices.ContainsFunc(plan.Kubeconfigs, func(c wire.NodeKubeconfig) bool { return c.Path == k }) {
				wrong("%s: there is no kubeconfig %s", what, k)
			}
		}
		for _, u := range ph.Units {
			if !slices.ContainsFunc(plan.Units, func(c wire.NodeUnit) bool { return c.Name == u }) {
				wrong("%s: there is no unit %s", what, u)
			}
		}
	}
	// What can begin is taken away until nothing is left, or nothing can begin.
	left := slices.Clone(plan.Phases)
	for begun := map[string]bool{}; len(left) > 0; {
		ready := slices.IndexFunc(left, func(ph wire.Phase) bool {
			return !slices.ContainsFunc(ph.After, func(a string) bool { return !begun[a] })
		})
		if ready < 0 {
			var names []string
			for _, ph := range left {
				names = append(names, ph.Name+" (after "+strings.Join(ph.After, ", ")+")")
			}
			wrong("no order of phases: %s", strings.Join(names, "; "))
			return
		}
		begun[left[ready].Name] = true
		left = slices.Delete(left, ready, ready+1)
	}
}

// worksOn says that a phase does more than wait.
func worksOn(plan *wire.NodePlan, ph wire.Phase) bool {
	return len(programsOf(plan, ph.Name))+len(ph.Files)+len(ph.Certificates)+len(ph.Kubeconfigs)+len(ph.Units) > 0 ||
		ph.Routes || ph.LoadBalancer
}

// programsOf a phase.
func programsOf(plan *wire.NodePlan, phase string) []wire.Program {
	return slices.DeleteFunc(slices.Clone(plan.Programs), func(p wire.Program) bool { return p.Phase != phase })
}

func fileAt(plan *wire.NodePlan, p string) *wire.NodeFile {
	for i := range plan.Files {
		if plan.Files[i].Path == p {
			return &plan.Files[i]
		}
	}
	return nil
}

func find[T any](list []T, is func(T) bool) (found T) {
	if i := slices.IndexFunc(list, is); i >= 0 {
		return list[i]
	}
	return found
}

// unitFiles are the files of a unit, by path.
func unitFiles(u wire.NodeUnit) map[string][]byte {
	files := map[string][]byte{}
	if len(u.Content) > 0 {
		files[systemd.UnitDir+"/"+u.Name] = u.Content
	}
	for name, content := range u.DropIns {
		files[systemd.UnitDir+"/"+u.Name+".d/"+name] = content
	}
	return files
}

// belongings are all paths that a plan puts something at, without the folders above them.
func belongings(plan *wire.NodePlan) map[string]bool {
	wanted := map[string]bool{}
	for _, p := range plan.Programs {
		wanted[p.Path] = true
	}
	for _, f := range plan.Files {
		wanted[f.Path] = true
	}
	for _, c := range plan.Certificates {
		wanted[c.CertPath], wanted[c.KeyPath], wanted[nodecert.Fresh(c)] = true, true, true
	}
	for _, k := range plan.Kubeconfigs {
		wanted[k.Path] = true
	}
	for _, u := range plan.Units {
		for p := range unitFiles(u) {
			wanted[p] = true
		}
	}
	return wanted
}

// stale are the paths that were written for an earlier plan and that plan has no use for and that are not kept for another one, what is
// deepest first. Static pods come before all: they run until their manifest is gone.
func stale(plan *wire.NodePlan, kept, written []string) []string {
	keep := map[string]bool{}
	wanted := belongings(plan)
	for _, p := range kept {
		wanted[p] = true
	}
	for p := range wanted {
		for ; p != "/"; p = path.Dir(p) {
			keep[p] = true
		}
	}
	gone := slices.DeleteFunc(slices.Clone(written), func(p string) bool { return keep[p] })
	slices.SortFunc(gone, func(a, b string) int {
		if x, y := path.Dir(a) == manifestsDir, path.Dir(b) == manifestsDir; x != y {
			if x {
				return -1
			}
			return 1
		}
		return strings.Compare(b, a) // a folder is a prefix of what it contains
	})
	return gone
}

// readers are the units of a plan that read the file at p only when they start: those that name it, those that
// refer to it through a kubeconfig, and the unit NAME.service for a file directly in /etc/NAME.
func readers(plan *wire.NodePlan, p string) []string {
	named := []string{p}
	for _, c := range plan.Certificates {
		if c.Rotated && (c.CertPath == p || c.KeyPath == p) { // others are read again by their users, or name pods
			for _, k := range plan.Kubeconfigs {
				if k.Certificate == c.Name && !k.Embed {
					named = append(named, k.Path)
				}
			}
		}
	}
	var units []string
	for _, u := range plan.Units {
		stem, _, _ := strings.Cut(u.Name, ".")
		reads := path.Dir(p) == "/etc/"+stem
		for file, content := range unitFiles(u) {
			reads = reads || file == p || slices.ContainsFunc(named, func(n string) bool { return mentions(string(content), n) })
		}
		if reads {
			units = append(units, u.Name)
		}
	}
	for _, e := range effects() {
		if strings.HasPrefix(p, e.prefix) {
			units = append(units, e.unit)
		}
	}
	// A drop-in that this plan has no more was read by its unit all the same.
	if dir := path.Dir(p); strings.HasSuffix(dir, ".d") && path.Dir(dir) == systemd.UnitDir {
		name := strings.TrimSuffix(path.Base(dir), ".d")
		if !slices.Contains(units, name) && slices.ContainsFunc(plan.Units, func(u wire.NodeUnit) bool { return u.Name == name }) {
			units = append(units, name)
		}
	}
	return units
}

// mentions says that text names the path p, and not only a longer one.
func mentions(text, p string) bool {
	for {
		i := strings.Index(text, p)
		if i < 0 {
			return false
		}
		before, after := text[:i], text[i+len(p):]
		if (before == "" || strings.ContainsAny(before[len(before)-1:], " =-\"'\n\t@:,")) && (after == "" || strings.ContainsAny(after[:1], " \"'\n\t,;")) {
			return true
		}
		text = after
	}
}

// effect is a unit of the system that makes files below prefix take effect.
type effect struct{ prefix, unit, verb string }

// effects in the order in which they are wanted: kernel parameters may be those of a module.
func effects() []effect {
	return []effect{
		{"/etc/modules-load.d/", "systemd-modules-load.service", "restart"},
		{"/etc/sysctl.d/", "systemd-sysctl.service", "restart"},
		{"/etc/systemd/networkd.conf.d/", "systemd-networkd.service", "try-restart"},
	}
}

// followers are the phases that begin only after the named one, directly or by others between.
func followers(plan *wire.NodePlan, name string) []string {
	var list []string
	for grown := true; grown; {
		grown = false
		for _, ph := range plan.Phases {
			follows := slices.ContainsFunc(ph.After, func(before string) bool { return before == name || slices.Contains(list, before) })
			if follows && !slices.Contains(list, ph.Name) {
				list, grown = append(list, ph.Name), true
			}
		}
	}
	return list
}
