package fleet

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/tiercache/tiercache"
	"github.com/tiercache/tiercache/internal/faulty"
	"github.com/tiercache/tiercache/layers"
)

// Virtual plays a seed's plan in a bubble of its own, in virtual time, and returns what was broken. It takes some milliseconds. A goroutine
// that the run leaves behind ends the test with a panic of the bubble (P11).
func Virtual(t *testing.T, seed uint64) *Verdict {
	t.Helper()
	plan := NewPlan(seed, virtualPace)
	var verdict *Verdict
	synctest.Test(t, func(t *testing.T) {
		s, err := newVirtualSite(plan)
		if err != nil {
			t.Fatal(err)
		}
		h, err := play(plan, s, "fleet")
		s.close()
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		verdict = Judge(plan, h)
	})
	return verdict
}

// virtualSite is the site in a bubble.
type virtualSite struct {
	plan  *Plan
	redis *imitation

	mu     sync.Mutex
	links  []*link          // by slot, of the process that is in it now
	faults []*faulty.Faults // by slot
	held   bool             // the server stands still
}

func newVirtualSite(p *Plan) (*virtualSite, error) {
	i, err := newImitation()
	if err != nil {
		return nil, err
	}
	return &virtualSite{plan: p, redis: i, links: make([]*link, p.Processes), faults: make([]*faulty.Faults, p.Processes)}, nil
}

func (s *virtualSite) open(slot int, o tiercache.Options[string, string]) (*process, error) {
	seed := s.plan.Seed + uint64(slot) //nolint:gosec // small
	l, faults := newLink(seed, s.redis.serve), faulty.New(seed)
	s.mu.Lock()
	l.held, s.links[slot], s.faults[slot] = s.held, l, faults
	s.mu.Unlock()
	rdb := redis.NewClient(&redis.Options{
		Addr: place{}.String(), Dialer: l.dial, DisableIdentity: true, ContextTimeoutEnabled: s.plan.Heed,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		// More connections than calls can be under way: a caller that waits for one takes a timer out of a pool that all bubbles share.
		PoolSize: 100,
	})
	faults.Install(rdb)
	return openProcess(rdb, faults.Close, layers.RedisOptions{ReadTimeout: s.plan.ReadBudget, WriteTimeout: s.plan.WriteBudget}, o)
}

func (s *virtualSite) look(name string, f func(key, raw string, left time.Duration)) {
	s.redis.each("tc:"+name+":", f)
}

func (s *virtualSite) watch(h *History) { s.redis.note = h.note }

func (s *virtualSite) kill(slot int) {
	l, _ := s.at(slot)
	l.kill()
}

// at is what is in a slot now.
func (s *virtualSite) at(slot int) (*link, *faulty.Faults) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.links[slot], s.faults[slot]
}

func (s *virtualSite) strike(f Fault, key string) (heal func()) {
	l, faults := s.at(f.Slot)
	heal = func() {}
	switch f.Kind {
	case FaultCalls:
		faults.Set(f.Rules...)
		heal = func() { faults.Set() }
	case FaultCut:
		l.cut(false)
	case FaultBusCut:
		l.cut(true)
	case FaultDeaf:
		l.set(func() { l.deafens = true })
		heal = func() { l.set(func() { l.deafens = false }) }
	case FaultPartition:
		l.set(func() { l.down = true })
		l.cut(false)
		heal = func() { l.set(func() { l.down = l.dead }) }
	case FaultPause:
		s.hold(true)
		heal = func() { s.hold(false) }
	case FaultRefusal:
		s.redis.refuse(f.Text)
		heal = func() { s.redis.refuse("") }
	case FaultFlush:
		s.redis.flush()
	case FaultRestart:
		s.each(func(l *link) {
			l.set(func() { l.down = true })
			l.cut(false)
		})
		heal = func() {
			s.redis.flush()
			s.each(func(l *link) { l.set(func() { l.down = l.dead }) })
		}
	case FaultNoScripts:
		s.redis.do(func(*miniredis.Miniredis) { clear(s.redis.scripts) })
	case FaultEvict:
		s.redis.do(func(m *miniredis.Miniredis) { m.Del(key) })
	case FaultNoGuard:
		s.redis.do(func(m *miniredis.Miniredis) { m.Del(key + ":g") })
	case FaultDeath, FaultSource: // not of the network
	case FaultFailover, FaultHandOver, FaultMove: // not drawn here: see failsOver
	}
	return heal
}

// each calls f for every process's link.
func (s *virtualSite) each(f func(*link)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.links {
		f(l)
	}
}

// hold stops the server, or lets it go on.
func (s *virtualSite) hold(still bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = still
	for _, l := range s.links {
		l.set(func() { l.held = still })
	}
}

func (s *virtualSite) close() { s.redis.close() }
