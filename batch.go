package tiercache

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/tiercache/tiercache/layers"
	"github.com/tiercache/tiercache/rebuild"
)

// part is one key of a batch that this process rebuilds: steps 5 to 8 of cache.go for many keys at once, each under its own mark, token
// and lease.
type part[K comparable, V any] struct {
	want[K, V]
	claim *claim[K, V] // nil: it is loaded without Redis
	alone alone
	entry layers.Entry[V] // what was loaded
}

// rebuildMany rebuilds keys with one pipeline of acquires, one load call and one pipeline of fills, or of releases where nothing is stored.
// What was granted is loaded while what was held is waited for: batches {1,2} and {2,1} of two processes then never wait for each other in a
// circle. A call that it leaves unfinished, by a panic or Close, is finished by the flight with that error.
//
// More keys than one load call may have go one thousand after the other: so many scripts fit well into the budget of one call of Redis.
func (c *Cache[K, V]) rebuildMany(ctx context.Context, wants []want[K, V]) {
	var held sync.WaitGroup
	defer held.Wait()
	for some := range slices.Chunk(wants, maxLoadManyKeys) {
		c.rebuildSome(ctx, some, &held)
	}
}

// rebuildSome is rebuildMany for as many keys as one load call may have. Keys that others hold are left to goroutines that held counts.
func (c *Cache[K, V]) rebuildSome(ctx context.Context, wants []want[K, V], held *sync.WaitGroup) {
	var without, leased []part[K, V]
	for _, w := range wants {
		p := part[K, V]{want: w, alone: alone{mark: c.local.Mark(w.key), why: w.why}}
		if a, ok := c.keptMeanwhile(w.key, w.id, w.why); ok {
			p.call.Finish(a, nil)
			continue
		}
		if !c.leasable(w.key, w.id, w.why) {
			without = append(without, p)
			continue
		}
		p.claim = c.newClaim(w.key, w.id, p.alone.mark, w.why)
		leased = append(leased, p)
	}
	granted, refused := c.acquireMany(ctx, leased, held) // 5
	parts := slices.Concat(granted, c.mayLoadAlone(ctx, slices.Concat(without, refused)))
	defer c.leave(ctx, claimsOf(granted)...)
	stop := c.keepMany(ctx, granted)
	defer stop()
	if c.o.LoadMany == nil {
		c.loadEach(ctx, parts)
		return
	}
	for _, some := range c.byClass(parts) {
		c.loadMany(ctx, some)
	}
}

// acquireMany asks for all leases in one pipeline. It returns the granted keys and those for which Redis could not be asked; keys that
// others hold are waited for on goroutines of their own, counted by held, since their wait must not delay the loads.
func (c *Cache[K, V]) acquireMany(ctx context.Context, parts []part[K, V], held *sync.WaitGroup) (granted, refused []part[K, V]) {
	if len(parts) == 0 {
		return nil, nil
	}
	asks := make([]layers.Ask, len(parts))
	for i, p := range parts {
		asks[i] = p.claim.ask(false)
	}
	for i, got := range c.shared.Acquire(ctx, asks...) {
		p := parts[i]
		if got.Err != nil {
			p.claim.unknown = got.Unknown()
			c.sharedFailed("acquire", got.Err)
			refused = append(refused, p)
			continue
		}
		switch said, done := p.claim.judge(got); {
		case done && said.Verdict == rebuild.Granted:
			granted = append(granted, p)
		case done && said.Verdict == rebuild.Found:
			p.call.Finish(p.claim.found, nil)
		default: // held, backing off, or to be asked again
			held.Go(func() {
				p.call.Run(func() (answer[V], error) { return c.rebuildClaimed(ctx, p.key, p.id, p.claim) })
			})
		}
	}
	c.abandon(ctx, claimsOf(refused)...)
	return granted, refused
}

// mayLoadAlone returns the keys to load without Redis; those that memory can answer in doubt, or that back off, are finished.
func (c *Cache[K, V]) mayLoadAlone(ctx context.Context, parts []part[K, V]) (rest []part[K, V]) {
	for _, p := range parts {
		p.alone = c.newAlone(p.id, p.alone.mark, p.why)
		a, done, err := c.beforeAlone(p.key, p.id, p.why)
		if done {
			p.call.Run(func() (answer[V], error) { return c.orShared(ctx, p.key, p.id, p.alone, a, err) })
			continue
		}
		p.claim = nil
		rest = append(rest, p)
	}
	return rest
}

// keepMany renews all granted leases until they are filled or given back: one watchdog for the batch.
func (c *Cache[K, V]) keepMany(ctx context.Context, granted []part[K, V]) (stop func()) {
	if len(granted) == 0 {
		return func() {}
	}
	leases := make([]layers.Lease, len(granted))
	for i, p := range granted {
		leases[i] = p.claim.lease
	}
	return rebuild.Keep(ctx, c.o.LeaseTime/3, func(ctx context.Context) bool { return c.renew(ctx, leases...) })
}

