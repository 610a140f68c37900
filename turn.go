package tiercache

import (
	"context"
	"time"

	"github.com/tiercache/tiercache/layers"
)

// After an outage reads come back to a Redis master key by key, each in its turn: see layers.Space.Standing. A key whose turn has not come
// goes on as if the master were still away: memory, stale, a load of this process behind the gate, kept in doubt. That holds for reads
// and for the rebuilds that they begin; never for Set, Update, Invalidate, Announce, Clear, Refresh, the replay of what is pending, or for
// what a lease that was granted still needs.
//
// It must not make anything answered that would not be answered otherwise once Redis is back. So memory is believed out of turn only if no
// event can have been missed since the copy was loaded; a copy of before a gap is asked for at once, whosever turn it is (P5):
//
//	1 Redis is away; memory has v0 of key k
//	2 Redis is back; another process reaches it first, writes v1 and invalidates k: nil; here nothing is heard of it
//	3 this process finds Redis back, and hears events again
//	4 Get of k, before its turn: v0 would be older than an invalidation that has returned
//
// What is loaded out of turn is read after 3: invalidations that returned before are in what the source says, later ones are heard and
// kill it (P2). But Redis may hold a window in which the source's replicas still lag, of which this process does not know:
//
//	1 another process commits v1 and ends its Update: the window is open until t
//	2 here k is loaded out of turn, from a replica that has v0 yet, and kept
//	3 the replica has v1; until k's turn v0 is answered from memory
//
// So it is kept for no longer than a delete window: what began within the lag after the commit is gone within lag and window (P4). It is
// loaded once a process, not once in the fleet (P1). A pending key is not read in its turn either (R13): the replay comes first, and
// begins as soon as the master answers, before any turn.

// askable reports whether Redis may be asked for a key now: there is one, its master answers, and no invalidation of the key waits for it
// (R13).
func (c *Cache[K, V]) askable(id string) bool {
	return c.shared != nil && !c.unsettled(id) && c.shared.Reachable(id)
}

// unsettled reports whether an invalidation of the key waits for Redis, or is to be repeated there: what it has may be older.
func (c *Cache[K, V]) unsettled(id string) bool { return c.pending.Has(id) || c.loss.replays.Has(id) }

// readable is askable for a read, which waits for the key's turn.
func (c *Cache[K, V]) readable(key K, id string) bool {
	if c.shared == nil || c.unsettled(id) {
		return false
	}
	reachable, turn := c.shared.Standing(id)
	return reachable && (turn || !c.outOfTurn(key))
}

// leasable is askable for a rebuild: one that a read began waits for its turn as that does, but not if Redis was asked for the key already.
func (c *Cache[K, V]) leasable(key K, id string, why cause) bool {
	if why.refresh || why.asked || why.marked {
		return c.askable(id)
	}
	return c.readable(key, id)
}

// outOfTurn reports whether the key can do without Redis before its turn: memory has no copy, or one since whose loading no event can have
// been missed.
func (c *Cache[K, V]) outOfTurn(key K) bool {
	copied, ok := c.local.Look(key)
	return !ok || copied.Heard
}

// mayDoubt reports whether a copy in doubt may be answered: its master cannot be asked, or the key's turn has not come and no event can have
// been missed since the copy was loaded (heard).
func (c *Cache[K, V]) mayDoubt(id string, heard bool) bool {
	if c.shared == nil {
		return false
	}
	reachable, turn := c.shared.Standing(id)
	return !reachable || !turn && heard
}

// newAlone begins a load without Redis. What it gives must be gone by the end of the delete window of this process that is open, and, where
// Redis is there but for the key's turn, one window from now.
func (c *Cache[K, V]) newAlone(id string, mark layers.Mark, why cause) alone {
	now := time.Now()
	a := alone{mark: mark, why: why}
	a.cut, _ = c.fillWindows.Cut(id, now)
	if c.shared == nil {
		return a
	}
	reachable, turn := c.shared.Standing(id)
	a.early = reachable && !turn
	if end := now.Add(c.o.DeleteWindow); a.early && (a.cut.IsZero() || end.Before(a.cut)) {
		a.cut = end
	}
	return a
}

// orShared is the end of a load without Redis. One before the key's turn that failed, or that gate, breaker or back-off refused, is answered
// with what Redis has, fresh or stale: nobody gets an error for the sake of the turns.
func (c *Cache[K, V]) orShared(ctx context.Context, key K, id string, alone alone, a answer[V], err error) (answer[V], error) {
	if err == nil || !alone.early || !c.askable(id) {
		return a, err
	}
	var found layers.Reading[V]
	if failed := c.shared.Read(ctx, id, alone.mark, &found); failed != nil {
		c.sharedFailed("get", failed)
		return a, err
	}
	var had answer[V]
	if !c.taken(key, id, &found, alone.mark, &alone.why, &had) {
		return a, err
	}
	if had.stale {
		had.cause = err
	}
	return had, nil
}
