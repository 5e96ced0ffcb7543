package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/lab"
)

// foreignSetup is what somebody does by hand on a machine before "kubeadm join", in kubeadm's own way.
const foreignSetup = `set -eu
mkdir -p /etc/systemd/system/kubelet.service.d
cat >/etc/systemd/system/kubelet.service.d/10-kubeadm.conf <<'END'
[Service]
Environment="KUBELET_KUBECONFIG_ARGS=--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf"
Environment="KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml"
EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env
ExecStart=
ExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS
END
systemctl daemon-reload
systemctl restart systemd-modules-load systemd-sysctl
systemctl enable --now containerd kubelet
`

// TestAForeignMachineJoins has the one machine of a cluster, with flannel, joined by one that Coldrack installed but does
// not count among the cluster's: by hand, with nothing but real kubeadm, a token, and what kubeadm uploads.
func TestAForeignMachineJoins(t *testing.T) {
	needClusters(t)
	key, public := sshKey(t)
	r := newRack(t, fmt.Sprintf(segmentYAML, public), lab.Options{Machines: 2, Firmware: lab.UEFI, Memory: 3 * lab.GiB})
	r.sshKey = key
	r.noWayOut()
	c := r.bringUpChanged("solo", "    # tokenDiscovery: true", "    tokenDiscovery: true #", "--preset", "laptop", "--plugin", "flannel")
	own := c.machineWith(v1alpha1.RoleControlPlane)
	foreign := r.name(1)
	if foreign == own {
		foreign = r.name(2)
	}
	at := func(name string) string { return c.get(name).Spec.Network.Address }
	c.await(foreign, "Ready", 10*time.Minute, phase(v1alpha1.PhaseReady))

	// The programs, and how the container runtime finds images.
	archive := filepath.Join(c.dir, "programs.tar")
	if err := c.pipe(nil, archive, at(own), "tar -C / -c usr/bin/kubelet usr/bin/kubeadm usr/local/bin opt/cni/bin etc/containerd "+
		"etc/systemd/system/containerd.service etc/systemd/system/kubelet.service $(cd / && ls -d etc/modules-load.d/*kube* etc/sysctl.d/*kube* etc/modules-load.d/*coldrack* etc/sysctl.d/*coldrack* 2>/dev/null)"); err != nil {
		t.Fatal(err)
	}
	programs, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer programs.Close()
	if err := c.pipe(programs, "", at(foreign), "tar -C / -x"); err != nil {
		t.Fatal(err)
	}
	c.ssh(at(foreign), foreignSetup)
	join := strings.TrimSpace(c.ssh(at(own), "kubeadm token create --print-join-command 2>/dev/null"))
	if !strings.HasPrefix(join, "kubeadm join ") {
		t.Fatalf("kubeadm token create says: %s", join)
	}
	t.Log(c.ssh(at(foreign), join+" 2>&1"))

	node := c.get(foreign).Spec.Hostname
	for began := time.Now(); ; time.Sleep(2 * time.Second) {
		ready := c.nodes()
		if len(ready) == 2 {
			break
		}
		if time.Since(began) > 10*time.Minute {
			t.Fatalf("only %v are Ready; %s", ready, c.kubectl(time.Minute, "describe", "node", node))
		}
	}
	c.useIt()
	t.Log(c.kubectl(time.Minute, "get", "nodes", "-o", "wide"))
}

// pipe runs a command on a node with a file as its input, or its output.
func (r *rack) pipe(in *os.File, out, address, command string) error {
	return r.lab.Do(func() error {
		ssh := exec.Command("ssh", "-i", r.sshKey, "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no",
			"-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "root@"+address, command)
		if in != nil {
			ssh.Stdin = in
		}
		ssh.Stderr = os.Stderr
		if out != "" {
			file, err := os.Create(out)
			if err != nil {
				return err
			}
			defer file.Close()
			ssh.Stdout = file
		}
		if err := ssh.Run(); err != nil {
			return fmt.Errorf("%s on %s: %w", command, address, err)
		}
		return nil
	})
}
