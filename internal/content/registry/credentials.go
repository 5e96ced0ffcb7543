package registry

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"golang.org/x/net/http/httpproxy"
)

// maxCredentials bounds the file, bytes.
const maxCredentials = 1 << 20

// ReadCredentials reads names and passwords of registries, by their hosts as images' names have them, from a file in the form that
// "docker login" and "skopeo login" write: {"auths": {"HOST": {"auth": "BASE64 OF NAME:PASSWORD"}}}.
func ReadCredentials(path string) (map[string]authn.AuthConfig, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("credentials of registries: %w", err)
	}
	if info.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("credentials of registries: everybody may read %s; chmod 600 it", path)
	}
	if info.Size() > maxCredentials {
		return nil, fmt.Errorf("credentials of registries: %s has %d bytes, want at most %d", path, info.Size(), maxCredentials)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("credentials of registries: %w", err)
	}
	var file struct {
		Auths map[string]struct {
			Auth, Username, Password, IdentityToken, RegistryToken string
		} `json:"auths"`
		CredsStore  string            `json:"credsStore"`
		CredHelpers map[string]string `json:"credHelpers"`
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		return nil, fmt.Errorf("credentials of registries: %s is no file of docker login: %w", path, err)
	}
	if file.CredsStore != "" || len(file.CredHelpers) > 0 {
		return nil, fmt.Errorf("credentials of registries: %s names programs that have the passwords (credsStore, credHelpers), and none is run; log in with skopeo login --authfile", path)
	}
	found := map[string]authn.AuthConfig{}
	for key, auth := range file.Auths {
		host, err := parseHost(hostOf(key))
		if err != nil {
			return nil, fmt.Errorf("credentials of registries: %s: %w", path, err)
		}
		c := authn.AuthConfig{Username: auth.Username, Password: auth.Password, IdentityToken: auth.IdentityToken, RegistryToken: auth.RegistryToken}
		if auth.Auth != "" {
			text, err := base64.StdEncoding.DecodeString(auth.Auth)
			name, password, ok := strings.Cut(string(text), ":")
			if err != nil || !ok {
				return nil, fmt.Errorf("credentials of registries: %s: auth of %s is not NAME:PASSWORD in base64", path, host)
			}
			c.Username, c.Password = name, password
		}
		found[host] = c
	}
	return found, nil
}

// hostOf is the host of a key, which may be a URL, as that of Docker's own registry.
func hostOf(key string) string {
	if _, rest, ok := strings.Cut(key, "://"); ok {
		key = rest
	}
	host, _, _ := strings.Cut(key, "/")
	return host
}

// authOf are the credentials for an upstream. The file is read each time, so that a new password counts at once.
func (u *upstream) authOf(host string) (authn.Authenticator, error) {
	if u.credentials == "" {
		return authn.Anonymous, nil
	}
	all, err := ReadCredentials(u.credentials)
	if err != nil {
		return nil, err
	}
	auth, ok := all[canonicalHost(host)]
	if !ok {
		return authn.Anonymous, nil
	}
	return authn.FromConfig(auth), nil
}

// proxyOf tells which proxy a request goes through, by the variables that programs in the field know: HTTP_PROXY, HTTPS_PROXY, NO_PROXY,
// and for both, which Go's own transport does not know, ALL_PROXY. A proxy is http://, https:// or socks5://HOST:PORT.
func proxyOf(getenv func(string) string) (func(*http.Request) (*url.URL, error), error) {
	config := httpproxy.FromEnvironment()
	all := getenv("ALL_PROXY")
	if all == "" {
		all = getenv("all_proxy")
	}
	if config.HTTPProxy == "" {
		config.HTTPProxy = all
	}
	if config.HTTPSProxy == "" {
		config.HTTPSProxy = all
	}
	for _, text := range []string{config.HTTPProxy, config.HTTPSProxy} {
		if err := checkProxy(text); err != nil {
			return nil, err
		}
	}
	choose := config.ProxyFunc()
	return func(request *http.Request) (*url.URL, error) { return choose(request.URL) }, nil
}

func checkProxy(text string) error {
	if text == "" {
		return nil
	}
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	proxy, err := url.Parse(text)
	if err != nil {
		return errors.New("a proxy in the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) is no URL") // it may have a password in it
	}
	switch proxy.Scheme {
	case "http", "https", "socks5", "socks5h":
		return nil
	}
	return fmt.Errorf("a proxy in the environment begins with %s://, want http, https or socks5", clip(proxy.Scheme))
}
