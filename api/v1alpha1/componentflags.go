package v1alpha1

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// FlagRight says who may set a flag of a cluster's component in extraArgs.
type FlagRight int

const (
	// FlagRefused is for nobody: Coldrack decides the flag, or does not know it.
	FlagRefused FlagRight = iota
	// FlagAdmin is for administrators: the flag decides who may do what in the cluster, or what is recorded or shown of it.
	FlagAdmin
	// FlagTuning is for whoever may write the Cluster: the flag makes a component faster, slower, larger or more patient.
	FlagTuning
)

// Component is a program of a control plane whose flags can be set.
type Component string

// The components with an extraArgs field.
const (
	ComponentAPIServer         Component = "kube-apiserver"
	ComponentControllerManager Component = "kube-controller-manager"
	ComponentScheduler         Component = "kube-scheduler"
	ComponentEtcd              Component = "etcd"
)

// flagRule is what may be set of one component, flags in words. A flag that is in no list is refused, so that a new release of
// the component opens nothing by itself. The lists name every flag of Kubernetes 1.37 and of etcd 3.6 and 3.7; a
// test compares them with what those programs say themselves. What 1.36 has not got is in internal/cluster/kube.
type flagRule struct {
	tuning, admin, decided string
	// refused are flags that Coldrack does not set, each with the reason why nobody may.
	refused map[string]string
}

const (
	whyDecided = "Coldrack decides this flag: other parts of the cluster rely on it"
	whyUnknown = "is no flag of %s that this Coldrack knows; look for a typing error"
	whyOnce    = "only prints something and ends the program"
	whyFile    = "names a file that the component's container does not have"
	whySigning = "is not used: the authorities' keys stay on the Coldrack server, which signs"
	whyMembers = "is not used: members are known from the machines"
	whyCloud   = "is for cloud providers, which run outside of these programs"
)

// Flags that several programs share.
const (
	election       = "leader-elect-lease-duration leader-elect-renew-deadline leader-elect-retry-period "
	electionPlaces = "leader-elect leader-elect-resource-lock leader-elect-resource-name leader-elect-resource-namespace "
	client         = "kube-api-burst kube-api-qps "
	logs           = "v vmodule log-flush-frequency log-json-info-buffer-size log-json-split-stream log-text-info-buffer-size " +
		"log-text-split-stream logging-format "
	metrics = "allow-metric-labels allow-metric-labels-manifest disabled-metrics show-hidden-metrics-for-version "
	serving = "tls-cipher-suites tls-min-version tls-curve-preferences http2-max-streams-per-connection disable-http2-serving "
	gates   = "feature-gates emulated-version min-compatibility-version "
	// authentication of those who ask controller manager or scheduler for metrics.
	asking = "authentication-skip-lookup authentication-token-webhook-cache-ttl authentication-tolerate-lookup-failure " +
		"authorization-always-allow-paths authorization-webhook-cache-authorized-ttl authorization-webhook-cache-unauthorized-ttl "
	requestHeaders = "requestheader-allowed-names requestheader-client-ca-file requestheader-extra-headers-prefix " +
		"requestheader-group-headers requestheader-uid-headers requestheader-username-headers "
	ports = "bind-address secure-port cert-dir tls-cert-file tls-private-key-file tls-sni-cert-key permit-address-sharing permit-port-sharing "
)

func flagRules() map[Component]flagRule {
	return map[Component]flagRule{
		ComponentAPIServer:         apiServerFlags(),
		ComponentControllerManager: controllerManagerFlags(),
		ComponentScheduler:         schedulerFlags(),
		ComponentEtcd:              etcdFlags(),
	}
}

