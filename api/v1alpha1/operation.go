package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// NodeHand says that a node is taken for an operation, and how far that is. It is the lock without which nothing takes a
// node away.
type NodeHand struct {
	// Operation that the node is taken for: leave, upgrade, change, system, certificates, reboot or remedy.
	Operation string `json:"operation"`
	// Parts of the node that change: etcd, control plane, kubelet, operating system, configuration, certificates, reboot.
	// +optional
	// +listType=set
	Parts []string `json:"parts,omitempty"`
	// Reason in words.
	// +optional
	Reason string `json:"reason,omitempty"`
	// Since when it is taken.
	Since metav1.Time `json:"since"`
	// Step that was begun and has not ended. A server that starts finds it here, and carries it out once more.
	// +optional
	Step string `json:"step,omitempty"`
	// StepSince is when Step began.
	// +optional
	StepSince *metav1.Time `json:"stepSince,omitempty"`
	// Message says what Step waits for.
	// +optional
	Message string `json:"message,omitempty"`
	// Failed is why the last step failed.
	// +optional
	Failed string `json:"failed,omitempty"`
	// Cordoned: this operation has cordoned the node, and uncordons it at its end.
	// +optional
	Cordoned bool `json:"cordoned,omitempty"`
	// Drained: no pod is on it that a drain would evict.
	// +optional
	Drained bool `json:"drained,omitempty"`
	// Changed: the node was told to take its new configuration.
	// +optional
	Changed bool `json:"changed,omitempty"`
	// RolledBack: the node was told to go back to what it had.
	// +optional
	RolledBack bool `json:"rolledBack,omitempty"`
	// BootID is the boot that the node was told to end. It has rebooted when it reports another one.
	// +optional
	BootID string `json:"bootID,omitempty"`
	// PowerCycled: the machine was switched off and on for this step.
	// +optional
	PowerCycled bool `json:"powerCycled,omitempty"`
	// Former versions, to which a roll-back leads.
	// +optional
	Former *NodeVersions `json:"former,omitempty"`
}

// NodePrefetch is what a node said of the programs and images that it fetches beside those that it runs.
type NodePrefetch struct {
	// ID stands for all of them; empty: the node is told to fetch nothing.
	// +optional
	ID string `json:"id,omitempty"`
	// Done: everything is on the node, compared with its digest.
	// +optional
	Done bool `json:"done,omitempty"`
	// Failing: it does not succeed at present, and Message says why. It is tried again.
	// +optional
	Failing bool `json:"failing,omitempty"`
	// +optional
	Message string `json:"message,omitempty"`
	// BytesDone of BytesTotal of the programs, as they are transferred.
	// +optional
	BytesDone int64 `json:"bytesDone,omitempty"`
	// +optional
	BytesTotal int64 `json:"bytesTotal,omitempty"`
}

// WantedPrefetch says that a node was told to fetch what another version needs.
type WantedPrefetch struct {
	// Version of Kubernetes.
	Version string `json:"version"`
	// Since when.
	Since metav1.Time `json:"since"`
}

// NodeReboot is a reboot that a node was told to make.
type NodeReboot struct {
	At metav1.Time `json:"at"`
	// Reason in words.
	Reason string `json:"reason"`
}

// NodeRemedy is something that was done to bring a node back.
type NodeRemedy struct {
	// Kind is restart, power-cycle, reinstall or replace.
	Kind string `json:"kind"`
	// At is when it had ended.
	At metav1.Time `json:"at"`
	// Problem is why it did not help, as far as that is known.
	// +optional
	Problem string `json:"problem,omitempty"`
}

// NodeVersions are what a node runs.
type NodeVersions struct {
	// Kubernetes, for example v1.37.2.
	// +optional
	Kubernetes string `json:"kubernetes,omitempty"`
	// Etcd of the node's member, for example 3.7.3.
	// +optional
	Etcd string `json:"etcd,omitempty"`
	// Config that it reported.
	// +optional
	Config *ConfigDigests `json:"config,omitempty"`
}

// ConfigDigests stand for what a node is configured with, apart from what follows other nodes and interrupts nothing (routes, its
// load balancer's servers, where it fetches images).
type ConfigDigests struct {
	// Etcd: what makes its member restart.
	// +optional
	Etcd string `json:"etcd,omitempty"`
	// ControlPlane: what makes API server, controller manager and scheduler restart.
	// +optional
	ControlPlane string `json:"controlPlane,omitempty"`
	// Node: everything else, kubelet and container runtime above all. Pods keep running when it changes.
	// +optional
	Node string `json:"node,omitempty"`
}

// ClusterWork is what is done to a cluster now, and what hinders more.
type ClusterWork struct {
	// Pending: nodes have yet to be changed, or to leave.
	// +optional
	Pending bool `json:"pending,omitempty"`
	// Message is what needs a person, in short.
	// +optional
	Message string `json:"message,omitempty"`
	// Steps that run.
	// +optional
	// +listType=atomic
	Steps []ClusterWorkStep `json:"steps,omitempty"`
	// Waits need nobody.
	// +optional
	// +listType=atomic
	Waits []string `json:"waits,omitempty"`
	// NextWindow is when the next maintenance window opens, where something waits for it.
	// +optional
	NextWindow *metav1.Time `json:"nextWindow,omitempty"`
	// Blocks need a person: each says why something is not done, and what would make it possible.
	// +optional
	// +listType=atomic
	Blocks []string `json:"blocks,omitempty"`
}

// ClusterWorkStep is a step that runs or has ended.
type ClusterWorkStep struct {
	// Kind of the step: take, drain, change, add-learner and so on.
	Kind string `json:"kind"`
	// Operation that it belongs to.
	Operation string `json:"operation"`
	// Node is the machine; empty for a step of the whole cluster.
	// +optional
	Node string `json:"node,omitempty"`
	// Reason in words.
	// +optional
	Reason string `json:"reason,omitempty"`
	// Message says how far it is.
	// +optional
	Message string `json:"message,omitempty"`
	// +optional
	StartedAt *metav1.Time `json:"startedAt,omitempty"`
	// +optional
	FinishedAt *metav1.Time `json:"finishedAt,omitempty"`
	// Error of a step that failed.
	// +optional
	Error string `json:"error,omitempty"`
}

// ClusterFailure is a change that failed. It stops all others until the Cluster or one of its groups is written anew.
type ClusterFailure struct {
	Node   string      `json:"node"`
	Reason string      `json:"reason"`
	At     metav1.Time `json:"at"`
	// Spec stands for what was wanted then.
	Spec string `json:"spec"`
}

// maxHistory is how many steps status.history keeps.
const maxHistory = 100

// Remember adds a step that has ended to the history, and forgets the oldest when there are too many.
func (s *ClusterStatus) Remember(step ClusterWorkStep) {
	s.History = append(s.History, step)
	if extra := len(s.History) - maxHistory; extra > 0 {
		s.History = s.History[extra:]
	}
}
