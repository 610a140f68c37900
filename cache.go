package tiercache

import (
	"context"
	"errors"
	"time"

	"github.com/tiercache/tiercache/layers"
	"github.com/tiercache/tiercache/rebuild"
)

// Get returns the value of key: from memory, else from Redis, else from the source, which is asked once for all who wait.
//
// It returns ErrNotFound where the source has no such row, together with ErrInvalidKey where ValidKey refused the key; a *LoadError where
// the source could not be asked and nothing stale was at hand; ctx's error when ctx ends first (the work goes on and is kept); ErrClosed
// after Close. Redis errors are never returned: they are counted, told to Hooks and lived with. A fresh value in memory is answered even if
// ctx has ended, without an allocation.
//
// Get may be called concurrently. The value is shared with all callers unless Options.Clone is given: it must not be changed.
func (c *Cache[K, V]) Get(ctx context.Context, key K) (V, error) {
	if ctx == nil {
		return *new(V), ErrNilContext
	}
	v, state := c.local.Get(key) // 1
	switch state {
	case layers.Hit:
		c.memoryHit(key)
		if c.o.Clone == nil {
			return v, nil
		}
		return c.copyOut(key, v)
	case layers.HitAbsent:
		c.count.absentHits.Add(1)
		return v, ErrNotFound
	case layers.Miss:
	}
	var a answer[V]
	err := c.get(ctx, key, &a)
	return a.Value, err
}

// get is Get into a, which is zero, where memory has nothing fresh, step by step:
//
//	1 memory      stale, or doubtful while Redis is away: answered, and rebuilt behind
//	2 flight      this process rebuilds the key already: wait for that
//	3 Redis       one GET, its round trip shared; a hit needs no flight
//	4 filter      certainly no such row: ErrNotFound, the source is not asked
//	5 lease       read again and, if there is still nothing fresh, be the one in the fleet that loads it (rebuild)
//	6 gate        so many loads at once in this process, and none while most of them fail: the breaker (load)
//	7 load        the source, under its own time-out (load)
//	8 fill        kept only if the lease still stands (fill)
//
// A hit in Redis is the path that counts: one answer is handed down it, since every copy would be another touch of cold memory.
func (c *Cache[K, V]) get(ctx context.Context, key K, a *answer[V]) error {
	id, err := c.enter(ctx, key)
	if errors.Is(err, ErrInvalidKey) {
		return errNoSuchKey
	} else if err != nil {
		return err
	}
	if c.fromMemory(ctx, key, id, a) { // 1
		return c.settle(ctx, key, id, a, nil)
	}
	if ctx.Err() != nil {
		return contextError(ctx)
	}
	c.hot.Seen(id, key)
	if call, ok := c.flights.Running(id); ok { // 2
		return c.ride(ctx, key, id, call, a)
	}
	var why cause
	if c.o.FilterFirst && c.certainlyAbsent(ctx, id, &why) {
		*a = filteredAnswer[V]()
		return c.settle(ctx, key, id, a, nil)
	}
	ok, err := c.fromShared(ctx, key, id, &why, a) // 3
	if ok || err != nil {
		return c.settle(ctx, key, id, a, err)
	}
	c.count.misses.Add(1)
	if !c.o.FilterFirst && c.certainlyAbsent(ctx, id, &why) { // 4
		*a = filteredAnswer[V]()
		return c.settle(ctx, key, id, a, nil)
	}
	return c.fly(ctx, key, id, why, a) // 5-8
}

// ride waits for the rebuild that is under way.
func (c *Cache[K, V]) ride(ctx context.Context, key K, id string, call *rebuild.Call[answer[V]], a *answer[V]) (err error) {
	c.count.coalesced.Add(1)
	*a, err = call.Wait(ctx)
	return c.settle(ctx, key, id, a, err)
}

// fly has the key rebuilt, by this caller's flight or by one that began a moment ago.
func (c *Cache[K, V]) fly(ctx context.Context, key K, id string, why cause, a *answer[V]) error {
	got, err := c.flown(ctx, key, id, why)
	*a = got
	return c.settle(ctx, key, id, a, err)
}

// flown is fly without the settling. Who joined a load that gave way to others, and cannot, has another begun.
func (c *Cache[K, V]) flown(ctx context.Context, key K, id string, why cause) (a answer[V], err error) {
	again := func(ctx context.Context) (answer[V], error) { return c.rebuild(ctx, key, id, why) }
	a, joined, err := c.flights.Do(ctx, id, again)
	if joined {
		c.count.coalesced.Add(1)
	}
	if joined && errors.Is(err, errGaveWay) {
		a, _, err = c.flights.Do(ctx, id, again)
	}
	return a, err
}

