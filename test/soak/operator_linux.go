package soak

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/base/netns"
	"coldrack.dev/internal/lab/rehearse"
)

// operator is a person with the administrator's kubeconfig. It remembers what the server has acknowledged.
type operator struct {
	soak   *soak
	client client.Client
	http   *http.Client

	mu       sync.Mutex
	number   int  // that was acknowledged last
	taken    bool // the last write was acknowledged
	recorded []string
}

func newOperator(s *soak) (*operator, error) {
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(s.dataDir(), "admin.kubeconfig"))
	if err != nil {
		return nil, err
	}
	config.QPS, config.Timeout = -1, 30*time.Second
	config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		return netns.Dial(ctx, s.stage.ServerPath(), network, address)
	}
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	o := &operator{soak: s}
	if o.client, err = client.New(config, client.Options{Scheme: scheme}); err != nil {
		return nil, err
	}
	o.http, err = rest.HTTPClientFor(config)
	return o, err
}

// recordMachines writes the rack sheet: each machine, approved.
func (o *operator) recordMachines(ctx context.Context, fleet []rehearse.Machine) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for _, m := range fleet {
		group.Go(func() error { return o.record(ctx, nameOf(m), m.Inventory.Identifiers.MACs) })
	}
	return group.Wait()
}

func (o *operator) record(ctx context.Context, name string, macs []string) error {
	return o.client.Create(ctx, &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: v1alpha1.MachineSpec{Approved: true, Profile: "soak", Identifiers: v1alpha1.Identifiers{MACs: macs}}})
}

const numberAnnotation = "soak/number"

