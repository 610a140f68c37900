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

// GateOptions bound the loads of one process. Zero means the default; negative is an error, but for Absent.
type GateOptions struct {
	Loads   int           // at once; 64
	Waiting int           // callers in the queue; 256. Who finds it full gets ErrOverloaded at once
	Wait    time.Duration // longest wait in the queue, then ErrOverloaded; 100 ms
	Absent  int           // of Loads, those of class Suspect; a tenth, but four at least and half at most; negative: all of them. As many wait
}

// Gate bounds how many loads run at once in this process, so that the source never feels more than that whatever happens to the
// cache. Who finds no free slot waits in a short queue, first come, first served within a Class, and the lower class first; classes
// that nobody waits for have no queue. All methods may be called concurrently.
type Gate struct {
	loads int
	wait  time.Duration

	mu      sync.Mutex
	running int // the sum of the shares'
	shares  [classes]share
	misses  misses
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
	if o.Loads == 0 {
		o.Loads = defaultLoads
	}
	if o.Waiting == 0 {
		o.Waiting = defaultWaiting
	}
	if o.Wait == 0 {
		o.Wait = defaultWait
	}
	g := &Gate{loads: o.Loads, wait: o.Wait, shares: o.shares()}
	g.misses = o.misses(g.Slots(Suspect))
	return g, nil
}

// Enter is EnterAs for Foreground.
func (g *Gate) Enter(ctx context.Context) error { return g.EnterAs(ctx, Foreground) }

// EnterAs takes a slot, which the caller gives back by LeaveAs of the same class. It blocks while none is free for the class, at most for
// GateOptions.Wait; Refresh and Warm never block, nor does Revalidate while a Foreground waits. Without a slot it returns ErrOverloaded, ErrClosed, or an error that matches ctx.Err()
// and its cause.
func (g *Gate) EnterAs(ctx context.Context, class Class) error {
	if ctx.Err() != nil {
		return ended(ctx)
	}
	w, place, err := g.enqueue(class)
	if w == nil {
		return err
	}
	timer := time.NewTimer(g.wait)
	defer timer.Stop()
	select {
	case <-w.called:
		return w.err
	case <-timer.C:
		if g.quit(place, class, true) {
			return ErrOverloaded
		}
		return w.err // called in the last moment: take what was given
	case <-ctx.Done():
		if !g.quit(place, class, false) && w.err == nil {
			g.LeaveAs(class) // given a slot in the last moment: it goes to the next
		}
		return ended(ctx)
	}
}

// enqueue takes a free slot (nil, nil, nil), refuses, or returns the caller's place in the queue.
func (g *Gate) enqueue(class Class) (*gateWaiter, *list.Element, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := &g.shares[class]
	if class == Suspect {
		g.misses.came++
	}
	switch {
	case g.closed:
		return nil, nil, ErrClosed
	case g.running < g.loads && s.running < s.slots: // then nobody waits who could have it: LeaveAs hands a slot over rather than freeing it
		g.running++
		s.running++
		return nil, nil, nil
	case s.queue.Len() >= s.waiting, class == Revalidate && g.shares[Foreground].queue.Len() > 0:
		s.shed++
		return nil, nil, ErrOverloaded
	}
	w := &gateWaiter{called: make(chan struct{})}
	return w, s.queue.PushBack(w), nil
}

// quit takes a waiter out of the queue and reports whether it was still there; if not, it has been called.
func (g *Gate) quit(place *list.Element, class Class, shed bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	w, _ := place.Value.(*gateWaiter)
	select {
	case <-w.called:
		return false
	default:
	}
	s := &g.shares[class]
	s.queue.Remove(place)
	if shed {
		s.shed++
	}
	return true
}

// Leave is LeaveAs for Foreground.
func (g *Gate) Leave() { g.LeaveAs(Foreground) }

// LeaveAs gives a slot back: to the oldest waiter of the lowest class that may have it, if there is one. It is called once for each
// EnterAs of that class that returned nil.
func (g *Gate) LeaveAs(class Class) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running = max(g.running-1, 0)
	left := &g.shares[class]
	left.running = max(left.running-1, 0)
	for i := range g.shares {
		s := &g.shares[i]
		if first := s.queue.Front(); first != nil && s.running < s.slots {
			g.running++
			s.running++
			s.callLocked(first, nil)
			return // one slot became free, so nobody else can have one
		}
	}
}

// Close refuses all who wait, and all who come later, with ErrClosed. Slots in use are still given back. It may be called again.
func (g *Gate) Close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	for i := range g.shares {
		s := &g.shares[i]
		for first := s.queue.Front(); first != nil; first = s.queue.Front() {
			s.callLocked(first, ErrClosed)
		}
	}
}

func (s *share) callLocked(place *list.Element, err error) {
	if w, ok := s.queue.Remove(place).(*gateWaiter); ok {
		w.err = err
		close(w.called)
	}
}

// Slots returns how many loads of the class may run at once.
func (g *Gate) Slots(class Class) int { return g.shares[class].slots } // never written after NewGate

// Running returns how many slots are taken.
func (g *Gate) Running() uint64 { return g.sum(func(s *share) uint64 { return uint64(s.running) }) } //nolint:gosec // never negative

// RunningAs returns how many slots loads of the class have taken.
func (g *Gate) RunningAs(class Class) uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return uint64(g.shares[class].running) //nolint:gosec // never negative
}

// Waiting returns how many callers are in the queues.
func (g *Gate) Waiting() uint64 {
	return g.sum(func(s *share) uint64 { return uint64(s.queue.Len()) }) //nolint:gosec // never negative
}

// Shed returns how many callers got ErrOverloaded since the gate was made.
func (g *Gate) Shed() uint64 { return g.sum(func(s *share) uint64 { return s.shed }) }

// ShedAs returns how many callers of the class got ErrOverloaded since the gate was made.
func (g *Gate) ShedAs(class Class) uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.shares[class].shed
}

func (g *Gate) sum(of func(*share) uint64) (sum uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := range g.shares {
		sum += of(&g.shares[i])
	}
	return sum
}
