package v1alpha1

import (
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// ClusterFacts are what a cluster is checked against.
//
// +kubebuilder:object:generate=false
type ClusterFacts struct {
	// Groups that name the cluster.
	Groups []MachineGroup
	// Versions of Kubernetes that the imported bundles contain. nil: not known, any is accepted.
	Versions []string
	Subnets  []Subnet
	// Clusters that exist beside it. One of the same name is the one that it replaces.
	Clusters []Cluster
}

const (
	// minServiceHostBits leaves 64 addresses for services, of which Kubernetes and DNS take two.
	minServiceHostBits = 6
	// maxServiceHostBits is as many as the API server allocates from.
	maxServiceHostBits = 20
	// maxEtcdMembers: every write is acknowledged by a majority, so that more members only make it slower.
	maxEtcdMembers    = 7
	minCertificateTTL = time.Hour
	minIPv6MTU        = 1280
	flannelIPv6Extra  = 70
)

// ValidateCluster refuses what cannot work. Each error names the field and the reason.
func ValidateCluster(cluster *Cluster, facts ClusterFacts) field.ErrorList {
	c := cluster.DeepCopy()
	c.Default()
	spec := field.NewPath("spec")
	errs := validateClusterName(c.Name)
	errs = append(errs, validateVersion(spec.Child("version"), c.Spec.Version, facts.Versions)...)
	networks, more := validateClusterNetwork(spec.Child("network"), &c.Spec.Network, machinesWanted(facts.Groups))
	errs = append(errs, more...)
	errs = append(errs, validateApart(networks, facts.Subnets)...)
	errs = append(errs, validateEndpoint(spec.Child("endpoint"), c, networks, facts)...)
	errs = append(errs, validateLoadBalancer(spec.Child("network", "loadBalancer"), c, networks, facts)...)
	errs = append(errs, validatePKI(spec.Child("pki"), &c.Spec.PKI)...)
	errs = append(errs, validateExtraArgs(c)...)
	errs = append(errs, validateRegistries(spec.Child("registries"), c.Spec.Registries)...)
	errs = append(errs, validateBackup(spec.Child("etcd", "backup"), &c.Spec.Etcd.Backup)...)
	if d := c.Spec.Upgrade.DrainTimeout; d != nil && d.Duration <= 0 {
		errs = append(errs, field.Invalid(spec.Child("upgrade", "drainTimeout"), d.Duration.String(), "must be positive"))
	}
	errs = append(errs, ValidateMaintenanceWindows(spec.Child("maintenanceWindows"), c.Spec.MaintenanceWindows)...)
	return append(errs, validateTopology(spec, c, facts.Groups)...)
}

// leastBackupEvery keeps backups from following each other without a pause.
const leastBackupEvery = time.Minute

func validateBackup(at *field.Path, b *EtcdBackup) field.ErrorList {
	var errs field.ErrorList
	if d := b.Every; d != nil && d.Duration != 0 && d.Duration < leastBackupEvery {
		errs = append(errs, field.Invalid(at.Child("every"), d.Duration.String(), "must be at least 1m, or 0s to take none by itself"))
	}
	if b.Folder != "" && (!path.IsAbs(b.Folder) || path.Clean(b.Folder) != b.Folder || b.Folder == "/") {
		errs = append(errs, field.Invalid(at.Child("folder"), b.Folder, "must be an absolute path on the server, without . and .., such as /mnt/backups"))
	}
	return errs
}

// validateClusterName keeps the name usable in host names, certificates and etcd tokens.
func validateClusterName(name string) field.ErrorList {
	var errs field.ErrorList
	for _, problem := range validation.IsDNS1123Label(name) {
		errs = append(errs, field.Invalid(field.NewPath("metadata", "name"), name, problem))
	}
	return errs
}

func validateVersion(at *field.Path, version string, known []string) field.ErrorList {
	var minor, patch int
	if n, err := fmt.Sscanf(version, "v1.%d.%d", &minor, &patch); n != 2 || err != nil || version != fmt.Sprintf("v1.%d.%d", minor, patch) {
		return field.ErrorList{field.Invalid(at, version, "must be a version such as v1.37.2")}
	}
	if known == nil || slices.Contains(known, version) {
		return nil
	}
	if len(known) == 0 {
		return field.ErrorList{field.Invalid(at, version, "is in no imported bundle, and no imported bundle contains Kubernetes; import one that does")}
	}
	sorted := slices.Sorted(slices.Values(known))
	return field.ErrorList{field.Invalid(at, version, fmt.Sprintf("is in no imported bundle; there are %s", strings.Join(sorted, ", ")))}
}

func machinesWanted(groups []MachineGroup) int {
	total := 0
	for i := range groups {
		total += groups[i].WantedReplicas()
	}
	return total
}

// namedNetwork is a network with the field that it comes from.
type namedNetwork struct {
	at     *field.Path
	prefix netip.Prefix
}

func validateClusterNetwork(at *field.Path, n *ClusterNetwork, machines int) ([]namedNetwork, field.ErrorList) {
	pods, errs := validateNetworks(at.Child("podCIDRs"), n.PodCIDRs)
	services, more := validateNetworks(at.Child("serviceCIDRs"), n.ServiceCIDRs)
	errs = append(errs, more...)
	if len(errs) > 0 {
		return nil, errs
	}
	if len(pods) != len(services) {
		errs = append(errs, field.Invalid(at.Child("serviceCIDRs"), n.ServiceCIDRs,
			fmt.Sprintf("must be of the same IP families as podCIDRs, %s", strings.Join(n.PodCIDRs, ", "))))
	}
	for i := range min(len(pods), len(services)) {
		if pods[i].prefix.Addr().Is4() != services[i].prefix.Addr().Is4() {
			errs = append(errs, field.Invalid(services[i].at, services[i].prefix.String(),
				fmt.Sprintf("must be of the same IP family as %s, %s", pods[i].at, pods[i].prefix)))
		}
	}
	for _, p := range pods {
		mask, name := int(n.NodeMaskIPv4), "nodeMaskIPv4"
		if p.prefix.Addr().Is6() {
			mask, name = int(n.NodeMaskIPv6), "nodeMaskIPv6"
		}
		room := mask - p.prefix.Bits()
		switch {
		case room < 0:
			errs = append(errs, field.Invalid(at.Child(name), mask, fmt.Sprintf("one node's pods would need more than the whole of %s, %s", p.at, p.prefix)))
		case mask >= p.prefix.Addr().BitLen()-1:
			errs = append(errs, field.Invalid(at.Child(name), mask, "leaves a node no address for a pod"))
		// Kubernetes itself handles at most 16 bits of nodes.
		case room > 16:
			errs = append(errs, field.Invalid(at.Child(name), mask, fmt.Sprintf("is more than 16 bits longer than the prefix of %s, %s", p.at, p.prefix)))
		case room < 31 && machines > 1<<room:
			errs = append(errs, field.Invalid(p.at, p.prefix.String(),
				fmt.Sprintf("has room for the pods of %d nodes with a /%d for each, and the groups want %d machines", 1<<room, mask, machines)))
		}
	}
	for _, s := range services {
		host := s.prefix.Addr().BitLen() - s.prefix.Bits()
		if host < minServiceHostBits {
			errs = append(errs, field.Invalid(s.at, s.prefix.String(), fmt.Sprintf("is too small: services need at least a /%d",
				s.prefix.Addr().BitLen()-minServiceHostBits)))
		}
		if host > maxServiceHostBits {
			errs = append(errs, field.Invalid(s.at, s.prefix.String(), fmt.Sprintf("is too large: Kubernetes takes at most a /%d",
				s.prefix.Addr().BitLen()-maxServiceHostBits)))
		}
	}
	for _, problem := range validation.IsDNS1123Subdomain(n.DNSDomain) {
		errs = append(errs, field.Invalid(at.Child("dnsDomain"), n.DNSDomain, problem))
	}
	if ipv6 := slices.ContainsFunc(pods, func(p namedNetwork) bool { return p.prefix.Addr().Is6() }); ipv6 {
		least := int32(minIPv6MTU)
		if n.Plugin == NetworkFlannel {
			least += flannelIPv6Extra
		}
		if n.MTU < least {
			errs = append(errs, field.Invalid(at.Child("mtu"), n.MTU, fmt.Sprintf("IPv6 needs at least %d with network plugin %s", least, n.Plugin)))
		}
	}
	return append(pods, services...), errs
}

// validateNetworks parses at most one network of each IP family.
func validateNetworks(at *field.Path, cidrs []string) ([]namedNetwork, field.ErrorList) {
	var networks []namedNetwork
	var errs field.ErrorList
	for i, cidr := range cidrs {
		at := at.Index(i)
		prefix, err := netip.ParsePrefix(cidr)
		switch {
		case err != nil || prefix.Addr().Is4In6():
			errs = append(errs, field.Invalid(at, cidr, "must be a network such as 10.244.0.0/16 or fd00:244::/48"))
			continue
		case prefix != prefix.Masked():
			errs = append(errs, field.Invalid(at, cidr,
				fmt.Sprintf("has bits set behind the prefix length; the network that this address is in is %s", prefix.Masked())))
			continue
		}
		for _, reserved := range []struct{ cidr, why string }{
			{"127.0.0.0/8", "loopback"}, {"169.254.0.0/16", "link-local"}, {"224.0.0.0/3", "multicast and reserved"},
			{"::1/128", "loopback"}, {"fe80::/10", "link-local"}, {"ff00::/8", "multicast"}, {"0.0.0.0/8", "\"this network\""},
		} {
			if netip.MustParsePrefix(reserved.cidr).Overlaps(prefix) {
				errs = append(errs, field.Invalid(at, cidr, fmt.Sprintf("overlaps with the %s addresses %s", reserved.why, reserved.cidr)))
			}
		}
		if slices.ContainsFunc(networks, func(n namedNetwork) bool { return n.prefix.Addr().Is4() == prefix.Addr().Is4() }) {
			errs = append(errs, field.Invalid(at, cidr, "is the second network of its IP family; there can be one of each"))
		}
		networks = append(networks, namedNetwork{at, prefix})
	}
	return networks, errs
}

// validateApart makes sure that an address belongs to one network only: a pod could not reach a machine whose
// address is also a service's.
func validateApart(networks []namedNetwork, subnets []Subnet) field.ErrorList {
	var errs field.ErrorList
	for i, network := range networks {
		for _, other := range networks[:i] {
			if network.prefix.Overlaps(other.prefix) {
				errs = append(errs, field.Invalid(network.at, network.prefix.String(), fmt.Sprintf("overlaps with %s, %s", other.at, other.prefix)))
			}
		}
		for _, subnet := range subnets {
			if theirs, err := netip.ParsePrefix(subnet.Spec.CIDR); err == nil && network.prefix.Overlaps(theirs) {
				errs = append(errs, field.Invalid(network.at, network.prefix.String(), fmt.Sprintf("overlaps with %s of Subnet %s", theirs, subnet.Name)))
			}
		}
	}
	return errs
}

// nodePorts are ports that something on a node already listens on.
func nodePorts() map[int32]string {
	return map[int32]string{
		22: "SSH", 2379: "etcd", 2380: "etcd", 2381: "etcd", 10248: "the kubelet", 10249: "kube-proxy", 10250: "the kubelet",
		10256: "kube-proxy", 10257: "kube-controller-manager", 10259: "kube-scheduler",
	}
}

func validateEndpoint(at *field.Path, c *Cluster, networks []namedNetwork, facts ClusterFacts) field.ErrorList {
	var errs field.ErrorList
	endpoint := &c.Spec.Endpoint
	if endpoint.Host != "" {
		errs = append(errs, validateHost(at.Child("host"), endpoint.Host)...)
	}
	for i, name := range endpoint.ExtraSANs {
		errs = append(errs, validateHost(at.Child("extraSANs").Index(i), strings.TrimPrefix(name, "*."))...)
	}
	for name, port := range map[string]int32{"port": endpoint.Port, "localPort": endpoint.LocalPort} {
		if user, taken := nodePorts()[port]; taken {
			errs = append(errs, field.Invalid(at.Child(name), port, fmt.Sprintf("is the port of %s on every node", user)))
		}
		if port >= 30000 && port <= 32767 {
			errs = append(errs, field.Invalid(at.Child(name), port, "lies in the range of node ports of services, 30000-32767"))
		}
	}
	if endpoint.Port == endpoint.LocalPort {
		errs = append(errs, field.Invalid(at.Child("localPort"), endpoint.LocalPort, "is the port of the API servers; both listen on a control-plane machine's loopback address"))
	}
	if endpoint.VirtualIP != nil {
		errs = append(errs, validateVirtualIP(at.Child("virtualIP"), c, networks, facts)...)
	}
	slices.SortStableFunc(errs, func(a, b *field.Error) int { return cmp.Compare(a.Field, b.Field) })
	return errs
}

func validateHost(at *field.Path, host string) field.ErrorList {
	if _, err := netip.ParseAddr(host); err == nil {
		return nil
	}
	if problems := validation.IsDNS1123Subdomain(host); len(problems) > 0 {
		return field.ErrorList{field.Invalid(at, host, "must be an IP address or a DNS name, without port")}
	}
	return nil
}

func validateVirtualIP(at *field.Path, c *Cluster, networks []namedNetwork, facts ClusterFacts) field.ErrorList {
	vip := c.Spec.Endpoint.VirtualIP
	at, router := at.Child("address"), at.Child("routerID")
	address, err := netip.ParseAddr(vip.Address)
	if err != nil || address.Zone() != "" || address.IsUnspecified() || address.IsLoopback() || address.IsMulticast() {
		return field.ErrorList{field.Invalid(at, vip.Address, "must be the IP address of one host, without prefix length")}
	}
	var errs field.ErrorList
	for _, network := range networks {
		if network.prefix.Contains(address) {
			errs = append(errs, field.Invalid(at, vip.Address, fmt.Sprintf("lies in %s, %s", network.at, network.prefix)))
		}
	}
	var home *Subnet
	for i := range facts.Subnets {
		s := &facts.Subnets[i]
		if prefix, err := netip.ParsePrefix(s.Spec.CIDR); err == nil && prefix.Contains(address) {
			home = s
			if address == prefix.Masked().Addr() {
				errs = append(errs, field.Invalid(at, vip.Address, fmt.Sprintf("is the network's own address of Subnet %s", s.Name)))
			}
		}
	}
	switch {
	case home != nil:
		if home.Spec.Gateway == address.String() {
			errs = append(errs, field.Invalid(at, vip.Address, fmt.Sprintf("is the gateway of Subnet %s", home.Name)))
		}
		for name, value := range map[string]string{"discovery": home.Spec.Discovery, "static": home.Spec.Static} {
			if r, err := ParseAddressRange(value); err == nil && r.Contains(address) {
				errs = append(errs, field.Invalid(at, vip.Address, fmt.Sprintf("lies in the %s range %s of Subnet %s, whose addresses go to machines", name, r, home.Name)))
			}
		}
	case len(facts.Subnets) > 0:
		errs = append(errs, field.Invalid(at, vip.Address, "lies in no Subnet; it must be of the control-plane machines' own"))
	}
	for i := range facts.Clusters {
		other := &facts.Clusters[i]
		theirs := other.Spec.Endpoint.VirtualIP
		if other.Name == c.Name {
			continue
		}
		pools, _ := poolRanges(nil, other.Spec.Network.LoadBalancer)
		for _, r := range pools {
			if r.Contains(address) {
				errs = append(errs, field.Invalid(at, vip.Address, fmt.Sprintf("lies in %s, a pool of Cluster %s", r.text, other.Name)))
			}
		}
		if theirs == nil {
			continue
		}
		if a, err := netip.ParseAddr(theirs.Address); err == nil && a == address {
			errs = append(errs, field.Invalid(at, vip.Address, fmt.Sprintf("is the virtual IP of Cluster %s", other.Name)))
		} else if err == nil && home != nil && theirs.RouterID == vip.RouterID {
			if prefix, err := netip.ParsePrefix(home.Spec.CIDR); err == nil && prefix.Contains(a) {
				errs = append(errs, field.Invalid(router, vip.RouterID, fmt.Sprintf("is also that of Cluster %s in Subnet %s; each would take the other's announcements for its own", other.Name, home.Name)))
			}
		}
	}
	return errs
}

func validatePKI(at *field.Path, p *ClusterPKI) field.ErrorList {
	var errs field.ErrorList
	authority := 10 * 365 * 24 * time.Hour
	if p.AuthorityTTL != nil {
		authority = p.AuthorityTTL.Duration
	}
	if p.CertificateTTL != nil && p.CertificateTTL.Duration < minCertificateTTL {
		errs = append(errs, field.Invalid(at.Child("certificateTTL"), p.CertificateTTL.Duration.String(),
			fmt.Sprintf("must be at least %s: renewing takes place when two thirds have passed, and a server may be down for a while", minCertificateTTL)))
	}
	certificate := 365 * 24 * time.Hour
	if p.CertificateTTL != nil {
		certificate = p.CertificateTTL.Duration
	}
	if authority < certificate {
		errs = append(errs, field.Invalid(at.Child("authorityTTL"), authority.String(), fmt.Sprintf("must not be below certificateTTL, %s", certificate)))
	}
	return errs
}

func validateRegistries(at *field.Path, registries []RegistryMirror) field.ErrorList {
	var errs field.ErrorList
	for i, registry := range registries {
		at := at.Index(i)
		host, _, _ := strings.Cut(registry.Host, ":")
		if _, err := netip.ParseAddr(host); err != nil && len(validation.IsDNS1123Subdomain(host)) > 0 {
			errs = append(errs, field.Invalid(at.Child("host"), registry.Host, "must be the host of image names, for example docker.io or registry.example.org:5000"))
		}
		for j, endpoint := range registry.Endpoints {
			u, err := url.Parse(endpoint)
			if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" {
				errs = append(errs, field.Invalid(at.Child("endpoints").Index(j), endpoint, "must be a URL such as https://mirror.example.org, without credentials"))
			}
		}
		if registry.CA == "" {
			continue
		}
		block, _ := pem.Decode([]byte(registry.CA))
		if block == nil || block.Type != "CERTIFICATE" {
			errs = append(errs, field.Invalid(at.Child("ca"), shorten(registry.CA), "must be PEM certificates"))
		} else if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			errs = append(errs, field.Invalid(at.Child("ca"), shorten(registry.CA), err.Error()))
		}
	}
	return errs
}

