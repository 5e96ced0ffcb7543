package kube

import (
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/test/netns"
	"coldrack.dev/test/require"
	"sigs.k8s.io/yaml"
)

// facts are everything that two cluster plans can differ in: a path, and the value there.
type facts map[string]string

// difference is a deliberate difference between our plan and kubeadm's.
type difference struct {
	// kind is + for what only we have, - for what only kubeadm has, ! for what has another value.
	kind string
	// path is a regular expression that matches the whole path.
	path   string
	reason string
}

// TestOracle compares what we render with what real kubeadm generates for the same input. Every difference must be
// listed with its reason, and every listed difference must be there.
func TestOracle(t *testing.T) {
	require.Need(t, "netns", "kubeadm")
	t.Parallel()
	found := make([]bool, len(kubeadmDifferences))
	for _, variant := range oracleVariants(t) {
		t.Run(variant.name, func(t *testing.T) {
			plan, err := Render(variant.in)
			if err != nil {
				t.Fatal(err)
			}
			machine := variant.in.Machines[variant.machine]
			theirs := runKubeadm(t, kubeadmInput(t, variant.in, machine), variant.phases)
			ours := planFacts(t, plan, machine.Name)
			compareFacts(t, ours.only(variant.paths), theirs.only(variant.paths), kubeadmDifferences, found)
		})
	}
	for i, d := range kubeadmDifferences {
		if !found[i] {
			t.Errorf("listed, but there is no such difference any more: %s %s (%s)", d.kind, d.path, d.reason)
		}
	}
}

// TestTakeover feeds kubeadm the configuration that we upload for it: what it then generates must come close enough
// to be put in place of ours.
func TestTakeover(t *testing.T) {
	require.Need(t, "netns", "kubeadm")
	t.Parallel()
	found := make([]bool, len(takeoverDifferences))
	for _, preset := range []v1alpha1.Topology{v1alpha1.TopologySmall, v1alpha1.TopologyProduction} {
		t.Run(string(preset), func(t *testing.T) {
			in := testInput(t, preset, DefaultVersion())
			plan, err := Render(in)
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(in.Machines, func(m Machine) bool { return slices.Contains(plan.Nodes[m.Name].Roles, v1alpha1.RoleControlPlane) })
			uploaded := slices.IndexFunc(plan.Objects, func(o Object) bool { return o.Name == "kubeadm-config" })
			var configMap struct{ Data map[string]string }
			if err := yaml.Unmarshal(plan.Objects[uploaded].Content, &configMap); err != nil {
				t.Fatal(err)
			}
			config := initConfiguration(in.Machines[i]) + "---\n" + configMap.Data["ClusterConfiguration"]
			phases := []string{"certs ca", "certs apiserver", "control-plane all"}
			if preset == v1alpha1.TopologySmall {
				phases = append(phases, "etcd local")
			}
			paths := `certificate apiserver .*|manifest .*`
			compareFacts(t, planFacts(t, plan, in.Machines[i].Name).only(paths), runKubeadm(t, config, phases).only(paths), takeoverDifferences, found)
		})
	}
	for i, d := range takeoverDifferences {
		if !found[i] {
			t.Errorf("listed, but there is no such difference any more: %s %s (%s)", d.kind, d.path, d.reason)
		}
	}
}

type oracleVariant struct {
	name    string
	in      Input
	machine int
	phases  []string
	// paths that are compared; empty: all.
	paths string
}

