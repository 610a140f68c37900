package layers

import (
	"context"
	"hash/maphash"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// All but maxBatch were found by the spike of the design (64 and 256 goroutines on two cores); maxBatch: chosen; not tuned.
const (
	maxBatch       = 512 // keys in one pipeline
	maxFlushers    = 4   // pipelines of one master under way at a time
	moreFlushersAt = 24  // keys waiting that start another one
	maxDirect      = 2   // calls of one master that go without a batch at a time
	crowd          = 3   // keys in a batch that show that batching pays
	calmAfter      = 16  // smaller batches in a row after which calls may go directly again
	maxSlab        = 32  // requests allocated at once
)

// request is one GET: shared by all callers that want the same key under the same mark while it is under way. Its results are
// written before the batch's done is closed and never after; who left earlier must not read them.
type request struct {
	key  string
	mark Mark

	raw    string // what stands there; "": there is no such key
	*reply        // nil until it was answered

	shared *sharing // somebody joined; guarded by gets.mu until the answer is there; nil: nobody did
	batch  *batch
	next   *request // in the same slot of the table; guarded by gets.mu
	hash   uint32
	slot   uint16 // of a cluster
}

// reply is what is known of an answer beside the value: one for all requests that were answered together.
type reply struct {
	err  error     // raw is nothing then
	now  int64     // ms of the server's clock, not before the key was read
	sent time.Time // of this process's clock, before the request was sent
	keep bool      // false: it came by a detour, and must not be kept in memory
	away bool      // the slot has moved: ask again where it is
}

// sharing is the decoding of a reply, done once for all who share it.
type sharing struct {
	once    sync.Once
	decoded any
}

// tableSlots is more than are under way in a crowd, for one short chain a request; the table takes 8 KiB. Chosen; not tuned.
const tableSlots = 1 << 10

// table finds the requests that are under way by their key. Its chains run through the requests, so that adding one and taking it off
// costs neither an allocation nor a second look at the key.
type table [tableSlots]*request

var tableSeed = maphash.MakeSeed()

func tableHash(key string) uint32 { return uint32(maphash.String(tableSeed, key)) } //nolint:gosec // a part is enough

// find returns the newest request for key under an equal mark, or nil.
func (t *table) find(hash uint32, key string, mark Mark) *request {
	for q := t[hash%tableSlots]; q != nil; q = q.next {
		if q.hash == hash && q.key == key && q.mark == mark {
			return q
		}
	}
	return nil
}

func (t *table) add(q *request) {
	slot := &t[q.hash%tableSlots]
	q.next, *slot = *slot, q
}

// remove takes q off, if it is there.
func (t *table) remove(q *request) {
	for at := &t[q.hash%tableSlots]; *at != nil; at = &(*at).next {
		if *at == q {
			*at, q.next = q.next, nil
			return
		}
	}
}

// wait returns when the request was answered, its budget is over, or ctx has ended. Leaving needs no clean-up.
func (q *request) wait(ctx context.Context) error {
	if end := ctx.Done(); end != nil {
		select {
		case <-q.batch.done:
		case <-end:
			return endOf(ctx)
		}
	} else {
		<-q.batch.done
	}
	return q.err
}

// batch is what is asked in one pipeline, or one request that goes directly.
type batch struct {
	budget
	reqs []*request // guarded by gets.mu until it is taken from the queue
	slab []request  // room for the next requests
	lost bool       // who sends it was written off; guarded by gets.mu
}

// gets are a master's GETs: those that wait and those that are under way.
type gets struct {
	mu      sync.Mutex
	under   table    // the requests, from their making to their answer
	waiting []*batch // oldest first; the last one takes new requests
	flying  []*batch
	queued  int // requests in waiting
	recent  int // requests of the batch sent last: the next one gets room for as many
	crew    crew
	calm    int // small batches that must pass before a call may go directly

	direct atomic.Int32
}

// get asks for the full Redis key. It returns when the answer is there, ctx has ended (its error), or the budget is over
// (ErrTimeout); ErrUnreachable at once if the key's master is known to be unreachable. One round trip, shared with whoever asks
// at about the same time; none if the same key is being asked under the same mark.
func (r *Redis) get(ctx context.Context, key string, mark Mark) (*request, error) {
	m, slot, err := r.route(ctx, key)
	if err != nil {
		return nil, err
	}
	q, err := m.get(ctx, key, mark, slot)
	if err != nil && q != nil && q.away {
		return r.follow(ctx, q)
	}
	return q, err
}

// follow asks for a key again that has left its master, within the budget of the first asking.
func (r *Redis) follow(ctx context.Context, q *request) (*request, error) {
	within, cancel := context.WithDeadline(ctx, q.batch.until)
	defer cancel()
	again, err := r.any.get(within, q.key, q.mark, q.slot)
	if err != nil && within.Err() != nil && ctx.Err() == nil {
		return nil, ErrTimeout
	}
	return again, err
}

// getMany is get for many keys: one batch a master. There is a request for every key, with its error in it; both slices are of one length.
func (r *Redis) getMany(ctx context.Context, keys []string, marks []Mark) []*request {
	out := make([]*request, len(keys))
	ways := make([]way, len(keys))
	for i, key := range keys {
		m, slot, err := r.route(ctx, key)
		if err == nil {
			err = m.refuse()
		}
		if err != nil {
			out[i] = failedRequest(key, marks[i], err)
			continue
		}
		ways[i] = way{m, slot}
	}
	for i := range ways {
		if m := ways[i].master; m != nil {
			m.askMany(keys, marks, ways, out)
		}
	}
	for i, q := range out {
		if q.batch == nil {
			continue
		}
		err := q.wait(ctx)
		if err != nil && ctx.Err() == nil && q.away {
			out[i], err = r.follow(ctx, q)
		}
		if err != nil { // q is not ours to write to, and after a wait that ended early not ours to read
			out[i] = failedRequest(keys[i], marks[i], err)
		}
	}
	return out
}

func failedRequest(key string, mark Mark, err error) *request {
	return &request{key: key, mark: mark, reply: &reply{err: err}}
}

// way is where a key is asked for; no master: it is not, or no longer to be asked for.
type way struct {
	master *master
	slot   uint16
}

// askMany asks for all keys whose way leads to m, in one batch if they fit, and takes them off the list.
func (m *master) askMany(keys []string, marks []Mark, ways []way, out []*request) {
	g := &m.gets
	g.mu.Lock()
	for i, w := range ways {
		if w.master != m {
			continue
		}
		ways[i].master = nil
		hash := tableHash(keys[i])
		if q := g.joinLocked(hash, keys[i], marks[i]); q != nil {
			m.r.counts.joined.Add(1)
			out[i] = q
		} else if m.unreachable() {
			out[i] = failedRequest(keys[i], marks[i], ErrUnreachable)
		} else {
			out[i] = m.queueLocked(hash, keys[i], marks[i], w.slot)
		}
	}
	start := len(g.waiting) > 0 && g.crew.join(maxFlushers, g.queued >= moreFlushersAt)
	g.mu.Unlock()
	if start {
		m.startFlusher()
	}
}

// joinLocked returns the request for key that is under way under an equal mark, or nil.
func (g *gets) joinLocked(hash uint32, key string, mark Mark) *request {
	q := g.under.find(hash, key, mark)
	if q != nil && q.shared == nil {
		q.shared = &sharing{}
	}
	return q
}

// queueLocked puts a new request into the queue.
func (m *master) queueLocked(hash uint32, key string, mark Mark, slot uint16) *request {
	g := &m.gets
	var b *batch
	if n := len(g.waiting); n > 0 && len(g.waiting[n-1].reqs) < maxBatch {
		b = g.waiting[n-1]
	} else {
		b = &batch{reqs: make([]*request, 0, max(1, g.recent))}
		b.init(m, m.r.readTimeout, b)
		g.waiting = append(g.waiting, b)
	}
	q := b.add(hash, key, mark, slot)
	g.under.add(q)
	g.queued++
	return q
}

// get is Redis.get once the master is known. A request comes with the error only if it was answered.
func (m *master) get(ctx context.Context, key string, mark Mark, slot uint16) (*request, error) {
	if ctx.Done() != nil && ctx.Err() != nil {
		return nil, endOf(ctx)
	}
	if err := m.refuse(); err != nil {
		return nil, err
	}
	q, direct, err := m.ask(ctx, key, mark, slot)
	if err != nil {
		return nil, err
	}
	if direct {
		m.send(q.batch)
		m.gets.direct.Add(-1)
	}
	if err := q.wait(ctx); err != nil {
		if ctx.Err() != nil { // it may have ended first: then q is not ours to read
			return nil, err
		}
		return q, err
	}
	return q, nil
}

// ask returns the request for key that is under way under an equal mark, or puts a new one into the queue. direct: the new one is
// not queued, the caller must send its batch, under ctx's values; only if
// ctx cannot end.
func (m *master) ask(ctx context.Context, key string, mark Mark, slot uint16) (q *request, direct bool, err error) {
	g, hash := &m.gets, tableHash(key)
	g.mu.Lock()
	if q := g.joinLocked(hash, key, mark); q != nil {
		g.mu.Unlock()
		m.r.counts.joined.Add(1)
		return q, false, nil
	}
	if m.unreachable() { // became so just now: the drop may have been before
		g.mu.Unlock()
		return nil, false, ErrUnreachable
	}
	if ctx.Done() == nil && m.mayGoDirectLocked() {
		b := &batch{}
		b.values = ctx
		b.init(m, m.r.readTimeout, b)
		q = b.add(hash, key, mark, slot)
		g.under.add(q)
		g.flying = append(g.flying, b)
		g.direct.Add(1)
		g.mu.Unlock()
		return q, true, nil
	}
	q = m.queueLocked(hash, key, mark, slot)
	start := g.crew.join(maxFlushers, g.queued >= moreFlushersAt)
	g.mu.Unlock()
	if start {
		m.startFlusher()
	}
	return q, false, nil
}

// mayGoDirectLocked reports whether a caller may send its GET on its own goroutine, which saves two wake-ups: only while few
// calls are under way, nothing is wrong with the master, and the client itself lets no call hang for longer than the budget.
func (m *master) mayGoDirectLocked() bool {
	g := &m.gets
	if g.calm > 0 || len(g.waiting) > 0 || g.direct.Load() >= maxDirect || m.overruns.Load() != 0 {
		return false
	}
	n := m.node.Load()
	return n != nil && n.bounded
}

// add makes a request in b.
func (b *batch) add(hash uint32, key string, mark Mark, slot uint16) *request {
	if len(b.slab) == cap(b.slab) {
		b.slab = make([]request, 0, min(max(1, len(b.reqs)), maxSlab))
	}
	b.slab = b.slab[:len(b.slab)+1]
	q := &b.slab[len(b.slab)-1]
	q.key, q.mark, q.hash, q.slot, q.batch = key, mark, hash, slot, b
	b.reqs = append(b.reqs, q)
	return q
}

// startFlusher starts a goroutine that sends batches until none waits.
func (m *master) startFlusher() {
	if m.r.spawn(m.flush) {
		return
	}
	m.gets.mu.Lock()
	m.gets.crew.busy--
	m.gets.mu.Unlock()
	m.gets.drop(errRedisClosed)
}

func (m *master) flush() {
	g := &m.gets
	var b *batch
	for {
		runtime.Gosched() // let those who are ready to ask do it first: the batch grows
		g.mu.Lock()
		if b != nil && b.lost { // late, and replaced
			g.crew.lost--
			g.mu.Unlock()
			return
		}
		if len(g.waiting) == 0 {
			g.crew.busy--
			g.mu.Unlock()
			return
		}
		b = g.waiting[0]
		g.waiting = slices.Delete(g.waiting, 0, 1)
		g.queued -= len(b.reqs)
		g.recent = len(b.reqs)
		g.flying = append(g.flying, b)
		if len(b.reqs) >= crowd {
			g.calm = calmAfter
		} else if g.calm > 0 {
			g.calm--
		}
		g.mu.Unlock()
		m.send(b)
	}
}

// send asks for what is in b and settles it. A connection that broke is replaced once: a GET may be repeated.
func (m *master) send(b *batch) {
	var a answer
	err := m.exec(b, &a)
	if outcomeOf(err) == wasBroken && b.Err() == nil {
		m.note(err, &b.budget)
		err = m.exec(b, &a)
	}
	m.note(err, &b.budget)
	b.settle(&a, nil)
}

// hurry is called when b is late. If b still waits, all flushers are busy with a call that is late as well.
func (b *batch) hurry() {
	g := &b.m.gets
	g.mu.Lock()
	start := slices.Contains(g.waiting, b) && g.crew.join(maxFlushers, true)
	g.mu.Unlock()
	if start {
		b.m.startFlusher()
	}
}

// expire is called when the budget is over. What waited for one of the flushers, all of them late, is sent by another now.
func (b *batch) expire() {
	g := &b.m.gets
	g.mu.Lock()
	start := g.writeOffLocked(b) && len(g.waiting) > 0 && g.crew.join(maxFlushers, true)
	g.mu.Unlock()
	if start {
		b.m.startFlusher()
	}
	if b.settle(nil, ErrTimeout) {
		b.m.overran(b.start, b.until)
	}
}

// settle gives every request of b its result and wakes who waits; false: somebody else did before.
func (b *batch) settle(a *answer, err error) bool {
	g := &b.m.gets
	g.mu.Lock()
	if i := slices.Index(g.flying, b); i >= 0 {
		g.flying = slices.Delete(g.flying, i, i+1)
	} else if i := slices.Index(g.waiting, b); i >= 0 {
		g.waiting = slices.Delete(g.waiting, i, i+1)
		g.queued -= len(b.reqs)
	}
	if !b.claim() {
		g.mu.Unlock()
		return false
	}
	for _, q := range b.reqs { // from now on nobody joins
		g.under.remove(q)
	}
	g.mu.Unlock()
	if a == nil {
		failed := &reply{err: err}
		for _, q := range b.reqs {
			q.reply = failed
		}
	} else if b.fill(a) {
		b.m.r.reload()
	}
	b.release()
	return true
}

// writeOffLocked writes off who sends b, if b is being sent and that is not its caller.
func (g *gets) writeOffLocked(b *batch) bool {
	if b.values != nil || b.lost || !slices.Contains(g.flying, b) || !g.crew.writeOff(maxFlushers) {
		return false
	}
	b.lost = true
	return true
}

// drop ends every request with err. Who sends them is written off: that may hang for longer than the master is gone.
func (g *gets) drop(err error) {
	g.mu.Lock()
	all := append(slices.Clone(g.flying), g.waiting...)
	for _, b := range all {
		g.writeOffLocked(b)
	}
	g.mu.Unlock()
	for _, b := range all {
		b.settle(nil, err)
	}
}
