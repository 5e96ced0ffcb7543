package bmc

import (
	"fmt"
	"slices"
	"strings"
)

// step is one request that changes the power, in the words of a protocol, and the state that shows that it happened.
type step struct {
	request string
	until   State
}

// requests are what a protocol has for an action: the words that mean it, the best one first.
type requests map[Action][]string

// redfishRequests are ResetTypes of ComputerSystem (DSP2046).
func redfishRequests() requests {
	return requests{
		PowerOn:    {"On", "ForceOn"},
		PowerOff:   {"ForceOff"},
		Shutdown:   {"GracefulShutdown", "PushPowerButton"},
		PowerCycle: {"PowerCycle"},
		Reset:      {"ForceRestart"},
	}
}

// find is the best word that the BMC offers. With nothing said, the best is assumed.
func (r requests) find(a Action, offered []string) (string, bool) {
	for _, word := range r[a] {
		if len(offered) == 0 || slices.Contains(offered, word) {
			return word, true
		}
	}
	return "", false
}

// steps is how a machine gets from its state to what the action means, with what the BMC offers; nil offered: it does not
// say. No steps: it is so already.
func (r requests) steps(a Action, now State, offered []string) ([]step, error) {
	do := func(a Action, until State) ([]step, error) {
		word, ok := r.find(a, offered)
		if !ok {
			return nil, fmt.Errorf("it does not offer %q; it offers %s", a, strings.Join(offered, ", "))
		}
		return []step{{word, until}}, nil
	}
	switch {
	case now == On && a == PowerOn, now == Off && (a == PowerOff || a == Shutdown):
		return nil, nil
	case now == Off, a == PowerOn:
		return do(PowerOn, On)
	case a == PowerOff, a == Shutdown:
		return do(a, Off)
	case a == PowerCycle:
		if steps, err := do(PowerCycle, On); err == nil {
			return steps, nil
		}
		off, err := do(PowerOff, Off)
		if err != nil {
			return nil, err
		}
		on, err := do(PowerOn, On)
		return append(off, on...), err
	}
	return do(Reset, On)
}

// offers are the actions that a BMC can do.
func (r requests) offers(offered []string) []Action {
	var able []Action
	for _, a := range Actions() {
		if _, err := r.steps(a, On, offered); err == nil {
			able = append(able, a)
		}
	}
	if _, err := r.steps(PowerOn, Off, offered); err != nil {
		able = slices.DeleteFunc(able, func(a Action) bool { return a == PowerOn })
	}
	return able
}
