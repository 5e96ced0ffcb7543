package kubeapi

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func (c *testCluster) testFailover(t *testing.T) {
	first, second := c.servers()[0], c.servers()[1]
	t.Run("a client certificate is replaced before it expires", func(t *testing.T) {
		target, made := c.target(), 0
		issue := target.Certificate
		target.Certificate = func() (*tls.Certificate, error) {
			made++
			return issue()
		}
		connection, err := Connect(target)
		check(t, err)
		defer connection.Close()
		for range 2 {
			_, err := connection.Check(t.Context())
			check(t, err)
		}
		if left := time.Until(connection.renewAt); made != 1 || left < 39*time.Minute || left > 40*time.Minute {
			t.Errorf("%d certificates were made; the first, for an hour, is used for %s", made, left)
		}
		connection.renewAt = time.Now()
		_, err = connection.Check(t.Context())
		check(t, err)
		if made != 2 {
			t.Errorf("%d certificates were made, want 2", made)
		}
	})
	w := c.run(t, nil)
	using := func(server netip.AddrPort) func() (bool, string) {
		return func() (bool, string) {
			s := w.last()
			return s.Reachable && s.Server == server, fmt.Sprintf("%+v", s)
		}
	}
	eventually(t, "the first API server is in use", using(first))

	t.Run("a process that dies", func(t *testing.T) {
		c.kill("machine-01", "kube-apiserver")
		eventually(t, "the second takes over", using(second))
		// The watches work there.
		client := c.connect(second).Client()
		node, err := client.CoreV1().Nodes().Get(t.Context(), "node-01", metav1.GetOptions{})
		check(t, err)
		node.Spec.Unschedulable = true
		_, err = client.CoreV1().Nodes().Update(t.Context(), node, metav1.UpdateOptions{})
		check(t, err)
		eventually(t, "a change is seen", func() (bool, string) {
			s := w.last()
			return s.Nodes["node-01"].Unschedulable, fmt.Sprintf("%+v", s)
		})
	})
	t.Run("a machine that loses its power, and no other is left", func(t *testing.T) {
		c.rack.Run("ip", "link", "set", "port1", "down")
		eventually(t, "it says so", func() (bool, string) {
			s := w.last()
			problems := strings.Join(s.Problems, "\n")
			return !s.Reachable && strings.Contains(problems, "no API server of cluster rack is ready") &&
				strings.Contains(problems, first.String()) && strings.Contains(problems, second.String()) && len(s.Nodes) > 0, fmt.Sprintf("%+v", s)
		})
	})
	t.Run("one that comes back", func(t *testing.T) {
		c.start("machine-01", "kube-apiserver")
		eventually(t, "it goes on there", using(first))
		if out, err := c.kubectl("uncordon", "node-01"); err != nil {
			t.Fatal(out)
		}
		eventually(t, "a change is seen", func() (bool, string) {
			s := w.last()
			return !s.Nodes["node-01"].Unschedulable, fmt.Sprintf("%+v", s)
		})
		c.rack.Run("ip", "link", "set", "port1", "up")
	})
}

func TestWhatConnectRefuses(t *testing.T) {
	if _, err := Connect(Target{Cluster: "rack"}); err == nil || !strings.Contains(err.Error(), "cluster rack has no API server") {
		t.Errorf("error is %v", err)
	}
	if _, err := Connect(Target{Cluster: "rack", Servers: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:6443")}, CA: []byte("x")}); err == nil {
		t.Error("an authority that is none is taken")
	}
}
