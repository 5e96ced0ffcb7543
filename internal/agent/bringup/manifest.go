package bringup

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"coldrack.dev/internal/agent/nodecert"
	"coldrack.dev/internal/agent/nodefile"
	"coldrack.dev/internal/contract/wire"
)

// manifestsDir is where the kubelet finds static pods; a pod NAME is in NAME.yaml.
const manifestsDir = "/etc/kubernetes/manifests"

const annotationCertificates = "coldrack.dev/certificates-digest"

// fileContent is what a file of the plan contains on this node. That of a static pod depends on the certificates that
// it reads only when it starts.
//
// The kubelet takes a manifest with another annotation for another pod, ends the old one and starts the new one.
// Moving the manifest away and back would have to wait until the kubelet has noticed the first, and a power cut in
// between would leave the node without the pod; a manifest that is a function of what is on the disk needs neither.
func fileContent(d nodefile.Disk, plan *wire.NodePlan, f wire.NodeFile) ([]byte, error) {
	pod := strings.TrimSuffix(path.Base(f.Path), ".yaml")
	if path.Dir(f.Path) != manifestsDir || f.Dir || f.Link != "" ||
		!slices.ContainsFunc(plan.Certificates, func(c wire.NodeCertificate) bool { return slices.Contains(c.Restart, pod) }) {
		return f.Content, nil
	}
	certificates, err := nodecert.Stamp(d, plan.Certificates, pod)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(certificates)
	b, err := annotate(f.Content, annotationCertificates, hex.EncodeToString(sum[:8]))
	if err != nil {
		return nil, fmt.Errorf("static pod %s: %w", f.Path, err)
	}
	return b, nil
}

// annotate sets an annotation of a manifest and leaves the rest as it is.
func annotate(manifest []byte, key, value string) ([]byte, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(manifest, &doc); err != nil {
		return nil, err
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return nil, fmt.Errorf("the manifest is not one object")
	}
	metadata, err := child(doc.Content[0], "metadata")
	if err != nil {
		return nil, err
	}
	annotations, err := child(metadata, "annotations")
	if err != nil {
		return nil, err
	}
	for i := 0; i+1 < len(annotations.Content); i += 2 {
		if annotations.Content[i].Value == key {
			annotations.Content = slices.Delete(annotations.Content, i, i+2)
			break
		}
	}
	text := func(s string) *yaml.Node {
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s, Style: yaml.DoubleQuotedStyle}
	}
	annotations.Content = append(annotations.Content, text(key), text(value))
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(&doc); err != nil {
		return nil, err
	}
	return b.Bytes(), enc.Close()
}

// child is the mapping below a key, made if there is none.
func child(of *yaml.Node, key string) (*yaml.Node, error) {
	for i := 0; i+1 < len(of.Content); i += 2 {
		if of.Content[i].Value != key {
			continue
		}
		value := of.Content[i+1]
		if value.Kind == yaml.ScalarNode && value.Tag == "!!null" {
			*value = yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
		}
		if value.Kind != yaml.MappingNode {
			return nil, fmt.Errorf("line %d: %s is not a mapping", value.Line, key)
		}
		return value, nil
	}
	value := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	of.Content = append(of.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: key}, value)
	return value, nil
}
