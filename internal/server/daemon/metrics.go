package daemon

import (
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/version"
	"coldrack.dev/internal/machine/fleet"
	"coldrack.dev/internal/netboot/connlimit"
	"coldrack.dev/internal/netboot/dhcp"
	"coldrack.dev/internal/netboot/dhcp6"
	"coldrack.dev/internal/netboot/dns"
	"coldrack.dev/internal/netboot/httpboot"
	"coldrack.dev/internal/netboot/sntp"
	"coldrack.dev/internal/netboot/tftp"
	"coldrack.dev/internal/server/audit"
	"coldrack.dev/internal/server/backups"
	"coldrack.dev/internal/server/controlplane"
	"coldrack.dev/internal/server/etcddiscovery"
	"coldrack.dev/internal/server/omaha"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

const metricsPath = "/coldrack/v1/metrics"

// metrics are what Prometheus reads of this server. The API server's own are beside them, at /metrics.
type metrics struct {
	registry *prometheus.Registry
	boots    *prometheus.CounterVec
	// storeLost is 1 while the store is not there.
	storeLost prometheus.Gauge
	foreign   foreignServers
}

func newMetrics(machines *fleet.Fleet) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		boots: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "coldrack_boots_total", Help: "Boots that were answered, by what the machine was told to do.",
		}, []string{"action"}),
		storeLost: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "coldrack_store_lost", Help: "1 while the store is not there and machines are answered from a copy.",
		}),
	}
	// Alerts need to see nothing as 0.
	for _, action := range []v1alpha1.BootAction{
		v1alpha1.BootDiscover, v1alpha1.BootInstall, v1alpha1.BootRelease, v1alpha1.BootLocalDisk, v1alpha1.BootRefuse, v1alpha1.BootRescue,
	} {
		m.boots.WithLabelValues(string(action))
	}
	m.registry.MustRegister(m.boots, m.storeLost, samples(func(s sink) {
		s.gauge("coldrack_build_info", "This build; always 1.", 1, "version", version.Get().Version)
		byPhase := map[v1alpha1.MachinePhase]int{
			v1alpha1.PhaseExpected: 0, v1alpha1.PhaseDiscovering: 0, v1alpha1.PhaseWaiting: 0, v1alpha1.PhaseApproved: 0,
			v1alpha1.PhaseInstalling: 0, v1alpha1.PhaseRebooting: 0, v1alpha1.PhaseReady: 0, v1alpha1.PhaseLost: 0,
			v1alpha1.PhaseFailed: 0, v1alpha1.PhaseReleasing: 0, v1alpha1.PhaseReleased: 0,
		}
		for _, machine := range machines.List() {
			phase := machine.Status.Phase
			if phase == "" {
				phase = v1alpha1.PhaseExpected // no controller has looked at it yet
			}
			byPhase[phase]++
		}
		for phase, n := range byPhase {
			s.gauge("coldrack_machines", "Machines, by phase.", n, "phase", string(phase))
		}
	}))
	return m
}

func (m *metrics) handler(log *slog.Logger) http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)})
}

// mostForeign is how many other DHCP servers are remembered.
const mostForeign = 64

// foreignServers are the other DHCP servers that were noticed since the start, the ones seen last.
type foreignServers struct {
	mu   sync.Mutex
	seen map[foreignServer]time.Time
}

// foreignServer is a DHCP server at an address, on the segment of an interface of ours.
type foreignServer struct {
	address netip.Addr
	iface   string
}

func (f *foreignServers) note(at netip.Addr, iface string, now time.Time) {
	if !at.IsValid() {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.seen == nil {
		f.seen = map[foreignServer]time.Time{}
	}
	f.seen[foreignServer{at, iface}] = now
	if len(f.seen) <= mostForeign {
		return
	}
	oldest := foreignServer{at, iface}
	for one, seen := range f.seen {
		if seen.Before(f.seen[oldest]) {
			oldest = one
		}
	}
	delete(f.seen, oldest)
}

func (f *foreignServers) all() map[foreignServer]time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.seen)
}

