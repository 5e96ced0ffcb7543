package v1alpha1

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func group(name string, replicas int32, roles ...Role) MachineGroup {
	return MachineGroup{ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: MachineGroupSpec{Cluster: "rack", Replicas: &replicas, Roles: roles}}
}

func TestValidateCluster(t *testing.T) {
	subnet := Subnet{ObjectMeta: metav1.ObjectMeta{Name: "lan"}, Spec: SubnetSpec{
		CIDR: "10.20.0.0/24", Gateway: "10.20.0.1", Discovery: "10.20.0.200-10.20.0.250", Static: "10.20.0.10-10.20.0.99"}}
	type world struct {
		c *Cluster
		f *ClusterFacts
	}
	vip := func(w world, address string) {
		w.c.Spec.Endpoint.VirtualIP = &VirtualIP{Address: address}
	}
	pool := func(w world, addresses ...string) {
		w.c.Spec.Network.LoadBalancer = &ClusterLoadBalancer{Pools: []LoadBalancerPool{{Name: "default", Addresses: addresses}}}
	}
	bgp := func(w world, change func(*ClusterLoadBalancer), addresses ...string) {
		w.c.Spec.Network.LoadBalancer = &ClusterLoadBalancer{Pools: []LoadBalancerPool{{Name: "far", Addresses: addresses, Announce: AnnounceBGP}},
			BGP: &LoadBalancerBGP{LocalASN: 64512, Peers: []BGPPeer{{Name: "tor-1", Address: "10.20.0.1", ASN: 64513}, {Name: "tor-2", Address: "fd20::1", ASN: 64514}}}}
		if change != nil {
			change(w.c.Spec.Network.LoadBalancer)
		}
	}
	duration := func(d time.Duration) *metav1.Duration { return &metav1.Duration{Duration: d} }
	tests := []struct {
		name   string
		change func(world)
		want   []string // "field: part of the reason"; none: accepted
	}{
		{"three machines that are everything are accepted", func(world) {}, nil},
		{"a cluster without groups yet is accepted", func(w world) { w.f.Groups = nil }, nil},
		{"a version that no bundle contains", func(w world) { w.c.Spec.Version = "v1.37.9" }, []string{"spec.version: is in no imported bundle; there are v1.36.3, v1.37.2"}},
		{"a version when no bundle has Kubernetes", func(w world) { w.f.Versions = []string{} }, []string{"spec.version: no imported bundle contains Kubernetes"}},
		{"something that is not a version", func(w world) { w.c.Spec.Version = "1.37" }, []string{"spec.version: such as v1.37.2"}},
		{"a name that cannot be part of a host name", func(w world) { w.c.Name = "Rack_1" }, []string{"metadata.name: lowercase"}},

		{"two etcd members", func(w world) { w.f.Groups[0] = group("all", 2, RoleEtcd, RoleControlPlane, RoleWorker) },
			[]string{"spec.etcd.allowEvenMembers: want 2 etcd members; that tolerates 0 failures"}},
		{"four etcd members", func(w world) { w.f.Groups[0] = group("all", 4, RoleEtcd, RoleControlPlane, RoleWorker) },
			[]string{"spec.etcd.allowEvenMembers: Want 3 or 5"}},
		{"four etcd members on purpose", func(w world) {
			w.f.Groups[0], w.c.Spec.Etcd.AllowEvenMembers = group("all", 4, RoleEtcd, RoleControlPlane, RoleWorker), true
		}, nil},
		{"an even number over two groups", func(w world) { w.f.Groups = append(w.f.Groups, group("more", 1, RoleEtcd)) },
			[]string{"spec.etcd.allowEvenMembers: want 4 etcd members"}},
		{"nine etcd members", func(w world) { w.f.Groups[0] = group("all", 9, RoleEtcd, RoleControlPlane, RoleWorker) }, []string{"spec.etcd: more than 7"}},
		{"nobody with a role", func(w world) { w.f.Groups[0] = group("all", 3, RoleEtcd) },
			[]string{"spec: role control-plane: there would be no API", "spec: role worker: no pod could run"}},

		{"pod and service networks overlap", func(w world) { w.c.Spec.Network.ServiceCIDRs = []string{"10.244.128.0/20"} },
			[]string{"spec.network.serviceCIDRs[0]: overlaps with spec.network.podCIDRs[0], 10.244.0.0/16"}},
		{"the pod network overlaps with a subnet", func(w world) { w.c.Spec.Network.PodCIDRs = []string{"10.20.0.0/16"} },
			[]string{"spec.network.podCIDRs[0]: overlaps with 10.20.0.0/24 of Subnet lan"}},
		{"the service network overlaps with a subnet", func(w world) { w.c.Spec.Network.ServiceCIDRs = []string{"10.16.0.0/12"} },
			[]string{"spec.network.serviceCIDRs[0]: overlaps with 10.20.0.0/24 of Subnet lan"}},
		{"a network with host bits", func(w world) { w.c.Spec.Network.PodCIDRs = []string{"10.244.7.0/16"} },
			[]string{"spec.network.podCIDRs[0]: is in is 10.244.0.0/16"}},
		{"a network that is none", func(w world) { w.c.Spec.Network.PodCIDRs = []string{"10.244.0.0"} }, []string{"spec.network.podCIDRs[0]: must be a network"}},
		{"loopback for pods", func(w world) { w.c.Spec.Network.PodCIDRs = []string{"127.64.0.0/16"} }, []string{"spec.network.podCIDRs[0]: overlaps with the loopback addresses"}},
		{"two pod networks of one family", func(w world) {
			w.c.Spec.Network.PodCIDRs = []string{"10.244.0.0/16", "10.245.0.0/16"}
			w.c.Spec.Network.ServiceCIDRs = []string{"10.96.0.0/16"}
		}, []string{"spec.network.podCIDRs[1]: second network of its IP family"}},
		{"services in one family of two", func(w world) { w.c.Spec.Network.PodCIDRs = []string{"10.244.0.0/16", "fd00:244::/48"} },
			[]string{"spec.network.serviceCIDRs: of the same IP families"}},
		{"families in another order", func(w world) {
			w.c.Spec.Network.PodCIDRs = []string{"10.244.0.0/16", "fd00:244::/48"}
			w.c.Spec.Network.ServiceCIDRs = []string{"fd00:96::/112", "10.96.0.0/16"}
		}, []string{"spec.network.serviceCIDRs[0]: of the same IP family as spec.network.podCIDRs[0]", "spec.network.serviceCIDRs[1]: of the same IP family"}},
		{"both families", func(w world) {
			w.c.Spec.Network.PodCIDRs = []string{"10.244.0.0/16", "fd00:244::/48"}
			w.c.Spec.Network.ServiceCIDRs = []string{"10.96.0.0/16", "fd00:96::/112"}
		}, nil},
		{"a service network that is too small", func(w world) { w.c.Spec.Network.ServiceCIDRs = []string{"10.96.0.0/28"} },
			[]string{"spec.network.serviceCIDRs[0]: too small: services need at least a /26"}},
		{"a service network that is too large", func(w world) { w.c.Spec.Network.ServiceCIDRs = []string{"11.0.0.0/8"} },
			[]string{"spec.network.serviceCIDRs[0]: too large: Kubernetes takes at most a /12"}},
		{"a pod network too small for the machines", func(w world) { w.c.Spec.Network.PodCIDRs = []string{"10.244.0.0/23"} },
			[]string{"spec.network.podCIDRs[0]: room for the pods of 2 nodes with a /24 for each, and the groups want 3"}},
		{"a node's network larger than all pods'", func(w world) { w.c.Spec.Network.NodeMaskIPv4 = 15 }, []string{"spec.network.nodeMaskIPv4: more than the whole"}},
		{"a domain that is none", func(w world) { w.c.Spec.Network.DNSDomain = "cluster local" }, []string{"spec.network.dnsDomain: lowercase"}},
		{"an MTU too small for IPv6 in VXLAN", func(w world) {
			w.c.Spec.Network = ClusterNetwork{PodCIDRs: []string{"fd00:244::/48"}, ServiceCIDRs: []string{"fd00:96::/112"}, Plugin: NetworkFlannel, MTU: 1300}
		}, []string{"spec.network.mtu: at least 1350"}},

		{"a virtual IP of the machines' subnet", func(w world) { vip(w, "10.20.0.5") }, nil},
		{"a virtual IP that is none", func(w world) { vip(w, "10.20.0.5/24") }, []string{"spec.endpoint.virtualIP.address: without prefix length"}},
		{"a virtual IP in no subnet", func(w world) { vip(w, "10.30.0.5") }, []string{"spec.endpoint.virtualIP.address: in no Subnet"}},
		{"a pool beside all other addresses", func(w world) { pool(w, "10.20.0.110-10.20.0.119", "10.20.0.128/26", "10.20.0.120", "fd20::/120") }, nil},
		{"a pool in no Subnet", func(w world) { pool(w, "192.0.2.0/24") }, nil},
		{"a loadBalancer without pools", func(w world) { w.c.Spec.Network.LoadBalancer = &ClusterLoadBalancer{} }, []string{"spec.network.loadBalancer.pools: name at least one pool"}},
		{"a pool of no addresses", func(w world) { pool(w) }, []string{"spec.network.loadBalancer.pools[0].addresses: at least one address"}},
		{"a pool of something else", func(w world) { pool(w, "lan", "10.20.0.120/26", "10.20.0.120-", "::ffff:10.20.0.120") }, []string{
			"spec.network.loadBalancer.pools[0].addresses[0]: is no address and no network; want", "spec.network.loadBalancer.pools[0].addresses[1]: is in is 10.20.0.64/26",
			"spec.network.loadBalancer.pools[0].addresses[2]: is not an IP address", "spec.network.loadBalancer.pools[0].addresses[3]: is no address and no network"}},
		{"a pool that machines get addresses of", func(w world) { pool(w, "10.20.0.90-10.20.0.110", "10.20.0.240/28") }, []string{
			"spec.network.loadBalancer.pools[0].addresses[0]: overlaps with the static range 10.20.0.10-10.20.0.99 of Subnet lan",
			"spec.network.loadBalancer.pools[0].addresses[1]: overlaps with the discovery range", "spec.network.loadBalancer.pools[0].addresses[1]: overlaps with 10.20.0.255, the broadcast address of Subnet lan"}},
		{"a pool with the gateway and the network's address", func(w world) { pool(w, "10.20.0.0/29") }, []string{
			"spec.network.loadBalancer.pools[0].addresses[0]: overlaps with 10.20.0.0, the network's own address", "spec.network.loadBalancer.pools[0].addresses[0]: overlaps with the gateway 10.20.0.1"}},
		{"a pool among pods, services and loopback", func(w world) { pool(w, "10.244.3.0/24", "10.96.0.200", "127.0.0.1") }, []string{
			"spec.network.loadBalancer.pools[0].addresses[0]: overlaps with spec.network.podCIDRs[0], 10.244.0.0/16", "spec.network.loadBalancer.pools[0].addresses[1]: overlaps with spec.network.serviceCIDRs[0]",
			"spec.network.loadBalancer.pools[0].addresses[2]: overlaps with 127.0.0.0/8"}},
		{"a pool with the virtual IP", func(w world) { vip(w, "10.20.0.120"); pool(w, "10.20.0.120") }, []string{"spec.network.loadBalancer.pools[0].addresses[0]: overlaps with the virtual IP of the API"}},
		{"pools that overlap", func(w world) { pool(w, "10.20.0.120", "10.20.0.112/28") }, []string{"spec.network.loadBalancer.pools[0].addresses[1]: overlaps with spec.network.loadBalancer.pools[0].addresses[0], 10.20.0.120"}},
		{"a pool with addresses of another cluster's", func(w world) {
			pool(w, "10.20.0.112/28")
			other := Cluster{ObjectMeta: metav1.ObjectMeta{Name: "other"}}
			other.Spec.Network.LoadBalancer = &ClusterLoadBalancer{Pools: []LoadBalancerPool{{Name: "p", Addresses: []string{"10.20.0.120"}}}}
			other.Spec.Endpoint.VirtualIP = &VirtualIP{Address: "10.20.0.121"}
			w.f.Clusters = []Cluster{other}
		}, []string{"spec.network.loadBalancer.pools[0].addresses[0]: overlaps with the virtual IP 10.20.0.121 of Cluster other", "spec.network.loadBalancer.pools[0].addresses[0]: overlaps with 10.20.0.120 of a pool of Cluster other"}},
		{"a virtual IP in another cluster's pool", func(w world) {
			vip(w, "10.20.0.120")
			other := Cluster{ObjectMeta: metav1.ObjectMeta{Name: "other"}}
			other.Spec.Network.LoadBalancer = &ClusterLoadBalancer{Pools: []LoadBalancerPool{{Name: "p", Addresses: []string{"10.20.0.120"}}}}
			w.f.Clusters = []Cluster{other}
		}, []string{"spec.endpoint.virtualIP.address: lies in 10.20.0.120, a pool of Cluster other"}},
		{"pools that routers are told of", func(w world) { bgp(w, nil, "198.51.100.0/24", "2001:db8::/120") }, nil},
		{"routers of every kind", func(w world) {
			bgp(w, func(lb *ClusterLoadBalancer) {
				lb.BGP.Peers[0].Port, lb.BGP.Peers[0].Hops, lb.BGP.Peers[0].HoldTime, lb.BGP.Peers[0].PasswordKey = 1179, 2, duration(18*time.Hour+12*time.Minute+15*time.Second), "tor.1"
				lb.Pools[0].Communities = []string{"64512:100", "0:65535", "4294967295:0:1", "no-export", "no-advertise"}
				lb.BGP.LocalASN = 4200000000
			}, "198.51.100.7")
		}, nil},
		{"routers before there is a pool for them", func(w world) {
			bgp(w, func(lb *ClusterLoadBalancer) { lb.Pools[0].Announce = AnnounceSegment }, "10.20.0.120")
		}, nil},
		{"a pool for routers, and none", func(w world) { bgp(w, func(lb *ClusterLoadBalancer) { lb.BGP = nil }, "198.51.100.7") },
			[]string{"spec.network.loadBalancer.pools[0].announce: needs routers; name them in spec.network.loadBalancer.bgp"}},
		{"no peers", func(w world) { bgp(w, func(lb *ClusterLoadBalancer) { lb.BGP.Peers = nil }, "198.51.100.7") },
			[]string{"spec.network.loadBalancer.bgp.peers: name at least one router, or leave bgp out"}},
		{"a pool of a family that no router has", func(w world) {
			bgp(w, func(lb *ClusterLoadBalancer) { lb.BGP.Peers = lb.BGP.Peers[:1] }, "198.51.100.7", "2001:db8::7")
		},
			[]string{"spec.network.loadBalancer.pools[0].addresses[1]: is IPv6, and no peer of spec.network.loadBalancer.bgp has an IPv6 address"}},
		{"another way to announce", func(w world) { bgp(w, func(lb *ClusterLoadBalancer) { lb.Pools[0].Announce = "ospf" }, "198.51.100.7") },
			[]string{`spec.network.loadBalancer.pools[0].announce: supported values: "segment", "bgp"`}},
		{"communities on the segment", func(w world) {
			bgp(w, func(lb *ClusterLoadBalancer) { lb.Pools[0].Announce, lb.Pools[0].Communities = "", []string{"64512:1"} }, "10.20.0.120")
		}, []string{"spec.network.loadBalancer.pools[0].communities: are of routes; set announce: bgp"}},
		{"communities that are none", func(w world) {
			bgp(w, func(lb *ClusterLoadBalancer) {
				lb.Pools[0].Communities = []string{"64512", "65536:1", "1:2:3:4", "1:2:4294967296", "01:2", "no-exports", "", "1:-2"}
			}, "198.51.100.7")
		}, []string{
			"spec.network.loadBalancer.pools[0].communities[0]: is no community; want ASN:VALUE", `spec.network.loadBalancer.pools[0].communities[1]: "65536" is no number of a community`, "spec.network.loadBalancer.pools[0].communities[2]: is no community",
			`spec.network.loadBalancer.pools[0].communities[3]: "4294967296" is no number`, `spec.network.loadBalancer.pools[0].communities[4]: "01" is no number`, "spec.network.loadBalancer.pools[0].communities[5]: is no community",
			"spec.network.loadBalancer.pools[0].communities[6]: is no community", `spec.network.loadBalancer.pools[0].communities[7]: "-2" is no number`}},
		{"numbers of nobody", func(w world) {
			bgp(w, func(lb *ClusterLoadBalancer) {
				lb.BGP.LocalASN, lb.BGP.Peers[0].ASN, lb.BGP.Peers[1].ASN = 0, 23456, 65535
				lb.BGP.Peers = append(lb.BGP.Peers, BGPPeer{Name: "c", Address: "10.20.0.3", ASN: 4294967295}, BGPPeer{Name: "d", Address: "10.20.0.4", ASN: -1}, BGPPeer{Name: "e", Address: "10.20.0.6", ASN: 1 << 32})
			}, "198.51.100.7")
		}, []string{"spec.network.loadBalancer.bgp.localASN: 0 is nobody's", "spec.network.loadBalancer.bgp.peers[0].asn: 23456 stands for numbers above 65535", "spec.network.loadBalancer.bgp.peers[1].asn: the last numbers, 65535 and 4294967295, are nobody's",
			"spec.network.loadBalancer.bgp.peers[2].asn: the last numbers", "spec.network.loadBalancer.bgp.peers[3].asn: is no number of 32 bits", "spec.network.loadBalancer.bgp.peers[4].asn: is no number of 32 bits"}},
		{"addresses where no router is", func(w world) {
			bgp(w, func(lb *ClusterLoadBalancer) {
				lb.BGP.Peers = nil
				for i, address := range []string{"tor-1", "fe80::1", "fd20::1%eth0", "::ffff:10.20.0.1", "127.0.0.1", "224.0.0.5", "198.51.100.7", "10.244.0.1", "0.0.0.0", "255.255.255.255", "10.20.0.1/24", "10.20.0.1"} {
					lb.BGP.Peers = append(lb.BGP.Peers, BGPPeer{Name: string(rune('a' + i)), Address: address, ASN: 64513})
				}
			}, "198.51.100.0/24")
		}, []string{"spec.network.loadBalancer.bgp.peers[0].address: is no IP address", "spec.network.loadBalancer.bgp.peers[1].address: is link-local", "spec.network.loadBalancer.bgp.peers[2].address: is link-local", "spec.network.loadBalancer.bgp.peers[3].address: IPv4 addresses are written",
			"spec.network.loadBalancer.bgp.peers[4].address: is no router's address", "spec.network.loadBalancer.bgp.peers[5].address: is no router's address", "spec.network.loadBalancer.bgp.peers[6].address: lies in spec.network.loadBalancer.pools[0].addresses[0], 198.51.100.0/24, which Services get",
			"spec.network.loadBalancer.bgp.peers[7].address: lies in spec.network.podCIDRs[0]", "spec.network.loadBalancer.bgp.peers[8].address: is no router's address", "spec.network.loadBalancer.bgp.peers[9].address: is no router's address", "spec.network.loadBalancer.bgp.peers[10].address: is no IP address"}},
		{"peers with one name, and with one address", func(w world) {
			bgp(w, func(lb *ClusterLoadBalancer) {
				lb.BGP.Peers = append(lb.BGP.Peers, BGPPeer{Name: "tor-1", Address: "10.20.0.1", ASN: 64513}, BGPPeer{Name: "Tor", Address: "10.20.0.7", ASN: 64513})
			}, "198.51.100.7")
		}, []string{"spec.network.loadBalancer.bgp.peers[2].name: Duplicate", "spec.network.loadBalancer.bgp.peers[2].address: is that of peer tor-1, too", "spec.network.loadBalancer.bgp.peers[3].name: a lowercase RFC 1123 label"}},
		{"other fields of a peer", func(w world) {
			bgp(w, func(lb *ClusterLoadBalancer) {
				lb.BGP.Peers[0].Port, lb.BGP.Peers[0].Hops, lb.BGP.Peers[0].HoldTime, lb.BGP.Peers[0].PasswordKey = 65536, 256, duration(2*time.Second), "a/b"
				lb.BGP.Peers[1].ASN, lb.BGP.Peers[1].Hops, lb.BGP.Peers[1].HoldTime = lb.BGP.LocalASN, 2, duration(3500*time.Millisecond)
			}, "198.51.100.7")
		}, []string{"spec.network.loadBalancer.bgp.peers[0].port: is no TCP port", "spec.network.loadBalancer.bgp.peers[0].hops: want 1 to 255", "spec.network.loadBalancer.bgp.peers[0].holdTime: want whole seconds from 3s",
			"spec.network.loadBalancer.bgp.peers[0].passwordKey: is no key of a Secret", "spec.network.loadBalancer.bgp.peers[1].hops: is for routers of another autonomous system", "spec.network.loadBalancer.bgp.peers[1].holdTime: want whole seconds"}},
		{"a hold time of nothing", func(w world) {
			bgp(w, func(lb *ClusterLoadBalancer) { lb.BGP.Peers[0].HoldTime = duration(0) }, "198.51.100.7")
		},
			[]string{"spec.network.loadBalancer.bgp.peers[0].holdTime: without any a node that is gone would never be noticed"}},
		{"the gateway as virtual IP", func(w world) { vip(w, "10.20.0.1") }, []string{"spec.endpoint.virtualIP.address: is the gateway of Subnet lan"}},
		{"a virtual IP that a machine could get", func(w world) { vip(w, "10.20.0.50") }, []string{"spec.endpoint.virtualIP.address: lies in the static range"}},
		{"a virtual IP of the discovery range", func(w world) { vip(w, "10.20.0.220") }, []string{"spec.endpoint.virtualIP.address: lies in the discovery range"}},
		{"a virtual IP among the pods", func(w world) { vip(w, "10.244.0.5"); w.f.Subnets = nil }, []string{"spec.endpoint.virtualIP.address: lies in spec.network.podCIDRs[0]"}},
		{"another cluster's virtual IP", func(w world) {
			vip(w, "10.20.0.5")
			w.f.Clusters = []Cluster{{ObjectMeta: metav1.ObjectMeta{Name: "other"}, Spec: ClusterSpec{Endpoint: ClusterEndpoint{VirtualIP: &VirtualIP{Address: "10.20.0.5", RouterID: 9}}}}}
		}, []string{"spec.endpoint.virtualIP.address: virtual IP of Cluster other"}},
		{"another cluster's router id in the same subnet", func(w world) {
			vip(w, "10.20.0.5")
			w.f.Clusters = []Cluster{{ObjectMeta: metav1.ObjectMeta{Name: "other"}, Spec: ClusterSpec{Endpoint: ClusterEndpoint{VirtualIP: &VirtualIP{Address: "10.20.0.6", RouterID: 64}}}}}
		}, []string{"spec.endpoint.virtualIP.routerID: also that of Cluster other"}},
		{"the cluster itself among the others", func(w world) { vip(w, "10.20.0.5"); w.f.Clusters = []Cluster{*w.c.DeepCopy()} }, nil},
		{"a host with a port", func(w world) { w.c.Spec.Endpoint.Host = "api.example.org:6443" }, []string{"spec.endpoint.host: without port"}},
		{"etcd's port for the API", func(w world) { w.c.Spec.Endpoint.Port = 2379 }, []string{"spec.endpoint.port: is the port of etcd"}},
		{"one port for both", func(w world) { w.c.Spec.Endpoint.LocalPort = 6443 }, []string{"spec.endpoint.localPort: is the port of the API servers"}},
		{"a node port", func(w world) { w.c.Spec.Endpoint.Port = 30443 }, []string{"spec.endpoint.port: node ports"}},
		{"a wildcard among the names", func(w world) { w.c.Spec.Endpoint.ExtraSANs = []string{"*.example.org", "10.1.1.1"} }, nil},
		{"something that is no name", func(w world) { w.c.Spec.Endpoint.ExtraSANs = []string{"https://x"} }, []string{"spec.endpoint.extraSANs[0]: must be an IP address or a DNS name"}},

		{"certificates for a minute", func(w world) { w.c.Spec.PKI.CertificateTTL = duration(time.Minute) }, []string{"spec.pki.certificateTTL: at least 1h"}},
		{"authorities that end before certificates", func(w world) { w.c.Spec.PKI.AuthorityTTL = duration(24 * time.Hour) }, []string{"spec.pki.authorityTTL: below certificateTTL"}},
		{"a mirror with a password", func(w world) {
			w.c.Spec.Registries = []RegistryMirror{{Host: "docker.io", Endpoints: []string{"https://me:secret@mirror.example.org"}}}
		}, []string{"spec.registries[0].endpoints[0]: without credentials"}},
		{"a mirror's authority that is none", func(w world) {
			w.c.Spec.Registries = []RegistryMirror{{Host: "docker.io", Endpoints: []string{"https://mirror.example.org"}, CA: "x"}}
		}, []string{"spec.registries[0].ca: must be PEM"}},
		{"a window on Sundays and one in the nights", func(w world) {
			w.c.Spec.MaintenanceWindows = []MaintenanceWindow{{Days: []Weekday{"Sunday"}, From: "02:00", Duration: duration(6 * time.Hour)}, {From: "22:00", To: "05:30", TimeZone: "Europe/Berlin"}}
		}, nil},
		{"a window that never closes", func(w world) { w.c.Spec.MaintenanceWindows = []MaintenanceWindow{{From: "02:00"}} }, []string{"spec.maintenanceWindows[0]: say when it closes"}},
		{"a window that closes twice", func(w world) {
			w.c.Spec.MaintenanceWindows = []MaintenanceWindow{{From: "02:00", To: "03:00", Duration: duration(time.Hour)}}
		}, []string{"spec.maintenanceWindows[0]: say when it closes"}},
		{"a window that closes when it opens", func(w world) { w.c.Spec.MaintenanceWindows = []MaintenanceWindow{{From: "02:00", To: "02:00"}} },
			[]string{"spec.maintenanceWindows[0].to: the same as from"}},
		{"a window at no time of the day", func(w world) { w.c.Spec.MaintenanceWindows = []MaintenanceWindow{{From: "2:00", To: "25:00"}} },
			[]string{"spec.maintenanceWindows[0].from: time of day", "spec.maintenanceWindows[0].to: time of day"}},
		{"a window of a month", func(w world) {
			w.c.Spec.MaintenanceWindows = []MaintenanceWindow{{From: "02:00", Duration: duration(720 * time.Hour)}}
		}, []string{"spec.maintenanceWindows[0].duration: at most 168h"}},
		{"a window on no day, twice on another", func(w world) {
			w.c.Spec.MaintenanceWindows = []MaintenanceWindow{{Days: []Weekday{"Sun", "Monday", "Monday"}, From: "02:00", To: "04:00"}}
		}, []string{"spec.maintenanceWindows[0].days[0]: supported values", "spec.maintenanceWindows[0].days[2]: Duplicate"}},
		{"a window in no time zone", func(w world) {
			w.c.Spec.MaintenanceWindows = []MaintenanceWindow{{From: "02:00", To: "04:00", TimeZone: "Europe/Atlantis"}}
		}, []string{"spec.maintenanceWindows[0].timeZone: Atlantis"}},
		{"a drain that may take no time", func(w world) { w.c.Spec.Upgrade.DrainTimeout = duration(0) }, []string{"spec.upgrade.drainTimeout: positive"}},

		{"laptop with three machines", func(w world) { w.c.Spec.Topology = TopologyLaptop }, []string{"spec.topology: is one machine, and the groups want 3"}},
		{"small with three machines", func(w world) { w.c.Spec.Topology = TopologySmall }, nil},
		{"small with an extra worker", func(w world) {
			w.c.Spec.Topology, w.f.Groups = TopologySmall, append(w.f.Groups, group("more", 1, RoleWorker))
		}, []string{"spec.topology: every machine is to have the roles"}},
		{"development with three control planes", func(w world) { w.c.Spec.Topology = TopologyDevelopment }, []string{"spec.topology: one machine with etcd and control plane"}},
		{"production as it should be", func(w world) {
			w.c.Spec.Topology = TopologyProduction
			w.f.Groups = []MachineGroup{group("etcd", 3, RoleEtcd), group("control", 2, RoleControlPlane), group("workers", 9, RoleWorker)}
			vip(w, "10.20.0.5")
		}, nil},
		{"production with one etcd, one control plane and no endpoint", func(w world) {
			w.c.Spec.Topology = TopologyProduction
			w.f.Groups = []MachineGroup{group("etcd", 1, RoleEtcd), group("control", 1, RoleControlPlane, RoleWorker)}
		}, []string{"spec.endpoint: needs a virtualIP or a host", "spec.topology: at least three machines with etcd", "spec.topology: at least two machines with the control plane",
			"spec.topology: group control has 2"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := world{
				&Cluster{ObjectMeta: metav1.ObjectMeta{Name: "rack"}, Spec: ClusterSpec{Version: "v1.37.2"}},
				&ClusterFacts{Groups: []MachineGroup{group("all", 3, RoleEtcd, RoleControlPlane, RoleWorker)},
					Versions: []string{"v1.37.2", "v1.36.3"}, Subnets: []Subnet{subnet}},
			}
			test.change(w)
			wantEachError(t, ValidateCluster(w.c, *w.f), test.want)
		})
	}
}

