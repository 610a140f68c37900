package layers

// Supersede puts a copy as the beginning of a new history: like Replace if the mark still stands, so that marks taken before are void;
// otherwise it does nothing, since what voided the mark is newer than the entry. It reports whether the entry was put.
func (l *Local[K, V]) Supersede(key K, e Entry[V], m Mark) bool {
	h, id := l.hash(key)
	if l.o.TTL <= 0 {
		return false
	}
	c := l.cellOf(h, key, id, &e, m, false)
	if c == nil {
		return false
	}
	return l.underMark(h, m, func(s *memStripe, victims []*cellHead) (bool, []*cellHead) {
		s.epoch.Add(1)
		return l.mem.putLocked(s, &c.cellHead, victims)
	})
}

// Kill ends the key's copy if the mark still stands, and leaves its history alone: other readers of the stripe are not refused. It is for a
// load that ended with something that is not kept: what it makes obsolete must go, what is newer must stay.
func (l *Local[K, V]) Kill(key K, m Mark) {
	h, _ := l.hash(key)
	l.underMark(h, m, func(s *memStripe, victims []*cellHead) (bool, []*cellHead) {
		if c := l.mem.currentLocked(s, h); c != nil && c.owner == &l.own {
			l.mem.killLocked(s, c)
		}
		return false, victims
	})
}

// underMark does what f does under the stripe's lock, if the mark stands.
func (l *Local[K, V]) underMark(h uint64, m Mark, f func(*memStripe, []*cellHead) (bool, []*cellHead)) (kept bool) {
	var room [8]*cellHead
	victims := room[:0]
	s := l.mem.stripe(h)
	s.mu.Lock()
	if l.stands(s, m) && !l.mem.closed.Load() {
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
