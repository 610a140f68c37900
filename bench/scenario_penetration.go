package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/bloom"
	"github.com/tiercache/tiercache/rebuild"
)

// Penetration: nine of ten requests are for keys that do not exist, each of them new, as fast as 64 callers get answers; the tenth is for
// rows that do, by Zipf 0.99, and memory has room for a fifth of those. The source has eight workers of 2 ms. Four runs: the rows alone, the flood
// with a filter in memory, with one in Redis, and without.
//
// What reaches the source of the absent keys is held against the rate that the filter was asked for; what the rows lose is their hits in
// memory with the flood and without. What Redis gains are keys that name an absent one, of which there are to be none: nobody asks for one
// twice. What else it gains, by DBSIZE, are a few keys of fixed names, such as those for the fleet's hot keys. The budget of misses is of slots,
// over time: one absent key in five thousand is taken for a row that is known and is loaded beside it, so the most at once may be a few more.
//
// What misleads: the callers wait for their answers, so the flood without a filter is as fast as the cache lets it be. That is what a
// cache can do about it.

const (
	floodCallers = 64
	floodRows    = 20_000
	floodRate    = 0.01 // of the filter
	floodGate    = 40
	floodMisses  = 4 // Gate.Absent's default of a gate of 40
	floodWarmUp  = time.Second
	floodAbsent  = "none-" // begins the names of absent keys
)

// floodRun is one run's figures, of the time after its warm-up.
type floodRun struct {
	absent, rows    float64 // requests
	asked           float64 // absent keys that reached the source
	mean            float64 // of them at once
	most            int64
	refused, failed float64 // requests for rows: refused by the gate; other errors
	hits            float64 // share of the requests for rows that memory answered
	waits           []float64
	gained, others  float64  // keys in Redis: that name an absent key, and all others
	steps           []sample // of absent keys, rows, absent keys that reached the source, hits in memory
}

// floodCounts are the requests that each caller has made, for absent keys and for rows. Callers count in places of their own.
type floodCounts [floodCallers]struct {
	absent, rows atomic.Int64
	_            [48]byte
}

func (c *floodCounts) sum() (absent, rows float64) {
	for i := range c {
		absent += float64(c[i].absent.Load())
		rows += float64(c[i].rows.Load())
	}
	return absent, rows
}

func penetration(ctx context.Context, e *env) ([]Row, error) {
	lasts := pick(e, 10*time.Second, time.Second)
	filter := bloom.Options{Capacity: floodRows, FalsePositiveRate: floodRate}
	calm, err := flood(ctx, e, lasts, false, bloom.Options{})
	if err != nil {
		return nil, err
	}
	filtered, err := flood(ctx, e, lasts, true, filter)
	if err != nil {
		return nil, err
	}
	filter.Form = bloom.InRedis
	inRedis, err := flood(ctx, e, lasts, true, filter)
	if err != nil {
		return nil, err
	}
	bare, err := flood(ctx, e, lasts, true, bloom.Options{})
	if err != nil {
		return nil, err
	}
	e.plot(floodCurves(calm, filtered, inRedis, bare)...)
	detail := func(r *floodRun) string {
		return fmt.Sprintf("of %.0f absent keys; %.0f requests for rows beside them", r.absent, r.rows)
	}
	others := func(r *floodRun) string { return fmt.Sprintf("beside %.0f of fixed names", r.others) }
	p99 := func(r *floodRun) float64 { return quantile(r.waits, 0.99) }
	with := func(name string, r *floodRun) []Row {
		return []Row{
			valueRow(name+": absent keys that reach the source", 100*r.asked/max(r.absent, 1), "%", atMost(100*1.2*floodRate), detail(r)),
			valueRow(name+": hits in memory that the rows lose", 100*(calm.hits-r.hits), "points", atMost(2), fmt.Sprintf("%.1f %% without the flood", 100*calm.hits)),
			valueRow(name+": absent keys that Redis gains", r.gained, "", atMost(0), others(r)),
			valueRow(name+": requests for rows that failed", r.failed+r.refused, "", atMost(0), ""),
		}
	}
	return append(append(with("with a filter", filtered), with("with one in Redis", inRedis)...), []Row{
		valueRow("without: absent keys loaded at once, mean", bare.mean, "", atMost(floodMisses), fmt.Sprintf("gate of %d, at most %d; %s", floodGate, bare.most, detail(bare))),
		valueRow("without: hits in memory that the rows lose", 100*(calm.hits-bare.hits), "points", budget{}, ""),
		valueRow("without: requests for rows that failed", bare.failed+bare.refused, "", atMost(0), fmt.Sprintf("%.0f of them refused", bare.refused)),
		valueRow("without: absent keys that Redis gains", bare.gained, "", atMost(0), fmt.Sprintf("of %.0f absent keys that were loaded; %s", bare.asked, others(bare))),
		valueRow("99th percentile of the rows: calm", p99(calm), "ms", budget{}, ""),
		valueRow("99th percentile of the rows: with a filter", p99(filtered), "ms", budget{}, ""),
		valueRow("99th percentile of the rows: with one in Redis", p99(inRedis), "ms", budget{}, ""),
		valueRow("99th percentile of the rows: without", p99(bare), "ms", budget{}, ""),
	}...), nil
}

