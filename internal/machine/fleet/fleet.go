// Package fleet is what the server knows of its machines at this moment, in memory: the Machine objects
// as the informer cache delivers them, and the live facts that are too fine or too frequent for the
// store (boots, progress, heartbeats, log lines).
//
// Boot services and the machine API read from it and report to it; neither ever waits for the store.
// A controller folds what a person would want to see into status. Everything here can be lost: after a
// restart the objects come back from the store and the live facts from the machines themselves.
package fleet

import (
	"cmp"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/machine/identify"
)

// Options of a Fleet.
type Options struct {
	Log *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// MaxNewcomers bounds how many unknown machines may wait to be recorded. Default 4096.
	MaxNewcomers int
	// MaxStrangers bounds how many machines that nobody wrote down or approved are recorded. Default 10,000.
	MaxStrangers int
}

// Fleet is safe for concurrent use. Machine objects that it returns are shared and must not be changed.
type Fleet struct {
	log          *slog.Logger
	now          func() time.Time
	listening    time.Time
	maxNewcomers int
	maxStrangers int

	mu        sync.RWMutex
	machines  map[string]*v1alpha1.Machine
	index     *identify.Index
	addresses map[netip.Addr][]string // who plans to have an address
	live      map[string]*live
	newcomers map[string]Newcomer
	removed   map[string]time.Time // UIDs of machines that were deleted, and when
	synced    chan struct{}
	// copies are the machines that are known from an earlier time only, not from the store as it is.
	copies map[string]bool
	// hasCopy: there is something to answer from although the store has not been read.
	hasCopy bool
	// restoredAt is when the store was restored from a backup, until a person confirms it; zero: it was not.
	restoredAt      time.Time
	restoredChanged signal
	unknownNodes    map[string]UnknownNode // while restoredAt is set
	changes         uint64
	refused         time.Time // when the newcomer limit was last logged

	dirty   *dirtySet
	arrived signal
	changed map[string]signal
	any     signal
	locks   machineLocks
}

// New returns an empty Fleet.
func New(opts Options) *Fleet {
	f := &Fleet{
		log: opts.Log, now: opts.Now, maxNewcomers: opts.MaxNewcomers, maxStrangers: opts.MaxStrangers,
		machines: map[string]*v1alpha1.Machine{}, index: identify.NewIndex(), addresses: map[netip.Addr][]string{}, live: map[string]*live{},
		newcomers: map[string]Newcomer{}, removed: map[string]time.Time{}, synced: make(chan struct{}), copies: map[string]bool{},
		dirty: newDirtySet(), arrived: newSignal(), changed: map[string]signal{}, any: newSignal(), restoredChanged: newSignal(),
		locks: machineLocks{byName: map[string]*machineLock{}},
	}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	if f.now == nil {
		f.now = time.Now
	}
	if f.maxNewcomers == 0 {
		f.maxNewcomers = 4096
	}
	if f.maxStrangers == 0 {
		f.maxStrangers = 10_000
	}
	return f
}

// ListeningSince is since when machines have been heard: without the store's machines, what they say is refused. Nothing that was last heard
// of before may be called lost until enough time has passed since. While nobody is heard it is the present.
func (f *Fleet) ListeningSince() time.Time {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.listeningSince()
}

// listeningSince needs f.mu.
func (f *Fleet) listeningSince() time.Time {
	if !f.isSynced() {
		return f.now()
	}
	return f.listening
}

// MarkSynced says that every Machine of the store has been Put. Before that, an unknown machine may only
// be one that has not been read yet. What was known from an earlier time and is not in the store is forgotten.
func (f *Fleet) MarkSynced() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name := range f.copies {
		f.forget(name)
	}
	clear(f.copies)
	if !f.isSynced() {
		f.listening = f.now()
		close(f.synced)
	}
}

// Restore takes in the machines as they were at an earlier time, for the time until the store has been read. Machines that are known
// already stay as they are.
func (f *Fleet) Restore(machines []*v1alpha1.Machine) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.isSynced() {
		return
	}
	f.hasCopy = true
	for _, m := range machines {
		if _, known := f.machines[m.Name]; known {
			continue
		}
		f.machines[m.Name] = m
		f.index.Put(m)
		f.claimAddress(m)
		f.copies[m.Name] = true
	}
}

// MarkStale says that the store is gone: what is known of machines is how they were, until MarkSynced.
func (f *Fleet) MarkStale() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.isSynced() {
		return
	}
	f.synced = make(chan struct{})
	f.hasCopy = true
	for name := range f.machines {
		f.copies[name] = true
	}
}

// HasCopy says whether machines can be told from how they were, while the store has not been read.
func (f *Fleet) HasCopy() bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.hasCopy
}

// Changes counts what became of Machines; it differs when something has.
func (f *Fleet) Changes() uint64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.changes
}

