package rebuild

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// loadTime is what a load of these tests takes.
const loadTime = 20 * time.Millisecond

// come has suspects come to g for a second, so many each 20 ms, of which as many as there are slots are let in and find nothing for this
// part of their keys. It returns for how many of the 50 rounds the gate was flooded.
func come(g *Gate, suspects int, absent float64) (flooded int) {
	for range 50 {
		if g.Flooded() {
			flooded++
		}
		g.mu.Lock()
		g.misses.came += suspects
		g.mu.Unlock()
		time.Sleep(loadTime)
		for range min(suspects, g.Slots(Suspect)) {
			g.Back(Suspect, loadTime, absent)
		}
	}
	return flooded
}

func TestGateIsFloodedWhenMissesTakeMoreThanTheirShare(t *testing.T) {
	// What finds nothing may take as many slots as Absent for any time, and a second of them in advance; what finds rows takes nothing of
	// that budget. Beyond it the gate is flooded; with Absent negative, never.
	//
	// Broken by: "time.Duration(part * float64(took))" made took; the top-up left out of back; "m.left < 0" made false; "m.never ||" left out;
	// maxBudget for m.whole() in back.
	for _, c := range []struct {
		name   string
		absent int
		loads  int     // that come back each 20 ms
		part   float64 // of them that finds nothing
		want   time.Duration
	}{
		{"all rows exist", 4, 40, 0, 0},
		{"as many misses as slots", 4, 4, 1, 0},
		{"as many in a batch", 4, 16, 0.25, 0},
		{"one slot more", 4, 5, 1, 4 * time.Second}, // 4 s of one slot in advance, spent at one slot more
		{"the whole gate", 4, 40, 1, 120 * time.Millisecond},
		{"no budget", -1, 40, 1, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			g := newGate(t, GateOptions{Loads: 40, Absent: c.absent})
			time.Sleep(time.Hour) // what is not used is not saved up
			begun, after := time.Now(), time.Duration(0)
			for time.Since(begun) < time.Minute && after == 0 {
				time.Sleep(loadTime)
				for range c.loads {
					g.Back(Foreground, loadTime, c.part)
				}
				if g.Flooded() {
					after = time.Since(begun)
				}
			}
			require.InDelta(t, c.want, after, float64(3*loadTime), "%s: flooded after", c.name)
			g.Back(Foreground, time.Hour, c.part)
			require.Equal(t, c.part > 0 && c.absent > 0, g.Flooded(), "%s: by a load of an hour", c.name)
		})
	}
}

func TestGateFloodThatIsHeldDownIsNotOver(t *testing.T) {
	// While more keys come that find nothing than their slots could take, the flood is on, though only as many as there are slots load; it
	// is over two windows after no more come than those could take, and when nobody comes.
	//
	// Broken by: "float64(m.came)" in demand made float64(m.ended); "g.misses.came++" left out of enqueue, which the next test sees.
	synctest.Test(t, func(t *testing.T) {
		g := newGate(t, GateOptions{Loads: 40, Absent: 4})
		g.Back(Foreground, 5*time.Second, 1)
		require.True(t, g.Flooded())
		require.Equal(t, 500, come(g, 10, 1)+come(g, 10, 1)+come(g, 10, 1)+come(g, 10, 1)+come(g, 10, 1)+
			come(g, 10, 1)+come(g, 10, 1)+come(g, 10, 1)+come(g, 10, 1)+come(g, 10, 1))
		come(g, 3, 1)
		come(g, 3, 1)
		require.Zero(t, come(g, 3, 1))

		g.Back(Foreground, 5*time.Second, 1)
		require.True(t, g.Flooded())
		time.Sleep(missWindow)
		require.False(t, g.Flooded())
	})
}

func TestGateColdRowsAreNoFlood(t *testing.T) {
	// A flood that has gone does not hold down rows that nobody knows yet: when of the suspects no larger part finds nothing than Absent is
	// of the gate, it is over, however many come; above that it is not.
	//
	// Broken by: "part*m.loads" left out of demand.
	synctest.Test(t, func(t *testing.T) {
		g := newGate(t, GateOptions{Loads: 40, Absent: 4})
		g.Back(Foreground, 5*time.Second, 1)
		come(g, 1000, 0.3)
		require.Equal(t, 50, come(g, 1000, 0.3))
		come(g, 1000, 0.1)
		come(g, 1000, 0.1)
		require.Zero(t, come(g, 1000, 0.1))
	})
}

func TestGateFloodOfSlowLoadsIsJudgedWhenTheyComeBack(t *testing.T) {
	// While loads take longer than a window, a flood of them is not over; one of which nothing comes back is, after ten seconds.
	//
	// Broken by: the case "m.came > 0 && m.ended == 0" left out of flooded; its "watched < missSilence" left out; "g.misses.came++" left out
	// of enqueue.
	synctest.Test(t, func(t *testing.T) {
		g := newGate(t, GateOptions{Loads: 40, Absent: 4})
		g.Back(Foreground, 5*time.Second, 1)
		for range 4 {
			require.NoError(t, g.EnterAs(t.Context(), Suspect))
		}
		time.Sleep(missSilence - loadTime)
		require.True(t, g.Flooded())
		time.Sleep(loadTime)
		require.False(t, g.Flooded())
	})
}

func TestGateOfVeryManySlotsIsNotFlooded(t *testing.T) {
	// A gate that bounds nothing, or hardly anything, is not flooded by rows that exist, however long it was idle: its budget is more than a
	// Duration holds.
	//
	// Broken by: time.Duration in place of atMost, in whole and in back.
	for _, loads := range []int{1 << 24, math.MaxInt} {
		synctest.Test(t, func(t *testing.T) {
			g := newGate(t, GateOptions{Loads: loads})
			g.Back(Foreground, loadTime, 0)
			require.False(t, g.Flooded())
			time.Sleep(24 * time.Hour)
			g.Back(Foreground, loadTime, 0)
			require.False(t, g.Flooded(), "after a day")
		})
	}
}
