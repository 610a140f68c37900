package rebuild

import (
	"cmp"
	"hash/maphash"
	"math"
	"slices"
	"time"
)

// tallyLeast is the shortest time over which a rate of a tally is given: what was read twice within a second is not read twice a second.
const tallyLeast = time.Minute

// tally counts the reads of each key over minutes, where the sketch sees seconds: which keys are read most although none of them often. It is
// Space-Saving (Metwally, Agrawal, El Abbadi, "Efficient Computation of Frequent and Top-k Elements in Data Streams", ICDT 2005): a key that
// comes when all places are taken takes the place of the one with the least count, and that count with it; how much of a count is so
// inherited is known. So no key is missing that has more than its share of all reads, the reads over the places.
type tally[K any] struct {
	top   *topKeys[K]
	since time.Time
}

func newTally[K any](places int) *tally[K] {
	return &tally[K]{top: newTopKeys[K](places), since: time.Now()}
}

// add counts a sample, which stands for as many reads as its mask lets pass.
func (t *tally[K]) add(seed maphash.Seed, s *hotSample[K]) {
	k := topKey[K]{hash: maphash.String(seed, s.id), id: s.id, key: s.key}
	at, known := t.top.place[k.hash]
	switch {
	case known:
		k.count = t.top.heap[at].count
	case len(t.top.heap) == t.top.most:
		k.count, k.over = t.top.heap[0].count, t.top.heap[0].count
	}
	k.count += min(s.mask+1, math.MaxUint32-k.count)
	t.top.offer(k)
}

// take returns the n keys (n of zero or less: all) read most since the last take, first the most, and begins anew. Their rates are at most the
// true ones, as far as the samples tell.
func (t *tally[K]) take(n int, now time.Time) []HotKey[K] {
	over := max(now.Sub(t.since), tallyLeast).Seconds()
	keys := make([]HotKey[K], 0, len(t.top.heap))
	for _, k := range t.top.heap {
		if sure := k.count - k.over; sure > 0 {
			keys = append(keys, HotKey[K]{ID: k.id, Key: k.key, Rate: float64(sure) / over})
		}
	}
	clear(t.top.heap)
	clear(t.top.place)
	t.top.heap, t.since = t.top.heap[:0], now
	slices.SortFunc(keys, byRate)
	if n > 0 {
		keys = keys[:min(n, len(keys))]
	}
	return keys
}

// byRate orders keys, the one read most first.
func byRate[K any](a, b HotKey[K]) int {
	return cmp.Or(cmp.Compare(b.Rate, a.Rate), cmp.Compare(a.ID, b.ID))
}

// Tally has reads counted over longer times as well, for TakeTally: in so many places, a few times what is to be taken.
// What was counted before is forgotten.
func (h *HotKeys[K]) Tally(places int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tally = newTally[K](places)
}

// TakeTally returns the n keys (n of zero or less: all) that were read most since the last call, or since Tally, first the most; nil without
// Tally and after Close. Their Rate is over that time, a minute at least, and counts what was certainly read, as far as the samples tell; Hot
// is not set.
func (h *HotKeys[K]) TakeTally(n int) []HotKey[K] {
	h.collect()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.tally == nil {
		return nil
	}
	return h.tally.take(n, time.Now())
}
