package tiercache

import (
	"hash/fnv"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tiercache/tiercache/layers"
)

// Cold spread. What is loaded into an empty cache is loaded at once, and ends at once: jitter that takes off less than the filling took
// changes little, and the source feels the same wave in every TTL for hours. So while a cache is cold a key's life is a share of its TTL
// between a tenth and all of it, once: from then on the key's turn to be loaded is any moment of the TTL, and jitter keeps it so.
//
// Once is to be kept without remembering keys. The share is the key's own, a hash, the same in all processes and whenever it is asked for:
//
//	1 the cache becomes cold at s
//	2 a key is loaded at t, with t < s + share·TTL: it lives for share·TTL
//	3 it ends, at t + share·TTL, which is not before s + share·TTL, and is loaded again, by whatever process: from then on with its whole TTL
//
// A key that is loaded for the first time later than s + share·TTL comes late enough to need no spread. After one TTL no key is left to
// spread: a cache ceases to be cold by itself. What that costs is at most one load a key more, all of them within one TTL.

const (
	// coldJitter is how much of a TTL cold spread takes off at most: what is left is between a tenth and all of it. Simulated with a million
	// keys loaded in a minute, TTL 10 min: the busiest second of the next six hours has 1.14 times the mean, with jitter alone 9.6.
	coldJitter = 0.9

	rateWindow  = 10 * time.Second // in which loads are counted; chosen; not tuned
	rateTime    = 10 * time.Minute // over which their rate is averaged
	rateHistory = time.Minute      // how much of it must be there before a rate is called high; chosen; not tuned
	rateFactor  = 3                // how many times the average is high
	rateLeast   = 1000             // loads in a window, below which no source feels anything; chosen; not tuned
)

// chill is why a cache is cold, and so which keys are spread.
type chill uint8

const (
	nothingStands chill = iota // what it held is gone, or may be: a key of which a stale copy stands was not
	muchIsLoaded               // so much is loaded at once that it would end at once again, whatever stands
)

// cold knows whether a cache is cold. The zero value is not. All methods may be called concurrently.
type cold struct {
	last atomic.Pointer[coldness]
	rate rate
}

// coldness is one time of being cold.
type coldness struct {
	since time.Time
	why   chill
}

// begin says that the cache is cold since a moment, unless it has become so later.
func (c *cold) begin(since time.Time, why chill) {
	next := &coldness{since, why}
	for {
		last := c.last.Load()
		if last != nil && !since.After(last.since) || c.last.CompareAndSwap(last, next) {
			return
		}
	}
}

// spreads reports whether a key of this share, loaded now, is to live for that part of ttl. stood says that a stale copy of it stood.
func (c *cold) spreads(ttl time.Duration, share float64, stood bool, now time.Time) bool {
	last := c.last.Load()
	if last == nil || stood && last.why == nothingStands {
		return false
	}
	return now.Sub(last.since) < layers.Shorten(ttl, coldJitter, share)
}

// loading notes n loads. Where they are far more than usual the cache is cold from now on, for ttl: not anew within that time, which
// would spread keys twice.
func (c *cold) loading(n int, ttl time.Duration, now time.Time) {
	if c.rate.high(n, now) {
		if last := c.last.Load(); last == nil || now.Sub(last.since) >= ttl {
			c.begin(now, muchIsLoaded)
		}
	}
}

// shareOf is the key's share: in [0,1), spread evenly over the keys, the same in every process and at all times. Nothing secret depends on
// it: who chooses keys of one share makes his own keys end together, as he could by asking for them late.
func shareOf(id string) float64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(id))
	x := h.Sum64()
	// Neighbouring ids differ in the low bits; this brings them to the high ones (the finalizer of MurmurHash3).
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return float64((x^x>>33)>>11) / (1 << 53)
}

// rate compares the loads of this window with their average over the last ten minutes, or as much of them as there was.
type rate struct {
	mu      sync.Mutex
	begun   time.Time // of the first window
	window  time.Time // begin of this one
	loads   int       // in this one
	average float64   // loads a window, of those before
}

// high notes n loads, and reports whether this window has far more than usual.
func (r *rate) high(n int, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.begun.IsZero() {
		r.begun, r.window = now, now
	}
	if over := int(now.Sub(r.window) / rateWindow); over > 0 {
		r.roll(over)
	}
	r.loads += n
	return r.loads >= rateLeast && r.window.Sub(r.begun) >= rateHistory && float64(r.loads) > rateFactor*r.average
}

// roll ends this window, and as many as are over in all: those behind it had no loads. The average is exact while it is young, then moving.
func (r *rate) roll(over int) {
	seen := float64(min(r.window.Sub(r.begun), rateTime-rateWindow) / rateWindow) // windows that are in the average
	r.average = (r.average*seen + float64(r.loads)) / (seen + 1)
	r.average *= math.Pow(1-float64(rateWindow)/float64(rateTime), float64(over-1))
	r.loads = 0
	r.window = r.window.Add(time.Duration(over) * rateWindow)
}
