// Package discovery is what a machine does that was booted from the network: get an address, set the clock,
// enrol, say what it consists of, and then do what the server assigns, until that is a reboot.
//
// Nothing in here touches a disk; package install does, and only for an assignment with an intent.
package discovery

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"coldrack.dev/internal/agent/client"
	"coldrack.dev/internal/agent/console"
	"coldrack.dev/internal/agent/install"
	"coldrack.dev/internal/base/retry"
	"coldrack.dev/internal/contract/wire"
)

const (
	// pollWait is how long one long poll lasts at most.
	pollWait = 50 * time.Second
	// inventoryEvery is how often it is looked whether a link or a neighbour changed.
	inventoryEvery = 5 * time.Second
	// refusedDelay before a machine that the server refused boots again: time to read the console.
	refusedDelay = 60 * time.Second
	nonceDelay   = 10 * time.Second
)

// Reboot is the error with which a discovery ends: the machine shall boot again.
type Reboot struct {
	Reason string
	After  time.Duration
	// Wanted tells an end as planned from one for lack of a better idea.
	Wanted bool
}

func (r *Reboot) Error() string { return r.Reason }

// Server is the machine API as discovery uses it.
type Server interface {
	install.Server
	Enroll(context.Context, wire.EnrollRequest) (wire.EnrollResponse, error)
	Inventory(context.Context, wire.Inventory) error
	Assignment(ctx context.Context, version string, wait time.Duration) (wire.Assignment, error)
	Complete(context.Context, wire.Complete) error
	Renew(context.Context, wire.RenewRequest) (wire.IdentityResponse, error)
}

// Acts carries plans out.
type Acts interface {
	Install(context.Context, wire.InstallPlan) (wire.Complete, error)
	Release(context.Context, wire.ReleasePlan) (wire.Complete, error)
}

// Discovery is one machine's conversation with its server, from enrolment on.
type Discovery struct {
	Log     *slog.Logger
	Console *console.Console
	Server  Server
	Acts    Acts
	// Use makes a certificate the one that Server shows.
	Use func(chain string, key *ecdsa.PrivateKey) error
	// Look reads the inventory. Glance reads what may change while the machine waits, without touching
	// disks or the BMC; it is called again and again.
	Look    func() wire.Inventory
	Glance  func() wire.Inventory
	Nonce   string
	BootMAC string
	Version string // of the agent
	// Sleep waits; tests replace it.
	Sleep func(context.Context, time.Duration)

	key     *ecdsa.PrivateKey
	csr     string
	expires time.Time
	machine string

	mu       sync.Mutex
	reported wire.Inventory
}

// Run ends with a *Reboot, or with the error of the ended ctx.
func (d *Discovery) Run(ctx context.Context) error {
	if err := d.enroll(ctx); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.keepInventory(ctx) })
	g.Go(func() error { return d.keepSession(ctx) })
	g.Go(func() error { return d.follow(ctx) })
	return g.Wait()
}

// retry calls f until it succeeds or is refused, telling the console.
func (d *Discovery) retry(ctx context.Context, what string, f func(context.Context) error) error {
	failed := false
	err := retry.Do(ctx, func(err error, wait time.Duration) {
		failed = true
		d.Console.Say("the server is unreachable (%s: %v); asking again in %s", what, err, wait.Round(time.Second))
	}, f)
	if err == nil && failed {
		d.Console.Say("server is reachable again")
	}
	return err
}

func (d *Discovery) enroll(ctx context.Context) error {
	var err error
	if d.key, d.csr, err = client.NewKey("discovery"); err != nil {
		return err
	}
	inv := d.Look()
	var answer wire.EnrollResponse
	err = d.retry(ctx, "enrol", func(ctx context.Context) error {
		var err error
		answer, err = d.Server.Enroll(ctx, wire.EnrollRequest{
			Nonce: d.Nonce, Identifiers: inv.Identifiers, BootMAC: d.BootMAC, CSR: d.csr, AgentVersion: d.Version,
		})
		return err
	})
	if err != nil {
		return d.refused("enrol", err)
	}
	if err := d.Use(answer.Certificate, d.key); err != nil {
		return &Reboot{Reason: fmt.Sprintf("the session certificate that the server sent cannot be used: %v", err), After: refusedDelay}
	}
	d.machine, d.expires = answer.Machine, answer.ExpiresAt
	d.Console.Good("this machine is known to the server as %s", answer.Machine)
	if err := d.retry(ctx, "report the inventory", func(ctx context.Context) error { return d.Server.Inventory(ctx, inv) }); err != nil {
		return d.refused("report the inventory", err)
	}
	d.mu.Lock()
	d.reported = inv
	d.mu.Unlock()
	d.Console.Say("inventory reported: %s", summary(inv))
	return nil
}

func summary(inv wire.Inventory) string {
	return fmt.Sprintf("%s %s, %d cores, %d MiB of memory, %d disks, %d network interfaces, %s",
		inv.System.Vendor, inv.System.Product, inv.CPU.Cores, inv.MemoryBytes>>20, len(inv.Disks), len(inv.NICs), inv.Firmware)
}

// refused turns a final answer of the server into what this machine does about it.
func (d *Discovery) refused(what string, err error) error {
	if errors.Is(err, context.Canceled) || (*Reboot)(nil) != asReboot(err) {
		return err
	}
	after := refusedDelay
	if client.Code(err) == wire.CodeUnknownNonce {
		// The server was restarted, or this boot took too long: the next one brings a new nonce. Jitter
		// keeps a rack from coming back all at once.
		after = nonceDelay + rand.N(nonceDelay)
	}
	return &Reboot{Reason: fmt.Sprintf("%s: %v", what, err), After: after}
}

