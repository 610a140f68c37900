package tiercache_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
)

// The tests of local_*_test.go are of one process without Redis. They run in bubbles of virtual time: a sleep costs nothing and is exact.

// openAlone opens a cache without Redis over s; change may alter its options. It is closed at the end of the test.
func openAlone(t *testing.T, s *source, change func(*tiercache.Options[string, string])) *tiercache.Cache[string, string] {
	t.Helper()
	o := options("alone", s)
	if change != nil {
		change(&o)
	}
	return openCache(t, o)
}

// openCache opens a cache that is closed at the end of the test.
func openCache[K comparable, V any](t *testing.T, o tiercache.Options[K, V]) *tiercache.Cache[K, V] {
	t.Helper()
	c, err := tiercache.New(o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// pass lets virtual time pass, and what is due by then happen.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// wantValue asks c for key and wants that value.
func wantValue[K comparable, V any](t *testing.T, c *tiercache.Cache[K, V], key K, want V) {
	t.Helper()
	got, err := c.Get(t.Context(), key)
	require.NoError(t, err, "Get(%v)", key)
	require.Equal(t, want, got, "Get(%v)", key)
}

// wantAbsent asks c for key and wants ErrNotFound, not inside a *LoadError.
func wantAbsent[K comparable, V any](t *testing.T, c *tiercache.Cache[K, V], key K) {
	t.Helper()
	_, err := c.Get(t.Context(), key)
	require.ErrorIs(t, err, tiercache.ErrNotFound, "Get(%v)", key)
	var failed *tiercache.LoadError
	require.NotErrorAs(t, err, &failed, "Get(%v)", key)
}

// wantLoadError wants a *LoadError of that key around the cause.
func wantLoadError(t *testing.T, err error, key string, cause error) {
	t.Helper()
	var failed *tiercache.LoadError
	require.ErrorAs(t, err, &failed)
	require.Equal(t, key, failed.Key)
	require.ErrorIs(t, err, cause)
}

// got is what a Get on another goroutine ended with, and when.
type got struct {
	value string
	err   error
	at    time.Time
}

// goGet asks c for key on a goroutine of its own.
func goGet(ctx context.Context, c *tiercache.Cache[string, string], key string) <-chan got {
	ended := make(chan got, 1)
	go func() {
		value, err := c.Get(ctx, key)
		ended <- got{value, err, time.Now()}
	}()
	return ended
}

// lock makes the source wait before it reads a row until the returned function is called, which may be done more than once.
func (s *source) lock() (unlock func()) {
	gate := make(chan struct{})
	s.before(func(context.Context, string) error { <-gate; return nil })
	return sync.OnceFunc(func() { close(gate) })
}

func TestFirstGetLoadsAndTheNextIsAMemoryHit(t *testing.T) {
	// A row is loaded once and answered from memory from then on.
	synctest.Test(t, func(t *testing.T) {
		s := newSource(map[string]string{"k": "v"})
		c := openAlone(t, s, nil)
		for range 5 {
			wantValue(t, c, "k", "v")
		}
		require.EqualValues(t, 1, s.loads.Load())
		stats := c.Stats()
		require.EqualValues(t, 1, stats.Misses)
		require.EqualValues(t, 1, stats.Loads)
		require.EqualValues(t, 4, stats.MemoryHits)
		require.EqualValues(t, 1, stats.MemoryEntries)
	})
}

func TestStampedeLoadsOnce(t *testing.T) {
	// P1 in one process: 200 callers of a cold key make one load and all get its value.
	synctest.Test(t, func(t *testing.T) {
		s := newSource(map[string]string{"k": "v"})
		s.before(func(context.Context, string) error { time.Sleep(50 * time.Millisecond); return nil })
		c := openAlone(t, s, nil)
		var all []<-chan got
		for range 200 {
			all = append(all, goGet(t.Context(), c, "k"))
		}
		for _, one := range all {
			g := <-one
			require.NoError(t, g.err)
			require.Equal(t, "v", g.value)
		}
		require.EqualValues(t, 1, s.loads.Load())
		require.EqualValues(t, 199, c.Stats().Coalesced)
	})
}

// interrupted is a context that runs a function when it is first asked whether it has ended: between two steps of a Get.
type interrupted struct {
	context.Context //nolint:containedctx // it is one itself
	once            *sync.Once
	run             func()
}

func (c interrupted) Err() error {
	c.once.Do(c.run)
	return c.Context.Err()
}

func TestGetThatMissedJustBeforeALoadWasKeptDoesNotLoadAgain(t *testing.T) {
	// P1 in one process, the double check: 1 A finds nothing in memory; 2 B loads the row, it is kept, B's flight ends; 3 A finds no
	// flight and begins one. A must find what B kept rather than load it again.
	synctest.Test(t, func(t *testing.T) {
		s := newSource(map[string]string{"k": "v"})
		c := openAlone(t, s, nil)
		ctx := interrupted{t.Context(), new(sync.Once), func() { wantValue(t, c, "k", "v") }}
		value, err := c.Get(ctx, "k")
		require.NoError(t, err)
		require.Equal(t, "v", value)
		require.EqualValues(t, 1, s.loads.Load(), "loads")
	})
}

func TestCallersLeaveAtTheirOwnEndAndTheLoadGoesOn(t *testing.T) {
	// P9: a caller leaves when its context ends, whoever began the load, with the context's own error and cause. The load goes on, even
	// with nobody left, and its result is kept.
	reason := errors.New("the user went away")
	for _, test := range []struct {
		name  string
		stays bool // a third caller without a deadline
	}{{"others stay", true}, {"nobody stays", false}} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource(map[string]string{"k": "v"})
				s.before(func(ctx context.Context, _ string) error {
					time.Sleep(time.Second)
					return ctx.Err()
				})
				c := openAlone(t, s, nil)
				begun := time.Now()

				first, cancel := context.WithCancelCause(t.Context())
				leader := goGet(first, c, "k")
				synctest.Wait()
				second, stop := context.WithTimeout(t.Context(), 300*time.Millisecond)
				defer stop()
				follower := goGet(second, c, "k")
				var last <-chan got
				if test.stays {
					last = goGet(t.Context(), c, "k")
				}
				pass(100 * time.Millisecond)
				cancel(reason)

				g := <-leader
				require.ErrorIs(t, g.err, reason)
				require.ErrorIs(t, g.err, context.Canceled)
				require.Equal(t, 100*time.Millisecond, g.at.Sub(begun))
				g = <-follower
				require.ErrorIs(t, g.err, context.DeadlineExceeded)
				require.Equal(t, 300*time.Millisecond, g.at.Sub(begun))
				var failed *tiercache.LoadError
				require.NotErrorAs(t, g.err, &failed)
				if test.stays {
					g = <-last
					require.NoError(t, g.err)
					require.Equal(t, "v", g.value)
				}
				pass(time.Second)
				wantValue(t, c, "k", "v")
				require.EqualValues(t, 1, s.loads.Load())
				require.EqualValues(t, 1, c.Stats().MemoryHits)
			})
		})
	}
}

