package layers

import (
	"slices"
	"sync"
)

// The numbers of the policy: chosen after simulations over public traces of storage, shops and loops.
const (
	windowShare    = 10 // the window's first share of the bytes, in percent
	windowShareMin = 1
	windowShareMax = 80
	ghostMin       = 64 // a ghost list is never made for fewer keys
	lookMost       = 8  // of main's cells for one that was not read
)

// The bounds of the region of absent entries: shares in percent of the bytes. Chosen; not tuned.
const (
	asideShare    = 10      // at most, and only while values leave it free
	asideKeep     = 1       // what values never take from it
	asideMostKeys = 100_000 // entries
)

// evictPolicy decides which cells stay. It counts bytes, never more than max once a call has returned.
//
// A new cell enters the window, a FIFO. When it reaches the window's end it goes on to the main region if main has a cell to give that was
// asked for clearly less, by a sketch that knows keys for longer than they have cells; else it is evicted. The main region is a CLOCK: its
// oldest cell is evicted, unless it was read, which costs it one read and makes it the newest. Two ghost lists remember hashes of what was
// evicted from each region: a key that comes back soon says which region is too small, and the border moves. It enters main at once if that
// has something to give for it: a cell among its oldest that was not read.
//
// Absent entries stand aside, in a CLOCK of their own, so that a flood of keys without rows cannot drive values out: they have what values
// leave free, up to a tenth of the bytes and asideMostKeys, and give it back, oldest first, when values come for it. A hundredth is theirs even
// in a full memory: with nothing, an absent key that is asked for all the time would never be answered from here.
//
// Pinned keys stand in a region that no new cell pushes anything out of: see pin.
//
// A read moves nothing: it raises the cell's own counter. Only puts, removals and the sweep take the lock.
// Lock order: a stripe's lock, then this one.
type evictPolicy struct {
	mu           sync.Mutex
	max          int64
	used         int64
	count        int64
	target       int64 // bytes the window may have
	window, main cellRegion
	aside        cellRegion // absent entries
	pinned       cellRegion
	pins         pinSet
	windowGhosts ghostList
	mainGhosts   ghostList
	frequencies  frequencySketch
	hand         *cellHead // where the sweep goes on; nil: at the first cell
	clock        *coarseClock
}

func newEvictPolicy(maxBytes int64, k *coarseClock) *evictPolicy {
	return &evictPolicy{max: maxBytes, target: maxBytes / 100 * windowShare, clock: k, pins: pinSet{owners: make(map[uint64]*localOwner)}}
}

// add takes a new cell in and returns victims with the cells appended that had to go for it: dead, in no region. The cell itself can be one.
func (p *evictPolicy) add(c *cellHead, victims []*cellHead) []*cellHead {
	p.mu.Lock()
	defer p.mu.Unlock()
	region := p.homeLocked(c)
	switch region {
	case statePinned:
		c.setUses(stateUses) // as one that was asked for much
	case stateAside:
	default:
		p.frequencies.count(c.tail().hash, 1)
		region = p.enterLocked(c)
	}
	p.linkLocked(c, region)
	return p.balanceLocked(victims)
}

// enterLocked is the region in which a value of a new key begins: the window, or main if the key was evicted lately. Such a key moves the border.
func (p *evictPolicy) enterLocked(c *cellHead) uint32 {
	hash := c.tail().hash
	switch {
	case p.windowGhosts.take(hash):
		p.moveBorder(int64(c.bytes), p.windowGhosts.n, p.mainGhosts.n)
	case p.mainGhosts.take(hash):
		p.moveBorder(-int64(c.bytes), p.mainGhosts.n, p.windowGhosts.n)
	default:
		return stateWindow
	}
	return p.returnsLocked(c)
}

// replace puts c where old stands, with old's reads; if old is gone, it adds c. Main's cells stay there if a new cell of the kind would begin in
// the window; else c stands where a new cell would: only so does each region hold its own kind.
func (p *evictPolicy) replace(old, c *cellHead, victims []*cellHead) []*cellHead {
	p.mu.Lock()
	was := old.region()
	if was == 0 {
		p.mu.Unlock()
		return p.add(c, victims)
	}
	defer p.mu.Unlock()
	region := p.homeLocked(c)
	if region == stateWindow && was == stateMain {
		region = stateMain
	}
	c.setUses(old.uses())
	p.unlinkLocked(old)
	p.linkLocked(c, region)
	return p.balanceLocked(victims)
}

