package bloom

import "sync/atomic"

// recent is a set of keyed hashes that one writer at a time adds to while any number read it without a lock: an open table in
// which a slot, once filled, never changes. 0 is an empty slot, and no key's hash. It does not grow; who finds it full publishes a
// larger one.
type recent struct {
	n     atomic.Int64
	slots []atomic.Uint64 // a power of two of them, at most half of them filled, so that every search ends
}

func newRecent(slots int) *recent { return &recent{slots: make([]atomic.Uint64, slots)} }

func (r *recent) has(h uint64) bool {
	if r.n.Load() == 0 {
		return false
	}
	mask := uint64(len(r.slots) - 1)
	for i := h & mask; ; i = (i + 1) & mask {
		switch r.slots[i].Load() {
		case h:
			return true
		case 0:
			return false
		}
	}
}

// add puts h in. The caller is the only writer and has seen that the table is not full.
func (r *recent) add(h uint64) {
	mask := uint64(len(r.slots) - 1)
	i := h & mask
	for ; r.slots[i].Load() != 0; i = (i + 1) & mask {
		if r.slots[i].Load() == h {
			return
		}
	}
	// A reader may meet one without the other and miss h: add has not returned yet then.
	r.n.Add(1)
	r.slots[i].Store(h)
}

func (r *recent) full() bool { return int(r.n.Load())*2 >= len(r.slots) }

func (r *recent) each(visit func(h uint64)) {
	for i := range r.slots {
		if h := r.slots[i].Load(); h != 0 {
			visit(h)
		}
	}
}
