package v1alpha1

import (
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// AnnotationRestore on a Cluster, with another value than before, has its etcd restored from a backup: "BACKUP REQUEST", where REQUEST is
// any name that was not used before. status.restore says what became of it.
const AnnotationRestore = "coldrack.dev/restore"

// RestoreStep is where a restore of etcd is.
type RestoreStep string

const (
	// RestoreStopping: etcd and the control plane stop on all nodes.
	RestoreStopping RestoreStep = "Stopping"
	// RestorePreparing: the server makes the data of each member.
	RestorePreparing RestoreStep = "Preparing"
	// RestoreStarting: members take their data, and everything starts.
	RestoreStarting RestoreStep = "Starting"
	// RestoreDone: the cluster runs on what the backup held.
	RestoreDone RestoreStep = "Done"
	// RestoreRefused: nothing was done.
	RestoreRefused RestoreStep = "Refused"
)

// RestoreStatus is the last restore of a cluster's etcd. It is recorded before anything is done, so that a server that dies goes on.
type RestoreStatus struct {
	// Request is the value of the annotation that asked for it.
	Request string `json:"request"`
	// ID of the restore. Nodes take the data of one only once.
	ID string `json:"id"`
	// Backup that it is from, and the Digest of its snapshot.
	Backup string `json:"backup"`
	// +optional
	Digest string      `json:"digest,omitempty"`
	Step   RestoreStep `json:"step"`
	// Message says what is waited for, or why it was refused.
	// +optional
	Message string      `json:"message,omitempty"`
	Since   metav1.Time `json:"since"`
	// +optional
	StepSince *metav1.Time `json:"stepSince,omitempty"`
	// +optional
	FinishedAt *metav1.Time `json:"finishedAt,omitempty"`
	// Members that get data, and what it is.
	// +optional
	// +listType=map
	// +listMapKey=machine
	Members []RestoreMember `json:"members,omitempty"`
	// Revision at which the store begins after the last restore that began. It only grows, so that no client sees time go back.
	// +optional
	Revision int64 `json:"revision,omitempty"`
	// FormerData: nodes keep what etcd had before, until a backup has succeeded since.
	// +optional
	FormerData bool `json:"formerData,omitempty"`
}

// RestoreMember is the data of one member of etcd.
type RestoreMember struct {
	Machine string `json:"machine"`
	Digest  string `json:"digest"`
	Size    int64  `json:"size"`
}

// Running says whether the restore is under way. A nil one is not.
func (r *RestoreStatus) Running() bool {
	return r != nil && (r.Step == RestoreStopping || r.Step == RestorePreparing || r.Step == RestoreStarting)
}

// RestoreWanted is the backup that a person wants restored, and the request for it, when that was not taken up yet.
func (c *Cluster) RestoreWanted() (backup, request string) {
	request = c.Annotations[AnnotationRestore]
	if r := c.Status.Restore; request == "" || r != nil && r.Request == request {
		return "", ""
	}
	backup, _, _ = strings.Cut(request, " ")
	return backup, request
}

// NodeRestore is what a node said of a restore.
type NodeRestore struct {
	ID string `json:"id"`
	// State is stopped or done; empty while the node is at it.
	// +optional
	State string `json:"state,omitempty"`
	// +optional
	Message string `json:"message,omitempty"`
}
