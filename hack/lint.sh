#!/usr/bin/env bash
# The checks that need no running code. Each prints what it found and the script ends with a failure if any did.
set -uo pipefail
cd "$(dirname "$0")/.."
failed=0
check() { echo "lint: $1"; shift; "$@" || failed=1; }
unformatted() { local files; files=$(gofmt -l $(git ls-files '*.go')); [ -z "$files" ] || { echo "$files"; return 1; }; }
check gofmt unformatted
check "go vet" go vet ./...
check staticcheck staticcheck ./...
mapfile -t scripts < <(git ls-files '*.sh' .ci/run)
check shellcheck shellcheck -e SC2046 "${scripts[@]}"
check "go mod verify" sh -c 'go mod verify >/dev/null'
# The vulnerability database lives on the internet; where it cannot be reached that is said, not hidden.
if [ -n "${GOVULNDB:-}" ] || curl -fsS -m 5 -o /dev/null https://vuln.go.dev/index/db.json 2>/dev/null; then
	check govulncheck go run -modfile=hack/tools/go.mod golang.org/x/vuln/cmd/govulncheck ./...
else
	echo "lint: govulncheck not run: its database cannot be reached (set GOVULNDB to a mirror to run it)"
fi
exit $failed
