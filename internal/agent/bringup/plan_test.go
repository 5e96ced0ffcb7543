package bringup

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"coldrack.dev/internal/agent/nodefile"
	"coldrack.dev/internal/contract/wire"
)

const etcdManifest = `apiVersion: v1
kind: Pod
metadata:
  annotations:
    kubeadm.kubernetes.io/etcd.advertise-client-urls: https://10.20.0.11:2379
  name: etcd
spec:
  containers:
  - name: etcd
    ports:
    - containerPort: 2381
      name: probe-port
`

const managerManifest = `apiVersion: v1
kind: Pod
metadata:
  labels:
    component: kube-controller-manager
  name: kube-controller-manager
spec:
  containers:
  - command:
    - kube-controller-manager
    - --controllers=*,bootstrapsigner,tokencleaner
    name: kube-controller-manager
`

const kubeletUnitText = `[Unit]
Description=kubelet
[Service]
ExecStart=/usr/bin/kubelet
[Install]
WantedBy=multi-user.target
`

const kubeletDropInText = `[Service]
Environment="KUBELET_KUBECONFIG_ARGS=--kubeconfig=/etc/kubernetes/kubelet.conf"
Environment="KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml"
ExecStart=
ExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS
`

func file(path string, mode uint32, text string) wire.NodeFile {
	return wire.NodeFile{Path: path, Mode: mode, Content: []byte(text)}
}

func folder(path string) wire.NodeFile { return wire.NodeFile{Path: path, Mode: 0o700, Dir: true} }

