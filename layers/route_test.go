package layers

import (
	"context"
	"errors"
	"strconv"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/tiercache/tiercache/internal/redistest"
)

// The slot that keys are grouped by is the server's.
func TestSlotIsTheServers(t *testing.T) {
	cluster := redistest.SharedCluster(t)
	client := cluster.Client(t)
	for _, key := range []string{"a", "tc:x:{k}", "{}x", "a{}b{c}", "{a", "a}b{c}", "{{a}}", "x{ä}", "foo{bar}{zap}"} {
		want, err := client.ClusterKeySlot(t.Context(), key).Result()
		require.NoError(t, err)
		require.Equal(t, want, int64(slotOf(key)), key)
	}
}

// A key whose slot has moved is answered all the same, within the same call, but not to be kept: its clock and its master are not
// the batch's. Once the client has learnt of the move it is an ordinary key again.
func TestMovedKeyIsAnsweredAndNotKept(t *testing.T) {
	cluster := redistest.StartCluster(t)
	client := cluster.Client(t)
	r := openTier(t, client, RedisOptions{})
	from, to := cluster.Nodes[0], cluster.Nodes[1]
	moving, staying := cluster.Key("m", from), cluster.Key("other", from)
	for _, key := range []string{moving, staying} {
		require.NoError(t, client.Set(t.Context(), key, "v of "+key, 0).Err())
		q, err := r.get(t.Context(), key, Mark{})
		require.NoError(t, err)
		require.True(t, q.keep)
	}
	cluster.MoveSlot(int(slotOf(moving)), from, to)
	many := r.getMany(t.Context(), []string{moving, staying}, make([]Mark, 2))
	for i, key := range []string{moving, staying} {
		require.NoError(t, many[i].err)
		require.Equal(t, "v of "+key, many[i].raw)
		require.Positive(t, many[i].now)
	}
	require.False(t, many[0].keep)
	require.True(t, many[1].keep)
	require.EqualValues(t, 1, r.Stats().Redirected)
	awaitTrue(t, func() bool {
		q, err := r.get(t.Context(), moving, Mark{})
		return err == nil && q.raw == "v of "+moving && q.keep
	}, "the client learns of the move")
	require.True(t, r.reachable(moving))

	cluster.MoveSlot(int(slotOf(moving)), to, from)
	c := lua(countScript, moving+"{"+moving+"}", 1)
	c.keys[0] = "n{" + moving + "}"
	r.eval(t.Context(), c)
	require.NoError(t, c.err)
	require.Equal(t, int64(1), c.reply, "a script runs once where the slot is")
}

// A key that is already on the new side of a migration is asked for there; a script over keys on both sides is tried again until
// they are together, within its budget.
func TestMigratingSlotIsWaitedFor(t *testing.T) {
	cluster := redistest.StartCluster(t)
	client := cluster.Client(t)
	r := openTier(t, client, RedisOptions{})
	from, to := cluster.Nodes[0], cluster.Nodes[1]
	base := cluster.Key("m", from)
	here, there := "a{"+base+"}", "b{"+base+"}"
	slot := int(slotOf(here))
	for _, key := range []string{here, there} {
		require.NoError(t, client.Set(t.Context(), key, "1", 0).Err())
	}
	_, err := r.get(t.Context(), here, Mark{})
	require.NoError(t, err)
	cluster.BeginMove(slot, from, to)
	cluster.MoveKeys(slot, from, to, there)
	for i, q := range r.getMany(t.Context(), []string{here, there}, make([]Mark, 2)) {
		require.NoError(t, q.err)
		require.Equal(t, "1", q.raw, i)
		require.False(t, q.keep)
	}
	hasty := openTier(t, client, RedisOptions{WriteTimeout: shortBudget})
	c := &scriptCall{script: pairScript, keys: []string{here, there}}
	hasty.eval(t.Context(), c)
	require.ErrorIs(t, c.err, ErrTimeout)

	c = &scriptCall{script: pairScript, keys: []string{here, there}}
	done := make(chan struct{})
	before := r.Stats().Redirected
	go func() {
		defer close(done)
		r.eval(t.Context(), c)
	}()
	awaitTrue(t, func() bool { return r.Stats().Redirected > before+2 }, "tries again")
	cluster.MoveKeys(slot, from, to)
	cluster.EndMove(slot, from, to)
	<-done
	require.NoError(t, c.err)
	require.Equal(t, []any{int64(2), int64(2)}, c.reply)
}

// A cluster of which no node answers is unreachable, and nobody waits longer than a budget for it to become known; it needs not be
// there when the tier is made.
func TestUnknownClusterKeepsNobodyWaiting(t *testing.T) {
	client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{"127.0.0.1:1"}, MaxRetries: -1})
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	r := openTier(t, client, RedisOptions{ReadTimeout: shortBudget, WriteTimeout: shortBudget})
	awaitTrue(t, func() bool {
		_, err := r.get(t.Context(), "k", Mark{})
		require.Error(t, err)
		return errors.Is(err, ErrUnreachable)
	}, "unreachable")
	awaitTrue(t, func() bool { return !r.reachable("k") }, "known to be")
	c := lua(echoScript, "k", 1)
	r.eval(t.Context(), c)
	require.ErrorIs(t, c.err, ErrUnreachable)
	r.eachMaster(t.Context(), func(context.Context, *master) { t.Error("there is no master") })

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	fresh := openTier(t, client, RedisOptions{})
	_, err := fresh.get(ended, "k", Mark{})
	require.Error(t, err)
}

// eachMaster visits every master once, also one that is unreachable, and a master that is gone from the cluster no more.
func TestEachMasterVisitsAll(t *testing.T) {
	for name, rdb := range kinds(t) {
		t.Run(name, func(t *testing.T) {
			r := openTier(t, rdb, RedisOptions{})
			seen := make(chan string, 10)
			r.eachMaster(t.Context(), func(ctx context.Context, m *master) {
				require.NoError(t, m.do(ctx, redis.NewStatusCmd(ctx, "ping")))
				seen <- m.id
			})
			want := 1
			if r.cluster != nil {
				want = 3
			}
			require.Len(t, seen, want)
			require.EqualValues(t, want, r.Stats().RoundTrips, strconv.Itoa(want))
		})
	}
}
