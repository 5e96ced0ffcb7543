package peoplewire

// Paths of power and BMCs, below people's API.
const (
	PathPower    = "/coldrack/v1/power/"    // + MACHINE: GET, POST PowerRequest -> PowerResponse
	PathBMCProbe = "/coldrack/v1/bmc/probe" // POST ProbeRequest -> BMC
	PathBMCScan  = "/coldrack/v1/bmc/scan"  // POST ScanRequest -> a ScanLine for each BMC as it is found
)

// PowerRequest asks for a change of a machine's power.
type PowerRequest struct {
	// Action is on, off (at once), shutdown (by the operating system), cycle or reset.
	Action string `json:"action"`
	// Boot is what it boots next, once: network, http or disk; empty: as it is set up. Firmware is bios or uefi, or empty.
	Boot     string `json:"boot,omitempty"`
	Firmware string `json:"firmware,omitempty"`
	// Reason is for the audit log.
	Reason string `json:"reason,omitempty"`
}

// PowerResponse is what the BMC says of a machine's power: On, Off, PoweringOn, PoweringOff or Unknown.
type PowerResponse struct {
	Machine string `json:"machine"`
	// Was is the state before.
	Was   string `json:"was"`
	State string `json:"state"`
}

// ProbeRequest asks what a BMC is: a Machine's, with its credentials, or whatever is at an address, without.
type ProbeRequest struct {
	Machine string `json:"machine,omitempty"`
	Address string `json:"address,omitempty"`
	// AnyCertificate is for a first look at a Machine's BMC: it does not log in.
	AnyCertificate bool `json:"anyCertificate,omitempty"`
}

// ScanRequest asks for all BMCs of a network.
type ScanRequest struct {
	// Network is an address and a length.
	Network string `json:"network"`
	// CredentialsSecret is used to log in where something answers, for administrators.
	CredentialsSecret string `json:"credentialsSecret,omitempty"`
}

// ScanLine is one line of the answer to a scan. The last one has Done or Error.
type ScanLine struct {
	Found *BMC   `json:"found,omitempty"`
	Done  bool   `json:"done,omitempty"`
	Error string `json:"error,omitempty"`
}

// BMC is what is known of a BMC and its machine.
type BMC struct {
	Address  string `json:"address,omitempty"`
	Protocol string `json:"protocol"`
	// Version of the protocol; Vendor, Model and Firmware of the BMC.
	Version  string `json:"version,omitempty"`
	Vendor   string `json:"vendor,omitempty"`
	Model    string `json:"model,omitempty"`
	Firmware string `json:"firmware,omitempty"`
	// System is the one of Systems that the machine is.
	System  string   `json:"system,omitempty"`
	Systems []string `json:"systems,omitempty"`
	Power   string   `json:"power,omitempty"`
	Actions []string `json:"actions,omitempty"`
	Boots   []string `json:"boots,omitempty"`
	Quirks  []string `json:"quirks,omitempty"`
	// EventLog counts the entries of the system event log, where they were read.
	EventLog *int `json:"eventLog,omitempty"`
	// Certificate is the fingerprint of what it showed.
	Certificate string `json:"certificate,omitempty"`
	// Manufacturer, Product, Serial, UUID and MACs are the machine's; BMCMAC the BMC's own.
	Manufacturer string   `json:"manufacturer,omitempty"`
	Product      string   `json:"product,omitempty"`
	Serial       string   `json:"serial,omitempty"`
	UUID         string   `json:"uuid,omitempty"`
	MACs         []string `json:"macs,omitempty"`
	BMCMAC       string   `json:"bmcMAC,omitempty"`
	// Problem is why no more is known.
	Problem string `json:"problem,omitempty"`
}
