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
	stateAside  uint32 = 1 << 7 // in the policy's region for absent entries
	statePinned uint32 = 1 << 8 // in the policy's region for pinned keys
	stateRegion        = stateWindow | stateMain | stateAside | statePinned
)

// cellHead is the part of a cell that does not depend on its cache's types: what ristretto stores, the front points to and the policy
// lists. Moments are nanoseconds of the Memory's clock. Only state changes after birth, and the links in the tail.
//
// Every entry pays for these fields, so they are small: with a string for key and value a cell has 96 bytes. What a hit reads stands
// together, in the first 64 of them.
type cellHead struct {
	owner *localOwner
	fresh int64  // the earlier of its soft end and the end of the local tier's own TTL
	trust uint32 // the word of the mark it was put under; with wordDoubt if it must never be trusted
	state atomic.Uint32
	bytes uint32 // what the policy counts for it
	born  uint32 // from birth to fresh, as birthBefore has it; notBorn: unknown. Here, where it fills up the word
}

// cellTail is what a hit does not read. It stands behind key and value, at an offset that the owner knows.
//
// Its moments are whole milliseconds from fresh, rounded so that lives only get shorter, and at most 49 days: what lasts longer ends there.
type cellTail struct {
	hash       uint64
	prev, next *cellHead // guarded by the policy's lock
	later      uint32    // to the later of the two ends of which fresh is the earlier; stateYoung tells which
	hard       uint32    // to the hard end
}

const (
	// notBorn stands for the zero time.
	notBorn = math.MaxUint32
	// bornLong marks a birth in seconds: one that is further back than milliseconds reach, 24 days.
	bornLong = 1 << 31
)

// birthBefore is how long before fresh a cell was born: milliseconds, rounded down, or bornLong and seconds, rounded up. Age is told of it, and
// a copy that must go is known by it: further back it is rather a second too old than too young.
func birthBefore(ns int64) uint32 {
	if ms := max(ns/int64(time.Millisecond), 0); ms < bornLong {
		return uint32(ms)
	}
	return bornLong | uint32(min((ns-1)/int64(time.Second)+1, notBorn-bornLong-1)) //nolint:gosec // bounded
}

// birth is when the cell was born, to what birthBefore keeps of it; not to be asked of one that is notBorn.
func (c *cellHead) birth() int64 {
	if c.born >= bornLong {
		return c.fresh - int64(c.born-bornLong)*int64(time.Second)
	}
	return c.fresh - nanos(c.born)
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

// region is the cell's region of the policy; 0: none.
func (c *cellHead) region() uint32 { return c.state.Load() & stateRegion }

// absent reports whether the cell says that the source has no such key.
func (c *cellHead) absent() bool { return c.state.Load()&stateAbsent != 0 }

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
	return now >= c.fresh+nanos(c.tail().hard) || c.trust>>wordShift < c.owner.floor.Load()
}

// ends returns the entry's soft end and the end of the local tier's own TTL.
func (c *cell[K, V]) ends() (soft, young int64) {
	later := c.fresh + nanos(c.t.later)
	if c.state.Load()&stateYoung != 0 {
		return c.fresh, later
	}
	return later, c.fresh
}

// entry gives back what was put, but for what only Redis is asked for: version, cost and size.
func (c *cell[K, V]) entry(k *coarseClock) Entry[V] {
	soft, _ := c.ends()
	e := Entry[V]{
		Value:  c.value,
		Absent: c.absent(),
		Soft:   k.moment(soft),
		Hard:   k.moment(c.fresh + nanos(c.t.hard)),
	}
	if c.born != notBorn {
		e.Born = k.moment(c.birth())
	}
	return e
}

// newCell makes the cell of an entry that the local tier answers until young. Its soft end is never after its hard end; one that is
// long past counts as a day ago, so that milliseconds reach from it to the others.
func newCell[K comparable, V any](k *coarseClock, o *localOwner, hash uint64, key K, e *Entry[V], now, young int64) *cell[K, V] {
	c := &cell[K, V]{key: key, value: e.Value}
	c.owner = o
	hard := k.since(e.Hard)
	soft := min(max(k.since(e.Soft), now-int64(24*time.Hour)), hard)
	c.fresh = min(soft, young)
	state := uint32(0)
	if young >= soft {
		state |= stateYoung
	}
	if e.Absent {
		state |= stateAbsent
	}
	c.state.Store(state)
	c.t.later = inMillis(max(soft, young) - c.fresh)
	c.t.hard = inMillis(hard - c.fresh)
	c.born = notBorn
	if !e.Born.IsZero() {
		c.born = birthBefore(c.fresh - k.since(e.Born))
	}
	c.t.hash = hash
	return c
}

// inMillis returns whole milliseconds, nanos nanoseconds again.
func inMillis(ns int64) uint32 { return saturate(ns / int64(time.Millisecond)) }

func nanos(ms uint32) int64 { return int64(ms) * int64(time.Millisecond) }

// saturate returns the nearest number that is below notBorn and not negative.
func saturate(n int64) uint32 { return uint32(min(max(n, 0), notBorn-1)) }
