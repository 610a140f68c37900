package layers

import "sync/atomic"

// The bounds of what may be pinned in a Memory. Chosen: enough for the keys that half of a service's requests ask for, and little enough that
// the policy keeps most of the bytes to decide about.
const (
	pinMostKeys  = 256
	pinMostBytes = 16 << 20
	pinShare     = 4 // and a quarter of MaxBytes
)

// pinSet are the hashes of pinned keys, whether they have a cell or not, and whose they are. The policy's lock guards it.
type pinSet struct {
	owners map[uint64]*localOwner
	n      atomic.Int32 // len(owners), for those who do not hold the lock
}

func (s *pinSet) set(hash uint64, o *localOwner) {
	s.owners[hash] = o
	s.n.Store(int32(len(s.owners))) //nolint:gosec // bounded by pinMostKeys
}

func (s *pinSet) drop(hash uint64) {
	delete(s.owners, hash)
	s.n.Store(int32(len(s.owners))) //nolint:gosec // bounded by pinMostKeys
}

func (s *pinSet) clear() {
	clear(s.owners)
	s.n.Store(0)
}

// Pin lets the key's entries stand in a region of their own, from which nothing is evicted for other keys: for hot keys that a scan must not
// drive out. It holds for the entry that is there and for those put later, until Unpin or Close; it reads and keeps nothing itself. Entries
// expire, are superseded and are invalidated as ever, and one that says that the source has no such key is pinned too.
//
// It returns false, and pins nothing, if the Memory has 256 pinned keys already, if the key's entry would bring what they take above a quarter
// of MaxBytes or 16 MiB, and if the cache keeps nothing or is closed. Where later puts bring them above, the keys least asked for lose their pin. So who
// relies on a pin asks again from time to time; for a key that is pinned already it is true and costs a look-up. It may be called concurrently,
// and blocks for no longer than a put does.
func (l *Local[K, V]) Pin(key K) bool {
	if l.o.TTL <= 0 {
		return false
	}
	h, _ := l.hash(key)
	return l.mem.pin(h, &l.own)
}

// Unpin takes Pin back: the key's entry stays, as one of many. Without a pin it does nothing.
func (l *Local[K, V]) Unpin(key K) {
	h, _ := l.hash(key)
	l.mem.unpin(h)
}

// pin pins what stands under the hash and will stand there. It holds the stripe's lock, which a put of the hash needs:
//  1. a Pin looks for the hash's cell: none
//  2. a put adds one; the hash is not pinned yet, so the cell enters the window
//  3. the Pin remembers the hash
//
// The cell would be evicted although its key is pinned.
func (m *Memory) pin(hash uint64, o *localOwner) bool {
	s := m.stripe(hash)
	s.mu.Lock()
	defer s.mu.Unlock()
	return m.policy.pin(hash, o, m.currentLocked(s, hash))
}

func (m *Memory) unpin(hash uint64) {
	var room [8]*cellHead
	s := m.stripe(hash)
	s.mu.Lock()
	victims := m.policy.unpin(hash, m.currentLocked(s, hash), room[:0])
	s.mu.Unlock()
	if len(victims) > 0 {
		m.bury(victims)
	}
}

// pin remembers the hash and moves its cell, if there is one, to the pinned ones. It returns false if a bound forbids it, and for an owner that
// was shut: who shuts one calls unpinAll afterwards, so either that sees the pin or the pin sees the owner shut.
func (p *evictPolicy) pin(hash uint64, o *localOwner, c *cellHead) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case o.isShut():
		return false
	case p.pinnedLocked(hash):
		return true
	case len(p.pins.owners) >= pinMostKeys:
		return false
	case c == nil || c.region() == 0: // no cell, or one that is dead already
		p.pins.set(hash, o)
		return true
	case p.pinned.bytes+int64(c.bytes) > p.pinBytes():
		return false
	}
	p.pins.set(hash, o)
	p.moveLocked(c, statePinned)
	return true
}

// unpin forgets the hash, and moves its cell to where the policy decides about it. As with add, victims has what had to go for it.
func (p *evictPolicy) unpin(hash uint64, c *cellHead, victims []*cellHead) []*cellHead {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pins.drop(hash)
	if c != nil && c.region() == statePinned {
		p.releaseLocked(c)
	}
	return p.balanceLocked(victims)
}

// unpinAll forgets the pins of an owner that was shut. Its cells are over, and go with the next sweep.
func (p *evictPolicy) unpinAll(o *localOwner) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for hash, owner := range p.pins.owners {
		if owner == o {
			p.pins.drop(hash)
		}
	}
}

// isPinned reports whether the hash is pinned now. While nothing is, it takes no lock: each put asks.
func (p *evictPolicy) isPinned(hash uint64) bool {
	if p.pins.n.Load() == 0 {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pinnedLocked(hash)
}

func (p *evictPolicy) pinnedLocked(hash uint64) bool {
	_, pinned := p.pins.owners[hash]
	return pinned
}

// pinBytes is how much pinned cells may have.
func (p *evictPolicy) pinBytes() int64 { return min(p.max/pinShare, pinMostBytes) }

// unpinColdestLocked takes pins back while the pinned cells are over their bound: the oldest first, each given as many more chances as it was read.
func (p *evictPolicy) unpinColdestLocked() {
	for p.pinned.bytes > p.pinBytes() {
		c := p.pinned.oldest
		if c.uses() > 0 {
			p.rotateLocked(c)
			continue
		}
		p.pins.drop(c.tail().hash)
		p.releaseLocked(c)
	}
}

// releaseLocked moves a cell that is no longer pinned: a value to main, since it was asked for much.
func (p *evictPolicy) releaseLocked(c *cellHead) {
	if c.absent() {
		p.moveLocked(c, stateAside)
	} else {
		p.moveLocked(c, stateMain)
	}
}

// moveLocked makes a cell the newest of another region.
func (p *evictPolicy) moveLocked(c *cellHead, region uint32) {
	p.unlinkLocked(c)
	p.linkLocked(c, region)
}
