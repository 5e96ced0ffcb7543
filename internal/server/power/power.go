// Package power switches machines by their BMCs, for people and for controllers, and records in each Machine's status
// whether it is on. Only the server reaches BMCs, and only it holds their credentials.
//
// An action is carried out while somebody waits for it. None is stored, so that no restart repeats one.
package power

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/machine/bmc"
)

// Statuses writes a section of a Machine's status.
type Statuses interface {
	UpdateStatus(ctx context.Context, name string, change func(*v1alpha1.Machine) error) (*v1alpha1.Machine, error)
}

// Machines are those that the server knows, in memory.
type Machines interface {
	List() []*v1alpha1.Machine
}

// Options are what a Service is made of.
type Options struct {
	// Client reads from the API itself.
	Client   client.Client
	Statuses Statuses
	Machines Machines
	Pool     *bmc.Pool
	Log      *slog.Logger
	// Every is how often each machine's power is read. Default 15 min: many BMCs write each login into a log that is small.
	// PerSecond bounds the visits of all. Default 10.
	Every     time.Duration
	PerSecond int
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Service is safe for concurrent use.
type Service struct{ o Options }

// New returns a service. It does nothing by itself: see Run.
func New(o Options) *Service {
	o.Every = cmp.Or(o.Every, 15*time.Minute)
	o.PerSecond = cmp.Or(o.PerSecond, 10)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Service{o}
}

// ErrNotFound is returned for a machine that does not exist.
var ErrNotFound = errors.New("there is no such machine")

// Result is what became of a machine's power.
type Result struct {
	// Was is the state before, State the one now.
	Was, State bmc.State
}

// machine reads a machine, and how to reach its BMC.
func (s *Service) machine(ctx context.Context, name string) (*v1alpha1.Machine, bmc.Target, error) {
	m := &v1alpha1.Machine{}
	if err := s.o.Client.Get(ctx, client.ObjectKey{Name: name}, m); err != nil {
		if apierrors.IsNotFound(err) {
			return nil, bmc.Target{}, fmt.Errorf("machine %q: %w", name, ErrNotFound)
		}
		return nil, bmc.Target{}, fmt.Errorf("read machine %s: %w", name, err)
	}
	t, err := s.target(ctx, m)
	return m, t, err
}

func misconfigured(address, what, remedy string) error {
	return &bmc.Error{Kind: bmc.Misconfigured, Address: cmp.Or(address, "(none)"), What: what, Remedy: remedy}
}

func (s *Service) target(ctx context.Context, m *v1alpha1.Machine) (bmc.Target, error) {
	b := m.Spec.BMC
	if b == nil {
		return bmc.Target{}, misconfigured("", fmt.Sprintf("machine %s has no spec.bmc", m.Name), "write its address there, or switch the machine by hand")
	}
	t := bmc.Target{Address: b.Address, Protocol: bmc.Protocol(cmp.Or(b.Protocol, string(bmc.Redfish))), System: b.System, Certificate: b.Certificate, Authority: b.Authority}
	if b.CredentialsSecret == "" {
		return t, misconfigured(b.Address, "machine "+m.Name+" has no spec.bmc.credentialsSecret", "coldrack bmc set-password "+m.Name)
	}
	return s.credentials(ctx, b.CredentialsSecret, t)
}

// credentials adds what a Secret has, if it is for this address: who writes a Machine must not have the server send any password
// anywhere.
func (s *Service) credentials(ctx context.Context, name string, t bmc.Target) (bmc.Target, error) {
	secret := &v1alpha1.Secret{}
	switch err := s.o.Client.Get(ctx, client.ObjectKey{Name: name}, secret); {
	case apierrors.IsNotFound(err):
		return t, misconfigured(t.Address, fmt.Sprintf("there is no Secret %q", name), "coldrack bmc set-password")
	case err != nil:
		return t, fmt.Errorf("read Secret %s: %w", name, err)
	}
	c, err := v1alpha1.ReadBMCCredentials(secret)
	if err != nil {
		return t, misconfigured(t.Address, err.Error(), "write it anew: coldrack bmc set-password")
	}
	if !c.For(t.Address) {
		return t, misconfigured(t.Address, fmt.Sprintf("Secret %q is not for this address", name), "an administrator adds it: coldrack bmc set-password --secret "+name+" --for "+hostOf(t.Address))
	}
	t.Username, t.Password = c.Username, bmc.Password(c.Password)
	return t, nil
}

func hostOf(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
}

// Do changes a machine's power, after it has chosen what the machine boots next, if that is asked for.
func (s *Service) Do(ctx context.Context, name string, action bmc.Action, boot *bmc.Boot) (Result, error) {
	m, t, err := s.machine(ctx, name)
	if err != nil {
		return Result{}, err
	}
	var result Result
	err = s.o.Pool.Visit(ctx, t, bmc.Urgent, func(ctx context.Context, d bmc.Driver) error {
		var err error
		if result.Was, err = d.Power(ctx); err != nil {
			return err
		}
		result.State = result.Was
		if boot != nil {
			if err := d.BootOnce(ctx, *boot); err != nil {
				return err
			}
		}
		err = d.Do(ctx, action)
		if now, readErr := d.Power(ctx); readErr == nil {
			result.State = now
		}
		return err
	})
	s.record(ctx, m, t, result.State, err)
	if err != nil {
		s.o.Log.Warn("power action failed", "machine", name, "action", string(action), "err", err)
		return result, err
	}
	s.o.Log.Info("power action", "machine", name, "action", string(action), "was", string(result.Was), "power", string(result.State))
	return result, nil
}

// Power asks the BMC whether a machine is on.
func (s *Service) Power(ctx context.Context, name string) (Result, error) {
	m, t, err := s.machine(ctx, name)
	if err != nil {
		return Result{}, err
	}
	state, err := s.look(ctx, m, t, bmc.Urgent)
	return Result{Was: state, State: state}, err
}

// PowerCycle cuts a machine's power and gives it back. It is how a controller repairs a machine that does not answer.
func (s *Service) PowerCycle(ctx context.Context, name string) error {
	_, err := s.Do(ctx, name, bmc.PowerCycle, nil)
	return err
}

// look reads and records a machine's power.
func (s *Service) look(ctx context.Context, m *v1alpha1.Machine, t bmc.Target, patience bmc.Patience) (state bmc.State, err error) {
	err = s.o.Pool.Visit(ctx, t, patience, func(ctx context.Context, d bmc.Driver) (err error) {
		state, err = d.Power(ctx)
		return err
	})
	s.record(ctx, m, t, state, err)
	return state, err
}

// seenEvery is how often an unchanged state is written again, so that people see that it is known to be so.
const seenEvery = 30 * time.Minute

// record writes what a visit showed, if that is news.
func (s *Service) record(ctx context.Context, m *v1alpha1.Machine, t bmc.Target, state bmc.State, err error) {
	kind := bmc.KindOf(err)
	if kind == bmc.Waiting || kind == bmc.Unsupported || kind == bmc.Uncertain || kind == bmc.Unfinished {
		if kind == bmc.Waiting || state == "" {
			return // nothing was learned of the BMC
		}
		err, kind = nil, ""
	}
	next := &v1alpha1.PowerStatus{State: v1alpha1.PowerState(state), SeenAt: &metav1.Time{Time: s.o.Now().Truncate(time.Second)}}
	if err != nil {
		next.Reason, next.Problem = string(kind), err.Error()
		if m.Status.Power != nil {
			next.State, next.SeenAt = m.Status.Power.State, m.Status.Power.SeenAt
		} else {
			next.State, next.SeenAt = v1alpha1.PowerState(bmc.Unknown), nil
		}
	}
	if was := m.Status.Power; was != nil && was.State == next.State && was.Reason == next.Reason && was.Problem == next.Problem &&
		(err != nil || was.SeenAt != nil && s.o.Now().Sub(was.SeenAt.Time) < seenEvery) {
		return
	}
	// It is recorded also when the person who asked has gone.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	_, writeErr := s.o.Statuses.UpdateStatus(ctx, m.Name, func(m *v1alpha1.Machine) error {
		if m.Spec.BMC == nil || m.Spec.BMC.Address != t.Address {
			return errChanged
		}
		m.Status.Power = next
		return nil
	})
	if writeErr != nil && !errors.Is(writeErr, errChanged) && !apierrors.IsNotFound(writeErr) {
		s.o.Log.Warn("power of a machine not recorded", "machine", m.Name, "err", writeErr)
	}
}

