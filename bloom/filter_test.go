package bloom

import (
	"fmt"
	"math"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

func newTestFilter(tb testing.TB, capacity uint64) *Filter {
	tb.Helper()
	f, err := New(Options{Capacity: capacity})
	require.NoError(tb, err)
	return f
}

// A new filter contains nothing, whatever is asked.
func TestEmptyFilterContainsNothing(t *testing.T) {
	f := newTestFilter(t, 1000)
	for i := range 10_000 {
		require.False(t, f.MayContain(strconv.Itoa(i)), "key %d", i)
	}
	require.False(t, f.MayContain(""))
	s := f.Stats()
	require.Zero(t, s.Added)
	require.Zero(t, s.Fill)
	require.Zero(t, s.EstimatedRate)
	require.False(t, s.Overfull())
}

// What was added is contained at every size of the recent set, through its growth and several merges, the empty key included.
func TestAddedKeysAreContainedThroughMerges(t *testing.T) {
	for _, capacity := range []uint64{1, 10, 100_000, 3_000_000} {
		f := newTestFilter(t, capacity)
		f.Add("")
		for i := range 60_000 {
			f.Add("key " + strconv.Itoa(i))
			require.True(t, f.MayContain("key "+strconv.Itoa(i)), "capacity %d, key %d just added", capacity, i)
		}
		require.True(t, f.MayContain(""))
		for i := range 60_000 {
			require.True(t, f.MayContain("key "+strconv.Itoa(i)), "capacity %d, key %d", capacity, i)
		}
	}
}

// Never a false negative: readers that check what adders have finished adding see it, while merges go on underneath.
func TestConcurrentReadersSeeEveryFinishedAdd(t *testing.T) {
	const adders, readers, each = 3, 3, 8000
	f := newTestFilter(t, adders*each)
	var done [adders]atomic.Int64 // keys below this were added
	var work sync.WaitGroup
	for a := range adders {
		work.Go(func() {
			for i := range each {
				f.Add(fmt.Sprintf("%d/%d", a, i))
				done[a].Store(int64(i) + 1)
			}
		})
	}
	var missed atomic.Int64
	for r := range readers {
		work.Go(func() {
			for probe := 0; ; probe++ {
				a := (probe + r) % adders
				n := done[a].Load()
				if n > 0 {
					newest, some := n-1, int64(probe*7919)%n
					if !f.MayContain(fmt.Sprintf("%d/%d", a, newest)) || !f.MayContain(fmt.Sprintf("%d/%d", a, some)) {
						missed.Add(1)
					}
				}
				if probe%64 == 0 && done[0].Load()+done[1].Load()+done[2].Load() == adders*each {
					return
				}
			}
		})
	}
	work.Wait()
	require.Zero(t, missed.Load(), "keys that were added and not found")
	require.Zero(t, f.Stats().Recent>>12, "the merges kept the recent set small")
}

// At its capacity a filter lets about its rate of absent keys pass, and says so itself; half as many keys more, and it says that it
// is overfull.
func TestRateAtCapacityIsTheRateAskedFor(t *testing.T) {
	for _, rate := range []float64{0.1, 0.01, 0.001} {
		const n = 200_000
		f, err := New(Options{Capacity: n, FalsePositiveRate: rate})
		require.NoError(t, err)
		for i := range n {
			f.Add("row " + strconv.Itoa(i))
		}
		passed := 0
		const probes = 300_000
		for i := range probes {
			if f.MayContain("none " + strconv.Itoa(i)) {
				passed++
			}
		}
		s := f.Stats()
		measured := float64(passed) / probes
		require.InEpsilon(t, rate, measured, 0.25, "measured rate")
		require.InEpsilon(t, rate, s.EstimatedRate, 0.15, "estimated rate")
		require.InEpsilon(t, n, float64(s.Added), 0.02, "estimated keys")
		require.InDelta(t, 0.5, s.Fill, 0.07, "the number of hashes is rounded up")
		for i := range n / 2 {
			f.Add("more " + strconv.Itoa(i))
		}
		s = f.Stats()
		require.True(t, s.Overfull(), "%+v", s)
		require.Greater(t, s.EstimatedRate, 2*rate)
	}
}

// A filter far past its capacity, every bit set, still answers and still has sane statistics.
func TestFullFilterPassesEverything(t *testing.T) {
	f := newTestFilter(t, 2)
	for i := range 5000 {
		f.Add(strconv.Itoa(i))
	}
	f.merged()
	require.True(t, f.MayContain("never added"))
	s := f.Stats()
	require.InDelta(t, 1, s.Fill, 1e-9)
	require.True(t, s.Overfull())
}

// All mistakes of the options are in one error, and each is named.
func TestNewNamesEveryMistake(t *testing.T) {
	_, err := New(Options{FalsePositiveRate: 1.5})
	require.ErrorContains(t, err, "Capacity")
	require.ErrorContains(t, err, "FalsePositiveRate 1.5")
	for _, rate := range []float64{-0.1, 1, 1e-300, math.NaN(), math.Inf(1)} {
		_, err = New(Options{Capacity: 10, FalsePositiveRate: rate})
		require.ErrorContains(t, err, "FalsePositiveRate", "rate %v", rate)
	}
	for _, capacity := range []uint64{1 << 33, math.MaxUint64} {
		_, err = New(Options{Capacity: capacity})
		require.ErrorContains(t, err, "MiB", "capacity %d", capacity)
	}
	_, err = NewGuard(Options{})
	require.ErrorContains(t, err, "Capacity")
	require.False(t, Options{}.Enabled())
	require.True(t, Options{FalsePositiveRate: 0.1}.Enabled())
}

// Asking allocates nothing, whether the key is in the bits, in the recent set, or absent.
func TestMayContainAllocatesNothing(t *testing.T) {
	f := newTestFilter(t, 1000)
	f.Add("old")
	f.merged()
	f.Add("new")
	key := "a key longer than any buffer of the stack that a conversion might use"
	require.Zero(t, testing.AllocsPerRun(100, func() {
		f.MayContain("old")
		f.MayContain("new")
		f.MayContain(key)
	}))
}
