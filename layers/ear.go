package layers

import (
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tiercache/tiercache/internal/breaker"
)

// ear is one open space's part of the bus.
type ear struct {
	bus     *bus
	space   *Space
	channel string
	events  Events
	heard   chan struct{} // closed at the first Hear
	last    atomic.Uint64 // the newest number given to an event of this space
	gaps    atomic.Uint64 // times that missing events were noticed while the connection stood
	breaker breaker.State // what it was told last; of the speaker

	beating turn // held while the space's heartbeat runs

	mu      sync.Mutex // held while a func of events runs
	left    bool
	once    bool // heard is closed
	hearing bool
	trust   uint64 // the bus's at the last Hear
	numbers sequence

	waiting sync.Mutex
	waiters map[string]map[chan struct{}]struct{} // by id
}

// turn is a lock that is held across round trips. A Mutex would do, but who waits for one that is held by somebody who waits for a network
// stops the virtual time of the fleet's tests.
type turn struct {
	made sync.Once
	room chan struct{} // for one
}

func (t *turn) Lock() {
	t.made.Do(func() { t.room = make(chan struct{}, 1) })
	t.room <- struct{}{}
}

func (t *turn) Unlock() { <-t.room }

// tune calls Deaf or Hear, if that is due.
func (e *ear) tune() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.tuneLocked()
}

func (e *ear) tuneLocked() {
	if e.left {
		return
	}
	trust, sound := e.bus.standing(e.channel)
	// The trust tells a loss that is over already: between two looks the bus may have been deaf and sound again.
	if e.hearing && (!sound || trust != e.trust) {
		e.hearing = false
		run(e.events.Deaf)
	}
	if !sound || e.hearing {
		return
	}
	e.hearing, e.trust = true, trust
	// What was missed before this moment is dealt with by it. The numbers stay known: else the loss of an origin's next event would not
	// show. They may show a gap that was dealt with here, which costs one more look.
	e.numbers.forgive()
	run(e.events.Hear)
	if !e.once {
		e.once = true
		close(e.heard)
	}
}

// take handles one message of the space's channel.
func (e *ear) take(message string, now time.Time) {
	ev, ok := parseEvent(message)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.left {
		return
	}
	if ok && ev.kind == eventReady {
		e.ready(ev.payload)
		return
	}
	if ok {
		e.freed(ev)
	}
	if ok && ev.origin == e.bus.origin {
		return // this process did to its memory what it had to when it sent it
	}
	if !ok || !e.handleLocked(ev) {
		// Somebody said something that is not understood here, a later version perhaps. It may have been about any key.
		e.gapLocked()
		return
	}
	if ev.number == 0 && ev.kind != eventBeat {
		return
	}
	if e.numbers.note(ev.origin, ev.number, ev.kind == eventBeat, now) {
		e.gapLocked()
	}
	if !e.numbers.due().IsZero() {
		e.bus.rouse() // it watches the time
	}
}

// handleLocked reports false for an event that it does not understand.
func (e *ear) handleLocked(ev event) bool {
	switch ev.kind {
	case eventAnnounced:
		if e.events.Announced != nil {
			e.events.Announced(ev.payload)
			return true
		}
		fallthrough
	case eventInvalidated:
		if e.events.Invalidated != nil {
			e.events.Invalidated(ev.payload)
		}
	case eventCleared:
		generation, err := strconv.ParseUint(ev.payload, 10, 64)
		if err != nil {
			return false
		}
		e.space.adopt(generation, true, time.Now())
	case eventFilter:
		run(e.events.Filter)
	case eventLost:
		e.loseLocked(0)
	case eventBeat:
	default:
		return false
	}
	return true
}

// gapLocked makes the space deaf for a moment: what memory holds by now may be what a missed event was about.
func (e *ear) gapLocked() {
	e.gaps.Add(1)
	e.doubtLocked()
}

// doubtLocked calls Deaf and Hear: nothing that memory holds by now is trusted any more.
func (e *ear) doubtLocked() {
	if !e.hearing {
		return
	}
	e.hearing = false
	run(e.events.Deaf)
	e.tuneLocked()
}

// overdue looks for numbers that have not come in time, forgets silent origins, and returns when to look again; zero: nothing is awaited.
func (e *ear) overdue(now time.Time) time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.left {
		return time.Time{}
	}
	e.numbers.sweep(now)
	if e.numbers.gap(now) {
		e.gapLocked()
	}
	return e.numbers.due()
}

// do calls one of events, unless the space was left.
func (e *ear) do(f func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.left {
		run(f)
	}
}

func (e *ear) fail(op string, err error) {
	if e.events.Error != nil {
		e.do(func() { e.events.Error(op, err) })
	}
}

// Listen returns a channel that receives when somebody, in whatever process, has stored the key of this string form or given up its
// lease. It holds one message: whoever listens before it asks for the lease misses nothing that happens in between. A message may be
// lost with the bus, so a waiter also polls. Stop must be called; it may be called again.
func (sp *Space) Listen(id string) (ready <-chan struct{}, stop func()) {
	e := sp.ear
	c := make(chan struct{}, 1)
	e.waiting.Lock()
	defer e.waiting.Unlock()
	if e.waiters == nil {
		e.waiters = make(map[string]map[chan struct{}]struct{})
	}
	if e.waiters[id] == nil {
		e.waiters[id] = make(map[chan struct{}]struct{})
	}
	e.waiters[id][c] = struct{}{}
	return c, func() { e.unlisten(id, c) }
}

func (e *ear) unlisten(id string, c chan struct{}) {
	e.waiting.Lock()
	defer e.waiting.Unlock()
	delete(e.waiters[id], c)
	if len(e.waiters[id]) == 0 {
		delete(e.waiters, id)
	}
}

// ready wakes all who listen for id.
func (e *ear) ready(id string) {
	e.waiting.Lock()
	defer e.waiting.Unlock()
	wake(e.waiters[id])
}

// freed wakes whoever waits for a lease that the event has revoked, also if this process told it: its fill will be refused, and of that nobody is told.
//
//  1. A loads under the lease, B waits. 2. C invalidates: the lease is free. 3. A's fill is refused. 4. B sleeps to its next poll.
func (e *ear) freed(ev event) {
	switch ev.kind {
	case eventInvalidated, eventAnnounced:
		e.ready(ev.payload)
	case eventCleared:
		e.waiting.Lock()
		defer e.waiting.Unlock()
		for _, listeners := range e.waiters {
			wake(listeners)
		}
	}
}

// wake tells all that are not told already.
func wake(listeners map[chan struct{}]struct{}) {
	for c := range listeners {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// Heard returns a channel that is closed once the space has heard the bus for the first time: from then on memory is trusted. It stays
// open for as long as Redis cannot be reached or refuses the subscription.
func (sp *Space) Heard() <-chan struct{} { return sp.ear.heard }

// Gaps returns how many times missing events were noticed while the connection stood; each made memory ask Redis again.
func (sp *Space) Gaps() uint64 { return sp.ear.gaps.Load() }
