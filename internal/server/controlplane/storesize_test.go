package controlplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"k8s.io/apiserver/pkg/storage/storagebackend"
)

func TestWhenTheStoreIsMadeSmaller(t *testing.T) {
	const gib = 1 << 30
	for name, tt := range map[string]struct {
		size       StoreSize
		defragment bool
		room       bool
	}{
		"a small one":                             {StoreSize{File: 90 << 20, InUse: 1 << 20, Quota: 2 * gib}, false, true},
		"most of it is in use":                    {StoreSize{File: gib, InUse: 700 << 20, Quota: 2 * gib}, false, true},
		"most of it is free":                      {StoreSize{File: gib, InUse: 300 << 20, Quota: 2 * gib}, true, true},
		"full with something free":                {StoreSize{File: 2 * gib, InUse: 2*gib - 1<<20, Quota: 2 * gib, Full: true}, true, false},
		"full with nothing free":                  {StoreSize{File: 2 * gib, InUse: 2 * gib, Quota: 2 * gib, Full: true}, false, false},
		"full and already small (another did so)": {StoreSize{File: gib, InUse: gib, Quota: 2 * gib, Full: true}, false, true},
	} {
		if got := tt.size.defragment(); got != tt.defragment {
			t.Errorf("%s: defragment %v, want %v", name, got, tt.defragment)
		}
		if got := tt.size.hasRoom(); got != tt.room {
			t.Errorf("%s: has room %v, want %v", name, got, tt.room)
		}
	}
}

// A store that was full takes writes again once there is room, without a person and without a restart.
func TestAFullStoreHeals(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	ctx := context.Background()
	endpoint, _, stop, err := startEtcd(ctx, log, t.TempDir(), 8<<20)
	check(t, err)
	defer stop()
	client, err := dialEtcd(ctx, storagebackend.TransportConfig{ServerList: []string{endpoint}}, "/coldrack")
	check(t, err)
	defer client.Close()
	keeper := &storeKeeper{client: client, endpoint: endpoint, log: log}
	check(t, keeper.look(ctx))
	if size := keeper.size(); size.Quota != 8<<20 || size.Full || keeper.Check(nil) != nil {
		t.Fatalf("an empty store: %+v", size)
	}

	// Written until not even defragmentation makes room.
	written := 0
	for !keeper.size().Full {
		for err = nil; err == nil; written++ {
			if written > 1000 {
				t.Fatal("the store does not fill up")
			}
			_, err = client.Put(ctx, fmt.Sprintf("/stranger/%d", written), string(bytes.Repeat([]byte("x"), 256<<10)))
		}
		if !errors.Is(err, rpctypes.ErrNoSpace) {
			t.Fatal(err)
		}
		check(t, keeper.look(ctx))
	}
	if keeper.Check(nil) == nil {
		t.Error("a full store is ready")
	}
	if _, err := client.Put(ctx, "/machine", "x"); !errors.Is(err, rpctypes.ErrNoSpace) {
		t.Errorf("a write: %v", err)
	}

	// Somebody deletes. What the history still has goes with the next look but one.
	for i := range written {
		_, err := client.Delete(ctx, fmt.Sprintf("/stranger/%d", i))
		check(t, err)
	}
	check(t, keeper.look(ctx))
	check(t, keeper.look(ctx))
	if size := keeper.size(); size.Full || size.File > 2<<20 || keeper.Check(nil) != nil {
		t.Errorf("after everything was deleted: %+v", size)
	}
	_, err = client.Put(ctx, "/machine", "x")
	check(t, err)
}
