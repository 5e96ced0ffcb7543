package install

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"coldrack.dev/internal/agent/probe"
	"coldrack.dev/internal/content/swarm"
	"coldrack.dev/internal/content/swarm/peer"
	"coldrack.dev/internal/contract/wire"
	"coldrack.dev/test/ca"
)

// crowd is the server as one machine sees it that brings machines together.
type crowd struct {
	tracker *swarm.Tracker
	machine string
	key     string
}

func (c crowd) Swarm(_ context.Context, in wire.SwarmAnnounce) (wire.SwarmAnswer, error) {
	have, err := swarm.ParseSet(in.Have, in.Chunks)
	if err != nil {
		return wire.SwarmAnswer{}, err
	}
	told := c.tracker.Announce(time.Now(), in.Blob, swarm.Member{ID: c.machine, Address: fmt.Sprint("127.0.0.1:", in.Port), Key: c.key}, swarm.Announcement{
		Have: have, Wants: in.Wants, Idle: in.Idle, Returned: in.Returned, Lost: in.Lost, Bad: in.Bad, Known: in.Known, Leaving: in.Leaving,
	})
	out := wire.SwarmAnswer{PeersVersion: told.PeersVersion, Fetch: told.Grants, AgainMillis: 100, AskMillis: 10}
	for _, p := range told.Peers {
		out.Peers = append(out.Peers, wire.SwarmPeer{Machine: p.ID, Address: p.Address, Key: p.Key, Near: p.Near})
	}
	return out, nil
}

// exchange is what an installer of the lab needs to take part.
func (l *lab) exchange(tracker *swarm.Tracker, machine string) *peer.Config {
	l.t.Helper()
	pair := l.ca.Issue(ca.Client("machine:"+machine, "coldrack:session"))
	sum := sha256.Sum256(pair.Leaf.RawSubjectPublicKeyInfo)
	return &peer.Config{
		Server:      crowd{tracker, machine, "sha256:" + hex.EncodeToString(sum[:])},
		Certificate: func() *tls.Certificate { return pair },
		CAs:         l.ca.Pool,
	}
}

// imageRequests that the boot listener got.
func (l *lab) imageRequests() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	blob := ""
	for name, b := range l.blobs {
		if len(b) > 1<<20 {
			blob = name
		}
	}
	for request, times := range l.requests {
		if strings.HasPrefix(request, blob) {
			n += times
		}
	}
	return n
}

func TestMachinesInstallFromEachOther(t *testing.T) {
	image := rootImage(t)
	for name, tt := range map[string]struct {
		disk   int64
		line   string
		shares bool
	}{
		"with the disk's end as the place for chunks": {disk: diskSize, shares: true},
		"not when it is switched off":                 {disk: diskSize, line: "quiet coldrack.swarm=off"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, image)
			l.plan.Image.Size = int64(len(image))
			tracker := swarm.NewTracker(swarm.TrackerOptions{PerMember: 1, Slots: 2, Extra: 0.01})
			var group errgroup.Group
			var disks [3]string
			var done [3]wire.Complete
			for i := range disks {
				disks[i], _ = loopDisk(t, tt.disk)
				in := l.installer(disks[i])
				in.Exchange, in.CommandLine = l.exchange(tracker, fmt.Sprint("n", i)), tt.line
				group.Go(func() (err error) {
					done[i], err = in.Install(context.Background(), l.plan)
					return err
				})
			}
			if err := group.Wait(); err != nil {
				t.Fatal(err)
			}
			said := ""
			for i := range disks {
				succeeded(t, done[i])
				said += done[i].Steps[5].Message + "\n"
				l.lookAtNoise(disks[i])
			}
			chunks := len(image)/(4<<20) + 1
			if n := l.imageRequests(); tt.shares && n > 2*chunks || !tt.shares && n < 3 {
				t.Errorf("%d chunks were asked of the server for three machines; an image has at most %d", n, chunks)
			}
			if shared := strings.Contains(said, "from other machines"); shared != tt.shares {
				t.Errorf("the steps say: %s", said)
			}
			if members := tracker.Members(""); len(members) > 0 {
				t.Errorf("still members: %v", members)
			}
		})
	}
}

func TestWhereChunksAreKept(t *testing.T) {
	const gib = 1 << 30
	for name, tt := range map[string]struct {
		partition, image, blob, available int64
		base                              int64
		ok                                bool
	}{
		"at the end of a disk":                      {100 * gib, 2 * gib, gib, gib, 99*gib - 1<<20, true},
		"at a place that begins with a whole page":  {100*gib + 512, 2 * gib, gib - 700, 0, 99*gib - 1<<20, true},
		"in memory where the disk has no room":      {2*gib + 64<<20, 2 * gib, gib, 4 * gib, -1, true},
		"nowhere where the memory has none, either": {2*gib + 64<<20, 2 * gib, gib, 2 * gib, -1, false},
		"not so close that it touches the image":    {3*gib + 8<<20, 2 * gib, gib, 0, -1, false},
	} {
		t.Run(name, func(t *testing.T) {
			base, ok := place(tt.partition, tt.image, tt.blob, tt.available)
			if base != tt.base || ok != tt.ok {
				t.Errorf("%d, %v; want %d, %v", base, ok, tt.base, tt.ok)
			}
		})
	}
	m := memory(make([]byte, 4))
	if n, err := m.WriteAt([]byte("abc"), 2); n != 2 || err == nil {
		t.Errorf("wrote %d bytes beyond the end: %v", n, err)
	}
	b := make([]byte, 3)
	if n, err := m.ReadAt(b, 2); n != 2 || err == nil || string(b[:n]) != "ab" {
		t.Errorf("read %q: %v", b[:n], err)
	}
}

// lookAtNoise compares what is on a disk with the image, and has the file system checked.
func (l *lab) lookAtNoise(disk string) {
	t := l.t
	t.Helper()
	dev := "/dev/" + disk + "p3"
	shell(t, "e2fsck", "-f", "-n", dev)
	dir := t.TempDir()
	shell(t, "mount", "-o", "ro", dev, dir)
	defer shell(t, "umount", dir)
	noise, err := os.ReadFile(filepath.Join(dir, "opt/noise"))
	if err != nil || len(noise) != 9<<20 {
		t.Fatalf("%d bytes of noise: %v", len(noise), err)
	}
	for at := 0; at < len(noise); at += 256 << 10 {
		if !bytes.Contains(l.image, noise[at:at+4096]) {
			t.Errorf("byte %s of a file is not what the image has there", probe.Size(int64(at)))
		}
	}
}