// homeLocked is the region in which a new cell begins.
func (p *evictPolicy) homeLocked(c *cellHead) uint32 {
	switch {
	case p.pinnedLocked(c.tail().hash):
		return statePinned
	case c.absent():
		return stateAside
	}
	return stateWindow
}

// returnsLocked is the region in which a cell begins whose key was evicted lately.
//
// Were it main in any case, one key would bring all of main to fall where requests go round a loop longer than the memory:
//  1. a late goroutine asks for a key that the window dropped meanwhile; it enters main
//  2. main's cells were all read: each pays a read, time and again, until one has none left and goes. All are at their last read now
//  3. the one that went is asked for next in the loop; it comes back, and its successor goes, which is asked for next
//
// Hence a look at a few cells: where all were read, the key has to wait in the window.
func (p *evictPolicy) returnsLocked(c *cellHead) uint32 {
	if p.used+int64(c.bytes) > p.max && !p.coldInMainLocked() {
		return stateWindow
	}
	return stateMain
}

// coldInMainLocked reports whether main has a cell to give among its oldest, and makes it the oldest: one that was not read. Those that it passes
// pay a read.
func (p *evictPolicy) coldInMainLocked() bool {
	for range lookMost {
		v := p.main.oldest
		if v == nil || v.uses() == 0 {
			return true
		}
		p.payLocked(v)
	}
	return false
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
			if c = oldestOf(p.regions()); c == nil {
				return victims
			}
		}
		p.hand = p.afterLocked(c)
		if c.over(now) {
			victims = p.expireLocked(c, victims)
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

// removeAll forgets every cell and every pin.
func (p *evictPolicy) removeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.regions() {
		for r.oldest != nil {
			p.unlinkLocked(r.oldest)
		}
	}
	p.pins.clear()
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
	p.unpinColdestLocked()
	if p.used > p.max || p.asideFullLocked() {
		p.frequencies.fit(int(p.window.cells + p.main.cells))
		now := p.clock.now()
		for p.asideFullLocked() || p.used > p.max && p.aside.bytes > p.max/100*asideKeep {
			victims = p.makeRoomAsideLocked(now, victims)
		}
		for p.used > p.max {
			victims = p.makeRoomLocked(now, victims)
		}
	}
	// What is left of the window's surplus goes on only while there is room beside it: else it would pass the contest by.
	for p.windowOverLocked() && p.used+p.max/16 <= p.max {
		p.promoteLocked(p.window.oldest)
	}
	return victims
}

// windowOverLocked reports whether the window has more than its share of what pinned cells leave.
func (p *evictPolicy) windowOverLocked() bool {
	return p.window.bytes > min(p.target, (p.max-p.pinned.bytes)/100*windowShareMax)
}

// asideFullLocked reports whether absent entries have more than they ever may.
func (p *evictPolicy) asideFullLocked() bool {
	return p.aside.bytes > p.max/100*asideShare || p.aside.cells > asideMostKeys
}

// makeRoomAsideLocked takes one step towards room among the absent entries: one evicted or given a second chance.
func (p *evictPolicy) makeRoomAsideLocked(now int64, victims []*cellHead) []*cellHead {
	c := p.aside.oldest
	switch {
	case c.over(now):
		return p.expireLocked(c, victims)
	case c.uses() > 0:
		p.rotateLocked(c)
		return victims
	}
	return p.evictLocked(c, victims)
}

// makeRoomLocked takes one step towards room among the values: a cell evicted, promoted or given a second chance.
func (p *evictPolicy) makeRoomLocked(now int64, victims []*cellHead) []*cellHead {
	c, v := p.window.oldest, p.main.oldest
	fromWindow := v == nil || c != nil && p.windowOverLocked()
	switch {
	case fromWindow && c.over(now):
		return p.expireLocked(c, victims)
	case v != nil && v.over(now):
		return p.expireLocked(v, victims)
	case fromWindow && v != nil && p.winsLocked(c):
		p.promoteLocked(c)
	case fromWindow:
		p.frequencies.count(c.tail().hash, c.uses())
		p.windowGhosts.add(c.tail().hash, int(p.window.cells+p.main.cells))
		return p.evictLocked(c, victims)
	case v.uses() > 0:
		p.payLocked(v)
	default:
		p.mainGhosts.add(v.tail().hash, int(p.window.cells+p.main.cells))
		return p.evictLocked(v, victims)
	}
	return victims
}

