package layers

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/internal/redistest"
)

// BenchmarkGet compares a GET through the batcher with the client's own, in interleaved slices so that a noisy machine touches
// both alike; the figure is the median of the ratios, x plain. 10,000 keys of 300 bytes, drawn at random, so that few are shared;
// 128 MiB of ballast, since with a tiny heap the collector would decide. The server shares the machine with the callers.
func BenchmarkGet(b *testing.B) {
	ballast := make([]byte, 128<<20)
	defer func() { ballast[0]++ }()
	server := redistest.Start(b)
	client := server.Client(b)
	r, err := NewRedis(b.Context(), client, RedisOptions{ReadTimeout: 5 * time.Second})
	require.NoError(b, err)
	defer func() { require.NoError(b, r.Close()) }()
	keys := make([]string, 10_000)
	for i := range keys {
		keys[i] = "tc:bench:{key-" + strconv.Itoa(i) + "}"
		require.NoError(b, client.Set(b.Context(), keys[i], strings.Repeat("v", 300), 0).Err())
	}
	plain := func(ctx context.Context, key string) error { return client.Get(ctx, key).Err() }
	ours := func(ctx context.Context, key string) error { _, err := r.get(ctx, key, Mark{}); return err }
	free := context.WithoutCancel(b.Context())
	cancellable, cancel := context.WithCancel(b.Context())
	defer cancel()
	for _, n := range []int{1, 8, 64, 256} {
		for _, ctx := range []context.Context{free, cancellable} {
			kind := "free"
			if ctx.Done() != nil {
				kind = "cancellable"
			}
			b.Run(fmt.Sprintf("%d/%s", n, kind), func(b *testing.B) {
				var ratios []float64
				for b.Loop() {
					p := slice(ctx, n, keys, plain)
					o := slice(ctx, n, keys, ours)
					ratios = append(ratios, o/p)
				}
				slices.Sort(ratios)
				b.ReportMetric(ratios[len(ratios)/2], "x-plain")
			})
		}
	}
}

// slice runs get on n goroutines for 40 ms and returns the calls a second.
func slice(ctx context.Context, n int, keys []string, get func(context.Context, string) error) float64 {
	var calls atomic.Int64
	var all sync.WaitGroup
	start := time.Now()
	end := start.Add(40 * time.Millisecond)
	for g := range n {
		all.Go(func() {
			k, done := g*7919, int64(0)
			for time.Now().Before(end) {
				for range 4 {
					k = (k*1103515245 + 12345) & 0x7fffffff
					if err := get(ctx, keys[k%len(keys)]); err != nil {
						panic(err) // a benchmark that measured errors would lie
					}
					done++
				}
			}
			calls.Add(done)
		})
	}
	all.Wait()
	return float64(calls.Load()) / time.Since(start).Seconds()
}

// BenchmarkGetAlone shows the time and the allocations of a lone call.
func BenchmarkGetAlone(b *testing.B) {
	server := redistest.Start(b)
	client := server.Client(b)
	r, err := NewRedis(b.Context(), client, RedisOptions{})
	require.NoError(b, err)
	defer func() { require.NoError(b, r.Close()) }()
	require.NoError(b, client.Set(b.Context(), "k", strings.Repeat("v", 300), 0).Err())
	free := context.WithoutCancel(b.Context())
	cancellable, cancel := context.WithCancel(b.Context())
	defer cancel()
	run := func(name string, get func() error) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := get(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	run("plain", func() error { return client.Get(free, "k").Err() })
	run("free", func() error { _, err := r.get(free, "k", Mark{}); return err })
	run("cancellable", func() error { _, err := r.get(cancellable, "k", Mark{}); return err })
}

// BenchmarkGetCrowd shows the allocations of a hit among 64 and 256 callers.
func BenchmarkGetCrowd(b *testing.B) {
	server := redistest.Start(b)
	client := server.Client(b)
	r, err := NewRedis(b.Context(), client, RedisOptions{ReadTimeout: 5 * time.Second})
	require.NoError(b, err)
	defer func() { require.NoError(b, r.Close()) }()
	keys := make([]string, 10_000)
	for i := range keys {
		keys[i] = "tc:bench:{key-" + strconv.Itoa(i) + "}"
		require.NoError(b, client.Set(b.Context(), keys[i], strings.Repeat("v", 300), 0).Err())
	}
	free := context.WithoutCancel(b.Context())
	for _, n := range []int{64, 256} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			b.ReportAllocs()
			var next atomic.Int64
			var all sync.WaitGroup
			for range n {
				all.Go(func() {
					for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
						if _, err := r.get(free, keys[int(i)*7919%len(keys)], Mark{}); err != nil {
							panic(err)
						}
					}
				})
			}
			all.Wait()
		})
	}
}
