package peoplewire

// Names are what the server answers by DNS.
type Names struct {
	Zones      []Zone          `json:"zones"`
	Collisions []NameCollision `json:"collisions"`
}

// Zone is one zone, forward or reverse.
type Zone struct {
	// Name with a dot at its end.
	Name   string `json:"name"`
	Serial uint32 `json:"serial"`
	// Partial: the zone has other addresses, too, which are not of a Subnet.
	Partial bool         `json:"partial,omitempty"`
	Records []NameRecord `json:"records"`
	// File is the zone in the form of RFC 1035, section 5.
	File string `json:"file"`
}

// NameRecord is one record.
type NameRecord struct {
	Zone  string `json:"zone"`
	Name  string `json:"name"`
	Type  string `json:"type"`
	TTL   uint32 `json:"ttl"`
	Value string `json:"value"`
	// Source is whose name it is.
	Source string `json:"source,omitempty"`
}

// NameCollision is a name that two want. Holder has it.
type NameCollision struct {
	Name   string `json:"name"`
	Holder string `json:"holder"`
	Loser  string `json:"loser"`
}
