#!/usr/bin/env bash
# gobgp 4.8.0: when a router refuses a session by a NOTIFICATION in place of its OPEN, neither log nor events say so.
#
# Version      github.com/osrg/gobgp/v4 v4.8.0
# Expected     A router that does not accept a neighbour's OPEN (another ASN, a hold time that is too short) says why by the codes of a NOTIFICATION. An operator finds
#              them in the log or in an event of the peer, as gobgp has them for sessions that got further.
# Behaviour    On a connection that gobgp opened it answers "FSM error", as RFC 4271, section 8.2.2, wants, and tries again later. Its log has that answer alone, also
#              at level debug, and its events of peers have nothing: not the router's codes, and not that it was a NOTIFICATION.
# Seen         the router sent code 2 subcode 2 (bad peer AS); gobgp answered with code 5 subcode 1
#              lines of gobgp's log with the router's code: 0, events: 0
# Why it matters  "Why does the session not come up" has no answer on this side. BIRD 2.0.12 sends this to a neighbour whose ASN is another.
set -euo pipefail
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
cd "$work"
export GOFLAGS='-trimpath -mod=mod' CGO_ENABLED=0
cat >main.go <<'GO'
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/server"
)

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
}

// message reads one of BGP: 16 bytes marker, 2 bytes length, 1 byte type, and the rest.
func message(r io.Reader) (kind byte, body []byte, err error) {
	header := make([]byte, 19)
	if _, err = io.ReadFull(r, header); err != nil {
		return 0, nil, err
	}
	body = make([]byte, int(header[16])<<8+int(header[17])-19)
	_, err = io.ReadFull(r, body)
	return header[18], body, err
}

type lines struct {
	sync.Mutex
	bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.Lock()
	defer l.Unlock()
	return l.Buffer.Write(b)
}

func main() {
	router, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	log := &lines{}
	level := &slog.LevelVar{}
	level.Set(slog.LevelDebug)
	s := server.NewBgpServer(server.LoggerOption(slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: level})), level))
	go s.Serve()
	must(s.StartBgp(context.Background(), &api.StartBgpRequest{Global: &api.Global{Asn: 64512, RouterId: "192.0.2.1", ListenPort: -1}}))
	var mu sync.Mutex
	told := 0
	must(s.WatchEvent(context.Background(), server.WatchEventMessageCallbacks{OnPeerUpdate: func(e *apiutil.WatchEventMessage_PeerEvent, _ time.Time) {
		mu.Lock()
		defer mu.Unlock()
		if strings.Contains(e.Peer.State.DisconnectMessage, "code 2") {
			told++
		}
	}}, server.WatchPeer()))
	must(s.AddPeer(context.Background(), &api.AddPeerRequest{Peer: &api.Peer{
		Conf:      &api.PeerConf{NeighborAddress: "127.0.0.1", PeerAsn: 64513},
		Transport: &api.Transport{LocalAddress: "127.0.0.1", RemotePort: uint32(router.Addr().(*net.TCPAddr).Port)},
	}}))
	conn, err := router.Accept()
	must(err)
	kind, _, err := message(conn)
	must(err)
	if kind != 1 {
		must(fmt.Errorf("gobgp begins with a message of type %d", kind))
	}
	refusal := append(bytes.Repeat([]byte{0xff}, 16), 0, 21, 3, 2, 2)
	_, err = conn.Write(refusal)
	must(err)
	kind, body, err := message(conn)
	answer := "nothing"
	if err == nil && kind == 3 && len(body) >= 2 {
		answer = fmt.Sprintf("code %d subcode %d", body[0], body[1])
	}
	// The next attempt: by then it has logged and told all that it will of this one.
	_, err = router.Accept()
	must(err)
	inLog := 0
	log.Lock()
	for _, line := range strings.Split(log.String(), "\n") {
		if strings.Contains(line, "Code=2") || strings.Contains(line, "received notification") || strings.Contains(line, "code 2") {
			inLog++
		}
	}
	log.Unlock()
	mu.Lock()
	defer mu.Unlock()
	fmt.Printf("the router sent code 2 subcode 2 (bad peer AS); gobgp answered with %s\n", answer)
	fmt.Printf("lines of gobgp's log with the router's code: %d, events: %d\n", inLog, told)
	if answer != "code 5 subcode 1" || inLog > 0 || told > 0 {
		fmt.Println("the behaviour has changed")
		os.Exit(1)
	}
}
GO
cat >go.mod <<'MOD'
module finding

go 1.25.0

require github.com/osrg/gobgp/v4 v4.8.0
MOD
go mod tidy >/dev/null 2>&1
go run .
