// Package loadbalancer decides which address a Service of type LoadBalancer gets, and which node of the cluster answers for
// the address on the segment. Both are pure functions: given the same, every node comes to the same.
//
// Its parts beside it carry that out: segment answers ARP and neighbour solicitations, bgp tells routers, speaker exchanges heartbeats with
// other nodes and takes addresses over, node connects both with the cluster's API. See DESIGN.md.
package loadbalancer
