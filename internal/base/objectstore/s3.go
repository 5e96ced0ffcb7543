package objectstore

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// S3Options say where a bucket is.
type S3Options struct {
	// Endpoint is a URL without a path, such as https://s3.example:9000.
	Endpoint *url.URL
	Bucket   string
	// Prefix that all names get, without slashes at its ends; may be empty.
	Prefix string
	// Region that requests are signed for.
	Region string
	// PathStyle names the bucket in the path of URLs, not in their host.
	PathStyle bool
	// Authorities, PEM, that sign the endpoint's certificate; nil: those of this host.
	Authorities []byte
	// AccessKey and SecretKey sign requests.
	AccessKey, SecretKey string
}

// S3 is a Store in a bucket.
type S3 struct {
	client         *minio.Client
	bucket, prefix string
	at             string
}

const (
	dialTimeout = 10 * time.Second
	// answerTimeout is how long a server may take for an answer once it has the whole request.
	answerTimeout = time.Minute
	// stallTimeout is how long no byte of an object may move.
	stallTimeout = 2 * time.Minute
	// tries of one request. Who calls tries again later.
	tries = 2
	// partSize of an upload: a larger object goes in parts, of which one is in memory. 10,000 of them are the most that S3 takes.
	partSize = 16 << 20
)

// OpenS3 returns a Store in a bucket. It asks nothing yet.
func OpenS3(o S3Options) (*S3, error) {
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: (&net.Dialer{Timeout: dialTimeout}).DialContext, TLSHandshakeTimeout: dialTimeout,
		ResponseHeaderTimeout: answerTimeout, ExpectContinueTimeout: time.Second, IdleConnTimeout: time.Minute, MaxIdleConnsPerHost: 4,
		DisableCompression: true, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if o.Authorities != nil {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(o.Authorities) {
			return nil, errors.New("the file with the authorities of the S3 endpoint holds no certificate in PEM")
		}
		transport.TLSClientConfig.RootCAs = pool
	}
	style := minio.BucketLookupDNS
	if o.PathStyle {
		style = minio.BucketLookupPath
	}
	client, err := minio.New(o.Endpoint.Host, &minio.Options{
		Creds: credentials.NewStaticV4(o.AccessKey, o.SecretKey, ""), Secure: o.Endpoint.Scheme == "https", Region: o.Region,
		BucketLookup: style, Transport: transport, MaxRetries: tries,
	})
	if err != nil {
		return nil, fmt.Errorf("S3 endpoint %s: %w", o.Endpoint, err)
	}
	return &S3{client: client, bucket: o.Bucket, prefix: o.Prefix, at: o.Endpoint.JoinPath(o.Bucket, o.Prefix).String()}, nil
}

// String implements Store.
func (s *S3) String() string { return s.at }

func (s *S3) key(name string) string {
	if s.prefix == "" {
		return name
	}
	return s.prefix + "/" + name
}

// Put implements Store.
func (s *S3) Put(ctx context.Context, name string, size int64, content io.Reader) error {
	if size <= partSize {
		// Some servers keep what had come of a request that broke off. What fails here is not sent at all; the parts of larger ones are read in before, too.
		whole, err := io.ReadAll(io.LimitReader(content, size+1))
		if err == nil && int64(len(whole)) != size {
			err = fmt.Errorf("%d bytes were announced, and there are others", size)
		}
		if err != nil {
			return fmt.Errorf("%s: write %s: %w", s.at, name, err)
		}
		content = bytes.NewReader(whole)
	}
	ctx, moving, stop := stall(ctx)
	defer stop()
	options := minio.PutObjectOptions{ContentType: "application/octet-stream", PartSize: uint64(max(partSize, (size/9000+1<<20-1)>>20<<20)), NumThreads: 1}
	from := &failingReader{from: moving(content)}
	put, err := s.client.PutObject(ctx, s.bucket, s.key(name), from, size, options)
	switch {
	case from.failed != nil:
		return fmt.Errorf("%s: write %s: %w", s.at, name, from.failed)
	case err == nil && put.Size != size:
		err = fmt.Errorf("%d of %d bytes arrived", put.Size, size)
	}
	return s.explain(ctx, "write", name, err)
}

// failingReader keeps the error of what it reads from, which the library takes for one of the connection. It is no io.Seeker and no
// io.ReaderAt: the library would read past who checks the content.
type failingReader struct {
	from   io.Reader
	failed error
}

// Read implements io.Reader.
func (f *failingReader) Read(b []byte) (int, error) {
	if f.failed != nil {
		return 0, f.failed
	}
	n, err := f.from.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		f.failed = err
	}
	return n, err
}

