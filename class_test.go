package tiercache_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/internal/redistest"
	"github.com/tiercache/tiercache/rebuild"
)

// turnstile is a source whose loads of "slow" wait for its gate, and which tells in what order the others came.
type turnstile struct {
	open  chan struct{}
	order chan string
}

func newTurnstile() *turnstile {
	return &turnstile{open: make(chan struct{}), order: make(chan string, 100)}
}

func (s *turnstile) load(ctx context.Context, key string) (string, error) {
	if key == "slow" {
		select {
		case <-s.open:
		case <-ctx.Done():
			return "", context.Cause(ctx)
		}
	}
	s.order <- key
	return "value of " + key, nil
}

// loaded returns the keys that were loaded since the last call, in their order.
func (s *turnstile) loaded() (keys []string) {
	for len(s.order) > 0 {
		keys = append(keys, <-s.order)
	}
	return keys
}

// P7, P11: while the gate is full, keys that nobody has a copy of are loaded before those that have one; once they wait, a key that has one is
// answered by it and takes no place in the queue.
//
// Broken by: the first case left out of classOf; "|| ok && !copied.Absent" left out of covered; Revalidate queued in any case.
func TestKeyWithACopyLetsGoFirstWhoHasNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTurnstile()
		c := openCache(t, tiercache.Options[string, string]{
			Name: "copies", Load: s.load, TTL: time.Minute, Jitter: -1, LoadTimeout: time.Hour,
			Gate: rebuild.GateOptions{Loads: 1, Waiting: 8, Wait: time.Hour},
		})
		for _, key := range []string{"old", "older"} {
			wantValue(t, c, key, "value of "+key)
		}
		pass(time.Minute + time.Second)
		s.loaded()
		behind := func(key string) {
			go func() { _, _ = c.Get(context.WithoutCancel(t.Context()), key) }()
			synctest.Wait()
		}
		behind("slow")
		wantValue(t, c, "old", "value of old")
		synctest.Wait()
		require.EqualValues(t, 1, c.Stats().LoadsWaiting, "its rebuild waits while nobody else does")
		behind("new")
		require.EqualValues(t, 2, c.Stats().LoadsWaiting)
		wantValue(t, c, "older", "value of older")
		rows, err := c.GetMany(t.Context(), []string{"old", "older"})
		require.NoError(t, err)
		require.Len(t, rows, 2)
		synctest.Wait()
		require.EqualValues(t, 2, c.Stats().LoadsWaiting, "a key with a copy queues behind one that has none")

		close(s.open)
		synctest.Wait()
		require.Equal(t, []string{"slow", "new", "old"}, s.loaded())
		wantValue(t, c, "older", "value of older")
		synctest.Wait()
		require.Equal(t, []string{"older"}, s.loaded(), "with a free slot")
	})
}

// openWithAQueue opens a process whose gate is taken and waited for; of the key "old" Redis has a stale copy, and memory none.
func openWithAQueue(t *testing.T, rdb redis.UniversalClient) *process {
	t.Helper()
	s, name := newTurnstile(), redistest.Name(t)
	c := openProcess(t, rdb, tiercache.Options[string, string]{
		Name: name, Load: s.load, TTL: time.Hour, MemoryTTL: -1, Jitter: -1, LoadTimeout: time.Hour,
		Gate: rebuild.GateOptions{Loads: 1, Waiting: 8, Wait: time.Hour},
	})
	t.Cleanup(func() { close(s.open) }) // before c is closed, which waits for its loads
	wantValue(t, c.Cache, "old", "value of old")
	makeStale(t, c.rdb, valueKey(name, "old"))
	for i, key := range []string{"slow", "new"} {
		go func() { _, _ = c.Get(context.WithoutCancel(t.Context()), key) }()
		eventually(t, func() bool { return c.Stats().LoadsRunning+c.Stats().LoadsWaiting == uint64(i+1) }, "the slot is taken, then waited for")
	}
	return c
}

// The same for a copy that only Redis has.
//
// Broken by: "l.why.covered = true" left out of judge.
func TestKeyWithACopyInRedisLetsGoFirstWhoHasNone(t *testing.T) {
	onRedis(t, func(t *testing.T, client func(t *testing.T) redis.UniversalClient) {
		c := openWithAQueue(t, client(t))
		e, err := c.GetEntry(t.Context(), "old")
		require.NoError(t, err)
		require.True(t, e.Stale)
		eventually(t, func() bool { return c.Stats().Shed > 0 }, "the rebuild behind a stale answer is turned away")
		require.EqualValues(t, 1, c.Stats().LoadsWaiting)
	})
}

// The same for GetMany where there is only Load.
//
// Broken by: "p.why.covered =" left out of loadEach.
func TestKeysOfABatchWithACopyInRedisLetGoFirstWhoHasNone(t *testing.T) {
	onRedis(t, func(t *testing.T, client func(t *testing.T) redis.UniversalClient) {
		c := openWithAQueue(t, client(t))
		rows, err := c.GetMany(t.Context(), []string{"old"})
		require.NoError(t, err)
		require.Equal(t, map[string]string{"old": "value of old"}, rows)
		eventually(t, func() bool { return c.Stats().Shed > 0 || c.Stats().LoadsWaiting > 1 }, "its rebuild came to the gate")
		require.EqualValues(t, 1, c.Stats().LoadsWaiting)
	})
}
