package build

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// document is a recipe before its fields are looked at.
type document = map[string]any

// loadDocument reads recipe.yaml in dir, over the recipes that it builds on. Folders in it are relative to dir.
func loadDocument(dir string, derived []string) (document, error) {
	file := filepath.Join(dir, "recipe.yaml")
	raw, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read recipe: %s has no recipe.yaml; give the folder of a recipe, for example recipes/default", dir)
	}
	if err != nil {
		return nil, fmt.Errorf("read recipe: %w", err)
	}
	doc, err := parseDocument(raw)
	if err != nil {
		return nil, fmt.Errorf("recipe %s: %w", file, err)
	}
	value, derives := doc["base"]
	if !derives {
		return doc, nil
	}
	delete(doc, "base")
	folder, ok := value.(string)
	if !ok || folder == "" || path.IsAbs(folder) {
		return nil, fmt.Errorf("recipe %s: %w", file, &FieldError{"base", fmt.Sprintf("is %v, want the folder of another recipe, relative to this one", value)})
	}
	derived = append(slices.Clone(derived), filepath.Clean(dir))
	if at := filepath.Join(dir, folder); slices.Contains(derived, at) {
		return nil, fmt.Errorf("recipe %s: %w", file, &FieldError{"base", "leads back to this recipe: " + strings.Join(append(derived, at), " -> ")})
	}
	base, err := loadDocument(filepath.Join(dir, folder), derived)
	if err != nil {
		return nil, err
	}
	moveFolders(base, folder)
	merged, _ := merge(base, doc).(document)
	return merged, nil
}

func parseDocument(raw []byte) (document, error) {
	asJSON, err := yaml.YAMLToJSONStrict(raw)
	if err != nil {
		return nil, fmt.Errorf("is not YAML: %w", err)
	}
	var doc document
	if err := yaml.Unmarshal(asJSON, &doc); err != nil {
		return nil, err
	}
	return doc, nil
}

// moveFolders makes the folders that a recipe names relative to one that builds on it, from which folder leads here.
func moveFolders(doc document, folder string) {
	move := func(part any, field string) {
		m, _ := part.(document)
		if v, ok := m[field].(string); ok && v != "" && !path.IsAbs(v) {
			m[field] = path.Join(folder, v)
		}
	}
	move(doc["image"], "overlay")
	move(doc["netboot"], "overlay")
	for part, field := range map[string]string{"go": "folder", "layers": "overlay"} {
		list, _ := doc[part].([]any)
		for _, entry := range list {
			move(entry, field)
		}
	}
}

// merge lays one value over another as JSON merge patches do (RFC 7396): maps are joined, null removes, and everything
// else, lists too, is replaced whole.
func merge(under, over any) any {
	patch, ok := over.(document)
	if !ok {
		return over
	}
	result := document{}
	if m, ok := under.(document); ok {
		result = maps.Clone(m)
	}
	for key, value := range patch {
		if value == nil {
			delete(result, key)
			continue
		}
		result[key] = merge(result[key], value)
	}
	return result
}

var (
	versionName  = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)
	versionValue = regexp.MustCompile(`^v?[0-9]+(\.[0-9A-Za-z+-]+)*$`)
	placeholder  = regexp.MustCompile(`\{([a-z][a-z0-9-]*)(\.[a-z]+)?\}`)
)

// stampWords are what stamps may name besides versions.
func stampWords() []string { return []string{"version", "major", "minor", "date"} }

// expand replaces {NAME} by a version that the recipe's part versions has, {NAME.number} by it without the v, and
// {NAME.minor} by its first two numbers.
func expand(doc document) error {
	values, present := doc["versions"]
	if !present {
		return nil
	}
	named, ok := values.(document)
	if !ok {
		return &FieldError{"versions", "is no map, want entries such as etcd: v3.7.3"}
	}
	versions := map[string]string{}
	for name, value := range named {
		v, _ := value.(string)
		switch {
		case !versionName.MatchString(name) || slices.Contains(stampWords(), name):
			return &FieldError{"versions", fmt.Sprintf("%q is not a name, want small letters, and none of %q", name, stampWords())}
		case !versionValue.MatchString(v):
			return &FieldError{"versions." + name, fmt.Sprintf("is %v, want a version such as v3.7.3", value)}
		}
		versions[name] = v
	}
	var err error
	replaced := replaceStrings(doc, "", func(field, s string) string {
		return placeholder.ReplaceAllStringFunc(s, func(found string) string {
			m := placeholder.FindStringSubmatch(found)
			if m[2] == "" && slices.Contains(stampWords(), m[1]) {
				return found
			}
			text, ok := versionForm(versions[m[1]], m[2])
			if !ok {
				err = errors.Join(err, &FieldError{field, fmt.Sprintf("names %s; want {NAME}, {NAME.number} or {NAME.minor} with a name out of versions: %q", found, slices.Sorted(maps.Keys(versions)))})
			}
			return text
		})
	})
	maps.Copy(doc, replaced.(document))
	return err
}

func versionForm(version, form string) (string, bool) {
	number := strings.TrimPrefix(version, "v")
	switch {
	case version == "":
		return "", false
	case form == "":
		return version, true
	case form == ".number":
		return number, true
	case form == ".minor":
		parts := strings.SplitN(number, ".", 3)
		return strings.Join(parts[:min(2, len(parts))], "."), true
	}
	return "", false
}

// replaceStrings applies replace to every string in a value, with the path of the field that it is in.
func replaceStrings(value any, field string, replace func(field, s string) string) any {
	switch v := value.(type) {
	case string:
		return replace(field, v)
	case []any:
		list := make([]any, len(v))
		for i, entry := range v {
			list[i] = replaceStrings(entry, fmt.Sprintf("%s[%d]", field, i), replace)
		}
		return list
	case document:
		m := document{}
		for _, key := range slices.Sorted(maps.Keys(v)) {
			m[key] = replaceStrings(v[key], strings.TrimPrefix(field+"."+key, "."), replace)
		}
		return m
	}
	return value
}
