package kubeapi

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func serviceAt(port int32, addresses ...string) *corev1.Service {
	return &corev1.Service{Spec: corev1.ServiceSpec{ClusterIPs: addresses, Ports: []corev1.ServicePort{{Port: port}}}}
}

func TestHostPlan(t *testing.T) {
	api, service := serviceAt(443, "10.96.0.1", "fd00:96::1"), serviceAt(8080, "10.96.7.7")
	for name, test := range map[string]struct {
		ready bool
		want  []hostTarget
	}{
		"every service in every family": {true, []hostTarget{
			{checkHostAPI, "tcp://10.96.0.1:443"}, {checkHostAPI, "tcp://[fd00:96::1]:443"}, {checkHostDNS, "dns:kubernetes.default.svc.rack.local."},
			{checkHostService, "http://10.96.7.7:8080/healthz"}}},
		"no service that has no endpoint": {false, []hostTarget{
			{checkHostAPI, "tcp://10.96.0.1:443"}, {checkHostAPI, "tcp://[fd00:96::1]:443"}, {checkHostDNS, "dns:kubernetes.default.svc.rack.local."}}},
	} {
		if got := hostPlan(api, service, "rack.local", test.ready); !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}

func TestReadReport(t *testing.T) {
	terminated := func(code int32, reason, message string) corev1.PodStatus {
		return corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{State: corev1.ContainerState{
			Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Reason: reason, Message: message}}}}}
	}
	for name, test := range map[string]struct {
		status corev1.PodStatus
		ended  bool
		want   string // part of the error
	}{
		"a report":                   {terminated(0, "Completed", `[{"target":"dns:a.","ok":true,"seconds":0.5,"addresses":["10.96.0.10"]}]`), true, ""},
		"a program without reports":  {terminated(2, "Error", ""), true, "ended with 2 and without a report: Error"},
		"a program that was killed":  {terminated(137, "OOMKilled", "[{"), true, "ended with 137 and without a report: OOMKilled [{"},
		"a kubelet that refuses":     {corev1.PodStatus{Phase: corev1.PodFailed, Reason: "OutOfpods", Message: "Node has no room"}, true, "does not run the probe: OutOfpods Node has no room"},
		"an image that is not there": {corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "not found"}}}}}, false, "ImagePullBackOff not found"},
		"a pod that nobody has seen": {corev1.PodStatus{Phase: corev1.PodPending}, false, "Pending"},
	} {
		results, ended, err := readReport(&corev1.Pod{Status: test.status})
		if ended != test.ended || (test.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: ended %v, error %v, want %q", name, ended, err, test.want)
		}
		if err == nil && (len(results) != 1 || !results[0].OK || results[0].Target != "dns:a.") {
			t.Errorf("%s: %+v", name, results)
		}
	}
}

func TestHostChecks(t *testing.T) {
	plan := []hostTarget{{checkHostAPI, "tcp://10.96.0.1:443"}, {checkHostDNS, "dns:a."}, {checkHostService, "http://10.96.7.7:8080/healthz"}}
	good := func(target, address string) probeResult {
		return probeResult{Target: target, OK: true, Seconds: 0.25, Addresses: []string{address}}
	}
	bad := func(target, problem string) probeResult { return probeResult{Target: target, Error: problem} }
	services := []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}
	for name, test := range map[string]struct {
		options VerifyOptions
		results []probeResult
		check   string
		want    []string // parts of the error; none for a check that is good
	}{
		"what answers is told": {VerifyOptions{}, []probeResult{good("tcp://10.96.0.1:443", "10.96.0.1:443")}, checkHostAPI, nil},
		"no route": {VerifyOptions{ServiceNetworks: services}, []probeResult{bad("tcp://10.96.0.1:443", "dial tcp 10.96.0.1:443: connect: network is unreachable")}, checkHostAPI,
			[]string{"tcp://10.96.0.1:443: dial tcp 10.96.0.1:443: connect: network is unreachable", "n1 has no route to the service network 10.96.0.0/16", "ip route get 10.96.0.1", "ip route add 10.96.0.0/16 dev INTERFACE", "ip route show proto 67"}},
		"no route, and none of ours": {VerifyOptions{ServiceNetworks: services, ProxyNone: true}, []probeResult{bad("dns:a.", "lookup a. on 10.96.0.10:53: network is unreachable")}, checkHostDNS,
			[]string{"proxy none, what replaces kube-proxy"}},
		"a route without kube-proxy": {VerifyOptions{}, []probeResult{bad("http://10.96.7.7:8080/healthz", "dial tcp 10.96.7.7:8080: connect: no route to host")}, checkHostService,
			[]string{"n1 has a route, but kube-proxy there", "k8s-app=kube-proxy"}},
		"silence":                {VerifyOptions{}, []probeResult{bad("http://10.96.7.7:8080/healthz", "no answer within 4s: i/o timeout")}, checkHostService, []string{"kube-proxy there"}},
		"nobody listens":         {VerifyOptions{}, []probeResult{bad("tcp://10.96.0.1:443", "connect: connection refused")}, checkHostAPI, []string{"no endpoint that is ready"}},
		"another problem":        {VerifyOptions{}, []probeResult{bad("dns:a.", "lookup a.: no such host")}, checkHostDNS, []string{"dns:a.: lookup a.: no such host"}},
		"a report without it":    {VerifyOptions{}, nil, checkHostDNS, []string{"dns:a.: the probe's report does not have it"}},
		"what is good is not it": {VerifyOptions{}, []probeResult{good("dns:a.", "10.96.0.1"), bad("tcp://10.96.0.1:443", "x")}, checkHostDNS, nil},
	} {
		v := &verification{o: test.options}
		checks := v.hostChecks("n1", plan, test.results)
		i := slices.IndexFunc(checks, func(c hostCheck) bool { return c.Name == test.check })
		if len(checks) != 3 || i < 0 || checks[i].Target != "from n1" {
			t.Fatalf("%s: %+v", name, checks)
		}
		if c := checks[i]; len(test.want) == 0 && (c.err != nil || !strings.HasPrefix(c.Detail, "10.96.0.1") || c.Duration != 250*time.Millisecond) {
			t.Errorf("%s: %+v", name, c)
		}
		for _, want := range test.want {
			if c := checks[i]; c.err == nil || !strings.Contains(c.err.Error(), want) {
				t.Errorf("%s: error %v, want %q", name, c.err, want)
			}
		}
	}
	if checks := (&verification{}).hostChecks("n1", plan[:2], nil); len(checks) != 2 {
		t.Errorf("checks that were not planned: %+v", checks)
	}
}

