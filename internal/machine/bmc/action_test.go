package bmc

import (
	"slices"
	"strings"
	"testing"
)

func TestSteps(t *testing.T) {
	all := []string{"On", "ForceOff", "GracefulShutdown", "ForceRestart", "PowerCycle"}
	for _, c := range []struct {
		action  Action
		now     State
		offered []string
		want    string
	}{
		{PowerOn, Off, all, "On>On"},
		{PowerOn, On, all, ""},
		{PowerOn, Unknown, all, "On>On"},
		{PowerOn, Off, []string{"ForceOn"}, "ForceOn>On"},
		{PowerOn, Off, nil, "On>On"},
		{PowerOff, On, all, "ForceOff>Off"},
		{PowerOff, Off, all, ""},
		{PowerOff, PoweringOn, all, "ForceOff>Off"},
		{Shutdown, On, all, "GracefulShutdown>Off"},
		{Shutdown, On, []string{"PushPowerButton", "ForceOff"}, "PushPowerButton>Off"},
		{Shutdown, On, []string{"ForceOff"}, "error"},
		{PowerCycle, On, all, "PowerCycle>On"},
		{PowerCycle, Off, all, "On>On"},
		{PowerCycle, On, []string{"On", "ForceOff", "ForceRestart"}, "ForceOff>Off On>On"},
		{PowerCycle, On, []string{"ForceOff"}, "error"},
		{PowerCycle, On, []string{"On"}, "error"},
		{Reset, On, all, "ForceRestart>On"},
		{Reset, Off, all, "On>On"},
		{Reset, On, []string{"GracefulRestart"}, "error"},
	} {
		steps, err := redfishRequests().steps(c.action, c.now, c.offered)
		var got []string
		for _, s := range steps {
			got = append(got, s.request+">"+string(s.until))
		}
		text := strings.Join(got, " ")
		if err != nil {
			text = "error"
		}
		if text != c.want {
			t.Errorf("%s while %s, offered %v: %q, want %q", c.action, c.now, c.offered, text, c.want)
		}
	}
	if got := redfishRequests().offers([]string{"On", "ForceOff"}); !slices.Equal(got, []Action{PowerOn, PowerOff, PowerCycle}) {
		t.Errorf("offers %v", got)
	}
}

func TestQuirks(t *testing.T) {
	if _, err := parseQuirks(quirksFile); err != nil {
		t.Fatal(err)
	}
	q := quirksFor("Supermicro", "")
	if q.BootMode != modeAlways || len(q.Names) != 1 {
		t.Errorf("Supermicro: %+v", q)
	}
	if q := quirksFor("Dell Inc.", "PowerEdge R640"); len(q.Names) != 0 {
		t.Errorf("Dell: %+v", q)
	}
	for text, want := range map[string]string{
		"- {name: x, match: [a], seen: y, source: 'http://x'}":                       "needs name",
		"- {name: x, match: [a], seen: y, source: 'https://x', auth: none}":          "nothing knows",
		"- {name: x, match: [a], seen: y, source: 'https://x', program: /bin/false}": "not found",
	} {
		if _, err := parseQuirks([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	both := combine([]Quirk{{Name: "1", Match: []string{"a*"}, ETag: etagAny, NotOffered: []string{"PowerCycle"}}, {Name: "2", Match: []string{"*b"}, ETag: etagOmitted}}, []string{"AB"})
	if both.ETag != etagOmitted || !slices.Equal(both.resets([]string{"On", "PowerCycle"}), []string{"On"}) {
		t.Errorf("%+v", both)
	}
	for _, c := range []struct {
		quirk string
		want  []string
	}{
		{"", []string{`W/"1"`, `"1"`, "*"}}, {etagStrong, []string{`"1"`, `W/"1"`, "*"}}, {etagAny, []string{"*", `W/"1"`, "*"}}, {etagOmitted, []string{"", `"1"`, "*"}},
	} {
		for attempt, want := range c.want {
			if got := (Quirks{ETag: c.quirk}).etag(`W/"1"`, attempt); got != want {
				t.Errorf("quirk %q, attempt %d: %s, want %s", c.quirk, attempt, got, want)
			}
		}
	}
}

func TestNamesInOrder(t *testing.T) {
	names := []string{"NIC.10", "NIC.2", "NIC.1", "Alpha", "NIC.02", "NIC"}
	slices.SortStableFunc(names, compareNatural)
	if got := strings.Join(names, " "); got != "Alpha NIC NIC.1 NIC.2 NIC.02 NIC.10" {
		t.Error(got)
	}
	for text, want := range map[string]string{"52-54-00-00-00-0A": "52:54:00:00:00:0a", "00:00:00:00:00:00": "", "ff:ff:ff:ff:ff:ff": "", "x": "", "": ""} {
		if got, _ := macOf(text); got != want {
			t.Errorf("%q: %q", text, got)
		}
	}
}
