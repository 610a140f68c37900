package layers

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiercache/tiercache/internal/borrowed"
)

const (
	maxScripts         = 128                  // scripts in one pipeline; chosen, at about 10 us each; not tuned
	maxScriptFlushers  = 2                    // pipelines of scripts of one master under way at a time
	moreScriptFlushers = 24                   // scripts waiting that start the second
	tryAgainPause      = 5 * time.Millisecond // first pause before a script meets a migrating slot again, then doubled; chosen; not tuned
	maxTryAgainPause   = 40 * time.Millisecond
)

// scriptCall is one script to run: its keys are of one slot. keys and args must not be changed any more once they were handed to
// eval, not even after it returned: a call whose time was over may still be being sent.
type scriptCall struct {
	script *borrowed.Script
	keys   []string
	args   []any
	plain  []any // instead of a script and its args: a command, its one key in second place

	reply any // nil with a nil error: the script returned nothing
	err   error
	sent  time.Time // of this process's clock, before it was sent
}

// errand is the calls of one eval to one master: sent together, once.
type errand struct {
	calls []*scriptCall // of the caller; nobody else touches them
	cmds  []*redis.Cmd  // one a call
	sent  time.Time
	err   error // instead of the commands' own: never sent
	taken atomic.Bool
	done  chan struct{}
}

// scripts are a master's errands that wait to be sent.
type scripts struct {
	mu      sync.Mutex
	waiting []*errand
	queued  int // commands in waiting
	crew    crew
	flying  []*shipment
}

// eval runs the calls, in one pipeline a master, shared with whoever runs scripts at about the same time; it returns when every
// reply or error is there, ctx has ended, or the write budget is over. Each is sent once: after an error that is not the server's
// own, and not a plain ErrUnreachable, it is unknown whether it ran.
//
// A server that does not know a script is sent its text, in a second pipeline. A slot under migration is waited for, and one that
// moved is asked where it is, within the same budget.
func (r *Redis) eval(ctx context.Context, calls ...*scriptCall) {
	within, cancel := context.WithTimeout(ctx, r.writeTimeout)
	defer cancel()
	start := time.Now()
	home := r.errands(within, calls)
	var away []*scriptCall
	for pause := tryAgainPause; ; pause = min(2*pause, maxTryAgainPause) {
		again := r.run(ctx, within, start, home)
		again = append(again, r.run(ctx, within, start, errandsTo(r.any, away))...)
		if len(again) == 0 {
			return
		}
		r.reload()
		r.counts.redirected.Add(uint64(len(again)))
		home, away = nil, again
		if !slices.ContainsFunc(again, func(c *scriptCall) bool { return strings.HasPrefix(c.err.Error(), "TRYAGAIN") }) && pause == tryAgainPause {
			continue // moved: known where, so no pause
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-within.Done():
			timer.Stop()
			for _, c := range again {
				c.err = r.late(ctx, c.err)
			}
			return
		}
	}
}

// late is the error of a call whose wait ended before it was done: by the caller's ctx or by the budget, after why.
func (r *Redis) late(ctx context.Context, why error) error {
	if ctx.Err() != nil {
		return endOf(ctx)
	}
	if why == nil {
		return ErrTimeout
	}
	return fmt.Errorf("%w: %w", ErrTimeout, why)
}

// errands groups the calls by the master of their keys; those that have none get their error here.
func (r *Redis) errands(ctx context.Context, calls []*scriptCall) map[*master]*errand {
	out := make(map[*master]*errand, 1)
	for _, c := range calls {
		m, _, err := r.route(ctx, c.keys[0])
		if err == nil {
			err = m.refuse()
		}
		if err != nil {
			c.err = err
			continue
		}
		addCall(out, m, c)
	}
	return out
}

// errandsTo makes one errand of all calls.
func errandsTo(m *master, calls []*scriptCall) map[*master]*errand {
	out := make(map[*master]*errand, 1)
	for _, c := range calls {
		addCall(out, m, c)
	}
	return out
}

