package daemon

import (
	"cmp"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/netboot/boot"
	"coldrack.dev/internal/netboot/httpboot"
	"coldrack.dev/internal/netboot/menu"
	"coldrack.dev/internal/server/controllers"
)

// errTooManyChoices is answered when choices of so many machines, or so many unknown machines, wait to be recorded; the machine asks again.
var errTooManyChoices = errors.New("the choice in the boot menu cannot be recorded now")

// mostChoices bounds what waits to be recorded.
const mostChoices = 512

// menus are the boot menus, and what was chosen in them and is not recorded yet. It implements controllers.MenuSink.
type menus struct {
	tries menu.Tries
	now   func() time.Time

	mu       sync.Mutex
	policies []menu.Policy
	chosen   map[string]v1alpha1.MenuChoice
	arrived  chan struct{}
}

func newMenus() *menus {
	return &menus{now: time.Now, chosen: map[string]v1alpha1.MenuChoice{}, arrived: make(chan struct{})}
}

// SetMenus implements controllers.MenuSink.
func (m *menus) SetMenus(all []controllers.Menu) {
	var policies []menu.Policy
	for _, one := range all {
		if network, err := netip.ParsePrefix(one.CIDR); err == nil {
			policies = append(policies, menu.Policy{Subnet: one.Subnet, Network: network.Masked(), Menu: one.Menu, PIN: one.PIN, NoPIN: one.NoPIN})
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.policies = policies
}

// of is the menu for a machine at an address; nil: none.
func (m *menus) of(client netip.Addr) *menu.Policy {
	if m == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return menu.For(m.policies, client)
}

// claim keeps a choice until it is recorded, and says whether there was room for it.
func (m *menus) claim(machine string, c v1alpha1.MenuChoice) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, again := m.chosen[machine]; machine == "" || !again && len(m.chosen) >= mostChoices {
		return false
	}
	m.chosen[machine] = c
	close(m.arrived)
	m.arrived = make(chan struct{})
	return true
}

// Choices implements controllers.MenuSink.
func (m *menus) Choices() (map[string]v1alpha1.MenuChoice, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make(map[string]v1alpha1.MenuChoice, len(m.chosen))
	for machine, c := range m.chosen {
		all[machine] = c
	}
	return all, m.arrived
}

// Recorded implements controllers.MenuSink.
func (m *menus) Recorded(machine string, c v1alpha1.MenuChoice) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.chosen[machine] == c {
		delete(m.chosen, machine)
	}
}

// menuAnswer is a script to answer with, or else what is booted.
type menuAnswer struct {
	script string
	plan   boot.Plan
	claim  *v1alpha1.MenuChoice
}

// menu shows the boot menu of the machine's Subnet, or carries out what was chosen in it. The Subnet is that of the address which the request
// came from: what the machine says of its address does not count.
func (b *booter) menu(request boot.Request, asked *httpboot.Query, at netip.Addr, s boot.Subject, decided boot.Plan, have boot.Policy) (menuAnswer, error) {
	policy := b.menus.of(asked.Remote.Addr())
	if policy == nil || !menu.Offered(decided) {
		return menuAnswer{plan: decided}, nil
	}
	target := menu.Target{Host: net.JoinHostPort(at.String(), strconv.Itoa(b.cfg.BootPort)), Ask: httpboot.AskPath()}
	if s.Machine != nil {
		target.Machine = s.Machine.Name
	}
	if asked.Choice == "" {
		return menuAnswer{script: menu.Script(policy.Items(s, decided, have), policy.Default(s, decided, have), policy, target)}, nil
	}
	now := b.menus.now()
	choice := menu.Choice{Entry: asked.Choice, From: asked.Remote.Addr(), At: now}
	if asked.Credentials && policy.Menu.Mode == v1alpha1.BootMenuPIN && policy.PIN != "" {
		choice.By = asked.User
		choice.PIN = b.menus.tries.Check(asked.Password, policy, cmp.Or(target.Machine, asked.Remote.Addr().String()), now)
	}
	outcome := policy.Decide(choice, request, s, decided, have)
	log := b.log.With("machine", target.Machine, "macs", request.MACs, "address", asked.Remote.Addr(), "subnet", policy.Subnet, "choice", choice.Entry, "by", choice.By)
	switch {
	case outcome.AskPIN:
		return menuAnswer{}, httpboot.ErrCredentials
	case outcome.Refused != "":
		log.Warn("choice in a boot menu refused", "reason", outcome.Refused)
		return menuAnswer{script: menu.Refusal(outcome.Refused, target)}, nil
	}
	if choice.Entry != v1alpha1.MenuContinue {
		log.Info("choice in a boot menu", "action", string(outcome.Plan.Action), "pin", choice.PIN == menu.PINRight)
	}
	return menuAnswer{plan: outcome.Plan, claim: outcome.Claim}, nil
}
