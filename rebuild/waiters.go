package rebuild

import (
	"container/list"
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

// How callers wait for a lock; see the comment of obtain. Entry and refresh are those of the protocol that was model-checked, the rest is
// chosen; not tuned.
const (
	entryTime     = 3 * time.Second // a place in the queue is kept for, if nobody asks for it again
	refreshTime   = time.Second     // after so long it is asked for again
	refreshJitter = 0.2             // more or less by up to this fraction, so that processes do not ask in step
	deafPollFirst = 100 * time.Millisecond
	deafPollLast  = 500 * time.Millisecond
	confirmTime   = time.Second // longest wait for a subscription; then the caller polls
	alsoBound     = 64          // others whose places one call keeps alive
)

// lockwaiter is one call that waits for a grant.
type lockwaiter struct {
	claim LockClaim     // as every ask has it, but for Entry, Floor and Also
	kick  chan struct{} // room for one: ask now. One that comes while the waiter asks is kept

	// Used by the waiting call only.
	unanswered bool  // something was asked and not answered: it may still be carried out
	failure    error // the last transient one since the last answer

	// Guarded by the lockbook's mu.
	place   *list.Element // here; nil: it does not wait
	queued  bool          // its asks take a place in the backend's queue. Changed by the waiting call only
	entered bool          // the last that was heard is that it has a place in the queue
	also    []string      // whose places its next call keeps alive
}

// enter puts w behind those of this process who wait for its name.
func (b *lockbook) enter(w *lockwaiter) {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.queues[w.claim.Name]
	if q == nil {
		q = &lockqueue{refreshAt: time.Now().Add(b.untilRefreshLocked())}
		b.queues[w.claim.Name] = q
	}
	w.place = q.waiters.PushBack(w)
	b.waiters[w.claim.Owner] = w
}

// quit takes w out of its queue. Who is the first then asks, which also uses a wake-up that w had no use for.
func (b *lockbook) quit(w *lockwaiter) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.waiters, w.claim.Owner)
	q := b.queues[w.claim.Name]
	first := q.front() == w
	q.waiters.Remove(w.place)
	switch next := q.front(); {
	case next == nil:
		delete(b.queues, w.claim.Name)
	case first:
		next.rouse()
	}
}

func (q *lockqueue) front() *lockwaiter {
	if e := q.waiters.Front(); e != nil {
		w, _ := e.Value.(*lockwaiter)
		return w
	}
	return nil
}

// rouse makes w ask, now or when what it asks at present is answered.
func (w *lockwaiter) rouse() {
	select {
	case w.kick <- struct{}{}:
	default:
	}
}

// obtain waits until w is granted what it claims. Where nobody is passed, each caller of this process has a place in the backend's queue;
// else only the first one has, and the others wait here behind it without a call. A caller asks
//
//   - once, without a place in the queue; if that is refused it makes sure that wake-ups are heard, and asks again with one;
//   - when a wake-up names it, or when it becomes the first here;
//   - the first one also when the lease in its way ends, and every second, for itself and for the places of the others; while no
//     wake-ups are heard, all 100 to 500 ms.
//
// It hears before it queues, for else the wake-up could be lost:
//
//  1. B asks and is put into the queue.
//  2. A releases; the wake-up goes to B's process, which has not subscribed yet.
//  3. B subscribes and sleeps, with the lock free, until its next poll.
//
// Transient errors are repeated, unless once says otherwise. Only the first one does it by the clock: the others are told to when it has
// had an answer, so that an outage costs the same however many wait.
func (b *lockbook) obtain(ctx context.Context, w *lockwaiter, once bool) (g LockGrant, sent moment, err error) {
	if !b.ordered && !b.first(w) {
		if err := w.rest(ctx, 0); err != nil {
			return g, sent, err
		}
	}
	for {
		g, sent, err = b.ask(ctx, w)
		switch {
		case err == nil:
			return g, sent, nil
		case errors.Is(err, ErrLocked):
			w.failure = nil
			if !w.queued {
				b.listen(ctx)
				b.queueUp(w)
				continue
			}
		case ctx.Err() != nil || once || !repeatable(ctx, err):
			return g, sent, err
		default:
			w.failure = err
		}
		if err := w.rest(ctx, b.pause(w, g.Retry)); err != nil {
			return g, sent, err
		}
	}
}

// rest blocks until w is roused, or after pause (0: none), or until ctx ends, which is an error.
func (w *lockwaiter) rest(ctx context.Context, pause time.Duration) error {
	var clock <-chan time.Time
	if pause > 0 {
		timer := time.NewTimer(pause)
		defer timer.Stop()
		clock = timer.C
	}
	select {
	case <-w.kick:
	case <-clock:
	case <-ctx.Done():
		return ended(ctx)
	}
	return nil
}

