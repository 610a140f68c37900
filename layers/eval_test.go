package layers

import (
	"context"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/internal/borrowed"
	"github.com/tiercache/tiercache/internal/redistest"
)

var (
	countScript = borrowed.NewScript("count", "return redis.call('INCRBY', KEYS[1], ARGV[1])")
	pairScript  = borrowed.NewScript("pair", "return {redis.call('INCR', KEYS[1]), redis.call('INCR', KEYS[2])}")
	echoScript  = borrowed.NewScript("echo", "return ARGV[1]")
	failScript  = borrowed.NewScript("fail", "return redis.error_reply('ERR no')")
	nilScript   = borrowed.NewScript("nil", "return false")
)

func lua(s *borrowed.Script, key string, args ...any) *scriptCall {
	return &scriptCall{script: s, keys: []string{key}, args: args}
}

// Scripts of many callers are answered each with its own reply or error, and each runs once.
func TestEvalAnswersEachCallItsOwnReply(t *testing.T) {
	for name, rdb := range kinds(t) {
		t.Run(name, func(t *testing.T) {
			r := openTier(t, rdb, RedisOptions{})
			prefix := redistest.Name(t)
			key := func(i int) string { return prefix + ":{" + strconv.Itoa(i%7) + "}" }
			const callers, rounds = 32, 20
			var all sync.WaitGroup
			for g := range callers {
				all.Go(func() {
					for i := range rounds {
						calls := []*scriptCall{
							lua(countScript, key(i), 1), lua(echoScript, key(g), g*1000+i), lua(failScript, key(i)), lua(nilScript, key(i)),
						}
						before := time.Now()
						r.eval(t.Context(), calls...)
						require.NoError(t, calls[0].err)
						require.IsType(t, int64(0), calls[0].reply)
						require.NoError(t, calls[1].err)
						require.Equal(t, strconv.Itoa(g*1000+i), calls[1].reply)
						require.ErrorContains(t, calls[2].err, "ERR no")
						require.NoError(t, calls[3].err)
						require.Nil(t, calls[3].reply)
						require.False(t, calls[0].sent.Before(before) || calls[0].sent.After(time.Now()))
					}
				})
			}
			all.Wait()
			sum := 0
			for i := range 7 {
				n, err := rdb.Get(t.Context(), key(i)).Int()
				require.NoError(t, err)
				sum += n
			}
			require.Equal(t, callers*rounds, sum)
		})
	}
}

// A script of which the client never got the reply ran once: the client's own retries are kept off.
func TestScriptRunsOnceThoughItsReplyIsLost(t *testing.T) {
	server := redistest.Start(t)
	w := newWire(t, server.Addr)
	client := redis.NewClient(&redis.Options{Addr: w.Addr().String(), MaxRetries: 3})
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	r := openTier(t, client, RedisOptions{})
	c := lua(countScript, "n", 1)
	r.eval(t.Context(), c)
	require.NoError(t, c.err)
	w.cut.Store(true)
	c = lua(countScript, "n", 1)
	r.eval(t.Context(), c)
	require.Error(t, c.err)
	awaitTrue(t, func() bool { return w.ran.Load() > 0 && w.begun.Load() == w.ran.Load() }, "the server is done with what it was sent")
	n, err := server.Client(t).Get(t.Context(), "n").Int()
	require.NoError(t, err)
	require.Equal(t, 2, n, "once before, once now")
}

// A script whose reply is slow ends with its budget, whatever time-outs and retries the client has, and ran once when the server
// gets to it; one that was still queued when its budget ended is never sent.
func TestScriptRunsOnceThoughItsReplyIsSlow(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client(t, func(o *redis.Options) { o.MaxRetries, o.ReadTimeout = 3, 10*time.Millisecond })
	r, err := NewRedis(t.Context(), client, RedisOptions{WriteTimeout: 150 * time.Millisecond})
	require.NoError(t, err)
	awaitTrue(t, func() bool { c := lua(countScript, "warm", 1); r.eval(t.Context(), c); return c.err == nil }, "warm")
	server.Stop()
	c := lua(countScript, "n", 1)
	r.eval(t.Context(), c)
	require.ErrorIs(t, c.err, ErrTimeout)
	server.Continue()
	require.NoError(t, r.Close()) // nothing is sent any more
	check := server.Client(t)
	awaitTrue(t, func() bool { return check.Ping(t.Context()).Err() == nil }, "awake")
	n, err := check.Get(t.Context(), "n").Int()
	require.NoError(t, err)
	require.Equal(t, 1, n)
}

// Scripts that the server has forgotten are sent again with their text in one more pipeline, the others of the pipeline are not
// touched, and everything runs once.
func TestForgottenScriptsAreSentWithTheirText(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client(t)
	count := redistest.Count(client)
	r := openTier(t, client, RedisOptions{})
	warm := lua(echoScript, "k", "x")
	r.eval(t.Context(), warm)
	require.NoError(t, warm.err)
	require.NoError(t, client.ScriptFlush(t.Context()).Err())
	load := lua(echoScript, "k", "x")
	r.eval(t.Context(), load)
	require.NoError(t, load.err)
	count.Reset()
	var calls []*scriptCall
	for i := range 3 {
		calls = append(calls, lua(countScript, "n", 1), lua(echoScript, "k", i), lua(pairScript, "p"))
		calls[len(calls)-1].keys = []string{"p", "q"}
	}
	r.eval(t.Context(), calls...)
	for i, c := range calls {
		require.NoError(t, c.err, i)
	}
	require.Equal(t, int64(3), calls[6].reply)
	require.Equal(t, []any{int64(3), int64(3)}, calls[8].reply)
	require.Equal(t, 2, count.Sent("eval"), "the text of each forgotten script once")
	require.Equal(t, 9+4, count.Sent("evalsha"))
	require.Equal(t, 2, count.Trips())
}

// Callers of a hung server leave at their own end, and what had not been sent is not sent later.
func TestEvalLeavesAtItsOwnEnd(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client(t)
	r := openTier(t, client, RedisOptions{})
	warm := lua(countScript, "n", 0)
	r.eval(t.Context(), warm)
	require.NoError(t, warm.err)
	server.Stop()
	ctx, leave := context.WithCancel(t.Context())
	first, second := lua(countScript, "n", 1), lua(countScript, "n", 10)
	var all sync.WaitGroup
	all.Go(func() { r.eval(ctx, first) })
	awaitTrue(t, func() bool { return r.Stats().RoundTrips > 2 }, "sent")
	all.Go(func() { r.eval(ctx, second) })
	awaitTrue(t, func() bool { return r.single.scripts.len() == 1 }, "queued")
	leave()
	all.Wait()
	require.ErrorIs(t, first.err, context.Canceled)
	require.ErrorIs(t, second.err, context.Canceled)
	server.Continue()
	last := lua(countScript, "n", 100)
	r.eval(t.Context(), last)
	require.NoError(t, last.err)
	require.Equal(t, int64(101), last.reply, "the first ran, the second was taken back")
}

func (s *scripts) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.waiting)
}
