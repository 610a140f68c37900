package tiercache_test

import (
	"context"
	"errors"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/bloom"
	"github.com/tiercache/tiercache/internal/redistest"
)

// What each call costs in round trips and commands, counted at the client, in a process that does nothing else. What it does by itself each
// second does not count: see upkeep. The processes know their generation and the servers their scripts, as they do from a process's
// first second on.
func TestRoundTrips(t *testing.T) {
	onRedis(t, func(t *testing.T, client func(*testing.T) redis.UniversalClient) {
		s, name := newSource(map[string]string{"any": "row"}), redistest.Name(t)
		o := lasting(name, s)
		var calls atomic.Int64
		o.LoadMany = func(ctx context.Context, keys []string) (map[string]string, error) {
			calls.Add(1)
			rows := map[string]string{}
			for _, key := range keys {
				if row, err := s.load(ctx, key); err == nil {
					rows[key] = row
				}
			}
			return rows, nil
		}
		a, b := openPeer(t, client(t), o), openPeer(t, client(t), o)
		o.Name, o.TTLFor = name+"-nothing", func(string, string) time.Duration { return -1 }
		nothing := openPeer(t, client(t), o)
		o.TTLFor = nil
		o.Name, o.Filter, o.FilterAudit = name+"-filter", bloom.Options{Capacity: 1000, FalsePositiveRate: 1e-9}, -1
		f := openPeer(t, client(t), o)
		warm(t, a, b, f, nothing)
		buildFilter(t, s, []*peer{f})
		o.Name, o.Filter, o.FilterFirst = name+"-segments", inRedis, true
		first := openPeer(t, client(t), o)
		o.Name, o.FilterFirst = name+"-segments-after", false
		after := openPeer(t, client(t), o)
		warm(t, first, after)
		segments := !redistest.Shared(t).Embedded() // the embedded server has no BITFIELD_RO
		if segments {
			buildFilter(t, s, []*peer{first})
			buildFilter(t, s, []*peer{after})
		}

		down := errors.New("down")
		s.before(func(_ context.Context, key string) error {
			if key == "fails" {
				return down
			}
			return nil
		})
		fails := func(t *testing.T, p *peer) {
			t.Helper()
			_, err := p.Get(t.Context(), "fails")
			require.ErrorIs(t, err, down)
		}
		write := func(context.Context) error { return nil }
		type sent map[string]int
		for _, path := range []struct {
			name  string
			by    *peer
			set   func(t *testing.T, key string)
			do    func(t *testing.T, key string)
			trips int
			sent  sent
		}{
			{
				"memory hit", a, func(t *testing.T, key string) { requireGet(t, a, key, "row") },
				func(t *testing.T, key string) { requireGet(t, a, key, "row") }, 0,
				sent{},
			},
			{
				"redis hit", a, func(t *testing.T, key string) { requireGet(t, b, key, "row") },
				func(t *testing.T, key string) { requireGet(t, a, key, "row") }, 1,
				sent{"mget": 1},
			},
			{
				"rebuild", a, nil,
				func(t *testing.T, key string) { requireGet(t, a, key, "row") }, 3,
				sent{"mget": 1, "acquire": 1, "fill": 1},
			},
			{
				"rebuild of an absent row", a, nil,
				func(t *testing.T, key string) { requireAbsent(t, a, "no "+key) }, 3,
				sent{"mget": 1, "acquire": 1, "fill": 1},
			},
			{
				"redis says not found", a, func(t *testing.T, key string) {
					_, err := b.Refresh(t.Context(), "no "+key)
					require.ErrorIs(t, err, tiercache.ErrNotFound)
				},
				func(t *testing.T, key string) { requireAbsent(t, a, "no "+key) }, 1,
				sent{"mget": 1},
			},
			{
				"filter says not found", f, nil,
				func(t *testing.T, key string) { requireAbsent(t, f, "no "+key) }, 1,
				sent{"mget": 1},
			},
			{
				"filter in Redis says not found", after, nil,
				func(t *testing.T, key string) { requireAbsent(t, after, "no "+key) }, 2,
				sent{"mget": 1, "hget": 1, "bitfield_ro": 1},
			},
			{
				"filter in Redis says not found, asked first", first, nil,
				func(t *testing.T, key string) { requireAbsent(t, first, "no "+key) }, 1,
				sent{"hget": 1, "bitfield_ro": 1},
			},
			{
				"announce with a filter in Redis", after, nil, func(t *testing.T, key string) {
					require.NoError(t, after.Announce(t.Context(), key))
					require.NotZero(t, after.wire.count("segment"), "one more trip, which is not told from the upkeep's")
				},
				2,
				sent{"xadd": 1, "hmget": 1, "invalidate": 1},
			},
			{"failed load", a, nil, func(t *testing.T, _ string) { fails(t, a) }, 3, sent{"mget": 1, "acquire": 1, "release": 1}},
			{
				"set", a, nil, func(t *testing.T, key string) { require.NoError(t, a.Set(t.Context(), key, "row")) },
				2,
				sent{"invalidate": 1, "fill": 1},
			},
			{
				"update", a, nil, func(t *testing.T, key string) { require.NoError(t, a.Update(t.Context(), key, write)) },
				2,
				sent{"invalidate": 2},
			},
			{
				"invalidate", a, nil, func(t *testing.T, key string) { require.NoError(t, a.Invalidate(t.Context(), key)) },
				1,
				sent{"invalidate": 1},
			},
			{
				"announce", a, nil, func(t *testing.T, key string) { require.NoError(t, a.Announce(t.Context(), key)) },
				1,
				sent{"invalidate": 1},
			},
			{
				"announce with a filter", f, nil, func(t *testing.T, key string) { require.NoError(t, f.Announce(t.Context(), key)) },
				2,
				sent{"xadd": 1, "invalidate": 1},
			},
			{
				"refresh", a, func(t *testing.T, key string) { requireGet(t, a, key, "row") },
				func(t *testing.T, key string) {
					_, err := a.Refresh(t.Context(), key)
					require.NoError(t, err)
				}, 3,
				sent{"mget": 1, "acquire": 1, "fill": 1},
			},
			{
				"hot keys of the fleet", a, nil, func(t *testing.T, _ string) {
					_, err := a.FleetHotKeys(t.Context(), 10)
					require.NoError(t, err)
				},
				1,
				sent{"hot": 1},
			},
		} {
			t.Run(path.name, func(t *testing.T) {
				if !segments && (path.by == first || path.by == after) {
					t.Skip("the embedded server has no BITFIELD_RO")
				}
				key := redistest.Name(t)
				s.write(key, "row")
				if path.set != nil {
					path.set(t, key)
				}
				path.by.wire.reset()
				path.do(t, key)
				commands, trips := path.by.wire.sent()
				require.Equal(t, path.sent, sent(commands))
				if commands["bitfield_ro"] > 0 && trips > path.trips { // head and segment are on two masters, or on one
					require.True(t, clustered(path.by.rdb))
					trips--
				}
				require.Equal(t, path.trips, trips)
			})
		}

		t.Run("stale", func(t *testing.T) {
			s.write("stale", "row")
			requireGet(t, b, "stale", "row")
			makeStale(t, b.rdb, valueKey(name, "stale"))
			release := make(chan struct{})
			s.before(func(ctx context.Context, _ string) error { return until(ctx, release, true) })
			a.wire.reset()
			requireGet(t, a, "stale", "row")
			eventually(t, func() bool { return s.running.Load() == 1 }, "it is rebuilt behind")
			commands, trips := a.wire.sent()
			require.Equal(t, map[string]int{"mget": 1, "acquire": 1}, commands)
			require.Equal(t, 2, trips, "the answer cost one")
			close(release)
			eventually(t, func() bool { return a.wire.count("fill") == 1 }, "it is stored")
			_, trips = a.wire.sent()
			require.Equal(t, 3, trips)
			s.before(nil)
		})

		keys, at := make([]string, 64), map[string]bool{}
		for i := range keys {
			keys[i] = "k" + strconv.Itoa(i)
			s.write(keys[i], "row")
			at[masterOf(t, b.rdb, keys[i]).Options().Addr] = true
		}
		masters := len(at)
		many := func(t *testing.T, p *peer, want int) {
			t.Helper()
			found, err := p.GetMany(t.Context(), keys)
			require.NoError(t, err)
			require.Len(t, found, want)
		}
		for _, path := range []struct {
			name  string
			do    func(t *testing.T)
			trips int
			sent  sent // MGETs aside: one a slot
			calls int64
		}{
			{"64 misses", func(t *testing.T) { many(t, b, 64) }, 3 * masters, sent{"acquire": 64, "fill": 64}, 1},
			{"64 misses of which nothing is stored", func(t *testing.T) { many(t, nothing, 64) }, 3 * masters, sent{"acquire": 64, "release": 64}, 1},
			{"64 redis hits", func(t *testing.T) { many(t, a, 64) }, masters, sent{}, 0},
			{"64 memory hits", func(t *testing.T) { many(t, a, 64) }, 0, sent{}, 0},
			{"invalidate 64", func(t *testing.T) { require.NoError(t, a.Invalidate(t.Context(), keys...)) }, masters, sent{"invalidate": 64}, 0},
			{"update 64", func(t *testing.T) { require.NoError(t, a.UpdateMany(t.Context(), keys, write)) }, 2 * masters, sent{"invalidate": 128}, 0},
		} {
			t.Run(path.name, func(t *testing.T) {
				before := calls.Load()
				a.wire.reset()
				b.wire.reset()
				nothing.wire.reset()
				path.do(t)
				trips, sum := 0, sent{}
				for _, p := range []*peer{a, b, nothing} {
					commands, n := p.wire.sent()
					trips += n
					for name, n := range commands {
						if name != "mget" {
							sum[name] += n
						}
					}
				}
				require.Equal(t, path.trips, trips)
				require.Equal(t, path.sent, sum)
				require.Equal(t, path.calls, calls.Load()-before)
			})
		}

		t.Run("clear", func(t *testing.T) {
			a.wire.reset()
			require.NoError(t, a.Clear(t.Context()))
			commands, trips := a.wire.sent()
			require.Equal(t, map[string]int{"clear": 1}, commands)
			require.Equal(t, 1, trips)
		})

		t.Run("warm list", func(t *testing.T) {
			o := o
			o.Name, o.Filter, o.FilterAudit, o.WarmList = name+"-list", bloom.Options{}, 0, 10
			old, fresh := openPeer(t, client(t), o), openPeer(t, client(t), o)
			warm(t, fresh)
			s.write("listed", "row")
			requireGet(t, old, "listed", "row")
			old.wire.reset()
			require.NoError(t, old.Close())
			commands, trips := old.wire.sent()
			require.Equal(t, map[string]int{"warmlist": 1}, commands, "at Close")
			require.Equal(t, 1, trips)
			require.NoError(t, fresh.rdb.Del(t.Context(), valueKey(o.Name, "listed")).Err())
			fresh.wire.reset()
			_, err := fresh.WarmFromList(t.Context(), tiercache.WarmOptions{})
			require.NoError(t, err)
			commands, trips = fresh.wire.sent()
			require.Equal(t, map[string]int{"zrange": 1, "mget": 1, "acquire": 1, "fill": 1}, commands)
			require.Equal(t, 4, trips)
		})
	})
}

func clustered(rdb redis.UniversalClient) bool {
	_, ok := rdb.(*redis.ClusterClient)
	return ok
}
