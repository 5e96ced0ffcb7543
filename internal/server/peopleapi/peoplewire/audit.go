package peoplewire

import (
	"encoding/json"
	"time"
)

// PathAudit is the audit log of the server that answers, for administrators: GET -> AuditPage. The query is
//
//	user=, object=      a part of the name, of the object or of the URI, whatever its case
//	verb=               the verb: create, update, patch, delete, get, list, watch; post, put and delete for what is no object
//	since=, until=      RFC 3339
//	people=1, failed=1  without what the server itself did; only what was refused or failed
//	limit=              1 to 500; 100 without it
//	before=, after=     a place of an earlier answer: only older, or only newer records
const PathAudit = "/coldrack/v1/audit"

// AuditPage is a part of the audit log.
type AuditPage struct {
	// Records, the newest first.
	Records []AuditRecord `json:"records"`
	// Newest is the place after the newest record, for after. Empty: there is no record yet.
	Newest string `json:"newest,omitempty"`
	// Older is the place for before, where the search ended; empty: there is nothing older. A search ends early when it has read much
	// without finding enough.
	Older string `json:"older,omitempty"`
	// Reached is the time of the oldest record that was looked at.
	Reached time.Time `json:"reached,omitzero"`
	// Unreadable lines were passed over.
	Unreadable int `json:"unreadable,omitempty"`
}

// AuditRecord says who did what, when, and with which result.
type AuditRecord struct {
	ID string `json:"id"`
	// At is when the request ended, Received when it came.
	At       time.Time `json:"at"`
	Received time.Time `json:"received"`
	User     string    `json:"user"`
	Verb     string    `json:"verb"`
	// Object is RESOURCE/NAME, with /SUBRESOURCE where there is one; empty for a request that is about no object.
	Object string `json:"object,omitempty"`
	URI    string `json:"uri,omitempty"`
	// Code of the answer as in HTTP, Message what it said when it refused.
	Code      int      `json:"code,omitempty"`
	Message   string   `json:"message,omitempty"`
	Sources   []string `json:"sources,omitempty"`
	UserAgent string   `json:"userAgent,omitempty"`
	// Notes are the annotations of the event.
	Notes map[string]string `json:"notes,omitempty"`
	// Sent is what was sent, if that is recorded and no longer than 8 KiB; SentBytes is its length.
	Sent      json.RawMessage `json:"sent,omitempty"`
	SentBytes int             `json:"sentBytes,omitempty"`
}
