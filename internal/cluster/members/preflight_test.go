package members

import (
	"strings"
	"testing"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/kube"
	"coldrack.dev/internal/cluster/planner"
)

func TestWhatForbidsAnUpgrade(t *testing.T) {
	versions := kube.KnownVersions()
	from, to := versions[len(versions)-2], versions[len(versions)-1]
	minor := strings.TrimPrefix(to[:strings.LastIndex(to, ".")], "v")
	guarded := func(in *planner.Input) {
		in.Observed.Budgets = []planner.DisruptionBudget{{Name: "default/web", Never: true}}
		in.Observed.Nodes[1].Pods = []planner.Pod{{Name: "default/web-1", Budget: "default/web"}}
	}
	for _, test := range []struct {
		name   string
		seen   Preflight
		change func(*v1alpha1.Cluster, *planner.Input)
		want   string
	}{
		{"nothing", Preflight{Requested: []RequestedAPI{{"v1 endpoints", ""}, {"a/v1 b", "1.99"}}, Etcd: []EtcdState{{Name: "a", Answers: true, Size: 1 << 30, Quota: 2 << 30}}}, nil, ""},
		{"content in no bundle", Preflight{Lacking: []string{"image registry.k8s.io/pause:3.10.2", "program kubelet v1.99.0"}}, nil,
			"no imported bundle has all of what " + to + " needs: image registry.k8s.io/pause:3.10.2, program kubelet v1.99.0"},
		{"an API that goes", Preflight{Requested: []RequestedAPI{{"policy/v1beta1 old", minor}}}, nil, "policy/v1beta1 old is still in use"},
		{"an API server that was not asked", Preflight{Unasked: "10.0.0.1:6443: no answer"}, nil, "it is not known which APIs are in use"},
		{"a flag that goes", Preflight{}, func(c *v1alpha1.Cluster, _ *planner.Input) {
			c.Spec.Etcd.ExtraArgs = map[string]string{"experimental-x": "1"}
		}, "spec.etcd.extraArgs[experimental-x]"},
		{"a member that does not answer", Preflight{Etcd: []EtcdState{{Name: "a", Problems: []string{"no answer in time"}}}}, nil, "member a of etcd does not answer: no answer in time"},
		{"an alarm", Preflight{Etcd: []EtcdState{{Name: "a", Answers: true, Problems: []string{"alarm:NOSPACE"}}}}, nil, "member a of etcd says: alarm:NOSPACE"},
		{"a full database", Preflight{Etcd: []EtcdState{{Name: "a", Answers: true, Size: 1900 << 20}}}, nil, "has 1900 MiB of the 2048 MiB"},
		{"a database with a quota of its own", Preflight{Etcd: []EtcdState{{Name: "a", Answers: true, Size: 1900 << 20}}},
			func(c *v1alpha1.Cluster, _ *planner.Input) { c.Spec.Etcd.QuotaBackend = 8 << 30 }, ""},
		{"a budget that never allows anything", Preflight{}, func(_ *v1alpha1.Cluster, in *planner.Input) { guarded(in) }, "PodDisruptionBudget default/web never allows to evict pod default/web-1"},
		{"which does not matter for a patch release", Preflight{}, func(c *v1alpha1.Cluster, in *planner.Input) {
			guarded(in)
			for i := range c.Status.Nodes {
				c.Status.Nodes[i].Version = to
			}
		}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := facts(t, "2026-11-30T12:00:00Z")
			f.Cluster.Spec.Version = to
			for i := range f.Cluster.Status.Nodes {
				f.Cluster.Status.Nodes[i].Version = from
			}
			in, err := Steps(f)
			check(t, err)
			if !planner.Preflights(in) {
				t.Fatal("no upgrade is seen")
			}
			if test.change != nil {
				test.change(f.Cluster, &in)
			}
			blocks := test.seen.Blocks(f.Cluster, in)
			switch {
			case test.want == "" && len(blocks) > 0, test.want != "" && (len(blocks) != 1 || !strings.Contains(blocks[0].Reason, test.want)):
				t.Errorf("got %v", blocks)
			case len(blocks) > 0 && blocks[0].Remedy == "":
				t.Errorf("nobody says what to do: %v", blocks)
			}
		})
	}
}