// claimsOf returns the claims of the keys that are loaded under a lease.
func claimsOf[K comparable, V any](parts []part[K, V]) (claims []*claim[K, V]) {
	for _, p := range parts {
		if p.claim != nil {
			claims = append(claims, p.claim)
		}
	}
	return claims
}

// loadEach loads keys one by one, at most 16 at a time: there is only Load.
func (c *Cache[K, V]) loadEach(ctx context.Context, parts []part[K, V]) {
	slots := make(chan struct{}, maxParallelGets)
	var all sync.WaitGroup
	for _, p := range parts {
		p.why.covered = p.claim != nil && p.claim.hasStale
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			p.call.Run(func() (answer[V], error) {
				entry, err := c.load(ctx, p.key, p.id, p.why)
				if p.claim != nil {
					return c.afterLoad(ctx, p.claim, entry, err)
				}
				a, err := c.afterAlone(p.key, p.id, p.alone, entry, err)
				return c.orShared(ctx, p.key, p.id, p.alone, a, err)
			})
		})
	}
	all.Wait()
}

// loadMany loads up to 1,000 keys by one call of LoadMany behind one slot of the gate, and fills them in one pipeline. An error is each
// key's; a key that the map lacks is absent; a refused fill touches no other key. The keys of one batch are of one class.
func (c *Cache[K, V]) loadMany(ctx context.Context, parts []part[K, V]) {
	keys := make([]K, len(parts))
	for i, p := range parts {
		keys[i] = p.key
	}
	rows, took, err := rebuild.RunAs(ctx, c.loads, parts[0].why.class, func(ctx context.Context) (map[K]V, error) {
		leave, err := c.throughFleetGate(ctx)
		if err != nil {
			return nil, err
		}
		defer leave()
		c.asking(len(keys), parts[0].why.class)
		rows, err := c.o.LoadMany(ctx, keys)
		if saysAbsent(err) {
			if len(keys) > 1 {
				return nil, errAbsentOfMany
			}
			return map[K]V{}, nil // as Get takes it
		}
		return rows, err
	})
	c.loadedMany(parts, took, err)
	if err = gaveWay(parts[0].why.class, err); err != nil {
		c.failMany(ctx, parts, err)
		return
	}
	c.backMany(parts, rows, took)
	born := time.Now()
	var fills []layers.Fill
	var filling, nothing []part[K, V]
	for _, p := range parts {
		v, ok := rows[p.key]
		p.entry = layers.Entry[V]{Value: v, Absent: !ok, Born: born, Cost: took}
		if ok {
			c.foundInSource(p.id, p.why)
		}
		if p.claim == nil {
			p.call.Run(func() (answer[V], error) { return c.afterAlone(p.key, p.id, p.alone, p.entry, nil) })
			continue
		}
		var fill layers.Fill
		var stored bool
		switch err := ofItsKey(func() { fill, stored = c.encoded(p.claim, p.entry) }); {
		case err != nil:
			p.call.Finish(answer[V]{}, err)
		case stored:
			fills, filling = append(fills, fill), append(filling, p)
		default:
			nothing = append(nothing, p)
		}
	}
	for i, filled := range c.fillMany(ctx, fills) {
		p := filling[i]
		p.call.Run(func() (answer[V], error) {
			c.filled(p.claim, &p.entry, fills[i], filled)
			return answer[V]{Entry: p.entry, tier: Source}, nil
		})
	}
	c.unstored(ctx, claimsOf(nothing)...)
	for _, p := range nothing {
		p.call.Finish(answer[V]{Entry: p.entry, tier: Source}, nil)
	}
}

// errAbsentOfMany stands for "not found" of several keys, which does not say that none of them has a row. It must not match ErrNotFound.
var errAbsentOfMany = errors.New("tiercache: LoadMany returned ErrNotFound for several keys: keys that do not exist are to be left out of its map")

// failMany gives the leases of a failed load back and answers every key stale, or with the error.
func (c *Cache[K, V]) failMany(ctx context.Context, parts []part[K, V], err error) {
	c.release(ctx, countsAsFailure(err), claimsOf(parts)...)
	var all sync.WaitGroup
	for _, p := range parts {
		if p.claim != nil {
			p.call.Finish(p.claim.staleOr(err))
			continue
		}
		end := func() {
			p.call.Run(func() (answer[V], error) {
				a, err := c.afterAlone(p.key, p.id, p.alone, layers.Entry[V]{}, err)
				return c.orShared(ctx, p.key, p.id, p.alone, a, err)
			})
		}
		if p.alone.early {
			all.Go(end) // they share their round trips
			continue
		}
		end()
	}
	all.Wait()
}

// loadedMany counts and tells how one LoadMany call ended.
func (c *Cache[K, V]) loadedMany(parts []part[K, V], took time.Duration, err error) {
	c.countLoad(len(parts), took, err)
	if c.o.Hooks.Load == nil || turnedAway(err) {
		return
	}
	for _, p := range parts {
		c.o.Hooks.Load(keyHash(p.id), took, err)
	}
}
