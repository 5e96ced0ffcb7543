package machineapi

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/pki"
	"coldrack.dev/internal/base/termtext"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/internal/machine/identify"
)

// enroll exchanges the nonce of this boot for a session certificate.
//
// A machine that has an identity is refused unless an intent is open: whoever forges the identifiers of
// an installed machine learns nothing about it and gets no certificate in its name.
func (a *API) enroll(ctx context.Context, c call, in wire.EnrollRequest) (any, error) {
	if !a.Nonces.Exists(in.Nonce) { // before any work is done for a stranger
		return nil, refuse(http.StatusForbidden, wire.CodeUnknownNonce, "the nonce of this boot is unknown or older than %v; boot from the network again", nonceTTL)
	}
	public, err := pki.ParseCSR([]byte(in.CSR))
	if err != nil {
		return nil, refuse(http.StatusBadRequest, wire.CodeBadRequest, "csr: %v", err)
	}
	key, err := pki.Fingerprint(public)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, wire.CodeBadRequest, "csr: %v", err)
	}
	binding, ok := a.Nonces.Peek(in.Nonce, key)
	if !ok {
		return nil, refuse(http.StatusForbidden, wire.CodeUnknownNonce, "the nonce of this boot was used already; boot from the network again")
	}
	if binding.live() {
		return nil, refuse(http.StatusForbidden, wire.CodeForbidden, "the nonce is for the live system, which does not enrol; boot from the network again")
	}
	claimed := presented(in)
	if err := sameMachine(binding, claimed); err != nil {
		return nil, err
	}
	m, err := a.identify(ctx, claimed)
	if err != nil {
		return nil, err
	}
	if m.Status.Identity != nil && m.OpenIntent() == nil {
		a.Log.Warn("enrolment refused: the machine already has an identity", "machine", m.Name, "from", c.request.RemoteAddr, "macs", claimed.MACs)
		a.Fleet.Log(m.Name, fmt.Sprintf("refused an enrolment from %s in this machine's name: it has an identity and no intent is open", address(c.request)))
		return nil, refuse(http.StatusForbidden, wire.CodeIdentityExists,
			"machine %s is installed and has an identity. If this is that machine and it shall be installed again: coldrack reinstall %s", m.Name, m.Name)
	}
	if !a.Nonces.Use(in.Nonce, key) {
		return nil, refuse(http.StatusForbidden, wire.CodeUnknownNonce, "the nonce of this boot was used by somebody else; boot from the network again")
	}
	certificate, leaf, err := a.Signer.SignClient(public, sessionPrefix+m.Name, []string{sessionOrganization}, sessionTTL)
	if err != nil {
		return nil, fmt.Errorf("sign session certificate of %s: %w", m.Name, err)
	}
	a.Fleet.Enrolled(m.Name, key, pki.IssuedAt(leaf))
	a.Fleet.Contacted(m.Name, address(c.request))
	a.Fleet.Log(m.Name, fmt.Sprintf("enrolled from %s with agent %s, to %s", address(c.request), in.AgentVersion, binding.Action))
	a.Log.Info("machine enrolled", "machine", m.Name, "from", address(c.request), "agent", termtext.Line(in.AgentVersion, 64), "boot", binding.Action)
	return wire.EnrollResponse{Machine: m.Name, Certificate: string(certificate), CA: string(a.Signer.CertPEM()), ExpiresAt: leaf.NotAfter.UTC()}, nil
}

// presented is what an enrolment says of the machine. The MAC that booted comes first, and counts even if the kernel has no
// driver for its interface.
func presented(in wire.EnrollRequest) identify.Query {
	macs := in.Identifiers.MACs
	if in.BootMAC != "" {
		macs = append([]string{in.BootMAC}, macs...)
	}
	const maxMACs = 64
	return identify.Query{
		Identifiers: v1alpha1.Identifiers{
			MACs: macs[:min(len(macs), maxMACs)],
			UUID: in.Identifiers.UUID, Serial: in.Identifiers.Serial, BMCMAC: in.Identifiers.BMCMAC,
		},
		Complete: true, Boot: in.BootMAC, USB: in.Identifiers.USBMACs[:min(len(in.Identifiers.USBMACs), maxMACs)],
	}
}

