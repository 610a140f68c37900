package tiercache_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/rebuild"
)

func TestFailingKeyBacksOffFromTheSecondFailure(t *testing.T) {
	// P8: after the first failure the key is asked again at once; after the second in a row it rests 100 ms, then 200, 400, 800, then a second
	// at most; meanwhile callers get ErrBackingOff in a *LoadError. Another key is not concerned; a success ends it.
	synctest.Test(t, func(t *testing.T) {
		s := newSource(map[string]string{"k": "v", "other": "v"})
		s.fail()
		c := openAlone(t, s, nil)
		ask := func() error {
			_, err := c.Get(t.Context(), "k")
			return err
		}
		wantLoadError(t, ask(), "k", errDown)
		var refused uint64
		for _, ms := range []int{100, 200, 400, 800, 1000, 1000} {
			rest := time.Duration(ms) * time.Millisecond
			loads := s.loads.Load()
			wantLoadError(t, ask(), "k", errDown)
			require.Equal(t, loads+1, s.loads.Load())
			wantLoadError(t, ask(), "k", tiercache.ErrBackingOff)
			pass(rest - 1)
			wantLoadError(t, ask(), "k", tiercache.ErrBackingOff)
			require.Equal(t, loads+1, s.loads.Load(), "the source rests for %v", rest)
			refused += 2
			require.Equal(t, refused, c.Stats().BackOffs)
			pass(1)
		}
		_, err := c.Get(t.Context(), "other")
		wantLoadError(t, err, "other", errDown)
		s.before(nil)
		wantValue(t, c, "k", "v")
		wantValue(t, c, "other", "v")
		require.NoError(t, c.Clear(t.Context()))
		s.fail()
		wantLoadError(t, ask(), "k", errDown)
		wantLoadError(t, ask(), "k", errDown)
	})
}

func TestBackOffIsOfTheSourcesFailuresOnly(t *testing.T) {
	// P8: a panic, a Goexit and a load that the gate turned away say nothing of the source: they neither begin a rest nor end a row of
	// failures. "Not found" is a success.
	for _, test := range []struct {
		name string
		load func() error
		ends bool // a row of failures
	}{
		{"panic", func() error { panic("boom") }, false},
		{"Goexit", func() error { runtime.Goexit(); return nil }, false},
		{"overloaded", nil, false},
		{"not found", func() error { return tiercache.ErrNotFound }, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource(nil)
				c := openAlone(t, s, func(o *tiercache.Options[string, string]) {
					o.Gate = rebuild.GateOptions{Loads: 1, Waiting: 1, Wait: 10 * time.Millisecond}
					o.AbsentTTL = -1
				})
				ask := func(load func() error) error {
					if load != nil {
						s.before(func(context.Context, string) error { return load() })
						_, err := c.Get(t.Context(), "k")
						return err
					}
					unlock := s.lock()
					other := goGet(t.Context(), c, "other")
					synctest.Wait()
					_, err := c.Get(t.Context(), "k")
					unlock()
					<-other
					return err
				}
				down := func() error { return errDown }
				for range 4 {
					require.NotErrorIs(t, ask(test.load), tiercache.ErrBackingOff)
				}
				wantLoadError(t, ask(down), "k", errDown)
				require.NotErrorIs(t, ask(test.load), errDown)
				wantLoadError(t, ask(down), "k", errDown)
				err := ask(down)
				if test.ends {
					wantLoadError(t, err, "k", errDown)
					return
				}
				wantLoadError(t, err, "k", tiercache.ErrBackingOff)
			})
		})
	}
}

func TestBackOffAnswersStale(t *testing.T) {
	// P8: while a failing key rests, its stale value is answered and the source left alone.
	synctest.Test(t, func(t *testing.T) {
		s := newSource(map[string]string{"k": "v"})
		c := openAlone(t, s, func(o *tiercache.Options[string, string]) { o.TTL = time.Minute })
		wantValue(t, c, "k", "v")
		pass(time.Minute)
		s.fail()
		for range 20 {
			wantValue(t, c, "k", "v")
			synctest.Wait()
		}
		require.EqualValues(t, 3, s.loads.Load())
		require.EqualValues(t, 20, c.Stats().StaleServed)
	})
}

