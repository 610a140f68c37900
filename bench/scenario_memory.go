package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/ristretto/v2"

	"github.com/tiercache/tiercache"
)

// The memory hit. Three workloads, because they cost differently: over 10,000 keys with a Zipf distribution (s = 1.01) most reads are
// of keys that the processor's caches hold; with 100,000 (s = 1.1) the tail is fetched from memory; a uniform choice among 100,000
// is the worst case and no traffic that a cache is for. All keys are resident in every subject, so a hit is what is measured, not a
// hit ratio. Values are pointers, so no subject copies.
//
// What misleads: ristretto with a TTL reads the clock on each hit and is slower by half or twice; most caches in use do set one, but
// the budget is against the faster, which keeps for ever. Keys are drawn beforehand: drawing them costs more than a hit. The budget
// against ristretto with a TTL is judged on the Zipf workload over 10,000 keys, where the shared cost of memory access hides least.

// residentKey is what both caches take as a key here.
type residentKey interface{ string | int64 }

// record is a value of the size of a product: eleven fields.
type record struct {
	ID, Cents, Sold, Stock, Weight int64
	Name, Brand, Category, Text    string
	Created, Changed               time.Time
}

// drawn is how many keys are drawn beforehand: enough to touch most of 100,000, few enough not to be the working set itself.
const drawn = 1 << 18

// traffic is one workload: how often which of n keys is read.
type traffic struct {
	name string
	n    int
	zipf float64 // 0: uniform
	raw  budget  // against ristretto without a TTL
	ttl  budget  // against ristretto with one
}

var traffics = []traffic{
	{name: "Zipf over 10,000", n: 10_000, zipf: 1.01, raw: atMost(0.7), ttl: atMost(0.4)},
	{name: "Zipf 1.1 over 100,000", n: 100_000, zipf: 1.1, raw: atMost(0.95)},
	{name: "uniform over 100,000", n: 100_000, raw: atMost(1.4)},
}

func memoryHit(ctx context.Context, e *env) ([]Row, error) {
	var rows []Row
	for _, t := range traffics {
		r, err := memoryRows(ctx, e, t, "string", func(i int) string { return fmt.Sprintf("product:%08d", i) })
		if err != nil {
			return nil, err
		}
		rows = append(rows, r...)
		r, err = memoryRows(ctx, e, t, "int64", func(i int) int64 { return int64(i) })
		if err != nil {
			return nil, err
		}
		rows = append(rows, r...)
	}
	return rows, nil
}

// memoryRows measures one workload with one type of key, by one goroutine and by as many as there are processors.
func memoryRows[K residentKey](ctx context.Context, e *env, t traffic, keyType string, key func(int) K) (_ []Row, err error) {
	keys := make([]K, t.n)
	for i := range keys {
		keys[i] = key(i)
	}
	sequence := draw(keys, t.zipf)
	var misses atomic.Int64

	cache, loads, err := residentCache(ctx, keys)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, cache.Close()) }()
	plain, err := residentRistretto(keys, 0)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	withTTL, err := residentRistretto(keys, time.Hour)
	if err != nil {
		return nil, err
	}
	defer withTTL.Close()

	background := context.Background() // what a caller without a deadline gives; measured as given
	ours := reading("tiercache", sequence, func(k K) {
		if v, err := cache.Get(background, k); err != nil || v == nil {
			misses.Add(1)
		}
	})
	raw := reading("ristretto", sequence, func(k K) {
		if v, ok := plain.Get(k); !ok || v == nil {
			misses.Add(1)
		}
	})
	ttl := reading("ristretto with TTL", sequence, func(k K) {
		if v, ok := withTTL.Get(k); !ok || v == nil {
			misses.Add(1)
		}
	})

	var rows []Row
	before := loads.Load()
	for _, mode := range []struct {
		name    string
		workers int
	}{{"one goroutine", 1}, {"parallel", runtime.GOMAXPROCS(0)}} {
		all, err := interleave(ctx, e.plan(mode.workers, 512), ours, raw, ttl)
		if err != nil {
			return nil, err
		}
		what := fmt.Sprintf("%s keys, %s, %s", keyType, t.name, mode.name)
		detail := fmt.Sprintf("%.1f ns against %.1f", median(all[0].ns), median(all[1].ns))
		rows = append(rows,
			ratioRow(what+": × ristretto", over(all[0], all[1]), t.raw, detail),
			ratioRow(what+": × ristretto with TTL", over(all[0], all[2]), t.ttl, fmt.Sprintf("against %.1f ns", median(all[2].ns))),
			allocsRow(what, all[0]))
	}
	if n, m := loads.Load()-before, misses.Load(); n > 0 || m > 0 {
		return nil, fmt.Errorf("%s keys, %s: not all reads were hits (%d loads, %d misses)", keyType, t.name, n, m)
	}
	return rows, nil
}

