package v1alpha1

import (
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// defaultBackupEvery and defaultBackupKeep are a week of backups, of which the newest is six hours old at most.
	defaultBackupEvery = 6 * time.Hour
	defaultBackupKeep  = 28
)

// BackupStatus is how the backups of a cluster's etcd stand.
type BackupStatus struct {
	// Last is the newest backup that was restored on trial; nil: there is none.
	// +optional
	Last *BackupRecord `json:"last,omitempty"`
	// TriedAt is when a backup was last tried.
	// +optional
	TriedAt *metav1.Time `json:"triedAt,omitempty"`
	// Error is why the last try failed; empty when it did not.
	// +optional
	Error string `json:"error,omitempty"`
	// Failures in a row.
	// +optional
	Failures int32 `json:"failures,omitempty"`
	// NextAt is when the next one is due; nil: none is taken by itself.
	// +optional
	NextAt *metav1.Time `json:"nextAt,omitempty"`
}

// BackupRecord is one backup.
type BackupRecord struct {
	ID      string      `json:"id"`
	TakenAt metav1.Time `json:"takenAt"`
	// Keys in the store, and its Revision, as read in a trial restore.
	// +optional
	Keys int64 `json:"keys,omitempty"`
	// +optional
	Revision int64 `json:"revision,omitempty"`
	// Size of the snapshot in bytes.
	// +optional
	Size int64 `json:"size,omitempty"`
	// Etcd is the version that wrote it: an older minor release does not start on it.
	// +optional
	Etcd string `json:"etcd,omitempty"`
}

// SecretTypeBackup is the type of the Secret with the credentials for where copies of backups are kept.
const SecretTypeBackup = "backup-credentials"

// Keys of such a Secret.
const (
	BackupSecretAccessKey = "accessKey"
	BackupSecretSecretKey = "secretKey"
)

// BackupCredentials are what such a Secret holds.
//
// +kubebuilder:object:generate=false
type BackupCredentials struct{ AccessKey, SecretKey string }

// ReadBackupCredentials reads a Secret. Its errors name no value.
func ReadBackupCredentials(s *Secret) (BackupCredentials, error) {
	c := BackupCredentials{strings.TrimSpace(string(s.Data[BackupSecretAccessKey])), strings.TrimSpace(string(s.Data[BackupSecretSecretKey]))}
	switch {
	case s.Type != SecretTypeBackup:
		return BackupCredentials{}, fmt.Errorf("Secret %s is not of type %s", s.Name, SecretTypeBackup)
	case c.AccessKey == "" || c.SecretKey == "":
		return BackupCredentials{}, fmt.Errorf("Secret %s has no %s or no %s", s.Name, BackupSecretAccessKey, BackupSecretSecretKey)
	}
	return c, nil
}

// TimeOf is a time as objects hold it, to the second.
func TimeOf(t time.Time) metav1.Time { return metav1.NewTime(t.Truncate(time.Second)) }

// BackupEvery is the time between two backups; 0: none is taken by itself.
func (e *ClusterEtcd) BackupEvery() time.Duration {
	if e.Backup.Every == nil {
		return defaultBackupEvery
	}
	return e.Backup.Every.Duration
}

// BackupsKept is how many backups stay.
func (e *ClusterEtcd) BackupsKept() int {
	if e.Backup.Keep == 0 {
		return defaultBackupKeep
	}
	return int(e.Backup.Keep)
}
