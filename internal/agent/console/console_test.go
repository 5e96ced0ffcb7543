package console

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"coldrack.dev/internal/contract/wire"
)

func TestADeviceThatBlocksHoldsUpNobody(t *testing.T) {
	var good bytes.Buffer
	r, w := io.Pipe() // nobody reads
	defer r.Close()
	c := New(w, &good)
	for range 1000 {
		c.Say("line")
	}
	c.Fail("disk: no disk matches")
	_ = r.Close()
	c.Close()
	if n := strings.Count(good.String(), "line"); n == 0 {
		t.Error("the good device shows nothing")
	}
}

func TestStepsAreShownWhenTheyChange(t *testing.T) {
	var out bytes.Buffer
	c := New(&out)
	for _, s := range []wire.Step{
		{Name: "image", State: wire.StateRunning},
		{Name: "image", State: wire.StateRunning, BytesDone: 1, BytesTotal: 4 << 20}, // too soon
		{Name: "image", State: wire.StateSucceeded, Message: "4 MiB"},
		{Name: "image", State: wire.StateSucceeded, Message: "4 MiB"},
		{Name: "identity", State: wire.StateFailed, Message: "refused"},
	} {
		c.Step(s)
	}
	c.Close()
	got := out.String()
	if strings.Count(got, "\n") != 3 || !strings.Contains(got, "image        done  4 MiB") || !strings.Contains(got, "FAILED: identity: refused") {
		t.Errorf("shown:\n%s", got)
	}
}

func TestWhatIsShownCannotSteerTheTerminal(t *testing.T) {
	var out bytes.Buffer
	c := New(&out)
	c.Say("a\x1b[2Jb\nc ü …")
	c.Close()
	if got := out.String(); !strings.HasSuffix(got, "coldrack: a?[2Jb c ? ...\r\n") {
		t.Errorf("shown %q", got)
	}
}
