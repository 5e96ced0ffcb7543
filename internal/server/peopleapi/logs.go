package peopleapi

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"coldrack.dev/internal/machine/fleet"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

// MachineLogs serves GET /coldrack/v1/machines/NAME/log, the last lines about a machine as text; with
// ?follow=1 it goes on as lines come, until the client leaves.
func MachineLogs(known *fleet.Fleet) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, peoplewire.PathMachines+"/"), "/")
		if rest != "log" || name == "" {
			http.NotFound(w, r)
			return
		}
		if _, ok := known.Get(name); !ok {
			http.Error(w, fmt.Sprintf("machine %q is not known", name), http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		control := http.NewResponseController(w)
		_ = control.SetWriteDeadline(time.Time{})
		var last fleet.LogLine
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			for _, line := range newer(known.LogLines(name), last) {
				if _, err := fmt.Fprintf(w, "%s %s\n", line.At.UTC().Format(time.RFC3339), line.Text); err != nil {
					return
				}
				last = line
			}
			if r.URL.Query().Get("follow") == "" {
				return
			}
			_ = control.Flush()
			select {
			case <-r.Context().Done():
				return
			case <-tick.C:
			}
		}
	})
}

// newer returns the lines after last. Lines are kept in a ring: when last has left it, all are newer.
func newer(lines []fleet.LogLine, last fleet.LogLine) []fleet.LogLine {
	for i := len(lines) - 1; i >= 0; i-- {
		if lines[i] == last {
			return lines[i+1:]
		}
	}
	return lines
}
