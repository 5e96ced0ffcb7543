package racksheet

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/contract/validate"
	"coldrack.dev/internal/machine/identify"
)

// A MAC as people and programs write it: with colons, dashes or spaces, as three or six groups, or without any separator.
var (
	macSyntax  = regexp.MustCompile(`(?i)\b(?:[0-9a-f]{1,2}(?::[0-9a-f]{1,2}){5}|[0-9a-f]{1,2}(?:-[0-9a-f]{1,2}){5}|[0-9a-f]{2}(?: [0-9a-f]{2}){5}|[0-9a-f]{4}(?:\.[0-9a-f]{4}){2}|[0-9a-f]{4}(?:-[0-9a-f]{4}){2}|[0-9a-f]{4}(?::[0-9a-f]{4}){2}|[0-9a-f]{12})\b`)
	digits     = regexp.MustCompile(`^[0-9]+$`)
	notHex     = regexp.MustCompile(`[^0-9a-fA-F]+`)
	separators = strings.NewReplacer(",", "", ";", "", "/", "", "|", "", "\n", "", " ", "", "\t", "")
)

// parseMACs reads all MACs of a cell.
func parseMACs(text string) ([]string, error) {
	var macs []string
	rest := macSyntax.ReplaceAllStringFunc(text, func(found string) string {
		macs = append(macs, found)
		return ""
	})
	if rest = separators.Replace(rest); rest != "" || len(macs) == 0 {
		return nil, wrongMAC(text)
	}
	for i, written := range macs {
		mac, err := normalMAC(written)
		if err != nil {
			return nil, err
		}
		macs[i] = mac
	}
	return macs, nil
}

func normalMAC(written string) (string, error) {
	hex := notHex.ReplaceAllString(written, "")
	if groups := notHex.Split(written, -1); len(groups) == 6 {
		hex = ""
		for _, g := range groups {
			hex += fmt.Sprintf("%02s", g)
		}
	}
	var parts []string
	for i := 0; i+2 <= len(hex); i += 2 {
		parts = append(parts, strings.ToLower(hex[i:i+2]))
	}
	mac := strings.Join(parts, ":")
	switch {
	case identify.DuplicateMAC(mac) != "":
		return "", fmt.Errorf("%s is the same on %s, so it tells this machine from no other", written, identify.DuplicateMAC(mac))
	case identify.MAC(mac) == "":
		return "", fmt.Errorf("%s is the address of no network interface: it is zeros, broadcast or multicast", written)
	}
	if err := validate.MAC(mac); err != nil {
		return "", fmt.Errorf("%s %w", written, err)
	}
	return mac, nil
}

func wrongMAC(text string) error {
	switch n := len(notHex.ReplaceAllString(text, "")); {
	case digits.MatchString(text) && len(text) < 12:
		return fmt.Errorf("%q has %d digits, not 12; a spreadsheet drops leading zeros of what it takes for a number: format the column as text and write the MAC again", text, len(text))
	case strings.Contains(strings.ToUpper(text), "E+"):
		return fmt.Errorf("%q is what a spreadsheet made of a MAC that it took for a number: format the column as text and write the MAC again", text)
	case n == 16 || n == 40:
		return fmt.Errorf("%q has %d hexadecimal digits; want the 12 of an Ethernet MAC, not a GUID of InfiniBand", text, n)
	}
	return fmt.Errorf("%q is no MAC; want 12 hexadecimal digits such as 52:54:00:12:34:56, and nothing but spaces, commas or line ends between several", text)
}

// wholeNumber allows what spreadsheets append.
var wholeNumber = regexp.MustCompile(`^([0-9]{1,9})(?:[.,]0{1,3})?$`)

// parseCount reads a whole number, also as spreadsheets write one: 12, 12.0, 12,0.
func parseCount(text string) (int32, error) {
	m := wholeNumber.FindStringSubmatch(strings.TrimSpace(text))
	if m == nil {
		return 0, fmt.Errorf("%q is no whole number", text)
	}
	n, err := strconv.ParseInt(m[1], 10, 32)
	return int32(n), err
}

var (
	unitWords = regexp.MustCompile(`(?i)(unit|ru|he|u位|u|位)`)
	unitRange = regexp.MustCompile(`^([0-9]+(?:[.,]0+)?)\s*(?:-|–|/|~|bis|to|\+)\s*([0-9]+(?:[.,]0+)?)$`)
)

// parseUnit reads a rack unit: 12, U12, 12U, HE 12; of several, 12-13, the lowest.
func parseUnit(text string) (int32, error) {
	plain := strings.TrimSpace(unitWords.ReplaceAllString(text, ""))
	low := plain
	if m := unitRange.FindStringSubmatch(plain); m != nil {
		a, err := parseCount(m[1])
		b, err2 := parseCount(m[2])
		if errors.Join(err, err2) == nil {
			low = strconv.Itoa(int(min(a, b)))
		}
	}
	n, err := parseCount(low)
	if err != nil || n < 1 || n > 100 {
		return 0, fmt.Errorf("%q is no rack unit; want a number from 1 to 100, such as 12, U12 or 12-13", text)
	}
	return n, nil
}

