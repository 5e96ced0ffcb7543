// Package segment makes a host answer for addresses that none of its interfaces has: by ARP (RFC 826) for IPv4, by neighbour
// advertisements (RFC 4861) for IPv6. When it takes an address it tells the segment without being asked, so that hosts which had
// another one's hardware address send to this one from then on.
//
// The addresses are on no interface. A packet for one of them is taken by the node's service proxy, which gives it another
// destination before the kernel looks where it belongs.
package segment
