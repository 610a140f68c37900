package layers

import (
	"fmt"
	"hash/maphash"
	"math"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Property: a put is refused, and its mark stands no more, after anything that can have made the value old.
func TestPutIsRefusedOnceItsMarkIsVoid(t *testing.T) {
	for name, void := range map[string]func(l *Local[int64, int64]){
		"Bump":         func(l *Local[int64, int64]) { l.Bump(1) },
		"BumpID":       func(l *Local[int64, int64]) { l.BumpID("1") },
		"Replace":      func(l *Local[int64, int64]) { l.Replace(1, lasting[int64](1), l.Mark(1), true) },
		"Replace none": func(l *Local[int64, int64]) { l.Replace(1, Entry[int64]{}, Mark{}, false) },
		"Deaf":         func(l *Local[int64, int64]) { l.Deaf() },
		"Hear":         func(l *Local[int64, int64]) { l.Hear() },
		"Deaf Hear":    func(l *Local[int64, int64]) { l.Deaf(); l.Hear() },
		"Drop":         func(l *Local[int64, int64]) { l.Drop() },
		"Close":        func(l *Local[int64, int64]) { l.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			l := newInts(t, newMemory(t, 0), "a")
			m := l.Mark(1)
			require.True(t, l.Stands(1, m))
			void(l)
			require.False(t, l.Stands(1, m))
			require.False(t, l.Put(1, lasting[int64](99), m))
			require.False(t, l.PutDoubtful(1, lasting[int64](99), m))
			require.False(t, l.Replace(1, lasting[int64](99), m, true))
			c, ok := l.Look(1)
			require.False(t, ok, "got %v", c)
			if name != "Close" {
				require.True(t, l.Put(1, lasting[int64](5), l.Mark(1)), "a new mark is good")
			}
		})
	}
}

// Property: a kill voids no mark of another stripe.
func TestBumpLeavesOtherStripesAlone(t *testing.T) {
	l := newInts(t, newMemory(t, 0), "a")
	h, _ := l.hash(1)
	for k := int64(2); ; k++ {
		if o, _ := l.hash(k); l.mem.stripe(o) != l.mem.stripe(h) {
			m := l.Mark(k)
			l.Bump(1)
			require.True(t, l.Stands(k, m))
			return
		}
	}
}

// Property: comparing the mark and putting are one step under the stripe's lock.
//
//  1. a put of an older value has everything ready but the lock
//  2. a kill, which has the lock, moves the epoch
//  3. the put gets the lock
//
// It must find its mark void.
func TestPutComparesItsMarkUnderTheLock(t *testing.T) {
	m := newMemory(t, 0)
	o := intOptions("a")
	ready := make(chan struct{})
	o.SizeOf = func(int64, int64) int { close(ready); return 8 }
	l, err := NewLocal(m, o)
	require.NoError(t, err)
	h, _ := l.hash(1)
	s := m.stripe(h)
	mark := l.Mark(1)

	s.mu.Lock()
	var kept bool
	var wg sync.WaitGroup
	wg.Go(func() { kept = l.Put(1, lasting[int64](1), mark) })
	<-ready
	for range 1000 { // let it come to the lock
		runtime.Gosched()
	}
	m.bumpLocked(s, h)
	s.mu.Unlock()
	wg.Wait()

	require.False(t, kept)
	_, st := l.Get(1)
	require.Equal(t, Miss, st)
}

// Property: Replace kills the older copy in any case and puts the new one only if asked to and if the mark stood until then.
func TestReplace(t *testing.T) {
	for _, c := range []struct {
		name               string
		stands, put, found bool
	}{
		{name: "put under a good mark", stands: true, put: true, found: true},
		{name: "put under a void mark", stands: false, put: true},
		{name: "no put", stands: true, put: false},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newInts(t, newMemory(t, 0), "a")
			mustPut(t, l, 1, 1)
			m := l.Mark(1)
			if !c.stands {
				l.Bump(1)
				mustPut(t, l, 1, 2)
			}
			other := l.Mark(1)
			require.Equal(t, c.found, l.Replace(1, lasting[int64](3), m, c.put))
			v, st := l.Get(1)
			if c.found {
				require.Equal(t, Hit, st)
				require.EqualValues(t, 3, v)
			} else {
				require.Equal(t, Miss, st)
			}
			require.False(t, l.Stands(1, other), "a load of before would be older than the Set")
		})
	}
}