// ask is one call for w's grant. A grant that came so late that it is as good as over is a transient error: who asks again gets it anew.
func (b *lockbook) ask(ctx context.Context, w *lockwaiter) (g LockGrant, sent moment, err error) {
	c := b.prepare(w)
	limited, cancel := context.WithTimeout(ctx, callTime(b.lease))
	defer cancel()
	sent = thisMoment()
	g, err = b.backend.Acquire(limited, c)
	if err == nil && g.Left > 0 && thisMoment().since(sent) >= g.Left-b.margin() {
		err = errLate
	}
	err = ours(ctx, limited, err)
	answered := err == nil || errors.Is(err, ErrLocked)
	if !answered {
		w.unanswered = true
	}
	if b.fleet != nil && g.Processes > 0 {
		b.fleet.counted(c.Name, g.Processes)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.noteLocked(g)
	w.entered = answered && err != nil && c.Entry > 0
	for _, owner := range g.Gone {
		if gone := b.waiters[owner]; gone != nil {
			gone.entered = false
			gone.rouse()
		}
	}
	return g, sent, err
}

// prepare returns w's claim as it is to be sent now.
func (b *lockbook) prepare(w *lockwaiter) LockClaim {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sound && w.place != nil {
		w.queued = true // it would be heard already: one call less
	}
	c := w.claim
	c.Floor = b.floor
	if w.queued {
		c.Entry = entryTime
		if q := b.queues[c.Name]; q.front() == w && w.failure == nil && !time.Now().Before(q.refreshAt) {
			b.refreshLocked(q)
		}
		c.Also, w.also = w.also, nil
	}
	return c
}

// queueUp lets w's next ask take a place in the backend's queue.
func (b *lockbook) queueUp(w *lockwaiter) {
	b.mu.Lock()
	defer b.mu.Unlock()
	w.queued = true
}

func (b *lockbook) first(w *lockwaiter) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.queues[w.claim.Name].front() == w
}

// pause is how long w rests before it asks again by itself; 0: it does not. retry is the rest of what is in its way, if that is known.
func (b *lockbook) pause(w *lockwaiter, retry time.Duration) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.queues[w.claim.Name]
	switch {
	case q.front() != w:
		return 0
	case w.failure != nil:
		return deafPoll()
	}
	pause := max(time.Until(q.refreshAt), time.Millisecond)
	if retry > 0 {
		pause = min(pause, retry+time.Millisecond+rand.N(leftJitter)) // a millisecond: backends end a lease by whole ones
	}
	return pause
}

func (b *lockbook) untilRefreshLocked() time.Duration {
	if !b.sound {
		return deafPoll()
	}
	return time.Duration(float64(refreshTime) * (1 + refreshJitter*(2*rand.Float64()-1)))
}

func deafPoll() time.Duration { return deafPollFirst + rand.N(deafPollLast-deafPollFirst) }

// refreshLocked prepares the keeping of the places of all who wait in q: its front, which is about to ask, keeps those of the next 64, and
// of the rest one in 65 asks and keeps those of the 64 behind it. Who has no place asks for one.
func (b *lockbook) refreshLocked(q *lockqueue) {
	q.refreshAt = time.Now().Add(b.untilRefreshLocked())
	if !b.ordered { // nobody else has a place
		return
	}
	var asker *lockwaiter
	for e := q.waiters.Front(); e != nil; e = e.Next() {
		switch w, _ := e.Value.(*lockwaiter); {
		case asker == nil: // the front
			asker, w.also = w, nil
		case !w.entered:
			w.rouse()
		case len(asker.also) == alsoBound:
			asker, w.also = w, nil
			w.rouse()
		default:
			asker.also = append(asker.also, w.claim.Owner)
		}
	}
}

// abandon gives back what w may have got or may still get: its place in the queue, or a grant that nobody knows of. It does not block.
func (b *lockbook) abandon(w *lockwaiter) {
	switch {
	case w.unanswered:
		b.orphans.add(orphan{claim: w.claim, burn: b.burnTime()})
	case w.queued:
		b.orphans.add(orphan{claim: w.claim})
	}
}

// listen makes sure that wake-ups are heard: it blocks until the subscription is confirmed, is known to fail, or takes too long. Then, or
// when ctx ends, the caller has to poll.
func (b *lockbook) listen(ctx context.Context) {
	b.watch()
	timer := time.NewTimer(confirmTime)
	defer timer.Stop()
	select {
	case <-b.settled:
	case <-timer.C:
	case <-ctx.Done():
	}
}
