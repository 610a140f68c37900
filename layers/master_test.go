package layers

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/internal/borrowed"
	"github.com/tiercache/tiercache/internal/redistest"
)

const shortBudget = 50 * time.Millisecond

// noTimeouts lets a client wait for ever.
func noTimeouts(o *redis.Options) { o.ReadTimeout, o.WriteTimeout, o.MaxRetries = -1, -1, 3 }

// A hung server costs each caller its budget, three in a row make it unreachable, then nobody waits; a probe that is answered makes
// it reachable. All of this with a client that itself would wait for ever.
func TestHungServerBecomesUnreachableAndComesBack(t *testing.T) {
	for name, kind := range map[string]struct{ deadlines, hidden bool }{
		"client": {}, "client with deadlines": {deadlines: true}, "other": {hidden: true},
	} {
		for _, free := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				server := redistest.Start(t)
				var rdb redis.UniversalClient = server.Client(t, noTimeouts, func(o *redis.Options) { o.ContextTimeoutEnabled = kind.deadlines })
				if kind.hidden {
					rdb = hidden{rdb}
				}
				r := openTier(t, rdb, RedisOptions{ReadTimeout: shortBudget, WriteTimeout: shortBudget})
				m, _, err := r.route(t.Context(), "k")
				require.NoError(t, err)
				ctx := t.Context()
				if free {
					ctx = context.WithoutCancel(ctx)
				}
				awaitTrue(t, func() bool { _, err := r.get(ctx, "k", Mark{}); return err == nil }, "first contact")
				m.overruns.Store(0)
				server.Stop()
				t.Cleanup(server.Continue)
				for i := range maxOverruns {
					require.True(t, r.reachable("k"), "after %d overruns", i)
					_, err := r.get(ctx, "k", Mark{})
					require.ErrorIs(t, err, ErrTimeout)
				}
				awaitTrue(t, func() bool { return !r.reachable("k") }, "unreachable")
				trips := r.Stats().RoundTrips
				for range 100 {
					_, err := r.get(ctx, "k", Mark{})
					require.ErrorIs(t, err, ErrUnreachable)
				}
				c := &scriptCall{script: borrowed.NewScript("one", "return 1"), keys: []string{"k"}}
				r.eval(ctx, c)
				require.ErrorIs(t, c.err, ErrUnreachable)
				require.LessOrEqual(t, r.Stats().RoundTrips, trips+maxFlushers+maxProbes, "nothing was sent but what was under way, and probes")
				require.Error(t, m.do(ctx, redis.NewStatusCmd(ctx, "ping")))
				server.Continue()
				awaitTrue(t, func() bool { return m.do(ctx, redis.NewStatusCmd(ctx, "ping")) == nil && r.reachable("k") }, "probe in time")
				awaitTrue(t, func() bool { _, err := r.get(ctx, "k", Mark{}); return err == nil }, "answers again")
			})
		}
	}
}

// A stall that many calls meet at once is one overrun, not as many as there are calls.
func TestOneStallIsOneOverrun(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client(t)
	r := openTier(t, client, RedisOptions{ReadTimeout: 500 * time.Millisecond})
	_, err := r.get(t.Context(), "k", Mark{})
	require.NoError(t, err)
	start := time.Now()
	for range 100 {
		r.single.overran(start, time.Now())
	}
	require.EqualValues(t, 1, r.single.overruns.Load())
	require.True(t, r.reachable("k"))
	r.single.overran(time.Now(), time.Now())
	require.EqualValues(t, 2, r.single.overruns.Load())
	_, err = r.get(t.Context(), "k", Mark{})
	require.NoError(t, err)
	require.Zero(t, r.single.overruns.Load(), "an answer ends the row")
}

