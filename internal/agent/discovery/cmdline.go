package discovery

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"

	"coldrack.dev/internal/agent/client"
	"coldrack.dev/internal/contract/wire"
)

// Arguments are what the boot script told this machine on its kernel command line.
type Arguments struct {
	Server string // machine API
	Boot   string // boot listener
	Pin    client.Pin
	Nonce  string
	MAC    string // of the interface that booted, "" if not told
	Shell  bool   // a root shell on the console
	Live   bool   // the live system: no enrolment, no disk
}

// ParseArguments reads a kernel command line. MAC and Shell are set even when it fails for the rest.
func ParseArguments(line string) (Arguments, error) {
	values := map[string]string{}
	for _, f := range split(line) {
		k, v, _ := strings.Cut(f, "=")
		values[k] = v
	}
	a := Arguments{
		Server: values[wire.ArgServer], Boot: values[wire.ArgBoot], Nonce: values[wire.ArgNonce],
		Shell: values[wire.ArgDebug] == "shell", Live: values[wire.ArgLive] == "1",
	}
	a.MAC = mac(values[wire.ArgMAC])
	if a.MAC == "" {
		// PXELINUX and GRUB say it so: hardware type 01, then the address with hyphens.
		a.MAC = mac(strings.TrimPrefix(values["BOOTIF"], "01-"))
	}
	var errs []error
	for _, u := range []struct{ key, value, scheme string }{{wire.ArgServer, a.Server, "https"}, {wire.ArgBoot, a.Boot, "http"}} {
		if p, err := url.Parse(u.value); err != nil || p.Scheme != u.scheme || p.Host == "" {
			errs = append(errs, fmt.Errorf("%s=%q is not %s://HOST:PORT", u.key, u.value, u.scheme))
		}
	}
	var err error
	if a.Pin, err = client.ParsePin(values[wire.ArgCA]); err != nil {
		errs = append(errs, fmt.Errorf("%s: %w", wire.ArgCA, err))
	}
	if a.Nonce == "" {
		errs = append(errs, fmt.Errorf("%s is missing", wire.ArgNonce))
	}
	return a, errors.Join(errs...)
}

func mac(s string) string {
	m, err := net.ParseMAC(s)
	if err != nil || len(m) != 6 {
		return ""
	}
	return m.String()
}

// split cuts a command line at spaces that are not within double quotes, as the kernel does.
func split(line string) []string {
	var out []string
	var b strings.Builder
	quoted := false
	flush := func() {
		if b.Len() > 0 {
			out = append(out, b.String())
			b.Reset()
		}
	}
	for _, r := range line {
		switch {
		case r == '"':
			quoted = !quoted
		case !quoted && (r == ' ' || r == '\n' || r == '\t'):
			flush()
		default:
			b.WriteRune(r)
		}
	}
	flush()
	return out
}
