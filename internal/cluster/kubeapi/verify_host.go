package kubeapi

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// hostNamespace has probes in nodes' own networks, which no stricter level of pod security allows.
const hostNamespace = "coldrack-verify-host"

// Names of checks from a node's own network.
const (
	checkHostNetwork = "host network"
	checkHostAPI     = "host network to API"
	checkHostDNS     = "host network to DNS"
	checkHostService = "host network to service"
)

// hostTarget is what a probe in a node's own network tries, and the check that it belongs to.
type hostTarget struct{ check, target string }

// hostPlan is what nodes must reach: the API by its service, cluster DNS, and the service of our probes unless none of
// them is ready.
func hostPlan(api, service *corev1.Service, dnsDomain string, ready bool) []hostTarget {
	var plan []hostTarget
	for _, address := range serviceAddresses(api) {
		port := strconv.Itoa(int(api.Spec.Ports[0].Port))
		plan = append(plan, hostTarget{checkHostAPI, "tcp://" + net.JoinHostPort(address.String(), port)})
	}
	plan = append(plan, hostTarget{checkHostDNS, "dns:kubernetes.default.svc." + dnsDomain + "."})
	if ready {
		for _, address := range serviceAddresses(service) {
			plan = append(plan, hostTarget{checkHostService, httpTarget(address, "/healthz")})
		}
	}
	return plan
}

// serviceAddresses are a service's cluster IPs; a headless service and one without ports have none.
func serviceAddresses(service *corev1.Service) []netip.Addr {
	var addresses []netip.Addr
	for _, text := range service.Spec.ClusterIPs {
		if address, err := netip.ParseAddr(text); err == nil && len(service.Spec.Ports) > 0 {
			addresses = append(addresses, address)
		}
	}
	return addresses
}

// hostNetwork has every node that is ready look from its own network: what kubelets, API servers and host-network pods
// see. A pod's network can be sound where this is not: its packets are translated before the node chooses a route.
func (v *verification) hostNetwork(ctx context.Context, service *corev1.Service, ready bool) {
	var nodes []string
	var plan []hostTarget
	if !v.do(ctx, checkHostNetwork, v.o.Target.Cluster, func(ctx context.Context) (_ string, err error) {
		if nodes, err = v.readyNodes(ctx); err != nil {
			return "", err
		}
		api, err := v.connection.client.CoreV1().Services(metav1.NamespaceDefault).Get(ctx, "kubernetes", metav1.GetOptions{})
		if err != nil {
			return "", fmt.Errorf("read the API's own service: %w", err)
		}
		plan = hostPlan(api, service, v.o.DNSDomain, ready)
		return fmt.Sprintf("%d nodes look at %d targets", len(nodes), len(plan)), nil
	}) {
		return
	}
	if !ready {
		v.tell(ctx, Check{Name: checkHostService, Target: v.o.Target.Cluster},
			errors.New("not looked at: no probe pod is ready, so the service has no endpoint that could answer; see the checks \"pod runs\""))
	}
	v.awaitHostReports(ctx, v.makeHostProbes(ctx, nodes, plan), func(node string, results []probeResult) {
		for _, c := range v.hostChecks(node, plan, results) {
			v.tell(ctx, c.Check, c.err)
		}
	})
}

// readyNodes are those that run pods.
func (v *verification) readyNodes(ctx context.Context) ([]string, error) {
	list, err := v.connection.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var nodes []string
	for i := range list.Items {
		if stateOf(&list.Items[i]).Ready {
			nodes = append(nodes, list.Items[i].Name)
		}
	}
	if len(nodes) == 0 {
		return nil, fmt.Errorf("not looked at: none of %d nodes is Ready, so no pod can look from there; see the checks \"node\"", len(list.Items))
	}
	return nodes, nil
}

// makeHostProbes makes a pod on each node and returns the nodes that have one.
func (v *verification) makeHostProbes(ctx context.Context, nodes []string, plan []hostTarget) []string {
	made := make([]bool, len(nodes))
	each(ctx, nodes, func(ctx context.Context, node string) {
		limited, cancel := context.WithTimeout(ctx, checkTimeout)
		defer cancel()
		began := time.Now()
		if err := v.makeHostProbe(limited, node, plan); err != nil {
			v.tell(ctx, Check{Name: checkHostNetwork, Target: node, Duration: time.Since(began)}, err)
			return
		}
		made[slices.Index(nodes, node)] = true
	})
	var with []string
	for i, node := range nodes {
		if made[i] {
			with = append(with, node)
		}
	}
	return with
}

// makeHostProbe makes a pod that goes to its node without the scheduler, listens nowhere, tries the plan and ends.
func (v *verification) makeHostProbe(ctx context.Context, node string, plan []hostTarget) error {
	arguments := []string{"report", v.o.settle.String()}
	for _, p := range plan {
		arguments = append(arguments, p.target)
	}
	spec := v.probePod()
	spec.NodeName, spec.HostNetwork, spec.DNSPolicy, spec.RestartPolicy = node, true, corev1.DNSClusterFirstWithHostNet, corev1.RestartPolicyNever
	spec.Containers[0].Args = arguments
	return v.createPod(ctx, &corev1.Pod{Spec: spec, ObjectMeta: metav1.ObjectMeta{Namespace: hostNamespace, Name: node,
		Labels: map[string]string{"app.kubernetes.io/name": probeName}}}, metav1.CreateOptions{FieldManager: FieldManager})
}

