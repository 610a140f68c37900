package tiercache_test

import (
	"container/heap"
	"context"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/internal/redistest"
)

// due is a key and when it is asked for next.
type due struct {
	key int
	at  time.Duration
}

// dues is a heap of them, the next one first.
type dues []due

func (d dues) Len() int           { return len(d) }
func (d dues) Less(i, j int) bool { return d[i].at < d[j].at }
func (d dues) Swap(i, j int)      { d[i], d[j] = d[j], d[i] }
func (d *dues) Push(x any)        { *d = append(*d, x.(due)) } //nolint:forcetypeassert // of this file only
func (d *dues) Pop() any {
	last := (*d)[len(*d)-1]
	*d = (*d)[:len(*d)-1]
	return last
}

// waves has a cache without Redis filled with keys 0 to keys-1 within fill, each of them asked for again the moment it ends, until the time given:
// the most that expiry can do to a source. It returns the lives that each key was given, one after the other, and how many keys were loaded
// in each tenth of a fill.
func waves(t *testing.T, o tiercache.Options[int, int], keys int, fill, until time.Duration) (lives [][]time.Duration, loads []int) {
	t.Helper()
	begun := time.Now()
	loads = make([]int, until/(fill/10)+1)
	o.Name, o.MemoryBytes = "waves", 64<<20
	o.Load = func(_ context.Context, key int) (int, error) {
		loads[time.Since(begun)/(fill/10)]++
		return key, nil
	}
	c := openCache(t, o)
	lives = make([][]time.Duration, keys)
	var next dues
	for key := range keys {
		next = append(next, due{key, fill * time.Duration(key) / time.Duration(keys)})
	}
	heap.Init(&next)
	for next[0].at < until {
		d := &next[0]
		time.Sleep(d.at - time.Since(begun))
		e, err := c.GetEntry(t.Context(), d.key)
		require.NoError(t, err)
		require.Equal(t, tiercache.Source, e.Tier, "key %d is loaded when it has ended, at %v", d.key, d.at)
		lives[d.key] = append(lives[d.key], e.FreshFor)
		d.at += e.FreshFor
		heap.Fix(&next, 0)
	}
	return lives, loads
}

// peakToMean is the most loads in a tenth of a fill over their mean, without the fill.
func peakToMean(loads []int) float64 {
	sum, most := 0, 0
	for _, n := range loads[10:] {
		sum, most = sum+n, max(most, n)
	}
	return float64(most) * float64(len(loads)-10) / float64(sum)
}

// Avalanche: keys that are loaded together into an empty cache do not end together, in any TTL from the first on. Without jitter and spread
// the wave comes again and again.
// Broken by: the call of cold.spreads in Cache.lives, or cold.begin in Cache.open.
func TestKeysLoadedTogetherDoNotEndTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const keys, fill, ttl, until = 4000, 12 * time.Second, 2 * time.Minute, 14 * time.Minute
		_, plain := waves(t, tiercache.Options[int, int]{TTL: ttl, MaxStale: -1, Jitter: -1}, keys/10, fill, until)
		require.Greater(t, peakToMean(plain), 8.0, "the wave is there")
		_, loads := waves(t, tiercache.Options[int, int]{TTL: ttl, MaxStale: -1}, keys, fill, until)
		// Of the 42 loads that are expected in a tenth of a fill 63 are three sigma more.
		require.Less(t, peakToMean(loads), 1.8)
		for i := 10; i+10 <= len(loads); i += 10 {
			sum := 0
			for _, n := range loads[i : i+10] {
				sum += n
			}
			require.Less(t, float64(sum), 1.5*keys*float64(fill)/float64(ttl-ttl/20), "loads in the time of fill %d", i/10)
		}
	})
}

// Cold spread is once a key: its first life is any part of TTL between a tenth and all, its later ones lose at most the jitter. That needs
// no stale copy to tell the two apart.
// Broken by: in cold.spreads, `now.Sub(last.since) < ttl` for the comparison with the key's own share.
func TestColdSpreadIsOnceAKey(t *testing.T) {
	t.Parallel()
	for _, stale := range []time.Duration{0, -1} {
		t.Run(fmt.Sprint("MaxStale ", stale), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const keys, fill, ttl = 1000, 12 * time.Second, 2 * time.Minute
				lives, _ := waves(t, tiercache.Options[int, int]{TTL: ttl, MaxStale: stale, Jitter: 0.1, StaleWait: time.Second}, keys, fill, 10*time.Minute)
				parts := map[int]int{}
				for key, all := range lives {
					require.GreaterOrEqual(t, all[0], ttl/10, "first life of key %d", key)
					require.LessOrEqual(t, all[0], ttl)
					parts[int(10*all[0]/(ttl+1))]++
					for i, life := range all[1:] {
						require.GreaterOrEqual(t, life, ttl*9/10, "life %d of key %d", i+1, key)
						require.LessOrEqual(t, life, ttl)
					}
				}
				for part := 1; part < 9; part++ { // 111 are expected, 86 in the last, where late keys have their whole life
					require.InDelta(t, 111, parts[part], 45, "first lives of %d tenths of TTL: %v", part, parts)
				}
			})
		})
	}
}