// Property: a copy that a gap of the bus or its birth made doubtful is not answered, but seen by Look, which says so.
func TestDoubtfulCopiesAreOnlySeenByLook(t *testing.T) {
	for name, doubt := range map[string]func(l *Local[int64, int64]) (trustedAgain bool){
		"deaf":              func(l *Local[int64, int64]) bool { mustPut(t, l, 1, 7); l.Deaf(); return false },
		"deaf, heard again": func(l *Local[int64, int64]) bool { mustPut(t, l, 1, 7); l.Deaf(); l.Hear(); return true },
		"gap":               func(l *Local[int64, int64]) bool { mustPut(t, l, 1, 7); l.Hear(); return true },
		"put while deaf":    func(l *Local[int64, int64]) bool { l.Deaf(); mustPut(t, l, 1, 7); return false },
		"put while deaf, then heard": func(l *Local[int64, int64]) bool {
			l.Deaf()
			mustPut(t, l, 1, 7)
			l.Hear()
			return true
		},
		"doubtful from birth": func(l *Local[int64, int64]) bool {
			require.True(t, l.PutDoubtful(1, lasting[int64](7), l.Mark(1)))
			return true
		},
		"doubtful from birth, gap": func(l *Local[int64, int64]) bool {
			require.True(t, l.PutDoubtful(1, lasting[int64](7), l.Mark(1)))
			l.Hear()
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newInts(t, newMemory(t, 0), "a")
			again := doubt(l)
			for range 2 {
				_, st := l.Get(1)
				require.Equal(t, Miss, st)
				c, ok := l.Look(1)
				require.True(t, ok)
				require.EqualValues(t, 7, c.Value)
				require.False(t, c.Trusted)
				settle(l.mem)
			}
			if again {
				mustPut(t, l, 1, 8)
				v, st := l.Get(1)
				require.Equal(t, Hit, st)
				require.EqualValues(t, 8, v)
			}
		})
	}
}

// Property: a dropped copy is never seen again, not even by Look, also where it was put under a mark of before while Drop ran.
func TestDroppedCopiesAreDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, err := NewMemory(MemoryOptions{})
		require.NoError(t, err)
		defer m.Close()
		l, other := newInts(t, m, "a"), newInts(t, m, "b")
		mustPut(t, l, 1, 1)
		require.True(t, l.PutDoubtful(2, lasting[int64](2), l.Mark(2)))
		mustPut(t, other, 1, 3)
		l.Get(1) // into the front
		l.Drop()
		for range 3 {
			for k := range int64(3) {
				_, st := l.Get(k)
				require.Equal(t, Miss, st)
				_, ok := l.Look(k)
				require.False(t, ok)
			}
			l.Hear()
		}
		v, st := other.Get(1)
		require.Equal(t, Hit, st, "another cache's copy")
		require.EqualValues(t, 3, v)
		mustPut(t, l, 1, 4)
		_, st = l.Get(1)
		require.Equal(t, Hit, st)

		time.Sleep(2 * sweepPass * sweepEvery * clockTick)
		synctest.Wait()
		require.EqualValues(t, 2, m.Stats().Entries, "their bytes came back")
		checkAccounts(t, m)
	})
}

// Property: without a TTL nothing is kept, but marks work.
func TestNothingIsKeptWithoutTTL(t *testing.T) {
	for _, ttl := range []time.Duration{0, -1} {
		o := intOptions("a")
		o.TTL = ttl
		l, err := NewLocal(newMemory(t, 0), o)
		require.NoError(t, err)
		m := l.Mark(1)
		require.False(t, l.Put(1, lasting[int64](1), m))
		require.False(t, l.Replace(1, lasting[int64](1), m, true))
		require.False(t, l.Stands(1, m))
		_, ok := l.Look(1)
		require.False(t, ok)
	}
}

