// Package bmc talks to baseboard management controllers: it reads and switches a machine's power, chooses what the machine
// boots next, and reads what the controller knows of it. Open returns a Driver for one controller, by Redfish or by IPMI; a
// Pool lets one caller at a time at each controller, and keeps those that do not answer from holding up the others.
//
// BMCs are slow, allow few sessions, and lock accounts after a few wrong passwords. So a Driver lives for one visit, asks
// one thing at a time, and never repeats a request that may have switched something.
package bmc

import (
	"context"
	"fmt"
	"log/slog"
	"time"
)

// Protocol is how a BMC is talked to.
type Protocol string

const (
	Redfish Protocol = "redfish"
	IPMI    Protocol = "ipmi"
)

// State is whether a machine has power.
type State string

const (
	On          State = "On"
	Off         State = "Off"
	PoweringOn  State = "PoweringOn"
	PoweringOff State = "PoweringOff"
	// Unknown: the BMC answers, but does not say.
	Unknown State = "Unknown"
)

// Action is what is done to a machine's power.
type Action string

const (
	// PowerOn switches on what is off.
	PowerOn Action = "on"
	// PowerOff cuts the power at once.
	PowerOff Action = "off"
	// Shutdown asks the operating system to end, as a press of the power button does, and waits until it has.
	Shutdown Action = "shutdown"
	// PowerCycle switches off and on again; what is off, it switches on.
	PowerCycle Action = "cycle"
	// Reset restarts what is on without cutting its power; what is off, it switches on.
	Reset Action = "reset"
)

// Actions are all of them.
func Actions() []Action { return []Action{PowerOn, PowerOff, Shutdown, PowerCycle, Reset} }

// Interrupts says whether what runs on the machine ends.
func (a Action) Interrupts() bool { return a != PowerOn }

// Device is what a machine boots from.
type Device string

const (
	// BootNetwork is PXE.
	BootNetwork Device = "network"
	// BootHTTP is UEFI HTTP boot.
	BootHTTP Device = "http"
	// BootDisk is the first disk.
	BootDisk Device = "disk"
)

// Firmware is the mode in which a machine boots. Empty: as the machine is set up.
type Firmware string

const (
	BIOS Firmware = "bios"
	UEFI Firmware = "uefi"
)

// Boot is what a machine boots once, at its next start.
type Boot struct {
	Device   Device
	Firmware Firmware
}

// Inventory is what the BMC knows of the machine. Text is as the BMC sent it, made safe to show; what it does not say is empty.
type Inventory struct {
	Manufacturer string
	Model        string
	Serial       string
	// UUID is the system's (SMBIOS type 1), lower case.
	UUID string
	// MACs are those of the machine's own interfaces, lower case, in the order of the interfaces' names. IPMI has none.
	MACs []string
	// BMCMAC is the BMC's own.
	BMCMAC string
}

// Probe is what a BMC is, and what it can do.
type Probe struct {
	Protocol Protocol
	// Version of the protocol, for example 1.15.0 or 2.0.
	Version string
	// Vendor, Model and Firmware of the BMC, as far as it says.
	Vendor, Model, Firmware string
	// System is the one of Systems that this machine is. IPMI knows only one, which has no name.
	System  string
	Systems []string
	Power   State
	// Actions that the BMC offers, and devices that it can boot once.
	Actions []Action
	Devices []Device
	// EventLog counts the entries of the system event log; -1: not read.
	EventLog int
	// Quirks that are allowed for.
	Quirks    []string
	Inventory Inventory
	// Certificate is the fingerprint of the certificate that the BMC showed; empty for IPMI.
	Certificate string
}

// Driver is the connection with one BMC, for one visit. It is not safe for concurrent use. All errors are *Error.
type Driver interface {
	// Power reads whether the machine is on.
	Power(context.Context) (State, error)
	// Do changes the power and returns when the BMC shows that it did. What is so already is left alone.
	Do(context.Context, Action) error
	// BootOnce chooses what the machine boots at its next start only.
	BootOnce(context.Context, Boot) error
	Inventory(context.Context) (Inventory, error)
	Probe(context.Context) (Probe, error)
	// Close ends the BMC's session.
	Close()
}

// Password is text that no log and no error shows.
type Password string

const hidden = "[hidden]"

func (Password) String() string               { return hidden }
func (Password) GoString() string             { return hidden }
func (Password) LogValue() slog.Value         { return slog.StringValue(hidden) }
func (Password) MarshalText() ([]byte, error) { return []byte(hidden), nil }
func (Password) Format(f fmt.State, _ rune)   { _, _ = f.Write([]byte(hidden)) }

// reveal is for the wire.
func (p Password) reveal() string { return string(p) }

// Target is one BMC and how to get in.
type Target struct {
	// Address is a host or host:port, without a scheme.
	Address  string
	Protocol Protocol
	// System chooses where a Redfish service has several: the last part of its path, such as "1" or "System.Embedded.1".
	System string
	// Certificate is the only one that is accepted, as sha256:HEX of its DER bytes. Authority are PEM certificates that
	// sign the BMC's. With neither, the system's authorities decide.
	Certificate string
	Authority   string
	// AnyCertificate is for an explicit first look only: whoever answers is taken for the BMC.
	AnyCertificate bool
	Username       string
	Password       Password
}

// Options are the times that a driver allows. The zero value has defaults.
type Options struct {
	// Request bounds one exchange with the BMC. Default 30 s; for IPMI, a tenth of it for each of several datagrams.
	Request time.Duration
	// Settle is how long the power may take to become what was asked for. Default 1 min.
	Settle time.Duration
	// Shutdown is how long an operating system may take to end. Default 5 min.
	Shutdown time.Duration
	// Task is how long the BMC may work on what it has accepted. Default 2 min.
	Task time.Duration
	// Wait waits between two looks; nil: until the time is over or the context ends.
	Wait func(context.Context, time.Duration) error
}

func (o Options) withDefaults() Options {
	set := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	set(&o.Request, 30*time.Second)
	set(&o.Settle, time.Minute)
	set(&o.Shutdown, 5*time.Minute)
	set(&o.Task, 2*time.Minute)
	if o.Wait == nil {
		o.Wait = wait
	}
	return o
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

// Open begins a visit. It logs in with the first request that needs it.
func Open(t Target, o Options) (Driver, error) {
	o = o.withDefaults()
	switch t.Protocol {
	case Redfish, "":
		return openRedfish(t, o)
	case IPMI:
		return openIPMI(t, o)
	}
	return nil, &Error{Kind: Misconfigured, Address: t.Address, What: fmt.Sprintf("protocol %q is not known", t.Protocol), Remedy: "write redfish or ipmi"}
}

// glance is the pause between two looks at a power that is changing.
const glance = 2 * time.Second

// settled waits until the power is as wanted.
func settled(ctx context.Context, d Driver, o Options, wanted State, limit time.Duration) (State, error) {
	var waited time.Duration
	for {
		state, err := d.Power(ctx)
		// A BMC that has just switched its machine may be deaf for a while.
		if err == nil && state == wanted || ctx.Err() != nil || waited >= limit || err != nil && KindOf(err) != Unreachable {
			return state, err
		}
		if err := o.Wait(ctx, glance); err != nil {
			return state, err
		}
		waited += glance
	}
}
