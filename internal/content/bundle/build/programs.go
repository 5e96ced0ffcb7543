package build

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"coldrack.dev/internal/content/bundle"
)

// programs compresses the programs of nodes, and returns their folder and what is in them.
func (b *builder) programs(ctx context.Context, files map[SourceRecipe]artefact) (bundle.ArtifactSpec, part, error) {
	r := b.recipe.Programs
	spec := bundle.ArtifactSpec{Kind: bundle.KindPrograms, Name: r.Name}
	bill := part{name: string(bundle.KindPrograms) + "/" + r.Name}
	config := bundle.ProgramsConfig{Name: r.Name, Kubernetes: r.Kubernetes}
	inputs := []any{}
	for _, f := range r.Files {
		a := files[f.SourceRecipe]
		config.Programs = append(config.Programs, bundle.ProgramFile{
			Name: f.Name, Path: f.Path, Version: a.Version, Digest: a.Digest, Size: a.Size, File: f.Name + ".zst",
		})
		bill.programs = append(bill.programs, a)
		inputs = append(inputs, []string{f.Name, a.Digest})
	}
	dir, err := b.steps.run(ctx, "programs-"+r.Name, inputs, func(ctx context.Context, dir string) error {
		for _, f := range r.Files {
			b.steps.detail("compress %s", f.Name)
			if err := compressFile(files[f.SourceRecipe].Path, filepath.Join(dir, f.Name+".zst")); err != nil {
				return err
			}
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return spec, bill, err
	}
	spec.Config = config
	for _, p := range config.Programs {
		spec.Files = append(spec.Files, bundle.FileSpec{Title: p.File, Path: filepath.Join(dir, p.File)})
	}
	return spec, bill, nil
}

func compressFile(from, to string) error {
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	z, err := newZstd(out)
	if err != nil {
		return err
	}
	_, err = appendFile(z, from)
	return errors.Join(err, z.Close(), out.Close())
}
