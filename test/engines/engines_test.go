package engines

import (
	"context"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Several at once get ports of their own; one that is killed answers no more.
func TestEtcdsStandSideBySide(t *testing.T) {
	put := func(endpoint string, within time.Duration) error {
		c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop()})
		if err != nil {
			return err
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		_, err = c.Put(ctx, "a", "x")
		return err
	}
	first, kill := Etcd(t)
	second, _ := Etcd(t)
	if first == second {
		t.Fatalf("both are at %s", first)
	}
	kill()
	if err := put(first, time.Second); err == nil {
		t.Error("the one that was killed answers")
	}
	if err := put(second, startTime); err != nil {
		t.Errorf("the other one does not answer: %v", err)
	}
}
