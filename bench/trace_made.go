package bench

import "math/rand/v2"

// madeTraces are requests of the four kinds that policies are known to differ on, for where no recorded ones are at hand. They say that the
// suite works and what a policy does on the pure kind; what services ask for is a mixture that only a recorded trace has.
func madeTraces(requests int) []trace {
	r := rand.New(rand.NewPCG(1, 2))
	zipf := rand.NewZipf(r, 1.1, 1, uint64(requests/10))
	keys := int64(requests / 20)
	traces := []trace{{name: "made: zipf"}, {name: "made: loop"}, {name: "made: zipf with scans"}, {name: "made: shift"}}
	for i := range int64(requests) {
		hot := int64(zipf.Uint64()) //nolint:gosec // small
		scanned := hot
		if i%(4*keys) >= 3*keys { // every fourth stretch is a scan of keys that never come back
			scanned = 1<<40 + i
		}
		for t, key := range []int64{hot, i % keys, scanned, hot + i/(2*keys)*(keys/2)} { // what is hot moves on
			traces[t].keys = append(traces[t].keys, key)
		}
	}
	return traces
}
