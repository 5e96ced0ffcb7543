#!/usr/bin/env bash
# Runs every fuzz target of the repository for a few seconds each: FUZZTIME (default 2s).
set -euo pipefail
cd "$(dirname "$0")/.."
grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u | while read -r package; do
	grep -rhoE '^func Fuzz[A-Za-z0-9_]+' "$package"/*_test.go | sed 's/^func //' | while read -r target; do
		printf 'fuzz %s %s\n' "$package" "$target"
		go test -run '^$' -fuzz "^${target}\$" -fuzztime "${FUZZTIME:-2s}" "$package" | grep -vE '^(fuzz: |PASS|ok )' || [ "${PIPESTATUS[0]}" -eq 0 ]
	done
done
