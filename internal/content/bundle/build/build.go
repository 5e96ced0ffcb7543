// Package build makes a bundle from recipes, out of Debian packages, Go modules, released files and a
// coldrack-agent binary.
//
// Packages come from the mirror that the building machine's apt is configured with, and apt checks
// their signatures; nothing is taken from what is installed there. Each step's product is kept by
// the hash of its inputs (its part of the recipe, the resolved package versions, the products it
// builds on), so that a build after a change of the agent only joins and packs. Go programs are built with
// the modules that the go.sum of a recipe pins, from where this machine's Go gets modules.
package build

import (
	"context"
	"debug/buildinfo"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"coldrack.dev/internal/base/digest"
	"coldrack.dev/internal/content/bundle"
)

// Options say what to build, from what, and where to.
type Options struct {
	// RecipeDirs are folders with a recipe.yaml each; their products go into one bundle, which has the name
	// of the first.
	RecipeDirs []string
	Out        string // the archive to write
	CacheDir   string // products of steps and downloads; may be deleted at any time
	KeyPath    string // signing key, made if there is none; CacheDir/bundle.key if empty
	AgentPath  string // a statically linked coldrack-agent for linux/amd64; needed for a netboot system
	// AgentVersion overrides what the binary says of itself.
	AgentVersion string
	// Refresh fetches package lists even if they are young.
	Refresh  bool
	Log      *slog.Logger // output of the tools at debug level; none if nil
	Progress func(Event)
}

// Result says what was built.
type Result struct {
	bundle.Summary
	Path          string
	ArchiveSize   int64
	PublicKeyPath string
	KeyCreated    bool
	Elapsed       time.Duration
}

// builder makes the products of one recipe.
type builder struct {
	opt    Options
	recipe Recipe
	dir    string // of the recipe
	log    *slog.Logger
	apt    *apt
	steps  *steps
	// retryAfter is the first pause between two tries of a download; each further one is twice as long.
	retryAfter time.Duration
}

// product is what a recipe adds to a bundle.
type product struct {
	artifacts []bundle.ArtifactSpec
	bill      []part
}

func (p *product) add(a bundle.ArtifactSpec, bill part) {
	p.artifacts = append(p.artifacts, a)
	p.bill = append(p.bill, bill)
}

// Build makes the bundle. It may be interrupted and run again; finished steps are kept. Two builds
// with one cache wait for each other.
func Build(ctx context.Context, opt Options) (Result, error) {
	begun := time.Now()
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	var err error
	if opt.CacheDir, err = filepath.Abs(opt.CacheDir); err != nil {
		return Result{}, fmt.Errorf("build bundle: %w", err)
	}
	work := &steps{dir: opt.CacheDir, report: opt.Progress, name: "packages", begun: begun}
	builders, err := loadBuilders(opt, work)
	if err != nil {
		return Result{}, err
	}
	var agent artefact
	if slices.ContainsFunc(builders, func(b *builder) bool { return b.recipe.Netboot != nil }) {
		if agent, err = readAgent(opt.AgentPath, opt.AgentVersion); err != nil {
			return Result{}, err
		}
	}
	// A build takes long: a place where nothing can be written is found out before it.
	if err := os.MkdirAll(filepath.Dir(opt.Out), 0o755); err != nil {
		return Result{}, fmt.Errorf("build bundle: make the folder of --out %s: %w", opt.Out, err)
	}
	unlock, err := lockCache(ctx, opt.CacheDir, work.detail)
	if err != nil {
		return Result{}, err
	}
	defer unlock()
	if opt.KeyPath == "" {
		opt.KeyPath = filepath.Join(opt.CacheDir, "bundle.key")
	}
	key, created, err := bundle.LoadOrCreateKey(opt.KeyPath)
	if err != nil {
		return Result{}, err
	}
	bundleName := builders[0].recipe.Name
	spec, err := buildAll(ctx, builders, agent)
	if err != nil {
		return Result{}, fmt.Errorf("build bundle %s: %w", bundleName, err)
	}
	work.name, work.begun = "pack", time.Now()
	work.event(Started, "", 0)
	summary, err := bundle.Pack(ctx, spec, key, opt.Out, nil)
	if err != nil {
		return Result{}, fmt.Errorf("build bundle: %w", err)
	}
	st, err := os.Stat(opt.Out)
	if err != nil {
		return Result{}, fmt.Errorf("build bundle: %w", err)
	}
	work.event(Done, opt.Out, st.Size())
	if err := dropUnused(opt.CacheDir, time.Now()); err != nil {
		opt.Log.Warn("cannot remove what the build cache holds for nothing", "err", err)
	}
	return Result{
		Summary: summary, Path: opt.Out, ArchiveSize: st.Size(),
		PublicKeyPath: bundle.PublicKeyPath(opt.KeyPath), KeyCreated: created, Elapsed: time.Since(begun),
	}, nil
}