// wantEachError compares errors with "field: part of the reason", in any order.
func wantEachError(t *testing.T, errs field.ErrorList, want []string) {
	t.Helper()
	rest := slices.Clone(errs)
	for _, w := range want {
		at, reason, _ := strings.Cut(w, ": ")
		i := slices.IndexFunc(rest, func(err *field.Error) bool { return err.Field == at && strings.Contains(err.Error(), reason) })
		if i < 0 {
			t.Errorf("no error of %s about %q; got %v", at, reason, errs)
			continue
		}
		rest = slices.Delete(rest, i, i+1)
	}
	if len(rest) > 0 {
		t.Errorf("unexpected errors: %v", rest)
	}
}

func TestValidateMachineGroup(t *testing.T) {
	tests := []struct {
		name   string
		change func(*MachineGroup)
		want   []string
	}{
		{"workers are accepted", func(*MachineGroup) {}, nil},
		{"no roles", func(g *MachineGroup) { g.Spec.Roles = nil }, []string{"spec.roles: one or more of etcd"}},
		{"an unknown role", func(g *MachineGroup) { g.Spec.Roles = []Role{"master"} }, []string{"spec.roles[0]: Unsupported value"}},
		{"a role twice", func(g *MachineGroup) { g.Spec.Roles = []Role{RoleWorker, RoleWorker} }, []string{"spec.roles[1]: Duplicate"}},
		{"no cluster", func(g *MachineGroup) { g.Spec.Cluster = "" }, []string{"spec.cluster: name the Cluster"}},
		{"a role as a label", func(g *MachineGroup) { g.Spec.Labels = map[string]string{"node-role.kubernetes.io/db": ""} }, []string{"spec.labels[node-role.kubernetes.io/db]: follows from roles"}},
		{"a taint without effect", func(g *MachineGroup) { g.Spec.Taints = []Taint{{Key: "gpu"}} }, []string{"spec.taints[0].effect: Unsupported value"}},
		{"a selector that selects nothing sensible", func(g *MachineGroup) {
			g.Spec.Selector.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "rack", Operator: "In"}}
		}, []string{"spec.selector.matchExpressions[0].values: must be specified"}},
		{"remediation", func(g *MachineGroup) {
			g.Spec.Remediation = RemediationSpec{Enabled: true, NotReadyFor: &metav1.Duration{Duration: time.Minute}, MaxUnhealthy: new(intstr.FromString("40%")), Pause: &metav1.Duration{Duration: time.Minute}}
		}, nil},
		{"remediation of nobody", func(g *MachineGroup) { g.Spec.Remediation.MaxUnhealthy = new(intstr.FromInt32(0)) },
			[]string{"spec.remediation.maxUnhealthy: from 1 on"}},
		{"remediation at once", func(g *MachineGroup) { g.Spec.Remediation.NotReadyFor = &metav1.Duration{Duration: 0} }, []string{"spec.remediation.notReadyFor: positive"}},
		{"remediation without a pause", func(g *MachineGroup) { g.Spec.Remediation.Pause = &metav1.Duration{Duration: -time.Minute} }, []string{"spec.remediation.pause: positive"}},
		{"a budget of nothing", func(g *MachineGroup) { g.Spec.Rollout.MaxUnavailable = &intstr.IntOrString{} }, []string{"spec.rollout.maxUnavailable: more than nothing"}},
		{"a budget of a third", func(g *MachineGroup) {
			g.Spec.Rollout.MaxUnavailable = &intstr.IntOrString{Type: intstr.String, StrVal: "33%"}
		}, nil},
		{"a budget of two with etcd", func(g *MachineGroup) {
			g.Spec.Roles = []Role{RoleEtcd}
			g.Spec.Rollout.MaxUnavailable = &intstr.IntOrString{IntVal: 2}
		}, []string{"spec.rollout.maxUnavailable: must be 1 for machines with etcd"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			g := group("workers", 2, RoleWorker)
			test.change(&g)
			wantEachError(t, ValidateMachineGroup(&g), test.want)
		})
	}
}

