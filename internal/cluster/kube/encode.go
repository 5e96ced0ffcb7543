package kube

import (
	"encoding/json"
	"fmt"

	"sigs.k8s.io/yaml"
)

// encodeObject writes an API object as YAML, without the status that it has not got yet.
func encodeObject(object any) ([]byte, error) {
	tree, err := treeOf(object)
	if err != nil {
		return nil, err
	}
	delete(tree, "status")
	return yaml.Marshal(dropNulls(tree))
}

// encodeConfig writes a component's configuration as YAML, without whatever is not set: their types write
// every empty field, and an older release refuses a field that it does not know.
func encodeConfig(config any) ([]byte, error) {
	tree, err := treeOf(config)
	if err != nil {
		return nil, err
	}
	return yaml.Marshal(dropUnset(tree))
}

func treeOf(object any) (map[string]any, error) {
	encoded, err := json.Marshal(object)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", object, err)
	}
	var tree map[string]any
	if err := json.Unmarshal(encoded, &tree); err != nil {
		return nil, fmt.Errorf("encode %T: %w", object, err)
	}
	return tree, nil
}

func dropNulls(tree map[string]any) map[string]any {
	walk(tree, func(value any) bool { return value == nil })
	return tree
}

func dropUnset(tree map[string]any) map[string]any {
	walk(tree, func(value any) bool {
		switch v := value.(type) {
		case nil:
			return true
		case string:
			return v == "" || v == "0s"
		case map[string]any:
			return len(v) == 0
		}
		return false
	})
	return tree
}

// walk removes, from the inside outwards, the fields that drop says.
func walk(value any, drop func(any) bool) {
	switch v := value.(type) {
	case map[string]any:
		for key, child := range v {
			walk(child, drop)
			if drop(child) {
				delete(v, key)
			}
		}
	case []any:
		for _, child := range v {
			walk(child, drop)
		}
	}
}
