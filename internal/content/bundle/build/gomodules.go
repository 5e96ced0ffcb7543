package build

import (
	"context"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// moduleInfo is what Go knows of a module.
type moduleInfo struct {
	Path    string
	Version string
	Time    time.Time
}

// goPrograms builds the programs of a Go module and returns the folder with them, each under its name in
// the recipe.
func (b *builder) goPrograms(ctx context.Context, g GoRecipe) (string, error) {
	folder := filepath.Join(b.dir, g.Folder)
	c := b.goCommand(g, folder)
	compiler, err := c.run(ctx, "go", "env", "GOVERSION")
	if err != nil {
		return "", fmt.Errorf("go %s: %w", g.Name, err)
	}
	step := "go-" + filepath.Base(folder)
	switch {
	case g.Always:
		step = "go-" + g.Name
	case !strings.HasPrefix(filepath.Base(folder), g.Name):
		step += "-" + g.Name
	}
	make := func(ctx context.Context, dir string) error { return b.compile(ctx, c, g, dir) }
	inputs := []any{g, strings.TrimSpace(compiler), compileFlags()}
	if !g.Always {
		sources, err := hashTree(folder)
		if err != nil {
			return "", fmt.Errorf("go %s: %w", g.Name, err)
		}
		return b.steps.run(ctx, step, append(inputs, sources), make)
	}
	work, err := os.MkdirTemp(b.workDir(), "go-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(work) }()
	b.steps.name, b.steps.begun = step, time.Now()
	if err := make(ctx, work); err != nil {
		return "", fmt.Errorf("%s: %w", step, err)
	}
	built, err := hashTree(work)
	if err != nil {
		return "", err
	}
	return b.steps.run(ctx, step, append(inputs, built), func(_ context.Context, dir string) error {
		for program := range g.Programs {
			if err := copyFile(filepath.Join(work, program), filepath.Join(dir, program), 0o755); err != nil {
				return err
			}
		}
		return nil
	})
}

// goCommand runs go in a module's folder. Where modules come from is the machine's own setting; what else
// would change the product is fixed.
func (b *builder) goCommand(g GoRecipe, folder string) command {
	cgo := "CGO_ENABLED=0"
	if g.Cgo {
		cgo = "CGO_ENABLED=1"
	}
	return command{log: b.log, dir: folder, env: []string{
		cgo, "GOOS=linux", "GOARCH=amd64", "GOAMD64=v1", "GOWORK=off", "GOFLAGS=", "GOEXPERIMENT=", "CGO_CFLAGS=", "CGO_LDFLAGS="}}
}

func compileFlags() []string { return []string{"-trimpath", "-buildvcs=false", "-mod=readonly"} }

func (b *builder) compile(ctx context.Context, c command, g GoRecipe, dir string) error {
	stamps, err := b.stamps(ctx, c, g)
	if err != nil {
		return err
	}
	link := append([]string{"-s", "-w"}, stamps...)
	if g.Cgo {
		link = append(link, "-extldflags", "-static")
	}
	args := slices.Concat([]string{"build", "-v"}, compileFlags(), []string{"-ldflags", strings.Join(link, " "), "-o", dir + "/"})
	if len(g.Tags) > 0 {
		args = append(args, "-tags", strings.Join(g.Tags, ","))
	}
	names := slices.Sorted(maps.Keys(g.Programs))
	for _, program := range names {
		args = append(args, g.Programs[program])
	}
	compiled := 0
	c.line = func(line string) {
		if strings.HasPrefix(line, "go: ") {
			b.steps.detail("%s", strings.TrimPrefix(line, "go: "))
			return
		}
		compiled++
		b.steps.detail("%d packages compiled, now %s", compiled, line)
	}
	b.steps.detail("compile %s", strings.Join(names, ", "))
	if _, err := c.run(ctx, "go", args...); err != nil {
		return err
	}
	for _, program := range names {
		if err := os.Rename(filepath.Join(dir, programName(g.Programs[program])), filepath.Join(dir, program)); err != nil {
			return err
		}
	}
	return nil
}

var majorSuffix = regexp.MustCompile(`^v[1-9][0-9]*$`)

// programName is what go build calls the program of a package.
func programName(pkg string) string {
	base := path.Base(pkg)
	if majorSuffix.MatchString(base) {
		base = path.Base(path.Dir(pkg))
	}
	return base
}

// stamps are the linker's flags that set the recipe's variables.
func (b *builder) stamps(ctx context.Context, c command, g GoRecipe) ([]string, error) {
	m := moduleInfo{Path: g.Module, Version: g.Version, Time: b.recipe.SourceDate}
	if g.Module != "" {
		out, err := c.run(ctx, "go", "list", "-mod=readonly", "-m", "-json", g.Module)
		if err != nil {
			return nil, err
		}
		m.Version = ""
		if err := json.Unmarshal([]byte(out), &m); err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		if m.Version != g.Version {
			return nil, &FieldError{"version", fmt.Sprintf("is %s, but go.mod selects %q of %s; change one of them", g.Version, m.Version, g.Module)}
		}
	}
	parts := append(strings.Split(strings.TrimPrefix(g.Version, "v"), "."), "", "")
	words := strings.NewReplacer("{version}", g.Version, "{major}", parts[0], "{minor}", parts[1], "{date}", m.Time.UTC().Format(time.RFC3339))
	var flags []string
	for _, variable := range slices.Sorted(maps.Keys(g.Stamps)) {
		flags = append(flags, "-X", variable+"="+words.Replace(g.Stamps[variable]))
	}
	return flags, nil
}

// artefact is a file that programs and containers are made of.
type artefact struct {
	Path    string      `json:"-"`
	Name    string      `json:"name"`
	Digest  string      `json:"digest"`
	Size    int64       `json:"size"`
	Version string      `json:"version"`
	modules []goVersion // that a Go program was built from
}

// readArtefact hashes a file.
func readArtefact(file, name, version string) (artefact, error) {
	digest, size, err := hashFile(file)
	if err != nil {
		return artefact{}, err
	}
	a := artefact{Path: file, Name: name, Digest: digest, Size: size, Version: version}
	if info, err := buildinfo.ReadFile(file); err == nil {
		a.modules = goModules(info)
	}
	return a, nil
}

// collect makes or fetches all files that programs and containers need, by source.
func (b *builder) collect(ctx context.Context) (map[SourceRecipe]artefact, error) {
	found := map[SourceRecipe]artefact{}
	for _, g := range b.recipe.Go {
		dir, err := b.goPrograms(ctx, g)
		if err != nil {
			return nil, err
		}
		for program := range g.Programs {
			a, err := readArtefact(filepath.Join(dir, program), program, g.Version)
			if err != nil {
				return nil, err
			}
			found[SourceRecipe{Go: g.Name + "/" + program}] = a
		}
	}
	fetch := func(s SourceRecipe, version string) error {
		if _, ok := found[s]; ok || s.URL == "" {
			return nil
		}
		file, err := b.fetchFile(ctx, s)
		if err != nil {
			return err
		}
		found[s], err = readArtefact(file, path.Base(s.URL), version)
		return err
	}
	if p := b.recipe.Programs; p != nil {
		for i, f := range p.Files {
			if err := fetch(f.SourceRecipe, f.Version); err != nil {
				return nil, fmt.Errorf("programs.files[%d]: %w", i, err)
			}
		}
	}
	for i, r := range b.recipe.Containers {
		for j, f := range r.Files {
			if err := fetch(f.SourceRecipe, ""); err != nil {
				return nil, fmt.Errorf("containers[%d].files[%d]: %w", i, j, err)
			}
		}
	}
	return found, nil
}