// awaitHostReports waits until the probe of each node has ended, and hands over what it found.
func (v *verification) awaitHostReports(ctx context.Context, nodes []string, found func(node string, results []probeResult)) {
	began := time.Now()
	missing := map[string]string{}
	for _, node := range nodes {
		missing[node] = "its pod was removed"
	}
	for len(missing) > 0 && ctx.Err() == nil {
		err := v.hostReports(ctx, func(node string, results []probeResult, ended bool, err error) {
			_, wanted := missing[node]
			switch {
			case !wanted:
			case !ended:
				missing[node] = err.Error()
			case err != nil:
				delete(missing, node)
				v.tell(ctx, Check{Name: checkHostNetwork, Target: node, Duration: time.Since(began)}, err)
			default:
				delete(missing, node)
				found(node, results)
			}
		})
		if time.Since(began) > v.o.Timeout+v.o.settle {
			for node, problem := range missing {
				if err != nil {
					problem = err.Error()
				}
				v.tell(ctx, Check{Name: checkHostNetwork, Target: node, Duration: time.Since(began)},
					fmt.Errorf("no report after %s: %s", v.o.Timeout+v.o.settle, problem))
			}
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(pollPause):
		}
	}
}

func (v *verification) hostReports(ctx context.Context, look func(node string, results []probeResult, ended bool, err error)) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	pods, err := v.connection.client.CoreV1().Pods(hostNamespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for i := range pods.Items {
		results, ended, err := readReport(&pods.Items[i])
		look(pods.Items[i].Spec.NodeName, results, ended, err)
	}
	return nil
}

// readReport reads what a probe left when it ended. The error of one that has not ended says what it waits for.
func readReport(pod *corev1.Pod) (results []probeResult, ended bool, err error) {
	for _, c := range pod.Status.ContainerStatuses {
		e := c.State.Terminated
		if e == nil {
			continue
		}
		if err := json.Unmarshal([]byte(e.Message), &results); err != nil {
			return nil, true, fmt.Errorf("the probe ended with %d and without a report: %s", e.ExitCode, cmp.Or(strings.TrimSpace(e.Reason+" "+e.Message), "it says nothing"))
		}
		return results, true, nil
	}
	if pod.Status.Phase == corev1.PodFailed {
		return nil, true, fmt.Errorf("the kubelet does not run the probe: %s", cmp.Or(strings.TrimSpace(pod.Status.Reason+" "+pod.Status.Message), "it gives no reason"))
	}
	return nil, false, errors.New(podProblem(pod))
}

// hostCheck is a check with its error.
type hostCheck struct {
	Check
	err error
}

// hostChecks are the checks of one node's report.
func (v *verification) hostChecks(node string, plan []hostTarget, results []probeResult) []hostCheck {
	var checks []hostCheck
	for _, name := range []string{checkHostAPI, checkHostDNS, checkHostService} {
		c := hostCheck{Check: Check{Name: name, Target: "from " + node}}
		var found, failures []string
		planned := 0
		for _, p := range plan {
			if p.check != name {
				continue
			}
			planned++
			i := slices.IndexFunc(results, func(r probeResult) bool { return r.Target == p.target })
			switch {
			case i < 0:
				failures = append(failures, p.target+": the probe's report does not have it")
				continue
			case !results[i].OK:
				failures = append(failures, p.target+": "+results[i].Error)
			}
			found = append(found, results[i].Addresses...)
			c.Duration = max(c.Duration, time.Duration(results[i].Seconds*float64(time.Second)))
		}
		if planned == 0 {
			continue
		}
		slices.Sort(found)
		c.Detail = strings.Join(slices.Compact(found), " ")
		if len(failures) > 0 {
			c.err = fmt.Errorf("the node's own network does not reach %s", v.advised(node, strings.Join(failures, "; ")))
		}
		checks = append(checks, c)
	}
	return checks
}

// advised adds to a problem that a node's own network has with a service what to do about it. The words are the kernel's
// and net/http's.
func (v *verification) advised(node, problem string) string {
	has := func(words ...string) bool {
		return slices.ContainsFunc(words, func(word string) bool { return strings.Contains(problem, word) })
	}
	switch {
	case has("network is unreachable"):
		return problem + "; " + v.routeAdvice(node)
	case has("no route to host", "i/o timeout", "no answer within", "deadline exceeded"):
		return fmt.Sprintf("%s; %s has a route, but kube-proxy there does not translate the address or nothing answers behind it: "+
			"kubectl -n kube-system get pods -o wide -l k8s-app=kube-proxy", problem, node)
	case has("connection refused"):
		return fmt.Sprintf("%s; the service has no endpoint that is ready, or kube-proxy on %s does not know it: kubectl get endpointslices -A", problem, node)
	}
	return problem
}

// routeAdvice is for a node that has no route to the service networks.
func (v *verification) routeAdvice(node string) string {
	if len(v.o.ServiceNetworks) == 0 {
		return node + " has no route to the service network: ip route"
	}
	var networks, asks, adds []string
	for _, network := range v.o.ServiceNetworks {
		networks = append(networks, network.String())
		asks = append(asks, "ip route get "+network.Addr().Next().String())
		adds = append(adds, "ip route add "+network.String()+" dev INTERFACE")
	}
	text := fmt.Sprintf("%s has no route to the service network %s (there: %s). ", node, strings.Join(networks, ", "), strings.Join(asks, "; "))
	if v.o.ProxyNone {
		return text + "With spec.network.proxy none, what replaces kube-proxy has to bring it"
	}
	return text + "Coldrack's agent keeps such a route: ip route show proto 67; systemctl status coldrack-agent. Until it does: " + strings.Join(adds, "; ")
}

// nodeAt is the node that has an address; the address where no node of the plan has it.
func (v *verification) nodeAt(address netip.Addr) string {
	for _, n := range v.o.Nodes {
		if slices.Contains(n.Addresses, address) {
			return n.Name
		}
	}
	return address.String()
}
