package tiercache_test

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/internal/faulty"
	"github.com/tiercache/tiercache/internal/redistest"
)

// What Redis holds of an Update: its keys are pending from its begin to its end, and no longer.

// pendingUntil is when Redis takes no write of the key to be under way any more, by its clock; 0: none is.
func pendingUntil(t *testing.T, rdb redis.UniversalClient, at string) int64 {
	t.Helper()
	if rdb.Exists(t.Context(), at+":g").Val() == 0 {
		return 0
	}
	fields := guardFields(t, rdb, at)
	end, err := strconv.ParseInt(fields[7], 10, 64)
	require.NoError(t, err)
	require.Equal(t, end == 0, fields[8] == "", "owners of a pending write: %v", fields)
	return end
}

// endedAgain waits until no write of the key is under way. Redis must have been told so: begun, by its clock, is too short ago for that state to
// have run out.
func endedAgain(t *testing.T, rdb redis.UniversalClient, at string, begun int64) {
	t.Helper()
	asking(t, func() bool { return pendingUntil(t, rdb, at) == 0 }, "the write is over")
	require.Less(t, redisTime(t, rdb, at), begun+20_000, "it ran out")
}

// 1 A's Update begins; 2 B's begins; 3 B's ends: the key is pending on, for A; 4 A's ends: it is pending no longer, and after the last delete
// window what is loaded lives its whole life. The same where A's ends first, and again and again.
// Broken by: in guard.lua, others with `and false` for the comparison of tokens; pendsNoMore without its last line.
func TestOverlappingUpdatesArePendingUntilTheLastHasEnded(t *testing.T) {
	t.Parallel()
	onRedis(t, func(t *testing.T, client func(*testing.T) redis.UniversalClient) {
		s, name := newSource(map[string]string{"k": "row"}), redistest.Name(t)
		o := lasting(name, s)
		o.DeleteWindow = 500 * time.Millisecond
		p := openPeers(t, 2, client, o)
		a, b, at := p[0], p[1], valueKey(name, "k")
		none := func(context.Context) error { return nil }
		for range 2 {
			require.NoError(t, a.Update(t.Context(), "k", func(ctx context.Context) error {
				require.NoError(t, b.Update(ctx, "k", none))
				require.Positive(t, pendingUntil(t, b.rdb, at), "A's write is under way")
				return nil
			}))
			require.Zero(t, pendingUntil(t, b.rdb, at), "no write is under way")
		}

		second, resume, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
		require.NoError(t, a.Update(t.Context(), "k", func(ctx context.Context) error {
			go func() {
				ended <- b.Update(context.WithoutCancel(ctx), "k", func(context.Context) error {
					close(second)
					<-resume
					return nil
				})
			}()
			await(t, second, "B's write runs")
			return nil
		}))
		require.Positive(t, pendingUntil(t, b.rdb, at), "B's write is under way")
		close(resume)
		require.NoError(t, await(t, ended, "B's Update"))
		require.Zero(t, pendingUntil(t, b.rdb, at), "no write is under way")

		window, err := strconv.ParseInt(guardFields(t, b.rdb, at)[5], 10, 64)
		require.NoError(t, err)
		eventually(t, func() bool { return redisTime(t, b.rdb, at) > window }, "the last delete window is over")
		requireGet(t, a, "k", "row")
		require.Greater(t, ttl(t, b.rdb, at), 10*o.DeleteWindow.Milliseconds())
	})
}