// cause is what a rebuild knows of its reason.
type cause struct {
	asked   bool          // Redis was asked and has nothing
	seen    int64         // stored-at of the copy in Redis that the rebuild replaces although it may look fresh; 0: none
	audited bool          // the filter calls the key absent, and it is loaded all the same: do not ask the filter again
	marked  bool          // Redis holds the marker of an announced row: do not ask the filter, do not store "absent"
	ahead   bool          // of a hot key whose value is still fresh
	refresh bool          // asked for by Refresh
	covered bool          // Redis has a copy past its soft end
	class   rebuild.Class // of the load at the gate
	begun   time.Time     // when Refresh began; zero for others
}

// fromMemory is step 1: what memory may answer although it is not fresh and trusted. A trusted copy past its soft end, younger than
// MemoryTTL, is answered while one rebuild runs behind it. A copy in doubt is answered only while its master cannot be asked.
func (c *Cache[K, V]) fromMemory(ctx context.Context, key K, id string, a *answer[V]) bool {
	ok := c.inMemory(key, id, a)
	if ok && a.stale {
		c.revalidate(ctx, key, id, a)
	}
	return ok
}

// inMemory is fromMemory without the rebuild.
func (c *Cache[K, V]) inMemory(key K, id string, a *answer[V]) bool {
	copied, ok := c.local.Look(key)
	if !ok || !copied.Young {
		return false
	}
	if !copied.Trusted && !c.mayDoubt(id, copied.Heard) {
		return false
	}
	fresh := copied.Fresh(time.Now())
	if fresh && !copied.Absent {
		c.memoryHit(key)
	}
	a.Entry, a.tier, a.stale = copied.Entry, Memory, !fresh
	return true
}

// fromShared is step 3. The mark is taken before the GET is sent: what the GET brings is kept in memory only if no invalidation was heard
// since (protocol race R2); and before the pending invalidations are looked at: one that is queued just after the look voids it (R13).
// It reports false if the key must be rebuilt, and notes in why what that rebuild should know. A hot key is read by one caller at a time.
func (c *Cache[K, V]) fromShared(ctx context.Context, key K, id string, why *cause, a *answer[V]) (bool, error) {
	ok, err := c.readShared(ctx, key, id, why, a)
	if ok && a.stale {
		c.revalidate(ctx, key, id, a) // out of turn: the next in it may wait for StaleWait too
	}
	return ok, err
}

// readShared is fromShared without the rebuild of what is stale.
func (c *Cache[K, V]) readShared(ctx context.Context, key K, id string, why *cause, a *answer[V]) (bool, error) {
	if turn := c.hotReads.of(id); turn != nil {
		leave, err := turn.enter(ctx)
		defer leave()
		if err != nil || c.inMemory(key, id, a) {
			return err == nil, err
		}
	}
	mark := c.local.Mark(key)
	if !c.readable(key, id) {
		return false, nil
	}
	var found layers.Reading[V]
	if err := c.shared.ReadSpread(ctx, id, mark, &found); err != nil {
		if ctx.Err() == nil {
			c.sharedFailed("get", err)
		}
		return false, ctx.Err()
	}
	return c.taken(key, id, &found, mark, why, a), nil
}

// taken turns what Redis returned into an answer and keeps it in memory if the mark still stands, for no longer than Redis keeps it.
func (c *Cache[K, V]) taken(key K, id string, found *layers.Reading[V], mark layers.Mark, why *cause, a *answer[V]) bool {
	switch found.Kind {
	case layers.Nothing:
		why.asked = true
		return false
	case layers.Marker:
		why.marked = true
		return false
	case layers.Foreign:
		why.asked = true
		c.count.decodeErrors.Add(1)
		why.seen = found.Stored
		return false
	case layers.Value:
	}
	now := time.Now()
	if found.Expired(now) {
		return false
	}
	if found.Keep && c.o.MemoryTTL > 0 {
		c.keep(key, found.Entry, mark, cause{})
	}
	c.absence.read(id, found.Absent)
	a.Entry, a.tier, a.stale = found.Entry, Shared, !found.Fresh(now)
	if !a.stale && !a.Absent {
		c.count.sharedHits.add()
	}
	return true
}

