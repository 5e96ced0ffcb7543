package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// AdminFields are the fields of a Cluster that decide who is root in it, as far as they differ from old; nil old stands for
// a Cluster with nothing set. Only administrators may write them.
func AdminFields(c, old *Cluster) []*field.Path {
	if old == nil {
		old = &Cluster{}
	}
	spec := field.NewPath("spec")
	var changed []*field.Path
	for _, f := range []struct {
		path     *field.Path
		now, was any
	}{
		{spec.Child("apiServer", "authentication"), c.Spec.APIServer.Authentication, old.Spec.APIServer.Authentication},
		{spec.Child("apiServer", "extraArgs"), c.Spec.APIServer.ExtraArgs, old.Spec.APIServer.ExtraArgs},
		{spec.Child("controllerManager", "extraArgs"), c.Spec.ControllerManager.ExtraArgs, old.Spec.ControllerManager.ExtraArgs},
		{spec.Child("scheduler", "extraArgs"), c.Spec.Scheduler.ExtraArgs, old.Spec.Scheduler.ExtraArgs},
		{spec.Child("etcd", "extraArgs"), c.Spec.Etcd.ExtraArgs, old.Spec.Etcd.ExtraArgs},
		{spec.Child("kubelet", "config"), c.Spec.Kubelet.Config, old.Spec.Kubelet.Config},
		{spec.Child("security", "auditPolicy"), c.Spec.Security.AuditPolicy, old.Spec.Security.AuditPolicy},
		{spec.Child("registries"), c.Spec.Registries, old.Spec.Registries},
	} {
		if !equality.Semantic.DeepEqual(f.now, f.was) {
			changed = append(changed, f.path)
		}
	}
	// Pods of this level are root on their node.
	if level := c.Spec.Security.PodSecurity; level == "privileged" && old.Spec.Security.PodSecurity != level {
		changed = append(changed, spec.Child("security", "podSecurity"))
	}
	return changed
}

// AdminFieldsOfGroup are AdminFields of a MachineGroup.
func AdminFieldsOfGroup(g, old *MachineGroup) []*field.Path {
	var was KubeletSpec
	if old != nil {
		was = old.Spec.Kubelet
	}
	if equality.Semantic.DeepEqual(g.Spec.Kubelet.Config, was.Config) {
		return nil
	}
	return []*field.Path{field.NewPath("spec", "kubelet", "config")}
}
