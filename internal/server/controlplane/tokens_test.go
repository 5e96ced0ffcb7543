package controlplane

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestTokens(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "data", "tokens.json")
	tokens := OpenTokens(path)
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	tokens.now = func() time.Time { return now }

	if list, err := tokens.List(); err != nil || len(list) != 0 {
		t.Fatalf("without a file: %v, %v", list, err)
	}
	secret, err := tokens.Create("ci", []string{GroupViewer}, time.Hour)
	check(t, err)
	forever, err := tokens.Create("backup@site", []string{GroupAdmin, GroupViewer}, 0)
	check(t, err)

	response, ok, err := tokens.AuthenticateToken(ctx, secret)
	if err != nil || !ok || response.User.GetName() != "ci" || fmt.Sprint(response.User.GetGroups()) != "["+GroupViewer+"]" {
		t.Fatalf("got %v, %v, %v", response, ok, err)
	}
	if _, ok, err := tokens.AuthenticateToken(ctx, "eyJhbGciOi"); ok || err != nil {
		t.Errorf("somebody else's kind of token: %v, %v", ok, err)
	}
	if _, ok, err := tokens.AuthenticateToken(ctx, secret+"0"); ok || err == nil {
		t.Errorf("almost the secret: %v, %v", ok, err)
	}

	data, err := os.ReadFile(path)
	check(t, err)
	if strings.Contains(string(data), strings.TrimPrefix(secret, tokenPrefix)) {
		t.Error("the file holds the secret")
	}
	info, err := os.Stat(path)
	check(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}

	now = now.Add(time.Hour)
	if _, ok, err := tokens.AuthenticateToken(ctx, secret); ok || !strings.Contains(fmt.Sprint(err), "expired at 2026-01-01T01:00:00Z") {
		t.Errorf("after its end: %v, %v", ok, err)
	}
	if _, ok, err := tokens.AuthenticateToken(ctx, forever); !ok || err != nil {
		t.Errorf("one without end: %v, %v", ok, err)
	}

	// Another process, such as the command line, changes the file.
	check(t, OpenTokens(path).Revoke("backup@site"))
	if _, ok, _ := tokens.AuthenticateToken(ctx, forever); ok {
		t.Error("a revoked token still works")
	}
	if list, err := tokens.List(); err != nil || len(list) != 1 || list[0].Name != "ci" {
		t.Errorf("got %v, %v", list, err)
	}
}

func TestTokensAreRefused(t *testing.T) {
	t.Parallel()
	tokens := OpenTokens(filepath.Join(t.TempDir(), "tokens.json"))
	_, err := tokens.Create("taken", []string{GroupViewer}, 0)
	check(t, err)
	create := func(name string, lifetime time.Duration, groups ...string) error {
		_, err := tokens.Create(name, groups, lifetime)
		return err
	}
	for name, test := range map[string]struct {
		err  error
		want string
	}{
		"a name that exists":          {create("taken", 0, GroupViewer), "exists already"},
		"a name with a colon":         {create("system:apiserver", 0, GroupViewer), "token name"},
		"no name":                     {create("", 0, GroupViewer), "token name"},
		"no group":                    {create("a", 0), "no group"},
		"a group that means nothing":  {create("a", 0, "admins"), "unknown group \"admins\"; the groups are coldrack:admin"},
		"the system's group":          {create("a", 0, "system:masters"), "unknown group"},
		"a lifetime before its start": {create("a", -1, GroupViewer), "negative lifetime"},
		"revoking what is not there":  {tokens.Revoke("a"), "no token is named a"},
	} {
		if test.err == nil || !strings.Contains(test.err.Error(), test.want) {
			t.Errorf("%s: error %v, want %q", name, test.err, test.want)
		}
	}
}

func TestTokensInAFileThatIsWrongOpenNothing(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tokens.json")
	tokens := OpenTokens(path)
	secret, err := tokens.Create("ci", []string{GroupAdmin}, 0)
	check(t, err)
	good, err := os.ReadFile(path)
	check(t, err)
	for name, content := range map[string]string{
		"cut short":            string(good[:len(good)/2]),
		"the system's group":   strings.Replace(string(good), GroupAdmin, "system:masters", 1),
		"the system's name":    strings.Replace(string(good), `"ci"`, `"system:apiserver"`, 1),
		"something else":       "kind: Secret",
		"nothing in the file":  "",
		"no tokens, of course": "[]",
	} {
		check(t, os.WriteFile(path, []byte(content), 0o600))
		if _, ok, err := tokens.AuthenticateToken(context.Background(), secret); ok || err == nil {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
	}
}

func TestTokensSurviveManyWriters(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tokens.json")
	var writers sync.WaitGroup
	for i := range 20 {
		writers.Go(func() {
			if _, err := OpenTokens(path).Create(fmt.Sprint("t", i), []string{GroupViewer}, 0); err != nil {
				t.Error(err)
			}
		})
	}
	writers.Wait()
	if list, err := OpenTokens(path).List(); err != nil || len(list) != 20 {
		t.Errorf("%d tokens, %v", len(list), err)
	}
}