func TestPlaceMachines(t *testing.T) {
	machines := func(specs ...string) []Machine { // name[=label,label], a dash in front: not approved
		var list []Machine
		for _, spec := range specs {
			name, labels, _ := strings.Cut(spec, "=")
			m := Machine{ObjectMeta: metav1.ObjectMeta{Name: strings.TrimPrefix(name, "-"), Labels: map[string]string{}}}
			m.Spec.Approved = !strings.HasPrefix(name, "-")
			for label := range strings.SplitSeq(labels, ",") {
				m.Labels[label] = "yes"
			}
			list = append(list, m)
		}
		return list
	}
	selecting := func(g MachineGroup, labels ...string) MachineGroup {
		g.Spec.Selector.MatchLabels = map[string]string{}
		for _, label := range labels {
			g.Spec.Selector.MatchLabels[label] = "yes"
		}
		return g
	}
	having := func(g MachineGroup, names ...string) MachineGroup {
		g.Status.Machines = names
		return g
	}
	tests := []struct {
		name     string
		groups   []MachineGroup
		machines []Machine
		want     map[string][]string
		errors   []string
	}{
		{"machines go to groups by name", []MachineGroup{group("a", 1), group("b", 2)}, machines("m3", "m1", "m2"),
			map[string][]string{"a": {"m1"}, "b": {"m2", "m3"}}, nil},
		{"a group without selector leaves the others theirs", []MachineGroup{group("a", 1), selecting(group("b", 1), "ssd")}, machines("m1=ssd", "m2"),
			map[string][]string{"a": {"m2"}, "b": {"m1"}}, nil},
		{"overlapping selectors are both satisfied", []MachineGroup{selecting(group("a", 1), "ssd"), selecting(group("b", 1), "big")},
			machines("m1=ssd,big", "m2=ssd"), map[string][]string{"a": {"m2"}, "b": {"m1"}}, nil},
		{"three groups in a ring", []MachineGroup{selecting(group("a", 1), "x"), selecting(group("b", 1), "y"), selecting(group("c", 1), "z")},
			machines("m1=x,y,z", "m2=x,y", "m3=x"), map[string][]string{"a": {"m3"}, "b": {"m2"}, "c": {"m1"}}, nil},
		{"a machine stays where it is, even where another order would satisfy both", []MachineGroup{having(selecting(group("a", 1), "ssd"), "m1"), selecting(group("b", 1), "big")},
			machines("m1=ssd,big", "m2=ssd"), map[string][]string{"a": {"m1"}},
			[]string{"spec.replicas: MachineGroup b can have 0: 1 approved machines match its selector, 1 of them belong to other groups"}},
		{"an unapproved machine is not taken", []MachineGroup{group("a", 2)}, machines("-m1", "m2"), map[string][]string{"a": {"m2"}},
			[]string{"spec.replicas: can have 1: 1 approved machines match its selector; 1 more would match but are not approved"}},
		{"more wanted than there are", []MachineGroup{group("a", 3)}, machines("m1"), map[string][]string{"a": {"m1"}}, []string{"spec.replicas: can have 1"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := PlaceMachines(test.groups, test.machines)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("placed otherwise (- want, + got):\n%s", diff)
			}
			wantEachError(t, ValidatePlacement(test.groups, test.machines), test.errors)
		})
	}
}