// revalidate has a stale answer given while one rebuild of it runs behind: at once, or after waiting StaleWait for the fresh value, which
// replaces it. The rebuild asks Redis first, by its lease, since another process may have been faster.
func (c *Cache[K, V]) revalidate(ctx context.Context, key K, id string, a *answer[V]) {
	why := cause{asked: a.tier == Shared}
	again := func(ctx context.Context) (answer[V], error) { return c.rebuild(ctx, key, id, why) }
	if c.o.StaleWait == 0 {
		c.flights.Start(ctx, id, again)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, c.o.StaleWait)
	defer cancel()
	fresh, _, err := c.flights.Do(ctx, id, again)
	if err == nil {
		*a = fresh
	} else if ctx.Err() == nil { // else the rebuild has not failed: it goes on
		a.cause = err
	}
}

// rebuild replaces what is missing or past its soft end: steps 5 to 8. It runs once a key and process, on a goroutine of its flight, with
// a context that outlives its callers. Its mark is taken first: whatever it ends with is kept in memory only if no invalidation was
// heard since it began (R2, R4, R11).
func (c *Cache[K, V]) rebuild(ctx context.Context, key K, id string, why cause) (answer[V], error) {
	mark := c.local.Mark(key)
	if a, ok := c.keptMeanwhile(key, id, why); ok {
		return a, nil
	}
	if !c.leasable(key, id, why) {
		if why.ahead && c.shared != nil {
			return answer[V]{}, errors.Join(errGaveWay, errShared) // who joined it has a load of his own
		}
		return c.loadAlone(ctx, key, id, mark, why)
	}
	return c.rebuildClaimed(ctx, key, id, c.newClaim(key, id, mark, why))
}

// rebuildClaimed is step 5, and what follows from its answer. Whoever else holds the lease is waited for, as long as one load and one lease
// can take together.
func (c *Cache[K, V]) rebuildClaimed(ctx context.Context, key K, id string, claim *claim[K, V]) (answer[V], error) {
	got, err := rebuild.Obtain(ctx, claim, c.o.LoadTimeout+c.o.LeaseTime, true)
	c.abandon(ctx, claim)
	switch {
	case errors.Is(err, errShared):
		c.sharedFailed("acquire", err)
		if claim.why.ahead {
			return answer[V]{}, errors.Join(errGaveWay, err)
		}
		a, err := c.loadAlone(ctx, key, id, claim.mark, claim.why)
		if err != nil { // an earlier answer may have brought a stale copy
			return claim.staleOr(err)
		}
		return a, nil
	case err != nil: // the other process took too long, or Close
		return claim.staleOr(err)
	}
	switch got.Verdict {
	case rebuild.Found:
		return claim.found, nil
	case rebuild.Granted:
		return c.loadLeased(ctx, claim)
	case rebuild.BackOff, rebuild.Held:
	}
	c.count.backOffs.Add(1)
	return claim.staleOr(ErrBackingOff)
}

// loadLeased loads the key under its lease, which a watchdog renews. On every way out the lease is given back, also by a panic of one of
// the functions in Options: else the other processes would wait for it until it runs out.
func (c *Cache[K, V]) loadLeased(ctx context.Context, claim *claim[K, V]) (answer[V], error) {
	defer c.leave(ctx, claim)
	stop := rebuild.Keep(ctx, c.o.LeaseTime/3, func(ctx context.Context) bool { return c.renew(ctx, claim.lease) })
	defer stop()
	entry, err := c.load(ctx, claim.key, claim.id, claim.why) // 6, 7
	return c.afterLoad(ctx, claim, entry, err)
}

// afterLoad fills both tiers with what was loaded under a lease. A failed load gives the lease back at once.
func (c *Cache[K, V]) afterLoad(ctx context.Context, claim *claim[K, V], entry layers.Entry[V], err error) (answer[V], error) {
	if err != nil {
		c.release(ctx, countsAsFailure(err), claim)
		return claim.staleOr(err)
	}
	return c.fill(ctx, claim, entry), nil // 8
}

// loadAlone loads the key without Redis: there is none, it cannot be asked, or an invalidation waits for it. What it loads is kept in
// memory, in doubt from birth where there is a Redis to ask again (R14), and no longer than a delete window of this process allows.
func (c *Cache[K, V]) loadAlone(ctx context.Context, key K, id string, mark layers.Mark, why cause) (answer[V], error) {
	alone := c.newAlone(id, mark, why)
	if a, done, err := c.beforeAlone(key, id, why); done {
		return c.orShared(ctx, key, id, alone, a, err)
	}
	entry, err := c.load(ctx, key, id, why) // 6, 7
	a, err := c.afterAlone(key, id, alone, entry, err)
	return c.orShared(ctx, key, id, alone, a, err)
}