// loadBuilders reads the recipes and checks that they go together.
func loadBuilders(opt Options, work *steps) ([]*builder, error) {
	if len(opt.RecipeDirs) == 0 {
		return nil, errors.New("build bundle: no recipe was given")
	}
	var builders []*builder
	owner := map[string]string{} // artifact to recipe
	for _, dir := range opt.RecipeDirs {
		recipe, err := LoadRecipe(dir)
		if err != nil {
			return nil, err
		}
		if dir, err = filepath.Abs(dir); err != nil {
			return nil, fmt.Errorf("build bundle: %w", err)
		}
		for _, artifact := range recipe.artifacts() {
			if other, twice := owner[artifact]; twice {
				return nil, fmt.Errorf("recipes %s and %s both make %s; a bundle holds one of a name, build two bundles", other, recipe.Name, artifact)
			}
			owner[artifact] = recipe.Name
		}
		builders = append(builders, &builder{opt: opt, recipe: recipe, dir: dir, log: opt.Log, steps: work, retryAfter: time.Second})
	}
	return builders, nil
}

// artifacts lists what a recipe makes, in the words of messages.
func (r *Recipe) artifacts() []string {
	var all []string
	if r.Image != nil {
		all = append(all, "image "+r.Image.Name)
	}
	if r.Netboot != nil {
		all = append(all, "netboot "+r.Netboot.Name)
	}
	if r.Bootloaders != nil {
		all = append(all, "bootloaders "+r.Bootloaders.Name)
	}
	if r.Programs != nil {
		all = append(all, "programs "+r.Programs.Name)
	}
	for _, c := range r.Containers {
		all = append(all, "container "+c.Image)
	}
	return all
}

// buildAll runs the steps of every recipe, and says what the bundle consists of.
func buildAll(ctx context.Context, builders []*builder, agent artefact) (bundle.Spec, error) {
	first := builders[0]
	// What an interrupted build left half done.
	if err := errors.Join(removeWork(first.workDir()), os.MkdirAll(first.workDir(), 0o755)); err != nil {
		return bundle.Spec{}, err
	}
	defer func() { _ = removeWork(first.workDir()) }()
	if err := openApts(ctx, builders); err != nil {
		return bundle.Spec{}, err
	}
	spec := bundle.Spec{Name: first.recipe.Name, Created: created(builders)}
	var bill []part
	for _, b := range builders {
		p, err := b.all(ctx, agent)
		if err != nil {
			return bundle.Spec{}, fmt.Errorf("recipe %s: %w", b.recipe.Name, err)
		}
		spec.Artifacts = append(spec.Artifacts, p.artifacts...)
		bill = append(bill, p.bill...)
	}
	content, err := sbom(spec.Name, spec.Created, bill)
	if err != nil {
		return bundle.Spec{}, err
	}
	file := filepath.Join(first.opt.CacheDir, bundle.FileSBOM)
	if err := os.WriteFile(file, content, 0o644); err != nil {
		return bundle.Spec{}, err
	}
	spec.Artifacts = append(spec.Artifacts, bundle.ArtifactSpec{
		Kind: bundle.KindSBOM, Name: spec.Name, Config: bundle.SBOMConfig{Name: spec.Name, Format: "SPDX-2.3"},
		Files: []bundle.FileSpec{{Title: bundle.FileSBOM, Path: file}},
	})
	return spec, nil
}

