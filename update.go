package tiercache

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/tiercache/tiercache/consistency"
	"github.com/tiercache/tiercache/layers"
)

// Update runs write, which changes key's row in the source, between the two deletes of the delayed double delete: before it the entry is
// deleted, while it runs nothing is cached for longer than DeleteWindow, after it the entry is deleted again and what was read within
// DeleteWindow of that is gone by its end. Both windows are held by Redis: a crash anywhere leaves staleness of at most DeleteWindow plus
// the replica lag after the commit, and nobody has to do anything.
//
// It returns write's error, joined with ErrPending if Redis could not be reached: write runs all the same. The second delete is sent also
// if write failed (it may have committed), panicked (the panic goes on) or if ctx ended. write gets ctx. It is two round trips, and one
// more for each ten seconds that write runs. Concurrent Updates of one key are safe: nothing is cached for long until the last of them has ended.
// Redis is told again of an end that it may not have carried out, or may have carried out before its begin; if this process dies before, for
// 30 s nothing is cached for longer than DeleteWindow.
func (c *Cache[K, V]) Update(ctx context.Context, key K, write func(context.Context) error) error {
	return c.UpdateMany(ctx, []K{key}, write)
}

// UpdateMany is Update for one write that changes the rows of many keys: one pipeline before it, one behind it.
func (c *Cache[K, V]) UpdateMany(ctx context.Context, keys []K, write func(context.Context) error) error {
	if write == nil {
		return errNilWrite
	}
	ids, err := c.enterMany(ctx, keys)
	if err != nil {
		return err
	}
	u := &update[K, V]{c: c, keys: keys, ids: ids, op: layers.NewToken()}
	return consistency.DoubleDelete(ctx, u, pendTime/3, write)
}

var errNilWrite = errors.New("tiercache: nil write")

// update is one Update's part in Redis and in this process, as consistency.DoubleDelete asks for it.
type update[K comparable, V any] struct {
	c    *Cache[K, V]
	keys []K
	ids  []string
	op   layers.Token
	end  func() // of the windows in this process
	run  *write // as what a failover must not end

	mu      sync.Mutex
	renews  bool  // a renewal may have opened again what the begin did not
	closed  idSet // whose begin was not carried out: there is nothing to end
	pending idSet // what may be so after the end
}

// Begin is the first delete. Reads go on, each kept for DeleteWindow at most.
func (u *update[K, V]) Begin(ctx context.Context) error {
	endFills, endSets := u.c.fillWindows.Begin(u.ids...), u.c.setWindows.Begin(u.ids...)
	u.end = func() { endFills(); endSets() }
	u.run = u.c.loss.writes.begin(u.ids, u.Renew)
	failed, err := u.c.tryInvalidateShared(ctx, layers.Begin, u.op, u.ids)
	u.bump()
	u.mu.Lock()
	defer u.mu.Unlock()
	for id, r := range failed {
		if r.Unknown() {
			u.pending.add(id)
		} else {
			u.closed.add(id)
		}
	}
	return err
}

