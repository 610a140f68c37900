package tiercache_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/internal/redistest"
	"github.com/tiercache/tiercache/rebuild"
)

// Property: with a fleet gate all processes together load no more at once than it has permits, though each process's own gate would let more
// in, and everyone is answered; a load that gets no permit in time is ErrOverloaded. Broken by: throughFleetGate that returns at once; permit
// without ErrOverloaded.
func TestFleetGateBoundsTheLoadsOfAllCaches(t *testing.T) {
	const limit, keys = 3, 20
	onRedis(t, func(t *testing.T, client func(*testing.T) redis.UniversalClient) {
		s, name := newSource(nil), redistest.Name(t)
		full := make(chan struct{})
		var once sync.Once
		s.before(func(ctx context.Context, key string) error {
			if s.running.Load() == limit { // as many as may be: let them all be there for a moment
				once.Do(func() { close(full) })
			}
			select {
			case <-full:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		var all sync.WaitGroup
		for n := range 2 {
			o := lasting(name, s)
			gate, err := rebuild.NewSemaphore(client(t), rebuild.SemaphoreOptions{Prefix: name, Limit: limit, Processes: 2})
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, gate.Close()) })
			o.FleetGate = gate
			p := openPeer(t, client(t), o)
			for i := range keys {
				key := fmt.Sprintf("%d-%d", n, i)
				s.write(key, "row")
				all.Go(func() {
					if v, err := p.Get(t.Context(), key); err != nil || v != "row" {
						t.Errorf("Get(%s) = %q, %v, want row", key, v, err)
					}
				})
			}
		}
		all.Wait()
		require.EqualValues(t, limit, s.most.Load(), "loads at once")
		require.EqualValues(t, 2*keys, s.loads.Load())

		held := make(chan struct{})
		defer close(held)
		s.before(func(context.Context, string) error { <-held; return nil })
		o := options(name+"-brief", s)
		o.LoadTimeout = time.Second
		gate, err := rebuild.NewSemaphore(client(t), rebuild.SemaphoreOptions{Prefix: name + "-brief", Limit: 1})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, gate.Close()) })
		leave, err := gate.Enter(t.Context(), o.Name)
		require.NoError(t, err)
		defer leave()
		o.FleetGate = gate
		p := openPeer(t, client(t), o)
		_, err = p.Get(t.Context(), "another")
		require.ErrorIs(t, err, tiercache.ErrOverloaded)
	})
}

// A load that the fleet gate turns away was no call of the loader: Stats.Loads and LoadedKeys do not count it, Shed does.
// Broken by: in loadOne and loadMany, asking before throughFleetGate.
func TestLoadThatTheFleetGateTurnsAwayIsNotCounted(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	s, name := newSource(map[string]string{"a": "1", "b": "2"}), redistest.Name(t)
	gate, err := rebuild.NewSemaphore(server.Client(t), rebuild.SemaphoreOptions{Prefix: name, Limit: 1})
	require.NoError(t, err)
	require.NoError(t, gate.Close()) // so that it has no permit for anybody, at once
	b := &batches{source: s}
	o := options(name, s)
	o.LoadMany, o.FleetGate = b.loadMany, gate
	p := openPeer(t, server.Client(t), o)
	_, err = p.Get(t.Context(), "a")
	require.ErrorIs(t, err, tiercache.ErrOverloaded)
	_, err = p.GetMany(t.Context(), []string{"a", "b"})
	require.ErrorIs(t, err, tiercache.ErrOverloaded)
	require.Zero(t, s.loads.Load())
	require.Empty(t, b.asked())
	stats := p.Stats()
	require.Zero(t, stats.Loads)
	require.Zero(t, stats.LoadedKeys)
	require.EqualValues(t, 2, stats.Shed)
}