func TestPlacingManyMachinesIsQuick(t *testing.T) {
	var machines []Machine
	for i := range 2000 {
		machines = append(machines, Machine{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("m%04d", i)}, Spec: MachineSpec{Approved: true}})
	}
	placed, err := PlaceMachines([]MachineGroup{group("a", 1500), group("b", 500), group("c", 10)}, machines)
	if err != nil || len(placed["a"]) != 1500 || len(placed["b"]) != 500 || len(placed["c"]) != 0 {
		t.Errorf("a %d, b %d, c %d: %v", len(placed["a"]), len(placed["b"]), len(placed["c"]), err)
	}
}

func TestValidateClusterChange(t *testing.T) {
	open := &Cluster{}
	written := &Cluster{Spec: ClusterSpec{Network: ClusterNetwork{PodCIDRs: []string{"10.244.0.0/16"}}}}
	other := &Cluster{Spec: ClusterSpec{Network: ClusterNetwork{PodCIDRs: []string{"10.40.0.0/16"}, NodeMaskIPv4: 25}}}
	ports := &Cluster{Spec: ClusterSpec{Endpoint: ClusterEndpoint{Port: 8443, LocalPort: 8445}}}
	for _, test := range []struct {
		name    string
		is, was *Cluster
		nodes   int
		want    []string
	}{
		{"what was left open may be written down", written, open, 1, nil},
		{"what was left open counts as its default", other, open, 1, []string{"spec.network.podCIDRs", "spec.network.nodeMaskIPv4"}},
		{"nodes that wait for their turn need the ports that they know", ports, open, 1, []string{"spec.endpoint.port", "spec.endpoint.localPort"}},
		{"before there are nodes, everything may change", other, written, 0, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			was := test.was.DeepCopy()
			was.Status.Nodes = make([]ClusterNode, test.nodes)
			var fields []string
			for _, err := range ValidateClusterChange(test.is, was) {
				fields = append(fields, err.Field)
			}
			if !slices.Equal(fields, test.want) {
				t.Errorf("got %v, want %v", fields, test.want)
			}
		})
	}
}

