package cli

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"coldrack.dev/internal/content/bundle"
	"coldrack.dev/internal/content/bundle/build"
)

// PrintBundle shows what a bundle contains.
func PrintBundle(w io.Writer, summary bundle.Summary) error {
	fmt.Fprintf(w, "Bundle:  %s\nDigest:  %s\nCreated: %s\nKey:     %s\nSize:    %s\n\n", summary.Name, summary.Digest,
		summary.Created.Format(time.RFC3339), summary.KeyID, Bytes(summary.Size))
	table := &Table{Header: []string{"KIND", "NAME", "VERSION", "SIZE", "DIGEST"}}
	programs := &Table{Header: []string{"PROGRAM", "VERSION", "SIZE", "PATH"}}
	for _, artifact := range summary.Artifacts {
		var size int64
		for _, file := range artifact.Files {
			size += file.Size
		}
		facts := factsOf(artifact)
		table.Add(string(artifact.Kind), artifact.Name, cmp.Or(facts.version(), "-"), Bytes(size), artifact.Digest)
		for _, p := range facts.Programs {
			programs.Add(p.Name, cmp.Or(p.Version, "-"), Bytes(p.Size), p.Path)
		}
	}
	if err := table.Print(w, true); err != nil || len(programs.Rows) == 0 {
		return err
	}
	fmt.Fprintln(w)
	return programs.Print(w, true)
}

// artifactFacts are the fields of all kinds' configs that say which version an artifact is; a container image
// says it in a label.
type artifactFacts struct {
	Image struct {
		Labels map[string]string
	} `json:"config"`
	Version      string               `json:"version"`
	AgentVersion string               `json:"agentVersion"`
	Kubernetes   string               `json:"kubernetes"`
	Programs     []bundle.ProgramFile `json:"programs"`
}

func factsOf(artifact bundle.Artifact) artifactFacts {
	var facts artifactFacts
	_ = json.Unmarshal(artifact.Config, &facts) // a config of another form has no version
	return facts
}

func (f artifactFacts) version() string {
	return cmp.Or(f.Version, f.AgentVersion, f.Kubernetes, f.Image.Labels["org.opencontainers.image.version"])
}

// BuildProgress prints a line for each step that begins or ends, and what a running one is at every few
// seconds.
func BuildProgress(w io.Writer, now func() time.Time) func(build.Event) {
	var lastDetail time.Time
	return func(e build.Event) {
		switch e.State {
		case build.Started:
			fmt.Fprintf(w, "%-24s ...\n", e.Step)
			lastDetail = now()
		case build.Running:
			if now().Sub(lastDetail) < 5*time.Second {
				return
			}
			lastDetail = now()
			fmt.Fprintf(w, "%-24s %5s  %s\n", e.Step, Age(e.Elapsed), e.Detail)
		case build.Cached:
			fmt.Fprintf(w, "%-24s cached%s\n", e.Step, sizeText(e.Size))
		case build.Done:
			fmt.Fprintf(w, "%-24s done in %s%s\n", e.Step, Age(e.Elapsed), sizeText(e.Size))
		}
	}
}

func sizeText(size int64) string {
	if size == 0 {
		return ""
	}
	return ", " + Bytes(size)
}