func addCall(to map[*master]*errand, m *master, c *scriptCall) {
	e := to[m]
	if e == nil {
		e = &errand{done: make(chan struct{})}
		to[m] = e
	}
	e.calls = append(e.calls, c)
	// Through a client that picks the server itself, the text is sent at once: which server lacks it is not known.
	e.cmds = append(e.cmds, c.command(m.node.Load() == nil))
}

// command is the call as EVALSHA, as EVAL with the script's text, or as the plain command that it is.
func (c *scriptCall) command(text bool) *redis.Cmd {
	if c.plain != nil {
		return redis.NewCmd(context.Background(), c.plain...)
	}
	return c.script.Command(text, c.keys, c.args)
}

// run sends the errands, waits for all, and writes the results; it returns the calls that want to be asked elsewhere or again.
func (r *Redis) run(ctx, within context.Context, start time.Time, errands map[*master]*errand) (again []*scriptCall) {
	for m, e := range errands {
		m.enqueue(e)
	}
	for m, e := range errands {
		select {
		case <-e.done:
		case <-within.Done():
			if e.over() {
				break // and the answer is there: it wins
			}
			if unsent := e.taken.CompareAndSwap(false, true); unsent {
				m.scripts.forget(e)
			}
			if ctx.Err() == nil {
				m.overran(start, time.Now())
			}
			for _, c := range e.calls {
				c.err = r.late(ctx, nil)
			}
			continue
		}
		for i, c := range e.calls {
			c.sent = e.sent
			if c.err = e.err; c.err != nil {
				continue
			}
			c.reply, c.err = e.cmds[i].Result()
			switch {
			case c.err == nil:
			case c.err == redis.Nil: //nolint:errorlint // the reply itself, never wrapped
				c.err = nil
			case r.cluster != nil && isMoved(c.err):
				again = append(again, c)
			default:
				c.err = m.explain(c.err)
			}
		}
	}
	return again
}

// enqueue puts the errand into the queue and sees to it that somebody sends it.
func (m *master) enqueue(e *errand) {
	s := &m.scripts
	s.mu.Lock()
	if m.unreachable() {
		s.mu.Unlock()
		e.fail(ErrUnreachable)
		return
	}
	s.waiting = append(s.waiting, e)
	s.queued += len(e.cmds)
	// One that is late already has looked for what waits behind it.
	late := slices.ContainsFunc(s.flying, func(p *shipment) bool { return p.late.Load() })
	start := s.crew.join(maxScriptFlushers, late || s.queued >= moreScriptFlushers)
	s.mu.Unlock()
	if start {
		m.startScriptFlusher()
	}
}

// fail ends an errand that was not sent.
func (e *errand) fail(err error) {
	if e.taken.CompareAndSwap(false, true) {
		e.err = err
		close(e.done)
	}
}

// over reports whether the errand's results are there.
func (e *errand) over() bool {
	select {
	case <-e.done:
		return true
	default:
		return false
	}
}

// forget takes an errand out of the queue.
func (s *scripts) forget(e *errand) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.waiting, e); i >= 0 {
		s.waiting = slices.Delete(s.waiting, i, i+1)
		s.queued -= len(e.cmds)
	}
}

// drop ends every errand that was not sent with err, and the waits for a connection of those that are being sent. Who sends them is
// written off: that may hang for longer than the master is gone.
func (s *scripts) drop(err error) {
	s.mu.Lock()
	waiting, flying := s.waiting, slices.Clone(s.flying)
	s.waiting, s.queued = nil, 0
	for _, p := range flying {
		p.lost = p.lost || s.crew.writeOff(maxScriptFlushers)
	}
	s.mu.Unlock()
	for _, e := range waiting {
		e.fail(err)
	}
	for _, c := range flying {
		c.end()
	}
}

// shipment is the errands in one pipeline.
type shipment struct {
	budget
	errands []*errand
	lost    bool // who sends it was written off; guarded by scripts.mu
}

