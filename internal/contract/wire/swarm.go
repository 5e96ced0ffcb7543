package wire

// PathSwarm is open to sessions and nodes. An agent that gets an answer with Off, or an error that is final, takes
// everything from the origin.
const PathSwarm = "/v1/swarm" // POST SwarmAnnounce -> SwarmAnswer

// What machines ask each other, over TLS with the certificates that the machine API gave them. Either side takes
// only certificates of the machine CA, and the asking one only the key that the server named. Digests are written
// with a slash instead of the colon: /swarm/sha256/HEX/12.
const (
	// SwarmChunks is the path below which a blob's chunks are: GET SwarmChunks + DIGEST/NUMBER -> the stored bytes.
	// 404: not here (any more); 503: busy, ask somebody else.
	SwarmChunks = "/swarm/"
	// SwarmHave as the last element instead of a number asks what is there: GET ?count=N&wait=MILLISECONDS -> a
	// bit for each chunk, the lowest number in the lowest bit of the first byte. The answer comes when more than N
	// chunks are there or the wait is over.
	SwarmHave = "have"
	// HeaderSwarmCount in a request is how many chunks the asker has: those who are behind are preferred.
	HeaderSwarmCount = "Coldrack-Count"
	// HeaderSwarmLoad in an answer is how many chunks are being given at the moment.
	HeaderSwarmLoad = "Coldrack-Load"
)

// ArgSwarm is a kernel command line key; "off" makes the installer fetch from the origin alone.
const ArgSwarm = "coldrack.swarm"

// SwarmAnnounce says what a machine has of a blob, and asks for peers.
type SwarmAnnounce struct {
	Blob   string `json:"blob"`   // digest
	Chunks int    `json:"chunks"` // of the blob
	Have   []byte `json:"have"`   // a bit for each chunk, as in SwarmHave's answer
	// Port where this machine serves, at the address from which the announcement comes; 0 if it does not.
	Port int `json:"port,omitempty"`
	// Wants asks for leave to fetch from the origin; Idle says that no peer gives anything at the moment.
	Wants bool `json:"wants,omitempty"`
	Idle  bool `json:"idle,omitempty"`
	// Returned are chunks that were to be fetched from the origin and were not.
	Returned []int `json:"returned,omitempty"`
	// Lost peers cannot be reached. Bad ones sent something else than the digest promises.
	Lost []string `json:"lost,omitempty"`
	Bad  []string `json:"bad,omitempty"`
	// Known is the PeersVersion that the machine has.
	Known uint32 `json:"known,omitempty"`
	// Leaving is the last announcement.
	Leaving bool `json:"leaving,omitempty"`
}

// SwarmAnswer tells a machine what to do until its next announcement.
type SwarmAnswer struct {
	// Off says that this server wants no swarm.
	Off bool `json:"off,omitempty"`
	// Peers replace those known before; they are left out while PeersVersion is the known one.
	Peers        []SwarmPeer `json:"peers,omitempty"`
	PeersVersion uint32      `json:"peersVersion,omitempty"`
	// Alone says to fetch everything from the origin for now, and to go on announcing.
	Alone bool `json:"alone,omitempty"`
	// Fetch are the chunks to fetch from the origin now.
	Fetch []int `json:"fetch,omitempty"`
	// AgainMillis is when to announce at the latest, AskMillis when to ask for the origin again.
	AgainMillis int `json:"againMillis,omitempty"`
	AskMillis   int `json:"askMillis,omitempty"`
	// UploadLimit in bytes per second of what the machine gives to others; 0 for none.
	UploadLimit int64 `json:"uploadLimit,omitempty"`
}

// SwarmPeer is a machine from which chunks may be had.
type SwarmPeer struct {
	Machine string `json:"machine"`
	Address string `json:"address"` // HOST:PORT
	// Key is "sha256:" and the hex SHA-256 of the SubjectPublicKeyInfo that its certificate must have.
	Key string `json:"key"`
	// Near says that it is in the same rack.
	Near bool `json:"near,omitempty"`
}
