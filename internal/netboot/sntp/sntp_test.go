package sntp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	base "coldrack.dev/internal/base/netns"
	"coldrack.dev/test/netns"
	"coldrack.dev/test/require"
)

func ask(version byte) []byte {
	b := make([]byte, packetSize)
	b[0] = version<<3 | modeClient
	b[2] = 6
	copy(b[40:], "transmit")
	return b
}

func ntpTime(b []byte) time.Time {
	seconds, fraction := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
	return time.Unix(int64(seconds)+epoch, int64(uint64(fraction)*uint64(time.Second)>>32))
}

var (
	synced = clockState{synced: true, maxError: 250 * time.Millisecond}
	alone  = clockState{maxError: aloneError}
)

func TestAnswer(t *testing.T) {
	received := time.Date(2026, 11, 21, 12, 30, 0, 250_000_000, time.UTC)
	sent := received.Add(time.Millisecond)
	got := answer(ask(4), received, sent, alone, -23)
	if got[0] != 0x24 || got[1] != stratumAlone || got[2] != 6 || int8(got[3]) != -23 || !bytes.Equal(got[24:32], []byte("transmit")) {
		t.Errorf("% x", got)
	}
	for at, want := range map[int]time.Time{16: received.Truncate(time.Minute), 32: received, 40: sent} {
		if is := ntpTime(got[at:]); is.Sub(want).Abs() > time.Microsecond {
			t.Errorf("timestamp at %d is %s, want %s", at, is, want)
		}
	}
	// RFC 4330, section 3: 2 ** 32 seconds after 1900 is 2036-02-07 06:28:16 UTC.
	b := make([]byte, 8)
	putTime(b, time.Date(2036, 2, 7, 6, 28, 15, 500_000_000, time.UTC))
	if want := []byte{0xff, 0xff, 0xff, 0xff, 0x80, 0, 0, 0}; !bytes.Equal(b, want) {
		t.Errorf("the end of the era is % x, want % x", b, want)
	}
	got = answer(ask(3), received, sent, synced, -23)
	if got[0] != 0x1c || got[1] != stratumSynced || !bytes.Equal(got[4:16], []byte{0, 0, 0, 0, 0, 0, 0x40, 0, 127, 0, 0, 1}) {
		t.Errorf("version 3 gets % x", got)
	}
	leap := synced
	leap.leap = 2
	if got := answer(ask(4), received, sent, leap, -23); got[0] != 0xa4 {
		t.Errorf("before a minute of 59 seconds: %x", got[0])
	}
}

func TestWhatTheKernelSays(t *testing.T) {
	for what, test := range map[string]struct {
		state  int
		status int32
		max    int64 // microseconds
		err    error
		want   clockState
	}{
		"a clock that is synchronised":   {unix.TIME_OK, unix.STA_PLL, 31_000, nil, clockState{true, 0, 31 * time.Millisecond}},
		"one that was just set":          {unix.TIME_OK, unix.STA_PLL, 0, nil, clockState{true, 0, time.Millisecond}},
		"a leap second at midnight":      {unix.TIME_INS, unix.STA_PLL | unix.STA_INS, 31_000, nil, clockState{true, 1, 31 * time.Millisecond}},
		"a second that is left out":      {unix.TIME_DEL, unix.STA_PLL | unix.STA_DEL, 31_000, nil, clockState{true, 2, 31 * time.Millisecond}},
		"after the leap second":          {unix.TIME_WAIT, unix.STA_PLL | unix.STA_INS, 31_000, nil, clockState{true, 0, 31 * time.Millisecond}},
		"a clock that was never set":     {unix.TIME_ERROR, unix.STA_UNSYNC, 16_000_000, nil, alone},
		"one that says so by its status": {unix.TIME_OK, unix.STA_UNSYNC, 31_000, nil, alone},
		"a kernel that may not be asked": {0, 0, 0, errors.New("not permitted"), alone},
	} {
		if got := judge(test.state, unix.Timex{Status: test.status, Maxerror: test.max}, test.err); got != test.want {
			t.Errorf("%s: %+v, want %+v", what, got, test.want)
		}
	}
}