// hurry is called when the shipment is late: what waits behind it is sent by another.
func (p *shipment) hurry() {
	s := &p.m.scripts
	s.mu.Lock()
	start := len(s.waiting) > 0 && s.crew.join(maxScriptFlushers, true)
	s.mu.Unlock()
	if start {
		p.m.startScriptFlusher()
	}
}

// expire is called when its time is over; whoever waits for it has left, or does so now.
func (p *shipment) expire() {
	s := &p.m.scripts
	s.mu.Lock()
	start := false
	if slices.Contains(s.flying, p) && s.crew.writeOff(maxScriptFlushers) {
		p.lost = true
		start = len(s.waiting) > 0 && s.crew.join(maxScriptFlushers, true)
	}
	s.mu.Unlock()
	if start {
		p.m.startScriptFlusher()
	}
	p.end()
}

// startScriptFlusher starts a goroutine that sends errands until none waits.
func (m *master) startScriptFlusher() {
	if m.r.spawn(m.flushScripts) {
		return
	}
	m.scripts.mu.Lock()
	m.scripts.crew.busy--
	m.scripts.mu.Unlock()
	m.scripts.drop(errRedisClosed)
}

func (m *master) flushScripts() {
	s := &m.scripts
	for {
		runtime.Gosched() // let those who are ready to ask do it first
		p := s.take(m)
		if p == nil {
			return
		}
		m.sendScripts(p)
		s.mu.Lock()
		s.flying = slices.DeleteFunc(s.flying, func(x *shipment) bool { return x == p })
		lost := p.lost
		if lost {
			s.crew.lost--
		}
		s.mu.Unlock()
		p.end()
		for _, e := range p.errands {
			close(e.done)
		}
		if lost { // late, and replaced
			return
		}
	}
}

// take takes the next shipment from the queue; nil: there is none, and the one who asks is not counted any more.
func (s *scripts) take(m *master) *shipment {
	s.mu.Lock()
	defer s.mu.Unlock()
	var p *shipment
	for n := 0; len(s.waiting) > 0 && (n == 0 || n+len(s.waiting[0].cmds) <= maxScripts); {
		e := s.waiting[0]
		s.waiting = slices.Delete(s.waiting, 0, 1)
		s.queued -= len(e.cmds)
		if !e.taken.CompareAndSwap(false, true) {
			continue // who wanted it has left
		}
		if p == nil {
			p = &shipment{}
		}
		p.errands = append(p.errands, e)
		n += len(e.cmds)
	}
	if p == nil {
		s.crew.busy--
		return nil
	}
	p.init(m, m.r.writeTimeout, p)
	s.flying = append(s.flying, p)
	return p
}

// sendScripts sends the errands in one pipeline, and what the server did not know in a second one. A script that is not known did
// not run, so sending it again runs it once.
func (m *master) sendScripts(s *shipment) {
	p := m.pipeline()
	sent := time.Now()
	for _, e := range s.errands {
		e.sent = sent
		for _, cmd := range e.cmds {
			_ = p.Process(s, borrowed.Once{Cmder: cmd}) // queues only
		}
	}
	err := m.execScripts(s, p)
	if m.node.Load() == nil || outcomeOf(err) != wasAnswered {
		return
	}
	p = m.pipeline()
	loaded := make(map[*borrowed.Script]bool)
	for _, e := range s.errands {
		for i, cmd := range e.cmds {
			if err := cmd.Err(); err == nil || !strings.HasPrefix(err.Error(), "NOSCRIPT") {
				continue
			}
			name := e.calls[i].script
			e.cmds[i] = e.calls[i].command(!loaded[name])
			loaded[name] = true
			_ = p.Process(s, borrowed.Once{Cmder: e.cmds[i]})
		}
	}
	if p.Len() > 0 {
		_ = m.execScripts(s, p) // each command has its own error
	}
}

func (m *master) execScripts(s *shipment, p redis.Pipeliner) error {
	m.r.counts.trips.Add(1)
	m.r.counts.commands.Add(uint64(p.Len()))
	_, err := p.Exec(s)
	m.note(err, &s.budget)
	return err
}
