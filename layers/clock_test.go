package layers

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Property: a copy is answered until the nanosecond of the earlier of its soft end and its own TTL's, and looked at until its hard end.
func TestExpiryIsExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, err := NewMemory(MemoryOptions{})
		require.NoError(t, err)
		defer m.Close()
		o := intOptions("a")
		o.TTL = 10 * time.Second
		l, err := NewLocal(m, o)
		require.NoError(t, err)
		put := func(k int64, soft, hard time.Duration) {
			now := time.Now()
			require.True(t, l.Put(k, Entry[int64]{Value: k, Born: now, Soft: now.Add(soft), Hard: now.Add(hard)}, l.Mark(k)))
		}
		found := func(k int64, want State, seen, young bool) {
			t.Helper()
			_, st := l.Get(k)
			require.Equal(t, want, st, "key %d", k)
			c, ok := l.Look(k)
			require.Equal(t, seen, ok, "key %d", k)
			require.Equal(t, young, c.Young, "key %d", k)
		}
		time.Sleep(123_456_789)
		put(1, 3*time.Second, 5*time.Second)   // soft first
		put(2, 30*time.Second, 40*time.Second) // its own TTL first
		put(3, time.Nanosecond, 3*time.Second+time.Nanosecond)
		found(3, Hit, true, true)
		time.Sleep(1)
		found(3, Miss, true, true)
		time.Sleep(3*time.Second - 2)
		found(1, Hit, true, true)
		found(3, Miss, true, true)
		time.Sleep(1)
		found(1, Miss, true, true)
		found(3, Miss, true, true)
		time.Sleep(1)
		found(3, Miss, false, false)
		time.Sleep(-1 + time.Millisecond)
		time.Sleep(2*time.Second - time.Millisecond - 1)
		found(1, Miss, true, true)
		time.Sleep(1)
		found(1, Miss, false, false)
		time.Sleep(5*time.Second - 1)
		found(2, Hit, true, true)
		time.Sleep(1)
		found(2, Miss, true, false)
		require.False(t, l.Put(4, Entry[int64]{Soft: time.Now(), Hard: time.Now()}, l.Mark(4)), "past its hard end")
	})
}

// Property: deadlines are kept although the coarse clock stands still.
func TestExpiryIsExactWhileTheCoarseClockIsParked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newCoarseClock()
		time.Sleep(time.Second)
		require.True(t, k.before(int64(time.Second)+1))
		require.False(t, k.before(int64(time.Second)))
		k.resume()
		time.Sleep(clockMargin / 2) // no tick came
		require.False(t, k.before(int64(time.Second+clockMargin/2)))
		require.True(t, k.before(int64(time.Second+clockMargin/2)+1))
		time.Sleep(time.Second)
		k.tick() // a second late
		require.GreaterOrEqual(t, k.edge.Load()-k.now(), int64(time.Second), "late ticks widen the margin")
	})
}

// Property: jitter only shortens the local tier's TTL, by at most its fraction, differently for each copy, and to a millisecond at least.
func TestJitterOnlyShortens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, err := NewMemory(MemoryOptions{})
		require.NoError(t, err)
		defer m.Close()
		o := intOptions("a")
		o.TTL, o.Jitter = 100*time.Second, 0.5
		l, err := NewLocal(m, o)
		require.NoError(t, err)
		const n = 1000
		for k := range int64(n) {
			mustPut(t, l, k, k)
		}
		count := func() (hits int) {
			for k := range int64(n) {
				if _, st := l.Get(k); st == Hit {
					hits++
				}
			}
			return hits
		}
		time.Sleep(50*time.Second - 1)
		require.Equal(t, n, count())
		time.Sleep(25 * time.Second)
		require.InDelta(t, n/2, count(), n/10)
		time.Sleep(25*time.Second + 1)
		require.Zero(t, count())

		o.Name, o.TTL, o.Jitter = "b", time.Nanosecond, 0.9
		l, err = NewLocal(m, o)
		require.NoError(t, err)
		mustPut(t, l, 1, 1)
		time.Sleep(time.Millisecond - 1)
		require.Equal(t, 1, count())
		time.Sleep(1)
		require.Zero(t, count())
	})
}

// Property: an entry whose soft end is long past, or was never set, is looked at until its hard end.
func TestStaleEntryIsKeptUntilItsHardEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, err := NewMemory(MemoryOptions{})
		require.NoError(t, err)
		defer m.Close()
		l := newInts(t, m, "a")
		for k, soft := range []time.Time{{}, time.Now().Add(-200 * 24 * time.Hour), time.Now()} {
			require.True(t, l.Put(int64(k), Entry[int64]{Soft: soft, Hard: time.Now().Add(time.Minute)}, l.Mark(int64(k))))
		}
		time.Sleep(time.Minute - 1)
		for k := range int64(3) {
			_, st := l.Get(k)
			require.Equal(t, Miss, st)
			_, ok := l.Look(k)
			require.True(t, ok)
		}
		time.Sleep(1)
		for k := range int64(3) {
			_, ok := l.Look(k)
			require.False(t, ok)
		}
	})
}
