package layers

import (
	"context"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/internal/redistest"
)

// Race: 1 a flusher takes a batch off the queue, and orders its requests by slot; 2 the batch's budget ends meanwhile, and every request gets
// its error. A request that moved while 2 went through them would keep neither error nor answer: it would look like a key that is not
// there, to its callers and to all who join it later, since nobody would take it off the list of what is under way.
func TestBatchIsOrderedWhileItsBudgetEnds(t *testing.T) {
	cluster := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{"127.0.0.1:1"}})
	defer func() { _ = cluster.Close() }()
	r := openTier(t, cluster, RedisOptions{})
	m := newMaster(r, "m")
	for range 20 {
		g := &m.gets
		g.mu.Lock()
		for i := range maxBatch {
			m.queueLocked(strconv.Itoa(i), Mark{}, uint16(i*7919%16384)) //nolint:gosec // small
		}
		b := g.waiting[0]
		g.waiting, g.flying, g.queued = nil, []*batch{b}, 0
		g.mu.Unlock()
		begin, sorted := make(chan struct{}), make(chan answer)
		go func() {
			var a answer
			<-begin
			a.split(b, true)
			sorted <- a
		}()
		close(begin)
		require.True(t, b.settle(nil, ErrTimeout))
		a := <-sorted
		require.Empty(t, g.under)
		seen := 0
		for _, p := range a.parts {
			for _, q := range a.reqs[p.from:p.to] {
				require.ErrorIs(t, q.err, ErrTimeout)
				require.Equal(t, a.reqs[p.from].slot, q.slot)
				seen++
			}
		}
		require.Equal(t, maxBatch, seen)
	}
}

// pipelines is a hook around each pipeline.
type pipelines func(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook) error

func (h pipelines) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h pipelines) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (h pipelines) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error { return h(ctx, cmds, next) }
}

// A server that answers everything, but always later than the budget, becomes unreachable and stays so while it is that slow: its late
// answers do not end the row of overruns, and do not make it reachable again, for then everybody would wait for it over and over. It is
// reachable again with the first answer in time.
func TestLateAnswersDoNotMakeAServerReachable(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client(t)
	r := openTier(t, client, RedisOptions{ReadTimeout: shortBudget, WriteTimeout: shortBudget})
	awaitTrue(t, func() bool { _, err := r.get(t.Context(), "k", Mark{}); return err == nil }, "first contact")
	r.single.overruns.Store(0)
	var slow atomic.Bool
	var late atomic.Int32
	client.AddHook(pipelines(func(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook) error {
		err := next(context.WithoutCancel(ctx), cmds)
		if slow.Load() {
			<-ctx.Done() // the budget
			late.Add(1)
		}
		return err
	}))
	slow.Store(true)
	for range maxOverruns {
		before := late.Load()
		_, err := r.get(t.Context(), "k", Mark{})
		require.ErrorIs(t, err, ErrTimeout)
		awaitTrue(t, func() bool { return late.Load() > before && r.single.gets.idle() }, "answered late")
	}
	require.False(t, r.reachable("k"))
	_ = r.single.do(t.Context(), redis.NewStatusCmd(t.Context(), "ping")) // the answer may be there when the budget ends
	awaitTrue(t, func() bool { return r.single.probes.Load() == 0 }, "the probe was answered late")
	require.False(t, r.reachable("k"))
	require.EqualValues(t, 1, r.Stats().StateChanges)
	slow.Store(false)
	awaitTrue(t, func() bool { return r.single.do(t.Context(), redis.NewStatusCmd(t.Context(), "ping")) == nil }, "in time")
	require.True(t, r.reachable("k"))
}

// idle reports whether nobody sends for the queue.
func (g *gets) idle() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.crew == crew{} && len(g.flying) == 0
}
