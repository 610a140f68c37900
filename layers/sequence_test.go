package layers

import (
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A number that has not come a second after a higher one is a gap, once, and not before the second is over.
func TestMissingNumberIsAGapAfterASecond(t *testing.T) {
	var s sequence
	start := time.Unix(1_000, 0)
	require.False(t, s.note("a", 1, false, start))
	require.True(t, s.due().IsZero())
	require.False(t, s.note("a", 3, false, start.Add(time.Millisecond)))
	due := start.Add(time.Millisecond + gapWait)
	require.Equal(t, due, s.due())
	require.False(t, s.gap(due.Add(-1)))
	require.True(t, s.gap(due))
	require.False(t, s.gap(due.Add(time.Hour)), "a gap is told once")
	require.False(t, s.note("a", 4, false, due))
	require.True(t, s.due().IsZero())
}

// What an origin had said before it was first heard of is a gap: it may have been lost. Of all origins that were there before this process it
// is one gap, once it has met them.
// Broken by: meet without strangers; strangers without began; forgive without strangers.
func TestWhatAnOriginSaidBeforeItWasMetIsAGap(t *testing.T) {
	var s sequence
	start := time.Unix(1_000, 0)
	require.False(t, s.note("born now", 1, false, start))
	require.False(t, s.note("silent", 0, true, start))
	require.True(t, s.due().IsZero())
	require.False(t, s.note("old", 7, true, start.Add(time.Second)))
	require.False(t, s.note("older", 1<<60, false, start.Add(5*time.Second)))
	require.Equal(t, start.Add(meeting), s.due())
	require.True(t, s.gap(start.Add(meeting)))
	require.True(t, s.due().IsZero(), "one gap for them all")

	later := start.Add(time.Hour)
	require.False(t, s.note("its first event was lost", 1, true, later))
	require.Equal(t, later.Add(gapWait), s.due())
	require.False(t, s.note("a", 1, false, later))
	require.False(t, s.note("a", 3, false, later.Add(-time.Millisecond)))
	require.Equal(t, later.Add(gapWait-time.Millisecond), s.due(), "whichever comes first")
	s.forgive()
	require.True(t, s.due().IsZero())
}

// Events that overtake each other are no gap, in whatever order they come.
func TestNumbersOutOfOrderAreNoGap(t *testing.T) {
	var s sequence
	now := time.Unix(1_000, 0)
	for _, n := range []uint64{1, 4, 2, 6, 3, 3, 5, 4} {
		require.False(t, s.note("a", n, false, now))
		now = now.Add(100 * time.Millisecond)
	}
	require.True(t, s.due().IsZero())
	require.False(t, s.gap(now.Add(time.Hour)))
	require.Zero(t, s.missing)
}

// Each missing number has its own second: one that came in time does not excuse, nor hasten, the next.
func TestEachMissingNumberHasItsOwnSecond(t *testing.T) {
	var s sequence
	start := time.Unix(1_000, 0)
	s.note("a", 1, false, start)
	s.note("a", 3, false, start)
	later := start.Add(gapWait / 2)
	s.note("a", 5, false, later)
	s.note("a", 2, false, later)
	require.Equal(t, later.Add(gapWait), s.due())
	require.False(t, s.gap(start.Add(gapWait)))
	require.True(t, s.gap(later.Add(gapWait)))
}

// A beat shows that the last event got lost, after which no other came; it does not stand for that event itself.
func TestBeatShowsThatTheLastEventIsMissing(t *testing.T) {
	var s sequence
	now := time.Unix(1_000, 0)
	s.note("a", 0, true, now) // an origin begins with a beat, too
	require.False(t, s.note("a", 1, true, now))
	require.False(t, s.note("a", 1, true, now))
	require.Equal(t, now.Add(gapWait), s.due())
	require.True(t, s.gap(now.Add(gapWait)))

	s = sequence{}
	s.note("a", 0, true, now)
	s.note("a", 1, true, now)
	s.note("a", 1, false, now) // it was on its way
	require.False(t, s.gap(now.Add(time.Hour)))
}

// The numbers of one origin say nothing about another's.
func TestOriginsAreCountedApart(t *testing.T) {
	var s sequence
	now := time.Unix(1_000, 0)
	s.note("a", 1, false, now)
	s.note("b", 1, false, now)
	s.note("b", 2, false, now)
	s.note("a", 2, false, now)
	s.note("b", 3, false, now)
	require.True(t, s.due().IsZero())
}

// An origin that says nothing for 30 s is forgotten; one that goes on is not.
func TestSilentOriginsAreForgotten(t *testing.T) {
	var s sequence
	start := time.Unix(1_000, 0)
	s.note("quiet", 1, false, start)
	s.note("loud", 1, false, start)
	s.note("loud", 2, false, start.Add(originSilence-1))
	s.sweep(start.Add(originSilence))
	require.Len(t, s.origins, 1)
	require.Equal(t, 1, s.silent.Len())
	require.Contains(t, s.origins, "loud")
}

// No number of origins, and no number that one of them names, makes the table grow without bound; what can no longer be awaited is a gap.
func TestSequenceIsBounded(t *testing.T) {
	var s sequence
	now := time.Unix(1_000, 0)
	for i := range maxOrigins + 10 {
		require.False(t, s.note(strconv.Itoa(i), 1, false, now))
	}
	require.Len(t, s.origins, maxOrigins)
	require.NotContains(t, s.origins, "9")
	require.Contains(t, s.origins, "10")

	require.True(t, s.note("10", 1<<60, false, now), "too many to await: a gap at once")
	require.Zero(t, s.missing)
	require.True(t, s.due().IsZero())

	require.False(t, s.note("11", maxMissing, true, now))
	require.Equal(t, maxMissing-1, s.missing)
	require.True(t, s.note("12", 4, false, now))
	require.Zero(t, s.missing)

	s.note("13", 3, false, now) // "14" is the most silent now; make "13" it, with a number awaited
	for e := s.silent.Front(); e.Value.(*line).origin != "13"; e = s.silent.Front() {
		s.forget(e)
	}
	require.True(t, s.due().After(now))
	require.True(t, s.forget(s.silent.Front()), "an awaited number goes with its origin")
	require.True(t, s.due().IsZero())
}
