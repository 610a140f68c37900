package rebuild

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// memBackend is a Backend in memory, for tests in virtual time: one queue a name with the rules of the protocol, one server clock, and a
// wire whose faults a test decides. Watchers that are connected get every event, in order.
type memBackend struct {
	trip time.Duration // of a request, and again of its answer

	mu       sync.Mutex
	names    map[string]*memName
	watchers map[string]*memWatcher
	calls    map[string]int // by the method's name
	clock    time.Duration  // how far the server's clock is ahead
	deaf     bool           // Watch fails
	mute     bool           // events are lost though they count as received
	fault    func(op string, c LockClaim) memFault
	frozen   chan struct{} // until it is closed nothing is carried out; nil: it is
	endless  bool          // Left is 0: a lease stands until a ping fails
}

// memFault is what happens to one call.
type memFault struct {
	drop bool          // it is not carried out
	err  error         // its answer
	hang bool          // it has no answer: the caller waits until its context ends
	slow time.Duration // its answer takes so much longer
}

type memName struct {
	hw, seq, woken uint64
	span           time.Duration
	limit          int // 0: the claims'
	last           string
	holders        map[string]memHolder
	waiting        map[string]memPlace
	burned         map[string]time.Time
	processes      map[string]time.Time
}

type memHolder struct {
	end   time.Time
	token uint64
}

type memPlace struct {
	end     time.Time
	arrival uint64
}

type memWatcher struct {
	events chan [2]string
	cut    chan struct{}
}

const (
	memClaim   = 500 * time.Millisecond
	memProcess = 5 * time.Second
	memDeaf    = 8
)

func newMemBackend() *memBackend {
	return &memBackend{names: map[string]*memName{}, watchers: map[string]*memWatcher{}, calls: map[string]int{}}
}

// call carries out one call: the request's way, the fault, apply, the answer's way.
func (m *memBackend) call(ctx context.Context, op string, c LockClaim, apply func(n *memName, now time.Time) error) error {
	m.mu.Lock()
	m.calls[op]++
	decide, frozen := m.fault, m.frozen
	m.mu.Unlock()
	var f memFault
	if decide != nil {
		f = decide(op, c)
	}
	if err := travel(ctx, m.trip); err != nil {
		return err
	}
	if frozen != nil {
		select {
		case <-frozen:
		case <-ctx.Done():
			return ended(ctx)
		}
	}
	var err error
	if !f.drop {
		err = m.at(c.Name, apply)
	}
	if f.hang {
		<-ctx.Done()
		return fmt.Errorf("%w: %w", ErrUnavailable, ended(ctx))
	}
	if err := travel(ctx, m.trip+f.slow); err != nil {
		return err
	}
	return cmp.Or(f.err, err)
}

// at runs apply on the server, as one step.
func (m *memBackend) at(name string, apply func(n *memName, now time.Time) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.names[name]
	if n == nil {
		n = &memName{
			holders: map[string]memHolder{}, waiting: map[string]memPlace{},
			burned: map[string]time.Time{}, processes: map[string]time.Time{},
		}
		m.names[name] = n
	}
	now := time.Now().Add(m.clock)
	n.sweep(now)
	return apply(n, now)
}

func travel(ctx context.Context, d time.Duration) error {
	if d == 0 {
		if ctx.Err() != nil {
			return ended(ctx)
		}
		return nil
	}
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ended(ctx)
	}
}

func (n *memName) sweep(now time.Time) {
	latest := now.Add(n.span)
	for owner, h := range n.holders {
		if h.end.After(latest) {
			h.end = latest
			n.holders[owner] = h
		}
		if !h.end.After(now) {
			delete(n.holders, owner)
			n.woken = 0
		}
	}
	maps.DeleteFunc(n.waiting, func(_ string, p memPlace) bool { return !p.end.After(now) })
	maps.DeleteFunc(n.burned, func(_ string, end time.Time) bool { return !end.After(now) })
	maps.DeleteFunc(n.processes, func(_ string, end time.Time) bool { return !end.After(now) })
}

// queue returns the waiting owners in the order in which they came.
func (n *memName) queue() []string {
	return slices.SortedFunc(maps.Keys(n.waiting), func(a, b string) int { return cmp.Compare(n.waiting[a].arrival, n.waiting[b].arrival) })
}

func (n *memName) exclusive() bool {
	for owner := range n.holders {
		if kindOf(owner) == exclusive {
			return true
		}
	}
	return false
}