// Property: what Look gives is what was put, its moments to the millisecond, and its ends not later.
func TestEntryComesBackWhole(t *testing.T) {
	m := newMemory(t, 0)
	l := newInts(t, m, "a")
	now := time.Now()
	want := Entry[int64]{
		Value: 5, Born: now.Add(-time.Second), Soft: now.Add(time.Minute), Hard: now.Add(time.Hour),
		Version: 1 << 60, Cost: 1500 * time.Microsecond, Size: 77,
	}
	require.True(t, l.Put(1, want, l.Mark(1)))
	c, ok := l.Look(1)
	require.True(t, ok)
	require.True(t, c.Trusted)
	require.True(t, c.Young)
	for _, p := range [][2]*time.Time{{&want.Born, &c.Born}, {&want.Soft, &c.Soft}, {&want.Hard, &c.Hard}} {
		require.WithinRange(t, *p[1], p[0].Add(-time.Millisecond), p[0].Add(time.Millisecond))
		*p[1] = *p[0]
	}
	want.Version, want.Cost, want.Size = 0, 0, 0 // nobody asks memory for them
	require.Equal(t, want, c.Entry)

	for _, life := range []time.Duration{time.Nanosecond, 1_500_000, time.Second - 1, 1000 * 24 * time.Hour} {
		e := Entry[int64]{Soft: now.Add(time.Minute), Hard: now.Add(time.Minute + life)}
		c := newCell(m.clock, &l.own, 1, 1, &e, m.clock.since(now), m.clock.since(now)+int64(life/2))
		got := c.entry(m.clock)
		require.False(t, got.Soft.After(e.Soft))
		require.False(t, got.Hard.After(e.Hard))
		require.False(t, got.Hard.Before(got.Soft))
	}

	absent := Entry[int64]{Absent: true, Soft: now.Add(time.Minute), Hard: now.Add(time.Minute)}
	require.True(t, l.Put(2, absent, l.Mark(2)))
	_, st := l.Get(2)
	require.Equal(t, HitAbsent, st)
	c, _ = l.Look(2)
	require.True(t, c.Absent)
	require.True(t, c.Born.IsZero())
}

// Property: two open caches of one Memory cannot have one name; a closed one gives it free, and its copies are gone.
func TestNamesAreUniqueOnAMemory(t *testing.T) {
	m := newMemory(t, 0)
	a := newInts(t, m, "a")
	b := newInts(t, m, "b")
	_, err := NewLocal(m, intOptions("a"))
	require.ErrorContains(t, err, `"a"`)
	mustPut(t, a, 1, 1)
	mustPut(t, b, 1, 2)
	v, _ := a.Get(1)
	require.EqualValues(t, 1, v)
	v, _ = b.Get(1)
	require.EqualValues(t, 2, v, "equal keys of two caches are different keys")
	a.Close()
	a.Close()
	settle(m)
	require.EqualValues(t, 1, m.Stats().Entries)
	again := newInts(t, m, "a")
	_, st := again.Get(1)
	require.Equal(t, Miss, st)
	a.Close()
	_, err = NewLocal(m, intOptions("a"))
	require.Error(t, err, "the name is the new cache's: the closed one does not free it again")
}

// Property: all mistakes come in one error.
func TestLocalOptionsAreChecked(t *testing.T) {
	_, err := NewLocal(newMemory(t, 0), LocalOptions[int64, int64]{Direct: true, Jitter: 1})
	for _, word := range []string{"Name", "String", "Parse", "Jitter"} {
		require.ErrorContains(t, err, word)
	}
	_, err = NewLocal[int64, int64](nil, intOptions("a"))
	require.Error(t, err)
}

type (
	userID   int64
	userName string
)

// Property: a hit allocates nothing for keys of string and integer kinds, from ristretto and from the front.
func TestHitAllocatesNothing(t *testing.T) {
	m := newMemory(t, 0)
	noAllocs(t, m, int64(1))
	noAllocs(t, m, uint8(1))
	noAllocs(t, m, strings.Repeat("k", 40))
	noAllocs(t, m, userID(1))
	noAllocs(t, m, userName("x"))
}

func noAllocs[K comparable](t *testing.T, m *Memory, key K) {
	t.Helper()
	name := fmt.Sprintf("%T", key)
	l, err := NewLocal(m, LocalOptions[K, *int]{
		Name: name, TTL: time.Hour, Direct: true,
		String: func(k K) string { return fmt.Sprint(k) },
		Parse:  func(string) (k K, ok bool) { return k, false },
	})
	require.NoError(t, err)
	v := 5
	mustPut(t, l, key, &v)
	settle(m)
	var got *int
	require.Zero(t, testing.AllocsPerRun(1000, func() { got, _ = l.Get(key) }), "%s, front", name)
	require.Equal(t, &v, got)
	if raceDetector {
		return // see there
	}
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		m.front.forget(m.stored(maphash.Comparable(l.seed, key)))
		got, _ = l.Get(key)
	}), "%s, ristretto", name)
	require.Equal(t, &v, got)
}

