// Package systemd speaks to the service manager of an installed node.
package systemd

import "context"

// UnitDir holds the units that are not part of a package.
const UnitDir = "/etc/systemd/system"

// Manager is the system's service manager.
type Manager interface {
	// Do runs one of systemctl's verbs and returns when it has had its effect; the error says what systemd said.
	// What is enabled or disabled is known to systemd only after a daemon-reload.
	Do(ctx context.Context, verb string, units ...string) error
	// State reads a unit's state.
	State(ctx context.Context, unit string) (UnitState, error)
	// Log is the end of a unit's log, oldest line first.
	Log(ctx context.Context, unit string, lines int) []string
}

// UnitState is what systemd says of a unit, in its words.
type UnitState struct {
	Load       string // loaded, not-found, masked, bad-setting, error
	Active     string // active, inactive, failed, activating, deactivating, reloading
	Sub        string
	File       string // enabled, disabled, static, ... ; empty without a file
	Result     string // success, exit-code, ...
	Restarts   string
	NeedReload bool // its files changed since systemd read them
}

func (s UnitState) String() string {
	text := s.Active + " (" + s.Sub + ")"
	if s.Result != "" && s.Result != "success" {
		text += ", result " + s.Result
	}
	if s.Restarts != "" && s.Restarts != "0" {
		text += ", restarted " + s.Restarts + " times"
	}
	return text
}
