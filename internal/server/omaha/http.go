package omaha

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Serve answers on a listener until ctx ends.
func (s *Service) Serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler: s, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err := <-served:
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return nil
		}
		return fmt.Errorf("update server: %w", err)
	case <-ctx.Done():
		_ = server.Close() // a payload that is cut off is fetched on from where it was
		<-served
		return nil
	}
}

// Paths of requests.
const (
	pathUpdate   = "/v1/update"
	pathPackages = "/packages/"
)

// ServeHTTP answers update_engine, and sends files of packages.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	switch {
	case strings.TrimSuffix(r.URL.Path, "/") == pathUpdate && r.Method == http.MethodPost:
		_ = control.SetReadDeadline(time.Now().Add(10 * time.Second))
		_ = control.SetWriteDeadline(time.Now().Add(30 * time.Second))
		s.answer(w, r)
	case strings.HasPrefix(r.URL.Path, pathPackages) && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		_ = control.SetWriteDeadline(time.Time{}) // it takes as long as its link needs
		s.send(w, r)
	default:
		http.Error(w, "update_engine posts to "+pathUpdate+" and gets what is below "+pathPackages, http.StatusNotFound)
	}
}

func (s *Service) answer(w http.ResponseWriter, r *http.Request) {
	request, err := Parse(r.Body)
	s.mu.Lock()
	s.stats.Requests++
	if err != nil {
		s.stats.Refused++
	}
	s.mu.Unlock()
	if err != nil {
		w.Header().Set("Connection", "close")
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	from, _ := netip.ParseAddrPort(r.RemoteAddr)
	now := s.now().UTC()
	answer := Response{Protocol: "3.0", Server: "coldrack", DayStart: dayStart{now.Hour()*3600 + now.Minute()*60 + now.Second()}}
	for _, a := range request.Apps {
		answer.Apps = append(answer.Apps, s.ask(a, from.Addr().Unmap().WithZone("").String(), "http://"+hostOf(r)+pathPackages))
	}
	body, err := xml.Marshal(answer)
	if err != nil {
		http.Error(w, "the answer cannot be written", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/xml; charset=utf-8")
	_, _ = w.Write(append([]byte(xml.Header), body...))
}

// hostOf is how the client called this server, or the address that it came to where that is no name.
func hostOf(r *http.Request) string {
	if u, err := url.Parse("http://" + r.Host); err == nil && u.Host == r.Host && u.Hostname() != "" {
		return r.Host
	}
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	return local.String()
}

// send sends a file of a package that a channel names, and no other.
func (s *Service) send(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, pathPackages), "/")
	if len(parts) == 3 {
		s.mu.Lock()
		p, known := s.packages[parts[0]+"/"+parts[1]]
		s.mu.Unlock()
		for _, f := range p.Files {
			if !known || f.Name != parts[2] {
				continue
			}
			file, err := os.Open(filepath.Join(s.dir, p.Board, p.Version, f.Name))
			if err != nil {
				break
			}
			defer file.Close()
			w.Header().Set("Content-Type", "application/octet-stream")
			w.Header().Set("ETag", `"`+f.SHA256+`"`)
			http.ServeContent(w, r, "", f.modified, file)
			return
		}
	}
	http.Error(w, "no channel has such a file", http.StatusNotFound)
}
