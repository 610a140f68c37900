package bloom

import (
	"math/rand/v2"
	"time"
)

// Why a new filter should be built, as Due of a Guard and of a SharedGuard say it.
const (
	DueDoubted  = "doubted"  // announcements are lost, or it called a row absent that exists
	DueLost     = "lost"     // of one in Redis: a segment is not there, or not whole; its keys pass
	DueOverfull = "overfull" // more rows than its capacity: build with a larger Capacity
	DueRate     = "rate"     // more than twice as many absent keys pass as the Options here allow
	DueSmall    = "small"    // it was built for fewer rows, or a higher rate, than the Options here ask for
	DueOld      = "old"      // it is a day old: rows deleted since still pass
)

// maxAge is how old a filter may become, give or take maxAgeSpread, so that not all processes ask for another at once. A day: chosen; not tuned.
const (
	maxAge       = 24 * time.Hour
	maxAgeSpread = 0.1
)

// Due returns why a new filter should be built, the weightiest reason first, or "". A filter that was never built is not due: that it is wanted
// is the caller's knowledge. It costs as much as Stats.
func (g *Guard) Due() string {
	b := g.belief.Load()
	if b == nil {
		if g.doubted.Load() {
			return DueDoubted
		}
		return ""
	}
	s := b.filter.Stats()
	switch {
	case s.Overfull():
		return DueOverfull
	case s.EstimatedRate > 2*g.options.FalsePositiveRate:
		return DueRate
	case uint64(b.filter.state.Load().base.Cap()) < g.options.size():
		return DueSmall
	case time.Now().After(b.old):
		return DueOld
	}
	return ""
}

// oldAt is when a filter of that generation becomes old. One that was built without a store begins now.
func oldAt(generation uint64) time.Time {
	born := time.Now().Round(0) // by the wall clock, as the store's
	if generation != 0 {
		born = time.UnixMilli(int64(generation >> 12)) //nolint:gosec // 52 bits
	}
	return oldSince(born)
}

// oldSince is when a filter becomes old that was born at that moment.
func oldSince(born time.Time) time.Time {
	spread := 1 - maxAgeSpread + 2*maxAgeSpread*rand.Float64() //nolint:gosec // spreads rebuilds; nothing secret depends on it
	return born.Add(time.Duration(spread * float64(maxAge)))
}
