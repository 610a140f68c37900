package tiercache

import (
	"math/rand/v2"
	"time"

	"github.com/tiercache/tiercache/layers"
	"github.com/tiercache/tiercache/rebuild"
)

// How long an entry lives: its TTL, shortened at random so that what was loaded together does not end together.
const (
	// defaultJitter is the fraction of a life taken off at random. It only shortens, since TTL is what the caller can bear. Simulated with a
	// million keys: it makes two TTLs differ by more than most bursts last, for a twentieth more loads.
	defaultJitter = 0.10
	// shortJitter is that of lives below shortLife, where a tenth is less than the seconds in which a process starts. Chosen; not tuned.
	shortJitter = 0.20
	shortLife   = 2 * time.Minute
)

// jitter is the largest fraction of a life of this length that is taken off at random. Each tier draws for itself.
func (o *Options[K, V]) jitter(life time.Duration) float64 {
	switch {
	case o.Jitter < 0:
		return 0
	case o.Jitter > 0:
		return o.Jitter
	case life < shortLife:
		return shortJitter
	}
	return defaultJitter
}

// lives draws how long a loaded entry lives; zero: it is answered and not stored. stood says that it replaces one past its soft end.
func (c *Cache[K, V]) lives(key K, id string, e layers.Entry[V], why cause, stood bool) layers.Lives {
	ttl, stale := c.o.TTL, c.o.MaxStale
	switch {
	case e.Absent:
		ttl, stale = c.o.AbsentTTL, 0
	case c.o.TTLFor != nil:
		if own := c.o.TTLFor(key, e.Value); own != 0 {
			ttl = min(ttl, own)
		}
	}
	if ttl < 0 {
		return layers.Lives{}
	}
	if c.shared == nil { // memory is all there is
		ttl = min(ttl, c.o.MemoryTTL)
	}
	share := shareOf(id)
	spread := why.class == rebuild.Warm || c.cold.spreads(ttl, share, stood, time.Now())
	return c.o.draw(ttl, stale, share, spread)
}

// draw draws a life of at most ttl: the key's own share of it where it is to be spread, else all but the jitter.
func (o *Options[K, V]) draw(ttl, stale time.Duration, share float64, spread bool) layers.Lives {
	if spread && o.Jitter >= 0 {
		return layers.NewLives(ttl, stale, coldJitter, share)
	}
	return layers.NewLives(ttl, stale, o.jitter(ttl), random())
}

// alive gives e the ends of its life, counted from its birth; false: it has none and is not stored.
func alive[V any](e *layers.Entry[V], l layers.Lives) bool {
	if l.Hard <= 0 {
		return false
	}
	e.Soft, e.Hard = e.Born.Add(l.Soft), e.Born.Add(l.Hard)
	return true
}

// random is uniform in [0,1), for jitter.
func random() float64 { return rand.Float64() } //nolint:gosec // spreads expiries; nothing secret depends on it
