// Package doctor looks at this machine the way `coldrack serve` will find it, and says what stands in
// its way and what to do about it. It changes nothing.
package doctor

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

// State is the outcome of a check.
type State string

const (
	OK   State = "ok"
	Warn State = "warn"
	Fail State = "fail"
)

// Result is what one check found.
type Result struct {
	Check string `json:"check"`
	State State  `json:"state"`
	// Found is what is there.
	Found string `json:"found"`
	// Do says how to mend it; empty when nothing needs mending.
	Do string `json:"do,omitempty"`
}

// Port is a port that the server listens on.
type Port struct {
	Network string // "udp4" or "tcp4"
	Address string // host:port
	For     string
	// Interfaces are the only ones on which it is open; none: all.
	Interfaces []string
	// Each says that it is opened on each interface by itself, where it is needed.
	Each bool
	// Own says that it is opened on addresses of the server, none of them a loopback address: another program may have it there.
	Own bool
	// Optional says that the server does without when another program has it.
	Optional bool
}

// Name is the port as people write it, for example 69/udp.
func (p Port) Name() string {
	_, port, err := net.SplitHostPort(p.Address)
	if err != nil {
		port = p.Address
	}
	return port + "/" + strings.TrimRight(p.Network, "46")
}

// Subject is the server to be checked.
type Subject struct {
	DataDir string
	// Ports that it opens in this network namespace.
	Ports []Port
	// Boot is false when no boot services run, which then need no privileges.
	Boot bool
	// Interfaces on which machines boot; empty: all.
	Interfaces []string
	// ProbeDHCP asks on each interface whether somebody answers DHCP already, or ARP for the addresses of others.
	ProbeDHCP bool
	// ProbeKVM runs a virtual machine by KVM the way the lab does, and says why that does not work here; empty: it
	// works. The error says why it could not be tried.
	ProbeKVM func(context.Context) (whyNot string, err error)
	// Subnets are those of the running server, with what it found on them; none without a server.
	Subnets func(context.Context) ([]v1alpha1.Subnet, error)
	// Expiry says when certificates end: of the running server, its nodes and clusters, or what the data folder tells. The error says
	// why no more is known.
	Expiry func(context.Context) ([]peoplewire.Expiry, error)
	// Restored says whether the store was restored from a backup and no person has confirmed it.
	Restored func() (peoplewire.Restored, error)
	// Names are those of the running server; nil without one.
	Names func(context.Context) (*peoplewire.Names, error)
}

// Run carries out all checks, in the order in which a person would look.
func Run(ctx context.Context, s Subject) []Result {
	server := runningServer(s.DataDir)
	results := []Result{server.result(), server.store()}
	results = append(results, ports(s.Ports, server)...)
	if s.Boot {
		results = append(results, privileges())
	}
	results = append(results, interfaces(s.Interfaces))
	subnets, err := s.Subnets(ctx)
	if s.ProbeDHCP {
		results = append(results, probeSegments(ctx, s.Interfaces, subnets, probeTime)...)
	}
	results = append(results, segments(subnets, err)...)
	results = append(results, clock(time.Now()))
	results = append(results, dataDir(s.DataDir)...)
	results = append(results, restored(s.Restored)...)
	results = append(results, certificates(ctx, s.Expiry)...)
	results = append(results, names(ctx, s.Names)...)
	results = append(results, kvm(ctx, s.ProbeKVM), programs())
	return results
}

// segments tells what the running server found wrong with its Subnets.
func segments(subnets []v1alpha1.Subnet, err error) []Result {
	if err != nil {
		return []Result{warn("subnets", "not known: "+err.Error(), "look again while the server runs, as the owner of its data folder")}
	}
	var results []Result
	for _, s := range subnets {
		check := "subnet " + s.Name
		before := len(results)
		for _, c := range s.Status.Conditions {
			switch {
			case c.Type == v1alpha1.ConditionReady && c.Status == metav1.ConditionFalse:
				results = append(results, fail(check, c.Message, "mend that; coldrack get subnet "+s.Name+" -o yaml shows it"))
			case c.Status != metav1.ConditionTrue:
			case c.Type == v1alpha1.ConditionProxyIgnored:
				results = append(results, warn(check, c.Message, fmt.Sprintf("coldrack doctor --foreign-dhcp KIND, with KIND one of %s", strings.Join(ForeignServers(), ", "))))
			case c.Type != v1alpha1.ConditionReady:
				results = append(results, warn(check, c.Type+": "+c.Message, "see the condition: coldrack get subnet "+s.Name+" -o yaml"))
			}
		}
		if len(results) == before {
			results = append(results, ok(check, "dhcp: %s; nothing amiss", s.Spec.DHCP))
		}
	}
	return results
}