// Renew keeps the windows in Redis open while the write runs.
func (u *update[K, V]) Renew(ctx context.Context) error {
	if u.c.shared == nil {
		return nil
	}
	var errs []error
	for some := range slices.Chunk(u.ids, maxScriptKeys) {
		for i, err := range u.c.shared.RenewPending(ctx, u.op, some...) {
			u.renewed(some[i], err)
			if err != nil {
				u.c.sharedFailed("renew", err)
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// renewed notes what a renewal has done, or may do after the end too.
func (u *update[K, V]) renewed(id string, err error) {
	r := layers.Invalidated{Err: err}
	if err != nil && !r.Unknown() {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.renews = true
	if err != nil {
		u.pending.add(id)
	}
}

// idSet is made by the first key that is added: most Updates have none.
type idSet map[string]struct{}

func (s *idSet) add(id string) {
	if *s == nil {
		*s = idSet{}
	}
	(*s)[id] = struct{}{}
}

// End is the second delete. It is owed for the keys that may be pending after it.
func (u *update[K, V]) End(ctx context.Context) error {
	u.end()
	u.c.loss.writes.end(u.run) // the last renewal has returned
	failed, err := u.c.tryInvalidateShared(ctx, layers.End, u.op, u.ids)
	for id := range failed {
		if _, closed := u.closed[id]; !closed || u.renews {
			u.pending.add(id)
		}
	}
	if len(u.pending) > 0 {
		u.c.owed.addEnd(end{op: u.op, ids: slices.Sorted(maps.Keys(u.pending))})
	}
	u.bump() // after it was queued, if it was (R13)
	return err
}

func (u *update[K, V]) bump() {
	for i, key := range u.keys {
		u.c.bump(key, u.ids[i])
	}
}

// invalidateShared deletes ids in Redis. Those for which that failed, or is unknown, are queued: from then on they are not read from Redis
// until the queue was replayed, and the error says ErrPending. So many at a time as the budget of one call is good for. All are noted first:
// a failover between the script and its reply must find them.
func (c *Cache[K, V]) invalidateShared(ctx context.Context, mode layers.Mode, op layers.Token, ids []string) error {
	_, err := c.tryInvalidateShared(ctx, mode, op, ids)
	return err
}

// tryInvalidateShared is invalidateShared; it returns also which of those that were sent failed, and how.
func (c *Cache[K, V]) tryInvalidateShared(
	ctx context.Context, mode layers.Mode, op layers.Token, ids []string,
) (failed map[string]*layers.Invalidated, err error) {
	if c.shared == nil || len(ids) == 0 {
		return nil, nil
	}
	c.loss.recent.Note(ids...)
	if ctx.Err() != nil { // not sent: a script that nobody waits for may run or not
		c.pending.Add(ids...)
		if mode == layers.Announce {
			c.announces.Add(ids...)
		}
		return nil, errors.Join(ErrPending, contextError(ctx))
	}
	var first error
	for some := range slices.Chunk(ids, maxScriptKeys) {
		for i, r := range c.shared.Invalidate(ctx, mode, op, some...) {
			if r.Err == nil {
				continue
			}
			if first == nil {
				first = r.Err
			}
			if mode == layers.Announce {
				c.announces.Add(some[i])
			}
			c.pending.Add(some[i])
			if failed == nil {
				failed = map[string]*layers.Invalidated{}
			}
			failed[some[i]] = &r
			c.sharedFailed("invalidate", r.Err)
		}
	}
	if first == nil {
		return nil, nil
	}
	return failed, errors.Join(ErrPending, ctx.Err(), first)
}

// Set stores value as what the source has now: this process's next Get sees it, others once they read Redis or heard the event. Loads that
// began before are refused; an Invalidate that overtakes it wins. It returns ErrPending, and keeps nothing, if Redis could not be reached;
// the codec's error for a value that cannot be encoded, and layers.ErrTooLarge: the key is invalidated then, so that nothing older stays.
//
// Two Sets of one key may reach Redis in another order than their commits; the last to arrive stands until TTL. A Set that comes later
// than DeleteWindow after its commit may overwrite a newer row. After a write to the source prefer Update. It is two round trips.
func (c *Cache[K, V]) Set(ctx context.Context, key K, value V) error {
	id, err := c.enter(ctx, key)
	if err != nil {
		return err
	}
	e := layers.Entry[V]{Value: value, Born: time.Now()}
	c.absence.rows.Add(id)
	lives := c.lives(key, id, e, cause{}, false)
	if lives.Hard <= 0 { // TTLFor says that it is not stored: what stood before must go
		return c.Invalidate(ctx, key)
	}
	c.bump(key, id)
	mark := c.local.Mark(key)
	if c.shared == nil {
		c.setAlone(key, id, e, lives, mark)
		return nil
	}
	return c.setShared(ctx, key, id, e, lives, mark)
}

// setAlone is Set without Redis. Inside the window of an invalidation the value's life ends with the window: it may be older than that.
func (c *Cache[K, V]) setAlone(key K, id string, e layers.Entry[V], lives layers.Lives, mark layers.Mark) {
	cut, _ := c.setWindows.Cut(id, time.Now())
	c.fillWindows.Open(id)
	alive(&e, lives)
	e.Cap(cut)
	e, kept := c.inward(e)
	c.local.Replace(key, e, mark, kept)
	c.flights.Forget(id)
}

// setShared is an invalidation that grants itself the lease, and a fill under it (a Set in one script would, delayed, overwrite
// what came later). Memory keeps the value only if the fill stored it and nothing was heard since the mark.
func (c *Cache[K, V]) setShared(ctx context.Context, key K, id string, e layers.Entry[V], lives layers.Lives, mark layers.Mark) error {
	fill, err := c.shared.Encode(layers.Lease{ID: id}, e, lives)
	if err != nil {
		c.count.encodeErrors.Add(1)
		return errors.Join(err, c.Invalidate(ctx, key))
	}
	c.fillWindows.Open(id)
	c.loss.recent.Note(id)
	granted := c.shared.Invalidate(ctx, layers.SetMode, layers.NewToken(), id)[0]
	err = granted.Err
	var filled layers.Filled
	if err == nil {
		fill.Lease = granted.Lease
		if filled = c.shared.Fill(ctx, fill)[0]; filled.Err != nil {
			filled = c.shared.Fill(ctx, fill)[0] // unknown: the same fill again tells what became of it
		}
		err = filled.Err
	}
	if err != nil {
		c.sharedFailed("set", err)
		c.pending.Add(id)
		err = errors.Join(ErrPending, ctx.Err(), err)
	}
	stored := err == nil && (filled.Result == layers.Stored || filled.Result == layers.StoredEarlier)
	e.Born, e.Size = filled.Born, len(fill.Payload)
	alive(&e, lives)
	e.Cap(filled.Hard)
	e, kept := c.inward(e)
	c.local.Replace(key, e, mark, stored && kept)
	c.flights.Forget(id)
	return err
}

// Announce tells every process that rows of these keys are about to be inserted: call it before the insert commits, and commit within
// DeleteWindow less the replica lag, else wrap the insert in Update. Where any process of this Name has a Filter, every one that announces
// must have it. "Not found" answers of these keys are dropped, and no filter says
// "absent" of them from its return on. It returns ErrPending if Redis could not be reached: do not insert before it returned nil.
func (c *Cache[K, V]) Announce(ctx context.Context, keys ...K) error {
	ids, err := c.enterMany(ctx, keys)
	if err != nil {
		return err
	}
	c.setWindows.Open(ids...)
	c.fillWindows.Open(ids...)
	if c.filter != nil {
		c.filter.Add(ids...)
	}
	for _, id := range ids {
		c.absence.rows.Add(id)
	}
	err = c.announceShared(ctx, ids)
	for i, key := range keys {
		c.bump(key, ids[i])
	}
	return err
}

// announceShared appends the keys to the stream that filters follow, before the script that leaves the marker and publishes the event: a
// process that meets neither marker nor event reads the stream.
func (c *Cache[K, V]) announceShared(ctx context.Context, ids []string) error {
	if c.shared == nil {
		return nil
	}
	c.loss.recent.Note(ids...)
	if c.loss.announced != nil {
		c.loss.announced.Note(ids...)
	}
	if err := c.appendAnnounced(ctx, ids); err != nil {
		c.announces.Add(ids...)
		c.pending.Add(ids...)
		return errors.Join(ErrPending, ctx.Err(), err)
	}
	return c.invalidateShared(ctx, layers.Announce, layers.NewToken(), ids)
}

// Clear forgets every entry of this cache, in all processes: it moves the namespace's generation, so that nothing has to be deleted, and
// other caches in the same Redis are untouched. Other processes answer old values until the event, an entry of the new generation, or
// their next heartbeat (1 s). It returns ErrPending if Redis could not be reached: this process is cleared and the rest is queued. With a
// source that reads from replicas, wait for the replica lag first: Clear opens no delete window. It is one round trip.
func (c *Cache[K, V]) Clear(ctx context.Context) error {
	if err := c.usable(ctx); err != nil {
		return err
	}
	var err error
	if c.shared != nil {
		if err = c.shared.Move(ctx); err != nil {
			c.sharedFailed("clear", err)
			c.pending.AddAll() // nothing is read from Redis until the generation was moved
			err = errors.Join(ErrPending, ctx.Err(), err)
		}
	}
	c.local.Drop()
	c.flights.ForgetAll()
	return err
}

// Refresh rebuilds key now and returns what the source has: it never answers stale, and what it is answered with was loaded after Refresh
// began, by this process or, under a lease granted since, by another. "Not found" replaces what stood there.
func (c *Cache[K, V]) Refresh(ctx context.Context, key K) (V, error) {
	id, err := c.enter(ctx, key)
	if err != nil {
		return *new(V), err
	}
	why := cause{refresh: true, begun: time.Now()}
	if c.askable(id) {
		if found, err := c.shared.Get(ctx, id, c.local.Mark(key)); err == nil {
			why.seen, why.marked = found.Stored, found.Kind == layers.Marker
		}
	}
	// A flight of its own: one under way may have begun before.
	a, _, err := c.refreshes.Do(ctx, c.number(), func(ctx context.Context) (answer[V], error) {
		return c.rebuild(ctx, key, id, why)
	})
	switch {
	case err != nil && ctx.Err() != nil:
		return *new(V), contextError(ctx)
	case c.closed.Load() && errors.Is(err, ErrClosed):
		return *new(V), ErrClosed
	case err != nil:
		return *new(V), &LoadError{Key: id, Err: err}
	case a.Absent:
		return *new(V), ErrNotFound
	}
	return c.copyOut(key, a.Value)
}
