package rebuild

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/tiercache/tiercache/internal/borrowed"
)

const (
	maxSenders = 2   // goroutines that send on one lane, the hung ones among them; chosen; not tuned
	maxSent    = 128 // scripts in one pipeline; chosen, at about 20 us each; not tuned
)

// laneKey names a lane: one for each master, and another for what waits for its replicas, so that nobody else waits with it.
type laneKey struct {
	node *redis.Client // nil: through the caller's client itself, which finds the master
	wait bool          // WAIT stands behind the scripts
}

// lane is the way of scripts to one master. One goroutine sends whatever waits, in one pipeline, until nothing waits; if it is late
// (its connection is dead, or the server hangs), another takes its place, once. Its fields are guarded by the backend's mu.
type lane struct {
	laneKey
	waiting []*errand
	senders int
	hung    int // of senders: those that are late
}

// errand is the calls of one caller to one master: sent together, once.
type errand struct {
	calls []*lockCall // the caller's; it writes the results there, once done
	cmds  []*redis.Cmd
	acks  int64 // replicas that confirmed
	done  chan struct{}
}

// run runs the calls, in one pipeline a master, and returns when every reply or error is there, ctx has ended or the time for a call is
// over. It returns how many replicas confirmed, if wait says that they are to.
//
// A server that does not know a script is sent its text. In a cluster, a call whose slot has moved is sent again through the client,
// which follows; one that waits for replicas is not: its error says that it is to be repeated.
func (b *RedisBackend) run(ctx context.Context, wait bool, calls ...*lockCall) (acks int64) {
	if ctx.Err() != nil { // nothing is sent
		for _, c := range calls {
			c.err = ended(ctx)
		}
		return 0
	}
	limited, cancel := context.WithTimeout(ctx, b.callTimeout)
	defer cancel()
	var moved []*lockCall
	for key, e := range b.errands(ctx, limited, wait, calls) {
		acks = b.await(ctx, limited, key, e)
		for _, c := range e.calls {
			if key.node != nil && !wait && hasMoved(c.err) {
				moved = append(moved, c)
			}
		}
	}
	if len(moved) > 0 {
		e := newErrand(moved, true)
		key := laneKey{}
		b.enqueue(key, e)
		b.await(ctx, limited, key, e)
	}
	for _, c := range calls {
		c.err = explain(c.err)
		if b.cluster != nil && errors.Is(c.err, ErrUnavailable) {
			b.cluster.ReloadState(ctx) // asks who has which slot, in the background
		}
	}
	return acks
}

// errands groups the calls by the master of their keys and starts to send them; those that have none get their error here.
func (b *RedisBackend) errands(ctx, limited context.Context, wait bool, calls []*lockCall) map[laneKey]*errand {
	groups := make(map[laneKey][]*lockCall, 1)
	for _, c := range calls {
		node, err := b.route(ctx, limited, c.keys[0])
		if err != nil {
			c.err = err
			continue
		}
		key := laneKey{node: node, wait: wait}
		groups[key] = append(groups[key], c)
	}
	errands := make(map[laneKey]*errand, len(groups))
	for key, group := range groups {
		// Through a client that picks the server itself the text is sent at once: which server lacks it is not known.
		errands[key] = newErrand(group, key.node == nil)
		b.enqueue(key, errands[key])
	}
	return errands
}

func newErrand(calls []*lockCall, text bool) *errand {
	e := &errand{calls: calls, cmds: make([]*redis.Cmd, len(calls)), done: make(chan struct{})}
	for i, c := range calls {
		e.cmds[i] = c.script.Command(text, c.keys, c.args)
	}
	return e
}

// await waits for e, writes the results into its calls and returns how many replicas confirmed. If the time is over first, e is not touched any more: it may be being sent.
func (b *RedisBackend) await(ctx, limited context.Context, key laneKey, e *errand) (acks int64) {
	select {
	case <-e.done:
	case <-limited.Done():
		select {
		case <-e.done: // and the answer is there: it wins
		default:
			b.forget(key, e)
			for _, c := range e.calls {
				c.err = late(ctx)
			}
			return 0
		}
	}
	for i, c := range e.calls {
		c.reply, c.err = e.cmds[i].Result()
	}
	return e.acks
}

// late is the error of a call that had no answer in its time: what became of it is unknown.
func late(ctx context.Context) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, ended(ctx))
	}
	return fmt.Errorf("%w: no answer in time", ErrUnavailable)
}

// enqueue puts the errand into the lane's queue and sees to it that somebody sends it.
func (b *RedisBackend) enqueue(key laneKey, e *errand) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.lanes[key]
	if l == nil {
		l = &lane{laneKey: key}
		b.lanes[key] = l
	}
	l.waiting = append(l.waiting, e)
	b.manLocked(l)
}

