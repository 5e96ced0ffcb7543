package kubeapi

import (
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/test/require"
)

// Each flag of the programs at hand is in the lists that say who may set it.
func TestEveryFlagOfThePrograms(t *testing.T) {
	require.Need(t, "etcd", "kube-apiserver")
	flag := regexp.MustCompile(`(?m)^ +(?:-[a-z], )?--([a-zA-Z0-9-]+)`)
	for _, program := range []v1alpha1.Component{v1alpha1.ComponentAPIServer, v1alpha1.ComponentEtcd} {
		help, err := exec.Command(string(program), "--help").CombinedOutput()
		check(t, err)
		found := flag.FindAllStringSubmatch(string(help), -1)
		if len(found) < 50 {
			t.Errorf("%s: only %d flags found in its help", program, len(found))
		}
		for _, f := range found {
			if _, why := v1alpha1.RightOfFlag(program, f[1]); strings.HasSuffix(why, "look for a typing error") {
				t.Errorf("%s has flag %s, which is in no list of api/v1alpha1; run hack/flags.sh", program, f[1])
			}
		}
	}
}