// Get implements Store.
func (s *S3) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	ctx, moving, stop := stall(ctx)
	body, _, _, err := minio.Core{Client: s.client}.GetObject(ctx, s.bucket, s.key(name), minio.GetObjectOptions{})
	if err != nil {
		defer stop()
		return nil, s.explain(ctx, "read", name, err)
	}
	return &s3Object{s, ctx, name, body, moving(body), stop}, nil
}

// s3Object explains errors of reading.
type s3Object struct {
	s    *S3
	ctx  context.Context
	name string
	body io.Closer
	from io.Reader
	stop func()
}

// Read implements io.Reader.
func (o *s3Object) Read(b []byte) (int, error) {
	n, err := o.from.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		err = o.s.explain(o.ctx, "read", o.name, err)
	}
	return n, err
}

// Close implements io.Closer.
func (o *s3Object) Close() error {
	defer o.stop()
	return o.body.Close()
}

// List implements Store.
func (s *S3) List(ctx context.Context, prefix string) (all []Object, err error) {
	for object := range s.client.ListObjectsIter(ctx, s.bucket, minio.ListObjectsOptions{Prefix: s.key(prefix), Recursive: true}) {
		if object.Err != nil {
			return nil, s.explain(ctx, "list", "", object.Err)
		}
		name := object.Key
		if s.prefix != "" {
			name = strings.TrimPrefix(name, s.prefix+"/")
		}
		all = append(all, Object{name, object.Size, object.LastModified})
	}
	if ctx.Err() != nil {
		return nil, s.explain(ctx, "list", "", ctx.Err())
	}
	return all, nil
}

// Remove implements Store.
func (s *S3) Remove(ctx context.Context, name string) error {
	err := s.explain(ctx, "remove", name, s.client.RemoveObject(ctx, s.bucket, s.key(name), minio.RemoveObjectOptions{}))
	if errors.Is(err, ErrNone) {
		return nil
	}
	return err
}

// Clear implements Store.
func (s *S3) Clear(ctx context.Context, prefix string, before time.Time) error {
	core := minio.Core{Client: s.client}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for upload := range s.client.ListIncompleteUploads(ctx, s.bucket, s.key(prefix), true) {
		switch {
		case upload.Err != nil:
			return s.explain(ctx, "list interrupted uploads", "", upload.Err)
		case upload.Initiated.Before(before):
			if err := core.AbortMultipartUpload(ctx, s.bucket, upload.Key, upload.UploadID); err != nil && minio.ToErrorResponse(err).Code != minio.NoSuchUpload {
				return s.explain(ctx, "remove an interrupted upload", path.Base(upload.Key), err)
			}
		}
	}
	return nil
}

// explain says what went wrong, and what to do where that is known.
func (s *S3) explain(ctx context.Context, what, name string, err error) error {
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	what = strings.TrimSpace(what + " " + name)
	answer := minio.ErrorResponse{}
	if !errors.As(err, &answer) {
		return fmt.Errorf("%s: %s: %w", s.at, what, err)
	}
	remedy := ""
	switch answer.Code {
	case minio.NoSuchKey:
		return fmt.Errorf("%w: %s: %s", ErrNone, s.at, name)
	case minio.NoSuchBucket:
		remedy = fmt.Sprintf("there is no bucket %q: make it, or correct the name", s.bucket)
	case "InvalidAccessKeyId", "SignatureDoesNotMatch":
		remedy = "it does not accept the credentials: correct access key and secret key"
	case minio.AccessDenied:
		remedy = "the credentials do not permit that: they need to list, read, write and delete objects in the bucket"
	case "RequestTimeTooSkewed":
		remedy = "its clock and this server's differ too much"
	case "AuthorizationHeaderMalformed", "InvalidRegion":
		remedy = "the region may be wrong"
	default:
		return fmt.Errorf("%s: %s: %s (HTTP status %d, %s)", s.at, what, answer.Message, answer.StatusCode, answer.Code)
	}
	return fmt.Errorf("%s: %s: %s (%s)", s.at, what, remedy, answer.Code)
}

// stall ends a context when nothing has moved for a while through the reader that moving returns.
func stall(ctx context.Context) (within context.Context, moving func(io.Reader) io.Reader, stop func()) {
	within, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(stallTimeout, func() { cancel(fmt.Errorf("nothing has moved for %s", stallTimeout)) })
	return within, func(r io.Reader) io.Reader { return movingReader{r, timer} }, func() {
		timer.Stop()
		cancel(nil)
	}
}

type movingReader struct {
	io.Reader
	timer *time.Timer
}

// Read implements io.Reader.
func (m movingReader) Read(b []byte) (int, error) {
	n, err := m.Reader.Read(b)
	if n > 0 {
		m.timer.Reset(stallTimeout)
	}
	return n, err
}
