package wire

// PathUnits is open to nodes: POST UnitReport ?version=V&wait=SECONDS -> UnitAssignment (long poll).
const PathUnits = "/v1/units"

// UnitReport says which units of the server a machine has, all of them.
type UnitReport struct {
	Units []UnitState `json:"units,omitempty"`
	// Unknown: the machine cannot say what it has. Nothing follows from it.
	Unknown bool `json:"unknown,omitempty"`
}

// UnitState is a unit on a machine.
type UnitState struct {
	Name string `json:"name"`
	// Digest of the text that systemd runs it by.
	Digest string `json:"digest,omitempty"`
	// Active and Sub are systemd's words.
	Active string `json:"active,omitempty"`
	Sub    string `json:"sub,omitempty"`
	// Message says what is wrong.
	Message string `json:"message,omitempty"`
	// Leaving: the machine was told that it is no longer its own, and is stopping it.
	Leaving bool `json:"leaving,omitempty"`
	// Unknown: what the machine has noted of it cannot be read. It goes on as it is, and is not stopped when it is told to.
	Unknown bool `json:"unknown,omitempty"`
}

// UnitAssignment says what a machine shall run. What it has and what is neither in Run nor in Drop stays as it is.
type UnitAssignment struct {
	// Version stands for Run.
	Version string `json:"version"`
	// Machine that this is for.
	Machine string     `json:"machine"`
	Run     []UnitFile `json:"run,omitempty"`
	// Drop are units that the machine has reported and that are no longer its own: it stops and removes them.
	Drop []UnitDrop `json:"drop,omitempty"`
}

// UnitFile is a unit that a machine shall have.
type UnitFile struct {
	Name string `json:"name"`
	Text string `json:"text"`
	// Digest of Text.
	Digest string `json:"digest"`
	// Launch: it is to be started, too, and at each boot.
	Launch bool `json:"launch,omitempty"`
}

// UnitDrop is a unit that is no longer the machine's.
type UnitDrop struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}
