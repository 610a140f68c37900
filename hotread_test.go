package tiercache_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
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
		s, name := newSource(map[string]string{"hot": "v", "other": "v"}), t.Name()
		held := &heldCodec{Codec: layers.Raw}
		o := options(name, s)
		o.Codec = held
		first := openProcess(t, client(t), o)
		for _, key := range []string{"hot", "other"} {
			_, err := first.Get(t.Context(), key)
			require.NoError(t, err)
		}

		rdb := client(t)
		seen := watch(t, rdb)
		second := openProcess(t, rdb, o)
		tiercache.HeatForTest(second.Cache, "hot")
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
