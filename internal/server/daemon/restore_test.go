package daemon

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/backup"
	"coldrack.dev/internal/server/controlplane"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
	"coldrack.dev/test/s3server"
)

// own asks for the server's own backups.
func (r *running) own(t *testing.T, method, path string) (answer []byte, problem string) {
	t.Helper()
	c, err := rest.HTTPClientFor(r.rest)
	check(t, err)
	request, err := http.NewRequestWithContext(t.Context(), method, r.rest.Host+peoplewire.PathServerBackups+path, nil)
	check(t, err)
	response, err := c.Do(request)
	check(t, err)
	defer response.Body.Close()
	answer, err = io.ReadAll(response.Body)
	check(t, err)
	if response.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %s %s", method, path, response.Status, answer)
	}
	return answer, response.Header.Get(peoplewire.HeaderProblem)
}

// backUp takes a backup of the server's own store.
func (r *running) backUp(t *testing.T) peoplewire.Backup {
	t.Helper()
	answer, _ := r.own(t, http.MethodPost, "")
	var line peoplewire.BackupLine
	for lines := json.NewDecoder(bytes.NewReader(answer)); lines.More(); {
		line = peoplewire.BackupLine{}
		check(t, lines.Decode(&line))
	}
	if line.Backup == nil {
		t.Fatalf("no backup: %s", answer)
	}
	return *line.Backup
}

