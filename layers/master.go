package layers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiercache/tiercache/internal/borrowed"
)

const (
	maxOverruns = 3           // budgets overrun in a row that make a master unreachable; chosen; not tuned
	maxProbes   = 6           // of one master under way at a time: some may hang for as long as the client lets them; chosen; not tuned
	probeEvery  = time.Second // chosen; not tuned

	checkEvery = 100 * time.Millisecond // at most one bare dial in this time; chosen; not tuned
)

// master is one Redis master: who waits for it, and whether it can be reached.
//
// State: unreachable after a refused connection or maxOverruns budgets overrun in a row, reachable again with the first answer
// to anything that comes within its budget. A later one ends no row either: a server that is always late would be called reachable by
// each answer and unreachable by the next overruns. Overruns are in a row if each call began after the one before had overrun: a stall
// that a hundred calls meet at once is one overrun, so a state takes maxOverruns budgets of silence to change.
type master struct {
	r     *Redis
	id    string               // its address
	moved bool                 // what is asked here has left its master: answers are not kept
	node  atomic.Pointer[node] // nil: through r.rdb itself

	down     atomic.Bool  // unreachable; written under state
	overruns atomic.Int32 // in a row
	checking atomic.Bool  // a bare dial is under way
	checked  atomic.Int64 // when the last one began, Unix ns
	probes   atomic.Int32
	probed   atomic.Int64 // when the last probe began, Unix ns

	state       sync.Mutex // orders the changes and what is told of them
	lastOverrun time.Time  // guarded by state

	gets    gets
	scripts scripts
}

// node is the user's own client of one server: with its hooks, its connections and its time-outs.
type node struct {
	client  *redis.Client
	bounded bool // a read of this client ends within our budget by itself
}

func newMaster(r *Redis, id string) *master {
	m := &master{r: r, id: id}
	return m
}

// setNode makes c the client of this master.
func (m *master) setNode(c *redis.Client) {
	o := c.Options()
	within := func(d time.Duration) bool { return d > 0 && d <= m.r.readTimeout }
	m.node.Store(&node{client: c, bounded: o.ContextTimeoutEnabled || within(o.ReadTimeout) && within(o.WriteTimeout)})
}

// pipeline returns an empty pipeline to this master.
func (m *master) pipeline() redis.Pipeliner {
	if n := m.node.Load(); n != nil {
		return n.client.Pipeline()
	}
	return m.r.rdb.Pipeline()
}

// do sends cmds in one pipeline, once, and waits for at most a write's budget or ctx. It works also while the master is
// unreachable: it is the probe, and what becomes of it moves the state. After an error that matches ErrTimeout or ctx's
// the commands may still be written to: they must be left alone.
func (m *master) do(ctx context.Context, cmds ...redis.Cmder) error {
	return m.doThen(ctx, nil, cmds...)
}

// doThen is do; then, if there is one, is called with the answers before the state is moved by them, on the goroutine that sent cmds,
// also if nobody waits for them any more. It must not wait for the master.
func (m *master) doThen(ctx context.Context, then func(), cmds ...redis.Cmder) error {
	if m.probes.Add(1) > maxProbes {
		m.probes.Add(-1)
		return fmt.Errorf("%w: earlier probes are still under way", ErrTimeout)
	}
	c := newBudget(m, m.r.writeTimeout)
	m.probed.Store(c.start.UnixNano())
	result := make(chan error, 1)
	started := m.r.spawn(func() {
		defer m.probes.Add(-1)
		p := m.pipeline()
		for _, cmd := range cmds {
			_ = p.Process(c, borrowed.Once{Cmder: cmd}) // queues only
		}
		_, err := p.Exec(c)
		if then != nil && outcomeOf(err) == wasAnswered {
			then()
		}
		m.note(err, c)
		m.r.counts.trips.Add(1)
		m.r.counts.commands.Add(uint64(len(cmds)))
		result <- err // before the end, which must not look like an overrun
		c.end()
	})
	if !started {
		m.probes.Add(-1)
		c.end()
		return errRedisClosed
	}
	select {
	case err := <-result:
		return m.explain(err)
	case <-c.done:
		select {
		case err := <-result: // ended, and the answer is there: it wins
			return m.explain(err)
		default:
		}
		m.overran(c.start, c.until)
		return ErrTimeout
	case <-ctx.Done():
		return endOf(ctx)
	}
}

// refuse returns an error if nobody must wait for this master: ErrUnreachable, or that the tier is closed. It sees to it that somebody probes it.
func (m *master) refuse() error {
	if m.r.ended.Load() {
		return errRedisClosed
	}
	if !m.down.Load() {
		return nil
	}
	last, now := m.probed.Load(), time.Now().UnixNano()
	if now-last > int64(probeEvery)*3/2 && m.probed.CompareAndSwap(last, now) { // the heartbeat comes first, if there is one
		m.r.spawn(func() { _ = m.r.bus.ask(context.Background(), m, redis.NewStatusCmd(context.Background(), "ping")) })
	}
	return ErrUnreachable
}

