package redistest

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
)

// The sentinels put a replica in a killed master's place; a client that asks them follows, and finds the data.
//
// Broken by: StartSentinel's "sentinel monitor" with a quorum of sentinels+1: nobody ever takes the place.
func TestSentinelReplacesADeadMaster(t *testing.T) {
	s := StartSentinel(t, 1)
	rdb := s.FailoverClient(t)
	require.Same(t, s.Servers[0], s.Master())
	require.NoError(t, rdb.Set(t.Context(), "k", "v", 0).Err())
	s.Servers[1].AwaitSync(s.Servers[0])

	dead := s.KillMaster()
	require.Same(t, s.Servers[0], dead)
	to := s.AwaitFailover(dead)
	require.Same(t, s.Servers[1], to)
	require.Same(t, to, s.Master())
	await(t, func(ctx context.Context) error { return rdb.Set(ctx, "k2", "v", 0).Err() })
	require.Equal(t, "v", rdb.Get(t.Context(), "k").Val())
	require.Equal(t, "v", to.Client(t).Get(t.Context(), "k2").Val(), "the client writes to the new master")
}

// A failover that was asked for leaves both alive and changes who leads.
//
// Broken by: AwaitFailover without its comparison with from.Addr: it returns the old master.
func TestSentinelFailoverOnRequest(t *testing.T) {
	s := StartSentinel(t, 2)
	from := s.Master()
	to := s.Failover()
	require.NotSame(t, from, to)
	require.Same(t, to, s.Master())
	require.True(t, to.leads(), "the new master says so itself")
	require.NoError(t, from.Client(t, plain).Ping(t.Context()).Err(), "the old master lives")
}
