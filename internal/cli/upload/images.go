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
	"strings"
	"time"

	"k8s.io/client-go/rest"

	"coldrack.dev/internal/cli"
	"coldrack.dev/internal/content/imagefile"
	"coldrack.dev/internal/server/peopleapi/peoplewire"
)

// ImageSender sends container images to a server, by the OCI distribution protocol below people's API. What the server has
// of them is not sent again, so that a load that broke off goes on where it was.
type ImageSender struct {
	client *http.Client
	base   url.URL // that the protocol's paths are below
	show   io.Writer
	now    func() time.Time
}

// NewImageSender returns one for the server of a connection. It shows its progress on show.
func NewImageSender(config *rest.Config, show io.Writer, now func() time.Time) (*ImageSender, error) {
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	host, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, err
	}
	return &ImageSender{client: client, base: *host.JoinPath(peoplewire.PathImages), show: show, now: now}, nil
}

// Send sends an image under a full name with tag. sent are the bytes that the server did not have.
func (s *ImageSender) Send(ctx context.Context, i imagefile.Image, name string) (sent int64, err error) {
	at := strings.LastIndexByte(name, ':')
	t := &imageTransfer{ImageSender: s, tag: name[at+1:], meter: cli.NewMeter(s.show, "sending", s.now), total: i.Size()}
	t.host, t.path, _ = strings.Cut(name[:at], "/")
	for _, blob := range i.Blobs {
		if err := t.blob(ctx, blob); err != nil {
			return t.sent, err
		}
		t.done += blob.Size
	}
	t.meter.At(t.total, t.total, name)
	t.meter.End()
	for n, m := range i.Manifests {
		reference := m.Digest
		if n == len(i.Manifests)-1 {
			reference = t.tag
		}
		if err := t.manifest(ctx, m, reference); err != nil {
			return t.sent, err
		}
	}
	return t.sent, nil
}

// imageTransfer is one image on its way.
type imageTransfer struct {
	*ImageSender
	host, path, tag   string
	meter             *cli.Meter
	total, done, sent int64
}

// target is the URL of something of the repository.
func (t *imageTransfer) target(elem ...string) *url.URL {
	u := t.base.JoinPath(append([]string{"v2", t.path}, elem...)...)
	u.RawQuery = url.Values{"ns": {t.host}}.Encode()
	return u
}

// do sends a request, and returns an answer with one of these statuses.
func (t *imageTransfer) do(ctx context.Context, method, target string, body io.Reader, size int64, mediaType string, want ...int) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		request.ContentLength = size
		request.Header.Set("Content-Type", mediaType)
	}
	response, err := t.client.Do(request)
	if err != nil {
		return nil, err
	}
	for _, status := range want {
		if response.StatusCode == status {
			return response, nil
		}
	}
	defer response.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
	return nil, refusal(response, protocolText(text))
}

// protocolText is what the distribution protocol's error says, or the text as it is.
func protocolText(text []byte) string {
	var answer struct {
		Errors []struct {
			Message string `json:"message"`
		} `json:"errors"`
	}
	if json.Unmarshal(text, &answer) == nil && len(answer.Errors) > 0 {
		return answer.Errors[0].Message
	}
	return string(text)
}

// blob sends a blob that the server lacks. A connection that breaks is tried again.
func (t *imageTransfer) blob(ctx context.Context, b imagefile.Blob) error {
	response, err := t.do(ctx, http.MethodHead, t.target("blobs", b.Digest).String(), nil, 0, "", http.StatusOK, http.StatusNotFound)
	if err != nil {
		return err
	}
	response.Body.Close()
	if response.StatusCode == http.StatusOK {
		return nil
	}
	for attempt := 1; ; attempt++ {
		err := t.put(ctx, b)
		if err == nil || errors.Is(err, errRefused) || ctx.Err() != nil || attempt == maxAttempts {
			return err
		}
		fmt.Fprintf(t.show, "connection lost, trying again: %v\n", err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(attempt) * time.Second):
		}
	}
}

func (t *imageTransfer) put(ctx context.Context, b imagefile.Blob) error {
	response, err := t.do(ctx, http.MethodPost, t.target("blobs", "uploads/").String(), nil, 0, "", http.StatusAccepted)
	if err != nil {
		return err
	}
	response.Body.Close()
	place, err := url.Parse(response.Header.Get("Location"))
	if err != nil {
		return fmt.Errorf("%w: the server names no place for an upload: %w", errRefused, err)
	}
	target := t.base.JoinPath(place.Path)
	query := place.Query()
	query.Set("digest", b.Digest)
	target.RawQuery = query.Encode()
	content, err := b.Open()
	if err != nil {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	defer content.Close()
	body := &counter{reader: content, report: func(n int64) { t.meter.At(t.done+n, t.total, t.host+"/"+t.path) }}
	response, err = t.do(ctx, http.MethodPut, target.String(), body, b.Size, "application/octet-stream", http.StatusCreated)
	if err != nil {
		return err
	}
	response.Body.Close()
	t.sent += b.Size
	return nil
}

func (t *imageTransfer) manifest(ctx context.Context, m imagefile.Manifest, reference string) error {
	response, err := t.do(ctx, http.MethodPut, t.target("manifests", reference).String(), bytes.NewReader(m.Raw), int64(len(m.Raw)), m.MediaType, http.StatusCreated)
	if err != nil {
		return err
	}
	response.Body.Close()
	return nil
}
