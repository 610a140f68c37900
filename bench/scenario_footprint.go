package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"time"

	"github.com/dgraph-io/ristretto/v2"

	"github.com/tiercache/tiercache"
)

// Memory per entry: a million small entries, keys of 18 bytes and values of 100, where what a cache adds is largest against what it
// keeps. Key and value are part of the figure, each a heap object of its own, as they are when they come from a network. Every
// subject has a process of its own: a heap that another subject has fragmented would be charged to the next.
//
// What misleads: ristretto's counters are sized for ten times the entries, as its documentation advises, and are part of its figure;
// HeapAlloc after a collection is what lives, not what the process takes from the system, which GOGC doubles.

type footprintRequest struct {
	Subject string `json:"subject"`
	Entries int    `json:"entries"`
}

type footprintAnswer struct {
	Bytes   uint64        `json:"bytes"` // of heap, all entries together
	Held    int           `json:"held"`  // entries found afterwards
	Collect time.Duration `json:"collect"`
}

func footprint(ctx context.Context, e *env) ([]Row, error) {
	entries := pick(e, 1_000_000, 100_000)
	rounds := pick(e, 3, 1)
	names := []string{"tiercache", "ristretto", "ristretto with TTL"}
	each := map[string][]float64{}
	collect := map[string][]float64{}
	for range rounds {
		for _, name := range names {
			a, err := measureFootprint(ctx, footprintRequest{name, entries})
			if err != nil {
				return nil, err
			}
			if a.Held < entries*99/100 {
				return nil, fmt.Errorf("%s holds %d of %d entries", name, a.Held, entries)
			}
			each[name] = append(each[name], float64(a.Bytes)/float64(a.Held))
			collect[name] = append(collect[name], a.Collect.Seconds()*1e3)
		}
	}
	ratios := func(against string) []float64 {
		r := make([]float64, rounds)
		for i := range r {
			r[i] = each["tiercache"][i] / each[against][i]
		}
		return r
	}
	detail := func(name string) string {
		return fmt.Sprintf("%.0f B an entry against %.0f; a full collection %.0f ms against %.0f", median(each["tiercache"]), median(each[name]), median(collect["tiercache"]), median(collect[name]))
	}
	return []Row{
		ratioRow("bytes an entry: × ristretto", ratios("ristretto"), atMost(1.2), detail("ristretto")),
		ratioRow("bytes an entry: × ristretto with TTL", ratios("ristretto with TTL"), budget{}, detail("ristretto with TTL")),
	}, nil
}

func measureFootprint(ctx context.Context, request footprintRequest) (a footprintAnswer, err error) {
	c, err := startWorker(ctx, "footprint", "")
	if err != nil {
		return a, err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	return a, c.ask(request, &a)
}

// footprintWorker fills one subject and answers what it weighs.
func footprintWorker(ctx context.Context, _ string, l *line) error {
	var request footprintRequest
	if err := l.hear(&request); err != nil {
		return err
	}
	fill := map[string]func(context.Context, int) (held func() int, stop func(), _ error){
		"tiercache":          fillCache,
		"ristretto":          func(_ context.Context, n int) (func() int, func(), error) { return fillRistretto(n, 0) },
		"ristretto with TTL": func(_ context.Context, n int) (func() int, func(), error) { return fillRistretto(n, time.Hour) },
	}[request.Subject]
	if fill == nil {
		return fmt.Errorf("no subject %q", request.Subject)
	}
	before, _ := heapNow()
	held, stop, err := fill(ctx, request.Entries)
	if err != nil {
		return err
	}
	defer stop()
	after, took := heapNow()
	return l.say(footprintAnswer{Bytes: after - before, Held: held(), Collect: took})
}

// heapNow returns what lives on the heap, and how long the second of two collections took.
func heapNow() (uint64, time.Duration) {
	runtime.GC()
	began := time.Now()
	runtime.GC()
	took := time.Since(began)
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc, took
}

func entryKey(i int) string   { return fmt.Sprintf("product:%010d", i) } // 18 bytes
func entryValue(i int) string { return strings.Repeat(string(rune('a'+i%26)), 100) }

func fillCache(ctx context.Context, n int) (func() int, func(), error) {
	loads := 0 // one goroutine asks, and each load is over before the next
	at := 0
	cache, err := tiercache.New(tiercache.Options[string, string]{
		Name:        "footprint",
		MemoryBytes: int64(n) * 1024, // far from full
		TTL:         time.Hour,
		Load: func(context.Context, string) (string, error) {
			loads++
			return entryValue(at), nil
		},
	})
	if err != nil {
		return nil, nil, err
	}
	ask := func() error {
		for at = 0; at < n; at++ {
			if _, err := cache.Get(ctx, entryKey(at)); err != nil {
				return err
			}
		}
		return nil
	}
	if err := ask(); err != nil {
		return nil, nil, errors.Join(err, cache.Close())
	}
	held := func() int { // what a second pass need not load; called once the heap was read
		loads = 0
		if ask() != nil {
			return 0
		}
		return n - loads
	}
	return held, func() { cache.Close() }, nil //nolint:errcheck // the process ends
}

func fillRistretto(n int, ttl time.Duration) (func() int, func(), error) {
	cache, err := ristretto.NewCache(&ristretto.Config[string, string]{NumCounters: int64(10 * n), MaxCost: int64(2 * n), BufferItems: 64, IgnoreInternalCost: true})
	if err != nil {
		return nil, nil, err
	}
	for i := range n {
		cache.SetWithTTL(entryKey(i), entryValue(i), 1, ttl)
		if i%10_000 == 0 {
			cache.Wait() // its buffer of Sets is bounded: what does not fit is dropped
		}
	}
	cache.Wait()
	held := func() int {
		found := 0
		for i := range n {
			if _, ok := cache.Get(entryKey(i)); ok {
				found++
			}
		}
		return found
	}
	return held, cache.Close, nil
}
