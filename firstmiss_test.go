package tiercache_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/internal/faulty"
	"github.com/tiercache/tiercache/internal/redistest"
)

// keysIn counts what Redis holds of a name: values, guards, the generation.
func keysIn(t *testing.T, rdb redis.UniversalClient, name string) int {
	t.Helper()
	var n atomic.Int64
	masters(t, rdb, func(ctx context.Context, node *redis.Client) error {
		all := node.Scan(ctx, 0, "tc:"+name+":*", 10_000).Iterator()
		for all.Next(ctx) {
			n.Add(1)
		}
		return all.Err()
	})
	return int(n.Load())
}

// P11: a flood of keys that do not exist, each asked for once, adds no key to Redis: alone or in batches, and no guard either. It costs no
// round trip more than storing "not found" would. What memory keeps of them is answered without another load.
//
// Broken by: "fill.FirstMiss = " left out of encoded; "then code = 3 end" left out of fill.lua.
func TestKeysThatAreAskedForOnceAddNoKeyToRedis(t *testing.T) {
	onRedis(t, func(t *testing.T, client func(*testing.T) redis.UniversalClient) {
		s, name := newSource(nil), redistest.Name(t)
		o := lasting(name, s)
		o.LoadMany = func(context.Context, []string) (map[string]string, error) { return map[string]string{}, nil }
		a := openPeer(t, client(t), o)
		requireAbsent(t, a, "first")
		before := keysIn(t, a.rdb, name)
		a.wire.reset()
		for i := range 50 {
			requireAbsent(t, a, fmt.Sprint("none ", i))
		}
		_, trips := a.wire.sent()
		require.Equal(t, 3*50, trips)
		many := make([]string, 300)
		for i := range many {
			many[i] = fmt.Sprint("none of many ", i)
		}
		found, err := a.GetMany(t.Context(), many)
		require.NoError(t, err)
		require.Empty(t, found)
		require.Equal(t, before, keysIn(t, a.rdb, name))
		require.EqualValues(t, 351, a.Stats().FirstMisses)

		loads, batches := s.loads.Load(), a.Stats().Loads
		requireAbsent(t, a, "none 7")
		_, err = a.GetMany(t.Context(), many)
		require.NoError(t, err)
		require.Equal(t, loads, s.loads.Load(), "memory answers it")
		require.Equal(t, batches, a.Stats().Loads)
	})
}

// P6: what a process finds absent a second time it tells Redis, alone or in a batch, and the others do not load it; with AbsentMisses 1 it
// tells at once, and so does Refresh. Also where memory keeps nothing.
//
// Broken by: "!a.missed.Add(id)" in firstMiss made true; "o.AbsentMisses == 1" left out of absence; "&& !claim.why.refresh" left out of encoded.
func TestSecondMissIsToldToRedis(t *testing.T) {
	onRedis(t, func(t *testing.T, client func(*testing.T) redis.UniversalClient) {
		s, name := newSource(nil), redistest.Name(t)
		o := lasting(name, s)
		o.MemoryTTL = -1
		many := func(p *peer, key string) {
			found, err := p.GetMany(t.Context(), []string{key})
			require.NoError(t, err)
			require.Empty(t, found)
		}
		p := openPeers(t, 2, client, o)
		a, b := p[0], p[1]
		told := func(key string, loads int64) {
			require.Positive(t, ttl(t, a.rdb, valueKey(name, key)), "Redis was not told of %q", key)
			require.Equal(t, loads, s.loads.Load())
			requireAbsent(t, b, key)
			many(b, key)
			require.Equal(t, loads, s.loads.Load(), "the other process loads %q", key)
		}
		requireAbsent(t, a, "alone")
		requireAbsent(t, a, "alone")
		told("alone", 2)
		many(a, "batch")
		many(a, "batch")
		told("batch", 4)
		_, err := a.Refresh(t.Context(), "refreshed")
		require.ErrorIs(t, err, tiercache.ErrNotFound)
		told("refreshed", 5)

		o.Name, o.AbsentMisses = redistest.Name(t)+"-at-once", 1
		c := openPeer(t, client(t), o)
		requireAbsent(t, c, "k")
		require.Positive(t, ttl(t, c.rdb, valueKey(o.Name, "k")))
	})
}