func apiServerFlags() flagRule {
	return flagRule{
		tuning: "default-not-ready-toleration-seconds default-unreachable-toleration-seconds " +
			"delete-collection-workers etcd-compaction-interval etcd-count-metric-poll-period etcd-db-metric-poll-interval " +
			"etcd-healthcheck-timeout etcd-readycheck-timeout event-ttl goaway-chance http2-max-streams-per-connection " +
			"lease-reuse-duration-seconds livez-grace-period max-mutating-requests-inflight max-requests-inflight min-request-timeout " +
			"request-timeout shutdown-delay-duration shutdown-send-retry-after shutdown-watch-termination-grace-period " +
			"storage-initialization-timeout watch-cache watch-cache-sizes kubelet-timeout audit-log-batch-buffer-size " +
			"coordinated-leadership-lease-duration coordinated-leadership-renew-deadline coordinated-leadership-retry-period",
		admin: logs + metrics + gates + "tls-cipher-suites tls-min-version tls-curve-preferences disable-http2-serving " +
			"aggregator-reject-forwarding-redirect emulation-forward-compatible api-audiences audit-log-batch-max-size audit-log-batch-max-wait " +
			"audit-log-batch-throttle-burst audit-log-batch-throttle-enable audit-log-batch-throttle-qps audit-log-compress audit-log-format " +
			"audit-log-maxage audit-log-maxbackup audit-log-maxsize audit-log-mode audit-log-truncate-enabled " +
			"audit-log-truncate-max-batch-size audit-log-truncate-max-event-size audit-log-version audit-webhook-batch-buffer-size " +
			"audit-webhook-batch-max-size audit-webhook-batch-max-wait " +
			"audit-webhook-batch-throttle-burst audit-webhook-batch-throttle-enable audit-webhook-batch-throttle-qps " +
			"audit-webhook-config-file audit-webhook-initial-backoff audit-webhook-mode audit-webhook-truncate-enabled " +
			"audit-webhook-truncate-max-batch-size audit-webhook-truncate-max-event-size audit-webhook-version " +
			"authentication-token-webhook-cache-ttl authentication-token-webhook-config-file authentication-token-webhook-version " +
			"contention-profiling cors-allowed-origins debug-socket-path enable-aggregator-routing enable-garbage-collector enable-logs-handler " +
			"enable-priority-and-fairness external-hostname max-connection-bytes-per-sec runtime-config " +
			"runtime-config-emulation-forward-compatible service-account-extend-token-expiration service-account-jwks-uri " +
			"service-account-lookup service-account-max-token-expiration service-node-port-range storage-media-type " +
			"strict-transport-security-directives tracing-config-file egress-selector-config-file",
		decided: requestHeaders + ports + "admission-control-config-file advertise-address allow-privileged audit-log-path " +
			"authentication-config client-ca-file enable-admission-plugins enable-bootstrap-token-auth encryption-provider-config " +
			"encryption-provider-config-automatic-reload endpoint-reconciler-type etcd-cafile etcd-certfile etcd-keyfile etcd-prefix " +
			"etcd-servers etcd-servers-overrides kubelet-certificate-authority kubelet-client-certificate kubelet-client-key " +
			"kubelet-preferred-address-types kubernetes-service-node-port peer-advertise-ip peer-advertise-port " +
			"peer-ca-file profiling proxy-client-cert-file proxy-client-key-file service-account-issuer service-account-key-file " +
			"service-account-signing-key-file service-cluster-ip-range storage-backend",
		refused: map[string]string{
			"anonymous-auth":                               "is decided by spec.security.tokenDiscovery",
			"token-auth-file":                              "would give eternal credentials; use client certificates or an OpenID Connect provider",
			"authorization-mode":                           "is always Node,RBAC",
			"authorization-config":                         "cannot be set: authorization is always Node,RBAC",
			"authorization-policy-file":                    "cannot be set: authorization is always Node,RBAC",
			"authorization-webhook-config-file":            "cannot be set: authorization is always Node,RBAC",
			"authorization-webhook-version":                "cannot be set: authorization is always Node,RBAC",
			"authorization-webhook-cache-authorized-ttl":   "cannot be set: authorization is always Node,RBAC",
			"authorization-webhook-cache-unauthorized-ttl": "cannot be set: authorization is always Node,RBAC",
			"oidc-*":                           "cannot stand beside an authentication configuration; use spec.apiServer.authentication",
			"audit-policy-file":                "is written from spec.security.auditPolicy",
			"bind-address":                     "is every address of the machine",
			"disable-admission-plugins":        "would switch off what nodes and namespaces are confined by",
			"admission-control":                "was replaced by enable-admission-plugins, which Coldrack decides",
			"service-account-signing-endpoint": "is not used: tokens are signed with the cluster's own key",
			"cloud-*":                          "was removed in 1.33; cloud providers run outside",
			"insecure-port":                    "does not exist any more",
			"help":                             whyOnce, "version": whyOnce,
		},
	}
}

