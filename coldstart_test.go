package tiercache_test

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/internal/redistest"
	"github.com/tiercache/tiercache/rebuild"
)

// ColdStartFactor is requests a second over the keys a second that the gate can pass: 2,000 requests a second where 8 slots and 20 ms a key pass
// 400 are a factor of 5, whether hits or not; a tenth of the load time is a tenth of it; no requests are none. One LoadMany of ten keys passes
// ten times as many.
// Broken by: in burden.look, the rate's line of moving; the number of keys in countLoad of loadedMany.
func TestColdStartFactorSaysWhatAnEmptyCacheWouldAsk(t *testing.T) {
	t.Parallel()
	for _, many := range []int{1, 10} {
		t.Run(fmt.Sprint(many, " keys a load"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var takes atomic.Int64
				takes.Store(int64(20 * time.Millisecond))
				c := openCache(t, tiercache.Options[int, int]{
					Name: "factor", TTL: time.Hour, Jitter: -1, Gate: rebuild.GateOptions{Loads: 8},
					LoadMany: func(_ context.Context, keys []int) (map[int]int, error) {
						time.Sleep(time.Duration(takes.Load()))
						rows := map[int]int{}
						for _, key := range keys {
							rows[key] = key
						}
						return rows, nil
					},
				})
				require.Zero(t, c.Stats().ColdStartFactor, "nothing was loaded yet")
				next := 0
				traffic := func(d time.Duration) { // 2,000 requests a second, of which a hundredth loads
					for end := time.Now().Add(d); time.Now().Before(end); {
						keys := make([]int, many)
						for i := range keys {
							next++
							keys[i] = next
						}
						begun := time.Now()
						_, err := c.GetMany(t.Context(), keys)
						require.NoError(t, err)
						for range 99 * many {
							wantValue(t, c, keys[0], keys[0])
						}
						pass(time.Duration(many)*50*time.Millisecond - time.Since(begun))
					}
				}
				traffic(time.Minute)
				require.InDelta(t, 500/many, c.Stats().ColdStartFactor, float64(25/many)+2)
				takes.Store(int64(2 * time.Millisecond))
				traffic(2 * time.Minute)
				require.InDelta(t, 50/many, c.Stats().ColdStartFactor, float64(3/many)+2)
				pass(5 * time.Minute)
				require.Zero(t, c.Stats().ColdStartFactor, "no requests are none")
			})
		})
	}
}

// The whole cache is lost at five times the traffic that the source can carry without it: the source never runs more loads at once than the gate
// has slots, and within a minute, in virtual time, 99 of 100 requests are answered again, and go on to be for two TTLs more.
func TestFlushedCacheRecoversUnderFiveTimesWhatTheSourceCarries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		part := 1
		if redistest.Race { // which makes it ten times as slow
			part = 4
		}
		var (
			slots = 16 / part
			rate  = 10_000 / part // requests a second
			keys  = 20_000 / part
		)
		const (
			takes    = 8 * time.Millisecond // the source: 2,000 keys a second, with 16 slots
			deadline = 500 * time.Millisecond
			ttl      = time.Minute
		)
		var running, most atomic.Int64
		c := openCache(t, tiercache.Options[string, int]{
			Name: "flush", TTL: ttl, Gate: rebuild.GateOptions{Loads: slots},
			Load: func(context.Context, string) (int, error) {
				n := running.Add(1)
				defer running.Add(-1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				time.Sleep(takes)
				return 1, nil
			},
		})
		_, err := c.Warm(t.Context(), numbers(keys), tiercache.WarmOptions{KeysPerSecond: -1, Concurrency: slots})
		require.NoError(t, err)
		most.Store(0)
		require.NoError(t, c.Clear(t.Context()))
		draw := zipf(keys)
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		var good [150]atomic.Int64 // requests answered, by the second in which they began
		begun := time.Now()
		for tick := range len(good) * 100 {
			second := &good[tick/100]
			for range rate / 100 {
				key := draw()
				if _, err := c.Get(gone, key); err == nil { // memory has it: that needs no goroutine
					second.Add(1)
					continue
				}
				go func() {
					ctx, cancel := context.WithTimeout(t.Context(), deadline)
					defer cancel()
					if _, err := c.Get(ctx, key); err == nil {
						second.Add(1)
					}
				}()
			}
			time.Sleep(time.Until(begun.Add(time.Duration(tick+1) * 10 * time.Millisecond)))
		}
		pass(time.Second)
		require.LessOrEqual(t, most.Load(), int64(slots), "loads at once")
		require.Less(t, good[0].Load(), int64(rate*9/10), "it was felt")
		for second := 60; second < len(good); second++ {
			require.GreaterOrEqual(t, good[second].Load(), int64(rate*99/100), "requests answered in second %d", second)
		}
	})
}

// zipf draws the keys 0 to n-1, the i-th in proportion to (i+1)^-0.9: by the same random numbers each time.
func zipf(n int) func() string {
	sums := make([]float64, n)
	sum := 0.0
	for i := range sums {
		sum += math.Pow(float64(i+1), -0.9)
		sums[i] = sum
	}
	r := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a test's
	return func() string {
		i, _ := slices.BinarySearch(sums, r.Float64()*sum)
		return strconv.Itoa(min(i, n-1))
	}
}
