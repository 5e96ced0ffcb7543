#!/usr/bin/env bash
# Runs the tests that call require.Swift, without the race detector.
set -euo pipefail
cd "$(dirname "$0")/.."
mapfile -t files < <(git ls-files '*_test.go' | xargs grep -l 'require\.Swift(t)')
tests=$(grep -hB1 'require\.Swift(t)' "${files[@]}" | sed -nE 's/^func (Test[A-Za-z0-9]+)\(.*/\1/p' | paste -sd'|')
gotest -timeout 15m -run "^($tests)\$" $(printf './%s\n' "${files[@]%/*}" | sort -u)