func (m *metrics) watchDHCP(stats func() dhcp.Stats) {
	m.registry.MustRegister(samples(func(s sink) {
		now := stats()
		const messages = "DHCP messages, by direction and type."
		for kind, n := range now.Received {
			s.counter("coldrack_dhcp_messages_total", messages, n, "direction", "received", "type", kind)
		}
		for kind, n := range now.Sent {
			s.counter("coldrack_dhcp_messages_total", messages, n, "direction", "sent", "type", kind)
		}
		for reason, n := range map[string]uint64{
			"malformed": now.Malformed, "no_subnet": now.NoSubnet, "pool_exhausted": now.Exhausted, "not_its_turn": now.Deferred,
			"lease_not_stored": now.Unstored, "send_error": now.SendErrors,
		} {
			s.counter("coldrack_dhcp_unanswered_total", "DHCP messages without an answer, by reason.", n, "reason", reason)
		}
		s.counter("coldrack_dhcp_conflicts_total", "Addresses found in use by a client they were not given to.", now.Conflicts)
		s.counter("coldrack_dhcp_foreign_servers_total", "Signs of another DHCP server on the segment.", now.ForeignServer)
		for one, seen := range m.foreign.all() {
			s.gauge("coldrack_dhcp_foreign_server_seen_timestamp_seconds", "When another DHCP server was noticed last, by its address and our interface.",
				int(seen.Unix()), "server", one.address.String(), "interface", one.iface)
		}
		s.counter("coldrack_dhcp_store_failures_total", "Failed writes of the lease store.", now.StoreFailures)
		for _, subnet := range now.Subnets {
			for state, n := range map[string]int{
				"leased": subnet.Leased, "held": subnet.Held, "quarantined": subnet.Quarantined,
				"free": max(subnet.Size-subnet.Leased-subnet.Held-subnet.Quarantined, 0),
			} {
				s.gauge("coldrack_dhcp_pool_addresses", "Addresses of a discovery range, by state.", n, "subnet", subnet.Name, "state", state)
			}
		}
	}))
}

func (m *metrics) watchDHCP6(stats func() dhcp6.Stats) {
	m.registry.MustRegister(samples(func(s sink) {
		now := stats()
		const messages = "DHCPv6 messages, by direction and type."
		for kind, n := range now.Received {
			s.counter("coldrack_dhcp6_messages_total", messages, n, "direction", "received", "type", kind)
		}
		for kind, n := range now.Sent {
			s.counter("coldrack_dhcp6_messages_total", messages, n, "direction", "sent", "type", kind)
		}
		for reason, n := range map[string]uint64{
			"malformed": now.Malformed, "no_subnet": now.NoSubnet, "strange_relay": now.StrangeRelays, "pool_exhausted": now.Exhausted,
			"not_its_turn": now.Deferred, "lease_not_stored": now.Unstored, "send_error": now.SendErrors,
		} {
			s.counter("coldrack_dhcp6_unanswered_total", "DHCPv6 messages without an answer or an address, by reason.", n, "reason", reason)
		}
		s.counter("coldrack_dhcp6_conflicts_total", "Addresses that clients of DHCPv6 found in use by others.", now.Conflicts)
		s.counter("coldrack_dhcp6_foreign_servers_total", "Signs of another DHCPv6 server on the segment.", now.ForeignServer)
		s.counter("coldrack_dhcp6_store_failures_total", "Failed writes of the store of DHCPv6 leases.", now.StoreFailures)
		for _, subnet := range now.Subnets {
			for state, n := range map[string]int{"leased": subnet.Leased, "held": subnet.Held, "quarantined": subnet.Quarantined} {
				s.gauge("coldrack_dhcp6_pool_addresses", "Addresses of a discovery range, by state.", n, "subnet", subnet.Name, "state", state)
			}
		}
	}))
}

