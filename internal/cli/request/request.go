// Package request sends people's requests that are about no single object, and says what came of them.
package request

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"coldrack.dev/internal/cli/exit"
)

// Post sends JSON to a path below people's API that holds no objects, and reads the answer.
func Post(ctx context.Context, config *rest.Config, what string, request, response any, path ...string) error {
	stream, err := Stream(ctx, config, what, request, nil, path...)
	if err != nil {
		return err
	}
	return decode(what, stream, response)
}

// Get reads what is no object.
func Get(ctx context.Context, config *rest.Config, what string, response any, path ...string) error {
	answer, err := send(ctx, config, what, http.MethodGet, nil, nil, path)
	if err != nil {
		return err
	}
	return decode(what, answer, response)
}

// Find is Get with a query.
func Find(ctx context.Context, config *rest.Config, what string, query url.Values, response any, path ...string) error {
	answer, err := send(ctx, config, what, http.MethodGet, nil, query, path)
	if err != nil {
		return err
	}
	return decode(what, answer, response)
}

// GetNoting is Get that also returns a header of the answer.
func GetNoting(ctx context.Context, config *rest.Config, what string, response any, header string, path ...string) (string, error) {
	answer, err := respond(ctx, config, what, http.MethodGet, nil, "", nil, path)
	if err != nil {
		return "", err
	}
	return answer.Header.Get(header), decode(what, answer.Body, response)
}

// Delete asks for the removal of something that is no object, and reads the answer.
func Delete(ctx context.Context, config *rest.Config, what string, query url.Values, response any, path ...string) error {
	answer, err := send(ctx, config, what, http.MethodDelete, nil, query, path)
	if err != nil {
		return err
	}
	return decode(what, answer, response)
}

// Put sends what is no JSON, and reads the answer.
func Put(ctx context.Context, config *rest.Config, what string, body io.Reader, response any, path ...string) error {
	answer, err := sendBody(ctx, config, what, http.MethodPut, body, "application/octet-stream", nil, path)
	if err != nil {
		return err
	}
	return decode(what, answer, response)
}

func decode(what string, answer io.ReadCloser, into any) error {
	defer answer.Close()
	if err := json.NewDecoder(answer).Decode(into); err != nil {
		return fmt.Errorf("%s: the server's answer: %w", what, err)
	}
	return nil
}

// Stream is Post for an answer that comes bit by bit.
func Stream(ctx context.Context, config *rest.Config, what string, body any, query url.Values, path ...string) (io.ReadCloser, error) {
	content, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	return send(ctx, config, what, http.MethodPost, content, query, path)
}

// send sends JSON, if there is some, and returns the body of an answer that is a success.
func send(ctx context.Context, config *rest.Config, what, method string, content []byte, query url.Values, path []string) (io.ReadCloser, error) {
	kind := ""
	if content != nil {
		kind = "application/json"
	}
	return sendBody(ctx, config, what, method, bytes.NewReader(content), kind, query, path)
}

func sendBody(ctx context.Context, config *rest.Config, what, method string, body io.Reader, kind string, query url.Values, path []string) (io.ReadCloser, error) {
	answer, err := respond(ctx, config, what, method, body, kind, query, path)
	if err != nil {
		return nil, err
	}
	return answer.Body, nil
}

// respond returns an answer that is a success.
func respond(ctx context.Context, config *rest.Config, what, method string, body io.Reader, kind string, query url.Values, path []string) (*http.Response, error) {
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	host, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, err
	}
	target := host.JoinPath(path...)
	target.RawQuery = query.Encode()
	request, err := http.NewRequestWithContext(ctx, method, target.String(), body)
	if err != nil {
		return nil, err
	}
	if kind != "" {
		request.Header.Set("Content-Type", kind)
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if response.StatusCode == http.StatusOK {
		return response, nil
	}
	defer response.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(response.Body, 64<<10))
	return nil, refusal(what, response, text)
}

// errUnavailable is behind the errors of servers, or of what is behind them, that do not answer now.
var errUnavailable = errors.New("unavailable")

// Unavailable says whether a request failed because what it asks does not answer now.
func Unavailable(err error) bool { return errors.Is(err, errUnavailable) }

// unavailable is an answer that says so, in its own words.
type unavailable struct{ text string }

func (u *unavailable) Error() string { return u.text }
func (u *unavailable) Unwrap() error { return errUnavailable }

// refusal turns an answer that is no success into an error.
func refusal(what string, response *http.Response, text []byte) error {
	var status metav1.Status
	said := strings.TrimSpace(string(text))
	if json.Unmarshal(text, &status) == nil && status.Message != "" {
		said = status.Message
	}
	code := exit.Failure
	switch response.StatusCode {
	case http.StatusNotFound:
		code = exit.NotFound
	case http.StatusBadRequest:
		code = exit.Usage
	case http.StatusForbidden, http.StatusConflict:
		code = exit.Refused
	case http.StatusServiceUnavailable:
		return &unavailable{fmt.Sprintf("%s: %s", what, cmp.Or(said, response.Status))}
	case http.StatusUnauthorized:
		return fmt.Errorf("%s: %w", what, apierrors.NewUnauthorized(said))
	}
	return &exit.Error{Code: code, Err: fmt.Errorf("%s: %s", what, cmp.Or(said, response.Status))}
}
