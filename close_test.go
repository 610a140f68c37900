package tiercache_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/internal/redistest"
	"github.com/tiercache/tiercache/layers"
	"github.com/tiercache/tiercache/rebuild"
)

// ended waits until f, which closes something, has returned.
func ended(t *testing.T, f func() error, why string) error {
	t.Helper()
	c := make(chan error, 1)
	go func() { c <- f() }()
	return await(t, c, why)
}

// P11: Close ends a cache on Redis whatever goes on: it is idempotent, calls that wait or begin later get ErrClosed, loads are cancelled and
// their leases given back, no goroutine stays (which the end of this package's tests looks for), and what could not be done is named.
func TestCloseWithRedis(t *testing.T) {
	t.Run("under traffic", func(t *testing.T) { onRedis(t, closeUnderTraffic) })
	t.Run("with waiters", func(t *testing.T) { onRedis(t, closeWithWaiters) })
	t.Run("with a delete under way", func(t *testing.T) { onRedis(t, closeWithADelete) })
	t.Run("after its Redis", func(t *testing.T) { onRedis(t, closeAfterItsRedis) })
	t.Run("while Redis hangs", closeWhileRedisHangs)
	t.Run("while Redis is away", closeWhileRedisIsAway)
}

// Every call that races with Close ends with a result or ErrClosed; all who close at once are told the same.
func closeUnderTraffic(t *testing.T, client func(t *testing.T) redis.UniversalClient) {
	s := newSource(map[string]string{"a": "v", "b": "v"})
	p := openPeer(t, client(t), lasting(redistest.Name(t), s))
	keys := []string{"a", "b", "nobody"}
	calls := []func(key string) error{
		func(key string) error { _, err := p.Get(t.Context(), key); return err },
		func(string) error { _, err := p.GetMany(t.Context(), keys); return err },
		func(key string) error { _, err := p.Refresh(t.Context(), key); return err },
		func(key string) error { return p.Set(t.Context(), key, "v") },
		func(key string) error { return p.Invalidate(t.Context(), key) },
		func(key string) error { return p.Announce(t.Context(), key) },
		func(string) error { return p.Clear(t.Context()) },
		func(key string) error {
			return p.Update(t.Context(), key, func(context.Context) error { return nil })
		},
	}
	var all sync.WaitGroup
	var done atomic.Int64
	for i, call := range calls {
		all.Go(func() {
			for n := i; ; n++ {
				err := call(keys[n%len(keys)])
				done.Add(1)
				switch {
				case errors.Is(err, tiercache.ErrClosed):
					return
				case err != nil && !errors.Is(err, tiercache.ErrNotFound):
					t.Errorf("call %d: %v", i, err)
					return
				}
			}
		})
	}
	asking(t, func() bool { return done.Load() > 200 }, "traffic")
	closed := make(chan error, 3)
	for range cap(closed) {
		go func() { closed <- p.Close() }()
	}
	for range cap(closed) {
		require.NoError(t, await(t, closed, "Close"))
	}
	for _, call := range calls {
		require.ErrorIs(t, call("a"), tiercache.ErrClosed)
	}
	require.NoError(t, ended(t, func() error { all.Wait(); return nil }, "every call ends"))
	require.NoError(t, p.Close())
}

// Those who wait get ErrClosed at once: for the load of this process, and for that of another. The lease of a load that Close ended is
// given back: another process loads without waiting for its end.
func closeWithWaiters(t *testing.T, client func(t *testing.T) redis.UniversalClient) {
	entered := make(chan struct{}, 1)
	stuck := newSource(nil)
	stuck.before(func(ctx context.Context, _ string) error {
		entered <- struct{}{}
		<-ctx.Done()
		return context.Cause(ctx)
	})
	s := newSource(map[string]string{"k": "v"})
	name := redistest.Name(t)
	a, b := openPeer(t, client(t), lasting(name, stuck)), openPeer(t, client(t), lasting(name, stuck))
	c := openPeer(t, client(t), lasting(name, s))
	holder := a.get(t.Context(), "k")
	await(t, entered, "A loads")
	waiter, other := b.get(t.Context(), "k"), c.get(t.Context(), "k")
	for _, p := range []*peer{b, c} {
		asking(t, func() bool { return p.wire.count("acquire", "k") > 0 }, "the others wait for A")
	}
	require.NoError(t, ended(t, b.Close, "B closes"))
	require.ErrorIs(t, await(t, waiter, "B's caller").err, tiercache.ErrClosed)
	require.NoError(t, ended(t, a.Close, "A closes"))
	require.ErrorIs(t, await(t, holder, "A's caller").err, tiercache.ErrClosed)
	require.Equal(t, result{value: "v"}, await(t, other, "C's caller"))
	require.Zero(t, c.Stats().BackOffs)
}

// A Refresh that finds nothing while the row is announced deletes what may stand in Redis. Close ends its context in the middle of that, and
// sends the delete again.
// Broken by: in shut, no `c.replay(ctx)`.
func closeWithADelete(t *testing.T, client func(t *testing.T) redis.UniversalClient) {
	p := openPeer(t, client(t), lasting(redistest.Name(t), newSource(nil)))
	require.NoError(t, p.Announce(t.Context(), "k"))
	deleting, resume := p.wire.hold(t, before, "invalidate")
	refreshed := make(chan error, 1)
	go func() {
		_, err := p.Refresh(t.Context(), "k")
		refreshed <- err
	}()
	await(t, deleting, "the delete is about to be sent")
	closed := make(chan error, 1)
	go func() { closed <- p.Close() }()
	require.ErrorIs(t, await(t, refreshed, "the caller"), tiercache.ErrNotFound)
	resume()
	require.NoError(t, await(t, closed, "Close"))
}