// work writes all the time: a number that grows, and now and then one more machine.
func (o *operator) work(ctx context.Context) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for next := 1; ctx.Err() == nil; next++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:"%d"}}}`, numberAnnotation, next)
		err := o.client.Patch(ctx, &v1alpha1.Profile{ObjectMeta: metav1.ObjectMeta{Name: "soak"}}, client.RawPatch(types.MergePatchType, []byte(patch)))
		o.mu.Lock()
		o.taken = err == nil
		if err == nil {
			o.number = next
		}
		o.mu.Unlock()
		if next%10 == 0 {
			name := fmt.Sprintf("planned-%05d", next/10)
			mac := net.HardwareAddr{0x0a, 0, 0, byte(next / 10 >> 16), byte(next / 10 >> 8), byte(next / 10)}
			if o.record(ctx, name, []string{mac.String()}) == nil {
				o.mu.Lock()
				o.recorded = append(o.recorded, name)
				o.mu.Unlock()
			}
		}
	}
}

// writes says whether the last write was acknowledged.
func (o *operator) writes() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.taken
}

// fillLimit is how long filling the store may take. It takes seconds where the server has a processor to itself.
const fillLimit = 5 * time.Minute

var fillerLabel = map[string]string{"soak": "filler"}

// fillStore writes large objects until the store refuses them, or the time is over.
func (o *operator) fillStore(ctx context.Context, within time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	content := strings.Repeat("0123456789abcdef", 60<<10)
	for i := 0; ctx.Err() == nil; i++ {
		err := o.client.Create(ctx, &v1alpha1.Profile{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("filler-%05d", i), Labels: fillerLabel},
			Spec: v1alpha1.ProfileSpec{Image: "debian-12", Files: []v1alpha1.File{{Path: "/etc/filler", Content: content}}}})
		if err != nil && strings.Contains(err.Error(), "space exceeded") {
			o.soak.Log("the store took %d objects of a MiB, then: %v", i, err)
			o.soak.happened("store full")
			return
		}
	}
}

// emptyStore deletes them again.
func (o *operator) emptyStore(ctx context.Context) error {
	for ctx.Err() == nil {
		err := o.client.DeleteAllOf(ctx, &v1alpha1.Profile{}, client.MatchingLabels(fillerLabel))
		if err == nil {
			return nil
		}
		o.soak.Log("cannot empty the store yet: %v", err)
		pause(ctx, 2*time.Second)
	}
	return nil
}

// acknowledged is what the server has answered with success.
type acknowledged struct {
	number   int
	recorded []string
	// addresses of the machines that were installed.
	addresses map[string]netip.Addr
}

func (s *soak) acknowledged() acknowledged {
	s.operator.mu.Lock()
	defer s.operator.mu.Unlock()
	return acknowledged{s.operator.number, s.operator.recorded[:len(s.operator.recorded):len(s.operator.recorded)], s.machines.addresses()}
}

// checkAcknowledged looks whether everything that was acknowledged before is there.
func (s *soak) checkAcknowledged(ctx context.Context) {
	before := s.acknowledged()
	const bound = "what was acknowledged is there"
	var profile v1alpha1.Profile
	var list v1alpha1.MachineList
	var err error
	// Machines are answered before the store is there; and whatever else this host does may keep an answer for longer than the limit of a call.
	for began := time.Now(); ; pause(ctx, time.Second) {
		if err = s.operator.client.Get(ctx, client.ObjectKey{Name: "soak"}, &profile); err == nil {
			list, err = s.operator.list(ctx)
		}
		if err == nil || ctx.Err() != nil || time.Since(began) > 3*time.Minute {
			break
		}
	}
	if err != nil {
		if ctx.Err() == nil {
			s.watched.breach("people's API answers", err.Error())
		}
		return
	}
	if number, _ := strconv.Atoi(profile.Annotations[numberAnnotation]); number < before.number {
		s.watched.breach(bound, fmt.Sprintf("number %d was acknowledged, and %d is there", before.number, number))
	}
	byName := map[string]*v1alpha1.Machine{}
	strangers := 0
	for i := range list.Items {
		m := &list.Items[i]
		byName[m.Name] = m
		if !strings.HasPrefix(m.Name, "known-") && !strings.HasPrefix(m.Name, "planned-") {
			strangers++
		}
	}
	s.watched.saw(func(f *figures) { f.strangers, f.checks = max(f.strangers, strangers), f.checks+1 })
	for _, name := range before.recorded {
		if byName[name] == nil {
			s.watched.breach(bound, fmt.Sprintf("machine %s was recorded and is gone", name))
		}
	}
	for name, address := range before.addresses {
		switch m := byName[name]; {
		case m == nil:
			s.watched.breach(bound, fmt.Sprintf("machine %s was installed and is gone", name))
		case m.Status.Identity == nil:
			s.watched.breach(bound, fmt.Sprintf("machine %s was installed and has no identity", name))
		case m.Spec.Network == nil || m.Spec.Network.Address != address.String():
			s.watched.breach("a known machine keeps its address", fmt.Sprintf("machine %s uses %s and its record says %+v", name, address, m.Spec.Network))
		}
	}
}

// list reads all machines, in parts: those of strangers are large.
func (o *operator) list(ctx context.Context) (all v1alpha1.MachineList, err error) {
	for next := ""; ; {
		var part v1alpha1.MachineList
		if err := o.client.List(ctx, &part, client.Limit(100), client.Continue(next)); err != nil {
			return all, err
		}
		all.Items = append(all.Items, part.Items...)
		if next = part.Continue; next == "" {
			return all, nil
		}
	}
}

// metrics reads the server's, and adds up those that differ by labels only.
func (o *operator) metrics(ctx context.Context) map[string]float64 {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://127.0.0.1:7443/coldrack/v1/metrics", nil)
	if err != nil {
		return nil
	}
	response, err := o.http.Do(request)
	if err != nil {
		return nil
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		return nil
	}
	out := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if i := strings.IndexByte(line, '}'); i > 0 {
			name, value, ok = line[:strings.IndexByte(line, '{')], strings.TrimSpace(line[i+1:]), true
		}
		if number, err := strconv.ParseFloat(value, 64); ok && err == nil {
			out[name] += number
		}
	}
	return out
}