// openApts prepares the package lists of every recipe that needs packages. Recipes with equal apt sections share one state
// of Debian; others may have another, such as containers of one suite beside a system of another.
func openApts(ctx context.Context, builders []*builder) error {
	opened := map[string]*apt{}
	for _, b := range builders {
		if b.recipe.Apt == nil {
			continue
		}
		name := b.recipe.Apt.key()
		if opened[name] == nil {
			b.steps.name, b.steps.begun = "packages of "+b.recipe.Apt.Suite, time.Now()
			b.steps.event(Started, "", 0)
			a, err := newApt(ctx, filepath.Join(b.opt.CacheDir, "apt", name), *b.recipe.Apt, b.log, b.steps.detail)
			if err != nil {
				return err
			}
			if err := a.update(ctx, b.opt.Refresh); err != nil {
				return err
			}
			b.steps.event(Done, "", 0)
			opened[name] = a
		}
		b.apt = opened[name]
	}
	return nil
}

// created is the newest state of Debian that packages come from; without packages, the first recipe's own date.
func created(builders []*builder) time.Time {
	date := time.Time{}
	for _, b := range builders {
		if b.apt == nil {
			continue
		}
		if d := b.apt.date(); d.After(date) {
			date = d
		}
	}
	if date.IsZero() {
		return builders[0].recipe.SourceDate
	}
	return date
}

// all runs the steps of one recipe in the order of their needs.
func (b *builder) all(ctx context.Context, agent artefact) (product, error) {
	var p product
	for _, make := range []func() error{
		func() error { return b.addNetboot(ctx, &p, agent) },
		func() error { return b.addBootloaders(ctx, &p) },
		func() error { return b.addImage(ctx, &p) },
		func() error { return b.addKubernetes(ctx, &p) },
	} {
		if err := make(); err != nil {
			return p, err
		}
	}
	return p, nil
}

func (b *builder) addNetboot(ctx context.Context, p *product, agent artefact) error {
	r := b.recipe.Netboot
	if r == nil {
		return nil
	}
	base, err := b.netbootBase(ctx)
	if err != nil {
		return err
	}
	initrd, err := b.initrd(ctx, base, agent)
	if err != nil {
		return err
	}
	var meta netbootMeta
	if err := readJSON(filepath.Join(base, fileMeta), &meta); err != nil {
		return err
	}
	p.add(bundle.ArtifactSpec{
		Kind: bundle.KindNetboot, Name: r.Name,
		Config: bundle.NetbootConfig{Name: r.Name, Arch: "amd64", KernelVersion: meta.KernelVersion, AgentVersion: agent.Version},
		Files: []bundle.FileSpec{
			{Title: bundle.FileKernel, Path: filepath.Join(base, "vmlinuz")},
			{Title: bundle.FileInitrd, Path: filepath.Join(initrd, "initrd.img")},
		},
	}, part{name: string(bundle.KindNetboot) + "/" + r.Name, packages: meta.Packages, programs: []artefact{agent}})
	return nil
}

func (b *builder) addBootloaders(ctx context.Context, p *product) error {
	r := b.recipe.Bootloaders
	if r == nil {
		return nil
	}
	dir, err := b.bootloaders(ctx)
	if err != nil {
		return err
	}
	config, err1 := os.ReadFile(filepath.Join(dir, fileConfig))
	packages, err2 := readPackages(filepath.Join(dir, fileMeta))
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	var files []bundle.FileSpec
	for _, title := range []string{bundle.FileUndionly, bundle.FileIPXE, bundle.FileSNPOnly, bundle.FileLocal, bundle.FileLocalPC, bundle.FileBootImg, bundle.FileCoreImg, bundle.FileShim, bundle.FileGRUB} {
		files = append(files, bundle.FileSpec{Title: title, Path: filepath.Join(dir, title)})
	}
	p.add(bundle.ArtifactSpec{Kind: bundle.KindBootloaders, Name: r.Name, Config: json.RawMessage(config), Files: files},
		part{name: string(bundle.KindBootloaders) + "/" + r.Name, packages: packages})
	return nil
}

