package redistest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Replicas have their masters' data; after a failover that was asked for, a replica serves the slots with all data, every node
// says so, and the old master follows it.
//
// Broken by: Server.follows without its comparison of addresses.
func TestClusterFailover(t *testing.T) {
	c := StartCluster(t, Replicas(1))
	require.Len(t, c.Replicas, masters)
	from := c.Nodes[1]
	key := c.Key("k", from)
	rdb := c.Client(t)
	require.NoError(t, rdb.Set(t.Context(), key, "v", 0).Err())
	require.Equal(t, []*Server{c.Replicas[1]}, c.ReplicasOf(from))

	to := c.Failover(from)
	require.Same(t, c.Replicas[1], to)
	require.Same(t, to, c.Owner(c.Slot(key)))
	require.Equal(t, []*Server{from}, c.ReplicasOf(to), "the old master follows")
	require.Equal(t, "v", rdb.Get(t.Context(), key).Val(), "through a client that knew the old master")
	require.ErrorContains(t, from.Client(t, plain).Set(t.Context(), key, "w", 0).Err(), "MOVED")
}

// A killed master's slots are served by its replica, and the master that comes back follows it.
//
// Broken by: FailoverByForce with "" for "FORCE": the master is asked to hand over, and lives.
func TestClusterFailoverByForce(t *testing.T) {
	c := StartCluster(t, Replicas(1))
	from := c.Nodes[0]
	key := c.Key("k", from)
	require.NoError(t, c.Client(t).Set(t.Context(), key, "v", 0).Err())
	c.Replicas[0].AwaitSync(from)

	to := c.FailoverByForce(from)
	require.Error(t, from.Client(t, plain).Ping(t.Context()).Err(), "the old master is dead")
	require.Same(t, to, c.Owner(c.Slot(key)))
	require.Equal(t, "v", to.Client(t, plain).Get(t.Context(), key).Val())
	from.Restart()
	c.AwaitReady()
	from.AwaitSync(to)
	require.Equal(t, []*Server{from}, c.ReplicasOf(to), "the old master, back again")
}

// A slot can be moved in a cluster with replicas, also by one that has become a master.
//
// Broken by: EndMove without n.leads(): a replica refuses SETSLOT.
func TestMoveSlotBetweenMastersWithReplicas(t *testing.T) {
	c := StartCluster(t, Replicas(1))
	from, key := c.Failover(c.Nodes[0]), ""
	key = c.Key("k", from)
	require.NoError(t, c.Client(t).Set(t.Context(), key, "v", 0).Err())
	c.MoveSlot(c.Slot(key), from, c.Nodes[2])
	require.Eventually(t, func() bool { return c.Owner(c.Slot(key)) == c.Nodes[2] }, time.Minute, 10*time.Millisecond, "the node that is asked has heard")
	require.Equal(t, "v", c.Client(t).Get(t.Context(), key).Val())
}
