package machineapi

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/contract/firstboot"
	"coldrack.dev/internal/contract/nodeconfig"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/internal/machine/fleet"
)

// ingredients are everything that an assignment depends on. What could not be found is nil or empty, with
// the reason in missing.
type ingredients struct {
	machine *v1alpha1.Machine
	profile *v1alpha1.Profile
	image   *v1alpha1.Image
	subnets []v1alpha1.Subnet
	index   wire.Content
	boot    wire.BootFiles
	facts   *nodeconfig.ImageFacts // nil where the image's builder wrote none
	// addressOwners are the machines whose plan has this machine's address.
	addressOwners []string
	// member says that the machine is a node of a cluster, or is about to be.
	member bool
	// missing is why an ingredient is not there, for a person.
	missing string
	// restoredAt is when the store was restored from a backup, until a person confirms it.
	restoredAt time.Time
}

// assign says what a machine in discovery shall do, and what keeps an intent from being carried out. It is pure.
func assign(in ingredients) (wire.Assignment, fleet.Block) {
	answer, reason := decide(in)
	answer.Version = version(answer)
	if in.machine.OpenIntent() == nil || answer.Action != wire.ActionWait && reason == "" {
		return answer, fleet.Block{}
	}
	return answer, fleet.Block{Reason: reason, Message: answer.Message}
}

// decide also returns the reason, in one word, for which a machine with an intent waits.
func decide(in ingredients) (answer wire.Assignment, reason string) {
	m := in.machine
	intent := m.OpenIntent()
	if intent == nil {
		return idle(m), ""
	}
	if intent.FromBackup(in.restoredAt) {
		answer = wait("this %s was asked for before the server's store was restored from a backup, and may have been carried out since: nothing is done until a person says so; `coldrack server restored` shows what to do", strings.ToLower(string(intent.Action)))
		if m.Status.Installed != nil {
			answer.Action = wire.ActionReboot // to its disk
		}
		return answer, v1alpha1.ReasonStoreRestored
	}
	if intent.Action == v1alpha1.ActionRelease {
		return wire.Assignment{Action: wire.ActionRelease, Message: "release: this machine's disks are wiped",
			Release: &wire.ReleasePlan{IntentID: intent.ID, Machine: m.Name, OwnIntentIDs: ownIntents(m, intent), OwnMarkers: ownMarkers(m), Wipe: wipePolicy(in.profile)}}, ""
	}
	if !m.Spec.Approved {
		return wait("an install was asked for, but this machine is not approved; run: coldrack approve %s", m.Name), v1alpha1.ReasonNotApproved
	}
	if intent.Action == v1alpha1.ActionInstall && m.Status.Installed != nil {
		return wait("this machine is installed already; run: coldrack reinstall %s", m.Name), v1alpha1.ReasonPlanIncomplete
	}
	if in.missing != "" {
		return wait("%s", in.missing), v1alpha1.ReasonPlanIncomplete
	}
	plan, err := installPlan(in, intent)
	if mismatch := (*mismatchError)(nil); errors.As(err, &mismatch) {
		return wait("%v", err), v1alpha1.ReasonImageMismatch
	}
	if err != nil {
		return wait("%v", err), v1alpha1.ReasonPlanIncomplete
	}
	// Now, since the installer would find it out only after the wipe.
	if err := in.facts.Check(plan.Config, in.image.Name); err != nil {
		return wait("machine %s with profile %s does not fit image %s; nothing was changed: %v", m.Name, in.profile.Name, in.image.Name, err), v1alpha1.ReasonImageMismatch
	}
	return wire.Assignment{Action: wire.ActionInstall, Message: fmt.Sprintf("install %s as %s", in.image.Name, plan.Config.Hostname), Plan: plan}, ""
}

// idle is the assignment of a machine for which nothing is to be done.
func idle(m *v1alpha1.Machine) wire.Assignment {
	status := m.Status.Intent
	switch {
	case status != nil && status.State == v1alpha1.IntentFailed:
		what := strings.ToLower(string(status.Action))
		return wait("the last %s failed: %s; to try again: coldrack %s %s", what, status.Message, what, m.Name)
	case m.Status.Installed != nil:
		return wire.Assignment{Action: wire.ActionReboot, Message: "this machine is installed and boots from its disk"}
	case status != nil && status.Action == v1alpha1.ActionRelease && !m.Spec.Approved:
		return wait("released; to use this machine again: coldrack approve %s", m.Name)
	case !m.Spec.Approved:
		return wait("waiting for approval; run: coldrack approve %s", m.Name)
	}
	return wait("approved; waiting for the server to plan the install")
}

func wait(format string, args ...any) wire.Assignment {
	return wire.Assignment{Action: wire.ActionWait, Message: fmt.Sprintf(format, args...)}
}

