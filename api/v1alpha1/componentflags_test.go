package v1alpha1

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
)

// Every flag that the programs of a release have stands in one list, and the lists name no flag that none of them has. What the
// programs have is in testdata/flags, which hack/flags.sh writes from what they print themselves, for the newest release at least.
func TestListsOfFlagsAreThoseOfThePrograms(t *testing.T) {
	for component, rule := range flagRules() {
		files, err := filepath.Glob("testdata/flags/" + string(component) + "-[0-9]*")
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: files %v, error %v; want one for a release", component, files, err)
		}
		known := map[string]bool{}
		for _, file := range files {
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, flag := range strings.Fields(string(content)) {
				known[flag] = true
				if _, why := RightOfFlag(component, flag); strings.HasSuffix(why, "look for a typing error") {
					t.Errorf("%s: %s stands in no list", file, flag)
				}
			}
		}
		var listed []string
		for _, list := range []string{rule.tuning, rule.admin, rule.decided} {
			for _, flag := range strings.Fields(list) {
				if slices.Contains(listed, flag) {
					t.Errorf("%s: %s stands in two lists", component, flag)
				}
				listed = append(listed, flag)
				if !known[flag] {
					t.Errorf("%s: no release has %s", component, flag)
				}
			}
		}
	}
}

func TestWhatOnlyAdministratorsMayWrite(t *testing.T) {
	with := func(change func(*Cluster)) *Cluster {
		c := &Cluster{}
		change(c)
		return c
	}
	args := func(pairs ...string) *Cluster {
		return with(func(c *Cluster) {
			c.Spec.APIServer.ExtraArgs = map[string]string{}
			for i := 0; i < len(pairs); i += 2 {
				c.Spec.APIServer.ExtraArgs[pairs[i]] = pairs[i+1]
			}
		})
	}
	kubelet := func(json string) *Cluster {
		return with(func(c *Cluster) { c.Spec.Kubelet.Config = &runtime.RawExtension{Raw: []byte(json)} })
	}
	for _, test := range []struct {
		name     string
		now, was *Cluster
		want     string
	}{
		{"a size", args("max-requests-inflight", "800"), nil, ""},
		{"feature gates", args("feature-gates", "X=true"), nil, "spec.apiServer.extraArgs[feature-gates]"},
		{"another size beside them", args("feature-gates", "X=true", "event-ttl", "2h"), args("feature-gates", "X=true"), ""},
		{"other feature gates", args("feature-gates", "X=false"), args("feature-gates", "X=true"), "spec.apiServer.extraArgs[feature-gates]"},
		{"feature gates are taken out", args(), args("feature-gates", "X=true"), "spec.apiServer.extraArgs[feature-gates]"},
		{"how much is logged: at 8, answers with their content", args("v", "8"), nil, "spec.apiServer.extraArgs[v]"},
		{"what nobody may set", args("token-auth-file", "/x"), nil, "spec.apiServer.extraArgs[token-auth-file]"},
		{"pods of a node", kubelet(`{"maxPods": 50, "evictionHard": {"memory.available": "200Mi"}}`), nil, ""},
		{"what pods may change of the kernel", kubelet(`{"maxPods": 50, "allowedUnsafeSysctls": ["kernel.*"]}`), kubelet(`{"maxPods": 20}`), "spec.kubelet.config.allowedUnsafeSysctls"},
		{"no object", kubelet(`[]`), nil, "spec.kubelet.config"},
	} {
		var got []string
		for _, path := range AdminFields(test.now, test.was) {
			got = append(got, path.String())
		}
		if strings.Join(got, " ") != test.want {
			t.Errorf("%s: %v, want %q", test.name, got, test.want)
		}
	}
}

func TestFlagsThatNobodyMaySet(t *testing.T) {
	c := &Cluster{}
	c.Spec.Version = "v1.37.2"
	c.Name = "lab"
	c.Spec.Etcd.ExtraArgs = map[string]string{"config-file": "/x", "--v": "1", "experimental-initial-corrupt-check": "true", "max-request-bytes": "1"}
	c.Spec.Scheduler.ExtraArgs = map[string]string{"kubeconfig": "/x"}
	var got []string
	for _, err := range validateExtraArgs(c) {
		got = append(got, err.Error())
	}
	want := []string{
		"spec.scheduler.extraArgs[kubeconfig]: Forbidden: Coldrack decides this flag: other parts of the cluster rely on it",
		"spec.etcd.extraArgs[--v]: Forbidden: write flags without dashes",
		"spec.etcd.extraArgs[config-file]: Forbidden: config-file would replace every other flag",
		"spec.etcd.extraArgs[experimental-initial-corrupt-check]: Forbidden: experimental-initial-corrupt-check has another name: leave experimental- out, or use feature-gates",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
