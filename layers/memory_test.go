package layers

import (
	"math"
	"math/rand"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// newMemory makes a Memory that ends with the test.
func newMemory(tb testing.TB, maxBytes int64) *Memory {
	tb.Helper()
	m, err := NewMemory(MemoryOptions{MaxBytes: maxBytes})
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = m.Close() })
	return m
}

// newInts opens a cache of int64 keys and values on m.
func newInts(tb testing.TB, m *Memory, name string) *Local[int64, int64] {
	tb.Helper()
	l, err := NewLocal(m, intOptions(name))
	require.NoError(tb, err)
	return l
}

func intOptions(name string) LocalOptions[int64, int64] {
	return LocalOptions[int64, int64]{
		Name: name, TTL: time.Hour, Direct: true,
		String: func(k int64) string { return strconv.FormatInt(k, 10) },
		Parse: func(s string) (int64, bool) {
			k, err := strconv.ParseInt(s, 10, 64)
			return k, err == nil
		},
	}
}

// lasting is an entry that is fresh for an hour.
func lasting[V any](v V) Entry[V] {
	now := time.Now()
	return Entry[V]{Value: v, Born: now, Soft: now.Add(time.Hour), Hard: now.Add(2 * time.Hour)}
}

// settle waits until the flusher has carried everything to ristretto.
func settle(m *Memory) {
	for i := range m.stripes {
		s := &m.stripes[i]
		for {
			s.mu.Lock()
			n := len(s.overlay)
			s.mu.Unlock()
			if n == 0 {
				break
			}
			m.kick()
			runtime.Gosched()
		}
	}
}

// holdFlusher keeps the flusher from carrying anything on until release, which may be called again: it looks at the stripes in order, and
// the first is locked. Keys of the first stripe cannot be used meanwhile. It returns once the flusher has come there: one that was past the
// first stripe already would carry on what the test means to keep. The overlay must have been settled.
func holdFlusher(m *Memory) (release func()) {
	m.stripes[0].mu.Lock()
	m.kick()
	for m.dirty.Load() { // until it begins to look
		runtime.Gosched()
	}
	return sync.OnceFunc(m.stripes[0].mu.Unlock)
}

// keysOf returns n keys of a stripe.
func keysOf(l *Local[int64, int64], stripe, n int) (keys []int64) {
	for k := int64(0); len(keys) < n; k++ {
		if h, _ := l.hash(k); l.mem.stripe(h) == &l.mem.stripes[stripe] {
			keys = append(keys, k)
		}
	}
	return keys
}

// mustPut puts, and waits for the flusher where the overlay is full.
func mustPut[K comparable, V any](tb testing.TB, l *Local[K, V], key K, v V) {
	tb.Helper()
	for i := 0; !l.Put(key, lasting(v), l.Mark(key)); i++ {
		require.Less(tb, i, 1_000_000, "put of %v is refused for good", key)
		settle(l.mem)
	}
}

// Property: Close waits for a reader that may be inside ristretto, and lets none in afterwards.
func TestCloseWaitsForReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, err := NewMemory(MemoryOptions{})
		require.NoError(t, err)
		n := m.readers.here()
		n.Add(1)
		var ended atomic.Bool
		go func() {
			_ = m.Close()
			ended.Store(true)
		}()
		time.Sleep(time.Second)
		require.False(t, ended.Load())
		n.Add(-1)
		time.Sleep(time.Second)
		require.True(t, ended.Load())
	})
}

// Property: the bytes counted never exceed the bound, with 8 goroutines putting new entries and updates of very different sizes.
func TestBytesStayBounded(t *testing.T) {
	const bound = 1 << 18
	m := newMemory(t, bound)
	l := newInts(t, m, "a")
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewSource(int64(g)))
			for range 5_000 {
				k := r.Int63n(500)
				e := lasting(k)
				e.Size = 1 + r.Intn(bound/entryShare-2*cellBytes)
				l.Put(k, e, l.Mark(k))
				if st := m.Stats(); st.Bytes > bound {
					t.Errorf("%d bytes of %d", st.Bytes, bound)
				}
			}
		})
	}
	wg.Wait()
	settle(m)
	checkAccounts(t, m)
}

