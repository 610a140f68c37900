package layers

import (
	"sync"
	"sync/atomic"
)

const (
	// overlayStripe is how many puts of a stripe may wait for ristretto; 256 stripes of it fill ristretto's own queue of 32 Ki.
	overlayStripe = 128
	// overlayKept is how large an overlay may grow without being made anew once it is empty.
	overlayKept = 16
	// batchMax is how many changes go to ristretto before one Wait: well below its queue, so that it never refuses one.
	batchMax = 4 << 10
)

// memStripe is what the keys of one stripe share. On a cache line of its own.
type memStripe struct {
	epoch   atomic.Uint64 // moved under mu by every bump
	mu      sync.Mutex
	overlay map[uint64]wanted
	cells   int // of the overlay that are puts
	peak    int // the overlay's largest size since it was made
	_       [64 - 8 - 8 - 8 - 8 - 8]byte
}

// wanted is what ristretto should have for a hash.
type wanted struct {
	cell *cellHead // nil: nothing
	held int64     // bytes of dead cells that ristretto may hold until then
}

// wantLocked writes what ristretto should have, c or nothing, instead of old. The caller holds the stripe's lock, and kicks once it has
// given that up.
func (m *Memory) wantLocked(s *memStripe, hash uint64, c, old *cellHead) {
	w := s.overlay[hash]
	if w.cell != nil {
		s.cells--
	}
	if c != nil {
		s.cells++
	}
	if old != nil {
		w.held += int64(old.bytes)
		m.held.Add(int64(old.bytes))
	}
	w.cell = c
	s.overlay[hash] = w
	s.peak = max(s.peak, len(s.overlay))
}

// kick lets the flusher look.
func (m *Memory) kick() {
	if m.dirty.Load() || !m.dirty.CompareAndSwap(false, true) {
		return
	}
	select {
	case m.kicks <- struct{}{}:
	default:
	}
}

// flusher carries the overlay to ristretto, one Wait a batch.
func (m *Memory) flusher() {
	var batch []change
	for {
		select {
		case <-m.done:
			return
		case <-m.kicks:
		}
		m.dirty.Store(false)
		for i := range m.stripes {
			batch = m.collect(&m.stripes[i], batch)
			if len(batch) >= batchMax-2*overlayStripe {
				batch = m.apply(batch)
			}
		}
		batch = m.apply(batch)
	}
}

// change is one entry of the overlay under way to ristretto.
type change struct {
	hash uint64
	wanted
}

func (m *Memory) collect(s *memStripe, batch []change) []change {
	s.mu.Lock()
	defer s.mu.Unlock()
	for h, w := range s.overlay {
		if len(batch) == batchMax {
			m.kick()
			break
		}
		batch = append(batch, change{hash: h, wanted: w})
	}
	return batch
}

// apply sends a batch, waits until ristretto has applied it, and takes off the overlay what nobody changed meanwhile.
//
// Why ristretto has what was sent, although it loses the second Set of a new key: the flusher is the only sender, it sends one change of
// a hash at a time and waits before the next, a batch is shorter than ristretto's queue, and MaxCost is out of reach. That it has it is
// looked at all the same: a cell that is not there dies, which is an honest miss.
func (m *Memory) apply(batch []change) []change {
	if len(batch) == 0 {
		return batch
	}
	for _, c := range batch {
		if c.cell == nil {
			m.store.Del(c.hash)
		} else {
			m.store.Set(c.hash, c.cell, 1)
		}
	}
	m.store.Wait()
	for _, c := range batch {
		s := m.stripe(c.hash)
		s.mu.Lock()
		m.settleLocked(s, c)
		s.mu.Unlock()
	}
	clear(batch)
	return batch[:0]
}

// settleLocked takes an applied change off the overlay, if nobody wants something else by now. The caller holds the stripe's lock.
func (m *Memory) settleLocked(s *memStripe, c change) {
	w := s.overlay[c.hash]
	if w.cell != c.cell {
		m.held.Add(-c.held)
		w.held -= c.held
		s.overlay[c.hash] = w
		return
	}
	m.held.Add(-w.held) // what was held since the change was collected never reached ristretto
	delete(s.overlay, c.hash)
	if len(s.overlay) == 0 && s.peak > overlayKept {
		s.overlay, s.peak = make(map[uint64]wanted), 0 // a map does not shrink
	}
	if c.cell == nil {
		return
	}
	s.cells--
	if got, _ := m.store.Get(c.hash); got != c.cell {
		c.cell.state.Or(stateDead)
		m.policy.remove(c.cell)
		m.lost.Add(1)
	}
}
