package rack

import (
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
)

// rotating is a cluster whose keys are replaced while a client writes and reads.
type rotating struct {
	*Rack
	inside *Client
}

func newRotating(t *testing.T) *rotating {
	if os.Getenv("COLDRACK_RACK_KEYS") == "" {
		t.Skip("runs with: make rack-keys")
	}
	t.Parallel()
	r := New(t, Options{})
	r.Cluster(Size{Etcd: 3, ControlPlanes: 2, Workers: 1}, func(o *ClusterObjects) {
		o.Cluster.Spec.Topology = v1alpha1.TopologyCustom // that of production wants a virtual IP
		for i := range o.Groups {
			o.Groups[i].Spec.Rollout.HealthyFor = new(seconds(1))
		}
	})
	r.PowerOn()
	r.AwaitReady()
	return &rotating{r, r.ClientAtBalancer("worker-1")}
}

// step is a part of a test, in which no request may be lost.
func (r *rotating) step(t *testing.T, name string, do func(t *testing.T)) {
	t.Helper()
	if !t.Run(name, do) {
		t.FailNow()
	}
	l := r.inside.Loss()
	t.Logf("%s: %s", name, l)
	if l.Lost > 0 {
		t.Errorf("%s: %d requests were lost: %v", name, l.Lost, l.Last)
	}
}

func (r *rotating) end(t *testing.T) {
	r.AwaitReady()
	t.Logf("through the balancer: %s", r.inside.Stop())
	r.tellHistory()
}

// TestAuthoritiesRotate replaces the authorities of a cluster that runs, one after the other. What the old ones certified is worth nothing
// afterwards.
func TestAuthoritiesRotate(t *testing.T) {
	r := newRotating(t)
	r.step(t, "the authority of etcd", func(t *testing.T) {
		old := r.keep("control-1", "apiserver-etcd-client.crt", "apiserver-etcd-client.key")
		if out, err := r.askEtcd(old); err != nil {
			t.Errorf("before: %v %s", err, out)
		}
		r.rotate("etcd-ca")
		r.awaitStage("etcd-ca", v1alpha1.RotationDone, "")
		if out, err := r.askEtcd(old); err == nil {
			t.Errorf("etcd lets the old certificate in: %s", out)
		}
		if out, err := r.askEtcd(filepath.Join(r.Machine("control-1").Disk(), "etc/kubernetes/pki")); err != nil {
			t.Errorf("and the new one: %v %s", err, out)
		}
	})
	r.step(t, "the authority of extension API servers", func(t *testing.T) {
		old, err := os.ReadFile(filepath.Join(r.Machine("control-1").Disk(), "etc/kubernetes/pki/front-proxy-ca.crt"))
		if err != nil {
			t.Fatal(err)
		}
		r.rotate("front-proxy-ca")
		r.awaitStage("front-proxy-ca", v1alpha1.RotationDone, "")
		told := r.Kubectl("get", "-n", "kube-system", "configmap", "extension-apiserver-authentication", "-o", `jsonpath={.data.requestheader-client-ca-file}`)
		if strings.Contains(told, string(old)) || strings.Count(told, "BEGIN CERTIFICATE") != 1 {
			t.Errorf("extension API servers are told of\n%s", told)
		}
	})
	r.step(t, "the cluster's authority", func(t *testing.T) {
		r.rotate("ca", "--hold")
		r.awaitStage("ca", v1alpha1.RotationPublish, "held before stage Swap")
		r.FetchKubeconfig() // which knows both
		r.inside.Reconnect()
		r.rotate("ca", "--continue")
		r.awaitStage("ca", v1alpha1.RotationSwap, "held before stage Drop")
		old := r.FetchKubeconfig() // of the new one
		r.inside.Reconnect()
		r.rotate("ca", "--continue")
		r.awaitStage("ca", v1alpha1.RotationDone, "")
		r.inside.AwaitAnswers(20)
		if told := r.Kubectl("get", "-n", "kube-system", "configmap", "extension-apiserver-authentication", "-o", `jsonpath={.data.client-ca-file}`); strings.Count(told, "BEGIN CERTIFICATE") != 1 {
			t.Errorf("extension API servers are told of\n%s", told)
		}
		for _, name := range []string{"control-1", "control-2"} {
			address := net.JoinHostPort(r.Machine(name).Address(), apiPort)
			out, err := r.desk.Try(t.Context(), r.programs.kubectl, "--kubeconfig", old, "--server", "https://"+address, "get", "nodes")
			if err == nil || !strings.Contains(out, "Unauthorized") && !strings.Contains(out, "must be logged in") && !strings.Contains(out, "provide credentials") {
				t.Errorf("%s answers a certificate of the old authority: %v %s", name, err, out)
			}
		}
	})
	if out, err := r.Server().Try("cluster", "rotate", r.cluster, "ca", "--back"); err == nil || !strings.Contains(out, "nothing to take back") {
		t.Errorf("back, when it is done: %v %s", err, out)
	}
	r.end(t)
}

