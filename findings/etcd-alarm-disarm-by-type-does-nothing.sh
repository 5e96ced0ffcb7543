#!/usr/bin/env bash
# etcd 3.7.3: AlarmDisarm with a type and no member reports success and disarms nothing.
#
# Version      go.etcd.io/etcd/client/v3 and server/v3 v3.7.3
# Expected     AlarmMember has two fields. With both empty, AlarmDisarm disarms all alarms of all members; so with only Alarm: NOSPACE set
#              it disarms the NOSPACE alarms of all members, or refuses a request that names no member.
# Behaviour    It returns no error and an empty list, and the alarm stays: member 0 is taken literally, and no member has that ID.
#              Writes stay refused although the database is small again. With the member's ID it works.
# Seen         disarm by type: error <nil>, 0 alarms disarmed, 1 left
#              disarm with the member's ID: 0 left
# Why it matters  A program that frees space in a full etcd and then disarms only what it has cured waits for ever.
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
	"net/url"
	"os"
	"path/filepath"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

func must[T any](v T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	return v
}

func main() {
	dir := os.Args[1]
	socket := url.URL{Scheme: "unix", Path: filepath.Join(dir, "sock")}
	label := []url.URL{{Scheme: "unix", Host: "one:0"}}
	cfg := embed.NewConfig()
	cfg.Dir, cfg.Name = filepath.Join(dir, "data"), "one"
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls, cfg.AdvertiseClientUrls = nil, label, label
	cfg.ListenClientUrls = []url.URL{socket}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.QuotaBackendBytes = 16 << 20
	cfg.LogLevel = "fatal"
	server := must(embed.StartEtcd(cfg))
	defer server.Close()
	<-server.Server.ReadyNotify()
	client := must(clientv3.New(clientv3.Config{Endpoints: []string{socket.String()}, Logger: zap.NewNop()}))
	defer client.Close()
	ctx := context.Background()

	// One key, written over and over: the history fills the quota.
	var err error
	for i := 0; err == nil && i < 1000; i++ {
		_, err = client.Put(ctx, "key", string(bytes.Repeat([]byte("x"), 256<<10)))
	}
	revision := must(client.Get(ctx, "key")).Header.Revision
	must(client.Compact(ctx, revision, clientv3.WithCompactPhysical()))
	must(client.Defragment(ctx, socket.String()))

	answer, err := client.AlarmDisarm(ctx, &clientv3.AlarmMember{Alarm: etcdserverpb.AlarmType_NOSPACE})
	disarmed := 0
	if answer != nil {
		disarmed = len(answer.Alarms)
	}
	left := must(client.AlarmList(ctx)).Alarms
	fmt.Printf("disarm by type: error %v, %d alarms disarmed, %d left\n", err, disarmed, len(left))
	if err != nil || disarmed != 0 || len(left) != 1 {
		fmt.Println("changed")
		os.Exit(1)
	}
	must(client.AlarmDisarm(ctx, (*clientv3.AlarmMember)(left[0])))
	left = must(client.AlarmList(ctx)).Alarms
	fmt.Printf("disarm with the member's ID: %d left\n", len(left))
	if len(left) != 0 {
		fmt.Println("changed")
		os.Exit(1)
	}
}
GO
go mod init findings.example/etcd >/dev/null 2>&1
go get go.etcd.io/etcd/server/v3@v3.7.3 go.etcd.io/etcd/client/v3@v3.7.3 >/dev/null 2>&1
go mod tidy >/dev/null 2>&1
go build -o disarm .
./disarm "$work"
