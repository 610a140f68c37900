package tiercache

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tiercache/tiercache/bloom"
	"github.com/tiercache/tiercache/consistency"
	"github.com/tiercache/tiercache/internal/broken"
	"github.com/tiercache/tiercache/layers"
	"github.com/tiercache/tiercache/rebuild"
)

// Cache is a read-through cache of one kind of row: memory over Redis over the source. New opens one, Close ends it; all methods may be
// called concurrently.
type Cache[K comparable, V any] struct {
	o    Options[K, V] // with defaults filled in
	keys keyer[K]

	memory    *layers.Memory
	ownMemory bool
	local     *layers.Local[K, V]
	shared    *layers.Shared[V]  // nil: this process only
	filter    *bloom.Guard       // nil: no filter in this process
	segments  *bloom.SharedGuard // nil: no filter in Redis

	gate      *rebuild.Gate
	absence   absence
	breaker   *rebuild.Breaker // around the source
	loads     *rebuild.Loads
	flights   *rebuild.Flight[answer[V]]
	refreshes *rebuild.Flight[answer[V]] // of Refresh, which joins nobody, and of what is done behind; keyed by number
	refreshed atomic.Uint64              // the last number
	hot       *rebuild.HotKeys[K]
	hotFleet  *hotFleet
	hotReads  hotReads
	backOff   *rebuild.Pauses // of loads without Redis, where it is kept otherwise

	pending   *consistency.Pending // keys to invalidate once Redis can be reached
	announces *consistency.Pending // of these, the ones to announce
	owed      owed                 // leases to give back then
	loss      *loss                // what to invalidate again after a failover
	// The delete windows of this process, for what is loaded without Redis: fills are cut by any of them, a Set only by those that an
	// invalidation opened.
	fillWindows, setWindows *consistency.Windows

	cold   cold // when everything was lost, or much of it is loaded at once
	burden burden
	count  counters
	closed atomic.Bool
	heard  atomic.Bool // the bus has been heard once: from now on silence is a gap

	chores     chan struct{} // a chore is waiting; room for one
	newFilter  atomic.Bool   // the chore: fetch the snapshot that another process stored
	suspects   suspects      // the chore: rows that were loaded although the filter calls them absent
	filterTold filterTold    // what was last told of the filter
	oldData    atomic.Bool   // the chore: announcements may be missing in the filter that Redis has
	filterKept time.Time     // when the filter's expiries were last renewed; of the goroutine of the chores
	warmDue    atomic.Int64  // when the warm list is to be written, in Unix nanoseconds
	stop       context.CancelFunc
	idle       chan struct{} // closed when the goroutine of the chores has ended
	closing    sync.Once
	closeErr   error
}

// heardWithin is how long New waits for the bus to be heard where Redis answers: a handful of round trips. Until it is heard, memory is
// filled but not trusted. Chosen; not tuned.
const heardWithin = 500 * time.Millisecond

// open makes the parts of c and joins them. On an error it leaves nothing behind.
func (c *Cache[K, V]) open() (err error) {
	defer func() {
		if err != nil {
			_ = c.shut() // what opened is closed; err says why
		}
	}()
	c.loads = rebuild.NewLoads(c.gate, c.o.LoadTimeout, c.breaker)
	c.flights, c.refreshes = rebuild.NewFlight[answer[V]](), rebuild.NewFlight[answer[V]]()
	care := &hotCare[K, V]{c: c}
	c.hot, c.hotFleet = rebuild.NewHotKeys[K](care), &care.fleet
	c.hotFleet.begin()
	c.beginWarmList()
	c.backOff = rebuild.NewPauses(backOffBase, backOffMax, maxPending)
	c.pending, c.announces = consistency.NewPending(maxPending), consistency.NewPending(maxRecent)
	c.loss = newLoss(c.o.Filter.Enabled())
	c.fillWindows = consistency.NewWindows(c.o.DeleteWindow, maxWindows)
	c.setWindows = consistency.NewWindows(c.o.DeleteWindow, maxWindows)

	if c.memory = c.o.Memory; c.memory == nil {
		if c.memory, err = layers.NewMemory(layers.MemoryOptions{MaxBytes: c.o.MemoryBytes}); err != nil {
			return err
		}
		c.ownMemory = true
	}
	if c.local, err = layers.NewLocal(c.memory, c.localOptions()); err != nil {
		return err
	}
	if c.o.Shared == nil {
		c.cold.begin(time.Now(), nothingStands)
		return nil
	}
	return c.join()
}

