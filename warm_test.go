package tiercache_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/internal/redistest"
	"github.com/tiercache/tiercache/rebuild"
)

// numbers are the keys 0 to n-1.
func numbers(n int) iter.Seq[string] {
	return func(yield func(string) bool) {
		for i := range n {
			if !yield(strconv.Itoa(i)) {
				return
			}
		}
	}
}

// rowsFor is a source that has a row for each of these keys.
func rowsFor(n int) *source {
	s := newSource(nil)
	for key := range numbers(n) {
		s.write(key, "row "+key)
	}
	return s
}

// Warm loads what is not fresh, in the time that its rate gives it, one LoadMany a hundred keys where there is one; the rest is counted as what it is.
// Afterwards nobody has to wait for these keys. Progress is told how it goes on, and how it ended.
// Broken by: in warming.begin, adding to due.
func TestWarmLoadsWhatIsNotFresh(t *testing.T) {
	for _, many := range []bool{false, true} {
		t.Run(fmt.Sprint("LoadMany ", many), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &batches{source: rowsFor(990)}
				c := openAlone(t, b.source, func(o *tiercache.Options[string, string]) {
					if many {
						o.LoadMany = b.loadMany
					}
				})
				for i := range 100 {
					wantValue(t, c, strconv.Itoa(i), fmt.Sprint("row ", i))
				}
				before := b.loads.Load()
				begun := time.Now()
				var told []tiercache.WarmReport
				report, err := c.Warm(t.Context(), numbers(1000), tiercache.WarmOptions{
					Total: 1000, Progress: func(r tiercache.WarmReport) { told = append(told, r) },
				})
				require.NoError(t, err)
				require.Equal(t, tiercache.WarmReport{Done: 1000, Total: 1000, Fresh: 100, Loaded: 890, Absent: 10, Took: time.Second}, report)
				require.Equal(t, time.Second, time.Since(begun), "a thousand keys a second")
				require.InDelta(t, 1000, report.Rate(), 1)
				require.Equal(t, report, told[len(told)-1])
				require.True(t, slices.IsSortedFunc(told, func(a, b tiercache.WarmReport) int { return int(a.Done) - int(b.Done) }))
				require.Len(t, told, 6, "five times a second, and at the end")
				if many {
					require.EqualValues(t, 9, c.Stats().Loads-100, "calls of LoadMany")
				} else {
					require.EqualValues(t, before+900, b.loads.Load())
				}
				before = b.loads.Load()
				for i := range 990 {
					wantValue(t, c, strconv.Itoa(i), fmt.Sprint("row ", i))
				}
				require.Equal(t, before, b.loads.Load())
			})
		})
	}
}

// What Warm loads does not end together, although the cache is not cold, nor is it cold afterwards: the first life is a share of TTL, the next
// a whole one.
// Broken by: the class in warming.missing, for which Cache.lives looks; the class in Cache.asking.
func TestWarmSpreadsWhatItLoads(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const ttl, keys = 10 * time.Minute, 2000
		c := openAlone(t, rowsFor(2*keys), func(o *tiercache.Options[string, string]) { o.TTL, o.Jitter, o.MaxStale = ttl, 0.1, -1 })
		pass(2 * ttl) // not cold, and with a history of loads
		_, err := c.Get(t.Context(), "0")
		require.NoError(t, err)
		pass(2 * ttl)
		_, err = c.Warm(t.Context(), numbers(keys), tiercache.WarmOptions{KeysPerSecond: -1, Concurrency: 100})
		require.NoError(t, err)
		lives := func(first int) (short int) {
			for i := range keys {
				e, err := c.GetEntry(t.Context(), strconv.Itoa(first+i))
				require.NoError(t, err)
				if e.FreshFor < ttl*9/10 {
					short++
				}
			}
			return short
		}
		require.InDelta(t, keys*8/9, lives(0), keys/20)
		pass(ttl)
		require.Less(t, lives(0), keys/2, "loaded again: so many loads at once make the cache cold, but only from the thousandth on")
		pass(2 * ttl)
		_, err = c.Warm(t.Context(), numbers(keys), tiercache.WarmOptions{KeysPerSecond: -1, Concurrency: 100})
		require.NoError(t, err)
		short := 0
		for i := range 500 {
			e, err := c.GetEntry(t.Context(), strconv.Itoa(keys+i))
			require.NoError(t, err)
			if e.FreshFor < ttl*9/10 {
				short++
			}
		}
		require.Zero(t, short, "others are not spread because Warm loaded much")
	})
}