// winsLocked reports whether the window's oldest cell goes on to main: it was asked for clearly more often than a cell that main can give. Of keys
// that are asked for by turns, in a loop, those asked for last are ahead by one, and by two where the sketch takes them for others too: a cell
// wins that is ahead by two and was read while it was in the window, which a loop's are not, or by three.
func (p *evictPolicy) winsLocked(c *cellHead) bool {
	reads, ahead := c.uses(), uint32(2)
	if reads == 0 {
		ahead = 3
	}
	ours := p.frequencies.estimate(c.tail().hash) + reads
	for range lookMost {
		v := p.main.oldest
		switch {
		case ours < p.frequencies.estimate(v.tail().hash)+ahead:
			return false
		case v.uses() == 0:
			return true
		}
		p.payLocked(v)
	}
	return false
}

// payLocked takes a read off main's oldest cell, counts it, and makes the cell the newest.
func (p *evictPolicy) payLocked(v *cellHead) {
	p.frequencies.count(v.tail().hash, 1)
	p.rotateLocked(v)
}

// promoteLocked moves a cell from the window to main, its reads counted.
func (p *evictPolicy) promoteLocked(c *cellHead) {
	p.frequencies.count(c.tail().hash, c.uses())
	p.passHandLocked(c)
	p.window.remove(c)
	c.setUses(0)
	c.setRegion(stateMain)
	p.main.push(c)
}

// rotateLocked takes a read off a cell and makes it the newest of its region.
func (p *evictPolicy) rotateLocked(c *cellHead) {
	p.passHandLocked(c)
	c.lowerUses()
	r := p.regionOf(c)
	r.remove(c)
	r.push(c)
}

// evictLocked drops a cell for space.
func (p *evictPolicy) evictLocked(c *cellHead, victims []*cellHead) []*cellHead {
	p.regionOf(c).evicted++
	return p.dropLocked(c, victims)
}

// expireLocked drops a cell that is over.
func (p *evictPolicy) expireLocked(c *cellHead, victims []*cellHead) []*cellHead {
	p.regionOf(c).expired++
	return p.dropLocked(c, victims)
}

// dropLocked kills a cell and forgets it.
func (p *evictPolicy) dropLocked(c *cellHead, victims []*cellHead) []*cellHead {
	c.state.Or(stateDead)
	p.unlinkLocked(c)
	return append(victims, c)
}

func (p *evictPolicy) linkLocked(c *cellHead, region uint32) {
	c.setRegion(region)
	p.regionOf(c).push(c)
	p.used += int64(c.bytes)
	p.count++
}

func (p *evictPolicy) unlinkLocked(c *cellHead) {
	r := p.regionOf(c)
	if r == nil {
		return
	}
	p.passHandLocked(c)
	r.remove(c)
	c.setRegion(0)
	p.used -= int64(c.bytes)
	p.count--
}

// regionOf is where the cell stands; nil: nowhere.
func (p *evictPolicy) regionOf(c *cellHead) *cellRegion {
	switch c.region() {
	case stateWindow:
		return &p.window
	case stateMain:
		return &p.main
	case stateAside:
		return &p.aside
	case statePinned:
		return &p.pinned
	}
	return nil
}

// regions are all regions in the sweep's order.
func (p *evictPolicy) regions() []*cellRegion {
	return []*cellRegion{&p.window, &p.main, &p.aside, &p.pinned}
}

// passHandLocked moves the sweep's hand off a cell that is about to move.
func (p *evictPolicy) passHandLocked(c *cellHead) {
	if p.hand == c {
		p.hand = p.afterLocked(c)
	}
}

// afterLocked is the cell that the sweep looks at after c: the window's cells from the oldest on, then main's, the absent ones and
// the pinned ones. Cells only move to places that the sweep has still to see, so a pass misses none; only those that are no longer pinned go back
// to main, and may be seen by the next pass only.
func (p *evictPolicy) afterLocked(c *cellHead) *cellHead {
	if next := c.tail().next; next != nil {
		return next
	}
	regions := p.regions()
	return oldestOf(regions[slices.Index(regions, p.regionOf(c))+1:])
}

// oldestOf is the oldest cell of the first region that has one; nil: none has.
func oldestOf(regions []*cellRegion) *cellHead {
	for _, r := range regions {
		if r.oldest != nil {
			return r.oldest
		}
	}
	return nil
}