// flood is one run: of rows alone, or of nine absent keys for each.
func flood(ctx context.Context, e *env, lasts time.Duration, flooded bool, filter bloom.Options) (_ *floodRun, err error) {
	isRow := func(key string) (string, bool) { return "row of " + key, strings.HasPrefix(key, "row-") }
	src := newSource(sourceOptions{workers: 8, mean: 2 * time.Millisecond, spread: 0.5, seed: 1, row: isRow, missing: tiercache.ErrNotFound})
	defer src.close()
	var free atomic.Bool
	var running, most, busy atomic.Int64
	o := tiercache.Options[string, string]{
		Name: fmt.Sprintf("flood-%v-%v-%v", flooded, filter.Enabled(), filter.Form), MemoryBytes: 1 << 20, Filter: filter,
		Gate:   rebuild.GateOptions{Loads: floodGate},
		Logger: slog.New(slog.DiscardHandler),
		Load: func(ctx context.Context, key string) (string, error) {
			if free.Load() {
				return "row of " + key, nil
			}
			if !strings.HasPrefix(key, "row-") {
				for now, m := running.Add(1), most.Load(); now > m && !most.CompareAndSwap(m, now); m = most.Load() {
				}
				began := time.Now()
				defer func() {
					busy.Add(int64(time.Since(began)))
					running.Add(-1)
				}()
			}
			return src.load(ctx, key)
		},
	}
	shared, stop, err := connect(ctx, e.server.addr)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	o.Shared = shared
	cache, err := tiercache.New(o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, cache.Close()) }()
	rows := make([]string, floodRows)
	for i := range rows {
		rows[i] = fmt.Sprint("row-", i)
	}
	if filter.Enabled() {
		if _, err := cache.BuildFilter(ctx, existing(rows), bloom.BuildOptions{}); err != nil {
			return nil, err
		}
	}
	free.Store(true)
	for i := 0; i < len(rows); i += 500 {
		if _, err := cache.GetMany(ctx, rows[i:i+500]); err != nil {
			return nil, err
		}
	}
	free.Store(false)
	rdb := redis.NewClient(&redis.Options{Addr: e.server.addr})
	defer rdb.Close() //nolint:errcheck // reads only

	counts := &floodCounts{}
	if _, err := counts.ask(ctx, cache, rows, floodWarmUp, flooded); err != nil {
		return nil, err
	}
	src.reset()
	most.Store(0)
	busy.Store(0)
	began := time.Now()
	before, keys := cache.Stats(), rdb.DBSize(ctx).Val()
	known, err := absentInRedis(ctx, rdb)
	if err != nil {
		return nil, err
	}
	counts = &floodCounts{}
	watch := startSampler(pick(e, time.Second, 100*time.Millisecond), func() []float64 {
		absent, present := counts.sum()
		return []float64{absent, present, float64(src.stats().absent), float64(cache.Stats().MemoryHits)}
	})
	out, err := counts.ask(ctx, cache, rows, lasts, flooded)
	steps := watch.stop()
	if err != nil {
		return nil, err
	}
	out.steps = slices.DeleteFunc(steps, func(s sample) bool { return s.at-s.lasted >= lasts }) // of the last answers alone
	out.mean = time.Duration(busy.Load()).Seconds() / time.Since(began).Seconds()
	out.most = most.Load()
	now, err := absentInRedis(ctx, rdb)
	if err != nil {
		return nil, err
	}
	out.gained = float64(now - known)
	out.others = float64(rdb.DBSize(ctx).Val()-keys) - out.gained
	if flooded {
		out.asked = float64(src.stats().absent)
	}
	out.hits = float64(cache.Stats().MemoryHits-before.MemoryHits) / max(out.rows, 1)
	return out, nil
}

