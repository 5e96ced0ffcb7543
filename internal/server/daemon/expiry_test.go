package daemon

import (
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/members"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/internal/machine/fleet"
	"coldrack.dev/internal/server/controlplane"
	"coldrack.dev/internal/server/peopleapi/credentials"
)

// A person is told of what was not renewed, and of what is not renewed by itself, from ninety days before its end, with all names; and of
// the kubelet's certificates only when it is late.
func TestAPersonIsToldOfWhatEnds(t *testing.T) {
	cfg := testConfig(t)
	keys, err := openKeys(cfg)
	check(t, err)
	s := &server{cfg: cfg, log: discard(), keys: keys, fleet: fleet.New(fleet.Options{Log: discard()}), clusters: members.New(members.Options{Programs: yearPrograms{}})}
	now := time.Now().Truncate(time.Second)
	in := func(days int) time.Time { return now.Add(time.Duration(days) * day) }
	for name, certificates := range map[string]map[string]time.Time{
		"fresh":     {"apiserver": in(300), "kubelet-client": in(100)},
		"late":      {"apiserver": in(89), "etcd-server": in(88), "kubelet-client": in(80)},
		"late-too":  {"apiserver": in(70), "kubelet-client": in(200)},
		"stuck":     {"apiserver": in(200), "kubelet-server-current": in(29)},
		"away":      nil, // what it reported before this server started is not known by name
		"other-lab": {"kubelet-client": in(60)},
	} {
		m := &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: name}}
		cluster := "lab"
		if name == "other-lab" {
			cluster = "other"
		}
		m.Status.Kubernetes = &v1alpha1.KubernetesStatus{Cluster: cluster, CertificatesExpireAt: new(metav1.NewTime(in(50)))}
		m.Status.Identity = &v1alpha1.IdentityStatus{ExpiresAt: metav1.NewTime(in(91))}
		s.fleet.Put(m)
		if certificates != nil {
			s.fleet.BroughtUp(name, wire.PhaseReport{Cluster: cluster, Certificates: certificates})
		}
	}
	_, err = credentials.WriteAdmin(cfg.AdminKubeconfig(), keys.people, "https://127.0.0.1:7443", now)
	check(t, err)
	tokens := controlplane.OpenTokens(controlplane.TokensPath(cfg.DataDir))
	for name, life := range map[string]time.Duration{"robot": 120 * day, "guest": 8 * time.Hour, "for-ever": 0} {
		_, err := tokens.Create(name, []string{controlplane.GroupViewer}, life)
		check(t, err)
	}
	told := func(at time.Time) (texts []string) {
		for _, e := range s.expiry(at) {
			if e.Overdue != "" {
				texts = append(texts, e.Certificate+" "+e.Cluster+" "+e.Name+": "+e.Overdue)
			} else if e.Soon != "" {
				texts = append(texts, "soon "+e.Certificate+" "+e.Cluster+" "+e.Name+": "+e.Soon)
			}
		}
		return texts
	}
	want := []string{ // how each begins, and how it ends
		"cluster-node lab stuck kubelet-server-current: ends at | and that of the server say why it did not; also: away, late-too apiserver, late etcd-server, late apiserver",
		"soon cluster-node other other-lab kubelet-client: ends at | the kubelet renews it before " + in(60).Add(-365*day/10).UTC().Format(time.DateOnly),
	}
	matches := func(got []string, want []string) bool {
		return slices.EqualFunc(got, want, func(text, want string) bool {
			begin, end, _ := strings.Cut(want, "|")
			return strings.HasPrefix(text, begin) && strings.HasSuffix(text, end)
		})
	}
	if got := told(now); !matches(got, want) {
		t.Errorf("told:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	// A token of 120 days is told of when a quarter is left; an identity 90 days before its end.
	later := told(in(91))
	for _, want := range []string{"token  robot: token robot ends at ", "node-identity  away: ended at "} {
		if !slices.ContainsFunc(later, func(text string) bool { return strings.HasPrefix(text, want) }) {
			t.Errorf("not told that %s:\n%s", want, strings.Join(later, "\n"))
		}
	}
	if slices.ContainsFunc(append(told(now), later...), func(text string) bool { return strings.Contains(text, "guest") || strings.Contains(text, "for-ever") }) {
		t.Error("told of a token that was made for hours, or for ever")
	}
	if got := told(in(2)); !slices.ContainsFunc(got, func(text string) bool {
		return strings.HasPrefix(text, "node-identity  away: ends at ") && strings.HasSuffix(text, "also: fresh, late, late-too, other-lab, stuck")
	}) {
		t.Errorf("89 days before their end, identities that were not renewed: %s", strings.Join(got, "\n"))
	}
	onDisk, err := ExpiryOnDisk(cfg, in(91))
	check(t, err)
	var sorts []string
	for _, e := range onDisk {
		sorts = append(sorts, e.Certificate)
	}
	if want := []string{machineAuthority, credentials.Authority, expiryAdmin, expiryToken}; !slices.Equal(sorts, want) {
		t.Errorf("on the disk of a server that does not run: %v, want %v", sorts, want)
	}
}
