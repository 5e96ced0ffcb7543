package daemon

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/server/controlplane"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

// TestAuditIsRead does things as an administrator and reads who did them; others are refused.
func TestAuditIsRead(t *testing.T) {
	cfg := testConfig(t)
	s := run(t, cfg)
	ask := func(config *rest.Config, query url.Values) (int, string) {
		t.Helper()
		people, err := rest.HTTPClientFor(config)
		check(t, err)
		response, err := people.Get(config.Host + peoplewire.PathAudit + "?" + query.Encode())
		check(t, err)
		defer response.Body.Close()
		said, err := io.ReadAll(response.Body)
		check(t, err)
		return response.StatusCode, string(said)
	}
	look := func(query url.Values) (page peoplewire.AuditPage) {
		t.Helper()
		status, said := ask(s.rest, query)
		if status != http.StatusOK {
			t.Fatalf("%v: %d %s", query, status, said)
		}
		check(t, json.Unmarshal([]byte(said), &page))
		return page
	}
	begin := look(nil)
	scheme := runtime.NewScheme()
	check(t, v1alpha1.AddToScheme(scheme))
	c, err := client.New(s.rest, client.Options{Scheme: scheme})
	check(t, err)
	profile := &v1alpha1.Profile{ObjectMeta: metav1.ObjectMeta{Name: "worker"}, Spec: v1alpha1.ProfileSpec{Image: "debian-13"}}
	check(t, c.Create(t.Context(), profile))
	m := &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: "seen"}, Spec: v1alpha1.MachineSpec{Identifiers: v1alpha1.Identifiers{MACs: []string{"02:00:00:00:00:01"}}}}
	check(t, c.Create(t.Context(), m))
	again := m.DeepCopy()
	again.ResourceVersion = ""
	if err := c.Create(t.Context(), again); err == nil {
		t.Fatal("it was created twice")
	}
	check(t, c.Delete(t.Context(), m))

	newer := look(url.Values{"after": {begin.Newest}, "people": {"1"}})
	var told []string
	for _, r := range newer.Records {
		told = append(told, r.User+" "+r.Verb+" "+r.Object)
	}
	if got := strings.Join(told, ", "); got != "admin delete machines/seen, admin create machines/seen, admin create machines/seen, admin create profiles/worker" {
		t.Errorf("who did what: %s", got)
	}
	if refused := look(url.Values{"failed": {"1"}, "object": {"SEEN"}}); len(refused.Records) != 1 || refused.Records[0].Code != http.StatusConflict || !strings.Contains(refused.Records[0].Message, "already exists") {
		t.Errorf("what was refused: %+v", refused.Records)
	}
	first := look(url.Values{"user": {"adm"}, "verb": {"create"}, "object": {"machines/seen"}, "limit": {"1"}})
	if len(first.Records) != 1 || first.Older == "" {
		t.Fatalf("the first page: %+v", first)
	}
	second := look(url.Values{"user": {"adm"}, "verb": {"create"}, "object": {"machines/seen"}, "limit": {"1"}, "before": {first.Older}})
	if len(second.Records) != 1 || second.Records[0].ID == first.Records[0].ID || !strings.Contains(string(second.Records[0].Sent), "02:00:00:00:00:01") {
		t.Errorf("the second page: %+v", second)
	}
	if none := look(url.Values{"until": {begin.Reached.Add(-time.Hour).Format(time.RFC3339)}}); len(none.Records) != 0 {
		t.Errorf("before the beginning: %+v", none)
	}
	for key, value := range map[string]string{"limit": "0", "since": "yesterday", "people": "all"} {
		if status, said := ask(s.rest, url.Values{key: {value}}); status != http.StatusBadRequest || !strings.HasPrefix(said, key+": ") {
			t.Errorf("%s=%s: %d %s", key, value, status, said)
		}
	}
	if status, said := ask(s.rest, url.Values{"before": {"x"}}); status != http.StatusGone {
		t.Errorf("a place that is none: %d %s", status, said)
	}

	tokens := controlplane.OpenTokens(controlplane.TokensPath(cfg.DataDir))
	for _, group := range []string{controlplane.GroupViewer, controlplane.GroupOperator} {
		secret, err := tokens.Create(strings.TrimPrefix(group, "coldrack:"), []string{group}, time.Hour)
		check(t, err)
		other := rest.AnonymousClientConfig(s.rest)
		other.BearerToken = secret
		if status, said := ask(other, nil); status != http.StatusForbidden || !strings.Contains(said, "this needs role admin") {
			t.Errorf("%s: %d %s", group, status, said)
		}
	}
}
