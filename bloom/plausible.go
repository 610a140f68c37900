package bloom

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// Before a filter is believed, sampleSize rows of its scan and all announcements within Reach are tried on it: they must pass. Chosen: it costs a
// few milliseconds, and a fault that hides one row in a thousand escapes it once in 20,000 times.
const sampleSize = 10_000

// sample is a uniform choice of the rows of a scan, as far as they were read here (algorithm R of Vitter, "Random sampling with a reservoir", 1985).
type sample []string

// add offers the n-th row.
func (s *sample) add(key string, n uint64) {
	if len(*s) < sampleSize {
		*s = append(*s, key)
	} else if i := rand.Uint64N(n); i < sampleSize { //nolint:gosec // a sample; nothing secret depends on it
		(*s)[i] = key
	}
}

// plausible looks whether the filter that was built can be right: the number of its rows, and keys that it must contain.
func (b *snapshotBuild) plausible() error {
	if err := b.counted(); err != nil {
		return err
	}
	missing := 0
	try := func(key string) {
		if !b.next.filter.MayContain(key) {
			missing++
		}
	}
	for _, key := range b.sample {
		try(key)
	}
	for _, key := range b.guard.recent() {
		try(key)
	}
	if missing > 0 {
		return fmt.Errorf("%w: it lacks %d of its own rows", ErrImplausible, missing)
	}
	return nil
}

// recent returns every key announced here within Reach.
func (g *Guard) recent() (keys []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.log.recall(time.Now(), func(key string) { keys = append(keys, key) })
	return keys
}
