package layers

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
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
			m.queueLocked(tableHash(strconv.Itoa(i)), strconv.Itoa(i), Mark{}, uint16(i*7919%16384)) //nolint:gosec // small
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
		require.Zero(t, g.under.len())
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
	awaitTrue(t, func() bool { return !r.reachable("k") }, "unreachable")
	_ = r.single.do(t.Context(), redis.NewStatusCmd(t.Context(), "ping")) // the answer may be there when the budget ends
	awaitTrue(t, func() bool { return r.single.probes.Load() == 0 }, "the probe was answered late")
	require.False(t, r.reachable("k"))
	require.EqualValues(t, 1, r.Stats().StateChanges)
	slow.Store(false)
	awaitTrue(t, func() bool {
		return r.single.do(t.Context(), redis.NewStatusCmd(t.Context(), "ping")) == nil && r.reachable("k")
	}, "answered in time")
}

// idle reports whether nobody sends for the queue.
func (g *gets) idle() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.crew == crew{} && len(g.flying) == 0
}

// hangFirst lets the first pipelines of a client hang, until release or the end of the test.
func hangFirst(t *testing.T, client *redis.Client, n int32) (hanging *atomic.Int32, release func()) {
	t.Helper()
	hanging = new(atomic.Int32)
	free := make(chan struct{})
	release = sync.OnceFunc(func() { close(free) })
	t.Cleanup(release)
	client.AddHook(pipelines(func(ctx context.Context, cmds []redis.Cmder, next redis.ProcessPipelineHook) error {
		if i := hanging.Add(1); i <= n {
			<-free
		}
		return next(ctx, cmds)
	}))
	return hanging, release
}

// A script that comes while a pipeline of others is late is sent by another flusher at once, not when the late one's budget is over.
//
//	1 a pipeline hangs; 2 it is late, nothing waits behind it; 3 a script comes
func TestScriptDoesNotWaitForALatePipeline(t *testing.T) {
	client := redistest.Start(t).Client(t)
	require.NoError(t, client.Ping(t.Context()).Err())
	r := openTier(t, client, RedisOptions{WriteTimeout: 10 * longWait})
	hanging, release := hangFirst(t, client, 1)
	var all sync.WaitGroup
	defer all.Wait()
	defer release()
	all.Go(func() { r.eval(t.Context(), lua(echoScript, "k", 1)) })
	s := &r.single.scripts
	awaitTrue(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return hanging.Load() == 1 && len(s.flying) == 1 && s.flying[0].late.Load()
	}, "late")
	s.mu.Lock()   // the look for what waits behind it is over
	s.mu.Unlock() //nolint:staticcheck // as above
	done := make(chan error, 1)
	go func() {
		c := lua(echoScript, "k", 2)
		r.eval(t.Context(), c)
		done <- c.err
	}()
	select {
	case err := <-done:
		require.NoError(t, err)
	case <-time.After(longWait):
		t.Fatal("it waits for the late one")
	}
}

// What waits behind as many late batches as there may be is sent when one of them is given up.
//
//	1 all flushers hang; 2 a batch waits, is late, and finds nobody to send it; 3 the budget of the first ends
func TestBatchIsSentWhenALateOneIsGivenUp(t *testing.T) {
	client := redistest.Start(t).Client(t)
	require.NoError(t, client.Ping(t.Context()).Err())
	r := openTier(t, client, RedisOptions{ReadTimeout: 10 * longWait})
	hanging, release := hangFirst(t, client, maxFlushers)
	var all sync.WaitGroup
	defer all.Wait()
	defer release()
	get := func(key string) <-chan error {
		done := make(chan error, 1)
		all.Go(func() {
			_, err := r.get(t.Context(), key, Mark{})
			done <- err
		})
		return done
	}
	var first <-chan error
	for i := range maxFlushers {
		done := get(strconv.Itoa(i))
		if first == nil {
			first = done
		}
		awaitTrue(t, func() bool { return int(hanging.Load()) == i+1 }, "hangs")
	}
	last := get("last")
	g := &r.single.gets
	var late *batch
	awaitTrue(t, func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		late = g.flying[0]
		return len(g.waiting) == 1 && g.waiting[0].late.Load()
	}, "waits")
	late.expire()
	require.ErrorIs(t, <-first, ErrTimeout)
	select {
	case err := <-last:
		require.NoError(t, err)
	case <-time.After(longWait):
		t.Fatal("nobody sends it")
	}
}

