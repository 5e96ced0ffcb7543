package enroll

import (
	"cmp"
	"fmt"
	"regexp"
	"strings"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/contract/validate"
	"coldrack.dev/internal/machine/identify"
)

// maxHostname is the length of a label of DNS (RFC 1035, section 2.3.4).
const maxHostname = 63

var notInHostname = regexp.MustCompile(`[^a-z0-9-]+`)

// hostname fills a policy's pattern in. With an index it is the lowest that makes a name nobody has.
func hostname(text string, m *v1alpha1.Machine, machines []*v1alpha1.Machine) (string, error) {
	pattern, err := validate.ParseHostnamePattern(text)
	if err != nil {
		return "", fmt.Errorf("spec.hostname: %w", err)
	}
	mac := ""
	if ids := identify.Normal(m.Spec.Identifiers).MACs; len(ids) > 0 {
		mac = ids[0]
	}
	inventory := m.Status.Inventory
	for _, nic := range inventory.NICs {
		if nic.Boot || mac == "" {
			mac = nic.MAC
		}
	}
	values := map[string]string{
		"serial": identify.Normal(v1alpha1.Identifiers{Serial: inventory.System.Serial}).Serial,
		"uuid":   identify.Normal(v1alpha1.Identifiers{UUID: inventory.System.UUID}).UUID,
		"mac":    strings.ReplaceAll(mac, ":", ""),
	}
	for _, name := range pattern.Values {
		if values[name] == "" {
			return "", fmt.Errorf("spec.hostname: %s has no %s that tells it from others", m.Name, name)
		}
	}
	taken := map[string]string{}
	for _, other := range machines {
		if other.Name != m.Name {
			taken[cmp.Or(other.Spec.Hostname, other.Name)] = other.Name
		}
	}
	if !pattern.Indexed {
		name := cleanHostname(pattern.Fill(values, 0))
		if other, ok := taken[name]; ok {
			return "", fmt.Errorf("spec.hostname: %q is the name of machine %s; use {index} to tell machines apart", name, other)
		}
		if name == "" {
			return "", fmt.Errorf("spec.hostname: nothing is left of %q", text)
		}
		return name, nil
	}
	for i := 1; i <= len(machines)+1; i++ {
		name := cleanHostname(pattern.Fill(values, i))
		if _, ok := taken[name]; !ok {
			return name, nil
		}
	}
	return "", fmt.Errorf("spec.hostname: no number is free for %q; is the name longer than %d characters?", text, maxHostname)
}

func cleanHostname(s string) string {
	s = notInHostname.ReplaceAllString(strings.ToLower(s), "-")
	return strings.Trim(s[:min(len(s), maxHostname)], "-")
}
