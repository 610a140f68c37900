package layers

import (
	"context"
	"sync/atomic"
	"time"
)

const lateAfter = 25 * time.Millisecond // or a quarter of the budget: from then on a call is late and is looked after; chosen; not tuned

// budget is the time one pipeline has: a context that ends with it. It ends once, with the result or when the time is over. The
// client heeds it while it waits for a connection; while it waits for a reply only if its options say so.
type budget struct {
	m      *master
	values context.Context //nolint:containedctx // it is a context itself: of this one it has the values, not the end; nil: none
	start  time.Time
	until  time.Time
	done   chan struct{}
	ended  atomic.Bool
	late   atomic.Bool
	timer  *time.Timer
	owner  overseer // nil: nobody is told, the budget just ends
}

// overseer is told how a budget is used up; it ends the budget when it expires.
type overseer interface {
	hurry()  // late, and not ended
	expire() // over
}

func newBudget(m *master, length time.Duration) *budget {
	b := &budget{}
	b.init(m, length, nil)
	return b
}

func (b *budget) init(m *master, length time.Duration, owner overseer) {
	b.m, b.owner = m, owner
	b.start = time.Now()
	b.until = b.start.Add(length)
	b.done = make(chan struct{})
	b.timer = time.AfterFunc(time.Hour, b.tick)
	b.timer.Reset(min(length/4, lateAfter)) // not before b.timer stands
}

// tick runs when the call is late, each checkEvery from then on, for the server may go away while it is waited for, and when its time is over.
func (b *budget) tick() {
	switch {
	case b.ended.Load():
	case time.Now().Before(b.until):
		b.m.check(false)
		if b.late.CompareAndSwap(false, true) && b.owner != nil {
			b.owner.hurry()
		}
		b.timer.Reset(min(time.Until(b.until), checkEvery))
	case b.owner != nil:
		b.owner.expire()
	default:
		b.end()
	}
}

// claim is true for the first who asks: that one decides what the result is, and then calls release.
func (b *budget) claim() bool { return b.ended.CompareAndSwap(false, true) }

func (b *budget) release() {
	b.timer.Stop()
	close(b.done)
}

func (b *budget) end() {
	if b.claim() {
		b.release()
	}
}

// Deadline is when the time is over.
func (b *budget) Deadline() (time.Time, bool) { return b.until, true }

// Done is closed when the budget has ended, by the result or by the time.
func (b *budget) Done() <-chan struct{} { return b.done }

// Err is context.DeadlineExceeded once it has ended.
func (b *budget) Err() error {
	if b.ended.Load() {
		return context.DeadlineExceeded
	}
	return nil
}

// Value is the value of the caller's context if the call is one caller's.
func (b *budget) Value(key any) any {
	if b.values == nil {
		return nil
	}
	return b.values.Value(key)
}

// crew counts the goroutines that send for one queue, under the queue's mutex. One whose call has overrun its budget is written
// off: with a client that itself waits for longer it may hang for as long as that, and must not keep the queue from being sent on other connections.
type crew struct {
	busy int // at most the most that join was told
	lost int // written off, not back yet; at most as many again
}

// join reports whether another goroutine is to start, and counts it: the first, or one more if there is much to do.
func (c *crew) join(most int, much bool) bool {
	if c.busy > 0 && (c.busy >= most || !much) {
		return false
	}
	c.busy++
	return true
}

// writeOff reports whether one that overran its budget is now not counted as busy any more. It must then leave when it is back.
func (c *crew) writeOff(most int) bool {
	if c.lost >= most {
		return false
	}
	c.busy--
	c.lost++
	return true
}
