package kube

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"hash"
	"slices"
	"strings"

	"coldrack.dev/api/v1alpha1"
	corev1 "k8s.io/api/core/v1"
)

// Part of a node is what is changed together and interrupts together.
type Part int

const (
	PartNode Part = iota
	PartControlPlane
	PartEtcd
	parts
)

// Digester gathers what stands for a node's configuration: everything whose change may interrupt something. What is added is
// hashed in the order in which it is added. A digest of content that is secret tells nothing of it: keys have 256 bits at least.
type Digester struct {
	sums [parts]hash.Hash
	used [parts]bool
}

// NewDigester has everything of a rendered plan. secret gives the content that the plan only names.
func NewDigester(n NodePlan, secret func(SecretRef) ([]byte, error)) (*Digester, error) {
	d := &Digester{}
	for i := range d.sums {
		d.sums[i] = sha256.New()
	}
	d.Add(PartNode, "node", n.NodeName, n.Version, n.Address.String(), n.LoadBalancer.Listen.String())
	for _, pod := range n.StaticPods {
		d.Add(partOf(pod.Name), "pod", pod.Name, pod.File.Content)
	}
	files := slices.SortedFunc(slices.Values(n.Files), func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	for _, f := range files {
		if f.Soft {
			continue
		}
		content := f.Content
		if f.Secret != "" {
			var err error
			if content, err = secret(f.Secret); err != nil {
				return nil, err
			}
		}
		for _, part := range n.readersOf(f.Path) {
			d.Add(part, "file", f.Path, f.Mode, content, f.Link, f.Once)
		}
	}
	for _, u := range n.Units {
		d.Add(PartNode, "unit", u.Name, u.Content, u.DropIns)
	}
	for _, c := range n.Certificates {
		readers := n.readersOf(c.CertPath)
		if len(c.Restart) > 0 {
			readers = nil
			for _, pod := range c.Restart {
				readers = append(readers, partOf(pod))
			}
		}
		for _, part := range readers {
			// Not the lifetime: it is the next certificate's. Not the usages: a node is not told of them.
			d.Add(part, "certificate", c.Name, c.Authority, c.Issuer, c.CommonName, c.Organizations, c.DNSNames, c.IPAddresses, c.KeyAlgorithm, c.CertPath, c.CertMode, c.KeyPath, c.Restart)
		}
	}
	for _, k := range n.Kubeconfigs {
		for _, part := range n.readersOf(k.Path) {
			d.Add(part, "kubeconfig", k.Path, k.Server, k.Cluster, k.User, k.Certificate, k.Embed)
		}
	}
	return d, nil
}

// Add makes a part depend on values, which are told from all others by kind.
func (d *Digester) Add(part Part, kind string, values ...any) {
	d.used[part] = true
	_ = json.NewEncoder(d.sums[part]).Encode([]any{kind, values}) // a hash takes everything, and these types can be encoded
}

// Digests of what was added. A part of which the node has nothing has none.
func (d *Digester) Digests() v1alpha1.ConfigDigests {
	sum := func(part Part) string {
		if !d.used[part] {
			return ""
		}
		return hex.EncodeToString(d.sums[part].Sum(nil)[:12])
	}
	return v1alpha1.ConfigDigests{Etcd: sum(PartEtcd), ControlPlane: sum(PartControlPlane), Node: sum(PartNode)}
}

func partOf(pod string) Part {
	if pod == PodEtcd {
		return PartEtcd
	}
	return PartControlPlane
}

// readersOf are the parts whose pods have a file mounted; what none of them has is the node's own.
func (n *NodePlan) readersOf(path string) []Part {
	var readers []Part
	for _, pod := range n.StaticPods {
		mounted := slices.ContainsFunc(pod.Pod.Spec.Volumes, func(v corev1.Volume) bool {
			return v.HostPath != nil && (path == v.HostPath.Path || strings.HasPrefix(path, v.HostPath.Path+"/"))
		})
		if part := partOf(pod.Name); mounted && !slices.Contains(readers, part) {
			readers = append(readers, part)
		}
	}
	if len(readers) == 0 {
		return []Part{PartNode}
	}
	return readers
}
