package peoplewire

import "time"

// DiscoveryToken is an etcd cluster whose members look for each other. On PathDiscovery:
//
//	GET                  -> []DiscoveryToken, the newest first
//	POST NewDiscovery    -> DiscoveryToken
//	DELETE ?token=TOKEN  -> DiscoveryToken
//
// Viewers see the first characters of tokens only.
type DiscoveryToken struct {
	Token   string    `json:"token"`
	Size    int       `json:"size"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	// By is who made it: a person, or the address of a machine.
	By string `json:"by"`
	// State is forming, complete or ended.
	State   string            `json:"state"`
	Members []DiscoveryMember `json:"members"`
	// Endpoints are HOST:PORT under which machines reach the server.
	Endpoints []string `json:"endpoints"`
}

// What DiscoveryToken.State may be.
const (
	DiscoveryForming  = "forming"
	DiscoveryComplete = "complete"
	DiscoveryEnded    = "ended"
)

// DiscoveryMember is a member of etcd that has registered.
type DiscoveryMember struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	// PeerURLs are where other members reach it.
	PeerURLs []string  `json:"peerURLs"`
	From     string    `json:"from"`
	At       time.Time `json:"at"`
}

// NewDiscovery asks for a token.
type NewDiscovery struct {
	Size int `json:"size"`
	// TTL in seconds; 0: the server's default, a week.
	TTL int64 `json:"ttl,omitempty"`
}
