#!/usr/bin/env bash
# etcd 3.7.3: its help lists --discovery, the program does not know the flag.
#
# Version      go.etcd.io/etcd/server/v3 v3.7.3, built with Go 1.26
# Expected     A flag that `etcd --help` describes ("Discovery URL used to bootstrap the cluster for v2 discovery. Will be deprecated
#              in v3.7, and be decommissioned in v3.8") is accepted by that etcd, with a warning at most.
# Behaviour    The flag is gone already. etcd ends with its usage and "flag provided but not defined: -discovery"; the flags of
#              v3 discovery beside it (--discovery-token, --discovery-endpoints) exist.
# Seen         flag provided but not defined: -discovery
# Why it matters  Whoever decides by an etcd's own help text which flags a version takes, renders one that keeps the member from starting.
set -euo pipefail
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
cd "$work"
export GOFLAGS='-trimpath -mod=mod' CGO_ENABLED=0
go mod init findings.example/etcd >/dev/null 2>&1
go get go.etcd.io/etcd/server/v3@v3.7.3 >/dev/null 2>&1
go build -o etcd go.etcd.io/etcd/server/v3

./etcd --help >help.txt 2>&1 || true
grep -q -- "--discovery ''" help.txt || { echo "changed: the help no longer lists --discovery"; exit 1; }
# The address is valid and leads nowhere; the flag is refused before it is asked.
timeout 60 ./etcd --data-dir data --discovery http://127.0.0.1:9/token >out.txt 2>&1 && { echo "changed: etcd ran with --discovery"; exit 1; }
grep -q 'flag provided but not defined: -discovery' out.txt || { echo "changed: another answer:"; head -n 5 out.txt; exit 1; }
grep -A 1 -e "--discovery ''" help.txt
grep 'not defined' out.txt
