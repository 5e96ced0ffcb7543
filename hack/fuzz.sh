#!/usr/bin/env bash
# Runs every fuzz target of the repository for FUZZTIME each, as `go test -fuzztime` takes it. The default is a number
# of inputs, not a time: when time runs out while a worker answers, go test may report the end as a failure.
set -euo pipefail
cd "$(dirname "$0")/.."
grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u | while read -r package; do
	grep -rhoE '^func Fuzz[A-Za-z0-9_]+' "$package"/*_test.go | sed 's/^func //' | while read -r target; do
		printf 'fuzz %s %s\n' "$package" "$target"
		go test -run '^$' -fuzz "^${target}\$" -fuzztime "${FUZZTIME:-10000x}" "$package" | grep -vE '^(fuzz: |PASS|ok )' || [ "${PIPESTATUS[0]}" -eq 0 ]
	done
done
