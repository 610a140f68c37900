package layers

import (
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
// the first is locked. Keys of the first stripe cannot be used meanwhile.
func holdFlusher(m *Memory) (release func()) {
	m.stripes[0].mu.Lock()
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

// Property: of two puts of a key the later one is found, or none, whatever ristretto makes of two Sets of a key it has not stored yet (it
// keeps the first); the same with a kill between them and with an older value put late under an older mark.
func TestNewestPutWins(t *testing.T) {
	m := newMemory(t, 1<<30)
	l := newInts(t, m, "a")
	const keys = 20_000
	var kept [keys]bool
	for k := range int64(keys) {
		old := l.Mark(k)
		l.Put(k, lasting(k), old)
		switch k % 3 {
		case 1:
			l.Bump(k)
		case 2:
			l.Bump(k)
			require.False(t, l.Put(k, lasting(k), old), "key %d: a put under a mark of before the kill", k)
		}
		kept[k] = l.Put(k, lasting(-k-1), l.Mark(k))
	}
	for range 2 { // before ristretto has applied all, and after
		for k := range int64(keys) {
			v, st := l.Get(k)
			if kept[k] {
				require.Equal(t, Hit, st, "key %d", k)
				require.Equal(t, -k-1, v, "key %d", k)
			} else {
				require.Equal(t, Miss, st, "key %d: a refused put leaves no older copy, got %d", k, v)
			}
		}
		settle(m)
	}
}

// Property: once Bump returned nobody reads what was put before it, with 8 goroutines writing, killing and reading the same keys.
func TestBumpedCopyIsNeverReadAgain(t *testing.T) {
	m := newMemory(t, 1<<20)
	l := newInts(t, m, "a")
	type slot struct {
		mu    sync.Mutex
		last  int64
		floor atomic.Int64 // values up to this are killed
		_     [64]byte
	}
	var keys [64]slot
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewSource(int64(g)))
			for range 20_000 {
				k := r.Int63n(int64(len(keys)))
				s := &keys[k]
				if r.Intn(4) == 0 {
					s.mu.Lock()
					s.last++
					l.Put(k, lasting(s.last), l.Mark(k))
					if r.Intn(2) == 0 {
						l.Bump(k)
						s.floor.Store(s.last)
					}
					s.mu.Unlock()
					continue
				}
				floor := s.floor.Load()
				if v, st := l.Get(k); st == Hit && v <= floor {
					t.Errorf("key %d: got %d, all up to %d were killed before", k, v, floor)
				}
				if c, ok := l.Look(k); ok && c.Value <= floor {
					t.Errorf("key %d: Look got %d, all up to %d were killed before", k, c.Value, floor)
				}
			}
		})
	}
	wg.Wait()
}

// Property: after Put returned true the next Get finds the value: before ristretto stored it, while it does, and after.
func TestPutIsReadAtOnce(t *testing.T) {
	m := newMemory(t, 1<<30)
	l := newInts(t, m, "a")
	var wg sync.WaitGroup
	for g := range int64(8) {
		wg.Go(func() {
			for i := range int64(10_000) {
				k := g<<32 + i%5000
				if !l.Put(k, lasting(i), l.Mark(k)) {
					continue // a neighbour's mark does not exist here: the overlay was full
				}
				for range 3 {
					if v, st := l.Get(k); st != Hit || v != i {
						t.Errorf("goroutine %d, put %d: got %d, state %d", g, i, v, st)
					}
				}
			}
		})
	}
	wg.Wait()
	require.Zero(t, m.Stats().Lost)
}

// Property: where ristretto still has the older cell of a key, or has lost the newer, Get finds the newest or nothing.
func TestRistrettosOrderDoesNotMatter(t *testing.T) {
	m := newMemory(t, 1<<20)
	l := newInts(t, m, "a")
	h, _ := l.hash(7)
	s := m.stripe(h)

	mustPut(t, l, 7, 1)
	settle(m)
	older := m.stored(h)
	mustPut(t, l, 7, 2)
	settle(m)
	m.store.Set(h, older, 1) // as if the older Set were applied last
	_, st := l.Get(7)
	require.Equal(t, Miss, st, "a superseded cell is not answered")
	_, ok := l.Look(7)
	require.False(t, ok, "a superseded cell is not looked at")

	mustPut(t, l, 8, 1)
	settle(m)
	h, _ = l.hash(8)
	s = m.stripe(h)
	s.mu.Lock()
	c := m.stored(h)
	m.store.Del(h) // as if the Set had been lost
	s.overlay[h] = wanted{cell: c}
	s.cells++
	m.settleLocked(s, change{hash: h, wanted: s.overlay[h]})
	s.mu.Unlock()
	_, st = l.Get(8)
	require.Equal(t, Miss, st)
	require.EqualValues(t, 1, m.Stats().Lost)
	require.EqualValues(t, 1, m.Stats().Entries, "a lost cell is not counted (key 7's is)")
}

// Property: a killed copy is not answered while ristretto still has it.
func TestBumpedCopyIsNotAnsweredFromRistretto(t *testing.T) {
	m := newMemory(t, 0)
	l := newInts(t, m, "a")
	k := keysOf(l, 1, 1)[0]
	mustPut(t, l, k, 1)
	settle(m)
	release := holdFlusher(m)
	defer release()
	l.Bump(k)
	h, _ := l.hash(k)
	require.NotNil(t, m.stored(h), "the test means to meet it there")
	_, st := l.Get(k)
	require.Equal(t, Miss, st)
	_, ok := l.Look(k)
	require.False(t, ok)
}

