package etcddiscovery

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Codes of errors of etcd's v2 API, which its client knows by number.
const (
	codeKeyNotFound  = 100
	codeTestFailed   = 101
	codeNodeExist    = 105
	codeUnauthorized = 110
	codeBadValue     = 209
	codeRaft         = 300 // the client tries again
)

var statusOf = map[int]int{
	codeKeyNotFound: http.StatusNotFound, codeTestFailed: http.StatusPreconditionFailed, codeNodeExist: http.StatusPreconditionFailed,
	codeUnauthorized: http.StatusForbidden, codeBadValue: http.StatusBadRequest, codeRaft: http.StatusInternalServerError,
}

// v2Error is the body of an answer that is no success.
type v2Error struct {
	Code    int    `json:"errorCode"`
	Message string `json:"message"`
	Cause   string `json:"cause"`
	Index   uint64 `json:"index"`
}

// v2Answer is the body of one that is.
type v2Answer struct {
	Action string `json:"action"`
	Node   v2Node `json:"node"`
}

type v2Node struct {
	Key           string   `json:"key"`
	Value         string   `json:"value,omitempty"`
	Dir           bool     `json:"dir,omitempty"`
	Nodes         []v2Node `json:"nodes,omitempty"`
	ModifiedIndex uint64   `json:"modifiedIndex"`
	CreatedIndex  uint64   `json:"createdIndex"`
}

func memberNode(token string, m Member) v2Node {
	return v2Node{Key: "/" + token + "/" + m.ID, Value: m.Peers, ModifiedIndex: m.Index, CreatedIndex: m.Index}
}

// waitAtMost is how long a wait is answered with nothing at the latest. The client asks again.
const waitAtMost = 5 * time.Minute

// maxForm is the largest body of a request.
const maxForm = 8 << 10

// serveV2 answers by the protocol of the public service.
func (s *Server) serveV2(w http.ResponseWriter, r *http.Request) {
	from := addressOf(r.RemoteAddr)
	path := strings.Trim(r.URL.Path, "/")
	switch path {
	case "new":
		s.newToken(w, r, from)
		return
	case "health", "healthz":
		fmt.Fprintln(w, "ok")
		return
	}
	token, rest, _ := strings.Cut(path, "/")
	t, _, err := s.get(token, from)
	if err != nil {
		s.refuseV2(w, r.URL.Path, Token{}, err)
		return
	}
	get := r.Method == http.MethodGet || r.Method == http.MethodHead
	waits, _ := strconv.ParseBool(r.URL.Query().Get("wait"))
	switch {
	case get && rest == "_config/size":
		answerV2(w, http.StatusOK, t, v2Answer{"get", v2Node{Key: "/" + token + "/" + rest, Value: strconv.Itoa(t.Size), ModifiedIndex: sizeIndex, CreatedIndex: sizeIndex}})
	case get && waits && !strings.HasPrefix(rest, "_"):
		s.waitV2(w, r, token, rest, from)
	case get && rest == "":
		s.listV2(w, t, from)
	case get:
		m, ok := t.member(rest)
		if !ok {
			s.refuseV2(w, r.URL.Path, t, fmt.Errorf("%w: it has no member %.40q", ErrNoToken, rest))
			return
		}
		answerV2(w, http.StatusOK, t, v2Answer{"get", memberNode(token, m)})
	case r.Method == http.MethodPut && rest != "" && !strings.HasPrefix(rest, "_"):
		s.registerV2(w, r, token, rest, from)
	default:
		w.Header().Set("Allow", "GET, HEAD, PUT")
		http.Error(w, "members are registered by PUT and read by GET; everything else is up to `coldrack discovery`", http.StatusMethodNotAllowed)
	}
}

func (s *Server) newToken(w http.ResponseWriter, r *http.Request, from netip.Addr) {
	if !s.options.Open {
		http.Error(w, "this server makes no tokens for who asks here: make one with `coldrack discovery new`, or allow it with `coldrack serve --etcd-discovery-open`", http.StatusForbidden)
		return
	}
	size := DefaultSize
	if text := r.URL.Query().Get("size"); text != "" {
		var err error
		if size, err = strconv.Atoi(text); err != nil {
			http.Error(w, fmt.Sprintf("size %.20q: must be a number from 1 to %d", text, MaxSize), http.StatusBadRequest)
			return
		}
	}
	t, err := s.registry.New(size, 0, from.String(), true)
	switch {
	case errors.Is(err, ErrBad):
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	case err != nil:
		s.log.Warn("no token for a machine", "client", from, "err", err)
		w.Header().Set("Retry-After", "60")
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	s.log.Info("token made for a machine", "client", from, "token", Short(t.ID), "size", t.Size, "expires", t.Expires)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, "http://%s/%s", hostOf(r), t.ID)
}

