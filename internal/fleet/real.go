package fleet

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/internal/faulty"
	"github.com/tiercache/tiercache/internal/redistest"
	"github.com/tiercache/tiercache/layers"
)

// Real plays a seed's plan on a real server of its own, in real time, and returns what was broken.
func Real(t *testing.T, seed uint64) *Verdict {
	t.Helper()
	return playOn(t, NewPlan(seed, realPace), newLoneServer(t))
}

// playOn plays a plan on servers in real time.
func playOn(t *testing.T, plan *Plan, on servers) *Verdict {
	t.Helper()
	h, err := play(plan, &realSite{plan: plan, servers: on, slots: make([]*realSlot, plan.Processes)}, redistest.Name(t))
	if err != nil {
		t.Fatalf("seed %d: %v", plan.Seed, err)
	}
	return Judge(plan, h)
}

// dialer makes the connections of one process.
type dialer = func(ctx context.Context, network, addr string) (net.Conn, error)

// servers are the servers of a run.
type servers interface {
	// client returns a process's client; with heed it lets no call hang for longer than its context.
	client(dial dialer, heed bool) redis.UniversalClient
	// strike makes a fault of the servers happen; key is the value key that it befalls.
	strike(f Fault, key string) (heal func())
	// each calls f with a client of each master.
	each(f func(ctx context.Context, master *redis.Client))
}

// realSite is the site on real servers.
type realSite struct {
	plan    *Plan
	servers servers

	struck sync.Mutex // by one fault of the servers at a time

	mu    sync.Mutex
	slots []*realSlot
}

// realSlot is the network of one process.
type realSlot struct {
	calls, bus *faulty.Faults

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	down  bool
}

func (s *realSite) open(slot int, o tiercache.Options[string, string]) (*process, error) {
	seed := s.plan.Seed + uint64(slot) //nolint:gosec // small
	n := &realSlot{calls: faulty.New(seed), bus: faulty.New(seed), conns: map[net.Conn]struct{}{}}
	s.mu.Lock()
	s.slots[slot] = n
	s.mu.Unlock()
	rdb := s.servers.client(n.bus.Dialer(n.dial), s.plan.Heed)
	n.calls.Install(rdb)
	end := func() {
		n.calls.Close()
		n.bus.Close()
	}
	return openProcess(rdb, end, layers.RedisOptions{ReadTimeout: s.plan.ReadBudget, WriteTimeout: s.plan.WriteBudget}, o)
}

func (s *realSite) at(slot int) *realSlot {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.slots[slot]
}

func (n *realSlot) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	n.mu.Lock()
	down := n.down
	n.mu.Unlock()
	if down {
		return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
	}
	c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.down {
		return nil, errors.Join(syscall.ECONNREFUSED, c.Close())
	}
	n.conns[c] = struct{}{}
	return c, nil
}

// isolate breaks all connections and refuses new ones, or takes them again.
func (n *realSlot) isolate(down bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = down
	if !down {
		return
	}
	for c := range n.conns {
		_ = c.Close() // it may be closed already
	}
	clear(n.conns)
}

func (*realSite) watch(*History) {}

func (s *realSite) kill(slot int) { s.at(slot).isolate(true) }

func (s *realSite) strike(f Fault, key string) (heal func()) {
	n := s.at(f.Slot)
	switch f.Kind {
	case FaultCalls:
		n.calls.Set(f.Rules...)
		return func() { n.calls.Set() }
	case FaultDeaf:
		n.bus.Set(faulty.Rule{Kind: faulty.Dropped, Names: []string{faulty.Message}})
		return func() { n.bus.Set() }
	case FaultPartition:
		n.isolate(true)
		return func() { n.isolate(false) }
	default:
	}
	s.struck.Lock()
	end := s.servers.strike(f, key)
	return func() {
		end()
		s.struck.Unlock()
	}
}

func (s *realSite) look(name string, f func(key, raw string, left time.Duration)) {
	s.servers.each(func(ctx context.Context, master *redis.Client) {
		keys := master.Scan(ctx, 0, "tc:"+name+":*", 1000).Iterator()
		for keys.Next(ctx) { // ends with an error while the server is away: then there is nothing to be seen
			var raw *redis.StringCmd
			var left *redis.DurationCmd
			_, err := master.TxPipelined(ctx, func(p redis.Pipeliner) error {
				raw, left = p.Get(ctx, keys.Val()), p.PTTL(ctx, keys.Val())
				return nil
			})
			if err == nil {
				f(keys.Val(), raw.Val(), left.Val())
			}
		}
	})
}

// loneServer is one server without replicas.
type loneServer struct {
	server *redistest.Server
	rdb    *redis.Client   // the tester's own
	ctx    context.Context //nolint:containedctx // the test's
}

func newLoneServer(t *testing.T) *loneServer {
	t.Helper()
	s := redistest.Start(t)
	return &loneServer{server: s, rdb: s.Client(t), ctx: t.Context()}
}

func (s *loneServer) client(dial dialer, heed bool) redis.UniversalClient {
	return redis.NewClient(&redis.Options{Addr: s.server.Addr, Dialer: dial, ContextTimeoutEnabled: heed})
}

func (s *loneServer) each(f func(ctx context.Context, master *redis.Client)) { f(s.ctx, s.rdb) }

func (s *loneServer) strike(f Fault, key string) (heal func()) {
	heal = func() {}
	switch f.Kind {
	case FaultCut:
		s.rdb.ClientKillByFilter(s.ctx, "TYPE", "normal")
	case FaultBusCut:
		s.rdb.ClientKillByFilter(s.ctx, "TYPE", "pubsub")
	case FaultPause:
		s.server.Stop()
		heal = s.server.Continue
	case FaultRefusal: // noeviction: whatever needs memory is refused
		s.rdb.ConfigSet(s.ctx, "maxmemory", "1")
		heal = func() { s.rdb.ConfigSet(s.ctx, "maxmemory", "0") }
	case FaultFlush:
		s.rdb.FlushAll(s.ctx)
		s.rdb.ScriptFlush(s.ctx)
	case FaultRestart:
		s.server.Kill()
		heal = func() { s.server.Restart() }
	case FaultNoScripts:
		s.rdb.ScriptFlush(s.ctx)
	case FaultEvict:
		s.rdb.Del(s.ctx, key)
	case FaultNoGuard:
		s.rdb.Del(s.ctx, key+":g")
	default:
	}
	return heal
}
