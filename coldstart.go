package tiercache

import (
	"math"
	"sync"
	"time"
)

const (
	burdenWindow = 10 * time.Second // over which the rates are averaged; chosen; not tuned
	burdenEvery  = time.Second      // how close two looks at the counters may follow each other
)

// burden is what the source would have to carry were the cache empty: requests a second, over the keys a second that it can be asked for. It
// looks at counters that are there anyway, when something is loaded or Stats is called, so that a hit costs nothing. The zero value has
// seen nothing.
type burden struct {
	mu    sync.Mutex
	last  tally
	at    time.Time // of last; zero: not looked yet
	moved bool      // rate is known

	rate float64 // requests a second
	cost float64 // seconds of one slot of the gate for each key; 0: nothing was loaded yet
}

// tally is what the counters say at one moment.
type tally struct {
	requests uint64
	keys     uint64        // whose load has ended, however
	took     time.Duration // by them, slot by slot
}

// look takes in what the counters say now.
func (b *burden) look(now time.Time, read func() tally) {
	b.mu.Lock()
	defer b.mu.Unlock()
	since := now.Sub(b.at)
	if since < burdenEvery && !b.at.IsZero() {
		return
	}
	next, last := read(), b.last
	first := b.at.IsZero()
	b.last, b.at = next, now
	if first {
		return
	}
	weight := 1 - math.Exp(-since.Seconds()/burdenWindow.Seconds())
	rate := float64(next.requests-last.requests) / since.Seconds()
	if !b.moved {
		b.rate, b.moved = rate, true
	}
	b.rate += weight * (rate - b.rate)
	if next.keys == last.keys {
		return
	}
	cost := (next.took - last.took).Seconds() / float64(next.keys-last.keys)
	if b.cost == 0 {
		b.cost = cost
	}
	b.cost += weight * (cost - b.cost)
}

// hundredths returns the factor for a gate of so many slots.
func (b *burden) hundredths(slots int) uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return uint64(math.Round(100 * b.rate * b.cost / float64(slots)))
}

// weigh has the burden look.
func (c *Cache[K, V]) weigh() {
	c.burden.look(time.Now(), func() tally {
		n := &c.count
		return tally{
			requests: n.memoryHits.load() + n.sharedHits.load() + n.absentHits.Load() + n.filtered.Load() + n.misses.Load() + n.staleServed.Load(),
			keys:     n.timedKeys.Load(),
			took:     time.Duration(n.loadTime.Load()), //nolint:gosec // centuries
		}
	})
}
