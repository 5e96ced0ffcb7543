package dns

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"
	"time"

	mdns "github.com/miekg/dns"
)

// Key signs what is sent to a site's server (TSIG, RFC 8945).
type Key struct{ Name, Algorithm, Secret string }

var keyParts = []struct {
	what    string
	pattern *regexp.Regexp
}{
	{"name", regexp.MustCompile(`key\s+"?([^"\s{]+)"?\s*\{`)},
	{"algorithm", regexp.MustCompile(`algorithm\s+"?([a-z0-9.-]+)"?\s*;`)},
	{"secret", regexp.MustCompile(`secret\s+"?([A-Za-z0-9+/=]+)"?\s*;`)},
}

// ParseKey reads what tsig-keygen writes. Its errors do not repeat it.
func ParseKey(text string) (Key, error) {
	found := map[string]string{}
	for _, part := range keyParts {
		match := part.pattern.FindStringSubmatch(text)
		if match == nil {
			return Key{}, fmt.Errorf("no %s of a key in it; it must be as tsig-keygen writes it: key \"NAME\" { algorithm hmac-sha256; secret \"...\"; };", part.what)
		}
		found[part.what] = match[1]
	}
	key := Key{mdns.CanonicalName(found["name"]), mdns.Fqdn(found["algorithm"]), found["secret"]}
	if !slices.Contains([]string{mdns.HmacSHA1, mdns.HmacSHA224, mdns.HmacSHA256, mdns.HmacSHA384, mdns.HmacSHA512}, key.Algorithm) {
		return Key{}, fmt.Errorf("algorithm %s is not supported; make a key by: tsig-keygen -a hmac-sha256 coldrack", found["algorithm"])
	}
	if _, err := base64.StdEncoding.DecodeString(key.Secret); err != nil {
		return Key{}, errors.New("the secret is not in base64")
	}
	return key, nil
}

// Site is a DNS server whose zones are brought up to date by dynamic updates (RFC 2136). What it holds is read by a zone transfer; which
// names are ours is written into it as TXT records, so that names of others are left alone and ours go when their machines have gone.
type Site struct {
	// Server is host:port.
	Server string
	Key    Key
	// Owner tells the names of several racks in one zone apart.
	Owner string
}

// Change is what becomes of a name.
type Change struct {
	Zone string `json:"zone"` // of the site's server
	Name string `json:"name"`
	// Add and Remove are records, without those that mark the name as ours.
	Add    []string `json:"add,omitempty"`
	Remove []string `json:"remove,omitempty"`
	// Kept is why nothing becomes of it, though it should.
	Kept string `json:"kept,omitempty"`

	message func(m *mdns.Msg)
}

const (
	updateTime = 10 * time.Second
	// updateBatch names are changed by one message, all or none of them.
	updateBatch = 50
)

// ours are the types of records that are changed at a name of ours.
var ours = []uint16{mdns.TypeA, mdns.TypeAAAA, mdns.TypePTR, mdns.TypeSRV}

func (s Site) mark(name string) mdns.RR {
	return &mdns.TXT{Hdr: header(name, mdns.TypeTXT), Txt: []string{"heritage=coldrack", "owner=" + s.Owner}}
}

// Plan compares zones, as their files say, with those of the site's server, and says what has to change there.
func (s Site) Plan(ctx context.Context, files map[string]string) ([]Change, error) {
	wanted := map[string][]mdns.RR{} // by zone of the site
	for name, file := range files {
		theirs, err := s.zoneAbove(ctx, name)
		if err != nil {
			return nil, err
		}
		parser := mdns.NewZoneParser(strings.NewReader(file), name, "")
		records := wanted[theirs] // also of a zone without names: what is left there goes
		for rr, ok := parser.Next(); ok; rr, ok = parser.Next() {
			if slices.Contains(ours, rr.Header().Rrtype) {
				records = append(records, rr)
			}
		}
		wanted[theirs] = records
		if err := parser.Err(); err != nil {
			return nil, fmt.Errorf("zone %s: %w", name, err)
		}
	}
	var all []Change
	for zone, records := range wanted {
		there, err := s.transfer(ctx, zone)
		if err != nil {
			return nil, err
		}
		all = append(all, s.compare(zone, records, there)...)
	}
	slices.SortFunc(all, func(a, b Change) int { return strings.Compare(a.Zone+a.Name, b.Zone+b.Name) })
	return all, nil
}