func TestSpans(t *testing.T) {
	for d, want := range map[time.Duration]uint32{-time.Second: 0, 0: 0, time.Second: 1 << 16, 16 * time.Second: 16 << 16, 24 * time.Hour: 0xffffffff} {
		if got := shortFormat(d); got != want {
			t.Errorf("%s is %x, want %x", d, got, want)
		}
	}
	for d, want := range map[time.Duration]int8{0: -29, time.Nanosecond: -29, 50 * time.Nanosecond: -24, time.Microsecond: -19, time.Millisecond: -9, time.Second: 0} {
		if got := precisionOf(d); got != want {
			t.Errorf("the precision of %s is %d, want %d", d, got, want)
		}
	}
}

func TestWhatIsNoQuestion(t *testing.T) {
	now := time.Now()
	for name, packet := range map[string][]byte{
		"nothing": nil, "a short one": ask(4)[:47], "an answer": answer(ask(4), now, now, synced, -20), "version 0": ask(0), "version 7": ask(7),
		"a broadcast": append([]byte{4<<3 | 5}, ask(4)[1:]...), "a peer": append([]byte{4<<3 | 1}, ask(4)[1:]...),
		"a control message": append([]byte{2<<3 | 6}, ask(4)[1:]...), "a private one": append([]byte{2<<3 | 7}, ask(4)[1:]...),
	} {
		if isQuestion(packet) {
			t.Errorf("%s is answered", name)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(ask(4))
	f.Fuzz(func(t *testing.T, packet []byte) {
		if !isQuestion(packet) {
			return
		}
		now := time.Now()
		if reply := answer(packet, now, now, synced, -20); len(reply) > len(packet) || isQuestion(reply) {
			t.Errorf("% x gets % x", packet, reply)
		}
	})
}

// serve serves the clock of a state in a namespace, "" for the test's own, and returns the server and its port.
func serve(t *testing.T, namespace, address string, state clockState) (*Server, *net.UDPConn) {
	t.Helper()
	conn, err := base.ListenPacket(t.Context(), namespace, "udp", address)
	if err != nil {
		t.Fatal(err)
	}
	s := New(slog.New(slog.DiscardHandler))
	s.clock = func() clockState { return state }
	ctx, cancel := context.WithCancel(context.Background())
	var ended sync.WaitGroup
	ended.Go(func() {
		if err := s.Serve(ctx, conn.(*net.UDPConn)); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); ended.Wait() })
	return s, conn.(*net.UDPConn)
}

func TestServe(t *testing.T) {
	s, conn := serve(t, "", "127.0.0.1:0", synced)
	client, err := net.Dial("udp", conn.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	client.SetDeadline(time.Now().Add(time.Minute)) // a server that fails to answer fails the test
	asked := time.Now()
	client.Write([]byte("not a question"))
	client.Write(ask(4))
	reply := make([]byte, 100)
	if n, err := client.Read(reply); err != nil || n != packetSize {
		t.Fatalf("%d bytes, %v", n, err)
	}
	const resolution = time.Microsecond
	if told := ntpTime(reply[40:]); told.Before(asked.Add(-resolution)) || told.After(time.Now().Add(resolution)) {
		t.Errorf("asked at %s, it is told %s", asked, told)
	}
	// Whoever asks without a pause is answered a while, and then seldom.
	// What the socket has no room for is lost, so it asks until that is seen.
	for end := time.Now().Add(time.Minute); s.Stats().Limited == 0; time.Sleep(time.Millisecond) {
		for range burst {
			client.Write(ask(4))
		}
		if time.Now().After(end) {
			t.Fatalf("who asks without a pause is always answered: %+v", s.Stats())
		}
	}
	if stats := s.Stats(); stats.Ignored != 1 {
		t.Errorf("counted: %+v", stats)
	}
}

// rack is a server with two addresses, and a client of it.
func rack(t *testing.T) (server, client *netns.NS) {
	t.Helper()
	server, client = netns.New(t), netns.New(t)
	netns.Veth(server, "rack0", client, "eth0")
	server.Address("rack0", "10.20.0.1/24")
	server.Address("rack0", "10.20.0.2/24")
	server.Run("ip", "addr", "add", "fd00:20::1/64", "dev", "rack0", "nodad")
	server.Run("ip", "addr", "add", "fd00:20::2/64", "dev", "rack0", "nodad")
	client.Address("eth0", "10.20.0.11/24")
	client.Run("ip", "addr", "add", "fd00:20::11/64", "dev", "eth0", "nodad")
	return server, client
}

// chrony accepts the time from each address, whether the host's clock is synchronised or not. -Q and -x leave this machine's clock alone.
func TestChrony(t *testing.T) {
	require.Need(t, "netns", "chronyd")
	for what, state := range map[string]clockState{"synchronised": synced, "alone": alone} {
		server, client := rack(t)
		serve(t, server.Path(), ":123", state)
		for _, address := range []string{"10.20.0.1", "10.20.0.2", "fd00:20::1", "fd00:20::2"} {
			out, err := client.Try(t.Context(), require.Program("chronyd"), "-Q", "-x", "-d", "-t", "60", "-u", "root",
				"server "+address+" iburst", "cmdport 0", "bindcmdaddress /", "pidfile "+filepath.Join(t.TempDir(), "pid"))
			if err != nil || !strings.Contains(out, "System clock wrong by") {
				t.Errorf("%s, at %s: %v\n%s", what, address, err, out)
			}
		}
	}
}

// What chrony has understood of an answer, in its own words.
func TestChronyUnderstands(t *testing.T) {
	require.Need(t, "netns", "chronyd")
	for what, test := range map[string]struct {
		state clockState
		want  string // leap, stratum, ..., root dispersion, reference
	}{
		"synchronised": {synced, "10.20.0.1 N 4 111 111 1111 2.500e-01 7F000001"},
		"alone":        {alone, "10.20.0.1 N 10 111 111 1111 9.995e-03 7F7F0101"},
	} {
		server, client := rack(t)
		serve(t, server.Path(), ":123", test.state)
		dir := t.TempDir()
		command := exec.Command(require.Program("chronyd"), "-x", "-d", "-u", "root", "server 10.20.0.1 iburst", "cmdport 0", "bindcmdaddress /",
			"pidfile "+filepath.Join(dir, "pid"), "logdir "+dir, "log rawmeasurements")
		if err := client.Start(command); err != nil {
			t.Fatal(err)
		}
		var fields []string
		for end := time.Now().Add(time.Minute); len(fields) == 0 && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			log, err := os.ReadFile(filepath.Join(dir, "measurements.log"))
			if err != nil {
				continue
			}
			for line := range strings.Lines(string(log)) {
				if strings.Contains(line, "10.20.0.1") && strings.HasSuffix(line, "\n") {
					fields = strings.Fields(line)
				}
			}
		}
		_ = command.Process.Kill()
		_ = command.Wait()
		// Date, time, address, leap, stratum, tests 123, 567, ABCD, ..., root delay, root dispersion, reference.
		got := "nothing"
		if len(fields) > 15 {
			got = strings.Join([]string{fields[2], fields[3], fields[4], fields[5], fields[6], fields[7], fields[len(fields)-5], fields[len(fields)-4]}, " ")
		}
		if got != test.want {
			t.Errorf("%s: %s, want %s: %v", what, got, test.want, fields)
		}
	}
}

// systemd-timesyncd accepts it, too. It runs without the right to set a clock.
func TestTimesyncd(t *testing.T) {
	require.Need(t, "netns", "timesyncd", "setpriv")
	for what, state := range map[string]clockState{"synchronised": synced, "alone": alone} {
		server, client := rack(t)
		serve(t, server.Path(), ":123", state)
		conf := filepath.Join(t.TempDir(), "timesyncd.conf")
		if err := os.WriteFile(conf, []byte("[Time]\nNTP=10.20.0.1\nFallbackNTP=\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		// It reads this file only, and keeps its state in a folder of its own.
		script := fmt.Sprintf(`mount -t tmpfs none /etc/systemd && cp %s /etc/systemd/ && mount -t tmpfs -o mode=777 none /run && mkdir -p -m 777 /run/systemd/timesync /run/systemd/netif &&
exec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all --bounding-set=-all %s`, conf, require.Program("timesyncd"))
		command := exec.Command("unshare", "-m", "sh", "-c", script)
		command.Env = append(os.Environ(), "SYSTEMD_LOG_LEVEL=debug", "SYSTEMD_LOG_TARGET=console")
		log := &lines{}
		command.Stdout, command.Stderr = log, log
		if err := client.Start(command); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(time.Minute); !strings.Contains(log.String(), "Contacted time server 10.20.0.1") && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		}
		_ = command.Process.Kill()
		_ = command.Wait()
		stratum := fmt.Sprintf("stratum      : %d", answer(ask(4), time.Now(), time.Now(), state, -20)[1])
		for _, want := range []string{"Contacted time server 10.20.0.1", stratum, "leap         : 0"} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("%s: %q is not in\n%s", what, want, log)
			}
		}
	}
}

type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