// A layers.Redis that is closed before its cache is a Redis that is away: Get goes on from memory, for MemoryTTL at most, and from the
// source; writes are seen here and pending; Close says how many.
func closeAfterItsRedis(t *testing.T, client func(t *testing.T) redis.UniversalClient) {
	s := newSource(map[string]string{"k": "old", "cold": "v"})
	o := lasting(redistest.Name(t), s)
	o.MemoryTTL = 100 * time.Millisecond
	p := openPeer(t, client(t), o)
	requireGet(t, p, "k", "old")
	require.NoError(t, p.shared.Close())
	requireGet(t, p, "cold", "v")
	found, err := p.GetMany(t.Context(), []string{"k", "cold", "nobody"})
	require.NoError(t, err)
	require.Equal(t, map[string]string{"k": "old", "cold": "v"}, found)
	s.write("k", "new")
	asking(t, func() bool {
		v, err := p.Get(t.Context(), "k")
		require.NoError(t, err)
		return v == "new"
	}, "the source is asked")

	require.ErrorIs(t, p.Invalidate(t.Context(), "k"), tiercache.ErrPending)
	require.ErrorIs(t, p.Set(t.Context(), "cold", "set"), tiercache.ErrPending)
	require.ErrorIs(t, p.Update(t.Context(), "k", func(context.Context) error { s.write("k", "newer"); return nil }), tiercache.ErrPending)
	requireGet(t, p, "k", "newer")
	requireGet(t, p, "cold", "v")
	err = ended(t, p.Close, "Close")
	require.ErrorContains(t, err, "2 invalidations never reached Redis")
	require.Equal(t, err, p.Close())
	_, err = p.Get(t.Context(), "k")
	require.ErrorIs(t, err, tiercache.ErrClosed)
}

// A Redis that hangs does not hold Close up, with callers in the middle of a call of it.
func closeWhileRedisHangs(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := newSource(map[string]string{"k": "v"})
	o := lasting(redistest.Name(t), s)
	o.MemoryTTL = -1
	p := openBrief(t, server.Client(t), layers.RedisOptions{}, o)
	sharedAgain(t, p, "k", "v")
	server.Stop()
	t.Cleanup(server.Kill) // before the client is closed
	callers := make(chan error, 20)
	for range cap(callers) {
		go func() {
			_, err := p.Get(t.Context(), "k")
			callers <- err
		}()
	}
	require.NoError(t, ended(t, p.Close, "Close"))
	for range cap(callers) {
		if err := await(t, callers, "a caller"); err != nil {
			require.ErrorIs(t, err, tiercache.ErrClosed)
		}
	}
}

// What is still pending is lost with its process, and named.
func closeWhileRedisIsAway(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	s := newSource(map[string]string{"k": "v"})
	p := openPeer(t, server.Client(t), lasting(redistest.Name(t), s))
	requireGet(t, p, "k", "v")
	server.Kill()
	require.ErrorIs(t, p.Invalidate(t.Context(), "k", "two", "three"), tiercache.ErrPending)
	require.ErrorContains(t, ended(t, p.Close, "Close"), "3 invalidations never reached Redis")
}

// P11: a flood moves no bound: memory stays within MaxBytes whatever comes from Redis or from the source, with Redis and without; the queue of
// invalidations holds 10,000 keys, and then all of them.
func TestMemoryAndQueuesAreBounded(t *testing.T) {
	onSites(t, func(t *testing.T, w *site) {
		const bound = 1 << 20
		s := newSource(nil)
		keys := make([]string, 3000)
		for i := range keys {
			keys[i] = fmt.Sprint("k", i)
			s.write(keys[i], strings.Repeat("v", 100+i%2000))
		}
		o := lasting(w.name, s)
		o.MemoryBytes = bound
		o.Gate = rebuild.GateOptions{Loads: 8, Waiting: 1000, Wait: time.Minute}
		var most atomic.Uint64
		flood := func(p *peer) {
			t.Helper()
			var all sync.WaitGroup
			for n := range 8 {
				all.Go(func() {
					for i := n; i < len(keys); i += 8 {
						if _, err := p.Get(t.Context(), keys[i]); err != nil {
							t.Error(err)
							return
						}
						stats := p.Stats()
						most.Store(max(most.Load(), stats.MemoryBytes))
						if stats.MemoryBytes > bound || stats.LoadsRunning > 8 {
							t.Errorf("%d bytes, %d loads at once", stats.MemoryBytes, stats.LoadsRunning)
							return
						}
					}
				})
			}
			all.Wait()
		}
		lost := w.key("lost")
		a, b := openPeer(t, w.client(t), o), openPeer(t, w.client(t), o)
		flood(a)
		flood(b)
		require.Greater(t, b.Stats().SharedHits, uint64(len(keys)/2), "from Redis")
		w.kill(t, a.process, b.process)
		flood(a)
		require.Greater(t, most.Load(), uint64(bound/2), "memory was full")

		for i := range 3 {
			many := make([]string, 0, 8000)
			for j := 0; len(many) < cap(many); j++ {
				if key := fmt.Sprintf("%s-%d-%d", lost, i, j); masterOf(t, a.rdb, key).Options().Addr == w.victim.Addr {
					many = append(many, key)
				}
			}
			require.ErrorIs(t, a.Invalidate(t.Context(), many...), tiercache.ErrPending)
			require.LessOrEqual(t, a.Stats().Pending, uint64(10_000))
		}
		require.EqualValues(t, 10_000, a.Stats().Pending)
		require.LessOrEqual(t, a.Stats().MemoryBytes, uint64(bound))
	})
}
