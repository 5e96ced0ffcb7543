package machineapi

import (
	"testing"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/contract/wire"
)

// A boot of the live system learns who may log in, and nothing else; a boot of another kind learns nothing.
func TestWhoMayLogInToTheLiveSystem(t *testing.T) {
	s := newServer(t)
	_, node := s.installed(idsA, "i1")
	const key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFEBxI3wzQb9z0X7gqTnhYJqBHZCIw3K0P9r3D7b3fQZ kim"
	s.spec(node.name, func(spec *v1alpha1.MachineSpec) { spec.Rescue = &v1alpha1.Rescue{SSHKeys: []string{key}} })
	ids := v1alpha1.Identifiers{MACs: idsA.MACs}
	ask := func(nonce string) (wire.LiveResponse, error) {
		return send[wire.LiveResponse](s.agent(), "POST", wire.PathLive, wire.LiveRequest{Nonce: nonce})
	}
	nonce := s.api.Nonces.Issue(Binding{Identifiers: ids, Machine: node.name, Action: v1alpha1.BootRescue})
	for range 2 { // the first answer was lost
		if who, err := ask(nonce); err != nil || who.Machine != node.name || len(who.SSHKeys) != 1 || who.SSHKeys[0] != key {
			t.Errorf("got %+v, %v", who, err)
		}
	}
	if err := s.agent().enroll(nonce, idsA); code(err) != wire.CodeForbidden {
		t.Errorf("the live system enrols: %v", err)
	}
	if _, err := node.heartbeat(); err != nil {
		t.Errorf("the node's own certificate no longer counts: %v", err)
	}
	for name, nonce := range map[string]string{
		"a boot into discovery": s.boot(idsA.MACs[0]),
		"no boot":               "none",
		"an empty one":          "",
	} {
		if who, err := ask(nonce); code(err) != wire.CodeUnknownNonce || who.Machine != "" {
			t.Errorf("%s: got %+v, %v", name, who, err)
		}
	}
	// The live system that was chosen at the console lets nobody in by SSH.
	s.spec(node.name, func(spec *v1alpha1.MachineSpec) { spec.Rescue = nil })
	if who, err := ask(s.api.Nonces.Issue(Binding{Identifiers: ids, Machine: node.name, Action: v1alpha1.BootRescue})); err != nil || len(who.SSHKeys) != 0 || who.Machine != node.name {
		t.Errorf("without a rescue: %+v, %v", who, err)
	}
	if who, err := ask(s.api.Nonces.Issue(Binding{Identifiers: v1alpha1.Identifiers{MACs: idsB.MACs}, Action: v1alpha1.BootRescue})); err != nil || len(who.SSHKeys) != 0 || who.Machine != "" {
		t.Errorf("a machine that is not known: %+v, %v", who, err)
	}
}
