package rebuild

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestGateSharesOfTheClasses(t *testing.T) {
	// Foreground may have every slot; Suspect a tenth, four at least and half at most, or what Absent says; Revalidate half, Refresh a
	// quarter, Warm a tenth,
	// each one at least. Only who is waited for may wait. Broken by: "o.Loads/2" in shares made o.Loads; "max(1," left out for any of them.
	for _, c := range []struct {
		o                                  GateOptions
		suspect, revalidate, refresh, warm int
	}{
		{GateOptions{}, 6, 32, 16, 6},
		{GateOptions{Loads: 200}, 20, 100, 50, 20},
		{GateOptions{Loads: 16}, 4, 8, 4, 1},
		{GateOptions{Loads: 4}, 2, 2, 1, 1},
		{GateOptions{Loads: 1}, 1, 1, 1, 1},
		{GateOptions{Loads: 16, Absent: 9}, 9, 8, 4, 1},
		{GateOptions{Loads: 16, Absent: 99}, 16, 8, 4, 1},
		{GateOptions{Loads: 16, Absent: -1}, 16, 8, 4, 1},
	} {
		g := newGate(t, c.o)
		var slots, waiting []int
		for class := range classes {
			slots, waiting = append(slots, g.Slots(class)), append(waiting, g.shares[class].waiting)
		}
		require.Equal(t, []int{g.loads, c.suspect, c.revalidate, c.refresh, c.warm}, slots, "%+v", c.o)
		require.Equal(t, []int{256, c.suspect, 256, 0, 0}, waiting, "%+v", c.o)
	}
}

func TestGateClassKeepsToItsShare(t *testing.T) {
	// A class that has all of its slots gets no more, though others are free, and takes none from Foreground: Suspect and Revalidate wait, for
	// Wait at most, the others are turned away at once; each is counted. Broken by: "&& s.running < s.slots" left out of enqueue;
	// "s.running++" left out of it.
	synctest.Test(t, func(t *testing.T) {
		for class := Suspect; class < classes; class++ {
			g := newGate(t, GateOptions{Loads: 40})
			for range g.Slots(class) {
				require.NoError(t, g.EnterAs(t.Context(), class))
			}
			begun := time.Now()
			require.Equal(t, ErrOverloaded, g.EnterAs(t.Context(), class), class)
			want := time.Duration(0)
			if class == Suspect || class == Revalidate {
				want = 100 * time.Millisecond
			}
			require.Equal(t, want, time.Since(begun), class)
			require.EqualValues(t, 1, g.ShedAs(class), class)
			for range 40 - g.Slots(class) {
				require.NoError(t, g.Enter(t.Context()), class)
			}
			require.Zero(t, g.ShedAs(Foreground))
		}
	})
}

func TestGateLowerClassGoesFirst(t *testing.T) {
	// Of those who wait for a slot the lower class has it first, whoever came first; a class whose share is used up does not hold the slot
	// up. Refresh and Warm get nothing while no slot is free, nor does Revalidate where a Foreground waits already.
	//
	// Broken by: LeaveAs's loop run from the last share to the first; its "s.running < s.slots" left out; Revalidate queued in any
	// case.
	synctest.Test(t, func(t *testing.T) {
		g := newGate(t, GateOptions{Loads: 2, Waiting: 8, Absent: 1})
		require.NoError(t, g.EnterAs(t.Context(), Suspect))
		require.NoError(t, g.Enter(t.Context()))
		suspect := enterAs(t.Context(), g, Suspect)
		row := enter(t.Context(), g)
		for class := Revalidate; class < classes; class++ {
			require.Equal(t, ErrOverloaded, g.EnterAs(t.Context(), class), class)
		}

		g.Leave() // a slot is free, but none of Suspect's
		synctest.Wait()
		require.NoError(t, <-row)
		require.Empty(t, suspect)
		g.Leave() // nobody may have it
		synctest.Wait()
		require.Empty(t, suspect)
		require.EqualValues(t, 1, g.Running())

		last := enter(t.Context(), g)
		require.NoError(t, <-last, "a slot that a waiting Suspect may not have")
		last = enter(t.Context(), g)
		g.LeaveAs(Suspect) // both could have it
		synctest.Wait()
		require.NoError(t, <-last)
		require.Empty(t, suspect)
		g.Leave()
		synctest.Wait()
		require.NoError(t, <-suspect)
		g.Leave()
		g.LeaveAs(Suspect)
		require.Zero(t, g.Running())
	})
}

func TestGateSuspectsWaitInAShortQueueOfTheirOwn(t *testing.T) {
	// However many suspects come, as many as run may wait; Foreground's queue is untouched by them. Broken by: "waiting: min(absent," in
	// shares made o.Waiting.
	synctest.Test(t, func(t *testing.T) {
		g := newGate(t, GateOptions{Loads: 4, Waiting: 8, Absent: 2})
		for range 2 {
			require.NoError(t, g.EnterAs(t.Context(), Suspect))
			require.NoError(t, g.Enter(t.Context()))
		}
		var suspects, rows []<-chan error
		for range 5 {
			suspects = append(suspects, enterAs(t.Context(), g, Suspect))
		}
		require.EqualValues(t, 2, g.Waiting())
		require.EqualValues(t, 3, g.ShedAs(Suspect))
		for range 8 {
			rows = append(rows, enter(t.Context(), g))
		}
		require.EqualValues(t, 10, g.Waiting())
		g.Close()
		for _, got := range append(suspects[:2], rows...) {
			require.Equal(t, ErrClosed, <-got)
		}
	})
}

func TestRunAsTakesASlotOfItsClass(t *testing.T) {
	// A load runs in a slot of the class that it was given, which is free again when it returned, timed out or not. Broken by: either
	// "LeaveAs(class)" in RunAs made Leave; "EnterAs(ctx, class)" made Enter.
	synctest.Test(t, func(t *testing.T) {
		l, g := newLoads(t, GateOptions{}, time.Second)
		gate := make(chan struct{})
		go func() { _, _, _ = RunAs(t.Context(), l, Warm, when(gate, 7)) }()
		synctest.Wait()
		require.EqualValues(t, 1, g.RunningAs(Warm))
		require.Zero(t, g.RunningAs(Foreground))
		close(gate)
		synctest.Wait()
		require.Zero(t, g.RunningAs(Warm))
		require.Zero(t, l.Close(t.Context()))
	})
}
