package etcddiscovery

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// clock is a time that tests move.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func newClock() *clock { return &clock{time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)} }

func newRegistry(t testing.TB, c *clock) *Registry {
	t.Helper()
	r, err := open(filepath.Join(t.TempDir(), "tokens.json"), c.Now)
	check(t, err)
	return r
}

var (
	hostA, hostB, hostC = netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")
)

func peers(name string) string { return name + "=http://" + name + ":2380" }

func TestATokenEnds(t *testing.T) {
	c := newClock()
	r := newRegistry(t, c)
	token, err := r.New(3, time.Hour, "person", false)
	check(t, err)
	c.now = c.now.Add(time.Hour - time.Second)
	if _, _, err := r.Get(token.ID); err != nil {
		t.Errorf("just before its end: %v", err)
	}
	c.now = c.now.Add(time.Second)
	if _, _, err := r.Get(token.ID); !errors.Is(err, ErrNoToken) || !strings.Contains(err.Error(), "ended on 2026-11-30T13:00:00Z") {
		t.Errorf("at its end: %v", err)
	}
	if _, _, err := r.Register(token.ID, "a", peers("a"), hostA); !errors.Is(err, ErrNoToken) {
		t.Errorf("a member came after the end: %v", err)
	}
	c.now = c.now.Add(rememberEnded + time.Second)
	_, err = r.New(1, 0, "person", false)
	check(t, err)
	if all := r.List(); len(all) != 1 || all[0].ID == token.ID {
		t.Errorf("a token that ended long ago is still there: %v", all)
	}
}

func TestSizesAndLivesThatAreRefused(t *testing.T) {
	r := newRegistry(t, newClock())
	for _, test := range []struct {
		size int
		ttl  time.Duration
	}{{0, 0}, {-1, 0}, {MaxSize + 1, 0}, {3, time.Second}, {3, -time.Hour}, {3, MaxTTL + 1}} {
		if _, err := r.New(test.size, test.ttl, "person", false); !errors.Is(err, ErrBad) {
			t.Errorf("size %d for %s: %v", test.size, test.ttl, err)
		}
	}
}

func TestStrangersHaveFewTokens(t *testing.T) {
	c := newClock()
	r := newRegistry(t, c)
	for range maxTokensOfStrangers {
		_, err := r.New(1, time.Hour, "10.0.0.9", true)
		check(t, err)
	}
	if _, err := r.New(1, time.Hour, "10.0.0.9", true); !errors.Is(err, ErrTooMany) {
		t.Errorf("one more for a stranger: %v", err)
	}
	if _, err := r.New(1, time.Hour, "person", false); err != nil {
		t.Errorf("a person is refused for what strangers did: %v", err)
	}
	c.now = c.now.Add(time.Hour + rememberEnded + time.Second)
	if _, err := r.New(1, time.Hour, "10.0.0.9", true); err != nil {
		t.Errorf("after the others have ended: %v", err)
	}
}

func TestWhatMembersSay(t *testing.T) {
	for _, test := range []struct {
		id, peers string
		ok        bool
	}{
		{"8e9e05c52164694d", "a=http://10.0.0.1:2380", true},
		{"1", "a=https://[fd00::1]:2380,a=http://10.0.0.1:2380", true},
		{"", "a=http://10.0.0.1:2380", false},
		{"_config", "a=http://10.0.0.1:2380", false},
		{"../x", "a=http://10.0.0.1:2380", false},
		{"8E", "a=http://10.0.0.1:2380", false},
		{"8e9e05c52164694d0", "a=http://10.0.0.1:2380", false},
		{"1", "", false},
		{"1", "a", false},
		{"1", "=http://10.0.0.1:2380", false},
		{"1", "a=http://10.0.0.1", false},
		{"1", "a=http://10.0.0.1:2380/path", false},
		{"1", "a=ftp://10.0.0.1:2380", false},
		{"1", "a=http://10.0.0.1:2380,b=http://10.0.0.1:2380", false},
		{"1", "a=http://10.0.0.1:2380\nb", false},
		{"1", "a=http://" + strings.Repeat("a", maxPeers) + ":1", false},
	} {
		r := newRegistry(t, newClock())
		token, err := r.New(3, 0, "person", false)
		check(t, err)
		_, _, err = r.Register(token.ID, test.id, test.peers, hostA)
		if (err == nil) != test.ok || err != nil && !errors.Is(err, ErrBad) {
			t.Errorf("member %q with %q: %v", test.id, test.peers, err)
		}
	}
}

func TestTwoMembersOfOneName(t *testing.T) {
	r := newRegistry(t, newClock())
	token, err := r.New(3, 0, "person", false)
	check(t, err)
	_, _, err = r.Register(token.ID, "1", "default=http://10.0.0.1:2380", hostA)
	check(t, err)
	if _, _, err = r.Register(token.ID, "2", "default=http://10.0.0.2:2380", hostB); !errors.Is(err, ErrBad) || !strings.Contains(err.Error(), "--name") {
		t.Errorf("a second member with the name default: %v", err)
	}
}