// compare is pure.
func (s Site) compare(zone string, wanted, there []mdns.RR) []Change {
	byName := func(records []mdns.RR) map[string][]mdns.RR {
		names := map[string][]mdns.RR{}
		for _, rr := range records {
			name := mdns.CanonicalName(rr.Header().Name)
			names[name] = append(names[name], rr)
		}
		return names
	}
	want, have := byName(wanted), byName(there)
	var changes []Change
	for name, records := range have {
		if _, still := want[name]; !still && s.marked(name, records) {
			changes = append(changes, s.change(zone, name, nil, records))
		}
	}
	for name, records := range want {
		now := have[name]
		switch {
		case len(now) > 0 && !s.marked(name, now):
			if len(missing(records, now)) > 0 {
				changes = append(changes, Change{Zone: zone, Name: name, Kept: "has records that are not Coldrack's; remove them there, or give the machine another name"})
			}
		case len(now) == 0 || len(missing(records, now)) > 0 || len(missing(manageable(now), records)) > 0:
			changes = append(changes, s.change(zone, name, records, now))
		}
	}
	return changes
}

func (s Site) marked(name string, records []mdns.RR) bool {
	mark := s.mark(name)
	return slices.ContainsFunc(records, func(rr mdns.RR) bool { return mdns.IsDuplicate(rr, mark) })
}

// manageable are records of the types that are changed.
func manageable(records []mdns.RR) []mdns.RR {
	return slices.DeleteFunc(slices.Clone(records), func(rr mdns.RR) bool { return !slices.Contains(ours, rr.Header().Rrtype) })
}

// missing are those of records that are not among the others, whatever their time to live.
func missing(records, among []mdns.RR) []mdns.RR {
	return slices.DeleteFunc(slices.Clone(records), func(rr mdns.RR) bool {
		return slices.ContainsFunc(among, func(o mdns.RR) bool { return mdns.IsDuplicate(rr, o) })
	})
}

// change makes a name what is wanted: without wanted records it goes. It is refused by the server where the name has become another's.
func (s Site) change(zone, name string, want, now []mdns.RR) Change {
	add, remove := missing(want, now), missing(manageable(now), want)
	mark := []mdns.RR{s.mark(name)}
	c := Change{Zone: zone, Name: name, Add: lines(add), Remove: lines(remove)}
	c.message = func(m *mdns.Msg) {
		if len(now) == 0 {
			m.NameNotUsed(mark)
		} else {
			m.RRsetUsed(mark)
		}
		m.Remove(remove)
		m.Insert(add)
		switch {
		case len(want) == 0:
			m.Remove(mark)
		case len(now) == 0:
			m.Insert(mark)
		}
	}
	return c
}

func lines(records []mdns.RR) (all []string) {
	for _, rr := range records {
		h := rr.Header()
		all = append(all, mdns.TypeToString[h.Rrtype]+" "+strings.TrimPrefix(rr.String(), h.String()))
	}
	return all
}

// Apply carries changes out, those of one zone fifty at a time.
func (s Site) Apply(ctx context.Context, changes []Change) error {
	var batch []Change
	for i, c := range changes {
		if c.message != nil {
			batch = append(batch, c)
		}
		if last := i == len(changes)-1; len(batch) > 0 && (last || len(batch) == updateBatch || changes[i+1].Zone != c.Zone) {
			if err := s.send(ctx, batch); err != nil {
				return err
			}
			batch = nil
		}
	}
	return nil
}