func TestAPauseInWhichOthersChangedFilesEndsOnPurposeOnly(t *testing.T) {
	machine := func(name, cluster string, drift ...string) Machine {
		return Machine{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: MachineStatus{Kubernetes: &KubernetesStatus{Cluster: cluster, Drift: drift}}}
	}
	changed := []Machine{machine("a", "rack", "/1", "/2", "/3", "/4"), machine("b", "rack"), {}, machine("c", "other", "/5")}
	for _, test := range []struct {
		name     string
		was, is  bool // paused
		putBack  string
		machines []Machine
		want     string
	}{
		{"nobody changed anything", true, false, "", []Machine{machine("b", "rack"), machine("c", "other", "/5")}, ""},
		{"somebody did", true, false, "", changed, "a: /1, /2, /3 and 1 more. "},
		{"and it is to be put back", true, false, "now", changed, ""},
		{"it stays paused", true, true, "", changed, ""},
		{"it begins to be", false, true, "", changed, ""},
		{"it was not paused", false, false, "", changed, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			old := &Cluster{ObjectMeta: metav1.ObjectMeta{Name: "rack", Annotations: map[string]string{}}, Spec: ClusterSpec{Paused: test.was}}
			c := old.DeepCopy()
			c.Spec.Paused = test.is
			if test.putBack != "" {
				c.Annotations[AnnotationPutBack] = test.putBack
			}
			errs := ValidateResume(c, old, test.machines)
			if (len(errs) > 0) != (test.want != "") || test.want != "" && !strings.Contains(errs[0].Error(), test.want) {
				t.Errorf("%v, want %q", errs, test.want)
			}
			if test.putBack != "" && len(ValidateResume(c, c, test.machines)) != 0 {
				t.Error("a cluster that was resumed is refused")
			}
		})
	}
}
