package controlplane

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestStartFailsWithAnErrorThatSaysWhatToDo(t *testing.T) {
	t.Parallel()
	ca := newTestCA(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	t.Cleanup(func() { taken.Close() }) // after the parallel subtests
	_, takenPort, err := net.SplitHostPort(taken.Addr().String())
	check(t, err)
	file := filepath.Join(t.TempDir(), "file")
	check(t, os.WriteFile(file, nil, 0o600))

	for name, test := range map[string]struct {
		spoil func(t *testing.T, cfg *Config)
		want  []string
	}{
		"the port is in use": {
			func(t *testing.T, cfg *Config) { cfg.Address = taken.Addr().String() },
			[]string{"port " + takenPort + " is in use", "choose another API address"},
		},
		"the address is not this machine's": {
			func(t *testing.T, cfg *Config) { cfg.Address = "192.0.2.1:7443" },
			[]string{"192.0.2.1:7443", "no such address"},
		},
		"the data directory is below a file": {
			func(t *testing.T, cfg *Config) { cfg.DataDir = filepath.Join(file, "data") },
			[]string{"data directory", "not a directory"},
		},
		"the certificate is not one": {
			func(t *testing.T, cfg *Config) { cfg.ServingCert = []byte("x") },
			[]string{"API certificate"},
		},
		"two places to keep the kinds": {
			func(t *testing.T, cfg *Config) { cfg.Kubeconfig, cfg.EtcdEndpoints = "a", []string{"b"} },
			[]string{"exclude each other"},
		},
		"an etcd that does not answer": {
			func(t *testing.T, cfg *Config) { cfg.EtcdEndpoints = []string{"http://" + taken.Addr().String()} },
			[]string{"etcd at http://" + taken.Addr().String(), "does not answer", "quorum"},
		},
		"a kubeconfig that does not exist": {
			func(t *testing.T, cfg *Config) { cfg.Kubeconfig = filepath.Join(t.TempDir(), "nothing") },
			[]string{"kubeconfig", "no such file"},
		},
		"the encryption key is cut short": {
			func(_ *testing.T, cfg *Config) { cfg.EncryptionKey = cfg.EncryptionKey[:16] },
			[]string{"encryption key", "16 bytes", "32"},
		},
		"the store is not a database": {
			func(t *testing.T, cfg *Config) {
				check(t, os.MkdirAll(cfg.path("etcd/member/snap"), 0o700))
				check(t, os.WriteFile(cfg.path("etcd/member/snap/db"), []byte(strings.Repeat("not a database\n", 1000)), 0o600))
			},
			[]string{"etcd", "damaged or not etcd's", "backup"},
		},
		"the log of the store is damaged": {
			func(t *testing.T, cfg *Config) {
				// etcd leaves a goroutine behind that may still make a file when everything else is removed.
				dir, err := os.MkdirTemp("", "coldrack-")
				check(t, err)
				t.Cleanup(func() {
					for range 20 {
						if os.RemoveAll(dir) == nil {
							break
						}
						time.Sleep(50 * time.Millisecond)
					}
				})
				cfg.DataDir = dir
				startTest(t, *cfg).Stop()
				wals, err := filepath.Glob(cfg.path("etcd/member/wal/*.wal"))
				check(t, err)
				f, err := os.OpenFile(wals[0], os.O_RDWR, 0)
				check(t, err)
				_, err = f.WriteAt([]byte(strings.Repeat("?", 5000)), 0)
				check(t, err)
				check(t, f.Close())
			},
			[]string{"etcd", "damaged or not etcd's", "backup"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := testConfig(t, ca)
			test.spoil(t, &cfg)
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			c, err := Start(ctx, cfg)
			if err == nil {
				c.Stop()
				t.Fatal("it started")
			}
			// These may succeed later, without a person who starts the server again.
			if store := strings.HasPrefix(test.want[0], "etcd"); errors.Is(err, ErrStore) != store {
				t.Errorf("error %q: is of the store: %v", err, !store)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q lacks %q", err, want)
				}
			}
		})
	}
}

func TestASecondServerIsKeptOffTheStore(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t, newTestCA(t))
	startTest(t, cfg)
	_, err := Start(context.Background(), cfg)
	if err == nil || !strings.Contains(err.Error(), "in use by another coldrack server") || errors.Is(err, ErrStore) || !errors.Is(err, ErrInUse) {
		t.Fatalf("error %v does not say who holds the store", err)
	}
}
