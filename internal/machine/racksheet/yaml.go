package racksheet

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// readYAML reads a list of machines, or an object with such a list under "machines" and beside it what holds for all of them. Keys
// are what the header of a table would say. JSON is YAML.
func readYAML(data []byte) ([]Grid, error) {
	decoder := yaml.NewDecoder(strings.NewReader(string(data)))
	var document yaml.Node
	if err := decoder.Decode(&document); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, Problems{{Message: "the file is empty"}}
		}
		return nil, fmt.Errorf("the file is no YAML: %w", err)
	}
	if err := decoder.Decode(new(yaml.Node)); err == nil {
		return nil, Problems{{Message: `the file has several documents, parted by "---"; want one with the list of machines. Manifests are for: coldrack apply -f`}}
	}
	g := Grid{}
	list := document.Content[0]
	if list.Kind == yaml.MappingNode {
		var problems Problems
		object := list
		list = nil
		for i := 0; i+1 < len(object.Content); i += 2 {
			key, value := object.Content[i], object.Content[i+1]
			switch {
			case key.Value == "machines":
				list = value
			case value.Kind == yaml.ScalarNode:
				g.settings = append(g.settings, setting{key: key.Value, value: value.Value, line: key.Line})
			case key.Value == "defaults" && value.Kind == yaml.MappingNode:
				for j := 0; j+1 < len(value.Content); j += 2 {
					g.settings = append(g.settings, setting{key: value.Content[j].Value, value: textOf(value.Content[j+1]), line: value.Content[j].Line, isDefault: true})
				}
			default:
				problems = append(problems, Problem{Line: key.Line, Column: key.Value, Message: "is not a value for all machines; want machines, defaults, or a key with one value"})
			}
		}
		if len(problems) > 0 {
			return nil, problems
		}
	}
	if list == nil || list.Kind != yaml.SequenceNode {
		return nil, Problems{{Line: document.Line, Message: `want a list of machines, or an object with such a list under the key "machines"`}}
	}
	return g.addMachines(list)
}

func (g Grid) addMachines(list *yaml.Node) ([]Grid, error) {
	var keys []string
	var problems Problems
	g.Lines = []Line{{Number: list.Line}}
	for _, item := range list.Content {
		if item.Kind == yaml.AliasNode {
			item = item.Alias
		}
		if item.Kind != yaml.MappingNode {
			problems = append(problems, Problem{Line: item.Line, Message: "is no machine: want keys and values, such as rack: a1"})
			continue
		}
		line := Line{Number: item.Line}
		for i := 0; i+1 < len(item.Content); i += 2 {
			key := item.Content[i].Value
			at := slices.Index(keys, key)
			if at < 0 {
				at, keys = len(keys), append(keys, key)
			}
			if item.Content[i+1].Kind == yaml.MappingNode && columnNamed(key).column != columnLabels {
				problems = append(problems, Problem{Line: item.Content[i].Line, Column: key, Message: "has keys of its own; want one value, or a list of values"})
			}
			if at < maxColumns {
				line.Cells = put(line.Cells, at, textOf(item.Content[i+1]))
			}
		}
		g.Lines = append(g.Lines, line)
	}
	g.Lines[0].Cells = keys[:min(len(keys), maxColumns)]
	if len(problems) > 0 {
		return nil, problems
	}
	return []Grid{g}, nil
}

// textOf is a value as the cell of a table would have it: a list with one value a line, an object with one key=value a line.
func textOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.ScalarNode:
		if n.Tag == "!!null" {
			return ""
		}
		return n.Value
	case yaml.SequenceNode:
		parts := make([]string, len(n.Content))
		for i, item := range n.Content {
			parts[i] = item.Value
		}
		return strings.Join(parts, "\n")
	case yaml.MappingNode:
		var parts []string
		for i := 0; i+1 < len(n.Content); i += 2 {
			parts = append(parts, n.Content[i].Value+"="+n.Content[i+1].Value)
		}
		return strings.Join(parts, "\n")
	}
	return ""
}
