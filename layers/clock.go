package layers

import (
	"math"
	"sync/atomic"
	"time"
)

const (
	// clockTick is how often the coarse clock moves. Chosen; not tuned.
	clockTick = 5 * time.Millisecond
	// clockMargin is how near a deadline may be before the exact clock is asked: four ticks, so that a late tick does no harm. Chosen; not tuned.
	clockMargin = 20 * time.Millisecond
)

// coarseClock tells cheaply that a deadline is still far away, and exactly when it is near. Its moments are nanoseconds since base,
// by the monotonic clock.
//
// Reading the exact clock costs a third of a hit, so a hit reads edge: the last tick plus a margin. A deadline after edge has not come,
// unless ticks are later than the margin. The margin follows the worst lateness seen lately, and whoever reads the exact clock moves a
// late edge on. What is left, and accepted: the first answers after a process was stopped as a whole, until the next tick.
type coarseClock struct {
	base time.Time
	edge atomic.Int64 // math.MaxInt64: nobody ticks, ask the exact clock

	// Only the ticking goroutine uses these.
	last   int64
	margin int64
}

func newCoarseClock() *coarseClock {
	k := &coarseClock{base: time.Now(), margin: int64(clockMargin)}
	k.park()
	return k
}

// now is the exact time.
func (k *coarseClock) now() int64 { return int64(time.Since(k.base)) }

// before reports whether the deadline has not come yet.
func (k *coarseClock) before(deadline int64) bool {
	if k.edge.Load() < deadline {
		return true
	}
	return k.exactBefore(deadline)
}

// exactBefore asks the exact clock, and moves the coarse one on where it is late.
func (k *coarseClock) exactBefore(deadline int64) bool {
	now := k.now()
	if edge := k.edge.Load(); edge < now {
		k.edge.CompareAndSwap(edge, now+int64(clockMargin))
	}
	return now < deadline
}

// tick moves the coarse clock. Only the ticking goroutine calls it.
func (k *coarseClock) tick() int64 {
	now := k.now()
	late := now - k.last - int64(clockTick)
	k.margin = max(int64(clockMargin), 2*late, k.margin-k.margin/64)
	k.last = now
	k.edge.Store(now + k.margin)
	return now
}

// park says that nobody ticks until resume: every reader asks the exact clock.
func (k *coarseClock) park() { k.edge.Store(math.MaxInt64) }

// resume starts ticking again. Only the ticking goroutine calls it.
func (k *coarseClock) resume() {
	k.last = k.now()
	k.edge.Store(k.last + k.margin)
}

// since translates a moment. The zero time is long past.
func (k *coarseClock) since(t time.Time) int64 { return int64(t.Sub(k.base)) }

// moment translates back.
func (k *coarseClock) moment(ns int64) time.Time { return k.base.Add(time.Duration(ns)) }