func TestReadAvailable(t *testing.T) {
	for status, want := range map[string]string{"True": "", "False": "not Available: FailedDiscoveryCheck: dial tcp", "": "no API server has said yet"} {
		object := &unstructured.Unstructured{Object: map[string]any{}}
		if status != "" {
			check(t, unstructured.SetNestedSlice(object.Object, []any{map[string]any{"type": "Other", "status": "True"},
				map[string]any{"type": "Available", "status": status, "reason": "FailedDiscoveryCheck", "message": "dial tcp"}}, "status", "conditions"))
		}
		if _, err := readAvailable(object); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("status %q: error %v, want %q", status, err, want)
		}
	}
}

func TestReadAggregated(t *testing.T) {
	for name, test := range map[string]struct {
		status int
		body   string
		detail string
		err    error
	}{
		"the probe's answer":      {200, `{"kind":"Identity","node":"n1","user":"coldrack"}`, "answered on n1, for coldrack", nil},
		"no user":                 {200, `{"kind":"Identity","node":"n1"}`, "", errors.New("does not say for whom it asks")},
		"somebody else's answer":  {200, `{"kind":"APIResourceList"}`, "", errors.New("not the probe's: {")},
		"a Status":                {503, `{"kind":"Status","message":"service unavailable"}`, "", errors.New("503 service unavailable")},
		"an API server's own way": {503, "error trying to reach service: dial tcp\n", "", errors.New("503 error trying to reach service: dial tcp")},
	} {
		detail, err := readAggregated(test.status, []byte(test.body))
		if detail != test.detail || (err == nil) != (test.err == nil) || err != nil && !strings.Contains(err.Error(), test.err.Error()) {
			t.Errorf("%s: %q, error %v, want %v", name, detail, err, test.err)
		}
	}
}

func TestWebhookIsForOneObjectOnly(t *testing.T) {
	callee, err := newCallee(time.Now())
	check(t, err)
	w := webhookConfiguration(callee, "run").Webhooks[0]
	if w.NamespaceSelector.MatchLabels["kubernetes.io/metadata.name"] != verifyNamespace || w.ObjectSelector.MatchLabels[labelRun] != "run" {
		t.Errorf("it is for other objects, too: %+v", w)
	}
	if len(w.Rules) != 1 || !slices.Equal(w.Rules[0].Resources, []string{"configmaps"}) || !slices.Equal(w.Rules[0].APIGroups, []string{""}) {
		t.Errorf("it is for other kinds, too: %+v", w.Rules)
	}
}

func TestCalleeShowsWhoItIs(t *testing.T) {
	callee, err := newCallee(time.Now())
	check(t, err)
	pair, err := tls.X509KeyPair(callee.certificate, callee.key)
	check(t, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(callee.authority)
	verify := func(name string, at time.Time) error {
		_, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
		return err
	}
	const service = "coldrack-probe.coldrack-verify.svc"
	check(t, verify(service, time.Now()))
	check(t, verify(service, time.Now().Add(-time.Hour))) // by an API server whose clock is late
	if verify("kubernetes.default.svc", time.Now()) == nil || verify(service, time.Now().Add(2*calleeLifetime)) == nil {
		t.Error("the certificate is good for another name or for ever")
	}
	if other, err := newCallee(time.Now()); err != nil || string(other.authority) == string(callee.authority) {
		t.Errorf("two verifications have the same authority: %v", err)
	}
}
