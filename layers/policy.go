package layers

import "sync"

// The numbers of the policy: chosen after simulations over public traces of storage, shops and loops; not tuned further.
const (
	windowShare    = 10 // the window's first share of the bytes, in percent
	windowShareMin = 1
	windowShareMax = 80
	ghostMin       = 64 // a ghost list is never made for fewer keys
)

// evictPolicy decides which cells stay. It counts bytes, never more than max once a call has returned.
//
// A new cell enters the window, a FIFO. When it reaches the window's end it goes on to the main region if it was read more often than
// the main region's next victim, or twice; else it is evicted. The main region is a CLOCK: its oldest cell is evicted, unless it was
// read, which costs it one read and makes it the newest. Two ghost lists remember hashes of what was evicted from each region: a key that
// comes back soon says which region is too small, and the border moves.
//
// A read moves nothing: it raises the cell's own counter. Only puts, removals and the sweep take the lock.
// Lock order: a stripe's lock, then this one.
type evictPolicy struct {
	mu           sync.Mutex
	max          int64
	used         int64
	count        int64
	target       int64 // bytes the window may have
	window, main cellList
	windowGhosts ghostList
	mainGhosts   ghostList
	hand         *cellHead // where the sweep goes on; nil: at the window's oldest
	clock        *coarseClock
	evicted      uint64 // for space
	expired      uint64 // because they were over
}

func newEvictPolicy(maxBytes int64, k *coarseClock) *evictPolicy {
	return &evictPolicy{max: maxBytes, target: maxBytes / 100 * windowShare, clock: k}
}

// add takes a new cell in and returns victims with the cells appended that had to go for it: dead, in no region. The cell itself can be one.
func (p *evictPolicy) add(c *cellHead, victims []*cellHead) []*cellHead {
	p.mu.Lock()
	defer p.mu.Unlock()
	region := stateWindow
	switch {
	case p.windowGhosts.take(c.tail().hash):
		p.moveBorder(int64(c.bytes), p.windowGhosts.n, p.mainGhosts.n)
		region = stateMain
	case p.mainGhosts.take(c.tail().hash):
		p.moveBorder(-int64(c.bytes), p.mainGhosts.n, p.windowGhosts.n)
		region = stateMain
	}
	p.linkLocked(c, region)
	return p.balanceLocked(victims)
}

// replace puts c where old stands, with old's reads; if old is gone, it adds c.
func (p *evictPolicy) replace(old, c *cellHead, victims []*cellHead) []*cellHead {
	p.mu.Lock()
	region := old.state.Load() & stateRegion
	if region == 0 {
		p.mu.Unlock()
		return p.add(c, victims)
	}
	defer p.mu.Unlock()
	c.setUses(old.uses())
	p.unlinkLocked(old)
	p.linkLocked(c, region)
	return p.balanceLocked(victims)
}

// remove forgets a cell that was killed. It may be gone already.
func (p *evictPolicy) remove(c *cellHead) {
	p.mu.Lock()
	p.unlinkLocked(c)
	p.mu.Unlock()
}

// sweep looks at the next n cells and removes those that are over: victims has them, dead.
func (p *evictPolicy) sweep(n int, now int64, victims []*cellHead) []*cellHead {
	p.mu.Lock()
	defer p.mu.Unlock()
	for ; n > 0; n-- {
		c := p.hand
		if c == nil {
			if c = p.window.oldest; c == nil {
				c = p.main.oldest
			}
			if c == nil {
				return victims
			}
		}
		p.hand = p.afterLocked(c)
		if c.over(now) {
			p.expired++
			victims = p.dropLocked(c, victims)
		}
		if p.hand == nil {
			return victims
		}
	}
	return victims
}

// rewind lets the next sweep begin at the first cell.
func (p *evictPolicy) rewind() {
	p.mu.Lock()
	p.hand = nil
	p.mu.Unlock()
}

// removeAll forgets every cell.
func (p *evictPolicy) removeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range []*cellList{&p.window, &p.main} {
		for l.oldest != nil {
			p.unlinkLocked(l.oldest)
		}
	}
}

// entries returns the number of the cells that stay.
func (p *evictPolicy) entries() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count
}

// moveBorder moves the window's target by step bytes, more when the ghost list that was hit is the shorter one.
func (p *evictPolicy) moveBorder(step int64, hit, other int) {
	if hit < other {
		step *= int64(other / max(hit, 1))
	}
	limit := p.max / 100
	step = min(max(step, -limit), limit)
	p.target = min(max(p.target+step, p.max*windowShareMin/100), p.max*windowShareMax/100)
}

// balanceLocked evicts until the bytes fit, and lets the window's surplus go on to main while they do.
func (p *evictPolicy) balanceLocked(victims []*cellHead) []*cellHead {
	if p.used > p.max {
		now := p.clock.now()
		for p.used > p.max {
			victims = p.makeRoomLocked(now, victims)
		}
	}
	// What is left of the window's surplus goes on only while there is room beside it: else it would pass the contest by.
	for p.window.bytes > p.target && p.used+p.max/16 <= p.max {
		p.promoteLocked(p.window.oldest)
	}
	return victims
}

