package tiercache_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/internal/redistest"
)

// A key that the fleet reads often is hot in a process that reads it ten times a second, which is far from enough by itself; another that is
// read as often here, and that the fleet does not read, is not. Every process can name the fleet's keys; what one tells of stands in Redis
// for four seconds at most. A long key is known again by its hash. Broken by: Window without Fleet (nothing is hot); ids without the names of
// long keys (only the short one is); the least of what is told left out (what is read once a second is named too).
func TestKeysThatTheFleetReadsOftenAreHot(t *testing.T) {
	onRedis(t, func(t *testing.T, client func(t *testing.T) redis.UniversalClient) {
		long := strings.Repeat("long", 60)
		s, name := newSource(map[string]string{"k": "v", "alone": "v", long: "v"}), redistest.Name(t)
		o := options(name, s)
		o.MemoryTTL = -1 // every read leaves memory
		fleet := []*process{openProcess(t, client(t), o), openProcess(t, client(t), o), openProcess(t, client(t), o)}
		require.Eventually(t, func() bool {
			for _, p := range fleet {
				tiercache.HearFleetForTest(p.Cache, map[string]float64{"k": 2500, long: 2500})
			}
			tiercache.HearFleetForTest(fleet[0].Cache, map[string]float64{"seldom": 1})
			for _, key := range []string{"k", "alone", long} {
				_, err := fleet[0].Get(t.Context(), key)
				require.NoError(t, err)
			}
			for _, p := range fleet {
				tiercache.HearFleetForTest(p.Cache, map[string]float64{"k": 2500, long: 2500})
			}
			return fleet[0].Stats().HotKeys == 2
		}, 20*time.Second, 100*time.Millisecond)
		for _, k := range fleet[0].HotKeys(0) {
			require.Equal(t, k.Key != "alone", k.Hot, k.Key)
		}
		require.Zero(t, fleet[1].Stats().HotKeys, "it does not read them")

		tiercache.HearFleetForTest(fleet[0].Cache, map[string]float64{"k": 5000, long: 2500})
		keys, err := fleet[2].FleetHotKeys(t.Context(), 0)
		require.NoError(t, err)
		require.Len(t, keys, 2)
		for _, k := range keys {
			require.True(t, k.Key == "k" || strings.HasPrefix(k.Key, "%h"), k.Key)
			require.Greater(t, k.Rate, 1000.0)
		}
		keys, err = fleet[2].FleetHotKeys(t.Context(), 1)
		require.NoError(t, err)
		require.Len(t, keys, 1)
		stand := 0
		for _, at := range []string{"0", "1"} {
			left := fleet[0].rdb.PTTL(t.Context(), "tc:"+name+":hot:{"+name+"}:"+at).Val()
			require.True(t, left == -2 || left > 0 && left <= 4*time.Second, "%v", left)
			if left > 0 {
				stand++
			}
		}
		require.Positive(t, stand)

		ended, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = fleet[2].FleetHotKeys(ended, 0)
		require.ErrorIs(t, err, context.Canceled)
		require.NoError(t, fleet[2].Close())
		_, err = fleet[2].FleetHotKeys(t.Context(), 0)
		require.ErrorIs(t, err, tiercache.ErrClosed)
	})
}

// While Redis cannot be asked each process judges by its own reads which keys are hot, and what the fleet reads is an error.
// Broken by: closeWindow heating by fleet's rates alone; FleetHotKeys without TellHot's error.
func TestHotKeysWhileRedisIsAway(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	o := options(redistest.Name(t), newSource(map[string]string{"k": "v"}))
	o.MemoryTTL = -1 // every read leaves memory
	p := openProcess(t, server.Client(t), o)
	server.Kill()
	asking(t, func() bool {
		for range 20 {
			got, err := p.Get(t.Context(), "k")
			require.NoError(t, err)
			require.Equal(t, "v", got)
		}
		return p.Stats().HotKeys == 1
	}, "it is hot here")
	_, err := p.FleetHotKeys(t.Context(), 0)
	require.Error(t, err)
	require.NotErrorIs(t, err, tiercache.ErrClosed)
}

// P9: a caller who leaves while Redis is asked for the fleet's hot keys is no failure of Redis, in Stats or for Hooks.
// Broken by: in FleetHotKeys, no look at ctx before sharedFailed.
func TestCallerWhoLeavesTheFleetsHotKeysIsNoErrorOfRedis(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	p := openPeer(t, server.Client(t), options(redistest.Name(t), newSource(nil)))
	errs := p.Stats().SharedErrors
	reached, resume := p.wire.hold(t, before, "hot")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := p.FleetHotKeys(ctx, 0)
		ended <- err
	}()
	await(t, reached, "Redis is about to be asked")
	cancel()
	require.ErrorIs(t, await(t, ended, "it has left"), context.Canceled)
	resume()
	require.Equal(t, errs, p.Stats().SharedErrors)
}
