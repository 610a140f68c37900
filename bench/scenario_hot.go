package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tiercache/tiercache"
)

// The hot key: four instances with a memory of 1 MiB each, which 100,000 rows asked for evenly thrash, by four callers each, as fast as they get
// answers. After two seconds every other request is for one key that nobody asked for before. What counts is how long it takes until every
// instance keeps it whatever else is read, and how often Redis is asked for it from then on: at most once an instance in each MemoryTTL, as
// MONITOR tells.
//
// What misleads: the policy of memory keeps a key that is read so often by itself, mostly. The pin is what makes it certain; the budget of reads
// cannot tell the two apart, the time until it is pinned can.

const (
	hotInstances = 4
	hotCallers   = 4
	hotOthers    = 100_000
	hotMemoryTTL = 2 * time.Second
	hotFrom      = 2 * time.Second // after the load begins
	hotSettled   = 3 * time.Second // after that Redis' commands are counted
	hotName      = "hot-one"
	hotTag       = "{" + hotName + "}"    // in the names of its keys in Redis: what instances tell of their hot keys names it too, without
	hotStep      = 500 * time.Millisecond // of the picture
)

func hotKey(ctx context.Context, e *env) (_ []Row, err error) {
	var caches [hotInstances]*tiercache.Cache[string, string]
	trips := &tripCounter{needle: hotTag}
	for i := range caches {
		shared, stop, err := connect(ctx, e.server.addr, trips)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, stop()) }()
		caches[i], err = tiercache.New(tiercache.Options[string, string]{
			Name: "hot", Shared: shared, MemoryBytes: 1 << 20, MemoryTTL: hotMemoryTTL, Logger: slog.New(slog.DiscardHandler),
			Load: func(_ context.Context, key string) (string, error) { return "row of " + key, nil },
		})
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, caches[i].Close()) }()
	}
	rows := make([]string, hotOthers)
	for i := range rows {
		rows[i] = fmt.Sprint("row-", i)
	}
	for some := range slices.Chunk(rows, 1000) { // into Redis, so that the load is on it and not on the source
		if _, err := caches[0].GetMany(ctx, some); err != nil {
			return nil, err
		}
	}

	reading := startSampler(hotStep, func() []float64 { return []float64{float64(trips.n.Load())} })
	counted := pick(e, 16*time.Second, 4*time.Second)
	end := time.Now().Add(hotFrom + hotSettled + counted)
	heat := time.Now().Add(hotFrom)
	var done sync.WaitGroup
	var asked atomic.Int64
	failed := make([]error, hotInstances*hotCallers)
	for w := range failed {
		done.Go(func() {
			random := rand.New(rand.NewPCG(uint64(w), 9)) //nolint:gosec // a workload, not a secret
			for n := 0; time.Now().Before(end) && failed[w] == nil && ctx.Err() == nil; n++ {
				name := rows[random.IntN(len(rows))]
				if n%2 == 0 && time.Now().After(heat) {
					name = hotName
					asked.Add(1)
				}
				_, failed[w] = caches[w%hotInstances].Get(ctx, name)
			}
		})
	}
	after := hotPinnedAfter(ctx, caches[:], heat, end)
	time.Sleep(time.Until(heat.Add(hotSettled)))
	reads, from, err := hotCommands(ctx, e, end)
	done.Wait()
	steps := reading.stop()
	if err := errors.Join(err, errors.Join(failed...), context.Cause(ctx)); err != nil {
		return nil, err
	}
	e.plot(hotCurves(steps, heat.Sub(reading.began), after)...)
	rate := float64(asked.Load()) / time.Since(heat).Seconds() / hotInstances
	return []Row{
		valueRow("until it is pinned in every instance", after.Seconds(), "s", atMost(2), fmt.Sprintf("from its first request on; %.0f requests a second of an instance", rate)),
		valueRow("Redis commands for it", reads, "", atMost(float64(hotInstances*(1+from/hotMemoryTTL))),
			fmt.Sprintf("in %v, as many as %d instances can send that do so once in %v; %.2f a second", from.Round(time.Millisecond), hotInstances, hotMemoryTTL, reads/from.Seconds())),
	}, nil
}

// hotCurves are the round trips of all instances for the key, as their clients count them: MONITOR would slow down what is measured. Each
// instance reads it once in a MemoryTTL, all of them at about the same moment, so a point is the mean of that time before it.
func hotCurves(steps []sample, heat, after time.Duration) []Series {
	reads := Series{Subject: "round trips for the key", What: "what Redis sees of the hot key", Unit: "a second, all instances", XUnit: fmt.Sprintf("s, each point of the %v before it", hotMemoryTTL)}
	for i, s := range steps {
		var trips, during float64
		for _, before := range steps[max(0, i+1-int(hotMemoryTTL/hotStep)) : i+1] {
			trips, during = trips+before.grown[0], during+before.lasted.Seconds()
		}
		reads.add(s.at.Seconds(), trips/during)
	}
	most := hotInstances / hotMemoryTTL.Seconds()
	return []Series{
		reads, reads.boundAt(most, fmt.Sprintf("budget: instances ÷ MemoryTTL = %s", number(most))),
		reads.momentAt(heat.Seconds(), "half of all requests"), reads.momentAt((heat + after).Seconds(), "pinned in every instance"),
	}
}

// hotCommands counts the commands for the key that Redis is sent until end. MONITOR slows a server down: it runs only then.
func hotCommands(ctx context.Context, e *env, end time.Time) (n float64, during time.Duration, _ error) {
	watch, err := startMonitor(ctx, e.server.addr)
	if err != nil {
		return 0, 0, err
	}
	defer watch.stop()
	began := time.Now()
	time.Sleep(time.Until(end))
	during = time.Since(began)
	return float64(len(watch.sent(hotTag))), during, nil
}

// hotPinnedAfter returns how long after since the key is hot in every instance, and the cache has pinned a key; until end if it is not.
func hotPinnedAfter(ctx context.Context, caches []*tiercache.Cache[string, string], since, end time.Time) time.Duration {
	for ; time.Now().Before(end) && ctx.Err() == nil; time.Sleep(5 * time.Millisecond) {
		left := len(caches)
		for _, c := range caches {
			if slices.ContainsFunc(c.HotKeys(5), func(k tiercache.HotKey[string]) bool { return k.Key == hotName && k.Hot }) && c.Stats().HotPinned > 0 {
				left--
			}
		}
		if left == 0 {
			break
		}
	}
	return time.Since(since)
}
