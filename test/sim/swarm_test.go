package sim

import (
	"testing"
	"time"
)

// What must hold in every rack, with room above what the simulation says today.
func TestManyMachinesTakeHardlyLongerThanOne(t *testing.T) {
	for name, tt := range map[string]struct {
		Swarm
		last   float64 // at most, in the time of a machine alone
		spread float64 // of the last to the first
		images float64
		rack   float64
		large  bool
	}{
		"one machine is not slowed down":            {Swarm: Swarm{Machines: 1}, last: 1.05, spread: 1, images: 1.01, rack: 1.01},
		"two machines":                              {Swarm: Swarm{Machines: 2}, last: 1.1, spread: 1.1, images: 2, rack: 2},
		"eight machines":                            {Swarm: Swarm{Machines: 8}, last: 1.2, spread: 1.15, images: 1.5, rack: 1.5},
		"64 at a tenth of a gigabit, origin, too":   {Swarm: Swarm{Machines: 64, Link: Gigabit / 10, Origin: Gigabit / 10}, last: 1.3, spread: 1.15, images: 1.3, rack: 3.5},
		"64 at a tenth of a gigabit, origin faster": {Swarm: Swarm{Machines: 64, Link: Gigabit / 10, Origin: Gigabit}, last: 1.3, spread: 1.2, images: 2, rack: 3.5},
		"a third dies":                              {Swarm: Swarm{Machines: 64, Link: Gigabit / 10, Origin: Gigabit / 10, Kill: 1. / 3}, last: 1.6, spread: 1.3, images: 2, rack: 4},
		"300 with an origin no faster than they":    {Swarm: Swarm{Machines: 300, Origin: Gigabit, Chunks: 512}, last: 1.5, spread: 1.3, images: 2, rack: 6},
		"300 that come over half a minute":          {Swarm: Swarm{Machines: 300, Chunks: 128, Stagger: 30 * time.Second}, last: 1.8, spread: 1.8, images: 5, rack: 5},
		"3,000":                                     {Swarm: Swarm{Machines: 3000, Chunks: 96, Origin: 2.5 * Gigabit}, last: 2.6, spread: 1.8, images: 5, rack: 9, large: true},
	} {
		t.Run(name, func(t *testing.T) {
			if raceDetector && tt.Machines > 64 || testing.Short() && tt.large {
				t.Skip("takes too long here")
			}
			r, err := tt.Run()
			if err != nil {
				t.Fatal(err)
			}
			if want := tt.Machines - int(tt.Kill*float64(tt.Machines)); r.Finished < want {
				t.Errorf("%d machines have it all, want %d", r.Finished, want)
			}
			t.Log(r)
			for what, v := range map[string]struct{ got, most float64 }{
				"time of the last, in that of one alone":   {ratio(r.Last, r.Alone), tt.last},
				"time of the last, in that of the first":   {ratio(r.Last, r.First), tt.spread},
				"images sent by the origin":                {r.Images, tt.images},
				"images that entered a rack":               {r.IntoRack, tt.rack},
				"share of bytes that were fetched in vain": {r.Twice, 0.02},
			} {
				if v.got > v.most {
					t.Errorf("%s: %.2f, want at most %.2f", what, v.got, v.most)
				}
			}
		})
	}
}

func TestARunRepeatsItself(t *testing.T) {
	var results [2]Result
	for i := range results {
		var err error
		if results[i], err = (Swarm{Machines: 20, Chunks: 40, Kill: 0.2, Seed: 7}).Run(); err != nil {
			t.Fatal(err)
		}
	}
	if results[0].String() != results[1].String() {
		t.Errorf("%s\n%s", results[0], results[1])
	}
}