// controlPlane is a small plan with everything that a plan can have.
func (r *rig) controlPlane() *wire.NodePlan {
	r.t.Helper()
	ca, etcdCA := r.authority("kubernetes"), r.authority("etcd-ca")
	secret := file("/etc/kubernetes/pki/sa.key", 0o600, "the service account key")
	secret.Secret = true
	pki, state := "/etc/kubernetes/pki/", "/var/lib/coldrack/kubernetes/"
	return &wire.NodePlan{
		Cluster: "rack", NodeName: "node-01", KubernetesVersion: "v1.37.2", Address: "10.20.0.11",
		Programs: []wire.Program{
			r.program("kubelet", "/usr/bin/kubelet", bytes.Repeat([]byte("kubelet v1.37.2\n"), 200_000)),
			r.program("containerd", "/usr/local/bin/containerd", []byte("containerd")),
			r.program("cni-bridge", "/opt/cni/bin/bridge", []byte("bridge")),
		},
		Files: []wire.NodeFile{
			file("/etc/coldrack/kubernetes/masquerade.nft", 0o644, "table inet coldrack_pods\n"),
			file("/etc/containerd/certs.d/_default/hosts.toml", 0o644, "[host]\n"),
			file("/etc/containerd/config.toml", 0o644, "version = 3\n"),
			folder("/etc/kubernetes/manifests"),
			file("/etc/kubernetes/manifests/etcd.yaml", 0o600, etcdManifest),
			file("/etc/kubernetes/manifests/kube-controller-manager.yaml", 0o600, managerManifest),
			file("/etc/kubernetes/pki/ca.crt", 0o644, ca),
			secret,
			file("/etc/modules-load.d/kubernetes.conf", 0o644, "br_netfilter\noverlay\n"),
			file("/etc/sysctl.d/90-kubernetes.conf", 0o644, "net.ipv4.ip_forward = 1\nvm.panic_on_oom = 0\n"),
			folder("/var/lib/etcd"),
			file("/var/lib/kubelet/config.yaml", 0o600, "kind: KubeletConfiguration\n"),
			{Path: "/var/lib/kubelet/pki/kubelet-client-current.pem", Link: "/var/lib/kubelet/pki/kubelet-client-coldrack.pem", Once: true},
		},
		Units: []wire.NodeUnit{
			{Name: "containerd.service", Content: []byte("[Service]\nExecStart=/usr/local/bin/containerd\n")},
			{Name: "kubelet.service", Content: []byte(kubeletUnitText), DropIns: map[string][]byte{"10-kubeadm.conf": []byte(kubeletDropInText)}},
			{Name: "masquerade.service", Content: []byte("[Service]\nExecStart=/usr/sbin/nft -f /etc/coldrack/kubernetes/masquerade.nft\n")},
		},
		Certificates: []wire.NodeCertificate{
			{Name: "admin", KeyAlgorithm: "ECDSA-P256", CertPath: state + "admin.crt", CertMode: 0o644, KeyPath: state + "admin.key",
				CommonName: "kubernetes-admin", Organizations: []string{"kubeadm:cluster-admins"}, Authority: ca},
			{Name: "apiserver", KeyAlgorithm: "ECDSA-P256", CertPath: pki + "apiserver.crt", CertMode: 0o644, KeyPath: pki + "apiserver.key",
				CommonName: "kube-apiserver", DNSNames: []string{"node-01", "kubernetes"}, IPAddresses: []string{"10.96.0.1", "127.0.0.1", "fd00:0::1"}, Authority: ca},
			{Name: "controller-manager", KeyAlgorithm: "ECDSA-P384", CertPath: state + "controller-manager.crt", CertMode: 0o644,
				KeyPath: state + "controller-manager.key", CommonName: "system:kube-controller-manager", Authority: ca, Restart: []string{"kube-controller-manager"}},
			{Name: "etcd-server", KeyAlgorithm: "RSA-2048", CertPath: pki + "etcd/server.crt", CertMode: 0o644, KeyPath: pki + "etcd/server.key",
				CommonName: "node-01", DNSNames: []string{"localhost"}, Authority: etcdCA},
			{Name: "kubelet-client", KeyAlgorithm: "ECDSA-P256", CertPath: "/var/lib/kubelet/pki/kubelet-client-coldrack.pem", CertMode: 0o600,
				KeyPath: "/var/lib/kubelet/pki/kubelet-client-coldrack.pem", CommonName: "system:node:node-01", Organizations: []string{"system:nodes"},
				Authority: ca, Rotated: true},
		},
		Kubeconfigs: []wire.NodeKubeconfig{
			{Path: "/etc/kubernetes/admin.conf", Server: "https://10.20.0.11:6443", Cluster: "rack", User: "kubernetes-admin", Authority: ca, Certificate: "admin", Embed: true},
			{Path: "/etc/kubernetes/controller-manager.conf", Server: "https://10.20.0.11:6443", Cluster: "rack", User: "system:kube-controller-manager",
				Authority: ca, Certificate: "controller-manager", Embed: true},
			{Path: "/etc/kubernetes/kubelet.conf", Server: "https://127.0.0.1:7445", Cluster: "rack", User: "system:node:node-01", Authority: ca, Certificate: "kubelet-client"},
		},
		Routes:        []wire.NodeRoute{{To: "10.244.1.0/24", Via: "10.20.0.12"}},
		ServiceRoutes: []wire.ServiceRoute{{To: "10.96.0.0/16", Source: "10.20.0.11"}},
		LoadBalancer:  &wire.LoadBalancer{Listen: "127.0.0.1:7445", Backends: []string{"10.20.0.11:6443"}, Authority: ca},
		Phases: []wire.Phase{
			{Name: "content", Reason: "fetch programs"},
			{Name: "host", Files: []string{"/etc/modules-load.d/kubernetes.conf", "/etc/sysctl.d/90-kubernetes.conf"}},
			{Name: "config", Files: []string{"/etc/containerd/certs.d/_default/hosts.toml", "/etc/containerd/config.toml", "/etc/kubernetes/manifests",
				"/etc/kubernetes/pki/ca.crt", "/etc/kubernetes/pki/sa.key", "/var/lib/etcd", "/var/lib/kubelet/config.yaml", "/var/lib/kubelet/pki/kubelet-client-current.pem"}},
			{Name: "certificates", Certificates: []string{"admin", "apiserver", "controller-manager", "etcd-server", "kubelet-client"}},
			{Name: "kubeconfigs", After: []string{"certificates", "config"},
				Kubeconfigs: []string{"/etc/kubernetes/admin.conf", "/etc/kubernetes/controller-manager.conf", "/etc/kubernetes/kubelet.conf"}},
			{Name: "load-balancer", LoadBalancer: true},
			{Name: "runtime", After: []string{"content", "host", "config"}, Units: []string{"containerd.service"}},
			{Name: "network", After: []string{"content", "host"}, Files: []string{"/etc/coldrack/kubernetes/masquerade.nft"}, Units: []string{"masquerade.service"}, Routes: true},
			{Name: "static-pods", After: []string{"kubeconfigs", "config"},
				Files: []string{"/etc/kubernetes/manifests/etcd.yaml", "/etc/kubernetes/manifests/kube-controller-manager.yaml"}},
			{Name: "kubelet", After: []string{"runtime", "network", "load-balancer", "kubeconfigs", "static-pods"}, Units: []string{"kubelet.service"}},
			{Name: "api-server", After: []string{"kubelet"}, Probes: []string{r.probe.URL + "/readyz"}},
		},
	}
}

