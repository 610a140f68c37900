package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"

	"github.com/redis/go-redis/v9"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/bloom"
)

// A filter in Redis, asked for keys that no row has: FilterFirst, so that the question is all that an absent key costs. Against the GET that a
// cache without a filter would spend on it. Who asks while others are being answered shares the next round trip, which is what many goroutines show.
//
// What misleads: the question reads some twelve bits and three words of a segment, a GET of a missing key nothing; both are the server's work, which
// shares the processors with the client here.

func filterInRedis(ctx context.Context, e *env) (_ []Row, err error) {
	n := pick(e, 1_000_000, 20_000)
	shared, stop, err := connect(ctx, e.server.addr)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	var loads atomic.Int64
	cache, err := tiercache.New(tiercache.Options[string, string]{
		Name: "filterredis", Shared: shared, Logger: slog.New(slog.DiscardHandler),
		Filter: bloom.Options{Capacity: uint64(n), FalsePositiveRate: 0.01, Form: bloom.InRedis}, FilterFirst: true, FilterAudit: -1,
		Load: func(context.Context, string) (string, error) {
			loads.Add(1)
			return "", tiercache.ErrNotFound
		},
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, cache.Close()) }()
	build, err := cache.BuildFilter(ctx, filterKeys(n), bloom.BuildOptions{})
	if err != nil {
		return nil, err
	}
	plain := redis.NewClient(&redis.Options{Addr: e.server.addr, ContextTimeoutEnabled: true})
	defer plain.Close() //nolint:errcheck // reads only
	absent, asked := make([]string, 0, drawn), 0
	for i := n; len(absent) < cap(absent) && ctx.Err() == nil; asked++ {
		key := filterKey(i + asked)
		before := loads.Load()
		if _, err := cache.Get(ctx, key); !errors.Is(err, tiercache.ErrNotFound) {
			return nil, fmt.Errorf("an absent key was answered with: %w", err)
		}
		if loads.Load() == before { // else it is a false positive, and memory answers it from now on
			absent = append(absent, key)
		}
		if len(absent) == pick(e, 20_000, 2000) {
			break
		}
	}
	passed := float64(loads.Load())
	sequence := draw(absent, 0)
	rows := []Row{
		valueRow("absent keys that pass", 100*passed/float64(asked), "%", pick(e, atMost(1.2), budget{}), fmt.Sprintf("of %d; 1 %% asked for", asked)),
		valueRow("build", float64(build.Rows)/build.Took.Seconds(), "rows/s", budget{}, fmt.Sprintf("%d rows", build.Rows)),
	}
	for _, goroutines := range []int{1, 64} {
		all, err := interleave(ctx, e.plan(goroutines, 1),
			reading("tiercache", sequence, func(k string) { _, _ = cache.Get(context.Background(), k) }),
			reading("go-redis GET", sequence, func(k string) { _ = plain.Get(context.Background(), k).Err() }))
		if err != nil {
			return nil, err
		}
		ours, get := all[0], all[1]
		rows = append(rows, ratioRow(fmt.Sprintf("%d goroutines: × go-redis GET", goroutines), over(get, ours), budget{},
			fmt.Sprintf("%.1f µs against %.1f, which finds nothing", median(ours.ns)/1e3, median(get.ns)/1e3)))
	}
	if now := float64(loads.Load()); now > passed {
		return nil, fmt.Errorf("%.0f keys passed that the filter had called absent", now-passed)
	}
	return rows, nil
}