// localOptions describe this cache's part of the memory. Without Redis there is nobody to ask after MemoryTTL: it bounds the soft end
// instead (see lives), and copies stay until their hard end.
func (c *Cache[K, V]) localOptions() layers.LocalOptions[K, V] {
	o := layers.LocalOptions[K, V]{
		Name: c.o.Name, TTL: c.o.MemoryTTL, Jitter: c.o.jitter(c.o.MemoryTTL),
		String: c.keys.text, Direct: c.keys.direct, Parse: c.keys.parse,
		SizeOf: c.o.SizeOf,
		SizeAny: func(v V) (size int) {
			defer func() { _ = recover() }() // a value that the codec cannot carry is kept all the same
			data, err := c.o.Codec.Encode(nil, &v)
			if err != nil {
				return 0
			}
			return len(data)
		},
	}
	if c.o.Shared == nil {
		o.TTL, o.Jitter = c.o.TTL+max(c.o.MaxStale, 0), 0
	}
	return o
}

// join opens the cache's part of Redis and begins to hear the other processes.
func (c *Cache[K, V]) join() error {
	c.chores, c.idle = make(chan struct{}, 1), make(chan struct{})
	space, err := c.o.Shared.Open(layers.SpaceOptions{
		Name: c.o.Name, Window: c.o.DeleteWindow, LeaseTime: c.o.LeaseTime, PendTime: pendTime,
		BackoffBase: backOffBase, BackoffMax: backOffMax,
		Events: c.events(),
	})
	if err != nil {
		return err
	}
	if c.o.Filter.Form == bloom.InRedis {
		if c.segments, err = bloom.NewSharedGuard(c.o.Filter, space); err != nil {
			space.Close()
			return err
		}
		c.segments.RelyOnFeed(c.o.FilterFeed)
	}
	c.shared = layers.NewShared[V](space, c.o.Codec, c.o.Schema, layers.Limits{})
	ctx, cancel := context.WithCancel(context.Background())
	c.stop = cancel
	go c.work(ctx)
	select {
	case <-space.Heard():
	case <-time.After(heardWithin):
	}
	return nil
}

// events are this cache's ears. They run on the goroutine of the bus and must not block: what takes a round trip is left to work.
func (c *Cache[K, V]) events() layers.Events {
	heard := func(id string) {
		c.local.BumpID(id)
		c.flights.Forget(id)
		c.count.events.Add(1)
		if c.o.Hooks.Invalidated != nil {
			c.o.Hooks.Invalidated(keyHash(id), false)
		}
	}
	return layers.Events{
		Invalidated: heard,
		Announced: func(id string) {
			if c.filter != nil {
				c.filter.Add(id)
			}
			c.absence.rows.Add(id)
			heard(id)
		},
		Cleared: func() {
			c.local.Drop()
			c.flights.ForgetAll()
		},
		Filter: func() { c.newFilter.Store(true); c.wake() },
		Deaf:   func() { c.local.Deaf(); c.told(false) },
		Hear: func() {
			c.local.Hear()
			c.flights.ForgetAll() // the event that revoked a load under way may be among those missed
			c.told(true)
			c.newFilter.Store(true)
			c.wake()
		},
		Begun:  func(since time.Time) { c.cold.begin(since, nothingStands) },
		Lost:   c.lost,
		Steady: c.loss.steady,
		Tick:   c.wake,
		Breaker: func(state string) {
			if c.o.Hooks.Breaker != nil {
				c.o.Hooks.Breaker("redis", state)
			}
		},
		Error: c.sharedFailed,
	}
}

// told tells of the bus: up, or events may be missed.
func (c *Cache[K, V]) told(up bool) {
	if up {
		c.heard.Store(true)
	} else if c.heard.Load() {
		c.count.busGaps.Add(1)
	}
	if c.o.Hooks.Bus != nil {
		c.o.Hooks.Bus(up)
	}
}

// wake has the chores done soon.
func (c *Cache[K, V]) wake() {
	select {
	case c.chores <- struct{}{}:
	default:
	}
}

// work does the chores that take round trips, each second while Redis answers and after certain events: the replay of pending
// invalidations, and the upkeep of the filter.
func (c *Cache[K, V]) work(ctx context.Context) {
	defer close(c.idle)
	if c.o.Filter.Enabled() {
		c.newFilter.Store(true) // another process may have built it before this one began
		c.wake()
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.chores:
		}
		c.repay(ctx, time.Now())
		c.replay(ctx)
		if c.o.Filter.Enabled() {
			c.keepFilter(ctx)
		}
		c.keepWarmList(ctx)
	}
}