// TestKeysRotate replaces the keys of a cluster that runs: one is taken back first, and the server is killed in the middle.
func TestKeysRotate(t *testing.T) {
	r := newRotating(t)
	r.Kubectl("create", "secret", "generic", "treasure", "--from-literal=gold=much")
	r.step(t, "encryption is taken back", func(t *testing.T) {
		r.rotate("encryption", "--hold")
		r.awaitStage("encryption", v1alpha1.RotationAccept, "held before stage Swap")
		if out, err := r.Server().Try("cluster", "rotate", r.cluster, "ca"); err == nil || !strings.Contains(out, "only one key is rotated at a time") {
			t.Errorf("two at once: %v %s", err, out)
		}
		r.rotate("encryption", "--continue")
		r.awaitStage("encryption", v1alpha1.RotationSwap, "held before stage Drop")
		if stored := r.stored("treasure"); !strings.HasPrefix(stored, "k8s:enc:secretbox:v1:coldrack-2:") {
			t.Errorf("written with the new key, it is stored as %.40q", stored)
		}
		r.rotate("encryption", "--back")
		r.awaitStage("encryption", v1alpha1.RotationTakenBack, "")
		if stored := r.stored("treasure"); !strings.HasPrefix(stored, "k8s:enc:secretbox:v1:coldrack-1:") {
			t.Errorf("taken back, it is stored as %.40q", stored)
		}
	})
	r.step(t, "encryption, and the server dies", func(t *testing.T) {
		r.rotate("encryption")
		r.awaitStage("encryption", v1alpha1.RotationSwap, "")
		r.Server().Restart()
		r.awaitStage("encryption", v1alpha1.RotationDone, "")
		if stored := r.stored("treasure"); !strings.HasPrefix(stored, "k8s:enc:secretbox:v1:coldrack-2:") {
			t.Errorf("it is stored as %.40q", stored)
		}
		if gold := r.Kubectl("get", "secret", "treasure", "-o", "jsonpath={.data.gold}"); gold != base64.StdEncoding.EncodeToString([]byte("much")) {
			t.Errorf("it is %s", gold)
		}
	})
	r.step(t, "the key of service accounts", func(t *testing.T) {
		bound := strings.TrimSpace(r.Kubectl("create", "token", "default", "--duration=2h"))
		kept := r.keepToken("robot")
		r.rotate("service-account", "--token-lifetime", "2s")
		r.awaitStage("service-account", v1alpha1.RotationDone, "")
		for name, token := range map[string]string{"a bound token": bound, "a token that was copied from its Secret": kept} {
			if code := r.statusOf(token); code != "401" {
				t.Errorf("%s of the old key is answered %s", name, code)
			}
		}
		if next := r.token("robot"); next == kept || r.statusOf(next) != "403" {
			t.Errorf("the token in the Secret was not signed anew: %s", r.statusOf(next))
		}
		if named := r.rotation().Tokens; len(named) != 1 || named[0] != "default/robot" {
			t.Errorf("people are told of %q", named)
		}
	})
	r.end(t)
}

func (r *Rack) rotate(args ...string) {
	r.t.Helper()
	r.Server().Run(append([]string{"cluster", "rotate", r.cluster}, args...)...)
}

func (r *Rack) rotation() *v1alpha1.RotationStatus {
	r.t.Helper()
	c := &v1alpha1.Cluster{}
	if err := r.server.Get(r.cluster, c); err != nil || c.Status.Rotation == nil {
		r.t.Fatalf("there is no rotation: %v", err)
	}
	return c.Status.Rotation
}