// roleCount is how many machines of all groups have a role.
func roleCount(groups []MachineGroup, role Role) int {
	total := 0
	for i := range groups {
		if groups[i].HasRole(role) {
			total += groups[i].WantedReplicas()
		}
	}
	return total
}

// validateTopology checks what only all groups together can get wrong.
func validateTopology(spec *field.Path, c *Cluster, groups []MachineGroup) field.ErrorList {
	if groups == nil {
		return nil // a cluster may be written before its groups
	}
	etcd, control, workers := roleCount(groups, RoleEtcd), roleCount(groups, RoleControlPlane), roleCount(groups, RoleWorker)
	at := spec.Child("topology")
	var errs field.ErrorList
	refuse := func(format string, args ...any) {
		errs = append(errs, field.Invalid(at, string(c.Spec.Topology), fmt.Sprintf(format, args...)))
	}
	for _, role := range []struct {
		name  Role
		count int
		why   string
	}{{RoleEtcd, etcd, "nothing would be remembered"}, {RoleControlPlane, control, "there would be no API"}, {RoleWorker, workers, "no pod could run"}} {
		if role.count == 0 {
			errs = append(errs, field.Required(spec, fmt.Sprintf("no machine of any group of cluster %s has role %s: %s", c.Name, role.name, role.why)))
		}
	}
	if etcd > 0 && etcd%2 == 0 && !c.Spec.Etcd.AllowEvenMembers {
		errs = append(errs, field.Invalid(spec.Child("etcd", "allowEvenMembers"), false, fmt.Sprintf(
			"the groups want %d etcd members; that tolerates %d failures, no more than %d members would, and two halves that lose sight of each other both stop. "+
				"Want %d or %d, or set this to true", etcd, (etcd-1)/2, etcd-1, etcd-1, etcd+1)))
	}
	if etcd > maxEtcdMembers {
		errs = append(errs, field.Invalid(spec.Child("etcd"), etcd, fmt.Sprintf("the groups want more than %d etcd members; each makes every write slower", maxEtcdMembers)))
	}
	switch c.Spec.Topology {
	case TopologyLaptop:
		if n := machinesWanted(groups); n != 1 {
			refuse("is one machine, and the groups want %d", n)
		}
	case TopologySmall:
		n := machinesWanted(groups)
		if etcd != n || control != n || workers != n {
			refuse("every machine is to have the roles etcd, control-plane and worker; of %d, %d, %d and %d have", n, etcd, control, workers)
		} else if n < 3 || n > 5 {
			refuse("is three to five machines, and the groups want %d", n)
		}
	case TopologyDevelopment:
		if etcd != 1 || control != 1 {
			refuse("has one machine with etcd and control plane; the groups want %d with etcd and %d with the control plane", etcd, control)
		}
	case TopologyProduction:
		if etcd < 3 {
			refuse("has at least three machines with etcd, and the groups want %d", etcd)
		}
		if control < 2 {
			refuse("has at least two machines with the control plane, and the groups want %d", control)
		}
		for i := range groups {
			if g := &groups[i]; len(g.Spec.Roles) > 1 {
				refuse("gives every machine one role, and group %s has %d", g.Name, len(g.Spec.Roles))
			}
		}
		if c.Spec.Endpoint.Host == "" && c.Spec.Endpoint.VirtualIP == nil {
			errs = append(errs, field.Required(spec.Child("endpoint"), "needs a virtualIP or a host: otherwise the endpoint is one machine's address, and goes with it"))
		}
	}
	return errs
}

