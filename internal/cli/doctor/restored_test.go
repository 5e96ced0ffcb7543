package doctor

import (
	"errors"
	"strings"
	"testing"
	"time"

	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

func TestRestored(t *testing.T) {
	at := time.Date(2026, 12, 1, 8, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		mark peoplewire.Restored
		err  error
		want string
	}{
		{peoplewire.Restored{}, nil, ""},
		{peoplewire.Restored{Backup: "b", TakenAt: at, RestoredAt: at.Add(time.Hour)}, nil, "warn the store was restored at 2026-12-01T09:00:00Z from backup b; machines may be missing since 2026-12-01T08:00:00Z; no machine"},
		{peoplewire.Restored{RestoredAt: at}, nil, "warn the store was restored at 2026-12-01T08:00:00Z; no machine"},
		{peoplewire.Restored{}, errors.New("permission denied"), "warn not known: permission denied"},
	} {
		got := ""
		for _, r := range restored(func() (peoplewire.Restored, error) { return test.mark, test.err }) {
			got += string(r.State) + " " + r.Found
		}
		if !strings.HasPrefix(got, test.want) || test.want == "" && got != "" {
			t.Errorf("%q, want %q", got, test.want)
		}
	}
}
