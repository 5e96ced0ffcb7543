// Package upload sends bundles and container images to a server. An upload that was interrupted goes on where it was.
package upload

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"k8s.io/client-go/rest"

	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/content/bundle"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

// How a bundle travels to the server, below people's API and under its authentication (the other side is
// internal/server/daemon/bundles.go). The upload is named by the digest of the bundle's index, so that it finds its
// earlier half again after an interruption.
const (
	offsetHeader = "Coldrack-Offset"
	// maxAttempts in a row may make no headway before an upload is given up.
	maxAttempts = 5
)

// importLine is one line of the server's answer. The last one has Bundle or Error.
type importLine struct {
	Progress *bundle.Progress `json:"progress"`
	Bundle   *bundle.Summary  `json:"bundle"`
	Error    string           `json:"error"`
}

// Name of the upload of the bundle whose index has this digest.
func Name(digest string) string { return strings.Replace(digest, ":", "-", 1) + ".tar" }

// uploader sends one archive.
type uploader struct {
	show               io.Writer
	client             *http.Client
	url                url.URL
	name               string // of the upload
	path               string
	size               int64
	sending, importing *cli.Meter
}

// request is one to the server's upload handler.
func (u *uploader) request(ctx context.Context, method string, body io.Reader, query url.Values) (*http.Request, error) {
	target := u.url
	query.Set("name", u.name)
	target.RawQuery = query.Encode()
	return http.NewRequestWithContext(ctx, method, target.String(), body)
}

// Send sends the archive at path, whose index has this digest, and returns what the server has imported. It shows its
// progress on show.
func Send(ctx context.Context, config *rest.Config, path, digest string, show io.Writer, now func() time.Time) (*bundle.Summary, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	host, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, err
	}
	u := &uploader{
		show: show, client: client, url: *host.JoinPath(peoplewire.PathBundles), name: Name(digest),
		path: path, size: info.Size(), sending: cli.NewMeter(show, "sending", now), importing: cli.NewMeter(show, "importing", now),
	}
	if err := u.askTrust(ctx); err != nil {
		return nil, err
	}
	return u.run(ctx)
}

// askTrust shows the server the head of the archive, so that a bundle that it does not trust is not sent.
func (u *uploader) askTrust(ctx context.Context) error {
	head, err := bundle.Head(u.path)
	if err != nil || head == nil {
		return err
	}
	request, err := u.request(ctx, http.MethodPost, bytes.NewReader(head), url.Values{})
	if err != nil {
		return err
	}
	response, err := u.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusNoContent, http.StatusMethodNotAllowed: // an older server tells only when it has all
		return nil
	}
	text, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
	return refusal(response, string(text))
}

// errRefused is an answer that will be the same the next time.
var errRefused = errors.New("refused")

// run sends until the server has all and has imported it. A broken connection is taken up again where the
// server says that it stopped, as long as each attempt gets further than the one before.
func (u *uploader) run(ctx context.Context) (*bundle.Summary, error) {
	var last error
	furthest := int64(-1)
	for attempt := 0; attempt < maxAttempts; attempt++ {
		if attempt > 0 {
			fmt.Fprintf(u.show, "connection lost, trying again: %v\n", last)
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(time.Duration(attempt) * time.Second):
			}
		}
		offset, err := u.offset(ctx)
		if err == nil {
			if offset > furthest {
				furthest, attempt = offset, 0
			}
			var result *bundle.Summary
			if result, err = u.send(ctx, offset); err == nil {
				return result, nil
			}
		}
		if errors.Is(err, errRefused) || ctx.Err() != nil {
			return nil, err
		}
		last = err
	}
	return nil, fmt.Errorf("gave up after %d attempts; start the import again to continue: %w", maxAttempts, last)
}

// offset asks how much of the archive the server holds.
func (u *uploader) offset(ctx context.Context) (int64, error) {
	request, err := u.request(ctx, http.MethodHead, nil, url.Values{})
	if err != nil {
		return 0, err
	}
	response, err := u.client.Do(request)
	if err != nil {
		return 0, err
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return 0, refusal(response, "")
	}
	offset, err := strconv.ParseInt(response.Header.Get(offsetHeader), 10, 64)
	if err != nil || offset < 0 {
		return 0, fmt.Errorf("%w: the server answered with offset %q", errRefused, response.Header.Get(offsetHeader))
	}
	if offset > u.size {
		return 0, nil // another archive of the same content; the server drops it for ours
	}
	return offset, nil
}

// send sends the archive from offset and follows the import.
func (u *uploader) send(ctx context.Context, offset int64) (*bundle.Summary, error) {
	file, err := os.Open(u.path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errRefused, err)
	}
	defer file.Close()
	if _, err := file.Seek(offset, io.SeekStart); err != nil {
		return nil, fmt.Errorf("%w: %w", errRefused, err)
	}
	var body io.Reader = http.NoBody // the server may have all and lack only the import
	if offset < u.size {
		body = &counter{reader: io.LimitReader(file, u.size-offset), report: func(n int64) { u.sending.At(offset+n, u.size, u.path) }}
	}
	request, err := u.request(ctx, http.MethodPut, body, url.Values{"offset": {strconv.FormatInt(offset, 10)}})
	if err != nil {
		return nil, err
	}
	request.ContentLength = u.size - offset
	request.Header.Set("Content-Type", "application/x-tar")
	response, err := u.client.Do(request)
	u.sending.End()
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusConflict {
		return nil, errors.New("the server holds another part of the archive") // the next attempt asks which
	}
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
		return nil, refusal(response, string(text))
	}
	return u.follow(response.Body)
}

// follow shows the progress of an import and returns its outcome.
func (u *uploader) follow(answer io.Reader) (*bundle.Summary, error) {
	defer u.importing.End()
	lines := json.NewDecoder(answer)
	for {
		var line importLine
		err := lines.Decode(&line)
		switch {
		case errors.Is(err, io.EOF):
			return nil, errors.New("the server's answer ended before its outcome")
		case err != nil:
			return nil, err
		case line.Error != "":
			return nil, fmt.Errorf("%w by the server: %s", errRefused, line.Error)
		case line.Bundle != nil:
			return line.Bundle, nil
		case line.Progress != nil:
			u.importing.At(line.Progress.Done, line.Progress.Total, line.Progress.File)
		}
	}
}

// refusal turns an answer into an error; what the server cannot help now may be tried again.
func refusal(response *http.Response, text string) error {
	var status struct {
		Message string `json:"message"`
	}
	if json.Unmarshal([]byte(text), &status) == nil && status.Message != "" {
		text = status.Message
	}
	text = strings.TrimSpace(text)
	if text == "" {
		text = response.Status
	}
	if response.StatusCode >= http.StatusInternalServerError {
		return errors.New(text)
	}
	return fmt.Errorf("%w by the server: %s", errRefused, text)
}

// counter tells how much of a body has been read.
type counter struct {
	reader io.Reader
	n      int64
	report func(int64)
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.reader.Read(p)
	c.n += int64(n)
	c.report(c.n)
	return n, err
}
