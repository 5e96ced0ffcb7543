package controlplane

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"coldrack.dev/test/require"
)

// auditLines are the records that contain all of the texts.
func auditLines(t testing.TB, file string, texts ...string) (found []string) {
	t.Helper()
	content, err := os.ReadFile(file)
	check(t, err)
lines:
	for line := range strings.Lines(string(content)) {
		for _, text := range texts {
			if !strings.Contains(line, text) {
				continue lines
			}
		}
		found = append(found, line)
	}
	return found
}

// What changes nothing, and can be had by anybody, must not wash out what does.
func TestTheAuditLogIsNotWashedOut(t *testing.T) {
	t.Parallel()
	ctx, ca := context.Background(), newTestCA(t)
	cfg := testConfig(t, ca)
	c := startTest(t, cfg)
	file := cfg.path(auditLogFile)

	// The dry runs of a plan, which the server makes for each of its objects.
	own := resource(t, c.RESTConfig(), "machines")
	for n := range 50 {
		_, err := own.Create(ctx, object("Machine", fmt.Sprint("planned-", n), nil), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		check(t, err)
	}
	if got := auditLines(t, file, "planned-"); len(got) != 0 {
		t.Errorf("%d records of the server's own dry runs: %s", len(got), got[0])
	}

	// Refused writes of a viewer.
	viewer := resource(t, ca.person(t, c.Address(), "vera", GroupViewer), "machines")
	for range 3 * cheapOfOne {
		if err := viewer.Delete(ctx, "m", metav1.DeleteOptions{}); !apierrors.IsForbidden(err) {
			t.Fatal(err)
		}
	}
	// A minute may have ended meanwhile, and another begun.
	if n := len(auditLines(t, file, `"username":"vera"`)); n < cheapOfOne || n > 2*cheapOfOne {
		t.Errorf("%d records of %d refused requests", n, 3*cheapOfOne)
	}

	// Writes that are carried out are recorded, however many.
	operator := resource(t, ca.person(t, c.Address(), "otto", GroupOperator), "machines")
	for n := range 2 * cheapOfOne {
		_, err := operator.Create(ctx, object("Machine", fmt.Sprint("real-", n), nil), metav1.CreateOptions{})
		check(t, err)
	}
	if got := auditLines(t, file, `"username":"otto"`); len(got) != 2*cheapOfOne {
		t.Errorf("%d records of %d writes", len(got), 2*cheapOfOne)
	}
}

func TestRecordBoundSaysWhatWasLeftOut(t *testing.T) {
	now := time.Unix(1e9, 0)
	bound := &recordBound{now: func() time.Time { return now }}
	passed := 0
	for range cheapOfOne + 7 {
		if pass, _ := bound.take("vera 10.0.0.1"); pass {
			passed++
		}
	}
	if pass, _ := bound.take("otto 10.0.0.2"); passed != cheapOfOne || !pass {
		t.Errorf("%d passed, another's: %v", passed, pass)
	}
	now = now.Add(time.Minute)
	if pass, leftOut := bound.take("vera 10.0.0.1"); !pass || leftOut != 7 {
		t.Errorf("after a minute: %v, %d left out", pass, leftOut)
	}
	now = now.Add(time.Minute)
	passed = 0
	for n := range 100 * cheapOfAll {
		if pass, _ := bound.take(fmt.Sprint("somebody ", n)); pass {
			passed++
		}
	}
	if passed != cheapOfAll || len(bound.of) > maxSources+1 || len(bound.leftOut) > maxSources+1 {
		t.Errorf("of many sources %d passed, %d and %d are remembered", passed, len(bound.of), len(bound.leftOut))
	}
}

func TestReadsOfSecretsAreRecorded(t *testing.T) {
	t.Parallel()
	ctx, ca := context.Background(), newTestCA(t)
	cfg := testConfig(t, ca)
	c := startTest(t, cfg)
	secrets := resource(t, ca.person(t, c.Address(), "ada", GroupAdmin), "secrets")
	_, err := secrets.Create(ctx, object("Secret", "bmc", map[string]any{"data": map[string]any{"k": "aGVsbG8="}}), metav1.CreateOptions{})
	check(t, err)
	_, err = secrets.Get(ctx, "bmc", metav1.GetOptions{})
	check(t, err)
	_, err = secrets.List(ctx, metav1.ListOptions{})
	check(t, err)
	watch, err := secrets.Watch(ctx, metav1.ListOptions{})
	check(t, err)
	<-watch.ResultChan()
	// A watch is recorded while it goes on.
	for _, verb := range []string{"get", "list", "watch"} {
		if n := len(auditLines(t, cfg.path(auditLogFile), `"username":"ada"`, `"verb":"`+verb+`"`, `"resource":"secrets"`)); n != 1 {
			t.Errorf("%d records of %s", n, verb)
		}
	}
	watch.Stop()
	_, err = resource(t, c.RESTConfig(), "secrets").Get(ctx, "bmc", metav1.GetOptions{})
	check(t, err)
	if got := auditLines(t, cfg.path(auditLogFile), `"username":"system:apiserver"`, `"resource":"secrets"`); len(got) != 0 {
		t.Errorf("the server's own reads are recorded: %s", got)
	}
}

// With a disk that is full, writes and reads of Secrets are refused, reads and what machines report go on.
func TestWritesWithoutARecordAreRefused(t *testing.T) {
	require.Need(t, "root")
	t.Parallel()
	const enough = 40 // writes; there is room for half of them
	for _, goOn := range []bool{false, true} {
		t.Run(fmt.Sprint("continue is ", goOn), func(t *testing.T) {
			ctx, ca := context.Background(), newTestCA(t)
			cfg := testConfig(t, ca)
			// The log has a disk of its own, so that it alone is full.
			dir := filepath.Join(cfg.DataDir, "audit")
			check(t, os.Mkdir(dir, 0o700))
			check(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=32m,mode=700"))
			t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
			cfg.AuditContinue = goOn
			c := startTest(t, cfg)
			person := ca.person(t, c.Address(), "ada", GroupAdmin)
			machines := resource(t, person, "machines")
			_, err := machines.Create(ctx, object("Machine", "before", nil), metav1.CreateOptions{})
			check(t, err)

			hog, err := os.Create(filepath.Join(dir, "hog"))
			check(t, err)
			defer hog.Close()
			for block := make([]byte, 1<<16); ; {
				if _, err := hog.Write(block); err != nil {
					break
				}
			}
			// There is room for what is being answered, and no more: write until it is used up.
			big := strings.Repeat("x", 200_000)
			for n := range 100 {
				_, err = machines.Patch(ctx, "before", types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"annotations":{"n":"%d","big":%q}}}`, n, big), metav1.PatchOptions{})
				if err != nil || goOn && n == enough {
					break
				}
			}
			if goOn {
				check(t, err)
				return
			}
			if !apierrors.IsServiceUnavailable(err) || !strings.Contains(err.Error(), "no record of it could be kept") ||
				!strings.Contains(err.Error(), "no space left on device") || !strings.Contains(err.Error(), "--audit-failure=continue") {
				t.Fatalf("with a full disk: %v", err)
			}
			if _, err := machines.Create(ctx, object("Machine", "after", nil), metav1.CreateOptions{}); !apierrors.IsServiceUnavailable(err) {
				t.Errorf("create: %v", err)
			}
			if _, err := resource(t, person, "secrets").List(ctx, metav1.ListOptions{}); !apierrors.IsServiceUnavailable(err) {
				t.Errorf("read Secrets: %v", err)
			}
			_, err = machines.Get(ctx, "before", metav1.GetOptions{})
			check(t, err)
			_, err = resource(t, c.RESTConfig(), "machines").Patch(ctx, "before", types.MergePatchType, []byte(`{"status":{"phase":"Ready"}}`), metav1.PatchOptions{}, "status")
			check(t, err)
			client, err := rest.HTTPClientFor(person)
			check(t, err)
			answer, err := client.Get(person.Host + "/readyz")
			check(t, err)
			answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				t.Error("/readyz says that all is well")
			}

			check(t, hog.Truncate(0))
			_, err = machines.Create(ctx, object("Machine", "after", nil), metav1.CreateOptions{})
			check(t, err)
		})
	}
}