// Warm gives way: it has a tenth of the gate's slots and none while foreground loads wait; a key that it cannot load then it loads later.
// Broken by: `w.c.gate.Waiting() > 0` in warming.mustPause; `again` in warming.load.
func TestWarmGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := rowsFor(1000)
		var busy, most atomic.Int64
		open := make(chan struct{})
		s.before(func(_ context.Context, key string) error {
			if key >= "a" {
				<-open
				return nil
			}
			n := busy.Add(1)
			defer busy.Add(-1)
			if n > most.Load() {
				most.Store(n)
			}
			time.Sleep(20 * time.Millisecond)
			return nil
		})
		c := openAlone(t, s, func(o *tiercache.Options[string, string]) {
			o.Gate = rebuild.GateOptions{Loads: 20, Waiting: 5, Wait: time.Hour}
			o.LoadTimeout = time.Hour
		})
		ended := make(chan tiercache.WarmReport, 1)
		go func() {
			report, err := c.Warm(t.Context(), numbers(200), tiercache.WarmOptions{Concurrency: 16})
			if err != nil {
				t.Error(err)
			}
			ended <- report
		}()
		pass(100 * time.Millisecond)
		require.EqualValues(t, 2, most.Load(), "loads of Warm at once: a tenth of 20")
		var waits []<-chan got
		for i := range 22 { // all slots, of which Warm may have two yet, and in the queue
			s.write(fmt.Sprint("x", i), "row")
			waits = append(waits, goGet(t.Context(), c, fmt.Sprint("x", i)))
		}
		pass(time.Second)
		loads := s.loads.Load()
		pass(time.Minute)
		require.Equal(t, loads, s.loads.Load(), "nothing is loaded for Warm while foreground loads wait")
		close(open)
		for _, w := range waits {
			require.NoError(t, (<-w).err)
		}
		report := <-ended
		require.EqualValues(t, 200, report.Loaded, "all in the end")
		require.EqualValues(t, 200, report.Done)
		require.Greater(t, report.Paused, 50*time.Second)
		require.EqualValues(t, 2, most.Load())
	})
}

// While loads take more than twice what they took at first Warm hardly loads; when they do not any more it goes on.
// Broken by: the case `slow` in warming.note.
func TestWarmPausesWhileLoadsAreSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := rowsFor(3000)
		var takes atomic.Int64
		takes.Store(int64(10 * time.Millisecond))
		s.before(func(context.Context, string) error { time.Sleep(time.Duration(takes.Load())); return nil })
		c := openAlone(t, s, nil)
		ended := make(chan tiercache.WarmReport, 1)
		go func() {
			report, err := c.Warm(t.Context(), numbers(3000), tiercache.WarmOptions{})
			if err != nil {
				t.Error(err)
			}
			ended <- report
		}()
		pass(time.Second)
		quick := s.loads.Load()
		require.Greater(t, quick, int64(400))
		takes.Store(int64(50 * time.Millisecond))
		pass(time.Minute)
		slow := s.loads.Load() - quick
		require.Less(t, slow, quick, "loads in a minute, to as many in a second before")
		require.NotZero(t, slow, "it looks now and then")
		takes.Store(int64(10 * time.Millisecond))
		report := <-ended
		require.EqualValues(t, 3000, report.Loaded)
		require.Greater(t, report.Paused, 40*time.Second)
	})
}

