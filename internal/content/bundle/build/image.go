package build

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"coldrack.dev/internal/base/rootfs"
	"coldrack.dev/internal/content/bundle"
	"coldrack.dev/internal/content/diskimage"
	"coldrack.dev/internal/contract/nodeconfig"
)

//go:embed customize.sh
var customizeScript []byte

const (
	fileRootTar = "root.tar"
	fileFacts   = "facts"
	fileConfig  = "config.json"
)

// Sizes of the file system.
const (
	blockSize   = 4096
	inodeSize   = 256
	journalSize = 32 << 20
	mebibyte    = 1 << 20
)

// imageRoot makes the root file system as a tar archive.
func (b *builder) imageRoot(ctx context.Context) (string, error) {
	r := *b.recipe.Image
	// What mmdebstrap's variant "minbase" installs besides; only to know the versions.
	names := slices.Concat([]string{"?essential", "?priority(required)", "apt"}, r.Packages)
	pkgs, err := b.apt.resolve(ctx, names)
	if err != nil {
		return "", fmt.Errorf("image: %w", err)
	}
	overlay, err := hashTree(b.overlay(r.Overlay))
	if err != nil {
		return "", fmt.Errorf("image: %w", err)
	}
	inputs := []any{r.Packages, bothPaths(r.Exclude), bothPaths(r.Include), r.Enable, r.Disable, pkgs, overlay, b.recipe.SourceDate, string(customizeScript)}
	return b.steps.run(ctx, "image-root", inputs, func(ctx context.Context, dir string) error {
		if os.Geteuid() != 0 {
			return errors.New("building an operating-system image needs root (mmdebstrap, file ownership); run as root")
		}
		if err := b.apt.download(ctx, names, pkgs); err != nil {
			return err
		}
		return b.mmdebstrap(ctx, dir, pkgs)
	})
}

// linkOrCopy gives a file a second name. Where that cannot be, because the folders are on different file systems or theirs
// knows no hard links, it copies.
func linkOrCopy(from, to string) error {
	if os.Link(from, to) == nil {
		return nil
	}
	return copyFile(from, to, 0o644)
}

