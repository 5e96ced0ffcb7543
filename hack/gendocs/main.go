// Command gendocs writes docs/reference: the kinds from the CRDs, which come from the Go types, and the
// command line from the program itself; and the table of quirks into docs/booting.md. Run it from the root of the repository, as `make generate` does.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"coldrack.dev/internal/netboot/quirk"
)

const (
	folder  = "docs/reference"
	booting = "docs/booting.md"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "gendocs:", err)
		os.Exit(1)
	}
}

func run() error {
	kinds, err := kindsReference()
	if err != nil {
		return err
	}
	cli := exec.Command("go", "run", "./cmd/coldrack", "docs-cli")
	cli.Stderr = os.Stderr
	commands, err := cli.Output()
	if err != nil {
		return fmt.Errorf("coldrack docs-cli: %w", err)
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(folder, "kinds.md"), []byte(kinds), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(folder, "cli.md"), commands, 0o644); err != nil {
		return err
	}
	text, err := os.ReadFile(booting)
	if err != nil {
		return err
	}
	withTable, err := quirk.Section(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", booting, err)
	}
	return os.WriteFile(booting, []byte(withTable), 0o644)
}