func TestWhatCannotBeCarriedOutIsRefused(t *testing.T) {
	r := newRig(t)
	if err := Validate(r.controlPlane()); err != nil {
		t.Fatalf("a good plan is refused: %v", err)
	}
	for name, tt := range map[string]struct {
		change func(*wire.NodePlan)
		want   string
	}{
		"no cluster":                           {func(p *wire.NodePlan) { p.Cluster = "" }, "cluster and nodeName"},
		"a relative path":                      {func(p *wire.NodePlan) { p.Files[0].Path = "etc/x" }, "absolute"},
		"a path with dots":                     {func(p *wire.NodePlan) { p.Files[0].Path = "/etc/../x" }, "clean"},
		"two files at one place":               {func(p *wire.NodePlan) { p.Files[1].Path = p.Files[0].Path }, "both to be at"},
		"a program over a file":                {func(p *wire.NodePlan) { p.Programs[0].Path = p.Files[0].Path }, "both to be at"},
		"a program without digest":             {func(p *wire.NodePlan) { p.Programs[0].Digest = "" }, "digests"},
		"a key of an unknown kind":             {func(p *wire.NodePlan) { p.Certificates[0].KeyAlgorithm = "DSA" }, `"DSA" is not known`},
		"a certificate without authority":      {func(p *wire.NodePlan) { p.Certificates[0].Authority = "" }, "no PEM certificate"},
		"a kubeconfig without certificate":     {func(p *wire.NodePlan) { p.Kubeconfigs[0].Certificate = "x" }, `no certificate "x"`},
		"a unit that is a path":                {func(p *wire.NodePlan) { p.Units[0].Name = "../x.service" }, "not the name of a unit"},
		"a route that is none":                 {func(p *wire.NodePlan) { p.Routes[0].Via = "node-2" }, "routes[0]"},
		"a service network that is none":       {func(p *wire.NodePlan) { p.ServiceRoutes[0].To = "10.96.0.0" }, "serviceRoutes[0]"},
		"a source of another family":           {func(p *wire.NodePlan) { p.ServiceRoutes[0].Source = "fd00::1" }, "serviceRoutes[0]: 10.96.0.0/16 and fd00::1"},
		"two phases of one name":               {func(p *wire.NodePlan) { p.Phases[1].Name = p.Phases[0].Name }, "a name of its own"},
		"a phase with a file that is not":      {func(p *wire.NodePlan) { p.Phases[1].Files[0] = "/x" }, "no file /x"},
		"a phase with a unit that is not":      {func(p *wire.NodePlan) { p.Phases[6].Units[0] = "x.service" }, "no unit x.service"},
		"a phase after one that is not":        {func(p *wire.NodePlan) { p.Phases[6].After = []string{"x"} }, "runtime (after x)"},
		"phases that wait for each other":      {func(p *wire.NodePlan) { p.Phases[0].After = []string{"kubelet"} }, "no order"},
		"a drop-in that is a path":             {func(p *wire.NodePlan) { p.Units[1].DropIns["../x.conf"] = nil }, "not the name of a drop-in"},
		"a phase with a certificate not there": {func(p *wire.NodePlan) { p.Phases[3].Certificates[0] = "x" }, `no certificate "x"`},
		"a phase with a kubeconfig not there":  {func(p *wire.NodePlan) { p.Phases[4].Kubeconfigs[0] = "/x" }, "no kubeconfig /x"},
	} {
		plan := r.controlPlane()
		tt.change(plan)
		if err := Validate(plan); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

func TestWhoReadsAFileWhenItStarts(t *testing.T) {
	r := newRig(t)
	plan := r.controlPlane()
	for path, want := range map[string]string{
		"/usr/bin/kubelet":                                      "kubelet.service",
		"/usr/local/bin/containerd":                             "containerd.service",
		"/opt/cni/bin/bridge":                                   "",
		"/var/lib/kubelet/config.yaml":                          "kubelet.service",
		"/var/lib/kubelet/config.yaml.d":                        "",
		"/etc/kubernetes/kubelet.conf":                          "kubelet.service",
		"/etc/kubernetes/admin.conf":                            "",
		"/var/lib/kubelet/pki/kubelet-client-coldrack.pem":      "kubelet.service",
		"/etc/kubernetes/pki/apiserver.crt":                     "",
		"/etc/containerd/config.toml":                           "containerd.service",
		"/etc/containerd/certs.d/_default/hosts.toml":           "",
		"/etc/coldrack/kubernetes/masquerade.nft":               "masquerade.service",
		"/etc/systemd/system/kubelet.service":                   "kubelet.service",
		"/etc/systemd/system/kubelet.service.d/10-kubeadm.conf": "kubelet.service",
		"/etc/systemd/system/kubelet.service.d/99-old.conf":     "kubelet.service",
		"/etc/sysctl.d/90-kubernetes.conf":                      "systemd-sysctl.service",
		"/etc/modules-load.d/kubernetes.conf":                   "systemd-modules-load.service",
		"/etc/systemd/networkd.conf.d/20-kubernetes.conf":       "systemd-networkd.service",
		"/etc/kubernetes/manifests/etcd.yaml":                   "",
	} {
		if got := strings.Join(readers(plan, path), " "); got != want {
			t.Errorf("%s is read by %q, want %q", path, got, want)
		}
	}
}

func TestWhatAnEarlierPlanLeft(t *testing.T) {
	r := newRig(t)
	got := stale(r.controlPlane(), nil, []string{
		"/etc/kubernetes", "/etc/kubernetes/pki/ca.crt", "/etc/keepalived", "/etc/keepalived/keepalived.conf", "/opt/cni/bin", "/opt/cni/bin/flannel",
		"/etc/kubernetes/manifests/kube-scheduler.yaml", "/var/lib/coldrack/kubernetes/scheduler.key",
	})
	want := []string{"/etc/kubernetes/manifests/kube-scheduler.yaml", "/var/lib/coldrack/kubernetes/scheduler.key", "/opt/cni/bin/flannel",
		"/etc/keepalived/keepalived.conf", "/etc/keepalived"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

func TestKernelParametersAreReadAsSysctlReadsThem(t *testing.T) {
	r := newRig(t)
	d := nodefile.Disk{Root: r.root}
	for p, text := range map[string]string{"/proc/sys/net/ipv4/tcp_rmem": "4096\t131072\t6291456\n", "/proc/sys/net/ipv4/conf/eth0.5/forwarding": "1\n"} {
		if err := d.Write(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p := r.executor().newPass(t.Context(), t.Context(), t.Context(), &state{NodeAssignment: wire.NodeAssignment{Plan: r.controlPlane()}})
	for line, wrong := range map[string]bool{
		"net.ipv4.tcp_rmem = 4096 131072 6291456":  false,
		"net.ipv4.tcp_rmem=4096 131072 1":          true,
		"net/ipv4/conf/eth0.5/forwarding = 1":      false,
		"net.ipv4.conf.eth0/5.forwarding = 1":      false,
		"-net.ipv4.tcp_rmem = 4096 131072 6291456": false,
		"net.ipv4.absent = 1":                      true,
		"net.ipv4.conf.*.forwarding = 1":           false, // patterns are not looked at
	} {
		if got := p.parameter(line); (got != "") != wrong {
			t.Errorf("%s: %q", line, got)
		}
	}
}

func TestWhatFollowsIsLookedAtAgain(t *testing.T) {
	plan := &wire.NodePlan{Cluster: "rack", Phases: []wire.Phase{
		{Name: "pods", After: []string{"kubeconfigs"}}, {Name: "system"}, {Name: "keys", After: []string{"system"}}, {Name: "kubeconfigs", After: []string{"keys"}},
	}}
	if got := followers(plan, "keys"); !slices.Equal(got, []string{"kubeconfigs", "pods"}) {
		t.Errorf("after keys come %v", got)
	}
	k := newTrack(time.Now)
	k.follow(&state{NodeAssignment: wire.NodeAssignment{Version: "v1", Plan: plan}})
	for _, ph := range plan.Phases {
		k.succeed(ph.Name)
	}
	k.reopen("keys", followers(plan, "keys"))
	for _, name := range []string{"keys", "kubeconfigs", "pods"} {
		if k.snapshot().Done {
			t.Errorf("done before %s", name)
		}
		k.begin(name)
		k.succeed(name)
	}
	if r := k.snapshot(); !r.Done || r.Phases[1].Attempts != 0 {
		t.Errorf("at the end: %+v", r)
	}
}
