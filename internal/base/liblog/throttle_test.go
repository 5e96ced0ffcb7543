package liblog

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestNobodyFillsTheLog(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(1_800_000_000, 0)
	log := slog.New(Throttle(slog.NewTextHandler(&out, nil), func() time.Time { return now }))
	lines := func() int {
		n := strings.Count(out.String(), "\n")
		out.Reset()
		return n
	}
	for i := range 1000 {
		log.With("part", "tftp").Warn("transfer failed", "remote", fmt.Sprintf("192.0.2.1:%d", 1024+i))
	}
	if n := lines(); n != perSource {
		t.Errorf("one source wrote %d lines in a minute, want %d", n, perSource)
	}
	log.Warn("transfer failed", "remote", "192.0.2.2:69")
	if text := out.String(); !strings.Contains(text, "suppressed=970") {
		t.Errorf("another source's line does not say how many were left out: %q", text)
	}
	lines()
	log.Warn("boot decision", "mac", "52:54:00:00:00:01", "address", "192.0.2.1")
	if lines() != 1 {
		t.Error("another message of the first source is left out, too")
	}
	for range 100 {
		log.Error("cannot write", "file", "x")
	}
	if n := lines(); n != 100 {
		t.Errorf("%d lines that nobody else causes, want all", n)
	}

	// Forged sources are bounded together.
	now = now.Add(time.Minute)
	for i := range 3 * perMinute {
		log.Warn("transfer failed", "remote", fmt.Sprintf("10.%d.%d.%d:1", i>>16, i>>8&255, i&255))
	}
	if n := lines(); n != perMinute {
		t.Errorf("forged sources wrote %d lines in a minute, want %d", n, perMinute)
	}
	now = now.Add(time.Minute)
	log.Warn("transfer failed", "remote", "192.0.2.1:5")
	if text := out.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "suppressed=20000") {
		t.Errorf("in the next minute: %q", text)
	}
}
