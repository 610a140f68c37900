package layers

import (
	"math/rand"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

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
	s := m.stripe(h)
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