func TestGetWithAnEndedContextAnswersFromMemoryAndLoadsNothing(t *testing.T) {
	// What memory has, fresh or stale, is answered even if ctx has ended; for anything else nobody is asked.
	synctest.Test(t, func(t *testing.T) {
		s := newSource(map[string]string{"k": "v"})
		c := openAlone(t, s, func(o *tiercache.Options[string, string]) { o.TTL = time.Minute })
		wantValue(t, c, "k", "v")
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		value, err := c.Get(ended, "k")
		require.NoError(t, err)
		require.Equal(t, "v", value)
		_, err = c.Get(ended, "other")
		require.ErrorIs(t, err, context.Canceled)
		require.EqualValues(t, 1, s.loads.Load())
		pass(90 * time.Second)
		value, err = c.Get(ended, "k")
		require.NoError(t, err)
		require.Equal(t, "v", value)
	})
}

func TestBackgroundRebuildOutlivesTheRequestThatBeganIt(t *testing.T) {
	// P9: a stale hit begins a rebuild that is finished although its request ends at once.
	synctest.Test(t, func(t *testing.T) {
		s := newSource(map[string]string{"k": "old"})
		c := openAlone(t, s, func(o *tiercache.Options[string, string]) { o.TTL = time.Minute })
		wantValue(t, c, "k", "old")
		pass(time.Minute)
		s.write("k", "new")
		s.before(func(ctx context.Context, _ string) error {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Second):
				return nil
			}
		})
		ctx, cancel := context.WithCancel(t.Context())
		value, err := c.Get(ctx, "k")
		cancel()
		require.NoError(t, err)
		require.Equal(t, "old", value)
		pass(time.Second)
		wantValue(t, c, "k", "new")
		require.EqualValues(t, 2, s.loads.Load())
	})
}

