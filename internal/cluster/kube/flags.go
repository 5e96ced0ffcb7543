package kube

import (
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

// tunable are the flags that a user may set although Coldrack sets them too. Every other one is decided
// here because something else in the cluster rests on it.
func tunable(c component) []string {
	switch c {
	case componentAPIServer:
		return []string{"audit-log-maxage", "audit-log-maxbackup", "audit-log-maxsize", "tls-cipher-suites", "tls-min-version"}
	case componentManager, componentScheduler:
		// Those of the leader's election are ours only while there is one control plane.
		return []string{"leader-elect-lease-duration", "leader-elect-renew-deadline", "leader-elect-retry-period", "tls-cipher-suites", "tls-min-version"}
	case componentEtcd:
		return []string{"snapshot-count", "watch-progress-notify-interval"}
	}
	return nil
}

// forbidden are flags that Coldrack does not set, and that would undo what it does.
func forbidden(c component) map[string]string {
	switch c {
	case componentAPIServer:
		return map[string]string{
			"anonymous-auth":            "is decided by spec.security.tokenDiscovery",
			"token-auth-file":           "would give eternal credentials; use client certificates or an OpenID Connect provider",
			"authorization-mode":        "is always Node,RBAC",
			"insecure-port":             "does not exist any more",
			"oidc-issuer-url":           "cannot stand beside an authentication configuration; use spec.apiServer.authentication",
			"audit-policy-file":         "is written from spec.security.auditPolicy",
			"bind-address":              "is every address of the machine",
			"disable-admission-plugins": "would switch off what nodes and namespaces are confined by",
		}
	case componentManager:
		return map[string]string{
			"cluster-signing-cert-file": "is not used: the authorities' keys stay on the Coldrack server, which signs",
			"cluster-signing-key-file":  "is not used: the authorities' keys stay on the Coldrack server, which signs",
		}
	case componentEtcd:
		return map[string]string{
			"force-new-cluster": "discards every other member; restore a backup instead",
			"initial-cluster":   "is known from the machines",
		}
	}
	return nil
}

// withExtra adds a user's flags.
func (f flagSet) withExtra(extra map[string]string) flagSet {
	all := maps.Clone(f)
	maps.Copy(all, extra)
	return all
}

// checkExtraArgs refuses flags that Coldrack decides and flags that the release has not got any more.
func (r *renderer) checkExtraArgs() error {
	spec := &r.cluster.Spec
	n := r.with(v1alpha1.RoleControlPlane)[0]
	for _, c := range []struct {
		name  component
		field string
		extra map[string]string
		ours  flagSet
	}{
		{componentAPIServer, "spec.apiServer.extraArgs", spec.APIServer.ExtraArgs, r.apiServerFlags(n)},
		{componentManager, "spec.controllerManager.extraArgs", spec.ControllerManager.ExtraArgs, r.managerFlags(n)},
		{componentScheduler, "spec.scheduler.extraArgs", spec.Scheduler.ExtraArgs, r.schedulerFlags(n)},
		{componentEtcd, "spec.etcd.extraArgs", spec.Etcd.ExtraArgs, r.etcdFlags(r.with(v1alpha1.RoleEtcd)[0])},
	} {
		for _, flag := range slices.Sorted(maps.Keys(c.extra)) {
			at := fmt.Sprintf("%s[%s]", c.field, flag)
			if len(flag) > 0 && flag[0] == '-' {
				return fmt.Errorf("%s: write flags without dashes", at)
			}
			if why := r.release.gone(c.name, flag); why != "" {
				return fmt.Errorf("%s: %s of %s %s", at, flag, c.name, why)
			}
			if why, bad := forbidden(c.name)[flag]; bad {
				return fmt.Errorf("%s: %s %s", at, flag, why)
			}
			if _, decided := c.ours[flag]; decided && !slices.Contains(tunable(c.name), flag) {
				return fmt.Errorf("%s: Coldrack decides this flag (%q)", at, c.ours[flag])
			}
		}
	}
	return nil
}
