package tiercache_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
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

// failLoads has c fail to load so many keys that were not asked for before.
func failLoads(t *testing.T, c cacheOfStrings, n int) {
	t.Helper()
	for i := range n {
		_, err := c.Get(t.Context(), fmt.Sprintf("failing %d", i))
		require.ErrorIs(t, err, errDown)
	}
}

func TestFailingSourceIsAskedNoMore(t *testing.T) {
	// P8: after twenty keys failed no key is loaded any more: what is stale is answered, counted and told with the cause, else callers get
	// ErrBreakerOpen with the last failure in a *LoadError. The key that was refused does not rest. When the source is well again three
	// loads find that out, and all is as before.
	// Broken by: "c.breaker" in open's NewLoads made nil; "case errors.Is(err, ErrBreakerOpen):" left out of countLoad; "!turnedAway(err)" in
	// countsAsFailure made !errors.Is(err, ErrOverloaded); "!turnedAway(err)" left out of loaded.
	synctest.Test(t, func(t *testing.T) {
		s := newSource(map[string]string{"known": "v", "other": "v", "third": "v", "fourth": "v"})
		var told []string
		var loads, stale atomic.Int64
		c := openAlone(t, s, func(o *tiercache.Options[string, string]) {
			o.TTL = time.Minute
			o.Hooks = &tiercache.Hooks{
				Breaker: func(target, state string) { told = append(told, target+" "+state) },
				Load:    func(uint64, time.Duration, error) { loads.Add(1) },
				Stale: func(_ uint64, _ time.Duration, cause error) {
					if errors.Is(cause, tiercache.ErrBreakerOpen) {
						stale.Add(1)
					}
				},
			}
			o.StaleWait = time.Second
		})
		wantValue(t, c, "known", "v")
		pass(time.Minute)
		s.fail()
		failLoads(t, c, 20)
		stats := c.Stats()
		require.EqualValues(t, []uint64{2, 1, 0}, []uint64{stats.SourceBreaker, stats.SourceBreakerTrips, stats.BreakerRefused})

		for range 5 {
			_, err := c.Get(t.Context(), "other")
			wantLoadError(t, err, "other", tiercache.ErrBreakerOpen)
			wantLoadError(t, err, "other", errDown)
			e, err := c.GetEntry(t.Context(), "known")
			require.NoError(t, err)
			require.True(t, e.Stale)
		}
		stats = c.Stats()
		require.EqualValues(t, 21, s.loads.Load())
		require.EqualValues(t, 21, loads.Load(), "the hook is told of loads only")
		require.EqualValues(t, 20, stats.LoadErrors)
		require.EqualValues(t, 10, stats.BreakerRefused)
		require.EqualValues(t, 5, stats.StaleErrors)
		require.EqualValues(t, 5, stale.Load())
		require.Zero(t, stats.BackOffs+stats.Shed)

		s.before(nil)
		pass(1201 * time.Millisecond)
		for _, key := range []string{"other", "third", "fourth", "known"} {
			wantValue(t, c, key, "v")
		}
		require.EqualValues(t, 25, s.loads.Load())
		require.Equal(t, []string{"source open", "source half-open", "source closed"}, told)
		require.Zero(t, c.Stats().SourceBreaker)
	})
}

func TestLoadManyCountsOnceForTheBreaker(t *testing.T) {
	// A LoadMany that fails for many keys is one failed load: it takes twenty calls to open the breaker, then the call is refused for all.
	// Broken by: "l.breaker.end(call, err)" done twice in Run.
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		c := openAlone(t, newSource(nil), func(o *tiercache.Options[string, string]) {
			o.Load = nil
			o.LoadMany = func(context.Context, []string) (map[string]string, error) { calls++; return nil, errDown }
		})
		get := func() error {
			var keys []string
			for i := range 50 {
				keys = append(keys, fmt.Sprintf("%d of %d", i, calls))
			}
			_, err := c.GetMany(t.Context(), keys)
			return err
		}
		for range 20 {
			require.NotErrorIs(t, get(), tiercache.ErrBreakerOpen)
		}
		require.ErrorIs(t, get(), tiercache.ErrBreakerOpen)
		require.Equal(t, 20, calls)
		require.Zero(t, c.Stats().BackOffs)
	})
}

func TestBreakerMayBeOff(t *testing.T) {
	// With a negative rate every key that does not rest is asked for, however many failed before.
	// Broken by: "if o.FailureRate < 0" left out of NewBreaker.
	synctest.Test(t, func(t *testing.T) {
		s := newSource(nil)
		s.fail()
		c := openAlone(t, s, func(o *tiercache.Options[string, string]) { o.Breaker.FailureRate = -1 })
		failLoads(t, c, 100)
		require.EqualValues(t, 100, s.loads.Load())
	})
}

