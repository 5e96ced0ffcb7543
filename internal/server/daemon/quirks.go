package daemon

import (
	"fmt"
	"os"

	"coldrack.dev/internal/netboot/quirk"
)

// readQuirks reads the site's own quirks over those that come with the server; without a file there are only these.
func readQuirks(file string) (*quirk.Table, error) {
	if file == "" {
		return quirk.BuiltIn(), nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("quirks: %w; set --quirks to a file as docs/booting.md describes it, or leave it out", err)
	}
	own, err := quirk.Parse(file, text)
	if err != nil {
		return nil, fmt.Errorf("quirks: %w", err)
	}
	return quirk.BuiltIn().With(own), nil
}