// Synced is closed once MarkSynced was called.
func (f *Fleet) Synced() <-chan struct{} {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.synced
}

// IsSynced says whether MarkSynced was called, and no MarkStale since.
func (f *Fleet) IsSynced() bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.isSynced()
}

// isSynced needs f.mu.
func (f *Fleet) isSynced() bool {
	select {
	case <-f.synced:
		return true
	default:
		return false
	}
}

// Put takes in a Machine. Whoever writes to the store puts the answer here at once, so that the server
// reads its own writes; an older version that the informer delivers afterwards is ignored.
func (f *Fleet) Put(m *v1alpha1.Machine) {
	if f.put(m) {
		f.dirty.add(m.Name)
	}
}

func (f *Fleet) put(m *v1alpha1.Machine) (news bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, gone := f.removed[string(m.UID)]; gone {
		return false
	}
	old := f.machines[m.Name]
	// A copy gives way to whatever the store says, which may be older: it was restored from a backup.
	if old != nil && !f.copies[m.Name] && !newer(m, old) {
		return false
	}
	f.changes++
	delete(f.copies, m.Name)
	if old != nil && old.UID != m.UID {
		delete(f.live, m.Name) // deleted and made anew: nothing of the old one's life applies
	}
	if old != nil {
		f.releaseAddress(old)
	}
	f.machines[m.Name] = m
	f.index.Put(m)
	f.claimAddress(m)
	delete(f.newcomers, m.Name)
	f.wake(m.Name)
	return true
}

// Remove forgets a Machine that was deleted from the store. uid guards against the late news of a
// deletion when the name is in use again; empty removes whatever is there. Whoever still holds a version of
// the machine, read or written before the deletion, cannot bring it back with Put.
func (f *Fleet) Remove(name string, uid string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if uid != "" {
		f.buried(uid)
	}
	if m := f.machines[name]; m != nil && (uid == "" || string(m.UID) == uid) {
		f.forget(name)
	}
}

// forget needs f.mu.
func (f *Fleet) forget(name string) {
	m := f.machines[name]
	if m == nil {
		return
	}
	f.changes++
	delete(f.machines, name)
	delete(f.live, name)
	delete(f.copies, name)
	f.index.Remove(name)
	f.releaseAddress(m)
	f.wake(name)
}

// claimAddress notes the machine's planned address; needs f.mu.
func (f *Fleet) claimAddress(m *v1alpha1.Machine) {
	if address, ok := plannedAddress(m); ok {
		f.addresses[address] = append(f.addresses[address], m.Name)
	}
}

// releaseAddress takes back what claimAddress noted; needs f.mu.
func (f *Fleet) releaseAddress(m *v1alpha1.Machine) {
	address, ok := plannedAddress(m)
	if !ok {
		return
	}
	f.addresses[address] = slices.DeleteFunc(f.addresses[address], func(name string) bool { return name == m.Name })
	if len(f.addresses[address]) == 0 {
		delete(f.addresses, address)
	}
}

func plannedAddress(m *v1alpha1.Machine) (netip.Addr, bool) {
	if m.Spec.Network == nil {
		return netip.Addr{}, false
	}
	address, err := netip.ParseAddr(m.Spec.Network.Address)
	return address, err == nil
}

// buried remembers a deletion for longer than any request lasts.
func (f *Fleet) buried(uid string) {
	const keep, many = 10 * time.Minute, 1024
	now := f.now()
	f.removed[uid] = now
	if len(f.removed) > many {
		maps.DeleteFunc(f.removed, func(_ string, at time.Time) bool { return now.Sub(at) > keep })
	}
}

// newer says whether a is to replace b. Resource versions of one object can be compared as numbers, in etcd
// and in any Kubernetes API server since 1.35; where they are not numbers, the later delivery wins.
func newer(a, b *v1alpha1.Machine) bool {
	if a.UID != b.UID {
		return !a.CreationTimestamp.Before(&b.CreationTimestamp)
	}
	va, errA := strconv.ParseUint(a.ResourceVersion, 10, 64)
	vb, errB := strconv.ParseUint(b.ResourceVersion, 10, 64)
	return errA != nil || errB != nil || va > vb
}

// Get returns the Machine of that name.
func (f *Fleet) Get(name string) (*v1alpha1.Machine, bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	m, ok := f.machines[name]
	return m, ok
}

