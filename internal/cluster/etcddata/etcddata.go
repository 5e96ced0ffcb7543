// Package etcddata reads snapshots of etcd and makes data folders of them, by etcd's own library. It does so in a process of its own: a
// store of gigabytes takes as much memory while it is read, and the server must get that back.
package etcddata

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"
)

// Request is what the process is to do.
type Request struct {
	// Snapshot is the file.
	Snapshot string `json:"snapshot"`
	// Folder is where the data folder is made; it must not exist.
	Folder string `json:"folder"`
	// Member that the data is for. Without one the snapshot is only tried: it is restored for a member alone, and read.
	Member *Member `json:"member,omitempty"`
}

// Member of a new cluster of etcd that begins with a snapshot.
type Member struct {
	Name    string `json:"name"`
	PeerURL string `json:"peerURL"`
	// InitialCluster are all members, as name=peerURL.
	InitialCluster []string `json:"initialCluster"`
	// Token is of no other cluster before.
	Token string `json:"token"`
	// Bump is added to the revision, so that clients that have seen what came after the snapshot do not see time go back; all before
	// counts as compacted.
	Bump uint64 `json:"bump"`
}

// Content is what a snapshot was found to hold.
type Content struct {
	Keys     int   `json:"keys"`
	Revision int64 `json:"revision"`
	// Storage is the version of the store's format, such as 3.7.0; empty before 3.6.
	Storage string `json:"storage,omitempty"`
}

// answer of the process.
type answer struct {
	Content Content `json:"content"`
	Error   string  `json:"error,omitempty"`
}

// Verb is the hidden verb of coldrack that runs Serve.
const Verb = "etcd-data"

// Do has a process of the program at path, started with Verb, carry out a request. Its end is waited for.
func Do(ctx context.Context, program string, r Request) (Content, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return Content{}, err
	}
	cmd := exec.CommandContext(ctx, program, Verb)
	// The other end of the input is closed when this process ends, however it ends; the child ends then, too.
	in, err := cmd.StdinPipe()
	if err != nil {
		return Content{}, err
	}
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Start(); ctx.Err() != nil {
		return Content{}, context.Cause(ctx)
	} else if err != nil {
		return Content{}, fmt.Errorf("start %s %s: %w", program, Verb, err)
	}
	_, err = in.Write(append(text, '\n'))
	err = errors.Join(err, cmd.Wait())
	if ctx.Err() != nil {
		return Content{}, context.Cause(ctx)
	}
	var a answer
	if decoding := json.Unmarshal(out.Bytes(), &a); decoding != nil {
		return Content{}, fmt.Errorf("the process that reads the snapshot failed: %w; %s", errors.Join(err, decoding), lastOf(problems.String()))
	}
	if a.Error != "" {
		return Content{}, errors.New(a.Error)
	}
	return a.Content, nil
}

// lastOf is the end of a text that may be long.
func lastOf(text string) string {
	const most = 500
	text = strings.TrimSpace(text)
	return text[max(len(text)-most, 0):]
}

// Serve is the process: it reads one request, carries it out and answers. It ends the process when the input ends before.
func Serve(in io.Reader, out io.Writer) error {
	reader := bufio.NewReader(in)
	line, err := reader.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	var r Request
	if err := json.Unmarshal(line, &r); err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	go func() { // ends with the process
		_, _ = io.Copy(io.Discard, reader)
		os.Exit(1)
	}()
	var a answer
	if a.Content, err = carryOut(r); err != nil {
		a.Error = err.Error()
	}
	return json.NewEncoder(out).Encode(a)
}

// carryOut restores a snapshot, and reads what came of it. etcd's library panics on some files that are no store.
func carryOut(r Request) (c Content, err error) {
	defer func() {
		if problem := recover(); problem != nil {
			err = fmt.Errorf("the snapshot cannot be read: %v", problem)
		}
	}()
	manager := snapshot.NewV3(zap.NewNop())
	config := snapshot.RestoreConfig{SnapshotPath: r.Snapshot, OutputDataDir: r.Folder}
	if m := r.Member; m != nil {
		config.Name, config.PeerURLs, config.InitialCluster, config.InitialClusterToken = m.Name, []string{m.PeerURL}, strings.Join(m.InitialCluster, ","), m.Token
		config.RevisionBump, config.MarkCompacted = m.Bump, true
	} else {
		config.Name, config.PeerURLs, config.InitialCluster, config.InitialClusterToken = "trial", []string{"http://127.0.0.1:2380"}, "trial=http://127.0.0.1:2380", "trial"
	}
	if err := manager.Restore(config); err != nil {
		return c, fmt.Errorf("the snapshot cannot be restored: %w", err)
	}
	status, err := manager.Status(filepath.Join(r.Folder, "member", "snap", "db"))
	if err != nil {
		return c, fmt.Errorf("what was restored from the snapshot cannot be read: %w", err)
	}
	return Content{Keys: status.TotalKey, Revision: status.Revision, Storage: status.Version}, nil
}
