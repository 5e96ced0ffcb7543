// Package build makes a bundle from a recipe, out of Debian packages and a coldrack-agent binary.
//
// Packages come from the mirror that the building machine's apt is configured with, and apt checks
// their signatures; nothing is taken from what is installed there. Each step's product is kept by
// the hash of its inputs (its part of the recipe, the resolved package versions, the products it
// builds on), so that a build after a change of the agent only joins and packs.
package build

import (
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"coldrack.dev/internal/bundle"
)

// Options say what to build, from what, and where to.
type Options struct {
	RecipeDir string // folder with recipe.yaml
	Out       string // the archive to write
	CacheDir  string // products of steps and downloads; may be deleted at any time
	KeyPath   string // signing key, made if there is none; CacheDir/bundle.key if empty
	AgentPath string // a statically linked coldrack-agent for linux/amd64
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

type builder struct {
	opt    Options
	recipe Recipe
	log    *slog.Logger
	apt    *apt
	steps  *steps
}

// Build makes the bundle. It may be interrupted and run again; finished steps are kept. Two builds
// with one cache wait for each other.
func Build(ctx context.Context, opt Options) (Result, error) {
	begun := time.Now()
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	recipe, err := LoadRecipe(opt.RecipeDir)
	if err != nil {
		return Result{}, err
	}
	agent, err := readAgent(opt.AgentPath, opt.AgentVersion)
	if err != nil {
		return Result{}, err
	}
	if opt.CacheDir, err = filepath.Abs(opt.CacheDir); err != nil {
		return Result{}, fmt.Errorf("build bundle: %w", err)
	}
	if opt.RecipeDir, err = filepath.Abs(opt.RecipeDir); err != nil {
		return Result{}, fmt.Errorf("build bundle: %w", err)
	}
	work := &steps{dir: opt.CacheDir, report: opt.Progress, name: "packages", begun: begun}
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
	b := &builder{opt: opt, recipe: recipe, log: opt.Log, steps: work}
	spec, err := b.all(ctx, agent)
	if err != nil {
		return Result{}, fmt.Errorf("build bundle %s: %w", recipe.Name, err)
	}
	b.steps.name, b.steps.begun = "pack", time.Now()
	b.steps.event(Started, "", 0)
	summary, err := bundle.Pack(ctx, spec, key, opt.Out, nil)
	if err != nil {
		return Result{}, fmt.Errorf("build bundle: %w", err)
	}
	st, err := os.Stat(opt.Out)
	if err != nil {
		return Result{}, fmt.Errorf("build bundle: %w", err)
	}
	b.steps.event(Done, opt.Out, st.Size())
	return Result{
		Summary: summary, Path: opt.Out, ArchiveSize: st.Size(),
		PublicKeyPath: bundle.PublicKeyPath(opt.KeyPath), KeyCreated: created, Elapsed: time.Since(begun),
	}, nil
}

// all runs the steps in the order of their needs and says what the bundle consists of.
func (b *builder) all(ctx context.Context, agent agentInfo) (bundle.Spec, error) {
	// What an interrupted build left half done.
	if err := errors.Join(removeWork(b.workDir()), os.MkdirAll(b.workDir(), 0o755)); err != nil {
		return bundle.Spec{}, err
	}
	defer func() { _ = removeWork(b.workDir()) }()
	b.steps.name, b.steps.begun = "packages", time.Now()
	b.steps.event(Started, "", 0)
	var err error
	if b.apt, err = newApt(ctx, filepath.Join(b.opt.CacheDir, "apt"), b.recipe.Apt, b.log, b.steps.detail); err != nil {
		return bundle.Spec{}, err
	}
	if err := b.apt.update(ctx, b.opt.Refresh); err != nil {
		return bundle.Spec{}, err
	}
	b.steps.event(Done, "", 0)

	base, err := b.netbootBase(ctx)
	if err != nil {
		return bundle.Spec{}, err
	}
	initrd, err := b.initrd(ctx, base, agent)
	if err != nil {
		return bundle.Spec{}, err
	}
	loaders, err := b.bootloaders(ctx)
	if err != nil {
		return bundle.Spec{}, err
	}
	root, err := b.imageRoot(ctx)
	if err != nil {
		return bundle.Spec{}, err
	}
	image, err := b.image(ctx, root)
	if err != nil {
		return bundle.Spec{}, err
	}
	return b.spec(agent, products{base: base, initrd: initrd, loaders: loaders, root: root, image: image})
}

// products are the folders that the steps left.
type products struct{ base, initrd, loaders, root, image string }

func (b *builder) spec(agent agentInfo, p products) (bundle.Spec, error) {
	var meta netbootMeta
	raw, err := os.ReadFile(filepath.Join(p.base, fileMeta))
	if err == nil {
		err = json.Unmarshal(raw, &meta)
	}
	if err != nil {
		return bundle.Spec{}, fmt.Errorf("read %s: %w", p.base, err)
	}
	imageConfig, err1 := os.ReadFile(filepath.Join(p.image, fileConfig))
	loadersConfig, err2 := os.ReadFile(filepath.Join(p.loaders, fileConfig))
	loaderPackages, err3 := readPackages(filepath.Join(p.loaders, fileMeta))
	osPackages, err4 := imagePackages(p.root)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return bundle.Spec{}, err
	}
	r := b.recipe
	created := b.apt.date()
	if created.IsZero() {
		created = r.SourceDate
	}
	bill, err := sbom(r.Name, created, []part{
		{name: string(bundle.KindImage) + "/" + r.Image.Name, packages: osPackages},
		{name: string(bundle.KindNetboot) + "/" + r.Netboot.Name, packages: meta.Packages, agent: &agent},
		{name: string(bundle.KindBootloaders) + "/" + r.Bootloaders.Name, packages: loaderPackages},
	})
	if err != nil {
		return bundle.Spec{}, err
	}
	billFile := filepath.Join(b.opt.CacheDir, bundle.FileSBOM)
	if err := os.WriteFile(billFile, bill, 0o644); err != nil {
		return bundle.Spec{}, err
	}
	var loaders []bundle.FileSpec
	for _, title := range []string{bundle.FileUndionly, bundle.FileIPXE, bundle.FileSNPOnly, bundle.FileLocal, bundle.FileLocalPC, bundle.FileBootImg, bundle.FileCoreImg, bundle.FileShim, bundle.FileGRUB} {
		loaders = append(loaders, bundle.FileSpec{Title: title, Path: filepath.Join(p.loaders, title)})
	}
	return bundle.Spec{Name: r.Name, Created: created, Artifacts: []bundle.ArtifactSpec{
		{Kind: bundle.KindImage, Name: r.Image.Name, Config: json.RawMessage(imageConfig), Files: []bundle.FileSpec{
			{Title: bundle.FileImageIndex, Path: filepath.Join(p.image, bundle.FileImageIndex)},
			{Title: bundle.FileImageChunks, Path: filepath.Join(p.image, bundle.FileImageChunks)},
		}},
		{Kind: bundle.KindNetboot, Name: r.Netboot.Name, Config: bundle.NetbootConfig{
			Name: r.Netboot.Name, Arch: "amd64", KernelVersion: meta.KernelVersion, AgentVersion: agent.Version,
		}, Files: []bundle.FileSpec{
			{Title: bundle.FileKernel, Path: filepath.Join(p.base, "vmlinuz")},
			{Title: bundle.FileInitrd, Path: filepath.Join(p.initrd, "initrd.img")},
		}},
		{Kind: bundle.KindBootloaders, Name: r.Bootloaders.Name, Config: json.RawMessage(loadersConfig), Files: loaders},
		{Kind: bundle.KindSBOM, Name: r.Name, Config: bundle.SBOMConfig{Name: r.Name, Format: "SPDX-2.3"}, Files: []bundle.FileSpec{
			{Title: bundle.FileSBOM, Path: billFile},
		}},
	}}, nil
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
	return filepath.Join(b.opt.RecipeDir, folder)
}

// agentInfo is what is known of the agent's binary.
type agentInfo struct {
	Path    string
	Digest  string
	Size    int64
	Version string
	modules [][2]string
}

// readAgent checks that the binary can run as the first program of a system without libraries.
func readAgent(path, version string) (agentInfo, error) {
	fail := func(err error) (agentInfo, error) {
		return agentInfo{}, fmt.Errorf("agent binary: %w", err)
	}
	if path == "" {
		return fail(errors.New("no path was given"))
	}
	f, err := os.Open(path)
	if err != nil {
		return fail(err)
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
	sum := sha256.New()
	n, err := io.Copy(sum, io.NewSectionReader(f, 0, 1<<40))
	if err != nil {
		return fail(err)
	}
	a := agentInfo{Path: path, Digest: "sha256:" + hex.EncodeToString(sum.Sum(nil)), Size: n, Version: version}
	info, err := buildinfo.ReadFile(path)
	if err == nil {
		a.modules = goModules(info)
		if a.Version == "" {
			a.Version = info.Main.Version
		}
	}
	if a.Version == "" || a.Version == "(devel)" {
		a.Version = "devel-" + a.Digest[len("sha256:"):][:12]
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