// inContext is the key of a value in a context.
type inContext struct{}

func TestLoaderGetsTheValuesButNotTheEndOfItsCallersContext(t *testing.T) {
	// A loader sees the first caller's context values, and a deadline of its own: LoadTimeout, not the caller's.
	synctest.Test(t, func(t *testing.T) {
		s := newSource(map[string]string{"k": "v"})
		begun := time.Now()
		seen := make(chan string, 1)
		s.before(func(ctx context.Context, _ string) error {
			deadline, _ := ctx.Deadline()
			time.Sleep(time.Second)
			seen <- fmt.Sprintf("%v %v %v", ctx.Value(inContext{}), deadline.Sub(begun), ctx.Err())
			return nil
		})
		c := openAlone(t, s, func(o *tiercache.Options[string, string]) { o.LoadTimeout = 5 * time.Second })
		ctx, cancel := context.WithTimeout(context.WithValue(t.Context(), inContext{}, "trace 7"), 10*time.Millisecond)
		defer cancel()
		_, err := c.Get(ctx, "k")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, "trace 7 5s <nil>", <-seen)
	})
}

func TestLoaderThatPanicsOrEndsItsGoroutineHarmsNobody(t *testing.T) {
	// P9: every waiter gets a typed error and none an empty value; the key is free at once.
	cause := errors.New("index out of range")
	for _, test := range []struct {
		name string
		end  func()
		want error
	}{
		{"panic with an error", func() { panic(cause) }, cause},
		{"panic with a text", func() { panic("boom") }, nil},
		{"Goexit", runtime.Goexit, tiercache.ErrGoexit},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSource(map[string]string{"k": "v"})
				s.before(func(context.Context, string) error {
					time.Sleep(time.Second)
					test.end()
					return nil
				})
				c := openAlone(t, s, nil)
				var all []<-chan got
				for range 20 {
					all = append(all, goGet(t.Context(), c, "k"))
				}
				for _, one := range all {
					g := <-one
					var failed *tiercache.LoadError
					require.ErrorAs(t, g.err, &failed)
					require.Equal(t, "k", failed.Key)
					if test.want != nil {
						require.ErrorIs(t, g.err, test.want)
					}
					if errors.Is(g.err, tiercache.ErrGoexit) {
						continue
					}
					var panicked *tiercache.PanicError
					require.ErrorAs(t, g.err, &panicked)
					require.Contains(t, string(panicked.Stack), "local_test.go", "the stack is the loader's")
				}
				require.EqualValues(t, 1, s.loads.Load())
				stats := c.Stats()
				require.EqualValues(t, 1, stats.LoadPanics)
				require.EqualValues(t, 1, stats.LoadErrors)
				require.Zero(t, stats.LoadsRunning)
				s.before(nil)
				wantValue(t, c, "k", "v")
			})
		})
	}
}