func (b *builder) mmdebstrap(ctx context.Context, dir string, pkgs []pkg) error {
	r := *b.recipe.Image
	work, err := os.MkdirTemp(b.workDir(), "image-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	facts := filepath.Join(dir, fileFacts)
	debs := filepath.Join(work, "debs")
	if err := errors.Join(os.Mkdir(facts, 0o755), os.Mkdir(debs, 0o755)); err != nil {
		return err
	}
	for _, p := range pkgs {
		deb := b.apt.deb(p)
		if err := linkOrCopy(deb, filepath.Join(debs, filepath.Base(deb))); err != nil {
			return err
		}
	}
	var dpkgOptions strings.Builder
	// A root that is thrown away when the power fails needs no fsync. customize.sh takes this out again.
	dpkgOptions.WriteString("force-unsafe-io\n")
	for _, p := range bothPaths(r.Exclude) {
		fmt.Fprintf(&dpkgOptions, "path-exclude=%s\n", p)
	}
	for _, p := range bothPaths(r.Include) {
		fmt.Fprintf(&dpkgOptions, "path-include=%s\n", p)
	}
	script := filepath.Join(work, "customize.sh")
	if err := errors.Join(
		os.WriteFile(script, customizeScript, 0o755),
		os.WriteFile(filepath.Join(work, "dpkg.cfg"), []byte(dpkgOptions.String()), 0o644),
	); err != nil {
		return err
	}
	args := []string{
		"--mode=root", "--variant=minbase", "--format=tar", "--architectures=amd64",
		"--include=" + strings.Join(r.Packages, ","),
		"--aptopt=" + b.apt.networkFile(),
		`--aptopt=Apt::Install-Recommends "false"`,
		"--dpkgopt=" + filepath.Join(work, "dpkg.cfg"),
		// The versions are those that the step's key was made from: mmdebstrap gets this builder's
		// package lists and files, and fetches nothing.
		"--skip=update",
		"--setup-hook=" + `mkdir -p "$1/var/lib/apt/lists/partial" "$1/var/cache/apt/archives/partial"` +
			` && find ` + quote(b.apt.lists()) + ` -maxdepth 1 -type f ! -name lock -exec cp -t "$1/var/lib/apt/lists" {} +` +
			` && cp -t "$1/var/cache/apt/archives" ` + quote(debs) + `/*.deb`,
	}
	if overlay := b.overlay(r.Overlay); overlay != "" {
		args = append(args, "--essential-hook="+`cp -r --remove-destination --no-preserve=ownership,timestamps -T `+quote(overlay)+` "$1"`)
	}
	args = append(args,
		"--customize-hook="+`mkdir "$1/coldrack-facts" && chroot "$1" /bin/sh -s -- `+strings.Join(slices.Concat(r.Enable, []string{"--"}, r.Disable), " ")+
			` <`+quote(script)+` && cp -P "$1"/coldrack-facts/* `+quote(facts)+` && rm -r "$1/coldrack-facts"`,
		b.recipe.Apt.Suite, filepath.Join(dir, fileRootTar), b.apt.sourcesFile(),
	)
	cmd := command{
		log: b.log,
		env: []string{"SOURCE_DATE_EPOCH=" + strconv.FormatInt(b.recipe.SourceDate.Unix(), 10), "PATH=" + os.Getenv("PATH") + ":/usr/sbin:/sbin"},
		line: func(s string) {
			// Of what it reports, only the phases that take long are for people.
			if text, ok := strings.CutPrefix(s, "I: "); ok && strings.HasSuffix(text, "...") && !strings.HasPrefix(text, "finding ") {
				b.steps.detail("%s", strings.TrimSuffix(text, "..."))
			}
		},
	}
	temporary := filepath.Join(work, "tmp")
	if err := os.Mkdir(temporary, 0o755); err != nil {
		return err
	}
	cmd.env = append(cmd.env, "TMPDIR="+temporary)
	if !b.rootFitsMemory(ctx) {
		_, err = cmd.run(ctx, "mmdebstrap", args...)
		return err
	}
	// In memory it takes two thirds of the time. The mount is in a namespace of its own, so that it
	// goes away with the process, however that ends.
	inMemory := `mount -t tmpfs -o size=` + strconv.Itoa(rootMemory) + `,mode=0755 tmpfs "$0" && exec mmdebstrap "$@"`
	_, err = cmd.run(ctx, "unshare", append([]string{"--mount", "sh", "-c", inMemory, temporary}, args...)...)
	return err
}

// bothPaths adds to each pattern its twin on the other side of merged-/usr. dpkg matches the names that a package has, and
// packages have moved from /lib to /usr/lib between suites.
func bothPaths(patterns []string) []string {
	var both []string
	for _, p := range patterns {
		both = append(both, p)
		inside, moved := strings.CutPrefix(p, "/usr")
		switch {
		case moved && merged(inside) == strings.TrimPrefix(p, "/"):
			both = append(both, inside)
		case "/"+merged(p) != p:
			both = append(both, "/"+merged(p))
		}
	}
	return both
}

// rootMemory is what the root and its packages take at most while it is made, in bytes.
const rootMemory = 2 << 30

// rootFitsMemory says whether the machine has that much to spare, and lets us mount.
func (b *builder) rootFitsMemory(ctx context.Context) bool {
	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil || memAvailable(string(raw)) < 2*rootMemory {
		return false
	}
	_, err = command{log: b.log}.run(ctx, "unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", b.workDir())
	return err == nil
}

// memAvailable reads the text of /proc/meminfo; it returns bytes.
func memAvailable(meminfo string) int64 {
	for line := range strings.Lines(meminfo) {
		f := strings.Fields(line)
		if len(f) == 3 && f[0] == "MemAvailable:" && f[2] == "kB" {
			n, _ := strconv.ParseInt(f[1], 10, 64) // 0 when it is no number
			return n << 10
		}
	}
	return 0
}

// quote makes one word of a shell command.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// Where the image's files, and the image, lie in the tree of the tools that make it.
const (
	imageFolder = "coldrack-image"
	imageFile   = "coldrack-image.ext4"
)

// fileSystemTools are the packages with the programs that make the file system.
func fileSystemTools() []string { return []string{"e2fsprogs"} }

// image makes the file system and stores it in chunks.
func (b *builder) image(ctx context.Context, rootDir string) (string, error) {
	r := *b.recipe.Image
	tools, err := b.apt.resolve(ctx, fileSystemTools())
	if err != nil {
		return "", fmt.Errorf("image: %w", err)
	}
	inputs := []any{filepath.Base(rootDir), tools, r.Name, r.FreePercent, r.Label, r.KernelArgs, b.recipe.SourceDate, diskimage.DefaultChunkSize, nodeconfig.FactsVersion}
	return b.steps.run(ctx, "image", inputs, func(ctx context.Context, dir string) error {
		work, err := os.MkdirTemp(b.workDir(), "ext4-")
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(work) }()
		if err := b.apt.download(ctx, fileSystemTools(), tools); err != nil {
			return err
		}
		t, err := b.unpackAll(ctx, filepath.Join(work, "tools"), tools)
		if err != nil {
			return err
		}
		defer t.close()
		// They lie in the tree, where its programs can reach them. No package has such names.
		root, raw := t.hostPath(imageFolder), t.hostPath(imageFile)
		if err := t.root.Mkdir(imageFolder, 0o755); err != nil {
			return err
		}
		b.steps.detail("unpack the root file system")
		if _, err := (command{log: b.log}).run(ctx, "tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", root, "-xpf", filepath.Join(rootDir, fileRootTar)); err != nil {
			return err
		}
		if err := emptyMachineID(root, b.recipe.SourceDate); err != nil {
			return err
		}
		facts, err := imageFacts(root)
		if err != nil {
			return fmt.Errorf("image %s: %w", r.Name, err)
		}
		size, files, err := fileSystemSize(root, r.FreePercent)
		if err != nil {
			return err
		}
		b.steps.detail("make a file system of %d MiB", size/mebibyte)
		if err := b.mke2fs(ctx, t, size, files); err != nil {
			return err
		}
		b.steps.detail("store it in chunks")
		if err := encodeImage(ctx, raw, size, dir); err != nil {
			return err
		}
		return b.imageConfig(rootDir, dir, size, facts)
	})
}

