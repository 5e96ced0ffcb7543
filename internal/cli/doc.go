// Package cli holds what the verbs of coldrack share and what can be said without a terminal or a
// server: tables, how a machine is summed up in one line, which machines are stuck, and the picture
// that `coldrack watch` draws. Everything here is a function of its arguments.
package cli
