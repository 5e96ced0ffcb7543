package etcddiscovery

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

// form is one of the two ways in which etcd asks for its cluster.
type form struct {
	name    string
	program string // in the repository's bin
	needs   string
	flags   func(server, token string) []string
}

func old(server, token string) []string {
	return []string{"--discovery", "http://" + server + "/" + token, "--discovery-fallback", "exit"}
}

func late(server, token string) []string {
	return []string{"--discovery-token", token, "--discovery-endpoints", "http://" + server}
}

// Debian 12 has etcd 3.4 and Debian 13 has 3.5, which know the old form alone; 3.6 knows both, 3.7 the late one alone.
var forms = []form{
	{"Debian's etcd", "etcd-debian", "etcd-debian", old},
	{"etcd 3.6, old form", "1.36/etcd", "kubernetes-1.36", old},
	{"etcd 3.6, late form", "1.36/etcd", "kubernetes-1.36", late},
	{"etcd 3.7", "etcd", "etcd", late},
}

// site is a network with a server of discovery and members of one cluster. All of its ports are its own.
type site struct {
	t       *testing.T
	ns      *netns.NS
	form    form
	address string
	dir     string
	file    string
	stop    func()
	// sinceTold is that of the registry.
	sinceTold time.Duration
	members   map[int]*member
}

type member struct {
	process *exec.Cmd
	log     *lines
	ended   chan struct{}
}

// lines is what a program says.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{}
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.more != nil {
		close(l.more)
		l.more = nil
	}
	return l.text.Write(b)
}

// await waits until the text contains one of parts.
func (l *lines) await(ctx context.Context, parts ...string) error {
	for {
		l.mu.Lock()
		text := l.text.String()
		if l.more == nil {
			l.more = make(chan struct{})
		}
		more := l.more
		l.mu.Unlock()
		for _, part := range parts {
			if strings.Contains(text, part) {
				return nil
			}
		}
		select {
		case <-more:
		case <-ctx.Done():
			return fmt.Errorf("nothing of %q in:\n%s", parts, text)
		}
	}
}

func newSite(t *testing.T, f form) *site {
	require.Need(t, "netns", f.needs)
	s := &site{t: t, ns: netns.New(t), form: f, dir: t.TempDir(), sinceTold: sinceTold, members: map[int]*member{}}
	s.ns.Run("ip", "link", "set", "lo", "up")
	s.file = filepath.Join(s.dir, "tokens.json")
	s.serve("127.0.0.1:0")
	return s
}

// serve begins to serve with what is in the file.
func (s *site) serve(address string) *Registry {
	s.t.Helper()
	registry, err := Open(s.file)
	check(s.t, err)
	registry.sinceTold = s.sinceTold
	var listener net.Listener
	check(s.t, s.ns.Do(func() (err error) { listener, err = net.Listen("tcp", address); return err }))
	s.address = listener.Addr().String()
	s.stop = serve(s.t, New(Options{Registry: registry, Log: slog.New(slog.DiscardHandler)}), listener)
	return registry
}

// registry is as the file has it now.
func (s *site) registry() *Registry {
	r, err := Open(s.file)
	check(s.t, err)
	return r
}

// restart ends the server and starts another that knows the file.
func (s *site) restart() {
	s.stop()
	s.serve(s.address)
}

// newToken is what a person makes; the server hears of it when it starts anew.
func (s *site) newToken(size int) string {
	s.t.Helper()
	token, err := s.registry().New(size, 0, "person", false)
	check(s.t, err)
	s.restart()
	return token.ID
}

func host(i int) string { return fmt.Sprintf("127.0.1.%d", i) }

