package rebuild

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Defaults of GateOptions. Their source: a simulated flush of a whole cache, where 64 loads at once, four times what the source could
// do in parallel, recovered fastest, and more did no better.
const (
	defaultLoads   = 64
	defaultWaiting = 256
	defaultWait    = 100 * time.Millisecond
)

// GateOptions bound the loads of one process. Zero means the default; negative is an error.
type GateOptions struct {
	Loads   int           // at once; 64
	Waiting int           // callers in the queue; 256. Who finds it full gets ErrOverloaded at once
	Wait    time.Duration // longest wait in the queue, then ErrOverloaded; 100 ms
}

// Gate bounds how many loads run at once in this process, so that the source never feels more than that whatever happens to the
// cache. Who finds no free slot waits in a short queue, first come, first served. All methods may be called concurrently.
type Gate struct {
	loads   int
	waiting int
	wait    time.Duration

	mu      sync.Mutex
	running int
	queue   *list.List // of *gateWaiter, oldest first; not empty only while running == loads
	shed    uint64
	closed  bool
}

// gateWaiter is one caller in the queue. Whoever takes it out of the queue, under mu, decides what becomes of it.
type gateWaiter struct {
	called chan struct{} // closed when it was taken out by another: it has a slot then, or the gate was closed
	err    error         // written before called is closed
}

// NewGate returns an open gate. All mistakes of o come in one error.
func NewGate(o GateOptions) (*Gate, error) {
	var errs []error
	negative := func(field string, value any, is bool) {
		if is {
			errs = append(errs, fmt.Errorf("rebuild: GateOptions.%s is negative: %v", field, value))
		}
	}
	negative("Loads", o.Loads, o.Loads < 0)
	negative("Waiting", o.Waiting, o.Waiting < 0)
	negative("Wait", o.Wait, o.Wait < 0)
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	g := &Gate{loads: o.Loads, waiting: o.Waiting, wait: o.Wait, queue: list.New()}
	if g.loads == 0 {
		g.loads = defaultLoads
	}
	if g.waiting == 0 {
		g.waiting = defaultWaiting
	}
	if g.wait == 0 {
		g.wait = defaultWait
	}
	return g, nil
}

// Enter takes a slot, which the caller gives back by Leave. It blocks while none is free, at most for GateOptions.Wait. Without a slot
// it returns ErrOverloaded, ErrClosed, or an error that matches ctx.Err() and its cause.
func (g *Gate) Enter(ctx context.Context) error {
	if ctx.Err() != nil {
		return ended(ctx)
	}
	w, place, err := g.enqueue()
	if w == nil {
		return err
	}
	timer := time.NewTimer(g.wait)
	defer timer.Stop()
	select {
	case <-w.called:
		return w.err
	case <-timer.C:
		if g.quit(place, true) {
			return ErrOverloaded
		}
		return w.err // called in the last moment: take what was given
	case <-ctx.Done():
		if !g.quit(place, false) && w.err == nil {
			g.Leave() // given a slot in the last moment: it goes to the next
		}
		return ended(ctx)
	}
}

// enqueue takes a free slot (nil, nil, nil), refuses, or returns the caller's place in the queue.
func (g *Gate) enqueue() (*gateWaiter, *list.Element, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.closed:
		return nil, nil, ErrClosed
	case g.running < g.loads: // then nobody waits: Leave hands a slot over rather than freeing it
		g.running++
		return nil, nil, nil
	case g.queue.Len() >= g.waiting:
		g.shed++
		return nil, nil, ErrOverloaded
	}
	w := &gateWaiter{called: make(chan struct{})}
	return w, g.queue.PushBack(w), nil
}

// quit takes a waiter out of the queue and reports whether it was still there; if not, it has been called.
func (g *Gate) quit(place *list.Element, shed bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	w, _ := place.Value.(*gateWaiter)
	select {
	case <-w.called:
		return false
	default:
	}
	g.queue.Remove(place)
	if shed {
		g.shed++
	}
	return true
}

// Leave gives a slot back: to the oldest waiter, if there is one. It is called once for each Enter that returned nil.
func (g *Gate) Leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if first := g.queue.Front(); first != nil {
		g.callLocked(first, nil)
		return
	}
	g.running = max(g.running-1, 0)
}

// Close refuses all who wait, and all who come later, with ErrClosed. Slots in use are still given back. It may be called again.
func (g *Gate) Close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	for first := g.queue.Front(); first != nil; first = g.queue.Front() {
		g.callLocked(first, ErrClosed)
	}
}

func (g *Gate) callLocked(place *list.Element, err error) {
	if w, ok := g.queue.Remove(place).(*gateWaiter); ok {
		w.err = err
		close(w.called)
	}
}

// Running returns how many slots are taken.
func (g *Gate) Running() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return uint64(g.running)
}

// Waiting returns how many callers are in the queue.
func (g *Gate) Waiting() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return uint64(g.queue.Len())
}

// Shed returns how many callers got ErrOverloaded since the gate was made.
func (g *Gate) Shed() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.shed
}