func parseSlot(text string) (int32, error) {
	n, err := parseCount(strings.TrimLeft(strings.ToLower(text), "abcdefghijklmnopqrstuvwxyz槽位 #-"))
	if err != nil || n < 1 || n > 100 {
		return 0, fmt.Errorf("%q is no slot; want a number from 1 to 100", text)
	}
	return n, nil
}

var (
	memorySyntax = regexp.MustCompile(`(?i)^([0-9]+(?:[.,][0-9]+)?)\s*([kmgt]i?b?)?$`)
	timesSyntax  = regexp.MustCompile(`(?i)^([0-9]{1,3})\s*[x×*]\s*(.+)$`)
	thousands    = regexp.MustCompile(`^[1-9][0-9]{0,2}[.,][0-9]{3}$`)
)

// parseMemory reads an amount of memory: 512, 512 GB, 0,5 TB, 16 x 32 GB. Memory is sold in powers of two, whatever the unit is
// called. A number alone has the unit of the header, else it is in GiB.
func parseMemory(text, headerUnit string) (*resource.Quantity, error) {
	times, each := int64(1), text
	if m := timesSyntax.FindStringSubmatch(text); m != nil {
		times, _ = strconv.ParseInt(m[1], 10, 64)
		each = m[2]
	}
	m := memorySyntax.FindStringSubmatch(strings.TrimSpace(each))
	switch {
	case m == nil:
		return nil, fmt.Errorf("%q is no amount of memory; want one such as 512 GB", text)
	case thousands.MatchString(m[1]):
		return nil, fmt.Errorf("%q can be read in two ways; write %s, or %s", text, strings.NewReplacer(".", "", ",", "").Replace(m[1]), m[1][:strings.IndexAny(m[1], ".,")])
	}
	number, err := strconv.ParseFloat(strings.Replace(m[1], ",", ".", 1), 64)
	unit := strings.ToLower(m[2])
	if unit == "" {
		unit = headerUnit
	}
	if unit == "" {
		unit = "g"
	}
	shift := map[byte]int{'k': 10, 'm': 20, 'g': 30, 't': 40}[unit[0]]
	bytes := number * float64(times) * float64(int64(1)<<shift)
	if err != nil || bytes < 1<<20 || bytes > 1<<50 {
		return nil, fmt.Errorf("%q is no amount of memory of a server", text)
	}
	return resource.NewQuantity(int64(bytes), resource.BinarySI), nil
}

// parseAddress reads an address; one with a prefix length, too, if it is an address in the network and not the network.
func parseAddress(text string) (string, error) {
	plain := text
	if p, err := netip.ParsePrefix(text); err == nil {
		plain = p.Addr().String()
	}
	a, err := validate.ParseHostAddress(plain)
	if err != nil {
		return "", fmt.Errorf("%q %w", text, err)
	}
	return a.String(), nil
}

// parseBMCAddress reads a host or host:port; of a link, such as spreadsheets make, the host.
func parseBMCAddress(text string) string {
	for _, scheme := range []string{"https://", "http://"} {
		if host, ok := strings.CutPrefix(strings.ToLower(text), scheme); ok {
			host, _, _ = strings.Cut(host, "/")
			return host
		}
	}
	if p, err := netip.ParsePrefix(text); err == nil {
		return p.Addr().String()
	}
	return text
}

func parseBool(text string) (bool, error) {
	switch strings.ToLower(text) {
	case "yes", "y", "true", "x", "1", "ok", "ja", "j", "wahr", "✓", "✔", "是", "已批准":
		return true, nil
	case "no", "n", "false", "0", "nein", "falsch", "否":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither yes nor no", text)
}

// parseSwitchPorts reads SWITCH:PORT@MAC, several parted by spaces, semicolons or line ends; PORT and MAC may be missing.
func parseSwitchPorts(text string) ([]v1alpha1.SwitchPort, error) {
	var ports []v1alpha1.SwitchPort
	for _, part := range strings.FieldsFunc(text, func(r rune) bool { return r == ' ' || r == ';' || r == '\n' || r == ',' }) {
		at, mac, hasMAC := strings.Cut(part, "@")
		var p v1alpha1.SwitchPort
		p.Switch, p.Port, _ = strings.Cut(at, ":")
		if hasMAC {
			macs, err := parseMACs(mac)
			if err != nil || len(macs) != 1 {
				return nil, fmt.Errorf("%q: want SWITCH:PORT@MAC, or SWITCH:PORT", part)
			}
			p.MAC = macs[0]
		}
		if p.Switch == "" {
			return nil, fmt.Errorf("%q names no switch; want SWITCH:PORT", part)
		}
		ports = append(ports, p)
	}
	return ports, nil
}
