package consistency

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"sync/atomic"
)

const (
	maxPending  = 10_000 // keys; chosen; not tuned
	replayBatch = 256    // keys of one send; chosen; not tuned
)

// everything is the state of a Pending that overflowed.
const everything = -1

// Pending are the keys whose invalidation the shared tier did not take, or may not have taken. Each is there once, as its newest
// invalidation, until a replay of that one succeeded; as long as it is, the key must not be read from the shared tier. When more keys
// come than the bound allows, every key is pending until the whole name was invalidated at once. It dies with its process. All
// methods may be called concurrently; only Replay blocks.
type Pending struct {
	limit int
	state atomic.Int64 // len(ids), or everything; written under mu, read by Has without it

	mu       sync.RWMutex
	adds     uint64            // the number of the last Add
	ids      map[string]uint64 // the number of each key's newest Add
	overflow uint64            // the Add that overflowed last; 0: none since the last move
}

// NewPending returns an empty queue of at most limit keys; zero or negative: 10,000.
func NewPending(limit int) *Pending {
	if limit <= 0 {
		limit = maxPending
	}
	return &Pending{limit: limit, ids: map[string]uint64{}}
}

// Add makes ids pending. It is to be called before the keys' local copies are dropped, so that no read that begins between the two
// asks the shared tier.
func (p *Pending) Add(ids ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range ids {
		p.adds++
		if _, here := p.ids[id]; !here && len(p.ids) >= p.limit {
			p.overflow = p.adds
			clear(p.ids) // all are covered by the move that is due now; what comes from here on may come during it
			continue
		}
		p.ids[id] = p.adds
	}
	p.publishLocked()
}

// AddAll makes every key pending until the whole name was invalidated at once, as after an overflow.
func (p *Pending) AddAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.adds++
	p.overflow = p.adds
	clear(p.ids)
	p.publishLocked()
}

// Has reports whether id is pending. When nothing is, it costs one atomic load.
func (p *Pending) Has(id string) bool {
	switch p.state.Load() {
	case 0:
		return false
	case everything:
		return true
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.overflow != 0 {
		return true
	}
	_, here := p.ids[id]
	return here
}

// Len returns how many keys are pending; the bound, if every key is.
func (p *Pending) Len() int {
	if n := p.state.Load(); n != everything {
		return int(n)
	}
	return p.limit
}

// Overflowed reports whether every key is pending.
func (p *Pending) Overflowed() bool { return p.state.Load() == everything }

// Replay sends what is pending, oldest first, at most 256 keys at a time, and returns how many keys stay pending (Len). send returns an
// error for each id, in its order, nil where the shared tier took it; an id without one counts as failed. After an overflow move is
// called first: it invalidates the whole name; if it fails nothing is sent. What is added during a replay, also of a key that is being
// sent, stays for the next one, since its delete may have to come after the one under way. Replay ends early when ctx does; it returns
// after one try of each key.
func (p *Pending) Replay(ctx context.Context, send func(ctx context.Context, ids []string) []error, move func(ctx context.Context) error) (left int) {
	if p.Overflowed() {
		began := p.now()
		if ctx.Err() != nil || move(ctx) != nil {
			return p.Len()
		}
		p.moved(began)
	}
	for batch := range slices.Chunk(p.snapshot(), replayBatch) {
		if ctx.Err() != nil {
			break
		}
		ids := make([]string, len(batch))
		for i, e := range batch {
			ids[i] = e.id
		}
		p.sent(batch, send(ctx, ids))
	}
	return p.Len()
}

// pendingID is one key as a replay found it.
type pendingID struct {
	id  string
	add uint64
}

func (p *Pending) now() uint64 {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.adds
}

func (p *Pending) snapshot() []pendingID {
	p.mu.RLock()
	defer p.mu.RUnlock()
	all := make([]pendingID, 0, len(p.ids))
	for id, add := range p.ids {
		all = append(all, pendingID{id, add})
	}
	slices.SortFunc(all, func(a, b pendingID) int { return cmp.Compare(a.add, b.add) })
	return all
}

// sent drops what the shared tier took. A key whose number has changed was added again, perhaps after the shared tier took the older
// one: it stays.
func (p *Pending) sent(batch []pendingID, errs []error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, e := range batch {
		if i < len(errs) && errs[i] == nil && p.ids[e.id] == e.add {
			delete(p.ids, e.id)
		}
	}
	p.publishLocked()
}

// moved drops what was pending before a move began at the Add `began`. What came during it may have come after its effect.
func (p *Pending) moved(began uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.overflow <= began {
		p.overflow = 0
	}
	for id, add := range p.ids {
		if add <= began {
			delete(p.ids, id)
		}
	}
	p.publishLocked()
}

func (p *Pending) publishLocked() {
	if p.overflow != 0 {
		p.state.Store(everything)
		return
	}
	p.state.Store(int64(len(p.ids)))
}
