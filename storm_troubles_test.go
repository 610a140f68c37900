package tiercache_test

import (
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/tiercache/tiercache/internal/redistest"
)

// troubles are the things that can happen to Redis.
func troubles() []trouble {
	durable := redistest.Args("--appendonly", "yes", "--appendfsync", "always")
	alone := func(begin, end func(t *testing.T, s *redistest.Server)) func(t *testing.T) *stormSite {
		return func(t *testing.T) *stormSite {
			t.Helper()
			s := redistest.Start(t, durable)
			return &stormSite{
				client: func(t *testing.T) redis.UniversalClient { t.Helper(); return s.Client(t) },
				begin:  func() { begin(t, s) },
				end:    func() { end(t, s) },
				check:  func(t *testing.T) { t.Helper(); requireAllExpire(t, s.Client(t), "") },
			}
		}
	}
	cluster := func(trouble func(c *redistest.Cluster)) func(t *testing.T) *stormSite {
		return func(t *testing.T) *stormSite {
			t.Helper()
			c := redistest.StartCluster(t, durable, redistest.Replicas(1))
			return &stormSite{
				client: func(t *testing.T) redis.UniversalClient { t.Helper(); return c.Client(t) },
				begin:  func() { trouble(c) },
				end:    func() {},
			}
		}
	}
	sentinel := func(t *testing.T) *stormSite {
		t.Helper()
		s := redistest.StartSentinel(t, 1, durable)
		var dead *redistest.Server
		return &stormSite{
			client: func(t *testing.T) redis.UniversalClient { t.Helper(); return s.FailoverClient(t) },
			begin:  func() { dead = s.KillMaster() },
			end:    func() { s.AwaitFailover(dead) },
		}
	}
	nothing := func(*testing.T, *redistest.Server) {}
	return []trouble{
		{name: "nothing", start: alone(nothing, nothing)},
		{name: "killed and restarted", start: alone(
			func(_ *testing.T, s *redistest.Server) { s.Kill() },
			func(_ *testing.T, s *redistest.Server) { s.Restart() })},
		{name: "hung", start: alone(
			func(_ *testing.T, s *redistest.Server) { s.Stop() },
			func(_ *testing.T, s *redistest.Server) { s.Continue() })},
		{name: "read-only", start: alone(
			func(_ *testing.T, s *redistest.Server) { s.ReadOnly() },
			func(_ *testing.T, s *redistest.Server) { s.ReplicaOfNobody() })},
		{name: "out of memory", start: alone(
			func(t *testing.T, s *redistest.Server) { s.Config(t, "maxmemory", "1") },
			func(t *testing.T, s *redistest.Server) { s.Config(t, "maxmemory", "0") })},
		{name: "flushed", start: alone(func(_ *testing.T, s *redistest.Server) { s.FlushAll() }, nothing)},
		{name: "connections cut", start: alone(func(_ *testing.T, s *redistest.Server) { s.KillClients() }, nothing)},
		{name: "failover by sentinels", start: sentinel, forget: true},
		{name: "failover in a cluster", start: cluster(func(c *redistest.Cluster) { c.FailoverByForce(c.Nodes[0]) }), forget: true},
		{name: "hand-over in a cluster", start: cluster(func(c *redistest.Cluster) { c.Failover(c.Nodes[0]) }), forget: true},
	}
}