// Loads that stay slow are the source as it is now: Warm goes on at their pace after some pauses. Broken by: in tempo.note, best not raised.
func TestWarmGoesOnWhereLoadsStaySlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := rowsFor(3000)
		s.before(func(context.Context, string) error {
			if s.loads.Load() < 200 {
				time.Sleep(10 * time.Millisecond)
			} else {
				time.Sleep(50 * time.Millisecond)
			}
			return nil
		})
		report, err := openAlone(t, s, nil).Warm(t.Context(), numbers(3000), tiercache.WarmOptions{})
		require.NoError(t, err)
		require.EqualValues(t, 3000, report.Loaded)
		require.Greater(t, report.Paused, time.Minute)
		require.Less(t, report.Paused, 3*time.Minute, "without end: 8 s for 20 keys")
	})
}

// A Warm that is cut off ends with its context's error and says how far it came; another goes on from there. Close ends one with ErrClosed and
// leaves nothing behind.
// Broken by: context.AfterFunc in Warm; Skip in warming.each.
func TestWarmCutOffGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := rowsFor(1000)
		s.before(func(context.Context, string) error { time.Sleep(time.Millisecond); return nil })
		c := openAlone(t, s, nil)
		ctx, cancel := context.WithTimeout(t.Context(), 450*time.Millisecond)
		defer cancel()
		report, err := c.Warm(ctx, numbers(1000), tiercache.WarmOptions{})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NotErrorIs(t, err, context.Canceled)
		require.Equal(t, 450*time.Millisecond, report.Took)
		require.InDelta(t, 450, report.Done, 60)
		pass(time.Second)
		loads := s.loads.Load()
		asked := map[string]bool{}
		s.before(func(_ context.Context, key string) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			asked[key] = true
			return nil
		})
		rest, err := c.Warm(t.Context(), numbers(1000), tiercache.WarmOptions{Skip: report.Done})
		require.NoError(t, err)
		require.EqualValues(t, 1000, rest.Done)
		require.EqualValues(t, 1000-report.Done, rest.Fresh+rest.Loaded, "keys before are passed over, not looked up")
		require.EqualValues(t, 1000, loads+int64(len(asked)), "every key was loaded once")

		s.before(func(context.Context, string) error { time.Sleep(time.Millisecond); return nil })
		require.NoError(t, c.Clear(t.Context()))
		ended := make(chan error, 1)
		go func() {
			_, err := c.Warm(t.Context(), numbers(1000), tiercache.WarmOptions{})
			ended <- err
		}()
		pass(300 * time.Millisecond)
		require.NoError(t, c.Close())
		require.ErrorIs(t, <-ended, tiercache.ErrClosed)
		_, err = c.Warm(t.Context(), numbers(1), tiercache.WarmOptions{})
		require.ErrorIs(t, err, tiercache.ErrClosed)
	})
}

// P11: Close ends a Warm that pauses, and keys that it did not look at count as nothing, so that another Warm finds them:
//
//  1. A load holds the only slot, another waits: Warm pauses, with a batch in hand.
//  2. Close refuses whoever waits; Warm has no reason to pause any more.
//  3. Close still waits for a rebuild that ignores the end of its context, before it ends the context of Warm.
//  4. Warm looks its batch up, in a cache that is closed.
//
// Broken by: the case of ErrClosed in warming.missing.
func TestWarmThatCloseFindsPausedCountsNoKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := rowsFor(100)
		s.write("kept", "kept")
		release := make(chan struct{})
		s.before(func(ctx context.Context, key string) error { return until(ctx, release, key == "slow") })
		c := openAlone(t, s, func(o *tiercache.Options[string, string]) {
			o.Gate, o.LoadTimeout = rebuild.GateOptions{Loads: 1, Wait: time.Hour}, time.Hour
			o.Clone = func(v string) string {
				if v == "kept" {
					<-release
				}
				return v
			}
		})
		for _, key := range []string{"kept", "slow", "waiting"} {
			go func() { _, _ = c.Get(context.WithoutCancel(t.Context()), key) }()
			synctest.Wait()
		}
		type end struct {
			report tiercache.WarmReport
			err    error
		}
		ended := make(chan end, 1)
		go func() {
			report, err := c.Warm(t.Context(), numbers(100), tiercache.WarmOptions{})
			ended <- end{report, err}
		}()
		pass(time.Second)
		closed := make(chan error, 1)
		go func() { closed <- c.Close() }()
		pass(time.Second)
		close(release)
		require.NoError(t, <-closed)
		got := <-ended
		require.ErrorIs(t, got.err, tiercache.ErrClosed)
		require.Zero(t, got.report.Done)
		require.Zero(t, got.report.Failed)
	})
}

