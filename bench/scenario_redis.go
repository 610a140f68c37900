package bench

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/layers"
)

// The Redis hit: memory is off, so every Get asks Redis. All subjects read the same keys, 10,000 of them, uniformly, and so the same
// bytes: a value of 300 with our envelope around it. The rivals hand those bytes to their caller undecoded; ours checks the envelope
// and asks for the server's time besides. Uniform keys, so that hardly two callers ask for the same one at once and sharing a reply
// gives ours nothing.
//
// What misleads: with one goroutine a round trip takes 26 or 100 µs by where the scheduler puts client and server, the same for all
// within a slice at best; the batcher makes a lone caller hand over to another goroutine, which is what its figure at 1 shows. Client
// and server share the processors here: what the client saves, the server gains.

const (
	hitKeys  = 10_000
	hitBytes = 300
)

// hitMode is one line of the comparison: so many goroutines, and the budgets against plain GET, rueidis and the batcher.
type hitMode struct {
	name                   string
	goroutines             int
	cancellable            bool
	plain, rueidis, batchr budget
}

var hitModes = []hitMode{
	{name: "1 goroutine", goroutines: 1, plain: atLeast(0.9)},
	{name: "1 goroutine, cancellable context", goroutines: 1, cancellable: true, plain: atLeast(0.75)},
	{name: "8 goroutines", goroutines: 8, plain: atLeast(1), batchr: atLeast(0.8)},
	{name: "64 goroutines", goroutines: 64, plain: atLeast(4.5), rueidis: atLeast(2), batchr: atLeast(0.8)},
	{name: "256 goroutines", goroutines: 256, plain: atLeast(9), rueidis: atLeast(2), batchr: atLeast(0.8)},
}

func redisHit(ctx context.Context, e *env) (_ []Row, err error) {
	var loads, wrong atomic.Int64
	value := strings.Repeat("v", hitBytes)
	shared, stop, err := connect(ctx, e.server.addr)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	cache, err := tiercache.New(tiercache.Options[string, string]{
		Name:      "hit",
		Shared:    shared,
		MemoryTTL: -1,
		TTL:       time.Hour,
		LoadMany: func(_ context.Context, keys []string) (map[string]string, error) {
			loads.Add(int64(len(keys)))
			rows := make(map[string]string, len(keys))
			for _, k := range keys {
				rows[k] = value
			}
			return rows, nil
		},
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, cache.Close()) }()

	plain := redis.NewClient(&redis.Options{Addr: e.server.addr, ContextTimeoutEnabled: true})
	defer plain.Close() //nolint:errcheck // reads only
	batched := redis.NewClient(&redis.Options{Addr: e.server.addr, ContextTimeoutEnabled: true})
	defer batched.Close() //nolint:errcheck // reads only
	bare := &batcher{rdb: batched}
	rue, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{e.server.addr}, DisableCache: true})
	if err != nil {
		return nil, err
	}
	defer rue.Close()

	keys, inRedis, err := fillHits(ctx, cache, plain)
	if err != nil {
		return nil, err
	}
	sequence, raw := draw(keys, 0), draw(inRedis, 0)
	filled := loads.Load()

	var rows []Row
	for _, mode := range hitModes {
		asking := context.Background() // never done: what tells the cancellable mode apart
		if mode.cancellable {
			cancellable, cancel := context.WithCancel(ctx)
			defer cancel()
			asking = cancellable
		}
		check := func(v string, err error, size int) {
			if err != nil || len(v) < size {
				wrong.Add(1)
			}
		}
		all, err := interleave(ctx, e.plan(mode.goroutines, 1),
			reading("tiercache", sequence, func(k string) {
				v, err := cache.Get(asking, k)
				check(v, err, hitBytes)
			}),
			reading("go-redis GET", raw, func(k string) {
				v, err := plain.Get(asking, k).Result()
				check(v, err, hitBytes)
			}),
			reading("rueidis GET", raw, func(k string) {
				v, err := rue.Do(asking, rue.B().Get().Key(k).Build()).ToString()
				check(v, err, hitBytes)
			}),
			reading("batcher", raw, func(k string) {
				v, err := bare.get(k)
				check(v, err, hitBytes)
			}))
		if err != nil {
			return nil, err
		}
		rows = append(rows, hitRows(mode, all)...)
	}
	if n := loads.Load() - filled; n > 0 || wrong.Load() > 0 {
		return nil, fmt.Errorf("not all reads were hits: %d loads, %d wrong answers", n, wrong.Load())
	}
	return rows, nil
}

func hitRows(mode hitMode, all []series) []Row {
	ours, plain, rue, bare := all[0], all[1], all[2], all[3]
	return []Row{
		ratioRow(mode.name+": × go-redis GET", over(plain, ours), mode.plain,
			fmt.Sprintf("%.1f µs against %.1f; %.0f allocations and %.0f B against %.0f and %.0f", median(ours.ns)/1e3, median(plain.ns)/1e3,
				ours.allocsPerOp(), ours.bytesPerOp(), plain.allocsPerOp(), plain.bytesPerOp())),
		ratioRow(mode.name+": × rueidis", over(rue, ours), mode.rueidis, fmt.Sprintf("against %.1f µs", median(rue.ns)/1e3)),
		ratioRow(mode.name+": × bare MGET batcher", over(bare, ours), mode.batchr, fmt.Sprintf("against %.1f µs", median(bare.ns)/1e3)),
	}
}

// fillHits puts all keys into Redis through the cache. It returns them, and the keys under which Redis has them (the grammar is part of
// the wire's contract), and fails if they are not there.
func fillHits(ctx context.Context, cache *tiercache.Cache[string, string], rdb *redis.Client) (keys, inRedis []string, err error) {
	for i := range hitKeys {
		keys = append(keys, fmt.Sprintf("product-%06d", i))
		inRedis = append(inRedis, prefix+":hit:{"+keys[i]+"}")
	}
	for i := 0; i < hitKeys; i += 500 {
		if _, err := cache.GetMany(ctx, keys[i:i+500]); err != nil {
			return nil, nil, err
		}
		n, err := rdb.Exists(ctx, inRedis[i:i+500]...).Result()
		if err != nil {
			return nil, nil, err
		}
		if n != 500 {
			return nil, nil, fmt.Errorf("of 500 keys filled through the cache Redis holds %d under the names expected", n)
		}
	}
	return keys, inRedis, nil
}

// prefix is that of all caches here.
const prefix = "bench"

// connect returns a shared tier over a client of its own, and what closes both.
func connect(ctx context.Context, addr string, hooks ...redis.Hook) (*layers.Redis, func() error, error) {
	return connectWith(ctx, addr, layers.RedisOptions{}, hooks...)
}

// patience are budgets for scenarios that only count: a machine that stands still for a moment is no fault of Redis there.
var patience = layers.RedisOptions{ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second}

// connectWith is connect with options of the tier; their Prefix is prefix.
func connectWith(ctx context.Context, addr string, o layers.RedisOptions, hooks ...redis.Hook) (*layers.Redis, func() error, error) {
	o.Prefix = prefix
	// With ContextTimeoutEnabled a lone read may go on its caller's goroutine: docs/adr/0007. All go-redis clients here have it.
	rdb := redis.NewClient(&redis.Options{Addr: addr, ContextTimeoutEnabled: true})
	for _, h := range hooks {
		rdb.AddHook(h)
	}
	shared, err := layers.NewRedis(ctx, rdb, o)
	if err != nil {
		return nil, nil, errors.Join(err, rdb.Close())
	}
	return shared, func() error { return errors.Join(shared.Close(), rdb.Close()) }, nil
}
