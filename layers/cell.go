package layers

import (
	"math"
	"sync/atomic"
	"time"
	"unsafe"
)

// The state word of a cell. A cell is born alive and in no region.
const (
	stateUses   uint32 = 3 << 0 // reads since the policy last looked, saturating at 3
	stateDead   uint32 = 1 << 2 // superseded, killed, evicted or expired; never cleared
	stateAbsent uint32 = 1 << 3 // the source said "no such key"; set at birth
	stateWindow uint32 = 1 << 4 // in the policy's window
	stateMain   uint32 = 1 << 5 // in the policy's main region
	stateYoung  uint32 = 1 << 6 // the local tier's own TTL ends after the soft end, or with it; set at birth
	stateRegion        = stateWindow | stateMain
)

// noTime stands for the zero time.Time.
const noTime int64 = math.MinInt64

// cellHead is the part of a cell that does not depend on its cache's types: what ristretto stores, the front points to and the policy
// lists. Moments are nanoseconds of the Memory's clock. Only state changes after birth, and the links in the tail.
//
// The order of a cell's fields is for the cache of the processor: what a hit reads fills the first 64 bytes, where key and value are
// strings, and all of it 128. Every entry pays for this, so the fields are kept small.
type cellHead struct {
	owner *localOwner
	trust uint64 // the word of the mark it was put under; with wordDoubt if it must never be trusted
	fresh int64  // the earlier of its soft end and the end of the local tier's own TTL
	state atomic.Uint32
	bytes uint32 // what the policy counts for it
}

// cellTail is what a hit does not read. It stands behind key and value, at an offset that the owner knows.
type cellTail struct {
	hash       uint64
	prev, next *cellHead // guarded by the policy's lock
	later      int64     // the later of the two ends of which fresh is the earlier; stateYoung tells which
	hard       int64
	born       int64
	version    uint64
	cost       uint32 // microseconds, saturating
	encoded    uint32
}

// cell is one entry of one cache. The head MUST stay its first field: a *cellHead whose owner is a Local[K,V] is cast to *cell[K,V].
type cell[K comparable, V any] struct {
	cellHead
	key   K
	value V
	t     cellTail
}

// tailOffset is where the tail stands in a cell of these types.
func tailOffset[K comparable, V any]() uintptr {
	var c cell[K, V]
	return unsafe.Offsetof(c.t)
}

// tail returns the cell's tail. It is sound because a head only exists inside a cell, and the cell's Local gave the owner the offset of its
// own cell type.
func (c *cellHead) tail() *cellTail {
	return (*cellTail)(unsafe.Add(unsafe.Pointer(c), c.owner.tail))
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
	return now >= c.tail().hard || c.trust>>wordShift < c.owner.floor.Load()
}

// ends returns the entry's soft end and the end of the local tier's own TTL.
func (c *cell[K, V]) ends() (soft, young int64) {
	if c.state.Load()&stateYoung != 0 {
		return c.fresh, c.t.later
	}
	return c.t.later, c.fresh
}

// entry gives back what was put.
func (c *cell[K, V]) entry(k *coarseClock) Entry[V] {
	soft, _ := c.ends()
	return Entry[V]{
		Value:   c.value,
		Absent:  c.state.Load()&stateAbsent != 0,
		Born:    k.moment(c.t.born),
		Soft:    k.moment(soft),
		Hard:    k.moment(c.t.hard),
		Version: c.t.version,
		Cost:    time.Duration(c.t.cost) * time.Microsecond,
		Size:    int(c.t.encoded),
	}
}

// roomyCell is a cell that fills 128 bytes instead of 112.
type roomyCell[K comparable, V any] struct {
	cell[K, V]
	_ [16]byte
}

// allocCell returns an empty cell. Objects of 112 bytes lie across the lines of the processor's cache, and half of them would cost a hit
// two fetches; objects of 128 start with a line.
func allocCell[K comparable, V any]() *cell[K, V] {
	if size := unsafe.Sizeof(cell[K, V]{}); size > 96 && size <= 112 {
		return &new(roomyCell[K, V]).cell
	}
	return new(cell[K, V])
}

// newCell makes the cell of an entry that the local tier answers until young. Its soft end is never after its hard end.
func newCell[K comparable, V any](k *coarseClock, o *localOwner, hash uint64, key K, e *Entry[V], young int64) *cell[K, V] {
	c := allocCell[K, V]()
	c.key, c.value, c.owner = key, e.Value, o
	state := uint32(0)
	if e.Absent {
		state |= stateAbsent
	}
	c.t.hard = k.since(e.Hard)
	soft := min(k.since(e.Soft), c.t.hard)
	if young >= soft {
		state |= stateYoung
		c.fresh, c.t.later = soft, young
	} else {
		c.fresh, c.t.later = young, soft
	}
	c.state.Store(state)
	c.t.hash = hash
	c.t.born = k.since(e.Born)
	c.t.version = e.Version
	c.t.cost = uint32(min(max(e.Cost.Microseconds(), 0), math.MaxUint32))
	c.t.encoded = uint32(min(max(e.Size, 0), math.MaxUint32))
	return c
}
