package build

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"coldrack.dev/internal/base/digest"
)

// The parts of SPDX 2.3 that a bill of materials of packages needs.
type spdxDocument struct {
	Version       string             `json:"spdxVersion"`
	License       string             `json:"dataLicense"`
	ID            string             `json:"SPDXID"`
	Name          string             `json:"name"`
	Namespace     string             `json:"documentNamespace"`
	Creation      spdxCreation       `json:"creationInfo"`
	Packages      []spdxPackage      `json:"packages"`
	Relationships []spdxRelationship `json:"relationships"`
}

type spdxCreation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type spdxPackage struct {
	ID               string         `json:"SPDXID"`
	Name             string         `json:"name"`
	Version          string         `json:"versionInfo,omitempty"`
	Supplier         string         `json:"supplier,omitempty"`
	Source           string         `json:"sourceInfo,omitempty"`
	Download         string         `json:"downloadLocation"`
	FilesAnalyzed    bool           `json:"filesAnalyzed"`
	LicenseConcluded string         `json:"licenseConcluded"`
	LicenseDeclared  string         `json:"licenseDeclared"`
	Copyright        string         `json:"copyrightText"`
	Refs             []spdxRef      `json:"externalRefs,omitempty"`
	Checksums        []spdxChecksum `json:"checksums,omitempty"`
}

type spdxRef struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type spdxChecksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type spdxRelationship struct {
	From string `json:"spdxElementId"`
	Type string `json:"relationshipType"`
	To   string `json:"relatedSpdxElement"`
}

const (
	noAssertion = "NOASSERTION"
	spdxRoot    = "SPDXRef-DOCUMENT"
)

// part is one artifact for the bill of materials.
type part struct {
	name     string
	packages []pkg
	programs []artefact
}

// sbom lists what each part of the bundle contains. Licences are not stated: those of Debian packages
// are in the image under /usr/share/doc.
func sbom(name string, created time.Time, parts []part) ([]byte, error) {
	d := spdxDocument{
		Version: "SPDX-2.3", License: "CC0-1.0", ID: spdxRoot, Name: name,
		Creation: spdxCreation{Created: created.UTC().Format(time.RFC3339), Creators: []string{"Tool: coldrack-bundle-build"}},
	}
	seen := map[string]bool{}
	add := func(p spdxPackage, within string) {
		if !seen[p.ID] {
			seen[p.ID] = true
			p.Download, p.LicenseConcluded, p.LicenseDeclared, p.Copyright = noAssertion, noAssertion, noAssertion, noAssertion
			d.Packages = append(d.Packages, p)
		}
		relation := "CONTAINS"
		if within == spdxRoot {
			relation = "DESCRIBES"
		}
		d.Relationships = append(d.Relationships, spdxRelationship{within, relation, p.ID})
	}
	for _, part := range parts {
		id := spdxID("artifact", part.name)
		add(spdxPackage{ID: id, Name: part.name}, spdxRoot)
		for _, p := range part.packages {
			add(debianPackage(p), id)
		}
		for _, program := range part.programs {
			owner := spdxPackage{
				ID: spdxID("program", program.Name, program.Digest), Name: program.Name, Version: program.Version,
				Checksums: []spdxChecksum{{"SHA256", digest.Hex(program.Digest)}},
			}
			known := seen[owner.ID]
			add(owner, id)
			if known {
				continue // its modules are listed
			}
			for _, m := range program.modules {
				add(goModule(m), owner.ID)
			}
		}
	}
	raw, err := json.Marshal(d)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(raw)
	d.Namespace = "https://coldrack.dev/spdx/" + url.PathEscape(name) + "-" + hex.EncodeToString(sum[:16])
	return json.MarshalIndent(d, "", " ")
}

func debianPackage(p pkg) spdxPackage {
	return spdxPackage{
		ID: spdxID("deb", p.Name, p.Version, p.Arch), Name: p.Name, Version: p.Version, Supplier: "Organization: Debian",
		Refs: []spdxRef{{"PACKAGE-MANAGER", "purl", fmt.Sprintf("pkg:deb/debian/%s@%s?arch=%s", url.PathEscape(p.Name), url.QueryEscape(p.Version), p.Arch)}},
	}
}

func goModule(m goVersion) spdxPackage {
	p := spdxPackage{
		ID: spdxID("go", m.Path, m.Version), Name: m.Path, Version: m.Version,
		Refs: []spdxRef{{"PACKAGE-MANAGER", "purl", "pkg:golang/" + m.Path + "@" + url.QueryEscape(m.Version)}},
	}
	if m.Sum != "" {
		p.Source = "go.sum: " + m.Sum
	}
	return p
}

// spdxID makes an identifier of letters, digits, dots and dashes; a hash keeps it unique.
func spdxID(words ...string) string {
	name := strings.Join(words, "-")
	sum := sha256.Sum256([]byte(strings.Join(words, "\x00")))
	clean := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' {
			return r
		}
		return '-'
	}, name)
	return "SPDXRef-" + clean[:min(len(clean), 100)] + "-" + hex.EncodeToString(sum[:4])
}

// goVersion is a module at a version, with its hash as in go.sum.
type goVersion struct{ Path, Version, Sum string }

// goModules lists the modules that a Go program was built from, sorted.
func goModules(info *buildinfo.BuildInfo) []goVersion {
	if info == nil {
		return nil
	}
	modules := []goVersion{{Path: "stdlib", Version: strings.TrimPrefix(info.GoVersion, "go")}}
	// A program of another module than the one that is being built names that one as its own.
	if m := info.Main; m.Version != "" && m.Version != "(devel)" {
		modules = append(modules, goVersion{m.Path, m.Version, m.Sum})
	}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		modules = append(modules, goVersion{m.Path, m.Version, m.Sum})
	}
	slices.SortFunc(modules, func(a, b goVersion) int { return strings.Compare(a.Path+a.Version, b.Path+b.Version) })
	return modules
}
