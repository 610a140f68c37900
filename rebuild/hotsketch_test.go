package rebuild

import (
	"hash/maphash"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// zipf draws ranks below n, rank r with a probability proportional to (r+1)^-skew. The standard library's knows no skew below 1.
type zipf struct {
	sums []float64
	rand *rand.Rand
}

func newZipf(n int, skew float64, seed uint64) *zipf {
	z := &zipf{sums: make([]float64, n), rand: rand.New(rand.NewPCG(seed, seed))}
	sum := 0.0
	for r := range z.sums {
		sum += math.Pow(float64(r+1), -skew)
		z.sums[r] = sum
	}
	return z
}

func (z *zipf) draw() int {
	r, _ := slices.BinarySearch(z.sums, z.rand.Float64()*z.sums[len(z.sums)-1])
	return min(r, len(z.sums)-1)
}

// Of many keys the sketch names the hundred most frequent, and how often they came, in a space that holds a fiftieth of them, at a strong and at
// a mild skew. Broken by: every key wearing down the bucket that it meets (without the chance of decayed, 97 and 94 of the hundred are found,
// and counts are off by 0.06 and 0.34), or taking it (86 and 82).
func TestSketchFindsTheMostFrequentKeys(t *testing.T) {
	const keys, draws, most = 300_000, 300_000, 100
	for _, c := range []struct {
		skew       float64
		found      int // of the true hundred
		meanMissed float64
	}{{0.99, 98, 0.01}, {0.7, 95, 0.10}} {
		z := newZipf(keys, c.skew, 7)
		s, top := newSketch(leavingWidth, 3), newTopKeys[int](leavingTop)
		exact := make([]int, keys)
		for range draws {
			key := z.draw()
			exact[key]++
			hash := mixed(uint64(key + 1))
			top.offer(topKey[int]{hash: hash, count: s.add(hash), key: key})
		}
		require.LessOrEqual(t, len(top.heap), leavingTop)
		order := make([]int, keys)
		for key := range order {
			order[key] = key
		}
		slices.SortFunc(order, func(a, b int) int { return exact[b] - exact[a] })
		slices.SortFunc(top.heap, func(a, b topKey[int]) int { return int(b.count) - int(a.count) })
		found, missed := 0, 0.0
		for i, k := range top.heap[:most] {
			if exact[k.key] >= exact[order[most-1]] { // keys that tie with the hundredth are as good
				found++
				missed += math.Abs(float64(k.count)-float64(exact[k.key])) / float64(exact[k.key]) / most
			}
			if i < 10 {
				require.Contains(t, order[:12], k.key, "at skew %v, number %d of the sketch", c.skew, i)
			}
		}
		require.GreaterOrEqual(t, found, c.found, "of the true %d at skew %v", most, c.skew)
		require.Less(t, missed, c.meanMissed, "mean relative error of the counts at skew %v", c.skew)
		t.Logf("skew %v: %d of %d found, counts off by %.4f", c.skew, found, most, missed)
	}
}

// Counts that fade keep the order of the keys, and those of which nothing is left are forgotten. Broken by: shift not noting where a key went.
func TestTopKeysFade(t *testing.T) {
	top := newTopKeys[int](100)
	for key := range 100 {
		top.offer(topKey[int]{hash: mixed(uint64(key)), count: uint32(key), key: key})
	}
	top.offer(topKey[int]{hash: mixed(1000), count: 1000, key: 1000}) // takes the place of the smallest
	for range 3 {
		top.halve()
	}
	require.Len(t, top.heap, 93, "of 0..99 and 1000, those of eight and more")
	require.Len(t, top.place, 93)
	for hash, at := range top.place {
		require.Equal(t, hash, top.heap[at].hash)
	}
	require.Equal(t, uint32(1), top.heap[0].count)
	require.Equal(t, uint32(125), top.heap[top.place[mixed(1000)]].count)
	require.NotContains(t, top.place, mixed(7))
	top.offer(topKey[int]{hash: mixed(1000), count: 90, key: 1000})
	require.Equal(t, uint32(125), top.heap[top.place[mixed(1000)]].count, "a smaller estimate says nothing new")
}

// When a stream takes too many samples it takes half of the reads from then on, and the rate that it says of a key is what it was: samples taken
// before count for half, whether they were seen before or are seen only then.
// Broken by: add without t.fade(), or without its look at the sample's own mask, or without halving taken.
func TestStreamSaysTheSameRateWhenItTakesFewerSamples(t *testing.T) {
	var stream hotStream[string]
	stream.init(0, 1000, 1024, 16)
	seed := maphash.MakeSeed()
	hash := maphash.String(seed, "k")
	add := func(n int, mask uint32) {
		for range n {
			stream.add(seed, &hotSample[string]{id: "k", key: "k", mask: mask})
		}
	}
	rate := func() float64 {
		for _, k := range stream.top.heap {
			if k.hash == hash {
				return stream.rate(k.count)
			}
		}
		return 0
	}
	add(999, 0)
	require.Zero(t, stream.mask.Load())
	before := rate()
	require.NotZero(t, before)
	add(1, 0)
	require.EqualValues(t, 1, stream.mask.Load())
	require.InEpsilon(t, before, rate(), 0.01)
	add(400, 1)
	require.EqualValues(t, 1, stream.mask.Load(), "it has room for half as many again")
	require.InEpsilon(t, before*1.8, rate(), 0.01, "each of these stands for two reads")
	stream.endWindow()
	stream.mask.Store(3)
	before = rate()
	add(1000, 0)
	require.InDelta(t, before+stream.rate(250), rate(), stream.rate(80), "of these reads a quarter would have been sampled: 250, six sigma are 80")
}
