package audit

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"coldrack.dev/internal/base/retry"
)

// Export says where records are sent beside the file.
type Export struct {
	// Syslog is tls://HOST[:PORT], tcp://HOST[:PORT], udp://HOST[:PORT] or unix:///PATH; empty: none. The port is 514 unless it is
	// given, with TLS 6514.
	Syslog string
	// SyslogCAFile has the certificates, PEM, that a receiver with TLS is trusted by; empty: those of this host.
	SyslogCAFile string
	// SyslogCertFile and SyslogKeyFile are the certificate, PEM, by which a receiver with TLS knows this server; empty: it is not
	// asked for. They are read for each connection, so that they can be renewed.
	SyslogCertFile, SyslogKeyFile string
	// Webhook is an http:// or https:// URL that takes an EventList of audit.k8s.io/v1 by POST, as those of Kubernetes do;
	// empty: none.
	Webhook string
	// WebhookCAFile has the certificates, PEM, that the webhook is trusted by; empty: those of this host.
	WebhookCAFile string
	// WebhookTokenFile has a bearer token for the webhook. It is read for each request, so that it can be renewed.
	WebhookTokenFile string
}

// Validate reports every field that cannot work, by its name.
func (e Export) Validate() map[string]string {
	wrong := map[string]string{}
	network, _, err := syslogAddress(e.Syslog)
	if e.Syslog != "" && err != nil {
		wrong["Syslog"] = err.Error()
	}
	for field, file := range map[string]string{"SyslogCAFile": e.SyslogCAFile, "SyslogCertFile": e.SyslogCertFile, "SyslogKeyFile": e.SyslogKeyFile} {
		if file != "" && network != networkTLS {
			wrong[field] = "is of use only with tls:// as the syslog receiver"
		}
	}
	if network == networkTLS && (e.SyslogCertFile == "") != (e.SyslogKeyFile == "") {
		wrong["SyslogKeyFile"] = "certificate and key are given together"
	}
	if u, err := url.Parse(e.Webhook); e.Webhook != "" && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https") {
		wrong["Webhook"] = "must be a URL that begins with https:// or http://"
	}
	if e.Webhook == "" && e.WebhookCAFile != "" {
		wrong["WebhookCAFile"] = "is of use only with a webhook"
	}
	if e.Webhook == "" && e.WebhookTokenFile != "" {
		wrong["WebhookTokenFile"] = "is of use only with a webhook"
	}
	return wrong
}

func (e Export) senders() ([]sender, error) {
	var list []sender
	for _, text := range e.Validate() {
		return nil, fmt.Errorf("export of the audit log: %s", text)
	}
	if e.Syslog != "" {
		s, err := newSyslog(e)
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	if e.Webhook != "" {
		w, err := newWebhook(e)
		if err != nil {
			return nil, err
		}
		list = append(list, w)
	}
	return list, nil
}

// syslogAddress splits a URL into what net.Dial takes.
func syslogAddress(text string) (network, address string, err error) {
	const want = "must be tls://HOST:PORT, tcp://HOST:PORT, udp://HOST:PORT or unix:///PATH"
	u, err := url.Parse(text)
	if err != nil {
		return "", "", errors.New(want)
	}
	switch {
	case u.Scheme == "unix" && u.Host == "" && strings.HasPrefix(u.Path, "/"):
		return "unix", u.Path, nil
	case (u.Scheme == "udp" || u.Scheme == "tcp" || u.Scheme == networkTLS) && u.Hostname() != "" && strings.Trim(u.Path, "/") == "":
		port := u.Port()
		if port == "" && u.Scheme == networkTLS {
			port = "6514" // RFC 5425, section 4.1
		} else if port == "" {
			port = "514"
		}
		return u.Scheme, net.JoinHostPort(u.Hostname(), port), nil
	}
	return "", "", errors.New(want)
}

// trust is what a receiver with TLS is trusted by: the certificates of a file, or those of this host.
func trust(what, file string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if file == "" {
		return config, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("certificates of the audit %s: %w", what, err)
	}
	config.RootCAs = x509.NewCertPool()
	if !config.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("certificates of the audit %s: %s has none in PEM", what, file)
	}
	return config, nil
}

// sender is a way to a receiver. It is used by one goroutine.
type sender interface {
	// send sends records in order and says how many have gone; at least one, unless there is an error. The rest is sent
	// again, but for the first of it when the error is final.
	send(ctx context.Context, records [][]byte) (sent int, err error)
	// name of the receiver, for metrics and logs.
	name() string
	close()
}