func oracleVariants(t *testing.T) []oracleVariant {
	all := []string{"certs all", "kubeconfig all", "control-plane all", "etcd local", "kubelet-start"}
	variants := []oracleVariant{}
	for _, version := range KnownVersions() {
		variants = append(variants, oracleVariant{name: "laptop " + version, in: testInput(t, v1alpha1.TopologyLaptop, version), phases: all})
	}
	for _, network := range networkVariants() {
		in := testInput(t, v1alpha1.TopologyDevelopment, DefaultVersion(), network.change)
		variants = append(variants, oracleVariant{name: "development " + network.name, in: in, phases: all})
	}
	named := testInput(t, v1alpha1.TopologySmall, DefaultVersion(), func(in *Input) {
		in.Cluster.Spec.PKI.KeyAlgorithm = "ECDSA-P384"
		in.Cluster.Spec.Endpoint.Host = "api.example.org"
		in.Cluster.Spec.Endpoint.ExtraSANs = []string{"rack.example.org", "192.0.2.7"}
		in.Cluster.Spec.Network.DNSDomain = "rack.internal"
		in.Cluster.Spec.Security.TokenDiscovery = true
	})
	production := testInput(t, v1alpha1.TopologyProduction, DefaultVersion())
	return append(variants,
		oracleVariant{name: "small with names and other keys", in: named, phases: all},
		oracleVariant{name: "production control plane", in: production, machine: 3,
			phases: []string{"certs ca", "certs front-proxy-ca", "certs apiserver", "certs apiserver-kubelet-client", "certs front-proxy-client", "kubeconfig all", "control-plane all", "kubelet-start"},
			// With an external etcd, kubeadm leaves its certificates to others.
			paths: `certificate (ca|front-proxy-ca|apiserver|apiserver-kubelet-client|front-proxy-client) .*|kubeconfig .*|manifest .*|kubelet.*|object .*`},
		oracleVariant{name: "production etcd", in: production, machine: 0,
			phases: []string{"certs etcd-ca", "certs etcd-server", "certs etcd-peer", "certs etcd-healthcheck-client", "etcd local"},
			paths:  `certificate (etcd-ca|etcd-server|etcd-peer|etcd-healthcheck-client) .*|manifest etcd .*`},
	)
}

func initConfiguration(m Machine) string {
	return fmt.Sprintf(`apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {advertiseAddress: %q, bindPort: 6443}
nodeRegistration: {name: %s, criSocket: "unix:///run/containerd/containerd.sock"}
`, m.Addresses[0], m.Hostname)
}

// kubeadmInput says to kubeadm what the input says to us, and no more.
func kubeadmInput(t *testing.T, in Input, m Machine) string {
	t.Helper()
	r, err := newRenderer(in)
	if err != nil {
		t.Fatal(err)
	}
	spec := r.cluster.Spec
	config := kubeadmConfiguration{
		ClusterName: in.Cluster.Name, KubernetesVersion: spec.Version, ControlPlaneEndpoint: r.endpoint(), EncryptionAlgorithm: string(spec.PKI.KeyAlgorithm),
		Networking: kubeadmNetworking{spec.Network.DNSDomain, join(r.podCIDRs), join(r.serviceCIDRs)},
	}
	config.CertificateValidity.Duration, config.AuthorityValidity.Duration = r.certificateTTL(), r.authorityTTL()
	config.APIVersion, config.Kind = "kubeadm.k8s.io/v1beta4", "ClusterConfiguration"
	config.APIServer.CertSANs = spec.Endpoint.ExtraSANs
	group := in.Groups[slices.IndexFunc(in.Groups, func(g v1alpha1.MachineGroup) bool { return g.Name == m.Group })]
	if !group.HasRole(v1alpha1.RoleEtcd) {
		config.Etcd.External = &kubeadmExternalEtcd{CAFile: pkiDir + "/etcd/ca.crt", CertFile: pkiDir + "/apiserver-etcd-client.crt", KeyFile: pkiDir + "/apiserver-etcd-client.key"}
		for _, member := range r.with(v1alpha1.RoleEtcd) {
			config.Etcd.External.Endpoints = append(config.Etcd.External.Endpoints, urlOf(member.primary(), etcdClientPort))
		}
	}
	encoded, err := encodeConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return initConfiguration(m) + "---\n" + string(encoded)
}

// runKubeadm lets kubeadm generate everything into an empty root, and collects it.
func runKubeadm(t *testing.T, config string, phases []string) facts {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"etc", "tmp", "var/lib"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "config.yaml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	// kubeadm looks for the API server even when it only pretends.
	nowhere := netns.New(t)
	kubeadm := func(args ...string) string {
		out, err := nowhere.Try(t.Context(), slices.Concat([]string{"kubeadm"}, args, []string{"--config=/config.yaml", "--rootfs=" + root})...)
		if err != nil {
			t.Fatalf("kubeadm %s: %v\n%s\nwith\n%s", strings.Join(args, " "), err, out, config)
		}
		return out
	}
	f := facts{}
	for _, phase := range phases {
		kubeadm(append([]string{"init", "phase"}, strings.Fields(phase)...)...)
	}
	f.readRoot(t, root)
	if slices.Contains(phases, "kubelet-start") {
		out := kubeadm("init", "--dry-run", "--ignore-preflight-errors=all", "--skip-phases=preflight")
		f.readDryRun(t, out)
	}
	return f
}