func TestGateBoundsLoadsAtOnce(t *testing.T) {
	// P11: never more loads at once than Gate.Loads; who waits in the queue is served in time; who finds it full, or waits too long, gets
	// ErrOverloaded in a *LoadError, is counted as shed, and the source is not asked.
	synctest.Test(t, func(t *testing.T) {
		s := newSource(nil)
		for i := range 20 {
			s.write(fmt.Sprint(i), "v")
		}
		s.before(func(context.Context, string) error { time.Sleep(80 * time.Millisecond); return nil })
		var mu sync.Mutex
		told := 0
		c := openAlone(t, s, func(o *tiercache.Options[string, string]) {
			o.Gate = rebuild.GateOptions{Loads: 3, Waiting: 6, Wait: 100 * time.Millisecond}
			o.Hooks = &tiercache.Hooks{Load: func(uint64, time.Duration, error) { mu.Lock(); defer mu.Unlock(); told++ }}
		})
		begun := time.Now()
		var all []<-chan got
		for i := range 20 {
			all = append(all, goGet(t.Context(), c, fmt.Sprint(i)))
		}
		synctest.Wait()
		require.EqualValues(t, 3, c.Stats().LoadsRunning)
		require.EqualValues(t, 6, c.Stats().LoadsWaiting)
		served, after := 0, map[time.Duration]int{}
		for i, one := range all {
			g := <-one
			if g.err == nil {
				served++
				continue
			}
			wantLoadError(t, g.err, fmt.Sprint(i), tiercache.ErrOverloaded)
			after[g.at.Sub(begun)]++
		}
		require.Equal(t, 6, served, "three at once, three of the queue")
		require.Equal(t, map[time.Duration]int{0: 11, 100 * time.Millisecond: 3}, after)
		require.EqualValues(t, 3, s.most.Load())
		require.EqualValues(t, 6, s.loads.Load())
		stats := c.Stats()
		require.EqualValues(t, 14, stats.Shed)
		require.Zero(t, stats.LoadErrors)
		mu.Lock()
		require.Equal(t, 6, told)
		mu.Unlock()
		pass(time.Second)
		wantValue(t, c, "19", "v")
	})
}

func TestOverloadAnswersStale(t *testing.T) {
	// P8: where the gate is full and a stale value is at hand, it is answered.
	synctest.Test(t, func(t *testing.T) {
		s := newSource(map[string]string{"k": "v", "slow": "v"})
		hooks, told := tellStale()
		c := openAlone(t, s, func(o *tiercache.Options[string, string]) {
			o.TTL, o.StaleWait, o.Hooks = time.Minute, time.Second, hooks
			o.Gate = rebuild.GateOptions{Loads: 1, Waiting: 1, Wait: time.Millisecond}
		})
		wantValue(t, c, "k", "v")
		pass(time.Minute)
		unlock := s.lock()
		defer unlock()
		goGet(t.Context(), c, "slow")
		synctest.Wait()
		wantValue(t, c, "k", "v")
		require.Len(t, told(), 1)
		require.ErrorIs(t, told()[0].cause, tiercache.ErrOverloaded)
		require.EqualValues(t, 1, c.Stats().StaleErrors)
	})
}

func TestLoadTimeoutFreesWaitersButNotTheSlot(t *testing.T) {
	// A loader that ignores its context: at LoadTimeout all who wait get *LoadError with context.DeadlineExceeded; its gate slot stays taken
	// until it returns, and what it then returns is dropped.
	synctest.Test(t, func(t *testing.T) {
		s := newSource(map[string]string{"k": "late", "other": "v"})
		unlock := s.lock()
		defer unlock()
		c := openAlone(t, s, func(o *tiercache.Options[string, string]) {
			o.LoadTimeout = 2 * time.Second
			o.Gate = rebuild.GateOptions{Loads: 1, Waiting: 1, Wait: 10 * time.Millisecond}
		})
		begun := time.Now()
		var all []<-chan got
		for range 5 {
			all = append(all, goGet(t.Context(), c, "k"))
		}
		for _, one := range all {
			g := <-one
			wantLoadError(t, g.err, "k", context.DeadlineExceeded)
			require.Equal(t, 2*time.Second, g.at.Sub(begun))
		}
		require.EqualValues(t, 1, c.Stats().LoadsRunning)
		require.EqualValues(t, 1, c.Stats().LoadErrors)
		_, err := c.Get(t.Context(), "other")
		wantLoadError(t, err, "other", tiercache.ErrOverloaded)
		s.before(nil)
		unlock()
		synctest.Wait()
		require.Zero(t, c.Stats().LoadsRunning)
		require.Zero(t, c.Stats().MemoryEntries, "the late value is dropped")
		wantValue(t, c, "other", "v")
	})
}

