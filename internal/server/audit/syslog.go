package audit

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"
)

// syslog sends records by the syslog protocol (RFC 5424): over UDP one a datagram (RFC 5426), over TCP with octet counting (RFC 6587,
// section 3.4.1), the same over TLS (RFC 5425), over a local socket as datagrams, or as a stream where the socket is one.
type syslog struct {
	network, address string
	host             string
	pid              int
	tls              *tls.Config // with networkTLS

	conn   net.Conn
	stream bool
	gone   chan struct{} // closed when the receiver of a stream has closed it
}

// networkTLS is syslog over TLS (RFC 5425), as URLs name it.
const networkTLS = "tls"

func newSyslog(e Export) (*syslog, error) {
	network, address, err := syslogAddress(e.Syslog)
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "-"
	}
	s := &syslog{network: network, address: address, host: host, pid: os.Getpid()}
	if network != networkTLS {
		return s, nil
	}
	if s.tls, err = trust("syslog receiver", e.SyslogCAFile); err != nil {
		return nil, err
	}
	if e.SyslogCertFile != "" {
		own := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(e.SyslogCertFile, e.SyslogKeyFile)
			return &pair, err
		}
		if _, err := own(nil); err != nil {
			return nil, fmt.Errorf("certificate for the audit syslog receiver: %w", err)
		}
		s.tls.GetClientCertificate = own
	}
	return s, nil
}

const (
	// priority is facility 13, "log audit", with severity 6, informational (RFC 5424, section 6.2.1).
	priority = 13*8 + 6
	// maxMessage is how long a message may be, in bytes: what common receivers take without cutting it.
	maxMessage = 8 << 10
)

func (s *syslog) name() string { return s.network + "://" + s.address }

func (s *syslog) close() {
	if s.conn != nil {
		s.conn.Close()
		s.conn = nil
	}
}

func (s *syslog) send(ctx context.Context, records [][]byte) (int, error) {
	if err := s.dial(ctx); err != nil {
		return 0, err
	}
	deadline, _ := ctx.Deadline()
	_ = s.conn.SetWriteDeadline(deadline)
	for i, record := range records {
		message := s.message(record)
		if s.stream {
			message = append([]byte(strconv.Itoa(len(message))+" "), message...)
		}
		if _, err := s.conn.Write(message); err != nil {
			s.close()
			return i, fmt.Errorf("syslog: %w", err)
		}
	}
	return len(records), nil
}

// dial connects unless there is a connection that its receiver has not closed.
func (s *syslog) dial(ctx context.Context) (err error) {
	if s.conn != nil && s.stream {
		select {
		case <-s.gone:
			s.close()
		default:
		}
	}
	if s.conn != nil {
		return nil
	}
	var d net.Dialer
	var conn net.Conn
	s.stream = true
	switch s.network {
	case "unix":
		conn, err = d.DialContext(ctx, "unixgram", s.address)
		if s.stream = errors.Is(err, syscall.EPROTOTYPE); s.stream {
			conn, err = d.DialContext(ctx, "unix", s.address)
		}
	case networkTLS:
		conn, err = (&tls.Dialer{NetDialer: &d, Config: s.tls}).DialContext(ctx, "tcp", s.address)
	default:
		s.stream = s.network == "tcp"
		conn, err = d.DialContext(ctx, s.network, s.address)
	}
	if err != nil {
		return fmt.Errorf("syslog: %w", err)
	}
	s.conn = conn
	if s.stream {
		gone := make(chan struct{})
		s.gone = gone
		go func() { // ends with the connection
			_, _ = io.Copy(io.Discard, conn)
			close(gone)
		}()
	}
	return nil
}

// message is HEADER, no structured data, and the record (RFC 5424, section 6).
func (s *syslog) message(record []byte) []byte {
	var about struct {
		Stage time.Time `json:"stageTimestamp"`
	}
	at := "-"
	if err := json.Unmarshal(record, &about); err == nil && !about.Stage.IsZero() {
		at = about.Stage.UTC().Format("2006-01-02T15:04:05.000000Z")
	}
	header := fmt.Sprintf("<%d>1 %s %s coldrack %d audit - ", priority, at, s.host, s.pid)
	return append([]byte(header), shorten(record, maxMessage-len(header))...)
}

// truncated is the annotation by which Kubernetes marks a record that lacks something.
const truncated = "audit.k8s.io/truncated"

// shorten makes a record fit: first without what was sent and answered, then without anything but who, what and when.
func shorten(record []byte, most int) []byte {
	if len(record) <= most {
		return record
	}
	var fields map[string]any
	if err := json.Unmarshal(record, &fields); err != nil {
		return record[:most]
	}
	mark := func() []byte {
		annotations, _ := fields["annotations"].(map[string]any)
		if annotations == nil {
			annotations = map[string]any{}
		}
		annotations[truncated] = "true"
		fields["annotations"] = annotations
		short, _ := json.Marshal(fields) // it came from JSON
		return short
	}
	delete(fields, "requestObject")
	delete(fields, "responseObject")
	if short := mark(); len(short) <= most {
		return short
	}
	few := map[string]any{}
	for _, key := range []string{"kind", "apiVersion", "level", "auditID", "stage", "verb", "objectRef", "requestReceivedTimestamp", "stageTimestamp"} {
		if value, ok := fields[key]; ok {
			few[key] = value
		}
	}
	if user, ok := fields["user"].(map[string]any); ok {
		few["user"] = map[string]any{"username": user["username"]}
	}
	fields = few
	if short := mark(); len(short) <= most {
		return short
	}
	return record[:most]
}
