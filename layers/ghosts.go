package layers

// ghostList remembers the hashes of the last keys evicted from a region: of half as many keys as the policy has cells. It is a table of
// small buckets whose oldest mark is overwritten, eight bytes a key: 32 bits of the hash and the mark's number.
// A false hit or a mark lost early only moves a cell or the border a little.
type ghostList struct {
	slots []uint64 // mark number in the high half, hash bits in the low; 0: free
	seq   uint32
	reach uint32 // a mark older than this many marks counts no more
	n     int    // marks that count, about
}

const ghostBucket = 4

func (g *ghostList) bucket(hash uint64) []uint64 {
	i := (hash >> 32) & uint64(len(g.slots)/ghostBucket-1) * ghostBucket
	return g.slots[i : i+ghostBucket]
}

// add remembers a hash; cells is how many the policy has now.
func (g *ghostList) add(hash uint64, cells int) {
	reach := max(cells/2, ghostMin)
	if len(g.slots) < reach {
		size := ghostMin
		for size < 2*reach {
			size *= 2
		}
		*g = ghostList{slots: make([]uint64, size)} // what it knew is lost; growing is rare
	}
	g.reach = uint32(reach)
	if g.seq++; g.seq == 0 {
		clear(g.slots)
		g.seq, g.n = 1, 0
	}
	b := g.bucket(hash)
	oldest := 0
	for i, s := range b {
		if s < b[oldest] {
			oldest = i
		}
	}
	b[oldest] = uint64(g.seq)<<32 | uint64(uint32(hash))
	g.n = min(g.n+1, reach)
}

// take reports whether the hash is remembered, and forgets it.
func (g *ghostList) take(hash uint64) bool {
	if len(g.slots) == 0 {
		return false
	}
	for i, s := range g.bucket(hash) {
		if s != 0 && uint32(s) == uint32(hash) {
			g.bucket(hash)[i] = 0
			counts := g.seq-uint32(s>>32) < g.reach
			if counts {
				g.n = max(g.n-1, 0)
			}
			return counts
		}
	}
	return false
}