// emptyMachineID undoes what mmdebstrap writes into the file after the last hook; see customize.sh.
func emptyMachineID(dir string, date time.Time) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	etc, _, err := rootfs.Resolve(root, "etc")
	if err != nil {
		return err
	}
	file := path.Join(etc, "machine-id")
	if err := root.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return errors.Join(
		root.WriteFile(file, nil, 0o444), root.Chmod(file, 0o444),
		root.Chtimes(file, date, date), root.Chtimes(etc, date, date))
}

// fileSystemSize returns the bytes that a copy of root needs, with room for free percent, and how
// many inodes its files and folders take.
func fileSystemSize(root string, free int) (size, files int64, err error) {
	var content int64
	linked := map[uint64]bool{} // inodes with several names
	err = filepath.WalkDir(root, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink > 1 && !d.IsDir() {
			if linked[st.Ino] {
				return nil
			}
			linked[st.Ino] = true
		}
		files++
		if info.Mode().IsRegular() || info.IsDir() {
			content += (info.Size() + blockSize - 1) / blockSize * blockSize
		}
		return nil
	})
	if err != nil {
		return 0, 0, err
	}
	size = content + content*int64(free)/100 + inodesFor(files)*inodeSize + journalSize + 16*mebibyte
	return (size + mebibyte - 1) / mebibyte * mebibyte, files, nil
}

// inodesFor leaves room for new files before the file system grows.
func inodesFor(files int64) int64 { return files + files/4 }

