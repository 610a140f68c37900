package tiercache

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/tiercache/tiercache/layers"
	"github.com/tiercache/tiercache/rebuild"
)

const (
	maxAhead    = 16 // hot keys that are rebuilt ahead at once. Chosen; not tuned
	repinBeats  = 40 // a pin that was lost for space is asked for again each second
	sameLife    = 20 // two ends of a life that are nearer than a twentieth of it, and than half of RefreshAhead, are one: Redis's clock is read anew with each copy
	aheadSpread = 2  // processes begin in the first half of what is left of the life, so that most find it done
)

// HotKey is a key that is read often in this process.
type HotKey[K comparable] struct {
	Key  K
	Rate float64 // reads a second, of late, as far as samples tell
	Hot  bool    // it is kept in memory whatever else is read, and rebuilt ahead
}

// HotKeys returns the n keys that are read most in this process, first the most, as of the last second; n of zero or less: all that are known,
// some hundreds at most. Keys that memory answers well are known from some fifty reads a second on, or a hundredth of all where these are many, the
// others from a few. It is empty while nothing is read, and after Close. It asks nobody and may be called concurrently.
//
// A key is hot once 200 reads of it a second, or a hundredth of all (twenty at least), leave memory for Redis or the source, or once memory
// answers 200 of them, or a hundredth of all reads (fifty at least); until it was below half of that for 30 s. A hot key is pinned: no other
// key drives it out of memory, with at most 256 such keys, a quarter of the memory and 16 MiB. It lives no longer for that: MemoryTTL (the whole of it,
// without jitter), events and invalidations hold as ever, and Redis is asked for it by one caller at a time. And from RefreshAhead of its value's life on it is rebuilt by one process in the fleet, so that nobody meets
// it past its soft end. Without memory (MemoryTTL negative) there is nothing to pin, and no value whose life is known.
//
// With Shared, what all processes read counts too: see FleetHotKeys.
//
// With HotCopies, in a Redis Cluster, Get and GetEntry read a hot key that memory does not answer from one of so many copies in other slots, or from its
// own, chosen at random for each process and key. Copies live for 5 s at most and are made by who misses one; whatever invalidates the value drops
// them, in one more round trip, before it returns; a load that replaces it tries to. For that every process of this Name must be of a release that knows copies; its own HotCopies does not
// matter. A copy may answer an older value, for these 5 s and in a process that read it then for MemoryTTL, where Redis lost the note that there
// are copies (by eviction), or a failover took back what was done; and its life is judged by its own server's clock. Stats.CopyReads and CopiesMade count them. They are for fleets so large that even one
// read of each process in MemoryTTL is much, or for caches without memory.
func (c *Cache[K, V]) HotKeys(n int) []HotKey[K] {
	top := c.hot.Top(n)
	keys := make([]HotKey[K], len(top))
	for i, k := range top {
		keys[i] = HotKey[K]{Key: k.Key, Rate: k.Rate, Hot: k.Hot}
	}
	return keys
}

// memoryHit counts a fresh value answered from memory. Some of them, whichever key they are of, tell what memory answers most; the others pay for
// a comparison.
func (c *Cache[K, V]) memoryHit(key K) {
	if c.hot.Samples(c.count.memoryHits.add()) {
		c.hot.Answered(c.keys.text(key), key)
	}
}

// hotCare is what the cache does for its hot keys: pin them, and rebuild them ahead. Its methods are called one at a time.
type hotCare[K comparable, V any] struct {
	c     *Cache[K, V]
	lives map[string]*hotLife
	ahead atomic.Int32 // rebuilds under way
	fleet hotFleet
}

// hotLife is the life of a hot key's value as it was last seen.
type hotLife struct {
	soft  time.Time // its soft end
	due   time.Time // when this process rebuilds it
	tried bool
	beats int
}