// room is how many more shared holders there may be.
func (n *memName) room(limit int) int {
	switch {
	case limit == 0:
		return math.MaxInt
	case n.limit > 0:
		limit = n.limit
	}
	return limit - len(n.holders)
}

// fits reports whether a claim may be granted now, those ahead aside.
func (n *memName) fits(c LockClaim) bool {
	if kindOf(c.Owner) == exclusive {
		return len(n.holders) == 0
	}
	return !n.exclusive() && n.room(c.Limit) > 0
}

// passesNobody reports whether nobody who waits ahead of the claim would be passed by its grant.
func (n *memName) passesNobody(c LockClaim) bool {
	mine, ahead := uint64(math.MaxUint64), 0
	if p, here := n.waiting[c.Owner]; here {
		mine = p.arrival
	}
	for owner, p := range n.waiting {
		if p.arrival >= mine {
			continue
		}
		if kindOf(c.Owner) == exclusive || kindOf(owner) == exclusive {
			return false
		}
		ahead++
	}
	return kindOf(c.Owner) == exclusive || n.room(c.Limit) > ahead
}

// retry is the rest of what is in the way: all holders for an exclusive claim, the first to end for one too many, else the head of the
// queue.
func (n *memName) retry(c LockClaim, now time.Time) time.Duration {
	var ends []time.Time
	for _, h := range n.holders {
		ends = append(ends, h.end)
	}
	slices.SortFunc(ends, time.Time.Compare)
	switch {
	case n.exclusive(), len(ends) > 0 && kindOf(c.Owner) == exclusive:
		return ends[len(ends)-1].Sub(now)
	case n.room(c.Limit) <= 0:
		return ends[0].Sub(now)
	}
	if queue := n.queue(); len(queue) > 0 && queue[0] != c.Owner {
		return n.waiting[queue[0]].end.Sub(now)
	}
	return 0
}

func (m *memBackend) left(end, now time.Time) time.Duration {
	if m.endless {
		return 0
	}
	return end.Sub(now)
}

func (m *memBackend) Acquire(ctx context.Context, c LockClaim) (g LockGrant, err error) {
	err = m.call(ctx, "acquire", c, func(n *memName, now time.Time) error {
		g, err = m.acquire(n, c, now)
		return err
	})
	if err != nil && !errors.Is(err, ErrLocked) {
		g = LockGrant{}
	}
	return g, err
}

// acquire is the server's part.
func (m *memBackend) acquire(n *memName, c LockClaim, now time.Time) (LockGrant, error) {
	defer m.wakeNext(n, c, now)
	micros := uint64(now.UnixMicro())
	if _, burned := n.burned[c.Owner]; burned {
		return LockGrant{Floor: micros}, ErrLeaseLost
	}
	n.span = max(n.span, c.Lease, c.Entry)
	g := LockGrant{Floor: micros}
	if kindOf(c.Owner) == shared && c.Limit > 0 {
		n.processes[processOf(c.Owner)] = now.Add(memProcess)
		g.Processes = len(n.processes)
	}
	if h, mine := n.holders[c.Owner]; mine {
		if end := now.Add(c.Lease); end.After(h.end) {
			h.end = end
		}
		n.holders[c.Owner] = h
		g.Token, g.Left = h.token, m.left(h.end, now)
		return g, nil
	}
	if n.fits(c) && (!c.Ordered || n.passesNobody(c)) {
		n.hw = max(n.hw+1, micros, c.Floor+1)
		n.holders[c.Owner] = memHolder{now.Add(c.Lease), n.hw}
		delete(n.waiting, c.Owner)
		if kindOf(c.Owner) == exclusive {
			n.woken = 0 // whoever was woken comes too late
		}
		g.Token, g.Left, g.Floor = n.hw, m.left(now.Add(c.Lease), now), n.hw
		return g, nil
	}
	if p, here := n.waiting[c.Owner]; here && c.Ordered {
		n.woken = min(n.woken, p.arrival-1) // it was woken for nothing: its place is kept by the others again
	}
	if c.Entry > 0 {
		p, here := n.waiting[c.Owner]
		if !here {
			n.seq++
			p.arrival = n.seq
		}
		p.end = now.Add(c.Entry)
		n.waiting[c.Owner] = p
		for _, other := range c.Also {
			p, here := n.waiting[other]
			if !here {
				g.Gone = append(g.Gone, other)
				continue
			}
			if !c.Ordered || p.arrival > n.woken { // a woken one answers for itself
				p.end = now.Add(c.Entry)
				n.waiting[other] = p
			}
		}
	}
	g.Retry, g.Floor = n.retry(c, now), max(n.hw, micros)
	return g, ErrLocked
}

