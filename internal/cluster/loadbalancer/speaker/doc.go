// Package speaker is a node's part in answering for a cluster's addresses. Speakers tell each other several times a second that
// they are there and what they may do (package loadbalancer says what follows from it); a node that is silent for a second and a
// half is gone, and its addresses are taken over. They need no API and no server for that: a speaker goes on with what it was told last.
package speaker