// A member that crashed, or whose answer was lost, comes again. That is safe until it knows the cluster.
func TestAMemberComesAgain(t *testing.T) {
	c := newClock()
	r := newRegistry(t, c)
	token, err := r.New(2, 0, "person", false)
	check(t, err)
	_, first, err := r.Register(token.ID, "1", peers("a"), hostA)
	check(t, err)
	_, again, err := r.Register(token.ID, "1", peers("a"), hostA)
	if err != nil || again != first {
		t.Errorf("came again while others are missing: %v, %v", again, err)
	}
	if _, _, err := r.Register(token.ID, "1", peers("b"), hostA); !errors.Is(err, ErrExists) {
		t.Errorf("came again with another name: %v", err)
	}
	full, second, err := r.Register(token.ID, "2", peers("b"), hostB)
	check(t, err)
	if !full.Complete() || second.Index != first.Index+1 {
		t.Errorf("the second of two members: %+v of %+v", second, full)
	}
	// The answer to the last member was lost; the first one has heard of it meanwhile.
	check(t, r.Tell(token.ID, hostA))
	if _, _, err := r.Register(token.ID, "1", peers("a"), hostA); err != nil {
		t.Errorf("a member that has just been told the cluster came again: %v", err)
	}
	c.now = c.now.Add(sinceTold)
	check(t, r.Tell(token.ID, hostA)) // what counts is the first time
	if _, _, err := r.Register(token.ID, "2", peers("b"), hostB); err != nil {
		t.Errorf("the last member came again: %v", err)
	}
	if _, _, err := r.Register(token.ID, "1", peers("a"), hostA); !errors.Is(err, ErrExists) {
		t.Errorf("a member that knows the cluster came again: %v", err)
	}
	if _, _, err := r.Register(token.ID, "3", peers("c"), hostC); !errors.Is(err, ErrFull) {
		t.Errorf("a third of two: %v", err)
	}
	// All of that is known after a restart.
	restarted, err := open(r.file, c.Now)
	check(t, err)
	if _, _, err := restarted.Register(token.ID, "1", peers("a"), hostA); !errors.Is(err, ErrExists) {
		t.Errorf("after a restart, a member that knows the cluster came again: %v", err)
	}
	if _, again, err := restarted.Register(token.ID, "2", peers("b"), hostB); err != nil || again.Index != second.Index {
		t.Errorf("after a restart, the other came again: %v, %v", again, err)
	}
}

func TestChangesAreHeardOf(t *testing.T) {
	r := newRegistry(t, newClock())
	token, err := r.New(2, 0, "person", false)
	check(t, err)
	_, changed, err := r.Get(token.ID)
	check(t, err)
	_, _, err = r.Register(token.ID, "1", peers("a"), hostA)
	check(t, err)
	<-changed
	_, changed, err = r.Get(token.ID)
	check(t, err)
	check(t, r.Delete(token.ID))
	<-changed
	if err := r.Delete(token.ID); !errors.Is(err, ErrNoToken) {
		t.Errorf("deleted twice: %v", err)
	}
}

// What cannot be kept is not acknowledged, and is not there.
func TestADiskThatTakesNothing(t *testing.T) {
	r := newRegistry(t, newClock())
	token, err := r.New(2, 0, "person", false)
	check(t, err)
	file := r.file
	r.file = filepath.Join(t.TempDir(), "missing", "tokens.json")
	if _, _, err := r.Register(token.ID, "1", peers("a"), hostA); err == nil {
		t.Error("a member was registered that cannot be kept")
	}
	if _, err := r.New(2, 0, "person", false); err == nil {
		t.Error("a token was made that cannot be kept")
	}
	if err := r.Delete(token.ID); err == nil {
		t.Error("a token was deleted that is still in the file")
	}
	r.file = file
	if now, _, err := r.Get(token.ID); err != nil || len(now.Members) != 0 || len(r.List()) != 1 {
		t.Errorf("afterwards: %+v, %v", now, err)
	}
	if _, m, err := r.Register(token.ID, "1", peers("a"), hostA); err != nil || m.Index != sizeIndex+1 {
		t.Errorf("when the disk is back: %+v, %v", m, err)
	}
}

func TestAFileThatIsNoneOfOurs(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tokens.json")
	check(t, os.WriteFile(file, []byte("{"), 0o600))
	if _, err := Open(file); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("%v", err)
	}
}

func TestTokensAreNotGuessed(t *testing.T) {
	r, seen := newRegistry(t, newClock()), map[string]bool{}
	for i := range 50 {
		token, err := r.New(1, 0, fmt.Sprint(i), false)
		check(t, err)
		if len(token.ID) != 32 || seen[token.ID[:8]] {
			t.Errorf("token %q is not 128 random bits", token.ID)
		}
		seen[token.ID[:8]] = true
	}
}