// Property: keys with one string form are one key; also where == says otherwise, or would panic.
func TestStringFormIsTheIdentity(t *testing.T) {
	m := newMemory(t, 0)
	fold, err := NewLocal(m, LocalOptions[userName, int]{Name: "fold", TTL: time.Hour, String: func(k userName) string { return strings.ToLower(string(k)) }})
	require.NoError(t, err)
	anyKey, err := NewLocal(m, LocalOptions[any, int]{Name: "any", TTL: time.Hour, String: func(k any) string { return fmt.Sprint(k) }})
	require.NoError(t, err)
	for range 2 {
		mustPut(t, fold, "Ann", 1)
		mustPut(t, anyKey, any([]int{1, 2}), 2) // not comparable
		for range 3 {
			v, st := fold.Get("aNN")
			require.Equal(t, Hit, st)
			require.Equal(t, 1, v)
			v, st = anyKey.Get("[1 2]")
			require.Equal(t, Hit, st)
			require.Equal(t, 2, v)
			settle(m)
		}
		fold.BumpID("ann")
		anyKey.Bump([]int{1, 2})
		_, st := fold.Get("Ann")
		require.Equal(t, Miss, st)
		_, st = anyKey.Get([]int{1, 2})
		require.Equal(t, Miss, st)
	}
}

type point struct{ x, y int32 }

func (p point) String() string { return fmt.Sprintf("%d/%d", p.x, p.y) }

// Property: struct keys work, and events reach them by their string form.
func TestStructKeys(t *testing.T) {
	m := newMemory(t, 0)
	l, err := NewLocal(m, LocalOptions[point, string]{Name: "a", TTL: time.Hour, String: point.String})
	require.NoError(t, err)
	for i := range int32(100) {
		mustPut(t, l, point{i, -i}, fmt.Sprint(i))
	}
	settle(m)
	l.BumpID("7/-7")
	for i := range int32(100) {
		v, st := l.Get(point{i, -i})
		if i == 7 {
			require.Equal(t, Miss, st)
			continue
		}
		require.Equal(t, Hit, st)
		require.Equal(t, fmt.Sprint(i), v)
	}
	_, st := l.Get(point{1, 1})
	require.Equal(t, Miss, st)
}

// Property: an entry counts its encoded size, else SizeOf's, else a moving mean of SizeAny's, asked for every 64th value; and its key.
func TestSizeOfAnEntry(t *testing.T) {
	m := newMemory(t, 0)
	asked := 0
	o := LocalOptions[string, string]{
		Name: "a", TTL: time.Hour, Direct: true,
		String:  func(k string) string { return k },
		Parse:   func(s string) (string, bool) { return s, true },
		SizeAny: func(v string) int { asked++; return len(v) },
	}
	l, err := NewLocal(m, o)
	require.NoError(t, err)
	e := lasting("value")
	require.EqualValues(t, cellBytes+3+5, l.size("key", "", &e))
	for range sizeEvery - 1 {
		require.EqualValues(t, cellBytes+3+5, l.size("key", "", &e))
	}
	require.Equal(t, 1, asked)
	long := lasting(strings.Repeat("x", 5+80))
	require.EqualValues(t, cellBytes+3+5+80/sizeMean, l.size("key", "", &long), "the 65th")
	require.Equal(t, 2, asked)
	long.Size = 1000
	require.EqualValues(t, cellBytes+3+1000, l.size("key", "", &long))
	absent := Entry[string]{Absent: true}
	require.EqualValues(t, cellBytes+3, l.size("key", "", &absent))

	o.Name, o.SizeOf = "b", func(k, v string) int { return 2 * len(v) }
	l, err = NewLocal(m, o)
	require.NoError(t, err)
	require.EqualValues(t, cellBytes+3+10, l.size("key", "", &e))
}

// Property: a cell knows its birth to the millisecond, or to the second where milliseconds do not reach, as far back as entries live; and what it
// says is then never too late, so that who takes away what is older takes it.
// Broken by: birthBefore made inMillis; its -1 or +1 left out.
func TestBirthIsKnownHoweverLongAgo(t *testing.T) {
	const day = 24 * time.Hour
	for _, ago := range []time.Duration{
		-time.Hour, 0, 1, time.Millisecond - 1, time.Millisecond, time.Hour + 1, bornLong*time.Millisecond - 1, bornLong * time.Millisecond,
		bornLong*time.Millisecond + 1, bornLong*time.Millisecond + time.Second, 50 * day, 366*day + time.Second - 1, 60 * 365 * day,
	} {
		var c cellHead
		c.fresh = int64(time.Minute)
		c.born = birthBefore(int64(ago))
		require.NotEqual(t, uint32(notBorn), c.born)
		got := time.Duration(c.fresh - c.birth())
		switch {
		case ago < bornLong*time.Millisecond:
			require.Equal(t, max(ago, 0).Truncate(time.Millisecond), got)
		case got < ago || got >= ago+time.Second:
			require.Failf(t, "wrong", "born %v ago, the cell says %v", ago, got)
		}
	}
	require.NotEqual(t, uint32(notBorn), birthBefore(math.MaxInt64))
}
