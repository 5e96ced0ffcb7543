package follow

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/lab/rehearse"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

// bootedAt is a machine that booted some seconds after noon, and was ready some seconds after that, or is not yet.
func bootedAt(name string, boot, ready int) *v1alpha1.Machine {
	m := &v1alpha1.Machine{}
	m.Name = name
	at := func(s int) metav1.Time { return metav1.NewTime(noon.Add(time.Duration(s) * time.Second)) }
	m.Status.Boots = []v1alpha1.BootRecord{{At: at(boot + 1000), Action: v1alpha1.BootLocalDisk}, {At: at(boot), Action: v1alpha1.BootDiscover}}
	m.Status.Phase, m.Status.PhaseSince = v1alpha1.PhaseInstalling, new(at(boot))
	if ready > 0 {
		m.Status.Phase, m.Status.PhaseSince = v1alpha1.PhaseReady, new(at(boot+ready))
	}
	return m
}

func TestWatchBesideARehearsal(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "rehearsed.json")
	text, err := json.Marshal(&rehearse.Result{Machines: 4, Ready: 4, FinishedAt: 20 * time.Second, Arrivals: []rehearse.Arrival{{At: 10 * time.Second, Ready: 2}, {At: 20 * time.Second, Ready: 4}}})
	if err != nil {
		t.Fatal(err)
	}
	empty, other := filepath.Join(dir, "empty"), filepath.Join(dir, "other")
	for name, content := range map[string][]byte{file: text, empty: nil, other: []byte("kind: Machine\n")} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, bad := range []string{empty, other, filepath.Join(dir, "missing")} {
		if _, err := ReadRehearsal(bad, noon); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if r, err := ReadRehearsal("", noon); r != nil || err != nil {
		t.Errorf("no file: %v, %v", r, err)
	}
	r, err := ReadRehearsal(file, noon)
	if err != nil {
		t.Fatal(err)
	}

	machines := map[string]*v1alpha1.Machine{}
	for _, m := range []*v1alpha1.Machine{bootedAt("a", 0, 30), bootedAt("b", 1, 30), bootedAt("c", 2, 30), bootedAt("d", 3, 0), bootedAt("yesterday", -86400, 0)} {
		machines[m.Name] = m
	}
	var out bytes.Buffer
	now := noon.Add(40 * time.Second)
	show := &logDisplay{out: &out, start: noon, now: func() time.Time { return now }, rehearsed: r}
	show.draw(machines, "")
	now = now.Add(time.Second)
	show.draw(machines, "") // too soon to say it again
	now = now.Add(30 * time.Second)
	show.draw(machines, "")
	now = now.Add(30 * time.Second)
	show.draw(machines, "") // d was told of
	want := `   40.0s  -  3 of 4 ready after 40.0 s; rehearsed: 4, and 3 after 20.0 s
   71.0s  -  3 of 4 ready after 71.0 s; rehearsed: 4, and 3 after 20.0 s
   71.0s  d  straggler: 68.0 s since its boot; the others take 30.0 s here, and the slowest of the rehearsal took 1.0 times the usual
  101.0s  -  3 of 4 ready after 101.0 s; rehearsed: 4, and 3 after 20.0 s
`
	if out.String() != want {
		t.Errorf("the log says\n%swant\n%s", out.String(), want)
	}
}
