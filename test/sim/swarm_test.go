package sim

import (
	"fmt"
	"os"
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
			if raceDetector && tt.Machines > 64 || raceDetector && tt.Link < Gigabit && tt.Link > 0 && tt.Kill == 0 || testing.Short() && tt.large {
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

// TestTable prints what the simulation says of racks of 40 with ten gigabits each, and how the image spreads.
func TestTable(t *testing.T) {
	if os.Getenv("COLDRACK_BENCH_SIM") == "" {
		t.Skip("a table for people: set COLDRACK_BENCH_SIM")
	}
	fmt.Printf("%8s %7s %7s %6s | %7s %7s %7s %7s %8s | %7s %9s\n", "machines", "link", "origin", "killed", "alone", "first", "median", "last", "written", "images", "into rack")
	for _, s := range []Swarm{
		{Machines: 1}, {Machines: 8}, {Machines: 64},
		{Machines: 64, Link: Gigabit / 10, Origin: Gigabit}, {Machines: 64, Link: Gigabit / 10, Origin: Gigabit / 10},
		{Machines: 64, Link: Gigabit / 10, Origin: Gigabit / 10, Kill: 1. / 3},
		{Machines: 300, Origin: Gigabit}, {Machines: 300}, {Machines: 300, Kill: 1. / 3}, {Machines: 300, Stagger: time.Minute},
		{Machines: 3000, Origin: Gigabit}, {Machines: 3000},
	} {
		r, err := s.Run()
		if err != nil {
			t.Error(err)
			continue
		}
		s = s.usual()
		fmt.Printf("%8d %6.1fG %6.1fG %6d | %6.1fs %6.2f× %6.2f× %6.2f× %7.2f× | %7.2f %9.2f  ", s.Machines, s.Link/Gigabit, s.Origin/Gigabit, r.Killed,
			r.Alone.Seconds(), ratio(r.First, r.Alone), ratio(r.Median, r.Alone), ratio(r.Last, r.Alone), ratio(r.Written, r.Alone), r.Images, r.IntoRack)
		for i := 0; i <= 100; i += 4 {
			fmt.Print(string([]rune(" ▁▂▃▄▅▆▇█")[int(8*r.Progress[i])]))
		}
		fmt.Println()
	}
}