func controllerManagerFlags() flagRule {
	return flagRule{
		tuning: election + client + "attach-detach-reconcile-sync-period concurrent-cron-job-syncs concurrent-daemonset-syncs " +
			"concurrent-deployment-syncs concurrent-device-taint-eviction-syncs concurrent-disruption-syncs concurrent-endpoint-syncs " +
			"concurrent-ephemeralvolume-syncs concurrent-gc-syncs concurrent-horizontal-pod-autoscaler-syncs concurrent-job-syncs " +
			"concurrent-namespace-syncs concurrent-rc-syncs concurrent-replicaset-syncs " +
			"concurrent-resource-quota-syncs concurrent-resourceclaim-syncs concurrent-service-endpoint-syncs " +
			"concurrent-serviceaccount-token-syncs concurrent-statefulset-syncs concurrent-ttl-after-finished-syncs " +
			"concurrent-validating-admission-policy-status-syncs controller-shutdown-timeout controller-start-interval " +
			"disable-attach-detach-reconcile-sync disable-force-detach-on-timeout endpoint-updates-batch-period " +
			"endpointslice-updates-batch-period horizontal-pod-autoscaler-cpu-initialization-period " +
			"horizontal-pod-autoscaler-downscale-stabilization horizontal-pod-autoscaler-initial-readiness-delay " +
			"horizontal-pod-autoscaler-sync-period horizontal-pod-autoscaler-tolerance http2-max-streams-per-connection " +
			"large-cluster-size-threshold max-endpoints-per-slice min-resync-period mirroring-concurrent-service-endpoint-syncs " +
			"mirroring-endpointslice-updates-batch-period mirroring-max-endpoints-per-subset namespace-sync-period node-eviction-rate " +
			"node-monitor-grace-period node-monitor-period node-startup-grace-period pvclaimbinder-sync-period resource-quota-sync-period " +
			"secondary-node-eviction-rate terminated-pod-gc-threshold unhealthy-zone-threshold",
		admin: logs + metrics + gates + asking + "tls-cipher-suites tls-min-version tls-curve-preferences disable-http2-serving " +
			"contention-profiling enable-dynamic-provisioning enable-garbage-collector enable-leader-migration kube-api-content-type " +
			"legacy-service-account-token-clean-up-period leader-migration-config " +
			"pv-recycler-increment-timeout-nfs pv-recycler-minimum-timeout-hostpath pv-recycler-minimum-timeout-nfs " +
			"pv-recycler-timeout-increment-hostpath",
		decided: requestHeaders + ports + electionPlaces + "allocate-node-cidrs authentication-kubeconfig authorization-kubeconfig " +
			"cidr-allocator-type client-ca-file cluster-cidr cluster-name controllers kubeconfig master node-cidr-mask-size " +
			"node-cidr-mask-size-ipv4 node-cidr-mask-size-ipv6 profiling root-ca-file service-account-private-key-file " +
			"service-cluster-ip-range use-service-account-credentials",
		refused: map[string]string{
			"cluster-signing-*":            whySigning,
			"enable-hostpath-provisioner":  "is for tests on one machine: it lets claims choose folders of nodes",
			"external-cloud-volume-plugin": whyCloud, "cloud-*": whyCloud, "allow-untagged-cloud": whyCloud,
			"configure-cloud-routes": whyCloud, "route-reconciliation-period": whyCloud, "node-sync-period": whyCloud,
			"concurrent-node-syncs": whyCloud, "concurrent-service-syncs": whyCloud, "node-status-update-frequency": whyCloud,
			"concurrent-node-status-updates": whyCloud,
			"flex-volume-plugin-dir":         whyFile,
			"pv-recycler-pod-template-*":     whyFile,
			"help":                           whyOnce, "version": whyOnce,
		},
	}
}

func schedulerFlags() flagRule {
	return flagRule{
		tuning: election + client + "http2-max-streams-per-connection pod-max-in-unschedulable-pods-duration",
		admin: logs + metrics + gates + asking + "tls-cipher-suites tls-min-version tls-curve-preferences disable-http2-serving contention-profiling " +
			"kube-api-content-type",
		decided: requestHeaders + ports + electionPlaces + "authentication-kubeconfig authorization-kubeconfig client-ca-file kubeconfig master profiling",
		refused: map[string]string{
			"config": whyFile, "write-config-to": whyOnce, "help": whyOnce, "version": whyOnce,
		},
	}
}

