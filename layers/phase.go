package layers

import (
	"time"

	"github.com/tiercache/tiercache/internal/breaker"
)

// When a master's breaker trips beside the certain cases, and how reads come back. All but maxOverruns are from the research behind the design;
// none is tuned on a fleet.
const (
	maxOverruns = 3 // budgets overrun in a row that make a master unreachable; chosen; not tuned

	tripRate   = 0.5
	tripCalls  = 20
	tripWindow = 10 * time.Second
	openFor    = time.Second
	maxOpenFor = 30 * time.Second

	firstTurns = 0.1 // the fraction of the keys whose turn has come when turns begin
	turnTime   = 5 * time.Second
)

// phase is how far a master is from being asked for everything. Positive: turns began at this moment, in ns since the Redis was made.
//
//	whole   -> away     it refused a connection, maxOverruns budgets were overrun in a row, or half of the last calls failed: the breaker opens
//	away    -> resting  the first answer within its budget, to a probe as a rule: it is reachable
//	resting -> turns    the first such answer after the breaker's open time: it closes
//	turns   -> whole    the first such answer after turnTime
//	any     -> away     as the first; sooner than 30 s after the breaker closed its next open time is twice as long
//
// In away nobody waits for the master. From resting on it is asked for all that changes anything (invalidations, what is replayed, fills of
// leases that were granted, releases, heartbeats), at once: only reads wait for their key's turn, see Space.Standing. In resting no key has
// its turn, in turns a share of them that grows from firstTurns to all.
type phase = int64

const (
	whole   phase = 0
	away    phase = -1
	resting phase = -2
)

func newBreaker() *breaker.Breaker {
	return breaker.New(breaker.Options{
		Rate: tripRate, Calls: tripCalls, Window: tripWindow, OpenFor: openFor, MaxOpenFor: maxOpenFor, Probes: 1,
	})
}

// unreachable reports whether nobody must wait for the master.
func (m *master) unreachable() bool { return m.phase.Load() == away }

// now is a moment for phase and its neighbours: ns since the Redis was made, of a clock that is never set; positive.
func (m *master) now() int64 { return int64(time.Since(m.r.born)) + 1 }

// turn reports whether the key's turn has come in phase p: always the same answer for a key until it is yes, then yes, unless the master
// becomes unreachable. All processes give the keys their turns in one order, so that they meet at the same leases.
func (m *master) turn(p phase, id string) bool {
	switch {
	case p == whole:
		return true
	case p < 0:
		return false
	}
	share := firstTurns + (1-firstTurns)*float64(m.now()-p)/float64(turnTime)
	return place(id) < share
}

// place is where the key stands in the order of turns, in [0,1).
func place(id string) float64 {
	const golden = 0x9E3779B1 // 2^32 divided by the golden ratio, odd: spreads neighbouring slots, of which a master has whole ranges
	return float64(uint32(slotOf(id))*golden) / (1 << 32)
}

// answered takes in an answer within its budget.
func (m *master) answered() {
	m.state.Lock()
	defer m.state.Unlock()
	m.overruns.Store(0)
	m.breaker.Record(breaker.Success)
	was, is := m.phase.Load(), whole
	switch {
	case m.breaker.State() != breaker.Closed:
		is = resting
	case was < 0:
		is = m.now()
	case was > 0 && m.now()-was < int64(turnTime):
		is = was
	}
	m.phase.Store(is)
	if was < 0 && is >= 0 {
		m.since = time.Now()
	}
	if is == whole && m.now()-m.failedAt > int64(tripWindow) {
		m.uneasy.Store(false)
	}
	if was == away {
		m.r.counts.changes.Add(1)
		m.r.log.Info("tiercache: redis is reachable again", "master", m.id)
		m.r.onState(true, m)
	}
	if was != is {
		m.r.onPhase()
	}
}

// failed counts a call begun at start that ended late or broke off, unless the breaker closed since then: what hung through an
// outage says nothing of the time after it. The first failure begins the window in which successes are counted too: so a healthy
// master costs nothing, and it is noticed sooner when half of the calls begin to fail.
func (m *master) failed(start time.Time, why error) {
	m.state.Lock()
	defer m.state.Unlock()
	m.worryLocked()
	if m.moved || start.Before(m.since) || m.breaker.State() != breaker.Closed {
		return
	}
	m.breaker.Record(breaker.Failure)
	if m.breaker.State() != breaker.Closed {
		m.leaveLocked(why)
	}
}

func (m *master) worryLocked() {
	m.uneasy.Store(true)
	m.failedAt = m.now()
}

// lose makes the master unreachable where there is no doubt. The cluster as a whole is no master: one that hangs must not close the way to
// the others.
func (m *master) lose(why error) {
	m.state.Lock()
	defer m.state.Unlock()
	m.worryLocked()
	if m.moved {
		return
	}
	m.breaker.Trip()
	m.leaveLocked(why)
}

// leaveLocked makes the master unreachable and tells of it: one line in the log, one call of onState. Whoever waits for it leaves.
func (m *master) leaveLocked(why error) {
	was := m.phase.Swap(away)
	if was == away {
		return
	}
	if was >= 0 { // its breaker was closed
		m.r.counts.opened.Add(1)
	}
	m.r.counts.changes.Add(1)
	m.r.log.Warn("tiercache: redis is unreachable, going on without it", "master", m.id, "error", why)
	m.drop(ErrUnreachable)
	m.r.reload()
	m.r.onState(false, m)
	m.r.onPhase()
}

// breakerState is the state that statistics tell: open while no key has its turn, half-open while some have.
func (m *master) breakerState() breaker.State {
	switch p := m.phase.Load(); {
	case p < 0:
		return breaker.Open
	case p == whole || m.now()-p >= int64(turnTime):
		return breaker.Closed
	default:
		return breaker.HalfOpen
	}
}

// breakerState returns the state of the breaker that is furthest from closed.
func (r *Redis) breakerState() (worst breaker.State) {
	for _, m := range r.known() {
		worst = max(worst, m.breakerState())
	}
	return worst
}
