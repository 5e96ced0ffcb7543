package controlplane

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
)

func basicSerializer() runtime.NegotiatedSerializer {
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"})
	return serializer.NewCodecFactory(scheme).WithoutConversion()
}

// rawValue reads what etcd really holds below the embedded API server.
func rawValue(t *testing.T, cfg Config, key string) []byte {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + cfg.path(etcdDir, "etcd.sock")}, Logger: zap.NewNop()})
	check(t, err)
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	got, err := client.Get(ctx, key)
	check(t, err)
	if len(got.Kvs) != 1 {
		t.Fatalf("etcd holds %d values at %s", len(got.Kvs), key)
	}
	return got.Kvs[0].Value
}

func TestSecretsAreEncryptedAtRest(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	ca := newTestCA(t)
	cfg := testConfig(t, ca)
	c := startTest(t, cfg)
	password := "correct-horse-battery-staple"
	encoded := base64.StdEncoding.EncodeToString([]byte(password))
	secret := object("Secret", "bmc", map[string]any{"type": "bmc-credentials", "data": map[string]any{"password": encoded}})
	_, err := resource(t, c.RESTConfig(), "secrets").Create(ctx, secret, metav1.CreateOptions{})
	check(t, err)
	_, err = resource(t, c.RESTConfig(), "subnets").Create(ctx, object("Subnet", "plain", map[string]any{
		"spec": map[string]any{"cidr": "10.0.0.0/24", "dhcp": "off"}}), metav1.CreateOptions{})
	check(t, err)

	raw := rawValue(t, cfg, "/coldrack/coldrack.dev/secrets/bmc")
	if !bytes.HasPrefix(raw, []byte(encryptedPrefix)) {
		t.Errorf("etcd holds %.40q", raw)
	}
	for _, leak := range []string{password, encoded, "bmc-credentials", "password"} {
		if bytes.Contains(raw, []byte(leak)) {
			t.Errorf("etcd holds %q in clear", leak)
		}
	}
	if raw := rawValue(t, cfg, "/coldrack/coldrack.dev/subnets/plain"); !bytes.Contains(raw, []byte("10.0.0.0/24")) {
		t.Errorf("a Subnet is not in clear, so this test shows nothing: %.40q", raw)
	}
	c.Stop()

	// Nothing else on the disk gives it away either: the log of etcd, the audit log.
	check(t, filepath.WalkDir(cfg.DataDir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte(password)) || bytes.Contains(data, []byte(encoded)) {
			t.Errorf("%s holds the password", path)
		}
		return err
	}))

	c = startTest(t, cfg)
	got, err := resource(t, c.RESTConfig(), "secrets").Get(ctx, "bmc", metav1.GetOptions{})
	check(t, err)
	if data := got.Object["data"].(map[string]any)["password"]; data != encoded {
		t.Errorf("after a restart: %v", data)
	}
	c.Stop()

	right := cfg.EncryptionKey
	cfg.EncryptionKey = bytes.Repeat([]byte{8}, encryptionKeySize)
	_, err = Start(ctx, cfg)
	if err == nil || !strings.Contains(err.Error(), "cannot be decrypted") || !strings.Contains(err.Error(), "backup") {
		t.Fatalf("with another key: %v", err)
	}
	cfg.EncryptionKey = right
	startTest(t, cfg)
}

func TestOnlyTheOwnerMayReadTheStore(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t, newTestCA(t))
	check(t, os.Chmod(cfg.DataDir, 0o755))
	startTest(t, cfg)
	for _, dir := range []string{"etcd", "audit"} {
		info, err := os.Stat(cfg.path(dir))
		check(t, err)
		if info.Mode().Perm() != 0o700 {
			t.Errorf("%s has mode %v", dir, info.Mode())
		}
	}
}

