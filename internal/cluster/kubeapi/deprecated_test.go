package kubeapi

import (
	"context"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/internal/cluster/kube"
)

// testDeprecated uses an API that is deprecated and has no end yet, and finds that at the API server.
func (c *testCluster) testDeprecated(t *testing.T) {
	_, err := c.as("admin", kube.GroupBreakGlass).CoreV1().Endpoints("default").List(context.Background(), metav1.ListOptions{})
	check(t, err)
	apis, err := c.connect().DeprecatedAPIs(context.Background())
	check(t, err)
	if !slices.ContainsFunc(apis, func(api DeprecatedAPI) bool { return api.Name == "v1 endpoints" }) {
		t.Errorf("in use are %v", apis)
	}
}

const sampleMetrics = `# HELP apiserver_requested_deprecated_apis [STABLE] Gauge of deprecated APIs that have been requested
# TYPE apiserver_requested_deprecated_apis gauge
apiserver_requested_deprecated_apis{group="",removed_release="",resource="endpoints",subresource="",version="v1"} 1
apiserver_requested_deprecated_apis{group="flowcontrol.apiserver.k8s.io",removed_release="1.38",resource="flowschemas",subresource="status",version="v1beta9"} 1
apiserver_requested_deprecated_apis{group="policy",removed_release="1.37",resource="old",subresource="",version="v1beta1"} 0
apiserver_request_total{code="200",verb="GET"} 12
`

func TestAPIsThatAreInUse(t *testing.T) {
	got, err := parseDeprecated(strings.NewReader(sampleMetrics))
	want := []DeprecatedAPI{{"v1 endpoints", ""}, {"flowcontrol.apiserver.k8s.io/v1beta9 flowschemas/status", "1.38"}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, broken := range []string{`apiserver_requested_deprecated_apis{group="policy`, `apiserver_requested_deprecated_apis{group`, `apiserver_requested_deprecated_apis{group="a\\"`} {
		if got, err := parseDeprecated(strings.NewReader(broken)); err == nil {
			t.Errorf("%q is read as %v", broken, got)
		}
	}
	if got, err := parseDeprecated(strings.NewReader(`apiserver_requested_deprecated_apis{version="v1",resource="a\"b"} 1`)); err != nil || got[0].Name != `v1 a"b` {
		t.Errorf("got %v, %v", got, err)
	}
}

func FuzzMetrics(f *testing.F) {
	f.Add(sampleMetrics)
	f.Fuzz(func(t *testing.T, text string) {
		apis, err := parseDeprecated(strings.NewReader(text))
		if len(apis) > 0 && !strings.Contains(text, deprecatedMetric) {
			t.Errorf("%v, %v of nothing", apis, err)
		}
	})
}