// absentInRedis is the number of Redis' keys that name an absent key.
func absentInRedis(ctx context.Context, rdb *redis.Client) (n int, _ error) {
	for cursor := uint64(0); ; {
		keys, next, err := rdb.Scan(ctx, cursor, "*"+floodAbsent+"*", 10_000).Result()
		if err != nil {
			return 0, err
		}
		n += len(keys)
		if cursor = next; cursor == 0 {
			return n, nil
		}
	}
}

// floodCurves are the share of absent keys that reaches the source and the share of the rows that memory answers, over time.
func floodCurves(calm, filtered, inRedis, bare *floodRun) []Series {
	share := func(r *floodRun, s Series, part, of int) Series {
		for _, step := range r.steps {
			if step.grown[of] > 0 {
				s.add((step.at - step.lasted).Seconds(), 100*step.grown[part]/step.grown[of])
			}
		}
		return s
	}
	const absent, rows, asked, hits = 0, 1, 2, 3
	reach := Series{What: "absent keys at the source", Unit: "% of those asked for", XUnit: "s of the flood"}
	kept := Series{What: "hits of rows in memory", Unit: "% of the requests for rows", XUnit: "s of the flood"}
	named := func(s Series, subject string) Series { s.Subject = subject; return s }
	return []Series{
		share(filtered, named(reach, "with a filter"), asked, absent),
		share(inRedis, named(reach, "with one in Redis"), asked, absent),
		share(bare, named(reach, "without"), asked, absent),
		reach.boundAt(100*1.2*floodRate, fmt.Sprintf("budget with a filter: 1.2 × %s %%", number(100*floodRate))),
		share(filtered, named(kept, "with a filter"), hits, rows),
		share(inRedis, named(kept, "with one in Redis"), hits, rows),
		share(bare, named(kept, "without"), hits, rows),
		share(calm, named(kept, "no flood"), hits, rows),
		kept.boundAt(100*calm.hits-2, "budget with a filter: 2 points below no flood"),
	}
}

// existing is keys as a scan gives them.
func existing(keys []string) func(yield func(string, error) bool) {
	return func(yield func(string, error) bool) {
		for _, k := range keys {
			if !yield(k, nil) {
				return
			}
		}
	}
}

// ask has all callers ask for so long.
func (c *floodCounts) ask(ctx context.Context, cache *tiercache.Cache[string, string], rows []string, lasts time.Duration, flooded bool) (*floodRun, error) {
	popular := zipf(len(rows), 0.99)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex
	var done sync.WaitGroup
	sum := &floodRun{}
	var wrong error
	end := time.Now().Add(lasts)
	for w := range floodCallers {
		done.Go(func() {
			random := rand.New(rand.NewPCG(uint64(w), uint64(end.UnixNano()))) //nolint:gosec // a workload, not a secret
			own := floodRun{}
			for time.Now().Before(end) && ctx.Err() == nil {
				if flooded && random.IntN(10) > 0 {
					c[w].absent.Add(1)
					if v, err := cache.Get(ctx, fmt.Sprint(floodAbsent, random.Uint64())); err == nil {
						mu.Lock()
						wrong = fmt.Errorf("an absent key has the row %q", v)
						mu.Unlock()
					}
					continue
				}
				c[w].rows.Add(1)
				began := time.Now()
				_, err := cache.Get(ctx, rows[popular.draw(random)])
				own.waits = append(own.waits, time.Since(began).Seconds()*1e3)
				switch {
				case errors.Is(err, tiercache.ErrOverloaded):
					own.refused++
				case err != nil:
					own.failed++
				}
			}
			mu.Lock()
			defer mu.Unlock()
			sum.refused += own.refused
			sum.failed += own.failed
			sum.waits = append(sum.waits, own.waits...)
		})
	}
	done.Wait()
	sum.absent, sum.rows = c.sum()
	return sum, errors.Join(wrong, context.Cause(ctx))
}