func TestAudit(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	ca := newTestCA(t)
	cfg := testConfig(t, ca)
	c := startTest(t, cfg)
	ada := ca.person(t, c.Address(), "ada", GroupOperator)
	root := ca.person(t, c.Address(), "root", GroupAdmin)
	machines := resource(t, ada, "machines")
	_, err := machines.Create(ctx, object("Machine", "m", map[string]any{"spec": map[string]any{"hostname": "seen-in-audit"}}), metav1.CreateOptions{})
	check(t, err)
	_, err = machines.Get(ctx, "m", metav1.GetOptions{})
	check(t, err)
	_, err = machines.Patch(ctx, "m", types.MergePatchType, []byte(`{"spec":{"approved":true}}`), metav1.PatchOptions{})
	check(t, err)
	_, err = resource(t, c.RESTConfig(), "machines").Patch(ctx, "m", types.MergePatchType, []byte(`{"status":{"phase":"Ready"}}`), metav1.PatchOptions{}, "status")
	check(t, err)
	_, err = resource(t, root, "secrets").Create(ctx, object("Secret", "s", map[string]any{"data": map[string]any{"k": "aGVsbG8="}}), metav1.CreateOptions{})
	check(t, err)
	if err := resource(t, ada, "secrets").Delete(ctx, "s", metav1.DeleteOptions{}); err == nil {
		t.Fatal("an operator deleted a secret")
	}
	check(t, machines.Delete(ctx, "m", metav1.DeleteOptions{}))
	c.Stop()

	type event struct {
		Verb           string
		User           struct{ Username string }
		ObjectRef      struct{ Resource, Name, Subresource string }
		ResponseStatus struct{ Code int }
		RequestObject  json.RawMessage
		SourceIPs      []string
		Stage          string
		StageTimestamp time.Time
	}
	var lines []string
	f, err := os.Open(cfg.path(auditLogFile))
	check(t, err)
	defer f.Close()
	info, err := f.Stat()
	check(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the log has mode %v", info.Mode())
	}
	for scan := bufio.NewScanner(f); scan.Scan(); {
		var e event
		check(t, json.Unmarshal(scan.Bytes(), &e))
		if e.User.Username == "system:apiserver" && e.ObjectRef.Resource == "customresourcedefinitions" {
			continue
		}
		if len(e.SourceIPs) == 0 || e.StageTimestamp.IsZero() {
			t.Errorf("no source or time: %s", scan.Text())
		}
		line := strings.Join([]string{e.User.Username, e.Verb, e.ObjectRef.Resource + "/" + e.ObjectRef.Name, map[int]string{200: "ok", 201: "created", 403: "forbidden"}[e.ResponseStatus.Code]}, " ")
		if len(e.RequestObject) > 0 && e.Verb != "delete" {
			line += " with body"
		}
		lines = append(lines, line)
	}
	want := []string{
		"ada create machines/m created with body",
		"ada patch machines/m ok with body",
		"root create secrets/s created",
		"ada delete secrets/s forbidden",
		"ada delete machines/m ok",
	}
	if got := strings.Join(lines, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("the log says\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

func TestNothingAcknowledgedIsLostToKill9(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	ca := newTestCA(t)
	cfg := testConfig(t, ca)
	acknowledged := 0
	for round := range 3 {
		s := startServer(t, cfg)
		machines := resource(t, ca.person(t, s.address, "root", GroupAdmin), "machines")
		// Four writers, one of whom kills the server in the middle of the others' writes.
		type result struct{ acknowledged int }
		results := make(chan result, 4)
		for w := range 4 {
			go func() {
				n := 0
				defer func() { results <- result{n} }()
				for i := 0; ; i++ {
					name := strings.Join([]string{"m", string(rune('a' + round)), string(rune('a' + w)), string(rune('a' + i%26)), string(rune('a' + i/26))}, "-")
					if _, err := machines.Create(ctx, object("Machine", name, nil), metav1.CreateOptions{}); err != nil {
						return
					}
					n++
					if w == 0 && n == 25 {
						s.cmd.Process.Kill()
					}
				}
			}()
		}
		for range 4 {
			acknowledged += (<-results).acknowledged
		}
		s.cmd = nil
		<-s.waited
	}
	s := startServer(t, cfg)
	list, err := resource(t, ca.person(t, s.address, "root", GroupAdmin), "machines").List(ctx, metav1.ListOptions{})
	check(t, err)
	// A write whose answer was lost may be there too: at most one a writer and round.
	if n := len(list.Items); n < acknowledged || n > acknowledged+12 {
		t.Errorf("%d machines, %d were acknowledged", n, acknowledged)
	}
	var exit interface{ ExitCode() int }
	if err := s.signal(t, 15); err != nil && errors.As(err, &exit) {
		t.Errorf("graceful stop: %v", err)
	}
}
