package soak

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"coldrack.dev/test/require"
)

func TestMain(m *testing.M) {
	if os.Getenv(strangersVariable) != "" {
		if err := runStrangers(context.Background(), os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "strangers:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// TestSoak takes a minute, or as long as SOAK says, with more machines then (see make soak). SOAK_MACHINES is another number
// of them, SOAK_LOG a file that gets the server's log.
func TestSoak(t *testing.T) {
	require.Need(t, "root", "netns")
	program, err := exec.LookPath("coldrack")
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	o := options{Program: program, Self: self, Duration: time.Minute, Machines: 60, Kills: 3,
		Cycle: 15 * time.Second, Heartbeat: 5 * time.Second, LogFile: filepath.Join(t.TempDir(), "server.log")}
	if text := os.Getenv("SOAK"); text != "" {
		if o.Duration, err = time.ParseDuration(text); err != nil || o.Duration < time.Minute {
			t.Fatalf("SOAK=%s: want a time of at least 1m, for example 1h", text)
		}
	}
	if o.Duration > time.Minute {
		o.Machines, o.Kills = 10_000, 20
		o.Cycle, o.Heartbeat = o.Duration/12, 30*time.Second
	}
	if text := os.Getenv("SOAK_MACHINES"); text != "" {
		if o.Machines, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	o.scale(float64(o.Machines) / 10_000)
	if path := os.Getenv("SOAK_LOG"); path != "" {
		o.LogFile = path
	}
	if err := raiseFiles(uint64(o.Files) + 8192); err != nil {
		t.Fatal(err)
	}
	o.Log = func(format string, args ...any) {
		// Progress is for whoever waits for an hour; t.Log shows nothing before the end.
		fmt.Fprintf(os.Stderr, "soak: "+format+"\n", args...)
	}
	ctx, stop := signal.NotifyContext(t.Context(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	report, err := run(ctx, o)
	if err != nil {
		t.Fatalf("%v\nlog of the server:\n%s", err, end(o.LogFile))
	}
	t.Logf("%s, %d machines, seen by the side of everything else that this host did:\n%s", o.Duration, o.Machines, report)
	if report.broken() {
		t.Errorf("a bound is broken; end of the server's log:\n%s", end(o.LogFile))
	}
}

// scale makes limits and strangers as large as the number of machines, as a share of 10,000: with 65,536 open files, as in the unit,
// and a store that a few minutes fill.
func (o *options) scale(share float64) {
	between := func(least, most int) int { return min(most, max(least, int(share*float64(most)))) }
	o.Files = between(4096, 65536)
	o.Hold = o.Files/4 + 200 // one more than there is room for, whoever connects
	o.Rate = min(1, max(0.2, share))
	o.StoreMiB, o.DiskMiB = between(64, 512), between(3<<10, 6<<10)
}

// raiseFiles lets this process and its children open so many files.
func raiseFiles(files uint64) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	if limit.Max >= files && limit.Cur >= files {
		return nil
	}
	limit.Cur, limit.Max = max(limit.Cur, files), max(limit.Max, files)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("allow %d open files: %w", files, err)
	}
	return nil
}

func end(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-8<<10):])
}

// TestAProcessIsGivenAnotherClock sets the clock of one process, and of no other.
func TestAProcessIsGivenAnotherClock(t *testing.T) {
	if os.Getenv("SOAK_CLOCK") != "" {
		fmt.Println("begin")
		_, _ = fmt.Scanln()
		fmt.Println(time.Now().Unix())
		return
	}
	require.Need(t, "root")
	cmd := exec.Command(os.Args[0], "-test.run", "^TestAProcessIsGivenAnotherClock$")
	cmd.Env = append(os.Environ(), "SOAK_CLOCK=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	var word string
	if _, err := fmt.Fscanln(out, &word); err != nil || word != "begin" {
		t.Fatalf("%q: %v", word, err)
	}
	c, err := takeClock(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if err := c.set(-1000 * time.Hour); err != nil {
		t.Fatal(err)
	}
	before := time.Now().Unix()
	if _, err := in.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	var told int64
	if _, err := fmt.Fscanln(out, &told); err != nil {
		t.Fatal(err)
	}
	if behind := before - told; behind < 1000*3600-5 || behind > 1000*3600+5 {
		t.Errorf("the process is %d s behind, want 1000 hours", behind)
	}
}