// P9: a panic of the sequence ends Warm although the source turns away what is under way: that is not tried again.
// Broken by: in Warm, units awaited before cancel.
func TestPanicOfTheSequenceEndsAWarmThatIsTurnedAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := rowsFor(2)
		s.before(func(context.Context, string) error { return tiercache.ErrOverloaded })
		c := openAlone(t, s, nil)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		keys := func(yield func(string) bool) {
			yield("0")
			panic("rows")
		}
		ended := make(chan error, 1)
		go func() {
			_, err := c.Warm(ctx, keys, tiercache.WarmOptions{KeysPerSecond: 10})
			ended <- err
		}()
		pass(time.Minute)
		require.Len(t, ended, 1, "it has ended")
		var panicked *tiercache.PanicError
		require.ErrorAs(t, <-ended, &panicked)
	})
}

// Keys that fail are counted and stop nothing; the error holds the first few. A panic of the sequence, or of Progress, is the caller's error.
// Broken by: the bound in warming.failed.
func TestWarmGoesOnPastFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := rowsFor(300)
		s.before(func(_ context.Context, key string) error {
			if n, _ := strconv.Atoi(key); n%10 == 0 {
				return errDown
			}
			return nil
		})
		c := openAlone(t, s, nil)
		report, err := c.Warm(t.Context(), numbers(300), tiercache.WarmOptions{})
		require.EqualValues(t, 30, report.Failed)
		require.EqualValues(t, 270, report.Loaded)
		require.EqualValues(t, 300, report.Done)
		joined, ok := err.(interface{ Unwrap() []error })
		require.True(t, ok)
		require.Len(t, joined.Unwrap(), 5)
		var failed *tiercache.LoadError
		require.ErrorAs(t, err, &failed)
		require.ErrorIs(t, err, errDown)

		var panicked *tiercache.PanicError
		_, err = c.Warm(t.Context(), func(func(string) bool) { panic("rows") }, tiercache.WarmOptions{})
		require.ErrorAs(t, err, &panicked)
		_, err = c.Warm(t.Context(), numbers(1), tiercache.WarmOptions{Progress: func(tiercache.WarmReport) { panic("bar") }})
		require.ErrorAs(t, err, &panicked)
		_, err = c.Warm(t.Context(), nil, tiercache.WarmOptions{})
		require.Error(t, err)
	})
}

// A loader's error that says of another cache that it is closed is no end of this one.
// Broken by: in warming.load, no `w.c.closed.Load()`.
func TestWarmGoesOnPastAnotherCacheThatIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := rowsFor(30)
		s.before(func(_ context.Context, key string) error {
			if key == "3" {
				return fmt.Errorf("inner: %w", tiercache.ErrClosed)
			}
			return nil
		})
		c := openAlone(t, s, nil)
		report, err := c.Warm(t.Context(), numbers(30), tiercache.WarmOptions{})
		require.EqualValues(t, 30, report.Done)
		require.EqualValues(t, 1, report.Failed)
		var failed *tiercache.LoadError
		require.ErrorAs(t, err, &failed)
		require.Equal(t, "3", failed.Key)
	})
}