func (m *memBackend) Renew(ctx context.Context, c LockClaim, token uint64) (g LockGrant, err error) {
	err = m.call(ctx, "renew", c, func(n *memName, now time.Time) error {
		defer m.wakeNext(n, c, now)
		g = LockGrant{Floor: uint64(now.UnixMicro())}
		h, mine := n.holders[c.Owner]
		if !mine || h.token != token {
			n.dropOlder(token)
			return ErrLeaseLost
		}
		h.end = now.Add(c.Lease)
		n.holders[c.Owner] = h
		g.Token, g.Left = token, m.left(h.end, now)
		return nil
	})
	if err != nil {
		g = LockGrant{}
	}
	return g, err
}

// dropOlder keeps a token that this server does not know, and ends what is older.
func (n *memName) dropOlder(token uint64) {
	if token > n.hw {
		n.hw, n.woken = token, 0
		clear(n.holders)
	}
}

func (m *memBackend) Release(ctx context.Context, c LockClaim, token uint64, burn time.Duration) error {
	return m.call(ctx, "release", c, func(n *memName, now time.Time) error {
		defer m.wakeNext(n, c, now)
		h, mine := n.holders[c.Owner]
		delete(n.holders, c.Owner)
		delete(n.waiting, c.Owner)
		if burn > 0 {
			n.burned[c.Owner] = now.Add(burn)
		}
		switch {
		case mine:
			n.last, n.woken = c.Owner, 0
			if token != 0 && h.token != token {
				return ErrLeaseLost
			}
			return nil
		case n.last == c.Owner:
			return nil
		}
		n.dropOlder(token)
		return ErrLeaseLost
	})
}

func (m *memBackend) Resize(ctx context.Context, name string, limit int) error {
	return m.call(ctx, "resize", LockClaim{Name: name}, func(n *memName, now time.Time) error {
		n.limit = limit
		m.wakeNext(n, LockClaim{Name: name, Ordered: true}, now)
		return nil
	})
}

func (m *memBackend) Downgrade(ctx context.Context, c LockClaim, token uint64, owner string) (g LockGrant, err error) {
	err = m.call(ctx, "downgrade", c, func(n *memName, now time.Time) error {
		defer m.wakeNext(n, c, now)
		if h, done := n.holders[owner]; done {
			g = LockGrant{Token: h.token, Left: m.left(h.end, now), Floor: h.token}
			return nil
		}
		if h, mine := n.holders[c.Owner]; !mine || h.token != token {
			return ErrLeaseLost
		}
		delete(n.holders, c.Owner)
		n.hw = max(n.hw+1, uint64(now.UnixMicro()))
		n.holders[owner] = memHolder{now.Add(c.Lease), n.hw}
		n.woken = 0
		g = LockGrant{Token: n.hw, Left: m.left(now.Add(c.Lease), now), Floor: n.hw}
		return nil
	})
	if err != nil {
		g = LockGrant{}
	}
	return g, err
}

// wakeNext wakes whoever may come in now and was not woken yet: one exclusive, or as many shared ones as fit. One to whom nobody listens
// is passed for the next.
func (m *memBackend) wakeNext(n *memName, c LockClaim, now time.Time) {
	fit, list := n.due(c)
	passed, spare := 0, 0
	for _, owner := range list {
		switch {
		case fit > 0:
			fit--
			p := n.waiting[owner]
			n.woken = max(n.woken, p.arrival)
			if c.Ordered && p.end.After(now.Add(memClaim)) {
				p.end = now.Add(memClaim)
				n.waiting[owner] = p
			}
		case spare > 0:
			spare--
		default:
			return
		}
		if !m.publish(c.Name, owner) && passed < memDeaf {
			passed++
			spare++
		}
	}
}

// due returns whom to wake, with some more behind them, and how many of them may come in.
func (n *memName) due(c LockClaim) (fit int, list []string) {
	queue := n.queue()
	if len(queue) == 0 || n.exclusive() {
		return 0, nil
	}
	if kindOf(queue[0]) == exclusive {
		if len(n.holders) > 0 || n.waiting[queue[0]].arrival <= n.woken {
			return 0, nil
		}
		return 1, queue
	}
	fit = n.room(c.Limit)
	for _, owner := range queue {
		if kindOf(owner) == exclusive {
			break
		}
		if n.waiting[owner].arrival > n.woken {
			list = append(list, owner)
		} else {
			fit-- // it was woken and is on its way
		}
	}
	return fit, list
}

