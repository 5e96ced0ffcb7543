// Package doctor looks at this machine the way `coldrack serve` will find it, and says what stands in
// its way and what to do about it. It changes nothing.
package doctor

import (
	"context"
	"fmt"
	"time"
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
	if s.ProbeDHCP {
		results = append(results, probeSegments(ctx, s.Interfaces, probeTime)...)
	}
	results = append(results, clock(time.Now()))
	results = append(results, dataDir(s.DataDir)...)
	results = append(results, kvm(ctx, s.ProbeKVM), programs())
	return results
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
