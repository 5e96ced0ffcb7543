package kubeapi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// DeprecatedAPI is a version of an API that somebody has used since an API server was started, and that a later release has not got.
type DeprecatedAPI struct {
	// Name is GROUP/VERSION RESOURCE.
	Name string
	// RemovedIn is the first release without it, such as 1.38; empty when that is not decided.
	RemovedIn string
}

const (
	deprecatedMetric = "apiserver_requested_deprecated_apis{"
	// metricsLimit bounds what an API server may say of itself.
	metricsLimit = 256 << 20
)

// DeprecatedAPIs are those that the API servers have seen in use since each of them was started, by name. What an API server does not say is
// an error: an upgrade must not begin because nobody could be asked.
func (c *Connection) DeprecatedAPIs(ctx context.Context) ([]DeprecatedAPI, error) {
	var all []DeprecatedAPI
	var errs []error
	for _, server := range c.target.Servers {
		apis, err := c.deprecatedAt(ctx, server)
		if err != nil {
			errs = append(errs, fmt.Errorf("ask %s for the APIs in use: %w", server, reason(err)))
		}
		all = append(all, apis...)
	}
	slices.SortFunc(all, func(a, b DeprecatedAPI) int { return strings.Compare(a.Name+a.RemovedIn, b.Name+b.RemovedIn) })
	return slices.Compact(all), errors.Join(errs...)
}

func (c *Connection) deprecatedAt(ctx context.Context, server netip.AddrPort) ([]DeprecatedAPI, error) {
	transport, err := c.currentTransport()
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+server.String()+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("User-Agent", userAgent)
	request.Header.Set("Accept", "text/plain")
	response, err := transport.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("its metrics: %s", response.Status)
	}
	return parseDeprecated(io.LimitReader(response.Body, metricsLimit))
}

// parseDeprecated reads the text format of Prometheus, of which it knows one metric.
func parseDeprecated(metrics io.Reader) ([]DeprecatedAPI, error) {
	var apis []DeprecatedAPI
	lines := bufio.NewScanner(metrics)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		text, ok := strings.CutPrefix(lines.Text(), deprecatedMetric)
		if !ok {
			continue
		}
		labels, value, ok := parseLabels(text)
		if !ok {
			return nil, fmt.Errorf("its metrics have a line that cannot be read: %.200q", lines.Text())
		}
		if strings.TrimSpace(value) == "0" {
			continue
		}
		api := DeprecatedAPI{Name: labels["version"] + " " + labels["resource"], RemovedIn: labels["removed_release"]}
		if labels["group"] != "" {
			api.Name = labels["group"] + "/" + api.Name
		}
		if labels["subresource"] != "" {
			api.Name += "/" + labels["subresource"]
		}
		if !slices.Contains(apis, api) {
			apis = append(apis, api)
		}
	}
	return apis, lines.Err()
}

// parseLabels reads name="value", and so on up to the closing brace, and returns what follows.
func parseLabels(text string) (labels map[string]string, rest string, ok bool) {
	labels = map[string]string{}
	for {
		text = strings.TrimLeft(text, ", ")
		if after, end := strings.CutPrefix(text, "}"); end {
			return labels, after, true
		}
		name, quoted, found := strings.Cut(text, `="`)
		if !found {
			return nil, "", false
		}
		var value strings.Builder
		i := 0
		for ; i < len(quoted) && quoted[i] != '"'; i++ {
			if quoted[i] == '\\' && i+1 < len(quoted) {
				i++
				if quoted[i] == 'n' {
					value.WriteByte('\n')
					continue
				}
			}
			value.WriteByte(quoted[i])
		}
		if i == len(quoted) {
			return nil, "", false
		}
		labels[name], text = value.String(), quoted[i+1:]
	}
}