// certificates names those that a person must see to, and the first of the others to end.
func certificates(ctx context.Context, expiry func(context.Context) ([]peoplewire.Expiry, error)) []Result {
	const check = "certificates"
	ends, err := expiry(ctx)
	var results []Result
	var first *peoplewire.Expiry
	for i := range ends {
		e := &ends[i]
		if e.Overdue != "" {
			results = append(results, warn(check, fmt.Sprintf("%s ends at %s", expiryName(e), e.Until.UTC().Format(time.RFC3339)), e.Overdue))
		} else if e.Soon != "" {
			results = append(results, ok(check, "%s %s", expiryName(e), e.Soon))
		} else if first == nil || e.Until.Before(first.Until) {
			first = e
		}
	}
	if err != nil {
		results = append(results, warn(check, err.Error(), "look again while the server runs, as the owner of its data folder"))
	}
	if first != nil {
		results = append(results, ok(check, "next to end: %s, at %s; it is renewed by itself where it can be", expiryName(first), first.Until.UTC().Format(time.RFC3339)))
	}
	return results
}

// names says which names of machines are not answered as somebody wants.
func names(ctx context.Context, ask func(context.Context) (*peoplewire.Names, error)) []Result {
	const check = "names"
	if ask == nil {
		return nil
	}
	all, err := ask(ctx)
	if err != nil || all == nil {
		return nil // the server's own check says that it is not there
	}
	var results []Result
	for _, c := range all.Collisions {
		results = append(results, warn(check, fmt.Sprintf("%s wants the name %s, which %s has", c.Loser, c.Name, c.Holder), "give one of them another host name: coldrack dns show"))
	}
	if len(results) == 0 && len(all.Zones) > 0 {
		records := 0
		for _, zone := range all.Zones {
			records += len(zone.Records)
		}
		results = append(results, ok(check, "%d records in %d zones, no name is wanted twice", records, len(all.Zones)))
	}
	return results
}

// restored warns while machines wait because the store was restored.
func restored(read func() (peoplewire.Restored, error)) []Result {
	const check = "restored"
	mark, err := read()
	switch {
	case err != nil:
		return []Result{warn(check, "not known: "+err.Error(), "look again as the owner of the data folder")}
	case mark.RestoredAt.IsZero():
		return nil
	}
	from := ""
	if mark.Backup != "" {
		from = fmt.Sprintf(" from backup %s; machines may be missing since %s", mark.Backup, mark.TakenAt.UTC().Format(time.RFC3339))
	}
	return []Result{warn(check, fmt.Sprintf("the store was restored at %s%s; no machine is approved by a policy, or installed by itself", mark.RestoredAt.UTC().Format(time.RFC3339), from),
		"coldrack server restored shows what waits; docs/operations.md says what to do; then coldrack server restored --confirm")}
}

func expiryName(e *peoplewire.Expiry) string {
	name := e.Certificate
	if e.Cluster != "" {
		name += " of cluster " + e.Cluster
	}
	if e.Name != "" {
		name += " (" + e.Name + ")"
	}
	return name
}

// Worst is the worst state among results.
func Worst(results []Result) State {
	worst := OK
	for _, r := range results {
		if r.State == Fail || r.State == Warn && worst == OK {
			worst = r.State
		}
	}
	return worst
}

func ok(check, format string, args ...any) Result {
	return Result{Check: check, State: OK, Found: fmt.Sprintf(format, args...)}
}

func warn(check, found, do string) Result { return Result{check, Warn, found, do} }
func fail(check, found, do string) Result { return Result{check, Fail, found, do} }
