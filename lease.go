package tiercache

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tiercache/tiercache/layers"
	"github.com/tiercache/tiercache/rebuild"
)

// maxLooks is how often an acquire is repeated at once because what it found cannot be answered. Whoever stores such entries faster than
// they are replaced, a process of another release perhaps, must not keep this one from its load. Chosen; not tuned.
const maxLooks = 4

// errUnreadable is why a claim gives up: see maxLooks.
var errUnreadable = errors.New("tiercache: what stands in Redis cannot be read, and is stored again and again")

// errShared marks an error of Redis, as opposed to one of the rebuild: the load goes on without it.
var errShared = errors.New("shared tier")

// claim is one rebuild's claim on the lease of its key: what rebuild.Obtain asks for until it is granted or an answer is in hand.
type claim[K comparable, V any] struct {
	c     *Cache[K, V]
	key   K
	id    string
	mark  layers.Mark
	why   cause
	token layers.Token

	lease    layers.Lease // Granted
	held     bool         // lease is to be given back, by a fill, an invalidation or release
	drops    bool         // the load stores nothing, and something may stand in Redis that it was to replace
	unknown  bool         // the last acquire, or the fill, was not answered: lease, whatever its stamp, may be held all the same
	found    answer[V]    // Found
	stale    answer[V]    // a copy past its soft end, for when there is nothing better
	hasStale bool
	older    bool // Refresh: the next value found may come from a lease granted before Refresh began
	asked    bool // an acquire was answered
}

func (c *Cache[K, V]) newClaim(key K, id string, mark layers.Mark, why cause) *claim[K, V] {
	return &claim[K, V]{c: c, key: key, id: id, mark: mark, why: why, token: layers.NewToken(), older: why.refresh}
}

// Listen registers for the word that the key is ready.
func (l *claim[K, V]) Listen() (ready <-chan struct{}, stop func()) { return l.c.shared.Listen(l.id) }

// Acquire reads the key again and asks for its lease, in one round trip. The same token is used throughout, so that a repeat of a lost
// request is answered as the first was.
func (l *claim[K, V]) Acquire(ctx context.Context, poll bool) (rebuild.Answer, error) {
	for range maxLooks {
		got := l.c.shared.Acquire(ctx, l.ask(poll))[0]
		l.unknown = got.Unknown()
		if got.Err != nil {
			if ctx.Err() != nil {
				return rebuild.Answer{}, context.Cause(ctx)
			}
			return rebuild.Answer{}, fmt.Errorf("%w: %w", errShared, got.Err)
		}
		if answer, done := l.judge(got); done {
			return answer, nil
		}
	}
	return rebuild.Answer{}, fmt.Errorf("%w: %w", errShared, errUnreadable)
}

func (l *claim[K, V]) ask(poll bool) layers.Ask {
	return layers.Ask{ID: l.id, Token: l.token, WantStale: !poll && !l.why.refresh && !l.why.ahead, Seen: l.why.seen}
}

// judge turns Redis's answer into the rebuild's. Not done: ask again at once, maxLooks times in all at most: for a value that this
// process cannot read, for one whose life ended on its way, and for two that may be older than the Refresh that wants a newer one.
func (l *claim[K, V]) judge(got layers.Acquired) (rebuild.Answer, bool) {
	value := l.c.shared.Decode(got)
	first := !l.asked
	l.asked = true
	if got.Verdict == layers.Found {
		if l.older || value.Kind != layers.Value {
			if value.Kind == layers.Foreign {
				l.c.count.decodeErrors.Add(1)
			}
			// What stood there at the first look says nothing of the lease that is held now. What is stored after it ends that lease.
			l.why.seen, l.older = value.Stored, l.older && first
			return rebuild.Answer{}, false
		}
		if first && l.why.ahead && l.c.pastAhead(&value.Entry) {
			l.why.seen = value.Stored // the copy to replace: what is stored after it is another process's doing
			return rebuild.Answer{}, false
		}
		l.found = answer[V]{}
		if !l.c.taken(l.key, l.id, &value, l.mark, &l.why, &l.found) { // its life ended on its way here: another look, at which it is nothing
			l.why.seen = value.Stored
			return rebuild.Answer{}, false
		}
		return rebuild.Answer{Verdict: rebuild.Found}, true
	}
	if value.Kind == layers.Value && !value.Absent && !value.Expired(time.Now()) && !l.why.refresh && !l.why.ahead {
		l.c.absence.rows.Add(l.id)
		l.why.covered = true
		l.stale, l.hasStale = answer[V]{Entry: value.Entry, tier: Shared, stale: true}, true
	}
	switch got.Verdict {
	case layers.Granted:
		l.lease, l.held = got.Lease, true
		return rebuild.Answer{Verdict: rebuild.Granted, Left: got.Left}, true
	case layers.Held:
		if l.hasStale && l.c.o.StaleWait == 0 {
			l.found = l.stale
			return rebuild.Answer{Verdict: rebuild.Found}, true
		}
		return rebuild.Answer{Verdict: rebuild.Held, Left: got.Left}, true
	case layers.BackOff, layers.Found:
	}
	return rebuild.Answer{Verdict: rebuild.BackOff, Left: got.Left}, true
}

