package layers

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// closeWait bounds how long closing the bus waits for its two goroutines. Both leave at once when told, unless a TLS handshake or a
// sentinel holds one up, which nothing can break off before the client's own time-out. Chosen; not tuned.
const closeWait = time.Second

var errBusClosed = errors.New("layers: the Redis is closed")

// bus is what the caches of one Redis hear from other processes: one subscription, on one connection, for all of them.
//
// It has two goroutines, from the first join until close. The listener owns the connection: it makes it, reads it and replaces it. The
// speaker does what is sent: subscriptions, probes, beats, each space's heartbeat; and it watches the clock for missing numbers.
//
// What is heard may be trusted while the bus is sound. It is not from the start, and never stays so by itself:
//
//	(1) the connection ends, or nothing at all arrives on it for two heartbeats  -> not sound, and the connection is replaced
//	(2) two probes in a row through a master that took them have not come back   -> the same
//	(3) a master answers again after it was unreachable                          -> not sound
//	(4) the subscription of the probes' channel is confirmed on the present connection; a round of probes begun after that is over;
//	    all that were taken by a master, at least one, have come back            -> sound
//
// A cache hears while the bus is sound and its own channel is confirmed on the present connection. Each time it may have missed something
// it is told Deaf at once, and Hear only after (4). That order is the point (protocol R12): were trust renewed when the loss is noticed,
// an event lost between that and the new subscription would leave an old value trusted.
//
// Locks: an ear's beating, then its mu, then the bus's mu. Nothing of Events is called with the bus's mu held.
type bus struct {
	r       *Redis
	origin  string        // under which this Redis speaks
	private string        // the channel of the probes
	wake    chan struct{} // capacity 1: the speaker has something to do
	done    [2]chan struct{}

	mu      sync.Mutex
	stop    context.CancelFunc // nil before the first join
	closed  bool
	ears    map[string]*ear // by channel
	floor   uint64          // no ear that was closed had given a higher number
	link    *link           // the present connection; nil while there is none
	trust   uint64          // counts the moments from which on something may have been missed
	sound   bool
	proving bool              // a round of probes begun under the present trust is over: what it sent must come back
	round   uint64            // of probes
	probes  uint64            // sent so far
	pulses  map[string]*pulse // by master
	said    bool              // the loss of the connection was reported
	refused map[string]bool   // channels whose subscription was refused, and that was reported

	met         bool    // a round of probes is over: in Cluster, a master that is new after it may have been a replica
	suspect     *master // reachable again, and nobody knows as whom
	infoRefused bool    // that INFO is refused was reported
}

func newBus(r *Redis) *bus {
	b := &bus{
		r:       r,
		origin:  newOrigin(),
		wake:    make(chan struct{}, 1),
		done:    [2]chan struct{}{make(chan struct{}), make(chan struct{})},
		ears:    make(map[string]*ear),
		pulses:  make(map[string]*pulse),
		refused: make(map[string]bool),
		trust:   1,
	}
	b.private = r.prefix + ":bus:" + b.origin
	r.onState, r.onPhase = b.onState, b.rouse // the speaker tells the ears: this may be anybody's goroutine
	return b
}

// join gives sp its ear. It fails if a space of that name is open, or the bus is closed. It waits for nothing: the space is deaf until
// its channel's subscription is confirmed and a probe has come back.
func (b *bus) join(sp *Space) error {
	e := &ear{bus: b, space: sp, channel: sp.channel, events: sp.o.Events, heard: make(chan struct{})}
	e.mu.Lock() // so that Deaf comes before any Hear
	defer e.mu.Unlock()
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return errBusClosed
	}
	if b.ears[e.channel] != nil {
		b.mu.Unlock()
		return fmt.Errorf("layers: a cache named %q is already open on this Redis", sp.o.Name)
	}
	// A name that is opened again must not give numbers again: whoever remembers this origin would take them for old ones.
	e.last.Store(b.floor)
	sp.ear = e
	b.ears[e.channel] = e
	if b.stop == nil {
		ctx, stop := context.WithCancel(context.Background())
		b.stop = stop
		go b.listen(ctx)
		go b.speak(ctx)
	}
	b.mu.Unlock()
	run(e.events.Deaf)
	b.rouse()
	return nil
}

// leave takes sp's ear away and frees its name. It waits for a func of sp's Events that is running, and for sp's heartbeat, which ends
// within its budget; none runs afterwards.
func (b *bus) leave(sp *Space) {
	e := sp.ear
	if e == nil {
		return
	}
	b.mu.Lock()
	if b.ears[e.channel] == e {
		delete(b.ears, e.channel)
		delete(b.refused, e.channel)
		b.floor = max(b.floor, e.last.Load())
	}
	b.mu.Unlock()
	b.rouse()
	e.beating.Lock()
	defer e.beating.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.left, e.hearing = true, false
}

// close ends the subscription and both goroutines; a Redis that hangs does not hold it up. The ears that are still open hear nothing
// more. It may be called again.
func (b *bus) close() {
	b.mu.Lock()
	b.closed = true
	stop := b.stop
	b.mu.Unlock()
	if stop == nil {
		return
	}
	stop()
	limit := time.NewTimer(closeWait)
	defer limit.Stop()
	for _, done := range b.done {
		select {
		case <-done:
		case <-limit.C:
			return
		}
	}
}

// event returns the bytes of a new event of sp for a script to publish.
//
// All kinds but ready and lost take a number. A number is used up even if its script then fails and publishes nothing: every listener sees a gap
// once, and asks Redis again for what its memory held. That is harmless, and cheaper than to find out what became of the script. A script
// that is repeated publishes the same bytes again: handling an event twice is harmless too.
func (b *bus) event(sp *Space, kind byte, payload string) string {
	ev := event{kind: kind, origin: b.origin, payload: payload}
	if kind != eventReady && kind != eventLost && sp.ear != nil {
		ev.number = sp.ear.last.Add(1)
	}
	return ev.String()
}

// rouse makes the speaker look at what there is to do. It never blocks.
func (b *bus) rouse() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// open returns the ears that are open now.
func (b *bus) open() []*ear {
	b.mu.Lock()
	defer b.mu.Unlock()
	ears := make([]*ear, 0, len(b.ears))
	for _, e := range b.ears {
		ears = append(ears, e)
	}
	return ears
}

// standing returns the present trust, and whether what is heard on channel may be trusted.
func (b *bus) standing(channel string) (trust uint64, sound bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.trust, b.sound && b.link != nil && b.link.confirmed(channel)
}

// doubtLocked records that events may have been missed on every channel. The caller tunes the ears once it has released mu.
func (b *bus) doubtLocked() {
	b.trust++
	b.sound, b.proving = false, false
}

// tune tells every ear what has changed for it.
func (b *bus) tune() {
	for _, e := range b.open() {
		e.tune()
	}
}

// onState is called by the transport when a master was found unreachable or reachable again. What happened on it meanwhile, a failover
// perhaps, nobody here knows. While it is unreachable nothing needs to be done: no script runs there for us to miss, or its events come.
func (b *bus) onState(reachable bool, m *master) {
	if !reachable {
		return
	}
	b.mu.Lock()
	b.doubtLocked()
	if m != nil {
		if p := b.pulses[m.id]; p != nil && p.who.known == "" {
			b.suspect = m
		}
	}
	b.mu.Unlock()
	b.rouse() // the speaker tells the ears: this may be anybody's goroutine
}

// report tells everyone of a change of state.
func (b *bus) report(err error) {
	for _, e := range b.open() {
		e.fail("bus", err)
	}
}

func run(f func()) {
	if f != nil {
		f()
	}
}