// publish reports whether anybody received it.
func (m *memBackend) publish(name, owner string) bool {
	w := m.watchers[processOf(owner)]
	if w == nil {
		return false
	}
	if !m.mute {
		w.events <- [2]string{name, owner}
	}
	return true
}

func (m *memBackend) Watch(ctx context.Context, process string, ready func(), wake func(name, owner string)) error {
	w := &memWatcher{events: make(chan [2]string, 4096), cut: make(chan struct{})}
	m.mu.Lock()
	m.calls["watch"]++
	deaf := m.deaf
	if !deaf {
		m.watchers[process] = w
	}
	m.mu.Unlock()
	if deaf {
		return ErrUnavailable
	}
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.watchers[process] == w {
			delete(m.watchers, process)
		}
	}()
	ready()
	for {
		select {
		case e := <-w.events:
			wake(e[0], e[1])
		case <-w.cut:
			return ErrUnavailable
		case <-ctx.Done():
			return ended(ctx)
		}
	}
}

// set changes m under its lock.
func (m *memBackend) set(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

// faulty lets decide choose what happens to each call from now on; nil: nothing.
func (m *memBackend) faulty(decide func(op string, c LockClaim) memFault) {
	m.set(func() { m.fault = decide })
}

// down makes every call but those of the ops named fail, without being carried out.
func (m *memBackend) down(but ...string) {
	m.faulty(func(op string, _ LockClaim) memFault {
		if slices.Contains(but, op) {
			return memFault{}
		}
		return memFault{drop: true, err: ErrUnavailable}
	})
}

// cut breaks all subscriptions.
func (m *memBackend) cut() {
	m.set(func() {
		for process, w := range m.watchers {
			close(w.cut)
			delete(m.watchers, process)
		}
	})
}

// count returns how often op was called; without op, all calls but Watch.
func (m *memBackend) count(op ...string) (sum int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, calls := range m.calls {
		if len(op) == 0 && name != "watch" || slices.Contains(op, name) {
			sum += calls
		}
	}
	return sum
}

// queued returns how many owners have a place for name, and holding how many hold it, both at this moment.
func (m *memBackend) queued(name string) (places, holders int) {
	_ = m.at(name, func(n *memName, _ time.Time) error {
		places, holders = len(n.waiting), len(n.holders)
		return nil
	})
	return places, holders
}

// flush loses all data.
func (m *memBackend) flush() { m.set(func() { clear(m.names) }) }

func kindOf(owner string) string { return owner[:1] }

func processOf(owner string) string { return strings.Split(owner, ".")[1] }

var (
	_ Backend    = (*memBackend)(nil)
	_ Resizer    = (*memBackend)(nil)
	_ Downgrader = (*memBackend)(nil)
)

// foreignOwner returns an owner of a process that is not one of ours.
func foreignOwner(t *testing.T, kind, process string) string {
	t.Helper()
	return kind + "." + process + "." + hexadecimal(8)
}

// flushHolders ends all grants of name.
func (m *memBackend) flushHolders(name string) {
	_ = m.at(name, func(n *memName, _ time.Time) error {
		clear(n.holders)
		return nil
	})
}

// NewMemBackend returns the model, and what a conformance test can do to its store.
func NewMemBackend() (b Backend, forget, deafen func(), pause func() (resume func()), leftover func(name string) string) {
	m := newMemBackend()
	pause = func() func() {
		frozen := make(chan struct{})
		m.set(func() { m.frozen, m.deaf = frozen, true })
		m.cut()
		return sync.OnceFunc(func() {
			m.set(func() { m.frozen, m.deaf = nil, false })
			close(frozen)
		})
	}
	return m, m.flush, m.cut, pause, m.leftover
}

// leftover returns what is kept of name without an end.
func (m *memBackend) leftover(name string) (found string) {
	_ = m.at(name, func(n *memName, _ time.Time) error {
		for owner, h := range n.holders {
			if h.end.IsZero() {
				found += " holder " + owner
			}
		}
		for owner, p := range n.waiting {
			if p.end.IsZero() {
				found += " waiter " + owner
			}
		}
		return nil
	})
	return found
}