// ValidateMachineGroup checks a group by itself.
func ValidateMachineGroup(g *MachineGroup) field.ErrorList {
	spec := field.NewPath("spec")
	var errs field.ErrorList
	for _, problem := range validation.IsDNS1123Label(g.Name) {
		errs = append(errs, field.Invalid(field.NewPath("metadata", "name"), g.Name, problem))
	}
	if g.Spec.Cluster == "" {
		errs = append(errs, field.Required(spec.Child("cluster"), "name the Cluster that the group belongs to"))
	}
	if len(g.Spec.Roles) == 0 {
		errs = append(errs, field.Required(spec.Child("roles"), fmt.Sprintf("one or more of %s, %s, %s", RoleEtcd, RoleControlPlane, RoleWorker)))
	}
	for i, role := range g.Spec.Roles {
		if role != RoleEtcd && role != RoleControlPlane && role != RoleWorker {
			errs = append(errs, field.NotSupported(spec.Child("roles").Index(i), role, []Role{RoleEtcd, RoleControlPlane, RoleWorker}))
		} else if slices.Index(g.Spec.Roles, role) < i {
			errs = append(errs, field.Duplicate(spec.Child("roles").Index(i), role))
		}
	}
	if g.Spec.Replicas != nil && *g.Spec.Replicas < 0 {
		errs = append(errs, field.Invalid(spec.Child("replicas"), *g.Spec.Replicas, "must not be negative"))
	}
	errs = append(errs, metav1validation.ValidateLabelSelector(&g.Spec.Selector, metav1validation.LabelSelectorValidationOptions{}, spec.Child("selector"))...)
	errs = append(errs, metav1validation.ValidateLabels(g.Spec.Labels, spec.Child("labels"))...)
	for _, key := range slices.Sorted(maps.Keys(g.Spec.Labels)) {
		if strings.HasPrefix(key, "node-role.kubernetes.io/") {
			errs = append(errs, field.Invalid(spec.Child("labels").Key(key), key, "follows from roles; leave it out"))
		}
	}
	for i, taint := range g.Spec.Taints {
		at := spec.Child("taints").Index(i)
		for _, problem := range validation.IsQualifiedName(taint.Key) {
			errs = append(errs, field.Invalid(at.Child("key"), taint.Key, problem))
		}
		for _, problem := range validation.IsValidLabelValue(taint.Value) {
			errs = append(errs, field.Invalid(at.Child("value"), taint.Value, problem))
		}
		if !slices.Contains([]string{"NoSchedule", "PreferNoSchedule", "NoExecute"}, taint.Effect) {
			errs = append(errs, field.NotSupported(at.Child("effect"), taint.Effect, []string{"NoSchedule", "PreferNoSchedule", "NoExecute"}))
		}
	}
	errs = append(errs, validateRemediation(spec.Child("remediation"), &g.Spec.Remediation)...)
	return append(errs, validateRollout(spec.Child("rollout", "maxUnavailable"), g)...)
}

