package tiercache

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/internal/faulty"
	"github.com/tiercache/tiercache/internal/redistest"
	"github.com/tiercache/tiercache/layers"
)

// What is owed is given back at once, a second later and three seconds after that; then it is forgotten. It is bounded: the newest are kept.
// Broken by: addPaid returning at once; take without `d.due.After(now)`; add without its last line, or without DeleteFunc.
func TestWhatIsOwedIsGivenBackAgain(t *testing.T) {
	var o owed
	now := time.Now()
	lease := layers.Lease{ID: "k"}
	o.add(debt{lease: lease})
	for paid, pause := range []time.Duration{0, time.Second, 3 * time.Second} {
		if pause > 0 {
			require.Empty(t, o.take(now.Add(pause-1)), "after %d times", paid)
		}
		now = now.Add(pause)
		due := o.take(now)
		require.Len(t, due, 1, "after %d times", paid)
		require.Equal(t, lease, due[0].lease)
		require.Equal(t, paid, due[0].paid)
		o.addPaid(now, paid+1, due[0].lease)
	}
	require.Empty(t, o.take(now.Add(time.Hour)))

	o.addPaid(now, 1, lease)
	o.add(debt{lease: lease}) // it could not be given back
	require.Equal(t, []debt{{lease: lease}}, o.take(now))
	require.Empty(t, o.take(now.Add(time.Hour)), "owed twice")

	for range maxOwed {
		o.add(debt{lease: layers.Lease{Token: layers.NewToken()}})
	}
	o.add(debt{lease: lease})
	due := o.take(now)
	require.Len(t, due, maxOwed)
	require.Equal(t, lease, due[maxOwed-1].lease)
}

// Ends of Updates are owed in the same way; of their keys, too, the newest are kept.
// Broken by: addEnd without its bound, or without its first line; takeEnds without `e.due.After(now)`.
func TestEndsThatAreOwedAreBounded(t *testing.T) {
	var o owed
	now := time.Now()
	many := func(n int) []string { return slices.Repeat([]string{"k"}, n) }
	o.addEnd(end{op: "a", ids: many(maxEnds - 1)})
	o.addEnd(end{op: "b", ids: []string{"k", "l"}, due: now.Add(time.Second)})
	o.addEnd(end{op: "c"})
	o.addEnd(end{op: "d", ids: []string{"k"}, paid: len(repayments) + 1})
	due := o.takeEnds(now)
	require.Len(t, due, 1)
	require.Equal(t, layers.Token("a"), due[0].op)
	require.Len(t, due[0].ids, maxEnds-2)
	require.Equal(t, []end{{op: "b", ids: []string{"k", "l"}, due: now.Add(time.Second)}}, o.takeEnds(now.Add(time.Second)))
	require.Empty(t, o.takeEnds(now.Add(time.Hour)))

	o.addEnd(end{op: "a", ids: many(1)})
	o.addEnd(end{op: "b", ids: append(many(maxEnds), "l")})
	due = o.takeEnds(now)
	require.Len(t, due, 1)
	require.Len(t, due[0].ids, maxEnds)
	require.Equal(t, "l", due[0].ids[maxEnds-1])
}

// openOwing opens a cache whose calls of Redis suffer from f and are soon late.
func openOwing(t *testing.T, f *faulty.Faults) (*Cache[string, string], redis.UniversalClient) {
	t.Helper()
	rdb := redistest.Shared(t).Client(t)
	f.Install(rdb)
	shared, err := layers.NewRedis(t.Context(), rdb, layers.RedisOptions{WriteTimeout: 100 * time.Millisecond})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, shared.Close()) })
	load := func(context.Context, string) (string, error) { return "row", nil }
	c, err := New(Options[string, string]{Name: redistest.Name(t), Shared: shared, Load: load})
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c, rdb
}

