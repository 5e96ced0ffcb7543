package node

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/cluster/loadbalancer"
)

const (
	// checkEvery is the time between two looks at the proxy; it counts as broken after failuresAllowed of them.
	checkEvery      = time.Second
	failuresAllowed = 3
)

// follow tells the speaker what it is to do, until ctx ends.
func (a *agent) follow(ctx context.Context) {
	ticker := time.NewTicker(checkEvery)
	defer ticker.Stop()
	failures := 0
	var fine time.Time // since when nothing is wrong
	for {
		nodes := listed[*corev1.Node](a.nodes)
		peers := map[string]netip.AddrPort{}
		var own *corev1.Node
		for _, n := range nodes {
			if addresses := addressesOf(n); len(addresses) > 0 {
				peers[n.Name] = netip.AddrPortFrom(addresses[0], a.Port)
			}
			if n.Name == a.Node {
				own = n
			}
		}
		a.speaker.SetPeers(peers)
		pools, routers, err := a.pools()
		if err != nil {
			a.Log.Error("cannot read the pools; going on with what was announced before", "configMap", Name, "err", err)
		} else {
			a.routers.follow(ctx, routers, pools)
			a.speaker.SetAddresses(addressesWanted(pools, listed[*corev1.Service](a.services), listed[*discoveryv1.EndpointSlice](a.slices)))
		}
		standing := standingOf(own, failures < failuresAllowed)
		now := time.Now()
		switch {
		case standing != loadbalancer.Ready:
			fine = time.Time{}
		case fine.IsZero():
			fine = now
			fallthrough
		case now.Sub(fine) < a.Steady:
			standing = loadbalancer.Reserve
		}
		a.speaker.SetStanding(standing)
		select {
		case <-ctx.Done():
			return
		case <-a.changed:
		case <-ticker.C:
			if a.Healthy == nil {
				continue
			}
			if err := a.Healthy(ctx); err == nil {
				if failures >= failuresAllowed {
					a.Log.Info("the node's service proxy is healthy again")
				}
				failures = 0
			} else if failures++; failures == failuresAllowed {
				a.Log.Warn("the node's service proxy is not healthy; leaving addresses to other nodes", "err", err)
			}
		}
	}
}

// standingOf the node, as the API describes it.
func standingOf(own *corev1.Node, healthy bool) loadbalancer.Standing {
	switch {
	case own == nil || own.DeletionTimestamp != nil || excluded(own):
		return loadbalancer.Absent
	case own.Spec.Unschedulable || !healthy:
		return loadbalancer.Reserve
	}
	return loadbalancer.Ready
}

// excluded: Coldrack, as kubeadm, has the label on every control plane, also on those that are workers. There it says nothing.
func excluded(n *corev1.Node) bool {
	_, excluded := n.Labels[LabelExclude]
	_, controlPlane := n.Labels[labelControlPlane]
	return excluded && !controlPlane
}

// pools of the cluster, as Coldrack wrote them, and the routers that are told of those that are routed; nil: none.
func (a *agent) pools() ([]loadbalancer.Pool, *v1alpha1.LoadBalancerBGP, error) {
	found := listed[*corev1.ConfigMap](a.config) // the one of this name
	if len(found) == 0 {
		return nil, nil, fmt.Errorf("there is no ConfigMap %s/%s", a.Namespace, Name)
	}
	var spec []v1alpha1.LoadBalancerPool
	if err := json.Unmarshal([]byte(found[0].Data[PoolsKey]), &spec); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", PoolsKey, err)
	}
	var routers *v1alpha1.LoadBalancerBGP
	if text := found[0].Data[RoutersKey]; text != "" {
		var routed struct {
			v1alpha1.LoadBalancerBGP
			Pools []v1alpha1.LoadBalancerPool `json:"pools"`
		}
		if err := json.Unmarshal([]byte(text), &routed); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", RoutersKey, err)
		}
		routers, spec = &routed.LoadBalancerBGP, append(spec, routed.Pools...)
	}
	pools, err := loadbalancer.Pools(spec)
	return pools, routers, err
}

// ours says whether a Service is one that we give an address.
func ours(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeLoadBalancer && (s.Spec.LoadBalancerClass == nil || *s.Spec.LoadBalancerClass == Class)
}

// addressesOfService are those in its status.
func addressesOfService(s *corev1.Service) (addresses []netip.Addr) {
	for _, ingress := range s.Status.LoadBalancer.Ingress {
		if a, err := netip.ParseAddr(ingress.IP); err == nil {
			addresses = append(addresses, a)
		}
	}
	return addresses
}

// addressesWanted are those that speakers answer for, and on which nodes. What is in no pool is left out, whoever has written it
// into a status.
func addressesWanted(pools []loadbalancer.Pool, services []*corev1.Service, endpoints []*discoveryv1.EndpointSlice) []loadbalancer.Address {
	type of struct {
		key    string
		family discoveryv1.AddressType
	}
	where := map[of][]string{}
	for _, s := range endpoints {
		key := of{s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName], s.AddressType}
		for _, e := range s.Endpoints {
			where[key] = append(where[key], *e.NodeName)
		}
	}
	var wanted []loadbalancer.Address
	for _, s := range services {
		if !ours(s) || s.DeletionTimestamp != nil {
			continue
		}
		for _, address := range addressesOfService(s) {
			pool, ok := loadbalancer.PoolOf(pools, address)
			if !ok {
				continue
			}
			w := loadbalancer.Address{Addr: address, Routed: pool.Routed}
			if s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
				// Never nil: without endpoints nobody may answer.
				w.Nodes = append([]string{}, where[of{s.Namespace + "/" + s.Name, discoveryv1.AddressType(loadbalancer.FamilyOf(address))}]...)
			}
			wanted = append(wanted, w)
		}
	}
	return wanted
}

// ProxyHealth asks a service proxy at a URL that answers with status 200 while it works.
func ProxyHealth(url string) func(context.Context) error {
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	return func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("%s answers %s", url, response.Status)
		}
		return nil
	}
}
