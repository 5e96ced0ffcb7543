package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// MostRecords of one answer.
	MostRecords = 500
	// mostSearched is how much of the log one search reads, in bytes; the next one goes on where it ended.
	mostSearched = 64 << 20
	// chunk is how much is read at once.
	chunk = 256 << 10
	// longestLine is what a record may have; what is longer is no record.
	longestLine = 8 << 20
	// mostSent is how much of what a request sent is shown, in bytes.
	mostSent = 8 << 10
	// outOfOrder is by how much a record may be older than the one before it in the file: requests end while others are written.
	outOfOrder = time.Minute
)

// ErrPlace is a place in the log that is not there any more.
var ErrPlace = errors.New("this place in the audit log is not there any more; begin at its newest records")

// Place between two records of the log: the file's inode and an offset in bytes. It stays the same when the file gets another name.
type Place string

func placeOf(inode uint64, offset int64) Place {
	return Place(strconv.FormatUint(inode, 16) + "-" + strconv.FormatInt(offset, 16))
}

func (p Place) parse() (inode uint64, offset int64, err error) {
	before, after, _ := strings.Cut(string(p), "-")
	if inode, err = strconv.ParseUint(before, 16, 64); err == nil {
		offset, err = strconv.ParseInt(after, 16, 64)
	}
	if err != nil || offset < 0 {
		return 0, 0, fmt.Errorf("%q is no place in the audit log: %w", p, ErrPlace)
	}
	return inode, offset, nil
}

// Query says which records are wanted. The zero value of a field wants all.
type Query struct {
	// User and Object are parts of the user's name and of the object (see Record.Object) or the request's URI, whatever their case. Verb is
	// the whole verb.
	User, Verb, Object string
	// Since and Until are when the request ended, both included.
	Since, Until time.Time
	// People leaves out what the server itself did, Failed what was answered with less than 400.
	People, Failed bool
	// Most is how many records are wanted; 0: MostRecords.
	Most int
	// Before wants records that are older than a place, After those that are newer.
	Before, After Place
}

// Record is what is shown of an Event of audit.k8s.io/v1.
type Record struct {
	ID string
	// At is when the request ended, Received when it came.
	At, Received time.Time
	User         string
	Verb         string
	// Object is RESOURCE/NAME, or RESOURCE/NAME/SUBRESOURCE; empty for requests that are about no object.
	Object string
	URI    string
	// Code of the answer as in HTTP, Message what it said when it refused.
	Code      int
	Message   string
	Sources   []string
	UserAgent string
	// Notes are the event's annotations.
	Notes map[string]string
	// Sent is what the request brought, as JSON; nil when there was nothing, when it is not recorded, or when it is longer than 8 KiB.
	// SentBytes is its length all the same.
	Sent      json.RawMessage
	SentBytes int
}

// Found is what a search has found.
type Found struct {
	// Records, the newest first.
	Records []Record
	// Newest is the end of the log: a search After it finds what came since.
	Newest Place
	// Older is where the search ended: one Before it goes on. It is empty when there is nothing older.
	Older Place
	// Reached is the time of the oldest record that was looked at; zero: none was.
	Reached time.Time
	// Unreadable are lines that are no records: something ended within them, or they were changed.
	Unreadable int
}

// Search reads the log backwards, from its newest record, until as many records are found as are wanted, or 64 MiB were read.
func (l *Log) Search(ctx context.Context, q Query) (Found, error) { return search(ctx, l.opts.File, q) }

// part is one file of the log.
type part struct {
	*os.File
	inode uint64
	// end is behind the last whole line.
	end int64
	// until is when it was last written.
	until time.Time
}

func search(ctx context.Context, file string, q Query) (Found, error) {
	parts, err := openParts(file)
	if err != nil {
		return Found{}, err
	}
	defer func() {
		for _, p := range parts {
			p.Close()
		}
	}()
	s := searcher{ctx: ctx, want: q, left: mostSearched}
	s.want.User, s.want.Object = strings.ToLower(q.User), strings.ToLower(q.Object)
	if s.want.Most <= 0 || s.want.Most > MostRecords {
		s.want.Most = MostRecords
	}
	if len(parts) > 0 {
		s.found.Newest = placeOf(parts[0].inode, parts[0].end)
	}
	if q.Before != "" {
		if parts, err = before(parts, q.Before); err != nil {
			return Found{}, err
		}
	}
	return s.found, s.parts(parts)
}

