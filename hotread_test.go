package tiercache_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/internal/redistest"
	"github.com/tiercache/tiercache/layers"
)

// heldCodec holds its next decoding: that of a caller whom Redis has answered and whose value is not in memory yet.
type heldCodec struct {
	layers.Codec
	hold            atomic.Bool
	reached, resume chan struct{}
}

func (c *heldCodec) ID() byte { return 16 } // else the library decodes text by itself

func (c *heldCodec) Decode(data []byte, v any) error {
	if c.hold.CompareAndSwap(true, false) {
		close(c.reached)
		<-c.resume
	}
	return c.Codec.Decode(data, v)
}

// waitedContext tells when somebody waits for its end.
type waitedContext struct {
	context.Context //nolint:containedctx // it is one
	once            sync.Once
	waited          chan struct{}
}

func (c *waitedContext) Done() <-chan struct{} {
	c.once.Do(func() { close(c.waited) })
	return c.Context.Done()
}

// A hot key is read from Redis by one caller at a time: who comes while the answer is there and not yet in memory waits for it, as long as its
// ctx lets it, and finds it there. Of a key that is not hot that caller reads once more.
// Broken by: hotReads.of in fromShared (the second caller reads); enter without the select on ctx (that caller never leaves); the second
// fromMemory (whoever waited reads all the same).
func TestHotKeyIsReadByOneCallerAtATime(t *testing.T) {
	onRedis(t, func(t *testing.T, client func(t *testing.T) redis.UniversalClient) {
		s, name := newSource(map[string]string{"hot": "v", "other": "v", "third": "v"}), t.Name()
		held := &heldCodec{Codec: layers.Raw}
		o := options(name, s)
		o.Codec = held
		first := openProcess(t, client(t), o)
		for _, key := range []string{"hot", "other", "third"} {
			_, err := first.Get(t.Context(), key)
			require.NoError(t, err)
		}

		rdb := client(t)
		seen := watch(t, rdb)
		second := openProcess(t, rdb, o)
		tiercache.HeatForTest(second.Cache, "hot")
		asking(t, func() bool {
			e, err := second.GetEntry(t.Context(), "third")
			require.NoError(t, err)
			return e.Tier == tiercache.Memory
		}, "it hears the others, and memory keeps what it reads")
		read := func(key string) (reads int) {
			held.reached, held.resume = make(chan struct{}), make(chan struct{})
			held.hold.Store(true)
			begun := seen.count("mget")
			answers := make(chan error, 1)
			go func() {
				_, err := second.Get(t.Context(), key)
				answers <- err
			}()
			await(t, held.reached, "the first caller has Redis's answer")

			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			leaves := &waitedContext{Context: ctx, waited: make(chan struct{})}
			stays := &waitedContext{Context: t.Context(), waited: make(chan struct{})}
			answered := make(chan error, 2)
			for _, ctx := range []context.Context{leaves, stays} {
				go func() {
					_, err := second.Get(ctx, key)
					answered <- err
				}()
			}
			if key == "hot" {
				await(t, leaves.waited, "it waits")
				await(t, stays.waited, "it waits")
				leave()
				require.ErrorIs(t, await(t, answered, "who leaves"), context.Canceled)
				close(held.resume)
				require.NoError(t, await(t, answered, "who stays"))
			} else {
				require.NoError(t, await(t, answered, "the second caller"))
				require.NoError(t, await(t, answered, "the third caller"))
				close(held.resume)
			}
			require.NoError(t, await(t, answers, "the first caller"))
			return seen.count("mget") - begun
		}
		require.Equal(t, 1, read("hot"))
		require.Greater(t, read("other"), 1)
	})
}

// Whoever finds a hot key past its soft end in Redis waits StaleWait for the fresh value out of turn: the next may read meanwhile, and waits once only.
// Broken by: revalidate in readShared.
func TestStaleWaitOfAHotKeyIsOutOfTurn(t *testing.T) {
	s := newSource(map[string]string{"hot": "old"})
	o := options(redistest.Name(t), s)
	o.TTL, o.MemoryTTL, o.RefreshAhead, o.StaleWait, o.LoadTimeout, o.LeaseTime = 2*time.Second, 10*time.Millisecond, -1, time.Hour, time.Minute, 2*time.Minute
	rdb := redistest.Shared(t).Client(t)
	p := openProcess(t, rdb, o)
	_, err := p.Get(t.Context(), "hot")
	require.NoError(t, err)
	tiercache.HeatForTest(p.Cache, "hot")
	loads, ended := make(chan struct{}), make(chan struct{})
	begun := sync.OnceFunc(func() { close(loads) })
	s.before(func(context.Context, string) error {
		begun()
		<-ended
		return nil
	})
	asking(t, func() bool { return rdb.PTTL(t.Context(), valueKey(o.Name, "hot")).Val() < 2*time.Second }, "it is past its soft end")
	answered := make(chan error, 1)
	go func() {
		_, err := p.Get(t.Context(), "hot")
		answered <- err
	}()
	await(t, loads, "the rebuild that it waits for")
	eventually(t, func() bool { return !tiercache.InTurnForTest(p.Cache, "hot") }, "it has left its turn")
	close(ended)
	require.NoError(t, await(t, answered, "the fresh value"))
}
