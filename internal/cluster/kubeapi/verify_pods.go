package kubeapi

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	apps "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const (
	// verifyNamespace has the probe pods, under the strictest rules; policyNamespace says nothing of rules and so has
	// the cluster's own; hostNamespace has what the strictest rules forbid.
	verifyNamespace = "coldrack-verify"
	policyNamespace = "coldrack-verify-policy"
	// levelLabel of a namespace is its level of pod security.
	levelLabel = "pod-security.kubernetes.io/enforce"

	probeName = "coldrack-probe"
	probePort = 8080
	// manyNodes is from how many on a pod tries only some of the others.
	manyNodes = 12
	// someOthers is how many then.
	someOthers = 4
	pollPause  = 500 * time.Millisecond
)

// inNamespace does what needs objects of its own, and removes them.
func (v *verification) inNamespace(ctx context.Context) {
	if !v.within(ctx, cleanUpTimeout, "namespace", verifyNamespace, v.makeNamespaces) {
		// Also what was made in part, or while nobody was listening any more.
		v.cleanUp(ctx)
		return
	}
	defer v.cleanUp(ctx)
	v.do(ctx, "secrets encrypted", "etcd", v.secretEncryption)
	if v.o.PodSecurity != "privileged" {
		v.do(ctx, "pod security", cmp.Or(v.o.PodSecurity, "baseline"), v.podSecurity)
	}
	if !v.o.NoPods {
		v.pods(ctx)
	}
}

// makeNamespaces begins anew: what an earlier verification left behind is removed first.
func (v *verification) makeNamespaces(ctx context.Context) (string, error) {
	left, err := v.remove(ctx)
	if err != nil {
		return "", fmt.Errorf("remove what an earlier verification left: %w", err)
	}
	namespaces := v.connection.client.CoreV1().Namespaces()
	for name, labels := range map[string]map[string]string{
		verifyNamespace: {levelLabel: "restricted"},
		policyNamespace: nil,
		hostNamespace:   {levelLabel: "privileged"},
	} {
		namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
		if _, err := namespaces.Create(ctx, namespace, metav1.CreateOptions{FieldManager: FieldManager}); err != nil {
			return "", err
		}
	}
	if left {
		return "made, after the remains of an earlier verification were removed", nil
	}
	return "made", nil
}

// remove deletes everything of a verification and waits until its namespaces are gone; it tells whether anything was
// there. What API servers call goes first: no namespace ends while an APIService does not answer.
func (v *verification) remove(ctx context.Context) (there bool, err error) {
	there, err = v.connection.removeCallbacks(ctx)
	if err != nil {
		return there, err
	}
	namespaces := v.connection.client.CoreV1().Namespaces()
	for _, name := range []string{verifyNamespace, policyNamespace, hostNamespace} {
		err := namespaces.Delete(ctx, name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return there, err
		}
		there = there || !apierrors.IsNotFound(err)
	}
	for _, name := range []string{verifyNamespace, policyNamespace, hostNamespace} {
		for {
			namespace, err := namespaces.Get(ctx, name, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				break
			}
			if err == nil {
				err = fmt.Errorf("namespace %s is still %s; %s", name, namespace.Status.Phase, terminating(namespace))
			}
			select {
			case <-ctx.Done():
				return there, err
			case <-time.After(pollPause):
			}
		}
	}
	return there, nil
}

// terminating says what keeps a namespace.
func terminating(namespace *corev1.Namespace) string {
	for _, c := range namespace.Status.Conditions {
		if c.Status == corev1.ConditionTrue && c.Message != "" {
			return c.Message
		}
	}
	return "kube-controller-manager has to empty it"
}

// cleanUp works also when ctx has ended.
func (v *verification) cleanUp(ctx context.Context) {
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTimeout)
	defer cancel()
	began := time.Now()
	_, err := v.remove(limited)
	v.tell(limited, Check{Name: "clean-up", Target: verifyNamespace, Detail: "removed", Duration: time.Since(began)}, err)
}