// start starts member i, which has an address of its own.
func (s *site) start(i int, token string) *member {
	s.t.Helper()
	bin, err := filepath.Abs("../../../bin")
	check(s.t, err)
	client, peer := "http://"+host(i)+":2379", "http://"+host(i)+":2380"
	m := &member{log: &lines{}, ended: make(chan struct{})}
	m.process = exec.Command(filepath.Join(bin, s.form.program), append([]string{
		"--name", fmt.Sprintf("m%d", i), "--data-dir", s.data(i), "--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer}, s.form.flags(s.address, token)...)...)
	m.process.Stdout, m.process.Stderr = m.log, m.log
	m.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	check(s.t, s.ns.Start(m.process))
	go func() { _ = m.process.Wait(); close(m.ended) }()
	s.members[i] = m
	s.t.Cleanup(m.kill)
	return m
}

func (s *site) data(i int) string { return filepath.Join(s.dir, fmt.Sprintf("m%d", i)) }

func (m *member) kill() {
	_ = m.process.Process.Kill()
	<-m.ended
}

// call posts JSON to member i's gateway.
func (s *site) call(ctx context.Context, i int, path, body string, answer any) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = s.ns.Do(func() error {
			conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}}}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+host(i)+":2379/v3/"+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = errors.New(string(text))
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(text, answer)
}

// wantCluster waits until each member knows all of them, and reads on the last what is written on the first.
func (s *site) wantCluster(ctx context.Context, members ...int) {
	s.t.Helper()
	for _, i := range members {
		check(s.t, s.members[i].log.await(ctx, "ready to serve client requests"))
		var list struct{ Members []struct{ Name string } }
		check(s.t, s.call(ctx, i, "cluster/member/list", "{}", &list))
		if len(list.Members) != len(members) {
			s.t.Errorf("member %d knows the members %v", i, list.Members)
		}
	}
	key, value := base64.StdEncoding.EncodeToString([]byte("k")), base64.StdEncoding.EncodeToString([]byte("v"))
	check(s.t, s.call(ctx, members[0], "kv/put", `{"key":"`+key+`","value":"`+value+`"}`, &struct{}{}))
	var read struct{ Kvs []struct{ Value string } }
	check(s.t, s.call(ctx, members[len(members)-1], "kv/range", `{"key":"`+key+`"}`, &read))
	if len(read.Kvs) != 1 || read.Kvs[0].Value != value {
		s.t.Errorf("written on the first, read on the last: %v", read.Kvs)
	}
}

func each(t *testing.T, test func(t *testing.T, ctx context.Context, s *site)) {
	for _, f := range forms {
		t.Run(f.name, func(t *testing.T) {
			ctx, cancel := netns.Patience(t)
			defer cancel()
			s := newSite(t, f)
			defer func() {
				if t.Failed() {
					for i, m := range s.members {
						m.kill()
						t.Logf("member %d:\n%s", i, m.log.text.String())
					}
				}
			}()
			test(t, ctx, s)
		})
	}
}

// TestMembersFormACluster lets three real members meet, and says to a fourth that it is too late.
func TestMembersFormACluster(t *testing.T) {
	each(t, func(t *testing.T, ctx context.Context, s *site) {
		token := s.newToken(3)
		for i := 1; i <= 3; i++ {
			s.start(i, token)
		}
		s.wantCluster(ctx, 1, 2, 3)
		check(t, s.start(4, token).log.await(ctx, "cluster is full"))
		check(t, s.start(5, strings.Repeat("0", 32)).log.await(ctx, "size key not found", "Key not found (no such token"))
	})
}

// TestAMemberCrashesWhileItWaits takes a member and its data away before the others came, and the server with it. The public service
// refuses such a member, and the token is lost.
func TestAMemberCrashesWhileItWaits(t *testing.T) {
	each(t, func(t *testing.T, ctx context.Context, s *site) {
		token := s.newToken(3)
		first := s.start(1, token)
		for {
			if all := s.registry().List(); len(all[0].Members) == 1 {
				break
			}
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
				t.Fatal("the first member does not register")
			}
		}
		first.kill()
		check(t, os.RemoveAll(s.data(1)))
		s.restart()
		for i := 1; i <= 3; i++ {
			s.start(i, token)
		}
		s.wantCluster(ctx, 1, 2, 3)
	})
}

// TestAMemberThatLostItsData is not let in again: it has voted, and would not know.
func TestAMemberThatLostItsData(t *testing.T) {
	each(t, func(t *testing.T, ctx context.Context, s *site) {
		s.sinceTold = 0 // no minute of patience
		token := s.newToken(1)
		s.start(1, token)
		s.wantCluster(ctx, 1)
		s.members[1].kill()
		check(t, os.RemoveAll(s.data(1)))
		check(t, s.start(1, token).log.await(ctx, "was told the cluster", "has previously registered", "found duplicate id"))
	})
}
