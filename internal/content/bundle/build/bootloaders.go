package build

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"coldrack.dev/internal/content/bundle"
	"coldrack.dev/internal/content/diskboot"
)

// loaderFiles says where Debian's packages have the boot loaders. core.img is made here.
func loaderFiles() map[string]string {
	return map[string]string{
		bundle.FileUndionly: "usr/lib/ipxe/undionly.kpxe",
		bundle.FileIPXE:     "usr/lib/ipxe/ipxe.efi",
		bundle.FileSNPOnly:  "usr/lib/ipxe/snponly.efi",
		bundle.FileBootImg:  "usr/lib/grub/i386-pc/boot.img",
		bundle.FileShim:     "usr/lib/shim/shimx64.efi.signed",
		bundle.FileGRUB:     "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed",
	}
}

// bootloaders takes boot loaders out of packages, none of which is installed on this machine.
func (b *builder) bootloaders(ctx context.Context) (string, error) {
	r := b.recipe.Bootloaders
	// grub-mkimage, which makes core.img, comes from the same version of GRUB as its modules.
	names := append(slices.Clone(r.Packages), "grub-common")
	pkgs, err := b.apt.resolve(ctx, names)
	if err != nil {
		return "", fmt.Errorf("bootloaders: %w", err)
	}
	inputs := []any{r, pkgs, loaderFiles(), diskboot.CoreModules(), diskboot.Prefix, diskboot.LocalModules(), diskboot.LocalConfig,
		diskboot.LocalBIOSModules(), diskboot.LocalBIOSConfig}
	return b.steps.run(ctx, "bootloaders", inputs, func(ctx context.Context, dir string) error {
		if err := b.apt.download(ctx, names, pkgs); err != nil {
			return err
		}
		work, err := os.MkdirTemp(b.workDir(), "bootloaders-")
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(work) }()
		t, err := b.unpackAll(ctx, filepath.Join(work, "tree"), pkgs)
		if err != nil {
			return err
		}
		defer t.close()
		for title, file := range loaderFiles() {
			if err := t.copyOut(file, filepath.Join(dir, title)); err != nil {
				return fmt.Errorf("bootloaders.packages: none of %q brings %s: %w", r.Packages, file, err)
			}
		}
		if err := b.coreImage(ctx, t, filepath.Join(dir, bundle.FileCoreImg)); err != nil {
			return err
		}
		if err := b.localEFIImage(ctx, t, filepath.Join(dir, bundle.FileLocal)); err != nil {
			return err
		}
		if err := b.localBIOSImage(ctx, t, filepath.Join(dir, bundle.FileLocalPC)); err != nil {
			return err
		}
		versions := map[string]string{}
		var used []pkg
		for _, p := range pkgs {
			if slices.Contains(names, p.Name) {
				versions[p.Name] = p.Version
				used = append(used, p)
			}
		}
		config, err := json.Marshal(bundle.BootloadersConfig{Name: r.Name, Arch: "amd64", Packages: versions})
		if err != nil {
			return err
		}
		meta, err := json.Marshal(used)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, fileMeta), meta, 0o644); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, fileConfig), config, 0o644)
	})
}

// unpackAll makes a tree of downloaded packages.
func (b *builder) unpackAll(ctx context.Context, dir string, pkgs []pkg) (*tree, error) {
	t, err := newTree(dir)
	if err != nil {
		return nil, err
	}
	for _, p := range pkgs {
		if err := t.unpack(ctx, b.apt.deb(p), wantedForNetboot); err != nil {
			t.close()
			return nil, err
		}
	}
	return t, nil
}

// grub makes an image of GRUB in the tree with the unpacked grub-mkimage and its modules.
func (b *builder) grub(ctx context.Context, t *tree, format, out string, args ...string) error {
	args = append([]string{"-O", format, "-d", "/usr/lib/grub/" + format, "-o", "/" + out}, args...)
	_, err := t.run(ctx, command{log: b.log}, "usr/bin/grub-mkimage", args...)
	return err
}

// coreImage makes the GRUB of an installed disk that starts by BIOS.
func (b *builder) coreImage(ctx context.Context, t *tree, out string) error {
	const made = "coldrack-core.img"
	if err := b.grub(ctx, t, "i386-pc", made, append([]string{"-p", diskboot.Prefix}, diskboot.CoreModules()...)...); err != nil {
		return err
	}
	core, err := t.readFile(made)
	if err != nil {
		return err
	}
	// Whether an installer could use it is known now, not in the rack.
	if _, err := diskboot.Core(core, 34); err != nil {
		return fmt.Errorf("grub-mkimage made an unusable image: %w", err)
	}
	return os.WriteFile(out, core, 0o644)
}

// localImage makes a GRUB that iPXE chains to, with its whole configuration inside.
func (b *builder) localImage(ctx context.Context, t *tree, format, config string, modules []string) ([]byte, error) {
	const script, made = "coldrack-local.cfg", "coldrack-local.img"
	if err := t.writeFile(script, []byte(config)); err != nil {
		return nil, err
	}
	if err := b.grub(ctx, t, format, made, append([]string{"-p", "/", "-c", "/" + script}, modules...)...); err != nil {
		return nil, err
	}
	return t.readFile(made)
}

// localEFIImage makes one for UEFI.
func (b *builder) localEFIImage(ctx context.Context, t *tree, out string) error {
	image, err := b.localImage(ctx, t, "x86_64-efi", diskboot.LocalConfig, diskboot.LocalModules())
	if err != nil {
		return err
	}
	return os.WriteFile(out, image, 0o644)
}

// localBIOSImage makes one that iPXE can start as if it were a Linux kernel: unlike a PXE program, it gets the machine
// without iPXE's drivers and hooks.
func (b *builder) localBIOSImage(ctx context.Context, t *tree, out string) error {
	core, err := b.localImage(ctx, t, "i386-pc", diskboot.LocalBIOSConfig, diskboot.LocalBIOSModules())
	if err != nil {
		return err
	}
	start, err := t.readFile("usr/lib/grub/i386-pc/lnxboot.img")
	if err != nil {
		return err
	}
	return os.WriteFile(out, slices.Concat(start, core), 0o644)
}

func readPackages(file string) ([]pkg, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var pkgs []pkg
	if err := json.Unmarshal(raw, &pkgs); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	slices.SortFunc(pkgs, func(a, b pkg) int { return strings.Compare(a.Name, b.Name) })
	return pkgs, nil
}