// version changes whenever anything else in the assignment does.
func version(a wire.Assignment) string {
	a.Version = ""
	text, err := json.Marshal(a)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:12])
}

// ownIntents are the marks by which the agent knows a disk as this machine's own. Sorted, so that the
// acknowledgement of an intent does not make another plan of it.
func ownIntents(m *v1alpha1.Machine, intent *v1alpha1.Intent) []string {
	ids := m.AcknowledgedIntents()
	if m.Status.Installed != nil && m.Status.Installed.IntentID != "" && !slices.Contains(ids, m.Status.Installed.IntentID) {
		ids = append(ids, m.Status.Installed.IntentID)
	}
	if !slices.Contains(ids, intent.ID) {
		ids = append(ids, intent.ID)
	}
	slices.Sort(ids)
	return ids
}

// ownMarkers are those that no intent explains: of an installation that was adopted.
func ownMarkers(m *v1alpha1.Machine) []string {
	if m.Status.Installed == nil || m.Status.Installed.Marker == "" {
		return nil
	}
	return []string{m.Status.Installed.Marker}
}

func installPlan(in ingredients, intent *v1alpha1.Intent) (*wire.InstallPlan, error) {
	config, err := nodeConfig(in)
	if err != nil {
		return nil, err
	}
	m, profile, image := in.machine, in.profile, in.image
	var first *wire.FirstBoot
	if family := string(image.Spec.Family); firstboot.Whole(family) {
		if in.member {
			return nil, &mismatchError{fmt.Errorf("machine %s is of a cluster, and image %s of family %s has not what nodes of clusters need; nothing was changed: take the machine out of its MachineGroup, or give it a profile with an image of family debian",
				m.Name, image.Name, family)}
		}
		first, err = firstboot.Make(family, firstboot.Node{
			IntentID: intent.ID, Config: config, KernelArgs: slices.Concat(image.Spec.KernelArgs, profile.Spec.KernelArgs), Console: profile.Spec.Console,
		})
		if err != nil {
			return nil, &mismatchError{fmt.Errorf("machine %s with profile %s does not fit image %s; nothing was changed: %w", m.Name, profile.Name, image.Name, err)}
		}
	}
	hints := profile.Spec.RootDisk
	if m.Spec.RootDisk != nil {
		hints = *m.Spec.RootDisk
	}
	return &wire.InstallPlan{
		IntentID: intent.ID, Machine: m.Name, OwnIntentIDs: ownIntents(m, intent), OwnMarkers: ownMarkers(m),
		RootDisk: hintsOf(hints), Wipe: wipePolicy(profile),
		Image: wire.Image{
			Name: image.Name, Family: string(image.Spec.Family), Index: in.index,
			Digest: image.Spec.Digest, Size: image.Spec.Size.Value(),
		},
		Boot:       in.boot,
		KernelArgs: slices.Concat(image.Spec.KernelArgs, profile.Spec.KernelArgs),
		Console:    profile.Spec.Console,
		Config:     config,
		FirstBoot:  first,
	}, nil
}

// mismatchError is a machine's configuration that its image cannot have.
type mismatchError struct{ error }

func (e *mismatchError) Unwrap() error { return e.error }

// wipePolicy of a profile as agents know it. A machine without one is treated as by the default.
func wipePolicy(p *v1alpha1.Profile) string {
	if p == nil || p.Spec.Wipe == "" || p.Spec.Wipe == v1alpha1.WipeIfOurs {
		return wire.WipeIfOurs
	}
	return string(p.Spec.Wipe)
}

func hintsOf(h v1alpha1.DiskHints) wire.DiskHints {
	out := wire.DiskHints{
		ByID: h.ByID, Serial: h.Serial, WWN: h.WWN, Model: h.Model, Transport: h.Transport,
		Rotational: h.Rotational, Smallest: h.Smallest,
	}
	if h.MinSize != nil {
		out.MinSizeBytes = h.MinSize.Value()
	}
	if h.MaxSize != nil {
		out.MaxSizeBytes = h.MaxSize.Value()
	}
	return out
}

