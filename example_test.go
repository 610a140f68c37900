package tiercache_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/bloom"
	"github.com/tiercache/tiercache/rebuild"
)

// products is the database of the examples: names by number.
type products struct {
	mu   sync.Mutex
	rows map[int64]string
}

func newProducts() *products {
	return &products{rows: map[int64]string{1: "anvil", 2: "bellows", 3: "chisel"}}
}

// Load is what a cache is given to read one row.
func (p *products) Load(_ context.Context, id int64) (string, error) {
	fmt.Println("database: read", id)
	p.mu.Lock()
	defer p.mu.Unlock()
	name, ok := p.rows[id]
	if !ok {
		return "", tiercache.ErrNotFound
	}
	return name, nil
}

// LoadMany reads many rows at once and leaves out those that are not there.
func (p *products) LoadMany(_ context.Context, ids []int64) (map[int64]string, error) {
	fmt.Println("database: read", len(ids), "rows at once")
	p.mu.Lock()
	defer p.mu.Unlock()
	found := map[int64]string{}
	for _, id := range ids {
		if name, ok := p.rows[id]; ok {
			found[id] = name
		}
	}
	return found, nil
}

// Write changes one row.
func (p *products) Write(_ context.Context, id int64, name string) error {
	fmt.Println("database: write", id)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rows[id] = name
	return nil
}

// IDsAfter returns the first few numbers greater than last.
func (p *products) IDsAfter(last int64, limit int) (ids []int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(p.rows)) {
		if id > last && len(ids) < limit {
			ids = append(ids, id)
		}
	}
	return ids
}

// IDs yields all numbers, as a scan of the table would.
func (p *products) IDs(yield func(int64, error) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id := range p.rows {
		if !yield(id, nil) {
			return
		}
	}
}

// openProducts opens a cache over the examples' database.
func openProducts(db *products) *tiercache.Cache[int64, string] {
	c, err := tiercache.New(tiercache.Options[int64, string]{Name: "products", Load: db.Load, LoadMany: db.LoadMany})
	if err != nil {
		fmt.Println(err)
	}
	return c
}