func asReboot(err error) *Reboot {
	r := (*Reboot)(nil)
	errors.As(err, &r)
	return r
}

// keepInventory reports again when links, neighbours or the number of disks changed.
func (d *Discovery) keepInventory(ctx context.Context) error {
	for {
		d.Sleep(ctx, inventoryEvery)
		if ctx.Err() != nil {
			return nil
		}
		d.mu.Lock()
		old := d.reported
		d.mu.Unlock()
		now := d.Glance()
		if reflect.DeepEqual(old.NICs, now.NICs) && old.Address == now.Address && len(old.Disks) == len(now.Disks) {
			continue
		}
		now = d.Look()
		if err := d.Server.Inventory(ctx, now); err != nil {
			d.Log.Debug("cannot report the new inventory", "err", err)
			continue
		}
		d.mu.Lock()
		d.reported = now
		d.mu.Unlock()
	}
}

// reportAgain sends the inventory once more, now that the machine is approved: of strangers the server may have kept less.
func (d *Discovery) reportAgain(ctx context.Context) {
	d.mu.Lock()
	inv := d.reported
	d.mu.Unlock()
	if err := d.Server.Inventory(ctx, inv); err != nil {
		d.Log.Debug("cannot report the inventory again", "err", err)
	}
}

// keepSession renews the session certificate when half of its time is left: a machine may wait for its
// approval for weeks.
func (d *Discovery) keepSession(ctx context.Context) error {
	for {
		d.Sleep(ctx, max(time.Until(d.expires)/2, time.Minute))
		if ctx.Err() != nil {
			return nil
		}
		answer, err := d.Server.Renew(ctx, wire.RenewRequest{CSR: d.csr})
		if err == nil {
			err = d.Use(answer.Certificate, d.key)
		}
		if err == nil {
			d.expires = answer.ExpiresAt
			continue
		}
		d.Log.Info("cannot renew the session", "err", err, "expires", d.expires)
		if time.Until(d.expires) <= 0 {
			return &Reboot{Reason: "this session with the server has expired and could not be renewed: " + err.Error(), After: nonceDelay}
		}
	}
}

// follow does what the server assigns. An intent that was carried out is not carried out again in this
// boot, whatever its result: only a person, or a new intent, starts it anew.
func (d *Discovery) follow(ctx context.Context) error {
	done := map[string]bool{}
	version, shown := "", ""
	for {
		var next wire.Assignment
		asked, wait := time.Now(), pollWait
		err := d.retry(ctx, "ask what to do", func(ctx context.Context) error {
			var err error
			if next, err = d.Server.Assignment(ctx, version, wait); err != nil {
				wait = 0 // a server that is back shall say so at once, and not when the poll ends
			}
			return err
		})
		if err != nil {
			return d.refused("ask what to do", err)
		}
		if next.Version == version && time.Since(asked) < time.Second {
			d.Sleep(ctx, time.Second) // a server that does not hold the poll must not be flooded
		}
		version = next.Version
		if next.Message != "" && next.Message != shown {
			d.Console.Say("%s", next.Message)
			shown = next.Message
		}
		switch {
		case next.Action == wire.ActionReboot:
			return &Reboot{Reason: "server requested a reboot", Wanted: true}
		case next.Action == wire.ActionInstall && next.Plan != nil && !done[next.Plan.IntentID]:
			done[next.Plan.IntentID] = true
			d.reportAgain(ctx)
			err = d.act(ctx, next.Plan.IntentID, "install "+next.Plan.Image.Name, true, func(ctx context.Context) (wire.Complete, error) {
				return d.Acts.Install(ctx, *next.Plan)
			})
		case next.Action == wire.ActionRelease && next.Release != nil && !done[next.Release.IntentID]:
			done[next.Release.IntentID] = true
			err = d.act(ctx, next.Release.IntentID, "release", false, func(ctx context.Context) (wire.Complete, error) {
				return d.Acts.Release(ctx, *next.Release)
			})
		}
		if err != nil {
			return err
		}
	}
}

// act carries one intent out and acknowledges it. reboot says whether success ends this boot.
func (d *Discovery) act(ctx context.Context, intentID, what string, reboot bool, carryOut func(context.Context) (wire.Complete, error)) error {
	d.Console.Good("%s: begins (intent %s)", what, intentID)
	done, err := carryOut(ctx)
	switch {
	case errors.Is(err, install.ErrCancelled):
		d.Console.Say("%s: stopped: %v", what, err)
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return d.refused(what, err)
	}
	// The acknowledgement comes before the reboot: without it the next boot would install again.
	err = d.retry(ctx, "acknowledge the "+what, func(ctx context.Context) error { return d.Server.Complete(ctx, done) })
	if client.Code(err) == wire.CodeConflict {
		d.Console.Say("%s: the server no longer waits for this intent: %v", what, err)
		return nil
	}
	if err != nil {
		return d.refused("acknowledge the "+what, err)
	}
	if done.State == wire.StateFailed {
		d.Console.Fail("%s: %s", what, done.Message)
		d.Console.Say("this machine stays here and does nothing until it is told to again")
		return nil
	}
	d.Console.Good("%s: done", what)
	if reboot {
		return &Reboot{Reason: what + " is done; starting from the disk", Wanted: true}
	}
	return nil
}