func validateRemediation(at *field.Path, r *RemediationSpec) field.ErrorList {
	var errs field.ErrorList
	for name, d := range map[string]*metav1.Duration{"notReadyFor": r.NotReadyFor, "pause": r.Pause} {
		if d != nil && d.Duration <= 0 {
			errs = append(errs, field.Invalid(at.Child(name), d.Duration.String(), "must be positive"))
		}
	}
	if most := r.MaxUnhealthy; most != nil {
		if count, err := intstr.GetScaledValueFromIntOrPercent(most, 100, false); err != nil || count < 1 || most.Type == intstr.String && count > 100 {
			errs = append(errs, field.Invalid(at.Child("maxUnhealthy"), most.String(), "must be a number of machines from 1 on, or a percentage from 1% to 100%; to do nothing, set enabled: false"))
		}
	}
	return errs
}

func validateRollout(at *field.Path, g *MachineGroup) field.ErrorList {
	budget := g.Spec.Rollout.MaxUnavailable
	if budget == nil {
		return nil
	}
	count, err := intstr.GetScaledValueFromIntOrPercent(budget, 100, false)
	switch {
	case err != nil || count < 0 || budget.Type == intstr.String && count > 100:
		return field.ErrorList{field.Invalid(at, budget.String(), "must be a number of machines or a percentage up to 100%")}
	case count == 0:
		return field.ErrorList{field.Invalid(at, budget.String(), "must be more than nothing, or no machine could ever be changed")}
	case g.HasRole(RoleEtcd) && (budget.Type == intstr.String || count > 1):
		return field.ErrorList{field.Invalid(at, budget.String(), "must be 1 for machines with etcd: a second one away could cost the majority")}
	}
	return nil
}

