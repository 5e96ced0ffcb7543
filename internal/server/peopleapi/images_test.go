package peopleapi

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

// shelf is images that nobody can remove; it says what would be removed.
type shelf struct {
	images []peoplewire.Image
	pinned []string
}

func (s *shelf) List() peoplewire.ImageList { return peoplewire.ImageList{Images: s.images} }

func (s *shelf) Pin(name string, pinned bool) error {
	if pinned {
		s.pinned = append(s.pinned, name)
	}
	return nil
}

func (s *shelf) Prune(keep func(peoplewire.Image) string, _ bool) ([]peoplewire.PrunedImage, int64, error) {
	var pruned []peoplewire.PrunedImage
	for _, i := range s.images {
		pruned = append(pruned, peoplewire.PrunedImage{Image: i, Kept: keep(i)})
	}
	return pruned, 7, nil
}

func (s *shelf) Protocol(func(*http.Request) (string, error)) http.Handler {
	return http.NotFoundHandler()
}

// post asks one of the handlers of images.
func (s *shelf) post(t *testing.T, a *ClusterAPI, path, body string) (int, string) {
	t.Helper()
	handler := a.ImageHandlers(s)[peoplewire.PathImages+path]
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, peoplewire.PathImages+path, strings.NewReader(body)))
	return w.Code, w.Body.String()
}

func TestPruneKeepsWhatClustersNeed(t *testing.T) {
	s := newSite(t, v1alpha1.TopologyLaptop, kube.PresetOptions{Name: "lab"})
	required, err := kube.RequirementsOf(s.cluster)
	check(t, err)
	digest := "sha256:" + strings.Repeat("a", 64)
	old := time.Now().Add(-100 * time.Hour)
	images := &shelf{images: []peoplewire.Image{
		{Name: required.Images[0], LastUsed: old},
		{Name: "docker.io/library/web:1", LastUsed: old},
		{Name: "rack.example/batch:1", LastUsed: old},
		{Name: "rack.example/init:1", LastUsed: old},
		{Name: "rack.example/moved:1", Digest: digest, LastUsed: old},
		{Name: "rack.example/young:1", LastUsed: time.Now()},
		{Name: "rack.example/unused:1", LastUsed: old},
	}}
	// A cluster that runs and cannot be asked might need anything.
	if status, text := images.post(t, s.people, "/prune", `{}`); status != http.StatusConflict || !strings.Contains(text, "cluster lab") || !strings.Contains(text, "no image was removed") {
		t.Errorf("the cluster is away: %d %s", status, text)
	}
	pod := map[string]any{
		"spec": map[string]any{
			"containers":     []any{map[string]any{"image": "web:1"}},
			"initContainers": []any{map[string]any{"image": "rack.example/init:1"}},
		},
		"status": map[string]any{"containerStatuses": []any{map[string]any{"imageID": "rack.example/moved@" + digest}}},
	}
	batch := map[string]any{"spec": map[string]any{"jobTemplate": map[string]any{"spec": map[string]any{"template": map[string]any{"spec": map[string]any{
		"containers": []any{map[string]any{"image": "rack.example/batch:1"}}}}}}}}
	answers := map[string]any{}
	for _, path := range []string{"/api/v1/podtemplates", "/api/v1/replicationcontrollers", "/apis/apps/v1/deployments", "/apis/apps/v1/statefulsets",
		"/apis/apps/v1/daemonsets", "/apis/apps/v1/replicasets", "/apis/batch/v1/jobs"} {
		answers[path] = map[string]any{"items": []any{}}
	}
	answers["/api/v1/pods"] = map[string]any{"items": []any{pod}}
	answers["/apis/batch/v1/cronjobs"] = map[string]any{"items": []any{batch}}
	s.serveKubernetes(t, answers)
	status, text := images.post(t, s.people, "/prune", `{"unusedFor":86400}`)
	var pruned peoplewire.ImagesPruned
	if err := json.Unmarshal([]byte(text), &pruned); status != http.StatusOK || err != nil || pruned.Freed != 7 || pruned.Removed || len(pruned.Images) != 7 {
		t.Fatalf("%d %s", status, text)
	}
	for n, want := range []string{"cluster lab", "cluster lab", "cluster lab", "cluster lab", "cluster lab", "used 2", ""} {
		if got := pruned.Images[n].Kept; !strings.HasPrefix(got, want) || want == "" && got != "" {
			t.Errorf("%s is kept because %q, want %q", pruned.Images[n].Name, got, want)
		}
	}
	delete(answers, "/apis/batch/v1/cronjobs")
	if status, text := images.post(t, s.people, "/prune", `{}`); status != http.StatusConflict || !strings.Contains(text, "/apis/batch/v1/cronjobs") {
		t.Errorf("the cluster says only half: %d %s", status, text)
	}
}

func TestPinsAreOfImagesThatThereAre(t *testing.T) {
	api := NewClusterAPI(slog.New(slog.DiscardHandler))
	api.Open(Backend{})
	images := &shelf{images: []peoplewire.Image{{Name: "rack.example/a:1"}}}
	for body, want := range map[string]int{
		`{"name":"rack.example/a:1","pinned":true}`:  http.StatusOK,
		`{"name":"rack.example/b:1","pinned":true}`:  http.StatusNotFound,
		`{"name":"rack.example/b:1","pinned":false}`: http.StatusOK,
		`{"names":[]}`: http.StatusBadRequest,
	} {
		if status, text := images.post(t, api, "/pin", body); status != want {
			t.Errorf("%s: %d %s", body, status, text)
		}
	}
	if len(images.pinned) != 1 || images.pinned[0] != "rack.example/a:1" {
		t.Errorf("pinned are %q", images.pinned)
	}
}
