#!/usr/bin/env bash
# kube-apiserver 1.37.2: told to end, it refuses connections at once, and is not gone for a minute while one watch is open.
#
# Version      k8s.io/kubernetes v1.37.2 (kube-apiserver), go.etcd.io/etcd/server/v3 v3.7.3
# Expected     A watch never ends by itself, so a server that was told to end (SIGTERM) closes it and is gone within seconds, or goes on
#              answering for as long as it waits.
# Behaviour    The listener is closed within a second. The process then waits 60 s for the watch and does nothing else. Two flags that
#              do not speak of that end it: --shutdown-send-retry-after=true, whose help is about answers to late requests, also
#              makes the wait 2 s; --shutdown-watch-termination-grace-period=1s closes watches.
# Seen         no watch: connections refused after 0 s, gone after 1 s
#              one watch: connections refused after 0 s, gone after 60 s
#              one watch, --shutdown-send-retry-after=true: connections refused after 0 s, gone after 2 s
#              one watch, --shutdown-watch-termination-grace-period=1s: connections refused after 0 s, gone after 1 s
# Why it matters  Every kubelet and every controller watches. As a static pod the server is replaced when it is gone: with default flags
#              the API of a single control plane is away for the pod's whole grace period (30 s) at each change of its manifest.
set -euo pipefail
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; chmod -R u+w "$work"; rm -rf "$work"' EXIT
cd "$work"
export GOFLAGS='-trimpath -mod=mod' CGO_ENABLED=0
mkdir apiserver etcd
# The libraries of Kubernetes have a version of their own, which its go.mod does not name.
libraries() {
	local dir
	dir=$(go mod download -json k8s.io/kubernetes@v1.37.2 | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
	sed -nE 's#^\t(k8s.io/[a-z-]+) => ./staging/.*#-replace=\1=\1@v0.37.2#p' "$dir/go.mod"
}
(cd apiserver && go mod init finding && go mod edit $(libraries) && go get -tool k8s.io/kubernetes/cmd/kube-apiserver@v1.37.2 && go build -ldflags '-s -w' -o ../kube-apiserver k8s.io/kubernetes/cmd/kube-apiserver) >build.log 2>&1 || { cat build.log; exit 2; }
(cd etcd && go mod init finding && go get -tool go.etcd.io/etcd/server/v3@v3.7.3 && go build -ldflags '-s -w' -o ../etcd-server go.etcd.io/etcd/server/v3) >build.log 2>&1 || { cat build.log; exit 2; }
openssl genrsa -out sa.key 2048 2>/dev/null
openssl rsa -in sa.key -pubout -out sa.pub 2>/dev/null
echo 'secret,admin,1,system:masters' >tokens.csv
free_port() { python3 -c 'import socket; s=socket.socket(); s.bind(("127.0.0.1",0)); print(s.getsockname()[1])'; }
client=$(free_port) peer=$(free_port)
./etcd-server --data-dir data --listen-client-urls "http://127.0.0.1:$client" --advertise-client-urls "http://127.0.0.1:$client" \
	--listen-peer-urls "http://127.0.0.1:$peer" >etcd.log 2>&1 &
now() { date +%s; }

# run WATCHES FLAG...: prints after how many seconds connections are refused, and the process is gone
run() {
	local watches=$1 port refused gone began server
	shift
	port=$(free_port)
	./kube-apiserver --etcd-servers "http://127.0.0.1:$client" --secure-port "$port" --bind-address 127.0.0.1 --cert-dir certs \
		--service-cluster-ip-range 10.96.0.0/16 --service-account-issuer https://example.org --service-account-key-file sa.pub \
		--service-account-signing-key-file sa.key --token-auth-file tokens.csv --authorization-mode RBAC "$@" >api.log 2>&1 &
	server=$!
	ask() { curl --silent --insecure --no-buffer --header 'Authorization: Bearer secret' "https://127.0.0.1:$port$1"; }
	for _ in $(seq 600); do
		[ "$(ask /readyz)" != ok ] || break
		kill -0 "$server" || { cat api.log; exit 2; }
		sleep 0.2
	done
	if [ "$watches" -gt 0 ]; then
		ask '/api/v1/namespaces?watch=1' >watch.log &
		until [ -s watch.log ]; do sleep 0.1; done
	fi
	began=$(now)
	kill -TERM "$server"
	while ask /version >/dev/null; do sleep 0.1; done
	refused=$(($(now) - began))
	wait "$server" || true
	gone=$(($(now) - began))
	rm -f watch.log
	echo "$watches watches, flags [$*]: connections refused after $refused s, gone after $gone s"
	results+=("$refused $gone")
}
results=()
run 0
run 1
run 1 --shutdown-send-retry-after=true
run 1 --shutdown-watch-termination-grace-period=1s
fail() { echo "the behaviour has changed: $1"; exit 1; }
read -r refused gone <<<"${results[0]}"; [ "$gone" -lt 20 ] || fail "without a watch it takes $gone s"
read -r refused gone <<<"${results[1]}"; [ "$refused" -lt 10 ] && [ "$gone" -ge 50 ] || fail "with a watch: refused after $refused s, gone after $gone s"
read -r refused gone <<<"${results[2]}"; [ "$gone" -lt 20 ] || fail "with --shutdown-send-retry-after: gone after $gone s"
read -r refused gone <<<"${results[3]}"; [ "$gone" -lt 20 ] || fail "with --shutdown-watch-termination-grace-period: gone after $gone s"
