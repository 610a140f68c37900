package tiercache

import (
	"context"
	"errors"
	"hash/maphash"
	"runtime/debug"
	"time"

	"github.com/tiercache/tiercache/layers"
	"github.com/tiercache/tiercache/rebuild"
)

// Tier says where an answer came from.
type Tier uint8

// The tiers, nearest first.
const (
	Source Tier = iota // the loader
	Memory             // this process's memory
	Shared             // Redis
)

// String returns the tier's name in lower case.
func (t Tier) String() string {
	switch t {
	case Memory:
		return "memory"
	case Shared:
		return "shared"
	case Source:
	}
	return "source"
}

// Entry is a value with what is known of it. The value is shared, as Get's is.
type Entry[V any] struct {
	Value V
	Stale bool          // past its soft end: it is being rebuilt, or that failed
	Age   time.Duration // since it was stored; since it was loaded where Redis did not store it
	Tier  Tier          // where it came from; of callers that shared one rebuild, each is told the same

	// FreshFor is how long it stays fresh yet, if nothing invalidates it: what a Cache-Control header may promise. Zero: it is stale, or it was
	// answered without being stored.
	FreshFor time.Duration
}

// GetEntry is Get with what is known of the value: whether it is stale, how old it is and where it came from.
func (c *Cache[K, V]) GetEntry(ctx context.Context, key K) (Entry[V], error) {
	if ctx == nil {
		return Entry[V]{}, ErrNilContext
	}
	if v, state := c.local.Get(key); state == layers.HitAbsent {
		c.count.absentHits.Add(1)
		return Entry[V]{Tier: Memory}, ErrNotFound
	} else if state == layers.Hit {
		c.memoryHit(key)
		e := Entry[V]{Value: v, Tier: Memory}
		if copied, ok := c.local.Look(key); ok && !copied.Absent { // it may be another copy by now: then of the row as it was, no age is known
			e.Value, e.Age, e.FreshFor = copied.Value, ageOf(copied.Born), freshFor(copied.Soft)
		}
		var err error
		if e.Value, err = c.copyOut(key, e.Value); err != nil {
			return Entry[V]{Tier: Memory}, err
		}
		return e, nil
	}
	var a answer[V]
	if err := c.get(ctx, key, &a); err != nil {
		return Entry[V]{Tier: a.tier}, err
	}
	return Entry[V]{Value: a.Value, Stale: a.stale, Age: ageOf(a.Born), Tier: a.tier, FreshFor: freshFor(a.Soft)}, nil
}

// ageOf is how long ago something was stored. Never negative: what Redis stored at its own time, or memory keeps to the millisecond, may seem to
// be born a moment from now.
func ageOf(born time.Time) time.Duration { return max(time.Since(born), 0) }

// freshFor is how long something is fresh yet whose soft end is this; zero for none and for one that has passed.
func freshFor(soft time.Time) time.Duration {
	if soft.IsZero() {
		return 0
	}
	return max(time.Until(soft), 0)
}

// answer is what a rebuild ends with and what a caller is given.
type answer[V any] struct {
	layers.Entry[V]
	tier  Tier
	stale bool
	cause error // of a stale answer: why there is nothing fresh; nil: it is being rebuilt
}

// filteredAnswer is "not found" said by the filter. It is kept nowhere: another process may announce the row at any time.
func filteredAnswer[V any]() answer[V] { return answer[V]{Entry: layers.Entry[V]{Absent: true}} }

// settle turns what the steps ended with into what the caller is given: a stale copy rather than an error, ErrNotFound for "absent", the
// caller's own context error as it is, and any other error as *LoadError.
func (c *Cache[K, V]) settle(ctx context.Context, key K, id string, a *answer[V], err error) error {
	if err != nil {
		if err := c.failed(ctx, key, id, a, err); err != nil {
			return err
		}
	}
	if a.stale {
		c.servedStale(id, a)
	}
	if a.Absent {
		if a.tier != Source {
			c.count.absentHits.Add(1)
		}
		return ErrNotFound
	}
	a.Value, err = c.copyOut(key, a.Value)
	return err
}

// copyOut is the value as a caller is given it: its own where Options.Clone is given, whose panic is an error of this key alone.
func (c *Cache[K, V]) copyOut(key K, v V) (V, error) {
	copied, err := c.cloned(v)
	if err != nil {
		return copied, &LoadError{Key: c.keys.text(key), Err: err}
	}
	return copied, nil
}

// failed is settle for an error: the error that the caller is given, or nil if a is a stale copy now.
func (c *Cache[K, V]) failed(ctx context.Context, key K, id string, a *answer[V], err error) error {
	*a = answer[V]{}
	if ctx.Err() != nil {
		return contextError(ctx)
	}
	if c.closed.Load() && errors.Is(err, ErrClosed) {
		return ErrClosed
	}
	copied, ok := c.local.Look(key)
	if !ok || copied.Absent {
		return &LoadError{Key: id, Err: err}
	}
	*a = answer[V]{Entry: copied.Entry, tier: Memory, stale: true, cause: err}
	return nil
}

// servedStale counts and tells of a stale answer.
func (c *Cache[K, V]) servedStale(id string, a *answer[V]) {
	c.count.staleServed.Add(1)
	if a.cause != nil {
		c.count.staleErrors.Add(1)
	}
	if c.o.Hooks.Stale != nil {
		c.o.Hooks.Stale(keyHash(id), time.Since(a.Born), a.cause)
	}
}

