package machineapi

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/contract/nodeconfig"
	"coldrack.dev/internal/contract/validate"
)

// nodeLinks is the layout of the node's links with every interface named by its MAC, or nil where machine and profile have none. What
// the layout names and the machine does not have is an error here, before a disk is wiped.
func nodeLinks(in ingredients, address netip.Prefix, gateway string) (*nodeconfig.Links, error) {
	m := in.machine
	links := m.Links(in.profile)
	if links.Empty() {
		return nil, nil
	}
	where := fmt.Sprintf("profile %s", in.profile.Name)
	if m.Spec.Network.LaysOut() {
		where = fmt.Sprintf("machine %s", m.Name)
	}
	if m.Status.Inventory == nil {
		return nil, fmt.Errorf("machine %s has not reported its network interfaces yet, which spec.network of %s is about", m.Name, where)
	}
	nics := m.Status.Inventory.NICs
	made := links.Made()
	for _, nic := range nics {
		if slices.Contains(made, nic.Name) {
			return nil, fmt.Errorf("%s: spec.network: %s is the name of an interface of machine %s; give the new link another one", where, nic.Name, m.Name)
		}
	}
	var unknown []string
	links.References(func(path string, name *string) {
		if slices.Contains(made, *name) {
			return
		}
		i := slices.IndexFunc(nics, func(nic v1alpha1.NIC) bool { return nic.Name == *name || strings.EqualFold(nic.MAC, *name) })
		if i < 0 {
			unknown = append(unknown, fmt.Sprintf("%s is %q", path, *name))
			return
		}
		*name = strings.ToLower(nics[i].MAC)
	})
	if len(unknown) > 0 {
		return nil, fmt.Errorf("%s: spec.network: %s, which is neither a link of the layout nor an interface of machine %s; it has %s", where, strings.Join(unknown, ", "), m.Name, nicsText(nics))
	}
	boot := bootMAC(m)
	if links.Link == "" {
		if boot == "" {
			return nil, fmt.Errorf("machine %s: it is not known which interface it booted from: set spec.network.link to the link that carries its address", m.Name)
		}
		links.Link = links.Top(boot)
	}
	for i := range links.Bonds {
		links.Bonds[i].MAC = linkMAC(&links, links.Bonds[i].Name, boot)
	}
	for i := range links.Bridges {
		links.Bridges[i].MAC = linkMAC(&links, links.Bridges[i].Name, boot)
	}
	links.Gateway = gateway
	links.Addresses = slices.Insert(links.Addresses, 0, validate.LinkAddress{Link: links.Link, Address: address.String()})
	return &links, nil
}

// linkMAC is the MAC of a bond or a bridge: that of the interface that the machine booted from, if this lies below it, so that switches and
// neighbours know it already; else that of the first interface below it.
func linkMAC(links *nodeconfig.Links, link, boot string) string {
	first, depth := "", 0
	var walk func(string) bool
	walk = func(link string) bool {
		if validate.IsMAC(link) {
			first = cmp.Or(first, link)
			return link == boot
		}
		if depth++; depth > 100 { // a circle, which is reported
			return false
		}
		return slices.ContainsFunc(links.Below(link), walk)
	}
	if walk(link) {
		return boot
	}
	return first
}

// nicsText lists a machine's interfaces for a person.
func nicsText(nics []v1alpha1.NIC) string {
	if len(nics) == 0 {
		return "none"
	}
	list := make([]string, len(nics))
	for i, nic := range nics {
		list[i] = fmt.Sprintf("%s (%s)", nic.Name, nic.MAC)
	}
	return strings.Join(list, ", ")
}