// A cache that is not cold any more spreads nothing; one in which far more than usual is loaded at once becomes cold again, for what is
// loaded from then on.
// Broken by: the call of rate.high in cold.loading.
func TestManyLoadsAtOnceAreSpread(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const ttl = 10 * time.Minute
		s := newSource(nil)
		s.before(func(context.Context, string) error { return nil })
		c := openAlone(t, s, func(o *tiercache.Options[string, string]) {
			o.TTL, o.Jitter, o.MaxStale = ttl, 0.1, -1
			o.Load = func(context.Context, string) (string, error) { return "row", nil }
		})
		whole := func(first, n int, every time.Duration) (whole int) {
			for i := range n {
				e, err := c.GetEntry(t.Context(), strconv.Itoa(first+i))
				require.NoError(t, err)
				if e.FreshFor >= ttl*9/10 {
					whole++
				}
				pass(every)
			}
			return whole
		}
		pass(ttl)
		require.Equal(t, 600, whole(0, 600, time.Second), "one a second: nothing is cold")
		spread := 3000 - whole(10_000, 3000, time.Millisecond)
		// The first thousand make it cold; of the rest a ninth is expected to draw more than 0.9.
		require.InDelta(t, 2000.0*8/9, spread, 150, "keys that live for less than jitter would leave them")
		pass(ttl)
		require.Equal(t, 300, whole(20_000, 300, time.Second), "it passes by itself")
	})
}

// lifeOf is for how many milliseconds the last fill of a process may be fresh.
func lifeOf(t *testing.T, p *peer) time.Duration {
	t.Helper()
	fill := p.wire.last("fill")
	require.NotEmpty(t, fill.argv)
	ms, err := strconv.ParseInt(fmt.Sprint(fill.argv[4]), 10, 64)
	require.NoError(t, err)
	return time.Duration(ms) * time.Millisecond
}

// settle makes a namespace one that is in use for an hour: caches opened on it from then on are not cold.
func settle(t *testing.T, rdb redis.UniversalClient, name string) {
	t.Helper()
	at := "tc:" + name + ":gen"
	hourAgo := redisTime(t, rdb, at) - time.Hour.Milliseconds()
	require.NoError(t, rdb.Set(t.Context(), at, hourAgo*1000, time.Hour).Err())
}

// Cold spread with Redis: a namespace that begins is cold for all processes alike: a key's share is the same in each, so that what one spread
// the other does not. One in use for long is not; after it was flushed it is, but for keys of which a stale copy stands. Cleared, it is too.
// Broken by: Begun in Cache.events; cold.begin in Cache.lost; `stood` in cold.spreads.
func TestColdSpreadWhereRedisIsEmpty(t *testing.T) {
	t.Parallel()
	onRedis(t, func(t *testing.T, client func(*testing.T) redis.UniversalClient) {
		const ttl, keys = time.Hour, 40
		s := newSource(nil)
		for i := range keys {
			s.write(strconv.Itoa(i), "row")
		}
		open := func(t *testing.T, name string) *peer {
			t.Helper()
			o := lasting(name, s)
			o.TTL, o.Jitter, o.StaleWait = ttl, 0.01, patience
			return openPeer(t, client(t), o)
		}
		// fills has every key loaded, but for the one left out, and returns the lives and how many jitter alone would not have made so short.
		fills := func(t *testing.T, p *peer, name string, out int) (lives [keys]time.Duration, spread int) {
			t.Helper()
			for i := range keys {
				if i == out {
					continue
				}
				require.NoError(t, p.rdb.Del(t.Context(), valueKey(name, strconv.Itoa(i))).Err())
				requireGet(t, p, strconv.Itoa(i), "row")
				lives[i] = lifeOf(t, p)
				require.GreaterOrEqual(t, lives[i], ttl/10)
				if lives[i] < ttl*99/100 {
					spread++
				}
			}
			return lives, spread
		}
		name := redistest.Name(t)
		a := open(t, name)
		lives, spread := fills(t, a, name, -1)
		require.Greater(t, spread, keys*3/4, "a namespace that begins is cold")
		again, _ := fills(t, open(t, name), name, -1)
		require.Equal(t, lives, again, "lives in another process")

		name = redistest.Name(t)
		settle(t, a.rdb, name)
		b := open(t, name)
		_, spread = fills(t, b, name, -1)
		require.Zero(t, spread, "one in use for an hour is not")

		require.NoError(t, b.rdb.Del(t.Context(), "tc:"+name+":gen").Err())
		eventually(t, func() bool { return b.Stats().Failovers > 0 && b.Stats().Pending == 0 }, "the flush is noticed")
		short := slices.Index(lives[:], slices.Min(lives[:])) // would be spread
		stands := strconv.Itoa(short)
		makeStale(t, b.rdb, valueKey(name, stands))
		requireGet(t, b, stands, "row")
		require.GreaterOrEqual(t, lifeOf(t, b), ttl*99/100, "the life of what stood there, past its soft end, all the same")
		flushed, spread := fills(t, b, name, short)
		require.Greater(t, spread, keys*3/4, "flushed, it is cold")
		lives[short] = 0
		require.Equal(t, lives, flushed, "every share is the same again")
	})
}

// Clear empties a cache, in every process: what is loaded next is spread.
// Broken by: Begun(since) in Space.adopt.
func TestClearedCacheIsCold(t *testing.T) {
	t.Parallel()
	server, name, s := redistest.Shared(t), redistest.Name(t), newSource(nil)
	o := lasting(name, s)
	o.TTL, o.Jitter = time.Hour, 0.01
	settle(t, server.Client(t), name)
	peers := openPeers(t, 2, func(t *testing.T) redis.UniversalClient { t.Helper(); return server.Client(t) }, o)
	require.NoError(t, peers[0].Clear(t.Context()))
	for _, p := range peers {
		spread := 0
		for i := range 20 {
			key := strconv.Itoa(i)
			s.write(key, "row")
			require.NoError(t, p.rdb.Del(t.Context(), valueKey(name, key)).Err())
			requireGet(t, p, key, "row")
			if lifeOf(t, p) < o.TTL*99/100 {
				spread++
			}
		}
		require.Greater(t, spread, 10)
	}
}
