package layers

const (
	// frequencyMost is where a counter of four bits ends.
	frequencyMost = 15
	// frequencyCells is how many cells of the policy a block of the sketch is for: 16 bytes each. With half of that a loop through ten times as
	// many keys as there are cells blurs the counts. Chosen by simulations over public traces, as frequencyAge is.
	frequencyCells = 4
	// frequencyAge is after how many counted requests a cell all counts are halved.
	frequencyAge = 8
)

// frequencySketch estimates how often keys were asked for lately, those without a cell too: a count-min sketch of four-bit counters, four a
// hash, all in one block. An estimate is never below the count, and seldom above. It is nil, and counts nothing, until fit is called.
// Guarded by the policy's lock.
type frequencySketch struct {
	blocks []frequencyBlock
	added  int // since counts were halved last
}

// frequencyBlock is a line of the processor's cache: four rows of 32 counters, 16 in a word.
type frequencyBlock [8]uint64

// fit makes the sketch large enough for so many cells. A sketch that grows knows of each key what it knew, for a block's keys all move to
// the two that come from it.
func (f *frequencySketch) fit(cells int) {
	if f.blocks == nil {
		f.blocks = make([]frequencyBlock, max(cells, ghostMin)/frequencyCells+1)
	}
	for cells > len(f.blocks)*frequencyCells*5/4 {
		wider := make([]frequencyBlock, 2*len(f.blocks))
		for i := range wider {
			wider[i] = f.blocks[i/2]
		}
		f.blocks = wider
	}
}

// counters are the hash's block and its counter's place in each row: the word, and the bit where it begins.
func (f *frequencySketch) counters(hash uint64) (b *frequencyBlock, word [4]int, bit [4]int) {
	b = &f.blocks[hash>>32*uint64(len(f.blocks))>>32]
	for row := range word {
		n := int(hash >> (8 * row) & 31)
		word[row], bit[row] = 2*row+n>>4, n&15*4
	}
	return b, word, bit
}

// estimate returns how often the hash was counted, at most frequencyMost.
func (f *frequencySketch) estimate(hash uint64) uint32 {
	if f.blocks == nil {
		return 0
	}
	b, word, bit := f.counters(hash)
	least := uint64(frequencyMost)
	for row := range word {
		least = min(least, b[word[row]]>>bit[row]&frequencyMost)
	}
	return uint32(least)
}

// count counts n requests for the hash. Only the least of its counters are raised: the others are other keys'.
func (f *frequencySketch) count(hash uint64, n uint32) {
	if f.blocks == nil {
		return
	}
	b, word, bit := f.counters(hash)
	for ; n > 0; n-- {
		least := uint64(f.estimate(hash))
		if least == frequencyMost {
			return
		}
		for row := range word {
			if b[word[row]]>>bit[row]&frequencyMost == least {
				b[word[row]] += 1 << bit[row]
			}
		}
		f.added++
	}
	if f.added >= frequencyAge*frequencyCells*len(f.blocks) {
		f.halve()
	}
}

// halve lets what was asked for long ago count less.
func (f *frequencySketch) halve() {
	for i := range f.blocks {
		for w := range f.blocks[i] {
			f.blocks[i][w] = f.blocks[i][w] >> 1 & 0x7777777777777777
		}
	}
	f.added /= 2
}
