package fleet

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/contract/wire"
)

func version(m *v1alpha1.Machine, uid, resourceVersion string) *v1alpha1.Machine {
	m = m.DeepCopy()
	m.UID, m.ResourceVersion = "uid-"+"1", resourceVersion
	if uid != "" {
		m.UID = "uid-2"
	}
	return m
}

func TestFleetReadsItsOwnWrites(t *testing.T) {
	f := New(Options{})
	f.Put(version(reported("a", uuidA, "", macA), "", "10"))
	f.Put(version(expected("a", v1alpha1.Identifiers{}), "", "9"))
	if m, _ := f.Get("a"); m.ResourceVersion != "10" {
		t.Errorf("an older version replaced a newer one: %s", m.ResourceVersion)
	}
	f.Remove("a", "uid-of-an-earlier-one")
	if _, ok := f.Get("a"); !ok {
		t.Error("late news of an earlier machine's deletion removed this one")
	}
	f.Remove("a", "uid-1")
	if _, ok := f.Get("a"); ok {
		t.Error("a deleted machine is still there")
	}
	f.Put(version(expected("a", v1alpha1.Identifiers{}), "", "11"))
	if _, ok := f.Get("a"); ok {
		t.Error("an answer that was on its way brought a deleted machine back")
	}
	f.Put(version(expected("a", v1alpha1.Identifiers{}), "2", "12"))
	if _, ok := f.Get("a"); !ok {
		t.Error("a new machine of the same name is not there")
	}
}

func TestNewMachineOfTheSameNameStartsWithoutHistory(t *testing.T) {
	f := New(Options{})
	f.Put(version(expected("a", v1alpha1.Identifiers{}), "", "1"))
	f.Log("a", "old")
	f.Put(version(expected("a", v1alpha1.Identifiers{}), "2", "5"))
	if lines := f.LogLines("a"); len(lines) != 0 {
		t.Errorf("log of the machine that was deleted: %v", lines)
	}
}

func TestBootOfAnUnknownMachineIsANewcomer(t *testing.T) {
	f := New(Options{MaxNewcomers: 2})
	ids := v1alpha1.Identifiers{MACs: []string{macA}, UUID: amiUUID}
	_, arrived := f.Newcomers()
	for range 3 {
		if name := f.Booted(ids, v1alpha1.BootRecord{Action: v1alpha1.BootDiscover}); name != "m-52540000000a" {
			t.Fatalf("name is %q", name)
		}
	}
	<-arrived
	list, _ := f.Newcomers()
	if len(list) != 1 || list[0].Identifiers.UUID != "" {
		t.Fatalf("newcomers: %+v, want one, without the vendor's default UUID", list)
	}
	f.Booted(v1alpha1.Identifiers{MACs: []string{macB}}, v1alpha1.BootRecord{})
	if name := f.Booted(v1alpha1.Identifiers{MACs: []string{macNew}}, v1alpha1.BootRecord{}); name != "" {
		t.Errorf("a third newcomer was accepted although the limit is two")
	}
	f.Put(expected("m-52540000000a", v1alpha1.Identifiers{MACs: []string{macA}}))
	if list, _ := f.Newcomers(); len(list) != 1 {
		t.Errorf("a newcomer that was recorded is still waiting: %+v", list)
	}
	if boots := f.Live("m-52540000000a").Boots; len(boots) != 3 {
		t.Errorf("boots before the machine was recorded are lost: %d of 3", len(boots))
	}
}

func TestBootsAreBounded(t *testing.T) {
	f := New(Options{})
	f.Put(expected("a", v1alpha1.Identifiers{MACs: []string{macA}}))
	for i := range 30 {
		f.Booted(v1alpha1.Identifiers{MACs: []string{macA}}, v1alpha1.BootRecord{Reason: string(rune('A' + i))})
	}
	if boots := f.Live("a").Boots; len(boots) != maxBoots || boots[0].Reason != string(rune('A'+29)) {
		t.Errorf("%d boots, the newest is %q", len(boots), boots[0].Reason)
	}
}

