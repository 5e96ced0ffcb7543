package httpboot

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// slowConn takes so much before each deadline passes.
type slowConn struct {
	net.Conn
	takes int
	got   bytes.Buffer
}

func (*slowConn) SetWriteDeadline(time.Time) error { return nil }

func (c *slowConn) Write(b []byte) (int, error) {
	n := min(len(b), c.takes)
	c.got.Write(b[:n])
	if n < len(b) {
		return n, os.ErrDeadlineExceeded
	}
	return n, nil
}

func (c *slowConn) ReadFrom(source io.Reader) (int64, error) {
	n, err := io.CopyN(&c.got, source, int64(c.takes))
	switch {
	case err == io.EOF:
		return n, nil
	case err != nil:
		return n, err
	}
	return n, os.ErrDeadlineExceeded
}

// Who takes little has all the time that it needs; who takes next to nothing is let go.
func TestASlowClientIsNoStalledOne(t *testing.T) {
	data := content(3*stretch + 17)
	for name, send := range map[string]func(*guarded) (int64, error){
		"Write": func(g *guarded) (int64, error) { n, err := g.Write(data); return int64(n), err },
		"ReadFrom": func(g *guarded) (int64, error) {
			return g.ReadFrom(&io.LimitedReader{R: bytes.NewReader(data), N: int64(len(data))})
		},
	} {
		t.Run(name, func(t *testing.T) {
			slow := &slowConn{takes: slowest}
			if n, err := send(&guarded{Conn: slow, stall: time.Minute}); err != nil || n != int64(len(data)) || !bytes.Equal(slow.got.Bytes(), data) {
				t.Errorf("slow: %d of %d bytes, %v", n, len(data), err)
			}
			stalled := &slowConn{takes: slowest - 1}
			if n, err := send(&guarded{Conn: stalled, stall: time.Minute}); !errors.Is(err, os.ErrDeadlineExceeded) || n != slowest-1 {
				t.Errorf("stalled: %d bytes, %v", n, err)
			}
		})
	}
}
