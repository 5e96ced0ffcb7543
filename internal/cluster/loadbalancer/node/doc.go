// Package node connects a node's speaker with the cluster's API: it tells the speaker which nodes there are, which addresses are
// to be answered for and what this node may do, and on one node of the cluster, chosen by a Lease, it gives Services their addresses.
//
// It works without Coldrack's server. While the API is away, what was known last stays so.
package node
