package fleet

import (
	"bytes"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

// A connection of the virtual stage is two lanes: memory, no sockets, so that whoever waits on it is durably blocked. A write never
// blocks: the imitation publishes under its lock, and a lock that is held by somebody who waits stops virtual time for good.

// packet is what one Write sent.
type packet struct {
	due  time.Time
	data []byte
}

// lane is one direction of a connection. It has one reader.
type lane struct {
	changed chan struct{} // capacity 1: the reader shall look again

	mu       sync.Mutex
	packets  []packet // never due before the one ahead
	err      error    // nothing comes any more, or behind what is under way
	held     bool     // nothing is read for now
	lost     bool     // messages of the bus are thrown away; replies are not, which no network loses alone
	deadline time.Time
}

func newLane() *lane { return &lane{changed: make(chan struct{}, 1)} }

// set changes the lane and wakes its reader.
func (l *lane) set(f func()) {
	l.mu.Lock()
	f()
	l.mu.Unlock()
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// send adds b, to be read after delay, behind what was sent before.
func (l *lane) send(b []byte, delay time.Duration) (err error) {
	l.set(func() {
		if err = l.err; err != nil || l.lost && bytes.Contains(b, []byte("\r\nmessage\r\n")) {
			return
		}
		due := time.Now().Add(delay)
		if n := len(l.packets); n > 0 && due.Before(l.packets[n-1].due) {
			due = l.packets[n-1].due
		}
		l.packets = append(l.packets, packet{due, slices.Clone(b)})
	})
	return err
}

// read waits for data, the deadline or the end of the lane.
func (l *lane) read(b []byte) (int, error) {
	for {
		n, wait, err := l.take(b)
		if n > 0 || err != nil || len(b) == 0 {
			return n, err
		}
		if wait < 0 {
			<-l.changed
			continue
		}
		t := time.NewTimer(wait)
		select {
		case <-l.changed:
		case <-t.C:
		}
		t.Stop()
	}
}

// take reads what is due; else it returns how long to wait, negative: until something changes.
func (l *lane) take(b []byte) (n int, wait time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil && len(l.packets) == 0 {
		return 0, 0, l.err
	}
	now := time.Now()
	wait = -1
	if !l.deadline.IsZero() {
		if wait = l.deadline.Sub(now); wait <= 0 {
			return 0, 0, os.ErrDeadlineExceeded
		}
	}
	if l.held || len(l.packets) == 0 {
		return 0, wait, nil
	}
	first := &l.packets[0]
	if left := first.due.Sub(now); left > 0 {
		if wait < 0 || left < wait {
			wait = left
		}
		return 0, wait, nil
	}
	n = copy(b, first.data)
	if first.data = first.data[n:]; len(first.data) == 0 {
		l.packets = slices.Delete(l.packets, 0, 1)
	}
	return n, 0, nil
}

// end ends the lane: what is under way is lost.
func (l *lane) end(err error) {
	l.set(func() { l.err, l.packets = err, nil })
}

// finish ends the lane behind what is under way.
func (l *lane) finish() {
	l.set(func() {
		if l.err == nil {
			l.err = io.EOF
		}
	})
}

// conn is one end of a connection.
type conn struct {
	in, out *lane
	wrote   func(b []byte)       // sees what is written; nil: nobody does
	delay   func() time.Duration // of what is written
}

func (c *conn) Read(b []byte) (int, error) { return c.in.read(b) }

func (c *conn) Write(b []byte) (int, error) {
	if c.wrote != nil {
		c.wrote(b)
	}
	if err := c.out.send(b, c.delay()); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Close ends the connection. What was written still arrives: a request whose caller has left is carried out all the same.
func (c *conn) Close() error {
	c.out.finish()
	c.in.end(net.ErrClosed)
	return nil
}

func (c *conn) LocalAddr() net.Addr  { return place{} }
func (c *conn) RemoteAddr() net.Addr { return place{} }

func (c *conn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

func (c *conn) SetReadDeadline(t time.Time) error {
	c.in.set(func() { c.in.deadline = t })
	return nil
}

// SetWriteDeadline does nothing: a write does not wait.
func (c *conn) SetWriteDeadline(time.Time) error { return nil }

// place is the address of everybody.
type place struct{}

func (place) Network() string { return "tcp" }
func (place) String() string  { return "fleet:6379" }
