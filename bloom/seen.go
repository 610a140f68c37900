package bloom

import (
	"errors"
	"fmt"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"
)

// SeenOptions say how much a Seen remembers. Zero means the default; negative is an error.
type SeenOptions struct {
	Keys int           // of one generation, two of which are kept; 1,048,576
	Bits int           // of memory for each key of a generation; 24: see Seen for what they buy; at most 256
	For  time.Duration // a key is forgotten after once to twice this long; 0: only when others take its place
}

// defaultSeenKeys are as many absent keys as a flood of 17,000 a second brings in a minute: two generations take 6.7 MB. leastSeenKeys are
// those of the first generation. Chosen; not tuned.
const (
	defaultSeenKeys = 1 << 20
	defaultSeenBits = 24
	leastSeenKeys   = 1 << 12
)

// Seen remembers which keys it was told of lately, in two generations of bits: the new one takes what is added, the old one is only
// asked, and when the new one is full, or as old as SeenOptions.For, it takes the old one's place. So between one and two generations are
// remembered, and memory is bounded whatever comes. It is small while little is added: a generation has twice the keys of the one before,
// up to SeenOptions.Keys.
//
// It says of some keys that it was told of them though it was not: with two full generations of 11 bits a key of about one in seventy, of 24 bits of
// one in five thousand, of 64 bits of one in five hundred thousand. Nobody outside can know of which: its hash has a seed of its own. All methods may be called concurrently; none blocks but where generations change.
type Seen struct {
	seed maphash.Seed
	most int // keys of a generation
	each int // keys of a block
	life time.Duration

	mu  sync.Mutex // held while generations change
	now atomic.Pointer[generations]
}

// generations are replaced as a whole, so that who reads sees two that belong together.
type generations struct{ young, old *generation }

// generation is a split-block Bloom filter: a key's eight bits, one in each word, lie in one block of 32 bytes, half a cache line.
type generation struct {
	born   time.Time
	most   int64
	added  atomic.Int64 // keys that were new to it
	blocks [][blockWords]uint32
}

const (
	blockWords = 8
	blockBits  = blockWords * 32
)

// salts choose a key's bit in each word of its block, as in the split-block filter of Apache Parquet's format.
var salts = [blockWords]uint32{0x47b6137b, 0x44974d91, 0x8824ad5b, 0xa2b7289d, 0x705495c7, 0x2df1424b, 0x9efc4947, 0x5c6bfb31}

// NewSeen returns a Seen that knows no key. It takes no memory for keys before the first is added.
func NewSeen(o SeenOptions) (*Seen, error) {
	var errs []error
	if o.Keys < 0 {
		errs = append(errs, fmt.Errorf("bloom: SeenOptions.Keys is negative: %d", o.Keys))
	}
	if o.Bits < 0 || o.Bits > blockBits {
		errs = append(errs, fmt.Errorf("bloom: SeenOptions.Bits is %d, it must be 1 to %d", o.Bits, blockBits))
	}
	if o.For < 0 {
		errs = append(errs, fmt.Errorf("bloom: SeenOptions.For is negative: %v", o.For))
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	if o.Keys == 0 {
		o.Keys = defaultSeenKeys
	}
	if o.Bits == 0 {
		o.Bits = defaultSeenBits
	}
	return &Seen{seed: maphash.MakeSeed(), most: o.Keys, each: blockBits / o.Bits, life: o.For}, nil
}

// Add remembers key and reports whether it was remembered already.
func (r *Seen) Add(key string) (known bool) {
	g := r.current()
	if g == nil || g.young.over(r.life) {
		g = r.turn()
	}
	hash := maphash.String(r.seed, key)
	if g.young.has(hash) {
		return true
	}
	known = g.old != nil && g.old.has(hash)
	g.young.add(hash)
	return known
}

// Has reports whether key is remembered.
func (r *Seen) Has(key string) bool {
	g := r.current()
	if g == nil {
		return false
	}
	hash := maphash.String(r.seed, key)
	return g.young.has(hash) || g.old != nil && g.old.has(hash)
}

// current returns the generations that may still be asked, nil if there are none: without Add nothing turns them.
func (r *Seen) current() *generations {
	g := r.now.Load()
	if g == nil || r.life == 0 {
		return g
	}
	switch age := time.Since(g.young.born); {
	case age >= 2*r.life:
		return nil
	case age >= r.life:
		return &generations{young: g.young}
	}
	return g
}

// turn begins a new generation unless another caller just did.
func (r *Seen) turn() *generations {
	r.mu.Lock()
	defer r.mu.Unlock()
	last := r.now.Load()
	g := r.current()
	if g != nil && !g.young.over(r.life) {
		return g
	}
	next := &generations{}
	keys := min(leastSeenKeys, r.most)
	if last != nil {
		keys = min(int(last.young.most), r.most)
		if last.young.full() {
			keys = min(2*keys, r.most)
		}
	}
	if g != nil {
		next.old = g.young
	}
	next.young = newGeneration(keys, r.each)
	r.now.Store(next)
	return next
}

// newGeneration returns one for so many keys, so many in a block.
func newGeneration(keys, each int) *generation {
	return &generation{born: time.Now(), most: int64(keys), blocks: make([][blockWords]uint32, (keys+each-1)/each)}
}

func (g *generation) full() bool { return g.added.Load() >= g.most }

func (g *generation) over(life time.Duration) bool {
	return g.full() || life > 0 && time.Since(g.born) >= life
}

// block returns the block of a hash, by its upper half; the lower half chooses the bits.
func (g *generation) block(hash uint64) *[blockWords]uint32 {
	return &g.blocks[(hash>>32)*uint64(len(g.blocks))>>32]
}

func (g *generation) has(hash uint64) bool {
	block := g.block(hash)
	for i := range block {
		bit := bitOf(hash, i)
		if atomic.LoadUint32(&block[i])&bit == 0 {
			return false
		}
	}
	return true
}

func (g *generation) add(hash uint64) {
	block := g.block(hash)
	for i := range block {
		atomic.OrUint32(&block[i], bitOf(hash, i))
	}
	g.added.Add(1)
}

func bitOf(hash uint64, word int) uint32 {
	return 1 << (uint32(hash) * salts[word] >> 27) //nolint:gosec // the lower half is meant
}