// P1: a key that is asked for at many processes in turn is loaded once by each of them at most before Redis is told, and once more then, though
// no memory keeps it; whoever read it there tells Redis at once when that has ended.
//
// Broken by: the case "a.missed != nil" left out of absence.read.
func TestAbsentKeyThatManyProcessesAreAskedForIsToldToRedis(t *testing.T) {
	onRedis(t, func(t *testing.T, client func(*testing.T) redis.UniversalClient) {
		s, name := newSource(nil), redistest.Name(t)
		o := lasting(name, s)
		o.MemoryTTL = -1
		p := openPeers(t, 3, client, o)
		for range 3 {
			for _, p := range p {
				requireAbsent(t, p, "k")
			}
		}
		require.EqualValues(t, len(p)+1, s.loads.Load())

		late := openPeer(t, client(t), o)
		requireAbsent(t, late, "k")
		require.NoError(t, late.rdb.Del(t.Context(), valueKey(name, "k")).Err())
		for range 2 {
			requireAbsent(t, late, "k")
			requireAbsent(t, p[0], "k")
		}
		require.EqualValues(t, len(p)+2, s.loads.Load(), "it was read in Redis, and is told at once")
	})
}

// P1: processes that ask for one absent key at once share one load: Redis is told of it because somebody waits.
//
// Broken by: " and not g.woken" left out of fill.lua.
func TestProcessesThatWaitForAnAbsentKeyShareOneLoad(t *testing.T) {
	onRedis(t, func(t *testing.T, client func(*testing.T) redis.UniversalClient) {
		s, name := newSource(nil), redistest.Name(t)
		p := openPeers(t, 4, client, lasting(name, s))
		release := make(chan struct{})
		s.before(func(ctx context.Context, _ string) error { return until(ctx, release, true) })
		first := p[0].get(t.Context(), "k")
		eventually(t, func() bool { return s.running.Load() == 1 }, "the first loads")
		var others []<-chan result
		for _, p := range p[1:] {
			reached, answered := p.wire.hold(t, after, "acquire")
			others = append(others, p.get(t.Context(), "k"), p.get(t.Context(), "k"))
			await(t, reached, "another is told that it is held")
			answered()
		}
		close(release)
		for _, c := range append(others, first) {
			require.ErrorIs(t, await(t, c, "an answer").err, tiercache.ErrNotFound)
		}
		require.EqualValues(t, 1, s.loads.Load())
	})
}

// P1: a rebuild that begins after another of its process found the key absent does not load it again, though Redis knows nothing:
//
//  1. A finds nothing in memory, and asks Redis in vain.
//  2. B's rebuild finds the key absent, keeps that in memory only, gives the lease back and ends.
//  3. A's rebuild begins.
//
// Broken by: the call of keptMeanwhile left out of rebuild; of rebuildSome.
func TestLateRebuildFindsWhatMemoryKeptMeanwhile(t *testing.T) {
	onRedis(t, func(t *testing.T, client func(*testing.T) redis.UniversalClient) {
		s, name := newSource(nil), redistest.Name(t)
		rdb, faults := client(t), faulty.New(1)
		faults.Install(rdb)
		o := lasting(name, s)
		var held atomic.Pointer[func()] // holds who asked Redis in vain
		o.Hooks = &tiercache.Hooks{SharedError: func(string, error) {
			if hold := held.Swap(nil); hold != nil {
				(*hold)()
			}
		}}
		a := openPeer(t, rdb, o)
		asks := map[string]func(key string) error{
			"alone": func(key string) error { _, err := a.Get(t.Context(), key); return err },
			"batch": func(key string) error {
				found, err := a.GetMany(t.Context(), []string{key})
				if err == nil && len(found) == 0 {
					err = tiercache.ErrNotFound
				}
				return err
			},
		}
		for late, early := range map[string]string{"alone": "batch", "batch": "alone"} {
			loads := s.loads.Load()
			reached, resume := make(chan struct{}), make(chan struct{})
			hold := func() { close(reached); <-resume }
			held.Store(&hold)
			faults.Set(faulty.Rule{Kind: faulty.Reply, Names: []string{"mget"}, Limit: 1, Texts: []string{"ERR not now"}})
			done := make(chan error, 1)
			go func() { done <- asks[late](late) }()
			await(t, reached, "the late one has asked Redis")
			err := asks[early](late)
			close(resume)
			require.ErrorIs(t, err, tiercache.ErrNotFound)
			require.ErrorIs(t, await(t, done, "the late one"), tiercache.ErrNotFound)
			require.Equal(t, loads+1, s.loads.Load(), late)
			require.EqualValues(t, s.loads.Load(), a.Stats().FirstMisses, "Redis knows nothing")
		}
	})
}
