package bloom

import (
	"math"
	"sync"
	"sync/atomic"

	"github.com/bits-and-blooms/bloom/v3"
)

// A filter's recent additions start in a table of firstSlots and are merged into its bits when they are more than the larger of
// half of that and capacity/mergeFraction. The merge copies all bits, so its cost an addition is mergeFraction·1.2 bytes copied,
// whatever the size, and the table adds at most a seventh to the filter. Chosen by BenchmarkFilterAdd; not tuned further.
const (
	firstSlots    = 2048
	mergeFraction = 256
)

// Filter is a set of keys that answers "perhaps" or "certainly not". It never forgets a key: deleted rows leave with the next
// filter. All methods may be called concurrently; the readers (MayContain) take no lock and allocate nothing.
type Filter struct {
	options Options // with defaults
	seed    seed
	state   atomic.Pointer[state]

	mu sync.Mutex // one writer at a time: held to change the recent set and to move state
}

// state is what readers look at: bits that never change, and what was added after them.
type state struct {
	base   *bloom.BloomFilter
	ones   uint64 // bits set in base
	recent *recent
}

// New returns an empty filter: MayContain is false for every key. The error names all mistakes in o; Capacity 0 is one.
// The memory for o.Capacity keys is taken at once.
func New(o Options) (*Filter, error) {
	o, err := o.check()
	if err != nil {
		return nil, err
	}
	return newFilter(o, newSeed(), o.bits(), 0), nil
}

// newFilter takes over bits, of which ones are set: nobody may change them any more.
func newFilter(o Options, s seed, bits *bloom.BloomFilter, ones uint64) *Filter {
	f := &Filter{options: o, seed: s}
	f.state.Store(&state{base: bits, ones: ones, recent: newRecent(firstSlots)})
	return f
}

// MayContain reports whether key was perhaps added: false is certain, for every Add that returned before; true is wrong for about
// FalsePositiveRate of the keys that were not. It takes no lock and allocates nothing.
func (f *Filter) MayContain(key string) bool {
	h := f.seed.of(key)
	s := f.state.Load()
	return s.has(h)
}

func (s *state) has(h uint64) bool { return allSet(s.base, h) || s.recent.has(h) }

// allSet reports whether all bits of the key with that hash are set. What is absent leaves at the first that is not: the second, on average.
func allSet(b *bloom.BloomFilter, h uint64) bool {
	size, set := uint64(b.Cap()), b.BitSet()
	for i := range int(b.K()) { //nolint:gosec // at most maxHashes
		if !set.Test(uint(place(h, i, size))) {
			return false
		}
	}
	return true
}

// setAll sets all bits of the key with that hash.
func setAll(b *bloom.BloomFilter, h uint64) {
	size, set := uint64(b.Cap()), b.BitSet()
	for i := range int(b.K()) { //nolint:gosec // at most maxHashes
		set.Set(uint(place(h, i, size)))
	}
}

// Add puts key in; every MayContain that begins after it returned is true for it. Now and then it merges what was added into a
// copy of the filter's bits, which takes as long as copying them: about a millisecond for a million keys.
func (f *Filter) Add(key string) {
	h := f.seed.of(key)
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.state.Load()
	if s.has(h) {
		return // what may already be contained needs no room
	}
	if s.recent.full() {
		s = f.makeRoomLocked(s)
	}
	s.recent.add(h)
}

// makeRoomLocked publishes a state with room for more additions: a larger table while the additions are few for this filter, else
// fresh bits with all of them.
//
//  1. A reader loads the older state. 2. A key is added to its table, or only to the newer one, and the newer state is published.
//  3. The reader finds all that had been added when it loaded; the later key's Add had not returned when the reader began.
func (f *Filter) makeRoomLocked(s *state) *state {
	if slots := len(s.recent.slots); slots/2 < int(f.options.Capacity/mergeFraction) {
		next := &state{base: s.base, ones: s.ones, recent: newRecent(slots * 4)}
		s.recent.each(next.recent.add)
		f.state.Store(next)
		return next
	}
	return f.mergeLocked(s)
}

func (f *Filter) mergeLocked(s *state) *state {
	base := s.base.Copy()
	s.recent.each(func(h uint64) { setAll(base, h) })
	next := &state{base: base, ones: uint64(base.BitSet().Count()), recent: newRecent(firstSlots)}
	f.state.Store(next)
	return next
}

// merged returns bits that hold everything added before the call; they never change.
func (f *Filter) merged() *state {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.state.Load()
	if s.recent.n.Load() > 0 {
		s = f.mergeLocked(s)
	}
	return s
}

// Stats are a filter's size and how full it is.
type Stats struct {
	Capacity      uint64  // keys it was made for
	Added         uint64  // different keys added, as the set bits tell it: within about a percent while Fill is below 0.9
	Fill          float64 // fraction of its bits that are set, [0,1]; about 0.5 at Capacity
	EstimatedRate float64 // fraction of absent keys that pass now, [0,1]
	Bytes         uint64  // of the bits and the table of recent additions
	Recent        uint64  // additions not yet merged
}

// Overfull reports whether more keys were added than the filter was made for: its rate is above what was asked for, and a rebuild
// with a larger Capacity is due.
func (s Stats) Overfull() bool { return s.Added > s.Capacity }

// Stats costs no more than a few loads.
func (f *Filter) Stats() Stats {
	s := f.state.Load()
	m, k, recent := float64(s.base.Cap()), float64(s.base.K()), s.recent.n.Load()
	empty := (1 - float64(s.ones)/m) * math.Exp(-k*float64(recent)/m) // each addition sets k of m bits
	fill := 1 - empty
	return Stats{
		Capacity:      f.options.Capacity,
		Added:         estimatedKeys(empty, m, k),
		Fill:          fill,
		EstimatedRate: math.Pow(fill, k),
		Bytes:         uint64(len(s.base.BitSet().Words())+len(s.recent.slots)) * 8,
		Recent:        uint64(recent),
	}
}

// estimatedKeys is how many keys were added to m bits, k of them each, if that fraction is empty (Swamidass and Baldi, "Mathematical correction for
// fingerprint similarity measures to improve chemical retrieval", 2007). A full filter cannot tell: as if half a bit were left.
func estimatedKeys(empty, m, k float64) uint64 {
	return uint64(math.Round(-m / k * math.Log(max(empty, 0.5/m))))
}

// builder is a filter that nobody reads yet: additions go straight into its bits. Its methods may be called concurrently.
type builder struct {
	options Options
	seed    seed

	mu   sync.Mutex
	bits *bloom.BloomFilter
}

func newBuilder(o Options) *builder { return &builder{options: o, seed: newSeed(), bits: o.bits()} }

// Add puts key in.
func (b *builder) Add(key string) {
	h := b.seed.of(key)
	b.mu.Lock()
	defer b.mu.Unlock()
	setAll(b.bits, h)
}

// filter ends the building: b must not be added to any more.
func (b *builder) filter() *Filter {
	b.mu.Lock()
	defer b.mu.Unlock()
	return newFilter(b.options, b.seed, b.bits, uint64(b.bits.BitSet().Count()))
}
