package layers

// cellRegion is the cells of a region of the policy, from the oldest to the newest, and what went from there.
type cellRegion struct {
	oldest, newest *cellHead
	bytes, cells   int64
	evicted        uint64 // for space
	expired        uint64 // because they were over
}

func (r *cellRegion) push(c *cellHead) {
	t := c.tail()
	t.prev, t.next = r.newest, nil
	if r.newest != nil {
		r.newest.tail().next = c
	} else {
		r.oldest = c
	}
	r.newest = c
	r.bytes += int64(c.bytes)
	r.cells++
}

func (r *cellRegion) remove(c *cellHead) {
	t := c.tail()
	if t.prev != nil {
		t.prev.tail().next = t.next
	} else {
		r.oldest = t.next
	}
	if t.next != nil {
		t.next.tail().prev = t.prev
	} else {
		r.newest = t.prev
	}
	t.prev, t.next = nil, nil
	r.bytes -= int64(c.bytes)
	r.cells--
}

func (r *cellRegion) stats() RegionStats {
	return RegionStats{Bytes: uint64(r.bytes), Entries: uint64(r.cells), Evicted: r.evicted, Expired: r.expired}
}