// alone is what a load without Redis begins with.
type alone struct {
	mark  layers.Mark
	why   cause
	cut   time.Time // when what is loaded must be gone; zero: when its life ends
	early bool      // Redis could be asked, but the key's turn has not come
}

// load is steps 6 and 7: one call of the loader behind gate and breaker, under LoadTimeout, a panic or runtime.Goexit turned into an error. "Not
// found" is a result.
func (c *Cache[K, V]) load(ctx context.Context, key K, id string, why cause) (layers.Entry[V], error) {
	class := c.classOf(key, id, why)
	value, took, err := rebuild.RunAs(ctx, c.loads, class, func(ctx context.Context) (V, error) { return c.loadOne(ctx, key, class) })
	c.loaded(id, took, err)
	err = gaveWay(class, err)
	switch {
	case saysAbsent(err):
		c.gate.Back(class, took, 1)
		return layers.Entry[V]{Absent: true, Born: time.Now(), Cost: took}, nil
	case err != nil:
		return layers.Entry[V]{}, err
	}
	c.gate.Back(class, took, 0)
	c.absence.rows.Add(id)
	c.foundInSource(id, why)
	return layers.Entry[V]{Value: value, Born: time.Now(), Cost: took}, nil
}

// fill is step 8. Redis stores the entry only if lease and grant still stand; memory keeps only what Redis stored, or left to it (absence),
// for as long as Redis said, and only if the mark stands (a delete between the two is heard as an event). What Redis refused is answered
// to those who wait and kept nowhere: an invalidation came in between (R1, R6, R7).
func (c *Cache[K, V]) fill(ctx context.Context, claim *claim[K, V], entry layers.Entry[V]) answer[V] {
	if fill, ok := c.encoded(claim, entry); ok {
		c.filled(claim, &entry, fill, c.fillMany(ctx, []layers.Fill{fill})[0])
	} else {
		c.unstored(ctx, claim)
	}
	return answer[V]{Entry: entry, tier: Source}
}

// filled keeps in memory what a fill stored, and gives entry its ends.
func (c *Cache[K, V]) filled(claim *claim[K, V], entry *layers.Entry[V], fill layers.Fill, filled layers.Filled) {
	entry.Size = len(fill.Payload)
	if filled.Err != nil {
		claim.unknown = true
		alive(entry, layers.Lives{Soft: fill.Soft, Hard: fill.Hard})
		entry.Cap(fill.Lease.Cut)
		c.keepDoubtful(claim.key, *entry, claim.mark, claim.why)
		return
	}
	switch filled.Result {
	case layers.Stored, layers.StoredEarlier, layers.Withheld:
		if filled.Result == layers.Withheld {
			c.count.firstMisses.Add(1)
		}
		entry.Born = filled.Born
		alive(entry, layers.Lives{Soft: fill.Soft, Hard: fill.Hard})
		entry.Cap(filled.Hard)
		c.keep(claim.key, *entry, claim.mark, claim.why)
	case layers.Refused, layers.WindowOver, layers.Older:
		c.count.loadsRefused.Add(1)
	}
}

// Invalidate says that the source's rows of these keys have changed: from its return on, no Get of this process, and none of another once
// its event arrived there, is answered with anything loaded before. Call it after the change is committed; a crash in between leaves
// the old value for its TTL, which Update does not.
//
// Where Redis could not be reached it returns ErrPending: this process is up to date and the key is queued for Redis. It is one round
// trip for each Redis master concerned, and may be called concurrently.
func (c *Cache[K, V]) Invalidate(ctx context.Context, keys ...K) error {
	ids, err := c.enterMany(ctx, keys)
	if err != nil {
		return err
	}
	c.setWindows.Open(ids...)
	c.fillWindows.Open(ids...)
	err = c.invalidateShared(ctx, layers.Once, layers.NewToken(), ids) // Redis before memory: else old values are read from it again
	for i, key := range keys {
		c.bump(key, ids[i]) // after it was queued, if it was: a flight begun in between would read Redis under a good mark (R13)
	}
	return err
}

// bump forgets what this process knows of a key: marks taken before refuse, the copy in memory is dead, and the flight under way is
// joined by nobody any more (R4).
func (c *Cache[K, V]) bump(key K, id string) {
	c.local.Bump(key)
	c.flights.Forget(id)
	c.count.invalidations.Add(1)
	if c.o.Hooks.Invalidated != nil {
		c.o.Hooks.Invalidated(keyHash(id), true)
	}
}
