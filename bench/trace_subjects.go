package bench

import (
	"container/heap"
	"math"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/ristretto/v2"
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/maypok86/otter/v2"

	"github.com/tiercache/tiercache/layers"
)

// keeper is a cache that a trace is played on. ask reports whether the key was there, and puts it if it was not.
type keeper struct {
	ask  func(key int64) bool
	stop func()
}

// keepers are the subjects, each a function that makes one for so many entries of equal size.
var keepers = []struct {
	name string
	make func(entries int) (keeper, error)
}{
	{"tiercache", keepLocal},
	{"ristretto", keepRistretto},
	{"otter", keepOtter},
	{"LRU", keepLRU},
}

// localBytes is what the local tier counts for an entry here: its own 100 bytes and a value of 100.
const localBytes = 200

// keepLocal plays on the local tier as a cache uses it. A put that is refused because the tier cannot carry on as fast as a loop without a
// source between misses puts is tried again: with a source there is time.
func keepLocal(entries int) (keeper, error) {
	m, err := layers.NewMemory(layers.MemoryOptions{MaxBytes: int64(entries) * localBytes})
	if err != nil {
		return keeper{}, err
	}
	l, err := layers.NewLocal(m, layers.LocalOptions[int64, int64]{
		Name: "trace", TTL: 24 * time.Hour, Direct: true,
		String: func(k int64) string { return strconv.FormatInt(k, 10) },
		Parse:  func(s string) (int64, bool) { k, err := strconv.ParseInt(s, 10, 64); return k, err == nil },
	})
	if err != nil {
		return keeper{}, err
	}
	now := time.Now()
	e := layers.Entry[int64]{Born: now, Soft: now.Add(24 * time.Hour), Hard: now.Add(24 * time.Hour), Size: localBytes - 100}
	return keeper{func(key int64) bool {
		mark := l.Mark(key)
		if _, st := l.Get(key); st == layers.Hit {
			return true
		}
		for tries := 0; !l.Put(key, e, mark) && tries < 10_000; tries++ {
			time.Sleep(10 * time.Microsecond)
		}
		return false
	}, func() { l.Close(); _ = m.Close() }}, nil
}

// keepRistretto plays on ristretto as it is, as its documentation advises to set it up.
func keepRistretto(entries int) (keeper, error) {
	c, err := ristretto.NewCache(&ristretto.Config[int64, int64]{NumCounters: int64(10 * entries), MaxCost: int64(entries), BufferItems: 64, IgnoreInternalCost: true})
	if err != nil {
		return keeper{}, err
	}
	return keeper{func(key int64) bool {
		if _, ok := c.Get(key); ok {
			return true
		}
		c.Set(key, key, 1)
		return false
	}, c.Close}, nil
}

// keepOtter lets otter do its upkeep in the calling goroutine: on one of its own it evicts late in a loop like this, and answers more than its
// size allows, on a loop over twice its size more than the optimum.
func keepOtter(entries int) (keeper, error) {
	c, err := otter.New(&otter.Options[int64, int64]{MaximumSize: entries, Executor: func(f func()) { f() }})
	if err != nil {
		return keeper{}, err
	}
	return keeper{func(key int64) bool {
		if _, ok := c.GetIfPresent(key); ok {
			return true
		}
		c.Set(key, key)
		return false
	}, func() { c.StopAllGoroutines() }}, nil
}

func keepLRU(entries int) (keeper, error) {
	c, err := lru.New[int64, int64](entries)
	if err != nil {
		return keeper{}, err
	}
	return keeper{func(key int64) bool {
		if _, ok := c.Get(key); ok {
			return true
		}
		c.Add(key, key)
		return false
	}, func() {}}, nil
}

// play asks for the keys in their order and returns the hit ratio in percent. Several workers take short runs of the order by turns, so that
// each key is asked for at about its place.
func play(k keeper, keys []int64, workers int) float64 {
	const run = 16
	var next, hits atomic.Int64
	var done sync.WaitGroup
	for range workers {
		done.Go(func() {
			n := int64(0)
			for {
				from := int(next.Add(run)) - run
				if from >= len(keys) {
					break
				}
				for _, key := range keys[from:min(from+run, len(keys))] {
					if k.ask(key) {
						n++
					}
				}
			}
			hits.Add(n)
		})
	}
	done.Wait()
	return 100 * float64(hits.Load()) / float64(len(keys))
}

// optimum is the hit ratio in percent of Belady's policy, which knows what comes and evicts the key whose next request is furthest away.
// It may refuse to keep a key.
func optimum(keys []int64, entries int) float64 {
	next := make([]int, len(keys)) // where the key of a request is asked for again
	last := map[int64]int{}
	for i := len(keys) - 1; i >= 0; i-- {
		next[i] = math.MaxInt
		if at, again := last[keys[i]]; again {
			next[i] = at
		}
		last[keys[i]] = i
	}
	kept := map[int64]int{} // key: its next request
	var order furthest      // may hold places that are past, of keys that are kept for a later one
	hits := 0
	for i, key := range keys {
		if _, hit := kept[key]; hit {
			hits++
		} else if next[i] == math.MaxInt {
			continue
		}
		kept[key] = next[i]
		heap.Push(&order, place{next[i], key})
		for len(kept) > entries {
			p := heap.Pop(&order).(place)
			if at, ok := kept[p.key]; ok && at == p.at {
				delete(kept, p.key)
			}
		}
	}
	return 100 * float64(hits) / float64(len(keys))
}

type place struct {
	at  int
	key int64
}

// furthest is a heap of places, the furthest first.
type furthest []place

func (f furthest) Len() int           { return len(f) }
func (f furthest) Less(i, j int) bool { return f[i].at > f[j].at }
func (f furthest) Swap(i, j int)      { f[i], f[j] = f[j], f[i] }
func (f *furthest) Push(p any)        { *f = append(*f, p.(place)) }
func (f *furthest) Pop() any {
	p := (*f)[len(*f)-1]
	*f = (*f)[:len(*f)-1]
	return p
}
