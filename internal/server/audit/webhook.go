package audit

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
)

// webhook sends records as an EventList of audit.k8s.io/v1, as the audit webhooks of Kubernetes take it.
type webhook struct {
	url, tokenFile string
	client         *http.Client
}

func newWebhook(e Export) (*webhook, error) {
	config, err := trust("webhook", e.WebhookCAFile)
	if err != nil {
		return nil, err
	}
	return &webhook{url: e.Webhook, tokenFile: e.WebhookTokenFile, client: &http.Client{
		Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: config, ForceAttemptHTTP2: true, MaxIdleConns: 1, IdleConnTimeout: sendTime},
		// The records and the token are for the receiver that was named.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// name has no secrets that a URL may carry.
func (w *webhook) name() string {
	u, err := url.Parse(w.url)
	if err != nil {
		return "webhook"
	}
	return u.Scheme + "://" + u.Host
}

func (w *webhook) close() { w.client.CloseIdleConnections() }

// refusedError is an answer that another attempt does not change.
type refusedError string

func (e refusedError) Error() string { return string(e) }
func (refusedError) Final() bool     { return true }

func (w *webhook) send(ctx context.Context, records [][]byte) (int, error) {
	body := append([]byte(`{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":[`), bytes.Join(records, []byte(","))...)
	body = append(body, "]}"...)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	request.Header.Set("Content-Type", "application/json")
	if w.tokenFile != "" {
		token, err := os.ReadFile(w.tokenFile)
		if err != nil {
			return 0, fmt.Errorf("token of the audit webhook: %w", err)
		}
		request.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	response, err := w.client.Do(request)
	if err != nil {
		return 0, fmt.Errorf("audit webhook: %w", err)
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 64<<10))
	switch code := response.StatusCode; {
	case code < 300:
		return len(records), nil
	case oneByOne(code) && len(records) > 1:
		return w.send(ctx, records[:len(records)/2])
	case oneByOne(code):
		return 0, refusedError("the audit webhook answered " + response.Status)
	default:
		return 0, fmt.Errorf("the audit webhook answered %s", response.Status)
	}
}

// oneByOne are answers that may be about one of the records only.
func oneByOne(code int) bool {
	return code == http.StatusBadRequest || code == http.StatusRequestEntityTooLarge || code == http.StatusUnprocessableEntity
}
