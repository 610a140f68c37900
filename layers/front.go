package layers

import "sync/atomic"

const (
	// The front has a slot, of 16 bytes, for each frontShare bytes of the Memory, a power of two between these bounds: 1 MiB for 64 MiB and
	// more. Chosen with the hit budgets in view: with a quarter of the slots a hit among 100,000 keys asked for at random took twice as long.
	frontShare = 1 << 10
	frontLeast = 1 << 10
	frontMost  = 1 << 16
	// frontWays is how many slots a hash has to choose from: a line of the processor's cache.
	frontWays = 4
	// frontTurn makes a turn of the coarse clock's nanoseconds: 2^22 of them, 4 ms.
	frontTurn = 22
)

// frontTable answers the hottest keys without asking ristretto: a table of cells. It is only a short cut: who takes a cell from it checks
// the cell as if ristretto had given it. Lock-free.
type frontTable struct {
	sets []frontSet
	mask uint64 // len(sets) - 1
}

func newFront(maxBytes int64) *frontTable {
	slots := frontLeast
	for slots < frontMost && int64(slots) < maxBytes/frontShare {
		slots *= 2
	}
	return &frontTable{sets: make([]frontSet, slots/frontWays), mask: uint64(slots/frontWays - 1)}
}

// frontSet is the slots that a hash may stand in: cells and, so that who looks for another need not touch them, tags. A tag is the hash
// but for its lowest bit, which tells whether the cell was asked for since the set was last full of such cells. Zero: free. Tag and cell are written one after the other: where they do not fit, a reader misses the front or finds by the
// cell's own key that it is another's.
type frontSet [frontWays]struct {
	tag  atomic.Uint64
	cell atomic.Pointer[cellHead]
}

const frontAsked = 1

// frontTag is never zero for a hash that stands in the table.
func frontTag(hash uint64) uint64 { return hash | frontAsked }

func (f *frontTable) set(hash uint64) *frontSet { return &f.sets[hash>>1&f.mask] }

// get returns the cell that is likely to be the hash's, or nil.
func (f *frontTable) get(hash uint64) *cellHead {
	s, want := f.set(hash), frontTag(hash)
	for i := range s {
		if tag := s[i].tag.Load(); tag|frontAsked == want {
			if tag != want {
				s[i].tag.CompareAndSwap(tag, want)
			}
			return s[i].cell.Load()
		}
	}
	return nil
}

// offer puts a cell that ristretto gave into a slot that is free, or whose cell was not asked for lately, if it is the cell's turn: a
// sixteenth of the cells has one at a time, so that readers do not fight over slots.
//
// A dead cell never stays in the table:
//  1. a reader finds the cell alive
//  2. the cell is killed; forget finds no slot with it
//  3. the reader stores it
//
// Hence the second look at its state after the store: either forget sees the store, or the second look sees the death.
func (f *frontTable) offer(hash uint64, c *cellHead, turn uint64) {
	s := f.set(hash)
	way := s.free()
	if way < 0 {
		if (hash>>40+turn)%16 != 0 {
			return
		}
		if way = s.idle(int(hash >> 44)); way < 0 {
			return
		}
	}
	s[way].cell.Store(c)
	s[way].tag.Store(hash &^ frontAsked)
	if !c.alive() {
		f.forget(c)
	}
}

// free returns a free slot, or -1.
func (s *frontSet) free() int {
	for i := range s {
		if s[i].tag.Load() == 0 {
			return i
		}
	}
	return -1
}

// idle returns a slot whose cell was not asked for lately, beginning at start. If all were, none is idle now, and all have to be asked for
// again.
func (s *frontSet) idle(start int) int {
	for i := range s {
		if way := (start + i) % frontWays; s[way].tag.Load()&frontAsked == 0 {
			return way
		}
	}
	for i := range s {
		s[i].tag.And(^uint64(frontAsked))
	}
	return -1
}

// forget clears the slots of a dead cell.
func (f *frontTable) forget(c *cellHead) {
	s := f.set(c.tail().hash)
	for i := range s {
		if s[i].cell.Load() == c && s[i].cell.CompareAndSwap(c, nil) {
			s[i].tag.Store(0)
		}
	}
}

// clear forgets every cell.
func (f *frontTable) clear() {
	for i := range f.sets {
		for j := range f.sets[i] {
			f.sets[i][j].tag.Store(0)
			f.sets[i][j].cell.Store(nil)
		}
	}
}