var errChanged = errors.New("the machine has another BMC now")

// Probe asks a machine's BMC what it is and can do. anyCertificate is for a first look: it logs in nowhere.
func (s *Service) Probe(ctx context.Context, name string, anyCertificate bool) (probe bmc.Probe, err error) {
	m := &v1alpha1.Machine{}
	if err := s.o.Client.Get(ctx, client.ObjectKey{Name: name}, m); err != nil {
		if apierrors.IsNotFound(err) {
			return probe, fmt.Errorf("machine %q: %w", name, ErrNotFound)
		}
		return probe, fmt.Errorf("read machine %s: %w", name, err)
	}
	t, err := s.target(ctx, m)
	if anyCertificate && m.Spec.BMC != nil {
		t.Username, t.Password, t.AnyCertificate, err = "", "", true, nil
	}
	if err != nil {
		return probe, err
	}
	err = s.o.Pool.Visit(ctx, t, bmc.Urgent, func(ctx context.Context, d bmc.Driver) (err error) {
		probe, err = d.Probe(ctx)
		return err
	})
	return probe, err
}

// Limits of a scan.
const (
	scanAtOnce  = 64
	scanRequest = 10 * time.Second
)

// Look asks an address what everybody may know.
func (s *Service) Look(ctx context.Context, address string) (bmc.Found, bool) {
	return bmc.Look(ctx, address, bmc.Target{}, bmc.Options{Request: scanRequest})
}

// Scan looks for BMCs in a network. With the name of a Secret it logs in, where the Secret is for the address.
func (s *Service) Scan(ctx context.Context, network netip.Prefix, secret string, tell func(bmc.Found)) error {
	var t bmc.Target
	if secret != "" {
		var err error
		if t, err = s.credentials(ctx, secret, bmc.Target{Address: network.Masked().String()}); err != nil {
			return err
		}
	}
	return bmc.Scan(ctx, network, t, bmc.Options{Request: scanRequest}, scanAtOnce, tell)
}