// A server that is gone refuses connections: it is unreachable without any budget being waited for, though the client itself
// would try for longer, and whoever waits leaves. It is reachable again when it is back.
func TestKilledServerIsUnreachableAtOnce(t *testing.T) {
	for _, free := range []bool{false, true} {
		server := redistest.Start(t)
		patient := make(chan struct{}) // the client does not give up before it is closed
		client := server.Client(t, func(o *redis.Options) {
			o.DialerRetryBackoff = func(int) time.Duration { <-patient; return 0 }
		})
		r := openTier(t, client, RedisOptions{ReadTimeout: time.Minute, WriteTimeout: time.Minute})
		ctx := t.Context()
		if free {
			ctx = context.WithoutCancel(ctx)
		}
		_, err := r.get(ctx, "k", Mark{})
		require.NoError(t, err)
		server.Kill()
		r.single.checked.Store(time.Now().UnixNano()) // as if it had been looked at just now: the get's first look is not made
		_, err = r.get(ctx, "k", Mark{})
		require.Error(t, err)
		require.NotErrorIs(t, err, ErrTimeout)
		c := &scriptCall{script: borrowed.NewScript("one", "return 1"), keys: []string{"k"}}
		r.eval(ctx, c)
		require.Error(t, c.err)
		awaitTrue(t, func() bool { return !r.reachable("k") }, "unreachable")
		_, err = r.get(ctx, "k", Mark{})
		require.ErrorIs(t, err, ErrUnreachable)
		close(patient)
		server.Restart()
		awaitTrue(t, func() bool { _, err := r.get(ctx, "k", Mark{}); return err == nil }, "comes back by the probe of its callers")
		require.True(t, r.reachable("k"))
	}
}

// While a server hangs, 500 callers that left hold a few goroutines in all: those that send.
func TestHungServerHoldsFewGoroutines(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client(t, noTimeouts)
	r := openTier(t, client, RedisOptions{})
	s := borrowed.NewScript("one", "return 1")
	_, err := r.get(t.Context(), "k", Mark{})
	require.NoError(t, err)
	server.Stop()
	ctx, leave := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for i := range 500 {
		all.Go(func() {
			if i%2 == 0 {
				_, err := r.get(ctx, strings.Repeat("k", i+1), Mark{})
				require.ErrorIs(t, err, context.Canceled)
				return
			}
			c := &scriptCall{script: s, keys: []string{"k"}}
			r.eval(ctx, c)
			require.ErrorIs(t, c.err, context.Canceled)
		})
	}
	waiting := func() (n int) {
		r.single.gets.mu.Lock()
		n = r.single.gets.under.len()
		r.single.gets.mu.Unlock()
		return n
	}
	awaitTrue(t, func() bool { return waiting() == 250 }, "all wait")
	senders := goroutinesIn("go-redis/v9.(*Pipeline).Exec")
	require.LessOrEqual(t, senders, maxFlushers+maxScriptFlushers)
	require.Positive(t, senders)
	leave()
	all.Wait()
	require.LessOrEqual(t, goroutinesIn("layers.(*master).flush"), maxFlushers+maxScriptFlushers)
	r.single.scripts.mu.Lock()
	require.Empty(t, r.single.scripts.waiting, "who left is not sent any more")
	r.single.scripts.mu.Unlock()
	server.Continue()
	awaitTrue(t, func() bool { return waiting() == 0 }, "answered")
}

// goroutinesIn counts the goroutines whose stack names what.
func goroutinesIn(what string) (n int) {
	buf := make([]byte, 16<<20)
	for _, stack := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(stack, what) {
			n++
		}
	}
	return n
}