// TestTheOwnStoreIsRestored: a server's disk is lost, and the server comes back on another host from the copies of its backups and the master key.
func TestTheOwnStoreIsRestored(t *testing.T) {
	s3 := s3server.New(t)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	check(t, os.WriteFile(ca, s3.CA, 0o600))
	withCopies := func(cfg Config) Config {
		cfg.BackupCopies, cfg.BackupCopiesCAFile = s3.URL.JoinPath(s3server.Bucket, "racks").String(), ca
		return cfg
	}
	cfg := withCopies(testConfig(t))
	cfg.Manifests = []string{writeManifest(t, rackSubnet)}
	r := run(t, cfg)
	c := kinds(t, r.rest)
	if _, problem := r.own(t, http.MethodGet, ""); !strings.Contains(problem, "there is no Secret") {
		t.Errorf("copies without credentials: %q", problem)
	}
	keys := &v1alpha1.Secret{Type: v1alpha1.SecretTypeBackup, Data: map[string][]byte{"accessKey": []byte(s3.AccessKey), "secretKey": []byte(s3.SecretKey)}}
	keys.Name = cfg.BackupCopiesSecret
	check(t, c.Create(t.Context(), keys))
	token, err := controlplane.OpenTokens(controlplane.TokensPath(cfg.DataDir)).Create("ci", []string{controlplane.GroupViewer}, 0)
	check(t, err)
	made := r.backUp(t)
	if made.Keys < 3 || made.Cluster != "" || made.Coldrack == "" || !strings.HasPrefix(made.UID, "server-") {
		t.Errorf("%+v", made)
	}
	eventually(t, func() error {
		var all []peoplewire.Backup
		answer, problem := r.own(t, http.MethodGet, "")
		check(t, json.Unmarshal(answer, &all))
		if len(all) != 1 || !slices.Equal(all[0].Where, []string{peoplewire.BackupHere, peoplewire.BackupCopy}) {
			return fmt.Errorf("%s %s", answer, problem)
		}
		return nil
	})
	exported, _ := r.own(t, http.MethodPost, "/"+made.ID+"/export")
	late := &v1alpha1.Secret{Data: map[string][]byte{"a": []byte("b")}}
	late.Name = "late"
	check(t, c.Create(t.Context(), late))

	credentials := func() (v1alpha1.BackupCredentials, error) {
		return v1alpha1.BackupCredentials{AccessKey: s3.AccessKey, SecretKey: s3.SecretKey}, nil
	}
	options := RestoreOptions{Credentials: credentials, Tell: t.Logf}
	if _, err := Restore(t.Context(), cfg, options); err == nil || !strings.Contains(err.Error(), "in use by another coldrack server") {
		t.Errorf("below a running server: %v", err)
	}
	r.stop()
	master := filepath.Join(t.TempDir(), "master.key")
	text, err := os.ReadFile(cfg.path("pki", "master.key"))
	check(t, err)
	check(t, os.WriteFile(master, text, 0o600))
	if _, err := Restore(t.Context(), cfg, options); err == nil || !strings.Contains(err.Error(), "holds a store already") {
		t.Errorf("over a store: %v", err)
	}
	files, err := filepath.Glob(filepath.Join(s3.Dir, s3server.Bucket, "racks", "*", "*", "*"))
	check(t, err)
	for _, file := range files {
		content, err := os.ReadFile(file)
		check(t, err)
		if bytes.Contains(content, []byte("PRIVATE KEY")) || bytes.Contains(content, bytes.TrimSpace(text)) || bytes.Contains(content, []byte(s3.SecretKey)) {
			t.Errorf("%s holds a secret", file)
		}
	}

	fresh := func() Config { return withCopies(testConfig(t)) }
	t.Run("what is refused", func(t *testing.T) {
		stranger := filepath.Join(t.TempDir(), "other.key")
		check(t, os.WriteFile(stranger, bytes.Repeat([]byte("ab"), 32), 0o600))
		file := filepath.Join(t.TempDir(), "exported")
		with := func(content []byte) func(*Config, *RestoreOptions) {
			return func(_ *Config, o *RestoreOptions) {
				check(t, os.WriteFile(file, content, 0o600))
				o.File = file
			}
		}
		flipped := bytes.Clone(exported)
		flipped[len(flipped)/2] ^= 1
		for what, test := range map[string]struct {
			spoil func(*Config, *RestoreOptions)
			want  string
		}{
			"no master key":            {func(_ *Config, o *RestoreOptions) { o.MasterKeyFile = "" }, "the master key is missing"},
			"another master key":       {func(_ *Config, o *RestoreOptions) { o.MasterKeyFile = stranger }, "no such backup"},
			"an ID that is not there":  {func(_ *Config, o *RestoreOptions) { o.From = "20200101t000000z" }, "no such backup"},
			"an etcd of its own":       {func(cfg *Config, _ *RestoreOptions) { cfg.EtcdEndpoints = []string{"http://127.0.0.1:1"} }, "is not its own"},
			"a file that is cut short": {with(exported[:len(exported)/2]), "ends before"},
			"a file that is damaged":   {with(flipped), "damaged"},
			"a file of something else": {with([]byte("hello")), "no file that"},
			"a file and another master key": {func(cfg *Config, o *RestoreOptions) {
				with(exported)(cfg, o)
				o.MasterKeyFile = stranger
			}, "wrong master key"},
		} {
			cfg, o := fresh(), options
			o.MasterKeyFile = master
			test.spoil(&cfg, &o)
			if _, err := Restore(t.Context(), cfg, o); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s: %v", what, err)
			}
			for _, left := range []string{"etcd", restoringDir, "pki"} {
				if _, err := os.Stat(cfg.path(left)); err == nil {
					t.Errorf("%s: %s is left", what, left)
				}
			}
		}
	})

	// Another host, which has a config file and the master key. The superuser restores for a server that runs as somebody else.
	anew := fresh()
	options.MasterKeyFile = master
	if os.Geteuid() == 0 {
		check(t, os.Mkdir(anew.DataDir, 0o700))
		check(t, os.Chown(anew.DataDir, 12345, 12345))
	}
	list, err := ListRestorable(t.Context(), anew, options)
	if err != nil || len(list) != 1 || list[0].ID != made.ID || list[0].Here || !list[0].There {
		t.Fatalf("%+v, %v", list, err)
	}
	done, err := Restore(t.Context(), anew, options)
	if err != nil || done.ID != made.ID || len(done.Kept) != 0 || !slices.Contains(done.Files, "pki/machine-ca.key.sealed") || !slices.Contains(done.Files, "tokens.json") {
		t.Fatalf("%+v, %v", done, err)
	}
	if os.Geteuid() == 0 {
		check(t, filepath.WalkDir(anew.DataDir, func(path string, entry os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := entry.Info()
			if err == nil && info.Sys().(*syscall.Stat_t).Uid != 12345 {
				t.Errorf("%s belongs to %d", path, info.Sys().(*syscall.Stat_t).Uid)
			}
			return err
		}))
	}
	mark, err := ReadRestored(anew)
	if err != nil || mark.Backup != made.ID || !mark.TakenAt.Equal(made.TakenAt) || mark.RestoredAt.Before(made.TakenAt.Truncate(time.Second)) {
		t.Errorf("the mark: %+v, %v", mark, err)
	}
	asItWas(t, anew, token)

	// The store alone is lost: it is moved away, and what is there stays.
	check(t, os.Rename(anew.path("etcd"), anew.path("etcd.before")))
	file := filepath.Join(t.TempDir(), "exported")
	check(t, os.WriteFile(file, exported, 0o600))
	again := options
	again.File = file
	if done, err = Restore(t.Context(), anew, again); err != nil || !slices.Contains(done.Kept, "pki/machine-ca.key.sealed") || !slices.Equal(done.Files, []string{settingsFile}) {
		t.Fatalf("%+v, %v", done, err)
	}
	if again, err := ReadRestored(anew); err != nil || again.RestoredAt.Before(mark.RestoredAt) {
		t.Errorf("the mark of the second restore: %+v, %v", again, err)
	}
	asItWas(t, anew, token)
	confirmed(t, anew, token)

	// Another server's folder is not given this one's store, also when it has none.
	other := fresh()
	other.BackupCopies = ""
	run(t, other).stop()
	check(t, os.RemoveAll(other.path("etcd")))
	again.MasterKeyFile = ""
	if _, err := Restore(t.Context(), other, again); err == nil || !strings.Contains(err.Error(), "belongs to server-") {
		t.Errorf("into another server's folder: %v", err)
	}
}

