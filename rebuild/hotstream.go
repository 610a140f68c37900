package rebuild

import (
	"hash/maphash"
	"math/rand/v2"
	"sync/atomic"
)

// How much of each kind of reads is looked at. Chosen, but where a reason stands; not tuned.
const (
	leavingWidth  = 4096
	leavingTop    = 512
	leavingMost   = 20_000 // samples that the sketch takes in a window: 0.4 % of a core at 200 ns each
	leavingMask   = 0      // all are sampled while there are fewer
	answeredWidth = 1024
	answeredTop   = 128
	answeredMost  = 2_000 // a tenth, since a memory hit is to cost nothing; one read in a hundred is some seven samples even at the fewest
	answeredMask  = 1<<3 - 1
	samplesFew    = 3 // more reads are sampled below a third of the most: below half, the two would alternate
)

// hotStream is one kind of reads: how many of them are sampled, the sketch of these, and the keys that lead in it.
type hotStream[K any] struct {
	mask atomic.Uint32 // a read is sampled if a random number has none of these bits: 2^n-1 for one read in 2^n. Callers read it
	_    [60]byte

	least  uint32 // the mask never falls below this
	most   int    // samples in a window, after which it rises
	sketch *sketch
	top    *topKeys[K]
	taken  int     // samples in this window
	total  float64 // all reads a second, of late
}

// init makes an empty stream. The seed of its sketch need not be secret: which bucket a key has is told by that of the HotKeys.
func (t *hotStream[K]) init(mask uint32, most, width, top int) {
	t.least, t.most = mask, most
	t.mask.Store(mask)
	t.sketch, t.top = newSketch(width, uint64(width)), newTopKeys[K](top) //nolint:gosec // a width is positive
}

// add takes in a sample. When there are too many for one window, only half of the reads are sampled from then on, and what was counted counts
// half: also what was sampled before and is seen only now.
func (t *hotStream[K]) add(seed maphash.Seed, s *hotSample[K]) {
	mask := t.mask.Load()
	if rand.Uint32()&mask&^s.mask != 0 { //nolint:gosec // nothing secret depends on it
		return
	}
	hash := maphash.String(seed, s.id)
	t.top.offer(topKey[K]{hash: hash, count: t.sketch.add(hash), id: s.id, key: s.key})
	if t.taken++; t.taken >= t.most {
		t.mask.Store(mask<<1 | 1)
		t.fade()
		t.taken /= 2
	}
}

// fade halves what was counted.
func (t *hotStream[K]) fade() {
	t.sketch.halve()
	t.top.halve()
}

// sum notes how much was read in a window that took so many seconds.
func (t *hotStream[K]) sum(took float64) {
	t.total = (t.total + float64(t.taken)*(float64(t.mask.Load())+1)/took) / 2
}

// endWindow lets the counts fade. If few samples came, more of the reads are sampled from then on. What was counted of fewer then counts for less
// than it should: rather a key is found a second late than by one sample that stood for thousands of reads.
func (t *hotStream[K]) endWindow() {
	t.fade()
	mask := t.mask.Load()
	for ; mask > t.least && t.taken < t.most/samplesFew; t.taken *= 2 {
		mask >>= 1
	}
	t.mask.Store(mask)
	t.taken = 0
}

// rate is what a count of samples means in reads a second. Counts that were halved with each window are twice the moving mean of a window.
func (t *hotStream[K]) rate(count uint32) float64 {
	return float64(count) * (float64(t.mask.Load()) + 1) / 2 / hotWindow.Seconds()
}
