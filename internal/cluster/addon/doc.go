// Package addon decides everything about add-ons of a cluster that needs no cluster: which objects an add-on has, in which
// stages they are applied, what is remembered of them, what may be removed when they are dropped, and whether they are
// healthy. Package kubeapi carries it out. See DESIGN.md.
package addon