// contextError is the error of a context that has ended: it matches both its cause and ctx.Err().
func contextError(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if errors.Is(cause, err) {
		return cause
	}
	return errors.Join(err, cause)
}

// asking counts one call of the loader, for n keys.
func (c *Cache[K, V]) asking(n int, class rebuild.Class) {
	c.count.loads.Add(1)
	c.count.loadedKeys.Add(uint64(n)) //nolint:gosec // never negative
	if class != rebuild.Warm {        // which spreads what it loads whatever else is loaded
		c.cold.loading(n, c.o.TTL, time.Now())
	}
}

// loadOne asks the loader for one key.
func (c *Cache[K, V]) loadOne(ctx context.Context, key K, class rebuild.Class) (V, error) {
	leave, err := c.throughFleetGate(ctx)
	if err != nil {
		return *new(V), err
	}
	defer leave()
	c.asking(1, class)
	if c.o.Load != nil {
		return c.o.Load(ctx, key)
	}
	rows, err := c.o.LoadMany(ctx, []K{key})
	if err != nil {
		return *new(V), err
	}
	v, ok := rows[key]
	if !ok {
		return v, ErrNotFound
	}
	return v, nil
}

// loaded counts and tells how a load of one key ended.
func (c *Cache[K, V]) loaded(id string, took time.Duration, err error) {
	c.countLoad(1, took, err)
	if c.o.Hooks.Load != nil && !turnedAway(err) {
		c.o.Hooks.Load(keyHash(id), took, err)
	}
}

// turnedAway reports whether gate or breaker refused a load: the loader was not called.
func turnedAway(err error) bool {
	return errors.Is(err, ErrOverloaded) || errors.Is(err, ErrBreakerOpen)
}

// countLoad counts how a load of n keys ended. One that was turned away was none; the breaker counts those itself.
func (c *Cache[K, V]) countLoad(n int, took time.Duration, err error) {
	if !turnedAway(err) {
		c.count.timedKeys.Add(uint64(n))   //nolint:gosec // never negative
		c.count.loadTime.Add(uint64(took)) //nolint:gosec // as above
		c.weigh()
	}
	var panicked *PanicError
	switch {
	case err == nil, saysAbsent(err):
	case errors.Is(err, ErrOverloaded):
		c.count.shed.Add(1)
	case errors.Is(err, ErrBreakerOpen):
	case errors.As(err, &panicked), errors.Is(err, ErrGoexit):
		c.count.loadPanics.Add(1)
		c.count.loadErrors.Add(1)
	default:
		c.count.loadErrors.Add(1)
	}
}

// saysAbsent reports whether err is the loader's word that there is no such row. A panic is not, whatever its value.
func saysAbsent(err error) bool {
	var panicked *PanicError
	return errors.Is(err, ErrNotFound) && !errors.As(err, &panicked)
}

// countsAsFailure reports whether err says that the source fails, so that the key backs off and the breaker counts it: not a panic or
// Goexit, which say something of the loader, not the gate or the breaker, not Close.
func countsAsFailure(err error) bool {
	var panicked *PanicError
	return !errors.As(err, &panicked) && !errors.Is(err, ErrGoexit) && !turnedAway(err) &&
		!errors.Is(err, ErrClosed) && !errors.Is(err, ErrNotFound)
}

// keep puts an entry into memory if the mark still stands. What a Refresh brings is a new beginning: marks taken before refuse from then
// on, so that a slower reader of what it replaced does not put that over it.
func (c *Cache[K, V]) keep(key K, e layers.Entry[V], mark layers.Mark, why cause) {
	c.put(key, e, mark, why, false)
}

// keepDoubtful is keep of an entry that is asked again as soon as Redis can be asked.
func (c *Cache[K, V]) keepDoubtful(key K, e layers.Entry[V], mark layers.Mark, why cause) {
	c.put(key, e, mark, why, true)
}

// put is keep and keepDoubtful.
func (c *Cache[K, V]) put(key K, e layers.Entry[V], mark layers.Mark, why cause, doubt bool) {
	switch e, ok := c.inward(e); {
	case !ok:
		c.local.Kill(key, mark, why.begun)
	case why.refresh && doubt:
		c.local.SupersedeDoubtful(key, e, mark, why.begun)
	case why.refresh:
		c.local.Supersede(key, e, mark, why.begun)
	case doubt:
		c.local.PutDoubtful(key, e, mark)
	default:
		c.local.Put(key, e, mark)
	}
}

// inward is e as memory keeps it: with a value of its own where Options.Clone is given. False: that panicked; memory keeps nothing, and what
// e replaces must go.
func (c *Cache[K, V]) inward(e layers.Entry[V]) (layers.Entry[V], bool) {
	if e.Absent {
		return e, true
	}
	v, err := c.cloned(e.Value)
	e.Value = v
	return e, err == nil
}

// cloned is v, or a copy of it where Options.Clone is given. A panic of that is a *PanicError.
func (c *Cache[K, V]) cloned(v V) (copied V, err error) {
	if c.o.Clone == nil {
		return v, nil
	}
	err = ofItsKey(func() { copied = c.o.Clone(v) })
	return copied, err
}

// ofItsKey does what calls functions in Options for one key. A panic of one is this key's error and no other's.
func ofItsKey(do func()) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &PanicError{Value: v, Stack: debug.Stack()}
		}
	}()
	do()
	return nil
}

// hashSeed makes the hashes that hooks are told: stable in one process, meaningless outside it.
var hashSeed = maphash.MakeSeed()

func keyHash(id string) uint64 { return maphash.String(hashSeed, id) }