// secretEncryption writes a Secret by way of the API and reads what etcd has.
func (v *verification) secretEncryption(ctx context.Context) (string, error) {
	if len(v.o.EtcdMembers) == 0 || v.o.EtcdCertificate == nil {
		return "", errors.New("etcd cannot be read: no member is known")
	}
	value := []byte("plain-" + rand.Text())
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: verifyNamespace, Name: "encrypted"}, Data: map[string][]byte{"value": value}}
	if _, err := v.connection.client.CoreV1().Secrets(verifyNamespace).Create(ctx, secret, metav1.CreateOptions{FieldManager: FieldManager}); err != nil {
		return "", err
	}
	config, err := v.etcdTLS()
	if err != nil {
		return "", err
	}
	var endpoints []string
	for _, member := range v.o.EtcdMembers {
		endpoints = append(endpoints, "https://"+member.String())
	}
	etcd, err := clientv3.New(clientv3.Config{Context: ctx, Endpoints: endpoints, TLS: config, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return v.connection.target.Dial(ctx, "tcp", address)
		})}})
	if err != nil {
		return "", fmt.Errorf("connect to etcd: %w", err)
	}
	defer etcd.Close()
	key := "/registry/secrets/" + verifyNamespace + "/" + secret.Name
	answer, err := etcd.Get(ctx, key)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", key, err)
	}
	if len(answer.Kvs) != 1 {
		return "", fmt.Errorf("etcd has no key %s", key)
	}
	raw := answer.Kvs[0].Value
	if bytes.Contains(raw, value) || !bytes.HasPrefix(raw, []byte("k8s:enc:")) {
		return "", errors.New("a Secret is readable in etcd; see --encryption-provider-config of the API servers")
	}
	provider := strings.SplitN(string(raw[len("k8s:enc:"):]), ":", 2)[0]
	return "with " + provider, nil
}

// podSecurity tries, without effect, to run a pod that is as privileged as the machine itself.
func (v *verification) podSecurity(ctx context.Context) (string, error) {
	yes := true
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: policyNamespace, Name: "privileged"},
		Spec: corev1.PodSpec{HostPID: true, Containers: []corev1.Container{{Name: "privileged", Image: v.o.ProbeImage,
			SecurityContext: &corev1.SecurityContext{Privileged: &yes}}}}}
	err := v.createPod(ctx, pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	switch {
	case err == nil:
		return "", errors.New("a privileged pod is allowed in a namespace without labels; see --admission-control-config-file of the API servers")
	case strings.Contains(err.Error(), "violates PodSecurity"):
		return "a privileged pod is refused", nil
	}
	return "", err
}

// createPod waits for the service account of a pod's namespace, which comes a moment after the namespace.
func (v *verification) createPod(ctx context.Context, pod *corev1.Pod, options metav1.CreateOptions) error {
	for {
		_, err := v.connection.client.CoreV1().Pods(pod.Namespace).Create(ctx, pod, options)
		if err == nil || !strings.Contains(err.Error(), "service account") {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; kube-controller-manager makes service accounts", err)
		case <-time.After(pollPause):
		}
	}
}

// probe is a pod of ours on one node.
type probe struct {
	node, pod string
	addresses []netip.Addr
}

// pods runs a probe on every node, and has pods, nodes and API servers try what they must reach.
func (v *verification) pods(ctx context.Context) {
	var service *corev1.Service
	var callee *callee
	if !v.do(ctx, "probe pods", probeName, func(ctx context.Context) (_ string, err error) {
		if callee, err = newCallee(time.Now()); err != nil {
			return "", err
		}
		service, err = v.makeProbes(ctx, callee)
		return "made, image " + v.o.ProbeImage, err
	}) {
		return
	}
	probes := v.awaitProbes(ctx)
	v.podNetwork(ctx, probes, service)
	v.hostNetwork(ctx, service, len(probes) > 0)
	v.callbacks(ctx, callee, len(probes) > 0)
}

// podNetwork has probes try names, each other and services.
func (v *verification) podNetwork(ctx context.Context, probes []probe, service *corev1.Service) {
	each(ctx, probes, func(ctx context.Context, p probe) {
		// By the API server's proxy, so this also shows that API servers reach pods.
		if !v.do(ctx, "API server to pod", p.node, func(ctx context.Context) (string, error) {
			_, err := v.ask(ctx, p, "whoami", nil)
			return p.addresses[0].String(), err
		}) {
			return
		}
		v.from(ctx, p, "DNS", []string{"dns:kubernetes.default.svc." + v.o.DNSDomain + "."})
		if v.o.ExternalName != "" {
			v.from(ctx, p, "external DNS", []string{"dns:" + strings.TrimSuffix(v.o.ExternalName, ".") + "."})
		}
		var others []string
		for _, other := range v.othersOf(probes, p) {
			for _, address := range other.addresses {
				others = append(others, httpTarget(address, "/healthz"))
			}
		}
		if len(others) > 0 {
			v.from(ctx, p, "pod to pod", others)
		}
		var services []string
		for _, text := range service.Spec.ClusterIPs {
			if address, err := netip.ParseAddr(text); err == nil {
				services = append(services, httpTarget(address, "/healthz"))
			}
		}
		v.from(ctx, p, "service address", services)
		v.from(ctx, p, "service name", []string{fmt.Sprintf("http://%s.%s.svc.%s.:%d/healthz", probeName, verifyNamespace, v.o.DNSDomain, probePort)})
	})
}

