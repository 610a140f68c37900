package bench

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"

	bits "github.com/bits-and-blooms/bloom/v3"

	"github.com/tiercache/tiercache/bloom"
)

// The filter's check. 10 million keys, so that the bits (12 MB) do not fit into the processor's nearer caches: that is where the
// time goes, and where a small filter would flatter whoever adds work around the same check. Keys present and absent are measured
// apart: an absent one leaves at the first missing bit, after two probes on average, a present one pays for all of them.
//
// Measured are the filter's check, and the guard's, which besides looks at the clock before it calls a key absent: whether what it knows of the
// announcements is young enough. In a loop that costs more than the clock alone: reading it waits for all loads under way (the fence before
// RDTSC), so one check's misses of the cache do not overlap with the next one's, as they do in the others.
//
// What misleads: the filters are read in turns, so each finds another's bits in the cache; filters of 12 MB are readers of one memory bus, as
// in a process that does other work.

func filterCheck(ctx context.Context, e *env) ([]Row, error) {
	n := pick(e, 10_000_000, 1_000_000)
	own := bits.NewWithEstimates(uint(n), 0.01)
	for i := range n {
		own.AddString(filterKey(i))
	}
	o := bloom.Options{Capacity: uint64(n), FalsePositiveRate: 0.01}
	filter, err := bloom.New(o)
	if err != nil {
		return nil, err
	}
	for i := range n {
		filter.Add(filterKey(i))
	}
	guard, err := bloom.NewGuard(o)
	if err != nil {
		return nil, err
	}
	if _, err := guard.Build(ctx, filterKeys(n), bloom.BuildOptions{}, nil); err != nil {
		return nil, err
	}

	present, absent := make([]string, drawn), make([]string, drawn)
	step := max(n/drawn, 1)
	passed, passedOwn := 0, 0
	for i := range drawn {
		present[i], absent[i] = filterKey(i*step%n), filterKey(n+i)
		if guard.Absent(present[i]) {
			return nil, errors.New("the filter calls a key absent that it was built from")
		}
		if !guard.Absent(absent[i]) {
			passed++
		}
		if own.TestString(absent[i]) {
			passedOwn++
		}
	}
	var rows []Row
	for _, which := range []struct {
		name string
		keys []string
	}{{"absent", absent}, {"present", present}} {
		found := 0 // so that no call is dropped
		all, err := interleave(ctx, e.plan(1, 512),
			reading("tiercache's filter", which.keys, func(k string) {
				if !filter.MayContain(k) {
					found++
				}
			}),
			reading("tiercache's guard", which.keys, func(k string) {
				if guard.Absent(k) {
					found++
				}
			}),
			reading("bits-and-blooms", which.keys, func(k string) {
				if !own.TestString(k) {
					found++
				}
			}))
		if err != nil {
			return nil, err
		}
		own := all[len(all)-1]
		for i, what := range []string{"filter", "guard, with its look at the clock"} {
			rows = append(rows, ratioRow(which.name+" keys, "+what+": × bits-and-blooms Test", over(all[i], own), atMost(1.35),
				fmt.Sprintf("%.0f ns against %.0f, %d keys", median(all[i].ns), median(own.ns), n)), allocsRow(which.name+" keys, "+what, all[i]))
		}
	}
	rate := func(n int) float64 { return 100 * float64(n) / drawn }
	return append(rows, valueRow("absent keys that pass", rate(passed), "%", atMost(1.1), fmt.Sprintf("%.2g %% of bits-and-blooms' own; 1 %% asked for", rate(passedOwn)))), nil
}

// filterKey is a key as random as the filter's hash likes: the number's bits mixed (the finaliser of splitmix64).
func filterKey(i int) string {
	x := uint64(i) + 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return strconv.FormatUint(x^x>>31, 16)
}

func filterKeys(n int) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for i := range n {
			if !yield(filterKey(i), nil) {
				return
			}
		}
	}
}