func (m *metrics) watchDNS(stats func() dns.Stats, asking func() int) {
	m.registry.MustRegister(samples(func(s sink) {
		now := stats()
		const questions = "Questions to the DNS responder, by protocol."
		s.counter("coldrack_dns_questions_total", questions, now.UDP, "protocol", "udp")
		s.counter("coldrack_dns_questions_total", questions, now.TCP, "protocol", "tcp")
		for outcome, n := range map[string]uint64{
			"own": now.Own - now.NoSuchName, "no_such_name": now.NoSuchName, "forwarded": now.Forwarded, "failed": now.Failed, "refused": now.Refused, "malformed": now.Malformed,
		} {
			s.counter("coldrack_dns_answers_total", "Answers of the DNS responder, by outcome.", n, "outcome", outcome)
		}
		s.counter("coldrack_dns_dropped_total", "Packets to the DNS responder without an answer, by reason.", now.Strangers, "reason", "not_in_a_subnet")
		s.counter("coldrack_dns_dropped_total", "Packets to the DNS responder without an answer, by reason.", now.Limited, "reason", "too_often")
		s.counter("coldrack_dns_truncated_total", "Answers of the DNS responder that were too large for a datagram.", now.Truncated)
		s.gauge("coldrack_dns_connections", "Open connections to the DNS responder.", now.Conns)
		s.gauge("coldrack_dns_forwarding", "Questions that wait for another DNS server.", asking())
	}))
}

func (m *metrics) watchTime(stats func() sntp.Stats) {
	m.registry.MustRegister(samples(func(s sink) {
		now := stats()
		s.counter("coldrack_time_answers_total", "Clients that were told the time.", now.Answered)
		s.counter("coldrack_time_dropped_total", "Packets to the time server without an answer, by reason.", now.Ignored, "reason", "no_question")
		s.counter("coldrack_time_dropped_total", "Packets to the time server without an answer, by reason.", now.Limited, "reason", "too_often")
	}))
}

func (m *metrics) watchTFTP(stats func() tftp.Stats) {
	m.registry.MustRegister(samples(func(s sink) {
		now := stats()
		for outcome, n := range map[string]uint64{
			"completed": now.Completed, "aborted": now.Aborted, "failed": now.Failed, "refused": now.Refused, "deferred": now.Deferred, "malformed": now.Malformed,
		} {
			s.counter("coldrack_tftp_requests_total", "TFTP requests, by outcome; one that was deferred comes again.", n, "outcome", outcome)
		}
		s.counter("coldrack_tftp_sent_bytes_total", "Bytes that TFTP clients acknowledged.", now.Bytes)
		s.counter("coldrack_tftp_retransmits_total", "TFTP blocks that were sent again.", now.Retransmits)
		s.gauge("coldrack_tftp_transfers", "TFTP transfers that are running.", now.Active)
	}))
}

func (m *metrics) watchHTTP(stats func() httpboot.Stats) {
	m.registry.MustRegister(samples(func(s sink) {
		now := stats()
		s.counter("coldrack_boot_http_requests_total", "Requests to the boot HTTP server.", now.Requests)
		s.counter("coldrack_boot_http_errors_total", "Requests to the boot HTTP server that failed, by class of status.", now.BadRequest, "class", "4xx")
		s.counter("coldrack_boot_http_errors_total", "Requests to the boot HTTP server that failed, by class of status.", now.Failed, "class", "5xx")
		s.counter("coldrack_boot_http_sent_bytes_total", "Bytes of files that the boot HTTP server sent.", now.Bytes)
		s.counter("coldrack_boot_http_refused_connections_total", "Connections closed because their client had too many.", now.TooMany)
		s.gauge("coldrack_boot_http_connections", "Open connections to the boot HTTP server.", now.Conns)
	}))
}

func (m *metrics) watchStore(size func() (controlplane.StoreSize, bool)) {
	m.registry.MustRegister(samples(func(s sink) {
		now, embedded := size()
		if !embedded {
			return
		}
		s.gauge("coldrack_store_bytes", "Bytes of the store's file.", int(now.File))
		s.gauge("coldrack_store_in_use_bytes", "Bytes of the store's file that hold something.", int(now.InUse))
		s.gauge("coldrack_store_quota_bytes", "Bytes of the store's file at which it refuses writes.", int(now.Quota))
		full := 0
		if now.Full {
			full = 1
		}
		s.gauge("coldrack_store_full", "1 while the store refuses writes because it is full.", full)
	}))
}

func (m *metrics) watchRestored(mark func() peoplewire.Restored) {
	m.registry.MustRegister(samples(func(s sink) {
		at := 0
		if now := mark(); !now.RestoredAt.IsZero() {
			at = int(now.RestoredAt.Unix())
		}
		s.gauge("coldrack_store_restored_timestamp_seconds", "When the store was restored from a backup, in Unix time, until a person confirms it; 0: nothing waits for that.", at)
	}))
}

