package layers

// Copy is an entry of the local tier that Get may be unable to answer.
type Copy[V any] struct {
	Entry[V]
	Trusted bool // no gap of the bus since it was put
	Heard   bool // as Trusted, for a copy that is in doubt for another reason: events are heard, without a gap since it was put
	Young   bool // before the end of the local tier's own TTL
}

// Look returns the key's copy before its hard end, trusted or not: for stale answers, and for what is answered while Redis or the source
// fails.
func (l *Local[K, V]) Look(key K) (Copy[V], bool) {
	c, now := l.lookFor(key)
	if c == nil {
		return Copy[V]{}, false
	}
	c.use(c.state.Load())
	return l.copyOf(c, now), true
}

// Watch is Look for who watches a key rather than reads it: it does not count as a read, and returns how many were counted since the last
// Watch (or since the policy, which counts them too, took them off): 3 for all that are more. So a key that is watched often is known to be
// read often although its readers share no counter.
func (l *Local[K, V]) Watch(key K) (copied Copy[V], reads int, ok bool) {
	c, now := l.lookFor(key)
	if c == nil {
		return Copy[V]{}, 0, false
	}
	reads = int(c.uses())
	if reads > 0 {
		c.setUses(0)
	}
	return l.copyOf(c, now), reads, true
}

// lookFor returns the key's cell before its hard end, or nil.
func (l *Local[K, V]) lookFor(key K) (c *cell[K, V], now int64) {
	if l.o.TTL <= 0 {
		return nil, 0
	}
	h, id := l.hash(key)
	c = l.mine(l.front.get(h), h, key, id)
	if c == nil || !c.alive() {
		c, _ = l.find(h, key, id)
	}
	if now = l.clock.now(); c == nil || c.over(now) {
		return nil, now
	}
	return c, now
}

func (l *Local[K, V]) copyOf(c *cell[K, V], now int64) Copy[V] {
	_, young := c.ends()
	word := l.own.trust.Load()
	return Copy[V]{
		Entry:   c.entry(l.clock),
		Trusted: c.trust == word,
		Heard:   word&wordDeaf == 0 && c.trust>>wordShift == word>>wordShift,
		Young:   now < young,
	}
}
