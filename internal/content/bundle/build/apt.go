package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// apt is a private instance of the host's apt: the host's network settings and keys, but lists,
// state and downloads of its own, as if no package were installed.
type apt struct {
	dir     string // in the cache
	recipe  AptRecipe
	log     *slog.Logger
	detail  func(string, ...any)
	sources string // content of sources.list
}

// pkg is one version of a Debian package.
type pkg struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Arch    string `json:"arch"`
}

func (p pkg) String() string { return p.Name + "=" + p.Version }

// key names the section among others: the suite, and a hash of all that it says.
func (r *AptRecipe) key() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %q", r.Suite, r.Components, r.Mirrors))
	return r.Suite + "-" + hex.EncodeToString(sum[:4])
}

// listsMaxAge is how old package lists may be before they are fetched again.
const listsMaxAge = 12 * time.Hour

func newApt(ctx context.Context, dir string, recipe AptRecipe, log *slog.Logger, detail func(string, ...any)) (*apt, error) {
	a := &apt{dir: dir, recipe: recipe, log: log, detail: detail}
	for _, d := range []string{a.lists(), filepath.Join(dir, "cache", "archives", "partial")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, fmt.Errorf("apt: %w", err)
		}
	}
	if err := a.configure(ctx); err != nil {
		return nil, fmt.Errorf("apt: %w", err)
	}
	return a, nil
}

func (a *apt) lists() string       { return filepath.Join(a.dir, "state", "lists") }
func (a *apt) sourcesFile() string { return filepath.Join(a.dir, "sources.list") }
func (a *apt) networkFile() string { return filepath.Join(a.dir, "network.conf") }
func (a *apt) configFile() string  { return filepath.Join(a.dir, "apt.conf") }
func (a *apt) archive(file string) string {
	return filepath.Join(a.dir, "cache", "archives", file)
}

// configure writes apt's configuration. The host's own hooks and cache settings stay outside; its
// settings for fetching (proxies, time-outs, checks) are taken over.
func (a *apt) configure(ctx context.Context) error {
	dump, err := command{log: a.log}.run(ctx, "apt-config", "dump")
	if err != nil {
		return err
	}
	var network []string
	for line := range strings.Lines(dump) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "Acquire::") && !strings.HasSuffix(line, ` "";`) {
			network = append(network, line)
		}
	}
	a.sources, err = a.findSources(ctx)
	if err != nil {
		return err
	}
	config := append(slices.Clone(network),
		`Dir::State "`+filepath.Join(a.dir, "state")+`";`,
		`Dir::State::status "`+filepath.Join(a.dir, "status")+`";`,
		`Dir::State::extended_states "`+filepath.Join(a.dir, "extended_states")+`";`,
		`Dir::Cache "`+filepath.Join(a.dir, "cache")+`";`,
		`Dir::Etc::sourcelist "`+a.sourcesFile()+`";`,
		`Dir::Etc::sourceparts "/dev/null";`,
		`Dir::Etc::parts "/dev/null";`,
		`Dir::Etc::main "/dev/null";`,
		`Dir::Etc::preferences "/dev/null";`,
		`Dir::Etc::preferencesparts "/dev/null";`,
		`APT::Architecture "amd64";`,
		`APT::Architectures { "amd64"; };`,
		`APT::Install-Recommends "false";`,
		`APT::Sandbox::User "root";`,
		`Acquire::Languages "none";`,
		`Acquire::Retries "3";`,
		`Binary::apt-get::APT::Keep-Downloaded-Packages "true";`,
		`Debug::NoLocking "true";`,
	)
	for file, content := range map[string]string{
		a.sourcesFile():                a.sources,
		a.networkFile():                strings.Join(network, "\n") + "\n",
		a.configFile():                 strings.Join(config, "\n") + "\n",
		filepath.Join(a.dir, "status"): "",
	} {
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// findSources returns a sources.list with the recipe's mirrors, or with what the host's apt is
// configured with, as far as it is the recipe's suite; where nothing is, with the recipe's suite of the same mirrors.
func (a *apt) findSources(ctx context.Context) (string, error) {
	if len(a.recipe.Mirrors) > 0 {
		var b strings.Builder
		for _, m := range a.recipe.Mirrors {
			b.WriteString(source{m.URI, m.Suite, a.recipe.Components, m.Keyring}.line())
		}
		return b.String(), nil
	}
	// apt-get indextargets would list them, but only after apt-get update.
	out, err := command{log: a.log}.run(ctx, "apt-config", "shell", "list", "Dir::Etc::sourcelist/f", "parts", "Dir::Etc::sourceparts/d")
	if err != nil {
		return "", err
	}
	var files []string
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		value = strings.Trim(value, "'")
		if key == "list" {
			files = append(files, value)
			continue
		}
		for _, pattern := range []string{"*.list", "*.sources"} {
			found, _ := filepath.Glob(filepath.Join(value, pattern)) // only a bad pattern is an error
			files = append(files, found...)
		}
	}
	var all []source
	var suites []string
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		for _, s := range parseSources(f, string(raw)) {
			all = append(all, s)
			suites = append(suites, s.suite)
		}
	}
	sources := selectSources(all, a.recipe)
	if sources == "" {
		sources = selectSources(translate(all, a.recipe.Suite), a.recipe)
	}
	if sources == "" {
		return "", fmt.Errorf("this machine's apt has no source of suite %s with components %q, only of %q; configure one, or set apt.mirrors in the recipe",
			a.recipe.Suite, a.recipe.Components, suites)
	}
	return sources, nil
}

