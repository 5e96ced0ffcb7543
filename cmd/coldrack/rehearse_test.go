package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"coldrack.dev/internal/cli/exit"
	"coldrack.dev/internal/lab/rehearse"
	"coldrack.dev/test/require"
)

// TestRehearseBringsARackUp is a whole rehearsal: a real server, 20 machines, some packets lost.
func TestRehearseBringsARackUp(t *testing.T) {
	require.Need(t, "netns")
	t.Parallel() // it waits most of the time
	dir := t.TempDir()
	plot, log := filepath.Join(dir, "rack.svg"), filepath.Join(dir, "server.log")
	cmd := exec.CommandContext(t.Context(), "coldrack", "rehearse", "--machines", "20", "--ramp", "1s", "--loss", "0.2%", "--slow-links", "10%:100Mbit",
		"--image-bytes", "2000000", "--initramfs-bytes", "500000", "--timeout", "5m", "--plot", plot, "--server-log", log, "-o", "json")
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	var out, progress bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &progress
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, progress.String())
	}
	var result rehearse.Result
	if err := json.Unmarshal(out.Bytes(), &result); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	if result.Ready != 20 || result.Lost != 0 || result.Refused != 0 {
		text, _ := os.ReadFile(log)
		t.Errorf("%d ready, %d lost, %d refused: %+v\nlog of the server:\n%s", result.Ready, result.Lost, result.Refused, result.Reasons, text)
	}
	for _, what := range []string{"DHCP exchange", "first stage by TFTP", "boot decision", "kernel and initramfs", "enrolment", "image", "install", "heartbeat", "power-on to ready"} {
		if result.Timings[what].Count < 20 {
			t.Errorf("%s: measured %d times", what, result.Timings[what].Count)
		}
	}
	if result.Server.PeakMemory == 0 || result.Server.SentBytes < 20*2000000 || result.FinishedAt <= 0 {
		t.Errorf("server took %+v until %s", result.Server, result.FinishedAt)
	}
	svg, err := os.Open(plot)
	if err != nil {
		t.Fatal(err)
	}
	defer svg.Close()
	for d := xml.NewDecoder(svg); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestRehearseTellsWhatIsWrongWithItsArguments(t *testing.T) {
	for args, want := range map[string]string{
		"--loss 120%":              "is not a share",
		"--slow-links 5%":          "write a share and a rate",
		"--slow-links 5%:fast":     "is not a rate",
		"--link 3":                 "is not a rate",
		"--bundle x":               "--trusted-keys",
		"--machines 70000":         "between 1 and 60000",
		"-f /nonexistent/manifest": "no such file",
	} {
		t.Run(args, func(t *testing.T) {
			var out bytes.Buffer
			if code := run(t.Context(), append([]string{"rehearse"}, strings.Fields(args)...), strings.NewReader(""), &out, &out); code == exit.OK || !strings.Contains(out.String(), want) {
				t.Errorf("exit code %d: %s", code, out.String())
			}
		})
	}
}
