// Package engines gives tests what a server can keep its kinds in beside its own store: a real etcd, and a
// Kubernetes-style API that knows none of our kinds.
package engines

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"coldrack.dev/test/require"
)

// startTime is for programs that answer within a second on an idle machine.
const startTime = 2 * time.Minute

// Etcd runs the etcd program until the test ends. kill ends it as a power cut would.
func Etcd(t *testing.T) (endpoint string, kill func()) {
	t.Helper()
	require.Need(t, "etcd")
	// It takes any ports that are free, and its log says which.
	const any = "http://127.0.0.1:0"
	cmd := exec.Command("etcd", "--data-dir", t.TempDir(), "--log-level", "info", "--logger", "zap", "--log-outputs", "stderr",
		"--listen-client-urls", any, "--advertise-client-urls", any,
		"--listen-peer-urls", any, "--initial-advertise-peer-urls", any, "--initial-cluster", "default="+any,
		"--enable-grpc-gateway=false") // it would look for the server at the port that was asked for
	log, err := cmd.StderrPipe()
	check(t, err)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	check(t, cmd.Start())
	serving, read := make(chan string, 1), make(chan struct{})
	go func() {
		defer close(read)
		followLog(log, serving)
	}()
	kill = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		<-read
		_ = cmd.Wait()
	})
	t.Cleanup(kill)
	var client string
	select {
	case address := <-serving:
		client = "http://" + address
	case <-read:
		t.Fatal("etcd ended at its start")
	case <-time.After(startTime):
		t.Fatalf("etcd does not serve after %s", startTime)
	}
	etcd, err := clientv3.New(clientv3.Config{Endpoints: []string{client}, Logger: zap.NewNop()})
	check(t, err)
	defer etcd.Close()
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	_, err = etcd.Get(ctx, "x")
	check(t, err)
	return client, kill
}

// followLog reads etcd's log to its end: it sends the address that clients are served at, and shows errors.
func followLog(log io.Reader, serving chan<- string) {
	for lines := bufio.NewScanner(log); lines.Scan(); {
		var line struct{ Level, Msg, Address string }
		if json.Unmarshal(lines.Bytes(), &line) != nil || line.Level == "error" || line.Level == "fatal" || line.Level == "panic" {
			fmt.Fprintln(os.Stderr, "etcd:", lines.Text())
			continue
		}
		if strings.HasPrefix(line.Msg, "serving client traffic") && line.Address != "" {
			select {
			case serving <- line.Address:
			default:
			}
		}
	}
	_, _ = io.Copy(io.Discard, log)
}

// leases stand in for the built-in kind that leaders are elected with.
const leases = `
metadata:
  name: leases.coordination.k8s.io
  annotations: {api-approved.kubernetes.io: "unapproved, stands in for the built-in kind in a test"}
spec:
  group: coordination.k8s.io
  scope: Namespaced
  names: {kind: Lease, listKind: LeaseList, plural: leases, singular: lease}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`

// Foreign makes the API that admin speaks to one of somebody else: it has Leases and none of our kinds.
func Foreign(t *testing.T, admin *rest.Config) {
	t.Helper()
	client, err := clientset.NewForConfig(admin)
	check(t, err)
	definitions := client.ApiextensionsV1().CustomResourceDefinitions()
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	ours, err := definitions.List(ctx, metav1.ListOptions{})
	check(t, err)
	for _, definition := range ours.Items {
		check(t, definitions.Delete(ctx, definition.Name, metav1.DeleteOptions{}))
	}
	lease := &apiextensionsv1.CustomResourceDefinition{}
	check(t, yaml.Unmarshal([]byte(leases), lease))
	_, err = definitions.Create(ctx, lease, metav1.CreateOptions{})
	check(t, err)
	for {
		left, err := definitions.List(ctx, metav1.ListOptions{})
		check(t, err)
		if len(left.Items) == 1 && established(&left.Items[0]) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func established(definition *apiextensionsv1.CustomResourceDefinition) bool {
	for _, condition := range definition.Status.Conditions {
		if condition.Type == apiextensionsv1.Established {
			return condition.Status == apiextensionsv1.ConditionTrue
		}
	}
	return false
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