func TestDirtyNamesAreCoalesced(t *testing.T) {
	f := New(Options{})
	f.Put(expected("b", v1alpha1.Identifiers{}))
	f.Put(expected("a", v1alpha1.Identifiers{}))
	for i := range 1000 {
		f.Progressed("a", "1", []wire.Step{{Name: "image", State: wire.StateRunning, BytesDone: int64(i)}}, nil)
	}
	names, err := f.NextDirty(t.Context())
	if err != nil || !slices.Equal(names, []string{"a", "b"}) {
		t.Errorf("dirty: %v, %v, want a and b once", names, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if names, err := f.NextDirty(ctx); err == nil {
		t.Errorf("dirty again without news: %v", names)
	}
}

func TestHeartbeatsThatSayNothingNewAreQuiet(t *testing.T) {
	now := time.Unix(1e9, 0)
	f := New(Options{Now: func() time.Time { return now }})
	f.Put(expected("a", v1alpha1.Identifiers{}))
	f.NextDirty(t.Context())
	dirty := func() bool {
		f.dirty.mu.Lock()
		defer f.dirty.mu.Unlock()
		was := f.dirty.names["a"]
		delete(f.dirty.names, "a")
		return was
	}
	steps := []struct {
		name string
		beat wire.Heartbeat
		wait time.Duration
		want bool
	}{
		{"the first one is news", wire.Heartbeat{BootID: "1"}, 0, true},
		{"the same again is not", wire.Heartbeat{BootID: "1"}, 30 * time.Second, false},
		{"a failed unit is", wire.Heartbeat{BootID: "1", FailedUnits: []string{"x.service"}}, 30 * time.Second, true},
		{"the same again is not, even late", wire.Heartbeat{BootID: "1", FailedUnits: []string{"x.service"}}, 2 * time.Minute, false},
		{"a reboot is", wire.Heartbeat{BootID: "2"}, 30 * time.Second, true},
	}
	for _, step := range steps {
		now = now.Add(step.wait)
		f.Beat("a", step.beat, "10.0.0.1")
		if got := dirty(); got != step.want {
			t.Errorf("%s: dirty is %v", step.name, got)
		}
	}
	m := expected("a", v1alpha1.Identifiers{})
	m.Status.Phase = v1alpha1.PhaseLost
	f.Put(m)
	dirty()
	if f.Beat("a", wire.Heartbeat{BootID: "2"}, "10.0.0.1"); !dirty() {
		t.Error("a sign of life of a lost node is no news")
	}
	if at := f.Live("a").ReadyAt; !at.Equal(now) {
		t.Errorf("ready since %v, want since the last reboot %v", at, now)
	}
}

// Whoever rolls a change through a cluster waits for what a node says that it has.
func TestAnotherConfigurationIsNews(t *testing.T) {
	f := New(Options{})
	f.Put(expected("a", v1alpha1.Identifiers{}))
	f.NextDirty(t.Context())
	report := wire.PhaseReport{Cluster: "rack", Done: true}
	for _, step := range []struct {
		name   string
		change func()
		news   bool
	}{
		{"the first report", func() {}, true},
		{"the same again", func() { report.Version = "v2" }, false},
		{"other digests", func() { report.Config = wire.ConfigDigests{Etcd: "e", ControlPlane: "c", Node: "n"} }, true},
		{"a former configuration", func() { report.FormerConfig = &wire.ConfigDigests{Node: "m"} }, true},
		{"the same former configuration", func() { report.FormerConfig = &wire.ConfigDigests{Node: "m"} }, false},
		{"none any more", func() { report.FormerConfig = nil }, true},
		{"a file that somebody changed", func() { report.Drift = []string{"/etc/a\x07"} }, true},
		{"the same file", func() { report.Drift = []string{"/etc/a\x07"} }, false},
		{"a message", func() { report.Message = "cannot\x1b[2J go back" }, true},
	} {
		step.change()
		f.BroughtUp("a", report)
		f.dirty.mu.Lock()
		news := f.dirty.names["a"]
		delete(f.dirty.names, "a")
		f.dirty.mu.Unlock()
		if news != step.news {
			t.Errorf("%s: news %v", step.name, news)
		}
	}
	up := f.Live("a").Bringup
	if up.Config != (v1alpha1.ConfigDigests{Etcd: "e", ControlPlane: "c", Node: "n"}) || strings.Contains(up.Message, "\x1b") {
		t.Errorf("known is %+v", up)
	}
}

// Without a store, machines are known as they were; the store has the last word when it is there.
func TestACopyGivesWayToTheStore(t *testing.T) {
	f := New(Options{})
	if f.HasCopy() {
		t.Error("a new fleet has a copy of nothing")
	}
	kept := version(reported("kept", uuidA, "", macA), "", "10")
	kept.Spec.Hostname = "before"
	gone := version(expected("gone", v1alpha1.Identifiers{MACs: []string{macB}}), "", "11")
	gone.Spec.Network = &v1alpha1.MachineNetwork{Address: "10.0.0.7"}
	f.Restore([]*v1alpha1.Machine{kept, gone})
	if m, _, _ := f.Lookup(v1alpha1.Identifiers{MACs: []string{macB}}); f.IsSynced() || !f.HasCopy() || m != gone {
		t.Errorf("from the copy: %v", m)
	}
	read := func(resourceVersion string) {
		t.Helper()
		now := version(reported("kept", uuidA, "", macA), "", resourceVersion)
		now.Spec.Hostname = "now-" + resourceVersion
		f.Put(now)
		f.MarkSynced()
		if m, _ := f.Get("kept"); m != now {
			t.Errorf("the copy did not give way to version %s", resourceVersion)
		}
		if _, ok := f.Get("gone"); ok || len(f.AddressOwners("10.0.0.7")) != 0 {
			t.Error("a machine that is not in the store any more is still known")
		}
	}
	read("10") // the same version, of which the copy has less
	synced := f.Synced()
	f.MarkStale()
	if _, ok := f.Get("kept"); !ok || f.IsSynced() || f.Synced() == synced {
		t.Error("what was known is forgotten, or taken for new, when the store is gone")
	}
	read("9") // the store comes from a backup
	f.Restore([]*v1alpha1.Machine{gone})
	if _, ok := f.Get("gone"); ok {
		t.Error("a copy was taken in beside the store")
	}
}

func TestChangedWakes(t *testing.T) {
	f := New(Options{})
	machine, any := f.Changed("a")
	f.Put(expected("b", v1alpha1.Identifiers{}))
	select {
	case <-machine:
		t.Error("woken by another machine")
	case <-any:
		t.Error("woken by another machine")
	default:
	}
	f.Put(expected("a", v1alpha1.Identifiers{}))
	<-machine
	f.Touch()
	<-any
}

func TestReservation(t *testing.T) {
	f := New(Options{})
	m := reported("a", uuidA, "", macA, macA2)
	m.Spec.Hostname = "node-1"
	m.Spec.Network = &v1alpha1.MachineNetwork{Subnet: "rack", Address: "10.0.0.7", MAC: macA}
	f.Put(m)
	r, ok := f.ByMAC("52:54:00:00:00:0A")
	if !ok || r.Machine != "a" || r.Hostname != "node-1" || r.Address.String() != "10.0.0.7" {
		t.Errorf("reservation: %+v, %v", r, ok)
	}
	if r, ok := f.ByMAC(macA2); !ok || r.Address.IsValid() {
		t.Errorf("the second NIC got the first one's address: %+v, %v", r, ok)
	}
	if _, ok := f.ByMAC(macB); ok {
		t.Error("an unknown MAC has a reservation")
	}
	if owners := f.AddressOwners("10.0.0.7"); !slices.Equal(owners, []string{"a"}) {
		t.Errorf("owners of 10.0.0.7: %v", owners)
	}
	pool := netip.MustParsePrefix("10.0.0.0/29")
	if owners := f.OwnersWithin(pool.Contains); !slices.Equal(owners, []string{"a"}) {
		t.Errorf("owners within %s: %v", pool, owners)
	}
	m = m.DeepCopy()
	m.Spec.Network.Address = "10.0.0.8"
	f.Put(m)
	if owners := f.AddressOwners("10.0.0.7"); len(owners) != 0 {
		t.Errorf("an address that was given up still has owners: %v", owners)
	}
}

func TestLogLinesCannotDriveATerminal(t *testing.T) {
	f := New(Options{})
	f.Put(expected("a", v1alpha1.Identifiers{}))
	f.Log("a", "\x1b[2Jred\x1b]0;title\x07 alert\r\nnext\tÜ")
	if got := f.LogLines("a")[0].Text; got != "[2Jred]0;title alert next Ü" {
		t.Errorf("got %q", got)
	}
	for range 3 * maxLogLines {
		f.Log("a", "line")
	}
	if n := len(f.LogLines("a")); n != maxLogLines {
		t.Errorf("%d lines kept, want %d", n, maxLogLines)
	}
}

func BenchmarkByMAC(b *testing.B) {
	f := New(Options{})
	for i := range 10000 {
		f.Put(expected(fmt.Sprint("m", i), v1alpha1.Identifiers{MACs: []string{fmt.Sprintf("52:54:00:%02x:%02x:00", i/256, i%256)}}))
	}
	for b.Loop() {
		if _, ok := f.ByMAC("52:54:00:10:10:00"); !ok {
			b.Fatal("not found")
		}
	}
}

// Whoever writes a machine has it alone; others are written meanwhile.
func TestOneWriterAtATime(t *testing.T) {
	f := New(Options{})
	done := f.Write("a")
	f.Write("b")() // does not wait for a
	entered, left := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(left)
		defer f.Write("a")()
		close(entered)
	}()
	select {
	case <-entered:
		t.Fatal("two write one machine")
	case <-time.After(20 * time.Millisecond):
	}
	done()
	<-left
	if n := len(f.locks.byName); n != 0 {
		t.Errorf("%d machines are remembered of which nobody writes any", n)
	}
}

// A server that takes long to start, or whose store is away, refuses heartbeats: machines are not lost for what nobody could hear.
func TestListening(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	f := New(Options{Now: func() time.Time { return now }})
	is := func(when string, want time.Time) {
		t.Helper()
		if got := f.ListeningSince(); !got.Equal(want) {
			t.Errorf("%s: listening since %s, not %s", when, got, want)
		}
	}
	is("at the start", now)
	now = now.Add(time.Minute)
	is("while the store is read", now)
	f.MarkSynced()
	synced := now
	now = now.Add(time.Minute)
	f.MarkSynced()
	is("when it was read", synced)
	f.MarkStale()
	now = now.Add(time.Hour)
	is("while the store is away", now)
	f.MarkSynced()
	back := now
	now = now.Add(time.Minute)
	is("when it is there again", back)
}