// Matches tells whether a group may take a machine.
func (g *MachineGroup) Matches(m *Machine) (bool, error) {
	selector, err := metav1.LabelSelectorAsSelector(&g.Spec.Selector)
	if err != nil {
		return false, fmt.Errorf("spec.selector of MachineGroup %s: %w", g.Name, err)
	}
	return m.Spec.Approved && selector.Matches(labels.Set(m.SelectorLabels())), nil
}

// PlaceMachines gives every group as many machines as it wants, as far as there are enough. A machine that a
// group has (status.machines) stays there as long as it matches and is wanted, because moving it would mean to
// install it again. The rest is decided by name, the groups with the longest selectors first; where groups
// compete, none goes short because of the order. The result is by group name.
func PlaceMachines(groups []MachineGroup, machines []Machine) (map[string][]string, error) {
	order := make([]*MachineGroup, 0, len(groups))
	for i := range groups {
		order = append(order, &groups[i])
	}
	slices.SortFunc(order, func(a, b *MachineGroup) int {
		size := func(g *MachineGroup) int {
			return len(g.Spec.Selector.MatchLabels) + len(g.Spec.Selector.MatchExpressions)
		}
		return cmp.Or(cmp.Compare(size(b), size(a)), cmp.Compare(a.Name, b.Name))
	})
	names := make([]string, 0, len(machines))
	candidates := map[string][]string{}
	for i := range machines {
		names = append(names, machines[i].Name)
	}
	slices.Sort(names)
	for i := range machines {
		for _, g := range order {
			ok, err := g.Matches(&machines[i])
			if err != nil {
				return nil, err
			}
			if ok {
				candidates[g.Name] = append(candidates[g.Name], machines[i].Name)
			}
		}
	}
	p := placement{groupOf: map[string]string{}, kept: map[string]bool{}, free: map[string]int{}, candidates: candidates}
	for _, g := range order {
		slices.Sort(candidates[g.Name])
		p.free[g.Name] = g.WantedReplicas()
		for _, name := range g.Status.Machines {
			if p.free[g.Name] > 0 && p.groupOf[name] == "" && slices.Contains(candidates[g.Name], name) {
				p.groupOf[name], p.kept[name], p.free[g.Name] = g.Name, true, p.free[g.Name]-1
			}
		}
	}
	for _, g := range order {
		for p.free[g.Name] > 0 && p.take(g.Name, map[string]bool{}) {
			p.free[g.Name]--
		}
	}
	placed := map[string][]string{}
	for _, name := range names {
		if g := p.groupOf[name]; g != "" {
			placed[g] = append(placed[g], name)
		}
	}
	return placed, nil
}