// 1 A's Update begins; 2 its renewal is not answered; 3 A ends; 4 Redis carries out the renewal: the key is pending for a write that is over, until
// A ends it again.
// Broken by: in update.Renew, no `renewed`.
func TestUpdateWhoseRenewalWasCarriedOutAfterItsEndIsEndedAgain(t *testing.T) {
	t.Parallel()
	f := faulty.New(1)
	t.Cleanup(f.Close)
	c, rdb := openOwing(t, f)
	owners := func() string {
		return strings.Split(rdb.Get(context.WithoutCancel(t.Context()), "tc:"+c.o.Name+":{k}:g").Val()+"||||||||", "|")[8]
	}

	u := &update[string, string]{c: c, keys: []string{"k"}, ids: []string{"k"}, op: layers.NewToken()}
	require.NoError(t, u.Begin(t.Context()))
	f.Set(faulty.Rule{Kind: faulty.Delayed, About: string(u.op), Limit: 1, Delay: time.Hour})
	require.Error(t, u.Renew(t.Context()))
	f.Set()
	_ = u.End(t.Context()) // Redis may be taken to be away
	require.Eventually(t, func() bool { return owners() == "" }, 10*time.Second, time.Millisecond, "ended")
	f.Flush()
	require.Eventually(t, func() bool { return owners() == "" }, 10*time.Second, time.Millisecond, "ended again, by far before it ran out")
}

// Close gives back what is owed, due or not: else others would wait for a lease that nobody has, and values would be short-lived for a write that is
// over. Broken by: in shut, no repayAll; in repayAll, time.Now().
func TestCloseGivesBackWhatIsOwed(t *testing.T) {
	t.Parallel()
	f := faulty.New(1)
	t.Cleanup(f.Close)
	c, rdb := openOwing(t, f)
	const later = 2 * time.Second // longer than this cache lives, unless the machine is slow
	u := &update[string, string]{c: c, keys: []string{"k"}, ids: []string{"k"}, op: layers.NewToken()}
	require.NoError(t, u.Begin(t.Context()))
	c.owed.addEnd(end{op: u.op, ids: u.ids, due: time.Now().Add(later), paid: 1})
	got := c.shared.Acquire(t.Context(), layers.Ask{ID: "l", Token: layers.NewToken()})[0]
	require.NoError(t, got.Err)
	require.Equal(t, layers.Granted, got.Verdict)
	c.owed.add(debt{lease: got.Lease, due: time.Now().Add(later), paid: 1})

	guard := func(id string) string { return rdb.Get(t.Context(), "tc:"+c.o.Name+":{"+id+"}:g").Val() }
	require.Contains(t, guard("k"), string(u.op))
	require.Contains(t, guard("l"), string(got.Lease.Token))
	require.NoError(t, c.Close())
	require.NotContains(t, guard("k"), string(u.op))
	require.NotContains(t, guard("l"), string(got.Lease.Token))
}

// An Update of which Redis was sent nothing owes nothing: else each key that is written while Redis is away would be deleted four times when it is
// back. One whose begin was carried out owes its end, and so does one that a renewal opened.
// Broken by: in update.Begin, no `add(&u.closed, id)`; in update.End, no `|| u.renews`.
func TestUpdateThatRedisDidNotBeginOwesNoEnd(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		begins, renews bool
		owes           int
	}{
		"not sent": {owes: 0}, "begun": {begins: true, owes: 1}, "opened by a renewal": {renews: true, owes: 1},
	} {
		t.Run(name, func(t *testing.T) {
			f := faulty.New(1)
			t.Cleanup(f.Close)
			c, _ := openOwing(t, f)
			u := &update[string, string]{c: c, keys: []string{"k"}, ids: []string{"k"}, op: layers.NewToken()}
			refuses := func(not bool) {
				f.Set()
				if !not {
					f.Set(faulty.Rule{Kind: faulty.Reply, About: string(u.op)})
				}
			}
			refuses(test.begins)
			require.Equal(t, test.begins, u.Begin(t.Context()) == nil)
			refuses(test.renews)
			require.Equal(t, test.renews, u.Renew(t.Context()) == nil)
			refuses(false)
			require.ErrorIs(t, u.End(t.Context()), ErrPending)
			require.Len(t, u.pending, test.owes)
			f.Set()
		})
	}
}