// Bounds of each export.
const (
	maxQueued      = 10_000   // records
	maxQueuedBytes = 16 << 20 // of them
	maxBatch       = 100      // records
	maxBatchBytes  = 1 << 20  // unless one record alone is larger
	sendTime       = 10 * time.Second
	// lastTime is for what is queued when the server stops.
	lastTime = 3 * time.Second
)

// ExportStats are an export's counts since the start, and what is queued.
type ExportStats struct {
	To            string
	Sent, Dropped uint64
	Queued        int
	// Problem is why nothing can be sent at present; empty: none is known.
	Problem string
}

// exporter sends records to one receiver, in order, as they come.
type exporter struct {
	to   sender
	log  *slog.Logger
	stop context.CancelFunc
	done chan struct{}

	mu      sync.Mutex
	queue   [][]byte
	bytes   int
	arrived chan struct{} // has room for one
	counts  ExportStats
	// complained is when drops were last logged, and of how many.
	complained time.Time
	told       uint64
}

func startExporter(to sender, log *slog.Logger) *exporter {
	e := &exporter{to: to, log: log.With("to", to.name()), done: make(chan struct{}), arrived: make(chan struct{}, 1), counts: ExportStats{To: to.name()}}
	ctx, stop := context.WithCancel(context.Background())
	e.stop = stop
	go e.run(ctx)
	return e
}

// add queues a record, or drops it when the queue is full. It never waits.
func (e *exporter) add(record []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.queue) >= maxQueued || e.bytes+len(record) > maxQueuedBytes {
		e.dropLocked(1, errors.New("its queue is full"))
		return
	}
	e.queue = append(e.queue, record)
	e.bytes += len(record)
	select {
	case e.arrived <- struct{}{}:
	default:
	}
}

// dropLocked counts what is not sent, and says so once a minute.
func (e *exporter) dropLocked(n int, why error) {
	e.counts.Dropped += uint64(n)
	if now := time.Now(); now.Sub(e.complained) >= time.Minute {
		e.log.Error("audit records are not sent on; the file has them", "dropped", e.counts.Dropped-e.told, "why", why, "problem", e.counts.Problem)
		e.complained, e.told = now, e.counts.Dropped
	}
}

// run sends until ctx ends, and then for a moment what is left.
func (e *exporter) run(ctx context.Context) {
	defer close(e.done)
	defer e.to.close()
	for {
		select {
		case <-e.arrived:
			e.drain(ctx)
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastTime)
			defer cancel()
			e.drain(last)
			e.mu.Lock()
			defer e.mu.Unlock()
			if left := len(e.queue); left > 0 {
				e.complained = time.Time{}
				e.dropLocked(left, errors.New("the server stops"))
			}
			return
		}
	}
}

// drain sends until the queue is empty or ctx ends.
func (e *exporter) drain(ctx context.Context) {
	for {
		batch := e.batch()
		if len(batch) == 0 {
			return
		}
		sent := 0
		err := retry.Do(ctx, func(err error, _ time.Duration) { e.failed(err) }, func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, sendTime)
			defer cancel()
			n, err := e.to.send(ctx, batch[sent:])
			sent += n
			return err
		})
		e.taken(batch[:sent])
		switch {
		case err == nil:
			e.problem("")
		case ctx.Err() != nil:
			return
		default: // for good, and about the next record
			e.forget(1)
			e.problem(err.Error())
			e.mu.Lock()
			e.dropLocked(1, err)
			e.mu.Unlock()
		}
	}
}

func (e *exporter) problem(text string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.counts.Problem = text
}

// batch returns the first records of the queue, which stay there until they are taken.
func (e *exporter) batch() [][]byte {
	e.mu.Lock()
	defer e.mu.Unlock()
	n, size := 0, 0
	for n < len(e.queue) && n < maxBatch && (n == 0 || size+len(e.queue[n]) <= maxBatchBytes) {
		size += len(e.queue[n])
		n++
	}
	return append([][]byte(nil), e.queue[:n]...)
}

func (e *exporter) taken(records [][]byte) {
	e.mu.Lock()
	e.counts.Sent += uint64(len(records))
	e.mu.Unlock()
	e.forget(len(records))
}

// forget takes the first records off the queue.
func (e *exporter) forget(n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, record := range e.queue[:n] {
		e.bytes -= len(record)
	}
	e.queue = append([][]byte(nil), e.queue[n:]...)
}

func (e *exporter) failed(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.counts.Problem == "" {
		e.log.Warn("audit records cannot be sent on; trying again", "err", err, "queued", len(e.queue))
	}
	e.counts.Problem = err.Error()
}

func (e *exporter) stats() ExportStats {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.counts
	now.Queued = len(e.queue)
	return now
}

// wait waits until the exporter, which was told to stop, has.
func (e *exporter) wait() { <-e.done }