// placement is a matching of machines with groups.
type placement struct {
	groupOf    map[string]string
	kept       map[string]bool
	free       map[string]int
	candidates map[string][]string
}

// take finds a machine for a group. A machine of another group is taken only when that one finds a
// replacement (an augmenting path of the matching).
func (p *placement) take(group string, visited map[string]bool) bool {
	visited[group] = true
	for _, name := range p.candidates[group] {
		if p.groupOf[name] == "" {
			p.groupOf[name] = group
			return true
		}
	}
	for _, name := range p.candidates[group] {
		if owner := p.groupOf[name]; !p.kept[name] && !visited[owner] && p.take(owner, visited) {
			p.groupOf[name] = group
			return true
		}
	}
	return false
}

// ValidatePlacement says which groups want more machines than they can have. Groups of all clusters belong in
// one call, because they compete.
func ValidatePlacement(groups []MachineGroup, machines []Machine) field.ErrorList {
	placed, err := PlaceMachines(groups, machines)
	if err != nil {
		return field.ErrorList{field.Invalid(field.NewPath("spec", "selector"), "", err.Error())}
	}
	var errs field.ErrorList
	for i := range groups {
		g := &groups[i]
		wanted, got := g.WantedReplicas(), len(placed[g.Name])
		if got >= wanted {
			continue
		}
		matching, unapproved := 0, 0
		for j := range machines {
			if ok, _ := g.Matches(&machines[j]); ok {
				matching++
				continue
			}
			approved := machines[j]
			approved.Spec.Approved = true
			if ok, _ := g.Matches(&approved); ok {
				unapproved++
			}
		}
		reason := fmt.Sprintf("MachineGroup %s can have %d: %d approved machines match its selector", g.Name, got, matching)
		if matching > got {
			reason += fmt.Sprintf(", %d of them belong to other groups", matching-got)
		}
		if unapproved > 0 {
			reason += fmt.Sprintf("; %d more would match but are not approved", unapproved)
		}
		errs = append(errs, field.Invalid(field.NewPath("spec", "replicas"), wanted, reason))
	}
	return errs
}

// ValidateResume refuses to end a pause in which somebody else changed files of the nodes, such as kubeadm: every node would put them
// back at once. It is let through by another value of AnnotationPutBack.
func ValidateResume(c, old *Cluster, machines []Machine) field.ErrorList {
	if !old.Spec.Paused || c.Spec.Paused || c.Annotations[AnnotationPutBack] != old.Annotations[AnnotationPutBack] {
		return nil
	}
	changed := ChangedFiles(c.Name, machines)
	if changed == "" {
		return nil
	}
	return field.ErrorList{field.Forbidden(field.NewPath("spec", "paused"), fmt.Sprintf("files are not as Coldrack left them: %s. When the cluster is "+
		"resumed, all nodes put them back at once, and what reads them restarts. If that is what you want: coldrack cluster resume %s --put-back", changed, c.Name))}
}