// checkAccounts compares what the policy counts with what ristretto has.
func checkAccounts(t *testing.T, m *Memory) {
	t.Helper()
	all, regions := RegionStats{}, map[uint32]*RegionStats{stateWindow: {}, stateMain: {}, stateAside: {}, statePinned: {}}
	m.store.IterValues(func(c *cellHead) bool {
		require.True(t, c.alive(), "ristretto has a dead cell")
		for _, r := range []*RegionStats{&all, regions[c.region()]} {
			r.Bytes += uint64(c.bytes)
			r.Entries++
		}
		return false
	})
	st := m.Stats()
	require.Equal(t, RegionStats{Bytes: st.Bytes, Entries: st.Entries}, all)
	for region, counted := range map[uint32]RegionStats{stateWindow: st.Window, stateMain: st.Main, stateAside: st.Absent, statePinned: st.Pinned} {
		require.Equal(t, RegionStats{Bytes: counted.Bytes, Entries: counted.Entries}, *regions[region], "region %b", region)
	}
	require.Zero(t, m.held.Load(), "dead cells still counted as held")
}

// Property: an update larger than an eighth of the Memory is refused, counted, and takes the older copy with it.
func TestHugeUpdateIsRefused(t *testing.T) {
	m := newMemory(t, 1<<16)
	l := newInts(t, m, "a")
	mustPut(t, l, 1, 1)
	e := lasting[int64](2)
	e.Size = 1<<13 + 1
	require.False(t, l.Put(1, e, l.Mark(1)))
	_, st := l.Get(1)
	require.Equal(t, Miss, st)
	require.EqualValues(t, 1, m.Stats().Refused)
	require.Zero(t, m.Stats().Bytes)
}

// Property (P11): whatever SizeOf and the measure of values say, an entry is counted for that, within what can be counted: what says that it is
// larger than all memory is refused, and what says less than nothing counts as nothing.
// Broken by: countable made int64(max(size, 0)).
func TestAbsurdSizesAreCounted(t *testing.T) {
	for _, size := range []int{math.MaxInt, math.MaxInt - cellBytes, math.MaxInt - cellBytes - 8, math.MaxInt32, 0, -1, math.MinInt} {
		for _, measured := range []bool{false, true} {
			m := newMemory(t, 1<<20)
			o := intOptions("a")
			if measured {
				o.SizeAny = func(int64) int { return size }
			} else {
				o.SizeOf = func(int64, int64) int { return size }
			}
			l, err := NewLocal(m, o)
			require.NoError(t, err)
			require.Equal(t, size <= 0, l.Put(1, lasting[int64](1), l.Mark(1)), "size %d, measured %v", size, measured)
			bytes, refused := m.Stats().Bytes, m.Stats().Refused
			if size <= 0 {
				require.EqualValues(t, cellBytes, bytes, "size %d", size)
				require.Zero(t, refused, "size %d", size)
			} else {
				require.Zero(t, bytes, "size %d", size)
				require.EqualValues(t, 1, refused, "size %d", size)
			}
		}
	}
}

// Property: a new key is kept in a Memory full of keys that are read all the time.
func TestNewKeyIsKeptAmongHotOnes(t *testing.T) {
	m := newMemory(t, 100*(cellBytes+28))
	l := newInts(t, m, "a")
	put := func(k int64) bool {
		e := lasting(k)
		e.Size = 28
		return l.Put(k, e, l.Mark(k))
	}
	for k := range int64(100) {
		put(k)
		for range 5 {
			l.Get(k)
		}
	}
	for k := int64(1000); k < 1100; k++ {
		require.True(t, put(k))
		_, st := l.Get(k)
		require.Equal(t, Hit, st, "key %d", k)
	}
}

// Property: entries past their hard end stop counting, and leave ristretto, although nobody asks for them.
func TestExpiredEntriesGiveTheirBytesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, err := NewMemory(MemoryOptions{})
		require.NoError(t, err)
		defer m.Close()
		l := newInts(t, m, "a")
		for k := range int64(1000) {
			e := lasting(k)
			e.Hard = e.Born.Add(time.Minute)
			require.True(t, l.Put(k, e, l.Mark(k)))
		}
		mustPut(t, l, 5000, 1)
		require.EqualValues(t, 1001, m.Stats().Entries)
		time.Sleep(time.Minute + sweepPass*sweepEvery*clockTick)
		synctest.Wait()
		st := m.Stats()
		require.EqualValues(t, 1, st.Entries)
		require.EqualValues(t, 1000, st.Expired)
		checkAccounts(t, m)
		_, found := l.Get(5000)
		require.Equal(t, Hit, found)
	})
}