func Example() {
	db := newProducts()
	cache, err := tiercache.New(tiercache.Options[int64, string]{
		Name: "products",
		Load: db.Load,
		TTL:  time.Minute,
		// Shared: a layers.Redis, for a cache that many processes share.
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = cache.Close() }()

	ctx := context.Background()
	for range 3 {
		name, err := cache.Get(ctx, 1)
		fmt.Println(name, err)
	}
	// Output:
	// database: read 1
	// anvil <nil>
	// anvil <nil>
	// anvil <nil>
}

func ExampleNew() {
	// All mistakes come in one error.
	_, err := tiercache.New(tiercache.Options[int64, string]{Jitter: 1.5, LeaseTime: time.Millisecond})
	fmt.Println(err)
	// Output:
	// tiercache: options: Name is required
	// Load or LoadMany is required
	// LeaseTime is 1ms, at least 100ms is needed: it is renewed three times in its length
	// Jitter is 1.5, it must be below 1
}

func ExampleCache_Get() {
	cache := openProducts(newProducts())
	defer func() { _ = cache.Close() }()
	ctx := context.Background()

	name, err := cache.Get(ctx, 1)
	fmt.Println(name, err)

	// A row that is not there is a result too: it is asked of the database once.
	for range 2 {
		_, err = cache.Get(ctx, 404)
		fmt.Println(errors.Is(err, tiercache.ErrNotFound))
	}
	// Output:
	// database: read 1
	// anvil <nil>
	// database: read 404
	// true
	// true
}

func ExampleCache_Warm() {
	db := newProducts()
	cache := openProducts(db)
	defer func() { _ = cache.Close() }()

	report, err := cache.Warm(context.Background(), slices.Values([]int64{1, 2, 3, 4}), tiercache.WarmOptions{
		KeysPerSecond: -1, // the database is not shared
		Progress:      func(r tiercache.WarmReport) { fmt.Println("dealt with", r.Done) },
	})
	fmt.Println(report.Loaded, "loaded,", report.Absent, "absent", err)
	fmt.Println(cache.Get(context.Background(), 2))
	// Output:
	// database: read 4 rows at once
	// dealt with 4
	// 3 loaded, 1 absent <nil>
	// bellows <nil>
}

func ExampleWarmReport_Rate() {
	r := tiercache.WarmReport{Done: 30_000, Fresh: 20_000, Loaded: 10_000, Took: 30 * time.Second}
	fmt.Println(r.Rate(), "keys a second")
	// Output: 1000 keys a second
}

func ExampleCache_GetEntry() {
	cache := openProducts(newProducts())
	defer func() { _ = cache.Close() }()
	ctx := context.Background()

	for range 2 {
		e, err := cache.GetEntry(ctx, 2)
		fmt.Println(e.Value, "from", e.Tier, "stale:", e.Stale, "young:", e.Age < time.Minute, err)
	}
	// Output:
	// database: read 2
	// bellows from source stale: false young: true <nil>
	// bellows from memory stale: false young: true <nil>
}

func ExampleCache_GetMany() {
	cache := openProducts(newProducts())
	defer func() { _ = cache.Close() }()
	ctx := context.Background()

	if _, err := cache.Get(ctx, 1); err != nil {
		fmt.Println(err)
	}
	found, err := cache.GetMany(ctx, []int64{1, 2, 3, 3, 404}) // 1 is in memory, the others are one call
	fmt.Println(found, err)
	// Output:
	// database: read 1
	// database: read 3 rows at once
	// map[1:anvil 2:bellows 3:chisel] <nil>
}

func ExampleCache_Set() {
	cache := openProducts(newProducts())
	defer func() { _ = cache.Close() }()
	ctx := context.Background()

	// The value is at hand anyhow, for instance from an INSERT ... RETURNING that has committed.
	if err := cache.Set(ctx, 4, "drill"); err != nil {
		fmt.Println(err)
	}
	fmt.Println(cache.Get(ctx, 4))
	// Output:
	// drill <nil>
}

func ExampleCache_Invalidate() {
	db := newProducts()
	cache := openProducts(db)
	defer func() { _ = cache.Close() }()
	ctx := context.Background()

	fmt.Println(cache.Get(ctx, 1))
	if err := db.Write(ctx, 1, "anvil, 50 kg"); err != nil { // committed when it returns
		fmt.Println(err)
	}
	if err := cache.Invalidate(ctx, 1); err != nil {
		fmt.Println(err)
	}
	fmt.Println(cache.Get(ctx, 1))
	// Output:
	// database: read 1
	// anvil <nil>
	// database: write 1
	// database: read 1
	// anvil, 50 kg <nil>
}

func ExampleCache_Update() {
	db := newProducts()
	cache := openProducts(db)
	defer func() { _ = cache.Close() }()
	ctx := context.Background()

	fmt.Println(cache.Get(ctx, 1))
	err := cache.Update(ctx, 1, func(ctx context.Context) error {
		return db.Write(ctx, 1, "anvil, 50 kg") // a transaction, up to its commit
	})
	fmt.Println("updated:", err)
	fmt.Println(cache.Get(ctx, 1))

	err = cache.Update(ctx, 1, func(context.Context) error { return errors.New("serialization failure") })
	fmt.Println("updated:", err)
	// Output:
	// database: read 1
	// anvil <nil>
	// database: write 1
	// updated: <nil>
	// database: read 1
	// anvil, 50 kg <nil>
	// updated: serialization failure
}

func ExampleCache_UpdateMany() {
	db := newProducts()
	cache := openProducts(db)
	defer func() { _ = cache.Close() }()
	ctx := context.Background()

	err := cache.UpdateMany(ctx, []int64{1, 2}, func(ctx context.Context) error {
		return errors.Join(db.Write(ctx, 1, "anvil (old)"), db.Write(ctx, 2, "bellows (old)"))
	})
	fmt.Println("updated:", err)
	fmt.Println(cache.GetMany(ctx, []int64{1, 2}))
	// Output:
	// database: write 1
	// database: write 2
	// updated: <nil>
	// database: read 2 rows at once
	// map[1:anvil (old) 2:bellows (old)] <nil>
}

// A filter where rows are inserted by programs that know nothing of the cache: the database's change feed tells of them.
func ExampleCache_Feed() {
	db := newProducts()
	cache, err := tiercache.New(tiercache.Options[int64, string]{
		Name: "products", Load: db.Load,
		Filter: bloom.Options{Capacity: 1000}, FilterFeed: 10 * time.Second,
		FilterAudit: -1, // only here, so that each run prints the same: by default 1 in 1,000 is loaded all the same
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = cache.Close() }()
	ctx := context.Background()
	if _, err := cache.BuildFilter(ctx, db.IDs, bloom.BuildOptions{}); err != nil {
		fmt.Println(err)
		return
	}

	// Until the feed has told something the filter says nothing, and the database is asked.
	_, err = cache.Get(ctx, 404)
	fmt.Println(err)

	// The consumer of the feed passes on what it reads, and how far behind it is.
	fmt.Println(cache.Feed(ctx, 200*time.Millisecond, 4))
	_, err = cache.Get(ctx, 405)
	fmt.Println(err)
	// Output:
	// database: read 404
	// tiercache: not found
	// <nil>
	// tiercache: not found
}

func ExampleCache_BuildFilter() {
	db := newProducts()
	cache, err := tiercache.New(tiercache.Options[int64, string]{
		Name: "products", Load: db.Load,
		Filter:      bloom.Options{Capacity: 1000},
		FilterAudit: -1, // only here, so that each run prints the same: by default 1 in 1,000 is loaded all the same
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = cache.Close() }()
	ctx := context.Background()

	report, err := cache.BuildFilter(ctx, db.IDs, bloom.BuildOptions{})
	fmt.Println(report.Rows, "rows", err)

	// Rows that are certainly not there cost the database nothing.
	_, err = cache.Get(ctx, 404)
	fmt.Println(err)

	// A new row is announced before its insert commits.
	if err := cache.Announce(ctx, 404); err != nil {
		fmt.Println(err)
		return
	}
	if err := db.Write(ctx, 404, "found after all"); err != nil {
		fmt.Println(err)
	}
	fmt.Println(cache.Get(ctx, 404))
	// Output:
	// 3 rows <nil>
	// tiercache: not found
	// database: write 404
	// database: read 404
	// found after all <nil>
}

// A table is read in pages, in the order of its primary key. With Redis a build that was cut off goes on behind the last checkpoint.
func ExampleCache_BuildFilterFrom() {
	db := newProducts()
	cache, err := tiercache.New(tiercache.Options[int64, string]{
		Name: "products", Load: db.Load,
		Filter: bloom.Options{Capacity: 1000},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = cache.Close() }()

	pages := func(_ context.Context, after string) ([]int64, string, error) {
		var last int64
		if after != "" {
			var err error
			if last, err = strconv.ParseInt(after, 10, 64); err != nil {
				return nil, "", bloom.ErrPlace // of another release: the scan begins anew
			}
		}
		ids := db.IDsAfter(last, 2) // SELECT id FROM products WHERE id > $1 ORDER BY id LIMIT 2
		if len(ids) < 2 {
			return ids, "", nil
		}
		return ids, strconv.FormatInt(ids[1], 10), nil
	}
	report, err := cache.BuildFilterFrom(context.Background(), pages, bloom.BuildOptions{
		Expected: 3,
		Report:   func(p bloom.BuildProgress) { fmt.Println(p.Rows, "of", p.Expected, "rows, left:", p.Left()) },
	})
	fmt.Println(report.Rows, "rows", err)
	// Output:
	// 3 of 3 rows, left: 0s
	// 3 rows <nil>
}

func ExampleCache_Announce() {
	db := newProducts()
	cache := openProducts(db)
	defer func() { _ = cache.Close() }()
	ctx := context.Background()

	_, err := cache.Get(ctx, 4)
	fmt.Println(err) // and so for AbsentTTL, were it not for the announcement
	if err := cache.Announce(ctx, 4); err != nil {
		fmt.Println(err) // do not insert
		return
	}
	if err := db.Write(ctx, 4, "drill"); err != nil {
		fmt.Println(err)
	}
	fmt.Println(cache.Get(ctx, 4))
	// Output:
	// database: read 4
	// tiercache: not found
	// database: write 4
	// database: read 4
	// drill <nil>
}

func ExampleCache_Refresh() {
	cache := openProducts(newProducts())
	defer func() { _ = cache.Close() }()
	ctx := context.Background()

	fmt.Println(cache.Get(ctx, 1))
	fmt.Println(cache.Refresh(ctx, 1)) // although memory has it
	// Output:
	// database: read 1
	// anvil <nil>
	// database: read 1
	// anvil <nil>
}

func ExampleCache_Clear() {
	cache := openProducts(newProducts())
	defer func() { _ = cache.Close() }()
	ctx := context.Background()

	fmt.Println(cache.Get(ctx, 1))
	if err := cache.Clear(ctx); err != nil {
		fmt.Println(err)
	}
	fmt.Println(cache.Get(ctx, 1))
	// Output:
	// database: read 1
	// anvil <nil>
	// database: read 1
	// anvil <nil>
}

func ExampleCache_Stats() {
	cache := openProducts(newProducts())
	defer func() { _ = cache.Close() }()
	ctx := context.Background()

	for range 10 {
		_, _ = cache.Get(ctx, 1)
	}
	_, _ = cache.Get(ctx, 404)
	s := cache.Stats()
	fmt.Println(s.MemoryHits, "memory hits,", s.Misses, "misses,", s.Loads, "loads,", s.LoadErrors, "errors")
	// Output:
	// database: read 1
	// database: read 404
	// 9 memory hits, 2 misses, 2 loads, 0 errors
}

func ExampleCache_Close() {
	cache := openProducts(newProducts())
	fmt.Println(cache.Close())
	_, err := cache.Get(context.Background(), 1)
	fmt.Println(errors.Is(err, tiercache.ErrClosed))
	// Output:
	// <nil>
	// true
}

func ExampleLoadError() {
	down := errors.New("connection refused")
	cache, err := tiercache.New(tiercache.Options[int64, string]{
		Name: "products",
		Load: func(context.Context, int64) (string, error) { return "", down },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = cache.Close() }()

	_, err = cache.Get(context.Background(), 7)
	var failed *tiercache.LoadError
	switch {
	case errors.Is(err, tiercache.ErrNotFound):
		fmt.Println("answer 404")
	case errors.Is(err, tiercache.ErrOverloaded), errors.Is(err, tiercache.ErrBackingOff):
		fmt.Println("answer 503, try again later")
	case errors.As(err, &failed):
		fmt.Println("key", failed.Key, "failed:", failed.Err)
	}
	fmt.Println(errors.Is(err, down))
	// Output:
	// key 7 failed: connection refused
	// true
}

func ExamplePanicError() {
	cache, err := tiercache.New(tiercache.Options[int64, string]{
		Name: "products",
		Load: func(context.Context, int64) (string, error) { panic("out of cheese") },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = cache.Close() }()

	_, err = cache.Get(context.Background(), 1)
	var panicked *tiercache.PanicError
	if errors.As(err, &panicked) {
		fmt.Println(panicked.Value, "with a stack:", len(panicked.Stack) > 0)
	}
	// Output:
	// out of cheese with a stack: true
}

func ExampleErrOverloaded() {
	begun, release := make(chan struct{}), make(chan struct{})
	cache, err := tiercache.New(tiercache.Options[string, string]{
		Name: "slow",
		Load: func(_ context.Context, key string) (string, error) {
			if key == "slow" {
				close(begun)
				<-release
			}
			return "done", nil
		},
		Gate: rebuild.GateOptions{Loads: 1, Waiting: 1, Wait: time.Millisecond}, // so little only for the example
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = cache.Close() }()
	ctx := context.Background()

	var slow sync.WaitGroup
	slow.Go(func() { _, _ = cache.Get(ctx, "slow") })
	<-begun
	_, err = cache.Get(ctx, "other")
	fmt.Println(errors.Is(err, tiercache.ErrOverloaded))
	close(release)
	slow.Wait()
	fmt.Println(cache.Get(ctx, "other"))
	// Output:
	// true
	// done <nil>
}

func ExampleErrBreakerOpen() {
	down := errors.New("connection refused")
	cache, err := tiercache.New(tiercache.Options[int, string]{
		Name:    "products",
		Load:    func(context.Context, int) (string, error) { return "", down },
		Breaker: rebuild.BreakerOptions{MinLoads: 2}, // so few only for the example
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = cache.Close() }()

	for product := range 4 {
		_, err := cache.Get(context.Background(), product)
		fmt.Println(errors.Is(err, down), errors.Is(err, tiercache.ErrBreakerOpen))
	}
	fmt.Println(cache.Stats().SourceBreaker, cache.Stats().Loads)
	// Output:
	// true false
	// true false
	// true true
	// true true
	// 2 2
}

func ExampleHooks() {
	db := newProducts()
	cache, err := tiercache.New(tiercache.Options[int64, string]{
		Name: "products", Load: db.Load,
		Hooks: &tiercache.Hooks{
			Load:        func(_ uint64, _ time.Duration, err error) { fmt.Println("hook: loaded:", err) },
			Invalidated: func(_ uint64, here bool) { fmt.Println("hook: invalidated here:", here) },
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = cache.Close() }()
	ctx := context.Background()

	_, _ = cache.Get(ctx, 1)
	_, _ = cache.Get(ctx, 1) // a hit in memory is told to nobody
	_ = cache.Invalidate(ctx, 1)
	// Output:
	// database: read 1
	// hook: loaded: <nil>
	// hook: invalidated here: true
}

func ExampleOptions_keyString() {
	type place struct{ Street, House string }
	cache, err := tiercache.New(tiercache.Options[place, int]{
		Name:      "places",
		KeyString: func(p place) string { return fmt.Sprintf("%q/%q", p.Street, p.House) },
		Load:      func(_ context.Context, p place) (int, error) { return len(p.Street), nil },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = cache.Close() }()
	fmt.Println(cache.Get(context.Background(), place{"Main Street", "7b"}))
	// Output:
	// 11 <nil>
}

func ExampleTier_String() {
	fmt.Println(tiercache.Memory, tiercache.Shared, tiercache.Source)
	// Output: memory shared source
}

func ExampleErrPending() {
	// A service that wants to know whether every process heard of its write looks for ErrPending; the write itself is done.
	tell := func(err error) {
		switch {
		case errors.Is(err, tiercache.ErrPending):
			fmt.Println("done; other processes will know once Redis can be reached")
		case errors.Is(err, tiercache.ErrNilContext):
			fmt.Println("a mistake in the program")
		case err == nil:
			fmt.Println("done")
		}
	}
	cache := openProducts(newProducts())
	defer func() { _ = cache.Close() }()
	tell(cache.Invalidate(context.Background(), 1))
	// Output: done
}

func ExampleErrGoexit() {
	cache, err := tiercache.New(tiercache.Options[int64, string]{
		Name: "products",
		Load: func(context.Context, int64) (string, error) { runtime.Goexit(); return "", nil },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = cache.Close() }()
	_, err = cache.Get(context.Background(), 1)
	fmt.Println(errors.Is(err, tiercache.ErrGoexit))
	// Output: true
}

func ExampleEntry() {
	cache := openProducts(newProducts())
	defer func() { _ = cache.Close() }()
	var entry tiercache.Entry[string]
	for range 2 {
		entry, _ = cache.GetEntry(context.Background(), 1)
		fmt.Println(entry.Value, entry.Stale, entry.Tier)
	}
	// Output:
	// database: read 1
	// anvil false source
	// anvil false memory
}

func ExampleStats() {
	cache := openProducts(newProducts())
	defer func() { _ = cache.Close() }()
	rate := func(s tiercache.Stats) float64 { return float64(s.MemoryHits) / float64(s.MemoryHits+s.Misses) }
	for range 4 {
		_, _ = cache.Get(context.Background(), 1)
	}
	fmt.Println("answered from memory:", rate(cache.Stats()))
	// Output:
	// database: read 1
	// answered from memory: 0.75
}

func ExampleErrInvalidKey() {
	ctx := context.Background()
	users, err := tiercache.New(tiercache.Options[int, string]{
		Name:     "users",
		ValidKey: func(id int) bool { return id > 0 },
		Load:     func(context.Context, int) (string, error) { return "Ann", nil },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = users.Close() }()

	_, err = users.Get(ctx, -1) // neither Redis nor the source is asked
	fmt.Println(errors.Is(err, tiercache.ErrNotFound), errors.Is(err, tiercache.ErrInvalidKey), users.Stats().Loads)
	// Output: true true 0
}