func httpTarget(address netip.Addr, path string) string {
	return "http://" + netip.AddrPortFrom(address, probePort).String() + path
}

// othersOf are the probes that one tries to reach: all others, or in a large cluster the next ones in a ring, so
// that each is tried by as many.
func (v *verification) othersOf(probes []probe, p probe) []probe {
	i := slices.IndexFunc(probes, func(o probe) bool { return o.node == p.node })
	count := len(probes) - 1
	if len(probes) > manyNodes {
		count = someOthers
	}
	var others []probe
	for n := 1; n <= count; n++ {
		others = append(others, probes[(i+n)%len(probes)])
	}
	return others
}

// probePod runs a probe on any node, whatever its taints, with no rights at all.
func (v *verification) probePod() corev1.PodSpec {
	yes, no, user, grace := true, false, int64(65532), int64(1)
	fieldEnv := func(name, path string) corev1.EnvVar {
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}}
	}
	return corev1.PodSpec{
		Tolerations:                   []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
		AutomountServiceAccountToken:  &no,
		EnableServiceLinks:            &no,
		TerminationGracePeriodSeconds: &grace,
		SecurityContext: &corev1.PodSecurityContext{RunAsNonRoot: &yes, RunAsUser: &user, RunAsGroup: &user,
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
		Containers: []corev1.Container{{
			Name: probeName, Image: v.o.ProbeImage, ImagePullPolicy: corev1.PullIfNotPresent,
			Env: []corev1.EnvVar{fieldEnv("POD_NAME", "metadata.name"), fieldEnv("POD_NAMESPACE", "metadata.namespace"), fieldEnv("NODE_NAME", "spec.nodeName")},
			Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("16Mi")},
				Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")}},
			SecurityContext: &corev1.SecurityContext{AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
				Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}},
		}},
	}
}

// makeProbes runs the probe on every node.
func (v *verification) makeProbes(ctx context.Context, callee *callee) (*corev1.Service, error) {
	labels := map[string]string{"app.kubernetes.io/name": probeName}
	pod := v.probePod()
	container := &pod.Containers[0]
	container.Env = append(container.Env, callee.environment()...)
	container.Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: probePort}, {Name: "https", ContainerPort: callbackPort}}
	container.ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{
		Path: "/healthz", Port: intstr.FromInt32(probePort)}}}
	if _, err := v.connection.client.CoreV1().Secrets(verifyNamespace).Create(ctx, callee.secret(), metav1.CreateOptions{FieldManager: FieldManager}); err != nil {
		return nil, err
	}
	daemons := &apps.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: verifyNamespace, Name: probeName, Labels: labels},
		Spec: apps.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: pod},
		},
	}
	if _, err := v.connection.client.AppsV1().DaemonSets(verifyNamespace).Create(ctx, daemons, metav1.CreateOptions{FieldManager: FieldManager}); err != nil {
		return nil, err
	}
	families := corev1.IPFamilyPolicyPreferDualStack
	return v.connection.client.CoreV1().Services(verifyNamespace).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: verifyNamespace, Name: probeName, Labels: labels},
		Spec: corev1.ServiceSpec{Selector: labels, IPFamilyPolicy: &families,
			Ports: []corev1.ServicePort{{Name: "http", Port: probePort, TargetPort: intstr.FromInt32(probePort)},
				{Name: "https", Port: callbackPort, TargetPort: intstr.FromInt32(callbackPort)}}},
	}, metav1.CreateOptions{FieldManager: FieldManager})
}

// awaitProbes waits until every ready node has a ready probe, and tells of each.
func (v *verification) awaitProbes(ctx context.Context) []probe {
	began := time.Now()
	deadline := began.Add(v.o.Timeout)
	told := map[string]bool{}
	var probes []probe
	for {
		missing, err := v.lookForProbes(ctx, told, func(p probe) {
			probes = append(probes, p)
			v.tell(ctx, Check{Name: "pod runs", Target: p.node, Detail: "ready", Duration: time.Since(began)}, nil)
		})
		if err == nil && len(missing) == 0 || ctx.Err() != nil {
			break
		}
		if time.Now().After(deadline) {
			if err != nil {
				v.tell(ctx, Check{Name: "pod runs", Target: v.o.Target.Cluster, Duration: time.Since(began)}, err)
			}
			for node, problem := range missing {
				v.tell(ctx, Check{Name: "pod runs", Target: node, Duration: time.Since(began)}, fmt.Errorf("not ready after %s: %s", v.o.Timeout, problem))
			}
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(pollPause):
		}
	}
	slices.SortFunc(probes, func(a, b probe) int { return cmp.Compare(a.node, b.node) })
	return probes
}