// P8 in a fleet: a load that the breaker of one process refuses gives its lease back, and is no failure of the key: another process, of
// which the loads succeed, has it at once.
// Broken by: "!turnedAway(err)" in countsAsFailure made !errors.Is(err, ErrOverloaded): the key rests after the second refusal.
func TestRefusedLoadGivesItsLeaseBack(t *testing.T) {
	onRedis(t, func(t *testing.T, client func(t *testing.T) redis.UniversalClient) {
		name := redistest.Name(t)
		bad, good := newSource(nil), newSource(map[string]string{"k": "v"})
		bad.fail()
		o := lasting(name, bad)
		o.Breaker = rebuild.BreakerOptions{OpenFor: time.Hour}
		a, b := openPeer(t, client(t), o), openPeer(t, client(t), lasting(name, good))
		failLoads(t, a.Cache, 20)
		for range 4 {
			_, err := a.Get(t.Context(), "k")
			wantLoadError(t, err, "k", tiercache.ErrBreakerOpen)
		}
		requireGet(t, b, "k", "v")
		require.EqualValues(t, 1, good.loads.Load())
		requireGet(t, a, "k", "v")
		require.EqualValues(t, 20, bad.loads.Load())
		require.Zero(t, a.Stats().BackOffs+b.Stats().BackOffs)
	})
}

// tiers are where p has the answers from, which must be right; p keeps nothing in memory.
func tiers(t *testing.T, p *process, keys []string, want string) map[string]tiercache.Tier {
	t.Helper()
	found := map[string]tiercache.Tier{}
	for _, key := range keys {
		e, err := p.GetEntry(t.Context(), key)
		require.NoError(t, err)
		require.Equal(t, want, e.Value)
		found[key] = e.Tier
	}
	return found
}

// known writes keys into Redis and the source.
func (w *site) known(t *testing.T, p *process, s *source, keys []string) {
	t.Helper()
	for _, key := range keys {
		s.write(key, "v")
		wantValue(t, p.Cache, key, "v")
	}
}

// P7: when Redis is back reads go to it key by key: some keys are answered from there while others are still loaded, a key that was answered
// from there is not loaded again, in the end all are; the source is never asked for more at once than the gate lets in, and no caller is
// told of anything. The states of the breaker are told.
// Broken by: "&& (turn || !c.outOfTurn(key))" left out of readable; place(id) made rand.Float64() in turn.
func TestReadsComeBackToRedisInTurns(t *testing.T) {
	onSites(t, func(t *testing.T, w *site) {
		s := newSource(map[string]string{w.other: "v"})
		o := lasting(w.name, s)
		o.MemoryTTL = -1
		told := make(chan string, 100)
		o.Hooks = &tiercache.Hooks{Breaker: func(target, state string) { told <- target + " " + state }}
		p := openBrief(t, w.client(t), patient, o)
		keys := w.keys("k", 60)
		w.known(t, p, s, keys)
		w.kill(t, p)
		require.Equal(t, "redis open", await(t, told, "the hook"))
		require.EqualValues(t, 2, p.Stats().RedisBreaker)
		w.restart()
		asking(t, func() bool { return p.shared.Stats().StateChanges == 2 }, "Redis is known to be back")

		loaded, mixed := false, false
		shared := map[string]bool{}
		asking(t, func() bool {
			n := map[tiercache.Tier]int{}
			for key, tier := range tiers(t, p, keys, "v") {
				n[tier]++
				require.False(t, shared[key] && tier != tiercache.Shared, "%s was answered from Redis before", key)
				shared[key] = tier == tiercache.Shared
			}
			loaded = loaded || n[tiercache.Source] > 0
			mixed = mixed || n[tiercache.Source] > 0 && n[tiercache.Shared] > 0
			w.undisturbed(t, p)
			return n[tiercache.Shared] == len(keys)
		}, "all keys are answered from Redis")
		require.True(t, loaded, "not all at once")
		require.True(t, mixed, "key by key")
		require.Equal(t, "redis half-open", await(t, told, "the hook"))
		require.Equal(t, "redis closed", await(t, told, "the hook"))
		require.EqualValues(t, 1, p.Stats().RedisBreakerTrips)
	})
}

// P2, P5: 1 Redis goes; memory has the old values; 2 Redis is back, another process writes and invalidates, which this process does not hear;
// 3 this process finds Redis back, and the gap. From then on it answers none of the old values, in whatever order the keys have their turns, and has the new ones from Redis.
// Broken by: "return !ok || copied.Heard" made "return true" in outOfTurn.
func TestCopiesOfBeforeTheGapAreAskedForBeforeTheirTurn(t *testing.T) {
	onSites(t, func(t *testing.T, w *site) {
		s := newSource(nil)
		o := lasting(w.name, s)
		o.MemoryTTL = 5 * time.Minute
		a := openPeer(t, w.client(t), o)
		keys := w.keys("k", 60)
		w.known(t, a.process, s, keys)
		gaps := a.Stats().BusGaps
		w.kill(t, a.process)
		w.restart()
		b := openPeer(t, w.client(t), o)
		for _, key := range keys {
			s.write(key, "new")
			require.NoError(t, b.rdb.Unlink(t.Context(), valueKey(w.name, key)).Err()) // an invalidation whose event A does not hear
			requireGet(t, b, key, "new")
		}
		asking(t, func() bool {
			return a.shared.Stats().StateChanges == 2 && a.Stats().BusGaps > gaps && a.hearing.Load()
		}, "A finds Redis back, and the gap")
		loads := a.Stats().Loads
		for _, key := range keys {
			requireGet(t, a, key, "new")
		}
		require.Equal(t, loads, a.Stats().Loads, "Redis was asked, not the source")
	})
}