// nodeConfig is what the installed node will have.
func nodeConfig(in ingredients) (nodeconfig.Config, error) {
	m, profile := in.machine, in.profile
	subnet, address, err := network(in)
	if err != nil {
		return nodeconfig.Config{}, err
	}
	links, err := nodeLinks(in, address, subnet.Spec.Gateway)
	if err != nil {
		return nodeconfig.Config{}, err
	}
	mac := bootMAC(m)
	if mac == "" && links == nil {
		return nodeconfig.Config{}, fmt.Errorf("machine %s has no interface for its address: set spec.network.mac", m.Name)
	}
	interfaces := []nodeconfig.Interface{{MAC: mac, Addresses: []string{address.String()}, Gateway: subnet.Spec.Gateway}}
	if links != nil {
		interfaces = []nodeconfig.Interface{{MAC: mac}}
	}
	config := nodeconfig.Config{
		Hostname:   cmp.Or(m.Spec.Hostname, m.Name),
		Domain:     subnet.Spec.Domain,
		Interfaces: interfaces,
		Links:      links,
		DNS:        subnet.Spec.DNS,
		NTP:        subnet.Spec.NTP,
		Timezone:   profile.Spec.Timezone,
		SSHKeys:    profile.Spec.SSHKeys,
	}
	for _, u := range profile.Spec.Users {
		config.Users = append(config.Users, nodeconfig.User{Name: u.Name, SSHKeys: u.SSHKeys, PasswordHash: u.PasswordHash, Sudo: u.Sudo, Shell: u.Shell})
	}
	for _, f := range profile.Spec.Files {
		mode, err := f.FileMode()
		if err != nil {
			return nodeconfig.Config{}, fmt.Errorf("profile %s: files[%s].mode: %q %w", profile.Name, f.Path, f.Mode, err)
		}
		config.Files = append(config.Files, nodeconfig.File{Path: f.Path, Content: []byte(f.Content), Mode: mode, Owner: f.Owner})
	}
	for _, u := range profile.Spec.Units {
		config.Units = append(config.Units, nodeconfig.Unit{Name: u.Name, Content: u.Content, Enabled: u.Enabled, Masked: u.Masked})
	}
	// Also what came in by an API that does not know our rules, and what only machine, subnet and profile together
	// can get wrong. The installer would refuse it by the same rules.
	if err := nodeconfig.Validate(config); err != nil {
		return nodeconfig.Config{}, fmt.Errorf("machine %s with profile %s: %w", m.Name, profile.Name, err)
	}
	return config, nil
}

// network returns the node's subnet and its address with the subnet's prefix length.
func network(in ingredients) (v1alpha1.Subnet, netip.Prefix, error) {
	m := in.machine
	var fail = func(format string, args ...any) (v1alpha1.Subnet, netip.Prefix, error) {
		return v1alpha1.Subnet{}, netip.Prefix{}, fmt.Errorf(format, args...)
	}
	if m.Spec.Network == nil || m.Spec.Network.Address == "" {
		return fail("machine %s has no address: set spec.network.address, or spec.network.subnet to a subnet whose spec.static has a free address", m.Name)
	}
	address, err := netip.ParseAddr(m.Spec.Network.Address)
	if err != nil {
		return fail("machine %s: spec.network.address: %q is not an IP address", m.Name, m.Spec.Network.Address)
	}
	for _, owner := range in.addressOwners {
		if owner != m.Name {
			return fail("machine %s: spec.network.address: %s is also the address of machine %s", m.Name, address, owner)
		}
	}
	for _, subnet := range in.subnets {
		prefix, err := netip.ParsePrefix(subnet.Spec.CIDR)
		if err != nil || (m.Spec.Network.Subnet != "" && m.Spec.Network.Subnet != subnet.Name) {
			continue
		}
		if prefix.Contains(address) {
			return subnet, netip.PrefixFrom(address, prefix.Bits()), nil
		}
		if m.Spec.Network.Subnet != "" {
			return fail("machine %s: spec.network.address: %s is not in subnet %s (%s)", m.Name, address, subnet.Name, prefix)
		}
	}
	if m.Spec.Network.Subnet != "" {
		return fail("machine %s: spec.network.subnet: subnet %s does not exist", m.Name, m.Spec.Network.Subnet)
	}
	return fail("machine %s: spec.network.address: %s is in no subnet", m.Name, address)
}

// bootMAC is the interface that carries the node's address: the one that is written down, else the one
// that the machine booted from, else its only one with a link.
func bootMAC(m *v1alpha1.Machine) string {
	if m.Spec.Network != nil && m.Spec.Network.MAC != "" {
		return m.Spec.Network.MAC
	}
	if m.Status.Inventory != nil {
		var linked []string
		for _, nic := range m.Status.Inventory.NICs {
			if nic.Boot {
				return nic.MAC
			}
			if nic.Link {
				linked = append(linked, nic.MAC)
			}
		}
		if len(linked) == 1 {
			return linked[0]
		}
	}
	if m.Status.Lease != nil && m.Status.Lease.MAC != "" {
		return m.Status.Lease.MAC
	}
	if len(m.Spec.Identifiers.MACs) == 1 {
		return m.Spec.Identifiers.MACs[0]
	}
	return ""
}
