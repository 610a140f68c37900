package bloom

import (
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/bits-and-blooms/bloom/v3"
)

// benchRows is the size at which DESIGN §9 states its budget: the bits (12 MB) lie outside the processor's near caches, which is
// what a probe costs there. A small filter would show hashing alone.
const benchRows = 10_000_000

// benchKeys are asked in an order that the memory's prefetching cannot guess. Making the key is not measured.
func benchKeys(prefix string) []string {
	keys := make([]string, 1<<20)
	for i := range keys {
		keys[i] = prefix + strconv.Itoa(i*7919%benchRows)
	}
	return keys
}

// BenchmarkFilterCheck compares MayContain with the library's own Test in one run: keys that are in, keys that are not, and the same
// beside a recent set that is half full.
func BenchmarkFilterCheck(b *testing.B) {
	o := Options{Capacity: benchRows, FalsePositiveRate: defaultRate}
	build := newBuilder(o)
	library := bloom.NewWithEstimates(benchRows, defaultRate)
	for i := range benchRows {
		key := "product:" + strconv.Itoa(i)
		build.Add(key)
		library.AddString(key)
	}
	ours := build.filter()
	in, out := benchKeys("product:"), benchKeys("absentx:")
	check := func(name string, keys []string, has func(string) bool) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			found := 0
			for i := 0; b.Loop(); i++ {
				if has(keys[i&(len(keys)-1)]) {
					found++
				}
			}
			if found < 0 {
				b.Fatal("the compiler must not leave the probe out")
			}
		})
	}
	for round := range 3 {
		check(fmt.Sprintf("library/hit/%d", round), in, library.TestString)
		check(fmt.Sprintf("ours/hit/%d", round), in, ours.MayContain)
		check(fmt.Sprintf("library/miss/%d", round), out, library.TestString)
		check(fmt.Sprintf("ours/miss/%d", round), out, ours.MayContain)
	}
	for i := range 20_000 {
		ours.Add("new:" + strconv.Itoa(i))
	}
	check("ours/miss+recent", out, ours.MayContain)
}

// BenchmarkFilterAdd is the cost of an addition with its share of the merges, at sizes whose copy takes from microseconds to
// milliseconds.
func BenchmarkFilterAdd(b *testing.B) {
	for _, capacity := range []uint64{100_000, 1_000_000, benchRows} {
		b.Run(strconv.FormatUint(capacity, 10), func(b *testing.B) {
			f, err := New(Options{Capacity: capacity})
			if err != nil {
				b.Fatal(err)
			}
			var n atomic.Int64
			b.ReportAllocs()
			for b.Loop() {
				f.Add(strconv.FormatInt(n.Add(1)%int64(capacity), 10))
			}
		})
	}
}
