package rehearse

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"coldrack.dev/api/v1alpha1"
	"coldrack.dev/internal/contract/manifest"
	"coldrack.dev/internal/netboot/boot"
)

func TestScriptsOfTheServerAreUnderstood(t *testing.T) {
	target := boot.Target{Machine: "m", KernelURL: "http://s/k", InitrdURL: "http://s/i", LocalURL: "http://s/local.efi", RetryURL: "http://s/boot.ipxe", Args: []string{"coldrack.nonce=x"}}
	for name, tt := range map[string]struct {
		plan boot.Plan
		want bootScript
	}{
		"discovery": {boot.Plan{Action: v1alpha1.BootDiscover, Reason: "new"},
			bootScript{kernel: "http://s/k", initrd: "http://s/i", args: "initrd=initrd.img coldrack.nonce=x", says: "Coldrack: m: Discover: new"}},
		"its own disk": {boot.Plan{Action: v1alpha1.BootLocalDisk, Local: boot.LocalUEFI, Reason: "installed"},
			bootScript{local: "http://s/local.efi", says: "Coldrack: m: LocalDisk: installed"}},
		"refusal": {boot.Plan{Action: v1alpha1.BootRefuse, Reason: "no bundle"}, bootScript{retry: true, says: "Coldrack: m: Refuse: no bundle"}},
	} {
		t.Run(name, func(t *testing.T) {
			text, err := boot.Script(tt.plan, target)
			if err != nil {
				t.Fatal(err)
			}
			got, err := parseScript(text)
			if err != nil || got != tt.want {
				t.Errorf("got %+v (%v), want %+v", got, err, tt.want)
			}
		})
	}
	for _, text := range []string{"", "<html>", "#!ipxe\necho hello\n"} {
		if _, err := parseScript(text); err == nil {
			t.Errorf("%q was accepted", text)
		}
	}
}

func TestFleetIsVariedAndRepeatable(t *testing.T) {
	o := FleetOptions{Machines: 2000, Seed: 7, Ramp: 10 * time.Second, SlowShare: 0.1, SlowRate: 1000, Known: []Known{{MACs: []string{"02:00:00:00:00:01"}, Serial: "S1"}}}
	machines, again := Fleet(o), Fleet(o)
	macs, vendors, uuids := map[string]bool{}, map[string]int{}, map[string]int{}
	slow, last := 0, time.Duration(0)
	for i, m := range machines {
		if m.PowerOn != again[i].PowerOn || m.Inventory.Identifiers.UUID != again[i].Inventory.Identifiers.UUID {
			t.Fatalf("machine %d differs the second time", i)
		}
		for _, mac := range m.Inventory.Identifiers.MACs {
			if macs[mac] {
				t.Fatalf("MAC %s comes twice", mac)
			}
			macs[mac] = true
		}
		if m.mac()[0]&1 != 0 {
			t.Fatalf("MAC %s is a group's", m.mac())
		}
		vendors[m.Inventory.System.Vendor]++
		uuids[m.Inventory.Identifiers.UUID]++
		if m.Slow {
			slow++
		}
		last = max(last, m.PowerOn)
	}
	if machines[0].Inventory.NICs[0].MAC != "02:00:00:00:00:01" || machines[0].Inventory.Identifiers.Serial != "S1" {
		t.Errorf("the first machine is not the one of the plan: %+v", machines[0].Inventory.Identifiers)
	}
	if len(vendors) < 4 || uuids[duplicateUUID] < 20 || math.Abs(float64(slow)-200) > 60 || last < 9*time.Second || last > 10*time.Second {
		t.Errorf("%d vendors, %d with the duplicate UUID, %d slow, the last is switched on at %s", len(vendors), uuids[duplicateUUID], slow, last)
	}
}

func TestQuantiles(t *testing.T) {
	var hundred []time.Duration
	for i := range 100 {
		hundred = append(hundred, time.Duration(100-i)*time.Second)
	}
	for name, tt := range map[string]struct {
		in   []time.Duration
		want Quantiles
	}{
		"nothing":  {nil, Quantiles{}},
		"a single": {[]time.Duration{5}, Quantiles{1, 5, 5, 5}},
		"hundred":  {hundred, Quantiles{100, 50 * time.Second, 99 * time.Second, 100 * time.Second}},
	} {
		if got := quantiles(tt.in); got != tt.want {
			t.Errorf("%s: %+v, want %+v", name, got, tt.want)
		}
	}
}

func TestRecord(t *testing.T) {
	r := NewRecord(3, time.Second)
	for _, e := range []Event{
		{At: 1 * time.Second, Machine: 0, Phase: DHCP},
		{At: 2 * time.Second, Machine: 1, Phase: DHCP},
		{At: 2 * time.Second, Machine: 0, What: tookLease, Took: time.Second, Repeats: 2},
		{At: 5 * time.Second, Machine: 0, Phase: Ready},
		{At: 6 * time.Second, Machine: 1, Phase: Lost, Reason: "no answer from 10.0.0.1:80"},
		{At: 6 * time.Second, Machine: 2, Phase: Waiting, Reason: "run: coldrack approve m-0123456789ab"},
		{At: 7 * time.Second, Bytes: 100},
		{At: 7 * time.Second, Machine: 99, Phase: Ready},
	} {
		r.Add(e)
	}
	if r.Ended() || !r.Stuck(20*time.Second, 10*time.Second) || r.Stuck(10*time.Second, 10*time.Second) {
		t.Errorf("ended %v, stuck after 20 s %v, after 10 s %v", r.Ended(), r.Stuck(20*time.Second, 10*time.Second), r.Stuck(10*time.Second, 10*time.Second))
	}
	r.Finish()
	want := []Reason{{Lost, "no answer from ADDRESS", 1}, {Waiting, "run: coldrack approve NAME", 1}}
	if got := r.Reasons(); !slices.Equal(got, want) {
		t.Errorf("reasons %v", got)
	}
	if got := quantiles(r.samples[tookAll]); got.Max != 4*time.Second {
		t.Errorf("ready after %s", got.Max)
	}
	for _, p := range r.points {
		sum := 0
		for _, n := range p.Counts {
			sum += n
		}
		if sum != 3 {
			t.Errorf("%d machines at %s", sum, p.At)
		}
	}
	if r.repeats != 2 || r.bytes != 100 {
		t.Errorf("%d repeats, %d bytes", r.repeats, r.bytes)
	}
}