func TestLoadTimeoutEndsTheLoadersContext(t *testing.T) {
	// A loader that heeds its context is told at LoadTimeout, and the error says so.
	synctest.Test(t, func(t *testing.T) {
		s := newSource(nil)
		s.before(func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() })
		c := openAlone(t, s, nil)
		begun := time.Now()
		_, err := c.Get(t.Context(), "k")
		wantLoadError(t, err, "k", context.DeadlineExceeded)
		require.Equal(t, 3*time.Second, time.Since(begun), "the default")
		synctest.Wait()
		require.Zero(t, c.Stats().LoadsRunning)
	})
}

func TestEveryCallerGetsTheLoadersError(t *testing.T) {
	// All who waited for a failed load get *LoadError around the loader's own error; the failure is not kept.
	synctest.Test(t, func(t *testing.T) {
		s := newSource(map[string]string{"k": "v"})
		s.before(func(context.Context, string) error { time.Sleep(time.Second); return fmt.Errorf("query: %w", errDown) })
		var told []error
		c := openAlone(t, s, func(o *tiercache.Options[string, string]) {
			o.Hooks = &tiercache.Hooks{Load: func(_ uint64, took time.Duration, err error) {
				if took == time.Second {
					told = append(told, err)
				}
			}}
		})
		var all []<-chan got
		for range 10 {
			all = append(all, goGet(t.Context(), c, "k"))
		}
		for _, one := range all {
			wantLoadError(t, (<-one).err, "k", errDown)
		}
		require.EqualValues(t, 1, s.loads.Load())
		require.EqualValues(t, 1, c.Stats().LoadErrors)
		require.Len(t, told, 1)
		require.ErrorIs(t, told[0], errDown)
		s.before(nil)
		wantValue(t, c, "k", "v")
	})
}

func TestErrorsOfAnotherCacheInTheLoaderAreTheLoaders(t *testing.T) {
	// A cache whose loader reads through another one: that one's ErrClosed and ErrOverloaded are errors of the source here, inside a
	// *LoadError; this cache is not closed.
	for _, other := range []error{tiercache.ErrClosed, tiercache.ErrOverloaded, fmt.Errorf("layer below: %w", tiercache.ErrClosed)} {
		t.Run(other.Error(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource(nil)
				s.before(func(context.Context, string) error { return other })
				c := openAlone(t, s, nil)
				_, err := c.Get(t.Context(), "k")
				wantLoadError(t, err, "k", other)
				_, err = c.GetMany(t.Context(), []string{"l"})
				wantLoadError(t, err, "l", other)
				_, err = c.Refresh(t.Context(), "m")
				wantLoadError(t, err, "m", other)
			})
		})
	}
}

func TestErrorsMatchByValueAndType(t *testing.T) {
	// What callers match on: LoadError unwraps, does not show the key, and a PanicError shows its value.
	cause := errors.New("cause")
	err := error(&tiercache.LoadError{Key: "secret", Err: &tiercache.PanicError{Value: cause}})
	require.ErrorIs(t, err, cause)
	require.NotContains(t, err.Error(), "secret")
	require.Contains(t, err.Error(), "cause")
	require.ErrorIs(t, tiercache.ErrClosed, rebuild.ErrClosed)
	require.ErrorIs(t, tiercache.ErrOverloaded, rebuild.ErrOverloaded)
	require.ErrorIs(t, tiercache.ErrGoexit, rebuild.ErrGoexit)
}

func TestPanicWithNotFoundIsAPanic(t *testing.T) {
	// P9: a loader that panics with an error that wraps ErrNotFound did not say that there is no such row: the caller gets the panic, and
	// nothing is kept.
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		cache, err := tiercache.New(tiercache.Options[string, string]{Name: "panic", Load: func(context.Context, string) (string, error) {
			if calls++; calls == 1 {
				panic(fmt.Errorf("no rows: %w", tiercache.ErrNotFound))
			}
			return "v", nil
		}})
		require.NoError(t, err)
		defer func() { require.NoError(t, cache.Close()) }()
		_, err = cache.Get(t.Context(), "k")
		var panicked *tiercache.PanicError
		require.ErrorAs(t, err, &panicked)
		v, err := cache.Get(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, "v", v)
	})
}