// mke2fs makes the file system with everything fixed that would otherwise be random or of today.
func (b *builder) mke2fs(ctx context.Context, t *tree, size, files int64) error {
	r := *b.recipe.Image
	epoch := strconv.FormatInt(b.recipe.SourceDate.Unix(), 10)
	id := fixedUUID(b.recipe.Name + "/" + r.Name)
	c := command{log: b.log, env: []string{"SOURCE_DATE_EPOCH=" + epoch, "E2FSPROGS_FAKE_TIME=" + epoch, "MKE2FS_CONFIG=/etc/mke2fs.conf"}}
	_, err := t.run(ctx, c, "usr/sbin/mke2fs",
		"-q", "-t", "ext4", "-b", strconv.Itoa(blockSize), "-I", strconv.Itoa(inodeSize), "-N", strconv.FormatInt(inodesFor(files), 10),
		"-L", r.Label, "-U", id, "-m", "1", "-J", "size="+strconv.Itoa(journalSize/mebibyte),
		// metadata_csum_seed: the agent gives every disk a UUID of its own, which then does not
		// change any checksum.
		"-O", "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum,metadata_csum_seed",
		"-E", "hash_seed="+id+",lazy_itable_init=0,lazy_journal_init=0,nodiscard",
		"-d", "/"+imageFolder, "/"+imageFile, strconv.FormatInt(size/blockSize, 10))
	if err != nil {
		return err
	}
	return b.fixTimes(ctx, t, c, files, epoch)
}

// fixTimes gives every inode the source date as time of access, change and creation, which mke2fs
// takes from the building machine's file system and clock.
func (b *builder) fixTimes(ctx context.Context, t *tree, c command, used int64, epoch string) error {
	const rootInode, firstFree = 2, 11 // those between are the file system's own
	var script strings.Builder
	for inode := int64(rootInode); inode < firstFree+used; inode++ {
		if inode > rootInode && inode < firstFree {
			continue
		}
		for _, field := range []string{"atime", "ctime", "crtime"} {
			fmt.Fprintf(&script, "set_inode_field <%d> %s @%s\n", inode, field, epoch)
		}
	}
	const commands = imageFile + ".debugfs"
	if err := t.writeFile(commands, []byte(script.String())); err != nil {
		return err
	}
	_, err := t.run(ctx, c, "usr/sbin/debugfs", "-w", "-f", "/"+commands, "/"+imageFile)
	return err
}

func encodeImage(ctx context.Context, raw string, size int64, dir string) error {
	in, err := os.Open(raw)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.Create(filepath.Join(dir, bundle.FileImageChunks))
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	idx, err := diskimage.Encode(ctx, in, size, out)
	if err != nil {
		return err
	}
	index, err := json.Marshal(idx)
	if err != nil {
		return err
	}
	return errors.Join(out.Close(), os.WriteFile(filepath.Join(dir, bundle.FileImageIndex), index, 0o644))
}

func (b *builder) imageConfig(rootDir, dir string, size int64, facts *nodeconfig.ImageFacts) error {
	fact := func(name string) string {
		raw, err := os.ReadFile(filepath.Join(rootDir, fileFacts, name))
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(raw))
	}
	config, err := json.Marshal(bundle.ImageConfig{
		Name: b.recipe.Image.Name, Family: "debian", Version: fact("os-version"), Arch: "amd64",
		KernelVersion: fact("kernel-version"), RootFS: "ext4", Size: size,
		KernelArgs: append([]string{}, b.recipe.Image.KernelArgs...), Facts: facts,
	})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, fileConfig), config, 0o644)
}

// imagePackages is what dpkg in the image says is installed.
func imagePackages(rootDir string) ([]pkg, error) {
	raw, err := os.ReadFile(filepath.Join(rootDir, fileFacts, "packages"))
	if err != nil {
		return nil, err
	}
	var pkgs []pkg
	for line := range strings.Lines(string(raw)) {
		f := strings.Split(strings.TrimSpace(line), "|")
		if len(f) == 5 && strings.HasPrefix(f[0], "ii") {
			pkgs = append(pkgs, pkg{Name: f[1], Version: f[2], Arch: f[3]})
		}
	}
	return pkgs, nil
}

// fixedUUID derives a UUID (version 8, RFC 9562) from a name.
func fixedUUID(name string) string {
	u := sha256.Sum256([]byte("coldrack " + name))
	u[6] = u[6]&0x0f | 0x80
	u[8] = u[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
}