func (s Site) send(ctx context.Context, batch []Change) error {
	zone := batch[0].Zone
	m := new(mdns.Msg).SetUpdate(zone)
	for _, c := range batch {
		c.message(m)
	}
	reply, err := s.exchange(ctx, m)
	if err != nil {
		return fmt.Errorf("update of zone %s at %s: %w", zone, s.Server, err)
	}
	switch reply.Rcode {
	case mdns.RcodeSuccess:
		return nil
	case mdns.RcodeYXDomain, mdns.RcodeYXRrset, mdns.RcodeNXRrset, mdns.RcodeNameError:
		return fmt.Errorf("update of zone %s at %s: the names from %s to %s have changed there meanwhile (%s); nothing was written for them, run it again", zone, s.Server,
			batch[0].Name, batch[len(batch)-1].Name, mdns.RcodeToString[reply.Rcode])
	}
	return fmt.Errorf("update of zone %s at %s: %s; the zone must allow updates by key %s (BIND: update-policy { grant %s zonesub any; };)", zone, s.Server,
		mdns.RcodeToString[reply.Rcode], s.Key.Name, strings.TrimSuffix(s.Key.Name, "."))
}

// zoneAbove is the zone of the site's server that a name lies in.
func (s Site) zoneAbove(ctx context.Context, name string) (string, error) {
	for at, end := 0, false; !end; at, end = mdns.NextLabel(name, at) {
		reply, err := s.exchange(ctx, new(mdns.Msg).SetQuestion(name[at:], mdns.TypeSOA))
		if err != nil {
			return "", fmt.Errorf("ask %s for zone %s: %w", s.Server, name, err)
		}
		if reply.Authoritative && len(reply.Answer) > 0 && reply.Answer[0].Header().Rrtype == mdns.TypeSOA {
			return mdns.CanonicalName(reply.Answer[0].Header().Name), nil
		}
		if reply.Rcode == mdns.RcodeNotAuth {
			return "", fmt.Errorf("%s does not take key %s; it must have the same key, algorithm and secret, and a clock that is right", s.Server, s.Key.Name)
		}
	}
	return "", fmt.Errorf("%s has no zone for %s; make one there, or leave it out by naming the zones to update", s.Server, name)
}

// exchange asks over TCP: updates may be large.
func (s Site) exchange(ctx context.Context, m *mdns.Msg) (*mdns.Msg, error) {
	client := mdns.Client{Net: "tcp", Timeout: updateTime, TsigSecret: map[string]string{s.Key.Name: s.Key.Secret}}
	m.SetTsig(s.Key.Name, s.Key.Algorithm, 300, time.Now().Unix())
	reply, _, err := client.ExchangeContext(ctx, m, s.Server)
	if reply != nil && reply.Rcode != mdns.RcodeSuccess {
		return reply, nil // a server that does not take the key cannot sign
	}
	return reply, err
}

// transfer reads a zone of the site's server.
func (s Site) transfer(ctx context.Context, zone string) ([]mdns.RR, error) {
	conn, err := (&net.Dialer{Timeout: updateTime}).DialContext(ctx, "tcp", s.Server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	t := &mdns.Transfer{Conn: &mdns.Conn{Conn: conn, TsigSecret: map[string]string{s.Key.Name: s.Key.Secret}}, ReadTimeout: updateTime, WriteTimeout: updateTime,
		TsigSecret: map[string]string{s.Key.Name: s.Key.Secret}}
	m := new(mdns.Msg).SetAxfr(zone)
	m.SetTsig(s.Key.Name, s.Key.Algorithm, 300, time.Now().Unix())
	parts, err := t.In(m, s.Server)
	var all []mdns.RR
	if err == nil {
		for part := range parts {
			err = errors.Join(err, part.Error)
			all = append(all, part.RR...)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("transfer of zone %s from %s: %w; the zone must allow transfers to key %s (BIND: allow-transfer { key %s; };)", zone, s.Server, err,
			s.Key.Name, strings.TrimSuffix(s.Key.Name, "."))
	}
	return all, nil
}
