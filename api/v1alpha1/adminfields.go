package v1alpha1

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// kubeletTuning are the fields of a KubeletConfiguration that size a kubelet and nothing else. Whoever may write the Cluster or
// the MachineGroup may set them; every other field is for administrators.
const kubeletTuning = "apiVersion kind containerLogMaxFiles containerLogMaxSize containerLogMaxWorkers containerLogMonitorInterval " +
	"cpuCFSQuota cpuCFSQuotaPeriod cpuManagerPolicy cpuManagerPolicyOptions cpuManagerReconcilePeriod crashLoopBackOff " +
	"eventBurst eventRecordQPS evictionHard evictionMaxPodGracePeriod evictionMinimumReclaim evictionPressureTransitionPeriod " +
	"evictionSoft evictionSoftGracePeriod imageGCHighThresholdPercent imageGCLowThresholdPercent imageMaximumGCAge " +
	"imageMinimumGCAge kubeAPIBurst kubeAPIQPS kubeReserved maxOpenFiles maxParallelImagePulls maxPods memoryManagerPolicy " +
	"memoryThrottlingFactor nodeLeaseDurationSeconds nodeStatusMaxImages nodeStatusReportFrequency nodeStatusUpdateFrequency " +
	"podPidsLimit podsPerCore registryBurst registryPullQPS reservedMemory reservedSystemCPUs runtimeRequestTimeout " +
	"serializeImagePulls shutdownGracePeriod shutdownGracePeriodByPodPriority shutdownGracePeriodCriticalPods " +
	"streamingConnectionIdleTimeout syncFrequency systemReserved topologyManagerPolicy topologyManagerPolicyOptions " +
	"topologyManagerScope volumeStatsAggPeriod"

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
		{spec.Child("security", "auditPolicy"), c.Spec.Security.AuditPolicy, old.Spec.Security.AuditPolicy},
		{spec.Child("registries"), c.Spec.Registries, old.Spec.Registries},
		// The server writes there as root.
		{spec.Child("etcd", "backup", "folder"), c.Spec.Etcd.Backup.Folder, old.Spec.Etcd.Backup.Folder},
		{spec.Child("rotation"), c.Spec.Rotation, old.Spec.Rotation},
	} {
		if !equality.Semantic.DeepEqual(f.now, f.was) {
			changed = append(changed, f.path)
		}
	}
	was := extraArgsOf(old)
	for i, own := range extraArgsOf(c) {
		for _, flag := range differing(own.flags, was[i].flags) {
			if right, _ := RightOfFlag(own.component, flag); right != FlagTuning {
				changed = append(changed, own.at.Key(flag))
			}
		}
	}
	changed = append(changed, kubeletAdminFields(c.Spec.Kubelet.Config, old.Spec.Kubelet.Config)...)
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
	return kubeletAdminFields(g.Spec.Kubelet.Config, was.Config)
}

// kubeletAdminFields are the fields of spec.kubelet.config that differ and that not everybody may write. A configuration that is
// no object differs as a whole.
func kubeletAdminFields(now, was *runtime.RawExtension) []*field.Path {
	at := field.NewPath("spec", "kubelet", "config")
	read := func(config *runtime.RawExtension) (fields map[string]any, err error) {
		if config == nil || len(config.Raw) == 0 {
			return nil, nil
		}
		return fields, json.Unmarshal(config.Raw, &fields)
	}
	a, err := read(now)
	b, badly := read(was)
	if err != nil || badly != nil {
		if equality.Semantic.DeepEqual(now, was) {
			return nil
		}
		return []*field.Path{at}
	}
	var changed []*field.Path
	for _, name := range differing(a, b) {
		if !slices.Contains(strings.Fields(kubeletTuning), name) {
			changed = append(changed, at.Child(name))
		}
	}
	return changed
}

// differing are the keys whose values differ or that only one of both has, sorted.
func differing[V any](a, b map[string]V) []string {
	keys := map[string]bool{}
	for _, m := range []map[string]V{a, b} {
		for key := range m {
			now, ok := a[key]
			was, had := b[key]
			if ok != had || !equality.Semantic.DeepEqual(now, was) {
				keys[key] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(keys))
}