func TestPanicInABackgroundRebuildHarmsNobody(t *testing.T) {
	// P9: a rebuild that nobody waits for panics: the process lives, the panic is counted, stale goes on being answered, the next rebuild
	// works.
	synctest.Test(t, func(t *testing.T) {
		s := newSource(map[string]string{"k": "old"})
		c := openAlone(t, s, func(o *tiercache.Options[string, string]) { o.TTL = time.Minute })
		wantValue(t, c, "k", "old")
		pass(time.Minute)
		s.before(func(context.Context, string) error { panic("boom") })
		wantValue(t, c, "k", "old")
		synctest.Wait()
		require.EqualValues(t, 1, c.Stats().LoadPanics)
		s.write("k", "new")
		s.before(nil)
		wantValue(t, c, "k", "old")
		synctest.Wait()
		wantValue(t, c, "k", "new")
	})
}

func TestSlowLoadOfOneKeyBlocksNoOtherKey(t *testing.T) {
	// While one loader hangs, other keys are answered from memory, loaded, set and invalidated without any time passing: no lock is held
	// across a load. The hundred keys meet every stripe that the slow one could share.
	synctest.Test(t, func(t *testing.T) {
		s := newSource(map[string]string{"slow": "v"})
		for i := range 100 {
			s.write(fmt.Sprint(i), "v")
		}
		s.before(func(_ context.Context, key string) error {
			if key == "slow" {
				time.Sleep(time.Second)
			}
			return nil
		})
		c := openAlone(t, s, nil)
		slow := goGet(t.Context(), c, "slow")
		synctest.Wait()
		begun := time.Now()
		for i := range 100 {
			key := fmt.Sprint(i)
			wantValue(t, c, key, "v")
			wantValue(t, c, key, "v")
			require.NoError(t, c.Set(t.Context(), key, "w"))
			require.NoError(t, c.Invalidate(t.Context(), key))
		}
		require.Zero(t, time.Since(begun))
		g := <-slow
		require.NoError(t, g.err)
	})
}

func TestStaleReadsBeginOneRebuildAKey(t *testing.T) {
	// 5,000 stale reads while a rebuild is slow begin no other, and keep no goroutine each.
	synctest.Test(t, func(t *testing.T) {
		s := newSource(map[string]string{"k": "v"})
		c := openAlone(t, s, func(o *tiercache.Options[string, string]) { o.TTL = time.Minute })
		wantValue(t, c, "k", "v")
		pass(time.Minute)
		unlock := s.lock()
		defer unlock()
		before := runtime.NumGoroutine()
		for range 5000 {
			wantValue(t, c, "k", "v")
		}
		synctest.Wait()
		require.Less(t, runtime.NumGoroutine()-before, 10)
		unlock()
		synctest.Wait()
		require.EqualValues(t, 2, s.loads.Load())
		require.EqualValues(t, 5000, c.Stats().StaleServed)
	})
}

func TestConcurrentCallersOfManyKeysLoadEachOnce(t *testing.T) {
	// P1 in one process under traffic: 50 goroutines over 100 keys in different orders load each key once.
	synctest.Test(t, func(t *testing.T) {
		s := newSource(nil)
		for i := range 100 {
			s.write(fmt.Sprint(i), fmt.Sprint("v", i))
		}
		var wrong atomic.Int64
		c := openAlone(t, s, nil)
		var all sync.WaitGroup
		for g := range 50 {
			all.Go(func() {
				for i := range 100 {
					n := (i*7 + g) % 100
					if v, err := c.Get(t.Context(), fmt.Sprint(n)); err != nil || v != fmt.Sprint("v", n) {
						wrong.Add(1)
					}
				}
			})
		}
		all.Wait()
		require.Zero(t, wrong.Load())
		require.EqualValues(t, 100, s.loads.Load())
	})
}
