package layers

import (
	"fmt"
	"math/rand"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/dgraph-io/ristretto/v2"
	"github.com/stretchr/testify/require"
)

// BenchmarkHit compares a memory hit with ristretto's own Get of the same keys: one iteration is a slice of requests for each of the
// two, one after the other, and the figures are medians over the slices. Run it with -benchtime 30x: "x-raw" is the ratio of the budgets.
// Ristretto is given room for everything and no TTL, which is its fastest. All keys are resident, so no miss is measured; the keys are
// drawn beforehand. What misleads: two goroutines are not many, and nobody writes.
func BenchmarkHit(b *testing.B) {
	ballast := make([]byte, 128<<20) // else the tiny heap makes the collector run all the time
	defer runtime.KeepAlive(ballast)
	for _, shape := range []struct {
		name string
		keys int
		zipf float64
	}{{"zipf10k", 10_000, 1.01}, {"zipf100k", 100_000, 1.1}, {"uniform100k", 100_000, 0}, {"one", 1, 0}} {
		order := draw(shape.keys, shape.zipf)
		for _, goroutines := range []int{1, runtime.GOMAXPROCS(0)} {
			b.Run(fmt.Sprintf("%s/string/%d", shape.name, goroutines), func(b *testing.B) {
				compareHits(b, order, shape.keys, goroutines, func(i int) string { return "product:" + strconv.Itoa(1_000_000+i) })
			})
			b.Run(fmt.Sprintf("%s/int64/%d", shape.name, goroutines), func(b *testing.B) {
				compareHits(b, order, shape.keys, goroutines, func(i int) int64 { return int64(i) })
			})
		}
	}
}

// draw draws requests for keys numbered below n: Zipf with exponent s, or uniform if s is 0.
func draw(n int, s float64) []int {
	r := rand.New(rand.NewSource(1))
	order := make([]int, 1<<18)
	var z *rand.Zipf
	if s > 0 {
		z = rand.NewZipf(r, s, 1, uint64(n-1))
	}
	for i := range order {
		if z != nil {
			order[i] = int(z.Uint64())
		} else {
			order[i] = r.Intn(n)
		}
	}
	return order
}

type product struct{ id, _ int }

func compareHits[K interface{ string | int64 }](b *testing.B, order []int, n, goroutines int, key func(int) K) {
	b.Helper()
	raw, err := ristretto.NewCache(&ristretto.Config[K, *product]{NumCounters: int64(10 * n), MaxCost: int64(2 * n), BufferItems: 64, IgnoreInternalCost: true})
	require.NoError(b, err)
	defer raw.Close()
	m, err := NewMemory(MemoryOptions{MaxBytes: 1 << 30})
	require.NoError(b, err)
	defer m.Close()
	l, err := NewLocal(m, LocalOptions[K, *product]{
		Name: "bench", TTL: time.Hour, Direct: true,
		String: func(k K) string { return fmt.Sprint(k) },
		Parse:  func(string) (k K, ok bool) { return k, false },
		SizeOf: func(K, *product) int { return 16 },
	})
	require.NoError(b, err)
	defer l.Close()
	all := make([]K, n)
	for i := range n {
		k, p := key(i), &product{id: i}
		all[i] = k
		for !raw.Set(k, p, 1) {
			raw.Wait()
		}
		for !l.Put(k, Entry[*product]{Value: p, Soft: time.Now().Add(time.Hour), Hard: time.Now().Add(time.Hour)}, l.Mark(k)) {
			runtime.Gosched()
		}
	}
	raw.Wait()
	keys := make([]K, len(order))
	for i, k := range order {
		keys[i] = all[k]
	}
	runtime.GC()
	rawGet := func(keys []K) {
		for _, k := range keys {
			if v, ok := raw.Get(k); !ok || v == nil {
				b.Error("raw miss")
			}
		}
	}
	ourGet := func(keys []K) {
		for _, k := range keys {
			if v, st := l.Get(k); st != Hit || v == nil {
				b.Error("our miss")
			}
		}
	}
	var rawNs, ourNs, ratio []float64
	measure(keys, goroutines, rawGet)
	measure(keys, goroutines, ourGet)
	b.ResetTimer()
	for range b.N {
		r, o := measure(keys, goroutines, rawGet), measure(keys, goroutines, ourGet)
		rawNs, ourNs, ratio = append(rawNs, r), append(ourNs, o), append(ratio, o/r)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(rawNs), "raw-ns")
	b.ReportMetric(median(ourNs), "our-ns")
	b.ReportMetric(median(ratio), "x-raw")
}