// List returns all Machines, by name.
func (f *Fleet) List() []*v1alpha1.Machine {
	f.mu.RLock()
	list := slices.AppendSeq(make([]*v1alpha1.Machine, 0, len(f.machines)), maps.Values(f.machines))
	f.mu.RUnlock()
	// Sorting takes milliseconds for which nobody's boot shall wait.
	slices.SortFunc(list, func(a, b *v1alpha1.Machine) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// IsStranger says whether a machine appeared by itself and nobody approved it.
func IsStranger(m *v1alpha1.Machine) bool {
	return m.Annotations[v1alpha1.AnnotationDiscoveredBy] != "" && !m.Spec.Approved && m.Status.Installed == nil && m.Status.Identity == nil
}

// Strangers is how many there are.
func (f *Fleet) Strangers() int {
	f.mu.RLock()
	defer f.mu.RUnlock()
	strangers := 0
	for _, m := range f.machines {
		if IsStranger(m) {
			strangers++
		}
	}
	return strangers
}

// PlacesForStrangers is how many more strangers may be recorded; negative when there are too many.
func (f *Fleet) PlacesForStrangers() int { return f.maxStrangers - f.Strangers() }

// SilentStrangers are the strangers that were not heard of for as long as that, longest ago first. What happened before this
// server listened is not known, so that counts as news of all.
func (f *Fleet) SilentStrangers(silence time.Duration) []*v1alpha1.Machine {
	f.mu.RLock()
	defer f.mu.RUnlock()
	heard := func(m *v1alpha1.Machine) time.Time {
		last := f.listeningSince()
		if created := m.CreationTimestamp.Time; created.After(last) {
			last = created
		}
		if l := f.live[m.Name]; l != nil {
			for _, at := range []time.Time{l.ContactAt, l.HeartbeatAt, l.ProgressAt} {
				if at.After(last) {
					last = at
				}
			}
		}
		return last
	}
	var silent []*v1alpha1.Machine
	for _, m := range f.machines {
		if IsStranger(m) && f.now().Sub(heard(m)) > silence {
			silent = append(silent, m)
		}
	}
	slices.SortFunc(silent, func(a, b *v1alpha1.Machine) int {
		return cmp.Or(heard(a).Compare(heard(b)), strings.Compare(a.Name, b.Name))
	})
	return silent
}

// Match finds the machine that the identifiers belong to. See identify.Index.Match.
func (f *Fleet) Match(q identify.Query) identify.Match {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.index.Match(q)
}

// Unclaimed are the identifiers with which a new machine is recorded. See identify.Index.Unclaimed.
func (f *Fleet) Unclaimed(q identify.Query) v1alpha1.Identifiers {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.index.Unclaimed(q)
}

// Lookup returns the Machine that the identifiers of a boot request belong to, or nil, and why. Where they fit several
// machines, rivals are those.
func (f *Fleet) Lookup(ids v1alpha1.Identifiers) (m *v1alpha1.Machine, rivals []*v1alpha1.Machine, why string) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	match := f.index.Match(identify.Query{Identifiers: ids})
	for _, name := range match.Involved {
		rivals = append(rivals, f.machines[name])
	}
	return f.machines[match.Machine], rivals, match.Reason
}

// Twins are the other machines that share identifiers with the named one, each with what is shared.
func (f *Fleet) Twins(name string) []identify.Twin {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.index.Twins(name)
}

// Reservation is the address that a known machine is to have.
type Reservation struct {
	Machine  string
	Hostname string
	Subnet   string     // name, may be empty
	Address  netip.Addr // invalid when no address is planned
	MACs     []string   // all of the machine
	// DHCPOptions are its own.
	DHCPOptions []v1alpha1.DHCPOption
}

// ByMAC returns what DHCP must know of the machine with that MAC.
func (f *Fleet) ByMAC(mac string) (Reservation, bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	match := f.index.Match(identify.Query{Identifiers: v1alpha1.Identifiers{MACs: []string{mac}}})
	m := f.machines[match.Machine]
	if m == nil {
		return Reservation{}, false
	}
	r := Reservation{Machine: m.Name, Hostname: m.Spec.Hostname, MACs: m.Spec.Identifiers.MACs, DHCPOptions: m.Spec.DHCPOptions}
	if r.Hostname == "" {
		r.Hostname = m.Name
	}
	if n := m.Spec.Network; n != nil {
		r.Subnet = n.Subnet
		// The address is for one interface; the machine's other ones boot from the pool.
		if n.MAC == "" || identify.MAC(n.MAC) == identify.MAC(mac) {
			r.Address, _ = netip.ParseAddr(n.Address)
		}
	}
	return r, true
}

// OwnersWithin are the names of all machines whose plan has an address that contains says yes to.
func (f *Fleet) OwnersWithin(contains func(netip.Addr) bool) []string {
	f.mu.RLock()
	defer f.mu.RUnlock()
	var owners []string
	for address, names := range f.addresses {
		if contains(address) {
			owners = append(owners, names...)
		}
	}
	slices.Sort(owners)
	return slices.Compact(owners)
}

// AddressOwners are the names of all machines whose plan has that address.
func (f *Fleet) AddressOwners(address string) []string {
	parsed, err := netip.ParseAddr(address)
	if err != nil {
		return nil
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	return slices.Sorted(slices.Values(f.addresses[parsed]))
}
