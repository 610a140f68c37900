package redistest

import (
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// A command alone is a round trip and so is a pipeline of many; opening the connection counts nothing.
func TestCountOfOneServer(t *testing.T) {
	rdb := Shared(t).Client(t)
	name := Name(t)
	n := Count(rdb)
	require.NoError(t, rdb.Set(t.Context(), name, "v", 0).Err())
	require.Equal(t, 1, n.Trips(), n)
	require.Equal(t, map[string]int{"set": 1}, n.Commands())

	_, err := rdb.Pipelined(t.Context(), func(p redis.Pipeliner) error {
		p.Get(t.Context(), name)
		p.Get(t.Context(), name)
		p.Time(t.Context())
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, 2, n.Trips(), n)
	require.Equal(t, 4, n.Sent())
	require.Equal(t, 2, n.Sent("get"))
	require.Equal(t, 3, n.Sent("get", "time"))
	n.Reset()
	require.Zero(t, n.Trips())
	require.Zero(t, n.Sent())
}

// Of a cluster's pipeline each node's part is a round trip; the look-up of the layout is none; a client that was used before is
// counted like a new one.
func TestCountOfACluster(t *testing.T) {
	c := SharedCluster(t)
	name := Name(t)
	used := c.Client(t)
	for _, node := range c.Nodes {
		require.ErrorIs(t, used.Get(t.Context(), c.Key(name, node)).Err(), redis.Nil)
	}
	for state, rdb := range map[string]*redis.ClusterClient{"new": c.Client(t), "used": used} {
		n := Count(rdb)
		_, err := rdb.Pipelined(t.Context(), func(p redis.Pipeliner) error {
			for i, node := range c.Nodes {
				p.Set(t.Context(), c.Key(name, node), i, 0)
				p.Set(t.Context(), c.Key(name, node), i, 0)
			}
			return nil
		})
		require.NoError(t, err)
		require.Equal(t, 3, n.Trips(), "%s client: %v", state, n)
		require.Equal(t, 6, n.Sent("set"), "%s client: %v", state, n)
		require.NoError(t, rdb.Get(t.Context(), c.Key(name, c.Nodes[0])).Err())
		require.Equal(t, 4, n.Trips(), "%s client: %v", state, n)
		require.Equal(t, 7, n.Sent(), "%s client: %v", state, n)
	}
}