// replay sends the invalidations that Redis did not take, or may have lost. Their keys are read from Redis again once it took them.
func (c *Cache[K, V]) replay(ctx context.Context) {
	if broken.Left(broken.Replay) {
		return
	}
	again := func(mode layers.Mode, ids []string) []error {
		c.loss.recent.Note(ids...) // it may lose this one too
		errs := make([]error, len(ids))
		for i, r := range c.shared.Invalidate(ctx, mode, layers.NewToken(), ids...) {
			if errs[i] = r.Err; r.Err != nil {
				c.sharedFailed("replay", r.Err)
			}
		}
		return errs
	}
	if c.announces.Len() > 0 {
		c.announces.Replay(ctx, func(ctx context.Context, ids []string) []error {
			if err := c.appendAnnounced(ctx, ids); err != nil {
				return nil // all of them wait on
			}
			return again(layers.Announce, ids)
		}, func(context.Context) error { return nil }) // overflow: whoever announced was told to do so again
	}
	if c.pending.Len() > 0 {
		c.pending.Replay(ctx, func(_ context.Context, ids []string) []error { return again(layers.Once, ids) }, c.shared.Move)
	}
	c.replayLost(ctx, again)
}

// Close ends the cache: callers that wait get ErrClosed, loads under way are cancelled (cause ErrClosed) and waited for, LoadTimeout at
// most, the memory is given back. It is idempotent and leaves no goroutine behind, but for loaders that ignore their context: then its
// error says how many still run. Invalidations still pending are sent once more; those that Redis does not take are lost with the process,
// and the error says how many. What this process may hold in Redis without having been told is given back. The warm list is written once more.
func (c *Cache[K, V]) Close() error {
	c.closing.Do(func() { c.closeErr = c.shut() })
	return c.closeErr
}

// shut closes what open has made so far.
func (c *Cache[K, V]) shut() error {
	c.closed.Store(true)
	warm := c.warmKeys()
	c.hot.Close()
	c.hotFleet.end()
	var errs []error
	ctx, cancel := context.WithTimeout(context.Background(), c.o.LoadTimeout)
	defer cancel()
	left := c.flights.Close(ctx) + c.refreshes.Close(ctx)
	if running := c.loads.Close(ctx); running > 0 {
		errs = append(errs, fmt.Errorf("tiercache: close %q: %d loads ignore their context and still run", c.o.Name, running))
	} else if left > 0 {
		errs = append(errs, fmt.Errorf("tiercache: close %q: %d rebuilds still run", c.o.Name, left))
	}
	if c.shared != nil {
		c.stop()
		<-c.idle
		if c.segments != nil {
			c.segments.Close()
		}
		c.noteWarmKeys(ctx, warm)
		c.repayAll(ctx)
		c.replay(ctx) // else what an ended load left, or Redis refused a moment ago, would stay in Redis until its TTL
		if c.pending.Overflowed() || c.loss.replays.Overflowed() {
			errs = append(errs, fmt.Errorf("tiercache: close %q: a Clear, or more invalidations than could be kept, never reached Redis", c.o.Name))
		} else if n := c.waiting(); n > 0 {
			errs = append(errs, fmt.Errorf("tiercache: close %q: %d invalidations never reached Redis", c.o.Name, n))
		}
		c.shared.Close()
	}
	if c.local != nil {
		c.local.Close()
	}
	if c.ownMemory {
		errs = append(errs, c.memory.Close())
	}
	return errors.Join(errs...)
}

// usable returns the error of a call that cannot begin: without a context, or after Close.
func (c *Cache[K, V]) usable(ctx context.Context) error {
	switch {
	case ctx == nil:
		return ErrNilContext
	case c.closed.Load():
		return ErrClosed
	}
	return nil
}

// enter begins a call for one key and returns the key's string form.
func (c *Cache[K, V]) enter(ctx context.Context, key K) (string, error) {
	if err := c.usable(ctx); err != nil {
		return "", err
	}
	if !c.admits(key) {
		return "", ErrInvalidKey
	}
	return c.keys.id(key)
}

// enterMany begins a call for many keys. One bad key fails it before anything was done.
func (c *Cache[K, V]) enterMany(ctx context.Context, keys []K) ([]string, error) {
	if err := c.usable(ctx); err != nil {
		return nil, err
	}
	if len(c.admitted(keys)) < len(keys) {
		return nil, ErrInvalidKey
	}
	return c.forms(keys)
}

// forms returns the string forms of keys, and the errors of those that have none.
func (c *Cache[K, V]) forms(keys []K) ([]string, error) {
	ids := make([]string, len(keys))
	var errs []error
	for i, key := range keys {
		id, err := c.keys.id(key)
		if err != nil {
			errs = append(errs, err)
		}
		ids[i] = id
	}
	return ids, errors.Join(errs...)
}

// waiting is how many invalidations wait for Redis. What is to be announced is also one of them, in whichever queue.
func (c *Cache[K, V]) waiting() int {
	return max(c.pending.Len()+c.loss.replays.Len(), c.announces.Len())
}

// number names a Refresh: each has a flight of its own.
func (c *Cache[K, V]) number() string { return strconv.FormatUint(c.refreshed.Add(1), 36) }