// lookForProbes calls ready for each probe that has become ready, and returns the ready nodes without one, with
// the reason.
func (v *verification) lookForProbes(ctx context.Context, told map[string]bool, ready func(probe)) (map[string]string, error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	nodes, err := v.connection.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	pods, err := v.connection.client.CoreV1().Pods(verifyNamespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=" + probeName})
	if err != nil {
		return nil, err
	}
	missing := map[string]string{}
	for i := range nodes.Items {
		// A node that is not ready is told of already.
		if n := &nodes.Items[i]; stateOf(n).Ready && !told[n.Name] {
			missing[n.Name] = "no pod was made for it; kube-controller-manager does that"
		}
	}
	for i := range pods.Items {
		pod := &pods.Items[i]
		node := podNode(pod)
		if _, ok := missing[node]; !ok {
			continue
		}
		problem := podProblem(pod)
		p := probe{node: node, pod: pod.Name}
		for _, ip := range pod.Status.PodIPs {
			if address, err := netip.ParseAddr(ip.IP); err == nil {
				p.addresses = append(p.addresses, address)
			}
		}
		if problem != "" || len(p.addresses) == 0 {
			missing[node] = cmp.Or(problem, "it has no address")
			continue
		}
		delete(missing, node)
		told[node] = true
		ready(p)
	}
	return missing, nil
}

// podNode is the node that a pod of a DaemonSet is meant for, also before it has been put there.
func podNode(pod *corev1.Pod) string {
	if pod.Spec.NodeName != "" {
		return pod.Spec.NodeName
	}
	if a := pod.Spec.Affinity; a != nil && a.NodeAffinity != nil && a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil {
		for _, term := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
			for _, field := range term.MatchFields {
				if field.Key == metav1.ObjectNameField && len(field.Values) == 1 {
					return field.Values[0]
				}
			}
		}
	}
	return ""
}

// probeResult is what cmd/coldrack-probe answers.
type probeResult struct {
	Target    string   `json:"target"`
	OK        bool     `json:"ok"`
	Seconds   float64  `json:"seconds"`
	Error     string   `json:"error"`
	Addresses []string `json:"addresses"`
}

// ask sends a request to a probe.
func (v *verification) ask(ctx context.Context, p probe, path string, query url.Values) ([]byte, error) {
	request := v.connection.client.CoreV1().RESTClient().Get().Namespace(verifyNamespace).Resource("pods").
		Name(fmt.Sprintf("%s:%d", p.pod, probePort)).SubResource("proxy").Suffix(path)
	for key := range query {
		request = request.Param(key, query.Get(key))
	}
	answer, err := request.DoRaw(ctx)
	if err != nil {
		return nil, fmt.Errorf("the API server does not reach pod %s at %s: %w", p.pod, p.addresses[0], err)
	}
	return answer, nil
}

// try has a probe try one target.
func (v *verification) try(ctx context.Context, p probe, target string) (probeResult, error) {
	var result probeResult
	answer, err := v.ask(ctx, p, "check", url.Values{"target": {target}, "timeout": {"4s"}})
	if err != nil {
		return result, err
	}
	if err := json.Unmarshal(answer, &result); err != nil {
		return result, fmt.Errorf("the probe's answer cannot be read: %w", err)
	}
	if !result.OK {
		return probeResult{}, errors.New(result.Error)
	}
	return result, nil
}

// from has a probe try targets, all of which must answer. What is new in a cluster takes a moment to be known
// everywhere, so it tries again for a while.
func (v *verification) from(ctx context.Context, p probe, name string, targets []string) {
	v.within(ctx, v.o.settle+checkTimeout, name, "from "+p.node, func(ctx context.Context) (string, error) {
		var found []string
		var failures []error
		for deadline := time.Now().Add(v.o.settle); ; {
			found, failures = nil, nil
			var mu sync.Mutex
			each(ctx, targets, func(ctx context.Context, target string) {
				result, err := v.try(ctx, p, target)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					failures = append(failures, fmt.Errorf("%s: %w", target, err))
				}
				found = append(found, result.Addresses...)
			})
			if len(failures) == 0 || time.Now().After(deadline) {
				break
			}
			select {
			case <-ctx.Done():
				return "", ctx.Err()
			case <-time.After(pollPause):
			}
		}
		if len(failures) > 0 {
			var texts []string
			for _, f := range failures {
				texts = append(texts, f.Error())
			}
			slices.Sort(texts)
			return "", fmt.Errorf("%d of %d: %s", len(failures), len(targets), strings.Join(texts, "; "))
		}
		slices.Sort(found)
		return strings.Join(slices.Compact(found), " "), nil
	})
}