// ChangedFiles names files of a cluster's nodes that somebody else has changed, by machine; "" for none.
func ChangedFiles(cluster string, machines []Machine) string {
	const mostMachines, mostFiles = 3, 3
	var texts []string
	more := 0
	for i := range machines {
		k := machines[i].Status.Kubernetes
		if k == nil || k.Cluster != cluster || len(k.Drift) == 0 {
			continue
		}
		if len(texts) == mostMachines {
			more++
			continue
		}
		text := machines[i].Name + ": " + strings.Join(k.Drift[:min(len(k.Drift), mostFiles)], ", ")
		if n := len(k.Drift) - mostFiles; n > 0 {
			text += fmt.Sprintf(" and %d more", n)
		}
		texts = append(texts, text)
	}
	if more > 0 {
		texts = append(texts, fmt.Sprintf("and of %d more machines", more))
	}
	return strings.Join(texts, "; ")
}

// ValidateClusterChange refuses to change what running nodes and pods rest on, once the cluster has nodes, and versions that
// these nodes cannot go to. What was left open before counts as its default.
func ValidateClusterChange(c, old *Cluster) field.ErrorList {
	if len(old.Status.Nodes) == 0 {
		return nil
	}
	is, was := c.DeepCopy(), old.DeepCopy()
	is.Default()
	was.Default()
	network, endpoint := field.NewPath("spec", "network"), field.NewPath("spec", "endpoint")
	var errs field.ErrorList
	for _, f := range []struct {
		at      *field.Path
		why     string
		is, was any
	}{
		{network.Child("podCIDRs"), "every running pod has an address of it", strings.Join(is.Spec.Network.PodCIDRs, ","), strings.Join(was.Spec.Network.PodCIDRs, ",")},
		{network.Child("serviceCIDRs"), "every service has an address of it", strings.Join(is.Spec.Network.ServiceCIDRs, ","), strings.Join(was.Spec.Network.ServiceCIDRs, ",")},
		{network.Child("dnsDomain"), "certificates and running pods contain it", is.Spec.Network.DNSDomain, was.Spec.Network.DNSDomain},
		{network.Child("nodeMaskIPv4"), "every node has a network of that size", is.Spec.Network.NodeMaskIPv4, was.Spec.Network.NodeMaskIPv4},
		{network.Child("nodeMaskIPv6"), "every node has a network of that size", is.Spec.Network.NodeMaskIPv6, was.Spec.Network.NodeMaskIPv6},
		{endpoint.Child("port"), "nodes change one by one, and those that wait would look for the API servers in vain", is.Spec.Endpoint.Port, was.Spec.Endpoint.Port},
		{endpoint.Child("localPort"), "nodes change one by one, and kube-proxy is configured alike on all of them", is.Spec.Endpoint.LocalPort, was.Spec.Endpoint.LocalPort},
	} {
		if f.is != f.was {
			errs = append(errs, field.Invalid(f.at, f.is, fmt.Sprintf("cannot be changed from %v while the cluster has nodes: %s", f.was, f.why)))
		}
	}
	if is.Spec.Version != was.Spec.Version {
		errs = append(errs, validateVersionStep(is.Spec.Version, old.Status.Nodes)...)
	}
	return errs
}

// poolRange is addresses of a pool with the field that they come from.
type poolRange struct {
	at   *field.Path
	text string
	AddressRange
}

// poolRanges are the addresses of all pools of a cluster, and what of them cannot be read.
func poolRanges(at *field.Path, lb *ClusterLoadBalancer) (ranges []poolRange, errs field.ErrorList) {
	if lb == nil {
		return nil, nil
	}
	for i, pool := range lb.Pools {
		for j, text := range pool.Addresses {
			at := at.Child("pools").Index(i).Child("addresses").Index(j)
			r, err := ParsePoolAddresses(text)
			if err != nil {
				errs = append(errs, field.Invalid(at, text, err.Error()))
				continue
			}
			ranges = append(ranges, poolRange{at, text, r})
		}
	}
	return ranges, errs
}

// validateLoadBalancer keeps the addresses of Services apart from all others: what two hosts answer for, neither serves.
func validateLoadBalancer(at *field.Path, c *Cluster, networks []namedNetwork, facts ClusterFacts) field.ErrorList {
	lb := c.Spec.Network.LoadBalancer
	if lb == nil {
		return nil
	}
	var errs field.ErrorList
	if len(lb.Pools) == 0 {
		errs = append(errs, field.Required(at.Child("pools"), "name at least one pool, or leave loadBalancer out"))
	}
	for i, pool := range lb.Pools {
		for _, problem := range validation.IsDNS1123Label(pool.Name) {
			errs = append(errs, field.Invalid(at.Child("pools").Index(i).Child("name"), pool.Name, problem))
		}
		if slices.IndexFunc(lb.Pools, func(p LoadBalancerPool) bool { return p.Name == pool.Name }) < i {
			errs = append(errs, field.Duplicate(at.Child("pools").Index(i).Child("name"), pool.Name))
		}
		if len(pool.Addresses) == 0 {
			errs = append(errs, field.Required(at.Child("pools").Index(i).Child("addresses"), "name at least one address, range or network"))
		}
	}
	errs = append(errs, metav1validation.ValidateLabels(lb.NodeSelector, at.Child("nodeSelector"))...)
	ranges, more := poolRanges(at, lb)
	errs = append(errs, more...)
	errs = append(errs, validateBGP(at, lb, ranges, networks)...)
	for i, r := range ranges {
		for _, other := range ranges[:i] {
			if r.Overlaps(other.AddressRange) {
				errs = append(errs, field.Invalid(r.at, r.text, fmt.Sprintf("overlaps with %s, %s", other.at, other.text)))
			}
		}
		for _, taken := range takenAddresses(c, networks, facts) {
			if r.Overlaps(taken.AddressRange) {
				errs = append(errs, field.Invalid(r.at, r.text, fmt.Sprintf("overlaps with %s", taken.what)))
			}
		}
	}
	return errs
}

