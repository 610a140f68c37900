package rebuild

import (
	"math"
	"math/rand/v2"
)

// The numbers of the sketch. Rows and decay are those of Gong et al., "HeavyKeeper: An Accurate Algorithm for Finding Top-k Elephant Flows"
// (USENIX ATC 2018); two rows of 4096 found all of the true top 100 of a million keys, at Zipf 0.99 and at 0.7, where 1024 lost a sixth.
const (
	sketchRows  = 2
	sketchDecay = 1.08 // what stands in a bucket of count n gives way with the probability 1.08^-n
)

// decayed[n] is the probability that a bucket of count n loses one to a key that is not its own, of 2^32. Beyond the table it is none.
var decayed = func() (p [256]uint32) {
	for n := range p {
		p[n] = uint32(min(math.Pow(sketchDecay, -float64(n)), 1) * math.MaxUint32)
	}
	return p
}()

// sketch is a HeavyKeeper: how often the frequent ones of very many hashes were added, in a fixed space. Each row has one bucket for a hash, and
// a bucket counts for one key at a time: a key that meets another's bucket wears it down, the less likely the larger its count is. So rare keys
// share what is left over, and frequent ones are counted almost exactly. It is for one goroutine at a time.
type sketch struct {
	rows [sketchRows][]sketchBucket
	mask uint64
	rand *rand.PCG
}

type sketchBucket struct {
	print uint32 // upper half of the hash
	count uint32
}

// newSketch returns a sketch of rows of width buckets, a power of two of at most 2^16: the two places and the print are parts of one hash.
func newSketch(width int, seed uint64) *sketch {
	s := &sketch{mask: uint64(width - 1), rand: rand.NewPCG(seed, seed^0x9e3779b97f4a7c15)} //nolint:gosec // a width is positive
	for i := range s.rows {
		s.rows[i] = make([]sketchBucket, width)
	}
	return s
}

// add counts a hash and returns how often it was added, as far as is known: hardly ever more, and less by what others took away.
func (s *sketch) add(hash uint64) (count uint32) {
	mark := uint32(hash >> 32)
	for i := range s.rows {
		b := &s.rows[i][hash>>(16*i)&s.mask]
		if b.count > 0 && b.print != mark {
			if b.count >= uint32(len(decayed)) || uint32(s.rand.Uint64()) > decayed[b.count] { //nolint:gosec // the lower half is meant
				continue
			}
			if b.count--; b.count > 0 {
				continue
			}
		}
		b.print = mark
		b.count++
		count = max(count, b.count)
	}
	return count
}

// halve divides every count by two.
func (s *sketch) halve() {
	for i := range s.rows {
		for j := range s.rows[i] {
			s.rows[i][j].count /= 2
		}
	}
}

// mixed is a hash of n: the finalizer of SplitMix64 (Steele et al., "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014).
func mixed(n uint64) uint64 {
	n = (n ^ n>>30) * 0xbf58476d1ce4e5b9
	n = (n ^ n>>27) * 0x94d049bb133111eb
	return n ^ n>>31
}

// topKeys are the keys with the largest counts among those offered: a heap whose first is the smallest, and where each key stands in it.
type topKeys[K any] struct {
	most  int
	heap  []topKey[K]
	place map[uint64]int // by hash: a key that shares all 64 bits with another is taken for it
}

type topKey[K any] struct {
	hash  uint64
	count uint32
	over  uint32 // of a tally: what of count may be other keys'
	id    string
	key   K
}

func newTopKeys[K any](most int) *topKeys[K] {
	return &topKeys[K]{most: most, place: make(map[uint64]int, most)}
}

// offer notes that a key has been counted so often.
func (t *topKeys[K]) offer(k topKey[K]) {
	at, known := t.place[k.hash]
	switch {
	case known:
		if k.count <= t.heap[at].count {
			return
		}
		t.heap[at].count = k.count
	case len(t.heap) < t.most:
		at = len(t.heap)
		t.heap = append(t.heap, k)
		t.place[k.hash] = at
		t.up(at)
		return
	case k.count <= t.heap[0].count:
		return
	default:
		delete(t.place, t.heap[0].hash)
		at = 0
		t.heap[at] = k
		t.place[k.hash] = at
	}
	t.down(at)
}

// halve is the sketch's, and forgets the keys of which nothing is left.
func (t *topKeys[K]) halve() {
	all := t.heap
	t.heap = all[:0]
	clear(t.place)
	for _, k := range all {
		if k.count /= 2; k.count > 0 {
			t.place[k.hash] = len(t.heap)
			t.heap = append(t.heap, k) // a heap's order outlives a division, but not the gaps
		}
	}
	clear(all[len(t.heap):])
	for at := len(t.heap)/2 - 1; at >= 0; at-- {
		t.down(at)
	}
}

func (t *topKeys[K]) up(at int) {
	for at > 0 {
		parent := (at - 1) / 2
		if t.heap[parent].count <= t.heap[at].count {
			return
		}
		t.swap(at, parent)
		at = parent
	}
}

func (t *topKeys[K]) down(at int) {
	for {
		least := at
		for child := 2*at + 1; child <= 2*at+2 && child < len(t.heap); child++ {
			if t.heap[child].count < t.heap[least].count {
				least = child
			}
		}
		if least == at {
			return
		}
		t.swap(at, least)
		at = least
	}
}

func (t *topKeys[K]) swap(a, b int) {
	t.heap[a], t.heap[b] = t.heap[b], t.heap[a]
	t.place[t.heap[a].hash], t.place[t.heap[b].hash] = a, b
}