// confirmed runs a restored server and ends what it withholds, which only an administrator may.
func confirmed(t *testing.T, cfg Config, token string) {
	t.Helper()
	r := run(t, cfg)
	defer r.stop()
	ask := func(config *rest.Config, method string) (is peoplewire.Restored, code int) {
		t.Helper()
		c, err := rest.HTTPClientFor(config)
		check(t, err)
		request, err := http.NewRequestWithContext(t.Context(), method, config.Host+peoplewire.PathRestored, nil)
		check(t, err)
		response, err := c.Do(request)
		check(t, err)
		defer response.Body.Close()
		if response.StatusCode == http.StatusOK {
			check(t, json.NewDecoder(response.Body).Decode(&is))
		}
		return is, response.StatusCode
	}
	c := kinds(t, r.rest)
	install := &v1alpha1.Machine{Spec: v1alpha1.MachineSpec{Identifiers: v1alpha1.Identifiers{MACs: []string{"52:54:00:00:00:0a"}}, Approved: true,
		Intent: &v1alpha1.Intent{ID: "1", Action: v1alpha1.ActionInstall}}}
	install.Name = "waits"
	check(t, c.Create(t.Context(), install))
	eventually(t, func() error {
		if is, code := ask(r.rest, http.MethodGet); code != http.StatusOK || is.RestoredAt.IsZero() || is.WithheldCount != 1 || is.Withheld[0].Machine != "waits" {
			return fmt.Errorf("%d %+v", code, is)
		}
		return nil
	})
	viewer := rest.AnonymousClientConfig(r.rest)
	viewer.BearerToken = token
	if _, code := ask(viewer, http.MethodPost); code != http.StatusForbidden {
		t.Errorf("a viewer confirms: %d", code)
	}
	admin, err := rest.HTTPClientFor(r.rest)
	check(t, err)
	response, err := admin.Get(r.rest.Host + metricsPath)
	check(t, err)
	text, err := io.ReadAll(response.Body)
	check(t, errors.Join(err, response.Body.Close()))
	if says := string(text); !strings.Contains(says, "\ncoldrack_store_restored_timestamp_seconds 1") {
		t.Error("metrics do not say that machines wait")
	}
	for range 2 {
		if is, code := ask(r.rest, http.MethodPost); code != http.StatusOK || !is.RestoredAt.IsZero() || is.WithheldCount != 0 {
			t.Errorf("an administrator confirms: %d %+v", code, is)
		}
	}
	if mark, err := ReadRestored(cfg); err != nil || !mark.RestoredAt.IsZero() {
		t.Errorf("the mark stays: %+v, %v", mark, err)
	}
}

