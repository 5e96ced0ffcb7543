#!/usr/bin/env bash
# Lists the packages whose tests `make check` runs: all but those that start an API server of their own, or simulate or
# measure many machines. In the others, what needs a privilege or another program skips.
set -euo pipefail
cd "$(dirname "$0")/.."
go list -test -f '{{if .ForTest}}{{.ForTest}}{{range .Deps}} {{.}}{{end}}{{end}}' ./... |
	awk '!/ k8s\.io\/apiserver\/pkg\/server( |$)/ { print $1 }' | sort -u | grep -vE '/test/(e2e|rack|sim|soak|swarm|bench)$'
