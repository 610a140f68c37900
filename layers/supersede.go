package layers

import "time"

// Supersede puts a copy as the beginning of a new history: like Replace if the mark still stands, so that marks taken before are void. If it
// does not, what voided it may be newer than the entry, or may concern a neighbour on the stripe: then nothing is put, and the key's copy
// goes if it was born before the moment begun. Of an entry that is past its hard end nothing is put either, and the copy goes as with Kill. It
// reports whether the entry was put.
func (l *Local[K, V]) Supersede(key K, e Entry[V], m Mark, begun time.Time) bool {
	return l.supersede(key, &e, m, begun, false)
}

// SupersedeDoubtful is Supersede of a copy that is never trusted: only Look finds it.
func (l *Local[K, V]) SupersedeDoubtful(key K, e Entry[V], m Mark, begun time.Time) bool {
	return l.supersede(key, &e, m, begun, true)
}

func (l *Local[K, V]) supersede(key K, e *Entry[V], m Mark, begun time.Time, doubt bool) bool {
	h, id := l.hash(key)
	if l.o.TTL <= 0 {
		return false
	}
	c := l.cellOf(h, key, id, e, m, doubt)
	if c == nil { // its life has ended on its way here, but it is newer than what stands
		l.Kill(key, m, begun)
		return false
	}
	return l.underLock(h, func(s *memStripe, victims []*cellHead) (bool, []*cellHead) {
		if !l.stands(s, m) {
			l.killOlderLocked(s, h, begun)
			return false, victims
		}
		s.epoch.Add(1)
		return l.mem.putLocked(s, &c.cellHead, victims)
	})
}

// Kill ends the key's copy if the mark still stands, and leaves its history alone: other readers of the stripe are not refused. It is for a
// load that ended with something that is not kept: what it makes obsolete must go, what is newer must stay. If the mark does not stand, the
// copy goes if it was born before the moment begun (the zero moment: it stays).
func (l *Local[K, V]) Kill(key K, m Mark, begun time.Time) {
	h, _ := l.hash(key)
	l.underLock(h, func(s *memStripe, victims []*cellHead) (bool, []*cellHead) {
		if !l.stands(s, m) {
			l.killOlderLocked(s, h, begun)
		} else if c := l.mem.currentLocked(s, h); c != nil && c.owner == &l.own {
			l.mem.killLocked(s, c)
		}
		return false, victims
	})
}

// killOlderLocked kills the copy under the hash if it was born before the moment begun, as far as birth tells. The caller holds the stripe's lock.
func (l *Local[K, V]) killOlderLocked(s *memStripe, h uint64, begun time.Time) {
	c := l.mem.currentLocked(s, h)
	if c == nil || c.owner != &l.own || begun.IsZero() {
		return
	}
	if c.born != notBorn && c.birth() < l.clock.since(begun) {
		l.mem.killLocked(s, c)
	}
}

// underLock does what f does under the stripe's lock, unless the Memory is closed.
func (l *Local[K, V]) underLock(h uint64, f func(*memStripe, []*cellHead) (bool, []*cellHead)) (kept bool) {
	var room [8]*cellHead
	victims := room[:0]
	s := l.mem.stripe(h)
	s.mu.Lock()
	if !l.mem.closed.Load() {
		kept, victims = f(s, victims)
	}
	s.mu.Unlock()
	l.mem.kick()
	if len(victims) > 0 {
		l.mem.bury(victims)
	}
	if kept {
		l.mem.wake()
	}
	return kept
}
