package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"coldrack.dev/test/require"
)

func ask(t *testing.T, probe *httptest.Server, query url.Values) (int, Result) {
	t.Helper()
	response, err := http.Get(probe.URL + "/check?" + query.Encode())
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var result Result
	if err := json.NewDecoder(response.Body).Decode(&result); err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, result
}

func TestCheck(t *testing.T) {
	plain := http.NewServeMux()
	plain.HandleFunc("/whoami", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"pod":"b","node":"n2"}`) })
	plain.HandleFunc("/long", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, strings.Repeat("x", 3*maxBody)) })
	plain.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/whoami", http.StatusFound) })
	plain.HandleFunc("/hang", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	other := httptest.NewServer(plain)
	defer other.Close()
	secure := httptest.NewTLSServer(plain)
	defer secure.Close()
	const nobody = "127.0.0.1:1" // the kernel gives this port to nobody who asks for any

	me := Identity{Pod: "a", Namespace: "coldrack-verify", Node: "n1"}
	probe := httptest.NewServer(handler(me))
	defer probe.Close()
	host := strings.TrimPrefix(other.URL, "http://")

	for name, test := range map[string]struct {
		query  map[string]string
		status int
		ok     bool
		want   string // part of the error, or of the body
		check  func(Result) bool
	}{
		"another pod's name is fetched":                {map[string]string{"target": other.URL + "/whoami"}, 200, true, `"node":"n2"`, func(r Result) bool { return r.Status == 200 && r.Addresses[0] == host }},
		"what is expected is there":                    {map[string]string{"target": other.URL + "/whoami", "body": `"pod":"b"`}, 200, true, "", nil},
		"what is expected is missing":                  {map[string]string{"target": other.URL + "/whoami", "body": `"pod":"c"`}, 200, false, "does not contain", nil},
		"only the beginning of a long answer is kept":  {map[string]string{"target": other.URL + "/long"}, 200, true, "xxx", func(r Result) bool { return len(r.Body) == maxBody }},
		"an error of the other side is named":          {map[string]string{"target": other.URL + "/none"}, 200, false, "404", func(r Result) bool { return r.Status == 404 }},
		"a redirect is not followed":                   {map[string]string{"target": other.URL + "/moved"}, 200, false, "302", nil},
		"a silent server is given up":                  {map[string]string{"target": other.URL + "/hang", "timeout": "50ms"}, 200, false, "no answer within 50ms", nil},
		"nobody listens":                               {map[string]string{"target": "http://" + nobody}, 200, false, "refused", nil},
		"an unknown certificate is refused":            {map[string]string{"target": secure.URL + "/whoami"}, 200, false, "certificate", nil},
		"an unknown certificate is accepted on demand": {map[string]string{"target": secure.URL + "/whoami", "insecure": "true"}, 200, true, "n2", nil},
		"a name is looked up":                          {map[string]string{"target": "dns:localhost"}, 200, true, "", func(r Result) bool { return slices.Contains(r.Addresses, "127.0.0.1") }},
		"a port answers":                               {map[string]string{"target": "tcp://" + host}, 200, true, "", func(r Result) bool { return r.Addresses[0] == host }},
		"a port does not answer":                       {map[string]string{"target": "tcp://" + nobody}, 200, false, "refused", nil},
		"no target":                                    {map[string]string{}, 400, false, "target is missing", nil},
		"a file is no target":                          {map[string]string{"target": "file:///etc/passwd"}, 400, false, "want http", nil},
		"a URL without a host":                         {map[string]string{"target": "http:///x"}, 400, false, "names no host", nil},
		"a port that is no number":                     {map[string]string{"target": "tcp://h"}, 400, false, "HOST:PORT", nil},
		"an endless timeout":                           {map[string]string{"target": other.URL, "timeout": "1h"}, 400, false, "at most 30s", nil},
		"a word that is no boolean":                    {map[string]string{"target": other.URL, "insecure": "please"}, 400, false, "insecure", nil},
	} {
		t.Run(name, func(t *testing.T) {
			query := url.Values{}
			for k, v := range test.query {
				query.Set(k, v)
			}
			status, result := ask(t, probe, query)
			if status != test.status || result.OK != test.ok {
				t.Fatalf("status %d, result %+v", status, result)
			}
			if !strings.Contains(result.Error+result.Body, test.want) || test.check != nil && !test.check(result) {
				t.Errorf("result %+v, want %q", result, test.want)
			}
			if result.From.Pod != "a" || result.Target != test.query["target"] {
				t.Errorf("result does not say who asked whom: %+v", result)
			}
		})
	}
}

// restricted is what the PodSecurity level of that name leaves a process: no user, no capability, nothing to gain.
var restricted = []string{"--reuid", "65532", "--regid", "65532", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"}

func TestBinaryIsSmallAndNeedsNothing(t *testing.T) {
	require.Need(t, "root", "setpriv")
	dir, err := os.MkdirTemp("/tmp", "coldrack-probe") // below t.TempDir only root may enter
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "probe")
	build := exec.Command("go", "build", "-trimpath", "-tags", "nethttpomithttp2", "-ldflags", "-s -w", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	info, err := os.Stat(binary)
	if err != nil {
		t.Fatal(err)
	}
	// A server of TLS beside the client, for what API servers call.
	if info.Size() > 6_600_000 {
		t.Errorf("the probe has %d bytes; every node pulls it", info.Size())
	}

	serve := exec.Command("setpriv", append(slices.Clone(restricted), binary, "serve")...)
	serve.Env = []string{"COLDRACK_PROBE_LISTEN=127.0.0.1:0", "POD_NAME=p", "NODE_NAME=n"}
	serve.Dir = "/"
	log, err := serve.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = serve.Process.Kill() }()
	said, err := bufio.NewReader(log).ReadString('\n')
	address, ok := strings.CutPrefix(strings.TrimSpace(said), "coldrack-probe: listening on ")
	if err != nil || !ok {
		t.Fatalf("the probe says %q: %v", said, err)
	}

	out, err := exec.Command("setpriv", append(slices.Clone(restricted), binary, "check", "http://"+address+"/whoami", "30s")...).Output()
	var result Result
	if err != nil || json.Unmarshal(out, &result) != nil || !strings.Contains(result.Body, `"pod":"p"`) || !strings.Contains(result.Body, `"node":"n"`) {
		t.Fatalf("no answer: %v: %s", err, out)
	}
	if err := exec.Command(binary, "check", "http://"+address+"/none").Run(); err == nil {
		t.Error("a failed check ends with 0")
	}
	if err := serve.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(log) // to its end, before Wait closes it
	if err := serve.Wait(); err != nil {
		t.Errorf("the probe did not end well when told to: %v: %s", err, rest)
	}
}

func FuzzParseCheck(f *testing.F) {
	for _, seed := range []string{"target=https://10.0.0.1:6443/x&timeout=2s&insecure=true", "target=dns:kubernetes.default", "target=tcp://10.0.0.1:443", "target=tcp://:443", "timeout=-1s&target=http://x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, query string) {
		values, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		if r, err := parseCheck(values); err == nil && (r.timeout <= 0 || r.timeout > maxTimeout || r.target == "") {
			t.Errorf("%q is taken as %+v", query, r)
		}
	})
}
