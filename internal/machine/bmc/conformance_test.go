package bmc_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"coldrack.dev/internal/machine/bmc"
)

// rig is a BMC with a machine, and the ways in which the BMC can fail.
type rig struct {
	target bmc.Target
	// pause between two looks at the power; 0 where the power changes at once.
	pause time.Duration
	// on and boots tell what became of the machine, past the driver.
	on    func() bool
	boots func() bmc.Device
	// restarts counts how often the machine was started or reset while on.
	restarts func() int
	// set gives the machine a state, past the driver.
	set func(on bool)
	fault
}

// fault makes a BMC fail; each is for the rest of the test.
type fault struct {
	// silent: what is sent to it gets no answer.
	silent func()
	// gone: nothing is there.
	gone func()
	// deaf: the next request for a change of the power is carried out, and the answer is lost; afterwards it hears again.
	deaf func()
	// without: it has no such thing, and says so.
	without func(what string)
	// stuck: it accepts changes of the power and does nothing.
	stuck func()
}

// visit opens the BMC with other limits than in life: sixty looks at the power, and hardly a wait between them.
func (r *rig) visit(t *testing.T) bmc.Driver { return r.visitAs(t, r.target, 10*time.Second) }

func (r *rig) visitAs(t *testing.T, target bmc.Target, request time.Duration) bmc.Driver {
	t.Helper()
	d, err := bmc.Open(target, bmc.Options{Request: request, Settle: 2 * time.Minute, Shutdown: 2 * time.Minute, Task: 2 * time.Minute,
		Wait: func(ctx context.Context, _ time.Duration) error {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(r.pause):
				return nil
			}
		}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

// drivers are all implementations. Each rig is new.
func drivers() map[bmc.Protocol]func(t *testing.T) *rig {
	return map[bmc.Protocol]func(t *testing.T) *rig{bmc.Redfish: redfishRig, bmc.IPMI: ipmiRig}
}

// each runs a test against every driver.
func each(t *testing.T, name string, f func(t *testing.T, r *rig)) {
	for protocol, newRig := range drivers() {
		t.Run(string(protocol)+"/"+name, func(t *testing.T) {
			t.Parallel()
			f(t, newRig(t))
		})
	}
}

func TestConformance(t *testing.T) {
	each(t, "actions do what they say, and what is so already is left alone", func(t *testing.T, r *rig) {
		d := r.visit(t)
		for _, step := range []struct {
			action   bmc.Action
			on       bool
			restarts int
		}{
			{bmc.PowerOff, false, 0}, {bmc.PowerOn, true, 1}, {bmc.PowerOn, true, 1}, {bmc.PowerCycle, true, 2}, {bmc.Reset, true, 3},
			{bmc.Shutdown, false, 3}, {bmc.Shutdown, false, 3}, {bmc.PowerCycle, true, 4}, {bmc.PowerOff, false, 4}, {bmc.Reset, true, 5},
		} {
			if err := d.Do(t.Context(), step.action); err != nil {
				t.Fatalf("%s: %v", step.action, err)
			}
			state, err := d.Power(t.Context())
			if err != nil || (state == bmc.On) != step.on || r.on() != step.on || r.restarts() != step.restarts {
				t.Fatalf("after %s the driver says %s (%v), the machine is on: %t, restarted %d times; want on: %t, %d", step.action, state, err, r.on(), r.restarts(), step.on, step.restarts)
			}
		}
	})
	each(t, "a boot device is for one boot", func(t *testing.T, r *rig) {
		d := r.visit(t)
		for _, device := range []bmc.Device{bmc.BootNetwork, bmc.BootDisk} {
			if err := d.BootOnce(t.Context(), bmc.Boot{Device: device, Firmware: bmc.UEFI}); err != nil {
				t.Fatal(err)
			}
			if got := r.boots(); got != device {
				t.Errorf("the machine would boot from %q, want %q", got, device)
			}
		}
	})
	each(t, "the inventory has what identifies the machine", func(t *testing.T, r *rig) {
		inv, err := r.visit(t).Inventory(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if inv.Serial != "SN-0042" || inv.Model != "Model 7" || inv.Manufacturer != "Maker" || inv.UUID != "12345678-9abc-def0-1234-56789abcdef0" {
			t.Errorf("inventory %+v", inv)
		}
		if r.target.Protocol == bmc.Redfish && strings.Join(inv.MACs, " ") != "52:54:00:00:00:01 52:54:00:00:00:02" {
			t.Errorf("MACs %q", inv.MACs)
		}
	})
	each(t, "a probe says what it is and can do", func(t *testing.T, r *rig) {
		p, err := r.visit(t).Probe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if p.Protocol != r.target.Protocol || p.Power != bmc.Off || len(p.Actions) != len(bmc.Actions()) || len(p.Devices) < 2 || p.Inventory.Serial != "SN-0042" || p.Vendor == "" {
			t.Errorf("probe %+v", p)
		}
		if (p.Protocol == bmc.Redfish) != strings.HasPrefix(p.Certificate, "sha256:") {
			t.Errorf("certificate %q", p.Certificate)
		}
		if (p.Protocol == bmc.IPMI) != (p.EventLog >= 0) {
			t.Errorf("event log %d", p.EventLog)
		}
	})
	each(t, "a wrong password is told from every other failure, and changes nothing", func(t *testing.T, r *rig) {
		for _, wrong := range []bmc.Target{with(r.target, "operator", "wrong"), with(r.target, "nobody-here", "s3cret")} {
			err := r.visitAs(t, wrong, 10*time.Second).Do(t.Context(), bmc.PowerOn)
			if bmc.KindOf(err) != bmc.Refused || r.on() {
				t.Errorf("user %s: %v", wrong.Username, err)
			}
			if err != nil && (strings.Contains(err.Error(), string(wrong.Password)) && wrong.Password == "s3cret" || !strings.Contains(err.Error(), "set-password")) {
				t.Errorf("the error shows the password, or does not help: %v", err)
			}
		}
	})
	each(t, "a BMC that does not answer is unreachable", func(t *testing.T, r *rig) {
		r.silent()
		if err := r.visitAs(t, r.target, time.Second).Do(t.Context(), bmc.PowerOn); bmc.KindOf(err) != bmc.Unreachable {
			t.Errorf("%v", err)
		}
	})
	each(t, "one that is not there is unreachable", func(t *testing.T, r *rig) {
		r.gone()
		if _, err := r.visit(t).Power(t.Context()); bmc.KindOf(err) != bmc.Unreachable {
			t.Errorf("%v", err)
		}
	})
	each(t, "a caller who gives up gets away at once", func(t *testing.T, r *rig) {
		r.silent()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := r.visit(t).Power(ctx); bmc.KindOf(err) != bmc.Unreachable {
			t.Errorf("%v", err)
		}
	})
	each(t, "a lost answer to what the power shows is no failure", func(t *testing.T, r *rig) {
		d := r.visit(t)
		r.deaf()
		if err := d.Do(t.Context(), bmc.PowerOn); err != nil || !r.on() || r.restarts() != 1 {
			t.Errorf("%v; on: %t, restarted %d times", err, r.on(), r.restarts())
		}
	})
	each(t, "a request that was accepted and not carried out is not taken for done", func(t *testing.T, r *rig) {
		r.stuck()
		err := r.visit(t).Do(t.Context(), bmc.PowerOn)
		if bmc.KindOf(err) != bmc.Unfinished || !strings.Contains(err.Error(), "still Off") {
			t.Errorf("%v", err)
		}
	})
	each(t, "what a BMC does not have is missing, and the rest works", func(t *testing.T, r *rig) {
		r.without("inventory")
		d := r.visit(t)
		if inv, err := d.Inventory(t.Context()); err != nil || inv.Serial != "" {
			t.Errorf("inventory %+v, %v", inv, err)
		}
		if err := d.Do(t.Context(), bmc.PowerOn); err != nil || !r.on() {
			t.Error(err)
		}
	})
	each(t, "two visits at once do not disturb each other", func(t *testing.T, r *rig) {
		var group sync.WaitGroup
		for range 2 {
			d := r.visit(t)
			group.Go(func() {
				for range 3 {
					if _, err := d.Power(t.Context()); err != nil {
						t.Error(err)
					}
				}
			})
		}
		group.Wait()
	})
}

func with(t bmc.Target, user, password string) bmc.Target {
	t.Username, t.Password = user, bmc.Password(password)
	return t
}