func (m *metrics) watchExpiry(ends func() []peoplewire.Expiry) {
	m.registry.MustRegister(samples(func(s sink) {
		for _, e := range ends() {
			overdue := 0
			if e.Overdue != "" {
				overdue = 1
			}
			// The name would make a new series whenever another certificate is the first to end.
			s.gauge("coldrack_certificate_expires_timestamp_seconds", "When the first certificate of a sort ends, in Unix time.", int(e.Until.Unix()),
				"certificate", e.Certificate, "cluster", e.Cluster)
			s.gauge("coldrack_certificate_overdue", "1 when a certificate was not renewed in time or an authority ends soon.", overdue,
				"certificate", e.Certificate, "cluster", e.Cluster)
		}
	}))
}

func (m *metrics) watchBackups(stats func() map[string]backups.Stats) {
	m.registry.MustRegister(samples(func(s sink) {
		for cluster, now := range stats() {
			name, of, labels := backupMetric(cluster)
			if !now.Last.IsZero() {
				s.gauge(name+"_last_success_timestamp_seconds", "When the newest good backup of "+of+" was taken, in Unix time.", int(now.Last.Unix()), labels...)
			}
			s.counter(name+"_failures_total", "Backups of "+of+" that failed.", now.Failures, labels...)
		}
	}))
}

// backupMetric is how metrics about the backups of a cluster begin, and those about the server's own store, which has no name.
func backupMetric(cluster string) (name, of string, labels []string) {
	if cluster == "" {
		return "coldrack_server_backup", "the server's own store", nil
	}
	return "coldrack_backup", "a cluster's etcd", []string{"cluster", cluster}
}

func (m *metrics) watchDisk(space func() diskSpace) {
	m.registry.MustRegister(samples(func(s sink) {
		now := space()
		s.gauge("coldrack_disk_free_bytes", "Free bytes on the data folder's disk.", int(now.Free))
		s.gauge("coldrack_disk_reserve_bytes", "Bytes held back there for the store; 0 after they were given up.", int(now.Held))
	}))
}

func (m *metrics) watchMachineAPI(stats func() connlimit.Stats) {
	m.registry.MustRegister(samples(func(s sink) {
		now := stats()
		s.gauge("coldrack_machine_api_connections", "Open connections to the machine API.", now.Open)
		s.gauge("coldrack_machine_api_unproven_connections", "Open connections to the machine API without a client certificate of ours.", now.Unproven)
		s.counter("coldrack_machine_api_refused_connections_total", "Connections closed because their client had too many.", now.Refused)
		s.counter("coldrack_machine_api_evicted_connections_total", "Connections without a client certificate that were closed to make room for others.", now.Evicted)
	}))
}

func (m *metrics) watchUpdates(updates *omaha.Service) {
	m.registry.MustRegister(samples(func(s sink) {
		now := updates.Stats()
		s.counter("coldrack_update_requests_total", "Requests of update_engine.", now.Requests)
		s.counter("coldrack_update_refused_total", "Requests that were none of update_engine.", now.Refused)
		s.counter("coldrack_update_granted_total", "Updates that were granted.", now.Granted)
		for _, g := range updates.Groups() {
			const help = "Instances that asked for updates in the last day, by how far they are."
			labels := func(state string) []string {
				return []string{"application", g.Application, "group", g.Name, "board", g.Board, "state", state}
			}
			s.gauge("coldrack_update_instances", help, g.UpToDate, labels("up-to-date")...)
			s.gauge("coldrack_update_instances", help, g.InProgress, labels("in-progress")...)
			s.gauge("coldrack_update_instances", help, g.Failed, labels("failed")...)
			s.gauge("coldrack_update_instances", help, max(0, g.Instances-g.UpToDate-g.InProgress-g.Failed), labels("waiting")...)
		}
	}))
}