// staleOr answers the stale copy that came with the lease, with err as its cause; without one, err.
func (l *claim[K, V]) staleOr(err error) (answer[V], error) {
	if !l.hasStale || l.stale.Expired(time.Now()) {
		return answer[V]{}, err
	}
	a := l.stale
	a.cause = err
	return a, nil
}

// renew keeps leases alive; false once none of them is held any more. A renewal that was not answered is no loss yet.
func (c *Cache[K, V]) renew(ctx context.Context, leases ...layers.Lease) bool {
	held := false
	for _, r := range c.shared.Renew(ctx, leases...) {
		if r.Err != nil && ctx.Err() == nil {
			c.sharedFailed("renew", r.Err)
		}
		held = held || r.Held || r.Err != nil
	}
	return held
}

// release gives back the leases that claims still hold, also when ctx has ended; backOff counts a failed load against the keys.
func (c *Cache[K, V]) release(ctx context.Context, backOff bool, claims ...*claim[K, V]) {
	var leases []layers.Lease
	for _, l := range claims {
		if l.held {
			l.held = false
			leases = append(leases, l.lease)
		}
	}
	if len(leases) > 0 {
		c.giveBack(ctx, backOff, leases)
	}
}

func (c *Cache[K, V]) giveBack(ctx context.Context, backOff bool, leases []layers.Lease) {
	for i, err := range c.shared.Release(context.WithoutCancel(ctx), backOff, leases...) {
		if err == nil {
			continue
		}
		c.sharedFailed("release", err)
		if errors.Is(err, layers.ErrTimeout) || errors.Is(err, layers.ErrUnreachable) { // else Redis takes no writes, and granted nothing
			c.owed.add(debt{lease: leases[i]})
		}
	}
}

// abandon gives back the leases that claims may have without having been told, behind the caller's back: else everybody, this process
// too, would wait for them until they run out. While the cache is being closed it is done at once.
func (c *Cache[K, V]) abandon(ctx context.Context, claims ...*claim[K, V]) {
	var leases []layers.Lease
	for _, l := range claims {
		if !l.unknown {
			continue
		}
		l.unknown = false
		if l.lease.Stamp == "" { // the acquire was not answered, rather than the fill
			l.lease = layers.Lease{ID: l.id, Token: l.token}
		}
		if !c.shared.Reachable(l.id) {
			c.owed.add(debt{lease: l.lease})
			continue
		}
		leases = append(leases, l.lease)
		c.owed.addPaid(time.Now(), 1, l.lease)
	}
	if len(leases) == 0 {
		return
	}
	giveBack := func(ctx context.Context) (answer[V], error) {
		c.giveBack(ctx, false, leases)
		return answer[V]{}, nil
	}
	if !c.refreshes.Start(ctx, c.number(), giveBack) {
		_, _ = giveBack(ctx)
	}
}

// leave is the end of claims: whatever became of them, what they still hold is given back.
func (c *Cache[K, V]) leave(ctx context.Context, claims ...*claim[K, V]) {
	c.release(ctx, false, claims...)
	c.abandon(ctx, claims...)
}

// unstored ends claims of whose loads Redis stores nothing: what they did not replace must not stay, and the leases are given back. All in
// one pipeline each.
func (c *Cache[K, V]) unstored(ctx context.Context, claims ...*claim[K, V]) {
	var ids []string
	for _, l := range claims {
		if l.drops {
			l.held = false
			ids = append(ids, l.id)
		}
	}
	if len(ids) > 0 {
		_ = c.invalidateShared(ctx, layers.Once, layers.NewToken(), ids)
	}
	c.release(ctx, false, claims...)
}

