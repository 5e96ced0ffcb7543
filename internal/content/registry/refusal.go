package registry

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"

	"coldrack.dev/internal/base/termtext"
)

// Codes of the distribution specification, "Error Codes". The last three are those that registries in the field use
// for what it has no code for.
const (
	codeBlobUnknown         = "BLOB_UNKNOWN"
	codeUploadInvalid       = "BLOB_UPLOAD_INVALID"
	codeUploadUnknown       = "BLOB_UPLOAD_UNKNOWN"
	codeDigestInvalid       = "DIGEST_INVALID"
	codeManifestBlobUnknown = "MANIFEST_BLOB_UNKNOWN"
	codeManifestInvalid     = "MANIFEST_INVALID"
	codeManifestUnknown     = "MANIFEST_UNKNOWN"
	codeNameInvalid         = "NAME_INVALID"
	codeNameUnknown         = "NAME_UNKNOWN"
	codeUnauthorized        = "UNAUTHORIZED"
	codeDenied              = "DENIED"
	codeTooMany             = "TOOMANYREQUESTS"
	codeUnsupported         = "UNSUPPORTED"
	codePagination          = "PAGINATION_NUMBER_INVALID"
	codeUnavailable         = "UNAVAILABLE"
	codeUnknown             = "UNKNOWN"
)

// refusal is an error that the client is told as it is.
type refusal struct {
	status  int
	code    string
	message string
}

func (r *refusal) Error() string { return r.message }

func refuse(status int, code, format string, args ...any) error {
	return &refusal{status, code, fmt.Sprintf(format, args...)}
}

func (r *refusal) write(w http.ResponseWriter, request *http.Request) {
	type item struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	// What was meant for an answer with content does not hold for this one.
	for _, name := range []string{"Docker-Content-Digest", "ETag"} {
		w.Header().Del(name)
	}
	if r.status == http.StatusTooManyRequests || r.status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "5")
	}
	_ = writeStatus(w, request, r.status, "application/json", map[string][]item{"errors": {{r.code, r.message}}})
}

func writeJSON(w http.ResponseWriter, request *http.Request, mediaType string, answer any) error {
	return writeStatus(w, request, http.StatusOK, mediaType, answer)
}

func writeStatus(w http.ResponseWriter, request *http.Request, status int, mediaType string, answer any) error {
	text, err := json.Marshal(answer)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	if request.Method != http.MethodHead {
		_, _ = w.Write(text) // a client that went away needs no answer
	}
	return nil
}

// clip makes foreign text fit for a message.
func clip(s string) string { return termtext.Mark(s, 200) }
