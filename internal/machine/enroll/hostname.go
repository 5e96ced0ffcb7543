package enroll

import (
	"cmp"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/machine/identify"
)

var (
	indexPattern    = regexp.MustCompile(`\{index(?::0?([0-9]{1,2}))?\}`)
	notInHostname   = regexp.MustCompile(`[^a-z0-9-]+`)
	unknownPattern  = regexp.MustCompile(`\{[^}]*\}`)
	maxHostnameSize = 63
)

// hostname fills a policy's pattern in. With an index it is the lowest that makes a name nobody has.
func hostname(pattern string, m *v1alpha1.Machine, machines []*v1alpha1.Machine) (string, error) {
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
	filled := pattern
	for key, value := range map[string]string{
		"{serial}": identify.Normal(v1alpha1.Identifiers{Serial: inventory.System.Serial}).Serial,
		"{uuid}":   identify.Normal(v1alpha1.Identifiers{UUID: inventory.System.UUID}).UUID,
		"{mac}":    strings.ReplaceAll(mac, ":", ""),
	} {
		if !strings.Contains(filled, key) {
			continue
		}
		if value == "" {
			return "", fmt.Errorf("spec.hostname: %s has no %s that tells it from others", m.Name, strings.Trim(key, "{}"))
		}
		filled = strings.ReplaceAll(filled, key, value)
	}
	if wrong := unknownPattern.FindString(indexPattern.ReplaceAllString(filled, "")); wrong != "" {
		return "", fmt.Errorf("spec.hostname: %s is not one of {serial}, {uuid}, {mac}, {index}, {index:03}", wrong)
	}
	taken := map[string]string{}
	for _, other := range machines {
		if other.Name != m.Name {
			taken[cmp.Or(other.Spec.Hostname, other.Name)] = other.Name
		}
	}
	if !indexPattern.MatchString(filled) {
		name := cleanHostname(filled)
		if other, ok := taken[name]; ok {
			return "", fmt.Errorf("spec.hostname: %q is the name of machine %s; use {index} to tell machines apart", name, other)
		}
		if name == "" {
			return "", fmt.Errorf("spec.hostname: nothing is left of %q", filled)
		}
		return name, nil
	}
	for i := 1; i <= len(machines)+1; i++ {
		name := cleanHostname(indexPattern.ReplaceAllStringFunc(filled, func(s string) string {
			width, _ := strconv.Atoi(indexPattern.FindStringSubmatch(s)[1])
			return fmt.Sprintf("%0*d", width, i)
		}))
		if _, ok := taken[name]; !ok {
			return name, nil
		}
	}
	return "", fmt.Errorf("spec.hostname: no number is free for %q; is the name longer than %d characters?", filled, maxHostnameSize)
}

func cleanHostname(s string) string {
	s = notInHostname.ReplaceAllString(strings.ToLower(s), "-")
	return strings.Trim(s[:min(len(s), maxHostnameSize)], "-")
}
