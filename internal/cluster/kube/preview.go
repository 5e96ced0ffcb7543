package kube

import (
	"slices"

	"coldrack.dev/api/v1alpha1"
)

// Preview is what would happen to one cluster if it and its groups were as somebody proposes.
type Preview struct {
	Cluster string `json:"cluster"`
	// Exists is false for a cluster that is new.
	Exists bool `json:"exists"`
	// Invalid is what can never work as it is written, each with its field.
	Invalid []string `json:"invalid,omitempty"`
	// Problems are what it waits for, for example machines.
	Problems []string `json:"problems,omitempty"`
	// Warnings are worth reading and hinder nothing.
	Warnings []string `json:"warnings,omitempty"`
	// Written are the Cluster, its MachineGroups and the Profiles of its machines as far as what is written in them changes.
	Written []ObjectChange `json:"written,omitempty"`
	// Machines of the cluster, by group and name.
	Machines []PreviewMachine `json:"machines,omitempty"`
	// Missing is what no imported bundle contains.
	Missing []string `json:"missing,omitempty"`
	Changes Changes  `json:"changes"`
}

// PreviewMachine is a machine that the cluster has, or would get.
type PreviewMachine struct {
	Machine string          `json:"machine"`
	Group   string          `json:"group"`
	Roles   []v1alpha1.Role `json:"roles"`
	Address string          `json:"address,omitempty"`
	// Has is true for a machine that the cluster has already.
	Has bool `json:"has,omitempty"`
	// Why this machine, in a few words.
	Why string `json:"why"`
	// Install is what has to happen before the machine can be a node; empty when it is installed.
	Install string `json:"install,omitempty"`
}

// Empty is true when nothing would happen that does not happen anyway.
func (p *Preview) Empty() bool {
	return p.Exists && len(p.Invalid)+len(p.Written) == 0 && p.Changes.Empty() &&
		!slices.ContainsFunc(p.Machines, func(m PreviewMachine) bool { return !m.Has })
}
