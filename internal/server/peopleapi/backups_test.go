package peopleapi

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"k8s.io/apiserver/pkg/authentication/user"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/server/backups"
	"coldrack.dev/internal/server/controlplane"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

// oneCluster is a store with a cluster "lab" and nothing else.
type oneCluster struct{ client.Client }

func (oneCluster) Get(_ context.Context, key client.ObjectKey, into client.Object, _ ...client.GetOption) error {
	into.(*v1alpha1.Cluster).Name, into.(*v1alpha1.Cluster).UID = key.Name, "uid-1"
	return nil
}

func TestWhoMayCarryBackupsAround(t *testing.T) {
	api := NewClusterAPI(slog.New(slog.DiscardHandler))
	api.Open(Backend{Client: oneCluster{}, Backups: backups.New(backups.Options{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})})
	handler := api.Handlers()[peoplewire.PathClusters]
	for _, test := range []struct {
		group, method, path string
		status              int
		says                string
	}{
		{controlplane.GroupViewer, http.MethodGet, "lab/backups", http.StatusOK, "[]"},
		{controlplane.GroupOperator, http.MethodPost, "lab/backups/20261130t000000z/export", http.StatusForbidden, "role admin"},
		{controlplane.GroupAdmin, http.MethodPost, "lab/backups/20261130t000000z/export", http.StatusNotFound, "no such backup"},
		{controlplane.GroupAdmin, http.MethodPost, "lab/backups/..%2F..%2Fpki/export", http.StatusNotFound, "no such backup"},
		{controlplane.GroupOperator, http.MethodPut, "lab/backups", http.StatusForbidden, "role admin"},
		{controlplane.GroupAdmin, http.MethodPut, "lab/backups", http.StatusConflict, "no file that"},
		{controlplane.GroupAdmin, http.MethodDelete, "lab/backups", http.StatusMethodNotAllowed, "only GET"},
	} {
		request := httptest.NewRequest(test.method, peoplewire.PathClusters+test.path, strings.NewReader("no archive"))
		request = request.WithContext(apirequest.WithUser(request.Context(), &user.DefaultInfo{Name: "ada", Groups: []string{test.group}}))
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, request)
		if answer.Code != test.status || !strings.Contains(answer.Body.String(), test.says) {
			t.Errorf("%s %s as %s: %d %s", test.method, test.path, test.group, answer.Code, answer.Body)
		}
	}
}