// TestTheMarkOfARestore: a restore from a backup of a store whose restore was never confirmed goes back to the first; a mark that is damaged is one.
func TestTheMarkOfARestore(t *testing.T) {
	cfg := testConfig(t)
	check(t, os.MkdirAll(cfg.DataDir, 0o700))
	if mark, err := ReadRestored(cfg); err != nil || !mark.RestoredAt.IsZero() {
		t.Errorf("a folder that was not restored: %+v, %v", mark, err)
	}
	first := time.Date(2026, 12, 1, 8, 0, 0, 0, time.UTC)
	check(t, markRestored(cfg, backup.Manifest{ID: "one", TakenAt: first}, nil, first.Add(time.Hour)))
	earlier, err := os.ReadFile(cfg.path(restoredFile))
	check(t, err)
	check(t, markRestored(cfg, backup.Manifest{ID: "two", TakenAt: first.Add(2 * time.Hour)}, earlier, first.Add(3*time.Hour)))
	if mark, err := ReadRestored(cfg); err != nil || mark.Backup != "two" || !mark.TakenAt.Equal(first) || !mark.RestoredAt.Equal(first.Add(3*time.Hour)) {
		t.Errorf("restored twice: %+v, %v", mark, err)
	}
	check(t, os.WriteFile(cfg.path(restoredFile), []byte("{"), 0o600))
	if mark, err := ReadRestored(cfg); err != nil || mark.RestoredAt.IsZero() {
		t.Errorf("damaged: %+v, %v", mark, err)
	}
}

// asItWas runs a restored server, and looks whether it has what the backup held and nothing else.
func asItWas(t *testing.T, cfg Config, token string) {
	t.Helper()
	r := run(t, cfg)
	defer r.stop()
	c := kinds(t, r.rest)
	wantSubnet(t, c, "rack")
	secret := &v1alpha1.Secret{}
	if err := c.Get(t.Context(), metaKey(cfg.BackupCopiesSecret), secret); err != nil {
		t.Errorf("the Secret: %v", err)
	} else if _, err := v1alpha1.ReadBackupCredentials(secret); err != nil {
		t.Error(err)
	}
	if err := c.Get(t.Context(), metaKey("late"), &v1alpha1.Secret{}); !apierrors.IsNotFound(err) {
		t.Errorf("what was written after the backup: %v", err)
	}
	another := &v1alpha1.Secret{Data: map[string][]byte{"a": []byte("b")}}
	another.GenerateName = "again-"
	check(t, c.Create(t.Context(), another))
	bearer := rest.AnonymousClientConfig(r.rest)
	bearer.BearerToken = token
	if err := kinds(t, bearer).Get(t.Context(), metaKey("rack"), &v1alpha1.Subnet{}); err != nil {
		t.Errorf("with a token from before: %v", err)
	}
	answer, problem := r.own(t, http.MethodGet, "")
	var all []peoplewire.Backup
	check(t, json.Unmarshal(answer, &all))
	if len(all) != 1 || problem != "" || !slices.Equal(all[0].Where, []string{peoplewire.BackupCopy}) {
		t.Errorf("backups %s %s", answer, problem)
	}
}
