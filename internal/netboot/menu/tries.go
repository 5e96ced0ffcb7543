package menu

import (
	"sync"
	"time"
)

const (
	// wrongPerMachine and wrongPerSubnet are how many wrong PINs may come in a row.
	wrongPerMachine = 3
	wrongPerSubnet  = 10
	// perTry is after how long one more wrong PIN may come. A PIN of six digits lasts for a year on average.
	perTry = time.Minute
	// mostMachines bounds what is remembered. Whoever sends many wrong PINs as many machines meets the limit of the Subnet long before.
	mostMachines = 4096
)

// Tries limits wrong PINs. Each Subnet, and each machine in it, has a number of them, and gets one more a minute. Whoever uses them up keeps others
// of the Subnet from the PIN, and from nothing else: people's API is not concerned.
type Tries struct {
	mu   sync.Mutex
	full map[string]time.Time // when all tries are there again, by key
}

// Check looks at a PIN, if tries are left.
func (t *Tries) Check(typed string, p *Policy, machine string, now time.Time) PINState {
	t.mu.Lock()
	defer t.mu.Unlock()
	subnet, one := "subnet/"+p.Subnet, "machine/"+p.Subnet+"/"+machine
	if t.left(subnet, wrongPerSubnet, now) <= 0 || t.left(one, wrongPerMachine, now) <= 0 {
		return PINLocked
	}
	if SamePIN(typed, p.PIN) {
		return PINRight
	}
	t.use(subnet, now)
	t.use(one, now)
	return PINWrong
}

func (t *Tries) left(key string, all int, now time.Time) int {
	missing := t.full[key].Sub(now)
	if missing <= 0 {
		return all
	}
	return all - int((missing+perTry-1)/perTry)
}

func (t *Tries) use(key string, now time.Time) {
	if t.full == nil {
		t.full = map[string]time.Time{}
	}
	if _, known := t.full[key]; !known && len(t.full) >= mostMachines {
		for k, full := range t.full {
			if !full.After(now) {
				delete(t.full, k)
			}
		}
		if len(t.full) >= mostMachines {
			return // the Subnets' limits hold
		}
	}
	from := t.full[key]
	if from.Before(now) {
		from = now
	}
	t.full[key] = from.Add(perTry)
}
