package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/objectstore"
	"coldrack.dev/internal/server/backups"
	"coldrack.dev/internal/server/controllers"
)

// copiesAt is where copies of backups are kept, without credentials: a folder or the place of a bucket; neither: nowhere.
func (c Config) copiesAt() (at copyPlace, err error) {
	switch {
	case c.BackupCopies == "":
		return at, nil
	case filepath.IsAbs(c.BackupCopies):
		if filepath.Clean(c.BackupCopies) != c.BackupCopies || c.BackupCopies == "/" {
			return at, errors.New("must be an absolute folder without . and .., such as /mnt/backups")
		}
		return copyPlace{folder: c.BackupCopies}, nil
	}
	const want = "must be the URL of a bucket, such as https://s3.example:9000/BUCKET/PREFIX, or an absolute folder"
	u, err := url.Parse(c.BackupCopies)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return at, errors.New(want)
	}
	if u.User != nil {
		return at, errors.New(want + "; credentials belong in a Secret")
	}
	bucket, prefix, _ := strings.Cut(strings.Trim(u.Path, "/"), "/")
	if bucket == "" || prefix != "" && path.Clean(prefix) != prefix || strings.HasPrefix(prefix, "..") {
		return at, errors.New(want)
	}
	return copyPlace{s3: &objectstore.S3Options{Endpoint: &url.URL{Scheme: u.Scheme, Host: u.Host}, Bucket: bucket, Prefix: prefix, Region: c.BackupCopiesRegion, PathStyle: c.BackupCopiesPathStyle}}, nil
}

type copyPlace struct {
	folder string
	s3     *objectstore.S3Options
}

// openCopies opens where copies are kept. credentials are asked for where it needs some.
func (c Config) openCopies(credentials func() (v1alpha1.BackupCredentials, error)) (objectstore.Store, error) {
	at, err := c.copiesAt()
	if err != nil {
		return nil, err
	}
	if at.s3 == nil {
		return objectstore.OpenFolder(at.folder), nil
	}
	if c.BackupCopiesCAFile != "" {
		if at.s3.Authorities, err = os.ReadFile(c.BackupCopiesCAFile); err != nil {
			return nil, fmt.Errorf("backupCopiesCAFile: %w", err)
		}
	}
	keys, err := credentials()
	if err != nil {
		return nil, err
	}
	at.s3.AccessKey, at.s3.SecretKey = keys.AccessKey, keys.SecretKey
	return objectstore.OpenS3(*at.s3)
}

// storeOfCopies opens where copies are kept with what the Secret says now.
func (s *server) storeOfCopies(ctx context.Context) (objectstore.Store, error) {
	return s.cfg.openCopies(func() (v1alpha1.BackupCredentials, error) {
		reader := s.direct.Load()
		if reader == nil {
			return v1alpha1.BackupCredentials{}, errStarting
		}
		secret := &v1alpha1.Secret{}
		switch err := (*reader).Get(ctx, client.ObjectKey{Name: s.cfg.BackupCopiesSecret}, secret); {
		case apierrors.IsNotFound(err):
			return v1alpha1.BackupCredentials{}, fmt.Errorf("there is no Secret %q with the credentials; an administrator writes it: coldrack server backup set-credentials", s.cfg.BackupCopiesSecret)
		case err != nil:
			return v1alpha1.BackupCredentials{}, fmt.Errorf("read Secret %s: %w", s.cfg.BackupCopiesSecret, err)
		}
		return v1alpha1.ReadBackupCredentials(secret)
	})
}

// watchCopyCredentials has copies tried again when their credentials change.
func (s *server) watchCopyCredentials(ctx context.Context, cached cache.Cache) error {
	if s.cfg.BackupCopies == "" {
		return nil
	}
	secrets, err := cached.GetInformer(ctx, &v1alpha1.Secret{})
	if err != nil {
		return fmt.Errorf("watch Secrets: %w", err)
	}
	wake := func(object any) {
		if secret, ok := object.(*v1alpha1.Secret); ok && secret.Name == s.cfg.BackupCopiesSecret {
			s.backups.Wake()
		}
	}
	_, err = secrets.AddEventHandler(toolscache.ResourceEventHandlerFuncs{AddFunc: wake, UpdateFunc: func(_, now any) { wake(now) }})
	return err
}

// Copies implements controllers.Backups.
func (k backupKeeper) Copies(cluster string) *controllers.CopyState {
	if k.Elsewhere == nil {
		return nil
	}
	now := k.CopyStates()[cluster]
	state := &controllers.CopyState{To: now.To, Waiting: now.Waiting, Error: now.Error, Since: now.Since}
	if now.Newest != nil {
		state.Newest = now.Newest.ID
	}
	return state
}

// watchCopies shows how copies of backups stand.
func (m *metrics) watchCopies(states func() map[string]backups.CopyState) {
	m.registry.MustRegister(samples(func(s sink) {
		for cluster, now := range states() {
			name, of, labels := backupMetric(cluster)
			if now.Newest != nil {
				s.gauge(name+"_copy_last_success_timestamp_seconds", "When the newest backup of "+of+" was taken of which there is a copy elsewhere, in Unix time.", int(now.Newest.TakenAt.Unix()), labels...)
			}
			failing := 0
			if now.Error != "" {
				failing = 1
			}
			s.gauge(name+"_copy_failing", "1 while copies of backups of "+of+" cannot be brought up to date.", failing, labels...)
			s.gauge(name+"_copy_waiting", "Backups of "+of+" that are still to be copied.", now.Waiting, labels...)
			s.counter(name+"_copy_failures_total", "Times that copies of backups of "+of+" could not be brought up to date.", now.Failures, labels...)
		}
	}))
}
