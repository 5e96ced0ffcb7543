package kube

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"coldrack.dev/api/v1alpha1"
)

// flagSet is a program's flags by name.
type flagSet map[string]string

// command is the program's command line, flags sorted.
func (f flagSet) command(name component) []string {
	command := []string{string(name)}
	for _, flag := range slices.Sorted(maps.Keys(f)) {
		command = append(command, "--"+flag+"="+f[flag])
	}
	return command
}

// withExtra adds a user's flags.
func (f flagSet) withExtra(extra map[string]string) flagSet {
	all := maps.Clone(f)
	maps.Copy(all, extra)
	return all
}

// lacks says why a release that the cluster or one of its machines runs has not got a flag, or "".
func (r *renderer) lacks(c component, flag string) string {
	why := r.release.lacks(c, flag)
	for _, n := range r.nodes {
		release := &n.release
		if c == componentEtcd {
			release = &n.etcd
		}
		why = cmp.Or(why, release.lacks(c, flag))
	}
	return why
}

// RemovedFlags are the flags of a cluster that another version has not got, each with its field and what to do instead.
func RemovedFlags(cluster *v1alpha1.Cluster, version string) ([]string, error) {
	release, err := releaseOf(version)
	if err != nil {
		return nil, err
	}
	var removed []string
	for _, c := range extraArgsOf(&cluster.Spec) {
		for _, flag := range slices.Sorted(maps.Keys(c.extra)) {
			if why := release.lacks(c.name, flag); why != "" {
				removed = append(removed, fmt.Sprintf("%s[%s]: %s of %s %s", c.field, flag, flag, c.name, why))
			}
		}
	}
	return removed, nil
}

// extraArgs are a user's flags of a component.
type extraArgs struct {
	name  component
	field string
	extra map[string]string
}

func extraArgsOf(spec *v1alpha1.ClusterSpec) []extraArgs {
	return []extraArgs{
		{componentAPIServer, "spec.apiServer.extraArgs", spec.APIServer.ExtraArgs},
		{componentManager, "spec.controllerManager.extraArgs", spec.ControllerManager.ExtraArgs},
		{componentScheduler, "spec.scheduler.extraArgs", spec.Scheduler.ExtraArgs},
		{componentEtcd, "spec.etcd.extraArgs", spec.Etcd.ExtraArgs},
	}
}

// checkExtraArgs refuses flags that nobody may set, and those that a release that runs has not got.
func (r *renderer) checkExtraArgs() error {
	for _, c := range extraArgsOf(&r.cluster.Spec) {
		for _, flag := range slices.Sorted(maps.Keys(c.extra)) {
			at := fmt.Sprintf("%s[%s]", c.field, flag)
			if why := r.lacks(c.name, flag); why != "" {
				return fmt.Errorf("%s: %s of %s %s", at, flag, c.name, why)
			}
			if right, why := v1alpha1.RightOfFlag(c.name, flag); right == v1alpha1.FlagRefused {
				return fmt.Errorf("%s: %s", at, why)
			}
		}
	}
	return nil
}