// Heat pins a key.
func (h *hotCare[K, V]) Heat(k rebuild.HotKey[K]) {
	if h.lives == nil {
		h.lives = make(map[string]*hotLife)
	}
	h.lives[k.ID] = &hotLife{}
	h.c.local.Pin(k.Key)
	if h.c.o.MemoryTTL > 0 {
		h.c.hotReads.set(k.ID, true)
	}
	if h.c.o.HotCopies > 0 {
		h.c.shared.Spread(k.ID, h.c.o.HotCopies)
	}
	if h.c.o.Hooks.Hot != nil {
		h.c.o.Hooks.Hot(keyHash(k.ID), true, k.Rate)
	}
}

// Cool lets a key go.
func (h *hotCare[K, V]) Cool(k rebuild.HotKey[K]) {
	delete(h.lives, k.ID)
	h.c.local.Unpin(k.Key)
	h.c.hotReads.set(k.ID, false)
	if h.c.o.HotCopies > 0 {
		h.c.shared.Spread(k.ID, 0)
	}
	if h.c.o.Hooks.Hot != nil {
		h.c.o.Hooks.Hot(keyHash(k.ID), false, k.Rate)
	}
}

// Beat looks at a hot key's copy without reading it, and has it rebuilt if it is time.
func (h *hotCare[K, V]) Beat(k rebuild.HotKey[K]) (reads int) {
	life := h.lives[k.ID]
	if life.beats++; life.beats%repinBeats == 0 {
		h.c.local.Pin(k.Key)
	}
	copied, reads, ok := h.c.local.Watch(k.Key)
	if ok && copied.Trusted && !copied.Absent && h.c.o.RefreshAhead > 0 && !copied.Born.IsZero() && h.due(life, &copied.Entry) {
		life.tried = h.refresh(k.Key, k.ID)
	}
	return reads
}

// due reports whether a fresh value is to be rebuilt now. When that is, is drawn once for each life of the value.
func (h *hotCare[K, V]) due(life *hotLife, e *layers.Entry[V]) bool {
	whole, f := e.Soft.Sub(e.Born), h.c.o.RefreshAhead
	if apart := e.Soft.Sub(life.soft).Abs(); float64(apart) > min(f/2, 1.0/sameLife)*float64(whole) {
		f += (1 - f) / aheadSpread * random()
		*life = hotLife{soft: e.Soft, due: e.Born.Add(time.Duration(f * float64(whole))), beats: life.beats}
	}
	now := time.Now()
	return !life.tried && e.Fresh(now) && !now.Before(life.due)
}

// refresh begins the rebuild of a key whose value is still fresh, and reports whether it was tried: once a life. The lease decides which
// process of the fleet loads it, also against those that rebuild it for other reasons; the others wait for what that one stores, behind, and
// keep it. A load that fails, or that the gate turns away, leaves the value as it is, and the key to its readers.
func (h *hotCare[K, V]) refresh(key K, id string) bool {
	c := h.c
	if h.ahead.Load() >= maxAhead {
		return false
	}
	h.ahead.Add(1)
	started := c.flights.Start(context.Background(), id, func(ctx context.Context) (answer[V], error) {
		defer h.ahead.Add(-1)
		a, err := c.rebuild(ctx, key, id, cause{ahead: true, class: rebuild.Refresh})
		if err == nil && a.tier == Source {
			c.count.refreshesAhead.Add(1)
		}
		return a, err
	})
	if !started {
		h.ahead.Add(-1)
	}
	return started
}

// pastAhead reports whether the value that Redis has is the one to be rebuilt ahead, rather than one that another process has loaded meanwhile.
// Where its life stands is a little uncertain, since Redis's clock was read anew.
func (c *Cache[K, V]) pastAhead(e *layers.Entry[V]) bool {
	f := c.o.RefreshAhead * (1 - 1.0/sameLife)
	return !e.Absent && !time.Now().Before(e.Born.Add(time.Duration(f*float64(e.Soft.Sub(e.Born)))))
}
