package layers

import (
	"math"
	"sync/atomic"
	"time"
)

// The state word of a cell. A cell is born alive and in no region.
const (
	stateUses   uint32 = 3 << 0 // reads since the policy last looked, saturating at 3
	stateDead   uint32 = 1 << 2 // superseded, killed, evicted or expired; never cleared
	stateAbsent uint32 = 1 << 3 // the source said "no such key"; set at birth
	stateWindow uint32 = 1 << 4 // in the policy's window
	stateMain   uint32 = 1 << 5 // in the policy's main region
	stateRegion        = stateWindow | stateMain
)

// noTime stands for the zero time.Time.
const noTime int64 = math.MinInt64

// cellHead is the part of a cell that does not depend on its cache's types: what ristretto stores, the front points to and the policy
// lists. Moments are nanoseconds of the Memory's clock. Of its fields only state changes after birth, and the links.
//
// It is kept small because every entry pays for it: 96 bytes, so that a cell with a string key and a string value fills 128.
type cellHead struct {
	hash  uint64
	owner *localOwner
	trust uint64 // the word of the mark it was put under; wordDoubt if it must never be trusted
	soft  int64
	young int64 // end of the local tier's own TTL
	hard  int64
	state atomic.Uint32
	bytes uint32 // what the policy counts for it

	// Guarded by the policy's lock.
	prev, next *cellHead

	// What the entry says beside its value.
	born    int64
	version uint64
	cost    uint32 // microseconds, saturating
	encoded uint32
}

// cell is one entry of one cache. The head MUST stay its first field: a *cellHead whose owner is a Local[K,V] is cast to *cell[K,V].
type cell[K comparable, V any] struct {
	cellHead
	key   K
	value V
}

// alive reports whether nobody superseded, killed or evicted the cell yet.
func (c *cellHead) alive() bool { return c.state.Load()&stateDead == 0 }

// use counts a read for the policy. The counter saturates, so that readers of a hot key share no written memory; a count lost to
// another reader does not matter.
func (c *cellHead) use(state uint32) {
	if state&stateUses != stateUses {
		c.state.CompareAndSwap(state, state+1)
	}
}

// uses returns the reads counted since the policy last lowered them.
func (c *cellHead) uses() uint32 { return c.state.Load() & stateUses }

// lowerUses takes one read off, if there is one.
func (c *cellHead) lowerUses() {
	for {
		s := c.state.Load()
		if s&stateUses == 0 || c.state.CompareAndSwap(s, s-1) {
			return
		}
	}
}

// setUses sets the counter.
func (c *cellHead) setUses(n uint32) {
	for {
		s := c.state.Load()
		if c.state.CompareAndSwap(s, s&^stateUses|n) {
			return
		}
	}
}

// setRegion moves the cell to a region of the policy; 0: none. The caller holds the policy's lock.
func (c *cellHead) setRegion(region uint32) {
	c.state.And(^stateRegion)
	c.state.Or(region)
}

// over reports whether the cell can never be answered again: past its hard end, or put before its cache's last Drop.
func (c *cellHead) over(now int64) bool {
	return now >= c.hard || c.trust>>wordShift < c.owner.floor.Load()
}

// entry gives back what was put.
func (c *cell[K, V]) entry(k *coarseClock) Entry[V] {
	return Entry[V]{
		Value:   c.value,
		Absent:  c.state.Load()&stateAbsent != 0,
		Born:    k.moment(c.born),
		Soft:    k.moment(c.soft),
		Hard:    k.moment(c.hard),
		Version: c.version,
		Cost:    time.Duration(c.cost) * time.Microsecond,
		Size:    int(c.encoded),
	}
}

// newCell makes the cell of an entry. Its soft end is never after its hard end.
func newCell[K comparable, V any](k *coarseClock, o *localOwner, hash uint64, key K, e *Entry[V]) *cell[K, V] {
	c := &cell[K, V]{key: key, value: e.Value}
	c.hash, c.owner = hash, o
	c.hard = k.since(e.Hard)
	c.soft = min(k.since(e.Soft), c.hard)
	c.born = k.since(e.Born)
	c.version = e.Version
	c.cost = uint32(min(max(e.Cost.Microseconds(), 0), math.MaxUint32))
	c.encoded = uint32(min(max(e.Size, 0), math.MaxUint32))
	if e.Absent {
		c.state.Store(stateAbsent)
	}
	return c
}
