package httpboot

import (
	"io"
	"net/http"
	"time"
)

// send answers with a file, or the ranges of it that were asked for, and closes it.
func (s *Server) send(w http.ResponseWriter, r *http.Request, file File, modified time.Time) {
	defer file.Close()
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		s.refuse(w, http.StatusNotFound, "no such file")
		return
	}
	if err != nil {
		s.openFailed(w, r, err)
		return
	}
	began := time.Now()
	counted := &recorder{ResponseWriter: w, status: http.StatusOK}
	http.ServeContent(counted, r, "", modified, seeker(file, info.Size()))

	report := Transfer{Remote: remoteOf(r), Path: clip(r.URL.Path), Status: counted.status, Size: info.Size(),
		Bytes: counted.bytes, Duration: time.Since(began), Err: counted.err}
	s.counters.bytes.Add(uint64(counted.bytes))
	attrs := []any{"remote", report.Remote, "path", report.Path, "status", report.Status,
		"bytes", report.Bytes, "duration", report.Duration}
	switch {
	case report.Err != nil:
		s.options.Log.Warn("boot file transfer ended early", append(attrs, "err", report.Err)...)
	case counted.status >= 400:
		s.counters.badRequest.Add(1)
		s.options.Log.Info("boot file transfer cancelled", attrs...)
	default:
		s.options.Log.Debug("boot file sent", attrs...)
	}
	if s.options.OnTransfer != nil {
		s.options.OnTransfer(report)
	}
}

// seeker keeps an *os.File what it is, because net knows to send one by sendfile(2).
func seeker(file File, size int64) io.ReadSeeker {
	if rs, ok := file.(io.ReadSeeker); ok {
		return rs
	}
	return io.NewSectionReader(file, 0, size)
}

// recorder notes what an answer came to. Its ReadFrom leads to the connection's, and so to sendfile.
type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
	err    error
}

func (r *recorder) WriteHeader(status int) {
	if status >= 200 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	n, err := r.ResponseWriter.Write(b)
	r.note(int64(n), err)
	return n, err
}

func (r *recorder) ReadFrom(source io.Reader) (int64, error) {
	n, err := io.Copy(r.ResponseWriter, source)
	r.note(n, err)
	return n, err
}

func (r *recorder) note(n int64, err error) {
	r.bytes += n
	if r.err == nil {
		r.err = err
	}
}

func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