// makeRoomLocked takes one step towards room: a cell evicted, promoted or given a second chance.
func (p *evictPolicy) makeRoomLocked(now int64, victims []*cellHead) []*cellHead {
	c, v := p.window.oldest, p.main.oldest
	fromWindow := v == nil || c != nil && p.window.bytes > p.target
	switch {
	case fromWindow && c.over(now):
		p.expired++
		return p.dropLocked(c, victims)
	case v != nil && v.over(now):
		p.expired++
		return p.dropLocked(v, victims)
	case fromWindow && v != nil && (c.uses() >= 2 || c.uses() > v.uses()):
		p.promoteLocked(c)
	case fromWindow:
		if v != nil && c.uses() > 0 {
			p.rotateLocked(v)
		}
		p.windowGhosts.add(c.tail().hash, int(p.count))
		p.evicted++
		return p.dropLocked(c, victims)
	case v.uses() > 0:
		p.rotateLocked(v)
	default:
		p.mainGhosts.add(v.tail().hash, int(p.count))
		p.evicted++
		return p.dropLocked(v, victims)
	}
	return victims
}

// promoteLocked moves a cell from the window to main, its reads forgotten.
func (p *evictPolicy) promoteLocked(c *cellHead) {
	p.passHandLocked(c)
	p.window.remove(c)
	c.setUses(0)
	c.setRegion(stateMain)
	p.main.push(c)
}

// rotateLocked takes a read off a cell of main and makes it the newest.
func (p *evictPolicy) rotateLocked(c *cellHead) {
	p.passHandLocked(c)
	c.lowerUses()
	p.main.remove(c)
	p.main.push(c)
}

// dropLocked kills a cell and forgets it.
func (p *evictPolicy) dropLocked(c *cellHead, victims []*cellHead) []*cellHead {
	c.state.Or(stateDead)
	p.unlinkLocked(c)
	return append(victims, c)
}

func (p *evictPolicy) linkLocked(c *cellHead, region uint32) {
	c.setRegion(region)
	p.list(region).push(c)
	p.used += int64(c.bytes)
	p.count++
}

func (p *evictPolicy) unlinkLocked(c *cellHead) {
	region := c.state.Load() & stateRegion
	if region == 0 {
		return
	}
	p.passHandLocked(c)
	p.list(region).remove(c)
	c.setRegion(0)
	p.used -= int64(c.bytes)
	p.count--
}

func (p *evictPolicy) list(region uint32) *cellList {
	if region == stateWindow {
		return &p.window
	}
	return &p.main
}

// passHandLocked moves the sweep's hand off a cell that is about to move.
func (p *evictPolicy) passHandLocked(c *cellHead) {
	if p.hand == c {
		p.hand = p.afterLocked(c)
	}
}

// afterLocked is the cell that the sweep looks at after c: the window's cells from the oldest on, then main's. Cells only move to places
// that the sweep has still to see, so a pass misses none.
func (p *evictPolicy) afterLocked(c *cellHead) *cellHead {
	if c.tail().next != nil || c.state.Load()&stateRegion == stateMain {
		return c.tail().next
	}
	return p.main.oldest
}

// cellList is a list of cells from the oldest to the newest.
type cellList struct {
	oldest, newest *cellHead
	bytes          int64
}

func (l *cellList) push(c *cellHead) {
	t := c.tail()
	t.prev, t.next = l.newest, nil
	if l.newest != nil {
		l.newest.tail().next = c
	} else {
		l.oldest = c
	}
	l.newest = c
	l.bytes += int64(c.bytes)
}

func (l *cellList) remove(c *cellHead) {
	t := c.tail()
	if t.prev != nil {
		t.prev.tail().next = t.next
	} else {
		l.oldest = t.next
	}
	if t.next != nil {
		t.next.tail().prev = t.prev
	} else {
		l.newest = t.prev
	}
	t.prev, t.next = nil, nil
	l.bytes -= int64(c.bytes)
}

// ghostList remembers the hashes of the last keys evicted from a region: of half as many keys as the policy has cells. It is a table of
// small buckets whose oldest mark is overwritten, eight bytes a key: 32 bits of the hash and the mark's number.
// A false hit or a mark lost early only moves a cell or the border a little.
type ghostList struct {
	slots []uint64 // mark number in the high half, hash bits in the low; 0: free
	seq   uint32
	reach uint32 // a mark older than this many marks counts no more
	n     int    // marks that count, about
}

const ghostBucket = 4

func (g *ghostList) bucket(hash uint64) []uint64 {
	i := (hash >> 32) & uint64(len(g.slots)/ghostBucket-1) * ghostBucket
	return g.slots[i : i+ghostBucket]
}

// add remembers a hash; cells is how many the policy has now.
func (g *ghostList) add(hash uint64, cells int) {
	reach := max(cells/2, ghostMin)
	if len(g.slots) < reach {
		size := ghostMin
		for size < 2*reach {
			size *= 2
		}
		*g = ghostList{slots: make([]uint64, size)} // what it knew is lost; growing is rare
	}
	g.reach = uint32(reach)
	if g.seq++; g.seq == 0 {
		clear(g.slots)
		g.seq, g.n = 1, 0
	}
	b := g.bucket(hash)
	oldest := 0
	for i, s := range b {
		if s < b[oldest] {
			oldest = i
		}
	}
	b[oldest] = uint64(g.seq)<<32 | uint64(uint32(hash))
	g.n = min(g.n+1, reach)
}

// take reports whether the hash is remembered, and forgets it.
func (g *ghostList) take(hash uint64) bool {
	if len(g.slots) == 0 {
		return false
	}
	for i, s := range g.bucket(hash) {
		if s != 0 && uint32(s) == uint32(hash) {
			g.bucket(hash)[i] = 0
			g.n = max(g.n-1, 0)
			return g.seq-uint32(s>>32) < g.reach
		}
	}
	return false
}
