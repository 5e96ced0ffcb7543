package daemon

import (
	"encoding/json"
	"net/http"
	"path/filepath"

	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

// updatesFolder is where settings and packages of the update server are.
func (c Config) updatesFolder() string {
	if c.UpdateFolder != "" {
		return c.UpdateFolder
	}
	return filepath.Join(c.DataDir, "updates")
}

// updatesHandler answers people about the update server.
func (s *server) updatesHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.updates == nil {
			http.Error(w, "this server is no update server: start it with --update-port 7082", http.StatusNotFound)
			return
		}
		var answer any
		switch r.Method {
		case http.MethodGet:
			answer = s.updates.Status()
		case http.MethodPost:
			var retry peoplewire.UpdateRetry
			if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<10)).Decode(&retry); err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			answer = peoplewire.UpdateDone{Instances: s.updates.Retry(retry.Group)}
		case http.MethodDelete:
			if !s.updates.Forget(r.URL.Query().Get("instance")) {
				http.Error(w, "there is no such instance", http.StatusNotFound)
				return
			}
			answer = peoplewire.UpdateDone{Instances: 1}
		default:
			w.Header().Set("Allow", "GET, POST, DELETE")
			http.Error(w, "GET, POST and DELETE only", http.StatusMethodNotAllowed)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer)
	})
}