// manLocked starts a sender if something waits, nobody sends who is not late, and there may be one more.
func (b *RedisBackend) manLocked(l *lane) {
	if len(l.waiting) == 0 || l.senders > l.hung || l.senders >= maxSenders {
		return
	}
	l.senders++
	go b.serve(l)
}

// forget takes an errand out of the queue whose caller has left.
func (b *RedisBackend) forget(key laneKey, e *errand) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if l := b.lanes[key]; l != nil {
		l.waiting = slices.DeleteFunc(l.waiting, func(x *errand) bool { return x == e })
	}
}

// turn is the sending of one pipeline. Guarded by the backend's mu.
type turn struct {
	late bool // counted as hung
	over bool
}

// serve sends what waits until nothing does, or until it is late and has been replaced.
func (b *RedisBackend) serve(l *lane) {
	for {
		b.mu.Lock()
		batch := l.takeLocked()
		if len(batch) == 0 {
			b.leaveLocked(l)
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
		t := &turn{}
		timer := time.AfterFunc(b.callTimeout, func() { b.overdue(l, t) })
		b.send(l, batch)
		timer.Stop()
		for _, e := range batch {
			close(e.done)
		}
		if b.endTurn(l, t) {
			return
		}
	}
}

// overdue counts a sender as hung whose turn is not over in time, and replaces it.
func (b *RedisBackend) overdue(l *lane, t *turn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if t.over {
		return
	}
	t.late = true
	l.hung++
	b.manLocked(l)
}

// endTurn ends a turn. True: whoever took it was late and has been replaced; it is not needed any more.
func (b *RedisBackend) endTurn(l *lane, t *turn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	t.over = true
	if !t.late {
		return false
	}
	l.hung--
	if l.senders-l.hung > 1 {
		b.leaveLocked(l)
		return true
	}
	return false
}

// leaveLocked counts a sender out; the last one takes an empty lane away.
func (b *RedisBackend) leaveLocked(l *lane) {
	l.senders--
	if l.senders == 0 && len(l.waiting) == 0 && b.lanes[l.laneKey] == l {
		delete(b.lanes, l.laneKey)
	}
}

// takeLocked takes what goes into the next pipeline; nil: nothing waits.
func (l *lane) takeLocked() []*errand {
	n, scripts := 0, 0
	for n < len(l.waiting) && (n == 0 || scripts+len(l.waiting[n].cmds) <= maxSent) {
		scripts += len(l.waiting[n].cmds)
		n++
	}
	batch := slices.Clone(l.waiting[:n])
	l.waiting = slices.Delete(l.waiting, 0, n)
	return batch
}

// send sends the errands in one pipeline, and what the server did not know in a second one. A script that is not known did not run, so
// sending it again runs it once.
func (b *RedisBackend) send(l *lane, batch []*errand) {
	var all []*redis.Cmd
	for _, e := range batch {
		all = append(all, e.cmds...)
	}
	acks := b.exec(l, all)
	if l.node != nil {
		var again []*redis.Cmd
		sent := make(map[*borrowed.Script]bool)
		for _, e := range batch {
			for i, cmd := range e.cmds {
				if !strings.HasPrefix(refusal(cmd.Err()), "NOSCRIPT ") {
					continue
				}
				c := e.calls[i]
				e.cmds[i] = c.script.Command(!sent[c.script], c.keys, c.args)
				sent[c.script] = true
				again = append(again, e.cmds[i])
			}
		}
		if len(again) > 0 {
			acks = b.exec(l, again) // stands for the first ones too: WAIT is about all that was written before
		}
	}
	for _, e := range batch {
		e.acks = acks
	}
}

// exec sends cmds in one pipeline, once; each has its own error then. Where the lane waits for replicas, it returns how many confirmed.
func (b *RedisBackend) exec(l *lane, cmds []*redis.Cmd) (acks int64) {
	ctx, cancel := context.WithTimeout(context.Background(), b.callTimeout)
	defer cancel()
	p := b.rdb.Pipeline()
	if l.node != nil {
		p = l.node.Pipeline()
	}
	for _, cmd := range cmds {
		_ = p.Process(ctx, borrowed.Once{Cmder: cmd}) // queues only
	}
	if !l.wait {
		_, _ = p.Exec(ctx) // each command has its error
		return 0
	}
	w := redis.NewIntCmd(ctx, "wait", b.replicas, b.patience(l.node).Milliseconds())
	_ = p.Process(ctx, borrowed.Once{Cmder: w})
	_, _ = p.Exec(ctx)
	return w.Val() // 0 with an error
}

// patience is how long WAIT waits: the server answers nothing else on that connection meanwhile, so it ends before the client's patience does.
func (b *RedisBackend) patience(node *redis.Client) time.Duration {
	d := b.callTimeout
	if read := node.Options().ReadTimeout; read > 0 {
		d = min(d, read)
	}
	return max(d/2, time.Millisecond) // 0 would be for ever
}
