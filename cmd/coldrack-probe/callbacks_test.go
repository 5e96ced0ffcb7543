package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestCallbacks(t *testing.T) {
	server := httptest.NewServer(callbacks(Identity{Pod: "p", Node: "n1"}))
	defer server.Close()
	for name, test := range map[string]struct {
		method, path, body string
		status             int
		want               string
	}{
		"an object is changed":              {"POST", "/mutate?timeout=10s", `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u1","object":{"kind":"ConfigMap"}}}`, 200, `"response":{"uid":"u1","allowed":true,"patchType":"JSONPatch"`},
		"a review without a request":        {"POST", "/mutate", `{"kind":"AdmissionReview"}`, 400, "has no request"},
		"something else":                    {"POST", "/mutate", `hello`, 400, "want an AdmissionReview"},
		"the API has no kinds":              {"GET", "/apis/verify.coldrack.dev/v1", "", 200, `"resources":[]`},
		"the API says who answers for whom": {"GET", "/apis/verify.coldrack.dev/v1/whoami", "", 200, `"kind":"Identity","apiVersion":"verify.coldrack.dev/v1","user":"admin","pod":"p","node":"n1"`},
		"an API server asks for more":       {"GET", "/openapi/v2", "", 404, ""},
		"API servers cannot make it check":  {"GET", "/check?target=tcp://127.0.0.1:1", "", 404, ""},
	} {
		request, err := http.NewRequest(test.method, server.URL+test.path, strings.NewReader(test.body))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("X-Remote-User", "admin")
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		var body strings.Builder
		_ = response.Write(&body)
		if response.StatusCode != test.status || !strings.Contains(body.String(), test.want) {
			t.Errorf("%s: %s, want %d and %q", name, body.String(), test.status, test.want)
		}
	}
}

func TestThePatchNamesTheNode(t *testing.T) {
	recorder := httptest.NewRecorder()
	mutate(recorder, httptest.NewRequest("POST", "/mutate", strings.NewReader(`{"request":{"uid":"u"}}`)), Identity{Node: "n1"})
	var review admissionReview
	if err := json.Unmarshal(recorder.Body.Bytes(), &review); err != nil {
		t.Fatal(err)
	}
	if patch := string(review.Response.Patch); patch != `[{"op":"add","path":"/data","value":{"answered-by":"n1"}}]` || review.Request != nil {
		t.Errorf("review %+v, patch %s", review, patch)
	}
}

func TestReport(t *testing.T) {
	answers := 0
	late := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if answers++; answers == 1 {
			http.Error(w, "not yet", http.StatusServiceUnavailable)
		}
	}))
	defer late.Close()
	file := filepath.Join(t.TempDir(), "report")
	t.Setenv("COLDRACK_PROBE_REPORT", file)
	read := func(within string, targets ...string) []Result {
		t.Helper()
		var said strings.Builder
		if code := run(append([]string{"report", within}, targets...), &said, &said); code != exitOK {
			t.Fatalf("ends with %d: %s", code, said.String())
		}
		text, err := os.ReadFile(file)
		var results []Result
		if err != nil || json.Unmarshal(text, &results) != nil || len(results) != len(targets) {
			t.Fatalf("report %s: %v", text, err)
		}
		return results
	}
	if results := read("5m", late.URL, "dns:localhost"); !results[0].OK || !results[1].OK || results[0].Target != late.URL || answers != 2 {
		t.Errorf("a target that is good the second time: %+v", results)
	}
	if results := read("0s", "tcp://127.0.0.1:1"); results[0].OK || !strings.Contains(results[0].Error, "refused") {
		t.Errorf("a target that is never good: %+v", results)
	}
	for _, arguments := range [][]string{{"report", "soon", "dns:a"}, {"report", "1h", "dns:a"}, {"report", "1s", "file:///etc/passwd"}, {"report", "1s"}} {
		var said strings.Builder
		if code := run(arguments, &said, &said); code != exitUsage {
			t.Errorf("%q ends with %d: %s", arguments, code, said.String())
		}
	}
}

func TestReportsFitIntoAPodsStatus(t *testing.T) {
	var results []Result
	for i := range 8 {
		results = append(results, Result{Target: fmt.Sprintf("tcp://10.96.0.%d:443", i), Error: strings.Repeat("ü", 3000)})
	}
	text, err := encodeReport(results)
	var read []Result
	if err != nil || len(text) > maxReport || json.Unmarshal(text, &read) != nil || !strings.HasPrefix(read[7].Error, "üü") || read[7].Target != "tcp://10.96.0.7:443" {
		t.Errorf("%d bytes, %v: %s", len(text), err, text)
	}
	if _, err := encodeReport(make([]Result, 1000)); err == nil {
		t.Error("no error for what never fits")
	}
}

// selfSigned makes a certificate and its key for a service, as PEM.
func selfSigned(t *testing.T, name string) (certificate, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

func TestAPIServersAreAnsweredByACertificate(t *testing.T) {
	const service = "coldrack-probe.coldrack-verify.svc"
	certificate, key := selfSigned(t, service)
	environment := map[string]string{"COLDRACK_PROBE_LISTEN": "127.0.0.1:0", "COLDRACK_PROBE_LISTEN_TLS": "127.0.0.1:0",
		"COLDRACK_PROBE_CERTIFICATE": string(certificate), "COLDRACK_PROBE_KEY": string(key)}
	endpoints, err := endpointsOf(func(name string) string { return environment[name] }, Identity{Node: "n1"})
	if err != nil || len(endpoints) != 2 {
		t.Fatalf("%d endpoints: %v", len(endpoints), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	listening, ended := make(chan net.Addr, 2), make(chan error, 1)
	go func() { ended <- serve(ctx, endpoints, func(address net.Addr) { listening <- address }) }()
	checks, calls := <-listening, <-listening
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(certificate)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: service}}}
	for url, want := range map[string]string{
		"https://" + calls.String() + "/apis/verify.coldrack.dev/v1/whoami": `"node":"n1"`,
		"http://" + checks.String() + "/whoami":                             `"node":"n1"`,
	} {
		response, err := client.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || !strings.Contains(string(body), want) {
			t.Errorf("%s: %s, error %v", url, body, err)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("serve does not end well: %v", err)
	}
}

func TestServeEndsWhenAnAddressIsTaken(t *testing.T) {
	taken := httptest.NewServer(http.NotFoundHandler())
	defer taken.Close()
	err := serve(t.Context(), []endpoint{{address: "127.0.0.1:0"}, {address: taken.Listener.Addr().String()}}, func(net.Addr) {})
	if err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("error %v", err)
	}
}

func TestEndpoints(t *testing.T) {
	environment := map[string]string{}
	getenv := func(name string) string { return environment[name] }
	if endpoints, err := endpointsOf(getenv, Identity{}); err != nil || len(endpoints) != 1 || endpoints[0].address != ":8080" {
		t.Errorf("without a certificate: %+v, %v", endpoints, err)
	}
	environment["COLDRACK_PROBE_CERTIFICATE"] = "not PEM"
	if _, err := endpointsOf(getenv, Identity{}); err == nil || !strings.Contains(err.Error(), "COLDRACK_PROBE_CERTIFICATE") {
		t.Errorf("a certificate that is none: %v", err)
	}
}