func TestPlan(t *testing.T) {
	const subnet = "apiVersion: coldrack.dev/v1alpha1\nkind: Subnet\nmetadata: {name: a}\nspec: {cidr: 10.0.0.0/24, gateway: 10.0.0.1, discovery: 10.0.0.2-10.0.0.99, static: 10.0.0.101-10.0.0.250}\n---\n"
	const machine = "apiVersion: coldrack.dev/v1alpha1\nkind: Machine\nmetadata: {name: n1}\nspec: {approved: true, identifiers: {macs: ['52:54:00:00:00:01']}, network: {subnet: a, address: 10.0.0.100}}\n---\n"
	const policy = "apiVersion: coldrack.dev/v1alpha1\nkind: EnrollmentPolicy\nmetadata: {name: p}\nspec: {approve: true}\n---\n"
	for name, tt := range map[string]struct {
		text     string
		machines int
		server   string
		warns    []string
		fails    string
	}{
		"the server takes an address that nobody has":       {subnet + policy, 10, "10.0.0.100/24", nil, ""},
		"a machine's own address is not the server's":       {subnet + machine, 10, "10.0.0.251/24", nil, ""},
		"ranges that are too small are told":                {subnet + policy, 120, "10.0.0.100/24", []string{"the discovery range of subnet a has 98 addresses for 120 machines"}, ""},
		"a plan that approves nothing is told":              {subnet, 1, "10.0.0.100/24", []string{"no EnrollmentPolicy and no Machine of the plan approves anything: machines will wait in discovery"}, ""},
		"without a subnet nothing can boot":                 {policy, 1, "", nil, "no IPv4 Subnet"},
		"the plan that is used without one has enough room": {defaultManifest(20000), 20000, "10.64.0.1/14", nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			documents, err := manifest.Parse("plan", strings.TrimSuffix(tt.text, "---\n"))
			if err != nil {
				t.Fatal(err)
			}
			p, err := readPlan(documents, tt.machines)
			if tt.fails != "" {
				if err == nil || !strings.Contains(err.Error(), tt.fails) {
					t.Fatalf("error %v, want %q", err, tt.fails)
				}
				return
			}
			if err != nil || p.server.String() != tt.server || !slices.Equal(p.warnings, tt.warns) {
				t.Errorf("server %s, warnings %q: %v", p.server, p.warnings, err)
			}
		})
	}
}

func TestPlotIsWellFormed(t *testing.T) {
	r := &Result{Machines: 10, Ready: 9, Lost: 1, FinishedAt: 8 * time.Second, points: []Point{
		{0, [phasesCount]int{10}}, {4 * time.Second, [phasesCount]int{0, 4, 3, 3}}, {9 * time.Second, [phasesCount]int{9: 9, 10: 1}},
	}, samples: []Sample{{}, {At: time.Second, CPU: time.Second, Sent: 1e9}, {At: 2 * time.Second, CPU: 2 * time.Second, Sent: 3e9}}}
	for name, result := range map[string]*Result{"a rehearsal": r, "nothing": {}} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			if err := result.Plot(&b); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(b.String(), "NaN") || strings.Contains(b.String(), "Inf") {
				t.Errorf("not numbers:\n%s", b.String())
			}
			for d := xml.NewDecoder(&b); ; {
				if _, err := d.Token(); errors.Is(err, io.EOF) {
					break
				} else if err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func TestBottleneck(t *testing.T) {
	base := Result{Machines: 100, Ready: 100, FinishedAt: 100 * time.Second, Ramp: 10 * time.Second, Server: ServerUse{Cores: 2, SentBytes: 1 << 30}}
	for name, tt := range map[string]struct {
		change func(*Result)
		want   string
	}{
		"the server is busy":         {func(r *Result) { r.Server.MeanCPU, r.Server.RackMeanCPU = 1.4, 0.5 }, "the server's processors"},
		"the simulation is busy":     {func(r *Result) { r.Server.MeanCPU, r.Server.RackMeanCPU = 0.6, 1.3 }, "this host, not the server"},
		"the ramp is slow":           {func(r *Result) { r.Ramp = 95 * time.Second }, "how fast the machines are switched on"},
		"firmware waits for answers": {func(r *Result) { r.Repeats = 200 }, "waiting: firmware sent 200 messages again"},
		"nothing is busy":            {func(*Result) {}, "links and pauses"},
		"machines wait for decisions": {func(r *Result) { r.Spent = map[Phase]time.Duration{Waiting: 9 * time.Second, Installing: time.Second} },
			"the server's decisions: machines spent 9.0 s of 10.0 s waiting"},
		"nobody became ready": {func(r *Result) { r.Ready = 0 }, "see the reasons"},
	} {
		t.Run(name, func(t *testing.T) {
			r := base
			tt.change(&r)
			if got := bottleneck(&r); !strings.Contains(got, tt.want) {
				t.Errorf("%q lacks %q", got, tt.want)
			}
		})
	}
}
