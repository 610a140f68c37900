package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// However many ask at once, no more queries run than there are workers; the rest waits in order and takes the time that this takes.
//
// Broken by: running every query at once (enqueue starting a goroutine that sleeps and finishes it).
func TestSourceRunsNoMoreThanItsWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newSource(sourceOptions{workers: 3, mean: 10 * time.Millisecond})
		defer src.close()
		synctest.Wait()
		began := time.Now()
		var done sync.WaitGroup
		var mu sync.Mutex
		var ends []time.Duration
		for i := range 30 {
			done.Go(func() {
				v, err := src.load(t.Context(), fmt.Sprint(i))
				mu.Lock()
				defer mu.Unlock()
				if ends = append(ends, time.Since(began)); err != nil || v != fmt.Sprint("row of ", i) {
					t.Errorf("load(%d) = %q, %v", i, v, err)
				}
			})
		}
		done.Wait()
		for i, end := range ends {
			require.Equal(t, time.Duration(i/3+1)*10*time.Millisecond, end, "the end of query %d", i)
		}
		got := src.stats()
		require.Equal(t, sourceStats{loads: 30, peakRunning: 3, peakQueue: 27}, got)
		require.InDelta(t, 300, src.capacity(), 0.001)
	})
}

// Whoever leaves at its deadline leaves its query behind: the source does it all the same, and who comes later waits for it.
//
// Broken by: taking the query out of the queue where load's ctx ends.
func TestSourceDoesWhatItsCallersHaveLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newSource(sourceOptions{workers: 1, mean: time.Second})
		defer src.close()
		began := time.Now()
		var done sync.WaitGroup
		for range 5 {
			done.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
				defer cancel()
				if _, err := src.load(ctx, "k"); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("load = %v, want the deadline", err)
				}
			})
		}
		done.Wait()
		require.Equal(t, 500*time.Millisecond, time.Since(began))
		_, err := src.load(t.Context(), "late")
		require.NoError(t, err)
		require.Equal(t, 6*time.Second, time.Since(began), "five queries that nobody waits for stand before it")
		require.Equal(t, uint64(5), src.stats().abandoned)
	})
}

// The times are the seed's, within the spread, and their mean is the one asked for. A second's step has what happened in it.
//
// Broken by: drawing the times from the global generator; counting an arrival at its end.
func TestSourceIsSeededAndCountsBySecond(t *testing.T) {
	run := func() (took time.Duration, steps []sourceStep) {
		synctest.Test(t, func(t *testing.T) {
			src := newSource(sourceOptions{workers: 1, mean: 10 * time.Millisecond, spread: 0.5, seed: 7})
			defer src.close()
			began := time.Now()
			for range 1000 {
				_, err := src.load(t.Context(), "k")
				require.NoError(t, err)
			}
			took = time.Since(began)
			steps = src.perSecond()
		})
		return took, steps
	}
	took, steps := run()
	again, _ := run()
	require.Equal(t, took, again)
	require.InDelta(t, 10, took.Seconds(), 0.4)
	loads, done := uint64(0), uint64(0)
	for _, s := range steps[:9] {
		require.InDelta(t, 100, s.loads, 15)
		require.LessOrEqual(t, s.peakRunning, 1)
		require.Zero(t, s.peakQueue)
		loads, done = loads+s.loads, done+s.done
	}
	require.LessOrEqual(t, loads-done, uint64(1))
}

// A row that is not there is the error asked for, and counted; a closed source ends what it has begun, and refuses what waits and what comes.
//
// Broken by: the loop left out of close.
func TestSourceWithoutRowAndClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newSource(sourceOptions{workers: 1, mean: time.Millisecond, row: func(k string) (string, bool) { return k, k == "there" }})
		_, err := src.load(t.Context(), "not")
		require.ErrorIs(t, err, errNoRow)
		got := map[string]chan error{"there": make(chan error, 1), "waits": make(chan error, 1)}
		for _, k := range []string{"there", "waits"} {
			go func() {
				_, err := src.load(t.Context(), k)
				got[k] <- err
			}()
			synctest.Wait()
		}
		src.close()
		require.NoError(t, <-got["there"], "it was begun")
		require.ErrorIs(t, <-got["waits"], errSourceClosed)
		require.Equal(t, uint64(1), src.stats().absent)
		_, err = src.load(t.Context(), "there")
		require.ErrorIs(t, err, errSourceClosed)
	})
}