// outcome is what the end of a call says of the master.
type outcome uint8

const (
	wasAnswered outcome = iota // by the server, be it with an error
	wasLate                    // no answer within the budget
	wasRefused                 // there is nobody to ask
	wasBroken                  // the connection ended in the middle
)

// outcomeOf classifies the error of a call.
func outcomeOf(err error) outcome {
	var reply redis.Error
	if err == nil || errors.As(err, &reply) {
		return wasAnswered
	}
	var timeout net.Error
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || errors.Is(err, redis.ErrPoolTimeout) ||
		errors.As(err, &timeout) && timeout.Timeout() {
		return wasLate
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" || errors.Is(err, redis.ErrClosed) {
		return wasRefused
	}
	return wasBroken
}

// note moves the state by the end of a call that had the budget b.
func (m *master) note(err error, b *budget) {
	switch outcomeOf(err) {
	case wasAnswered:
		if m.overruns.Load() == 0 && !m.down.Load() || !time.Now().Before(b.until) {
			return
		}
		m.overruns.Store(0)
		if m.down.Load() {
			m.change(true, nil)
		}
	case wasLate:
		m.overran(b.start, time.Now())
	case wasRefused:
		m.change(false, err)
	case wasBroken:
		m.check(true)
	}
}

// overran counts a budget overrun at the moment at by a call that began at start. Who waited for it may have begun its next call already.
func (m *master) overran(start, at time.Time) {
	m.state.Lock()
	inARow := !start.Before(m.lastOverrun)
	if inARow {
		m.lastOverrun = at
	}
	m.state.Unlock()
	if !inARow {
		return
	}
	m.r.counts.timeouts.Add(1)
	// The cluster as a whole is no master: one that hangs must not close the way to the others.
	if m.overruns.Add(1) >= maxOverruns && !m.moved {
		m.change(false, ErrTimeout)
	}
}

// change moves the state and tells of it: one line in the log, one call of onState. Whoever waits for a master that has become
// unreachable leaves.
func (m *master) change(reachable bool, why error) {
	if m.moved && !reachable {
		return
	}
	m.state.Lock()
	defer m.state.Unlock()
	if m.down.Load() != reachable {
		return
	}
	m.down.Store(!reachable)
	m.r.counts.changes.Add(1)
	if reachable {
		m.r.log.Info("tiercache: redis is reachable again", "master", m.id)
	} else {
		m.r.log.Warn("tiercache: redis is unreachable, going on without it", "master", m.id, "error", why)
		m.drop(ErrUnreachable)
		m.r.reload()
	}
	m.r.onState(reachable, m)
}

// drop ends every wait for this master with err.
func (m *master) drop(err error) {
	m.gets.drop(err)
	m.scripts.drop(err)
}

// explain makes the client's error one of ours where it means one.
func (m *master) explain(err error) error {
	switch {
	case err == nil:
		return nil
	case outcomeOf(err) == wasLate:
		if m.down.Load() {
			return fmt.Errorf("%w: %w: %w", ErrUnreachable, ErrTimeout, err)
		}
		return fmt.Errorf("%w: %w", ErrTimeout, err)
	case outcomeOf(err) == wasRefused:
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	default:
		return err
	}
}

// check dials the master once, in the background, and hangs up: the client would try for longer than a budget before it said
// that a connection was refused. Where it is taken although one was broken, the server is asked who it is: it may have been restarted.
// At most one at a time, and not more often than every checkEvery.
func (m *master) check(broken bool) {
	n := m.node.Load()
	if n == nil || m.down.Load() {
		return
	}
	now := time.Now()
	if now.UnixNano()-m.checked.Load() < int64(checkEvery) || !m.checking.CompareAndSwap(false, true) {
		return
	}
	m.checked.Store(now.UnixNano())
	started := m.r.spawn(func() {
		defer m.checking.Store(false)
		ctx, cancel := context.WithTimeout(context.Background(), m.r.writeTimeout)
		defer cancel()
		o := n.client.Options()
		conn, err := o.Dialer(ctx, o.Network, o.Addr)
		if err == nil {
			_ = conn.Close() // nothing was sent
			if broken {
				_ = m.r.bus.ask(ctx, m, redis.NewStatusCmd(ctx, "ping"))
			}
			return
		}
		if outcomeOf(err) != wasLate {
			m.change(false, err)
		}
	})
	if !started {
		m.checking.Store(false)
	}
}
