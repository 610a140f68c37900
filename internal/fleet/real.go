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
	plan := NewPlan(seed, realPace)
	s := &realSite{
		plan: plan, server: redistest.Start(t), slots: make([]*realSlot, plan.Processes), ctx: t.Context(),
	}
	s.rdb = s.server.Client(t)
	h, err := play(plan, s, redistest.Name(t))
	if err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	return Judge(plan, h)
}

// realSite is the site on a real server.
type realSite struct {
	plan   *Plan
	server *redistest.Server
	rdb    *redis.Client   // the tester's own
	ctx    context.Context //nolint:containedctx // the test's

	struck sync.Mutex // by one fault of the server at a time

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
	rdb := redis.NewClient(&redis.Options{Addr: s.server.Addr, Dialer: n.bus.Dialer(n.dial), ContextTimeoutEnabled: s.plan.Heed})
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
	return s.strikeServer(f, key)
}

// strikeServer strikes the server; heal lets the next fault strike it.
func (s *realSite) strikeServer(f Fault, key string) (heal func()) {
	free := s.struck.Unlock
	switch f.Kind {
	case FaultCut:
		s.rdb.ClientKillByFilter(s.ctx, "TYPE", "normal")
	case FaultBusCut:
		s.rdb.ClientKillByFilter(s.ctx, "TYPE", "pubsub")
	case FaultPause:
		s.server.Stop()
		return func() { s.server.Continue(); free() }
	case FaultRefusal: // noeviction: whatever needs memory is refused
		s.rdb.ConfigSet(s.ctx, "maxmemory", "1")
		return func() { s.rdb.ConfigSet(s.ctx, "maxmemory", "0"); free() }
	case FaultFlush:
		s.rdb.FlushAll(s.ctx)
		s.rdb.ScriptFlush(s.ctx)
	case FaultRestart:
		s.server.Kill()
		return func() { s.server.Restart(); free() }
	case FaultNoScripts:
		s.rdb.ScriptFlush(s.ctx)
	case FaultEvict:
		s.rdb.Del(s.ctx, key)
	case FaultNoGuard:
		s.rdb.Del(s.ctx, key+":g")
	default:
	}
	return free
}

func (s *realSite) look(name string, f func(key, raw string, left time.Duration)) {
	keys := s.rdb.Scan(s.ctx, 0, "tc:"+name+":*", 1000).Iterator()
	for keys.Next(s.ctx) { // ends with an error while the server is away: then there is nothing to be seen
		var raw *redis.StringCmd
		var left *redis.DurationCmd
		_, err := s.rdb.TxPipelined(s.ctx, func(p redis.Pipeliner) error {
			raw, left = p.Get(s.ctx, keys.Val()), p.PTTL(s.ctx, keys.Val())
			return nil
		})
		if err == nil {
			f(keys.Val(), raw.Val(), left.Val())
		}
	}
}
