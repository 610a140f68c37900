package layers

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Property: an estimate is never below the count since the last halving, and seldom above with twice as many keys
// as the sketch is for. It saturates, and a sketch that grows knows what it knew.
// Broken by: `f.blocks[i/2]` in fit (i alone: half of the keys are forgotten).
func TestFrequenciesAreNeverUnderestimated(t *testing.T) {
	const cells = 1000
	var f frequencySketch
	f.count(spread(1), 3)
	require.Zero(t, f.estimate(spread(1)), "nothing is counted before it is made")
	f.fit(cells)
	count := func(key int) uint32 { return uint32(1 + key%5) }
	for key := range 2 * cells {
		f.count(spread(key), count(key))
	}
	check := func() (over int) {
		for key := range 2 * cells {
			got := f.estimate(spread(key))
			require.GreaterOrEqual(t, got, count(key), "key %d", key)
			if got > count(key) {
				over++
			}
		}
		return over
	}
	over := check()
	require.Less(t, over, 20, "overestimated")
	before := len(f.blocks)
	f.fit(2 * cells)
	require.Len(t, f.blocks, 2*before)
	check()
	f.count(spread(7), 100)
	require.EqualValues(t, frequencyMost, f.estimate(spread(7)))
}

// Property: what was asked for long ago counts less and less: after eight requests a cell every count is halved.
// Broken by: f.halve() in count.
func TestFrequenciesAge(t *testing.T) {
	const cells = 1000
	var f frequencySketch
	f.fit(cells)
	f.count(spread(-1), frequencyMost)
	for n := range 3 * frequencyAge * cells {
		f.count(spread(n), 1)
	}
	require.Less(t, f.estimate(spread(-1)), uint32(frequencyMost/2))
	require.LessOrEqual(t, f.added, frequencyAge*frequencyCells*len(f.blocks))
}
