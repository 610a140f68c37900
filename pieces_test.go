package tiercache_test

import (
	"context"
	"encoding/binary"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/internal/redistest"
)

// What many large values, many readers or a stubborn neighbour must not do to a rebuild.

// P7: many large values are stored a few MiB at a time, each under a budget of its own, and all are stored.
// Broken by: in fillMany, `c.shared.Fill(ctx, fills...)` for `c.fillInPieces(ctx, fills)`.
func TestManyLargeValuesAreStoredInPieces(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	const n, size = 16, 1 << 20
	b := &batches{source: newSource(nil)}
	var keys []string
	for i := range n {
		keys = append(keys, "k"+strconv.Itoa(i))
		b.write(keys[i], strings.Repeat(strconv.Itoa(i%10), size))
	}
	o := lasting(redistest.Name(t), b.source)
	o.LoadMany = b.loadMany
	p := openPeer(t, server.Client(t), o)
	rows, err := p.GetMany(t.Context(), keys)
	require.NoError(t, err)
	require.Len(t, rows, n)
	p.wire.mu.Lock()
	stored := 0
	for _, ops := range p.wire.trips {
		trip := 0
		for _, op := range ops {
			if op.name == "fill" {
				payload, ok := op.argv[6].([]byte)
				require.True(t, ok)
				trip += len(payload)
				stored++
			}
		}
		require.LessOrEqual(t, trip, 4*size, "bytes in one pipeline")
	}
	p.wire.mu.Unlock()
	require.Equal(t, n, stored, "each was sent once")
	other := openPeer(t, server.Client(t), o)
	rows, err = other.GetMany(t.Context(), keys)
	require.NoError(t, err)
	require.Len(t, rows, n)
	require.EqualValues(t, n, other.Stats().SharedHits)
}

// A stale answer of GetMany is rebuilt behind it; a Get that comes meanwhile, and finds nothing in memory, is answered stale by Redis too
// and does not wait for that rebuild.
// Broken by: in GetMany, `c.flights.Lead` for `c.flights.LeadBehind`.
func TestRebuildBehindAStaleBatchIsNotWaitedFor(t *testing.T) {
	onRedis(t, func(t *testing.T, client func(*testing.T) redis.UniversalClient) {
		s, name := newSource(map[string]string{"k": "old"}), redistest.Name(t)
		o := lasting(name, s)
		o.MemoryTTL = -1
		p := openPeer(t, client(t), o)
		requireGet(t, p, "k", "old")
		makeStale(t, p.rdb, valueKey(name, "k"))
		s.write("k", "new")
		stop := make(chan struct{})
		resume := sync.OnceFunc(func() { close(stop) })
		t.Cleanup(resume)
		s.before(func(ctx context.Context, _ string) error { return until(ctx, stop, true) })
		rows, err := p.GetMany(t.Context(), []string{"k"})
		require.NoError(t, err)
		require.Equal(t, map[string]string{"k": "old"}, rows)
		eventually(t, func() bool { return s.running.Load() == 1 }, "it is rebuilt behind")
		requireGet(t, p, "k", "old")
		resume()
		eventually(t, func() bool { v, err := p.Get(t.Context(), "k"); return err == nil && v == "new" }, "rebuilt")
		require.EqualValues(t, 2, s.loads.Load())
	})
}

// meddler does something before each acquire of a process is sent.
type meddler struct {
	*wire
	before func()
}

// ProcessPipelineHook sees pipelines.
func (m *meddler) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if count(m.operations(cmds), "acquire") > 0 {
			m.before()
		}
		return next(ctx, cmds)
	}
}

// P10: an entry that this cache cannot read, and that somebody stores anew whenever it is about to be replaced, keeps nobody from the load: after
// a few looks the key is loaded without Redis.
// Broken by: in claim.Acquire, `for {` for `for range maxLooks`.
func TestUnreadableEntryThatComesBackDoesNotHoldUpTheLoad(t *testing.T) {
	t.Parallel()
	server := redistest.Shared(t)
	for _, call := range []string{"Get", "GetMany"} {
		t.Run(call, func(t *testing.T) {
			s, name := newSource(map[string]string{"k": "row"}), redistest.Name(t)
			admin, at := server.Client(t), valueKey(name, "k")
			requireGet(t, openPeer(t, server.Client(t), lasting(name, s)), "k", "row")
			raw, err := admin.Get(t.Context(), at).Bytes()
			require.NoError(t, err)
			raw[6]++ // of another schema
			var asked atomic.Int64
			store := func() {
				binary.BigEndian.PutUint64(raw[16:], binary.BigEndian.Uint64(raw[16:])+1) // later than the one before
				if err := admin.Set(context.WithoutCancel(t.Context()), at, raw, time.Minute).Err(); err != nil {
					t.Error(err)
				}
			}
			store()
			rdb := server.Client(t)
			rdb.AddHook(&meddler{wire: watch(t, rdb), before: func() { asked.Add(1); store() }})
			p := openPeer(t, rdb, lasting(name, s))
			if call == "Get" {
				requireGet(t, p, "k", "row")
			} else {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				rows, err := p.GetMany(ctx, []string{"k"})
				require.NoError(t, err)
				require.Equal(t, map[string]string{"k": "row"}, rows)
			}
			require.EqualValues(t, 2, s.loads.Load())
			require.Greater(t, asked.Load(), int64(1), "it was tried")
			require.LessOrEqual(t, asked.Load(), int64(10), "and given up")
		})
	}
}
