package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"coldrack.dev/internal/base/durable"
	"coldrack.dev/internal/cluster/backup"
	"coldrack.dev/internal/machine/enroll"
	"coldrack.dev/internal/server/controlplane"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

// restoredFile, in the data folder, says that the store was restored from a backup, as a peoplewire.Restored. It is there until a person has
// confirmed it, and it is in backups: the store that they hold still lacks the same machines.
const restoredFile = "restored.json"

// maxWithheld is how many machines are named that wait for the confirmation.
const maxWithheld = 1000

// markRestored marks a data folder whose store is being restored from m. earlier is what the backup or the folder says already: until a person has
// confirmed it, machines may be missing since that backup.
func markRestored(cfg Config, m backup.Manifest, earlier []byte, now time.Time) error {
	mark := peoplewire.Restored{Backup: m.ID, TakenAt: m.TakenAt, RestoredAt: now.UTC().Truncate(time.Second)}
	var before peoplewire.Restored
	if json.Unmarshal(earlier, &before) == nil && !before.TakenAt.IsZero() && before.TakenAt.Before(mark.TakenAt) {
		mark.TakenAt = before.TakenAt
	}
	text, err := json.MarshalIndent(mark, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(cfg.path(restoredFile), append(text, '\n'), 0o600)
}

// ReadRestored is what a data folder is marked with; the zero value when it is not. A mark that cannot be read is one.
func ReadRestored(cfg Config) (mark peoplewire.Restored, err error) {
	text, err := os.ReadFile(cfg.path(restoredFile))
	if errors.Is(err, fs.ErrNotExist) {
		return mark, nil
	} else if err != nil {
		return mark, err
	}
	if json.Unmarshal(text, &mark) == nil && !mark.RestoredAt.IsZero() {
		return mark, nil
	}
	info, err := os.Stat(cfg.path(restoredFile))
	if err != nil {
		return mark, err
	}
	return peoplewire.Restored{RestoredAt: info.ModTime().UTC()}, nil
}

// restored is the mark of the running server.
type restored struct {
	mu   sync.Mutex
	mark peoplewire.Restored
}

func (r *restored) get() peoplewire.Restored {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mark
}

// takeRestored reads the mark, before any machine is answered.
func (s *server) takeRestored() error {
	mark, err := ReadRestored(s.cfg)
	if err != nil {
		return fmt.Errorf("whether the store was restored: %w", err)
	}
	s.restored.mark = mark
	if !mark.RestoredAt.IsZero() {
		s.fleet.SetRestored(mark.RestoredAt)
		s.log.Warn("the store was restored from a backup; nothing that may destroy a machine's data happens by itself until `coldrack server restored --confirm`",
			"backup", mark.Backup, "taken", mark.TakenAt, "restored", mark.RestoredAt)
	}
	s.metrics.watchRestored(func() peoplewire.Restored { return s.restored.get() })
	return nil
}

// confirmRestored ends the mark.
func (s *server) confirmRestored(by string) error {
	s.restored.mu.Lock()
	defer s.restored.mu.Unlock()
	if s.restored.mark.RestoredAt.IsZero() {
		return nil
	}
	if err := os.Remove(s.cfg.path(restoredFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := durable.SyncDir(s.cfg.DataDir); err != nil {
		return err
	}
	s.restored.mark = peoplewire.Restored{}
	s.fleet.SetRestored(time.Time{})
	s.log.Warn("a person confirmed that the store was restored; machines are enrolled and installed as policies and intents say", "by", by)
	return nil
}

// withheld is the mark, with what waits for its confirmation.
func (s *server) withheld() peoplewire.Restored {
	answer := s.restored.get()
	if answer.RestoredAt.IsZero() {
		return answer
	}
	add := func(machine, why string) {
		if answer.WithheldCount++; len(answer.Withheld) < maxWithheld {
			answer.Withheld = append(answer.Withheld, peoplewire.Withheld{Machine: machine, Why: why})
		}
	}
	for _, m := range s.fleet.List() {
		intent, held := m.OpenIntent(), s.fleet.Live(m.Name).Held
		switch {
		case intent != nil && intent.FromBackup(answer.RestoredAt):
			add(m.Name, fmt.Sprintf("%s, asked for before the restore", strings.ToLower(string(intent.Action))))
		case m.UnknownInstallation() != nil:
			add(m.Name, "its disk bears an installation that this server does not know")
		case enroll.IsRestored(held):
			add(m.Name, "may have been installed since the backup")
		}
	}
	for _, n := range s.fleet.UnknownNodes() {
		answer.UnknownNodes = append(answer.UnknownNodes, peoplewire.UnknownNode{Machine: n.Machine, Address: n.Address, SeenAt: n.SeenAt, IssuedAt: n.IssuedAt})
	}
	slices.SortFunc(answer.UnknownNodes, func(a, b peoplewire.UnknownNode) int { return strings.Compare(a.Machine, b.Machine) })
	return answer
}

// restoredHandler answers at peoplewire.PathRestored.
func (s *server) restoredHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodGet:
		case http.MethodPost:
			person := controlplane.PersonOf(r)
			if person.Role != controlplane.GroupAdmin {
				http.Error(w, "confirming a restore needs role admin: machines may be installed, and so wiped, from then on", http.StatusForbidden)
				return
			}
			if err := s.confirmRestored(person.Name); err != nil {
				s.log.Error("the confirmation of a restore failed", "err", err)
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
		default:
			http.Error(w, "only GET and POST", http.StatusMethodNotAllowed)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(s.withheld())
	})
}
