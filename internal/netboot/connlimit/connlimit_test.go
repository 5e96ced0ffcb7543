package connlimit

import (
	"net"
	"testing"
)

type rig struct {
	t        *testing.T
	listener *Listener
}

func newRig(t *testing.T, options Options) *rig {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t, New(inner, options)}
	t.Cleanup(func() { r.listener.Close() })
	return r
}

// dial connects from an address of the loopback network.
func (r *rig) dial(from string) net.Conn {
	r.t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	conn, err := dialer.DialContext(r.t.Context(), "tcp", r.listener.Addr().String())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { conn.Close() })
	return conn
}

func (r *rig) accept() *Conn {
	r.t.Helper()
	conn, err := r.listener.Accept()
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { conn.Close() })
	return conn.(*Conn)
}

// ended says whether the server has closed the connection.
func ended(conn net.Conn) bool {
	_, err := conn.Read(make([]byte, 1))
	return err != nil
}

func TestOneAddressHasFewConnections(t *testing.T) {
	r := newRig(t, Options{PerClient: 2})
	r.dial("127.0.0.1")
	r.dial("127.0.0.1")
	first := r.accept()
	r.accept()
	third := r.dial("127.0.0.1")
	r.dial("127.0.0.2")
	if c := r.accept(); c.Client.String() != "127.0.0.2" {
		t.Errorf("accepted one of %s", c.Client)
	}
	if !ended(third) {
		t.Error("the third connection of one address was not closed")
	}
	first.Close()
	first.Close() // a second Close frees no second place
	r.dial("127.0.0.1")
	r.accept()
	if s := r.listener.Stats(); s.Open != 3 || s.Refused != 1 {
		t.Errorf("stats %+v", s)
	}
}

func TestThoseWhoProveNothingGiveWay(t *testing.T) {
	r := newRig(t, Options{Unproven: 2})
	silent := r.dial("127.0.0.1")
	r.accept()
	r.dial("127.0.0.2")
	machine := r.accept()
	machine.Prove()
	for range 3 {
		r.dial("127.0.0.3")
		r.accept()
	}
	if !ended(silent) {
		t.Error("the oldest silent connection still has its place")
	}
	if s := r.listener.Stats(); s.Open != 3 || s.Unproven != 2 || s.Evicted != 2 {
		t.Errorf("stats %+v, want the proven one and two others", s)
	}
	if _, err := machine.Write([]byte("x")); err != nil {
		t.Errorf("the connection of a peer that has proven who it is: %v", err)
	}
}

// Who holds many connections makes room for who holds few, even if all places are taken.
func TestWhoHoldsMostGivesWay(t *testing.T) {
	r := newRig(t, Options{Max: 4})
	r.dial("127.0.0.2")
	honest := r.accept()
	oldest := r.dial("127.0.0.1")
	r.accept()
	for range 2 {
		r.dial("127.0.0.1")
		r.accept()
	}
	r.dial("127.0.0.3")
	if c := r.accept(); c.Client.String() != "127.0.0.3" {
		t.Errorf("accepted one of %s", c.Client)
	}
	if !ended(oldest) {
		t.Error("the oldest connection of the address with most of them still has its place")
	}
	if _, err := honest.Write([]byte("x")); err != nil {
		t.Errorf("the only connection of another address: %v", err)
	}
	// One of those who hold most makes room itself: nobody behind it waits.
	r.dial("127.0.0.1")
	r.accept()
	r.dial("127.0.0.4")
	if c := r.accept(); c.Client.String() != "127.0.0.4" {
		t.Errorf("accepted one of %s", c.Client)
	}
	if _, err := honest.Write([]byte("x")); err != nil {
		t.Errorf("the only connection of another address: %v", err)
	}
	if s := r.listener.Stats(); s.Open != 4 || s.Evicted != 3 {
		t.Errorf("stats %+v", s)
	}
}

func TestTooManyWaitForAPlace(t *testing.T) {
	r := newRig(t, Options{Max: 1})
	r.dial("127.0.0.1")
	first := r.accept()
	r.dial("127.0.0.2")
	second := make(chan *Conn)
	go func() {
		conn, err := r.listener.Accept()
		if err != nil {
			close(second)
			return
		}
		second <- conn.(*Conn)
	}()
	select {
	case <-second:
		t.Fatal("two connections have one place")
	default:
	}
	first.Close()
	if c, ok := <-second; !ok || c.Client.String() != "127.0.0.2" {
		t.Errorf("the second got %v", c)
	}
	for range 2 { // a server closes it, and whoever made it does
		if err := r.listener.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := r.listener.Accept(); err == nil {
		t.Error("a closed listener accepts")
	}
}