func etcdFlags() flagRule {
	return flagRule{
		tuning: "auto-compaction-mode auto-compaction-retention backend-batch-interval backend-batch-limit backend-bbolt-freelist-type " +
			"bootstrap-defrag-threshold-megabytes compact-hash-check-time compaction-batch-limit compaction-sleep-interval corrupt-check-time " +
			"downgrade-check-time election-timeout grpc-keepalive-interval grpc-keepalive-min-time grpc-keepalive-timeout heartbeat-interval " +
			"initial-election-tick-advance max-concurrent-streams max-request-bytes max-snapshots max-txn-ops max-wals memory-mlock pre-vote " +
			"raft-read-timeout raft-write-timeout snapshot-catchup-entries snapshot-count socket-reuse-address socket-reuse-port " +
			"warning-apply-duration warning-unary-request-duration watch-progress-notify-interval",
		admin: "auth-token auth-token-ttl bcrypt-cost cipher-suites tls-min-version tls-max-version enable-grpc-gateway enable-pprof log-format " +
			"log-level log-outputs enable-log-rotation log-rotation-config-json logger metrics enable-distributed-tracing " +
			"distributed-tracing-address distributed-tracing-instance-id distributed-tracing-sampling-rate distributed-tracing-service-name " +
			"max-learners cors host-whitelist client-crl-file peer-crl-file peer-cert-allowed-cn peer-cert-allowed-hostname " +
			"client-cert-allowed-hostname",
		decided: "advertise-client-urls auto-tls cert-file client-cert-auth client-cert-file client-key-file data-dir feature-gates " +
			"initial-advertise-peer-urls initial-cluster-state initial-cluster-token key-file listen-client-http-urls listen-client-urls " +
			"listen-metrics-urls listen-peer-urls name peer-auto-tls peer-cert-file peer-client-cert-auth peer-client-cert-file " +
			"peer-client-key-file peer-key-file peer-skip-client-san-verification peer-trusted-ca-file self-signed-cert-validity " +
			"strict-reconfig-check trusted-ca-file wal-dir",
		refused: map[string]string{
			"config-file":         "would replace every other flag",
			"force-new-cluster":   "discards every other member; restore a backup instead",
			"initial-cluster":     "is known from the machines",
			"discovery":           whyMembers,
			"discovery-*":         whyMembers,
			"quota-backend-bytes": "is written from spec.etcd.quotaBackend",
			"unsafe-no-fsync":     "loses what was acknowledged when the power fails",
			"v2-deprecation":      "has one value only in these releases",
			"enable-v2":           "was removed in etcd 3.6",
			"experimental-*":      "has another name: leave experimental- out, or use feature-gates",
			"help":                whyOnce, "h": whyOnce, "version": whyOnce,
		},
	}
}

// RightOfFlag says who may set a flag of a component, written without dashes, and for FlagRefused why nobody may.
func RightOfFlag(c Component, flag string) (right FlagRight, why string) {
	if strings.HasPrefix(flag, "-") {
		return FlagRefused, "write flags without dashes"
	}
	rule := flagRules()[c]
	in := func(list string) bool { return slices.Contains(strings.Fields(list), flag) }
	if why, ok := rule.refused[flag]; ok {
		return FlagRefused, flag + " " + why
	}
	switch {
	case in(rule.tuning):
		return FlagTuning, ""
	case in(rule.admin):
		return FlagAdmin, ""
	case in(rule.decided):
		return FlagRefused, whyDecided
	}
	for _, pattern := range slices.Sorted(maps.Keys(rule.refused)) {
		if prefix, any := strings.CutSuffix(pattern, "*"); any && strings.HasPrefix(flag, prefix) {
			return FlagRefused, flag + " " + rule.refused[pattern]
		}
	}
	return FlagRefused, fmt.Sprintf(flag+" "+whyUnknown, c)
}

// extraArgs are a cluster's own flags.
type extraArgs struct {
	component Component
	at        *field.Path
	flags     map[string]string
}

func extraArgsOf(c *Cluster) []extraArgs {
	spec := field.NewPath("spec")
	return []extraArgs{
		{ComponentAPIServer, spec.Child("apiServer", "extraArgs"), c.Spec.APIServer.ExtraArgs},
		{ComponentControllerManager, spec.Child("controllerManager", "extraArgs"), c.Spec.ControllerManager.ExtraArgs},
		{ComponentScheduler, spec.Child("scheduler", "extraArgs"), c.Spec.Scheduler.ExtraArgs},
		{ComponentEtcd, spec.Child("etcd", "extraArgs"), c.Spec.Etcd.ExtraArgs},
	}
}

// validateExtraArgs refuses flags that nobody may set.
func validateExtraArgs(c *Cluster) field.ErrorList {
	var errs field.ErrorList
	for _, own := range extraArgsOf(c) {
		for _, flag := range slices.Sorted(maps.Keys(own.flags)) {
			if right, why := RightOfFlag(own.component, flag); right == FlagRefused {
				errs = append(errs, field.Forbidden(own.at.Key(flag), why))
			}
		}
	}
	return errs
}
