package layers

import "sync/atomic"

const (
	// frontSlots is the number of slots of the front: 256 KiB a Memory. Chosen with the hit budgets in view.
	frontSlots = 1 << 14
	// frontWays is how many slots a hash has to choose from: a line of the processor's cache.
	frontWays = 4
	// frontTurn makes a turn of the coarse clock's nanoseconds: 2^22 of them, 4 ms.
	frontTurn = 22
)

// frontTable answers the hottest keys without asking ristretto: a table of cells. It is only a short cut: who takes a cell from it checks
// the cell as if ristretto had given it. Lock-free.
type frontTable [frontSlots / frontWays]frontSet

// frontSet is the slots that a hash may stand in: cells and, so that who looks for another need not touch them, their hashes. Hash and cell
// are written one after the other: where they do not fit, a reader misses the front or finds by the cell's own key that it is another's.
type frontSet [frontWays]struct {
	hash atomic.Uint64
	cell atomic.Pointer[cellHead]
}

func (f *frontTable) set(hash uint64) *frontSet { return &f[hash%(frontSlots/frontWays)] }

// get returns the cell that is likely to be the hash's, or nil.
func (f *frontTable) get(hash uint64) *cellHead {
	s := f.set(hash)
	switch hash {
	case s[0].hash.Load():
		return s[0].cell.Load()
	case s[1].hash.Load():
		return s[1].cell.Load()
	case s[2].hash.Load():
		return s[2].cell.Load()
	case s[3].hash.Load():
		return s[3].cell.Load()
	}
	return nil
}

// offer puts a cell that ristretto gave into a slot, if one is free, or if it is the cell's turn: of the cells that share a set one in
// sixteen may push another out, another sixteenth with each turn. So a slot is with each of them for a share of the time that grows
// with how often it is asked for, and readers do not fight over slots.
//
// A dead cell never stays in the table:
//  1. a reader finds the cell alive
//  2. the cell is killed; forget finds no slot with it
//  3. the reader stores it
//
// Hence the second look at its state after the store: either forget sees the store, or the second look sees the death.
func (f *frontTable) offer(hash uint64, c *cellHead, turn uint64) {
	s := f.set(hash)
	way := -1
	for i := range s {
		if s[i].hash.Load() == 0 {
			way = i
			break
		}
	}
	if way < 0 {
		lot := hash>>40 + turn
		if lot%16 != 0 {
			return
		}
		way = int(lot / 16 % frontWays)
	}
	s[way].cell.Store(c)
	s[way].hash.Store(hash)
	if !c.alive() {
		f.forget(c)
	}
}

// forget clears the slots of a dead cell.
func (f *frontTable) forget(c *cellHead) {
	s := f.set(c.tail().hash)
	for i := range s {
		if s[i].cell.Load() == c && s[i].cell.CompareAndSwap(c, nil) {
			s[i].hash.Store(0)
		}
	}
}

// clear forgets every cell.
func (f *frontTable) clear() {
	for i := range f {
		for j := range f[i] {
			f[i][j].hash.Store(0)
			f[i][j].cell.Store(nil)
		}
	}
}
