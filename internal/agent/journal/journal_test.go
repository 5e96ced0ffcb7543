package journal

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestLinesAreKeptUntilReported(t *testing.T) {
	r := New(3)
	for i := range 5 {
		r.Add(fmt.Sprint(i))
	}
	lines, mark := r.Pending()
	if got := strings.Join(lines, ""); got != "234" {
		t.Fatalf("kept %q", got)
	}
	r.Add("5") // pushes "2" out while the report is on its way
	r.Reported(mark)
	if lines, _ = r.Pending(); strings.Join(lines, "") != "5" {
		t.Errorf("left %q", lines)
	}
	r.Reported(mark)
	if lines, _ = r.Pending(); len(lines) != 1 {
		t.Errorf("a mark that was used removed %q", lines)
	}
}

func TestHandler(t *testing.T) {
	var got []string
	log := slog.New(Handler(slog.DiscardHandler, func(l slog.Level, s string) { got = append(got, l.String()+" "+s) }))
	log.With("machine", "n1").WithGroup("disk").Info("step finished", "name", "sd a")
	log.Debug("not shown")
	if len(got) != 1 || got[0] != `INFO step finished machine=n1 disk.name="sd a"` {
		t.Errorf("got %q", got)
	}
}