// P3, P7: what writes goes to Redis as soon as that answers, whosever turn it is: nothing is queued, and other processes hear of it.
// Broken by: "if !m.unreachable()" in refuse made "if m.phase.Load() >= 0".
func TestWritesDoNotWaitForATurn(t *testing.T) {
	onSites(t, func(t *testing.T, w *site) {
		s := newSource(nil)
		o := lasting(w.name, s)
		a := openPeer(t, w.client(t), o)
		keys := w.keys("k", 60)
		w.known(t, a.process, s, keys)
		w.kill(t, a.process)
		w.restart()
		b := openPeer(t, w.client(t), o)
		asking(t, func() bool { return a.shared.Stats().StateChanges == 2 }, "A finds Redis back")
		for i, key := range keys {
			write := func(context.Context) error { s.write(key, "new"); return nil }
			switch i % 3 {
			case 0:
				require.NoError(t, a.Update(t.Context(), key, write))
			case 1:
				require.NoError(t, errors.Join(write(t.Context()), a.Invalidate(t.Context(), key)))
			case 2:
				require.NoError(t, errors.Join(write(t.Context()), a.Set(t.Context(), key, "new")))
			}
			requireGet(t, a, key, "new")
			requireGet(t, b, key, "new")
			v, err := a.Refresh(t.Context(), key)
			require.NoError(t, err)
			require.Equal(t, "new", v)
		}
		require.Zero(t, a.Stats().Pending)
	})
}

// P4: what is loaded before the key's turn is kept for one delete window at most: Redis may hold a window in which the source's replicas lag.
// Seen by what the source is asked for: a key that is asked for all the time is loaded again and again until its turn comes, and then not.
// Broken by: "a.cut = end" left out of newAlone.
func TestWhatIsLoadedOutOfTurnIsKeptBriefly(t *testing.T) {
	onSites(t, func(t *testing.T, w *site) {
		s := newSource(nil)
		var mu sync.Mutex
		loads := map[string]int{} // guarded by mu
		o := lasting(w.name, s)
		o.DeleteWindow, o.MemoryTTL = 50*time.Millisecond, 5*time.Minute
		a, b := openPeer(t, w.client(t), o), openPeer(t, w.client(t), o)
		seen := false
		for round := 0; round < 5 && !seen; round++ { // on a machine that stands still all turns may come at once
			keys := w.keys(fmt.Sprintf("r%d-", round), 40)
			asking(t, func() bool { return b.Stats().RedisBreaker == 0 }, "B reads Redis")
			w.known(t, b.process, s, keys) // so that Redis has them when their turn comes
			w.kill(t, a.process)
			w.restart()
			asking(t, func() bool { return a.shared.Stats().StateChanges%2 == 0 && a.hearing.Load() }, "A finds Redis back")
			mu.Lock()
			clear(loads)
			mu.Unlock()
			s.after(func(key string) {
				mu.Lock()
				defer mu.Unlock()
				loads[key]++
			})
			asking(t, func() bool {
				for _, key := range keys {
					requireGet(t, a, key, "v")
					mu.Lock()
					seen = seen || loads[key] > 1
					mu.Unlock()
				}
				return seen || a.Stats().RedisBreaker == 0
			}, "all turns have come")
			s.after(nil)
		}
		require.True(t, seen, "nothing was loaded twice")
	})
}

// P7, P8: 1 Redis is back; 2 the source fails, before most keys have had their turn. Nobody is told of that as long as Redis has the rows: a load
// out of turn that failed, or that breaker or gate refused, is answered from there. In a batch as well.
// Broken by: "if !c.taken(…)" in orShared made "if true"; for batches orShared left out of failMany.
func TestFailedLoadOutOfTurnIsAnsweredFromRedis(t *testing.T) {
	onSites(t, func(t *testing.T, w *site) {
		s := newSource(nil)
		o := lasting(w.name, s)
		o.MemoryTTL = -1
		one := openBrief(t, w.client(t), patient, o)
		o.LoadMany = func(context.Context, []string) (map[string]string, error) { return nil, errDown }
		many := openBrief(t, w.client(t), patient, o)
		keys := w.keys("k", 60)
		w.known(t, one, s, keys)
		wantValue(t, many.Cache, keys[0], "v")
		w.kill(t, one, many)
		w.restart()
		for _, p := range []*process{one, many} {
			asking(t, func() bool { return p.shared.Stats().StateChanges == 2 }, "Redis is known to be back")
		}
		s.fail()
		rows, err := many.GetMany(t.Context(), keys)
		require.NoError(t, err)
		require.Len(t, rows, len(keys))
		for key, tier := range tiers(t, one, keys, "v") {
			require.Equal(t, tiercache.Shared, tier, key)
		}
		require.Zero(t, one.Stats().StaleServed+many.Stats().StaleServed)
	})
}