// A call that hangs when its master becomes unreachable is given up as one that overran its budget: it does not keep a queue from being
// sent once the master is back.
//
//	1 GETs and scripts hang on connections that are dead; 2 the master is found unreachable, and who waits leaves; 3 a probe is answered
//	on a new connection; 4 a GET comes, and a script
func TestCallsHangingSinceTheOutageDoNotHoldTheQueue(t *testing.T) {
	client := redistest.Start(t).Client(t)
	require.NoError(t, client.Ping(t.Context()).Err())
	r := openTier(t, client, RedisOptions{ReadTimeout: 10 * longWait, WriteTimeout: 10 * longWait})
	hanging, release := hangFirst(t, client, maxFlushers+maxScriptFlushers)
	var all sync.WaitGroup
	defer all.Wait()
	defer release()
	var n int32
	for i := range maxFlushers {
		all.Go(func() {
			_, err := r.get(t.Context(), strconv.Itoa(i), Mark{})
			assert.ErrorIs(t, err, ErrUnreachable)
		})
		n++
		awaitTrue(t, func() bool { return hanging.Load() == n }, "hangs")
	}
	ctx, leave := context.WithCancel(t.Context())
	for range maxScriptFlushers {
		all.Go(func() { r.eval(ctx, lua(echoScript, "k", 1)) })
		n++
		awaitTrue(t, func() bool { return hanging.Load() == n }, "hangs")
	}
	r.single.lose(ErrTimeout)
	leave()
	awaitTrue(t, func() bool { return r.single.do(t.Context(), redis.NewStatusCmd(t.Context(), "ping")) == nil }, "probe")
	require.True(t, r.reachable("k"), "in time: the budget is long")
	done := make(chan error, 2)
	go func() { _, err := r.get(t.Context(), "k", Mark{}); done <- err }()
	go func() { c := lua(echoScript, "k", 2); r.eval(t.Context(), c); done <- c.err }()
	for range 2 {
		select {
		case err := <-done:
			require.NoError(t, err)
		case <-time.After(longWait):
			t.Fatal("nobody sends it")
		}
	}
	release()
	awaitTrue(t, r.single.gets.idle, "nobody is counted who is not there")
}

// A caller that leaves while the generation is still being asked for is told that its ctx has ended, and why.
func TestLeavingBeforeTheGenerationIsKnownTellsBoth(t *testing.T) {
	server := redistest.Start(t)
	r := openTier(t, server.Client(t), RedisOptions{})
	sp := &Space{r: r, o: SpaceOptions{Name: "n"}, before: "n:{", genKey: "n:gen", channel: "n:bus"}
	sp.ear = &ear{bus: r.bus, space: sp}
	require.NoError(t, server.Client(t).Ping(t.Context()).Err())
	server.Stop()
	t.Cleanup(server.Continue)
	why := errors.New("the caller went home")
	ctx, leave := context.WithCancelCause(t.Context())
	leave(why)
	_, err := NewShared[string](sp, Raw, 0, Limits{}).Get(ctx, "k", Mark{})
	require.ErrorIs(t, err, why)
	require.ErrorIs(t, err, context.Canceled)
}

// The bus and the tier work for whatever user, database and protocol the client was made with.
func TestClientOfAnotherUserDatabaseAndProtocol(t *testing.T) {
	server := redistest.Start(t)
	acl(t, server, "app", "on", ">secret", "~*", "&*", "+@all")
	options := func(o *redis.Options) {
		o.Protocol, o.DB, o.Username, o.Password, o.ClientName = 2, 3, "app", "secret", "shop"
	}
	for name, wrap := range map[string]func(*redis.Client) redis.UniversalClient{
		"client": func(c *redis.Client) redis.UniversalClient { return c },
		"other":  func(c *redis.Client) redis.UniversalClient { return hidden{c} },
	} {
		t.Run(name, func(t *testing.T) {
			prefix := redistest.Name(t)
			one, _ := busOn(t, wrap(server.Client(t, options)), prefix)
			two, _ := busOn(t, wrap(server.Client(t, options)), prefix)
			a, heard := openHearing(t, one, "users")
			b, _ := openHearing(t, two, "users")
			writer, reader := NewShared[string](b, Raw, 0, Limits{}), NewShared[string](a, Raw, 0, Limits{})
			q := writer.Acquire(t.Context(), Ask{ID: "k", Token: NewToken()})[0]
			require.NoError(t, q.Err)
			require.Equal(t, Granted, q.Verdict)
			f, err := writer.Encode(q.Lease, Entry[string]{Value: "v"}, Lives{Soft: time.Minute, Hard: time.Minute})
			require.NoError(t, err)
			filled := writer.Fill(t.Context(), f)[0]
			require.NoError(t, filled.Err)
			require.Equal(t, Stored, filled.Result)
			got, err := reader.Get(t.Context(), "k", Mark{})
			require.NoError(t, err)
			require.Equal(t, Value, got.Kind)
			require.Equal(t, "v", got.Value)
			require.True(t, got.Keep)
			require.NoError(t, b.Invalidate(t.Context(), Once, "", "k")[0].Err)
			heard.expect(t, "invalidated k")
			got, err = reader.Get(t.Context(), "k", Mark{epoch: 1})
			require.NoError(t, err)
			require.Equal(t, Nothing, got.Kind)
		})
	}
}

// Races: a slot of the front can be left with a key's tag but without its cell, and the key finds its way back into the front all the same.
//
//	1 a reader stores a live cell into a slot; 2 the cell is killed, and its slot is cleared; 3 the reader writes the slot's tag
//	1 a reader stores a cell into a free slot; 2 another stores its own there, and its tag; 3 the first writes its tag
//
// Whoever asks for the key comes to that slot first and makes it look asked for, so that nobody else takes it: a hot key would stay out.
func TestFrontHealsASlotWithoutItsCell(t *testing.T) {
	const hash, neighbour = 7<<40 | 6, 8<<40 | 6
	owner := &localOwner{tail: tailOffset[int64, int64]()}
	live := func(hash uint64) *cellHead {
		c := &cell[int64, int64]{}
		c.owner, c.t.hash = owner, hash
		return &c.cellHead
	}
	for name, left := range map[string]*cellHead{"none": nil, "a neighbour's": live(neighbour)} {
		f := newFront(0)
		s := f.set(hash)
		s.cells[0].Store(left)
		s.tags[0].Store(frontTag(hash))
		c := live(hash)
		f.offer(hash, c, 0)
		require.Equal(t, c, f.get(hash), name)
	}
}
