package bench

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A load comes at the moments and for the keys of its seed, as many as its rate says.
//
// Broken by: drawing gaps from the global generator.
func TestLoadScheduleIsItsSeeds(t *testing.T) {
	type request struct {
		due time.Duration
		key int
	}
	schedule := func(seed uint64) (all []request) {
		(load{rate: 1000, lasts: 10 * time.Second, keys: zipf(100, 0.9), seed: seed}).schedule(func(due time.Duration, key int) bool {
			all = append(all, request{due, key})
			return true
		})
		return all
	}
	first := schedule(1)
	require.True(t, slices.Equal(first, schedule(1)), "the same seed gave another load")
	require.NotEqual(t, first[:10], schedule(2)[:10])
	require.InDelta(t, 10_000, len(first), 300, "three standard deviations of 10,000 arrivals")
	for i := 1; i < len(first); i++ {
		require.LessOrEqual(t, first[i-1].due, first[i].due)
	}
}

// Requests that wait behind a stall are measured from the moment at which they were to come, and those that came meanwhile were sent.
//
// Broken by: waiting for each answer before the next request.
func TestLoadMeasuresFromTheIntendedMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stalled := time.Now().Add(2 * time.Second) // nobody is answered before
		var sent atomic.Int64
		out := load{rate: 500, lasts: 3 * time.Second, seed: 3}.run(t.Context(), func(context.Context, int) error {
			if time.Now().Before(stalled) {
				sent.Add(1)
			}
			time.Sleep(time.Until(stalled))
			return nil
		})
		require.Zero(t, out.all.failed)
		require.InDelta(t, 1000, sent.Load(), 100, "sent before anything was answered")
		require.InDelta(t, 1500, out.all.ok, 120)
		require.InDelta(t, 1500, out.second[0].quantile(0.5), 60, "ms: the first second's requests waited one to two seconds")
		require.InDelta(t, 2000, out.all.quantile(1), 30)
		require.Less(t, out.second[2].quantile(1), 2.0)
	})
}

// busyElsewhere keeps the generator, which looks at its context before each request, from going on for a while.
type busyElsewhere struct {
	context.Context //nolint:containedctx // it is one
	at              time.Time
	lasts           time.Duration
}

func (b *busyElsewhere) Err() error {
	if b.lasts > 0 && time.Now().After(b.at) {
		time.Sleep(b.lasts)
		b.lasts = 0
	}
	return b.Context.Err()
}

// Requests that the generator sends late are measured from the moment at which they were to come, and it says how late it was.
//
// Broken by: measuring from the call of get.
func TestLoadMeasuresItsOwnLateness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		late := &busyElsewhere{t.Context(), time.Now().Add(time.Second), 800 * time.Millisecond}
		out := load{rate: 500, lasts: 2 * time.Second, seed: 4}.run(late, func(context.Context, int) error { return nil })
		require.InDelta(t, 800, out.late.Milliseconds(), 5)
		require.InDelta(t, 400, out.second[1].quantile(0.6), 60, "ms: of the 800 that nothing was sent in")
		require.Less(t, out.second[0].quantile(1), 2.0)
	})
}

// A deadline counts from the intended moment; an answer after it is none. Goodput is by second, and recovery is of all seconds after it.
//
// Broken by: taking an answer for good that came after its deadline; goodFrom stopping at the first good second.
func TestLoadCountsAnswersInTimeBySecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		out := load{rate: 200, lasts: 5 * time.Second, deadline: 100 * time.Millisecond, seed: 5}.run(t.Context(), func(context.Context, int) error {
			if second := int(time.Since(began) / time.Second); second == 0 || second == 2 {
				time.Sleep(150 * time.Millisecond) // and does not look at its context
			}
			return nil
		})
		require.Equal(t, []float64{0, 1, 0, 1, 1}, out.goodput())
		require.Equal(t, 3, out.goodFrom(0.99))
		require.ErrorIs(t, out.all.firstError, context.DeadlineExceeded)
		require.Equal(t, out.second[0].failed+out.second[2].failed, out.all.failed)
	})
}

// No more requests are under way than the load may have: the others fail at once and are counted.
//
// Broken by: not looking at the limit.
func TestLoadBoundsWhatIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var under, most atomic.Int64
		out := load{rate: 1000, lasts: time.Second, inFlight: 50, seed: 6}.run(t.Context(), func(context.Context, int) error {
			n := under.Add(1)
			for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
			}
			time.Sleep(10 * time.Second)
			under.Add(-1)
			return nil
		})
		require.Equal(t, uint64(50), out.all.ok)
		require.ErrorIs(t, out.all.firstError, errTooMany)
		require.Equal(t, int64(50), most.Load())
	})
}

// Key k comes (k+1)^-s times as often as key 0, also for s below 1.
//
// Broken by: sums that are not divided by the last one.
func TestZipfRanks(t *testing.T) {
	const n, draws = 1000, 400_000
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a test
	count := make([]float64, n)
	r := zipf(n, 0.9)
	for range draws {
		count[r.draw(random)]++
	}
	require.InDelta(t, 0.0950, count[0]/draws, 0.003, "1/Σ k^-0.9 over 1,000 keys")
	for _, k := range []int{1, 3, 9, 30} {
		want := count[0] * math.Pow(float64(k+1), -0.9)
		require.InDelta(t, want, count[k], 5*math.Sqrt(want), "key %d", k)
	}
	require.Zero(t, ranks{}.draw(random))
}