// What Redis has fresh is not loaded again: a hundred keys share a round trip, and memory has them afterwards. What it has past its soft end,
// or not at all, is.
// Broken by: in warming.missing, the case of a fresh value.
func TestWarmSkipsWhatRedisHas(t *testing.T) {
	onRedis(t, func(t *testing.T, client func(*testing.T) redis.UniversalClient) {
		s, name := rowsFor(200), redistest.Name(t)
		a := openPeer(t, client(t), lasting(name, s))
		for i := range 150 {
			requireGet(t, a, strconv.Itoa(i), fmt.Sprint("row ", i))
		}
		makeStale(t, a.rdb, valueKey(name, "7"))
		b := openPeer(t, client(t), lasting(name, s))
		loads := s.loads.Load()
		report, err := b.Warm(t.Context(), numbers(200), tiercache.WarmOptions{KeysPerSecond: -1})
		require.NoError(t, err)
		require.EqualValues(t, 149, report.Fresh)
		require.EqualValues(t, 51, report.Loaded)
		require.EqualValues(t, loads+51, s.loads.Load())
		require.Zero(t, b.Stats().SharedHits, "nobody asked for them")
		hits := b.Stats().MemoryHits
		for i := range 200 {
			requireGet(t, b, strconv.Itoa(i), fmt.Sprint("row ", i))
		}
		require.EqualValues(t, hits+200, b.Stats().MemoryHits)
		require.EqualValues(t, loads+51, s.loads.Load())
	})
}

// A caller who joins a load of Warm that then finds no slot is not turned away with it:
//
//  1. Warm's rebuild of k asks for the lease.
//  2. Get of k joins it.
//  3. The gate has no slot for Warm: its rebuild ends with ErrOverloaded.
//  4. Get begins a rebuild of its own, which may queue at the gate.
//
// Broken by: the second flight in Cache.flown; in GetMany, an error that gave way settled at once.
func TestCallerWhoJoinsAWarmLoadIsNotTurnedAwayWithIt(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	for _, call := range []string{"Get", "GetMany"} {
		t.Run(call, func(t *testing.T) {
			s := newSource(map[string]string{"k": "row", "slow": "row"})
			release := make(chan struct{})
			s.before(func(ctx context.Context, key string) error {
				if key == "slow" {
					return until(ctx, release, true)
				}
				return nil
			})
			o := lasting(redistest.Name(t), s)
			o.Gate = rebuild.GateOptions{Loads: 1, Wait: patience}
			p := openPeer(t, server.Client(t), o)
			slow := p.get(t.Context(), "slow")
			eventually(t, func() bool { return s.running.Load() == 1 }, "the only slot is taken")
			reached, resume := p.wire.hold(t, before, "acquire")
			ctx, cancel := context.WithCancel(t.Context())
			warmed := make(chan error, 1)
			go func() {
				_, err := p.Warm(ctx, slices.Values([]string{"k"}), tiercache.WarmOptions{})
				warmed <- err
			}()
			await(t, reached, "Warm asks for the lease")
			got := make(chan result, 1)
			go func() {
				if call == "Get" {
					v, err := p.Get(t.Context(), "k")
					got <- result{v, err}
					return
				}
				rows, err := p.GetMany(t.Context(), []string{"k"})
				got <- result{rows["k"], err}
			}()
			eventually(t, func() bool { return p.Stats().Coalesced > 0 || p.Stats().Misses >= 2 }, "it is joined")
			resume()
			eventually(t, func() bool { return p.Stats().LoadsWaiting == 1 }, "it waits at the gate for itself")
			cancel()
			close(release)
			require.NoError(t, (<-slow).err)
			require.Equal(t, result{"row", nil}, <-got)
			if err := <-warmed; err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
}