func (a *apt) get(ctx context.Context, args ...string) (string, error) {
	return command{log: a.log, env: []string{"APT_CONFIG=" + a.configFile()}}.run(ctx, "apt-get", args...)
}

// update fetches package lists when there are none for these sources or they are old. Old lists are
// better than none when the mirror cannot be reached.
func (a *apt) update(ctx context.Context, force bool) error {
	sum := sha256.Sum256([]byte(a.sources))
	stamp := filepath.Join(a.dir, "updated-"+hex.EncodeToString(sum[:8]))
	st, err := os.Stat(stamp)
	if err == nil && !force && time.Since(st.ModTime()) < listsMaxAge {
		return nil
	}
	a.detail("fetch package lists")
	_, fetchErr := a.get(ctx, "update", "-o", "APT::Update::Error-Mode=any")
	switch {
	case fetchErr == nil:
		return errors.Join(os.RemoveAll(filepath.Join(a.dir, "resolved")), os.WriteFile(stamp, nil, 0o644))
	case err != nil || force || ctx.Err() != nil:
		return fmt.Errorf("fetch package lists: %w", fetchErr)
	}
	a.log.Warn("cannot fetch package lists; using those of an earlier build", "from", st.ModTime(), "error", fetchErr)
	return nil
}

var instLine = regexp.MustCompile(`^Inst (\S+) \((\S+) .*\[(\S+)\]`)

// resolve returns the named packages (or apt patterns) and all they depend on, sorted. apt's answer is
// kept for as long as the package lists are the same.
func (a *apt) resolve(ctx context.Context, names []string) ([]pkg, error) {
	key, err := a.listsKey(names)
	if err != nil {
		return nil, fmt.Errorf("find packages: %w", err)
	}
	answer := filepath.Join(a.dir, "resolved", key)
	if pkgs, err := readPackages(answer); err == nil {
		return pkgs, nil
	}
	pkgs, err := a.simulate(ctx, names)
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(pkgs)
	if err != nil {
		return nil, fmt.Errorf("find packages: %w", err)
	}
	if err := errors.Join(os.MkdirAll(filepath.Dir(answer), 0o755), os.WriteFile(answer, raw, 0o644)); err != nil {
		return nil, fmt.Errorf("find packages: %w", err)
	}
	return pkgs, nil
}

// listsKey names a question to apt and all that its answer depends on: a release file has the
// digests of the lists that belong to it.
func (a *apt) listsKey(names []string) (string, error) {
	releases, err := filepath.Glob(filepath.Join(a.lists(), "*Release"))
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	fmt.Fprintf(sum, "%q %q", a.sources, names)
	for _, file := range releases {
		raw, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(sum, "%s %d %s", filepath.Base(file), len(raw), raw)
	}
	return hex.EncodeToString(sum.Sum(nil)[:10]), nil
}

func (a *apt) simulate(ctx context.Context, names []string) ([]pkg, error) {
	out, err := a.get(ctx, append([]string{"install", "--simulate", "--yes", "--"}, names...)...)
	if err != nil {
		return nil, fmt.Errorf("find packages: %w", err)
	}
	var pkgs []pkg
	for line := range strings.Lines(out) {
		if m := instLine.FindStringSubmatch(line); m != nil {
			pkgs = append(pkgs, pkg{Name: m[1], Version: m[2], Arch: m[3]})
		}
	}
	if len(pkgs) == 0 {
		return nil, errors.New("find packages: apt named none")
	}
	slices.SortFunc(pkgs, func(x, y pkg) int { return strings.Compare(x.Name, y.Name) })
	return pkgs, nil
}

// download brings packages, which resolve returned for names, into the cache. apt checks them
// against the signed lists.
func (a *apt) download(ctx context.Context, names []string, pkgs []pkg) error {
	var missing int
	for _, p := range pkgs {
		if _, err := os.Stat(a.deb(p)); err != nil {
			missing++
		}
	}
	if missing == 0 {
		return nil
	}
	a.detail("download %d packages", missing)
	if _, err := a.get(ctx, append([]string{"install", "--download-only", "--yes", "--"}, names...)...); err != nil {
		return fmt.Errorf("download packages: %w", err)
	}
	for _, p := range pkgs {
		if _, err := os.Stat(a.deb(p)); err != nil {
			return fmt.Errorf("download packages: apt did not leave %s: %w", p, err)
		}
	}
	return nil
}

// deb is where apt keeps a package file.
func (a *apt) deb(p pkg) string {
	return a.archive(fmt.Sprintf("%s_%s_%s.deb", p.Name, strings.ReplaceAll(p.Version, ":", "%3a"), p.Arch))
}

// date is the newest time in the release files: the state of Debian that packages come from.
func (a *apt) date() time.Time {
	var newest time.Time
	files, _ := filepath.Glob(filepath.Join(a.lists(), "*InRelease"))
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(raw)) {
			value, ok := strings.CutPrefix(line, "Date: ")
			if !ok {
				continue
			}
			if t, err := time.Parse("Mon, 2 Jan 2006 15:04:05 MST", strings.TrimSpace(value)); err == nil && t.After(newest) {
				newest = t
			}
			break
		}
	}
	return newest.UTC()
}