// sameMachine refuses a nonce that was read off another machine's boot: the machine must have the MAC that asked for it, or where
// the request named none, its UUID or serial.
func sameMachine(b Binding, claimed identify.Query) error {
	boot := ""
	for _, mac := range b.Identifiers.MACs {
		boot = cmp.Or(boot, identify.MAC(mac))
		if slices.ContainsFunc(claimed.MACs, func(own string) bool { return boot != "" && identify.MAC(own) == identify.MAC(mac) }) {
			return nil
		}
	}
	if boot == "" {
		if b.Identifiers.UUID != "" && strings.EqualFold(b.Identifiers.UUID, claimed.UUID) ||
			b.Identifiers.UUID == "" && b.Identifiers.Serial != "" && b.Identifiers.Serial == claimed.Serial ||
			identify.NameFor(claimed) == "" { // refused by itself, with what to do
			return nil
		}
		return refuse(http.StatusForbidden, wire.CodeForbidden, "the nonce was issued to a machine without a MAC, with UUID %q and serial %q, which are not those of this one", b.Identifiers.UUID, b.Identifiers.Serial)
	}
	return refuse(http.StatusForbidden, wire.CodeForbidden, "the nonce was issued to the machine with MAC %s, which this one has not (%v)", boot, claimed.MACs)
}

// identify returns the Machine that the identifiers belong to and records one that is new.
func (a *API) identify(ctx context.Context, claimed identify.Query) (*v1alpha1.Machine, error) {
	match := a.Fleet.Match(claimed)
	if match.Conflict {
		for _, name := range match.Involved {
			a.Fleet.Conflicted(name, match.Reason)
		}
		return nil, refuse(http.StatusConflict, wire.CodeConflict, "cannot tell which machine this is: %s", match.Reason)
	}
	if match.Machine != "" {
		return a.machine(ctx, match.Machine)
	}
	name := identify.NameFor(claimed)
	if name == "" {
		return nil, refuse(http.StatusBadRequest, wire.CodeBadRequest, "nothing tells this machine from others: %s. Give one of its NICs a MAC of its own, or write its UUID or serial with the vendor's tool", identify.Useless(claimed))
	}
	return a.record(ctx, name, claimed, match.Reason)
}

// recordedBesides is how many more strangers may be recorded by their enrolment than by their boot, which makes room.
const recordedBesides = 1000

func (a *API) record(ctx context.Context, name string, claimed identify.Query, why string) (*v1alpha1.Machine, error) {
	if a.Fleet.PlacesForStrangers() <= -recordedBesides {
		return nil, refuse(http.StatusServiceUnavailable, wire.CodeConflict, "too many machines that nobody approved are recorded: approve or delete some (coldrack machines); ask again")
	}
	ids := a.Fleet.Unclaimed(claimed)
	m, err := a.Store.Create(ctx, &v1alpha1.Machine{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{v1alpha1.AnnotationDiscoveredBy: identify.DiscoveredByEnrolment}},
		Spec:       v1alpha1.MachineSpec{Identifiers: ids},
	})
	if err == nil {
		a.Fleet.Put(m)
		a.Log.Info("new machine recorded", "machine", name, "macs", ids.MACs, "reason", why)
		return m, nil
	}
	if !apierrors.IsAlreadyExists(err) {
		return nil, fmt.Errorf("record machine %s: %w", name, err)
	}
	// Its boot was recorded a moment ago, or the name is another machine's.
	if m, err = a.Store.Get(ctx, name); err != nil {
		return nil, fmt.Errorf("read machine %s: %w", name, err)
	}
	a.Fleet.Put(m)
	if match := a.Fleet.Match(claimed); match.Machine == name {
		return m, nil
	} else if match.Machine == "" {
		return nil, refuse(http.StatusConflict, wire.CodeConflict, "this machine would be recorded as %s, but that is another machine: %s. Delete machine %s if it no longer exists, or record this one by hand: a Machine of another name with its identifiers", name, match.Reason, name)
	}
	return nil, refuse(http.StatusServiceUnavailable, wire.CodeConflict, "machine %s is being recorded; ask again", name)
}