// allocsRow counts whole allocations per operation, as go test -benchmem does: what the caches do once in some thousand hits
// (ristretto hands full buffers to its policy) rounds to nothing there and here.
func allocsRow(what string, s series) Row {
	return valueRow(what+": allocations a hit", float64(int64(s.allocsPerOp())), "", atMost(0), fmt.Sprintf("%.4f before rounding down, as go test does", s.allocsPerOp()))
}

// reading is the subject that reads the keys of sequence, each worker from a place of its own: at random, because workers at a fixed
// distance may walk the same keys in step, and who shares replies among callers would be flattered.
func reading[K any](name string, sequence []K, get func(K)) subject {
	type place struct {
		at int
		_  [56]byte // one cache line a worker
	}
	places := make([]place, 1024)
	random := rand.New(rand.NewPCG(3, 4))
	for w := range places {
		places[w].at = random.IntN(drawn)
	}
	return subject{name, func(worker, n int) {
		at := places[worker].at
		for range n {
			get(sequence[at%drawn])
			at++
		}
		places[worker].at = at
	}}
}

// draw returns drawn keys in the order in which they are read. Ranks are shuffled: neighbours in rank are none in memory.
func draw[K any](keys []K, s float64) []K {
	random := rand.New(rand.NewPCG(1, 2))
	ranks := random.Perm(len(keys))
	rank := func() int { return random.IntN(len(keys)) }
	if s > 0 {
		zipf := rand.NewZipf(random, s, 1, uint64(len(keys)-1))
		rank = func() int { return int(zipf.Uint64()) }
	}
	sequence := make([]K, drawn)
	for i := range sequence {
		sequence[i] = keys[ranks[rank()]]
	}
	return sequence
}

// residentCache returns a cache of this process that holds all keys, and its count of loads.
func residentCache[K residentKey](ctx context.Context, keys []K) (*tiercache.Cache[K, *record], *atomic.Int64, error) {
	loads := &atomic.Int64{}
	cache, err := tiercache.New(tiercache.Options[K, *record]{
		Name:        "resident",
		MemoryBytes: 512 << 20,
		TTL:         time.Hour, // nothing expires during the run
		SizeOf:      func(K, *record) int { return 300 },
		Load: func(context.Context, K) (*record, error) {
			loads.Add(1)
			return &record{ID: loads.Load()}, nil
		},
	})
	if err != nil {
		return nil, nil, err
	}
	for pass := 0; pass < 5; pass++ {
		before := loads.Load()
		for _, k := range keys {
			if _, err := cache.Get(ctx, k); err != nil {
				return nil, nil, errors.Join(err, cache.Close())
			}
		}
		if loads.Load() == before {
			return cache, loads, nil
		}
	}
	return nil, nil, errors.Join(errors.New("the cache does not keep what fits into it"), cache.Close())
}

// residentRistretto returns a ristretto that holds all keys, for ttl; 0: for ever.
func residentRistretto[K residentKey](keys []K, ttl time.Duration) (*ristretto.Cache[K, *record], error) {
	cache, err := ristretto.NewCache(&ristretto.Config[K, *record]{
		NumCounters:        int64(10 * len(keys)), // as its documentation advises
		MaxCost:            int64(2 * len(keys)),
		BufferItems:        64,
		IgnoreInternalCost: true,
	})
	if err != nil {
		return nil, err
	}
	for pass := 0; pass < 5; pass++ { // it may drop a Set
		missing := 0
		for i, k := range keys {
			if _, ok := cache.Get(k); !ok {
				missing++
				cache.SetWithTTL(k, &record{ID: int64(i)}, 1, ttl)
			}
		}
		cache.Wait()
		if missing == 0 {
			return cache, nil
		}
	}
	cache.Close()
	return nil, errors.New("ristretto does not keep what fits into it")
}
