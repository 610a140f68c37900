package redistest

import (
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// A shared cluster serves every slot as soon as it is given out, and is the same one for all tests.
func TestSharedClusterServesEverySlot(t *testing.T) {
	c := SharedCluster(t)
	require.Equal(t, c.Addrs(), SharedCluster(t).Addrs())
	rdb := c.Client(t)
	for i, node := range c.Nodes {
		key := c.Key(Name(t), node)
		require.NoError(t, rdb.Set(t.Context(), key, i, 0).Err(), "key %q on node %d", key, i)
		require.Same(t, node, c.Owner(c.Slot(key)))
	}
}

// A moved slot is answered by its new owner; who asks the old one is told MOVED.
func TestMoveSlot(t *testing.T) {
	c := StartCluster(t)
	from, to := c.Nodes[0], c.Nodes[2]
	key := c.Key("k", from)
	slot := c.Slot(key)
	rdb := c.Client(t)
	require.NoError(t, rdb.Set(t.Context(), key, "v", 0).Err())

	c.MoveSlot(slot, from, to)
	require.Same(t, to, c.Owner(slot))
	err := from.Client(t).Get(t.Context(), key).Err()
	require.ErrorContains(t, err, "MOVED")
	require.Equal(t, "v", rdb.Get(t.Context(), key).Val(), "through a client that knew the old owner")
}

// While a slot moves, the old owner sends who asks for a moved key on with ASK, and a script over a key that is there and one that
// is not is told TRYAGAIN by the new owner.
func TestASlotUnderWayGivesAskAndTryAgain(t *testing.T) {
	c := StartCluster(t)
	from, to := c.Nodes[0], c.Nodes[1]
	tag := c.Key("t", from)
	here, there := "{"+tag+"}:here", "{"+tag+"}:there"
	slot := c.Slot(here)
	require.Equal(t, slot, c.Slot(there))
	old := from.Client(t, func(o *redis.Options) { o.MaxRetries = -1 })
	require.NoError(t, old.MSet(t.Context(), here, "1", there, "2").Err())

	c.BeginMove(slot, from, to)
	c.MoveKeys(slot, from, to, there)
	require.Equal(t, "1", old.Get(t.Context(), here).Val(), "a key that has not moved yet")
	require.ErrorContains(t, old.Get(t.Context(), there).Err(), "ASK")
	require.ErrorContains(t, old.MGet(t.Context(), here, there).Err(), "TRYAGAIN")
	c.MoveKeys(slot, from, to)
	c.EndMove(slot, from, to)
	require.Equal(t, []any{"1", "2"}, c.Client(t).MGet(t.Context(), here, there).Val())
}

// A killed master takes only its own slots with it, and has them again after a restart.
func TestAKilledMasterTakesOnlyItsOwnSlots(t *testing.T) {
	c := StartCluster(t)
	lost, kept := c.Key("a", c.Nodes[0]), c.Key("b", c.Nodes[1])
	rdb := c.Client(t, func(o *redis.ClusterOptions) { o.MaxRedirects = -1 })
	require.NoError(t, rdb.Set(t.Context(), kept, "v", 0).Err())
	c.Nodes[0].Kill()
	require.Equal(t, "v", rdb.Get(t.Context(), kept).Val())
	require.Error(t, rdb.Set(t.Context(), lost, "v", 0).Err())
	c.Nodes[0].Restart()
	c.AwaitReady()
	require.NoError(t, c.Client(t).Set(t.Context(), lost, "v", 0).Err())
}

// Nobody may reshape the shared cluster.
func TestTheSharedClusterKeepsItsShape(t *testing.T) {
	c := SharedCluster(t)
	r := pretend(t, func(tb testing.TB) {
		c.tb = tb
		c.MoveSlot(0, c.Nodes[0], c.Nodes[1])
	})
	require.True(t, r.failed)
	require.True(t, strings.Contains(r.said, "StartCluster"), r.said)
}
