package tiercache

import (
	"context"
	"errors"

	"github.com/tiercache/tiercache/layers"
	"github.com/tiercache/tiercache/rebuild"
)

// GetMany returns the values of those keys that exist. Keys that do not exist, or that ValidKey refuses, are in neither the map nor the error; each key that could
// not be had is a *LoadError in the error, joined, and the map holds the rest. Duplicates are asked for once, no keys give an empty map.
//
// All keys that memory lacks share one round trip to Redis, all that Redis lacks one call of LoadMany (at most 1,000 keys each), or, where
// there is only Load, at most 16 loads at a time. More than 1,000 go one call after the other, and whoever asks for one of the last meanwhile waits
// for the calls before it too. Keys that someone else rebuilds are waited for. When ctx ends, what is there is returned with ctx's error.
func (c *Cache[K, V]) GetMany(ctx context.Context, keys []K) (map[K]V, error) {
	if err := c.usable(ctx); err != nil {
		return nil, err
	}
	keys = c.admitted(keys)
	ids, err := c.forms(keys)
	if err != nil {
		return nil, err
	}
	b := &batch[K, V]{c: c, found: make(map[K]V, len(keys))}
	missing := b.fromMemory(ctx, keys, ids) // 1
	defer func() { b.lead(ctx, b.behind, c.flights.LeadBehind) }()
	if len(missing) == 0 {
		return b.result(ctx)
	}
	if ctx.Err() != nil {
		return b.found, contextError(ctx)
	}
	waits, missing := b.join(missing)    // 2
	missing = b.fromShared(ctx, missing) // 3
	if !c.o.FilterFirst {
		missing = b.filtered(ctx, missing) // 4
	}
	if ctx.Err() == nil {
		waits = append(waits, b.lead(ctx, missing, c.flights.Lead)...) // 5-8
	} else if len(missing) > 0 { // who is gone has nothing rebuilt
		b.cut = true
	}
	again := b.wait(ctx, waits)
	if ctx.Err() == nil { // together once more, then each by itself
		again = b.wait(ctx, b.lead(ctx, again, c.flights.Lead))
	}
	for _, w := range again {
		a, err := c.flown(ctx, w.key, w.id, w.why)
		b.settle(ctx, w, a, err)
	}
	return b.result(ctx)
}

// batch is one GetMany under way.
type batch[K comparable, V any] struct {
	c      *Cache[K, V]
	found  map[K]V
	errs   []error
	twins  [][2]K       // of two spellings of one key, the one that was asked for and the other
	cut    bool         // ctx ended before every key had its answer
	behind []want[K, V] // stale answers, to be rebuilt behind
}

// want is one key of a batch that is still to be had.
type want[K comparable, V any] struct {
	key  K
	id   string
	why  cause
	call *rebuild.Call[answer[V]] // once somebody rebuilds it
}

// fromMemory is step 1 for every key once; it returns those that memory has no answer for.
func (b *batch[K, V]) fromMemory(ctx context.Context, keys []K, ids []string) []want[K, V] {
	var missing []want[K, V]
	seen := make(map[string]K, len(keys))
	for i, key := range keys {
		if first, twice := seen[ids[i]]; twice {
			if first != key {
				b.twins = append(b.twins, [2]K{first, key})
			}
			continue
		}
		seen[ids[i]] = key
		switch v, state := b.c.local.Get(key); state {
		case layers.Hit:
			b.c.memoryHit(key)
			b.hand(key, v)
			continue
		case layers.HitAbsent:
			b.c.count.absentHits.Add(1)
			continue
		case layers.Miss:
		}
		w := want[K, V]{key: key, id: ids[i]}
		var a answer[V]
		if b.c.inMemory(key, ids[i], &a) {
			b.answerNow(ctx, w, a)
			continue
		}
		b.c.hot.Seen(w.id, key)
		missing = append(missing, w)
	}
	return missing
}

// answerNow takes an answer, and rebuilds it behind if it is stale: a batch does not wait StaleWait.
func (b *batch[K, V]) answerNow(ctx context.Context, w want[K, V], a answer[V]) {
	b.settle(ctx, w, a, nil)
	if a.stale {
		b.behind = append(b.behind, w)
	}
}

// join is step 2: keys that this process rebuilds already are taken off missing and waited for.
func (b *batch[K, V]) join(missing []want[K, V]) (waits, rest []want[K, V]) {
	for _, w := range missing {
		if call, ok := b.c.flights.Running(w.id); ok {
			w.call = call
			waits = append(waits, w)
			b.c.count.coalesced.Add(1)
			continue
		}
		rest = append(rest, w)
	}
	return waits, rest
}