// openParts opens the files of the log, the newest first. A file that gets its other name meanwhile is there once.
func openParts(file string) (parts []part, err error) {
	defer func() {
		if err != nil {
			for _, p := range parts {
				p.Close()
			}
		}
	}()
	l := Log{opts: Options{File: file}}
	prefix, suffix := l.oldNames()
	add := func(name string) error {
		p, err := openPart(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // it was removed, being the oldest, or has its other name by now
		case err != nil:
			return fmt.Errorf("read the audit log: %w", err)
		case slices.ContainsFunc(parts, func(o part) bool { return o.inode == p.inode }):
			return p.Close()
		}
		parts = append(parts, p)
		return nil
	}
	if err := add(file); err != nil {
		return parts, err
	}
	names, err := filepath.Glob(prefix + "*" + suffix)
	if err != nil {
		return parts, err
	}
	slices.Sort(names)
	slices.Reverse(names)
	for _, name := range names {
		if err := add(name); err != nil {
			return parts, err
		}
	}
	return parts, nil
}

func openPart(name string) (part, error) {
	f, err := os.Open(name)
	if err != nil {
		return part{}, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return part{}, err
	}
	p := part{File: f, until: info.ModTime()}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		p.inode = stat.Ino
	}
	p.end, err = wholeLines(f, info.Size())
	if err != nil {
		f.Close()
	}
	return p, err
}

// wholeLines is behind the last line feed of a file: what follows is being written.
func wholeLines(r io.ReaderAt, size int64) (int64, error) {
	for end := size; end > 0; {
		from := max(0, end-chunk)
		buf := make([]byte, end-from)
		if _, err := r.ReadAt(buf, from); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(buf, '\n'); i >= 0 {
			return from + int64(i) + 1, nil
		}
		end = from
	}
	return 0, nil
}

// before leaves of the parts what is older than a place.
func before(parts []part, place Place) ([]part, error) {
	inode, offset, err := place.parse()
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(parts, func(p part) bool { return p.inode == inode })
	if i < 0 {
		return nil, ErrPlace
	}
	if !parts[i].holds(offset) {
		return nil, ErrPlace
	}
	parts[i].end = offset
	return parts[i:], nil
}

// holds says whether a line begins or the file ends at an offset: another file may have got the inode.
func (p part) holds(offset int64) bool {
	if offset == 0 || offset > p.end {
		return offset == 0
	}
	last := []byte{0}
	_, err := p.ReadAt(last, offset-1)
	return err == nil && last[0] == '\n'
}

// searcher is one search.
type searcher struct {
	ctx   context.Context
	want  Query
	left  int64 // bytes that may still be read
	found Found
}

func (s *searcher) parts(parts []part) error {
	var stopAt int64
	stopIn := uint64(0)
	if s.want.After != "" {
		var err error
		if stopIn, stopAt, err = s.want.After.parse(); err != nil {
			return err
		}
	}
	for i, p := range parts {
		last := stopIn != 0 && p.inode == stopIn && p.holds(stopAt)
		from := int64(0)
		if last {
			from = stopAt
		}
		if !s.want.Since.IsZero() && p.until.Before(s.want.Since) {
			return nil // this and all older ones
		}
		// All of this file came after the next older one was full.
		tooNew := !s.want.Until.IsZero() && i+1 < len(parts) && parts[i+1].until.After(s.want.Until.Add(outOfOrder))
		if !tooNew {
			ended, err := s.part(p, min(from, p.end))
			if err != nil || ended {
				return err
			}
		}
		if last {
			return nil
		}
	}
	return nil
}

// part searches one file and says whether that was all.
func (s *searcher) part(p part, from int64) (ended bool, err error) {
	err = backwards(p, from, p.end, func(at int64, line []byte) bool {
		if s.ctx.Err() != nil || len(s.found.Records) == s.want.Most || s.left <= 0 {
			s.found.Older = placeOf(p.inode, at+int64(len(line))+1)
			ended = true
			return false
		}
		s.left -= int64(len(line))
		ended = s.take(line)
		return !ended
	})
	return ended, errors.Join(err, s.ctx.Err())
}

