package doctor

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

func TestCertificates(t *testing.T) {
	day := func(n int) time.Time { return time.Date(2030, 1, n, 0, 0, 0, 0, time.UTC) }
	results := certificates(t.Context(), func(context.Context) ([]peoplewire.Expiry, error) {
		return []peoplewire.Expiry{
			{Certificate: "machine-ca", Until: day(3), Overdue: "replace it"},
			{Certificate: "people-api", Until: day(9)},
			{Certificate: "cluster-node", Cluster: "edge", Name: "node-7 kubelet-server", Until: day(4), Soon: "ends at 2030-01-04; the kubelet renews it"},
			{Certificate: "cluster-node", Cluster: "lab", Name: "node-1", Until: day(8)},
		}, errors.New("not all is known")
	})
	var got []string
	for _, r := range results {
		got = append(got, string(r.State)+" "+r.Found+" -> "+r.Do)
	}
	want := []string{
		"warn machine-ca ends at 2030-01-03T00:00:00Z -> replace it",
		"ok cluster-node of cluster edge (node-7 kubelet-server) ends at 2030-01-04; the kubelet renews it -> ",
		"warn not all is known -> look again while the server runs, as the owner of its data folder",
		"ok next to end: cluster-node of cluster lab (node-1), at 2030-01-08T00:00:00Z; it is renewed by itself where it can be -> ",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if results := certificates(t.Context(), func(context.Context) ([]peoplewire.Expiry, error) { return nil, nil }); len(results) != 0 {
		t.Errorf("a folder without a server: %+v", results)
	}
}
