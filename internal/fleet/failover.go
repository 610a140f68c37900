package fleet

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiercache/tiercache/internal/redistest"
)

// failsOver replaces what befalls servers in a plan by one of kinds, once.
func (p *Plan) failsOver(kinds ...FaultKind) *Plan {
	befallsServers := []FaultKind{
		FaultCut, FaultBusCut, FaultPause, FaultRefusal, FaultFlush, FaultRestart, FaultNoScripts, FaultEvict, FaultNoGuard,
	}
	p.Faults = slices.DeleteFunc(p.Faults, func(f Fault) bool { return slices.Contains(befallsServers, f.Kind) })
	r := rand.New(rand.NewPCG(p.Seed, 2<<32)) //nolint:gosec // it shall be predictable
	p.Faults = append(p.Faults, Fault{
		At: time.Duration(r.Int64N(int64(p.Length))), For: time.Duration(r.Int64N(int64(time.Second))), Kind: pick(r, kinds...), Key: pick(r, p.Keys...),
	})
	return p
}

// Sentinels plays a seed's plan on a master and a replica of its own, watched by sentinels: its master is killed, or told to give way.
func Sentinels(t *testing.T, seed uint64) *Verdict {
	t.Helper()
	s := &watched{t: t, sentinel: redistest.StartSentinel(t, 1)}
	for _, server := range s.sentinel.Servers {
		s.testers = append(s.testers, server.Client(t))
	}
	return playOn(t, NewPlan(seed, realPace).failsOver(FaultFailover, FaultHandOver), s)
}

// Cluster plays a seed's plan on a cluster of its own: a master is killed and replaced, gives way to its replica, or a slot moves.
func Cluster(t *testing.T, seed uint64) *Verdict {
	t.Helper()
	c := redistest.StartCluster(t, redistest.Replicas(1))
	s := &clustered{t: t, cluster: c, tester: c.Client(t)}
	return playOn(t, NewPlan(seed, realPace).failsOver(FaultFailover, FaultHandOver, FaultMove), s)
}

// watched is a master with a replica and its sentinels.
type watched struct {
	t        *testing.T
	sentinel *redistest.Sentinel
	testers  []*redis.Client // the tester's own, one of each server
}

func (s *watched) client(dial dialer, heed bool) redis.UniversalClient {
	return s.sentinel.FailoverClient(s.t, func(o *redis.FailoverOptions) { o.Dialer, o.ContextTimeoutEnabled = dial, heed })
}

func (s *watched) each(f func(ctx context.Context, master *redis.Client)) {
	for _, tester := range s.testers { // a replica may be a moment behind; who is away shows nothing
		if role, err := tester.Do(s.t.Context(), "ROLE").Slice(); err == nil && len(role) > 0 && role[0] == "master" {
			f(s.t.Context(), tester)
		}
	}
}

func (s *watched) strike(f Fault, _ string) (heal func()) {
	if f.Kind == FaultHandOver {
		s.sentinel.Failover()
		return func() {}
	}
	dead := s.sentinel.KillMaster()
	s.sentinel.AwaitFailover(dead)
	return func() { dead.Restart() }
}

// clustered is a cluster of masters with a replica each.
type clustered struct {
	t       *testing.T
	cluster *redistest.Cluster
	tester  *redis.ClusterClient // the tester's own
}

func (s *clustered) client(dial dialer, heed bool) redis.UniversalClient {
	return s.cluster.Client(s.t, func(o *redis.ClusterOptions) { o.Dialer, o.ContextTimeoutEnabled = dial, heed })
}

func (s *clustered) each(f func(ctx context.Context, master *redis.Client)) {
	_ = s.tester.ForEachMaster(s.t.Context(), func(ctx context.Context, master *redis.Client) error {
		f(ctx, master)
		return nil
	})
}

func (s *clustered) strike(f Fault, key string) (heal func()) {
	slot := s.cluster.Slot(key)
	from := s.cluster.Owner(slot)
	switch f.Kind {
	case FaultHandOver:
		s.cluster.Failover(from)
	case FaultMove:
		to := s.cluster.Nodes[slices.IndexFunc(s.cluster.Nodes, func(n *redistest.Server) bool { return n != from })]
		s.cluster.BeginMove(slot, from, to)
		return func() {
			s.cluster.MoveKeys(slot, from, to)
			s.cluster.EndMove(slot, from, to)
		}
	default:
		s.cluster.FailoverByForce(from)
		return func() { from.Restart() }
	}
	return func() {}
}