func (m *metrics) watchDiscovery(stats func() etcddiscovery.Stats) {
	m.registry.MustRegister(samples(func(s sink) {
		now := stats()
		s.counter("coldrack_etcd_discovery_requests_total", "Requests of members of etcd that look for their cluster.", now.Requests)
		s.counter("coldrack_etcd_discovery_misses_total", "Requests for tokens that there are not, or that have ended.", now.Misses)
		s.gauge("coldrack_etcd_discovery_waiting", "Members of etcd that wait for others.", now.Waiting)
		s.gauge("coldrack_etcd_discovery_tokens", "Tokens that have not ended, by whether all of their members have come.", now.Forming, "state", "forming")
		s.gauge("coldrack_etcd_discovery_tokens", "Tokens that have not ended, by whether all of their members have come.", now.Complete, "state", "complete")
	}))
}

func (m *metrics) watchAudit(stats func() audit.Stats) {
	m.registry.MustRegister(samples(func(s sink) {
		now := stats()
		s.counter("coldrack_audit_records_total", "Audit records that were kept.", now.Kept)
		s.counter("coldrack_audit_lost_records_total", "Audit records for which neither the disk nor memory had room.", now.Lost)
		s.gauge("coldrack_audit_waiting_bytes", "Audit records that wait in memory for a disk that takes them.", now.Waiting)
		for _, e := range now.Exports {
			s.counter("coldrack_audit_export_sent_total", "Audit records that were sent on, by receiver.", e.Sent, "to", e.To)
			s.counter("coldrack_audit_export_dropped_total", "Audit records that were not sent on, by receiver; the file has them.", e.Dropped, "to", e.To)
			s.gauge("coldrack_audit_export_queued", "Audit records that wait to be sent on, by receiver.", e.Queued, "to", e.To)
		}
	}))
}

func (m *metrics) watchRegistry(images *imageKeeper) {
	m.registry.MustRegister(samples(func(s sink) {
		now := images.registry.Stats()
		loaded, limit := images.local.Size()
		s.gauge("coldrack_registry_loaded_bytes", "Bytes of container images that people loaded.", int(loaded))
		s.gauge("coldrack_registry_loaded_limit_bytes", "Bytes that they may have.", int(limit))
		s.counter("coldrack_registry_requests_total", "Requests for container images.", now.Requests)
		s.counter("coldrack_registry_errors_total", "Requests for container images that failed, by class of status.", now.BadRequest, "class", "4xx")
		s.counter("coldrack_registry_errors_total", "Requests for container images that failed, by class of status.", now.Failed, "class", "5xx")
		s.counter("coldrack_registry_sent_bytes_total", "Bytes of container images that were sent.", now.Bytes)
		s.counter("coldrack_registry_upstream_fetches_total", "Manifests and blobs fetched from upstream registries, by outcome.", now.UpstreamFetches, "outcome", "completed")
		s.counter("coldrack_registry_upstream_fetches_total", "Manifests and blobs fetched from upstream registries, by outcome.", now.UpstreamFailures, "outcome", "failed")
		s.counter("coldrack_registry_upstream_received_bytes_total", "Bytes that came from upstream registries.", now.UpstreamBytes)
		s.gauge("coldrack_registry_cache_bytes", "Bytes in the cache of upstream registries.", int(now.Cached))
	}))
}

// samples reads present values whenever Prometheus asks. It describes none of them beforehand, since labels
// such as subnets come and go.
type samples func(sink)

// Describe implements prometheus.Collector.
func (samples) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (read samples) Collect(out chan<- prometheus.Metric) { read(out) }

type sink chan<- prometheus.Metric

func (s sink) counter(name, help string, value uint64, labels ...string) {
	s.put(prometheus.CounterValue, name, help, float64(value), labels)
}

func (s sink) gauge(name, help string, value int, labels ...string) {
	s.put(prometheus.GaugeValue, name, help, float64(value), labels)
}

// put takes labels as names and values in turn.
func (s sink) put(kind prometheus.ValueType, name, help string, value float64, labels []string) {
	var names, values []string
	for i := 0; i+1 < len(labels); i += 2 {
		// Prometheus refuses the whole answer over one value that is not UTF-8.
		names, values = append(names, labels[i]), append(values, strings.ToValidUTF8(labels[i+1], "_"))
	}
	s <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, names, nil), kind, value, values...)
}