// Property: a reader finds what was put before it began, although it is between overlay and ristretto.
//
//  1. a put is in the overlay
//  2. a reader asks ristretto: nothing yet
//  3. the put is applied there, and taken off the overlay
//  4. the reader looks at the overlay
func TestPutIsFoundWhileItMovesToRistretto(t *testing.T) {
	m := newMemory(t, 0)
	l := newInts(t, m, "a")
	k := keysOf(l, 1, 1)[0]
	release := holdFlusher(m)
	defer release()
	mustPut(t, l, k, 5)
	h, _ := l.hash(k)
	s := m.stripe(h)
	s.mu.Lock()
	var v int64
	var st State
	var wg sync.WaitGroup
	wg.Go(func() { v, st = l.Get(k) })
	for range 1000 { // let it come to the lock
		runtime.Gosched()
	}
	c := change{hash: h, wanted: s.overlay[h]}
	m.store.Set(h, c.cell, 1)
	m.store.Wait()
	m.settleLocked(s, c)
	s.mu.Unlock()
	wg.Wait()
	require.Equal(t, Hit, st)
	require.EqualValues(t, 5, v)
}

// Property: clearing away an evicted cell leaves a newer one of its key alone.
//
//  1. the policy evicts a cell
//  2. its key is put again
//  3. the evicted cell is taken off the store
func TestEvictionLeavesTheNewerCopy(t *testing.T) {
	m := newMemory(t, 0)
	l := newInts(t, m, "a")
	for _, settled := range []bool{false, true} {
		mustPut(t, l, 1, 1)
		settle(m)
		h, _ := l.hash(1)
		c := m.stored(h)
		m.policy.mu.Lock()
		victims := m.policy.dropLocked(c, nil)
		m.policy.mu.Unlock()
		_, st := l.Get(1)
		require.Equal(t, Miss, st, "it is dead at once")
		mustPut(t, l, 1, 2)
		if settled {
			settle(m)
		}
		m.bury(victims)
		settle(m)
		v, st := l.Get(1)
		require.Equal(t, Hit, st)
		require.EqualValues(t, 2, v)
		checkAccounts(t, m)
		l.Bump(1)
	}
}

// Property: a dead cell that a late reader offers does not stay in the front, and a full set changes with the turns.
func TestFrontKeepsNoDeadCell(t *testing.T) {
	m := newMemory(t, 0)
	l := newInts(t, m, "a")
	mustPut(t, l, 1, 1)
	settle(m)
	h, _ := l.hash(1)
	c := m.stored(h)
	m.front.offer(h, c, 0)
	require.Equal(t, c, m.front.get(h))
	l.Bump(1)
	require.Nil(t, m.front.get(h))
	m.front.offer(h, c, 0)
	require.Nil(t, m.front.get(h))

	cells := make(map[uint64]*cellHead)
	for i := range uint64(2 * frontWays) {
		c := &cell[int64, int64]{}
		c.owner = &l.own
		c.t.hash = (i+1)<<40 | 5
		cells[c.t.hash] = &c.cellHead
	}
	was := make(map[uint64]bool)
	for turn := range uint64(64) {
		for h, c := range cells {
			m.front.offer(h, c, turn)
			if m.front.get(h) == c {
				was[h] = true
			}
		}
	}
	require.Len(t, was, len(cells), "each had its turn")
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

// Property: puts that the store cannot take in time are dropped, counted, and take the older copy with them; marks and kills still work.
func TestFullOverlayDropsThePutAndTheOlderCopy(t *testing.T) {
	m := newMemory(t, 1<<30)
	l := newInts(t, m, "a")
	keys := keysOf(l, stripeCount-1, overlayStripe+1)
	last := keys[overlayStripe]
	mustPut(t, l, last, 1)
	settle(m)

	release := holdFlusher(m)
	defer release()
	for _, k := range keys[:overlayStripe] {
		require.True(t, l.Put(k, lasting(k), l.Mark(k)))
	}
	require.False(t, l.Put(last, lasting[int64](2), l.Mark(last)), "the overlay is full")
	_, st := l.Get(last)
	require.Equal(t, Miss, st, "the older copy went as well")
	require.EqualValues(t, 1, m.Stats().Dropped)
	v, st := l.Get(keys[0])
	require.Equal(t, Hit, st)
	require.Equal(t, keys[0], v)

	release()
	settle(m)
	require.True(t, l.Put(last, lasting[int64](3), l.Mark(last)), "it takes puts again")
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
	var bytes, count uint64
	m.store.IterValues(func(c *cellHead) bool {
		require.True(t, c.alive(), "ristretto has a dead cell")
		bytes += uint64(c.bytes)
		count++
		return false
	})
	st := m.Stats()
	require.Equal(t, st.Entries, count)
	require.Equal(t, st.Bytes, bytes)
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
					_, st := a.Get(1)
					require.Equal(t, Miss, st)
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
	switch r.Intn(10) {
	case 0:
		l.Bump(k)
	case 1:
		l.Replace(k, lasting(k), l.Mark(k), true)
	case 2:
		l.Look(k)
	case 3, 4, 5:
		l.Put(k, lasting(k), l.Mark(k))
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
	for i := range m.front {
		for j := range m.front[i] {
			if c := m.front[i][j].cell.Load(); c != nil {
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
}

// Property: bad options are refused.
func TestMemoryRefusesANegativeBound(t *testing.T) {
	_, err := NewMemory(MemoryOptions{MaxBytes: -1})
	require.ErrorContains(t, err, "MaxBytes")
}
