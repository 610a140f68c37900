package bloom

import "time"

// RelyOnFeed makes the guard's word depend on a change feed, which tells of rows after their commit, for writers that announce nothing: it is Lagging
// unless the feed has told of every row committed until no longer than bound ago. So a row may be called absent for as long as bound after its
// commit, and no longer. It is called before the guard is used; 0: there is no feed.
func (g *Guard) RelyOnFeed(bound time.Duration) { g.feed = bound }

// Fed says that every row committed longer than lag ago has been announced by a change feed: for a guard without a store. One with a store reads
// it there, with the announcements.
func (g *Guard) Fed(lag time.Duration) { g.fedUntil(time.Since(g.started) - lag) }

// Told reports whether every row that was committed before that moment has been announced by now: at once, but where the guard relies on a change feed,
// which must have told of it. What the filter calls absent until then is no fault.
func (g *Guard) Told(at time.Time) bool {
	return g.feed == 0 || g.fed.Load() != 0 && g.fed.Load() >= int64(at.Sub(g.started))
}

// fedUntil moves fed on.
func (g *Guard) fedUntil(until time.Duration) {
	for {
		known := g.fed.Load()
		if int64(until) <= known || g.fed.CompareAndSwap(known, int64(until)) {
			return
		}
	}
}

// heardFeed takes what the store has of change feeds after the announcements that were confirmed at that moment: all that was told was told
// later than that, whatever the clocks of the feed's process and of the store are.
func (g *Guard) heardFeed(confirmed time.Duration, lags []time.Duration) {
	for _, lag := range lags {
		g.fedUntil(confirmed - lag)
	}
}
