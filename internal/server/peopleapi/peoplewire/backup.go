package peoplewire

import "time"

// Backup of the etcd of a cluster. Below PathClusters:
//
//	GET  CLUSTER/backups             -> []Backup, the newest first; HeaderProblem says why some may be missing
//	POST CLUSTER/backups             -> a BackupLine for each step of taking one, the last with Backup or Error
//	PUT  CLUSTER/backups             a file that export wrote -> Backup
//	POST CLUSTER/backups/ID/export   -> the backup as one file
//
// The same, without PUT, at PathServerBackups for the server's own store; it has no Cluster and no Kubernetes, and Member is the host.
type Backup struct {
	ID      string    `json:"id"`
	Cluster string    `json:"cluster"`
	UID     string    `json:"uid"`
	TakenAt time.Time `json:"takenAt"`
	// Reason is schedule, upgrade, or who asked for it.
	Reason string `json:"reason"`
	// Member of etcd that gave the snapshot, and the version that wrote it.
	Member     string `json:"member"`
	Etcd       string `json:"etcd"`
	Kubernetes string `json:"kubernetes"`
	// Coldrack is the version of the server whose own store it is.
	Coldrack string `json:"coldrack,omitempty"`
	// Keys and Revision of the store, as read in a trial restore.
	Keys     int   `json:"keys"`
	Revision int64 `json:"revision"`
	// Size of the snapshot in bytes, and its Digest.
	Size   int64  `json:"size"`
	Digest string `json:"digest"`
	// Where it is: BackupHere, BackupCopy.
	Where []string `json:"where,omitempty"`
}

// HeaderProblem of an answer says what is missing in it, and why.
const HeaderProblem = "Coldrack-Problem"

// Where a backup is: on this server, and where it keeps copies.
const (
	BackupHere = "here"
	BackupCopy = "copy"
)

// BackupLine is how far a backup is.
type BackupLine struct {
	// Step is copy, try or keep.
	Step string `json:"step,omitempty"`
	// Done bytes of about Total.
	Done   int64   `json:"done,omitempty"`
	Total  int64   `json:"total,omitempty"`
	Backup *Backup `json:"backup,omitempty"`
	Error  string  `json:"error,omitempty"`
}
