#!/usr/bin/env bash
# Runs every fuzz target of the repository for FUZZTIME each, as `go test -fuzztime` takes it. The default is a number
# of inputs, not a time: when time runs out while a worker answers, go test may report the end as a failure.
# Each package is built once, and as many targets run at once as there are processors.
# The fuzzer follows the branches of our own code. With FUZZTIME it follows those of all libraries, too: Go compiles them once more
# for that, more than a thousand packages.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
corpus=$(go env GOCACHE)/fuzz
export work corpus
guided=(-gcflags=coldrack.dev/...=-d=libfuzzer)
[ -z "${FUZZTIME:-}" ] || guided=(-fuzz .)
target() {
	local package=$1 binary=$2 name=$3 began=$SECONDS
	if ! (cd "$package" && "$binary" -test.run '^$' -test.fuzz "^$name\$" -test.fuzztime "${FUZZTIME:-10000x}" -test.parallel 1 -test.fuzzminimizetime 100x \
		-test.fuzzcachedir "$corpus/coldrack.dev/${package#./}") >"$binary.$name.log" 2>&1; then
		printf 'fuzz %s %s failed after %d s\n' "$package" "$name" $((SECONDS - began))
		cat "$binary.$name.log"
		return 1
	fi
	printf 'fuzz %s %s %d s\n' "$package" "$name" $((SECONDS - began))
}
export -f target
grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u | while read -r package; do
	binary=$work/$(tr / - <<<"${package#./}").test
	go test -c "${guided[@]}" -vet=off -o "$binary" "$package"
	grep -rhoE '^func Fuzz[A-Za-z0-9_]+' "$package"/*_test.go | sed "s|^func |$package $binary |"
done >"$work/targets"
xargs -P "$(nproc)" -L 1 bash -c 'target "$@"' target <"$work/targets"
