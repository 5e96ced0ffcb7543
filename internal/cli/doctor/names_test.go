package doctor

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"

	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

func TestNames(t *testing.T) {
	for what, test := range map[string]struct {
		names *peoplewire.Names
		err   error
		want  string
	}{
		"a name that is wanted twice": {&peoplewire.Names{Zones: []peoplewire.Zone{{}}, Collisions: []peoplewire.NameCollision{{Name: "db.example.org", Holder: "Machine a", Loser: "Machine b"}}}, nil,
			"warn Machine b wants the name db.example.org, which Machine a has"},
		"none":                  {&peoplewire.Names{Zones: []peoplewire.Zone{{Records: make([]peoplewire.NameRecord, 3)}, {Records: make([]peoplewire.NameRecord, 2)}}}, nil, "ok 5 records in 2 zones, no name is wanted twice"},
		"no Subnet":             {&peoplewire.Names{}, nil, ""},
		"a server that is away": {nil, errors.New("refused"), ""},
		"a server without any":  {nil, nil, ""},
	} {
		var got []string
		for _, r := range names(t.Context(), func(context.Context) (*peoplewire.Names, error) { return test.names, test.err }) {
			got = append(got, string(r.State)+" "+r.Found)
		}
		if strings.Join(got, "; ") != test.want {
			t.Errorf("%s: %q, want %q", what, got, test.want)
		}
	}
}

// A resolver on a loopback address does not stand in the way of one on the rack's addresses; one on all addresses does.
func TestAPortOfOwnAddresses(t *testing.T) {
	for address, want := range map[string]string{"127.0.0.1": "free", "0.0.0.0": "in use"} {
		listener, err := net.Listen("tcp4", address+":0")
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(listener.Addr().String())
		open, err := openSockets()
		if err != nil {
			t.Fatal(err)
		}
		results := canOpen([]Port{{Network: "tcp4", Address: ":" + port, For: "names", Own: true, Optional: true}}, open)
		if len(results) != 1 || !strings.HasPrefix(results[0].Found, want) {
			t.Errorf("with a listener on %s: %+v, want %s", address, results, want)
		}
		listener.Close()
	}
}