// readRoot collects what kubeadm wrote.
func (f facts) readRoot(t *testing.T, root string) {
	t.Helper()
	names := map[string]string{"etcd/ca": "etcd-ca", "etcd/server": "etcd-server", "etcd/peer": "etcd-peer", "etcd/healthcheck-client": "etcd-healthcheck-client"}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		path = strings.TrimPrefix(path, root)
		if base, ok := strings.CutPrefix(path, pkiDir+"/"); ok {
			name, extension := strings.TrimSuffix(base, filepath.Ext(base)), filepath.Ext(base)
			if known, ok := names[name]; ok {
				name = known
			}
			switch extension {
			case ".crt":
				block, _ := pem.Decode(content)
				cert, err := x509.ParseCertificate(block.Bytes)
				if err != nil {
					return err
				}
				f.certificate("certificate "+name, cert)
				f["certificate "+name+" key"] = keyOf(cert)
				f["certificate "+name+" file"] = fmt.Sprint(path, " ", info.Mode())
			case ".key":
				f["certificate "+name+" key file"] = fmt.Sprint(path, " ", info.Mode())
			default:
				f["file "+path] = info.Mode().String()
			}
			return nil
		}
		switch dir, base := filepath.Split(path); {
		case strings.HasSuffix(base, ".conf") && dir == kubernetesDir+"/":
			f["kubeconfig "+base+" file"] = fmt.Sprint(path, " ", info.Mode())
			f.kubeconfig(t, "kubeconfig "+base, content, nil)
		case dir == manifestsDir+"/":
			f["manifest "+strings.TrimSuffix(base, ".yaml")+" file"] = fmt.Sprint(path, " ", info.Mode())
			f.document(t, "manifest "+strings.TrimSuffix(base, ".yaml"), content)
		case path == kubeletConfig:
			f.config(t, "kubelet config", content)
		case path == kubeletFlagsFile:
			f.kubeletFlags(content)
		case path == kubeletInstance:
			f.document(t, "kubelet instance", content)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// readDryRun collects the API objects that kubeadm would create.
func (f facts) readDryRun(t *testing.T, out string) {
	t.Helper()
	for _, action := range strings.Split(out, "[dryrun] Would perform action ")[1:] {
		_, object, found := strings.Cut(action, "\n[dryrun] Attached object:\n")
		if !strings.HasPrefix(action, "CREATE") || !found {
			continue
		}
		object, _, _ = strings.Cut(object, "\n\n")
		f.object(t, []byte(object))
	}
}

// planFacts collects our plan of one machine, and the cluster's objects.
func planFacts(t *testing.T, plan *Plan, machine string) facts {
	t.Helper()
	f := facts{}
	now := time.Now()
	n := plan.Nodes[machine]
	for _, a := range plan.Authorities {
		path := fmt.Sprintf("certificate %s", a.Authority)
		f.certificate(path, a.Template(now))
		f[path+" key"] = string(a.KeyAlgorithm)
	}
	for _, file := range n.Files {
		for authority, path := range map[Authority]string{AuthorityKubernetes: "/ca.crt", AuthorityFrontProxy: "/front-proxy-ca.crt", AuthorityEtcd: "/etcd/ca.crt"} {
			if file.Path == pkiDir+path {
				f[fmt.Sprintf("certificate %s file", authority)] = fmt.Sprint(file.Path, " ", file.Mode)
			}
		}
		switch file.Path {
		case pkiDir + "/sa.pub":
			f["file "+file.Path] = file.Mode.String()
		case pkiDir + "/sa.key":
			f["certificate sa key file"] = fmt.Sprint(file.Path, " ", file.Mode)
		case kubeletConfig:
			f.config(t, "kubelet config", file.Content)
		case kubeletFlagsFile:
			f.kubeletFlags(file.Content)
		case kubeletInstance:
			f.document(t, "kubelet instance", file.Content)
		}
	}
	certificates := map[string]CertificateRequest{}
	for _, c := range n.Certificates {
		certificates[c.Name] = c
		if !strings.HasPrefix(c.CertPath, pkiDir) {
			continue // inside a kubeconfig
		}
		path := "certificate " + c.Name
		f.certificate(path, c.Template(now))
		f[path+" key"] = string(c.KeyAlgorithm)
		f[path+" file"] = fmt.Sprint(c.CertPath, " ", c.CertMode)
		f[path+" key file"] = fmt.Sprint(c.KeyPath, " ", modeSecret)
	}
	for _, k := range n.Kubeconfigs {
		base := filepath.Base(k.Path)
		f["kubeconfig "+base+" file"] = fmt.Sprint(k.Path, " ", modeSecret)
		cert := certificates[k.Certificate].Template(now)
		content, err := k.Encode([]byte("authority"), []byte("certificate"), []byte("key"))
		if err != nil {
			t.Fatal(err)
		}
		f.kubeconfig(t, "kubeconfig "+base, content, cert)
	}
	for _, pod := range n.StaticPods {
		f["manifest "+pod.Name+" file"] = fmt.Sprint(pod.File.Path, " ", pod.File.Mode)
		f.document(t, "manifest "+pod.Name, pod.File.Content)
	}
	for _, o := range plan.Objects {
		f.object(t, o.Content)
	}
	return f
}

func (f facts) certificate(path string, c *x509.Certificate) {
	f[path+" CN"] = c.Subject.CommonName
	f[path+" usage"] = fmt.Sprint(c.KeyUsage, c.ExtKeyUsage, c.IsCA)
	f[path+" lifetime"] = c.NotAfter.Sub(c.NotBefore).Round(time.Minute).String()
	for _, o := range c.Subject.Organization {
		f[path+" O "+o] = "there"
	}
	for _, name := range c.DNSNames {
		f[path+" DNS "+name] = "there"
	}
	for _, address := range c.IPAddresses {
		f[path+" IP "+address.String()] = "there"
	}
}

func keyOf(c *x509.Certificate) string {
	switch key := c.PublicKey.(type) {
	case *ecdsa.PublicKey:
		return "ECDSA-" + strings.ReplaceAll(key.Curve.Params().Name, "-", "")
	case *rsa.PublicKey:
		return fmt.Sprint("RSA-", key.Size()*8)
	}
	return fmt.Sprintf("%T", c.PublicKey)
}

// kubeconfig collects a kubeconfig; cert is the certificate where content has only a stand-in.
func (f facts) kubeconfig(t *testing.T, path string, content []byte, cert *x509.Certificate) {
	t.Helper()
	tree := parse(t, content)
	users, _ := tree["users"].([]any)
	user, _ := users[0].(map[string]any)["user"].(map[string]any)
	if data, ok := user["client-certificate-data"].(string); ok && cert == nil {
		decoded, err := base64.StdEncoding.DecodeString(data)
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(decoded)
		if cert, err = x509.ParseCertificate(block.Bytes); err != nil {
			t.Fatal(err)
		}
	}
	f.certificate(path+" certificate", cert)
	// The material itself is always different.
	walkStrings(tree, func(key, value string) string {
		if strings.HasSuffix(key, "-data") {
			return "embedded"
		}
		return value
	})
	f.flatten(path, tree)
}

func (f facts) kubeletFlags(content []byte) {
	line := strings.Trim(strings.TrimPrefix(strings.TrimSpace(string(content)), "KUBELET_KUBEADM_ARGS="), `"`)
	for flag := range strings.FieldsSeq(line) {
		name, value, _ := strings.Cut(flag, "=")
		f["kubelet flag "+name] = value
	}
}

// document collects a YAML document as it is; config collects one in which what is not set does not count.
func (f facts) document(t *testing.T, path string, content []byte) {
	t.Helper()
	tree := parse(t, content)
	delete(tree, "status")
	f.flatten(path, dropNulls(tree))
}

func (f facts) config(t *testing.T, path string, content []byte) {
	t.Helper()
	f.flatten(path, dropUnset(parse(t, content)))
}

// object collects an API object. Configuration inside a ConfigMap is taken apart as well.
func (f facts) object(t *testing.T, content []byte) {
	t.Helper()
	tree := parse(t, content)
	delete(tree, "status")
	meta := tree["metadata"].(map[string]any)
	path := fmt.Sprintf("object %s %v", tree["kind"], meta["name"])
	if data, ok := tree["data"].(map[string]any); ok {
		for key, value := range data {
			inner := map[string]any{}
			if err := yaml.Unmarshal([]byte(value.(string)), &inner); err == nil && inner["kind"] != nil {
				walkStrings(inner, func(key, value string) string {
					if strings.HasSuffix(key, "-data") {
						return "embedded"
					}
					return value
				})
				delete(data, key)
				f.flatten(path+" "+key, dropUnset(inner))
			}
		}
	}
	f.flatten(path, dropNulls(tree))
}

func parse(t *testing.T, content []byte) map[string]any {
	t.Helper()
	var tree map[string]any
	if err := yaml.Unmarshal(content, &tree); err != nil {
		t.Fatalf("%v in\n%s", err, content)
	}
	return tree
}

func walkStrings(value any, change func(key, value string) string) {
	switch v := value.(type) {
	case map[string]any:
		for key, child := range v {
			if s, ok := child.(string); ok {
				v[key] = change(key, s)
			} else {
				walkStrings(child, change)
			}
		}
	case []any:
		for _, child := range v {
			walkStrings(child, change)
		}
	}
}

// flatten takes a tree apart. Items of lists go by their name where they have one; lists of texts are sets; a
// command is a program and its flags.
func (f facts) flatten(path string, value any) {
	switch v := value.(type) {
	case map[string]any:
		if len(v) == 0 {
			f[path] = "{}"
		}
		for key, child := range v {
			if key != "name" || !strings.HasSuffix(path, fmt.Sprintf(" %v", child)) { // not twice
				f.flatten(path+" "+key, child)
			}
		}
	case []any:
		for i, child := range v {
			item, _ := child.(map[string]any)
			text, isText := child.(string)
			switch {
			case item != nil && item["name"] != nil && item["kind"] == nil:
				f.flatten(fmt.Sprintf("%s %v", path, item["name"]), item)
			case isText && strings.HasPrefix(text, "--"):
				name, flag, _ := strings.Cut(text, "=")
				f[path+" "+name] = flag
			case isText:
				f[path+" "+text] = "there"
			default:
				f.flatten(fmt.Sprintf("%s %d", path, i), child)
			}
		}
	default:
		f[path] = fmt.Sprint(v)
	}
}

// only keeps what a pattern matches, or everything.
func (f facts) only(pattern string) facts {
	if pattern == "" {
		return f
	}
	kept, match := facts{}, regexp.MustCompile("^(?:"+pattern+")$")
	for path, value := range f {
		if match.MatchString(path) {
			kept[path] = value
		}
	}
	return kept
}

func compareFacts(t *testing.T, ours, theirs facts, listed []difference, found []bool) {
	t.Helper()
	if len(theirs) < 20 {
		t.Fatalf("kubeadm generated only %d facts", len(theirs))
	}
	paths := maps.Clone(ours)
	maps.Copy(paths, theirs)
	patterns := make([]*regexp.Regexp, len(listed))
	for i, d := range listed {
		patterns[i] = regexp.MustCompile("^(?:" + d.path + ")$")
	}
	for _, path := range slices.Sorted(maps.Keys(paths)) {
		our, have := ours[path]
		their, haveTheirs := theirs[path]
		kind := "!"
		switch {
		case our == their && have == haveTheirs:
			continue
		case !haveTheirs:
			kind = "+"
		case !have:
			kind = "-"
		}
		explained := false
		for i, d := range listed {
			if strings.Contains(d.kind, kind) && patterns[i].MatchString(path) {
				found[i], explained = true, true
				break
			}
		}
		if !explained {
			t.Errorf("unexplained difference: %s %s\n\tours:    %q\n\tkubeadm: %q", kind, path, our, their)
		}
	}
}

// The reasons for what we do otherwise than kubeadm.
const (
	becauseHardened = "hardened by default"
	becauseLocal    = "every node reaches the API by its own load balancer, at the loopback address"
	becauseSealed   = "authorities' keys stay on the Coldrack server, which signs"
	becauseTogether = "all machines start together, and a quorum may be minutes away"
	becausePodCIDR  = "the server gives nodes their pod networks, so that a node's network is complete before the API answers"
	becauseKnown    = "all members are known beforehand and start as one cluster"
	becauseNewer    = "kubeadm names the release that it was made with, whatever the cluster's version; ours is newer"
)

var kubeadmDifferences = []difference{
	// Certificates and kubeconfigs.
	{"+", `certificate apiserver (DNS localhost|IP 127\.0\.0\.1|IP ::1)`, becauseLocal},
	{"+", `certificate (apiserver|etcd-server|etcd-peer) IP fd00:20::.*`, "a machine's addresses of both families are named"},
	{"+", `certificate apiserver IP fd00:96::1`, "the service has an address of both families"},
	{"-", `certificate (ca|etcd-ca|front-proxy-ca) key file`, becauseSealed},
	{"-", `kubeconfig super-admin.conf .*`, "break-glass credentials are issued on request, and do not lie on machines"},
	{"+-", `kubeconfig kubelet.conf users .* client-(certificate|key)(-data)?`, "the kubelet's own files, as kubeadm itself arranges it at the end of init"},

	// Static pods.
	{"!", `manifest .* startupProbe failureThreshold`, becauseTogether},
	{"!", `manifest .* readinessProbe periodSeconds`, "nothing is sent by the readiness of these pods, and each answer costs a TLS handshake"},
	{"+", `manifest .* command --(tls-cipher-suites|tls-min-version|cipher-suites|profiling)`, becauseHardened},
	{"+", `manifest kube-apiserver .* command --(admission-control-config-file|audit-.*|authentication-config|encryption-provider-config.*|kubelet-certificate-authority)`, becauseHardened},
	{"+", `manifest kube-apiserver .* command --shutdown-(delay-duration|watch-termination-grace-period)`, "load balancers notice before it ends, and it ends sooner"},
	{"+", `manifest kube-apiserver .* (volumeMounts|volumes) (audit-log|coldrack-config) .*`, "what the hardening needs"},
	{"+", `manifest kube-apiserver metadata annotations coldrack.dev/config-digest`, "the kubelet restarts the API server when its configuration changes"},
	{"+", `manifest \S+ metadata annotations coldrack.dev/keys-digest`, "a program restarts when an authority or a key that it reads only once is another"},
	{"+", `manifest kube-controller-manager .* command --terminated-pod-gc-threshold`, becauseHardened},
	{"+", `manifest kube-(controller-manager|scheduler) .* command --leader-elect-(lease-duration|renew-deadline|retry-period)`, "with one control plane nobody takes over"},
	{"-", `manifest kube-controller-manager .* command --cluster-signing-(cert|key)-file`, becauseSealed},
	{"!", `manifest kube-controller-manager .* command --allocate-node-cidrs`, becausePodCIDR},
	{"!", `manifest etcd .* command --initial-cluster`, becauseKnown},
	{"!", `manifest etcd .* containers etcd image`, becauseNewer},
	{"+", `manifest etcd .* command --initial-cluster-(state|token)`, becauseKnown},

	// The kubelet.
	{"+", `kubelet config (enableProfilingHandler|protectKernelDefaults|seccompDefault|serverTLSBootstrap|tlsCipherSuites .*|tlsMinVersion)`, becauseHardened},
	{"+", `kubelet config crashLoopBackOff maxContainerRestartPeriod`, becauseTogether},
	{"+", `kubelet config (evictionHard|kubeReserved|systemReserved) .*`, "pods must not starve the machine"},
	{"+", `kubelet config shutdownGracePeriod(CriticalPods)?`, "pods end in order when a machine is shut down"},
	{"+", `kubelet config resolvConf`, "the installed system has no systemd-resolved; kubeadm looks whether it runs"},
	{"+", `kubelet config registerWithTaints .*`, "the taint is there before the first pod could be placed; kubeadm adds it afterwards"},
	{"+", `kubelet config clusterDNS fd00:96::a`, "DNS has an address of both families"},
	{"+", `kubelet instance .*`, "kubeadm upgrade lays it over what all kubelets have in common; what a machine has for itself would be lost"},
	{"+", `kubelet flag --node-(ip|labels)`, "known beforehand"},

	// What kubeadm uploads.
	{"+", `object \S+Binding .* subjects \d apiGroup`, "the API server fills it in"},
	{"+", `object ClusterRoleBinding kubeadm:cluster-admins .*`, "kubeadm makes it, too, but with its own client that a dry run does not show"},
	{"+", `object ClusterRole(Binding)? coldrack:(viewer|operator|view-cluster) .*`, "people of Coldrack's roles viewer and operator get certificates of these groups"},
	{"+", `object DaemonSet kube-proxy(-foreign .*| spec template spec affinity .*)`, "a machine that joins by kubeadm has no load balancer on its loopback; only with spec.security.tokenDiscovery"},
	{"-", `object Role(Binding)? kubeadm:bootstrap-signer-clusterinfo .*`, "hardened by default; spec.security.tokenDiscovery brings it back"},
	{"-", `object Secret bootstrap-token-.*`, "tokens are made when somebody asks for one"},
	{"-", `object ConfigMap (kubelet-config|kube-proxy) metadata annotations kubeadm.kubernetes.io/component-config.hash`, "it marks what kubeadm may replace by its own defaults"},
	{"+", `object ConfigMap kubelet-config kubelet .*`, "as in the kubelet's own configuration"},
	{"+", `object ConfigMap kubeadm-config ClusterConfiguration (apiServer|controllerManager|scheduler|etcd local) (extraArgs|extraVolumes|certSANs) .*`, "tells kubeadm how this cluster differs"},
	{"+", `object ConfigMap kubeadm-config ClusterConfiguration (dns disabled|etcd local imageTag)`, "kubeadm knows older releases only, and bundles have no images of those"},
	{"-", `object ConfigMap kubeadm-config ClusterConfiguration etcd external httpEndpoints .*`, "a default that kubeadm fills in when it reads"},
	{"!", `object ConfigMap kube-proxy config.conf mode`, "nftables is faster with many services; kubeadm writes iptables, the default until 1.40"},
	{"!", `object ConfigMap kube-proxy kubeconfig.conf clusters default cluster server`, becauseLocal},
	{"+", `object (DaemonSet kube-proxy|Deployment coredns) spec template metadata annotations coldrack.dev/config-digest`, "pods are replaced when their configuration changes"},
	{"+", `object \S+ (kube-)?flannel(-cfg)? .*`, "kubeadm brings no network"},
	{"-", `object Deployment coredns .* affinity podAntiAffinity .*`, "replaced by the next line"},
	{"+", `object Deployment coredns .* topologySpreadConstraints .*`, "a preference puts all of them on the node that is ready first"},
	{"!", `object Deployment coredns spec replicas`, "one machine needs one"},
	{"!", `object Deployment coredns .* containers coredns image`, becauseNewer},
	{"+", `object Service kube-dns spec (clusterIPs|ipFamilies|ipFamilyPolicy).*`, "says for both families what kubeadm says for one"},
	{"-", `object Service kube-dns metadata resourceVersion`, "means something to kubeadm's own way of updating"},
}

var takeoverDifferences = []difference{
	{"!", `manifest .* (startupProbe failureThreshold|readinessProbe periodSeconds)`, "not part of what kubeadm keeps in the cluster"},
	{"+", `manifest \S+ metadata annotations coldrack.dev/(config|keys)-digest`, "nothing but our own agent needs it"},
	{"-", `manifest kube-controller-manager .* command --cluster-signing-(cert|key)-file`, "kubeadm has just made an authority with its key in order to run at all"},
	{"!", `manifest etcd .* command --initial-cluster`, "etcd looks at it only before it has data"},
	{"+", `manifest etcd .* command --initial-cluster-state`, "etcd looks at it only before it has data"},
}
