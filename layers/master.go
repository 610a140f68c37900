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
	"github.com/tiercache/tiercache/internal/breaker"
)

const (
	maxProbes  = 6           // of one master under way at a time: some may hang for as long as the client lets them; chosen; not tuned
	probeEvery = time.Second // chosen; not tuned

	checkEvery = 100 * time.Millisecond // at most one bare dial in this time; chosen; not tuned
)

// master is one Redis master: who waits for it, and whether it can be reached (see phase).
//
// It becomes reachable by an answer within its budget only. A later one ends no row of overruns either: a server that is always late would
// be called reachable by each answer and unreachable by the next overruns. Overruns are in a row if each call began after the one before had
// overrun: a stall that a hundred calls meet at once is one overrun, so a state takes maxOverruns budgets of silence to change.
type master struct {
	r     *Redis
	id    string               // its address
	moved bool                 // what is asked here has left its master: answers are not kept
	node  atomic.Pointer[node] // nil: through r.rdb itself

	phase    atomic.Int64 // a phase; written under state
	uneasy   atomic.Bool  // something failed a while ago, or the phase is not whole: answers are looked at. Written under state
	overruns atomic.Int32 // in a row
	checking atomic.Bool  // a bare dial is under way
	checked  atomic.Int64 // when the last one began, Unix ns
	probes   atomic.Int32
	probed   atomic.Int64 // when the last probe began, Unix ns

	state       sync.Mutex // orders the changes and what is told of them; guards what follows
	breaker     *breaker.Breaker
	lastOverrun time.Time
	failedAt    int64     // the last failure, by now
	since       time.Time // when the breaker closed last

	gets    gets
	scripts scripts
}

// node is the user's own client of one server: with its hooks, its connections and its time-outs.
type node struct {
	client  *redis.Client
	bounded bool // a read of this client ends within our budget by itself
}

func newMaster(r *Redis, id string) *master {
	return &master{r: r, id: id, breaker: newBreaker()}
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
	if !m.unreachable() {
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
		switch {
		case !m.uneasy.Load():
		case time.Now().Before(b.until):
			m.answered()
		default:
			m.failed(b.start, ErrTimeout)
		}
	case wasLate:
		m.overran(b.start, time.Now())
		m.failed(b.start, err)
	case wasRefused:
		m.lose(err)
	case wasBroken:
		m.failed(b.start, err)
		m.check(true)
	}
}

// overran counts a budget overrun at the moment at by a call that began at start. Who waited for it may have begun its next call already.
func (m *master) overran(start, at time.Time) {
	m.state.Lock()
	inARow := !start.Before(m.lastOverrun)
	if inARow {
		m.lastOverrun = at
		m.worryLocked()
	}
	m.state.Unlock()
	if !inARow {
		return
	}
	m.r.counts.timeouts.Add(1)
	if m.overruns.Add(1) >= maxOverruns {
		m.lose(ErrTimeout)
	}
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
		if m.unreachable() {
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
	if n == nil || m.unreachable() {
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
			m.lose(err)
		}
	})
	if !started {
		m.checking.Store(false)
	}
}