// measure runs the requests, shared out among the goroutines, and returns nanoseconds a request.
func measure[K any](keys []K, goroutines int, get func([]K)) float64 {
	var wg sync.WaitGroup
	start := time.Now()
	for g := range goroutines {
		part := keys[len(keys)/goroutines*g : len(keys)/goroutines*(g+1)]
		wg.Go(func() { get(part) })
	}
	wg.Wait()
	return float64(time.Since(start).Nanoseconds()) / float64(len(keys))
}

func median(x []float64) float64 {
	slices.Sort(x)
	return x[len(x)/2]
}

// BenchmarkBytesPerEntry compares the heap of a million entries with string keys of 18 bytes and string values of 100 with ristretto's
// own, with the ten counters an entry that its manual advises. Run it with -benchtime 1x: "x-raw" is the ratio of the budget.
// The keys are not counted, since ristretto does not keep them: ours are counted, because a cell does. What misleads: no eviction has
// happened, so the policy has no ghosts yet, which cost at most eight to sixteen bytes an entry.
func BenchmarkBytesPerEntry(b *testing.B) {
	const n = 1_000_000
	key := func(i int) string { return fmt.Sprintf("product:%010d", i) }
	value := func() string { return string(make([]byte, 100)) }
	for range b.N {
		before := heap()
		raw, err := ristretto.NewCache(&ristretto.Config[string, string]{NumCounters: 10 * n, MaxCost: 2 * n, BufferItems: 64, IgnoreInternalCost: true})
		require.NoError(b, err)
		for i := range n {
			for v := value(); !raw.Set(key(i), v, 1); {
				raw.Wait()
			}
		}
		raw.Wait()
		rawBytes := float64(heap()-before) / n
		raw.Close()
		raw = nil

		before = heap()
		m, err := NewMemory(MemoryOptions{MaxBytes: 1 << 30})
		require.NoError(b, err)
		l, err := NewLocal(m, LocalOptions[string, string]{
			Name: "bench", TTL: time.Hour, Direct: true,
			String: func(k string) string { return k },
			Parse:  func(s string) (string, bool) { return s, true },
		})
		require.NoError(b, err)
		for i := range n {
			mustPut(b, l, key(i), value())
		}
		settle(m)
		ourBytes := float64(heap()-before) / n
		require.EqualValues(b, n, m.Stats().Entries)
		require.NoError(b, m.Close())
		runtime.KeepAlive(raw)
		b.ReportMetric(rawBytes, "raw-B")
		b.ReportMetric(ourBytes, "our-B")
		b.ReportMetric(ourBytes/rawBytes, "x-raw")
	}
}

// heap returns the bytes of live objects.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return int64(s.HeapAlloc)
}

// BenchmarkPut compares the cost of a put with ristretto's Set, of new keys and of resident ones, as BenchmarkHit does. Puts that either
// drops because it cannot keep up are not repeated; "dropped" is our share of them.
func BenchmarkPut(b *testing.B) {
	const n = 1 << 15
	raw, err := ristretto.NewCache(&ristretto.Config[int64, int64]{NumCounters: 10 * n, MaxCost: 1 << 40, BufferItems: 64, IgnoreInternalCost: true})
	require.NoError(b, err)
	defer raw.Close()
	m := newMemory(b, 1<<26)
	l := newInts(b, m, "bench")
	e := lasting[int64](1)
	for _, fresh := range []bool{true, false} {
		b.Run(fmt.Sprintf("new=%v", fresh), func(b *testing.B) {
			var ratio []float64
			next, dropped := int64(0), 0
			for range b.N {
				if fresh {
					next += n
				}
				start := time.Now()
				for k := next; k < next+n; k++ {
					raw.Set(k, k, 1)
				}
				raw.Wait()
				mid := time.Now()
				for k := next; k < next+n; k++ {
					if !l.Put(k, e, l.Mark(k)) {
						dropped++
					}
				}
				settle(m)
				ratio = append(ratio, float64(time.Since(mid))/float64(mid.Sub(start)))
			}
			b.ReportMetric(median(ratio), "x-raw")
			b.ReportMetric(float64(dropped)/float64(b.N)/n, "dropped")
		})
	}
}