// hostOf is how the client called this server, or the address that it came to where that is no name.
func hostOf(r *http.Request) string {
	if u, err := url.Parse("http://" + r.Host); err == nil && u.Host == r.Host && u.Hostname() != "" && u.User == nil && !strings.ContainsAny(r.Host, "/?#\\") {
		return r.Host
	}
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	return local.String()
}

func (s *Server) listV2(w http.ResponseWriter, t Token, from netip.Addr) {
	if err := s.tell(t, from); err != nil {
		s.refuseV2(w, "/"+t.ID, t, err)
		return
	}
	dir := v2Node{Key: "/" + t.ID, Dir: true, ModifiedIndex: sizeIndex, CreatedIndex: sizeIndex}
	for _, m := range t.Members {
		dir.Nodes = append(dir.Nodes, memberNode(t.ID, m))
	}
	answerV2(w, http.StatusOK, t, v2Answer{"get", dir})
}

func (s *Server) registerV2(w http.ResponseWriter, r *http.Request, token, id string, from netip.Addr) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(10 * time.Second))
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		s.refuseV2(w, r.URL.Path, Token{}, fmt.Errorf("%w: the form: %w", ErrBad, err))
		return
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	t, m, err := s.register(token, id, r.PostForm.Get("value"), from)
	if err != nil {
		s.refuseV2(w, r.URL.Path, t, err)
		return
	}
	answerV2(w, http.StatusCreated, t, v2Answer{"create", memberNode(token, m)})
}

// waitV2 answers with the first registration from an index on: of any member, or of one. Registrations of the past count.
func (s *Server) waitV2(w http.ResponseWriter, r *http.Request, token, id string, from netip.Addr) {
	leave, err := s.enter()
	if err != nil {
		s.refuseV2(w, r.URL.Path, Token{}, err)
		return
	}
	defer leave()
	t, changed, err := s.registry.Get(token)
	if err != nil {
		s.refuseV2(w, r.URL.Path, t, err)
		return
	}
	index := t.Index() + 1
	if text := r.URL.Query().Get("waitIndex"); text != "" {
		if n, err := strconv.ParseUint(text, 10, 64); err == nil && n > 0 {
			index = n
		}
	}
	control := http.NewResponseController(w)
	header := func(t Token) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Etcd-Index", strconv.FormatUint(t.Index(), 10))
	}
	limit, begun := time.NewTimer(waitAtMost), false
	defer limit.Stop()
	for {
		for _, m := range t.since(index) {
			if id != "" && m.ID != id {
				continue
			}
			if id == "" {
				if err := s.tell(t, from); err != nil {
					return // without an answer the client asks again
				}
			}
			header(t)
			_ = json.NewEncoder(w).Encode(v2Answer{"create", memberNode(token, m)})
			return
		}
		if !begun {
			// The client must not take a long wait for a server that does not answer.
			header(t)
			w.WriteHeader(http.StatusOK)
			_ = control.Flush()
			begun = true
		}
		select {
		case <-changed:
		case <-limit.C:
			return
		case <-r.Context().Done():
			return
		}
		if t, changed, err = s.registry.Get(token); err != nil {
			return
		}
	}
}

func answerV2(w http.ResponseWriter, status int, t Token, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Etcd-Index", strconv.FormatUint(t.Index(), 10))
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func (s *Server) refuseV2(w http.ResponseWriter, path string, t Token, err error) {
	code, message := codeRaft, "The server could not answer"
	switch {
	case errors.Is(err, errBusy):
		w.Header().Set("Retry-After", "10")
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	case errors.Is(err, ErrNoToken):
		code, message = codeKeyNotFound, "Key not found"
	case errors.Is(err, ErrExists):
		code, message = codeNodeExist, "Key already exists"
	case errors.Is(err, ErrFull):
		code, message = codeTestFailed, "Compare failed"
	case errors.Is(err, ErrBad):
		code, message = codeBadValue, "Invalid field"
	default:
		s.log.Error("etcd discovery failed", "err", err)
	}
	if t.ID == "" {
		path = err.Error() // what the person reads; the path would only repeat the question
	} else {
		path += ": " + err.Error()
	}
	answerV2(w, statusOf[code], t, v2Error{code, message, path, t.Index()})
}
