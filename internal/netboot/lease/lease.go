// Package lease is what DHCP servers of both IP families keep of the addresses that they give: pools in memory, and a
// journal of them on disk.
package lease