// take looks at one line and says whether nothing older is wanted.
func (s *searcher) take(line []byte) (enough bool) {
	var e event
	if json.Unmarshal(line, &e) != nil || e.AuditID == "" {
		s.found.Unreadable++
		return false
	}
	r := e.record()
	s.found.Reached = r.At
	if !s.want.Since.IsZero() && r.At.Before(s.want.Since) {
		return r.At.Before(s.want.Since.Add(-outOfOrder))
	}
	if s.want.wants(&r) {
		s.found.Records = append(s.found.Records, r)
	}
	return false
}

// serverUser is whom the server's own requests are from.
const serverUser = "system:apiserver"

// wants says whether a record is one of those that are looked for. User and Object are in lower case.
func (q *Query) wants(r *Record) bool {
	switch {
	case q.People && r.User == serverUser,
		q.Failed && r.Code < 400,
		q.Verb != "" && !strings.EqualFold(q.Verb, r.Verb),
		q.User != "" && !strings.Contains(strings.ToLower(r.User), q.User),
		q.Object != "" && !strings.Contains(strings.ToLower(r.Object), q.Object) && !strings.Contains(strings.ToLower(r.URI), q.Object),
		!q.Until.IsZero() && r.At.After(q.Until):
		return false
	}
	return true
}

// event is what is read of an Event of audit.k8s.io/v1.
type event struct {
	AuditID   string                                        `json:"auditID"`
	Verb      string                                        `json:"verb"`
	URI       string                                        `json:"requestURI"`
	User      struct{ Username string }                     `json:"user"`
	Sources   []string                                      `json:"sourceIPs"`
	UserAgent string                                        `json:"userAgent"`
	ObjectRef *struct{ Resource, Name, Subresource string } `json:"objectRef"`
	Response  struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
		Reason  string `json:"reason"`
	} `json:"responseStatus"`
	Received    time.Time         `json:"requestReceivedTimestamp"`
	Staged      time.Time         `json:"stageTimestamp"`
	Annotations map[string]string `json:"annotations"`
	Sent        json.RawMessage   `json:"requestObject"`
}

func (e *event) record() Record {
	r := Record{
		ID: e.AuditID, At: e.Staged, Received: e.Received, User: e.User.Username, Verb: e.Verb, URI: e.URI,
		Code: e.Response.Code, Message: e.Response.Message, Sources: e.Sources, UserAgent: e.UserAgent, Notes: e.Annotations, SentBytes: len(e.Sent),
	}
	if r.Message == "" {
		r.Message = e.Response.Reason
	}
	if o := e.ObjectRef; o != nil && o.Resource != "" {
		r.Object = strings.Join(slices.DeleteFunc([]string{o.Resource, o.Name, o.Subresource}, func(s string) bool { return s == "" }), "/")
	}
	if len(e.Sent) <= mostSent {
		r.Sent = e.Sent
	}
	return r
}

// backwards calls each with the lines of a reader between two offsets, the last one first, until it returns false. A line must begin at from
// and end before to. Empty lines are left out.
func backwards(r io.ReaderAt, from, to int64, each func(at int64, line []byte) bool) error {
	var rest []byte // the end of a line that begins further ahead
	for pos := to; pos > from; {
		n := min(chunk, pos-from)
		buf := make([]byte, n, n+int64(len(rest)))
		if _, err := r.ReadAt(buf, pos-n); err != nil {
			return fmt.Errorf("read the audit log: %w", err)
		}
		buf = append(buf, rest...)
		pos -= n
		for {
			i := bytes.LastIndexByte(buf, '\n')
			if i < 0 {
				break
			}
			if line := buf[i+1:]; len(line) > 0 && !each(pos+int64(i)+1, line) {
				return nil
			}
			buf = buf[:i]
		}
		if rest = buf; len(rest) > longestLine {
			rest = nil
		}
	}
	if len(rest) > 0 {
		each(from, rest)
	}
	return nil
}
