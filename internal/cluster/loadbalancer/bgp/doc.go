// Package bgp tells routers by BGP (RFC 4271) which addresses a node takes: a host route of each, with the node as next hop.
// Several nodes tell the same, and a router spreads connections over them (ECMP).
//
// The node opens the sessions, listens on no port, and takes no route from anybody. A session carries routes of its own address family.
// The protocol is gobgp's; what it does not tell about sessions that do not come up is found in sessions.go.
package bgp