// 1 A's Update begins, and writes; 2 Redis does not carry out its end, once or for a while; 3 Redis answers again: the key is pending no
// longer, though nobody writes it again, rather than until PendTime has passed.
// Broken by: in update.End, no `owed.addEnd`; in endAgain, no `owed.addEnd(failed)`.
func TestUpdateWhoseEndWasNotCarriedOutIsEndedAgain(t *testing.T) {
	t.Parallel()
	for name, rule := range map[string]faulty.Rule{
		"once":        {Kind: faulty.Reset, Limit: 1},
		"for a while": {Kind: faulty.Reply, Limit: 6},
	} {
		t.Run(name, func(t *testing.T) {
			s, name := newSource(map[string]string{"k": "old"}), redistest.Name(t)
			f := faulty.New(1)
			t.Cleanup(f.Close)
			rdb := redistest.Shared(t).Client(t)
			f.Install(rdb)
			a, at := openPeer(t, rdb, lasting(name, s)), valueKey(name, "k")
			begun := redisTime(t, rdb, at)
			rule.Names = []string{scriptHash(t, "invalidate")}
			require.ErrorIs(t, a.Update(t.Context(), "k", func(context.Context) error {
				f.Set(rule)
				s.write("k", "new")
				return nil
			}), tiercache.ErrPending)
			require.Positive(t, pendingUntil(t, rdb, at))
			endedAgain(t, rdb, at, begun)
			requireGet(t, a, "k", "new")
		})
	}
}

// 1 A's Update begins, and is not answered; 2 A writes, and ends; 3 Redis carries out the begin: the key is pending for a write that is over,
// until A ends it again, a second later or three.
// Broken by: in update.Begin, no `add(&u.pending, id)`; in endAgain, no `owed.addEnd(sent)`.
func TestUpdateWhoseBeginWasCarriedOutAfterItsEndIsEndedAgain(t *testing.T) {
	t.Parallel()
	s, name := newSource(map[string]string{"k": "old"}), redistest.Name(t)
	f := faulty.New(1)
	t.Cleanup(f.Close)
	rdb := redistest.Shared(t).Client(t)
	f.Install(rdb)
	wire, at := watch(t, rdb), valueKey(name, "k")
	teach(t, rdb)
	a := openBrief(t, rdb, brief, lasting(name, s))
	asking(t, func() bool { return a.Invalidate(t.Context(), "other") == nil }, "Redis is known to be there")
	begun := redisTime(t, rdb, at)
	f.Set(faulty.Rule{Kind: faulty.Delayed, Names: []string{scriptHash(t, "invalidate")}, Limit: 1, Delay: overdue})
	require.ErrorIs(t, a.Update(t.Context(), "k", func(context.Context) error {
		s.write("k", "new")
		return nil
	}), tiercache.ErrPending)
	asking(t, func() bool { return len(wire.ends()) >= 2 }, "it was ended, and ended again")
	require.Zero(t, pendingUntil(t, rdb, at), "Redis has not begun it")
	f.Flush()
	endedAgain(t, rdb, at, begun)
	v, err := a.Get(t.Context(), "k")
	require.NoError(t, err)
	require.Equal(t, "new", v)
}

// ends returns how many ends of Updates each round trip with any carried.
func (w *wire) ends() (each []int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, ops := range w.trips {
		n := 0
		for _, o := range ops {
			if o.name == "invalidate" && o.argv[0] == "end" {
				n++
			}
		}
		if n > 0 {
			each = append(each, n)
		}
	}
	return each
}

// The end of an Update of very many keys is sent again in as few calls as it was sent in, and three times in all.
// Broken by: in endAgain, Chunk by 1.
func TestEndOfManyKeysIsSentAgainInPieces(t *testing.T) {
	t.Parallel()
	keys := make([]string, 2500)
	for i := range keys {
		keys[i] = "k" + strconv.Itoa(i)
	}
	f := faulty.New(1)
	t.Cleanup(f.Close)
	rdb := redistest.Shared(t).Client(t)
	f.Install(rdb)
	a := openPeer(t, rdb, lasting(redistest.Name(t), newSource(nil)))
	require.ErrorIs(t, a.UpdateMany(t.Context(), keys, func(context.Context) error {
		f.Set(faulty.Rule{Kind: faulty.Reset, Names: []string{scriptHash(t, "invalidate")}, Limit: 3})
		return nil
	}), tiercache.ErrPending)
	asking(t, func() bool { return len(a.wire.ends()) >= 9 }, "it was ended again, a second later and after three more")
	require.Equal(t, []int{1000, 1000, 500, 1000, 1000, 500, 1000, 1000, 500}, a.wire.ends())
}
