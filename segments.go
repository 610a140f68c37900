package tiercache

import (
	"context"
)

// keepSegments is keepFilter for the filter in Redis: it learns which one is asked, looks at its segments and renews them by turns. If Redis came
// back with data so old that announcements may be missing which nobody repeats, the filter is not asked any more, in no process, nor is one that is
// being built.
func (c *Cache[K, V]) keepSegments(ctx context.Context) {
	if c.oldData.Swap(false) {
		c.segments.DoubtAll()
	}
	c.refuteShared(ctx, c.suspects.take(c.segments.Told))
	if err := c.segments.Keep(ctx); err != nil {
		c.filterFailed(ctx, err)
	}
	c.tellFilter()
}

// filteredBy counts an answer of the filter in Redis, and reports whether it is the caller's.
func (c *Cache[K, V]) filteredBy(absent bool, why *cause) bool {
	switch {
	case absent && c.audits(why):
		return false
	case absent:
		c.count.filtered.Add(1)
	case !c.segments.Believed():
		c.count.filterOpen.Add(1)
	}
	return absent
}

// refuteShared asks the filter in Redis again for rows that it called absent and that were loaded all the same. It is doubted if it still does:
//  1. a row is called absent; 2. another process announces and inserts it; 3. it is loaded here, as an audit
//
// is no fault: the announcement's bits were in Redis before the insert, so they are found now.
func (c *Cache[K, V]) refuteShared(ctx context.Context, rows []string) {
	if len(rows) == 0 {
		return
	}
	c.count.filterWrong.Add(uint64(c.segments.Refute(ctx, rows...))) //nolint:gosec // not negative
}

// segmentStats are the gauges of the filter in Redis.
func (c *Cache[K, V]) segmentStats(s *Stats) {
	f := c.segments.Stats()
	s.FilterRows, s.FilterSize, s.FilterBytes, s.FilterState = f.Rows, f.Capacity, f.Bytes, uint64(c.segments.State())
	s.FilterFill, s.FilterRate = millionths(f.Fill), millionths(f.EstimatedRate)
	s.FilterSegments, s.FilterUnknown = f.Segments, f.Unknown
	if c.segments.Due() != "" {
		s.FilterDue = 1
	}
}

// filteredTogether is filtered where the filter is in Redis: one question for all keys.
func (b *batch[K, V]) filteredTogether(ctx context.Context, missing []want[K, V]) (rest []want[K, V]) {
	var ids []string
	var asked []want[K, V]
	for _, w := range missing {
		if !b.c.mayFilter(&w.why) {
			rest = append(rest, w)
			continue
		}
		ids, asked = append(ids, w.id), append(asked, w)
	}
	b.c.count.filterChecks.Add(uint64(len(ids)))
	for i, absent := range b.c.segments.Absent(ctx, ids...) {
		if !b.c.filteredBy(absent, &asked[i].why) {
			rest = append(rest, asked[i])
			continue
		}
		b.settle(ctx, asked[i], filteredAnswer[V](), nil)
	}
	return rest
}
