package consistency

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

const length = time.Second

// left returns how long the value of a load that begins now may live; 0 if it is not cut.
func left(w *Windows, id string) time.Duration {
	now := time.Now()
	cut, ok := w.Cut(id, now)
	if !ok {
		return 0
	}
	return cut.Sub(now)
}

func TestWindowIsOpenForItsLength(t *testing.T) {
	// Open: what is loaded is cut at the window's end, until that; a second Open moves the end; other keys are not cut.
	synctest.Test(t, func(t *testing.T) {
		w := NewWindows(length, 0)
		require.Zero(t, left(w, "a"))
		w.Open("a", "b")
		require.Equal(t, length, left(w, "a"))
		require.Zero(t, left(w, "c"))
		pass(600 * time.Millisecond)
		require.Equal(t, 400*time.Millisecond, left(w, "a"))
		w.Open("a")
		require.Equal(t, length, left(w, "a"))
		pass(400 * time.Millisecond)
		require.Equal(t, 600*time.Millisecond, left(w, "a"))
		require.Zero(t, left(w, "b"))
		pass(600 * time.Millisecond)
		require.Zero(t, left(w, "a"))
	})
}

func TestWindowOfAWriteStaysOpenAndEndsLater(t *testing.T) {
	// While a write is under way each load is cut a whole length from its begin, also in the last of several writes; after the last
	// end the window runs once more. An end called twice ends one write.
	synctest.Test(t, func(t *testing.T) {
		w := NewWindows(length, 0)
		first, second := w.Begin("a", "a"), w.Begin("a")
		pass(time.Hour)
		require.Equal(t, length, left(w, "a"))
		first()
		first()
		pass(time.Hour)
		require.Equal(t, length, left(w, "a"), "with the second write under way")
		second()
		pass(600 * time.Millisecond)
		require.Equal(t, 400*time.Millisecond, left(w, "a"))
		pass(400 * time.Millisecond)
		require.Zero(t, left(w, "a"))
	})
}

// neighbours returns two keys of one stripe and one of another.
func neighbours(w *Windows) (a, b, other string) {
	a = "a"
	for i := 0; b == "" || other == ""; i++ {
		if id := fmt.Sprint(i); w.stripe(id) == w.stripe(a) {
			b = id
		} else {
			other = id
		}
	}
	return a, b, other
}

func TestWindowsBeyondTheBoundAreTheStripes(t *testing.T) {
	// With no room left a key's window is its stripe's: it is never lost, and neighbours are cut too; other stripes are not.
	synctest.Test(t, func(t *testing.T) {
		w := NewWindows(length, 1)
		a, b, other := neighbours(w)
		end := w.Begin("room is taken")
		w.Open(a)
		require.Equal(t, length, left(w, a))
		require.Equal(t, length, left(w, b))
		if w.stripe(other) != w.stripe("room is taken") {
			require.Zero(t, left(w, other))
		}
		pass(length)
		require.Zero(t, left(w, a))

		endA, endB := w.Begin(a), w.Begin(b)
		pass(time.Hour)
		endA()
		pass(time.Hour)
		require.Equal(t, length, left(w, a), "with its neighbour's write under way")
		endB()
		pass(600 * time.Millisecond)
		require.Equal(t, 400*time.Millisecond, left(w, a))
		end()
		require.EqualValues(t, 1, w.count.Load())
	})
}

func TestEndedWindowsGiveTheirRoom(t *testing.T) {
	// Ended windows make room for others, in whichever stripe they are; a write under way keeps its own.
	synctest.Test(t, func(t *testing.T) {
		w := NewWindows(length, 1000)
		end := w.Begin("under way")
		for round := range 5 {
			for i := range 999 {
				w.Open(fmt.Sprint(round, "/", i))
			}
			require.LessOrEqual(t, w.count.Load(), int64(1000))
			require.Equal(t, length, left(w, fmt.Sprint(round, "/", 998)))
			pass(length)
		}
		require.Equal(t, length, left(w, "under way"))
		wide := 0
		for i := range w.stripes {
			if !w.stripes[i].whole.end.IsZero() {
				wide++
			}
		}
		require.Less(t, wide, windowStripes/4, "stripes that had to cover all their keys though there was room to make")
		end()
	})
}

func TestWindowsUnderTrafficStayBoundedAndOpen(t *testing.T) {
	// Many writers on more keys than there is room for: a key is cut while its write is under way, and the bound holds.
	const limit = 50
	w := NewWindows(time.Hour, limit)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 200 {
				id := fmt.Sprint(g, "/", i)
				end := w.Begin(id)
				if _, ok := w.Cut(id, time.Now()); !ok {
					t.Errorf("key %s: no window while its write is under way", id)
				}
				end()
				if _, ok := w.Cut(id, time.Now()); !ok {
					t.Errorf("key %s: no window right after its write", id)
				}
			}
		})
	}
	wg.Wait()
	n := 0
	for i := range w.stripes {
		n += len(w.stripes[i].ids)
		require.Zero(t, w.stripes[i].whole.live)
	}
	require.LessOrEqual(t, n, limit)
	require.EqualValues(t, n, w.count.Load())
}