// awaitStage waits until a rotation is in a stage, and says something.
func (r *Rack) awaitStage(key v1alpha1.RotatedKey, stage v1alpha1.RotationStage, message string) {
	r.t.Helper()
	r.Await(fmt.Sprintf("%s is in stage %s", key, stage), func() (bool, string) {
		c := &v1alpha1.Cluster{}
		if err := r.server.Get(r.cluster, c); err != nil {
			return false, err.Error()
		}
		seen := c.Status.Message
		is := c.Status.Rotation
		if is != nil {
			seen = fmt.Sprintf("%s %s %s; %s", is.Key, is.Stage, is.Message, seen)
		}
		open := c.WantedRotation() != nil && (is == nil || is.ID != c.Spec.Rotation.ID) // it has not begun
		return !open && is != nil && is.Key == key && is.Stage == stage && strings.Contains(is.Message, message), seen
	})
}

// stored is how etcd holds a Secret of namespace default.
func (r *Rack) stored(name string) string {
	r.t.Helper()
	request := fmt.Sprintf(`{"key":%q}`, base64.StdEncoding.EncodeToString([]byte("/registry/secrets/default/"+name)))
	out, err := r.etcd(filepath.Join(r.Machine("control-1").Disk(), "etc/kubernetes/pki"), "/v3/kv/range", request)
	if err != nil {
		r.t.Fatalf("ask etcd: %v %s", err, out)
	}
	_, rest, _ := strings.Cut(out, `"value":"`)
	value, _, _ := strings.Cut(rest, `"`)
	content, err := base64.StdEncoding.DecodeString(value)
	if err != nil {
		r.t.Fatalf("etcd says %s", out)
	}
	return string(content)
}

// askEtcd by a client certificate that lies in a folder, in which the present authority is looked for at control-1.
func (r *Rack) askEtcd(folder string) (string, error) {
	return r.etcd(folder, "/v3/maintenance/status", "{}")
}

func (r *Rack) etcd(folder, path, request string) (string, error) {
	return r.Machine("control-1").Run("curl", "--silent", "--fail", "--max-time", "10", "--insecure", "--cert", filepath.Join(folder, "apiserver-etcd-client.crt"),
		"--key", filepath.Join(folder, "apiserver-etcd-client.key"), "--data", request, "https://"+net.JoinHostPort(r.Machine("etcd-1").Address(), "2379")+path)
}

// keep copies files of a machine's /etc/kubernetes/pki into a folder of the test.
func (r *Rack) keep(machine string, files ...string) (folder string) {
	r.t.Helper()
	folder = r.t.TempDir()
	for _, f := range files {
		content, err := os.ReadFile(filepath.Join(r.Machine(machine).Disk(), "etc/kubernetes/pki", f))
		if err == nil {
			err = os.WriteFile(filepath.Join(folder, f), content, 0o600)
		}
		if err != nil {
			r.t.Fatal(err)
		}
	}
	return folder
}

// keepToken makes a Secret with a token of the service account default, and returns the token.
func (r *Rack) keepToken(name string) string {
	r.t.Helper()
	api, err := r.API()
	if err != nil {
		r.t.Fatal(err)
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{corev1.ServiceAccountNameKey: "default"}}, Type: corev1.SecretTypeServiceAccountToken}
	if _, err := api.CoreV1().Secrets(metav1.NamespaceDefault).Create(r.t.Context(), secret, metav1.CreateOptions{}); err != nil {
		r.t.Fatal(err)
	}
	token := ""
	r.Await("the token of "+name, func() (bool, string) { token = r.token(name); return token != "", "" })
	return token
}

func (r *Rack) token(name string) string {
	r.t.Helper()
	text := r.Kubectl("get", "secret", name, "-o", "jsonpath={.data.token}")
	token, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		r.t.Fatalf("token of %s: %s", name, text)
	}
	return string(token)
}

// statusOf is how the API answers a token that may do nothing, or that nobody knows.
func (r *Rack) statusOf(token string) string {
	r.t.Helper()
	out, err := r.desk.Try(r.t.Context(), "curl", "--silent", "--insecure", "--max-time", "10", "--output", "/dev/null", "--write-out", "%{http_code}",
		"--header", "Authorization: Bearer "+token, "https://"+net.JoinHostPort(r.Machine("control-1").Address(), apiPort)+"/api/v1/nodes")
	if err != nil {
		r.t.Fatalf("curl: %v %s", err, out)
	}
	return strings.TrimSpace(out)
}