// encoded makes the fill of a loaded entry, which gives the lease back. False: there is nothing to store in Redis, and unstored has to end
// the claim; a value that cannot be encoded, or is too large, is kept in memory only.
func (c *Cache[K, V]) encoded(claim *claim[K, V], e layers.Entry[V]) (layers.Fill, bool) {
	lives := c.lives(claim.key, claim.id, e, claim.why, claim.hasStale)
	if e.Absent && claim.why.marked { // the row is announced: it may be there any moment
		lives = layers.Lives{}
	}
	if lives.Hard <= 0 {
		c.local.Kill(claim.key, claim.mark, claim.why.begun)
		claim.drops = claim.why.refresh || claim.why.ahead || claim.hasStale
		return layers.Fill{}, false
	}
	fill, err := c.shared.Encode(claim.lease, e, lives)
	if err != nil {
		c.count.encodeErrors.Add(1)
		alive(&e, lives)
		e.Cap(claim.lease.Cut)
		c.keep(claim.key, e, claim.mark, claim.why)
		claim.drops = claim.hasStale || claim.why.seen != 0 // else what it was to replace stands on
		return layers.Fill{}, false
	}
	fill.FirstMiss = e.Absent && c.absence.firstMiss(claim.id) && !claim.why.refresh
	claim.held = false
	return fill, true
}

// maxFillBytes is how much of values goes in one pipeline, under one budget of Redis, unless one value is larger: 4 MiB take a third of 200 ms
// on a line of 1 Gbit/s with nobody else. Chosen; not tuned.
const maxFillBytes = 4 << 20

// fillMany sends fills, those whose reply was lost once more, which tells what became of the first. The load is done, so neither Close nor a
// caller throws it away.
func (c *Cache[K, V]) fillMany(ctx context.Context, fills []layers.Fill) []layers.Filled {
	if len(fills) == 0 {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	filled := c.fillInPieces(ctx, fills)
	var again []layers.Fill
	var at []int
	for i := range filled {
		if filled[i].Err != nil {
			c.sharedFailed("fill", filled[i].Err)
			again, at = append(again, fills[i]), append(at, i)
		}
	}
	for i, second := range c.fillInPieces(ctx, again) { // together: one by one a slow Redis would cost one budget each
		filled[at[i]] = second
	}
	return filled
}

// fillInPieces sends fills, as many in one pipeline as their size allows.
func (c *Cache[K, V]) fillInPieces(ctx context.Context, fills []layers.Fill) []layers.Filled {
	filled := make([]layers.Filled, 0, len(fills))
	for len(fills) > 0 {
		n, bytes := 1, len(fills[0].Payload)
		for n < len(fills) && bytes+len(fills[n].Payload) <= maxFillBytes {
			bytes += len(fills[n].Payload)
			n++
		}
		filled = append(filled, c.shared.Fill(ctx, fills[:n]...)...)
		fills = fills[n:]
	}
	return filled
}

// beforeAlone says whether a key need not be loaded without Redis: memory has it after all, in doubt where there is a Redis to ask, or
// the key backs off. The second look is the double check of a process that is alone:
//
//  1. A finds nothing in memory.
//  2. B's flight keeps the key and ends.
//  3. A begins a flight: without a second look it loads again.
func (c *Cache[K, V]) beforeAlone(key K, id string, why cause) (a answer[V], done bool, err error) {
	if copied, ok := c.local.Look(key); ok && !why.refresh && !why.ahead && copied.Fresh(time.Now()) && copied.Young {
		// Where Redis answers but takes nothing (full, read-only), a copy of before a gap may be one that was invalidated meanwhile.
		if copied.Trusted || c.shared != nil && (copied.Heard || !c.shared.Reachable(id)) {
			return answer[V]{Entry: copied.Entry, tier: Memory}, true, nil
		}
	}
	if c.backOff.Blocked(id) {
		c.count.backOffs.Add(1)
		return a, true, ErrBackingOff
	}
	return a, false, nil
}

// afterAlone keeps what was loaded without Redis: in doubt where there is one to ask again. What is not to be stored leaves nothing older
// behind.
func (c *Cache[K, V]) afterAlone(key K, id string, alone alone, e layers.Entry[V], err error) (answer[V], error) {
	if err == nil || countsAsFailure(err) {
		c.backOff.Note(id, err != nil)
	}
	if err != nil {
		return answer[V]{}, err
	}
	_, stood := c.local.Look(key)
	stored := alive(&e, c.lives(key, id, e, alone.why, stood))
	e.Cap(alone.cut)
	switch {
	case !stored:
		c.local.Kill(key, alone.mark, alone.why.begun)
	case c.shared != nil:
		c.keepDoubtful(key, e, alone.mark, alone.why)
	default:
		c.keep(key, e, alone.mark, alone.why)
	}
	return answer[V]{Entry: e, tier: Source}, nil
}

// sharedFailed counts and tells of a call of Redis that failed. A change of state is logged by the tier, once.
func (c *Cache[K, V]) sharedFailed(op string, err error) {
	c.count.sharedErrors.Add(1)
	if c.o.Hooks.SharedError != nil {
		c.o.Hooks.SharedError(op, err)
	}
}
