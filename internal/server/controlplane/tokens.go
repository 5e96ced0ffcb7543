package controlplane

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"

	"coldrack.dev/internal/base/durable"
)

// Token is a bearer token that people or programs authenticate with. The secret itself is shown once, when
// the token is made; only its hash is kept. It has 256 random bits, so a plain hash is enough.
type Token struct {
	// Name is the user that a request with the token acts as.
	Name    string    `json:"name"`
	Groups  []string  `json:"groups"`
	SHA256  string    `json:"sha256"`
	Created time.Time `json:"created"`
	// Expires is when the token stops working; zero: never.
	Expires time.Time `json:"expires,omitzero"`
}

// Expired tells whether the token no longer works at a time.
func (t Token) Expired(now time.Time) bool { return !t.Expires.IsZero() && !now.Before(t.Expires) }

// Tokens is the file of bearer tokens. The server and the command line may use it at the same time; a change
// takes effect with the next request.
type Tokens struct {
	path string
	now  func() time.Time

	mu     sync.Mutex
	loaded os.FileInfo
	tokens []Token
}

// OpenTokens returns the tokens kept in a file, which need not exist yet.
func OpenTokens(path string) *Tokens { return &Tokens{path: path, now: time.Now} }

const tokenPrefix = "coldrack-"

var tokenName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._@-]{0,61}[A-Za-z0-9])?$`)

// Create makes a token and returns its secret, which cannot be had again. A lifetime of zero means for ever.
func (t *Tokens) Create(name string, groups []string, lifetime time.Duration) (secret string, err error) {
	if !tokenName.MatchString(name) {
		return "", fmt.Errorf("token name %q: up to 63 letters, digits and . _ @ -, beginning and ending with a letter or digit", name)
	}
	if len(groups) == 0 {
		return "", fmt.Errorf("token %s: no group; without one of %s it could do nothing", name, strings.Join(roleGroups(), ", "))
	}
	for _, g := range groups {
		if !slices.Contains(roleGroups(), g) {
			return "", fmt.Errorf("token %s: unknown group %q; the groups are %s", name, g, strings.Join(roleGroups(), ", "))
		}
	}
	if lifetime < 0 {
		return "", fmt.Errorf("token %s: negative lifetime %s", name, lifetime)
	}
	random := make([]byte, 32)
	rand.Read(random)
	secret = tokenPrefix + hex.EncodeToString(random)
	sum := sha256.Sum256([]byte(secret))
	token := Token{
		Name: name, Groups: groups, SHA256: hex.EncodeToString(sum[:]),
		Created: t.now().UTC().Truncate(time.Second),
	}
	if lifetime > 0 {
		token.Expires = t.now().Add(lifetime).UTC().Truncate(time.Second)
	}
	return secret, t.change(func(tokens []Token) ([]Token, error) {
		if slices.ContainsFunc(tokens, func(other Token) bool { return other.Name == name }) {
			return nil, fmt.Errorf("token %s exists already; revoke it first", name)
		}
		return append(tokens, token), nil
	})
}

// List returns all tokens, expired ones too.
func (t *Tokens) List() ([]Token, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.reload()
	return slices.Clone(t.tokens), err
}

// Revoke removes a token; requests with it fail from now on.
func (t *Tokens) Revoke(name string) error {
	return t.change(func(tokens []Token) ([]Token, error) {
		kept := slices.DeleteFunc(slices.Clone(tokens), func(token Token) bool { return token.Name == name })
		if len(kept) == len(tokens) {
			return nil, fmt.Errorf("no token is named %s", name)
		}
		return kept, nil
	})
}

// AuthenticateToken implements authenticator.Token.
func (t *Tokens) AuthenticateToken(_ context.Context, secret string) (*authenticator.Response, bool, error) {
	if !strings.HasPrefix(secret, tokenPrefix) {
		return nil, false, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.reload(); err != nil {
		return nil, false, err
	}
	sum := sha256.Sum256([]byte(secret))
	hash := []byte(hex.EncodeToString(sum[:]))
	// Every entry is compared, so that the time tells nothing about which one was close.
	found := -1
	for i, token := range t.tokens {
		if subtle.ConstantTimeCompare(hash, []byte(token.SHA256)) == 1 {
			found = i
		}
	}
	if found < 0 {
		return nil, false, errors.New("unknown or revoked token")
	}
	token := t.tokens[found]
	if token.Expired(t.now()) {
		return nil, false, fmt.Errorf("token %s expired at %s", token.Name, token.Expires.Format(time.RFC3339))
	}
	return &authenticator.Response{User: token.user()}, true, nil
}

// credentialToken begins the id of a credential that is a token, as X509SHA256= does for certificates.
const credentialToken = "TOKENSHA256="

func (t Token) user() *user.DefaultInfo {
	return &user.DefaultInfo{Name: t.Name, Groups: t.Groups, Extra: extraOf(credentialToken+t.SHA256, t.Expires)}
}

// stands is an error when the token with this hash is gone or has expired.
func (t *Tokens) stands(hash string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.reload(); err != nil {
		return err
	}
	if !slices.ContainsFunc(t.tokens, func(token Token) bool { return token.SHA256 == hash && !token.Expired(t.now()) }) {
		return errors.New("the token that this session was opened with was revoked or has expired")
	}
	return nil
}

// reload reads the file when it is another than the one read last. Requires mu.
func (t *Tokens) reload() error {
	info, err := os.Stat(t.path)
	if errors.Is(err, fs.ErrNotExist) {
		t.loaded, t.tokens = nil, nil
		return nil
	}
	if err != nil {
		return fmt.Errorf("read tokens: %w", err)
	}
	if t.loaded != nil && os.SameFile(t.loaded, info) && t.loaded.ModTime().Equal(info.ModTime()) && t.loaded.Size() == info.Size() {
		return nil
	}
	tokens, err := readTokens(t.path)
	if err != nil {
		return err
	}
	t.loaded, t.tokens = info, tokens
	return nil
}

func readTokens(path string) ([]Token, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read tokens: %w", err)
	}
	var tokens []Token
	if err := json.Unmarshal(data, &tokens); err != nil {
		return nil, fmt.Errorf("tokens in %s: %w; repair the file or remove it and make new tokens", path, err)
	}
	// A hand-edited file must not hand out the identity of the system.
	for _, token := range tokens {
		if strings.HasPrefix(token.Name, "system:") || slices.ContainsFunc(token.Groups, func(g string) bool { return strings.HasPrefix(g, "system:") }) {
			return nil, fmt.Errorf("tokens in %s: %q: names and groups that begin with system: are reserved", path, token.Name)
		}
	}
	return tokens, nil
}

// change replaces the file, with every other process that would do so kept waiting.
func (t *Tokens) change(edit func([]Token) ([]Token, error)) error {
	if err := os.MkdirAll(filepath.Dir(t.path), 0o700); err != nil {
		return fmt.Errorf("write tokens: %w", err)
	}
	lock, err := os.OpenFile(t.path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("lock tokens: %w", err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("lock tokens: %w", err)
	}
	tokens, err := readTokens(t.path)
	if err != nil {
		return err
	}
	if tokens, err = edit(tokens); err != nil {
		return err
	}
	data, err := json.MarshalIndent(tokens, "", "  ")
	if err != nil {
		return err
	}
	if err := durable.WriteFile(t.path, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("write tokens: %w", err)
	}
	return nil
}
