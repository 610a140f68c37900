package layers

import "sync/atomic"

const (
	// The front has a set of slots, of 64 bytes, for each frontShare bytes of the Memory, within these bounds: 1.5 MiB for 60 MiB and more. That is
	// a slot for each of 120,000 keys: with half of it a hit among 100,000 keys asked for at random takes more than twice as long (bench memory).
	frontShare = 5 << 9
	frontLeast = 256
	frontMost  = 24 << 10
	// frontWays is how many slots a hash has to choose from: a line of the processor's cache.
	frontWays = 5
	// frontTurn makes a turn of the coarse clock's nanoseconds: 2^22 of them, 4 ms.
	frontTurn = 22
)

// frontTable answers the hottest keys without asking ristretto: a table of cells. It is only a short cut: who takes a cell from it checks
// the cell as if ristretto had given it. Lock-free.
type frontTable struct {
	sets []frontSet
}

func newFront(maxBytes int64) *frontTable {
	return &frontTable{sets: make([]frontSet, min(max(maxBytes/frontShare, frontLeast), frontMost))}
}

// frontSet is the slots that a hash may stand in: cells and, so that who looks for another need not touch them, tags. A tag is the upper half
// of the hash but for its lowest bit, which tells whether the cell was asked for since the set was last full of such cells. Zero: free. Tag
// and cell are written one after the other: where they do not fit, a reader misses the front or finds by the cell's own key that it is
// another's.
type frontSet struct {
	tags  [frontWays]atomic.Uint32
	cells [frontWays]atomic.Pointer[cellHead]
}

const frontAsked = 1

// frontTag is the tag of a cell that was asked for.
func frontTag(hash uint64) uint32 { return uint32(hash>>32) | frontAsked } //nolint:gosec // the half is meant

// set spreads the lower half of the hash over the sets.
func (f *frontTable) set(hash uint64) *frontSet {
	return &f.sets[uint64(uint32(hash))*uint64(len(f.sets))>>32] //nolint:gosec // the half is meant
}

// get returns the cell that is likely to be the hash's, or nil.
func (f *frontTable) get(hash uint64) *cellHead {
	s, want := f.set(hash), frontTag(hash)
	for i := range s.tags {
		if tag := s.tags[i].Load(); tag|frontAsked == want {
			if tag != want {
				s.tags[i].CompareAndSwap(tag, want)
			}
			return s.cells[i].Load()
		}
	}
	return nil
}

// offer puts a cell that ristretto gave into a slot that is free, or whose cell was not asked for lately, if it is the cell's turn: a
// sixteenth of the cells has one at a time, so that readers do not fight over slots. A slot with the cell's tag already comes first: what
// stands there is not what get should have found, and would hide the cell in any other slot.
//
// A dead cell never stays in the table:
//  1. a reader finds the cell alive
//  2. the cell is killed; forget finds no slot with it
//  3. the reader stores it
//
// Hence the second look at its state after the store: either forget sees the store, or the second look sees the death.
func (f *frontTable) offer(hash uint64, c *cellHead, turn uint64) {
	s := f.set(hash)
	way := s.wayOf(frontTag(hash))
	if way < 0 {
		way = s.free()
	}
	if way < 0 {
		if (hash>>40+turn)%16 != 0 {
			return
		}
		if way = s.idle(int(hash >> 44)); way < 0 {
			return
		}
	}
	s.cells[way].Store(c)
	s.tags[way].Store(frontTag(hash) &^ frontAsked)
	if !c.alive() {
		f.forget(c)
	}
}

// wayOf returns the slot with the tag, or -1.
func (s *frontSet) wayOf(tag uint32) int {
	for i := range s.tags {
		if s.tags[i].Load()|frontAsked == tag {
			return i
		}
	}
	return -1
}

// free returns a free slot, or -1.
func (s *frontSet) free() int {
	for i := range s.tags {
		if s.tags[i].Load() == 0 {
			return i
		}
	}
	return -1
}

// idle returns a slot whose cell was not asked for lately, beginning at start. If all were, none is idle now, and all have to be asked for
// again.
func (s *frontSet) idle(start int) int {
	for i := range s.tags {
		if way := (start + i) % frontWays; s.tags[way].Load()&frontAsked == 0 {
			return way
		}
	}
	for i := range s.tags {
		s.tags[i].And(^uint32(frontAsked))
	}
	return -1
}

// forget clears the slots of a dead cell.
func (f *frontTable) forget(c *cellHead) {
	s := f.set(c.tail().hash)
	for i := range s.tags {
		if s.cells[i].Load() == c && s.cells[i].CompareAndSwap(c, nil) {
			s.tags[i].Store(0)
		}
	}
}

// clear forgets every cell. It writes only where something stands: most of a table is empty when it is cleared, and to look is cheaper than to
// write (under the race detector, which keeps a record of each word that is written atomically, by far).
func (f *frontTable) clear() {
	for i := range f.sets {
		for j := range frontWays {
			if tag := &f.sets[i].tags[j]; tag.Load() != 0 {
				tag.Store(0)
			}
			if cell := &f.sets[i].cells[j]; cell.Load() != nil {
				cell.Store(nil)
			}
		}
	}
}