// In a cluster a master that hangs is no reason not to ask the others.
func TestHungMasterLeavesTheOthersAlone(t *testing.T) {
	cluster := redistest.StartCluster(t)
	client := cluster.Client(t)
	r := openTier(t, client, RedisOptions{ReadTimeout: shortBudget, WriteTimeout: shortBudget})
	bad, good := cluster.Key("a", cluster.Nodes[0]), cluster.Key("b", cluster.Nodes[1])
	for _, key := range []string{bad, good} {
		awaitTrue(t, func() bool { _, err := r.get(t.Context(), key, Mark{}); return err == nil }, "first contact")
	}
	cluster.Nodes[0].Stop()
	t.Cleanup(cluster.Nodes[0].Continue)
	awaitTrue(t, func() bool { _, err := r.get(t.Context(), bad, Mark{}); return errors.Is(err, ErrUnreachable) }, "unreachable")
	require.False(t, r.reachable(bad))
	require.True(t, r.reachable(good))
	awaitTrue(t, func() bool { _, err := r.get(t.Context(), good, Mark{}); return err == nil }, "the other answers")
	many := r.getMany(t.Context(), []string{bad, good}, make([]Mark, 2))
	require.ErrorIs(t, many[0].err, ErrUnreachable)
	cluster.Nodes[0].Continue()
	awaitTrue(t, func() bool {
		ok := false
		r.eachMaster(t.Context(), func(ctx context.Context, m *master) {
			if err := m.do(ctx, redis.NewStatusCmd(ctx, "ping")); err == nil && m.id == cluster.Nodes[0].Addr {
				ok = true
			}
		})
		return ok && r.reachable(bad)
	}, "reachable again")
}

// A hung probe holds a bounded number of goroutines however often it is tried.
func TestProbesAreBounded(t *testing.T) {
	server := redistest.Start(t)
	client := hidden{server.Client(t, noTimeouts)}
	r := openTier(t, client, RedisOptions{WriteTimeout: shortBudget})
	require.NoError(t, client.Ping(t.Context()).Err())
	server.Stop()
	for range 10 {
		require.ErrorIs(t, r.any.do(t.Context(), redis.NewStatusCmd(t.Context(), "ping")), ErrTimeout)
	}
	require.LessOrEqual(t, goroutinesIn("(*master).do.func"), maxProbes)
	server.Continue()
	awaitTrue(t, func() bool { return r.any.do(t.Context(), redis.NewStatusCmd(t.Context(), "ping")) == nil }, "probe")
}

// Connections that are dead without saying so, as after a partition, cost their callers a budget but not those who come after them,
// though the client itself would wait on them for ever.
func TestDeadConnectionsDoNotHoldTheQueue(t *testing.T) {
	server := redistest.Start(t)
	w := newWire(t, server.Addr)
	const dead = 6
	client := redis.NewClient(&redis.Options{Addr: w.Addr().String(), MaxRetries: -1, ReadTimeout: -1, WriteTimeout: -1, PoolSize: 100, PipelinePoolSize: -1})
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	var held []*redis.Conn
	for range dead {
		c := client.Conn()
		require.NoError(t, c.Ping(t.Context()).Err())
		held = append(held, c)
	}
	for _, c := range held {
		require.NoError(t, c.Close()) // back into the pool
	}
	require.EqualValues(t, dead, client.PoolStats().IdleConns)
	r, err := NewRedis(t.Context(), client, RedisOptions{ReadTimeout: shortBudget, WriteTimeout: shortBudget, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	w.deafen()
	awaitTrue(t, func() bool {
		r.single.overruns.Store(0) // the state is not what is tested here
		_, err := r.get(t.Context(), "k", Mark{})
		return err == nil
	}, "a GET is answered on a new connection")
	awaitTrue(t, func() bool { c := lua(echoScript, "k", 1); r.eval(t.Context(), c); return c.err == nil }, "a script too")
	w.hangUp()
	awaitTrue(t, func() bool {
		r.single.gets.mu.Lock()
		defer r.single.gets.mu.Unlock()
		r.single.scripts.mu.Lock()
		defer r.single.scripts.mu.Unlock()
		return r.single.gets.crew == crew{} && r.single.scripts.crew == crew{}
	}, "nobody is counted who is not there")
	require.NoError(t, r.Close())
}
