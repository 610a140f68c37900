package tiercache

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tiercache/tiercache/consistency"
	"github.com/tiercache/tiercache/layers"
)

const (
	// recentTime is how long an invalidation that Redis acknowledged is remembered, to be repeated after a failover: longer than a replica
	// lags behind, or than the copy of its data is old with which a server comes back. While a master does not answer it does not pass.
	// Chosen; not tuned.
	recentTime = time.Minute
	maxRecent  = 100_000 // keys; chosen; not tuned
)

// loss is what a cache remembers for the moment at which Redis turns out to have lost what it had acknowledged, and what it does then.
type loss struct {
	recent    *consistency.Recent  // the keys of invalidations, noted before they are sent
	announced *consistency.Recent  // of these, the ones announced; nil without a filter
	replays   *consistency.Pending // the keys to invalidate again: until that is done they are not read from Redis
	writes    writes
}

func newLoss(filter bool) *loss {
	l := &loss{
		recent:  consistency.NewRecent(recentTime, maxRecent),
		replays: consistency.NewPending(maxRecent),
	}
	if filter {
		l.announced = consistency.NewRecent(recentTime, maxRecent)
	}
	return l
}

// steady lets what is old enough be forgotten: nothing was lost so far.
func (l *loss) steady() {
	l.recent.Age()
	if l.announced != nil {
		l.announced.Age()
	}
}

// lost is told, on the goroutine of the bus, that Redis may have lost what it had acknowledged, of whatever key: all that this process
// invalidated of late becomes pending, and is forgotten here only then (R13). In Cluster one master has lost something and all keys are
// repeated; to ask each key for its master would cost more than the repetition. If what came back is older than the invalidations that are
// remembered (back is how much older, 0 where that cannot be told), all keys are.
func (c *Cache[K, V]) lost(back time.Duration) {
	c.cold.begin(time.Now(), nothingStands)
	if c.loss.announced != nil {
		ids, whole := c.loss.announced.All() // too many: then what they may have hidden is cleared below
		c.announces.Add(ids...)
		if whole || back >= recentTime {
			c.oldData.Store(true) // before the wake below
		}
	}
	ids, whole := c.loss.recent.All()
	ids = append(ids, c.loss.writes.lose()...)
	if whole || back >= recentTime {
		c.loss.replays.AddAll()
		c.local.Drop()
		c.flights.ForgetAll()
	}
	c.loss.replays.Add(ids...)
	for _, id := range ids {
		c.local.BumpID(id)
		c.flights.Forget(id) // it may have read what came back
	}
	c.count.failovers.Add(1)
	c.wake()
}

// replayLost repeats what may be lost: first what the Updates under way had opened, then the deletes, which also take away what was stored
// in between without being cut.
func (c *Cache[K, V]) replayLost(ctx context.Context, again func(mode layers.Mode, ids []string) []error) {
	if c.loss.replays.Len() == 0 || !c.loss.writes.restore(ctx) {
		return
	}
	c.loss.replays.Replay(ctx, func(_ context.Context, ids []string) []error {
		errs := again(layers.Once, ids)
		for _, err := range errs {
			if err == nil {
				c.count.replayed.Add(1)
			}
		}
		return errs
	}, c.shared.Move)
}

// writes are the Updates whose write runs. What each opened in Redis before it must be there until its end.
type writes struct {
	mu  sync.Mutex
	all map[*write]struct{}
}

// write is one of them.
type write struct {
	ids   []string
	renew func(ctx context.Context) error
	lost  atomic.Bool // it may be gone, and was not opened again since

	// Held while it is opened again. Room for one: a Mutex would do, but who waits for one that is held across a round trip stops the
	// virtual time of the fleet's tests.
	turn chan struct{}
	over bool // guarded by turn
}

// begin adds a write, before anything of it is sent.
func (w *writes) begin(ids []string, renew func(context.Context) error) *write {
	x := &write{ids: ids, renew: renew, turn: make(chan struct{}, 1)}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.all == nil {
		w.all = make(map[*write]struct{})
	}
	w.all[x] = struct{}{}
	return x
}

// end takes x away. It waits for a renewal under way: one that arrives after the end would open again what the end closes.
func (w *writes) end(x *write) {
	w.mu.Lock()
	delete(w.all, x)
	w.mu.Unlock()
	x.turn <- struct{}{}
	defer func() { <-x.turn }()
	x.over = true
}

// lose says that what the writes opened may be gone, and returns their keys.
func (w *writes) lose() (ids []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for x := range w.all {
		x.lost.Store(true)
		ids = append(ids, x.ids...)
	}
	return ids
}

// restore opens again what may be gone. It reports false if that failed.
func (w *writes) restore(ctx context.Context) bool {
	w.mu.Lock()
	var lost []*write
	for x := range w.all {
		if x.lost.Load() {
			lost = append(lost, x)
		}
	}
	w.mu.Unlock()
	ok := true
	for _, x := range lost {
		ok = x.restore(ctx) && ok
	}
	return ok
}

func (x *write) restore(ctx context.Context) bool {
	x.turn <- struct{}{}
	defer func() { <-x.turn }()
	if x.over || !x.lost.Swap(false) {
		return true
	}
	if x.renew(ctx) != nil {
		x.lost.Store(true)
		return false
	}
	return true
}
