package httpboot

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/google/uuid"

	"coldrack.dev/internal/base/termtext"
)

// Query is what a boot loader tells of the machine it runs on. Anyone on the segment can send one, so
// nothing in it is proven.
type Query struct {
	// MACs are in lower case with colons, each once, the booting interface first.
	MACs []string
	// UUID is the SMBIOS UUID in its usual form, lower case, or empty. Vendors give the same one to
	// many machines; it is passed on as it came.
	UUID         string
	Serial       string
	Manufacturer string
	Product      string
	Asset        string
	// Arch is iPXE's ${buildarch}: i386, x86_64, arm32, arm64.
	Arch string
	// Platform is iPXE's ${platform}: pcbios or efi.
	Platform string
	// IP is the address the machine says it has; the zero Addr when it did not.
	IP netip.Addr
	// Choice is what a person chose in the boot menu, empty when nobody was asked.
	Choice string
	// Credentials are true when a name and a password came with the request (RFC 7617).
	Credentials    bool
	User, Password string
	// Remote is where the request came from.
	Remote netip.AddrPort
	// Local is the address of this server that the request came to: the machine can reach it there.
	Local netip.AddrPort
}

const (
	maxQuery = 8 << 10 // bytes
	maxMACs  = 64
	maxText  = 256 // bytes; SMBIOS strings are far shorter
)

// ParseQuery reads the part of a URL behind the question mark.
//
// iPXE leaves a setting that does not exist empty, so empty values count as absent. Parameters that
// are not known are ignored, since boot loaders of a later release may send more. What is known must
// make sense: a wrong identifier could bring a machine another machine's plan.
func ParseQuery(raw string) (Query, error) {
	if len(raw) > maxQuery {
		return Query{}, fmt.Errorf("query is %d bytes long, more than %d", len(raw), maxQuery)
	}
	values, err := url.ParseQuery(raw)
	if err != nil {
		return Query{}, fmt.Errorf("query: %w", err)
	}
	var q Query
	for _, text := range values["mac"] {
		mac, err := parseMAC(text)
		if err != nil {
			return Query{}, err
		}
		if mac == "" || slices.Contains(q.MACs, mac) {
			continue
		}
		if len(q.MACs) == maxMACs {
			return Query{}, fmt.Errorf("mac: more than %d different ones", maxMACs)
		}
		q.MACs = append(q.MACs, mac)
	}
	for _, field := range []struct {
		name  string
		parse func(string) error
	}{
		{"uuid", func(s string) error { q.UUID, err = parseUUID(s); return err }},
		{"serial", textInto(&q.Serial)},
		{"manufacturer", textInto(&q.Manufacturer)},
		{"product", textInto(&q.Product)},
		{"asset", textInto(&q.Asset)},
		{"arch", wordInto(&q.Arch)},
		{"platform", wordInto(&q.Platform)},
		{"ip", parseIP(&q.IP)},
		{"choice", choiceInto(&q.Choice)},
	} {
		given := slices.DeleteFunc(slices.Clone(values[field.name]), func(s string) bool { return strings.TrimSpace(s) == "" })
		switch len(given) {
		case 0:
			continue
		case 1:
		default:
			return Query{}, fmt.Errorf("%s: given %d times", field.name, len(given))
		}
		if err := field.parse(strings.TrimSpace(given[0])); err != nil {
			return Query{}, fmt.Errorf("%s: %w", field.name, err)
		}
	}
	return q, nil
}

// parseMAC accepts the notations of boot loaders: 52:54:00:12:34:56 (iPXE), 52-54-00-12-34-56 (iPXE's
// hexhyp), 525400123456 (hexraw) and 01-52-54-00-12-34-56 (PXELINUX's BOOTIF). It returns "" for
// addresses that identify nothing: absent, all zeros.
func parseMAC(text string) (string, error) {
	text = strings.TrimSpace(text)
	if text == "" {
		return "", nil
	}
	normal := strings.ReplaceAll(text, "-", ":")
	if len(normal) == len("01:52:54:00:12:34:56") && strings.HasPrefix(normal, "01:") {
		normal = normal[3:]
	}
	if len(normal) == 12 && !strings.Contains(normal, ":") {
		var pairs []string
		for pair := range slices.Chunk([]byte(normal), 2) {
			pairs = append(pairs, string(pair))
		}
		normal = strings.Join(pairs, ":")
	}
	mac, err := net.ParseMAC(normal)
	if err != nil || len(mac) != 6 {
		return "", fmt.Errorf("mac: %q is not a MAC address, such as 52:54:00:12:34:56", clip(text))
	}
	if bytes.Equal(mac, make([]byte, 6)) {
		return "", nil
	}
	if mac[0]&1 != 0 {
		return "", fmt.Errorf("mac: %s is a group address; an interface cannot have it", mac)
	}
	return mac.String(), nil
}

func parseUUID(text string) (string, error) {
	if len(text) != 36 {
		return "", fmt.Errorf("%q is not a UUID, such as 4c4c4544-0042-3510-8052-b4c04f4d4d32", clip(text))
	}
	id, err := uuid.Parse(text)
	if err != nil {
		return "", fmt.Errorf("%q is not a UUID, such as 4c4c4544-0042-3510-8052-b4c04f4d4d32", clip(text))
	}
	return id.String(), nil
}

func parseIP(target *netip.Addr) func(string) error {
	return func(text string) error {
		ip, err := netip.ParseAddr(text)
		if err != nil || ip.Zone() != "" {
			return fmt.Errorf("%q is not an IP address", clip(text))
		}
		*target = ip
		return nil
	}
}

// textInto takes an SMBIOS string. Vendors put anything there, so what is not printable is replaced,
// not refused: a strange serial must not keep a machine from booting.
func textInto(target *string) func(string) error {
	return func(text string) error {
		if len(text) > maxText {
			return fmt.Errorf("%d bytes long, more than %d", len(text), maxText)
		}
		*target = termtext.Mark(text, 0)
		return nil
	}
}

// wordInto takes a word that programs choose by, such as x86_64.
func wordInto(target *string) func(string) error {
	return func(text string) error {
		text = strings.ToLower(text)
		if len(text) > 32 || strings.ContainsFunc(text, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '_' && r != '-'
		}) {
			return fmt.Errorf("%q is not one word of letters, digits, - and _", clip(text))
		}
		*target = text
		return nil
	}
}

// choiceInto takes the name of an entry of the boot menu.
func choiceInto(target *string) func(string) error {
	return func(text string) error {
		if len(text) > 63 || strings.ContainsFunc(text, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' }) {
			return fmt.Errorf("%q is not the name of a menu's entry", clip(text))
		}
		*target = text
		return nil
	}
}

// clip makes a value from the network fit to be quoted in a message.
func clip(text string) string { return termtext.Mark(text, 64) }
