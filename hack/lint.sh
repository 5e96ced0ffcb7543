#!/usr/bin/env bash
# The checks that need no running code. Each prints what it found and the script ends with a failure if any did.
# usage: hack/lint.sh [quick]     quick: those that need nothing but Go
set -uo pipefail
cd "$(dirname "$0")/.." || exit
failed=0
check() { echo "lint: $1"; shift; "$@" || failed=1; }
unformatted() { local files; files=$(gofmt -l $(git ls-files '*.go')); [ -z "$files" ] || { echo "$files"; return 1; }; }
check gofmt unformatted
check "go vet" go vet ./...
[ "${1:-}" != quick ] || exit $failed
check staticcheck staticcheck ./...
mapfile -t scripts < <(git ls-files '*.sh' .ci/run)
check shellcheck shellcheck -S warning -e SC2046 "${scripts[@]}"
check "go mod verify" sh -c 'go mod verify >/dev/null'
# The vulnerability database lives on the internet (GOVULNDB names a mirror); where it cannot be reached
# that is said, not hidden. Of our own code, what is called counts, and fails the check.
database=${GOVULNDB:-https://vuln.go.dev}
echo "lint: govulncheck"
reachable=
report=$(timeout 120 govulncheck -db "$database" ./... 2>&1)
case $? in
0) reachable=1 ;;
3) echo "$report"; failed=1 reachable=1 ;;
124) echo "lint: govulncheck not run: its database did not answer in time" ;;
*) if grep -qiE 'dial tcp|lookup|no such host|timeout|403|forbidden|connection refused' <<<"$report"; then
	echo "lint: govulncheck not run: its database cannot be reached (set GOVULNDB to a mirror to run it)"
   else
	echo "$report"; failed=1
   fi ;;
esac
# Of the programs in bundles, every module that is compiled into them counts; what is known is said, and does not fail.
known() {
	local modules
	modules=$(cd "$1" && go list -deps -f '{{with .Module}}{{if .Version}}{{.Path}}@{{.Version}}{{else}}{{with .Replace}}{{.Path}}@{{.Version}}{{end}}{{end}}{{end}}' tool) || return
	sort -u <<<"$modules" | sed '/@v/!d' | timeout 300 xargs govulncheck -db "$database" -mode query -format json |
		sed -nE '/^    "id": /{s/.*"(GO-[^"]*)".*/\1/;h}; /^    "summary": /{s/^    "summary": "(.*)",?$/\1/;H}; /^          "name": /{s/.*: "(.*)",/\1/;G;s/^(.*)\n(.*)\n(.*)/\2 \1: \3/p}' |
		sort -u | sed "s#^#lint: $1 has #"
}
if [ -n "$reachable" ]; then
	for folder in recipes/modules/*/; do
		[ ! -f "$folder/go.mod" ] || ! grep -q '^tool' "$folder/go.mod" || check "vulnerabilities of ${folder%/}" known "${folder%/}"
	done
fi
exit $failed
