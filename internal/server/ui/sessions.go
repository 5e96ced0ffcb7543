package ui

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"coldrack.dev/internal/base/durable"
	"coldrack.dev/internal/server/controlplane"
)

const (
	// sessionLife is how long a session lasts, unless what it was opened with ends before.
	sessionLife = 12 * time.Hour
	// maxSessions in all, maxOfOne of one person; one more ends the oldest.
	maxSessions, maxOfOne = 1000, 20
)

// session is a browser that acts as a person. Its secret is the browser's; only the hash is kept.
type session struct {
	SHA256     string    `json:"sha256"`
	Name       string    `json:"name"`
	Groups     []string  `json:"groups"`
	Credential string    `json:"credential,omitempty"`
	Created    time.Time `json:"created"`
	// Until is the session's end, CredentialUntil that of the certificate or token; zero: never.
	Until           time.Time `json:"until"`
	CredentialUntil time.Time `json:"credentialUntil,omitzero"`
}

func (s session) person() controlplane.Person {
	return controlplane.Person{Name: s.Name, Groups: s.Groups, Credential: s.Credential, Until: s.CredentialUntil}
}

// sessions are kept in a file, so that a restart of the server ends none.
type sessions struct {
	file string
	now  func() time.Time

	mu  sync.Mutex
	all []session // the oldest first
}

// openSessions returns sessions that work, also with an error.
func openSessions(file string, now func() time.Time) (*sessions, error) {
	s := &sessions{file: file, now: now}
	content, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(content, &s.all); err != nil {
		s.all = nil
		return s, err
	}
	// A hand-edited file must not hand out the identity of the system.
	s.all = slices.DeleteFunc(s.all, func(one session) bool {
		return strings.HasPrefix(one.Name, "system:") || slices.ContainsFunc(one.Groups, func(g string) bool { return strings.HasPrefix(g, "system:") })
	})
	return s, nil
}

func hash(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

func newSecret() string {
	random := make([]byte, 32)
	rand.Read(random)
	return hex.EncodeToString(random)
}

// open makes a session for a person and returns its secret.
func (s *sessions) open(p controlplane.Person) (string, session, error) {
	now := s.now().UTC().Truncate(time.Second)
	until := now.Add(sessionLife)
	if !p.Until.IsZero() && p.Until.Before(until) {
		until = p.Until
	}
	secret := newSecret()
	groups := slices.DeleteFunc(slices.Clone(p.Groups), func(g string) bool { return strings.HasPrefix(g, "system:") })
	made := session{SHA256: hash(secret), Name: p.Name, Groups: groups, Credential: p.Credential, Created: now, Until: until, CredentialUntil: p.Until}
	return secret, made, s.change(func(all []session) []session {
		all = slices.DeleteFunc(all, func(one session) bool { return !now.Before(one.Until) })
		all = append(all, made)
		ofOne := 0
		for _, one := range all {
			if one.Name == p.Name {
				ofOne++
			}
		}
		if ofOne > maxOfOne {
			oldest := slices.IndexFunc(all, func(one session) bool { return one.Name == p.Name })
			all = slices.Delete(all, oldest, oldest+1)
		}
		if len(all) > maxSessions {
			all = all[1:]
		}
		return all
	})
}

// get returns the session with this secret that has not ended, or nil.
func (s *sessions) get(secret string) *session {
	sum := hash(secret)
	s.mu.Lock()
	defer s.mu.Unlock()
	// Hashes of 256 random bits are compared: how long that takes tells nothing about a secret.
	i := slices.IndexFunc(s.all, func(one session) bool { return one.SHA256 == sum })
	if i < 0 || !s.now().Before(s.all[i].Until) {
		return nil
	}
	found := s.all[i]
	return &found
}

func (s *sessions) find(secret string) (controlplane.Person, bool) {
	found := s.get(secret)
	if found == nil {
		return controlplane.Person{}, false
	}
	return found.person(), true
}

// end forgets a session.
func (s *sessions) end(secret string) error {
	sum := hash(secret)
	return s.change(func(all []session) []session {
		return slices.DeleteFunc(all, func(one session) bool { return one.SHA256 == sum })
	})
}

func (s *sessions) change(edit func([]session) []session) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := edit(slices.Clone(s.all))
	content, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	if err := durable.WriteFile(s.file, append(content, '\n'), 0o600); err != nil {
		return err
	}
	s.all = all
	return nil
}
