package layers

import "sync/atomic"

// frontSlots is the number of slots of the front: 128 KiB of pointers a Memory. Chosen with the hit budgets in view.
const frontSlots = 1 << 14

// frontTable answers the hottest keys without asking ristretto: a direct-mapped table of cells. It is only a short cut: who takes a cell
// from it checks the cell as if ristretto had given it. Lock-free.
type frontTable [frontSlots]atomic.Pointer[cellHead]

func (f *frontTable) slot(hash uint64) *atomic.Pointer[cellHead] { return &f[hash%frontSlots] }

// offer puts a cell that ristretto gave into its slot, if that is free, or if it is the cell's turn: of the cells that share a slot one in
// sixteen may push the other out, another sixteenth with each tick. So the slot is with each of them for a share of the time that grows with how often it
// is asked for, and readers do not fight over slots.
//
// A dead cell never stays in the table:
//  1. a reader finds the cell alive
//  2. the cell is killed; forget finds the slot without it
//  3. the reader stores it
//
// Hence the second look at its state after the store: either forget sees the store, or the second look sees the death.
func (f *frontTable) offer(c *cellHead, turn uint64) {
	s := f.slot(c.hash)
	old := s.Load()
	if old == c {
		return
	}
	if old != nil && old.alive() && (c.hash>>32+turn)%16 != 0 {
		return
	}
	s.Store(c)
	if !c.alive() {
		s.CompareAndSwap(c, nil)
	}
}

// forget clears the slot of a dead cell.
func (f *frontTable) forget(c *cellHead) {
	if s := f.slot(c.hash); s.Load() == c {
		s.CompareAndSwap(c, nil)
	}
}

// clear forgets every cell.
func (f *frontTable) clear() {
	for i := range f {
		f[i].Store(nil)
	}
}