// taken is addresses that somebody else has.
type taken struct {
	AddressRange
	what string
}

func rangeOf(network netip.Prefix) AddressRange {
	return AddressRange{First: network.Masked().Addr(), Last: lastOf(network.Masked())}
}

// takenAddresses are those that no pool of a cluster may have.
func takenAddresses(c *Cluster, networks []namedNetwork, facts ClusterFacts) []taken {
	var all []taken
	for _, cidr := range []string{"127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "0.0.0.0/8", "::/127", "fe80::/10", "ff00::/8"} {
		all = append(all, taken{rangeOf(netip.MustParsePrefix(cidr)), cidr + ", addresses that no Service can have"})
	}
	for _, n := range networks {
		all = append(all, taken{rangeOf(n.prefix), fmt.Sprintf("%s, %s", n.at, n.prefix)})
	}
	one := func(text, format string, args ...any) {
		if a, err := netip.ParseAddr(text); err == nil {
			all = append(all, taken{AddressRange{First: a, Last: a}, fmt.Sprintf(format, args...)})
		}
	}
	for i := range facts.Subnets {
		s := &facts.Subnets[i]
		for name, text := range map[string]string{"discovery": s.Spec.Discovery, "static": s.Spec.Static} {
			if r, err := ParseAddressRange(text); err == nil {
				all = append(all, taken{r, fmt.Sprintf("the %s range %s of Subnet %s, whose addresses go to machines", name, r, s.Name)})
			}
		}
		one(s.Spec.Gateway, "the gateway %s of Subnet %s", s.Spec.Gateway, s.Name)
		for _, address := range slices.Concat(s.Spec.DNS, s.Spec.NTP, s.Spec.Relays) {
			one(address, "%s, a server that Subnet %s names", address, s.Name)
		}
		if network, err := netip.ParsePrefix(s.Spec.CIDR); err == nil && network.Addr().Is4() && network.Bits() < 31 {
			r := rangeOf(network)
			one(r.First.String(), "%s, the network's own address of Subnet %s", r.First, s.Name)
			one(r.Last.String(), "%s, the broadcast address of Subnet %s", r.Last, s.Name)
		}
	}
	if vip := c.Spec.Endpoint.VirtualIP; vip != nil {
		one(vip.Address, "the virtual IP of the API, %s", vip.Address)
	}
	one(c.Spec.Endpoint.Host, "spec.endpoint.host, %s", c.Spec.Endpoint.Host)
	for i := range facts.Clusters {
		other := &facts.Clusters[i]
		if other.Name == c.Name {
			for _, n := range other.Status.Nodes {
				for _, address := range n.Addresses {
					one(address, "the address %s of node %s", address, n.NodeName)
				}
			}
			continue
		}
		if vip := other.Spec.Endpoint.VirtualIP; vip != nil {
			one(vip.Address, "the virtual IP %s of Cluster %s", vip.Address, other.Name)
		}
		theirs, _ := poolRanges(nil, other.Spec.Network.LoadBalancer)
		for _, r := range theirs {
			all = append(all, taken{r.AddressRange, fmt.Sprintf("%s of a pool of Cluster %s", r.text, other.Name)})
		}
	}
	return all
}

// ParsePoolAddresses reads addresses of a pool: a network such as 10.20.0.192/27, all of it; a range; or one address.
func ParsePoolAddresses(text string) (AddressRange, error) {
	const want = "want a network, \"first-last\" or one address, for example 10.20.0.192/27, 10.20.0.200-10.20.0.220 or 10.20.0.200"
	if strings.Contains(text, "-") {
		return ParseAddressRange(text)
	}
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		address, err := netip.ParseAddr(text)
		if err != nil || address.Zone() != "" || address.Is4In6() {
			return AddressRange{}, fmt.Errorf("is no address and no network; %s", want)
		}
		return AddressRange{First: address, Last: address}, nil
	}
	switch {
	case prefix.Addr().Is4In6():
		return AddressRange{}, fmt.Errorf("IPv4 addresses are written without the prefix ::ffff: here")
	case prefix != prefix.Masked():
		return AddressRange{}, fmt.Errorf("has bits set behind the prefix length; the network that this address is in is %s", prefix.Masked())
	}
	return AddressRange{First: prefix.Addr(), Last: lastOf(prefix)}, nil
}

// lastOf a network is its address with all host bits set.
func lastOf(network netip.Prefix) netip.Addr {
	b := network.Addr().AsSlice()
	for bit := network.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}