// Property: a Memory without entries does not tick, and one that gets an entry ticks again.
func TestEmptyMemoryDoesNotTick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, err := NewMemory(MemoryOptions{})
		require.NoError(t, err)
		defer m.Close()
		l := newInts(t, m, "a")
		synctest.Wait()
		require.True(t, m.idle.Load())
		mustPut(t, l, 1, 1)
		synctest.Wait()
		require.False(t, m.idle.Load())
		l.Bump(1)
		time.Sleep(time.Second)
		synctest.Wait()
		require.True(t, m.idle.Load())
	})
}

// Property: Close of a Memory and of its caches under traffic neither panics nor races; afterwards nothing is found and nothing kept, and
// no goroutine is left.
func TestCloseUnderTraffic(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	for round := range 10 {
		m, err := NewMemory(MemoryOptions{MaxBytes: 1 << 16})
		require.NoError(t, err)
		a, b := newInts(t, m, "a"), newInts(t, m, "b")
		var stop atomic.Bool
		var wg, begun sync.WaitGroup
		for g := range 6 {
			begun.Add(1)
			wg.Go(func() {
				r := rand.New(rand.NewSource(int64(round*100 + g)))
				for i := 0; !stop.Load(); i++ {
					if i == 100 {
						begun.Done()
					}
					traffic([]*Local[int64, int64]{a, b}[r.Intn(2)], r)
				}
				if m.closed.Load() {
					if _, st := a.Get(1); st != Miss {
						t.Errorf("a closed Memory answers: state %d", st)
					}
				}
			})
		}
		begun.Wait()
		if round%2 == 0 {
			a.Close()
		}
		require.NoError(t, m.Close())
		require.NoError(t, m.Close(), "a second time")
		for k := range int64(100) {
			require.False(t, b.Put(k, lasting(k), b.Mark(k)))
			_, st := b.Get(k)
			require.Equal(t, Miss, st)
			_, ok := b.Look(k)
			require.False(t, ok)
		}
		stop.Store(true)
		wg.Wait()
		b.Close()
		require.Zero(t, m.Stats().Entries)
		_, err = NewLocal(m, intOptions("c"))
		require.Error(t, err, "the Memory is closed")
	}
}

// traffic is one random call.
func traffic(l *Local[int64, int64], r *rand.Rand) {
	k := r.Int63n(2000)
	e := lasting(k)
	e.Absent = r.Intn(4) == 0
	switch r.Intn(12) {
	case 10:
		l.Pin(k)
	case 11:
		l.Unpin(k)
	case 0:
		l.Bump(k)
	case 1:
		l.Replace(k, e, l.Mark(k), true)
	case 2:
		l.Look(k)
	case 3, 4, 5:
		l.Put(k, e, l.Mark(k))
	default:
		l.Get(k)
	}
}

// Property: after any traffic what is counted is what ristretto has, and nothing dead is left in it or in the front.
func TestAccountsAgreeAfterTraffic(t *testing.T) {
	m := newMemory(t, 1<<16)
	a, b := newInts(t, m, "a"), newInts(t, m, "b")
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewSource(int64(g)))
			for range 10_000 {
				traffic([]*Local[int64, int64]{a, b}[g%2], r)
			}
		})
	}
	wg.Wait()
	settle(m)
	checkAccounts(t, m)
	require.Positive(t, m.Stats().Absent.Entries)
	require.Positive(t, m.Stats().Pinned.Entries)
	for i := range m.front.sets {
		for j := range frontWays {
			if c := m.front.sets[i].cells[j].Load(); c != nil {
				require.True(t, c.alive(), "the front has a dead cell")
			}
		}
	}
	a.Close()
	settle(m)
	checkAccounts(t, m)
	b.Close()
	settle(m)
	checkAccounts(t, m)
	require.Zero(t, m.Stats().Entries)
	require.Zero(t, m.Stats().Pins)
}

// Property: bad options are refused.
func TestMemoryRefusesANegativeBound(t *testing.T) {
	_, err := NewMemory(MemoryOptions{MaxBytes: -1})
	require.ErrorContains(t, err, "MaxBytes")
}
