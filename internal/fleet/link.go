package fleet

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"time"
)

// farthest is how long a packet is under way at most on the virtual stage; nearly all are a quarter of that. Chosen: some round trips of
// one process fall into one of another, and a call's budget is far away.
const farthest = 2 * time.Millisecond

// link is one process's way to Redis on the virtual stage.
type link struct {
	serve func(net.Conn) // takes the server's end of a connection

	mu      sync.Mutex
	chance  *rand.Rand
	wires   map[*wire]struct{}
	down    bool // connections are refused
	dead    bool // for good
	held    bool // the server stands still: nothing arrives on either end
	deafens bool // what the server publishes is lost
}

// wire is one connection.
type wire struct {
	up, down *lane
	bus      bool // it has subscribed
}

func newLink(seed uint64, serve func(net.Conn)) *link {
	return &link{serve: serve, chance: rand.New(rand.NewPCG(seed, 1)), wires: map[*wire]struct{}{}} //nolint:gosec // it shall be predictable
}

// dial is the Dialer of a client.
func (l *link) dial(context.Context, string, string) (net.Conn, error) {
	l.mu.Lock()
	if l.down {
		l.mu.Unlock()
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: place{}, Err: syscall.ECONNREFUSED}
	}
	w := &wire{up: newLane(), down: newLane()}
	w.up.held, w.down.held = l.held, l.held
	l.wires[w] = struct{}{}
	l.mu.Unlock()
	l.serve(&conn{in: w.up, out: w.down, delay: l.delay})
	return &conn{in: w.down, out: w.up, delay: l.delay, wrote: func(b []byte) { l.wrote(w, b) }}, nil
}

// delay draws how long a packet is under way.
func (l *link) delay() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	most := farthest / 4
	if l.chance.IntN(8) == 0 {
		most = farthest
	}
	return time.Duration(l.chance.Int64N(int64(most)))
}

// wrote notices that a connection is the bus's.
func (l *link) wrote(w *wire, b []byte) {
	if !bytes.Contains(b, []byte("subscribe")) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	w.bus = true
	l.tuneLocked(w)
}

// tuneLocked makes a connection what the link is.
func (l *link) tuneLocked(w *wire) {
	w.up.set(func() { w.up.held = l.held })
	w.down.set(func() { w.down.held, w.down.lost = l.held, l.deafens && w.bus })
}

// set changes what the link is.
func (l *link) set(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	for w := range l.wires {
		l.tuneLocked(w)
	}
}

// cut breaks the connections that stand, or the bus's only.
func (l *link) cut(busOnly bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for w := range l.wires {
		if busOnly && !w.bus {
			continue
		}
		w.up.end(io.EOF)
		w.down.end(&net.OpError{Op: "read", Net: "tcp", Addr: place{}, Err: syscall.ECONNRESET})
		delete(l.wires, w)
	}
}

// kill ends the link for good, as the end of its process does.
func (l *link) kill() {
	l.set(func() { l.down, l.dead = true, true })
	l.cut(false)
}