func (b *builder) addImage(ctx context.Context, p *product) error {
	r := b.recipe.Image
	if r == nil {
		return nil
	}
	root, err := b.imageRoot(ctx)
	if err != nil {
		return err
	}
	dir, err := b.image(ctx, root)
	if err != nil {
		return err
	}
	config, err1 := os.ReadFile(filepath.Join(dir, fileConfig))
	packages, err2 := imagePackages(root)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	p.add(bundle.ArtifactSpec{Kind: bundle.KindImage, Name: r.Name, Config: json.RawMessage(config), Files: []bundle.FileSpec{
		{Title: bundle.FileImageIndex, Path: filepath.Join(dir, bundle.FileImageIndex)},
		{Title: bundle.FileImageChunks, Path: filepath.Join(dir, bundle.FileImageChunks)},
	}}, part{name: string(bundle.KindImage) + "/" + r.Name, packages: packages})
	return nil
}

// addKubernetes makes programs and container images.
func (b *builder) addKubernetes(ctx context.Context, p *product) error {
	files, err := b.collect(ctx)
	if err != nil {
		return err
	}
	if b.recipe.Programs != nil {
		spec, bill, err := b.programs(ctx, files)
		if err != nil {
			return err
		}
		p.add(spec, bill)
	}
	layers := map[string]baseLayer{}
	for _, l := range b.recipe.Layers {
		if layers[l.Name], err = b.layer(ctx, l); err != nil {
			return err
		}
	}
	for _, r := range b.recipe.Containers {
		img, bill, err := b.container(ctx, r, layers, files)
		if err != nil {
			return err
		}
		p.add(bundle.ArtifactSpec{Kind: bundle.KindContainer, Name: r.Image, Image: img}, bill)
	}
	return nil
}

// removeWork deletes the work folder, but not while anything is mounted in it: a chroot that was not
// left in order may have the machine's own /dev below it.
func removeWork(dir string) error {
	real, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("remove %s: look for mounts in it: %w", dir, err)
	}
	if at := mountBelow(string(mounts), real); at != "" {
		return fmt.Errorf("remove %s: something is still mounted at %s; unmount it and build again", dir, at)
	}
	return os.RemoveAll(dir)
}

// mountBelow finds a mount point below dir in the text of /proc/self/mountinfo (proc_pid_mountinfo(5)).
func mountBelow(mountinfo, dir string) string {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(mountinfo) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		if at := unescape.Replace(f[4]); strings.HasPrefix(at, dir+"/") {
			return at
		}
	}
	return ""
}

func (b *builder) workDir() string { return filepath.Join(b.opt.CacheDir, "work") }

// overlay is the absolute path of a folder that the recipe names, or "".
func (b *builder) overlay(folder string) string {
	if folder == "" {
		return ""
	}
	return filepath.Join(b.dir, folder)
}

// readAgent checks that the binary can run as the first program of a system without libraries.
func readAgent(path, version string) (artefact, error) {
	fail := func(err error) (artefact, error) {
		return artefact{}, fmt.Errorf("agent binary: %w", err)
	}
	if path == "" {
		return fail(errors.New("no path was given; name one with --agent"))
	}
	f, err := os.Open(path)
	if err != nil {
		return fail(fmt.Errorf("%w; name another with --agent", err))
	}
	defer func() { _ = f.Close() }()
	e, err := elf.NewFile(f)
	if err != nil || e.Machine != elf.EM_X86_64 {
		return fail(fmt.Errorf("%s is not a program for linux/amd64", path))
	}
	for _, p := range e.Progs {
		if p.Type == elf.PT_INTERP {
			return fail(fmt.Errorf("%s is linked dynamically, and the discovery system has no libraries for it; build it with CGO_ENABLED=0", path))
		}
	}
	a, err := readArtefact(path, "coldrack-agent", version)
	if err != nil {
		return fail(err)
	}
	if info, err := buildinfo.ReadFile(path); err == nil && a.Version == "" {
		a.Version = info.Main.Version
	}
	if a.Version == "" || a.Version == "(devel)" {
		a.Version = "devel-" + digest.Hex(a.Digest)[:12]
	}
	return a, nil
}

// lockCache waits until no other build uses the cache.
func lockCache(ctx context.Context, dir string, detail func(string, ...any)) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("build cache: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, fmt.Errorf("build cache: %w", err)
	}
	for said := false; ; said = true {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("lock build cache %s: %w", dir, err)
		}
		if !said {
			detail("wait for another build that uses %s", dir)
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}