// fromShared is step 3: one round trip for all keys. Each has its own mark, taken before.
func (b *batch[K, V]) fromShared(ctx context.Context, missing []want[K, V]) (rest []want[K, V]) {
	c := b.c
	var ids []string
	var marks []layers.Mark
	var asked []want[K, V]
	if c.o.FilterFirst {
		missing = b.filtered(ctx, missing)
	}
	for _, w := range missing {
		mark := c.local.Mark(w.key) // before the pending are asked: see Get's
		if !c.readable(w.key, w.id) {
			c.count.misses.Add(1)
			rest = append(rest, w)
			continue
		}
		asked, ids, marks = append(asked, w), append(ids, w.id), append(marks, mark)
	}
	if len(asked) == 0 {
		return rest
	}
	found, errs := c.shared.GetMany(ctx, ids, marks)
	for i, w := range asked {
		if errs[i] != nil && ctx.Err() == nil {
			c.sharedFailed("get", errs[i])
		}
		if errs[i] == nil {
			var a answer[V]
			if c.taken(w.key, w.id, &found[i], marks[i], &w.why, &a) {
				b.answerNow(ctx, w, a)
				continue
			}
		}
		c.count.misses.Add(1)
		rest = append(rest, w)
	}
	return rest
}

// filtered is step 4: keys that the filter knows to be absent are settled.
func (b *batch[K, V]) filtered(ctx context.Context, missing []want[K, V]) (rest []want[K, V]) {
	if b.c.segments != nil {
		return b.filteredTogether(ctx, missing)
	}
	for _, w := range missing {
		if b.c.certainlyAbsent(ctx, w.id, &w.why) {
			b.settle(ctx, w, filteredAnswer[V](), nil)
			continue
		}
		rest = append(rest, w)
	}
	return rest
}

// lead begins the rebuild of every key that nobody rebuilds, all of them in one piece of work that outlives the caller, and returns all
// keys with the rebuild to wait for. How says whether others wait for it too, or, since they may have something stale to answer, do not.
func (b *batch[K, V]) lead(ctx context.Context, wants []want[K, V], how func(id string) (*rebuild.Call[answer[V]], bool)) []want[K, V] {
	var led []want[K, V]
	var calls []*rebuild.Call[answer[V]]
	for i := range wants {
		call, mine := how(wants[i].id)
		wants[i].call = call
		if !mine {
			b.c.count.coalesced.Add(1)
			continue
		}
		led, calls = append(led, wants[i]), append(calls, call)
	}
	if len(led) > 0 {
		b.c.flights.Batch(ctx, calls, func(ctx context.Context) { b.c.rebuildMany(ctx, led) })
	}
	return wants
}

// wait settles keys that are rebuilt, and returns those whose rebuild gave way to others, which a caller cannot.
func (b *batch[K, V]) wait(ctx context.Context, waits []want[K, V]) (again []want[K, V]) {
	for _, w := range waits {
		a, err := w.call.Wait(ctx)
		if errors.Is(err, errGaveWay) {
			again = append(again, w)
			continue
		}
		b.settle(ctx, w, a, err)
	}
	return again
}

// hand notes the value of one key.
func (b *batch[K, V]) hand(key K, v V) {
	v, err := b.c.copyOut(key, v)
	if err != nil {
		b.errs = append(b.errs, err)
		return
	}
	b.found[key] = v
}

// settle notes the answer of one key.
func (b *batch[K, V]) settle(ctx context.Context, w want[K, V], a answer[V], err error) {
	err = b.c.settle(ctx, w.key, w.id, &a, err)
	var failed *LoadError
	switch {
	case err == nil:
		b.found[w.key] = a.Value
	case errors.As(err, &failed):
		b.errs = append(b.errs, err)
	case errors.Is(err, ErrNotFound):
	case errors.Is(err, ErrClosed):
		b.errs = append(b.errs, &LoadError{Key: w.id, Err: err})
	default:
		b.cut = true
	}
}

// result is what the caller is given: the failures joined, behind them, once, the error of a context that ended too soon.
func (b *batch[K, V]) result(ctx context.Context) (map[K]V, error) {
	for _, twin := range b.twins {
		if v, ok := b.found[twin[0]]; ok {
			b.hand(twin[1], v)
		}
	}
	if b.cut {
		b.errs = append(b.errs, contextError(ctx))
	}
	return b.found, errors.Join(b.errs...)
}
